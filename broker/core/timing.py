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

    def fits(start: int, begun_by: int | None = None) -> bool:
        return all(
            arrange(case, case.room(start, end_of(start, length), begun_by=begun_by), case.least, budget)
            is not None
            for case in cases
        )

    now = max(to_us(case.snapshot.now) for case in cases)
    ends = np.unique(np.concatenate([case.snapshot.slots.ends_us(-INFINITY) for case in cases]))
    # What is overdue counts up to and including now: as far as the future is concerned it ends just after.
    starts = np.unique(np.maximum(ends, now + 1))
    starts = starts[(starts > after) & (starts <= until)]
    at = _bisect(len(starts), lambda position: fits(int(starts[position]), now))
    if at is None:
        return None
    last_start = max(case.snapshot.slots.last_start_us() for case in cases)
    settled = int(np.searchsorted(starts, last_start))  # from here on nothing starts later
    for tried, position in enumerate(range(at, settled)):
        if tried == MAX_STARTS:
            raise SearchLimit
        if fits(int(starts[position])):
            return int(starts[position])
    rest = starts[max(at, settled) :]
    found = _bisect(len(rest), lambda position: fits(int(rest[position])))
    return None if found is None else int(rest[found])


def _bisect(size: int, holds: Callable[[int], bool]) -> int | None:
    """Return the first position at which a condition holds that, once it holds, goes on to hold; None:
    nowhere.
    """
    if size == 0 or not holds(size - 1):
        return None
    low, high = 0, size - 1
    while low < high:
        middle = (low + high) // 2
        if holds(middle):
            high = middle
        else:
            low = middle + 1
    return low
