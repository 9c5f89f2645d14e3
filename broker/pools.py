"""A pool: one backend, its slots, and what was last seen of it.

Invariants: placement is decided on what stands here and in the book, without asking a backend; silence changes
nothing but `reachable`; a host that left the inventory keeps its slots. Which pool takes a request is decided in
core/placement.py, from the snapshots made here.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Final

from msgspec.structs import replace

from backends.base import (
    Action,
    AttributeValue,
    Backend,
    HostState,
    Inventory,
    ObservedHost,
    ObservedNode,
    ParameterKind,
    ParameterSpec,
)
from broker.book import Book
from broker.core.clock import Clock
from broker.core.durations import Durations
from broker.core.errors import Failure
from broker.core.inventory import HostInventory, HostRecord, PoolSnapshot
from broker.core.inventory import HostState as HostUse
from broker.core.policies import HostChoice
from broker.core.slots import POOL_ROW, SlotTable
from broker.pool_settings import PoolSettings

PREEMPTION_NOTICE: Final = "core:preemption_notice"

CORE_PARAMETERS: Final = (
    ParameterSpec(
        key=PREEMPTION_NOTICE,
        kind=ParameterKind.DURATION,
        description="how long before it has to give way a preemptible workspace is told",
    ),
)
"""The broker's own parameters, which every pool understands."""


def draining_key(pool: str) -> str:
    """The book's setting that says a pool admits nothing new."""
    return f"draining/{pool}"


def cordon_key(pool: str, host: str) -> str:
    """The book's setting that says a host takes nothing new."""
    return f"cordon/{pool}/{host}"


