"""When a request fits: its cases at one instant, and the first instant at which all of them do.

As time goes on slots end, and if none starts later, what fits at an instant fits at every later one: the
first such instant is an end in the table, found by bisection. With slots that start later that holds no
more. Then the same question without those slots gives a lower bound, and the ends from there on are tried
in turn, at most `MAX_STARTS`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from broker.core.arrange import Arrangement, arrange, arrange_most
from broker.core.feasibility import Case
from broker.core.search import Budget, SearchLimit
from broker.core.slots import INFINITY, to_us
from broker.core.sweep import IntArray

MAX_STARTS = 200
"""Starts tried one after another before the search for the earliest gives up."""


def end_of(start: int, length: int) -> int:
    """Return the end of a lease in microseconds; a length of INFINITY is open-ended."""
    return INFINITY if length >= INFINITY else start + length


def fit_at(cases: Sequence[Case], start: int, length: int, search_limit: int) -> list[Arrangement] | None:
    """Return an arrangement a case with the greatest counts at `start`, or None. Raises SearchLimit."""
    found: list[Arrangement] = []
    for case in cases:
        placed = arrange_most(case, case.room(start, end_of(start, length)), Budget(search_limit))
        if placed is None:
            return None
        found.append(placed)
    return found


def first_fit(cases: Sequence[Case], after: int, until: int, length: int, search_limit: int) -> int | None:
    """Return the first instant in `(after, until]` at which the least counts of all cases fit, or None.

    Raises SearchLimit when that was not found out within the bounds. All instants are in microseconds.
    """
    budget = Budget(search_limit)
    now = max(to_us(case.snapshot.now) for case in cases)
    begun = [case.snapshot.slots.begun(now) for case in cases]
    coming = [case.snapshot.slots.coming_us() for case in cases]
    last_start = max(start for start, _ in coming)
    starts = _distinct([*(slots.ends for slots in begun), *(ends for _, ends in coming)])
    starts = starts[np.searchsorted(starts, after, side="right") : np.searchsorted(starts, until, side="right")]

    def fits_without_coming(position: int) -> bool:
        return all(
            arrange(case, case.room_beside(slots.held(int(starts[position]))), case.least, budget) is not None
            for case, slots in zip(cases, begun, strict=True)
        )

    def fits(position: int) -> bool:
        start = int(starts[position])
        return all(
            arrange(case, case.room(start, end_of(start, length)), case.least, budget) is not None for case in cases
        )

    at = _bisect(0, len(starts), fits_without_coming)
    if at is None or last_start <= now:
        return None if at is None else int(starts[at])
    settled = int(np.searchsorted(starts, last_start))  # from here on nothing starts later
    for position in range(at, settled):
        if position - at == MAX_STARTS:
            raise SearchLimit
        if fits(position):
            return int(starts[position])
    found = _bisect(max(at, settled), len(starts), fits)
    return None if found is None else int(starts[found])


def _distinct(instants: Sequence[IntArray]) -> IntArray:
    """Merge ascending arrays; a stable sort of runs is quicker than np.unique."""
    merged = np.sort(np.concatenate(instants), kind="stable")
    return merged[np.concatenate([[True], merged[1:] != merged[:-1]])] if len(merged) else merged


def _bisect(low: int, end: int, holds: Callable[[int], bool]) -> int | None:
    """Return the first position in `[low, end)` with a condition that, once it holds, goes on to; None:
    nowhere.
    """
    if low >= end or not holds(end - 1):
        return None
    high = end - 1
    while low < high:
        middle = (low + high) // 2
        if holds(middle):
            high = middle
        else:
            low = middle + 1
    return low
