"""Whether what runs at a front-end is what the broker says: the one told by pyone, the other by the API.

Responsible for naming every difference. Invariant: no figure of the broker's stands for one of the front-end's; both
are read anew. Corrects nothing, and waits for nothing.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, cast

import pyone
from workspacebroker.v1.resources_pb2 import Host, Node, Workspace

from clients.names import FINAL, State, host_name, pool_name, state_word, tenant_name
from clients.sdk import Client

TAG: Final = "WORKSPACE_BROKER"
POOL: Final = "one"
PAGE: Final = 500

# What OpenNebula calls a VM whose node is in a state: its state, and its LCM state where that counts.
_LOOKS: Final[Mapping[Workspace.State, frozenset[tuple[int, int]]]] = {
    Workspace.STATE_RUNNING: frozenset({(3, 3)}),
    Workspace.STATE_SUSPENDED: frozenset({(5, 0), (4, 0)}),
    Workspace.STATE_STOPPED: frozenset({(8, 0), (9, 0)}),
}
_EVERY: Final = cast("tuple[State, ...]", tuple(State.values()[1:]))
_LET_GO: Final = frozenset({4, 9})  # STOPPED and UNDEPLOYED have no host

Key = tuple[str, int]
"""A node: its workspace's uid, and its index."""

Amounts = tuple[int, int]
"""Milli-cores and MiB."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenVm:
    """One VM that is not DONE, as pyone shows it."""

    vm_id: str
    name: str
    broker: str
    key: Key | None
    look: tuple[int, int]
    host: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontEnd:
    """What there is at the front-end."""

    vms: tuple[SeenVm, ...]
    used: Mapping[str, Amounts]
    size: Mapping[str, Amounts]

    def overbooked(self) -> list[str]:
        """Hosts that hold more than they have."""
        return [
            f"{host} holds {self.used[host]} of {size} (milli-cores, MiB)"
            for host, size in self.size.items()
            if any(used > limit for used, limit in zip(self.used[host], size, strict=True))
        ]

    def doubled(self) -> list[str]:
        """Nodes with more than one VM."""
        counts = Counter(vm.key for vm in self.vms if vm.key is not None)
        return [f"node {key} has {count} VMs" for key, count in counts.items() if count > 1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """What the broker shows."""

    nodes: Mapping[Key, Node]
    amounts: Mapping[Key, Amounts]
    hosts: tuple[Host, ...]
    strays: tuple[str, ...] = ()
    unsettled: tuple[str, ...] = field(default=())


class Observer:
    """pyone's view of a front-end, straight and not through a broker."""

    def __init__(self, endpoint: str, session: str) -> None:
        self._one: Any = pyone.OneServer(endpoint, session=session)

    def look(self) -> FrontEnd:
        """Everything that is not DONE."""
        hosts = self._one.hostpool.info().HOST
        return FrontEnd(
            vms=tuple(_seen(vm) for vm in self._one.vmpool.infoextended(-2, -1, -1, -1).VM),
            used={host.NAME: (host.HOST_SHARE.CPU_USAGE * 10, host.HOST_SHARE.MEM_USAGE // 1024) for host in hosts},
            size={host.NAME: (host.HOST_SHARE.TOTAL_CPU * 10, host.HOST_SHARE.TOTAL_MEM // 1024) for host in hosts},
        )

    def ever(self) -> Iterator[SeenVm]:
        """Every VM there ever was, those that are DONE, too."""
        start = 0
        while vms := self._one.vmpool.infoextended(-2, start, start + PAGE - 1, -2).VM:
            yield from map(_seen, vms)
            start += PAGE


def _seen(vm: Any) -> SeenVm:
    tag = vm.USER_TEMPLATE.get(TAG)
    history = vm.HISTORY_RECORDS.HISTORY if vm.HISTORY_RECORDS is not None else []
    return SeenVm(
        vm_id=str(vm.ID),
        name=vm.NAME,
        broker=tag["BROKER"] if tag else "",
        key=(tag["WORKSPACE"], int(tag["NODE"])) if tag else None,
        look=(vm.STATE, vm.LCM_STATE if vm.STATE == 3 else 0),
        host=history[-1].HOSTNAME if history and vm.STATE not in _LET_GO else "",
    )


def shown(client: Client) -> Shown:
    """What the broker says there is."""
    nodes: dict[Key, Node] = {}
    amounts: dict[Key, Amounts] = {}
    unsettled = []
    for workspace in client.workspaces(tenant_name("-"), states=_EVERY):
        for node in workspace.nodes:
            if node.state in FINAL:
                continue
            key = (workspace.uid, node.index)
            wanted = next(each for each in workspace.node_sets if each.name == node.node_set).amounts.amounts
            nodes[key], amounts[key] = node, (wanted["cpu"], wanted["memory"])
            if node.state not in _LOOKS:
                unsettled.append(f"{workspace.name} node {node.index} is {state_word(node.state)}")
    return Shown(
        nodes=nodes,
        amounts=amounts,
        hosts=tuple(client.hosts(pool_name(POOL))),
        strays=tuple(stray.backend_id for stray in client.strays(pool_name(POOL))),
        unsettled=tuple(unsettled),
    )


def differences(front: FrontEnd, broker: Shown) -> list[str]:
    """What is not as it should be; nothing if VMs = nodes, none doubled, none lost, and held = sum of live nodes."""
    found = [*broker.unsettled, *front.overbooked(), *front.doubled()]
    found += [f"VM {vm} is shown as a stray" for vm in broker.strays]
    by_key: defaultdict[Key | None, list[SeenVm]] = defaultdict(list)
    for vm in front.vms:
        by_key[vm.key].append(vm)
        if vm.key is None or vm.key not in broker.nodes:
            found.append(f"VM {vm.vm_id} ({vm.name}) of node {vm.key} in {vm.look} belongs to no live node")
    for key, node in broker.nodes.items():
        vms = by_key[key]
        if not vms:
            found.append(f"node {key} ({state_word(node.state)}, VM {node.backend_id}) is lost")
        for vm in vms:
            found += _of_node(key, node, vm)
    if len(front.vms) != len(broker.nodes):
        found.append(f"{len(front.vms)} VMs at the front-end, {len(broker.nodes)} nodes at the broker")
    return [*found, *_of_capacity(front, broker)]


def _of_node(key: Key, node: Node, vm: SeenVm) -> Iterator[str]:
    if node.backend_id != vm.vm_id:
        yield f"node {key} is VM {node.backend_id} at the broker, and {vm.vm_id} bears its tag"
    if vm.look not in _LOOKS.get(node.state, {vm.look}):
        yield f"node {key} is {state_word(node.state)} at the broker, and VM {vm.vm_id} is in {vm.look}"
    if vm.host and host_name(f"{POOL}/{vm.host}") != node.host:
        yield f"node {key} is on {node.host} at the broker, and VM {vm.vm_id} on {vm.host}"
    if node.capacity_released is not (vm.host == ""):
        yield f"node {key} has its capacity released: {node.capacity_released}; VM {vm.vm_id} is in {vm.look}"


def _of_capacity(front: FrontEnd, broker: Shown) -> Iterator[str]:
    """Held in the slot table = sum of the live nodes = used at the front-end, host by host."""
    live: defaultdict[str, Amounts] = defaultdict(lambda: (0, 0))
    for key, node in broker.nodes.items():
        if not node.capacity_released:
            live[node.host] = _sum(live[node.host], broker.amounts[key])
    for host in broker.hosts:
        held = (0, 0)
        for slot in host.slots:
            held = _sum(held, (slot.amounts.amounts["cpu"], slot.amounts.amounts["memory"]))
        used = front.used[host.name.rpartition("/")[2]]
        if not held == live[host.name] == used:
            yield f"{host.name}: slots hold {held}, its live nodes {live[host.name]}, the front-end {used}"
        if any(host.foreign.amounts[resource] for resource in ("cpu", "memory")):
            yield f"{host.name}: the broker counts {dict(host.foreign.amounts)} as foreign"


def _sum(one: Amounts, other: Amounts) -> Amounts:
    return one[0] + other[0], one[1] + other[1]
