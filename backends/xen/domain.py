"""The XML of a domain: a node's definition out, and what a definition says of its node back in.

Responsible for the domain's UUID, name and MACs, all derived from the node's identity, and for the metadata element
that carries the identity, the amounts and the addresses. Invariants: the same node gives the same UUID, name and MACs
on every host and after every restart; every value is written as XML text or attribute, never pasted. It knows no
connection; constants of libvirt's XML are named in the functions that write them.
"""

from __future__ import annotations

import hashlib
import json
import re
import uuid as uuids
from collections.abc import Mapping, Sequence
from typing import Final

from lxml import etree
from msgspec import Struct, field

from backends.base import BackendRejected, Identity, NicSpec, NodeSpec
from backends.xen.addresses import Network
from backends.xen.seam import Disk

NAMESPACE: Final = "urn:workspace-broker:node"
STOPPING: Final = "urn:workspace-broker:stopping"
_UUIDS: Final = uuids.UUID("6f1f6a0e-6d0b-5d0c-9a7e-3a1f0f3e9c55")
_NAME_LETTERS: Final = 40
_FIRST_VOLUME: Final = {"xen": "xvd", "virtio": "vd", "ide": "hd", "sata": "sd"}


class Boot(Struct, frozen=True, kw_only=True):
    """What a guest is and what it is started from."""

    guest: str = "pv"  # "pv", "pvh", "hvm"
    kernel: str = ""
    initrd: str = ""
    cmdline: str = ""


class Platform(Struct, frozen=True, kw_only=True):
    """What a host can run, as far as the XML depends on it."""

    driver: str  # "xen", "qemu", "test"
    arch: str = ""
    accelerated: bool = False  # qemu with KVM
    weights: bool = True  # it takes CPU weights


class Tag(Struct, frozen=True, kw_only=True):
    """What our metadata element says of a domain."""

    identity: Identity
    name: str = ""
    amounts: Mapping[str, int] = field(default_factory=dict)
    nics: tuple[NicSpec, ...] = ()


def uuid_of(identity: Identity) -> str:
    """The UUID of a node's domain: the same on every host, so that it is found without knowing where."""
    text = json.dumps([identity.broker_id, identity.workspace_uid, identity.node_index])
    return str(uuids.uuid5(_UUIDS, text))


def name_of(spec: NodeSpec) -> str:
    """The domain's name: the node's, for people, and a bit of its UUID, so that it is the only one."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", spec.name)[:_NAME_LETTERS].strip("-.") or "node"
    return f"{plain}-{uuid_of(spec.identity)[:8]}"


def mac_of(uuid: str, index: int) -> str:
    """The MAC of a node's interface. Locally administered: Xen's own prefix leaves 24 bits, and two guests of a
    thousand would share one."""
    digest = bytearray(hashlib.blake2b(f"{uuid}/{index}".encode(), digest_size=6).digest())
    digest[0] = digest[0] & 0xFC | 0x02
    return ":".join(f"{byte:02x}" for byte in digest)


def vcpus_of(amounts: Mapping[str, int]) -> int:
    """The cores, rounded up."""
    return max(1, -(-amounts.get("cpu", 1000) // 1000))


def build(
    spec: NodeSpec, boot: Boot, platform: Platform, networks: Mapping[str, Network], disks: Sequence[Disk] = ()
) -> str:
    """The definition of a node's domain. `spec.nics` have their addresses by now."""
    uuid = uuid_of(spec.identity)
    root = etree.Element("domain", type=_type(platform))
    _element(root, "name", name_of(spec))
    _element(root, "uuid", uuid)
    _element(root, "metadata").append(_tag(spec))
    _element(root, "memory", str(_memory(spec) * 1024), unit="KiB")
    _element(root, "vcpu", str(vcpus_of(spec.amounts)))
    if platform.weights:
        _element(_element(root, "cputune"), "shares", str(_weight(spec, platform)))
    _boot(root, boot, platform)
    _element(root, "on_poweroff", "destroy")
    _element(root, "on_reboot", "restart")
    _element(root, "on_crash", "destroy")
    devices = _element(root, "devices")
    _disks(devices, disks, _bus(boot, platform))
    for index, nic in enumerate(spec.nics):
        _interface(devices, mac_of(uuid, index), networks[nic.network], platform)
    _console(devices, boot, platform)
    return etree.tostring(root, encoding="unicode", pretty_print=True)


def read_tag(xml: str) -> tuple[Tag | None, str]:
    """What a domain's XML says of its node, None where it is a stranger's; and until when it was asked to stop, as it
    was written ("": it was not)."""
    root = etree.fromstring(xml.encode())
    stopping = root.find(f"metadata/{{{STOPPING}}}stop")
    until = "" if stopping is None else stopping.get("until", "")
    node = root.find(f"metadata/{{{NAMESPACE}}}node")
    if node is None:
        return None, until
    try:
        identity = Identity(
            broker_id=node.get("broker", ""),
            workspace_uid=node.get("workspace", ""),
            node_index=int(node.get("index", "")),
        )
        amounts = {each.get("name", ""): int(each.get("value", "")) for each in node.findall(f"{{{NAMESPACE}}}amount")}
    except ValueError:
        return None, until  # somebody wrote into it: nobody's, then
    nics = tuple(
        NicSpec(
            network=nic.get("network", ""),
            name=nic.get("name", ""),
            addresses=tuple(each.text or "" for each in nic.findall(f"{{{NAMESPACE}}}address")),
        )
        for nic in node.findall(f"{{{NAMESPACE}}}nic")
    )
    return Tag(identity=identity, name=node.get("name", ""), amounts=amounts, nics=nics), until


