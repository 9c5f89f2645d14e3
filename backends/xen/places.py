"""Where disks are on a host: the storage pool, what its type can do, and the names of what is made in it.

Responsible for the one table of pool types; whatever depends on the type asks it. Invariant: a name tells its broker
and pool, so that nobody else's volume is ever touched. Values only.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Final

from msgspec import Struct

MIB: Final = 1024 * 1024
MARK_BYTES: Final = 64 * 1024
"""The size of a mark, whose presence is what counts; one of a node also says what the node has."""


class PoolType(Struct, frozen=True, kw_only=True):
    """What is different between types of pools."""

    block: bool  # volumes are block devices: a new one shows what a deleted one held, and writes are on disk when done
    overlays: bool  # holds qcow2 files upon others
    snapshots: bool  # a volume upon another of the same size, made at once
    build: bool  # making the pool's place destroys nothing
    shared: bool  # every host sees the same volumes
    grain: int = 1  # bytes that sizes are rounded up to

    def taken(self, size: int) -> int:
        """What a volume of so many bytes takes of the pool."""
        return -(-size // self.grain) * self.grain


POOL_TYPES: Final[Mapping[str, PoolType]] = {
    "dir": PoolType(block=False, overlays=True, snapshots=False, build=True, shared=False),
    "fs": PoolType(block=False, overlays=True, snapshots=False, build=False, shared=False),
    "netfs": PoolType(block=False, overlays=True, snapshots=False, build=False, shared=True),
    "logical": PoolType(block=True, overlays=False, snapshots=True, build=False, shared=False, grain=4 * MIB),
}


class PoolPlace(Struct, frozen=True, kw_only=True):
    """A storage pool by name, and what it is made of, for a host that has forgotten it."""

    name: str
    type: str = "dir"
    path: str = ""  # empty: the pool is the operator's, and is only started
    source: str = ""  # the volume group, the exported directory
    device: str = ""  # a device to build the volume group on; the file system's
    server: str = ""  # of a netfs
    build: bool = False

    @property
    def kind(self) -> PoolType:
        """What this type of pool can do."""
        return POOL_TYPES[self.type]


class Names(Struct, frozen=True, kw_only=True):
    """The names of what one broker makes for one of its pools; no other name is ever touched. All are fit for LVM."""

    tag: str

    @classmethod
    def of(cls, broker_id: str, pool: str) -> Names:
        """The names of a pool of a broker; others have others, also on the same host."""
        return cls(tag=hashlib.sha256(json.dumps([broker_id, pool]).encode()).hexdigest()[:8])

    @property
    def all(self) -> str:
        """What all of them begin with."""
        return f"wsb-{self.tag}-"

    @property
    def bases(self) -> str:
        """What those of base images begin with."""
        return f"{self.all}base-"

    def base(self, sha256: str) -> str:
        """A base's, by its image's checksum."""
        return f"{self.bases}{sha256[:32]}"

    def node(self, uuid: str) -> str:
        """What those of a node begin with."""
        return f"{self.all}{uuid}"

    def part(self, uuid: str, part: int | str) -> str:
        """A part of a node: disks by number, the seed and others by word."""
        return f"{self.node(uuid)}-{part}"


def mark_of(name: str) -> str:
    """The name of the volume whose presence says that a base, or a node, is complete."""
    return f"{name}.ok"


def is_mark(name: str) -> bool:
    """Whether a name is that of a mark."""
    return name.endswith(".ok")
