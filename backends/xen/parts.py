"""Which disks a node has: from its spec and the sizes of its images to a list of parts, and what a mark says of them.

Invariant: a part is never smaller than the image it comes from, which is refused here, with all else that is wrong at
once; the boot disk gets what the other disks leave of the node's disk. Pure: it asks nobody.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from msgspec import Struct, field

from backends.base import AttributeValue, BackendRejected, NodeSpec
from backends.xen.images import Format
from backends.xen.places import MARK_BYTES, MIB, PoolPlace
from backends.xen.repository import LocalImage
from backends.xen.seam import Disk


class Part(Struct, frozen=True, kw_only=True):
    """A disk to make: a copy of an image, or a blank one; `size` in bytes."""

    number: int
    size: int
    image: LocalImage | None = None
    device: str = ""
    read_only: bool = False


class Made(Struct, frozen=True, kw_only=True):
    """A volume of a node, and the disk it is for the guest."""

    volume: str
    disk: Disk


class NodeMark(Struct, frozen=True, kw_only=True):
    """What the mark of a node says: its volumes, and what an image saved from one has in common with its own."""

    node: str
    made: tuple[Made, ...]
    attributes: Mapping[str, AttributeValue] = field(default_factory=dict)
    guest: Mapping[str, str] = field(default_factory=dict)

    def encoded(self) -> bytes:
        """The mark as its volume holds it."""
        data = msgspec.json.encode(self)
        if len(data) > MARK_BYTES:
            raise BackendRejected(f"a node of {len(self.made)} disks has too much to be told: {len(data)} bytes")
        return data.ljust(MARK_BYTES, b"\0")

    @classmethod
    def decoded(cls, data: bytes, node: str) -> NodeMark | None:
        """The mark of a node; None where the bytes are none, such as those of a volume that was there before."""
        try:
            mark = msgspec.json.decode(data.rstrip(b"\0"), type=cls)
        except msgspec.DecodeError:
            return None
        return mark if mark.node == node else None


def plan(spec: NodeSpec, images: Mapping[str, LocalImage], place: PoolPlace) -> tuple[Part, ...]:
    """The disks of a node, boot disk first. Raises BackendRejected with everything that cannot be."""
    problems: list[str] = []
    extra: list[Part] = []
    for number, disk in enumerate(spec.disks, start=1):
        image = images[disk.image] if disk.image else None
        size = disk.size_mib * MIB if disk.size_mib else image.look.disk if image else 0
        what = f"disk {number}" + f" from image {disk.image}" * bool(disk.image)
        if not size:
            problems.append(f"{what} needs an image or a size")
        elif image is not None and size < image.look.disk:
            problems.append(f"{what} of {disk.size_mib} MiB is smaller than the image's {_mib(image.look.disk)} MiB")
        extra.append(Part(number=number, size=size, image=image, device=disk.device, read_only=disk.read_only))
    asked = spec.amounts.get("disk", 0)
    others = sum(_mib(part.size) for part in extra)
    left = (asked - others) * MIB
    parts = tuple(extra)
    if spec.image:
        image = images[spec.image]
        if asked and left < image.look.disk:
            beside = f" beside {others} MiB of other disks" * bool(others)
            least = f"{_mib(image.look.disk)} MiB" + f" and those {others}" * bool(others)
            problems.append(f"a disk of {asked} MiB{beside} is too small for image {spec.image}: ask for {least}")
        parts = (Part(number=0, size=left if asked else image.look.disk, image=image), *extra)
    elif left > 0:
        parts = (Part(number=0, size=left), *extra)
    for name, image in images.items():
        if image.look.format is Format.QCOW2 and not place.kind.overlays:
            problems.append(
                f"image {name} is qcow2, and a pool of type {place.type} takes raw ones: convert it (qemu-img convert "
                "-O raw)"
            )
    if problems:
        raise BackendRejected(f"{spec.name}: {'; '.join(problems)}")
    return parts


def _mib(size: int) -> int:
    return -(-size // MIB)