def stop_mark(until: str) -> str:
    """The metadata element that says until when a guest may take to shut down."""
    return etree.tostring(etree.Element("stop", until=until), encoding="unicode")


def needs(xml: str) -> dict[str, str]:
    """What a domain needs of its host, each with what it is: for a failure that says nothing."""
    root = etree.fromstring(xml.encode())
    found = {f"kernel {path}": path for path in (root.findtext("os/kernel"),) if path}
    found |= {f"initrd {path}": path for path in (root.findtext("os/initrd"),) if path}
    for source in root.findall("devices/interface/source"):
        for kind in ("bridge", "network"):
            if name := source.get(kind):
                found[f"{kind} {name}"] = ""
    for source in root.findall("devices/disk/source"):
        if path := source.get("dev") or source.get("file"):
            found[f"disk {path}"] = path
    return found


def _element(parent: etree._Element, tag: str, text: str = "", /, **attributes: str) -> etree._Element:
    element = etree.SubElement(parent, tag, attributes)
    element.text = text or None
    return element


def _type(platform: Platform) -> str:
    if platform.driver == "qemu":
        return "kvm" if platform.accelerated else "qemu"
    return platform.driver


def _memory(spec: NodeSpec) -> int:
    memory = spec.amounts.get("memory", 0)
    if memory <= 0:
        raise BackendRejected(f"{spec.name} needs memory: {memory} MiB are asked for")
    return memory


def _weight(spec: NodeSpec, platform: Platform) -> int:
    """The guest's share of the CPUs: a whole core is what the hypervisor gives a guest that says nothing."""
    core = 256 if platform.driver == "xen" else 100
    return min(10_000, max(2, spec.amounts.get("cpu", 1000) * core // 1000))


def _tag(spec: NodeSpec) -> etree._Element:
    identity = spec.identity
    node = etree.Element(
        f"{{{NAMESPACE}}}node",
        {
            "broker": identity.broker_id,
            "workspace": identity.workspace_uid,
            "index": str(identity.node_index),
            "name": spec.name,
        },
        nsmap={"broker": NAMESPACE},
    )
    for name, amount in sorted(spec.amounts.items()):
        etree.SubElement(node, f"{{{NAMESPACE}}}amount", {"name": name, "value": str(amount)})
    for nic in spec.nics:
        interface = etree.SubElement(node, f"{{{NAMESPACE}}}nic", {"network": nic.network, "name": nic.name})
        for address in nic.addresses:
            etree.SubElement(interface, f"{{{NAMESPACE}}}address").text = address
    return node


def _boot(root: etree._Element, boot: Boot, platform: Platform) -> None:
    system = _element(root, "os")
    arch = {"arch": platform.arch} if platform.arch and platform.driver != "test" else {}
    if platform.driver == "xen":
        machine, kind = {"pv": ("xenpv", "linux"), "pvh": ("xenpvh", "xenpvh"), "hvm": ("xenfv", "hvm")}[boot.guest]
        _element(system, "type", kind, machine=machine, **arch)
    else:
        _element(system, "type", "hvm", **arch)
    for tag, value in (("kernel", boot.kernel), ("initrd", boot.initrd), ("cmdline", boot.cmdline)):
        if value:
            _element(system, tag, value)
    if not boot.kernel:
        _element(system, "boot", dev="hd")
    if platform.driver == "qemu" or boot.guest == "hvm":
        features = _element(root, "features")
        for feature in ("acpi", "apic"):
            _element(features, feature)


def _bus(boot: Boot, platform: Platform) -> str:
    if platform.driver == "qemu":
        return "virtio"
    return "ide" if platform.driver == "xen" and boot.guest == "hvm" else "xen"


def _disks(devices: etree._Element, disks: Sequence[Disk], bus: str) -> None:
    used = {disk.device for disk in disks if disk.device}
    letters = iter("abcdefghijklmnopqrstuvwxyz")
    for disk in disks:
        # A drive that can be empty is no virtio device.
        its_bus = "sata" if disk.cdrom and bus == "virtio" else bus
        device = disk.device
        while not device or (not disk.device and device in used):
            device = _FIRST_VOLUME[its_bus] + next(letters)
        used.add(device)
        element = _element(
            devices, "disk", type="block" if disk.block else "file", device="cdrom" if disk.cdrom else "disk"
        )
        # Only Xen has a back end of its own for block devices.
        driver = "qemu" if bus == "virtio" else disk.driver
        _element(element, "driver", name=driver, type=disk.format)
        _element(element, "source", **{"dev" if disk.block else "file": disk.source})
        _element(element, "target", dev=device, bus=its_bus)
        if disk.read_only:
            _element(element, "readonly")


def _interface(devices: etree._Element, mac: str, network: Network, platform: Platform) -> None:
    element = _element(devices, "interface", type="bridge" if network.bridge else "network")
    _element(element, "mac", address=mac)
    if network.bridge:
        _element(element, "source", bridge=network.bridge)
    else:
        _element(element, "source", network=network.source)
    if platform.driver == "qemu":
        _element(element, "model", type="virtio")


def _console(devices: etree._Element, boot: Boot, platform: Platform) -> None:
    if platform.driver == "xen" and boot.guest != "hvm":
        _element(_element(devices, "console", type="pty"), "target", type="xen", port="0")
        return
    _element(_element(devices, "serial", type="pty"), "target", port="0")
    _element(_element(devices, "console", type="pty"), "target", type="serial", port="0")
