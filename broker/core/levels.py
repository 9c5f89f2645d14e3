"""What is held on every host at one instant: kept for now, and found for later from the nearest instant known.

Sums at a few instants asked for before are kept, so that an answer adds and takes off only what starts and ends between
two instants. The sums of now change together with the slots they count; those that are kept are brought up to date from
a journal when they are used. A slot that has ended and was not released counts now, and not later.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass

import numpy as np

from broker.core.entries import Entries
from broker.core.order import BEGINNING, INFINITY
from broker.core.sweep import IntArray

KEPT, KEPT_BYTES = 24, 32 << 20
"""Instants at which sums are kept, at most, and the bytes they may take."""

NEAR = 1_024
"""Starts and ends that are always gone through rather than keeping the sums at one more instant."""

JOURNAL = 1_024
"""Changes after which sums that were not used since are not worth bringing up to date."""


@dataclass(slots=True)
class _Kept:
    """Sums at an instant."""

    instant: int
    sums: IntArray
    version: int  # how many changes they know of


class Levels:
    """Sums over the slots of `entries`: (resources, rows)."""

    def __init__(self, entries: Entries) -> None:
        self._entries = entries
        self.now = BEGINNING
        self.next_start = INFINITY  # no slot starts in (now, next_start)
        self._standing = np.zeros((4, 64), dtype=np.int64)  # with spare resources and rows, as all sums here
        self._kept: list[_Kept] = []  # by instant
        # Row, start, end and amounts of slots that came (1) and went (-1) since the change numbered `_first`.
        self._journal: list[tuple[int, int, int, IntArray]] = []
        self._first = 0

    def make_room(self) -> None:
        """Take in resources and rows that are new."""
        resources, rows = self._standing.shape
        while resources < self._entries.resources:
            resources *= 2
        while rows < self._entries.rows:
            rows *= 2
        if (resources, rows) != self._standing.shape:
            wider = np.zeros((resources, rows), dtype=np.int64)
            wider[: self._standing.shape[0], : self._standing.shape[1]] = self._standing
            self._standing = wider
        self._kept.clear()

    def count(self, row: int, start: int, end: int, change: IntArray) -> None:
        """Count what a slot changes that came, or, with its amounts negative, went."""
        if start <= self.now:
            self._standing[:, row] += change
        elif start < self.next_start:  # not raised when that slot goes: there is none in between all the same
            self.next_start = start
        if self._kept:
            self._journal.append((row, start, end, change))
            if len(self._journal) > 2 * JOURNAL:
                self._forget()

    def advance(self, now: int) -> None:
        """Tell the time, which may also be set back."""
        starts = self._entries.starts
        if now < self.now:
            self._standing[:] = 0
            self._entries.add_to(self._standing, starts.between(BEGINNING, now), 1)
            self.next_start = starts.first_after(now)
        elif now >= self.next_start:
            self._entries.add_to(self._standing, starts.between(self.now, now), 1)
            self.next_start = starts.first_after(now)
        self.now = now

    def standing(self) -> IntArray:
        """Return what is held now. Do not write to it."""
        return self._standing[: self._entries.resources, : self._entries.rows]

    def at(self, instant: int) -> IntArray:
        """Return what is held at an instant after now, as an array of one's own."""
        starts, ends = self._entries.starts, self._entries.ends
        # How many starts and ends lie between it and now, where what is overdue goes, too; and the nearest kept.
        base, distance = None, starts.number(self.now, instant) + ends.number(BEGINNING, instant)
        right = bisect_left(self._kept, instant, key=lambda kept: kept.instant)
        for kept in self._kept[max(0, right - 1) : right + 1]:
            early, late = min(kept.instant, instant), max(kept.instant, instant)
            number = starts.number(early, late) + ends.number(early, late)
            if number < distance:
                base, distance = kept, number
        if base is None:
            sums, sign = self.standing(), 1
            starting, ending = starts.between(self.now, instant), ends.between(BEGINNING, instant)
        else:
            sums, sign = self._up_to_date(base), 1 if base.instant <= instant else -1
            early, late = min(base.instant, instant), max(base.instant, instant)
            starting, ending = starts.between(early, late), ends.between(early, late)
        found = sums.copy()
        self._entries.add_to(found, starting, sign)
        self._entries.add_to(found, ending, -sign)
        if distance > NEAR and distance > (len(starts) + len(ends)) // (2 * KEPT):
            self._keep(instant, found)
        return found

    def _up_to_date(self, kept: _Kept) -> IntArray:
        for row, start, end, change in self._journal[kept.version - self._first :]:
            if start <= kept.instant < end:
                kept.sums[:, row] += change[: len(kept.sums)]
        kept.version = self._first + len(self._journal)
        return kept.sums

    def _keep(self, instant: int, sums: IntArray) -> None:
        most = max(1, min(KEPT, KEPT_BYTES // max(1, sums.nbytes)))
        if len(self._kept) >= most:
            self._kept.remove(min(self._kept, key=lambda kept: kept.version))
        version = self._first + len(self._journal)
        kept = _Kept(instant, sums.copy(), version)
        insort(self._kept, kept, key=lambda kept: kept.instant)

    def _forget(self) -> None:
        """Drop the older half of the journal, and the sums that would need it."""
        self._first += JOURNAL
        del self._journal[:JOURNAL]
        self._kept = [kept for kept in self._kept if kept.version >= self._first]
