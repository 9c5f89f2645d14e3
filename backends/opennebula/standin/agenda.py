"""What is about to happen, and when.

Responsible for running callbacks once they are due. Invariant: they run in the order of their due times,
and in the order they were put down where those are equal. Has no thread: whoever looks at the world runs
what is due first, so nothing moves unseen and nothing is left behind when a stand-in stops.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable
from itertools import count


class Agenda:
    def __init__(self) -> None:
        self._entries: list[tuple[float, int, Callable[[], None], bool]] = []
        self._order = count()
        self._now: float | None = None

    def after(self, delay: float, action: Callable[[], None], *, background: bool = False) -> None:
        """Run `action` `delay` seconds from now; within a run, from the moment that one was due.

        What is `background` comes round again and again and keeps nobody waiting.
        """
        start = time.monotonic() if self._now is None else self._now
        heapq.heappush(self._entries, (start + delay, next(self._order), action, background))

    def run_due(self) -> None:
        if self._now is not None:
            return
        until = time.monotonic()
        try:
            while self._entries and self._entries[0][0] <= until:
                self._now, _, action, _ = heapq.heappop(self._entries)
                action()
        finally:
            self._now = None

    @property
    def idle(self) -> bool:
        """Whether nothing but the background is about to happen."""
        return all(background for *_, background in self._entries)
