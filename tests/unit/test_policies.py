"""Policies of third parties: found by name, asked within a budget, and replaced where they fail."""

from __future__ import annotations

import gc
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest

from broker.config import QueueSettings, ServerSettings, Settings
from broker.core.inventory import Undecided
from broker.core.placement import Placement
from broker.core.policies import (
    Aggressive,
    Conservative,
    FairShare,
    HostChoice,
    NoBackfill,
    Passing,
    Smallest,
    Victim,
    Waiting,
    Youngest,
)
from broker.metrics import Metrics
from broker.policies import Policies
from broker.policy_registry import Kind, load, names
from broker.pool_settings import PoolSettings
from tests.support.odd_policies import Bringing, Exits, Reversed, Says, Stuck, Unmade
from tests.support.placement_cases import ask, host, nodes, occupy, placed, pool

NOW: Final = datetime(2026, 5, 4, 12, tzinfo=UTC)
AMPLE: Final = 60.0  # a budget nobody exceeds, however busy the machine is
NO_TIME: Final = 0.02  # for one that never answers

WAITING: Final = [
    Waiting(uid=uid, tenant="t", since=NOW - timedelta(minutes=minutes), nodes=1, duration=None)
    for uid, minutes in (("a", 3), ("b", 2), ("c", 1))
]
"""By arrival, which is the default's order, too."""

VICTIMS: Final = [
    Victim(uid=uid, tenant="t", started=NOW - timedelta(minutes=minutes), nodes=1, amounts={}, end=None)
    for uid, minutes in (("a", 1), ("b", 2), ("c", 3))
]
"""The youngest first, as the default has them."""

HOSTS: Final = ["a", "b", "c"]
KINDS: Final = list(Kind)


@pytest.fixture
def bring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bringing:
    return Bringing(tmp_path / "sites", monkeypatch)


@pytest.fixture
def stuck(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """What `Stuck` waits for."""
    let_go = threading.Event()
    monkeypatch.setattr(Stuck, "let_go", let_go, raising=False)
    monkeypatch.setattr(Stuck, "asked", 0, raising=False)
    yield let_go
    let_go.set()


class Site:
    """One pool and the policies it is configured with; the same name for every kind that is named."""

    def __init__(self, *kinds: Kind, name: str = "odd", budget: float = AMPLE) -> None:
        chosen = dict.fromkeys(kinds, name)
        self.metrics = Metrics()
        self.name = name
        settings = Settings(
            server=ServerSettings(),
            pools={
                "lab": PoolSettings(
                    name="lab",
                    backend="simulator",
                    backfill=chosen.get(Kind.BACKFILL, "aggressive"),
                    victims=chosen.get(Kind.VICTIM_CHOICE, "youngest"),
                    host_choice=chosen.get(Kind.HOST_CHOICE, ""),
                )
            },
            queue=QueueSettings(order=chosen.get(Kind.QUEUE_ORDER, "fair-share"), policy_budget=budget),
        )
        self.policies = Policies(settings, self.metrics)

    def ask(self, kind: Kind) -> Any:
        """Puts a question to the policy of a kind; None: it leaves the choice of the host to the broker."""
        match kind:
            case Kind.QUEUE_ORDER:
                return "".join(each.uid for each in self.policies.order.order(WAITING, NOW))
            case Kind.BACKFILL:
                return self.policies.backfill["lab"].blocked(WAITING[0], 0, NOW)
            case Kind.VICTIM_CHOICE:
                return "".join(each.uid for each in self.policies.victims["lab"].order(VICTIMS, NOW))
            case Kind.HOST_CHOICE:
                try:
                    return self.policies.host_choice["lab"].rank(HOSTS, {}).tolist()
                except Undecided:
                    return None

    def failures(self, kind: Kind, why: str) -> float:
        """How many were counted."""
        return self.metrics.value("policy_failures_total", kind=kind, name=self.name, why=why)


DEFAULT_ANSWERS: Final[dict[Kind, Any]] = {
    Kind.QUEUE_ORDER: "abc",
    Kind.BACKFILL: Passing.UNHURT,
    Kind.VICTIM_CHOICE: "abc",
    Kind.HOST_CHOICE: None,
}
GOOD_ANSWERS: Final[dict[Kind, tuple[Callable[[Any], Any], Any]]] = {
    Kind.QUEUE_ORDER: (lambda given: given[::-1], "cba"),
    Kind.BACKFILL: (lambda given: Passing.NOBODY, Passing.NOBODY),
    Kind.VICTIM_CHOICE: (lambda given: (each for each in given[::-1]), "cba"),
    Kind.HOST_CHOICE: (lambda given: [3, 2, float("inf")], [3.0, 2.0, float("inf")]),
}
"""What a policy may say, and what is made of it."""


def says(monkeypatch: pytest.MonkeyPatch, saying: Callable[[Any], Any]) -> None:
    monkeypatch.setattr(Says, "saying", staticmethod(saying), raising=False)


def policy_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("policy ")]


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


