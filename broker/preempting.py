"""Who has to give way, so that a lease that is not preemptible finds room: chosen, promised, and taken back.

Nothing is touched unless the whole request fits once the chosen have let go. They are a minimal set: without any one
of them it would not fit. What a workspace gives up is written down at once (`Workspace.preemption`): its slots end at
`free_time`, so that the table never promises the same room twice. When it lets go is engine/giving_way.py's affair.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from broker.book import Book, Transaction
from broker.core.accounting import AFTER, let_go
from broker.core.clock import Clock
from broker.core.gates import lease_length
from broker.core.model import Notice, NoticeKind, Preemption, State, Workspace
from broker.core.placement import PlacementRequest, Plan, PoolSnapshot, Window, fits
from broker.core.policies import PolicySet, Victim
from broker.core.slots import Slot
from broker.core.victims import minimal
from broker.pools import PREEMPTION_NOTICE, Pool

FIRST_ASKED: Final = 16
"""Candidates that are tried first; four times as many each time they are not enough."""

HOLDING: Final = frozenset(
    {
        State.STARTING,
        State.RUNNING,
        State.PAUSING,
        State.PAUSED,
        State.SUSPENDING,
        State.SUSPENDED,
        State.STOPPING,
        State.STOPPED,
        State.RESUMING,
        State.REBOOTING,
        State.SAVING,
    }
)
"""States in which a workspace can be told to give way, though it may have to finish something first."""


LONGEST_STAY: Final = timedelta(days=3650)

SHORTEST_STAY: Final = timedelta(minutes=10)
"""For less than that a preemptible workspace is not begun that will have to give way at a time known already."""


class MadeRoom(Struct, frozen=True, kw_only=True):
    """A plan that holds once these have let go, which they do by its `prepare`; or, without victims, one of a
    workspace that has to give way itself when the plan ends, and whose lease would last until `end`."""

    plan: Plan
    victims: tuple[Workspace, ...] = ()
    end: datetime | None = None


class Preempting:
    """Those of all pools."""

    def __init__(self, book: Book, pools: Mapping[str, Pool], clock: Clock, policies: PolicySet) -> None:
        self._book = book
        self._pools = dict(pools)
        self._clock = clock
        self._policies = policies

    def room_for(
        self, request: PlacementRequest, seen: Mapping[str, PoolSnapshot], window: Window, now: datetime
    ) -> MadeRoom | None:
        """Where a request would go if others gave way, and which; None if that would not do, or nobody need.

        What is for now, or may begin later, waits for those of a longer notice only where the others are not enough.
        """
        where = self._where(request, seen)
        candidates = [
            (self._needs(workspace), workspace)
            for uid in self._book.preemptible
            if self._can_give_way(workspace := self._book.workspaces[uid], where)
        ]
        if not candidates:
            return None
        lead = max(seen[pool].lead for pool in where)
        soonest = max(now, window.start - lead)
        for free in sorted({max(soonest, now + needs) for needs, _ in candidates}):
            by_then = [workspace for needs, workspace in candidates if now + needs <= free]
            if free == soonest:
                made = self._room_at(free, request, seen, window, now, self._in_order(by_then, where, now))
            elif window.immediate or window.latest_start is not None:
                later = replace(window, start=free + lead, immediate=False)
                made = self._room_at(free, request, seen, later, now, self._in_order(by_then, where, now))
            else:
                break
            if made is not None:
                return made if made.victims else None
        return None

    def _room_at(
        self,
        free: datetime,
        request: PlacementRequest,
        seen: Mapping[str, PoolSnapshot],
        window: Window,
        now: datetime,
        ordered: Sequence[Workspace],
    ) -> MadeRoom | None:
        """Where a request would go if some of these, the first rather than the last, let go at an instant."""

        def planned(victims: Sequence[Workspace]) -> Plan | None:
            with self._without(victims, free, now):
                answer = fits(request, seen, window)
            return answer if answer is not None and answer.prepare >= free else None

        asked = FIRST_ASKED
        while asked < len(ordered) and planned(ordered[:asked]) is None:
            asked *= 4
        victims = minimal(ordered[:asked], lambda chosen: planned(chosen) is not None)
        answer = planned(victims) if victims is not None else None
        return MadeRoom(plan=answer, victims=tuple(victims or ())) if answer is not None else None

    def stay(
        self,
        record: Workspace,
        request: PlacementRequest,
        seen: Mapping[str, PoolSnapshot],
        window: Window,
        now: datetime,
    ) -> MadeRoom | None:
        """Where a preemptible workspace could be now though its room is promised to others later, and until when.

        None if that is not for long enough. The longest stay is found by bisection, to the second.
        """
        length = lease_length(window, [seen[pool] for pool in sorted(self._where(request, seen))])
        shortest = max(SHORTEST_STAY, 2 * self._notice(record))
        found: Plan | None = None
        low = int(shortest.total_seconds())
        high = int((length or LONGEST_STAY).total_seconds())
        while low < high:
            middle = low if found is None else (low + high + 1) // 2
            tried = replace(window, duration=timedelta(seconds=middle), open_ended=False)
            answer = fits(request, seen, tried)
            if answer is not None:
                found, low = answer, middle
            elif found is None:
                return None
            else:
                high = middle - 1
        if found is None:
            return None
        return MadeRoom(plan=found, end=None if length is None else now + length)

    def promise(self, tx: Transaction, made: MadeRoom, draft: Workspace, now: datetime) -> Workspace:
        """Writes down who gives way to whom, and tells them when that is soon; returns the workspace as it is then."""
        for victim in made.victims:
            given = self._giving_way(victim, draft.uid, made.plan.prepare, now)
            assert given.preemption is not None
            soon = given.preemption.notice_time <= now < given.preemption.begin_time
            tx.put(with_notice(given, now) if soon else given)
        if made.victims or made.plan.end is None:
            return draft
        return self._giving_way(replace(draft, end_time=made.end), "", made.plan.end, now)

    def _giving_way(self, workspace: Workspace, by: str, free: datetime, now: datetime) -> Workspace:
        begin = max(now, free - self._suspending(workspace))
        told = max(now, begin - self._notice(workspace))
        return replace(
            workspace, preemption=Preemption(by=by, notice_time=told, begin_time=begin, free_time=max(free, now))
        )

    # Inside

    def _where(self, request: PlacementRequest, seen: Mapping[str, PoolSnapshot]) -> frozenset[str]:
        """The pools it could go to in which leases are made to give way."""
        named = [each.pool or request.pool for each in request.sets]
        pools = {name for name in named if name} if all(named) else set(seen)
        if request.allowed_pools is not None:
            pools &= request.allowed_pools
        return frozenset(name for name in pools if name in self._pools and self._pools[name].settings.preemption)

    def _can_give_way(self, workspace: Workspace, where: Collection[str]) -> bool:
        return (
            workspace.preemption is None
            and workspace.preempted_time is None
            and workspace.state in HOLDING
            and any(not (node.state.final or node.released) and node.pool in where for node in workspace.nodes)
        )

    def _needs(self, workspace: Workspace) -> timedelta:
        """How long it takes until it has let go."""
        return self._notice(workspace) + self._suspending(workspace)

    def _notice(self, workspace: Workspace) -> timedelta:
        wished = workspace.parameters.get(PREEMPTION_NOTICE)
        seconds = max((self._pools[pool].settings.preemption_notice for pool in pools_of(workspace)), default=0.0)
        if wished is not None and isinstance(wished.value, float | int):
            seconds = max(seconds, float(wished.value))
        return timedelta(seconds=seconds)

    def _suspending(self, workspace: Workspace) -> timedelta:
        return max((self._pools[pool].suspend_lead for pool in pools_of(workspace)), default=timedelta())

    def _in_order(self, candidates: Sequence[Workspace], where: Collection[str], now: datetime) -> list[Workspace]:
        """Those who rather give way first, by the policy of the first of the pools."""
        by_uid = {workspace.uid: workspace for workspace in candidates}
        choice = self._policies.victims[min(where)]
        return [by_uid[each.uid] for each in choice.order([_as_victim(each) for each in candidates], now)]

    @contextmanager
    def _without(self, victims: Sequence[Workspace], free: datetime, now: datetime) -> Iterator[None]:
        """The slot tables as they will be once these have let go."""
        taken: list[tuple[str, Slot]] = []
        put: list[tuple[str, Slot]] = []
        for victim in victims:
            for pool in pools_of(victim):
                for slot in self._book.slots[pool].of_workspace(victim.uid):
                    self._book.slots[pool].release(slot.key)
                    taken.append((pool, slot))
                    put += [(pool, each) for each in _after(slot, free, now)]
        try:
            for pool, slot in put:
                self._book.slots[pool].hold_all([slot])
            yield
        finally:
            for pool, slot in put:
                if slot.key in self._book.slots[pool]:
                    self._book.slots[pool].release(slot.key)
            for pool, slot in taken:
                self._book.slots[pool].hold_all([slot])


def pools_of(workspace: Workspace) -> list[str]:
    """The pools a workspace has live nodes in, in order of its nodes."""
    return list(dict.fromkeys(node.pool for node in workspace.nodes if not node.state.final))


def with_notice(workspace: Workspace, now: datetime) -> Workspace:
    """With the notice that it has to give way."""
    assert workspace.preemption is not None
    notice = Notice(
        kind=NoticeKind.PREEMPTION,
        time=now,
        due_time=workspace.preemption.begin_time,
        message="its capacity is promised to a lease that is not preemptible; it is suspended or ended then, and goes "
        "on by itself when there is room",
    )
    return replace(workspace, notices=(*workspace.notices, notice))


def _as_victim(workspace: Workspace) -> Victim:
    amounts: Counter[str] = Counter()
    for node in workspace.nodes:
        if not node.state.final:
            amounts.update(node.held)
    return Victim(
        uid=workspace.uid,
        tenant=workspace.tenant,
        started=workspace.start_time or workspace.create_time,
        nodes=sum(not node.state.final for node in workspace.nodes),
        amounts=amounts,
        end=workspace.end_time,
        priority=workspace.terms.priority,
    )


def _after(slot: Slot, free: datetime, now: datetime) -> list[Slot]:
    """A slot as it stands for a lease that lets go at `free`: until then, and what it keeps from then on."""
    if slot.end is not None and slot.end <= free:
        return [slot]
    found = []
    if slot.start < free and free > now:
        found.append(replace(slot, end=free))
    kept = let_go(slot.amounts)
    if kept:
        uid, index, kind = slot.key
        found.append(Slot(key=(uid, index, kind + AFTER), host=slot.host, amounts=kept, start=free, end=slot.end))
    return found
