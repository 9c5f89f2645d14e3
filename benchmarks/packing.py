"""What `pack` admits on full pools, against optima by OR-Tools CP-SAT, and whether its refusals are right.

200 drawn instances: hosts of several makes, and requests one after another that ask for 0.8 to 1.6 times what the
hosts have of the scarcest resource. We admit or refuse each as it comes and never move what stands. Two optima:

- first come: every request in turn is admitted if there is any way to lay it on the hosts together with all that were
  admitted before, which may be moved. Same order, same duty to admit what fits: what we lose to it is lost by packing.
- hindsight: the best subset of all requests, all of them known beforehand. It refuses what would fit to have room for
  what comes later, which nobody can who answers at once.

Value is counted in requests and in amounts, as a request that is refused for want of one large hole leaves room for
several small ones: so the ratio to the first-come optimum may be above 1. The amount of a request is the share of the
pool that it takes of its dominant resource.

Nothing is timed. CP-SAT is bounded by its own measure of work, so that the same versions give the same figures.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from math import fsum
from multiprocessing import get_context
from statistics import fmean
from typing import Final, TypeAlias

from ortools.sat.python import cp_model

from benchmarks.harness import Options, Row
from broker.core.placement import (
    HostInventory,
    HostRecord,
    Never,
    Outcome,
    Placement,
    PlacementRequest,
    Plan,
    PoolSnapshot,
    SetRequest,
    Window,
    plan,
)
from broker.core.slots import Slot, SlotTable

NAME: Final = "packing"
INSTANCES: Final = 200
FIRST_SEED: Final = 1_000
"""The weights of the policy `pack` were fitted on the seeds below."""
GOAL: Final = 0.98
LIMIT: Final = 0.3
"""Bound on one question to CP-SAT, in its deterministic seconds; about the same in seconds of one core."""

NOW: Final = datetime(2026, 11, 24, 12, tzinfo=UTC)
RESOURCES: Final = ("cpu", "memory", "disk")
STEPS: Final = (500, 512, 1024)
"""What amounts are multiples of: milli-cores, MiB, MiB."""

MAKES: Final = (
    (16_000, 65_536, 1_024_000),
    (24_000, 196_608, 4_096_000),
    (32_000, 131_072, 1_024_000),
    (32_000, 262_144, 2_048_000),
    (48_000, 393_216, 4_096_000),
    (64_000, 131_072, 1_024_000),
    (64_000, 262_144, 2_048_000),
)
"""Hosts to draw from."""

Hosts: TypeAlias = tuple[tuple[int, ...], ...]
"""For each host what it has, or has left, of each of `RESOURCES`."""


@dataclass(frozen=True, slots=True)
class Instance:
    """Empty hosts, and requests in the order in which they come."""

    hosts: Hosts
    requests: tuple[PlacementRequest, ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """What we said to a request, and what was free before."""

    outcome: Outcome
    free: Hosts


@dataclass(frozen=True, slots=True)
class Fit:
    """Whether requests fit together: `left` is what a way to do it leaves free, None if none was found."""

    left: Hosts | None
    proved: bool


@dataclass(frozen=True, slots=True)
class Optimum:
    """Which requests an optimum admits; `proved` False: a better one may exist."""

    taken: tuple[bool, ...]
    proved: bool


@dataclass(frozen=True, slots=True)
class Result:
    """All about one instance."""

    shares: tuple[float, ...]  # amount of each request
    ours: tuple[bool, ...]
    first_come: Optimum
    most_requests: Optimum
    most_amount: Optimum
    refusals: tuple[tuple[Outcome, bool], ...]  # with whether it is right


def draw(seed: int) -> Instance:
    """Draws an instance: 3 to 12 hosts, 10 to 40 requests of 1 to 4 nodes."""
    source = random.Random(seed)
    makes = source.sample(MAKES, source.randint(2, 4))
    hosts = tuple(source.choice(makes) for _ in range(source.randint(3, 12)))
    drawn = [_draw_sets(source) for _ in range(source.randint(10, 40))]
    load = source.uniform(0.8, 1.6)
    loads = source.sample([load, load * source.uniform(0.7, 1.0), load * source.uniform(0.4, 1.0)], len(RESOURCES))
    asked = [sum(count * size[r] for sets in drawn for count, size, _ in sets) for r in range(len(RESOURCES))]
    scale = [load * sum(have) / most for load, have, most in zip(loads, zip(*hosts, strict=True), asked, strict=True)]
    return Instance(
        hosts=hosts,
        requests=tuple(
            PlacementRequest(
                sets=tuple(
                    SetRequest(
                        count=count,
                        placement=placement,
                        amounts={
                            name: max(1, round(part * factor / step)) * step
                            for name, part, factor, step in zip(RESOURCES, size, scale, STEPS, strict=True)
                        },
                    )
                    for count, size, placement in sets
                )
            )
            for sets in drawn
        ),
    )


def _draw_sets(source: random.Random) -> list[tuple[int, list[float], Placement | None]]:
    """A request's sets as (count, size of a node before it is scaled, placement): mostly one."""
    left, sets = source.randint(1, 4), []
    while left:
        count = source.randint(1, left) if source.random() < 0.3 else left
        left -= count
        whole = source.lognormvariate(0.0, 0.6)
        size = [whole * source.lognormvariate(0.0, 0.4) for _ in RESOURCES]
        [placement] = source.choices([None, Placement.ONE_PER_HOST, Placement.SPREAD], [0.7, 0.2, 0.1])
        sets.append((count, size, placement))
    return sets


