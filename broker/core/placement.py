"""Placement as one pure function, used by check and create alike: `plan(request, snapshots, window)`.

The stages, one file each: demand.py (what is asked), inventory.py (what is there), gates.py (what keeps it
from a whole pool), feasibility.py (which hosts may take a node), arrange.py and search.py (how the group
lies on them), timing.py (when), reasons.py (why not), and here the routing: which pool.

A request that names a pool goes there. One that names none goes to the best pool that fits: the full count
beats `min_count`, then the pool's preference, the earlier start, most room left on the tightest resource,
the name. Sets that name different pools are one plan, all or nothing; sets that name none stay in one pool
together.

Same input, same answer; ties go by name. Nothing is written, nothing is held: the caller holds what the
plan says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta

from broker.core.answers import (
    Never,
    NotNow,
    Outcome,
    Plan,
    Reason,
    ReasonCode,
    SetAssignment,
    Verdict,
)
from broker.core.arrange import Arrangement, arrange, score
from broker.core.demand import Placement, PlacementRequest, SetRequest, Window
from broker.core.feasibility import Case, held_amounts
from broker.core.gates import WAITING, gates, lease_length, starts
from broker.core.inventory import HostInventory, HostRecord, HostState, PoolSnapshot
from broker.core.reasons import NEAREST_HOSTS, refusal
from broker.core.search import SEARCH_LIMIT, Budget, SearchLimit
from broker.core.slots import INFINITY, from_us, to_us
from broker.core.timing import end_of, first_fit, fit_at

__all__ = [
    "NEAREST_HOSTS",
    "SEARCH_LIMIT",
    "HostInventory",
    "HostRecord",
    "HostState",
    "Never",
    "NotNow",
    "Outcome",
    "Placement",
    "PlacementRequest",
    "Plan",
    "PoolSnapshot",
    "Reason",
    "ReasonCode",
    "SetAssignment",
    "SetRequest",
    "Verdict",
    "Window",
    "held_amounts",
    "plan",
]

_MICROSECOND = timedelta(microseconds=1)


@dataclass(slots=True)
class _Attempt:
    """One way to route the request: which sets go to which pool, and what came of it."""

    candidate: str  # the pool of the sets that name none; empty if all name one
    pools: tuple[PoolSnapshot, ...]
    cases: tuple[Case, ...]  # one a pool
    closed: tuple[list[Reason], ...]  # gates, one list a pool
    start: int = 0  # microseconds, as all here
    until: int = 0  # the latest start
    length: int = INFINITY
    placed: list[Arrangement] | None = None
    scores: list[float] = field(default_factory=list)
    undecided: bool = False

    @property
    def full(self) -> bool:
        """Whether every set got its full count."""
        return self.placed is not None and all(
            len(rows) == count
            for case, placed in zip(self.cases, self.placed, strict=True)
            for rows, count in zip(placed, case.counts, strict=True)
        )

    @property
    def order(self) -> tuple[object, ...]:
        """Sort key among attempts that fit, the best first: all but the candidate is common to them."""
        preference = sum(pool.preference for pool in self.pools if pool.name == self.candidate)
        return (not self.full, -preference, self.start, -min(self.scores), self.candidate)


def plan(
    request: PlacementRequest,
    snapshots: Mapping[str, PoolSnapshot],
    window: Window,
    *,
    search_limit: int = SEARCH_LIMIT,
    nearest_hosts: int = NEAREST_HOSTS,
) -> Plan | NotNow | Never:
    """Return where and when the request goes, or why nowhere.

    `search_limit` bounds the work of each question put to a pool (does it fit now, would it on the empty
    pool, when is the earliest), in configurations of a host looked at; `nearest_hosts` the host verdicts
    of a refused pool. Verdicts of a plan are about pools only. KeyError: a pool is named that no snapshot
    is given for.
    """
    attempts = [
        _attempt(request, window, candidate, route, snapshots)
        for candidate, route in _routes(request, snapshots)
    ]
    for attempt in attempts:
        _place(attempt, search_limit)
    fitting = [attempt for attempt in attempts if attempt.placed is not None]
    if fitting:
        best = min(fitting, key=lambda attempt: attempt.order)
        return _plan(best, _explain(attempts, search_limit)[1])
    outcome, verdicts, earliest = _explain(attempts, search_limit, nearest_hosts=nearest_hosts, when=True)
    if outcome is Outcome.NEVER:
        return Never(verdicts=verdicts)
    return NotNow(earliest=from_us(earliest), verdicts=verdicts)


def _routes(
    request: PlacementRequest, snapshots: Mapping[str, PoolSnapshot]
) -> list[tuple[str, dict[str, list[int]]]]:
    """Return the ways to route the sets: (pool of those that name none, pool -> sets), by name."""
    named: dict[str, list[int]] = {}
    unnamed: list[int] = []
    for index, wanted in enumerate(request.sets):
        if wanted.pool is None:
            unnamed.append(index)
        else:
            named.setdefault(wanted.pool, []).append(index)
    if not unnamed:
        return [("", dict(sorted(named.items())))]
    candidates = sorted(snapshots) if request.pool is None else [request.pool]
    routes = []
    for candidate in candidates:
        route = {**named, candidate: sorted([*named.get(candidate, ()), *unnamed])}
        routes.append((candidate, dict(sorted(route.items()))))
    return routes


def _attempt(
    request: PlacementRequest,
    window: Window,
    candidate: str,
    route: Mapping[str, Sequence[int]],
    snapshots: Mapping[str, PoolSnapshot],
) -> _Attempt:
    pools = tuple(snapshots[name] for name in route)
    length = lease_length(window, pools)
    cases: list[Case] = []
    closed: list[list[Reason]] = []
    start, until = 0, INFINITY
    for pool, indices in zip(pools, route.values(), strict=True):
        sets = [request.sets[index] for index in indices]
        reasons = gates(pool, request, sets, length)
        allowed = starts(window, length, pool)
        if isinstance(allowed, Reason):
            reasons.append(allowed)
        else:
            start, until = max(start, to_us(allowed[0])), min(until, to_us(allowed[1]))
        cases.append(Case(pool, indices, sets))
        closed.append(reasons)
    return _Attempt(
        candidate=candidate,
        pools=pools,
        cases=tuple(cases),
        closed=tuple(closed),
        start=start,
        until=until,
        length=INFINITY if length is None else length // _MICROSECOND,
    )


def _place(attempt: _Attempt, search_limit: int) -> None:
    """Find the earliest start in the window, and where; leaves `placed` None if there is none, or it is
    undecided.
    """
    if any(attempt.closed):
        return
    cases, length = attempt.cases, attempt.length
    try:
        placed = fit_at(cases, attempt.start, length, search_limit)
        if placed is None and attempt.until > attempt.start:
            later = first_fit(cases, attempt.start, attempt.until, length, search_limit)
            if later is not None:
                placed = fit_at(cases, later, length, search_limit)
                attempt.start = later
    except SearchLimit:
        attempt.undecided = True
        return
    if placed is None:
        return
    attempt.placed = placed
    end = end_of(attempt.start, length)
    attempt.scores = [
        score(case, case.room(attempt.start, end), rows) for case, rows in zip(cases, placed, strict=True)
    ]


def _plan(best: _Attempt, verdicts: tuple[Verdict, ...]) -> Plan:
    assert best.placed is not None
    assignments = [
        SetAssignment(
            set_index=index,
            pool=case.pool,
            hosts=tuple([case.snapshot.hosts.names[row] for row in rows.tolist()]),
        )
        for case, placed in zip(best.cases, best.placed, strict=True)
        for index, rows in zip(case.indices, placed, strict=True)
    ]
    start = from_us(best.start)
    assert start is not None
    return Plan(
        assignments=tuple(sorted(assignments, key=lambda assignment: assignment.set_index)),
        start=start,
        end=from_us(end_of(best.start, best.length)),
        full=best.full,
        score=min(best.scores),
        verdicts=verdicts,
        generations={pool.name: pool.generation for pool in best.pools},
    )


def _explain(
    attempts: Sequence[_Attempt], search_limit: int, *, nearest_hosts: int = 0, when: bool = False
) -> tuple[Outcome, tuple[Verdict, ...], int]:
    """Return the outcome over all routes, a verdict for every pool, and the earliest start (INFINITY: none
    known).
    """
    verdicts: dict[str, list[Verdict]] = {}
    earliest = INFINITY
    outcomes: set[Outcome] = set()
    for attempt in attempts:
        outcome, when_it_fits = _judge(attempt, search_limit, nearest_hosts, when, verdicts)
        outcomes.add(outcome)
        earliest = min(earliest, when_it_fits)
    ordered = tuple(verdict for _, found in sorted(verdicts.items()) for verdict in found)
    for outcome in (Outcome.FITS, Outcome.NOT_NOW):
        if outcome in outcomes:
            return outcome, ordered, earliest
    return Outcome.NEVER, ordered, earliest


def _judge(
    attempt: _Attempt, search_limit: int, nearest_hosts: int, when: bool, verdicts: dict[str, list[Verdict]]
) -> tuple[Outcome, int]:
    """Add a verdict for each pool of a route that has none yet; return the route's outcome and earliest
    start.
    """
    if attempt.placed is not None:
        for case, placed, value in zip(attempt.cases, attempt.placed, attempt.scores, strict=True):
            nodes = sum(map(len, placed))
            verdicts.setdefault(
                case.pool,
                [Verdict(pool=case.pool, outcome=Outcome.FITS, score=value, nodes_fit=nodes)],
            )
        return Outcome.FITS, attempt.start
    undecided = [attempt.undecided] * len(attempt.cases)
    outcomes = [
        _outcome_alone(attempt, position, search_limit, undecided) for position in range(len(attempt.cases))
    ]
    route = Outcome.NEVER if Outcome.NEVER in outcomes else Outcome.NOT_NOW
    extra: list[Reason] = []
    earliest = INFINITY
    if when and route is Outcome.NOT_NOW and not any(attempt.closed):
        try:
            found = first_fit(attempt.cases, attempt.start, INFINITY - 1, attempt.length, search_limit)
        except SearchLimit:
            undecided = [True] * len(undecided)
        else:
            earliest = INFINITY if found is None else found
        if attempt.until < earliest < INFINITY and attempt.until > attempt.start:
            late = from_us(attempt.until)
            assert late is not None
            extra = [Reason(code=ReasonCode.WINDOW, message=f"no room for a start by {late.isoformat()}")]
    for position, case in enumerate(attempt.cases):
        if case.pool in verdicts:
            continue
        outcome = outcomes[position]
        if outcome is Outcome.FITS:
            verdicts[case.pool] = [Verdict(pool=case.pool, outcome=outcome, nodes_fit=sum(case.counts))]
            continue
        reasons = [*attempt.closed[position], *extra]
        if undecided[position] and outcome is Outcome.NOT_NOW:
            reasons.append(
                Reason(
                    code=ReasonCode.SEARCH_LIMIT,
                    requested=sum(case.counts),
                    resolvable=True,
                    message="not decided within the bound on work: waiting or asking for less may help",
                )
            )
        verdicts[case.pool] = refusal(
            case,
            case.room(attempt.start, end_of(attempt.start, attempt.length)),
            outcome,
            earliest=from_us(earliest) if outcome is Outcome.NOT_NOW else None,
            known=reasons,
            nearest_hosts=nearest_hosts,
        )
    return route, earliest


def _outcome_alone(attempt: _Attempt, position: int, search_limit: int, undecided: list[bool]) -> Outcome:
    """Judge one pool of a refused route by itself, so that its verdict speaks of no other pool."""
    case, closed = attempt.cases[position], attempt.closed[position]
    codes = {reason.code for reason in closed}
    if codes - WAITING:
        return Outcome.NEVER
    if ReasonCode.POOL_UNREACHABLE in codes:
        return Outcome.NOT_NOW
    try:
        if arrange(case, case.empty_room(), case.least, Budget(search_limit)) is None:
            return Outcome.NEVER
        if (
            len(attempt.cases) > 1
            and not codes
            and fit_at([case], attempt.start, attempt.length, search_limit)
        ):
            undecided[position] = False
            return Outcome.FITS
    except SearchLimit:
        undecided[position] = True
    return Outcome.NOT_NOW
