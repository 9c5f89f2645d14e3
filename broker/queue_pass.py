"""One pass over those who wait for capacity: who begins, when the others would, and what that keeps from whom.

In its turn each workspace begins if it fits, beside what is kept for those before it, or if others can give way for it.
Else its planned start is the first at which it fits; the pool's policy says whether those behind it have to heed it,
and then it is held in the slot tables until the pass is over. Room gets only less within a pass, so what did not fit
is not asked again for the same.
"""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Final, Self

from msgspec import Struct
from msgspec.structs import replace

from broker.book import Book
from broker.config import QueueSettings
from broker.core.accounting import let_go
from broker.core.errors import BrokerError
from broker.core.model import Cause, State
from broker.core.placement import Plan, PoolSnapshot, Window, fits, held_amounts
from broker.core.policies import Passing, PolicySet
from broker.core.slots import POOL_ROW, Slot
from broker.core.sweep import IntArray
from broker.engine.tasks import begin
from broker.placing import hosts_of, set_request, snapshots, snapshots_for_their_own
from broker.pools import Pool
from broker.preempting import Preempting
from broker.tenants import Tenants
from broker.waiting import Entry

log = logging.getLogger(__name__)

ESTIMATED: Final = 32
"""How many of those whose planned start is held against nobody are told one all the same."""

PUNCTUAL: Final = timedelta(seconds=60)
"""Who begins so little after the start it was told may end when it was told, too."""

PLANNED: Final = "planned"
"""The kind of a slot that is held for a planned start."""

Held = tuple[str, Slot]
"""A slot, and the pool it lies in."""


class Place(Struct, frozen=True, kw_only=True):
    """Where a workspace stands in the queue, from 1, and when it would begin; None: nobody can tell."""

    position: int
    start: datetime | None = None
    due: datetime | None = None  # a start it was told before, if that came a moment ago
    held: tuple[Held, ...] = ()  # what its planned start takes
    heeded: bool = False  # whether that is not there for those behind it; else they come after it anyway, or may pass
    closes: frozenset[str] = frozenset()  # pools that take nobody who is behind it
    pools: frozenset[str] = frozenset()  # where it would begin
    starved: bool = False  # it has waited so long that reservations heed it, too


NOWHERE: Final = Place(position=0)


