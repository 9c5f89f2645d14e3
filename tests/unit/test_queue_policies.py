"""The policies that come with the broker: who is next, who may pass, who gives way first."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from itertools import permutations
from typing import Any

import pytest

from broker.core.policies import (
    BACKFILLS,
    DEFAULTS,
    QUEUE_ORDERS,
    VICTIM_CHOICES,
    Passing,
    Victim,
    Waiting,
)

NOW = datetime(2026, 5, 4, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


def waiting(uid: str, minutes: int = 0, **more: Any) -> Waiting:
    """One who came so many minutes ago."""
    values = {"tenant": "red", "nodes": 1, "duration": timedelta(hours=1), **more}
    return Waiting(uid=uid, since=NOW - minutes * MINUTE, **values)


def order(policy: str, *who: Waiting) -> str:
    """Their names in order; they come by arrival, as the queue hands them over."""
    return "".join(each.uid for each in QUEUE_ORDERS[policy]().order(who, NOW))


def always(policy: str, best_first: Sequence[Waiting]) -> None:
    """The order must be the one given, in whatever order they come."""
    for arrived in permutations(best_first):
        assert order(policy, *arrived) == "".join(each.uid for each in best_first)


def test_fair_share_goes_by_one_thing_after_the_other() -> None:
    """Each is worse than the one before in one thing, and better in all that count less."""
    always(
        "fair-share",
        [
            waiting("a", 0, overdue=True, preemptible=True, priority=-9, used=9.0),
            waiting("b", 1, priority=-8, used=8.0),
            waiting("c", 2, preemptible=True, priority=5, used=7.0),
            waiting("d", 3, preemptible=True, priority=4, used=1.0),
            waiting("e", 5, preemptible=True, priority=4, used=2.0),
            waiting("f", 4, preemptible=True, priority=4, used=2.0),
        ],
    )


def test_arrival_goes_by_arrival_but_for_overdue_reservations() -> None:
    always(
        "arrival",
        [
            waiting("a", 1, overdue=True, used=9.0),
            waiting("b", 0, overdue=True, priority=9),
            waiting("c", 3, preemptible=True, priority=-9, used=9.0),
            waiting("d", 2, priority=9),
        ],
    )


@pytest.mark.parametrize("policy", sorted(QUEUE_ORDERS))
def test_who_is_equal_stays_as_he_came(policy: str) -> None:
    """Within one instant, too, whoever was first is first."""
    assert order(policy, *(waiting(name) for name in "bdac")) == "bdac"
    assert order(policy) == ""


BLOCKED = {
    "none": [Passing.NOBODY, Passing.NOBODY, Passing.NOBODY],
    "aggressive": [Passing.UNHURT, Passing.FREELY, Passing.FREELY],
    "conservative": [Passing.UNHURT, Passing.UNHURT, Passing.UNHURT],
}


@pytest.mark.parametrize("policy", sorted(BACKFILLS))
def test_who_may_pass_the_first_the_second_and_the_third(policy: str) -> None:
    backfill = BACKFILLS[policy]()
    for kind in (waiting("a"), waiting("b", 10_000, preemptible=True, priority=-5, overdue=True)):
        assert [backfill.blocked(kind, ahead, NOW) for ahead in range(3)] == BLOCKED[policy]


def victim(uid: str, hours: int, **more: Any) -> Victim:
    """One that has run for so many hours."""
    values = {"tenant": "red", "nodes": 1, "amounts": {"cpu": 1000}, "end": None, **more}
    return Victim(uid=uid, started=NOW - timedelta(hours=hours), **values)


def choose(policy: str, *who: Victim) -> str:
    return "".join(each.uid for each in VICTIM_CHOICES[policy]().order(who, NOW))


def test_the_youngest_gives_way_first_where_priorities_are_the_same() -> None:
    best_first = [
        victim("a", 9, priority=-1, nodes=9),
        victim("b", 1, nodes=9),
        victim("c", 2, nodes=1),
        victim("d", 3, nodes=5),
        victim("e", 0, priority=1),
    ]
    for arrived in permutations(best_first):
        assert choose("youngest", *arrived) == "abcde"


def test_the_smallest_gives_way_first_and_of_these_the_youngest() -> None:
    best_first = [
        victim("a", 2, nodes=1, priority=9),
        victim("b", 3, nodes=1),
        victim("c", 0, nodes=2),
        victim("d", 9, nodes=3),
    ]
    for arrived in permutations(best_first):
        assert choose("smallest", *arrived) == "abcd"


@pytest.mark.parametrize("policy", sorted(VICTIM_CHOICES))
def test_of_those_that_began_together_the_last_to_come_gives_way_first(policy: str) -> None:
    assert choose(policy, *(victim(name, 1) for name in "bdac")) == "cadb"


def test_the_defaults_are_there() -> None:
    assert DEFAULTS["order"] in QUEUE_ORDERS
    assert DEFAULTS["backfill"] in BACKFILLS
    assert DEFAULTS["victims"] in VICTIM_CHOICES
