"""What was worked out before for values that do not change.

A front-end asks for the same few shapes of node again and again. What follows from a shape alone is worked out once,
and found by who the value is, not by comparing it: one look-up costs less than a hash of its fields.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")

MEMO_SIZE = 512
"""Values kept by one memo: few enough for those of 64 KiB, as a node set with its user data may be."""


class Memo(Generic[K, V]):
    """Answers of a pure function of one immutable value, while that value is among the last ones asked about."""

    def __init__(self, work_out: Callable[[K], V], size: int = MEMO_SIZE) -> None:
        self._work_out = work_out
        self._size = size
        self._known: dict[int, tuple[K, V]] = {}  # the value is kept, so that its id stays its own

    def __call__(self, value: K) -> V:
        """The answer for a value."""
        known = self._known.get(id(value))
        if known is not None:
            return known[1]
        answer = self._work_out(value)
        if len(self._known) >= self._size:
            self._known.clear()
        self._known[id(value)] = (value, answer)
        return answer