class Pool:
    """One named pool. Changed by the engine and by operators' calls, read by everyone."""

    def __init__(
        self,
        settings: PoolSettings,
        backend: Backend,
        book: Book,
        clock: Clock,
        *,
        host_choice: HostChoice | None = None,
    ) -> None:
        self.name = settings.name
        self.settings = settings
        self.backend = backend
        self.reachable = asyncio.Event()
        self.inventory: Inventory | None = None
        self.refresh_time: datetime | None = None
        self.last_error: Failure | None = None
        self.strays: dict[str, tuple[ObservedNode, datetime]] = {}  # by backend id, with when it was found
        self._book = book
        self._clock = clock
        self._host_choice = host_choice
        self._hosts: HostInventory | None = None
        self._host_cordons: frozenset[str] = frozenset()
        self.hosts_version = 0
        """Grows with every look that found other hosts, or hosts in another state."""
        self._changes = 0  # of what a snapshot shows, but for slots, settings and silence
        self._snapshot: tuple[tuple[int, int, bool], PoolSnapshot] | None = None  # the last, and what it was made from
        self._known: dict[str, ObservedHost] = {}
        self.durations = Durations()
        """How long actions took here."""
        self.tightened: set[str] = set()
        """Hosts that were found to have less room than before, until somebody has seen to it."""

    @property
    def slots(self) -> SlotTable:
        """Who holds what on its hosts."""
        return self._book.slots[self.name]

    @property
    def generation(self) -> int:
        """Grows with every change of inventory or allocation."""
        return self._book.generations[self.name]

    @property
    def draining(self) -> bool:
        """Whether it admits no new workspace, on an operator's word."""
        return draining_key(self.name) in self._book.settings

    def cordoned(self, host: str) -> bool:
        """Whether a host takes nothing new, on an operator's word."""
        return cordon_key(self.name, host) in self._book.settings

    @property
    def start_lead(self) -> timedelta:
        """How long before a promised start work begins."""
        return self.durations.expected(Action.CREATE, self.settings.start_lead)

    @property
    def suspend_lead(self) -> timedelta:
        """How long it takes until a node that is suspended has given its capacity back."""
        return self.durations.expected(Action.SUSPEND_RELEASE, self.settings.suspend_lead)

    @property
    def parameter_specs(self) -> list[ParameterSpec]:
        """The scheduler parameters it understands."""
        return [*CORE_PARAMETERS, *(spec for spec in self.backend.parameter_specs if not spec.refused)]

    @property
    def refused_parameters(self) -> dict[str, str]:
        """Keys, in lower case, that it refuses by name, and what to use instead."""
        return {spec.key.lower(): spec.refused for spec in self.backend.parameter_specs if spec.refused}

    @property
    def hosts(self) -> dict[str, ObservedHost]:
        """The hosts as last seen, by name."""
        return self._known

    def learn(self, inventory: Inventory, now: datetime) -> None:
        """Takes in a complete look at the backend."""
        changed = self.inventory is None or (
            inventory.hosts != self.inventory.hosts
            or inventory.pool_totals != self.inventory.pool_totals
            or inventory.pool_foreign != self.inventory.pool_foreign
            or inventory.networks != self.inventory.networks
        )
        self.inventory = inventory
        self._changes += 1
        self.refresh_time = now
        self.last_error = None
        if changed:
            before, self._known = self._known, {host.name: host for host in inventory.hosts}
            self.tightened.update(name for name, host in self._known.items() if _less(host, before.get(name)))
            self.hosts_version += 1
            self._hosts = None
            self._book.generations[self.name] += 1

    def learn_strays(self, strays: dict[str, tuple[ObservedNode, datetime]]) -> None:
        """Takes in the VMs that bear this broker's tag and belong to no live node: they hold room like strangers'."""
        if strays.keys() != self.strays.keys():
            self._hosts = None
            self._book.generations[self.name] += 1
        self.strays = strays
        self._changes += 1

    def foreign(self, host: ObservedHost) -> dict[str, int]:
        """What is held of a host by VMs that are no live nodes of this broker."""
        held = Counter(host.foreign)
        for stray, _ in self.strays.values():
            if stray.host == host.name:
                held.update(stray.amounts)
        return dict(held)

    def promised(self, host: ObservedHost) -> dict[str, int]:
        """What may be promised of a host: the reserve taken off, overcommit put on."""
        reserve, overcommit = self.settings.reserve, self.settings.overcommit
        return {
            name: int(max(0, amount - reserve.get(name, 0)) * overcommit.get(name, 1.0))
            for name, amount in host.total.items()
        }

    def _inventory_arrays(self) -> HostInventory:
        """The hosts as arrays, made once for each change of inventory or cordon."""
        prefix = cordon_key(self.name, "")
        cordons = frozenset(key[len(prefix) :] for key in self._book.settings if key.startswith(prefix))
        if self._hosts is None or cordons != self._host_cordons:
            self._host_cordons = cordons
            self._hosts = HostInventory.build(
                HostRecord(
                    name=host.name,
                    total=self.promised(host),
                    foreign=self.foreign(host),
                    state=HostUse.CORDONED if host.name in cordons else HostUse[host.state.name],
                    attributes=host.attributes,
                )
                for host in self._known.values()
            )
        return self._hosts

    def pool_amounts(self) -> tuple[dict[str, int], dict[str, int]]:
        """What belongs to the pool as a whole, and what others hold of it: shared disk, addresses of networks."""
        if self.inventory is None:
            return {}, {}
        totals, foreign = dict(self.inventory.pool_totals), Counter(self.inventory.pool_foreign)
        for network in self.inventory.networks or ():
            if network.total_addresses is not None:
                totals[f"address:{network.name}"] = network.total_addresses
                foreign[f"address:{network.name}"] = network.foreign_addresses
        for stray, _ in self.strays.values():
            foreign.update(f"address:{nic.network}" for nic in stray.nics)
            foreign.update(
                {name: amount for name, amount in stray.amounts.items() if name in self.inventory.pool_totals}
            )
        return totals, foreign

    def snapshot(self, now: datetime) -> PoolSnapshot:
        """The pool as placement sees it at an instant; it shares the slot table and copies nothing.

        All but the instant and the generation is put together once, until something of it changes.
        """
        made_from = (self._changes, self._book.settings_version, self.reachable.is_set())
        if self._snapshot is None or self._snapshot[0] != made_from:
            self._snapshot = (made_from, self._new_snapshot(now))
        return replace(self._snapshot[1], now=now, generation=self.generation, lead=self.start_lead)

    def _new_snapshot(self, now: datetime) -> PoolSnapshot:
        inventory = self.inventory
        totals, foreign = self.pool_amounts()
        images: Mapping[str, Mapping[str, AttributeValue]] | None = None
        if inventory is not None and inventory.images is not None:
            images = {image.name: image.attributes for image in inventory.images if image.ready}
        return PoolSnapshot(
            name=self.name,
            hosts=self._inventory_arrays(),
            slots=self.slots,
            now=now,
            pool_totals=totals,
            pool_foreign=foreign,
            memory_overhead=self.settings.memory_overhead,
            images=images,
            networks=None
            if inventory is None or inventory.networks is None
            else frozenset(network.name for network in inventory.networks),
            capabilities=frozenset(capability.value for capability in self.backend.capabilities),
            parameters=frozenset(spec.key for spec in self.parameter_specs),
            required_parameters=frozenset(spec.key for spec in self.parameter_specs if spec.required),
            draining=self.draining,
            reachable=self.reachable.is_set(),
            ever_read=inventory is not None,
            preference=self.settings.preference,
            policy=self.settings.placement,
            host_choice=self._host_choice,
            default_duration=self.settings.default_duration,
            max_duration=self.settings.max_duration,
        )

    def room(self, host: str, amounts: Mapping[str, int], start: datetime, end: datetime | None, now: datetime) -> str:
        """Empty if a host (or the pool, POOL_ROW) has room for amounts over [start, end), else what lacks, in words."""
        if host == POOL_ROW:
            totals, foreign = self.pool_amounts()
            known: Mapping[str, int] = totals
        else:
            seen = self._known.get(host)
            known = self.promised(seen) if seen is not None else {}
            foreign = self.foreign(seen) if seen is not None else {}
        row = self.slots.host_row(host)
        columns = {name: self.slots.column(name) for name in amounts}
        peak = self.slots.peak(start, end, now)
        for name, amount in amounts.items():
            held = int(peak[columns[name], row])
            free = known.get(name, 0) - foreign.get(name, 0) - held
            if amount > free:
                where = f"host {host}" if host != POOL_ROW else f"pool {self.name}"
                since = start.isoformat(timespec="seconds")
                return f"{name}: {amount} asked, {max(0, free)} free on {where} from {since} on"
        return ""

    def usable(self, host: str) -> bool:
        """Whether a host is there and takes new nodes."""
        known = self._known.get(host)
        return known is not None and known.state is HostState.ACTIVE and not self.cordoned(host)


def _less(host: ObservedHost, before: ObservedHost | None) -> bool:
    """Whether there is less room on a host than before, or more of it in strangers' hands."""
    if before is None or host is before:
        return False
    return any(
        host.total.get(name, 0) - host.foreign.get(name, 0) < total - before.foreign.get(name, 0)
        for name, total in before.total.items()
    )
