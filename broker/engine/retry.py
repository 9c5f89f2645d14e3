"""Calls to a backend, tried again while that can help: tenacity's loop, on the broker's clock.

Only `TransientBackendError` is retried: nothing happened then. The waits grow exponentially with jitter and can be cut
short, since whoever terminates a workspace must not wait for a retry that sleeps. What is retried is told to the
caller before each wait, so that it can be logged, counted and shown; this module keeps no state of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type

from backends.base import TransientBackendError
from broker.core.clock import Clock

T = TypeVar("T")


class Interrupted(Exception):
    """A wait between two tries was cut short: what was tried is no longer wanted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """When to try again: waits in seconds from `initial`, doubling to `maximum`, for `budget` seconds in all."""

    initial: float = 0.2
    maximum: float = 10.0
    budget: float = 60.0

    def wait(self, tries: int, jitter: float) -> float:
        """Seconds to wait after so many tries; `jitter` in [0, 1) spreads the wait over its upper half."""
        full = min(self.maximum, self.initial * 2.0 ** min(tries - 1, 40))
        return full * (0.5 + 0.5 * jitter)


Told = Callable[[int, float, TransientBackendError], Awaitable[None]]
"""Told before a wait: the try that failed (from 1), seconds until the next, and why."""


async def call_with_retries(
    operation: Callable[[], Awaitable[T]],
    *,
    policy: RetryPolicy,
    clock: Clock,
    jitter: Callable[[], float],
    told: Told,
    interrupt: asyncio.Event | None = None,
) -> T:
    """Returns what the operation returns. Raises its last TransientBackendError once the budget is spent, any other
    error at once, and Interrupted when `interrupt` is set during a wait."""
    started = clock.monotonic()
    try:
        return await operation()  # nearly all calls end here; tenacity's loop is for those that do not
    except TransientBackendError as error:
        first: TransientBackendError | None = error

    def wait(state: RetryCallState) -> float:
        return policy.wait(state.attempt_number, jitter())

    def stop(state: RetryCallState) -> bool:
        return clock.monotonic() - started + state.upcoming_sleep > policy.budget

    async def before_sleep(state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome is not None else None
        assert isinstance(error, TransientBackendError)  # the only kind that is retried
        await told(state.attempt_number, state.upcoming_sleep, error)

    async def sleep(seconds: float) -> None:
        if await interrupted_sleep(clock, seconds, interrupt):
            raise Interrupted

    retrying = AsyncRetrying(
        retry=retry_if_exception_type(TransientBackendError),
        wait=wait,
        stop=stop,
        before_sleep=before_sleep,
        sleep=sleep,
        reraise=True,
    )

    async def once() -> T:  # tenacity awaits what is declared async, not what a lambda returns
        nonlocal first
        if first is not None:  # the try that has been made counts as tenacity's first
            failed, first = first, None
            raise failed
        return await operation()

    return await retrying(once)


async def interrupted_sleep(clock: Clock, seconds: float, interrupt: asyncio.Event | None) -> bool:
    """Sleeps on the clock; returns early with True when the event is set."""
    if interrupt is None:
        await clock.sleep(seconds)
        return False
    sleeper = asyncio.ensure_future(clock.sleep(seconds))
    waiter = asyncio.ensure_future(interrupt.wait())
    try:
        await asyncio.wait({sleeper, waiter}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        sleeper.cancel()
        waiter.cancel()
    return interrupt.is_set()