def answer_all(instance: Instance) -> list[Answer]:
    """Puts the requests to plan() one after another; each plan is held before the next is asked for."""
    names = [f"host-{number:02d}" for number in range(len(instance.hosts))]
    inventory = HostInventory.build(
        HostRecord(name=name, total=dict(zip(RESOURCES, have, strict=True)))
        for name, have in zip(names, instance.hosts, strict=True)
    )
    slots = SlotTable(RESOURCES)
    pool = PoolSnapshot(name="lab", hosts=inventory, slots=slots, now=NOW, policy=Placement.PACK)
    window = Window(start=NOW, open_ended=True, immediate=True)
    answers = []
    free = instance.hosts
    for number, request in enumerate(instance.requests):
        answer = plan(request, {pool.name: pool}, window)
        if not isinstance(answer, Plan):
            answers.append(Answer(Outcome.NEVER if isinstance(answer, Never) else Outcome.NOT_NOW, free))
            continue
        answers.append(Answer(Outcome.FITS, free))
        nodes = [
            (host, request.sets[assignment.set_index].amounts)
            for assignment in answer.assignments
            for host in assignment.hosts
        ]
        slots.hold_all(
            Slot(key=(f"w{number}", node, "host"), host=host, amounts=amounts, start=NOW, end=None)
            for node, (host, amounts) in enumerate(nodes)
        )
        left = [list(have) for have in free]
        for host, amounts in nodes:
            for r, name in enumerate(RESOURCES):
                left[inventory.rows[host]][r] -= amounts[name]
        free = tuple(map(tuple, left))
        if min(map(min, free)) < 0:
            raise AssertionError(f"a plan takes more than there is: {answer}")
    return answers


