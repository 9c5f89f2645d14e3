"""The slots of a table as arrays, one place a slot: its row, its amounts, its start and its end.

Nothing is derived here but sums over slots that are named. Places are used again; hosts and resources are numbers.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from broker.core.order import INFINITY, Places, TimeOrder
from broker.core.sweep import IntArray


class Entries:
    """What `SlotTable` keeps of its slots, without their keys."""

    def __init__(self) -> None:
        self.resources = 0
        self.rows = 0
        self.starts, self.ends = TimeOrder(64), TimeOrder(64)
        self.row = np.zeros(64, dtype=np.intp)
        self.amounts = np.zeros((4, 64), dtype=np.int64)
        self._used = 0
        self._vacant: list[int] = []

    def add_resource(self) -> int:
        """Return the number of one more resource, of which nobody holds anything."""
        if self.resources == len(self.amounts):
            self.amounts = np.concatenate([self.amounts, np.zeros_like(self.amounts)])
        self.resources += 1
        return self.resources - 1

    def add_row(self) -> int:
        """Return the number of one more row."""
        self.rows += 1
        return self.rows - 1

    def put(self, row: int, amounts: Mapping[int, int], start: int, end: int) -> tuple[int, IntArray]:
        """Return the place a new slot was given, and its amounts by resource."""
        if self._vacant:
            place = self._vacant.pop()
        else:
            place = self._used
            self._used += 1
            if place == len(self.row):
                self._grow()
        self.row[place] = row
        column = np.zeros(len(self.amounts), dtype=np.int64)
        for resource, amount in amounts.items():
            column[resource] = amount
        self.amounts[:, place] = column
        self.starts.set(place, start)
        self.ends.set(place, end)
        return place, column

    def drop(self, place: int) -> tuple[int, int, int, IntArray]:
        """Make a place vacant; return the row, start, end and amounts of the slot that was there."""
        start, end = self.starts.set(place, INFINITY), self.ends.set(place, INFINITY)
        self._vacant.append(place)
        return int(self.row[place]), start, end, self.amounts[:, place].copy()

    def empty_sums(self) -> IntArray:
        """Return sums of nothing: (resources, rows)."""
        return np.zeros((self.resources, self.rows), dtype=np.int64)

    def add_to(self, sums: IntArray, places: Places, sign: int) -> None:
        """Put the amounts of slots on sums of (resources, rows), or take them off."""
        if not len(places):
            return
        rows = self.row.take(places)
        change = np.add if sign > 0 else np.subtract
        for resource in range(self.resources):
            change.at(sums[resource], rows, self.amounts[resource].take(places))

    def _grow(self) -> None:
        self.starts.grow()
        self.ends.grow()
        self.row = np.concatenate([self.row, np.zeros_like(self.row)])
        self.amounts = np.concatenate([self.amounts, np.zeros_like(self.amounts)], axis=1)
