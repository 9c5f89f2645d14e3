"""The slot table: who holds what, where and when.

It stores reservations and derives what is held over an interval. Its one sum (`active`) is changed only
together with the slot it counts and can be rebuilt from the slots at any time. Intervals are half-open
`[start, end)`. A slot whose end has passed and that was not released still counts at every instant up to
and including now - capacity is given back when the VM is seen gone, never before - but not at later
instants: what is said about the future is a statement, not a promise.

It knows no totals, so it refuses nothing for want of room: `placement.plan` decides, the caller holds. A
host that left the inventory keeps its slots. It is not thread-safe: one writer a pool.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import TypeAlias

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from broker.core.sweep import Begun, IntArray, sweep

SlotKey: TypeAlias = tuple[str, int, str]
"""(workspace uid, node index, kind): the kind tells apart what one node holds on its host, its pool, its
target.
"""

Rows: TypeAlias = slice | NDArray[np.intp]
"""Which rows of the table a list of hosts stands in; a slice where they stand in order."""

POOL_ROW = ""
"""Pseudo host that holds what belongs to the pool: a shared datastore, the addresses of a network."""

INFINITY = int(np.iinfo(np.int64).max)
"""The end of an open-ended lease in microseconds: later than every instant, compared and never calculated
with.
"""

_BEGINNING = int(np.iinfo(np.int64).min)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def to_us(instant: datetime | None) -> int:
    """Return an aware datetime as microseconds since 1970; None, no end, as `INFINITY`."""
    return INFINITY if instant is None else (instant - _EPOCH) // _MICROSECOND


def from_us(instant: int) -> datetime | None:
    """Return microseconds since 1970 as an aware UTC datetime; `INFINITY` as None."""
    return None if instant >= INFINITY else _EPOCH + timedelta(microseconds=int(instant))


class Slot(Struct, frozen=True, kw_only=True):
    """Amounts held on a host over `[start, end)`; `end` None is open-ended."""

    key: SlotKey
    host: str
    amounts: Mapping[str, int]
    start: datetime
    end: datetime | None


class SlotTable:
    """Who holds what, where and when. Free capacity is derived from it, never kept beside it."""

    def __init__(self, resources: Sequence[str] = ()) -> None:
        self._columns: dict[str, int] = {}
        self._rows: dict[str, int] = {POOL_ROW: 0}
        self._hosts: list[str] = [POOL_ROW]
        self._index: dict[SlotKey, int] = {}
        self._keys: list[SlotKey | None] = []
        self._of_uid: dict[str, dict[SlotKey, None]] = {}
        self._vacant: list[int] = []
        # One entry a slot. Vacant entries start at INFINITY, so no interval ever touches them.
        self._start = np.full(64, INFINITY, dtype=np.int64)
        self._end = np.full(64, INFINITY, dtype=np.int64)
        self._row = np.zeros(64, dtype=np.intp)
        self._amounts = np.zeros((4, 64), dtype=np.int64)
        # active[r, row]: sum over slots with start <= self._now, ended or not.
        self._active = np.zeros((4, 64), dtype=np.int64)
        self._now = _BEGINNING
        # Heap of (start, slot) not yet in `active`; entries of released slots are skipped when met.
        self._later: list[tuple[int, int]] = []
        self._order: NDArray[np.intp] | None = None  # see _ordered
        self._changed: set[int] = set()  # slots put or released since
        self._names: tuple[tuple[str, ...], Rows] | None = None
        for resource in resources:
            self.column(resource)

    # Names ------------------------------------------------------------------------------------------------

    @property
    def resources(self) -> tuple[str, ...]:
        """Resources in column order."""
        return tuple(self._columns)

    @property
    def hosts(self) -> tuple[str, ...]:
        """Hosts in row order; the first is `POOL_ROW`."""
        return tuple(self._hosts)

    def column(self, resource: str) -> int:
        """Return the index of a resource in `peak`; a new resource adds a column of zeros."""
        found = self._columns.get(resource)
        if found is None:
            found = self._columns[resource] = len(self._columns)
            if found == len(self._amounts):
                self._amounts = np.concatenate([self._amounts, np.zeros_like(self._amounts)])
                self._active = np.concatenate([self._active, np.zeros_like(self._active)])
        return found

    def host_row(self, host: str) -> int:
        """Return the index of a host in `peak`; a new host adds a row of zeros. Rows are never given away
        again.
        """
        found = self._rows.get(host)
        if found is None:
            found = self._rows[host] = len(self._hosts)
            self._hosts.append(host)
            if found == self._active.shape[1]:
                self._active = np.concatenate([self._active, np.zeros_like(self._active)], axis=1)
        return found

    def rows_of(self, hosts: tuple[str, ...]) -> Rows:
        """Return where these hosts stand; remembered for the last tuple asked for, as an inventory lives
        long.
        """
        if self._names is None or self._names[0] is not hosts:
            rows = np.fromiter((self.host_row(host) for host in hosts), dtype=np.intp, count=len(hosts))
            in_order = len(rows) > 0 and bool((np.diff(rows) == 1).all())
            self._names = (hosts, slice(int(rows[0]), int(rows[-1]) + 1) if in_order else rows)
        return self._names[1]

    # Changes ----------------------------------------------------------------------------------------------

    def hold(self, key: SlotKey, host: str, amounts: Mapping[str, int], start: datetime, end: datetime | None) -> None:
        """Hold `amounts` on `host` over `[start, end)`. ValueError: the key is taken, or the slot makes no
        sense.
        """
        slot = Slot(key=key, host=host, amounts=amounts, start=start, end=end)
        self._check(slot)
        self._put(slot)

    def hold_all(self, slots: Iterable[Slot]) -> None:
        """Hold every slot, or none and raise ValueError."""
        slots = list(slots)
        seen: set[SlotKey] = set()
        for slot in slots:
            if slot.key in seen:
                raise ValueError(f"slot {slot.key} is there twice")
            self._check(slot)
            seen.add(slot.key)
        for slot in slots:
            self._put(slot)

    def _check(self, slot: Slot) -> None:
        if slot.key in self._index:
            raise ValueError(f"slot {slot.key} is held already")
        if slot.end is not None and slot.end <= slot.start:
            raise ValueError(f"slot {slot.key} ends at {slot.end}, not after its start {slot.start}")
        if min(slot.amounts.values(), default=0) < 0:
            raise ValueError(f"slot {slot.key} holds a negative amount: {dict(slot.amounts)}")

    def release(self, key: SlotKey) -> None:
        """Give back what a slot holds. KeyError: no such slot."""
        at = self._index.pop(key)
        if self._start[at] <= self._now:
            self._active[:, self._row[at]] -= self._amounts[:, at]
        self._start[at] = INFINITY
        self._end[at] = INFINITY
        self._amounts[:, at] = 0
        self._keys[at] = None
        self._vacant.append(at)
        self._changed.add(at)
        mine = self._of_uid[key[0]]
        del mine[key]
        if not mine:
            del self._of_uid[key[0]]

    def release_workspace(self, uid: str) -> None:
        """Give back everything a workspace holds; nothing if it holds nothing."""
        for key in tuple(self._of_uid.get(uid, ())):
            self.release(key)

    def replace(self, slot: Slot) -> None:
        """Put a slot in place of the one with the same key: other host, amounts or interval. KeyError:
        none.
        """
        old = self.get(slot.key)
        if old is None:
            raise KeyError(slot.key)
        self.release(slot.key)
        try:
            self.hold_all([slot])
        except ValueError:
            self._put(old)
            raise

    def advance(self, now: datetime) -> None:
        """Tell the table the time. Queries do so themselves; loading many slots is quicker after it."""
        self._advance(to_us(now))

    # Queries ----------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._index)

    def __contains__(self, key: object) -> bool:
        return key in self._index

    def get(self, key: SlotKey) -> Slot | None:
        """Return a slot, or None."""
        at = self._index.get(key)
        return None if at is None else self._slot(at)

    def slots(self, host: str) -> Sequence[Slot]:
        """Return what is held on a host, by start, then key."""
        row = self._rows.get(host)
        if row is None:
            return ()
        found = np.flatnonzero((self._row == row) & (self._start < INFINITY))
        return sorted((self._slot(int(at)) for at in found), key=lambda slot: (slot.start, slot.key))

    def all(self) -> Iterator[Slot]:
        """Yield every slot, in no order."""
        for at in self._index.values():
            yield self._slot(at)

    def of_workspace(self, uid: str) -> Sequence[Slot]:
        """Return what a workspace holds, by key."""
        return [self._slot(self._index[key]) for key in sorted(self._of_uid.get(uid, ()))]

    def peak(self, start: datetime, end: datetime | None, now: datetime) -> IntArray:
        """Return the largest sum held at any instant of `[start, end)`: (resources in column order, hosts in
        row order). Resource-major, so that one resource of all hosts is one contiguous read. Do not write
        to it.
        """
        return self.peak_us(to_us(start), to_us(end), to_us(now))

    def ends(self, after: datetime) -> list[datetime]:
        """Return the distinct known ends after an instant, ascending; open-ended slots have none."""
        return [instant for end in self.ends_us(to_us(after)) if (instant := from_us(int(end))) is not None]

    def ends_us(self, after: int) -> IntArray:
        """Return `ends` in microseconds."""
        ends = self._end[: len(self._keys)]
        return np.unique(ends[(ends > after) & (ends < INFINITY)])

    def coming_us(self) -> tuple[int, IntArray]:
        """Return the last start, and the distinct known ends, of the slots that have not begun by the told
        time.

        The last start is the least integer if there are none.
        """
        starts, ends = self._start[: len(self._keys)], self._end[: len(self._keys)]
        coming = (starts > self._now) & (starts < INFINITY)
        if not coming.any():
            return _BEGINNING, np.empty(0, dtype=np.int64)
        return int(starts[coming].max()), np.unique(ends[coming & (ends < INFINITY)])

    def peak_us(self, start: int, end: int, now: int) -> IntArray:
        """Return `peak` from and in microseconds. What lies before now is not asked: the interval is cut to
        it.

        An interval from now on into which no slot starts is one read of the sums. Otherwise what ends and
        starts up to its beginning is taken off and put on, and hosts on which a slot starts later are
        swept in time order, all at once.
        """
        self._advance(now)
        start = max(start, now)
        hosts = len(self._hosts)
        standing = self.standing()
        if start == now and self._next_start() >= end:
            return standing
        used = len(self._keys)
        starts, rows = self._start[:used], self._row[:used]
        ends = np.maximum(self._end[:used], now + 1)  # not released: held up to and including now
        held = standing.copy()
        self.add_to(held, np.flatnonzero((starts <= now) & (ends <= start)), -1)
        coming = np.flatnonzero((starts > now) & (starts < end))
        self.add_to(held, coming[(starts[coming] <= start) & (ends[coming] > start)], 1)
        inside = coming[starts[coming] > start]
        if len(inside):
            # Ends after a host's last start cannot matter there.
            last = np.full(hosts, _BEGINNING)
            np.maximum.at(last, rows[inside], starts[inside])
            ending = np.flatnonzero((ends > start) & (ends <= last[rows]) & (starts < end))
            where = np.concatenate([rows[ending], rows[inside]])
            when = np.concatenate([ends[ending], starts[inside]])
            change = np.concatenate(
                [-self._amounts[: len(self._columns), ending], self._amounts[: len(self._columns), inside]],
                axis=1,
            )
            busy, rise = sweep(where, when, np.arange(len(where)) >= len(ending), change)
            held[:, busy] += rise
        return held

    def begun(self, now: int) -> Begun:
        """Return what the slots begun by now, in microseconds, go on to hold, for a bisection over their
        ends.
        """
        self._advance(now)
        order = self._ordered()
        order = order[(self._start[order] <= now) & (self._end[order] < INFINITY)]
        return Begun(
            standing=self.standing(),
            order=order,
            ends=np.maximum(self._end[order], now + 1),
            add_to=self.add_to,
        )

    def standing(self) -> IntArray:
        """Return what the slots begun by the told time hold: (resources, hosts), not to be written to."""
        return self._active[: len(self._columns), : len(self._hosts)]

    def add_to(self, sums: IntArray, places: NDArray[np.intp], sign: int) -> None:
        """Put the amounts of slots, by their places in the table, on sums of (resources, hosts), or take them
        off.
        """
        if len(places):
            for column in range(len(self._columns)):
                np.add.at(sums[column], self._row[places], sign * self._amounts[column, places])

    # Inside -----------------------------------------------------------------------------------------------

    def _slot(self, at: int) -> Slot:
        key, start = self._keys[at], from_us(int(self._start[at]))
        assert key is not None
        assert start is not None
        held = self._amounts[:, at].tolist()
        amounts = {name: held[column] for name, column in self._columns.items() if held[column]}
        return Slot(
            key=key,
            host=self._hosts[self._row[at]],
            amounts=amounts,
            start=start,
            end=from_us(int(self._end[at])),
        )

    def _put(self, slot: Slot) -> None:
        row = self.host_row(slot.host)
        columns = {self.column(name): amount for name, amount in slot.amounts.items()}
        if self._vacant:
            at = self._vacant.pop()
        else:
            at = len(self._keys)
            self._keys.append(None)
            if at == len(self._start):
                self._grow()
        start = to_us(slot.start)
        self._start[at], self._end[at], self._row[at] = start, to_us(slot.end), row
        for column, amount in columns.items():
            self._amounts[column, at] = amount
        self._keys[at] = slot.key
        self._changed.add(at)
        self._index[slot.key] = at
        self._of_uid.setdefault(slot.key[0], {})[slot.key] = None
        if start <= self._now:
            self._active[:, row] += self._amounts[:, at]
        else:
            heapq.heappush(self._later, (start, at))
            if len(self._later) > 2 * len(self._index) + 64:
                self._later = self._ahead(self._now)  # plans made and dropped again leave entries behind

    def _grow(self) -> None:
        spare = np.full_like(self._start, INFINITY)
        self._start = np.concatenate([self._start, spare])
        self._end = np.concatenate([self._end, spare])
        self._row = np.concatenate([self._row, np.zeros_like(self._row)])
        self._amounts = np.concatenate([self._amounts, np.zeros_like(self._amounts)], axis=1)

    def _next_start(self) -> int:
        """The first start after the told time."""
        while self._later and self._start[self._later[0][1]] != self._later[0][0]:
            heapq.heappop(self._later)
        return self._later[0][0] if self._later else INFINITY

    def _advance(self, now: int) -> None:
        if now < self._now:
            self._rebuild(now)
            return
        if self._later and self._later[0][0] <= now:
            # A set: an entry is there twice when its slot was released and place and start were taken again.
            begun: set[int] = set()
            while self._later and self._later[0][0] <= now:
                start, at = heapq.heappop(self._later)
                if self._start[at] == start:
                    begun.add(at)
            if begun:
                self._count(np.fromiter(begun, dtype=np.intp, count=len(begun)))
        self._now = now

    def _rebuild(self, now: int) -> None:
        """The wall clock went back: count afresh what has begun."""
        starts = self._start[: len(self._keys)]
        self._active[:] = 0
        self._count(np.flatnonzero(starts <= now))
        self._later = self._ahead(now)
        self._now = now

    def _ahead(self, now: int) -> list[tuple[int, int]]:
        """The heap of slots that start after an instant, made anew; a sorted list is one."""
        starts = self._start[: len(self._keys)]
        ahead = np.flatnonzero((starts > now) & (starts < INFINITY))
        return sorted(zip(starts[ahead].tolist(), ahead.tolist(), strict=True))

    def _count(self, begun: NDArray[np.intp]) -> None:
        self.add_to(self._active, begun, 1)

    def _ordered(self) -> NDArray[np.intp]:
        """Places of the slots by end. Kept, and mended where slots changed: sorting all anew is the dear
        part.
        """
        order = self._order
        if order is None or len(self._changed) > len(order) // 8:
            order = np.argsort(self._end[: len(self._keys)], kind="stable")
        elif self._changed:
            changed = np.fromiter(self._changed, dtype=np.intp, count=len(self._changed))
            stale = np.zeros(len(self._keys), dtype=np.bool_)
            stale[changed] = True
            order = order[~stale[order]]
            changed = changed[np.argsort(self._end[changed], kind="stable")]
            order = np.insert(order, np.searchsorted(self._end[order], self._end[changed]), changed)
        self._order = order
        self._changed.clear()
        return order
