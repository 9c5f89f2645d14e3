"""The slot table: who holds what, where and when.

It stores reservations and derives what is held over an interval. All sums are changed only together with
the slots they count and can be rebuilt from the slots at any time. Intervals are half-open
`[start, end)`. A slot whose end has passed and that was not released still counts at every instant up to
and including now - capacity is given back when the VM is seen gone, never before - but not at later
instants: what is said about the future is a statement, not a promise.

It knows no totals, so it refuses nothing for want of room: `placement.plan` decides, the caller holds. A
host that left the inventory keeps its slots. It is not thread-safe: one writer a pool.

Here are names and keys. The slots as arrays are in entries.py and order.py, what is held at an instant in
levels.py, what is held at most inside an interval in crests.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import TypeAlias

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from broker.core.crests import Crests
from broker.core.entries import Entries
from broker.core.levels import Levels
from broker.core.order import BEGINNING, INFINITY
from broker.core.sweep import Begun, IntArray, distinct

__all__ = ["INFINITY", "POOL_ROW", "Rows", "Slot", "SlotKey", "SlotTable", "from_us", "to_us"]

SlotKey: TypeAlias = tuple[str, int, str]
"""(workspace uid, node index, kind): the kind tells apart what one node holds on its host, its pool, its
target.
"""

Rows: TypeAlias = slice | NDArray[np.intp]
"""Which rows of the table a list of hosts stands in; a slice where they stand in order."""

POOL_ROW = ""
"""Pseudo host that holds what belongs to the pool: a shared datastore, the addresses of a network."""

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
        self._rows: dict[str, int] = {}
        self._hosts: list[str] = []
        self._index: dict[SlotKey, int] = {}
        self._of_uid: dict[str, dict[SlotKey, None]] = {}
        self._keys: list[SlotKey | None] = []  # by place
        self._entries = Entries()
        self._levels = Levels(self._entries)
        self._crests = Crests(self._entries)
        self._names: tuple[tuple[str, ...], Rows] | None = None
        self.host_row(POOL_ROW)
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
            found = self._columns[resource] = self._entries.add_resource()
            self._levels.make_room()
        return found

    def host_row(self, host: str) -> int:
        """Return the index of a host in `peak`; a new host adds a row of zeros. Rows are never given away
        again.
        """
        found = self._rows.get(host)
        if found is None:
            found = self._rows[host] = self._entries.add_row()
            self._hosts.append(host)
            self._levels.make_room()
            self._crests.make_room()
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
        place = self._index.pop(key)
        row, start, end, amounts = self._entries.drop(place)
        self._levels.count(row, start, end, -amounts)
        self._crests.remove(row, place)
        self._keys[place] = None
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
        self._levels.advance(to_us(now))

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
        return sorted((self._slot(at) for at in self._crests.of_row(row)), key=lambda slot: (slot.start, slot.key))

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
        _, ends = self._entries.ends.ascending()
        ends = ends[ends.searchsorted(after, "right") :]
        return distinct(ends)

    def last_start_us(self) -> int:
        """Return the last start of a slot that has not begun by the told time; the least integer if there is none."""
        last = self._entries.starts.last()
        return last if last > self._levels.now else BEGINNING

    def peak_us(self, start: int, end: int, now: int) -> IntArray:
        """Return `peak` from and in microseconds. What lies before now is not asked: the interval is cut to
        it.

        An interval from now on into which no slot starts is one read of the sums. Otherwise they are those at its
        beginning, raised where slots that start later inside it take more.
        """
        levels = self._levels
        levels.advance(now)
        start = max(start, now)
        if start == now and levels.next_start >= end:
            return levels.standing()
        starting = self._entries.starts.between(start, end - 1)
        if start > now:
            held = levels.at(start)
        elif not len(starting):
            return levels.standing()
        else:
            held = levels.standing().copy()
        if len(starting):
            self._crests.raise_to(held, starting, start, now)
        return held

    def begun(self, now: int) -> Begun:
        """Return what the slots begun by now, in microseconds, go on to hold, for a bisection over their
        ends.
        """
        self._levels.advance(now)
        places, ends = self._entries.ends.ascending()
        begun = self._entries.starts.at.take(places) <= now
        return Begun(
            standing=self._levels.standing(),
            order=places[begun],
            ends=np.maximum(ends[begun], now + 1),
            add_to=self._entries.add_to,
        )

    # Inside -----------------------------------------------------------------------------------------------

    def _slot(self, place: int) -> Slot:
        entries = self._entries
        key, start = self._keys[place], from_us(int(entries.starts.at[place]))
        assert key is not None
        assert start is not None
        held = entries.amounts[:, place].tolist()
        return Slot(
            key=key,
            host=self._hosts[entries.row[place]],
            amounts={name: held[column] for name, column in self._columns.items() if held[column]},
            start=start,
            end=from_us(int(entries.ends.at[place])),
        )

    def _put(self, slot: Slot) -> None:
        row = self.host_row(slot.host)
        amounts = {self.column(name): amount for name, amount in slot.amounts.items()}
        start, end = to_us(slot.start), to_us(slot.end)
        place, column = self._entries.put(row, amounts, start, end)
        self._levels.count(row, start, end, column)
        self._crests.add(row, place)
        if place == len(self._keys):
            self._keys.append(None)
        self._keys[place] = slot.key
        self._index[slot.key] = place
        self._of_uid.setdefault(slot.key[0], {})[slot.key] = None
