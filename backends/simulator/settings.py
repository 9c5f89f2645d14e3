"""What an operator writes of a simulated pool, checked and made into values.

Every bad or unknown key is named, all at once; nothing is touched. Durations are seconds or text ("500ms",
"2s", "1m", "1h"); amounts are whole numbers (cpu in milli-cores, memory and disk in MiB).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import IPv4Network, IPv6Network

from backends.base import (
    AttributeValue,
    Capability,
    ObservedImage,
    ParameterKind,
    ParameterSpec,
    SettingProblem,
    Step,
)
from backends.simulator.reading import Table, attribute, flag, listed, one_of, seconds, subnet, text, whole

DEFAULT_CAPABILITIES = frozenset(Capability) - {Capability.CONSOLE, Capability.MANAGE_HOSTS}
DEFAULT_DISK = 1024 * 1024  # MiB a host, where neither its disk nor a shared one is given
READS = ("inventory", "observe", "find")
STEPS = (*(step.value for step in Step), *READS)


class FaultKind(StrEnum):
    """What goes wrong with a call, or with the VM after it."""

    TRANSIENT = "transient"  # nothing happens, TransientBackendError
    REJECTED = "rejected"  # BackendRejected
    HOST_REJECTED = "host_rejected"  # BackendRejected, another host may take it
    LOST_CALL = "lost_call"  # nothing happens, OutcomeUnknown
    LOST_ANSWER = "lost_answer"  # it happens, OutcomeUnknown
    HANG = "hang"  # nothing happens and no answer comes
    BROKEN = "broken"  # accepted, and the VM is BROKEN where it should arrive
    STALL = "stall"  # accepted, and the VM stays BUSY
    VANISH = "vanish"  # accepted, and the VM is gone where it should arrive


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Something that goes wrong: on every `every`-th call that matches, `count` times at most (None: always)."""

    kind: FaultKind
    step: str = ""  # empty: every step of a VM, no reads
    host: str = ""  # empty: any
    count: int | None = None
    every: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Hosts:
    """`count` equal hosts; without a count it is one host of exactly this name."""

    name: str
    count: int | None
    total: Mapping[str, int]
    attributes: Mapping[str, AttributeValue]


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """A network; `addresses` None: as many as asked for, `subnet` None: one that no other network has."""

    name: str
    addresses: int | None = None
    subnet: IPv4Network | IPv6Network | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """A simulated pool."""

    hosts: tuple[Hosts, ...]
    images: tuple[ObservedImage, ...] | None = None
    networks: tuple[Network, ...] | None = None
    shared_disk: int | None = None
    enforce_capacity: bool = True
    delays: Mapping[str, float] = field(default_factory=dict)
    latency: float = 0.0
    faults: tuple[Fault, ...] = ()
    capabilities: frozenset[Capability] = DEFAULT_CAPABILITIES
    parameters: tuple[ParameterSpec, ...] = ()
    world: str = ""
    state_file: str = ""

    def host_table(self, pool: str) -> dict[str, Hosts]:
        """Every host by its name; names of one prefix are numbered on, with zeros so that they sort."""
        totals = Counter[str]()
        for hosts in self.hosts:
            totals[hosts.name] += hosts.count or 0
        table: dict[str, Hosts] = {}
        numbered = Counter[str]()
        for hosts in self.hosts:
            if hosts.count is None and hosts.name:
                table[hosts.name] = hosts
                continue
            prefix = hosts.name or f"{pool}-host"
            for _ in range(hosts.count or 1):
                numbered[hosts.name] += 1
                width = len(str(totals[hosts.name]))
                table[f"{prefix}-{numbered[hosts.name]:0{width}}"] = hosts
        return table


def _hosts(table: Table, shared: bool) -> Hosts:
    total = {
        "cpu": table.get("cpu", 0, whole(1)),
        "memory": table.get("memory", 0, whole(1)),
        "disk": table.get("disk", DEFAULT_DISK, whole(0)),
    }
    for key in ("cpu", "memory"):
        if key not in table:
            table.wrong(key, "is required")
    if shared:
        if "disk" in table:
            table.wrong("disk", "the pool has a shared_disk: its hosts have none of their own")
        del total["disk"]
    extra = table.table("extra")
    for name, amount in extra.rest(whole(0)).items():
        if name in ("cpu", "memory", "disk"):
            extra.wrong(name, "stands beside extra, not in it")
        else:
            total[name] = amount
    hosts = Hosts(
        name=table.get("name", "", text),
        count=table.get("count", None, whole(0)),
        total=total,
        attributes=table.table("attributes").rest(attribute),
    )
    table.end()
    return hosts


