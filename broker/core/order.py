"""Instants of slots in order: which of them lie between two instants, without looking at the others.

Sorting is the dear part, so the order is kept. Places whose instant changed since it was made wait beside it and are
looked at one by one in each question, until there are so many that they are merged into it. Nothing is said of what
lies at `INFINITY`: a vacant place, or an end that never comes.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from broker.core.sweep import IntArray

Places: TypeAlias = NDArray[np.intp]
"""Slots by their places in the table."""

BEGINNING, INFINITY = int(np.iinfo(np.int64).min), int(np.iinfo(np.int64).max)
"""Earlier and later than every instant in microseconds; compared and never calculated with."""

WAITING = 256
"""Changed places that may wait. A merge reads every place, a question reads those that wait."""

SWEPT = 8
"""Where more than this part of all places is asked for, all are read in the order they lie in memory."""


class TimeOrder:
    """One instant a place, in microseconds."""

    def __init__(self, places: int) -> None:
        self.at = np.full(places, INFINITY, dtype=np.int64)
        self._sorted = np.empty(0, dtype=np.intp)  # places by instant, when last merged
        self._instants = np.empty(0, dtype=np.int64)  # theirs, then
        self._as_merged = np.ones(places, dtype=np.bool_)  # since
        self._waits = np.empty(WAITING, dtype=np.intp)  # which: the first `_waiting` of these
        self._waiting = 0

    def __len__(self) -> int:
        """How many places had an instant when last merged."""
        return len(self._instants)

    def set(self, place: int, instant: int) -> int:
        """Give a place another instant, INFINITY for none; return the one it had."""
        before = int(self.at[place])
        self.at[place] = instant
        if self._as_merged[place]:
            self._as_merged[place] = False
            if self._waiting == len(self._waits):
                self._waits = np.concatenate([self._waits, self._waits])
            self._waits[self._waiting] = place
            self._waiting += 1
        return before

    def grow(self) -> None:
        """Double the number of places."""
        self.at = np.concatenate([self.at, np.full_like(self.at, INFINITY)])
        self._as_merged = np.concatenate([self._as_merged, np.ones_like(self._as_merged)])

    def between(self, after: int, until: int) -> Places:
        """Return the places with an instant in `(after, until]`, in no order; `until` before INFINITY."""
        waiting = self._outside()
        low, high = self._instants.searchsorted(after, "right"), self._instants.searchsorted(until, "right")
        if high - low > len(self.at) // SWEPT:
            return np.flatnonzero((self.at > after) & (self.at <= until))
        found = self._sorted[low:high]
        if not len(waiting):
            return found
        at = self.at.take(waiting)
        fresh = waiting[(at > after) & (at <= until)]
        found = found[self._as_merged.take(found)]
        return np.concatenate([found, fresh]) if len(fresh) else found

    def number(self, after: int, until: int) -> int:
        """Return about how many lie in `(after, until]`: those that wait are left out."""
        self._outside()
        low, high = self._instants.searchsorted(after, "right"), self._instants.searchsorted(until, "right")
        return int(high - low)

    def last(self) -> int:
        """Return the last instant; BEGINNING if there is none."""
        at = self.at.take(self._outside())
        last = int(at.max(initial=BEGINNING, where=at < INFINITY))
        for position in range(len(self._instants) - 1, -1, -1):
            if self._as_merged[self._sorted[position]]:
                return max(last, int(self._instants[position]))
        return last

    def first_after(self, instant: int) -> int:
        """Return the first instant after one; INFINITY if there is none."""
        at = self.at.take(self._outside())
        first = int(at.min(initial=INFINITY, where=at > instant))
        for position in range(int(self._instants.searchsorted(instant, "right")), len(self._instants)):
            if self._as_merged[self._sorted[position]]:
                return min(first, int(self._instants[position]))
        return first

    def ascending(self) -> tuple[Places, IntArray]:
        """Return the places that have an instant, by it, and the instants. Do not write to them."""
        self._merge()
        return self._sorted, self._instants

    def _outside(self) -> Places:
        """The places that wait."""
        if self._waiting > WAITING:
            self._merge()
        return self._waits[: self._waiting]

    def _merge(self) -> None:
        if not self._waiting:
            return
        changed = self._waits[: self._waiting]
        if len(changed) > len(self._sorted) // 8:
            places = np.flatnonzero(self.at < INFINITY)
            self._sorted = places[np.argsort(self.at[places], kind="stable")]
            self._instants = self.at[self._sorted]
        else:
            stay = self._as_merged.take(self._sorted)
            places, instants = self._sorted[stay], self._instants[stay]
            fresh = changed[self.at[changed] < INFINITY]
            fresh = fresh[np.argsort(self.at[fresh], kind="stable")]
            between = instants.searchsorted(self.at[fresh])
            self._sorted = np.insert(places, between, fresh)
            self._instants = np.insert(instants, between, self.at[fresh])
        self._as_merged[changed] = True
        self._waits, self._waiting = self._waits[:WAITING], 0
