"""The earliest start among slots that end and start: exact, and found without looking at every end."""

from __future__ import annotations

import random
from datetime import timedelta

import numpy as np
import pytest

from broker.core import timing
from broker.core.placement import NotNow, Plan, PoolSnapshot, Window
from broker.core.search import SearchLimit
from broker.core.timing import MAX_STARTS
from tests.support.placement_cases import HOUR, NOW, ask, host, nodes, occupy, pool

MINUTE = timedelta(minutes=1)
LATE = NOW + 10_000 * HOUR


def busy_pool(hosts: int, slots: int) -> PoolSnapshot:
    """One node fits on each host, and short reservations take turns there, one right after the other."""
    lab = pool(hosts=[host(f"h{number:03d}", memory=1024) for number in range(hosts)])
    for number in range(hosts):
        start = NOW
        for place in range(slots):
            end = start + (20 + (number * 7 + place * 13) % 30) * MINUTE
            occupy(lab, f"h{number:03d}", 1024, start=start, end=end)
            start = end
    return lab


def test_a_start_far_behind_more_ends_than_are_looked_at_is_found() -> None:
    lab = busy_pool(40, 30)
    last = sorted(lab.slots.slots(f"h{number:03d}")[-1].end or LATE for number in range(40))
    assert len(lab.slots.ends(NOW)) > 2 * MAX_STARTS
    for count in (1, 5, 40):
        answer = ask(nodes(count), at=lab, window=Window(start=NOW, duration=2 * HOUR, latest_start=LATE))
        assert isinstance(answer, Plan)
        assert answer.start == last[count - 1]
    refused = ask(nodes(3), at=lab, window=Window(start=NOW, duration=2 * HOUR))
    assert isinstance(refused, NotNow)
    assert refused.earliest == last[2]


def test_a_gap_between_reservations_is_not_stepped_over() -> None:
    """Just as long as the lease: not a microsecond may be missing."""
    lab = busy_pool(10, 60)
    slots = sorted(lab.slots.slots("h006"), key=lambda slot: slot.start)
    gap = slots[40]
    assert gap.end is not None
    lab.slots.release(gap.key)
    length = gap.end - gap.start
    window = Window(start=NOW, duration=length, latest_start=LATE)
    answer = ask(nodes(), at=lab, window=window)
    assert isinstance(answer, Plan)
    assert (answer.start, answer.assignments[0].hosts) == (gap.start, ("h006",))
    longer = Window(start=NOW, duration=length + timedelta(microseconds=1), latest_start=LATE)
    answer = ask(nodes(), at=lab, window=longer)
    assert isinstance(answer, Plan)
    assert answer.start == min(lab.slots.slots(f"h{number:03d}")[-1].end or LATE for number in range(10))


@pytest.mark.parametrize("seed", range(20))
def test_stretches_find_what_looking_at_every_start_finds(seed: int) -> None:
    """Room that comes and goes at random; it fits a stretch if there is room all through its common time."""
    rng = random.Random(seed)
    length = rng.randrange(1, 40)
    starts = np.array(sorted(rng.sample(range(500), 120)), dtype=np.int64)
    density = rng.choice([0.02, 0.2, 0.5])
    full = [rng.random() < density for _ in range(600)]

    def fits(first: int, last: int) -> bool:
        return not any(full[int(starts[last]) : int(starts[first]) + length])

    expected = next((at for at in range(7, 120) if fits(at, at)), None)
    assert timing._first_of(starts, 7, 120, length, fits) == expected


def test_the_number_of_looks_is_bounded_and_small_where_little_changes() -> None:
    starts = np.arange(10_000, dtype=np.int64)
    looks: list[tuple[int, int]] = []

    def fits_from_9000_on(first: int, last: int) -> bool:
        looks.append((first, last))
        return int(starts[last]) >= 9_000

    assert timing._first_of(starts, 0, 10_000, 20_000, fits_from_9000_on) == 9_000
    assert len(looks) < 50
    assert timing._first_of(starts, 0, MAX_STARTS, 1, lambda first, last: False) is None
    with pytest.raises(SearchLimit):
        timing._first_of(starts, 0, MAX_STARTS + 1, 1, lambda first, last: False)


@pytest.mark.parametrize("first", [0, 1, 2, 3, 17, 98, 99, None])
def test_bisection_in_growing_steps_finds_the_first(first: int | None) -> None:
    asked: list[int] = []

    def holds(position: int) -> bool:
        asked.append(position)
        return first is not None and position >= first

    assert timing._bisect(0, 100, holds) == first
    assert all(0 <= position < 100 for position in asked)
    assert len(asked) < 16
    assert timing._bisect(5, 5, holds) is None


def test_an_open_ended_lease_starts_after_the_last_reservation_in_its_way() -> None:
    lab = pool(hosts=[host("a", memory=1024), host("b", memory=1024)])
    occupy(lab, "a", 1024, end=NOW + HOUR)
    occupy(lab, "a", 1, start=NOW + 30 * HOUR, end=NOW + 31 * HOUR)
    occupy(lab, "b", 1024, start=NOW + 2 * HOUR, end=NOW + 9 * HOUR)
    answer = ask(nodes(), at=lab, window=Window(start=NOW, open_ended=True, latest_start=LATE))
    assert isinstance(answer, Plan)
    assert (answer.start, answer.end, answer.assignments[0].hosts) == (NOW + 9 * HOUR, None, ("b",))
