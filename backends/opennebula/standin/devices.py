"""Disks, NICs and what follows from them: images in use, leases, context.

Responsible for turning the DISK, NIC and CONTEXT of a template into what a VM shows, and for giving
images and leases back. Invariant: a lease and an image's `vms` name only VMs that are not DONE.
Does not check rights; `permissions` does before.
"""

from __future__ import annotations

from ipaddress import AddressValueError, IPv4Address
from itertools import chain
from typing import Final

from backends.opennebula.standin.errors import Refusal
from backends.opennebula.standin.machine import ImageState
from backends.opennebula.standin.state import AddressRange, Image, Network, Vm, World
from backends.opennebula.standin.template import Template, Vector, whole

_CONTEXT_OF_NIC: Final = (
    "DNS",
    "EXTERNAL",
    "GATEWAY",
    "IP",
    "IP6",
    "IP6_GATEWAY",
    "IP6_METHOD",
    "IP6_METRIC",
    "IP6_PREFIX_LENGTH",
    "IP6_ULA",
    "MAC",
    "MASK",
    "METHOD",
    "METRIC",
    "MTU",
    "NETWORK",
    "ROUTES",
    "SEARCH_DOMAIN",
    "VLAN_ID",
    "VROUTER_IP",
    "VROUTER_IP6",
    "VROUTER_MANAGEMENT",
)
_FROM_CONTEXT: Final = {"DNS", "GATEWAY", "IP", "MAC"}


def find_image(world: World, disk: Vector, uid: int) -> Image | None:
    """The image a DISK names by id, or by a name its owner gave it; None for a volatile disk."""
    if "IMAGE_ID" in disk:
        number = whole(disk["IMAGE_ID"])
        image = world.images.get(number) if number is not None else None
        if image is None:
            raise Refusal(Refusal.INTERNAL, f"Image with ID: {disk['IMAGE_ID']} does not exist")
        return image
    if "IMAGE" in disk:
        owner = _owner(world, disk, "IMAGE", uid)
        for image in world.images.values():
            if image.name == disk["IMAGE"] and image.uid == owner:
                return image
        raise Refusal(
            Refusal.INTERNAL,
            f"User {owner} does not own an image with name: {disk['IMAGE']} ."
            " Set IMAGE_UNAME or IMAGE_UID of owner in DISK.",
        )
    return None


def find_network(world: World, nic: Vector, uid: int) -> Network:
    if "NETWORK_ID" in nic:
        number = whole(nic["NETWORK_ID"])
        network = world.networks.get(number) if number is not None else None
        if network is None:
            raise Refusal(Refusal.INTERNAL, f"Virtual network with ID: {nic['NETWORK_ID']} does not exist")
        return network
    owner = _owner(world, nic, "NETWORK", uid)
    for network in world.networks.values():
        if network.name == nic.get("NETWORK") and network.uid == owner:
            return network
    raise Refusal(
        Refusal.INTERNAL,
        f"User {owner} does not own a network with name: {nic.get('NETWORK', '')} ."
        " Set NETWORK_UNAME or NETWORK_UID of owner in NIC.",
    )


def _owner(world: World, vector: Vector, what: str, uid: int) -> int:
    named = whole(vector.get(f"{what}_UID", ""))
    if named is not None:
        return named
    user = world.users.named(vector.get(f"{what}_UNAME", ""))
    return user.id if user is not None else uid


