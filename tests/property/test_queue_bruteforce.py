"""The queue of a whole broker against a naive model (tests/support/queue_rules.py), on small pools and a manual clock.

Drawn are requests of all kinds that come over time, early ends, hosts that are lost and come back. The rules are
checked after every change; at the end everybody who waits must begin once there is nobody else.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backends import registry
from broker.config import QueueSettings, ServerSettings, Settings, TenantSettings
from broker.core.errors import BrokerError
from broker.core.model import NodeSet, State, Terms, Workspace
from broker.core.placement import Placement
from broker.core.requests import WorkspaceRequest
from broker.pool_settings import BreakerSettings, PoolSettings
from tests.support.queue_broker import MOMENT, QueueBroker, waits
from tests.support.queue_model import MOVING
from tests.support.queue_rules import Rules

EXAMPLES: Final = int(os.environ.get("QUEUE_EXAMPLES", "250"))
MINUTE: Final = timedelta(minutes=1)

TENANTS: Final = {
    "red": TenantSettings(name="red", max_priority=9),
    "green": TenantSettings(name="green", max_priority=9, share=3),
    "blue": TenantSettings(name="blue", max_priority=9, limits={"nodes": 4, "cpu": 4}),
}


# What is drawn ------------------------------------------------------------------------------------------------


@st.composite
def pool_settings(draw: st.DrawFn, name: str, hosts: int) -> PoolSettings:
    table = [
        {"name": f"{name}{number}", "cpu": draw(st.sampled_from([3, 4, 4])), "memory": draw(st.sampled_from([3, 4, 4]))}
        for number in range(hosts)
    ]
    lead = draw(st.sampled_from([0.0, 0.0, 30.0]))
    return PoolSettings(
        name=name,
        backend="simulator",
        backend_settings={"hosts": table, "delays": {"suspend_release": max(0.0, lead - 10.0)}},
        refresh_interval=3600.0,
        max_duration=None,
        placement=draw(st.sampled_from([Placement.PACK, Placement.SPREAD])),
        backfill=draw(st.sampled_from(["none", "aggressive", "conservative", "conservative"])),
        preemption_notice=draw(st.sampled_from([0.0, 0.0, 60.0])),
        suspend_lead=lead,
        measure_leads=False,
        end_warning=0.0,
        breaker=BreakerSettings(failures=10**9),
    )


@st.composite
def brokers(draw: st.DrawFn) -> Settings:
    hosts = draw(st.sampled_from([{"p": 1}, {"p": 2}, {"p": 1, "q": 1}, {"p": 2, "q": 1}]))
    return Settings(
        server=ServerSettings(),
        pools={name: draw(pool_settings(name, number)) for name, number in hosts.items()},
        tenants=TENANTS,
        queue=QueueSettings(
            order=draw(st.sampled_from(["fair-share", "fair-share", "arrival"])),
            starvation_limit=draw(st.sampled_from([10, 10, 30, 100_000])) * MINUTE,
            half_life=60 * MINUTE,
        ),
    )


@dataclass(frozen=True)
class Asked:
    """A request, in minutes from when it comes."""

    tenant: str
    nodes: int
    cpu: int
    memory: int
    pool: str
    duration: int | None
    patience: int | None  # how long it waits; None: not at all
    start: int | None  # a reservation
    earliest: int | None
    slack: int | None  # in a window
    preemptible: bool
    priority: int


@dataclass(frozen=True)
class End:
    """The owner of one that holds, waits or is reserved ends it."""

    which: int


@dataclass(frozen=True)
class Host:
    """A host is lost; or, if one is, it comes back."""

    which: int


Action = Asked | End | Host


@st.composite
def asked(draw: st.DrawFn) -> Asked:
    kind = draw(st.sampled_from(["queued"] * 8 + ["now", "reserved", "reserved", "window", "window", "later"]))
    small = draw(st.booleans())  # and short, so that it passes others
    duration = draw(st.sampled_from([5, 5, 10, 10, 15, 30] if small else [None, 10, 20, 30, 40, 50, 60]))
    if kind == "window":
        duration = duration or 10
    return Asked(
        tenant=draw(st.sampled_from(["red", "green", "blue"])),
        nodes=1 if small else draw(st.sampled_from([1, 1, 2])),
        cpu=1 if small else draw(st.sampled_from([1, 2, 2, 3, 4])),
        memory=draw(st.sampled_from([0, 0, 1] if small else [0, 1, 2, 3])),
        pool=draw(st.sampled_from(["p", "p", ""])),
        duration=duration,
        patience=draw(st.sampled_from([30, 300, 5000])) if kind in ("queued", "later") else None,
        start=draw(st.integers(1, 60)) if kind == "reserved" else None,
        earliest=draw(st.sampled_from([10, 30])) if kind == "later" else None,
        slack=draw(st.sampled_from([0, 5, 20, 90])) if kind == "window" else None,
        preemptible=draw(st.sampled_from([False, True] if kind == "window" else [False, False, True])),
        priority=draw(st.sampled_from([0, 0, 0, 1, -1])),
    )


@st.composite
def crowd(draw: st.DrawFn) -> Asked:
    """One of many who only wait for each other: nothing else moves their planned starts."""
    small = draw(st.booleans())
    return Asked(
        tenant="red",
        nodes=1 if small else draw(st.sampled_from([1, 1, 2])),
        cpu=draw(st.sampled_from([1, 2] if small else [1, 2, 3])),
        memory=draw(st.sampled_from([0, 1] if small else [1, 2, 3])),
        pool="p",
        duration=draw(st.sampled_from([5, 10, 15] if small else [10, 20, 40])),
        patience=5000,
        start=None,
        earliest=None,
        slack=None,
        preemptible=False,
        priority=0,
    )


@st.composite
def actions(draw: st.DrawFn) -> list[tuple[Action, int]]:
    """What is done, and how many minutes pass after it."""
    calm = draw(st.sampled_from([True, False, False]))
    kinds = ["ask"] * 9 + ["end"] if calm else ["ask"] * 9 + ["end", "end", "host"]
    found: list[tuple[Action, int]] = []
    for _ in range(draw(st.integers(10, 25))):
        kind = draw(st.sampled_from(kinds))
        action: Action
        if kind == "ask":
            action = draw(crowd() if calm else asked())
        elif kind == "end":
            action = End(draw(st.integers(0, 9)))
        else:
            action = Host(draw(st.integers(0, 5)))
        found.append((action, draw(st.sampled_from([0, 0, 0, 1, 5, 10, 30]))))
    return found


HAPPENS: Final = (
    "accepted for want of a reason to refuse",
    "began at once",
    "began from the queue",
    "began on the empty rest",
    "limits reached",
    "made to give way",
    "nor if others gave way",
    "passed somebody",
    "passed the first without hurting it",
    "plans of others kept, somebody began behind",
    "plans of the first kept, somebody began behind",
    "preemptions",
    "refused NEVER_FITS",
    "refused NO_CAPACITY",
    "refused QUOTA_EXCEEDED",
    "reservations in time",
    "reservations that lost a host",
    "the first does not fit",
    "waited in vain",
    "went on after giving way",
)
"""What a test that means something must have seen."""

HAPPENS_RARELY: Final = (
    "deadlines met after giving way",
    "plans of starved ones kept, room was promised",
    "spared",
)


# A run --------------------------------------------------------------------------------------------------------


class Run:
    """One broker, and what is done to it."""

    def __init__(self, configuration: Settings, seen: Counter[str], *, asks: bool) -> None:
        self.broker = QueueBroker(configuration, asks=asks)
        self.seen = seen
        self.pools = list(configuration.pools)

    def play(self, actions: Sequence[tuple[Action, int]]) -> None:
        try:
            self.broker.start()
            self.rules = Rules(self.broker, self.seen)
            for action, minutes in actions:
                if isinstance(action, Asked):
                    self._ask(action)
                elif isinstance(action, End):
                    self._end(action)
                else:
                    self._host(action)
                self.broker.advance(MOMENT + minutes * MINUTE)
            self._let_everybody_begin()
        except AssertionError as error:
            error.add_note("\n".join(self.rules.story[-40:]))
            raise
        finally:
            self.broker.stop()

    def _ask(self, asked: Asked) -> None:
        now = self.broker.now
        terms: dict[str, Any] = {"preemptible": asked.preemptible, "priority": asked.priority}
        terms |= {"open_ended": True} if asked.duration is None else {"duration": asked.duration * MINUTE}
        if asked.patience is not None:
            terms["queue_until"] = now + asked.patience * MINUTE
        if asked.start is not None:
            terms["start_time"] = now + asked.start * MINUTE
        if asked.earliest is not None:
            terms["earliest_start_time"] = now + asked.earliest * MINUTE
        if asked.slack is not None:
            terms["deadline"] = now + ((asked.duration or 0) + asked.slack) * MINUTE
        amounts = {"cpu": asked.cpu} | ({"memory": asked.memory} if asked.memory else {})
        wanted = WorkspaceRequest(
            node_sets=(NodeSet(name="n", count=asked.nodes, amounts=amounts),),
            terms=Terms(**terms),
            pool=asked.pool if asked.pool in self.pools else "",
        )
        self.rules.asks(asked.tenant, wanted)
        self._answered(wanted, self.broker.create(asked.tenant, wanted))

    def _answered(self, wanted: WorkspaceRequest, answer: Workspace | BrokerError) -> None:
        if isinstance(answer, BrokerError):
            self.seen[f"refused {answer.reason}"] += 1
            self.rules.refused(answer)
        else:
            self.seen[f"accepted {answer.state}"] += 1
            self.rules.accepted(answer)

    def _end(self, end: End) -> None:
        there = sorted(self.broker.records, key=lambda each: each.uid)
        if there:
            workspace = there[end.which % len(there)]
            if workspace.state is not State.TERMINATING:
                self.seen[f"ended early {workspace.state}"] += 1
                self.broker.end(workspace)

    def _host(self, host: Host) -> None:
        hosts = [(pool, name) for pool in self.pools for name in self.broker.totals(pool)]
        pool, name = min(self.broker.lost, default=hosts[host.which % len(hosts)])
        lost = (pool, name) not in self.broker.lost
        self.seen["hosts lost" if lost else "hosts back"] += 1
        self.rules.host_lost(pool, name)
        self.broker.set_lost(pool, name, lost)

    def _let_everybody_begin(self) -> None:
        """Hosts come back, and whoever holds anything ends, until nobody waits: each time somebody begins."""
        for pool, name in sorted(self.broker.lost):
            self.rules.host_lost(pool, name)
            self.broker.set_lost(pool, name, False)
        self.broker.advance(timedelta(minutes=10))  # what was told to end on a lost host ends now
        while there := self.broker.records:
            if any(node.state in MOVING for each in there for node in each.nodes):
                self.broker.advance(30 * MOMENT)
                continue
            waiting = [each for each in there if waits(each)]
            for each in there:
                if not waits(each) and each.state is not State.TERMINATING:
                    self.broker.end(each)
            early = [each for each in waiting if not self.rules.ready(each)]
            self.broker.advance(2 * MOMENT if len(early) < len(waiting) else timedelta(minutes=31))
            still = [each for each in self.broker.records if waits(each)]
            if len(early) < len(waiting):
                assert len(still) < len(waiting), f"nobody holds anything, and {[each.id for each in still]} wait"
                self.seen["began on the empty rest"] += len(waiting) - len(still)


@pytest.mark.timeout(600)
def test_the_queue_agrees_with_a_naive_model(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "load", cache(registry.load))  # it reads the metadata of every package
    seen: Counter[str] = Counter()

    @settings(
        max_examples=EXAMPLES, deadline=None, derandomize=EXAMPLES <= 100, suppress_health_check=list(HealthCheck)
    )
    @given(configuration=brokers(), done=actions(), asks=st.booleans())
    def check(configuration: Settings, done: list[tuple[Action, int]], asks: bool) -> None:
        seen["runs"] += 1
        Run(configuration, seen, asks=asks).play(done)

    check()
    with capsys.disabled():
        print("\nqueue:", "; ".join(f"{name} {times}" for name, times in sorted(seen.items())))
    wanted: Sequence[str] = HAPPENS if EXAMPLES < 1000 else (*HAPPENS, *HAPPENS_RARELY)
    assert not (missing := [name for name in wanted if not seen[name]]), missing
    wanted = (
        *("began from the queue", "began on the empty rest", "hosts lost", "made to give way", "plans kept"),
        *("passed somebody", "preemptions", "refused NEVER_FITS", "refused NO_CAPACITY", "reservations in time"),
        *("waited in vain", "went on after giving way"),
    )
    assert not (missing := [name for name in wanted if not seen[name]]), missing
