"""What is about to happen, and when.

Responsible for running callbacks once they are due. Invariant: they run in the order of their due times,
and in the order they were put down where those are equal; what is held runs only after `release`. Has no
thread: whoever looks at the world runs what is due first, so nothing moves unseen and nothing is left
behind when a stand-in stops.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count


@dataclass(frozen=True, slots=True, order=True)
class _Entry:
    due: float
    order: int
    action: Callable[[], None] = field(compare=False)
    label: str = field(compare=False)
    background: bool = field(compare=False)


class Agenda:
    def __init__(self) -> None:
        self._entries: list[_Entry] = []
        self._order = count()
        self._now: float | None = None
        self._held: set[str] = set()
        self._parked: list[_Entry] = []

    def after(self, delay: float, action: Callable[[], None], *, label: str = "", background: bool = False) -> None:
        """Run `action` `delay` seconds from now; within a run, from the moment that one was due.

        What is `background` comes round again and again and keeps nobody waiting.
        """
        start = time.monotonic() if self._now is None else self._now
        heapq.heappush(self._entries, _Entry(start + delay, next(self._order), action, label, background))

    def hold(self, label: str) -> None:
        """Keep what bears this label from happening until `release`."""
        self._held.add(label)

    def release(self, label: str | None = None) -> None:
        """Let what was held happen; one label only, or all."""
        self._held = set() if label is None else self._held - {label}
        parked, self._parked = self._parked, []
        for entry in parked:
            heapq.heappush(self._entries, entry)

    def run_due(self) -> None:
        if self._now is not None:
            return
        until = time.monotonic()
        try:
            while self._entries and self._entries[0].due <= until:
                entry = heapq.heappop(self._entries)
                if entry.label in self._held:
                    self._parked.append(entry)
                    continue
                self._now = entry.due
                entry.action()
        finally:
            self._now = None

    @property
    def idle(self) -> bool:
        """Whether nothing is about to happen but the background and what is held."""
        return all(entry.background for entry in self._entries)