def build_disk(world: World, vm_id: int, disk: Vector, disk_id: int, image: Image | None) -> Vector:
    """A DISK as it stands in the VM; marks the image used."""
    built = dict(disk)
    built["DISK_ID"] = str(disk_id)
    built["DEV_PREFIX"] = disk.get("DEV_PREFIX", "sd")
    built["TARGET"] = disk.get("TARGET", built["DEV_PREFIX"] + chr(ord("a") + disk_id))
    if image is None:
        if disk.get("TYPE", "").lower() not in ("swap", "fs"):
            raise Refusal(Refusal.INTERNAL, f"Unknown disk type {disk.get('TYPE', '')}")
        return built
    datastore = world.datastores[image.datastore_id]
    built.update(
        {
            "ALLOW_ORPHANS": "NO",
            "CLONE": "NO" if image.persistent else "YES",
            "CLONE_TARGET": "SYSTEM",
            "CLUSTER_ID": ",".join(str(cluster) for cluster in world.clusters_of(datastore.id)),
            "DATASTORE": datastore.name,
            "DATASTORE_ID": str(datastore.id),
            "DISK_SNAPSHOT_TOTAL_SIZE": "0",
            "DISK_TYPE": "FILE",
            "DRIVER": "raw",
            "FORMAT": "raw",
            "IMAGE": image.name,
            "IMAGE_ID": str(image.id),
            "IMAGE_STATE": "2",
            "LN_TARGET": "NONE",
            "ORIGINAL_SIZE": str(image.size_mb),
            "PERSISTENT_SNAPSHOTS": "YES",
            "READONLY": "NO",
            "SAVE": "YES" if image.persistent else "NO",
            "SIZE": disk.get("SIZE", str(image.size_mb)),
            "SOURCE": "dummy_path",
            "TM_MAD": "dummy",
            "TYPE": "FILE",
        }
    )
    if image.persistent:
        built["PERSISTENT"] = "YES"
    image.vms.add(vm_id)
    image.state = ImageState.USED_PERS if image.persistent else ImageState.USED
    return built


def build_nic(vm_id: int, nic: Vector, nic_id: int, network: Network, lease_code: int = Refusal.INTERNAL) -> Vector:
    """A NIC as it stands in the VM, with a lease taken for it; `lease_code` is what having none is called."""
    address_range, index = _free_lease(network, nic.get("IP"), lease_code)
    address_range.leases[index] = vm_id
    if nic.get("IP") is None:
        address_range.next_index = index + 1
    built = dict(nic)
    built.update(
        {
            "AR_ID": str(address_range.id),
            "BRIDGE": network.template.get("BRIDGE"),
            "BRIDGE_TYPE": network.template.get("BRIDGE_TYPE"),
            "CLUSTER_ID": ",".join(str(cluster) for cluster in sorted(network.clusters)),
            "MAC": mac_at(address_range, index),
            "NAME": f"NIC{nic_id}",
            "NETWORK": network.name,
            "NETWORK_ID": str(network.id),
            "NIC_ID": str(nic_id),
            "SECURITY_GROUPS": "0",
            "TARGET": f"one-{vm_id}-{nic_id}",
            "VN_MAD": network.template.get("VN_MAD"),
        }
    )
    if address_range.ip:
        built["IP"] = ip_at(address_range, index)
    for name in ("DNS", "GATEWAY"):
        if name in network.template:
            built[name] = network.template.get(name)
    return built


def _free_lease(network: Network, wanted_ip: str | None, code: int) -> tuple[AddressRange, int]:
    for address_range in network.ranges:
        first = address_range.next_index
        for index in chain(range(first, address_range.size), range(first)):
            if index in address_range.leases:
                continue
            if wanted_ip is None or (address_range.ip and ip_at(address_range, index) == wanted_ip):
                return address_range, index
    raise Refusal(code, f"Cannot get IP/MAC lease from virtual network {network.id}.")


def ip_at(address_range: AddressRange, index: int) -> str:
    return str(IPv4Address(address_range.ip) + index)


def mac_at(address_range: AddressRange, index: int) -> str:
    number = int(address_range.mac.replace(":", ""), 16) + index
    return ":".join(f"{number >> shift & 0xFF:02x}" for shift in range(40, -1, -8))


def make_range(number: int, wanted: Vector) -> AddressRange:
    """An address range; the MAC follows from the first IP, as the daemon does it."""
    ip = wanted.get("IP", "")
    size = whole(wanted.get("SIZE", "1"))
    try:
        start = int(IPv4Address(ip)) if ip else 0xC2960CB2 + (number << 8)
    except AddressValueError:
        size = None
    if not size or start + size > 1 << 32:
        raise Refusal(Refusal.INTERNAL, "Wrong IP, MAC or SIZE in the address range")
    mac = "02:00:" + ":".join(f"{start >> shift & 0xFF:02x}" for shift in (24, 16, 8, 0))
    return AddressRange(id=number, type=wanted.get("TYPE", "IP4"), ip=ip, mac=mac, size=size)


