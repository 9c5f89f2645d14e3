"""From the readings of hosts to what the broker is told: hosts, nodes, networks and warnings.

Responsible for what may be promised of a host: what the hypervisor has, less what its own domain holds, less a
reserve; strangers' domains are foreign. Invariants: a host that does not answer keeps the size it was last seen with,
and its domains are SILENT where they were; a node is shown once, where it is active if it is on two hosts while it
moves. It asks nobody.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from itertools import combinations
from typing import Final

from backends.base import (
    AttributeValue,
    HostState,
    Identity,
    NicSpec,
    Observation,
    ObservedHost,
    ObservedNic,
    ObservedNode,
)
from backends.xen import domain
from backends.xen.addresses import Network
from backends.xen.host import Host
from backends.xen.hosts import Hosts
from backends.xen.reading import DomainReading, HostReading

RESERVES: Final = {"xen": 256, "qemu": 1024, "test": 0}
"""MiB that are kept free where the settings do not say: Xen's own and what it needs beside each guest, or the system
that QEMU runs in, which is no domain."""


def is_ours(reading: DomainReading, broker_id: str) -> bool:
    """Whether a domain bears this broker's id."""
    return reading.tag is not None and reading.tag.identity.broker_id == broker_id


def node(reading: DomainReading, host: str, *, silent: str = "") -> ObservedNode:
    """A domain of ours as the broker is told of it; `silent`: why its host says nothing."""
    assert reading.tag is not None
    return ObservedNode(
        identity=reading.tag.identity,
        backend_id=reading.uuid,
        observation=Observation.SILENT if silent else reading.observation,
        host=host,
        detail=reading.detail,
        message=f"host {host} does not answer: {silent}" if silent else reading.message,
        amounts=reading.tag.amounts,
        nics=tuple(
            ObservedNic(
                network=nic.network, addresses=nic.addresses, mac=domain.mac_of(reading.uuid, index), name=nic.name
            )
            for index, nic in enumerate(reading.tag.nics)
        ),
    )


def absent(identity: Identity, backend_id: str = "", message: str = "") -> ObservedNode:
    """The answer for a domain that is not there."""
    return ObservedNode(identity=identity, backend_id=backend_id, observation=Observation.ABSENT, message=message)


def nodes(hosts: Hosts, fresh: Collection[str], broker_id: str) -> tuple[ObservedNode, ...]:
    """Every domain of ours, each once."""
    found: dict[str, tuple[bool, ObservedNode]] = {}
    for name, read in hosts.readings.items():
        silent = "" if name in fresh else hosts.why_silent(name) or "it was not read"
        for reading in read.domains.values():
            if is_ours(reading, broker_id):
                ours = reading.active and not silent
                if reading.uuid not in found or (ours and not found[reading.uuid][0]):
                    found[reading.uuid] = ours, node(reading, name, silent=silent)
    return tuple(shown for _, shown in found.values())


def addresses_shown(
    readings: Mapping[str, HostReading], broker_id: str
) -> tuple[dict[str, tuple[NicSpec, ...]], dict[str, tuple[NicSpec, ...]]]:
    """What domains hold by their metadata: ours, and other brokers'."""
    ours: dict[str, tuple[NicSpec, ...]] = {}
    others: dict[str, tuple[NicSpec, ...]] = {}
    for read in readings.values():
        for each in read.domains.values():
            if each.tag is not None:
                (ours if is_ours(each, broker_id) else others)[each.uuid] = each.tag.nics
    return ours, others


def host(
    hosts: Hosts,
    one: Host,
    broker_id: str,
    networks: Mapping[str, Network],
    disk: tuple[int, int] | None,
    *,
    answers: bool,
) -> ObservedHost:
    """A host; `disk`: MiB of its own and what others hold of it."""
    state = one.state
    if state is HostState.ACTIVE and one.name not in hosts.readings:
        state = HostState.LOST  # it answers, and its domains could never be read
    message = "" if answers else one.message or hosts.troubles.get(one.name, "")
    read = hosts.readings.get(one.name)
    if read is None:
        return ObservedHost(
            name=one.name, state=state, total={}, attributes=_attributes(one, networks), message=message
        )
    settings = hosts.settings[one.name]
    driver = one.facts.driver if one.facts else ""
    reserve = settings.reserve_memory if settings.reserve_memory is not None else RESERVES.get(driver, 0)
    total = {
        "cpu": 1000 * (settings.cpus if settings.cpus is not None else read.cpus),
        "memory": max(0, read.memory - read.managing_memory - reserve),
    }
    foreign = _foreign(read, broker_id)
    if disk is not None:
        total["disk"], foreign["disk"] = disk
    return ObservedHost(
        name=one.name,
        state=state,
        total=total,
        foreign=dict(foreign),
        attributes=_attributes(one, _there(networks, read)),
        message=message,
    )


def warnings(hosts: Hosts) -> tuple[str, ...]:
    """What an operator should know."""
    return (*_twice(hosts), *_unfit(hosts))


def _foreign(read: HostReading, broker_id: str) -> Counter[str]:
    """What strangers' domains hold. Another broker's keep what they were promised also while they are off."""
    held: Counter[str] = Counter()
    for each in read.domains.values():
        if each.manages or is_ours(each, broker_id):
            continue
        if each.tag is not None:
            held.update({name: each.tag.amounts.get(name, 0) for name in ("cpu", "memory")})
        elif each.active:
            held.update({"cpu": 1000 * each.vcpus, "memory": each.memory})
    return held


def _there(networks: Mapping[str, Network], read: HostReading) -> Mapping[str, Network]:
    """The networks a host has, as far as it can tell: it knows its libvirt's networks, not its bridges."""
    return {name: each for name, each in networks.items() if each.bridge or each.source in read.networks}


def _attributes(one: Host, networks: Mapping[str, Network]) -> dict[str, AttributeValue]:
    facts = one.facts
    found: dict[str, AttributeValue] = {"networks": tuple(sorted(networks))}
    if facts is not None:
        hypervisor = "kvm" if facts.driver == "qemu" and facts.accelerated else facts.driver
        found |= {"hypervisor": hypervisor, "hypervisor_version": facts.version, "arch": facts.arch}
        found |= {"libvirt_version": facts.library, "hostname": facts.hostname}
    return found


def _twice(hosts: Hosts) -> Iterator[str]:
    """Hosts that are one machine under two URIs: its memory would be promised twice."""
    known = [(name, one.facts) for name, one in hosts.all.items() if one.facts is not None]
    for (name, facts), (other, others) in combinations(known, 2):
        if "test" in (facts.driver, others.driver):
            continue
        same_name = facts.hostname == others.hostname and not (facts.uuid and others.uuid)
        if same_name or (facts.uuid and facts.uuid == others.uuid):
            yield (
                f"hosts {name} and {other} seem to be one machine ({facts.hostname} {facts.uuid}): what it has would "
                "be promised twice; take one of them out of the pool"
            )


def _unfit(hosts: Hosts) -> Iterator[str]:
    for name, one in hosts.all.items():
        if one.state is HostState.DISABLED:
            yield f"host {name} is not used: {one.message}"