class Pass:
    """A pass at one instant; entered, and left when its places are known. `told`: the places of the last one;
    `estimates`: whether those are told a start, too, whose start nobody has to heed."""

    def __init__(
        self,
        book: Book,
        pools: Mapping[str, Pool],
        tenants: Tenants,
        policies: PolicySet,
        preempting: Preempting,
        settings: QueueSettings,
        told: Mapping[str, Place],
        now: datetime,
        *,
        estimates: bool,
    ) -> None:
        self._book = book
        self._pools = dict(pools)
        self._tenants = tenants
        self._policies = policies
        self._preempting = preempting
        self._settings = settings
        self._told = told
        self._estimates = estimates
        self._now = now
        self._new = snapshots(pools.values(), now)
        self._own = snapshots_for_their_own(pools.values(), now)
        self._held: list[Held] = []  # for planned starts, in the slot tables
        self._closed: frozenset[str] = frozenset()  # pools that take nobody any more
        self._ahead: Counter[str] = Counter()  # how many with a planned start wait before, by pool
        self._refused: set[tuple[object, ...]] = set()  # shapes that did not fit
        self._limited: set[str] = set()  # whom something else than room keeps from it
        self._not_before: dict[str, datetime] = {}  # when whoever nobody may pass would begin, by pool
        self._never: frozenset[str] = frozenset()  # pools of which nobody can tell when they take others again
        self._estimated = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        take_off(self._book, self._held)

    def serve(self, entries: Iterable[Entry], *, begin: bool) -> dict[str, Place]:
        """The place of everyone, in order; with `begin`, whoever fits begins instead."""
        places: dict[str, Place] = {}
        for entry in entries:
            position = len(places) + 1
            if not (begin and self._looked_at(entry, position) and self._begins(entry)):
                places[entry.workspace.uid] = self.place_of(entry, position)
        return places

    def take_over(self, places: Iterable[Place]) -> None:
        """Those who had their turn in another pass have had it in this one."""
        for place in places:
            put_on(self._book, place.held)
            self._held.extend(place.held)
            self._closed |= place.closes
            self._ahead.update(place.pools)
            self._estimated += place.start is not None and not place.held
            self._keep_back(place.closes, place.start)

    def place_of(self, entry: Entry, position: int) -> Place:
        """The place of one that does not begin in this pass."""
        place = Place(position=position)
        if self._looked_at(entry, position) and entry.workspace.uid not in self._limited:
            ready = None if entry.shape in self._refused else self._ready(entry, position)
            place = ready or self._waits(entry, position)
        due = self._due(entry.workspace.uid)
        return replace(place, due=due) if due is not None else place

    # Inside

    def _looked_at(self, entry: Entry, position: int) -> bool:
        return position <= self._settings.depth and entry.eligible(self._now)

    def _begins(self, entry: Entry) -> bool:
        """Begins with a workspace where it fits, or where others can give way for it."""
        seen = self._seen(entry)
        there = {name: pool for name, pool in seen.items() if name not in self._closed}
        if entry.shape in self._refused or not entry.may_go(there):
            return False
        window = entry.window(self._now)
        answer = fits(entry.request, there, window) or self._punctual(entry, there, window)
        try:
            if answer is not None:
                with self._book.transaction() as tx:
                    begun, actions = entry.begun(answer, seen, self._now)
                    self._tenants.check(begun.tenant, begun, besides=entry.workspace)
                    begin(tx, self._pools, begun, actions, self._now, cause=Cause.LEASE, hosts=entry.hosts(answer))
                return True
            if not entry.waiting.preemptible and entry.workspace.state is State.PENDING:
                made = self._preempting.room_for(entry.request, there, window, self._now)
                if made is not None and (entry.ends_by is None or made.plan.start < entry.ends_by):
                    with self._book.transaction() as tx:
                        reserved = entry.reserved(made.plan, seen, self._now)
                        self._tenants.check(reserved.tenant, reserved, besides=entry.workspace)
                        tx.put(self._preempting.promise(tx, made, reserved, self._now))
                    return True
        except BrokerError as error:  # its tenant's limits, mostly: that keeps nobody else waiting
            log.info("workspace=%s waits error=%s", entry.workspace.name, error)
            self._limited.add(entry.workspace.uid)
            return False
        self._refused.add(entry.shape)
        return False

    def _punctual(self, entry: Entry, there: Mapping[str, PoolSnapshot], window: Window) -> Plan | None:
        """Where one fits that was told a start which has just come, if it ends when it was told: those before it let go
        a moment later than their end, and room may be promised from that very end on."""
        due = self._due(entry.workspace.uid)
        if due is None or window.duration is None or entry.waiting.overdue:  # an overdue one ends when it was to
            return None
        left = window.duration - (self._now - due)
        return fits(entry.request, there, replace(window, duration=left)) if left > timedelta() else None

    def _ready(self, entry: Entry, position: int) -> Place | None:
        """The place of one that begins in the next pass: nobody is to come before it."""
        seen = self._seen(entry)
        there = {name: pool for name, pool in seen.items() if name not in self._closed}
        answer = fits(entry.request, there, entry.window(self._now)) if entry.may_go(there) else None
        if answer is None:
            return None
        held = self._keep(_slots(entry, answer, seen))
        return Place(position=position, start=self._now, held=held, heeded=True)

    def _keep(self, held: tuple[Held, ...]) -> tuple[Held, ...]:
        """Holds what a plan would take, until the pass is over; returns it."""
        put_on(self._book, held)
        self._held.extend(held)
        return held

    def _waits(self, entry: Entry, position: int) -> Place:
        """When it would begin, and what that means for those behind it."""
        seen = self._seen(entry)
        where = entry.pools(seen)
        passing = {
            pool: self._policies.backfill[pool].blocked(entry.waiting, self._ahead[pool], self._now)
            for pool in sorted(where)
        }
        starved = self._now - entry.waiting.since >= self._settings.starvation_limit  # whatever the order says
        heeded = starved or Passing.UNHURT in passing.values()
        first = any(rule is Passing.NOBODY and pool not in self._closed for pool, rule in passing.items())
        planned = None
        if heeded or first or (self._estimates and self._estimated < ESTIMATED):
            self._estimated += not heeded
            planned = self._soonest(entry, seen, where)
        closes = frozenset(pool for pool, rule in passing.items() if rule is Passing.NOBODY)
        held: tuple[Held, ...] = ()
        pools = frozenset[str]()
        if planned is not None:
            wanted = self._as_told(entry, planned, _slots(entry, planned, seen), seen)
            pools = frozenset(pool for pool, _ in wanted) or frozenset(each.pool for each in planned.assignments)
            heeded = starved or any(passing.get(pool) is Passing.UNHURT for pool in pools)
            if heeded or pools & closes:
                held = self._keep(wanted)
        elif starved:
            closes = frozenset(where)  # nobody can tell when it will fit: until it does, nobody else is let in
        self._closed |= closes
        self._keep_back(closes, planned.start if planned is not None else None)
        self._ahead.update(pools)
        return Place(
            position=position,
            start=planned.start if planned is not None else None,
            held=held,
            heeded=heeded,
            closes=closes,
            pools=pools,
            starved=starved,
        )

    def _soonest(self, entry: Entry, seen: Mapping[str, PoolSnapshot], where: frozenset[str]) -> Plan | None:
        """Its first start: in each pool beside what is kept there for those before it, and not before those whom it
        must not pass."""
        window = entry.window_ahead(self._now)
        opens = {
            pool: max(window.start, self._not_before.get(pool, window.start))
            for pool in where
            if pool not in self._never
        }
        found: Plan | None = None
        for start in sorted(set(opens.values())):
            if found is not None and found.start <= start:
                break
            there = {pool: seen[pool] for pool, at in opens.items() if at <= start}
            if entry.may_go(there):
                answer = fits(entry.request, there, replace(window, start=start), soonest=True)
                found = answer if found is None or (answer is not None and answer.start < found.start) else found
        return found

    def _as_told(
        self, entry: Entry, planned: Plan, wanted: tuple[Held, ...], seen: Mapping[str, PoolSnapshot]
    ) -> tuple[Held, ...]:
        """What it would hold: of what a plan gives it and where it was told before, the latter if it can begin there as
        soon. Those behind it were let in beside that."""
        told = self._told.get(entry.workspace.uid, NOWHERE).held
        moved = tuple((pool, replace(slot, start=planned.prepare, end=planned.end)) for pool, slot in told)
        if not told or moved == wanted or _totals(moved) != _totals(wanted):
            return wanted
        late = any(self._not_before.get(pool, planned.start) > planned.start for pool, _ in moved)
        shut = any(pool in self._never or seen[pool].draining or not seen[pool].reachable for pool, _ in moved)
        return wanted if late or shut or not _room_for(moved, seen, self._now) else moved

    def _keep_back(self, closes: frozenset[str], start: datetime | None) -> None:
        """Pools that take nobody until somebody begins open for those behind it then; where nobody can tell when it
        begins, nobody can tell of them."""
        if start is None:
            self._never |= closes
        else:
            self._not_before.update((pool, max(start, self._not_before.get(pool, start))) for pool in closes)

    def _due(self, uid: str) -> datetime | None:
        """The start that a workspace was told and that came a moment ago; None if there is none."""
        place = self._told.get(uid, NOWHERE)
        due = place.start if place.start is not None and place.start <= self._now else place.due
        return due if due is not None and self._now - due <= PUNCTUAL else None

    def _seen(self, entry: Entry) -> dict[str, PoolSnapshot]:
        """The pools as they stand: one that drains still takes back what was its own."""
        return self._own if entry.workspace.nodes else self._new


