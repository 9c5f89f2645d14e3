"""Which pool each set of a request may go to, and what comes of trying it.

A set that names a pool goes there. Those that name none stay together: in the request's pool, or in each
pool of the snapshots in turn, one attempt a pool. Nothing is chosen or explained here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta

from broker.core.answers import Reason
from broker.core.arrange import Arrangement, score
from broker.core.demand import PlacementRequest, Window
from broker.core.feasibility import Case, case_of
from broker.core.gates import gates, lease_length, starts
from broker.core.inventory import PoolSnapshot
from broker.core.search import SearchLimit
from broker.core.slots import INFINITY, to_us
from broker.core.timing import end_of, first_fit, fit_at

_MICROSECOND = timedelta(microseconds=1)


@dataclass(slots=True)
class Attempt:
    """One way to route the request: which sets go to which pool, and what came of it."""

    candidate: str  # the pool of the sets that name none; empty if all name one
    pools: tuple[PoolSnapshot, ...]
    cases: tuple[Case, ...]  # one a pool
    closed: tuple[list[Reason], ...]  # gates, one list a pool
    now: int = 0  # microseconds, as all here
    start: int = 0
    until: int = 0  # the latest start
    length: int = INFINITY
    lead: int = 0  # how long before a promised start its capacity is held, for what has to be done until then
    placed: list[Arrangement] | None = None
    undecided: bool = False

    @property
    def prepare(self) -> int:
        """From when on its capacity is held."""
        return max(self.now, self.start - self.lead)

    @property
    def end(self) -> int:
        """Until when."""
        return end_of(self.start, self.length)

    @property
    def held_length(self) -> int:
        """How long."""
        return self.length if self.length >= INFINITY else self.end - self.prepare

    @property
    def full(self) -> bool:
        """Whether every set got its full count."""
        return self.placed is not None and all(
            len(rows) == count
            for case, placed in zip(self.cases, self.placed, strict=True)
            for rows, count in zip(placed, case.counts, strict=True)
        )

    @property
    def scores(self) -> list[float]:
        """The share left free in each pool it goes to; worked out when asked, as most plans have no rival."""
        assert self.placed is not None
        return [
            score(case, case.room(self.prepare, self.end), rows)
            for case, rows in zip(self.cases, self.placed, strict=True)
        ]

    @property
    def order(self) -> tuple[object, ...]:
        """Sort key among attempts that fit, the best first: all but the candidate is common to them."""
        preference = sum(pool.preference for pool in self.pools if pool.name == self.candidate)
        return (not self.full, -preference, self.start, -min(self.scores), self.candidate)


def routes(request: PlacementRequest, snapshots: Mapping[str, PoolSnapshot]) -> list[tuple[str, dict[str, list[int]]]]:
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
    found = []
    for candidate in candidates:
        route = {**named, candidate: sorted([*named.get(candidate, ()), *unnamed])}
        found.append((candidate, dict(sorted(route.items()))))
    return found


def make_attempt(
    request: PlacementRequest,
    window: Window,
    candidate: str,
    route: Mapping[str, Sequence[int]],
    snapshots: Mapping[str, PoolSnapshot],
) -> Attempt:
    """Return an attempt not yet placed: what is needed where, which gates are closed, when it may start."""
    pools = tuple(snapshots[name] for name in route)
    length = lease_length(window, pools)
    cases: list[Case] = []
    closed: list[list[Reason]] = []
    start, until = 0, INFINITY
    for pool, indices in zip(pools, route.values(), strict=True):
        sets = request.sets if len(indices) == len(request.sets) else tuple(request.sets[index] for index in indices)
        reasons = gates(pool, request, sets, length)
        allowed = starts(window, length, pool)
        if isinstance(allowed, Reason):
            reasons.append(allowed)
        else:
            start, until = max(start, to_us(allowed[0])), min(until, to_us(allowed[1]))
        cases.append(case_of(pool, indices, sets))
        closed.append(reasons)
    return Attempt(
        candidate=candidate,
        pools=pools,
        cases=tuple(cases),
        closed=tuple(closed),
        now=max(to_us(pool.now) for pool in pools),
        start=start,
        until=until,
        length=INFINITY if length is None else length // _MICROSECOND,
        lead=max(pool.lead // _MICROSECOND for pool in pools),
    )


def place(attempt: Attempt, search_limit: int) -> None:
    """Find the earliest start in the window, and where; leaves `placed` None if there is none, or it is
    undecided.
    """
    if any(attempt.closed):
        return
    try:
        placed = fit_at(attempt.cases, attempt.prepare, attempt.held_length, search_limit)
        if placed is None and attempt.until > attempt.start:
            later = first_start(attempt, attempt.until, search_limit)
            if later is not None:
                attempt.start = later
                placed = fit_at(attempt.cases, attempt.prepare, attempt.held_length, search_limit)
    except SearchLimit:
        attempt.undecided = True
        return
    attempt.placed = placed


def first_start(attempt: Attempt, until: int, search_limit: int) -> int | None:
    """Return the first start after the attempt's own, and no later than `until`, at which it fits, or None.

    Raises SearchLimit when that was not found out within the bound on work.
    """
    lead = attempt.lead
    length = attempt.length if attempt.length >= INFINITY else attempt.length + lead
    prepare = first_fit(attempt.cases, attempt.prepare, until - lead, length, search_limit)
    return None if prepare is None else prepare + lead
