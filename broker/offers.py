"""What would be accepted instead of a wish that does not fit: the same elsewhere, later, preemptible, or less of it.

An offer is a request that was tried: it passed placement and the tenant's limits just as CreateWorkspace would put it,
so that it can be handed over as it is. It promises nothing; the generations of the answer say what was judged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime

from msgspec import Struct
from msgspec.structs import replace

from broker.core.placement import Never, NotNow, Plan
from broker.core.requests import WorkspaceRequest


class Offer(Struct, frozen=True, kw_only=True):
    """A request that would be accepted. `paths`: the fields of a workspace in which it differs from the wish."""

    wanted: WorkspaceRequest
    paths: tuple[str, ...]
    start: datetime
    message: str


Try = Callable[[WorkspaceRequest], Plan | None]
"""Where a request would go if it were made now, or None where it would be refused."""


def offers(wanted: WorkspaceRequest, refused: NotNow | Never, tried: Try) -> list[Offer]:
    """Alternatives to a wish that does not fit, the nearest to it first: all nodes now, all nodes later, all nodes now
    but not without a break, fewer now."""
    return [
        *_elsewhere(wanted, tried),
        *_later(wanted, refused, tried),
        *_preemptible(wanted, tried),
        *_fewer(wanted, tried),
    ]


def _elsewhere(wanted: WorkspaceRequest, tried: Try) -> Iterator[Offer]:
    """Every node in one pool of the broker's choice, where the wish named pools."""
    if not (wanted.pool or any(each.pool for each in wanted.node_sets)):
        return
    free = replace(wanted, pool="", node_sets=tuple(replace(each, pool="") for each in wanted.node_sets))
    answer = tried(free)
    if answer is None or not answer.full:
        return
    pool = answer.assignments[0].pool
    paths = ["pool"] if wanted.pool != pool else []
    if any(each.pool for each in wanted.node_sets):
        paths.append("node_sets")
    yield Offer(
        wanted=replace(free, pool=pool), paths=tuple(paths), start=answer.start, message=f"all of it in pool {pool}"
    )


def _later(wanted: WorkspaceRequest, refused: NotNow | Never, tried: Try) -> Iterator[Offer]:
    """Every node at the first instant at which they fit, as a reservation."""
    if not isinstance(refused, NotNow) or refused.earliest is None:
        return
    paths = ["terms.start_time"]
    if wanted.terms.earliest_start_time is not None:
        paths.append("terms.earliest_start_time")
    terms = replace(wanted.terms, start_time=refused.earliest, earliest_start_time=None)
    later = replace(wanted, terms=terms)
    answer = tried(later)
    if answer is not None:
        at = answer.start.isoformat(timespec="seconds")
        yield Offer(wanted=later, paths=tuple(paths), start=answer.start, message=f"all of it from {at} on, reserved")


def _preemptible(wanted: WorkspaceRequest, tried: Try) -> Iterator[Offer]:
    """Every node now, until room promised to others is due; it goes on when there is room again."""
    if wanted.terms.preemptible:
        return
    giving = replace(wanted, terms=replace(wanted.terms, preemptible=True))
    answer = tried(giving)
    if answer is not None and answer.end is not None:
        until = answer.end.isoformat(timespec="seconds")
        yield Offer(
            wanted=giving,
            paths=("terms.preemptible",),
            start=answer.start,
            message=f"all of it now, until {until} at least; then it gives way and goes on when there is room",
        )


def _fewer(wanted: WorkspaceRequest, tried: Try) -> Iterator[Offer]:
    """As many nodes as fit when the wish was for, one of each set at least."""
    if wanted.nodes == len(wanted.node_sets):
        return
    answer = tried(replace(wanted, node_sets=tuple(replace(each, min_count=1) for each in wanted.node_sets)))
    if answer is None or answer.full:
        return
    counts = {assignment.set_index: len(assignment.hosts) for assignment in answer.assignments}
    node_sets = tuple(
        replace(each, count=counts[index], min_count=min(each.min_count, counts[index]))
        for index, each in enumerate(wanted.node_sets)
    )
    yield Offer(
        wanted=replace(wanted, node_sets=node_sets),
        paths=("node_sets",),
        start=answer.start,
        message=f"{sum(counts.values())} of {wanted.nodes} nodes",
    )
