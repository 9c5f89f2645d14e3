"""The documents a front-end answers with, read into values in the broker's units (milli-cores, MiB).

Responsible for where a fact stands in the XML, for units, and for refusing nonsense. Invariants: a document
with a DOCTYPE is not parsed, entities are never resolved; a document that is not what was asked for, or where
a number is none, raises `Unusable` as a whole, so that half a pool is never taken for the pool. It draws no
conclusions.

Units on the wire: HOST_SHARE has hundredths of a core and KB, a VM's TEMPLATE has cores and MB, disks have
MB.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal, InvalidOperation
from typing import Final, TypeVar

from lxml import etree

from backends.base import Identity
from backends.opennebula.failures import Unusable

IDENTITY_TAG: Final = "WORKSPACE_BROKER"
"""The template attribute with BROKER, WORKSPACE and NODE; it lands in a VM's USER_TEMPLATE."""

T = TypeVar("T")
Element = etree._Element


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """`image_id` is empty for a blank disk."""

    disk_id: int
    target: str
    image_id: str
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Nic:
    """A lease: a NIC or an alias of one."""

    network_id: int
    network: str
    name: str
    mac: str
    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Vm:
    """One VM. `host` is that of the last history record, whether it is still there or not."""

    vm_id: int
    name: str
    state: int
    lcm: int
    host: str
    cpu: int
    memory: int
    disks: tuple[Disk, ...]
    nics: tuple[Nic, ...]
    identity: Identity | None
    message: str

    @property
    def disk(self) -> int:
        return sum(disk.size for disk in self.disks)


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """One host; `cpu`, `memory`, `disk` are what VMs may be promised, 0 where it has not reported."""

    host_id: int
    name: str
    state: int
    cluster_id: int
    cluster: str
    cpu: int
    memory: int
    disk: int
    drivers: tuple[str, str]  # IM_MAD, VM_MAD
    template: Mapping[str, str]
    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """One image; `size` in MB."""

    image_id: int
    name: str
    kind: int
    state: int
    size: int
    datastore_id: int
    arch: str
    hypervisor: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    network_id: int
    name: str
    clusters: frozenset[int]
    size: int
    used: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Datastore:
    datastore_id: int
    name: str
    system: bool
    enabled: bool
    shared: bool
    clusters: frozenset[int]
    total: int
    used: int


def _text(node: Element, path: str) -> str:
    return (node.findtext(path) or "").strip()


def _int(node: Element, path: str, default: int | None = None) -> int:
    text = _text(node, path)
    if not text and default is not None:
        return default
    try:
        return int(text)
    except ValueError:
        raise Unusable(f'{node.tag}/{path} is "{text[:60]}" and not a whole number') from None


def _milli_cores(node: Element, path: str) -> int:
    text = _text(node, path) or "0"
    try:
        return int((Decimal(text) * 1000).to_integral_value(rounding=ROUND_CEILING))
    except (InvalidOperation, ValueError, OverflowError):
        raise Unusable(f'{node.tag}/{path} is "{text[:60]}" and not a number of cores') from None


def _root(text: str, name: str) -> Element:
    start = text.find(f"<{name}")
    prolog = text[:start]
    if start < 0 or "<!" in prolog:
        raise Unusable(f"a document that is no {name}: {text[:80]!r}")
    parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False, huge_tree=True)
    try:
        root = etree.fromstring(text.encode("utf-8", "surrogatepass"), parser)
    except (etree.XMLSyntaxError, ValueError) as error:
        raise Unusable(f"a broken {name}: {error}") from error
    if root.tag != name:
        raise Unusable(f"a document that is no {name} but a {root.tag}")
    return root


def _pool(text: str, name: str, tag: str, read: Callable[[Element], T]) -> tuple[T, ...]:
    return tuple(read(node) for node in _root(text, name).iterchildren(tag))


def _identity(node: Element) -> Identity | None:
    tag = node.find(f"USER_TEMPLATE/{IDENTITY_TAG}")
    if tag is None:
        return None
    broker, workspace, index = _text(tag, "BROKER"), _text(tag, "WORKSPACE"), _text(tag, "NODE")
    # Anyone may write a tag by hand; one that we would not have written is nobody's.
    if not broker or not workspace or not index.isdecimal():
        return None
    return Identity(broker_id=broker, workspace_uid=workspace, node_index=int(index))


def _disk(node: Element) -> Disk:
    return Disk(
        disk_id=_int(node, "DISK_ID", -1),
        target=_text(node, "TARGET"),
        image_id=_text(node, "IMAGE_ID"),
        size=_int(node, "SIZE", 0),
    )


