"""What to reckon with: a person's word until ten times are known, then the 95th percentile of the last hundred."""

from __future__ import annotations

from datetime import timedelta

from hypothesis import given
from hypothesis import strategies as st

from broker.core.durations import Durations


def seconds(durations: Durations, what: str = "start", until_known: float = 7.5) -> float:
    return durations.expected(what, until_known).total_seconds()


def test_a_persons_word_counts_until_ten_are_known() -> None:
    durations = Durations()
    for _ in range(9):
        durations.note("start", 60.0)
        assert seconds(durations) == 7.5
    durations.note("start", 60.0)
    assert seconds(durations) == 60.0
    assert seconds(durations, until_known=1000.0) == 60.0


def test_each_kind_of_work_has_its_own_times() -> None:
    durations = Durations()
    for _ in range(10):
        durations.note("start", 60.0)
    assert seconds(durations, "suspend") == 7.5


def test_one_slow_start_in_twenty_is_not_reckoned_with_and_two_are() -> None:
    durations = Durations()
    for length in [10.0] * 19 + [500.0]:
        durations.note("start", length)
    assert seconds(durations) == 10.0
    durations.note("start", 500.0)
    assert seconds(durations) == 500.0


def test_only_the_last_hundred_count() -> None:
    durations = Durations()
    for length in [500.0] * 100 + [10.0] * 95:
        durations.note("start", length)
    assert seconds(durations) == 10.0
    for length in [20.0] * 6:
        durations.note("start", length)
    assert seconds(durations) == 20.0


def test_fractions_are_let_go_and_a_clock_that_stepped_back_counts_as_nothing() -> None:
    durations = Durations()
    for _ in range(10):
        durations.note("start", 59.999)
        durations.note("suspend", -3600.0)
    assert seconds(durations) == 59.0
    assert seconds(durations, "suspend") == 0.0


@given(lengths=st.lists(st.integers(0, 1000), min_size=10, max_size=150))
def test_it_is_the_least_that_was_enough_for_95_in_a_hundred(lengths: list[int]) -> None:
    durations = Durations()
    for length in lengths:
        durations.note("start", length)
    last = lengths[-100:]
    enough = [length for length in last if 100 * sum(other <= length for other in last) >= 95 * len(last)]
    assert durations.expected("start", 1.0) == timedelta(seconds=min(enough))
