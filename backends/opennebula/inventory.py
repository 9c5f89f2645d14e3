"""What a pool has to give: hosts, disk, images and networks, and how much of them is held by others.

Responsible for every sum. Invariants: capacity held by others is added up per host from the VMs that do not
bear this broker's identity, in the VM document itself, and never as "the host's usage minus ours", since
those two are read at two moments; a host that reports nothing (just enabled) keeps the figures it last had
and takes nothing new.

It reads nothing; `Reading` is what was read.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from backends.base import AttributeValue, HostState, ObservedHost, ObservedImage, ObservedNetwork
from backends.opennebula import states
from backends.opennebula.documents import Datastore, Host, Image, Network, Vm
from backends.opennebula.names import Names
from backends.opennebula.settings import Settings

# Attributes of a host that say nothing about it to whoever chooses one.
_NOT_ATTRIBUTES: Final = frozenset(
    {"error", "im_mad", "vm_mad", "reserved_cpu", "reserved_mem", "totalcpu", "totalmemory", "hostname"}
)
_IMAGE_READY: Final = frozenset({1, 2})  # READY, USED; a persistent image in use (8) serves one VM only


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One look at a front-end. `hosts` are those of the pool, `all_hosts` whether the session saw any."""

    hosts: tuple[Host, ...]
    vms: tuple[Vm, ...]
    images: tuple[Image, ...]
    networks: tuple[Network, ...]
    datastores: tuple[Datastore, ...]
    clusters: frozenset[int]
    saw_hosts: bool


def in_cluster(hosts: Iterable[Host], cluster: str) -> tuple[Host, ...]:
    """The hosts of a cluster, by its name or id; all of them if none is named."""
    return tuple(host for host in hosts if not cluster or cluster == host.cluster or cluster == str(host.cluster_id))


def narrowed(reading: Reading) -> Reading:
    """Without the images, networks and datastores that no host of the pool's clusters can use."""
    reachable = {
        store.datastore_id for store in reading.datastores if store.clusters & reading.clusters or not store.clusters
    }
    return Reading(
        hosts=reading.hosts,
        vms=reading.vms,
        images=tuple(image for image in reading.images if image.datastore_id in reachable),
        networks=tuple(network for network in reading.networks if network.clusters & reading.clusters),
        datastores=tuple(store for store in reading.datastores if store.datastore_id in reachable),
        clusters=reading.clusters,
        saw_hosts=reading.saw_hosts,
    )


def is_ours(vm: Vm, broker_id: str) -> bool:
    return vm.identity is not None and vm.identity.broker_id == broker_id


def _beyond(used: int, ours: int, foreign: int) -> int:
    """What others hold of something the front-end counts as a whole, at another moment than the VMs were
    read.

    Never less than what foreign VMs are seen to hold, and whatever else is in use (files, reservations,
    leases on hold) on top. A VM of ours that ended in between is taken for a stranger's until the next look.
    """
    return max(foreign, used - ours)


