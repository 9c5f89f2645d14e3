"""Where the libvirt backend meets its storage: what it asks for, what it is told, and what it takes for granted.

Responsible for the protocol between the verbs (verbs.py) and whoever fills the disks (storage.py), and for the
storage of a pool that has none (`NoStorage`). It calls nobody.

The order on a host is the same for every node: the domain is *defined* first, without disks, so that from then on it
stands for all that is made for the node and an end finds it; then `propagate`, then the definition is written again
with what `disks` says; then it is started. An end goes the other way: destroyed, `unpropagate`, undefined last. So
whatever is left of a node, its domain is left, too, unless `propagate` of a node whose domain is gone goes on: it
must not be called then, and never is.

`spec.nics` that reach storage have their addresses; what a seed says besides stands in `addresses.Network` (prefix,
gateways, name servers) and `domain.mac_of(uuid, index)`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from msgspec import Struct

from backends.base import BackendRejected, NodeSpec, ObservedImage

if TYPE_CHECKING:  # what only writes XML needs no libvirt
    from backends.xen.host import Host


class Disk(Struct, frozen=True, kw_only=True):
    """One disk as the domain's XML names it; the first of a sequence is the one that is booted."""

    source: str  # a path on the host: "/dev/vg0/x", "/var/lib/libvirt/images/x.raw"
    device: str  # as the guest sees it: "xvda", "vda"; empty: the next free one of the guest's bus
    driver: str = "phy"  # "phy" (Xen's own back end), "qemu", "tap"; which bus follows from the kind of guest
    format: str = "raw"  # "raw", "qcow2"
    block: bool = True  # a block device; False: a file
    read_only: bool = False
    cdrom: bool = False


class Storage(Protocol):
    """The disks of a pool's nodes. `uuid` is the domain's, in lower case with dashes.

    Every method may be called twice without harm and concurrently for different nodes; each raises one of the three
    kinds of `BackendError`. Long work is cut into `host.call`s of kind TRANSFER, which have a thread of their own.
    """

    @property
    def shared(self) -> bool:
        """Whether every host sees the same volumes under the same paths; constant."""

    @property
    def moves(self) -> bool:
        """Whether `transfer` can bring a node's volumes to another host; constant."""

    @property
    def saves(self) -> bool:
        """Whether `save` can make images; constant."""

    @property
    def problems(self) -> Sequence[str]:
        """What an operator should know."""

    async def open(self) -> None:
        """Gets ready; reaches no host yet."""

    async def close(self) -> None:
        """Gives up everything under way."""

    async def guest(self, spec: NodeSpec) -> Mapping[str, str]:
        """What the image says of its guest where it differs from the pool: "type" ("pv", "pvh", "hvm"), "kernel",
        "initrd", "cmdline"; other keys are left alone."""

    async def propagate(self, host: Host, spec: NodeSpec, uuid: str) -> None:
        """Makes all volumes of the node and its seed, complete and verified when it returns. What fails or is
        cancelled leaves nothing behind that `unpropagate` would not find."""

    async def disks(self, host: Host, spec: NodeSpec, uuid: str) -> Sequence[Disk]:
        """The node's disks, boot disk first, seed last; asked for after `propagate`."""

    async def unpropagate(self, host: Host, uuid: str) -> None:
        """Removes all volumes of the node from the host; the domain is inactive by then."""

    async def transfer(self, source: Host, target: Host, spec: NodeSpec, uuid: str) -> None:
        """Copies the node's volumes to the same paths on another host, complete and verified when it returns. The
        guest does not write meanwhile. The source keeps its own."""

    async def present(self, host: Host, spec: NodeSpec, uuid: str) -> bool:
        """Whether all volumes of the node are on the host and complete: looked at before a guest is sent there."""

    async def save(self, host: Host, uuid: str, device: str, image_name: str) -> None:
        """Makes an image of a disk ("": the boot disk); returns when it is complete."""

    async def images(self) -> tuple[ObservedImage, ...] | None:
        """The images there are; None: any name."""

    async def capacity(self, host: Host) -> tuple[int, int] | None:
        """MiB of disk on the host: all there is, and what others than this pool's nodes hold. None: not counted."""


class NoStorage:
    """The storage of a pool without any: its guests live in memory, or on disks that the image's kernel brings."""

    shared = True
    moves = True
    saves = False
    problems = ()

    async def open(self) -> None:
        """Nothing to do."""

    async def close(self) -> None:
        """Nothing to do."""

    async def guest(self, spec: NodeSpec) -> Mapping[str, str]:
        """Nothing. Refuses what only a storage pool could give, before anything is made."""
        if spec.disks:
            raise BackendRejected("this pool has no storage: it makes no extra disks; say storage in its settings")
        return {}

    async def propagate(self, host: Host, spec: NodeSpec, uuid: str) -> None:
        """There is nothing to make."""

    async def disks(self, host: Host, spec: NodeSpec, uuid: str) -> Sequence[Disk]:
        """None."""
        return ()

    async def unpropagate(self, host: Host, uuid: str) -> None:
        """Nothing was made."""

    async def transfer(self, source: Host, target: Host, spec: NodeSpec, uuid: str) -> None:
        """There is nothing to bring."""

    async def present(self, host: Host, spec: NodeSpec, uuid: str) -> bool:
        """Nothing is missing."""
        return True

    async def save(self, host: Host, uuid: str, device: str, image_name: str) -> None:
        """Refuses."""
        raise BackendRejected("this pool has no storage: it saves no images; say storage in its settings")

    async def images(self) -> tuple[ObservedImage, ...] | None:
        """Any name."""
        return None

    async def capacity(self, host: Host) -> tuple[int, int] | None:
        """Not counted."""
        return None
