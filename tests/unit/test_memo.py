"""What is remembered by identity: the same value is worked out once, another one that is equal is not taken for it."""

from __future__ import annotations

from broker.core.memo import Memo


def counted() -> tuple[list[list[int]], Memo[list[int], int]]:
    asked: list[list[int]] = []

    def total(values: list[int]) -> int:
        asked.append(values)
        return sum(values)

    return asked, Memo(total, size=3)


def test_a_value_is_worked_out_once() -> None:
    asked, memo = counted()
    value = [1, 2]
    assert (memo(value), memo(value)) == (3, 3)
    assert len(asked) == 1


def test_an_equal_value_is_another_one() -> None:
    asked, memo = counted()
    assert (memo([1]), memo([1])) == (1, 1)
    assert len(asked) == 2


def test_the_id_of_a_value_that_is_gone_is_not_taken_for_its_successor() -> None:
    _, memo = counted()
    for number in range(100):
        assert memo([number]) == number  # each list may take the place of the one before


def test_it_keeps_no_more_than_its_size() -> None:
    asked, memo = counted()
    kept = [[number] for number in range(4)]
    for value in kept:
        memo(value)
    assert memo(kept[3]) == 3
    assert len(asked) == 4
    memo(kept[0])
    assert len(asked) == 5
