"""Small pools with leases of all kinds, and requests for which some of them may have to give way: values, drawn.

What is drawn need not fit: who wants leases that do drops those for which there is no room.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from hypothesis import strategies as st
from msgspec.structs import replace

from backends.base import HostState, Inventory, ObservedHost, ObservedNetwork
from broker.core.model import Node, NodeSet, Preemption, State, Terms, TypedValue, ValueKind, Workspace
from broker.core.placement import Placement, PlacementRequest, SetRequest, Window
from broker.pool_settings import PoolSettings
from broker.pools import PREEMPTION_NOTICE

NOW: Final = datetime(2026, 5, 4, 12, tzinfo=UTC)
MINUTE: Final = timedelta(minutes=1)
INSTANT: Final = timedelta(microseconds=1)
OF_HOST: Final = ("cpu", "memory", "disk")
ADDRESS: Final = "address:lan"

CAN: Final = frozenset({"STARTING", "RUNNING", "PAUSED", "SUSPENDED", "STOPPED", "SAVING"})
"""States in which a drawn lease can be told to give way."""


def at(minutes: int | None) -> datetime | None:
    """So many minutes after now."""
    return None if minutes is None else NOW + minutes * MINUTE


def minutes(instant: datetime | None) -> float | None:
    """How many minutes after now."""
    return None if instant is None else (instant - NOW) / MINUTE


@dataclass(frozen=True, repr=False)
class Case:
    """Pools, leases, and what is asked."""

    settings: Mapping[str, PoolSettings]
    inventories: Mapping[str, Inventory]
    measured: bool
    records: tuple[Workspace, ...]
    request: PlacementRequest
    window: Window

    def __repr__(self) -> str:
        """In few words, for whoever has to find out why."""
        lines = [
            f"{name}: {dict(self.totals(name))} notice={each.preemption_notice} suspend={each.suspend_lead} "
            f"lead={each.start_lead} preemption={each.preemption} victims={each.victims}"
            for name, each in self.settings.items()
        ]
        for each in self.records:
            nodes = [f"{node.pool}/{node.host}{' released' * node.released}" for node in each.nodes]
            held = {**each.nodes[0].held, **each.nodes[0].pool_held} if each.nodes else {}
            lines.append(
                f"{each.uid} {each.state} preemptible={each.terms.preemptible} {each.terms.priority} {nodes} {held} "
                f"{minutes(each.start_time)}..{minutes(each.end_time)} "
                f"free={minutes(each.preemption.free_time) if each.preemption else None} {dict(each.parameters)}"
            )
        for wanted in self.request.sets:
            lines.append(
                f"wanted {wanted.least}..{wanted.count} of {dict(wanted.amounts)} {dict(wanted.networks)} "
                f"{wanted.placement} in {wanted.pool}"
            )
        window = self.window
        lines.append(
            f"in {self.request.pool} of {self.request.allowed_pools}, from {minutes(window.start)}.."
            f"{minutes(window.latest_start)} for {window.duration} {window.immediate=}"
        )
        return "\n  ".join(["", *lines])

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(repr(self))

    def totals(self, pool: str) -> dict[str, Mapping[str, int]]:
        """What there is, by host, and of the pool."""
        inventory = self.inventories[pool]
        assert inventory.networks is not None
        hosts: dict[str, Mapping[str, int]] = {host.name: host.total for host in inventory.hosts}
        return {**hosts, "": {ADDRESS: inventory.networks[0].total_addresses or 0}}

    def lead(self, pool: str) -> timedelta:
        return timedelta(seconds=self.settings[pool].start_lead)

    def suspending(self, workspace: Workspace) -> timedelta:
        return max(timedelta(seconds=self.settings[node.pool].suspend_lead) for node in workspace.nodes)

    def needs(self, workspace: Workspace) -> timedelta:
        """Its notice, and what it takes it to let go."""
        notice = max(timedelta(seconds=self.settings[node.pool].preemption_notice) for node in workspace.nodes)
        own = workspace.parameters.get(PREEMPTION_NOTICE)
        if own is not None:
            assert isinstance(own.value, float)
            notice = max(notice, timedelta(seconds=own.value))
        return notice + self.suspending(workspace)


POOL_NAMES: Final = st.sampled_from([("p",), ("p",), ("p", "q")])
STATES: Final = ["RUNNING"] * 9 + ["STARTING", "PAUSED", "SUSPENDED", "STOPPED", "RESERVED", "RESERVED"]
RARE_STATES: Final = ["RELEASED", "PENDING", "TERMINATING", "TERMINATED", "SAVING"]


@st.composite
def pool_settings(draw: st.DrawFn, name: str) -> PoolSettings:
    return PoolSettings(
        name=name,
        backend="simulator",
        placement=draw(st.sampled_from([Placement.PACK, Placement.SPREAD])),
        preemption=draw(st.sampled_from([True] * 11 + [False])),
        preemption_notice=draw(st.sampled_from([0.0, 0.0, 60.0, 120.0])),
        suspend_lead=draw(st.sampled_from([0.0, 0.0, 60.0])),
        start_lead=draw(st.sampled_from([0.0, 0.0, 60.0])),
        victims=draw(st.sampled_from(["youngest", "youngest", "smallest"])),
        max_duration=None,
    )


@st.composite
def inventories(draw: st.DrawFn, name: str, most: int) -> Inventory:
    hosts = tuple(
        ObservedHost(
            name=f"{name}{number}",
            state=HostState.ACTIVE,
            total={
                "cpu": draw(st.integers(3, 5)),
                "memory": draw(st.integers(4, 7)),
                "disk": draw(st.sampled_from([3, 9, 9])),
            },
        )
        for number in range(draw(st.integers(1, most)))
    )
    network = ObservedNetwork(name="lan", total_addresses=draw(st.sampled_from([3, 9, 9])))
    return Inventory(hosts=hosts, nodes=(), networks=(network,))


@st.composite
def leases(draw: st.DrawFn, number: int, hosts: Sequence[tuple[str, str]], crowd: bool) -> Workspace:
    """One lease; its state and times go together. A crowd are many small ones that do not end soon."""
    word = "RUNNING" if crowd else draw(st.sampled_from([*STATES, draw(st.sampled_from(RARE_STATES))]))
    state = State.SUSPENDED if word == "RELEASED" else State[word]
    start = draw(st.integers(1, 6)) if state is State.RESERVED else draw(st.integers(-9, 0))
    end = draw(st.sampled_from([None, 13] if crowd else [None, None, *range(max(start, -1) + 1, 14)]))
    held = {
        "cpu": 1 if crowd else draw(st.sampled_from([1, 1, 2, 3])),
        "memory": draw(st.integers(0, 2)),
        "disk": draw(st.integers(0, 1)),
    }
    pool_held = {ADDRESS: 1} if draw(st.booleans()) else {}
    first = (number + draw(st.integers(0, 1))) % len(hosts)  # in turn, so that all hosts fill up
    places = [hosts[first], draw(st.sampled_from(hosts))][: draw(st.sampled_from([1, 1, 2]))]
    preemptible = draw(st.sampled_from([True, True, True, True, False]))
    preemption = None
    if preemptible and word in CAN and draw(st.integers(0, 7)) == 0:
        free = draw(st.integers(0, 5))
        if end is None or free < end:
            told = NOW + free * MINUTE
            preemption = Preemption(by="other", notice_time=NOW, begin_time=told, free_time=told)
    own_notice = draw(st.sampled_from([0.0] * 7 + [180.0]))
    return Workspace(
        uid=f"w{number}",
        tenant="t",
        id=f"w{number}",
        create_time=NOW + min(start, 0) * MINUTE,
        node_sets=(NodeSet(amounts=held),),
        terms=Terms(preemptible=preemptible, priority=draw(st.sampled_from([0, 0, 0, 1, -1]))),
        parameters={PREEMPTION_NOTICE: TypedValue(kind=ValueKind.DURATION, value=own_notice)} if own_notice else {},
        state=state,
        nodes=()
        if state is State.PENDING
        else tuple(
            Node(
                index=index,
                set_index=0,
                pool=pool,
                host=host,
                held=held,
                pool_held=pool_held,
                state=state,
                released=word == "RELEASED",
            )
            for index, (pool, host) in enumerate(places)
        ),
        waiting_since=NOW if state is State.PENDING else None,
        start_time=at(start),
        actual_start_time=None if state is State.RESERVED else at(start),
        end_time=at(end),
        preemption=preemption,
        revision=number + 1,
    )


@st.composite
def requests(draw: st.DrawFn, pools: Sequence[str]) -> PlacementRequest:
    sets = [
        SetRequest(
            name=f"s{number}",
            count=(count := draw(st.sampled_from([1, 1, 2, 3]))),
            min_count=draw(st.sampled_from([0, 0, 0, 1])) if count > 1 else 0,
            amounts={
                "cpu": draw(st.integers(1, 3)),
                "memory": draw(st.integers(0, 2)),
                "disk": draw(st.integers(0, 1)),
            },
            networks={"lan": draw(st.sampled_from([0, 0, 1]))},
            pool=draw(st.sampled_from([None, None, None, *pools])),
        )
        for number in range(draw(st.sampled_from([1, 1, 1, 2])))
    ]
    if draw(st.integers(0, 3)) == 0:
        sets[-1] = replace(sets[-1], placement=Placement.ONE_PER_HOST)
    if any(each.pool for each in sets) or draw(st.integers(0, 3)):
        return PlacementRequest(sets=tuple(sets), pool=draw(st.sampled_from([None, None, *pools])))
    return PlacementRequest(sets=tuple(sets), allowed_pools=frozenset(pools[:1]))


@st.composite
def windows(draw: st.DrawFn) -> Window:
    """For now, for later, or in a window."""
    length = draw(st.one_of(st.none(), st.integers(1, 6), st.integers(1, 6)))
    common: dict[str, Any] = {"duration": None if length is None else length * MINUTE, "open_ended": length is None}
    kind = draw(st.sampled_from(["now", "now", "later", "later", "window"]))
    if kind == "now":
        return Window(start=NOW, immediate=True, **common)
    start = draw(st.integers(1, 6)) if kind == "later" else draw(st.integers(0, 4))
    if kind == "later":
        return Window(start=NOW + start * MINUTE, **common)
    return Window(start=NOW + start * MINUTE, latest_start=NOW + (start + draw(st.integers(1, 5))) * MINUTE, **common)