class Model:
    """Requests on hosts in integers: how many nodes of each set lie on each host, and which requests are taken."""

    def __init__(self, hosts: Hosts, requests: Sequence[PlacementRequest]) -> None:
        self.model = cp_model.CpModel()
        self.solver = cp_model.CpSolver()
        self.solver.parameters.num_workers = 1
        self.solver.parameters.max_deterministic_time = LIMIT
        self.solver.parameters.cp_model_probing_level = 0  # costs more than it saves on models as small as these
        self.hosts = hosts
        self.taken = [self.model.new_bool_var(f"taken {number}") for number in range(len(requests))]
        self.takes: list[list[cp_model.LinearExpr]] = [[cp_model.LinearExpr.sum([]) for _ in RESOURCES] for _ in hosts]
        for taken, request in zip(self.taken, requests, strict=True):
            for wanted in request.sets:
                self._add(taken, wanted)
        for takes, have in zip(self.takes, hosts, strict=True):
            for take, amount in zip(takes, have, strict=True):
                self.model.add(take <= amount)

    def _add(self, taken: cp_model.IntVar, wanted: SetRequest) -> None:
        amounts = [wanted.amounts[name] for name in RESOURCES]
        rule = 1 if wanted.placement is Placement.ONE_PER_HOST else wanted.count
        nodes = []
        for takes, have in zip(self.takes, self.hosts, strict=True):
            room = min(amount // need for amount, need in zip(have, amounts, strict=True))
            nodes.append(self.model.new_int_var(0, min(rule, room), ""))
            for r, need in enumerate(amounts):
                takes[r] += need * nodes[-1]
        self.model.add(cp_model.LinearExpr.sum(nodes) == wanted.count * taken)

    def solve(self) -> cp_model.CpSolverStatus:
        """Solves within `LIMIT`."""
        return self.solver.solve(self.model)

    @property
    def left(self) -> Hosts:
        """What the solution leaves free."""
        return tuple(
            tuple(amount - self.solver.value(take) for amount, take in zip(have, takes, strict=True))
            for have, takes in zip(self.hosts, self.takes, strict=True)
        )


def fits(hosts: Hosts, requests: Sequence[PlacementRequest]) -> Fit:
    """Whether all these requests fit on what these hosts have, placed anew."""
    question = Model(hosts, requests)
    question.model.add_bool_and(question.taken)
    status = question.solve()
    if status in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return Fit(question.left, proved=True)
    return Fit(None, proved=status == cp_model.INFEASIBLE)


def first_come(instance: Instance) -> Optimum:
    """Admits each request in turn that fits beside those admitted before, however they must be moved for it.

    One that CP-SAT leaves undecided is refused, and the optimum is not proved.
    """
    free, kept = instance.hosts, list[PlacementRequest]()
    taken: list[bool] = []
    proved = True
    for request in instance.requests:
        fit = fits(free, [request])  # nothing moved: a quick question, and mostly enough
        if fit.left is None and fits(instance.hosts, [request]).left is not None:
            fit = fits(instance.hosts, [*kept, request])
            proved &= fit.proved
        taken.append(fit.left is not None)
        if fit.left is not None:
            free = fit.left
            kept.append(request)
    return Optimum(tuple(taken), proved)


def hindsight(instance: Instance, values: Sequence[int], known: Sequence[bool]) -> Optimum:
    """The subset of requests of most value. `known` is a subset that fits: where the search starts, and what is
    answered if nothing better is found.
    """
    question = Model(instance.hosts, instance.requests)
    question.model.maximize(cp_model.LinearExpr.weighted_sum(question.taken, values))
    for taken, hint in zip(question.taken, known, strict=True):
        question.model.add_hint(taken, hint)
    status = question.solve()
    best = tuple(known)
    if status in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        found = tuple(map(question.solver.boolean_value, question.taken))
        best = max(best, found, key=lambda taken: worth(taken, values))
    return Optimum(best, status == cp_model.OPTIMAL)


def worth(taken: Sequence[bool], values: Sequence[float]) -> float:
    """Value of the requests taken."""
    return fsum(value for value, is_taken in zip(values, taken, strict=True) if is_taken)


def amount(hosts: Hosts, request: PlacementRequest) -> float:
    """The share of all hosts that a request takes of its dominant resource."""
    asked = (sum(wanted.count * wanted.amounts[name] for wanted in request.sets) for name in RESOURCES)
    have = map(sum, zip(*hosts, strict=True))
    return max(taken / total for taken, total in zip(asked, have, strict=True))


def is_right(outcome: Outcome, hosts: Hosts, free: Hosts, request: PlacementRequest) -> bool:
    """Whether a refusal is proved right: NEVER if even the empty hosts cannot, NOT_NOW if they can, but not now."""
    empty = fits(hosts, [request])
    if outcome is Outcome.NEVER:
        return empty.left is None and empty.proved
    now = fits(free, [request])
    return empty.left is not None and now.left is None and now.proved


def measure(instance: Instance) -> Result:
    """Answers an instance, and finds its optima."""
    answers = answer_all(instance)
    ours = tuple(answer.outcome is Outcome.FITS for answer in answers)
    shares = tuple(amount(instance.hosts, request) for request in instance.requests)
    best = first_come(instance)
    ones, parts = [1] * len(shares), [round(share * 1e6) for share in shares]
    return Result(
        shares=shares,
        ours=ours,
        first_come=best,
        most_requests=hindsight(instance, ones, max(ours, best.taken, key=sum)),
        most_amount=hindsight(instance, parts, max(ours, best.taken, key=lambda one: worth(one, shares))),
        refusals=tuple(
            (answer.outcome, is_right(answer.outcome, instance.hosts, answer.free, request))
            for answer, request in zip(answers, instance.requests, strict=True)
            if answer.outcome is not Outcome.FITS
        ),
    )


def run(options: Options) -> list[Row]:
    """Measures."""
    results: list[Result] = []
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:  # other benchmarks may have left threads
        for result in pool.map(measure, map(draw, range(FIRST_SEED, FIRST_SEED + INSTANCES))):
            results.append(result)
            if len(results) % 20 == 0:
                options.progress(f"{NAME}: {len(results)} of {INSTANCES} instances")
    first_come_optima = [result.first_come for result in results]
    return [
        _values("first come", results, first_come_optima, in_requests=True, goal=GOAL),
        _values("first come", results, first_come_optima, in_requests=False, goal=GOAL),
        _values("hindsight", results, [result.most_requests for result in results], in_requests=True),
        _values("hindsight", results, [result.most_amount for result in results], in_requests=False),
        _wrong(Outcome.NEVER, results),
        _wrong(Outcome.NOT_NOW, results),
    ]


def _values(
    case: str, results: Sequence[Result], optima: Sequence[Optimum], *, in_requests: bool, goal: float | None = None
) -> Row:
    pairs = []
    for result, optimum in zip(results, optima, strict=True):
        values = [1.0] * len(result.shares) if in_requests else result.shares
        pairs.append((worth(result.ours, values), worth(optimum.taken, values)))
    ratios = [ours / best for ours, best in pairs]
    proved = [ratio for ratio, optimum in zip(ratios, optima, strict=True) if optimum.proved]
    return Row(
        benchmark=NAME,
        case=f"optimum: {case}",
        measure=f"{'requests' if in_requests else 'amount'} admitted, mean of {len(pairs)}",
        unit="requests" if in_requests else "of the pool",
        ours=fmean(ours for ours, _ in pairs),
        baseline=fmean(best for _, best in pairs),
        baseline_name="CP-SAT",
        ratio=fmean(ratios),
        low=min(ratios),
        high=max(ratios),
        higher_is_better=True,
        goal=goal,
        note=f"optimum proved in {len(proved)} of {len(pairs)}"
        + (f", mean ratio there {fmean(proved):.3f}" if proved else ""),
    )


def _wrong(outcome: Outcome, results: Sequence[Result]) -> Row:
    rights = [right for result in results for said, right in result.refusals if said is outcome]
    wrong = rights.count(False)
    share = wrong / max(1, len(rights))
    return Row(
        benchmark=NAME,
        case=f"{outcome} said",
        measure="not proved right",
        unit="answers",
        ours=wrong,
        baseline=len(rights),
        baseline_name=f"all {outcome}",
        ratio=share,
        low=share,
        high=share,
        higher_is_better=False,
        goal=0.0,
        void="" if rights else "was never said",
    )
