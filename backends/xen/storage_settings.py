"""What an operator writes of a pool's storage: the storage pool on its hosts, the cache there, how disks are made.

Invariant: a value that came out of `read` without problems is usable as it stands; nothing is touched.

    [pools.lab.storage]
    pool = "guests"                   # the storage pool's name in libvirt, on every host
    type = "logical"                  # dir, fs, netfs or logical (LVM)
    path = "/dev/vg0"                 # with it, a host that has forgotten the pool is told again
    source = "vg0"                    # logical: the volume group; netfs: the exported directory
    cache_limit = 10240               # MiB of base images a host, taken off what nodes may have
    clones = "auto"                   # copy, overlay (qcow2, a device model reads it), snapshot (LVM)
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Final

from msgspec import Struct

from backends.base import SettingProblem
from backends.xen import images
from backends.xen.images import ImageSettings
from backends.xen.places import POOL_TYPES, PoolPlace

KEYS: Final = frozenset({"storage", "images"})
"""The keys of a pool's settings that are read here."""

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,62}")


class Clones(StrEnum):
    """How a disk is made from a base."""

    AUTO = "auto"  # overlay where the hypervisor reads qcow2 itself, else copy
    COPY = "copy"
    OVERLAY = "overlay"
    SNAPSHOT = "snapshot"  # as large as its base at most; the base stays as long as it does


class StorageSettings(Struct, frozen=True, kw_only=True):
    """The storage of a pool. `cache_limit` in MiB."""

    place: PoolPlace
    cache_limit: int = 10 * 1024
    clones: Clones = Clones.AUTO
    images: ImageSettings = ImageSettings()


def read(tables: Mapping[str, object]) -> tuple[StorageSettings | None, list[SettingProblem]]:
    """The settings in the tables `storage` and `images`, and everything that is wrong with them; None without
    `storage`: a pool that makes no disks."""
    table, about_images = tables.get("storage"), tables.get("images", {})
    problems: list[SettingProblem] = []

    def bad(key: str, message: str) -> None:
        problems.append(SettingProblem(key=key, message=message))

    found = ImageSettings()
    if isinstance(about_images, Mapping):
        found, wrong = images.read(about_images)
        problems += wrong
    else:
        bad("images", "a table is wanted, with directory or catalog")
    if table is None:
        if "images" in tables:
            bad("images", "is of no use without storage, which says where disks are made of them")
        return None, problems
    if not isinstance(table, Mapping):
        bad("storage", 'a table is wanted, with pool = "NAME"')
        return None, problems
    values: dict[str, Any] = {}
    for key, value in table.items():
        reader = _READERS.get(key)
        try:
            if reader is None:
                raise ValueError(f"no such setting; there are: {', '.join(sorted(_READERS))}")
            values[key] = reader(value)
        except ValueError as error:
            bad(f"storage.{key}", str(error))
    if "pool" not in table:
        bad("storage.pool", "is required: the name of the storage pool on the hosts")
    cache_limit = values.pop("cache_limit", 10 * 1024)
    clones = values.pop("clones", Clones.AUTO)
    place = PoolPlace(name=values.pop("pool", ""), **values)
    _check(place, clones, table, bad)
    return StorageSettings(place=place, cache_limit=cache_limit, clones=clones, images=found), problems


def _check(place: PoolPlace, clones: Clones, table: Mapping[str, object], bad: Any) -> None:
    """What fits one type of pool and not another."""
    if place.path and place.type in ("logical", "netfs") and not place.source:
        what = "volume group" if place.type == "logical" else "directory that the server exports"
        bad("storage.source", f"is required with path: the {what}")
    if place.path and place.type == "netfs" and not place.server:
        bad("storage.server", "is required with path: who exports the directory")
    if place.path and place.type == "fs" and not place.device:
        bad("storage.device", "is required with path: the device with the file system")
    if place.build and not place.path:
        bad("storage.build", "is of no use without path")
    if place.build and place.type == "logical" and not place.device:
        bad(
            "storage.device",
            "is required with build: the device that the volume group is made on, which is overwritten",
        )
    for key, types in (("source", ("logical", "netfs")), ("server", ("netfs",)), ("device", ("logical", "fs"))):
        if key in table and place.type not in types:
            bad(f"storage.{key}", f"is of no use for a pool of type {place.type}")
    if clones is Clones.OVERLAY and not place.kind.overlays:
        bad("storage.clones", f"a pool of type {place.type} holds no qcow2 overlays")
    if clones is Clones.SNAPSHOT and not place.kind.snapshots:
        bad("storage.clones", f"a pool of type {place.type} makes no snapshots")


def _text(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"text is wanted, not {value!r}")
    return value


def _name(value: object) -> str:
    if not _NAME.fullmatch(text := _text(value)):
        raise ValueError(f'a name of up to 63 letters, digits and "._+-" is wanted, not "{text}"')
    return text


def _path(value: object) -> str:
    if not (text := _text(value)).startswith("/"):
        raise ValueError(f'a full path on the host is wanted, not "{text}"')
    return text.rstrip("/") or "/"


def _bool(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError("true or false is wanted")
    return value


def _mib(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        raise ValueError(f"a positive number of MiB is wanted, not {value!r}")
    return value


def _type(value: object) -> str:
    if value not in POOL_TYPES:
        raise ValueError(f"one of {', '.join(sorted(POOL_TYPES))} is wanted, not {value!r}")
    return str(value)


def _clones(value: object) -> Clones:
    if not isinstance(value, str) or value not in list(Clones):
        raise ValueError(f"one of {', '.join(Clones)} is wanted, not {value!r}")
    return Clones(value)


_READERS: Final = {
    "pool": _name,
    "type": _type,
    "path": _path,
    "source": _text,
    "device": _path,
    "server": _text,
    "build": _bool,
    "cache_limit": _mib,
    "clones": _clones,
}