# Names ---------------------------------------------------------------------------------------------------------


def test_the_brokers_own_run_as_they_are() -> None:
    before = policy_threads()
    policies = Site().policies
    made: Sequence[object] = (policies.order, policies.backfill["lab"], policies.victims["lab"])
    assert [type(each) for each in made] == [FairShare, Aggressive, Youngest]
    assert policies.host_choice == {}
    assert policy_threads() == before


@pytest.mark.parametrize("kind", KINDS)
def test_a_third_party_joins_by_an_entry_point(kind: Kind, bring: Bringing, monkeypatch: pytest.MonkeyPatch) -> None:
    bring(kind, "odd", Says)
    assert "odd" in names(kind)
    assert [other for other in KINDS if "odd" in names(other)] == [kind]
    saying, made_of_it = GOOD_ANSWERS[kind]
    says(monkeypatch, saying)
    site = Site(kind)
    assert site.ask(kind) == made_of_it
    assert [site.failures(kind, why) for why in ("error", "late", "answer")] == [0, 0, 0]


def test_an_unknown_name_is_met_with_those_there_are(bring: Bringing) -> None:
    bring(Kind.VICTIM_CHOICE, "longest-left", Reversed)
    with pytest.raises(LookupError) as refused:
        load(Kind.VICTIM_CHOICE, "longest-lef")
    assert refused.value.args == (
        'no victim choice is called "longest-lef"; there are: longest-left, smallest, youngest; did you mean '
        "longest-left?",
    )
    with pytest.raises(LookupError, match='no host choice is called "pack"; there are: none'):
        load(Kind.HOST_CHOICE, "pack")  # a placement, and no policy
    with pytest.raises(LookupError, match="no backfill"):
        Site(Kind.BACKFILL, name="longest-left")


def test_a_third_party_shadows_none_of_the_brokers_own(bring: Bringing) -> None:
    for kind, name in (
        (Kind.QUEUE_ORDER, "fair-share"),
        (Kind.BACKFILL, "none"),
        (Kind.VICTIM_CHOICE, "smallest"),
        (Kind.HOST_CHOICE, "pack"),
    ):
        known = names(kind)
        bring(kind, name, Reversed)
        assert names(kind) == known
    assert type(Site(Kind.QUEUE_ORDER, name="fair-share").policies.order) is FairShare
    assert type(Site(Kind.BACKFILL, name="none").policies.backfill["lab"]) is NoBackfill
    assert type(Site(Kind.VICTIM_CHOICE, name="smallest").policies.victims["lab"]) is Smallest
    assert load(Kind.BACKFILL, "conservative") is Conservative


# Failures ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_one_that_raises_is_replaced_and_asked_again(
    kind: Kind, bring: Bringing, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(given: Any) -> Any:
        raise RuntimeError("out of luck")

    bring(kind, "odd", Says)
    site = Site(kind)
    says(monkeypatch, broken)
    assert [site.ask(kind), site.ask(kind)] == [DEFAULT_ANSWERS[kind]] * 2
    assert site.failures(kind, "error") == 2
    [record] = caplog.records  # once, however often it fails in that way
    assert record.levelno == logging.ERROR
    assert f"policy=odd kind={kind}" in record.getMessage()
    assert "RuntimeError" in record.getMessage()
    assert "It is asked again next time" in record.getMessage()
    assert "out of luck" in caplog.text  # the traceback, for who has to mend it
    saying, made_of_it = GOOD_ANSWERS[kind]
    says(monkeypatch, saying)
    assert site.ask(kind) == made_of_it


