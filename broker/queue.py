"""The queue: who waits for capacity, in which order, and who may pass whom.

Nothing of it is kept but that a workspace waits, and since when. Order, planned starts and what they keep others from
follow from the book in a pass over the queue, which runs when room comes free, when somebody joins, and after each
complete look at a pool. In a pass each workspace, in its turn, begins if it fits; else it is told when it would fit,
and by the pool's policy its planned start is held against those behind it. What is held that way stands in the slot
tables only while a question is answered. A planned start is soft: a reservation may take its room, until the workspace
has waited for the starvation limit.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from broker.book import Book
from broker.config import QueueSettings
from broker.core.accounting import holdings
from broker.core.clock import Clock
from broker.core.errors import BrokerError, Failure, Reason
from broker.core.model import Cause, State, Workspace
from broker.core.placement import (
    NEAREST_HOSTS,
    Never,
    NotNow,
    PlacementRequest,
    Plan,
    PoolSnapshot,
    Window,
    fits,
    plan,
)
from broker.core.policies import Passing, PolicySet
from broker.core.slots import Slot
from broker.engine.tasks import begin
from broker.placing import refused, snapshots, snapshots_for_their_own
from broker.pools import Pool
from broker.preempting import MadeRoom, Preempting
from broker.tenant_use import TenantUse
from broker.tenants import Tenants
from broker.waiting import Entry, entry_of

log = logging.getLogger(__name__)

ESTIMATED: Final = 32
"""How many of those whose planned start is held against nobody are told one all the same."""

PASS_SHARE: Final = 4.0
"""Seconds of rest after a pass for each second that it took."""

PLANNED: Final = "/planned"
"""Ends the kind of a slot that is held for a planned start."""

Held = tuple[str, Slot]
"""A slot, and the pool it lies in."""


class Place(Struct, frozen=True, kw_only=True):
    """Where a workspace stands in the queue, from 1, and when it would begin; None: nobody can tell."""

    position: int
    start: datetime | None = None
    held: tuple[Held, ...] = ()  # what its planned start keeps those behind it from
    closes: frozenset[str] = frozenset()  # pools that take nobody who is behind it
    starved: bool = False  # it has waited so long that reservations heed it, too


NOWHERE: Final = Place(position=0)


class Asked(Struct, frozen=True, kw_only=True):
    """Where a request goes, or why not, with the pools as they were seen; `made`: if others give way for it, or it
    will have to."""

    answer: Plan | NotNow | Never
    seen: dict[str, PoolSnapshot]
    made: MadeRoom | None = None

    @property
    def plan(self) -> Plan | None:
        """Where it goes, one way or the other."""
        if isinstance(self.answer, Plan):
            return self.answer
        return self.made.plan if self.made is not None else None


class Queue:
    """Those of all pools who wait."""

    def __init__(
        self,
        book: Book,
        pools: Mapping[str, Pool],
        clock: Clock,
        tenants: Tenants,
        policies: PolicySet,
        preempting: Preempting,
        use: TenantUse,
        settings: QueueSettings,
    ) -> None:
        self._book = book
        self._pools = dict(pools)
        self._clock = clock
        self._tenants = tenants
        self._policies = policies
        self._preempting = preempting
        self._use = use
        self._settings = settings
        self._entries: dict[str, Entry] = {}
        self._places: dict[str, Place] = {}  # in the order of the last pass
        self._freed = 0  # what the book had given back when a pass began last
        self._joined = True  # whether somebody waits since then, or nobody has looked yet
        self._awake = asyncio.Event()

    # What others see

    def place(self, uid: str) -> Place:
        """Where a workspace stands, as of the last pass; `NOWHERE` for one that does not wait."""
        return self._places.get(uid, NOWHERE) if uid in self._book.queue else NOWHERE

    def ask(
        self,
        record: Workspace,
        asked: PlacementRequest,
        window: Window,
        now: datetime,
        *,
        nearest_hosts: int = NEAREST_HOSTS,
        judged: bool = False,
    ) -> Asked:
        """Where a request would go that comes now: it takes nothing from those who wait before it, nor does a
        reservation from those who have waited too long. If it is not preemptible, others may give way for it."""
        seen = snapshots(self._pools.values(), now)
        ahead = self._ahead_of(record, window, now)
        with self._heeded(ahead, seen) as heeded:
            answer = plan(asked, heeded, window, nearest_hosts=nearest_hosts, judged=judged)
            made = None
            if isinstance(answer, NotNow) and not record.terms.preemptible and self._book.preemptible:
                made = self._preempting.room_for(asked, heeded, window, now)
            elif isinstance(answer, NotNow) and record.terms.preemptible and window.immediate and not ahead:
                made = self._preempting.stay(record, asked, heeded, window, now)
        if isinstance(answer, NotNow) and made is None and window.latest_start is not None:
            # Planned starts are soft: a start that can be promised for later need not heed them.
            with self._heeded([place for place in ahead if place.starved], seen) as heeded:
                later = fits(asked, heeded, window)
            if later is not None and later.start > now:
                answer = later
        return Asked(answer=answer, seen=seen, made=made)

    def join(self, workspace: Workspace, answer: NotNow | None = None) -> None:
        """A workspace waits from now on; the next pass follows when that is durable."""
        ordered = self._in_order(self._clock.now())
        position = next((at for at, each in enumerate(ordered, 1) if each.workspace.uid == workspace.uid), 0)
        self._places[workspace.uid] = Place(position=position, start=answer.earliest if answer is not None else None)
        self._joined = True

    def lapse(self, workspace: Workspace, now: datetime) -> None:
        """A workspace has waited in vain. One that has not begun fails; another stays as it is, and waits no more."""
        entry = entry_of(workspace, self._tenants.allowed_pools(workspace.tenant))
        answer = plan(entry.request, self._seen(entry, now), entry.window(now), nearest_hosts=0)
        if isinstance(answer, Plan):
            failure = Failure(
                reason=Reason.NO_CAPACITY,
                message=f"{workspace.name} has waited in vain for those before it in the queue",
                resource=workspace.name,
            )
        else:
            failure = refused(answer, now, workspace.name).failure()
        lapsed = replace(workspace, waiting_since=None, last_error=failure, cause=Cause.ERROR)
        if workspace.state is State.PENDING:
            nodes = tuple(node if node.state.final else replace(node, state=State.FAILED) for node in workspace.nodes)
            lapsed = replace(lapsed, nodes=nodes, state=State.FAILED, final_time=now, notices=())
        with self._book.transaction() as tx:
            tx.put(lapsed)

    def changed(self, workspace: Workspace) -> None:
        """A workspace has changed, durably: room may have come free, or somebody waits who did not."""
        self._use.note(workspace)
        if self._book.queue and (self._book.freed != self._freed or workspace.waiting_since is not None):
            self._awake.set()

    def wake(self) -> None:
        """Asks for a pass."""
        self._awake.set()

    async def run(self) -> None:
        """Passes when there is reason for one, for ever; ends by cancellation."""
        while True:
            await self._awake.wait()
            self._awake.clear()
            if not self._book.queue:
                self._places.clear()
                continue
            began = self._clock.monotonic()
            try:
                self.serve()
            except BrokerError as error:  # the store: the next pass finds the same again
                log.error("queue pass=lost error=%s", error)
            except Exception:
                log.exception("queue pass=lost")
            took = self._clock.monotonic() - began
            if took > 0.0:
                await self._clock.sleep(took * PASS_SHARE)

    # A pass

    def serve(self) -> None:
        """One pass: whoever fits begins, in order, and the others are told when they would."""
        self._pass(self._clock.now(), begin=True)

    def _pass(self, now: datetime, *, begin: bool) -> None:
        """Everyone's place, in order; with `begin`, whoever fits begins instead."""
        self._freed, self._joined = self._book.freed, False
        places: dict[str, Place] = {}
        turn = _Turn()
        try:
            for entry in self._in_order(now):
                uid = entry.workspace.uid
                position = len(places) + 1
                if position > self._settings.depth or not entry.eligible(now):
                    places[uid] = Place(position=position)
                elif not begin:
                    places[uid] = self._ready(entry, turn, position, now) or self._waits(entry, turn, position, now)
                elif not self._begins(entry, turn, now):
                    places[uid] = self._waits(entry, turn, position, now)
        finally:
            self._take_off(turn.held)
        self._places = places

    def _begins(self, entry: Entry, turn: _Turn, now: datetime) -> bool:
        """Begins with a workspace where it fits, or where others can give way for it."""
        seen = self._seen(entry, now)
        there = {name: pool for name, pool in seen.items() if name not in turn.closed}
        if entry.shape in turn.refused or not entry.may_go(there):
            return False
        window = entry.window(now)
        answer = fits(entry.request, there, window)
        try:
            if answer is not None:
                with self._book.transaction() as tx:
                    begun, actions = entry.begun(answer, seen, now)
                    self._tenants.check(begun.tenant, begun, besides=entry.workspace)
                    begin(tx, self._pools, begun, actions, now, cause=Cause.LEASE, hosts=entry.hosts(answer))
                return True
            if not entry.waiting.preemptible and entry.workspace.state is State.PENDING:
                made = self._preempting.room_for(entry.request, there, window, now)
                if made is not None:
                    with self._book.transaction() as tx:
                        reserved = entry.reserved(made.plan, seen, now)
                        self._tenants.check(reserved.tenant, reserved, besides=entry.workspace)
                        tx.put(self._preempting.promise(tx, made, reserved, now))
                    return True
        except BrokerError as error:  # its tenant's limits, mostly: that keeps nobody else waiting
            log.info("workspace=%s waits error=%s", entry.workspace.name, error)
            turn.limited.add(entry.workspace.uid)
            return False
        turn.refused.add(entry.shape)
        return False

    def _ready(self, entry: Entry, turn: _Turn, position: int, now: datetime) -> Place | None:
        """The place of one that begins in the next pass: nobody is to come before it."""
        seen = self._seen(entry, now)
        there = {name: pool for name, pool in seen.items() if name not in turn.closed}
        answer = fits(entry.request, there, entry.window(now)) if entry.may_go(there) else None
        if answer is None:
            return None
        return Place(position=position, start=now, held=self._keep(entry, answer, turn, seen, now))

    def _keep(
        self, entry: Entry, answer: Plan, turn: _Turn, seen: Mapping[str, PoolSnapshot], now: datetime
    ) -> tuple[Held, ...]:
        """Holds what a plan would take, until the pass is over; returns it."""
        held = _slots(entry, answer, seen, now)
        self._put_on(held)
        turn.held.extend(held)
        return held

    def _waits(self, entry: Entry, turn: _Turn, position: int, now: datetime) -> Place:
        """When it would begin, and what that means for those behind it."""
        if entry.workspace.uid in turn.limited:
            return Place(position=position)
        seen = self._seen(entry, now)
        where = entry.pools(seen)
        passing = {
            pool: self._policies.backfill[pool].blocked(entry.waiting, turn.ahead[pool], now) for pool in sorted(where)
        }
        starved = now - entry.waiting.since >= self._settings.starvation_limit
        heeded = starved or Passing.UNHURT in passing.values()
        planned = None
        if heeded or Passing.NOBODY in passing.values() or turn.estimated < ESTIMATED:
            turn.estimated += not heeded
            planned = fits(entry.request, seen, entry.window_ahead(now))
        closes = frozenset(pool for pool, rule in passing.items() if rule is Passing.NOBODY)
        held: tuple[Held, ...] = ()
        if planned is not None:
            pools = {assignment.pool for assignment in planned.assignments}
            turn.ahead.update(pools)
            if starved or any(passing.get(pool) is Passing.UNHURT for pool in pools):
                held = self._keep(entry, planned, turn, seen, now)
        elif starved:
            closes = frozenset(where)  # nobody can tell when it will fit: until it does, nobody else is let in
        turn.closed |= closes
        return Place(
            position=position,
            start=planned.start if planned is not None else None,
            held=held,
            closes=closes,
            starved=starved,
        )

    # Inside

    def _in_order(self, now: datetime) -> list[Entry]:
        """Those who wait, the first to be served first."""
        waiting = []
        entries: dict[str, Entry] = {}
        for uid in self._book.queue:
            workspace = self._book.workspaces[uid]
            entry = self._entries.get(uid)
            if entry is None or entry.workspace is not workspace:
                entry = entry_of(workspace, self._tenants.allowed_pools(workspace.tenant))
            entries[uid] = entry
            waiting.append(replace(entry.waiting, used=self._use.used(workspace.tenant, now)))
        self._entries = entries
        return [entries[each.uid] for each in self._policies.order.order(waiting, now)]

    def _ahead_of(self, record: Workspace, window: Window, now: datetime) -> list[Place]:
        """The places of those whom a newcomer has to heed."""
        if not self._book.queue:
            return []
        if self._joined or self._freed != self._book.freed:
            self._pass(now, begin=False)
        if window.start > now:
            return [place for place in self._places.values() if place.starved]
        newcomer = replace(
            entry_of(record, None).waiting, since=now, used=self._use.used(record.tenant, now), uid=record.uid
        )
        waiting = [
            replace(entry.waiting, used=self._use.used(entry.waiting.tenant, now))
            for uid, entry in self._entries.items()
            if uid in self._book.queue and uid in self._places
        ]
        found = []
        for each in self._policies.order.order([*waiting, newcomer], now):
            if each.uid == newcomer.uid:
                break
            found.append(self._places[each.uid])
        return found

    @contextmanager
    def _heeded(self, ahead: Sequence[Place], seen: Mapping[str, PoolSnapshot]) -> Iterator[Mapping[str, PoolSnapshot]]:
        """The pools as they are for somebody behind these: their planned starts are held, their pools closed."""
        closed = Counter(pool for place in ahead for pool in place.closes)
        held = [each for place in ahead for each in place.held]
        self._put_on(held)
        try:
            yield (
                {name: replace(pool, queued=closed[name]) if name in closed else pool for name, pool in seen.items()}
                if closed
                else seen
            )
        finally:
            self._take_off(held)

    def _seen(self, entry: Entry, now: datetime) -> dict[str, PoolSnapshot]:
        """The pools as they stand: one that drains still takes back what was its own."""
        look = snapshots_for_their_own if entry.workspace.nodes else snapshots
        return look(self._pools.values(), now)

    def _put_on(self, held: Iterable[Held]) -> None:
        for pool, slot in held:
            self._book.slots[pool].hold_all([slot])

    def _take_off(self, held: Iterable[Held]) -> None:
        for pool, slot in held:
            self._book.slots[pool].release(slot.key)


class _Turn:
    """What a pass has come to so far."""

    def __init__(self) -> None:
        self.held: list[Held] = []  # for planned starts, in the slot tables
        self.closed: frozenset[str] = frozenset()  # pools that take nobody any more
        self.ahead: Counter[str] = Counter()  # how many with a planned start wait before, by pool
        self.refused: set[tuple[object, ...]] = set()  # shapes that did not fit: room gets no more within a pass
        self.limited: set[str] = set()  # whom something else than room keeps from it
        self.estimated = 0


def _slots(entry: Entry, planned: Plan, seen: Mapping[str, PoolSnapshot], now: datetime) -> tuple[Held, ...]:
    """What a planned start would hold."""
    reserved = entry.reserved(planned, seen, now)
    mine = {node.index for node in entry.nodes} or {node.index for node in reserved.nodes}
    found = holdings(reserved, (node for node in reserved.nodes if node.index in mine))
    return tuple(
        (
            holding.pool,
            Slot(
                key=(uid, index, kind + PLANNED),
                host=holding.host,
                amounts=holding.amounts,
                start=holding.start,
                end=holding.end,
            ),
        )
        for (uid, index, kind), holding in found.items()
    )