def put_on(book: Book, held: Iterable[Held]) -> None:
    """Puts slots for planned starts in the slot tables."""
    for pool, slot in held:
        book.slots[pool].hold(slot.key, slot.host, slot.amounts, slot.start, slot.end)


def take_off(book: Book, held: Iterable[Held]) -> None:
    """Takes them out again."""
    for pool, slot in held:
        book.slots[pool].release(slot.key)


@contextmanager
def holding(book: Book, places: Sequence[Place]) -> Iterator[None]:
    """The slot tables with what some places keep others from."""
    held = [each for place in places if place.heeded for each in place.held]
    put_on(book, held)
    try:
        yield
    finally:
        take_off(book, held)


def _totals(held: Iterable[Held]) -> Counter[str]:
    """What slots hold together."""
    totals: Counter[str] = Counter()
    for _, slot in held:
        totals.update(slot.amounts)
    return totals


def _room_for(held: Iterable[Held], seen: Mapping[str, PoolSnapshot], now: datetime) -> bool:
    """Whether there is room for slots of one and the same time, on hosts that are in service."""
    peaks: dict[str, IntArray] = {}
    for pool, slot in held:
        snapshot = seen[pool]
        slots, hosts = snapshot.slots, snapshot.hosts
        if pool not in peaks:
            peaks[pool] = slots.peak(slot.start, slot.end, now)
        at = hosts.rows.get(slot.host)
        if slot.host != POOL_ROW and (at is None or not hosts.usable[at]):
            return False
        for name, amount in slot.amounts.items():
            if at is not None:
                there = int(hosts.room[hosts.columns[name], at]) if name in hosts.columns else 0
            elif name in snapshot.pool_totals:
                there = snapshot.pool_totals[name] - snapshot.pool_foreign.get(name, 0)
            else:
                continue  # addresses that nobody counts
            if amount > there - int(peaks[pool][slots.column(name), slots.host_row(slot.host)]):
                return False
    return True