@pytest.mark.parametrize("kind", KINDS)
def test_one_that_is_late_is_switched_off(
    kind: Kind, bring: Bringing, stuck: threading.Event, caplog: pytest.LogCaptureFixture
) -> None:
    before = policy_threads()
    bring(kind, "odd", Stuck)
    site = Site(kind, budget=NO_TIME)
    [thread] = [thread for thread in policy_threads() if thread not in before]
    assert site.ask(kind) == DEFAULT_ANSWERS[kind]
    stuck.set()
    thread.join(timeout=30)
    assert not thread.is_alive()  # it answered in the end, and nobody listened
    assert site.ask(kind) == DEFAULT_ANSWERS[kind]
    assert Stuck.asked == 1
    assert site.failures(kind, "late") == 1
    [message] = messages(caplog)
    assert "no answer within 20 ms" in message
    assert "switched off until the broker restarts: make it faster, or raise queue.policy_budget" in message


def test_one_that_hangs_keeps_no_other_from_answering(bring: Bringing, stuck: threading.Event) -> None:
    bring(Kind.QUEUE_ORDER, "odd", Stuck)
    bring(Kind.VICTIM_CHOICE, "odd", Reversed)
    late = Site(Kind.QUEUE_ORDER, budget=NO_TIME)
    assert late.ask(Kind.QUEUE_ORDER) == "abc"
    assert Site(Kind.VICTIM_CHOICE).ask(Kind.VICTIM_CHOICE) == "cba"


WRONG: Final[list[tuple[Kind, Callable[[Any], Any], str]]] = [
    (Kind.QUEUE_ORDER, lambda given: given[:2], "1 of 3 are missing, such as c"),
    (Kind.QUEUE_ORDER, lambda given: [*given, given[0]], "stands there twice"),
    (Kind.QUEUE_ORDER, lambda given: [given[0], given[0], given[1]], "stands there twice"),
    (Kind.QUEUE_ORDER, lambda given: [VICTIMS[0], "b", None], "'b' was not asked about"),
    (Kind.QUEUE_ORDER, lambda given: None, "None is no sequence"),
    (Kind.QUEUE_ORDER, lambda given: iter(lambda: given[0], None), "stands there twice"),  # without end
    (Kind.VICTIM_CHOICE, lambda given: given[1:], "1 of 3 are missing, such as a"),
    (Kind.VICTIM_CHOICE, lambda given: [*given, WAITING[0]], "stands there twice"),
    (Kind.BACKFILL, lambda given: "freely", "'freely' is no Passing"),
    (Kind.BACKFILL, lambda given: None, "None is no Passing"),
    (Kind.HOST_CHOICE, lambda given: [1.0, 2.0], "shape (2,) for 3 hosts"),
    (Kind.HOST_CHOICE, lambda given: np.zeros((3, 1)), "shape (3, 1) for 3 hosts"),
    (Kind.HOST_CHOICE, lambda given: [1.0, float("nan"), 2.0], "no number for 1 of 3 hosts, such as b"),
    (Kind.HOST_CHOICE, lambda given: given, "['a', 'b', 'c'] are no numbers"),
    (Kind.HOST_CHOICE, lambda given: [1.0, None, 2.0], "no number for 1 of 3 hosts, such as b"),
    (Kind.HOST_CHOICE, lambda given: None, "shape () for 3 hosts"),
]


