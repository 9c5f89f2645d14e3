"""Time for the state machine: an event loop that never waits, and a clock whose tasks run dry, commits included.

The store shares commits by a short timer of the loop. On a loop that jumps to its next timer instead of waiting a run
takes no real time and repeats exactly.
"""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any, Final

from broker.core.clock import ManualClock
from broker.store.sqlite import GROUP_WINDOW

SOON: Final = 4 * GROUP_WINDOW
"""Seconds within which a timer of the loop counts as something still to be done."""

MOST_ROUNDS: Final = 2_000
"""Rounds of the loop in which everything must have come to rest."""


class InstantLoop(asyncio.SelectorEventLoop):
    """A loop whose time jumps to the next timer as soon as nothing else is to be done."""

    _ready: Any
    _scheduled: Any

    def __init__(self) -> None:
        super().__init__()
        self._instant = 0.0

    def time(self) -> float:
        return self._instant

    def _run_once(self) -> None:
        if not self._ready and self._scheduled:
            self._instant = max(self._instant, self._scheduled[0].when())
        super()._run_once()  # type: ignore[misc]

    def at_rest(self) -> bool:
        """Whether no callback is ready and no timer is due soon."""
        horizon = self._instant + SOON
        return not self._ready and not any(
            timer.when() <= horizon and not timer.cancelled() for timer in self._scheduled
        )


async def settle() -> None:
    """Returns when everything waits for the clock, or for ever."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, InstantLoop)
    for rounds in range(MOST_ROUNDS):
        await asyncio.sleep(0)
        if loop.at_rest():
            return
        if rounds % 4 == 3:
            await asyncio.sleep(GROUP_WINDOW)
    ready = [str(handle)[:200] for handle in loop._ready]
    raise AssertionError(f"something goes round and round without the clock moving: {ready}")


class LeapingClock(ManualClock):
    """A manual clock that can also leap, as for a process that was not scheduled for a while."""

    async def leap(self, seconds: float) -> None:
        """Moves on at once; who slept wakes late."""
        self._move_to(self._elapsed + timedelta(seconds=seconds))
        await self.advance(0.0)

    @staticmethod
    async def _settle() -> None:
        await settle()
