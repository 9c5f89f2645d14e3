"""What is read of a host in one call: its size and every domain there is.

Responsible for the functions that run in a host's thread and look. Invariants: what they answer are plain values, no
libvirt object leaves the thread; a domain that vanishes while it is read was not there; amounts of memory are only
read between calls that would fail on a dead connection. It judges nothing but the state.
"""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from backends.base import Observation
from backends.xen import domain as domains
from backends.xen import states
from backends.xen.domain import Tag
from backends.xen.errors import Code
from backends.xen.library import Connection, Failure, LibvirtError

_NOT_THERE = frozenset({Code.NO_SUPPORT, Code.OPERATION_UNSUPPORTED, Code.ARGUMENT_UNSUPPORTED})


class DomainReading(Struct, frozen=True, kw_only=True):
    """A domain as it was seen. Memory in MiB."""

    uuid: str
    name: str
    observation: Observation
    detail: str = ""
    message: str = ""
    memory: int = 0
    vcpus: int = 0
    active: bool = False
    persistent: bool = True
    tag: Tag | None = None
    stop_until: str = ""  # a guest that was asked to shut down: how long it may take
    manages: bool = False  # Domain-0

    @property
    def paused(self) -> bool:
        """Whether it stands still with its memory where it is."""
        return self.observation is Observation.PAUSED


class HostReading(Struct, frozen=True, kw_only=True):
    """A host as it was seen by the look of this number. Memory in MiB."""

    look: int
    memory: int
    cpus: int
    domains: dict[str, DomainReading]
    networks: frozenset[str] = frozenset()  # libvirt's, those that are active

    @property
    def managing_memory(self) -> int:
        """What Domain-0 holds."""
        return sum(each.memory for each in self.domains.values() if each.manages)


def host(connection: Connection, look: int, driver: str) -> HostReading:
    """Everything, in one go."""
    found = {}
    for each in connection.listAllDomains(0):
        reading = _if_there(each, driver)
        if reading is not None:
            found[reading.uuid] = reading
    networks = frozenset(each.name() for each in _optional(connection.listAllNetworks, 2) or ())
    info = connection.getInfo()
    return HostReading(look=look, memory=info[1], cpus=info[2], domains=found, networks=networks)


def domain(connection: Connection, uuid: str, driver: str) -> DomainReading | None:
    """One domain; None if the host has none of this UUID."""
    found = lookup(connection, uuid)
    return None if found is None else _if_there(found, driver)


def lookup(connection: Connection, uuid: str) -> Any | None:
    """The library's own object, for use in the same call; None if the host has none of this UUID."""
    try:
        return connection.lookupByUUIDString(uuid)
    except LibvirtError as error:
        if Failure.of(error).code == Code.NO_DOMAIN:
            return None
        raise


def of(found: Any, driver: str) -> DomainReading:
    """A domain as it is now."""
    state, reason = found.state()
    active = bool(found.isActive())
    saved = not active and bool(_optional(found.hasManagedSaveImage, 0))
    _, most, memory, vcpus, _ = found.info()
    persistent = bool(found.isPersistent())
    tag, until = domains.read_tag(found.XMLDesc(0))
    manages = driver == "xen" and active and found.ID() == 0
    return DomainReading(
        uuid=found.UUIDString(),
        name=found.name(),
        observation=states.observation(state, reason, saved=saved, active=active),
        detail=states.word(state, reason, saved=saved, active=active, persistent=persistent),
        message=states.message(state, reason),
        # A guest may take back what it has let go of; Domain-0's most is often all there is.
        memory=(memory if manages else max(most, memory)) // 1024,
        vcpus=vcpus,
        active=active,
        persistent=persistent,
        tag=tag,
        stop_until=until,
        manages=manages,
    )


def free_memory(connection: Connection) -> int:
    """MiB that are free. A dead connection answers 0 to that and says nothing; the call after it would fail."""
    free = connection.getFreeMemory()
    connection.getInfo()
    return int(free) // (1024 * 1024)


def _if_there(found: Any, driver: str) -> DomainReading | None:
    try:
        return of(found, driver)
    except LibvirtError as error:
        if Failure.of(error).code == Code.NO_DOMAIN:
            return None
        raise


def _optional(call: Any, *arguments: Any) -> Any:
    """The answer; None where the driver has no such thing."""
    try:
        return call(*arguments)
    except LibvirtError as error:
        if Failure.of(error).code in _NOT_THERE:
            return None
        raise
