"""The XML of a node's domain, for each kind of guest and host, and what is read back from it."""

from __future__ import annotations

from typing import Any

import pytest
from lxml import etree
from msgspec.structs import replace

from backends.base import BackendRejected, Identity, NicSpec, NodeSpec
from backends.xen import domain
from backends.xen.addresses import Network
from backends.xen.domain import Boot, Platform
from backends.xen.seam import Disk

IDENTITY = Identity(broker_id="b", workspace_uid="w", node_index=3)
SPEC = NodeSpec(
    identity=IDENTITY,
    name="web-3",
    host="x",
    amounts={"cpu": 1500, "memory": 512, "disk": 1024},
    nics=(NicSpec(network="lan", name="front", addresses=("10.77.0.100",)), NicSpec(network="back")),
)
NETWORKS = {
    "lan": Network(name="lan", bridge="xenbr0"),
    "back": Network(name="back", source="internal"),
}
XEN = Platform(driver="xen", arch="x86_64")
KERNEL = Boot(guest="pv", kernel="/guest/vmlinux", initrd="/guest/initrd.gz", cmdline="console=hvc0 quiet")


def made(
    spec: NodeSpec = SPEC, boot: Boot = KERNEL, platform: Platform = XEN, disks: tuple[Disk, ...] = ()
) -> etree._Element:
    return etree.fromstring(domain.build(spec, boot, platform, NETWORKS, disks))


def attributes(root: etree._Element, path: str) -> list[dict[str, str]]:
    return [{str(key): str(value) for key, value in each.attrib.items()} for each in root.findall(path)]


def test_a_node_has_the_same_uuid_name_and_macs_for_ever() -> None:
    # Written down: what stands at a host was derived by an earlier release.
    assert domain.uuid_of(IDENTITY) == "552edefc-12ed-5665-a31c-52c4bafc539a"
    assert domain.name_of(SPEC) == "web-3-552edefc"
    assert domain.mac_of(domain.uuid_of(IDENTITY), 0) == "9a:99:c8:43:93:e0"


def test_other_nodes_have_others() -> None:
    others = [
        replace(IDENTITY, broker_id="c"),
        replace(IDENTITY, workspace_uid="v"),
        replace(IDENTITY, node_index=4),
        Identity(broker_id="b/w", workspace_uid="", node_index=3),
    ]
    assert len({domain.uuid_of(each) for each in (IDENTITY, *others)}) == 5
    macs = {domain.mac_of(domain.uuid_of(IDENTITY), index) for index in range(100)}
    assert len(macs) == 100
    assert all(int(mac[:2], 16) & 3 == 2 for mac in macs), "locally administered, for one receiver"


@pytest.mark.parametrize(
    ("name", "expected"),
    [("a/b\nc", "a-b-c"), ("ä" * 100, "node"), ("x" * 100, "x" * 40), ("-.", "node")],
)
def test_a_name_holds_what_libvirt_takes(name: str, expected: str) -> None:
    assert domain.name_of(replace(SPEC, name=name)) == f"{expected}-552edefc"


def test_a_paravirtual_guest() -> None:
    root = made()
    assert root.get("type") == "xen"
    assert (root.findtext("name"), root.findtext("uuid")) == ("web-3-552edefc", domain.uuid_of(IDENTITY))
    memory = root.find("memory")
    assert memory is not None
    assert (memory.text, memory.get("unit")) == (str(512 * 1024), "KiB")
    assert root.findtext("vcpu") == "2", "cores are rounded up"
    assert root.findtext("cputune/shares") == "384", "one and a half times what a guest has by itself"
    assert attributes(root, "os/type") == [{"arch": "x86_64", "machine": "xenpv"}]
    assert root.findtext("os/type") == "linux"
    assert [root.findtext(f"os/{tag}") for tag in ("kernel", "initrd", "cmdline")] == [
        "/guest/vmlinux",
        "/guest/initrd.gz",
        "console=hvc0 quiet",
    ]
    assert [root.findtext(f"on_{event}") for event in ("poweroff", "reboot", "crash")] == [
        "destroy",
        "restart",
        "destroy",
    ]
    assert attributes(root, "devices/interface") == [{"type": "bridge"}, {"type": "network"}]
    assert attributes(root, "devices/interface/source") == [{"bridge": "xenbr0"}, {"network": "internal"}]
    uuid = domain.uuid_of(IDENTITY)
    assert attributes(root, "devices/interface/mac") == [
        {"address": domain.mac_of(uuid, 0)},
        {"address": domain.mac_of(uuid, 1)},
    ]
    assert attributes(root, "devices/console/target") == [{"type": "xen", "port": "0"}]


@pytest.mark.parametrize(
    ("guest", "machine", "kind"), [("pv", "xenpv", "linux"), ("pvh", "xenpvh", "xenpvh"), ("hvm", "xenfv", "hvm")]
)
def test_each_kind_of_guest(guest: str, machine: str, kind: str) -> None:
    root = made(boot=replace(KERNEL, guest=guest))
    assert attributes(root, "os/type") == [{"arch": "x86_64", "machine": machine}]
    assert root.findtext("os/type") == kind
    assert (root.find("features/acpi") is not None) == (guest == "hvm")
    assert (root.find("devices/serial") is not None) == (guest == "hvm")


