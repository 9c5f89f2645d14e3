"""The manual clock: sleepers wake exactly at their time, in order, and only when time is moved."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from broker.core.clock import Clock, ManualClock, SystemClock

START = datetime(2026, 5, 4, 12, tzinfo=UTC)


async def test_sleepers_wake_at_their_time_in_time_order() -> None:
    clock: Clock = ManualClock(START)
    assert isinstance(clock, ManualClock)
    woken: list[tuple[str, datetime, float]] = []

    async def sleeper(name: str, seconds: float) -> None:
        await clock.sleep(seconds)
        woken.append((name, clock.now(), clock.monotonic()))

    tasks = [asyncio.create_task(sleeper(*args)) for args in (("late", 7.5), ("soon", 0.000001), ("never", 99))]
    await clock.advance(10)
    assert woken == [
        ("soon", START + timedelta(microseconds=1), 0.000001),
        ("late", START + timedelta(seconds=7.5), 7.5),
    ]
    assert clock.now() == START + timedelta(seconds=10)
    assert clock.next_wake == START + timedelta(seconds=99)
    tasks[2].cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert clock.next_wake is None


async def test_a_loop_of_sleeps_is_carried_through_one_advance() -> None:
    clock = ManualClock(START)
    ticks: list[datetime] = []

    async def ticker() -> None:
        while True:
            await clock.sleep(3600)
            for _ in range(5):  # work between two sleeps that takes several turns of the loop
                await asyncio.sleep(0)
            ticks.append(clock.now())

    task = asyncio.create_task(ticker())
    await clock.advance(14 * 24 * 3600)
    assert ticks == [START + timedelta(hours=hour) for hour in range(1, 14 * 24 + 1)]
    task.cancel()


async def test_setting_the_wall_clock_wakes_nobody_and_leaves_monotonic_time_alone() -> None:
    clock = ManualClock(START)
    task = asyncio.create_task(clock.sleep(60))
    await clock.advance(10)
    clock.set(START - timedelta(days=1))
    await clock.advance(49)
    assert not task.done()
    assert clock.monotonic() == 59
    await clock.advance(1)
    assert task.done()
    assert clock.now() == START - timedelta(days=1) + timedelta(seconds=50)


async def test_a_sleep_of_nothing_returns_and_naive_times_are_refused() -> None:
    clock = ManualClock(START)
    await clock.sleep(0)
    await clock.sleep(-1)
    with pytest.raises(ValueError, match="aware"):
        ManualClock(datetime(2026, 5, 4))
    with pytest.raises(ValueError, match="aware"):
        clock.set(datetime(2026, 5, 4))


async def test_the_system_clock_tells_aware_utc() -> None:
    clock = SystemClock()
    before = clock.monotonic()
    await clock.sleep(0.001)
    assert clock.monotonic() > before
    assert clock.now().utcoffset() == timedelta(0)
