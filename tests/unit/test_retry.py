"""Calls tried again: the first try is made at once and counts, and tenacity's rules hold from it on."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import pytest

from backends.base import BackendRejected, TransientBackendError
from broker.core.clock import ManualClock
from broker.engine.retry import RetryPolicy, call_with_retries

POLICY = RetryPolicy(initial=1.0, maximum=4.0, budget=10.0)


class Calls:
    """An operation that fails so many times, on a clock that is moved on while it waits."""

    def __init__(self, failures: int, error: type[Exception] = TransientBackendError) -> None:
        self.clock = ManualClock(datetime(2026, 11, 24, tzinfo=UTC))
        self.made = 0
        self.told: list[tuple[int, float]] = []
        self._failures = failures
        self._error = error

    async def operation(self) -> str:
        self.made += 1
        if self.made <= self._failures:
            raise self._error(f"failure {self.made}")
        return "done"

    async def tell(self, attempt: int, seconds: float, error: TransientBackendError) -> None:
        self.told.append((attempt, seconds))

    async def answer(self) -> str:
        calling = asyncio.ensure_future(
            call_with_retries(self.operation, policy=POLICY, clock=self.clock, jitter=lambda: 1.0, told=self.tell)
        )
        await self.clock.advance(60.0)
        return await calling


async def test_a_call_that_works_is_made_once_and_nobody_is_told() -> None:
    calls = Calls(failures=0)
    assert await calls.answer() == "done"
    assert (calls.made, calls.told) == (1, [])


async def test_the_first_failure_is_told_as_the_first_and_waits_the_initial_time() -> None:
    calls = Calls(failures=2)
    assert await calls.answer() == "done"
    assert (calls.made, calls.told) == (3, [(1, 1.0), (2, 2.0)])


async def test_the_budget_counts_from_the_first_try_and_the_last_error_is_raised() -> None:
    calls = Calls(failures=99)
    with pytest.raises(TransientBackendError, match="failure 4"):
        await calls.answer()
    assert calls.told == [(1, 1.0), (2, 2.0), (3, 4.0)]  # 7 s; another 4 would pass the 10


async def test_any_other_error_is_raised_at_once() -> None:
    calls = Calls(failures=1, error=BackendRejected)
    with pytest.raises(BackendRejected):
        await calls.answer()
    assert (calls.made, calls.told) == (1, [])