def _nic(node: Element) -> Nic:
    return Nic(
        network_id=_int(node, "NETWORK_ID", -1),
        network=_text(node, "NETWORK"),
        name=_text(node, "NAME"),
        mac=_text(node, "MAC"),
        addresses=tuple(filter(None, (_text(node, key) for key in ("IP", "IP6", "IP6_GLOBAL", "IP6_ULA")))),
    )


def _vm(node: Element) -> Vm:
    record = node.findall("HISTORY_RECORDS/HISTORY")
    nics = node.findall("TEMPLATE/NIC") + node.findall("TEMPLATE/NIC_ALIAS")
    return Vm(
        vm_id=_int(node, "ID"),
        name=_text(node, "NAME"),
        state=_int(node, "STATE"),
        lcm=_int(node, "LCM_STATE"),
        host=_text(record[-1], "HOSTNAME") if record else "",
        cpu=_milli_cores(node, "TEMPLATE/CPU"),
        memory=_int(node, "TEMPLATE/MEMORY", 0),
        disks=tuple(map(_disk, node.findall("TEMPLATE/DISK"))),
        nics=tuple(map(_nic, nics)),
        identity=_identity(node),
        message=_text(node, "USER_TEMPLATE/ERROR") or _text(node, "USER_TEMPLATE/SCHED_MESSAGE"),
    )


def _host(node: Element) -> Host:
    template = node.find("TEMPLATE")
    plain = {} if template is None else {leaf.tag: leaf.text or "" for leaf in template if len(leaf) == 0}
    return Host(
        host_id=_int(node, "ID"),
        name=_text(node, "NAME"),
        state=_int(node, "STATE"),
        cluster_id=_int(node, "CLUSTER_ID", -1),
        cluster=_text(node, "CLUSTER"),
        # Hundredths of a core; the reserve is taken off. A reserve above the whole leaves nothing, not less.
        cpu=max(0, _int(node, "HOST_SHARE/MAX_CPU", 0)) * 10,
        memory=max(0, _int(node, "HOST_SHARE/MAX_MEM", 0)) // 1024,
        disk=max(0, _int(node, "HOST_SHARE/DATASTORES/MAX_DISK", 0)),
        drivers=(_text(node, "IM_MAD"), _text(node, "VM_MAD")),
        template={str(key): value for key, value in plain.items()},
        error=_text(node, "TEMPLATE/ERROR"),
    )


def _image(node: Element) -> Image:
    return Image(
        image_id=_int(node, "ID"),
        name=_text(node, "NAME"),
        kind=_int(node, "TYPE"),
        state=_int(node, "STATE"),
        size=_int(node, "SIZE", 0),
        datastore_id=_int(node, "DATASTORE_ID", -1),
        arch=_text(node, "TEMPLATE/ARCH"),
        hypervisor=_text(node, "TEMPLATE/HYPERVISOR"),
    )


def _clusters(node: Element) -> frozenset[int]:
    return frozenset(_int(entry, ".") for entry in node.findall("CLUSTERS/ID"))


def _network(node: Element) -> Network:
    return Network(
        network_id=_int(node, "ID"),
        name=_text(node, "NAME"),
        clusters=_clusters(node),
        size=sum(_int(part, "SIZE", 0) for part in node.findall("AR_POOL/AR")),
        used=_int(node, "USED_LEASES", 0),
    )


def _datastore(node: Element) -> Datastore:
    return Datastore(
        datastore_id=_int(node, "ID"),
        name=_text(node, "NAME"),
        system=_int(node, "TYPE") == 1,
        enabled=_int(node, "STATE", 0) == 0,
        shared=_text(node, "TEMPLATE/SHARED").upper() == "YES",
        clusters=_clusters(node),
        total=_int(node, "TOTAL_MB", 0),
        used=_int(node, "USED_MB", 0),
    )


def vm(text: str) -> Vm:
    """What one.vm.info answers."""
    return _vm(_root(text, "VM"))


def vms(text: str) -> tuple[Vm, ...]:
    """What one.vmpool.infoextended answers, newest first.

    The shorter one.vmpool.info has no identity in it.
    """
    return _pool(text, "VM_POOL", "VM", _vm)


def hosts(text: str) -> tuple[Host, ...]:
    """What one.hostpool.info answers; to a session without rights it is empty."""
    return _pool(text, "HOST_POOL", "HOST", _host)


def images(text: str) -> tuple[Image, ...]:
    """What one.imagepool.info answers."""
    return _pool(text, "IMAGE_POOL", "IMAGE", _image)


def networks(text: str) -> tuple[Network, ...]:
    """What one.vnpool.info answers."""
    return _pool(text, "VNET_POOL", "VNET", _network)


def datastores(text: str) -> tuple[Datastore, ...]:
    """What one.datastorepool.info answers."""
    return _pool(text, "DATASTORE_POOL", "DATASTORE", _datastore)
