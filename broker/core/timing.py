"""When a request fits: its cases at one instant, and the first instant at which all of them do.

As time goes on room is gained only where a slot ends, so the first such instant is an end in the table. If no slot
starts later, what fits at an instant fits at every later one, and bisection finds it. With slots that start later
that holds no more: then the same question without those slots gives a lower bound, and from there on the ends are
looked at in stretches. Leases that begin somewhere in a stretch, and last longer than it, have in common the time
from its last end to when the first of them is over. What does not fit even that time fits nowhere in the stretch;
otherwise a shorter stretch is looked at. So most ends are never looked at one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from broker.core.arrange import Arrangement, arrange_most, fits
from broker.core.feasibility import Case
from broker.core.search import Budget, SearchLimit
from broker.core.slots import INFINITY, to_us
from broker.core.sweep import Begun, IntArray, distinct

MAX_STARTS = 200
"""Stretches and single starts looked at before the search for the earliest gives up."""


def end_of(start: int, length: int) -> int:
    """Return the end of a lease in microseconds; a length of INFINITY is open-ended."""
    return INFINITY if length >= INFINITY else min(start + length, INFINITY)


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
    budget, of_stretches = Budget(search_limit), Budget(search_limit)
    now = max(to_us(case.snapshot.now) for case in cases)
    begun = [case.snapshot.slots.begun(now) for case in cases]
    last_start = max(case.snapshot.slots.last_start_us() for case in cases)
    starts = _candidates(cases, begun, after, until)

    def fits_without_coming(position: int) -> bool:
        instant = int(starts[position])
        return all(
            fits(case, case.room_beside(slots.held(instant)), case.least, budget)
            for case, slots in zip(cases, begun, strict=True)
        )

    def fits_in_common(first: int, last: int) -> bool:
        start, end = int(starts[last]), end_of(int(starts[first]), length)
        try:
            spent = budget if first == last else of_stretches
            return all(fits(case, case.room(start, end), case.least, spent) for case in cases)
        except SearchLimit:
            if first == last:
                raise
            return True  # for all that is known

    def fits_at(position: int) -> bool:
        return fits_in_common(position, position)

    at = _bisect(0, len(starts), fits_without_coming)
    if at is None or last_start <= now:
        return None if at is None else int(starts[at])
    settled = max(at, int(np.searchsorted(starts, last_start)))  # from here on nothing starts any more
    found = _first_of(starts, at, settled, length, fits_in_common)
    if found is None:
        found = _bisect(settled, len(starts), fits_at)
    return None if found is None else int(starts[found])


def _candidates(cases: Sequence[Case], begun: Sequence[Begun], after: int, until: int) -> IntArray:
    """The instants in `(after, until]` at which something ends; what is overdue may end at any time."""
    instants = [case.snapshot.slots.ends_us(after) for case in cases] + [slots.ends[:1] for slots in begun]
    merged = np.sort(np.concatenate(instants), kind="stable")  # of runs, which is quicker than np.unique
    return distinct(merged[merged.searchsorted(after, "right") : merged.searchsorted(until, "right")])


def _first_of(
    starts: IntArray, low: int, end: int, length: int, fits_in_common: Callable[[int, int], bool]
) -> int | None:
    """Return the first position in `[low, end)` that fits, or None. Raises SearchLimit.

    Stretches grow while nothing fits them, and shrink where something might.
    """
    position, width, looks = low, 1, 0
    while position < end:
        if looks == MAX_STARTS:
            raise SearchLimit
        looks += 1
        over = int(starts.searchsorted(end_of(int(starts[position]), length)))  # has no time in common with it
        last = min(position + width, over, end) - 1
        if not fits_in_common(position, last):
            position, width = last + 1, 2 * width
        elif last > position:
            width = (last - position + 1) // 2
        else:
            return position
    return None


def _bisect(low: int, end: int, holds: Callable[[int], bool]) -> int | None:
    """Return the first position in `[low, end)` with a condition that, once it holds, goes on to; None:
    nowhere.

    It is looked for in steps that grow, as what is soon is told more quickly than what is far away.
    """
    high, step = low, 1
    while True:
        if low >= end:
            return None
        high = min(high, end - 1)
        if holds(high):
            break
        low, high, step = high + 1, high + step, 2 * step
    while low < high:
        middle = (low + high) // 2
        if holds(middle):
            high = middle
        else:
            low = middle + 1
    return low
