"""Storage pools of a host that lives in memory, with libvirt's own classes' methods and what real ones were seen to do.

A new volume of a volume group shows what a deleted one held, sizes are rounded up to extents, a clone asked smaller
is silently enlarged, deleting an origin deletes what is upon it, a hole in a file cuts it off behind, a volume exists
with its full size from the first moment of an upload. Every call passes `Machine.on_call`, where a test breaks it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import libvirt
from lxml import etree

from backends.xen.library import Facts
from broker.core.clock import SystemClock

EXTENT = 4 * 1024 * 1024
OLD = b"the secret of a deleted volume. "
PATHS = {"logical": "/dev/vg0", "dir": "/pool", "netfs": "/pool"}


class Hurried(SystemClock):
    """A clock by which everything takes long, so that every copy is cut into its smallest pieces."""

    def __init__(self) -> None:
        self._asked = itertools.count(step=10)

    def monotonic(self) -> float:
        return float(next(self._asked))


def error(code: int, message: str) -> Exception:
    """A libvirtError as the library raises it."""
    raised = libvirt.libvirtError(message)
    raised.err = (code, 18, message, 2, message, None, None, -1, -1)
    return raised  # type: ignore[no-any-return]


@dataclass(eq=False)
class FakeVolume:
    """A volume; `data` is what lies in it."""

    pool: Machine
    label: str
    data: bytearray
    format: str = "raw"
    backing: str = ""

    @property
    def path(self) -> str:
        return f"{PATHS[self.pool.type]}/{self.label}"

    def name(self) -> str:
        return self.label

    def XMLDesc(self, flags: int) -> str:
        self.pool.call(f"XMLDesc {self.label}", change=False)
        if self.label not in self.pool.volumes:
            raise error(50, f"no storage vol with matching name '{self.label}'")
        virtual = int.from_bytes(self.data[24:32], "big") if self.format == "qcow2" else len(self.data)
        below = f"<backingStore><path>{self.backing}</path></backingStore>" if self.backing else ""
        return (
            f"<volume><name>{self.label}</name><capacity>{virtual}</capacity><allocation>{len(self.data)}</allocation>"
            f"<physical>{len(self.data)}</physical><target><path>{self.path}</path><format type='{self.format}'/>"
            f"</target>{below}</volume>"
        )

    def infoFlags(self, flags: int) -> list[int]:
        return [0, len(self.data), len(self.data)]

    def resize(self, size: int, flags: int) -> None:
        self.pool.call(f"resize {self.label}")
        self.data.extend(bytes(size - len(self.data)))

    def delete(self, flags: int) -> None:
        self.pool.call(f"delete {self.label}")
        if self.label not in self.pool.volumes:
            raise error(50, f"no storage vol with matching name '{self.label}'")
        if self.label in self.pool.in_use:
            raise error(1, f"Logical volume {self.label} is used by another device.")
        del self.pool.volumes[self.label]
        if self.pool.type == "logical":
            for upon in [each for each in self.pool.volumes.values() if each.backing == self.path]:
                del self.pool.volumes[upon.label]

    def upload(self, stream: FakeStream, offset: int, length: int, flags: int) -> None:
        self.pool.call(f"upload {self.label}")
        stream.volume, stream.at = self, offset
        ends = len(self.data) if self.pool.type == "logical" else 1 << 40  # a file grows
        stream.end = offset + length if length else ends

    def download(self, stream: FakeStream, offset: int, length: int, flags: int) -> None:
        self.pool.call(f"download {self.label}", change=False)
        self.pool.on_read(self.label)
        stream.volume, stream.at, stream.end = self, offset, min(offset + length, len(self.data))


@dataclass(eq=False)
class FakeStream:
    """A stream: what is sent is in the volume at once."""

    machine: Machine
    volume: FakeVolume | None = None
    at: int = 0
    end: int = 0

    def send(self, data: bytes) -> int:
        assert self.volume is not None
        self.machine.call(f"send {self.volume.label}")
        if self.at + len(data) > self.end:
            raise error(38, "cannot write to stream: No space left on device")
        taken = data[: 64 * 1024]  # a stream need not take all of it
        if self.at > len(self.volume.data):
            self.volume.data.extend(bytes(self.at - len(self.volume.data)))
        self.volume.data[self.at : self.at + len(taken)] = taken
        self.at += len(taken)
        return len(taken)

    def sendHole(self, length: int) -> None:
        assert self.volume is not None
        self.machine.call(f"sendHole {self.volume.label}")
        assert self.at + length <= self.end
        if self.machine.type == "logical":
            self.volume.data[self.at : self.at + length] = bytes(length)
        else:
            del self.volume.data[self.at :]
            self.volume.data.extend(bytes(self.at + length - len(self.volume.data)))
        self.at += length

    def recvFlags(self, size: int, flags: int) -> bytes:
        assert self.volume is not None
        self.machine.call(f"recv {self.volume.label}", change=False)
        found = bytes(self.volume.data[self.at : min(self.end, self.at + size)])
        self.at += len(found)
        return found

    def finish(self) -> None:
        assert self.volume is not None
        self.machine.call(f"finish {self.volume.label}", change=False)

    def abort(self) -> None:
        """Nothing is taken back."""


@dataclass(eq=False)
class Machine:
    """A host with one storage pool, "guests". It outlives its connections."""

    type: str = "logical"
    size: int = 1024 * 1024 * 1024
    driver: str = "xen"
    defined: bool = True
    active: bool = True
    starts: int = 0
    volumes: dict[str, FakeVolume] = field(default_factory=dict)
    in_use: set[str] = field(default_factory=set)
    domains: dict[str, str] = field(default_factory=dict)  # the XML of those that run, by UUID
    alive: bool = True
    calls: list[str] = field(default_factory=list)
    on_call: Callable[[str], None] = lambda call: None
    on_read: Callable[[str], None] = lambda call: None

    def call(self, what: str, *, change: bool = True) -> None:
        """A call arrives; with `change` it is one that a test can be interested in."""
        if not self.alive:
            raise error(1, "internal error: client socket is closed")
        if change:
            self.calls.append(what)
            self.on_call(what)

    def die(self) -> None:
        """The connection breaks here: what was done is done."""
        self.alive = False
        raise error(38, "Cannot recv data: Connection reset by peer")

    def connect(self, uri: str, closed: Any, noticed: Any) -> tuple[Any, Facts]:
        """As `library.connect`."""
        self.alive = True
        return FakeConnection(self), Facts(driver=self.driver, arch="x86_64")

    def content(self, name: str) -> bytes:
        """What a guest reads of a volume."""
        return bytes(self.volumes[name].data)

    @property
    def allocated(self) -> int:
        return sum(len(each.data) for each in self.volumes.values())


@dataclass(eq=False)
class FakeConnection:
    """A connection to a machine, and its pool: both have few methods."""

    machine: Machine

    def isAlive(self) -> int:
        return int(self.machine.alive)

    def close(self) -> None: ...

    def unregisterCloseCallback(self) -> None: ...

    def newStream(self, flags: int) -> FakeStream:
        return FakeStream(self.machine)

    def lookupByUUIDString(self, uuid: str) -> FakeDomain:
        if uuid not in self.machine.domains:
            raise error(42, f"no domain with matching uuid '{uuid}'")
        return FakeDomain(self.machine.domains[uuid])

    def storagePoolLookupByName(self, name: str) -> FakePool:
        self.machine.call("lookup", change=False)
        if name != "guests" or not self.machine.defined:
            raise error(49, f"no storage pool with matching name '{name}'")
        return FakePool(self.machine)

    def storagePoolDefineXML(self, xml: str, flags: int) -> FakePool:
        self.machine.call("define")
        root = etree.fromstring(xml)
        assert (root.get("type"), root.findtext("target/path")) == (self.machine.type, PATHS[self.machine.type])
        self.machine.defined = True
        return FakePool(self.machine)


@dataclass(eq=False)
class FakeDomain:
    """A domain that runs."""

    xml: str

    def isActive(self) -> int:
        return 1

    def XMLDesc(self, flags: int) -> str:
        return self.xml


@dataclass(eq=False)
class FakePool:
    """The machine's storage pool."""

    machine: Machine

    def isActive(self) -> int:
        return int(self.machine.active)

    def create(self, flags: int) -> None:
        self.machine.call("start")
        self.machine.active = True
        self.machine.starts += 1

    def refresh(self, flags: int) -> None:
        self.machine.call("refresh", change=False)
        for each in self.machine.volumes.values():
            if self.machine.type != "logical" and each.data.startswith(b"QFI\xfb"):
                each.format = "qcow2"

    def info(self) -> list[int]:
        self._needs_start()
        return [2, self.machine.size, self.machine.allocated, self.machine.size - self.machine.allocated]

    def listAllVolumes(self, flags: int) -> list[FakeVolume]:
        self._needs_start()
        return list(self.machine.volumes.values())

    def storageVolLookupByName(self, name: str) -> FakeVolume:
        self._needs_start()
        if name not in self.machine.volumes:
            raise error(50, f"no storage vol with matching name '{name}'")
        return self.machine.volumes[name]

    def createXML(self, xml: str, flags: int) -> FakeVolume:
        root = etree.fromstring(xml)
        size, allocation = int(root.findtext("capacity", "")), root.findtext("allocation")
        backing = root.findtext("backingStore/path", "")
        form = root.find("target/format")
        assert form is not None
        if self.machine.type == "logical":
            assert allocation == str(size), "a volume group makes a sparse device of it"
        made = self._made(root.findtext("name", ""), size)
        if backing:
            made.backing = backing
            origin = next(each for each in self.machine.volumes.values() if each.path == backing)
            if self.machine.type == "logical":
                assert len(origin.data) == size
                made.data[:] = origin.data
        if form.get("type") == "qcow2":
            made.format = "qcow2"
            made.data = bytearray(b"QFI\xfb".ljust(24, b"\0") + size.to_bytes(8, "big") + bytes(4096))
        return made

    def createXMLFrom(self, xml: str, origin: FakeVolume, flags: int) -> FakeVolume:
        root = etree.fromstring(xml)
        virtual = int.from_bytes(origin.data[24:32], "big") if origin.format == "qcow2" else len(origin.data)
        made = self._made(root.findtext("name", ""), max(int(root.findtext("capacity", "")), virtual))
        if origin.format == "qcow2":
            del made.data[virtual:]  # what qemu-img makes of it
        else:
            made.data[: len(origin.data)] = origin.data
        self.machine.call(f"copied {made.label}")
        return made

    def _made(self, name: str, size: int) -> FakeVolume:
        self._needs_start()
        self.machine.call(f"create {name}")
        if name in self.machine.volumes:
            raise error(90, f"storage volume '{name}' exists already")
        if self.machine.type == "logical":
            size = -(-size // EXTENT) * EXTENT
            data = bytearray((OLD * (size // len(OLD) + 1))[:size])
        else:
            data = bytearray(size)
        if self.machine.allocated + size > self.machine.size:
            raise error(1, "Volume group has insufficient free space")
        self.machine.volumes[name] = made = FakeVolume(self.machine, name, data)
        self.machine.call(f"made {name}")
        return made

    def _needs_start(self) -> None:
        if not self.machine.active:
            raise error(55, "storage pool 'guests' is not active")