def _image(table: Table) -> ObservedImage:
    if "name" not in table:
        table.wrong("name", "is required")
    image = ObservedImage(
        name=table.get("name", "", text),
        display_name=table.get("display_name", "", text),
        ready=table.get("ready", True, flag),
        size_mib=table.get("size_mib", 0, whole(0)),
        attributes=table.table("attributes").rest(attribute),
    )
    table.end()
    return image


def _network(table: Table) -> Network:
    if "name" not in table:
        table.wrong("name", "is required")
    network = Network(
        name=table.get("name", "", text),
        addresses=table.get("addresses", None, whole(0)),
        subnet=table.get("subnet", None, subnet),
    )
    table.end()
    return network


def _fault(table: Table) -> Fault:
    if "kind" not in table:
        table.wrong("kind", "is required")
    step = table.get("step", "", one_of(STEPS))
    kind = FaultKind(table.get("kind", "transient", one_of(list(FaultKind))))
    if step in READS and kind not in (FaultKind.TRANSIENT, FaultKind.REJECTED, FaultKind.HANG):
        table.wrong("kind", f"{step} changes nothing: its faults are transient, rejected and hang")
    fault = Fault(
        kind=kind,
        step=step,
        host=table.get("host", "", text),
        count=table.get("count", None, whole(1)),
        every=table.get("every", 1, whole(1)),
    )
    table.end()
    return fault


def _parameter(table: Table) -> ParameterSpec:
    for key in ("key", "kind"):
        if key not in table:
            table.wrong(key, "is required")
    spec = ParameterSpec(
        key=table.get("key", "", text),
        kind=ParameterKind(table.get("kind", "STRING", one_of(list(ParameterKind)))),
        description=table.get("description", "", text),
        required=table.get("required", False, flag),
    )
    if spec.key and not re.fullmatch(r"[^:\s]+:[^:\s]+", spec.key):
        table.wrong("key", 'must be "namespace:name"')
    table.end()
    return spec


def read(values: Mapping[str, object]) -> tuple[Settings, list[SettingProblem]]:
    """The settings as far as they can be read, and everything that is wrong with them."""
    problems: list[SettingProblem] = []
    top = Table(values, "", problems)
    shared = top.get("shared_disk", None, whole(0))
    delays = top.table("delays")
    images = tuple(map(_image, top.tables("images")))
    networks = tuple(map(_network, top.tables("networks")))
    hosts = tuple(_hosts(table, shared is not None) for table in top.tables("hosts"))
    if not hosts and not problems:
        top.wrong("hosts", "is required: a list with at least one table")
    settings = Settings(
        hosts=hosts,
        shared_disk=shared,
        images=images if "images" in top else None,
        networks=networks if "networks" in top else None,
        enforce_capacity=top.get("enforce_capacity", True, flag),
        delays={step.value: delays.get(step.value, 0.0, seconds) for step in Step},
        latency=top.get("latency", 0.0, seconds),
        faults=tuple(map(_fault, top.tables("faults"))),
        capabilities=top.get("capabilities", DEFAULT_CAPABILITIES, _capabilities),
        parameters=tuple(map(_parameter, top.tables("parameters"))),
        world=top.get("world", "", text),
        state_file=top.get("state_file", "", text),
    )
    delays.end()
    top.end()
    for key, names in (
        ("hosts", [one.name for one in hosts if one.count is None and one.name]),
        ("images", [image.name for image in settings.images or ()]),
        ("networks", [network.name for network in settings.networks or ()]),
        ("parameters", [spec.key for spec in settings.parameters]),
    ):
        for name, times in Counter(names).items():
            if times > 1:
                top.wrong(key, f'"{name}" is there {times} times')
    return settings, problems


def _capabilities(value: object) -> frozenset[Capability]:
    able = sorted(DEFAULT_CAPABILITIES)
    return frozenset(Capability(one_of(able)(one)) for one in listed(value))
