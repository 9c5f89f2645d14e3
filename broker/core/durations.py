"""How long things take: the last times measured, and what to reckon with.

Reckoned with is the 95th percentile, in whole seconds, once ten are known; until then it is what a person said.
"""

from __future__ import annotations

import math
from collections import defaultdict, deque
from datetime import timedelta
from typing import Final

ENOUGH: Final = 10
KEPT: Final = 100
PERCENTILE: Final = 0.95


class Durations:
    """Times by what took them."""

    def __init__(self) -> None:
        self._seconds: defaultdict[str, deque[float]] = defaultdict(lambda: deque(maxlen=KEPT))
        self._expected: dict[str, timedelta] = {}  # of what is known well enough

    def note(self, what: str, seconds: float) -> None:
        """Keeps one time."""
        known = self._seconds[what]
        known.append(max(0.0, seconds))
        if len(known) >= ENOUGH:
            nearest_rank = math.ceil(PERCENTILE * len(known)) - 1
            self._expected[what] = timedelta(seconds=math.floor(sorted(known)[nearest_rank]))

    def expected(self, what: str, until_known: float) -> timedelta:
        """How long it will take, as far as anyone can tell; fractions of a second are let go."""
        known = self._expected.get(what)
        return timedelta(seconds=until_known) if known is None else known
