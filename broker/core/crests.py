"""The most that is held inside an interval, on every host at once.

Sums rise only where a slot starts, so the most inside an interval is the largest sum at a start in it. A slot's crest
is the sum on its host at the instant it starts. It depends on the slots of that host alone, and on no time of day, so
it is remembered, and worked out anew only for hosts that changed and are asked for.

The pool's own row may hold a slot of every lease there is, and would have to be worked out anew all the time. Of a row
as long as that no crests are kept: what happens there inside the interval is gone through in each question.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from broker.core.entries import Entries
from broker.core.order import BEGINNING, Places
from broker.core.sweep import IntArray, highest_rise, in_time, sums_at_starts

LONG = 512
"""Slots of a row that no crests are kept of."""


class Crests:
    """Crests of the slots of `entries`, by row."""

    def __init__(self, entries: Entries) -> None:
        self._entries = entries
        self._crests = np.zeros_like(entries.amounts)
        self._places: list[set[int]] = []  # by row
        self._stale = np.zeros(64, dtype=np.bool_)  # by row
        self._long: dict[int, set[int]] = {}  # rows, and the resources that were ever held there since they are long

    def make_room(self) -> None:
        """Take in rows that are new."""
        while len(self._places) < self._entries.rows:
            self._places.append(set())
        while len(self._stale) < self._entries.rows:
            self._stale = np.concatenate([self._stale, np.zeros_like(self._stale)])

    def add(self, row: int, place: int) -> None:
        """Take in a slot that was put in a place."""
        places = self._places[row]
        places.add(place)
        self._stale[row] = True
        if len(places) > LONG:
            new = [place] if row in self._long else list(places)
            self._long.setdefault(row, set()).update(np.nonzero(self._entries.amounts[:, new])[0].tolist())

    def remove(self, row: int, place: int) -> None:
        """Leave out a slot that leaves its place."""
        places = self._places[row]
        places.remove(place)
        self._stale[row] = True
        if len(places) == LONG:
            del self._long[row]

    def of_row(self, row: int) -> set[int]:
        """Return the places of a row's slots. Do not write to them."""
        return self._places[row]

    def raise_to(self, held: IntArray, starting: Places, start: int, now: int) -> None:
        """Raise what is held at `start` to the most that is held from then on, given all that start later in the
        interval.
        """
        rows = self._entries.row.take(starting)
        self._widen()
        for row, resources in self._long.items():
            here = rows == row
            if here.any():
                self._go_through(held, row, resources, starting[here], start, now)
                starting, rows = starting[~here], rows[~here]
        stale = self._stale.take(rows)
        if stale.any():
            self._mend(np.unique(rows[stale]))
        for resource in range(self._entries.resources):
            np.maximum.at(held[resource], rows, self._crests[resource].take(starting))

    def _widen(self) -> None:
        shape = self._entries.amounts.shape
        if self._crests.shape != shape:
            wider = np.zeros(shape, dtype=np.int64)
            wider[: self._crests.shape[0], : self._crests.shape[1]] = self._crests
            self._crests = wider

    def _mend(self, rows: NDArray[np.intp]) -> None:
        entries = self._entries
        places = np.fromiter(chain.from_iterable(self._places[row] for row in rows.tolist()), dtype=np.intp)
        amounts = entries.amounts[: entries.resources, places]
        crests = sums_at_starts(
            entries.row.take(places), entries.starts.at.take(places), entries.ends.at.take(places), amounts
        )
        self._crests[: entries.resources, places] = crests
        self._stale[rows] = False

    def _go_through(
        self, held: IntArray, row: int, resources: Iterable[int], starting: Places, start: int, now: int
    ) -> None:
        """Go through the starts and ends of a row inside the interval."""
        entries = self._entries
        starts = entries.starts.at.take(starting)
        # What is overdue now is gone before anything starts. Ends after the last start cannot matter.
        ending = entries.ends.between(BEGINNING if start == now else start, int(starts.max()))
        ending = ending[entries.row.take(ending) == row]
        order = in_time(entries.ends.at.take(ending), starts)
        for resource in resources:
            amounts = entries.amounts[resource]
            held[resource, row] += highest_rise(order, amounts.take(ending), amounts.take(starting))
