"""Arithmetic over the slots of all hosts at once, for slots.py: peaks inside an interval, and what is left
later on.

Array in, array out; knows no keys, no names and no clock.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

IntArray: TypeAlias = NDArray[np.int64]


class Begun:
    """What slots that have begun still hold at a later instant, were no other to start. Good until the table
    changes.

    `ends`: when they end, ascending, open-ended ones left out; overdue ones just after now.
    """

    def __init__(
        self,
        *,
        standing: IntArray,
        order: NDArray[np.intp],
        ends: IntArray,
        add_to: Callable[[IntArray, NDArray[np.intp], int], None],
    ) -> None:
        self.ends = ends
        self._add_to = add_to
        self._order = order
        # (slots gone, what the others hold), ascending: each question goes on from the nearest one before it.
        self._known = [(0, standing)]

    def held(self, instant: int) -> IntArray:
        """Return what is held at an instant after now, in microseconds: (resources, hosts) as in `peak`."""
        gone = int(np.searchsorted(self.ends, instant, side="right"))
        at = bisect.bisect_right(self._known, gone, key=lambda known: known[0]) - 1
        before, held = self._known[at]
        if before < gone:
            held = held.copy()
            self._add_to(held, self._order[before:gone], -1)
            self._known.insert(at + 1, (gone, held))
        return held


def sweep(
    rows: NDArray[np.intp], when: IntArray, is_start: NDArray[np.bool_], change: IntArray
) -> tuple[NDArray[np.intp], IntArray]:
    """Return the rows with events and, for each, how far its sums rise at most: (resources, rows), 0 or more.

    Sweep line over all hosts at once: events sorted by host, time, ends before starts; prefix sums; maximum a
    host. Ends come first at the same instant because intervals are half-open.
    """
    order = np.lexsort((is_start, when, rows))
    rows, sums = rows[order], np.cumsum(change[:, order], axis=1)
    first = np.flatnonzero(np.concatenate([[True], rows[1:] != rows[:-1]]))
    before = np.where(first > 0, sums[:, first - 1], 0)
    return rows[first], np.maximum(np.maximum.reduceat(sums, first, axis=1) - before, 0)
