"""The template of a VM to be: from a `NodeSpec` to the text one.vm.allocate and one.template.instantiate
take.

Responsible for every attribute the broker writes. Invariants: the identity is always in it; no value can
break out of its attribute, because templates are written as XML, whose escapes are exact, and not as A="b"
text, whose escapes are not documented. It asks nobody: image and network ids come in resolved.
"""

from __future__ import annotations

import ipaddress
from base64 import b64encode
from collections.abc import Mapping
from decimal import Decimal
from typing import Final

from lxml import etree

from backends.base import BackendRejected, Identity, NicSpec, NodeSpec
from backends.opennebula.documents import IDENTITY_TAG, Image, Network
from backends.opennebula.parameters import Parameters
from backends.opennebula.rpc import check_text

# What the front-end refuses in a name; "/" and the quote are recorded, the others are of the same list.
_NOT_IN_NAMES: Final = frozenset("&|:\\\";/'#{}$<>")
_LONGEST_NAME: Final = 128


def check_name(name: str) -> str:
    """Refuses a VM or image name the front-end would not take, before anything is sent."""
    check_text(name, f'the name "{name}"')
    bad = sorted(_NOT_IN_NAMES.intersection(name))
    if bad or not name.strip() or len(name) > _LONGEST_NAME:
        why = f"{' '.join(bad)} is not allowed in it" if bad else f"it must have 1 to {_LONGEST_NAME} characters"
        raise BackendRejected(f'OpenNebula takes no name "{name}": {why}')
    return name


def cores(milli_cores: int) -> str:
    """Milli-cores as OpenNebula writes cores: 500 is "0.5"."""
    return f"{(Decimal(milli_cores) / 1000).normalize():f}"


def build(spec: NodeSpec, parameters: Parameters, images: Mapping[str, Image], networks: Mapping[str, Network]) -> str:
    """The template of a node, with what its images and networks stand for. Raises BackendRejected for what cannot be.

    With `opennebula:template`, this text is laid over that template: an attribute here takes the place of all
    attributes of that name there, so CONTEXT, DISK and NIC are written only if the request has something to
    say.
    """
    root = etree.Element("TEMPLATE")
    _single(root, "NAME", check_name(spec.name))
    _capacity(root, spec, parameters)
    _disks(root, spec, parameters, images)
    for nic in spec.nics:
        _nic(root, nic, networks)
    _context(root, spec, parameters)
    if parameters.cpu_model:
        _vector(root, "CPU_MODEL", MODEL=parameters.cpu_model)
    if parameters.graphics:
        _vector(root, "GRAPHICS", TYPE=parameters.graphics, LISTEN="127.0.0.1")
    if parameters.boot:
        _vector(root, "OS", BOOT=parameters.boot)
    if parameters.description:
        _single(root, "DESCRIPTION", parameters.description)
    if parameters.labels:
        _single(root, "LABELS", ",".join(parameters.labels))
    if parameters.budget is not None:
        _single(root, "BUDGET", str(parameters.budget))
    _identity(root, spec.identity)
    return etree.tostring(root, encoding="unicode")


def _single(parent: etree._Element, name: str, value: str) -> None:
    check_text(value, f"{parent.tag}/{name}")
    etree.SubElement(parent, name).text = value


def _vector(parent: etree._Element, name: str, **values: str) -> None:
    element = etree.SubElement(parent, name)
    for key, value in values.items():
        if value:
            _single(element, key, value)


def _capacity(root: etree._Element, spec: NodeSpec, parameters: Parameters) -> None:
    cpu, memory = spec.amounts.get("cpu", 0), spec.amounts.get("memory", 0)
    if cpu <= 0 or memory <= 0:
        raise BackendRejected(f"OpenNebula makes no VM of {cpu} milli-cores and {memory} MiB: both must be positive")
    _single(root, "CPU", cores(cpu))
    _single(root, "VCPU", str(parameters.vcpu or -(-cpu // 1000)))
    _single(root, "MEMORY", str(memory))


def _disks(root: etree._Element, spec: NodeSpec, parameters: Parameters, images: Mapping[str, Image]) -> None:
    """The boot disk gets what the other disks leave of the node's disk, but is never cut below its image."""
    extra = [images[disk.image] if disk.image else None for disk in spec.disks]
    others = sum(image.size if image else disk.size_mib for image, disk in zip(extra, spec.disks, strict=True))
    boot = spec.amounts.get("disk", 0) - others
    if spec.image:
        image = images[spec.image]
        _vector(root, "DISK", IMAGE_ID=str(image.image_id), SIZE=str(boot) if boot > image.size else "")
    elif boot > 0 and parameters.template is None:
        _vector(root, "DISK", **_blank(boot))
    for found, disk in zip(extra, spec.disks, strict=True):
        if found is None and disk.size_mib <= 0:
            raise BackendRejected("a disk needs an image or a size")
        origin = {"IMAGE_ID": str(found.image_id)} if found else _blank(disk.size_mib)
        _vector(root, "DISK", **origin, TARGET=disk.device, READONLY="YES" if disk.read_only else "")


def _blank(size_mib: int) -> dict[str, str]:
    return {"TYPE": "fs", "FORMAT": "raw", "SIZE": str(size_mib)}


def _nic(root: etree._Element, nic: NicSpec, networks: Mapping[str, Network]) -> None:
    wanted: dict[str, str] = {}
    for address in nic.addresses:
        try:
            key = "IP" if ipaddress.ip_address(address).version == 4 else "IP6"
        except ValueError:
            raise BackendRejected(f'"{address}" on network {nic.network} is no IP address') from None
        if key in wanted:
            raise BackendRejected(f"OpenNebula gives an interface one {key} address, not {', '.join(nic.addresses)}")
        wanted[key] = address
    _vector(root, "NIC", NETWORK_ID=str(networks[nic.network].network_id), NAME=nic.name, **wanted)


def _context(root: etree._Element, spec: NodeSpec, parameters: Parameters) -> None:
    if parameters.template is not None and not spec.user_data and not spec.ssh_public_keys:
        return
    # Bytes of any kind travel as base64; cloud-init and one-context both decode it when told so.
    data = b64encode(spec.user_data).decode("ascii")
    _vector(
        root,
        "CONTEXT",
        NETWORK="YES",
        SSH_PUBLIC_KEY="\n".join(spec.ssh_public_keys),
        USERDATA=data,
        USERDATA_ENCODING="base64" if data else "",
    )


def _identity(root: etree._Element, identity: Identity) -> None:
    _vector(
        root,
        IDENTITY_TAG,
        BROKER=identity.broker_id,
        WORKSPACE=identity.workspace_uid,
        NODE=str(identity.node_index),
    )
