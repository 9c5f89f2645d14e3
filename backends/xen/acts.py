"""What is done to a domain, one closed operation each: it looks, acts, and looks again where it was refused.

Responsible for the functions that run in a host's thread and change. Invariants: each may be run twice without harm,
since it first looks whether what it is after is so already; a refusal is believed only after another look; only a
domain that bears the very identity is touched. Each returns what the domain is then. What was refused without a
reason is looked into: memory, vcpus, disks. It awaits nothing: waiting for a guest is for `verbs`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator
from typing import Any, Final

from msgspec import Struct

from backends.base import BackendRejected, Identity, Observation
from backends.xen import domain as domains
from backends.xen import reading
from backends.xen.errors import Code, NotYet
from backends.xen.library import Connection, Failure, LibvirtError
from backends.xen.reading import DomainReading

RUNNING, PAUSED = Observation.RUNNING, Observation.PAUSED
SUSPENDED, OFF = Observation.SUSPENDED, Observation.OFF

# libvirt's flags; the values are part of its interface.
START_PAUSED: Final = 1
AFFECT_LIVE: Final = 1
METADATA_ELEMENT: Final = 2
UNDEFINE_MANAGED_SAVE: Final = 1
UNDEFINE_SNAPSHOTS: Final = 2
UNDEFINE_NVRAM: Final = 4
MIGRATE_LIVE: Final = 1
MIGRATE_PERSIST_DEST: Final = 8
MIGRATE_UNDEFINE_SOURCE: Final = 16
XML_INACTIVE: Final = 2

_PMSUSPENDED: Final = 7
_NO_SUCH_FLAG: Final = frozenset({Code.INVALID_ARG, Code.ARGUMENT_UNSUPPORTED, Code.NO_SUPPORT})


class Gone(BackendRejected):
    """The host has no such domain."""


class Node(Struct, frozen=True, kw_only=True):
    """Which domain is meant."""

    uuid: str
    identity: Identity
    host: str
    driver: str


def define(connection: Connection, node: Node, name: str, xml: str) -> DomainReading:
    """Makes the domain; one that is there already is left as it is."""
    found = reading.lookup(connection, node.uuid)
    if found is not None:
        return _ours(node, found)
    try:
        return reading.of(connection.defineXML(xml), node.driver)
    except LibvirtError:
        if (found := reading.lookup(connection, node.uuid)) is not None:
            return _ours(node, found)
        if _named(connection, name):
            raise BackendRejected(
                f'host {node.host} has a domain "{name}" that is not this broker\'s: rename or undefine it',
                host_fault=True,
            ) from None
        raise


def redefine(connection: Connection, node: Node, xml: str) -> DomainReading:
    """Writes the definition of a domain that is off anew."""
    _, seen = _found(connection, node)
    if seen.observation is not OFF:
        return seen  # it was started with what it needs
    return reading.of(connection.defineXML(xml), node.driver)


def start(
    connection: Connection, node: Node, *, begins: Collection[Observation], paused: bool = False
) -> DomainReading:
    """Starts a domain that is off, or lets one go on from its saved memory: `begins` says from what. One that runs
    already is left alone."""
    found, seen = _found(connection, node)
    if seen.observation in (RUNNING, PAUSED):
        if paused and seen.observation is RUNNING:
            return _act(node, found, found.suspend, {PAUSED})
        return seen
    if seen.observation not in begins:
        raise _wrong_state(node, seen, "started" if OFF in begins else "resumed")
    try:
        _create(found, paused=paused)
    except LibvirtError as error:
        now = reading.of(found, node.driver)
        if now.observation in (RUNNING, PAUSED):
            return now
        failure = Failure.of(error)
        if failure.code != Code.INTERNAL:
            raise
        raise BackendRejected(_why_not_started(connection, node, found, failure), host_fault=True) from None
    return reading.of(found, node.driver)


def pause(connection: Connection, node: Node) -> DomainReading:
    """Stops a guest where it stands."""
    return _from(connection, node, PAUSED, {RUNNING}, "paused", lambda found: found.suspend())


def unpause(connection: Connection, node: Node) -> DomainReading:
    """Lets a paused guest go on; wakes one that went to sleep by itself."""

    def act(found: Any) -> None:
        if found.state()[0] == _PMSUSPENDED:
            found.pMWakeup(0)
        else:
            found.resume()

    return _from(connection, node, RUNNING, {PAUSED}, "unpaused", act)


def save(connection: Connection, node: Node) -> DomainReading:
    """Brings a guest's memory to the host's disk and ends it; blocks as long as that takes."""

    def act(found: Any) -> None:
        with _may_be_young(node, found, "suspended"):
            found.managedSave(0)

    return _from(connection, node, SUSPENDED, {RUNNING, PAUSED}, "suspended", act)


def ask_to_stop(connection: Connection, node: Node, until: str) -> DomainReading:
    """Asks a guest to shut down and notes until when it may take, on the running domain alone: the note is gone when
    the guest is. A paused guest is never asked: it cannot answer, and libvirt would wait a minute for it while every
    client of the host stands still."""
    found, seen = _found(connection, node)
    if seen.observation is OFF or (seen.observation is RUNNING and seen.stop_until):
        return seen
    if seen.observation is not RUNNING:
        raise _wrong_state(node, seen, "stopped")
    noted = True
    try:
        found.setMetadata(METADATA_ELEMENT, domains.stop_mark(until), "stopping", domains.STOPPING, AFFECT_LIVE)
    except LibvirtError:
        noted = False
    try:
        found.shutdown()
    except LibvirtError:
        now = reading.of(found, node.driver)
        if now.observation is OFF or (noted and now.observation is RUNNING):
            return now  # gone, or it will not listen: when its time is over it is ended
        raise
    return reading.of(found, node.driver)


def end(connection: Connection, node: Node, *, overdue: str = "") -> DomainReading | None:
    """Ends a guest at once; None if the domain is gone. `overdue`: only if it still has this note."""
    found = reading.lookup(connection, node.uuid)
    if found is None:
        return None
    seen = _ours(node, found)
    if overdue and (seen.stop_until != overdue or seen.observation is not RUNNING):
        return seen
    if seen.active and seen.observation is not Observation.BUSY:
        _try(found.destroy, lambda: not found.isActive())
    elif seen.active:
        # On its way somewhere, or off and not gone yet: then there is nothing left to end.
        with contextlib.suppress(LibvirtError):
            found.destroy()
    return reading.domain(connection, node.uuid, node.driver)


def reboot(connection: Connection, node: Node, *, force: bool, again: bool = False) -> DomainReading:
    """Has a guest boot anew: asked to, or by ending and starting it. `again`: it may have been asked before, and be on
    its way, where Xen shows it as off for a moment."""
    found, seen = _found(connection, node)
    if again and not force and seen.observation is OFF:
        raise NotYet(f"domain {seen.name} on {node.host} is off: it may be rebooting")
    if seen.observation is not RUNNING and not (force and seen.observation is OFF):
        raise _wrong_state(node, seen, "rebooted")
    if force:
        if seen.observation is RUNNING:
            _try(found.destroy, lambda: not found.isActive())
        _create(found, paused=False)
    else:
        with _may_be_young(node, found, "rebooted"):
            found.reboot(0)
    return reading.of(found, node.driver)


def migrate(connection: Connection, node: Node, target: Connection, uri: str, *, live: bool) -> None:
    """Sends a guest to another host that has its disks; blocks as long as that takes."""
    found, seen = _found(connection, node)
    if seen.observation is not RUNNING:
        raise _wrong_state(node, seen, "migrated")
    flags = MIGRATE_PERSIST_DEST | MIGRATE_UNDEFINE_SOURCE | (MIGRATE_LIVE if live else 0)
    with _may_be_young(node, found, "migrated"):
        found.migrate3(target, {"migrate_uri": uri} if uri else {}, flags)


def keep(connection: Connection, node: Node) -> DomainReading:
    """Sees to it that a domain outlives its guest."""
    found, seen = _found(connection, node)
    if not seen.persistent:
        connection.defineXML(found.XMLDesc(XML_INACTIVE))
    return reading.of(found, node.driver)


def undefine(connection: Connection, node: Node) -> None:
    """Removes the definition of a domain that is off, and its saved memory."""
    found = reading.lookup(connection, node.uuid)
    if found is None:
        return
    seen = _ours(node, found)
    if seen.active:
        raise NotYet(f"domain {seen.name} on {node.host} is still {seen.detail}")
    for flags in (UNDEFINE_MANAGED_SAVE | UNDEFINE_SNAPSHOTS | UNDEFINE_NVRAM, UNDEFINE_MANAGED_SAVE):
        try:
            found.undefineFlags(flags)
        except LibvirtError as error:
            code = Failure.of(error).code
            if code == Code.NO_DOMAIN:
                return
            if code not in _NO_SUCH_FLAG or flags == UNDEFINE_MANAGED_SAVE:
                raise
        else:
            return


def is_free(connection: Connection, node: Node, name: str) -> bool:
    """Whether neither the UUID nor the name is taken any more."""
    return reading.lookup(connection, node.uuid) is None and not _named(connection, name)


def _found(connection: Connection, node: Node) -> tuple[Any, DomainReading]:
    found = reading.lookup(connection, node.uuid)
    if found is None:
        raise Gone(f"host {node.host} has no domain {node.uuid}")
    return found, _ours(node, found)


def _ours(node: Node, found: Any) -> DomainReading:
    """Reads a domain. Raises where it is another node's, or nobody's any more: it is left alone then."""
    seen = reading.of(found, node.driver)
    if seen.tag is None or seen.tag.identity != node.identity:
        raise NotYet(f"domain {seen.name} on {node.host} does not bear this node's tag: an operator must look")
    return seen


def _from(
    connection: Connection,
    node: Node,
    to: Observation,
    begins: Collection[Observation],
    word: str,
    act: Callable[[Any], object],
) -> DomainReading:
    found, seen = _found(connection, node)
    if seen.observation is to:
        return seen
    if seen.observation not in begins:
        raise _wrong_state(node, seen, word)
    return _act(node, found, lambda: act(found), {to})


def _act(node: Node, found: Any, act: Callable[[], object], goal: Collection[Observation]) -> DomainReading:
    _try(act, lambda: reading.of(found, node.driver).observation in goal)
    return reading.of(found, node.driver)


def _try(act: Callable[[], object], reached: Callable[[], bool]) -> None:
    """Does it; a refusal of what is so already is none."""
    try:
        act()
    except LibvirtError:
        if not reached():
            raise


@contextlib.contextmanager
def _may_be_young(node: Node, found: Any, word: str) -> Iterator[None]:
    """What a guest has to help with is refused in its first seconds, as it does not listen yet; Xen gives no reason.
    While it runs on, the same call may work in a moment."""
    try:
        yield
    except LibvirtError as error:
        failure = Failure.of(error)
        if failure.code != Code.INTERNAL or node.driver == "test":
            raise
        seen = reading.of(found, node.driver)
        if seen.observation is not RUNNING:
            raise
        raise NotYet(
            f"domain {seen.name} on {node.host} runs on and was not {word}: {failure.message} (libvirt code "
            f"{failure.code}); it may not be up yet"
        ) from None


def _wrong_state(node: Node, seen: DomainReading, word: str) -> Exception:
    text = f"domain {seen.name} on {node.host} is {seen.observation.lower()} ({seen.detail}): it cannot be {word}"
    return NotYet(text) if seen.observation is Observation.BUSY else BackendRejected(text)


def _create(found: Any, *, paused: bool) -> None:
    if not paused:
        found.create()
        return
    try:
        found.createWithFlags(START_PAUSED)
    except LibvirtError as error:
        if Failure.of(error).code not in _NO_SUCH_FLAG:
            raise
        found.create()  # the driver cannot do both at once
        found.suspend()


def _named(connection: Connection, name: str) -> bool:
    try:
        connection.lookupByName(name)
    except LibvirtError as error:
        if Failure.of(error).code == Code.NO_DOMAIN:
            return False
        raise
    return True


def _why_not_started(connection: Connection, node: Node, found: Any, failure: Failure) -> str:
    """The reason that the hypervisor does not give: Xen says the same for no memory, no kernel, too many vcpus, a disk
    or a bridge that is not there."""
    seen = reading.of(found, node.driver)
    text = f"domain {seen.name} was not started on {node.host}: {failure.message} (libvirt code {failure.code})"
    free = reading.free_memory(connection)
    if free and free < seen.memory:
        return f"{text}; memory: {seen.memory} MiB are needed, {free} MiB are free"
    most = _most_vcpus(connection)
    if most and seen.vcpus > most:
        return f"{text}; vcpus: {seen.vcpus} are needed, the host gives a guest {most} at most"
    needs = domains.needs(found.XMLDesc(0))
    if missing := [what for what, path in needs.items() if what.startswith("disk ") and not _has(connection, path)]:
        return f"{text}; the host has no {' and no '.join(missing)}"
    memory = f"{free} MiB of memory are free for {seen.memory}, " if free else ""
    return f"{text}; {memory}so look whether the host has {', '.join(needs) or 'what the domain names'}"


def _most_vcpus(connection: Connection) -> int:
    try:
        return int(connection.getMaxVcpus(None))
    except LibvirtError:
        return 0


def _has(connection: Connection, path: str) -> bool:
    """Whether a path is a volume of a pool; yes, where it may be in none."""
    try:
        connection.storageVolLookupByPath(path)
    except LibvirtError as error:
        return Failure.of(error).code != Code.NO_VOLUME or not _in_a_pool(connection, path)
    return True


def _in_a_pool(connection: Connection, path: str) -> bool:
    for pool in connection.listAllStoragePools(2):  # active
        target = pool.XMLDesc(0).partition("<target>")[2].partition("<path>")[2].partition("</path>")[0]
        if target and path.startswith(f"{target}/"):
            return True
    return False