def _slots(entry: Entry, planned: Plan, seen: Mapping[str, PoolSnapshot]) -> tuple[Held, ...]:
    """What a planned start would hold: a slot for each host and pool, whatever the number of nodes there."""
    amounts: defaultdict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    if entry.nodes:
        hosts = hosts_of(planned, entry.nodes)
        for node in entry.nodes:
            goes_on = node.state is not State.PENDING  # it has its disk and its addresses
            kept = let_go(node.held) if goes_on else {}
            amounts[node.pool, hosts[node.index]].update({name: n for name, n in node.held.items() if name not in kept})
            if not goes_on:
                amounts[node.pool, POOL_ROW].update(node.pool_held)
    else:
        for assignment in planned.assignments:
            wanted = set_request(entry.workspace.node_sets[assignment.set_index])
            held, pool_held = held_amounts(seen[assignment.pool], wanted)
            for host, nodes in Counter(assignment.hosts).items():
                amounts[assignment.pool, host].update({name: nodes * amount for name, amount in held.items()})
            of_pool = {name: len(assignment.hosts) * amount for name, amount in pool_held.items()}
            amounts[assignment.pool, POOL_ROW].update(of_pool)
    return tuple(
        (
            pool,
            Slot(
                key=(entry.workspace.uid, place, PLANNED),
                host=host,
                amounts=held_there,
                start=planned.prepare,
                end=planned.end,
            ),
        )
        for place, ((pool, host), held_there) in enumerate(amounts.items())
        if held_there
    )
