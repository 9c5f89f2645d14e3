"""What is really on a host: libvirt asked straight, not through a broker or an adapter, and dom0's own words.

Each look has a connection of its own. A look at a frozen host never ends: thaw it first. `tidy` is the only function
here that changes anything.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import libvirt

from tests.xen.lab.host import Host

T = TypeVar("T")
DOM0: Final = "Domain-0"
STOPPING: Final = "urn:workspace-broker:stopping"  # a guest that was asked to shut down
STATES: Final = {
    libvirt.VIR_DOMAIN_RUNNING: "running",
    libvirt.VIR_DOMAIN_BLOCKED: "running",
    libvirt.VIR_DOMAIN_PAUSED: "paused",
    libvirt.VIR_DOMAIN_SHUTDOWN: "ending",
    libvirt.VIR_DOMAIN_SHUTOFF: "off",
    libvirt.VIR_DOMAIN_CRASHED: "crashed",
    libvirt.VIR_DOMAIN_NOSTATE: "running",  # Xen between two slices of CPU
}

libvirt.registerErrorHandler(lambda *_: None, None)  # errors are raised, not printed as well


@dataclass(frozen=True, slots=True, kw_only=True)
class Domain:
    """A domain as libvirt shows it."""

    name: str
    uuid: str
    id: int  # -1: it does not run
    state: str
    saved: bool
    persistent: bool
    xml: str  # its definition
    live_xml: str  # as it runs


@contextlib.contextmanager
def connected(host: Host) -> Iterator[Any]:
    """A connection for a block."""
    connection = libvirt.open(host.uri)
    try:
        yield connection
    finally:
        with contextlib.suppress(libvirt.libvirtError):
            connection.close()


def domains(host: Host) -> dict[str, Domain]:
    """All domains but dom0, by name."""
    with connected(host) as connection:
        found = [_domain(each) for each in connection.listAllDomains() if each.name() != DOM0]
    return {domain.name: domain for domain in found if domain is not None}


def _domain(domain: Any) -> Domain | None:
    try:
        return Domain(
            name=domain.name(),
            uuid=domain.UUIDString(),
            id=domain.ID(),
            state=STATES[domain.state()[0]],
            saved=bool(domain.hasManagedSaveImage()),
            persistent=bool(domain.isPersistent()),
            xml=domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE),
            live_xml=domain.XMLDesc(0),
        )
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
            return None
        raise


def volumes(host: Host) -> dict[str, tuple[str, ...]]:
    """The names of all volumes of all active pools, by pool."""
    found = {}
    with connected(host) as connection:
        for pool in connection.listAllStoragePools():
            if pool.isActive():
                pool.refresh(0)
                found[pool.name()] = tuple(sorted(pool.listVolumes()))
    return found


def free_memory(host: Host) -> int:
    """MiB that no domain has."""
    with connected(host) as connection:
        return int(connection.getFreeMemory()) >> 20


def console_log(host: Host, domain: str) -> str:
    """All that a guest has printed since its host booted."""
    log = host.ssh(f"cat /var/log/xen/console/guest-{domain}.log 2>/dev/null", check=False)
    return log.replace("\r", "")


def xen_domains(host: Host) -> set[str]:
    """The names of the domains Xen itself knows, by xl: what no libvirtd could hide."""
    lines = host.ssh("xl list").splitlines()[1:]
    return {line.split()[0] for line in lines} - {DOM0}


def booting(host: Host) -> set[int]:
    """The ids of guests whose kernel does not listen to Xen yet: asked to stop or to be saved, they would not. One that
    goes on from saved memory, or has moved, does listen and does not say so again."""
    heard = "xenstore-read /local/domain/$d/control/feature-poweroff 2>/dev/null"
    lines = host.ssh(f"for d in $(xenstore-list /local/domain); do echo $d $({heard}); done").splitlines()
    return {int(line) for line in lines if len(line.split()) == 1} - {0}


def until(look: Callable[[], T], holds: Callable[[T], object], timeout: float = 60.0) -> T:
    """Looks until what is seen holds; fails with what was seen last."""
    deadline = time.monotonic() + timeout
    while True:
        seen = look()
        if holds(seen):
            return seen
        assert time.monotonic() < deadline, f"not within {timeout:.0f} s; last seen: {seen}"
        time.sleep(0.2)


def guest_xml(name: str, *, memory: int = 96, extra: str = "") -> str:
    """A small PV guest without a disk."""
    return f"""<domain type='xen'><name>{name}</name><memory unit='MiB'>{memory}</memory><vcpu>1</vcpu>
<os><type arch='x86_64' machine='xenpv'>linux</type><kernel>/guest/vmlinux</kernel><initrd>/guest/initrd.gz</initrd>
<cmdline>console=hvc0 quiet panic=5</cmdline></os>
<on_poweroff>destroy</on_poweroff><on_reboot>restart</on_reboot><on_crash>destroy</on_crash>
<devices>{extra}<console type='pty'><target type='xen' port='0'/></console></devices></domain>"""


def tidy(host: Host) -> None:
    """Brings a host back to what it was: thawed, its libvirtd there, without guests, volumes and old console logs."""
    if host.status() == "paused":
        host.thaw()
    until(lambda: _answers(host), bool, 60)
    with connected(host) as connection:
        for domain in connection.listAllDomains():
            if domain.name() != DOM0:
                _remove(domain)
        for pool in connection.listAllStoragePools():
            if pool.isActive():
                pool.refresh(0)
                for volume in pool.listAllVolumes():
                    volume.delete(0)
    until(lambda: domains(host), lambda left: not left)


def _answers(host: Host) -> bool:
    try:
        with connected(host) as connection:
            connection.listAllDomains()
        return True
    except libvirt.libvirtError:
        return False


def _remove(domain: Any) -> None:
    persistent = domain.isPersistent()
    with contextlib.suppress(libvirt.libvirtError):  # it may end by itself meanwhile
        domain.destroy()
    if persistent:
        domain.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE)