class Accountant:
    """Adds up readings of one pool; remembers the last figures of each host."""

    def __init__(self, settings: Settings, broker_id: str) -> None:
        self._settings = settings
        self._broker_id = broker_id
        self._figures: dict[str, tuple[int, int, int]] = {}

    def hosts(self, reading: Reading) -> tuple[ObservedHost, ...]:
        foreign: dict[str, dict[str, int]] = defaultdict(lambda: {"cpu": 0, "memory": 0, "disk": 0})
        for vm in reading.vms:
            if states.holds_host(vm.state) and not is_ours(vm, self._broker_id):
                held = foreign[vm.host]
                held["cpu"] += vm.cpu
                held["memory"] += vm.memory
                held["disk"] += vm.disk
        by_host = not self.disk_is_shared(reading)
        return tuple(self._host(host, foreign[host.name], by_host) for host in reading.hosts)

    def _host(self, host: Host, foreign: Mapping[str, int], with_disk: bool) -> ObservedHost:
        state, word = states.host_state(host.state)
        message = "" if state is HostState.ACTIVE else ": ".join(filter(None, (word, host.error)))
        reported = host.cpu > 0 and host.memory > 0
        if reported:
            self._figures[host.name] = (host.cpu, host.memory, host.disk)
        elif state is HostState.ACTIVE:
            state, message = HostState.DISABLED, f"{word}, but it reports no capacity yet"
        cpu, memory, disk = self._figures.get(host.name, (0, 0, 0))
        names = ("cpu", "memory", "disk") if with_disk and disk > 0 else ("cpu", "memory")
        total = {"cpu": cpu, "memory": memory, "disk": disk}
        return ObservedHost(
            name=host.name,
            state=state,
            total={name: total[name] for name in names},
            foreign={name: foreign[name] for name in names},
            attributes=_attributes(host),
            message=message,
        )

    def disk_is_shared(self, reading: Reading) -> bool:
        """Whether disk is the pool's: as the operator says, else as the system datastores say of themselves."""
        if self._settings.shared_storage is not None:
            return self._settings.shared_storage
        return any(store.shared for store in self._system_stores(reading))

    def pool_disk(self, reading: Reading) -> tuple[dict[str, int], dict[str, int]]:
        """Total and foreign disk of the pool: of its system datastores, where they are shared."""
        stores = self._system_stores(reading)
        total = sum(store.total for store in stores)
        if not self.disk_is_shared(reading) or total <= 0:
            return {}, {}
        ours = sum(vm.disk for vm in reading.vms if is_ours(vm, self._broker_id))
        foreign = sum(vm.disk for vm in reading.vms if not is_ours(vm, self._broker_id))
        return {"disk": total}, {"disk": _beyond(sum(store.used for store in stores), ours, foreign)}

    def _system_stores(self, reading: Reading) -> list[Datastore]:
        chosen = self._settings.datastore
        return [
            store
            for store in reading.datastores
            if store.system and store.enabled and (chosen < 0 or store.datastore_id == chosen)
        ]

    def networks(self, reading: Reading, names: Names[Network]) -> tuple[ObservedNetwork, ...]:
        ours: dict[int, int] = defaultdict(int)
        foreign: dict[int, int] = defaultdict(int)
        for vm in reading.vms:
            for nic in vm.nics:
                (ours if is_ours(vm, self._broker_id) else foreign)[nic.network_id] += 1
        return tuple(
            ObservedNetwork(
                name=name,
                display_name=network.name,
                total_addresses=network.size,
                foreign_addresses=_beyond(network.used, ours[network.network_id], foreign[network.network_id]),
            )
            for name, network in names.shown.items()
        )

    def warnings(self, reading: Reading, images: Names[Image], networks: Names[Network]) -> tuple[str, ...]:
        """What an operator should know."""
        found: list[str] = []
        if not reading.saw_hosts:
            found.append(
                "OpenNebula shows this session no host: either there is none, or its user is no administrator, who "
                "gets an empty pool and no error; deploying and migrating need ADMIN rights"
            )
        elif not reading.hosts:
            found.append(f'no host is in the cluster "{self._settings.cluster}"')
        for kind, names in (("images", images.missing), ("networks", networks.missing)):
            found.extend(f"setting {kind}: {text}" for text in names)
        for kind, shared in (("images", images.ambiguous), ("networks", networks.ambiguous)):
            if shared:
                found.append(f"{kind} of the same name go by their ids: {', '.join(shared)}")
        return tuple(found)


def _attributes(host: Host) -> dict[str, AttributeValue]:
    found: dict[str, AttributeValue] = {
        name.lower(): value for name, value in host.template.items() if value and name.lower() not in _NOT_ATTRIBUTES
    }
    im_mad, vm_mad = host.drivers
    hypervisor = host.template.get("HYPERVISOR") or vm_mad or im_mad
    if hypervisor:
        found["hypervisor"] = hypervisor
    found["cluster"] = host.cluster
    found["cluster_id"] = host.cluster_id
    found["host_id"] = host.host_id
    return found


def observed_images(names: Names[Image]) -> tuple[ObservedImage, ...]:
    return tuple(
        ObservedImage(
            name=name,
            display_name=image.name,
            ready=image.state in _IMAGE_READY,
            size_mib=image.size,
            attributes={key: value for key, value in (("arch", image.arch), ("hypervisor", image.hypervisor)) if value},
        )
        for name, image in names.shown.items()
    )