def test_a_guest_without_a_kernel_boots_from_its_disk() -> None:
    root = made(boot=Boot(guest="hvm"))
    assert attributes(root, "os/boot") == [{"dev": "hd"}]
    assert root.find("os/kernel") is None


@pytest.mark.parametrize(("accelerated", "kind"), [(True, "kvm"), (False, "qemu")])
def test_a_qemu_host(accelerated: bool, kind: str) -> None:
    root = made(platform=Platform(driver="qemu", arch="x86_64", accelerated=accelerated))
    assert root.get("type") == kind
    assert root.findtext("os/type") == "hvm"
    assert root.findtext("cputune/shares") == "150"
    assert attributes(root, "devices/interface/model") == [{"type": "virtio"}, {"type": "virtio"}]


def test_a_host_that_takes_no_weights() -> None:
    assert made(platform=replace(XEN, weights=False)).find("cputune") is None


def test_disks_on_xen() -> None:
    disks = (
        Disk(source="/dev/vg0/root", device=""),
        Disk(source="/dev/vg0/data", device="xvdc"),
        Disk(source="/images/seed.iso", device="", block=False, read_only=True, cdrom=True),
    )
    root = made(disks=disks)
    assert attributes(root, "devices/disk") == [
        {"type": "block", "device": "disk"},
        {"type": "block", "device": "disk"},
        {"type": "file", "device": "cdrom"},
    ]
    assert attributes(root, "devices/disk/source") == [
        {"dev": "/dev/vg0/root"},
        {"dev": "/dev/vg0/data"},
        {"file": "/images/seed.iso"},
    ]
    assert attributes(root, "devices/disk/driver")[0] == {"name": "phy", "type": "raw"}
    assert attributes(root, "devices/disk/target") == [
        {"dev": "xvda", "bus": "xen"},
        {"dev": "xvdc", "bus": "xen"},
        {"dev": "xvdb", "bus": "xen"},
    ]
    assert [disk.find("readonly") is not None for disk in root.findall("devices/disk")] == [False, False, True]


def test_disks_on_qemu() -> None:
    disks = (
        Disk(source="/i/a.qcow2", device="", format="qcow2", block=False),
        Disk(source="/i/s", device="", cdrom=True),
    )
    root = made(platform=Platform(driver="qemu"), disks=disks)
    assert attributes(root, "devices/disk/driver")[0] == {"name": "qemu", "type": "qcow2"}
    assert [each["bus"] for each in attributes(root, "devices/disk/target")] == ["virtio", "sata"]
    assert len({each["dev"] for each in attributes(root, "devices/disk/target")}) == 2


def test_what_a_domain_says_of_its_node_is_what_was_written() -> None:
    tag, until = domain.read_tag(domain.build(SPEC, KERNEL, XEN, NETWORKS))
    assert tag is not None
    assert (tag.identity, tag.name, tag.amounts, tag.nics) == (IDENTITY, "web-3", SPEC.amounts, SPEC.nics)
    assert until == ""


def test_no_value_breaks_out_of_its_place() -> None:
    nasty = "\"'<&>]]>"
    spec = replace(SPEC, identity=replace(IDENTITY, workspace_uid=nasty), name=nasty)
    xml = domain.build(spec, replace(KERNEL, cmdline=nasty), XEN, NETWORKS)
    tag, _ = domain.read_tag(xml)
    assert tag is not None
    assert (tag.identity.workspace_uid, tag.name) == (nasty, nasty)
    assert etree.fromstring(xml).findtext("os/cmdline") == nasty


@pytest.mark.parametrize(
    "metadata",
    [
        "",
        "<metadata/>",
        "<metadata><x:node xmlns:x='urn:somebody-else' broker='b' workspace='w' index='0'/></metadata>",
        "<metadata><x:node xmlns:x='urn:workspace-broker:node' broker='b' workspace='w' index='zero'/></metadata>",
    ],
)
def test_a_strangers_domain_says_nothing(metadata: str) -> None:
    assert domain.read_tag(f"<domain><name>x</name>{metadata}</domain>") == (None, "")


def test_the_note_on_a_guest_that_was_asked_to_stop() -> None:
    mark = domain.stop_mark("2026-01-01T00:00:00+00:00")
    inner = mark.replace("<stop ", "<s:stop xmlns:s='urn:workspace-broker:stopping' ")
    assert domain.read_tag(f"<domain><metadata>{inner}</metadata></domain>") == (None, "2026-01-01T00:00:00+00:00")


def test_a_node_without_memory_is_refused() -> None:
    with pytest.raises(BackendRejected, match="web-3 needs memory: 0 MiB are asked for"):
        made(replace(SPEC, amounts={"cpu": 1000}))


def test_what_a_domain_needs_of_its_host() -> None:
    xml = domain.build(SPEC, KERNEL, XEN, NETWORKS, (Disk(source="/dev/vg0/root", device=""),))
    assert list(domain.needs(xml)) == [
        "kernel /guest/vmlinux",
        "initrd /guest/initrd.gz",
        "bridge xenbr0",
        "network internal",
        "disk /dev/vg0/root",
    ]


@pytest.mark.parametrize(
    ("amounts", "expected"), [({"cpu": 1}, 1), ({"cpu": 1000}, 1), ({"cpu": 1001}, 2), ({"cpu": 8000}, 8), ({}, 1)]
)
def test_cores_are_rounded_up(amounts: dict[str, Any], expected: int) -> None:
    assert domain.vcpus_of(amounts) == expected
