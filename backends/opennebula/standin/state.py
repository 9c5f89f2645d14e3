"""The objects a front-end keeps: hosts, VMs, images, networks, users, and what is used of them.

Responsible for the records, the pools and the accounting of capacity. Invariant: what a host has promised
is the sum over the VMs in its `vms`, never a counter of its own. Does not decide what is allowed
(`permissions`), nor when a VM moves (`lifecycle`).

Every record is touched with `World.lock` held.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import count
from typing import Final, Protocol, TypeVar

from backends.opennebula.standin.agenda import Agenda
from backends.opennebula.standin.config import HostProfile, StandinConfig
from backends.opennebula.standin.machine import HistoryAction, HostState, ImageState, Place, State
from backends.opennebula.standin.template import Template

# Object names as the daemon's messages have them.
KINDS: Final[Mapping[str, str]] = {
    "vm": "virtual machine",
    "host": "host",
    "image": "image",
    "network": "virtual network",
    "template": "virtual machine template",
    "cluster": "cluster",
    "datastore": "datastore",
    "user": "user",
    "group": "group",
}
FIRST_IDS: Final[Mapping[str, int]] = {"cluster": 100, "datastore": 100, "group": 100, "user": 2}


@dataclass(slots=True, kw_only=True)
class Permissions:
    """Nine flags: use, manage, admin for owner, group and others."""

    bits: list[int] = field(default_factory=lambda: [1, 1, 0, 0, 0, 0, 0, 0, 0])


@dataclass(slots=True, kw_only=True)
class Owned:
    """What every object with an owner has."""

    id: int
    name: str
    uid: int
    gid: int
    permissions: Permissions = field(default_factory=Permissions)


@dataclass(slots=True, kw_only=True)
class Group:
    id: int
    name: str
    quota: dict[str, float] | None = None


@dataclass(slots=True, kw_only=True)
class User:
    id: int
    name: str
    password: str
    gid: int
    driver: str = "core"
    template: Template = field(default_factory=Template)
    quota: dict[str, float] | None = None


@dataclass(slots=True, kw_only=True)
class Cluster:
    id: int
    name: str
    datastores: set[int] = field(default_factory=set)
    template: Template = field(default_factory=lambda: Template({"RESERVED_CPU": [""], "RESERVED_MEM": [""]}))


@dataclass(slots=True, kw_only=True)
class Datastore(Owned):
    template: Template
    total_mb: int
    free_mb: int
    used_mb: int

    @property
    def is_system(self) -> bool:
        return self.template.get("TYPE") == "SYSTEM_DS"


@dataclass(slots=True, kw_only=True)
class Host:
    id: int
    name: str
    im_mad: str
    vm_mad: str
    cluster_id: int
    profile: HostProfile
    state: HostState = HostState.INIT
    template: Template = field(default_factory=Template)
    vms: set[int] = field(default_factory=set)
    reported: bool = False  # TOTAL_* are known
    heard_of: bool = False  # something was ever heard of it
    monitored_at: int = 0
    token: int = 0

    @property
    def total_cpu(self) -> int:
        return round(self.profile.cores * 100) if self.reported else 0

    @property
    def total_mem(self) -> int:
        return self.profile.memory_mb * 1024 if self.reported else 0

    @property
    def max_cpu(self) -> int:
        return self._unreserved("RESERVED_CPU", self.total_cpu)

    @property
    def max_mem(self) -> int:
        return self._unreserved("RESERVED_MEM", self.total_mem)

    def _unreserved(self, name: str, total: int) -> int:
        text = self.template.get(name).strip()
        try:
            if text.endswith("%"):
                return int(total * (1 - float(text[:-1]) / 100))
            return total - int(text) if text and self.reported else total
        except (ValueError, OverflowError):
            return total


@dataclass(slots=True, kw_only=True)
class Image(Owned):
    type: str
    size_mb: int
    datastore_id: int
    path: str = ""
    persistent: bool = False
    state: ImageState = ImageState.LOCKED
    registered_at: int = 0
    vms: set[int] = field(default_factory=set)
    template: Template = field(default_factory=Template)


@dataclass(slots=True, kw_only=True)
class AddressRange:
    id: int
    type: str
    ip: str
    mac: str
    size: int
    next_index: int = 0
    leases: dict[int, int] = field(default_factory=dict)  # index -> vm


@dataclass(slots=True, kw_only=True)
class Network(Owned):
    template: Template
    clusters: set[int]
    ranges: list[AddressRange] = field(default_factory=list)
    pending: list[Template] = field(default_factory=list)  # ranges asked for, not ready yet
    ready: bool = False


@dataclass(slots=True, kw_only=True)
class VmTemplate(Owned):
    template: Template
    registered_at: int


@dataclass(slots=True, kw_only=True)
class HistoryRecord:
    """One stay on a host; a time of 0 has not come yet. P is the prolog, R the run, E the epilog."""

    seq: int
    host_id: int
    hostname: str
    cluster_id: int
    datastore_id: int
    plan: tuple[int, int] = (-2, -1)
    stime: int = 0
    etime: int = 0
    pstime: int = 0
    petime: int = 0
    rstime: int = 0
    retime: int = 0
    estime: int = 0
    eetime: int = 0
    action: HistoryAction = HistoryAction.NONE
    uid: int = -1
    gid: int = -1
    request_id: int = -1


@dataclass(slots=True, kw_only=True)
class Lock:
    level: int
    owner: int
    time: int
    request_id: int


@dataclass(slots=True, kw_only=True)
class Vm(Owned):
    place: Place
    template: Template
    user_template: Template
    stime: int
    etime: int = 0
    deploy_id: str = ""
    resched: bool = False
    kept: State | None = None  # STOPPED or UNDEPLOYED before it went back to PENDING
    history: list[HistoryRecord] = field(default_factory=list)
    monitoring: Template = field(default_factory=Template)
    digest_monitoring: Template = field(default_factory=Template)  # what the pool says, a little older
    scheduled: list[Template] = field(default_factory=list)
    lock: Lock | None = None
    trail: list[Place] = field(default_factory=list)  # everywhere it has been
    token: int = 0

    @property
    def cpu(self) -> int:
        """Hundredths of a core."""
        return int(float(self.template.get("CPU", "0")) * 100 + 1e-9)

    @property
    def memory(self) -> int:
        """KB."""
        return int(self.template.get("MEMORY", "0")) * 1024


class _Identified(Protocol):
    id: int
    name: str


T = TypeVar("T", bound=_Identified)


class Pool(dict[int, T]):
    """Objects by id; an id is never given twice."""

    def __init__(self, kind: str, first_id: int) -> None:
        super().__init__()
        self.kind = kind
        self.next_id = first_id

    def put(self, item: T) -> T:
        self[item.id] = item
        self.next_id = max(self.next_id, item.id + 1)
        return item

    def named(self, name: str) -> T | None:
        return next((item for item in self.values() if item.name == name), None)

    def newest_first(self) -> Iterable[T]:
        return (self[key] for key in sorted(self, reverse=True))


class World:
    """All of one front-end's state, and the agenda of what is about to happen."""

    def __init__(self, config: StandinConfig) -> None:
        self.config = config
        self.lock = threading.RLock()
        self.agenda = Agenda()

        unknown = set(config.first_ids) - set(KINDS)
        if unknown:
            raise ValueError(f"first_ids: unknown {', '.join(sorted(unknown))}")

        def first(kind: str) -> int:
            return config.first_ids.get(kind, FIRST_IDS.get(kind, 0))

        self.users: Pool[User] = Pool("user", first("user"))
        self.groups: Pool[Group] = Pool("group", first("group"))
        self.clusters: Pool[Cluster] = Pool("cluster", first("cluster"))
        self.datastores: Pool[Datastore] = Pool("datastore", first("datastore"))
        self.hosts: Pool[Host] = Pool("host", first("host"))
        self.images: Pool[Image] = Pool("image", first("image"))
        self.networks: Pool[Network] = Pool("network", first("network"))
        self.templates: Pool[VmTemplate] = Pool("template", first("template"))
        self.vms: Pool[Vm] = Pool("vm", first("vm"))
        # Groups whose members may create VMs; a new group is not among them until an ACL says so.
        self.creators: set[int] = {1}
        self.acl_ids = count(9)
        self.departed: dict[int, str] = {}

    def user_name(self, uid: int) -> str:
        """Also of a user who is gone: what they own keeps their name."""
        user = self.users.get(uid)
        return user.name if user is not None else self.departed.get(uid, "")

    def now(self) -> int:
        return int(time.time())

    def dated(self, text: str) -> str:
        stamp = datetime.fromtimestamp(self.now(), UTC).strftime("%a %b %d %H:%M:%S %Y")
        return f"{stamp}{text}"

    def advance(self) -> None:
        """Let everything that is due happen."""
        self.agenda.run_due()

    def used(self, host: Host) -> tuple[int, int]:
        """CPU in hundredths and memory in KB promised on the host."""
        vms = [self.vms[vm_id] for vm_id in host.vms]
        return sum(vm.cpu for vm in vms), sum(vm.memory for vm in vms)

    def shortage(self, host: Host, cpu: int, memory: int) -> str:
        """Why this much does not fit in the host; empty if it does."""
        used_cpu, used_memory = self.used(host)
        if cpu > host.max_cpu - used_cpu:
            return f"Not enough CPU: {cpu}/{host.max_cpu - used_cpu}"
        if memory > host.max_mem - used_memory:
            return f"Not enough memory: {memory}/{host.max_mem - used_memory}"
        return ""

    def cluster_hosts(self, cluster: Cluster) -> list[int]:
        return sorted(host.id for host in self.hosts.values() if host.cluster_id == cluster.id)

    def clusters_of(self, datastore_id: int) -> list[int]:
        return sorted(cluster.id for cluster in self.clusters.values() if datastore_id in cluster.datastores)

    def system_datastores(self, cluster_id: int) -> list[int]:
        cluster = self.clusters[cluster_id]
        return sorted(ds for ds in cluster.datastores if ds in self.datastores and self.datastores[ds].is_system)
