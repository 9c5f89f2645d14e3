"""Who holds what, counted from the records alone, slot by slot; and whether nodes fit, by trying every host.

Slow, and easy to read. Nothing here asks the modules under test.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from typing import Final

from broker.core.model import State, Workspace

LONG_AGO: Final = datetime(1980, 1, 1, tzinfo=UTC)
FAR: Final = datetime(2100, 1, 1, tzinfo=UTC)

HOLD_NOTHING: Final = frozenset({State.PENDING, State.TERMINATED, State.EXPIRED, State.FAILED})

GIVEN_BACK: Final = ("cpu", "memory")
"""What is given back by who gives way, or is suspended and released; disk and addresses are kept."""

Amounts = tuple[int, ...]


@dataclass(frozen=True)
class Held:
    """Amounts on a host ("": of the pool) over [start, end)."""

    uid: str
    pool: str
    host: str
    amounts: Mapping[str, int]
    start: datetime
    end: datetime

    def counts(self, instant: datetime, now: datetime) -> bool:
        """Whether it counts at an instant: what should have ended by now is still there now, but not later."""
        return self.start <= instant and (instant < self.end or (self.end <= now and instant <= now))


def held_by(workspace: Workspace, now: datetime, free: datetime | None = None) -> Iterator[Held]:
    """What a lease holds; with `free`, one that will have let go by then."""
    if workspace.state in HOLD_NOTHING:
        return
    end = workspace.end_time or FAR
    gives_way = workspace.preemption.free_time if workspace.preemption is not None else free
    for node in workspace.nodes:
        if node.state in HOLD_NOTHING:
            continue
        start = LONG_AGO
        if node.state is State.RESERVED:
            start = workspace.prepare_time or workspace.start_time or workspace.create_time
        for host, amounts in ((node.host, node.held), ("", node.pool_held)):
            kept = {name: amount for name, amount in amounts.items() if name not in GIVEN_BACK}
            if node.released:
                yield Held(workspace.uid, node.pool, host, kept, start, end)
            elif gives_way is None or end <= gives_way:
                yield Held(workspace.uid, node.pool, host, amounts, start, end)
            else:
                if free is None or free > now:
                    yield Held(workspace.uid, node.pool, host, amounts, start, gives_way)
                yield Held(workspace.uid, node.pool, host, kept, gives_way, end)


class Ledger:
    """What is held where and when, once some have let go."""

    def __init__(
        self,
        records: Iterable[Workspace],
        now: datetime,
        victims: frozenset[str] = frozenset(),
        free: datetime | None = None,
    ) -> None:
        self.now = now
        self.held = [each for ws in records for each in held_by(ws, now, free if ws.uid in victims else None)]
        self.starts = sorted({each.start for each in self.held})

    def ends(self) -> list[datetime]:
        """Where something ends from now on; what should have ended by now may do so in a moment."""
        return sorted({each.end for each in self.held if each.end > self.now})

    def most(self, pool: str, host: str, resource: str, start: datetime, end: datetime) -> int:
        """The largest sum over an interval; sums grow only where something begins."""
        there = [each for each in self.held if (each.pool, each.host) == (pool, host) and each.amounts.get(resource)]
        if not there:
            return 0
        instants = [start, *(begin for begin in self.starts if start < begin < end)]
        return max(
            sum(each.amounts[resource] for each in there if each.counts(instant, self.now)) for instant in instants
        )


@cache
def exists(free: tuple[Amounts, ...], nodes: tuple[tuple[Amounts, int], ...]) -> bool:
    """Whether nodes fit the hosts: (amounts, set if one per host, else -1). A set with the rule comes last."""
    if not nodes:
        return True
    (amounts, rule), rest = nodes[0], nodes[1:]
    for host, there in enumerate(free):
        left = tuple(have - take for have, take in zip(there, amounts, strict=True))
        if any(have < 0 for have, take in zip(left, amounts, strict=True) if take):
            continue
        assert rule < 0 or all(other == rule for _, other in rest)
        others = () if rule >= 0 else (left,)  # with the rule this host takes no other
        if exists((*free[:host], *others, *free[host + 1 :]), rest):
            return True
    return False