@pytest.mark.parametrize(("kind", "saying", "said"), WRONG)
def test_a_wrong_answer_is_replaced(
    kind: Kind,
    saying: Callable[[Any], Any],
    said: str,
    bring: Bringing,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    bring(kind, "odd", Says)
    site = Site(kind)
    says(monkeypatch, saying)
    assert site.ask(kind) == DEFAULT_ANSWERS[kind]
    assert site.failures(kind, "answer") == 1
    [message] = messages(caplog)
    assert said in message
    good, made_of_it = GOOD_ANSWERS[kind]
    says(monkeypatch, good)
    assert site.ask(kind) == made_of_it


def test_a_changed_workspace_is_not_taken_over(bring: Bringing, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the order is a policy's to choose."""
    bring(Kind.QUEUE_ORDER, "odd", Says)
    site = Site(Kind.QUEUE_ORDER)
    says(
        monkeypatch,
        lambda given: [Waiting(uid=each.uid, tenant="t", since=NOW, nodes=0, duration=None) for each in given[::-1]],
    )
    ordered = site.policies.order.order(WAITING, NOW)
    assert [id(each) for each in ordered] == [id(each) for each in WAITING[::-1]]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("target", [Unmade, "no.such.module:Policy"])
def test_one_that_cannot_be_made_is_replaced(
    kind: Kind, target: type | str, bring: Bringing, caplog: pytest.LogCaptureFixture
) -> None:
    bring(kind, "odd", target)
    site = Site(kind)
    assert site.ask(kind) == DEFAULT_ANSWERS[kind]
    assert site.failures(kind, "error") == 1
    [message] = messages(caplog)
    assert "could not be made" in message
    assert "restart the broker" in message


def test_one_that_ends_its_thread_is_replaced(bring: Bringing) -> None:
    bring(Kind.BACKFILL, "odd", Exits)
    site = Site(Kind.BACKFILL)
    assert [site.ask(Kind.BACKFILL), site.ask(Kind.BACKFILL)] == [Passing.UNHURT] * 2
    assert site.failures(Kind.BACKFILL, "error") == 2


def test_a_thread_ends_with_its_policies(bring: Bringing) -> None:
    before = policy_threads()
    bring(Kind.VICTIM_CHOICE, "odd", Reversed)
    site = Site(Kind.VICTIM_CHOICE)
    assert site.ask(Kind.VICTIM_CHOICE) == "cba"
    [thread] = [thread for thread in policy_threads() if thread not in before]
    del site
    gc.collect()
    thread.join(timeout=30)
    assert not thread.is_alive()


# Host choice in placement --------------------------------------------------------------------------------------


class ByName:
    """The last name first; remembers what it was asked about."""

    def __init__(self) -> None:
        self.asked: list[tuple[list[str], dict[str, list[float]]]] = []

    def rank(self, hosts: Sequence[str], left: Any) -> Any:
        self.asked.append((list(hosts), {name: share.tolist() for name, share in left.items()}))
        return -np.arange(len(hosts), dtype=np.float64)


class Silent:
    """Never decided."""

    def rank(self, hosts: Sequence[str], left: Any) -> Any:
        raise Undecided


def three(choice: HostChoice | None) -> Any:
    """h1 half full, which packing fills first; h4 full."""
    lab = pool(hosts=[host(f"h{number}", memory=4096) for number in range(1, 5)], host_choice=choice)
    occupy(lab, "h1", 2048, end=None)
    occupy(lab, "h4", 4096, end=None)
    return lab


def test_the_pools_own_choice_says_which_host_is_best() -> None:
    assert placed(ask(nodes(memory=1024), at=three(None))) == [("h1",)]
    choice = ByName()
    assert placed(ask(nodes(memory=1024), at=three(choice))) == [("h3",)]
    assert choice.asked == [(["h1", "h2", "h3"], {"memory": [0.25, 0.75, 0.75]})]  # those that have room


def test_room_and_rules_stay_the_brokers() -> None:
    assert placed(ask(nodes(6, memory=1024), at=three(ByName()))) == [("h3",) * 4 + ("h2",) * 2]
    one_each = nodes(2, memory=1024, placement=Placement.ONE_PER_HOST)
    assert placed(ask(one_each, at=three(ByName()))) == [("h3", "h2")]
    excluded = nodes(memory=1024, excluded_hosts=frozenset({"h3"}))
    assert placed(ask(excluded, at=three(ByName()))) == [("h2",)]


@pytest.mark.parametrize("wish", [Placement.PACK, Placement.SPREAD])
def test_a_request_that_says_how_asks_no_policy(wish: Placement) -> None:
    choice = ByName()
    wanted = nodes(2, memory=1024, placement=wish)
    assert placed(ask(wanted, at=three(choice))) == placed(ask(wanted, at=three(None)))
    assert choice.asked == []


@pytest.mark.parametrize("count", [1, 3, 8])
def test_without_an_answer_hosts_are_packed(count: int) -> None:
    wanted = nodes(count, memory=1024)
    assert placed(ask(wanted, at=three(Silent()))) == placed(ask(wanted, at=three(None)))
