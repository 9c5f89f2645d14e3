"""Arithmetic over the slots of all hosts at once: peaks inside an interval, and what is left later on.

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


def sums_at_starts(rows: NDArray[np.intp], starts: IntArray, ends: IntArray, amounts: IntArray) -> IntArray:
    """Return, for each of the slots, what all of them on its row hold at the instant it starts: (resources, slots).

    Of several that start at one instant on one row, one is told the sum, the others less.
    """
    number = len(rows)
    order = np.lexsort((np.arange(2 * number) >= number, np.concatenate([ends, starts]), np.concatenate([rows, rows])))
    sums = np.cumsum(np.concatenate([-amounts, amounts], axis=1)[:, order], axis=1)  # a row ends at 0
    found = np.empty_like(sums)
    found[:, order] = sums
    return found[:, number:]


def in_time(ends: IntArray, starts: IntArray) -> NDArray[np.intp]:
    """Return the order in time of ends and starts, in that sequence: at one instant ends come first, as intervals are
    half-open. Runs that are in order already are only merged.
    """
    return np.argsort(np.concatenate([ends, starts]), kind="stable")


def highest_rise(order: NDArray[np.intp], ending: IntArray, starting: IntArray) -> int:
    """Return how far a sum rises at most, 0 or more, where these amounts end and start in this order."""
    sums = np.cumsum(np.concatenate([-ending, starting]).take(order))
    return max(0, int(sums.max(initial=0)))


def distinct(ascending: IntArray) -> IntArray:
    """Return each instant once."""
    return ascending[np.concatenate([[True], ascending[1:] != ascending[:-1]])] if len(ascending) else ascending
