"""The only source of time: a port, the system's clock, and a clock for tests, the demo and replay.

Invariant: `now()` is aware UTC in whole microseconds, and code that waits waits through `sleep()`; so a
fortnight of leases runs in seconds on a `ManualClock`. Wall-clock steps are not judged here: who must,
compares `now()` with `monotonic()`. This is the one module of the core that knows asyncio.
"""

from __future__ import annotations

import asyncio
import heapq
import time
from datetime import UTC, datetime, timedelta
from typing import Protocol

_SETTLE_ROUNDS = 1000
"""How often `ManualClock` yields at most to let tasks run dry; a task that never sleeps must not hang a
test.
"""


class Clock(Protocol):
    """Tells the time and waits."""

    def now(self) -> datetime:
        """Return the wall-clock time: aware UTC, whole microseconds."""
        ...

    def monotonic(self) -> float:
        """Return seconds since an arbitrary point; never steps back."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Return after `seconds` of monotonic time; zero or less only lets other tasks run."""
        ...


class SystemClock:
    """The machine's own clock."""

    def now(self) -> datetime:
        """Return the wall-clock time: aware UTC, whole microseconds."""
        return datetime.now(UTC)

    def monotonic(self) -> float:
        """Return seconds since an arbitrary point; never steps back."""
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        """Return after `seconds`."""
        await asyncio.sleep(max(0.0, seconds))


class ManualClock:
    """A clock that moves only when told to. A sleeper wakes exactly at its time, in time order, ties in sleep
    order.
    """

    def __init__(self, start: datetime) -> None:
        if start.tzinfo is None:
            raise ValueError("a clock starts at an aware datetime")
        self._now = start.astimezone(UTC)
        self._elapsed = timedelta()  # monotonic time, kept whole so that sleepers meet it exactly
        self._sleepers: list[tuple[timedelta, int, asyncio.Future[None]]] = []
        self._serial = 0

    def now(self) -> datetime:
        """Return the manual wall-clock time."""
        return self._now

    def monotonic(self) -> float:
        """Return seconds advanced so far."""
        return self._elapsed.total_seconds()

    @property
    def next_wake(self) -> datetime | None:
        """The instant the next sleeper wakes, or None when nobody sleeps."""
        self._forget_cancelled()
        return self._now + (self._sleepers[0][0] - self._elapsed) if self._sleepers else None

    async def sleep(self, seconds: float) -> None:
        """Return once the clock has been advanced by `seconds`, cut to whole microseconds."""
        due = self._elapsed + timedelta(seconds=seconds)
        if due <= self._elapsed:
            await asyncio.sleep(0)
            return
        waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._serial += 1
        heapq.heappush(self._sleepers, (due, self._serial, waiting))
        await waiting

    async def advance(self, seconds: float) -> None:
        """Move on by `seconds`, waking sleepers on the way; tasks run dry between two wake times.

        A task that falls asleep on the way for a time inside the stretch is woken in the same call.
        """
        await self._settle()
        target = self._elapsed + timedelta(seconds=seconds)
        while True:
            self._forget_cancelled()
            if not self._sleepers or self._sleepers[0][0] > target:
                break
            due = self._sleepers[0][0]
            self._move_to(due)
            while self._sleepers and self._sleepers[0][0] == due:
                waiting = heapq.heappop(self._sleepers)[2]
                if not waiting.done():
                    waiting.set_result(None)
            await self._settle()
        self._move_to(target)
        await self._settle()

    def set(self, now: datetime) -> None:
        """Step the wall clock, as an operator or NTP does: monotonic time and sleepers stay where they
        are.
        """
        if now.tzinfo is None:
            raise ValueError("a clock is set to an aware datetime")
        self._now = now.astimezone(UTC)

    def _move_to(self, elapsed: timedelta) -> None:
        if elapsed > self._elapsed:
            self._now += elapsed - self._elapsed
            self._elapsed = elapsed

    def _forget_cancelled(self) -> None:
        while self._sleepers and self._sleepers[0][2].done():
            heapq.heappop(self._sleepers)

    @staticmethod
    async def _settle() -> None:
        """Yield until no other callback is ready. Loops that hide their queue get a fixed number of
        rounds.
        """
        ready = getattr(asyncio.get_running_loop(), "_ready", None)
        for _ in range(_SETTLE_ROUNDS if ready is not None else 64):
            await asyncio.sleep(0)
            if ready is not None and not ready:
                return
