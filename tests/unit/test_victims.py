"""A minimal set of victims: against every monotone question on few candidates, and what it costs on many."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import chain, combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.core.victims import minimal

Subset = frozenset[int]


def subsets(members: Sequence[int]) -> list[Subset]:
    """Every subset, the smallest first."""
    return [
        frozenset(chosen)
        for chosen in chain.from_iterable(combinations(members, size) for size in range(len(members) + 1))
    ]


def antichains(members: Sequence[int]) -> Iterator[list[Subset]]:
    """Every family of subsets of which none contains another: each is the least that is enough of one question."""

    def grown(family: list[Subset], rest: Sequence[Subset]) -> Iterator[list[Subset]]:
        yield family
        for at, each in enumerate(rest):
            if not any(each <= other or other <= each for other in family):
                yield from grown([*family, each], rest[at + 1 :])

    return grown([], subsets(members))


def preferred(least: Sequence[Subset]) -> Subset:
    """Of the least sets the one that does without the last candidates: its last one comes earliest, and so on."""
    return min(least, key=lambda each: sorted(each, reverse=True))


class Question:
    """Whether some of the least sets is among the chosen; counts how often it is asked."""

    def __init__(self, least: Sequence[Subset]) -> None:
        self.least = least
        self.asked = 0

    def __call__(self, chosen: Sequence[int]) -> bool:
        self.asked += 1
        assert len(set(chosen)) == len(chosen), f"asked about the same twice: {chosen}"
        return any(each <= set(chosen) for each in self.least)


def check(candidates: Sequence[int], least: Sequence[Subset]) -> list[int] | None:
    """What is found must be the preferred one of the least sets, in order; None where there is none."""
    question = Question(least)
    found = minimal(list(candidates), question)
    if not least:
        assert found is None
        return None
    assert found is not None
    assert found == sorted(found)
    assert set(found) == preferred(least), f"{found} of {least}"
    for spared in found:
        assert not question([each for each in found if each != spared]), f"{spared} of {found} can be spared"
    return found


@pytest.mark.parametrize("number", range(5))
def test_every_question_about_few_candidates(number: int) -> None:
    candidates = range(number)
    questions = list(antichains(candidates))
    assert len(questions) == (2, 3, 6, 20, 168)[number]  # Dedekind's numbers
    for least in questions:
        check(candidates, least)


families = st.integers(5, 12).flatmap(
    lambda number: st.tuples(
        st.just(number),
        st.lists(st.frozensets(st.integers(0, number - 1), min_size=1, max_size=5), max_size=6),
    )
)


@settings(max_examples=300, deadline=None)
@given(family=families)
def test_random_questions_about_more(family: tuple[int, list[Subset]]) -> None:
    number, enough = family
    least = [each for each in enough if not any(other < each for other in enough)]
    check(range(number), least)


def test_nobody_where_nothing_has_to_be_done() -> None:
    assert minimal([1, 2], lambda chosen: True) == []
    assert minimal([], lambda chosen: True) == []
    assert minimal([], lambda chosen: False) is None


def test_those_that_come_first_are_preferred() -> None:
    """One large victim or two small ones would do: it goes by order, not by number."""
    assert check(range(3), [frozenset({0, 1}), frozenset({2})]) == [0, 1]
    assert check(range(3), [frozenset({0}), frozenset({1, 2})]) == [0]


@settings(max_examples=100, deadline=None)
@given(
    number=st.sampled_from([1, 2, 3, 10, 100, 1000, 4096]),
    needed=st.sets(st.floats(0, 1, exclude_max=True), min_size=1, max_size=8),
)
def test_it_asks_little(number: int, needed: set[float]) -> None:
    """With k of n taken it asks about k log(n / k) times, not n times (Junker 2004: 2 k log(n / k) + 2 k at most)."""
    wanted = frozenset(int(each * number) for each in needed)
    question = Question([wanted])
    assert minimal(list(range(number)), question) == sorted(wanted)
    taken = len(wanted)
    bound = 2 * taken * math.ceil(math.log2(number / taken)) + 2 * taken
    to_begin_and_to_make_sure = 2 + 1 + taken
    assert question.asked <= bound + to_begin_and_to_make_sure


@settings(max_examples=300, deadline=None)
@given(
    least=st.frozensets(st.integers(0, 4), min_size=1),
    given_up_on=st.sets(st.frozensets(st.integers(0, 4)), max_size=12),
)
def test_what_is_found_is_enough_even_where_questions_are_given_up_on(least: Subset, given_up_on: set[Subset]) -> None:
    """Placement gives up on a question that is too large for it, be it one about more victims than another."""

    def enough(chosen: Sequence[int]) -> bool:
        return least <= set(chosen) and frozenset(chosen) not in given_up_on

    found = minimal(range(5), enough)
    if found is None:
        assert not enough(range(5))
        return
    assert enough(found), f"{found} is not enough"
    for spared in found:
        assert not enough([each for each in found if each != spared])