def refresh_derived(template: Template) -> None:
    """What follows from the NICs: context variables, security group rules, cluster requirements."""
    nics = template.vectors("NIC")
    context = template.vector("CONTEXT")
    if context is not None:
        for name in [name for name in context if name.startswith("ETH")]:
            del context[name]
        context["DISK_ID"] = str(len(template.vectors("DISK")))
        context.setdefault("TARGET", "hda")
        if context.get("NETWORK", "").upper() == "YES":
            for nic in nics:
                for name in _CONTEXT_OF_NIC:
                    value = nic.get(name, "") if name in _FROM_CONTEXT else ""
                    context[f"ETH{nic['NIC_ID']}_{name}"] = value
    rules: list[Vector] = [
        {
            "PROTOCOL": "ALL",
            "RULE_TYPE": direction,
            "SECURITY_GROUP_ID": "0",
            "SECURITY_GROUP_NAME": "default",
        }
        for direction in ("OUTBOUND", "INBOUND")
    ]
    template.set_all("SECURITY_GROUP_RULE", [*rules] if nics else [])


def set_requirements(template: Template) -> None:
    """The requirements the daemon adds on its own, at allocate."""
    own = "!(PIN_POLICY = PINNED)"
    clusters = sorted({nic["CLUSTER_ID"] for nic in template.vectors("NIC")})
    disks = [disk for disk in template.vectors("DISK") if "CLUSTER_ID" in disk]
    where = clusters or sorted({disk["CLUSTER_ID"] for disk in disks})
    if where:
        ids = where[0].split(",")
        hosts = " | ".join(f"CLUSTER_ID = {cluster}" for cluster in ids)
        stores = " | ".join(f'"CLUSTERS/ID" @> {cluster}' for cluster in ids)
        own = f"({hosts}) & {own}"
        template.set("AUTOMATIC_DS_REQUIREMENTS", f"({stores})")
        if clusters:
            template.set("AUTOMATIC_NIC_REQUIREMENTS", f"({stores})")
    template.set("AUTOMATIC_REQUIREMENTS", own)


def on_deploy(world: World, vm: Vm, datastore_id: int) -> None:
    """What a VM's devices get when it has a host: a display port, and a place for volatile disks."""
    vm.template.set("TM_MAD_SYSTEM", "dummy")
    for graphics in vm.template.vectors("GRAPHICS"):
        graphics.setdefault("PORT", str(5900 + vm.id))
    datastore = world.datastores[datastore_id]
    for disk in vm.template.vectors("DISK"):
        if "IMAGE_ID" not in disk:
            disk.update(
                {
                    "ALLOW_ORPHANS": "NO",
                    "CLUSTER_ID": ",".join(str(cluster) for cluster in world.clusters_of(datastore_id)),
                    "DATASTORE": datastore.name,
                    "DATASTORE_ID": str(datastore_id),
                    "DISK_TYPE": "FILE",
                    "DRIVER": "raw",
                    "FORMAT": "raw",
                    "PERSISTENT_SNAPSHOTS": "YES",
                    "TM_MAD": "dummy",
                }
            )


def detach_nic(world: World, nic: Vector, vm_id: int) -> None:
    network = world.networks.get(int(nic["NETWORK_ID"]))
    if network is None:
        return
    for address_range in network.ranges:
        for index in [index for index, holder in address_range.leases.items() if holder == vm_id]:
            if mac_at(address_range, index) == nic["MAC"]:
                del address_range.leases[index]


def detach_disk(world: World, disk: Vector, vm_id: int) -> None:
    image = world.images.get(int(disk.get("IMAGE_ID", "-1")))
    if image is not None:
        image.vms.discard(vm_id)
        if not image.vms:
            image.state = ImageState.READY


def release(world: World, template: Template, vm_id: int) -> None:
    """Give back everything these NICs and disks hold."""
    for nic in template.vectors("NIC"):
        detach_nic(world, nic, vm_id)
    for disk in template.vectors("DISK"):
        detach_disk(world, disk, vm_id)
    for graphics in template.vectors("GRAPHICS"):
        graphics.pop("PORT", None)
