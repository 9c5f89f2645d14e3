"""Placement as one pure function, used by check and create alike: `plan(request, snapshots, window)`.

The stages, one file each: demand.py (what is asked), inventory.py (what is there), gates.py (what keeps it
from a whole pool), feasibility.py (which hosts may take a node), arrange.py and search.py (how the group
lies on them), timing.py (when), routing.py (which pool), judging.py and reasons.py (why not). Here they
are put together.

A request that names a pool goes there. One that names none goes to the best pool that fits: the full count
beats `min_count`, then the pool's preference, the earlier start, most room left on the tightest resource,
the name. Sets that name different pools are one plan, all or nothing; sets that name none stay in one pool
together.

Same input, same answer; ties go by name. Nothing is written, nothing is held: the caller holds what the
plan says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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
from broker.core.demand import Placement, PlacementRequest, SetRequest, Window
from broker.core.feasibility import held_amounts
from broker.core.inventory import HostInventory, HostRecord, HostState, PoolSnapshot
from broker.core.judging import explain
from broker.core.reasons import NEAREST_HOSTS
from broker.core.routing import Attempt, make_attempt, place, routes
from broker.core.search import SEARCH_LIMIT
from broker.core.slots import from_us

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
    "fits",
    "held_amounts",
    "plan",
]


def plan(
    request: PlacementRequest,
    snapshots: Mapping[str, PoolSnapshot],
    window: Window,
    *,
    search_limit: int = SEARCH_LIMIT,
    nearest_hosts: int = NEAREST_HOSTS,
    judged: bool = True,
) -> Plan | NotNow | Never:
    """Return where and when the request goes, or why nowhere.

    `search_limit` bounds the work of each question put to a pool (does it fit now, would it on the empty
    pool, when is the earliest), in configurations of a host looked at; `nearest_hosts` the host verdicts
    of a refused pool. Verdicts of a plan are about pools only; `judged` False leaves them and the score out, for who
    acts on the plan and tells nobody. KeyError: a pool is named that no snapshot
    is given for.
    """
    attempts = _attempts(request, snapshots, window, search_limit)
    best = _best(attempts)
    if best is not None:
        if not judged:
            return _plan(best)
        return _plan(best, score=min(best.scores), verdicts=explain(attempts, search_limit)[1])
    outcome, verdicts, earliest = explain(attempts, search_limit, nearest_hosts=nearest_hosts, when=True)
    if outcome is Outcome.NEVER:
        return Never(verdicts=verdicts)
    return NotNow(earliest=from_us(earliest), verdicts=verdicts)


def fits(
    request: PlacementRequest,
    snapshots: Mapping[str, PoolSnapshot],
    window: Window,
    *,
    soonest: bool = False,
    search_limit: int = SEARCH_LIMIT,
) -> Plan | None:
    """Return where and when the request goes, as `plan` does, or None without asking why.

    `soonest`: the earlier start counts before everything else.
    """
    attempts = _attempts(request, snapshots, window, search_limit)
    if soonest:
        first = min((attempt.start for attempt in attempts if attempt.placed is not None), default=0)
        attempts = [attempt for attempt in attempts if attempt.start == first]
    best = _best(attempts)
    return _plan(best) if best is not None else None


def _attempts(
    request: PlacementRequest, snapshots: Mapping[str, PoolSnapshot], window: Window, search_limit: int
) -> list[Attempt]:
    """Every way to route the request, tried."""
    attempts = [
        make_attempt(request, window, candidate, route, snapshots) for candidate, route in routes(request, snapshots)
    ]
    for attempt in attempts:
        place(attempt, search_limit)
    return attempts


def _best(attempts: Sequence[Attempt]) -> Attempt | None:
    fitting = [attempt for attempt in attempts if attempt.placed is not None]
    if len(fitting) < 2:
        return fitting[0] if fitting else None
    return min(fitting, key=lambda attempt: attempt.order)


def _plan(best: Attempt, *, score: float = 0.0, verdicts: tuple[Verdict, ...] = ()) -> Plan:
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
    start, prepare = from_us(best.start), from_us(best.prepare)
    assert start is not None
    assert prepare is not None
    return Plan(
        assignments=tuple(sorted(assignments, key=lambda assignment: assignment.set_index)),
        prepare=prepare,
        start=start,
        end=from_us(best.end),
        full=best.full,
        score=score,
        verdicts=verdicts,
        generations={pool.name: pool.generation for pool in best.pools},
    )
