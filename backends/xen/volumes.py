"""Volumes of a host's storage pool: what libvirt is asked, one closed operation each.

Responsible for the XML of volumes and pools, and for the operations that `Host.call` runs in a host's thread.
Invariants: an operation leaves no stream open and keeps no libvirt object, so that nothing outlives a connection.
Written and read is in pieces at an offset, each with its own stream that is finished, which is where libvirt tells
every error. It awaits nothing and decides nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Final

import libvirt
from lxml import etree
from msgspec import Struct

from backends.xen.errors import Code
from backends.xen.library import Connection, Failure, LibvirtError
from backends.xen.places import PoolPlace as PoolPlace

BLOCK: Final = 64 * 1024
"""What is looked at for zeros; runs of zero blocks are sent as holes."""

_CHUNK: Final = 256 * 1024  # what libvirt puts into one message
_SPARSE_UP: Final = libvirt.VIR_STORAGE_VOL_UPLOAD_SPARSE_STREAM
_SPARSE_DOWN: Final = libvirt.VIR_STORAGE_VOL_DOWNLOAD_SPARSE_STREAM
_AT_HOLE: Final = libvirt.VIR_STREAM_RECV_STOP_AT_HOLE
_ZERO_BLOCK: Final = bytes(BLOCK)


class Volume(Struct, frozen=True, kw_only=True):
    """A volume as the pool shows it; sizes in bytes."""

    name: str
    path: str
    capacity: int
    allocation: int
    physical: int
    format: str = "raw"
    backing: str = ""  # the path of what it is upon

    @property
    def stored(self) -> int:
        """How many bytes it holds as it lies there."""
        return self.physical if self.format == "qcow2" else self.capacity


def ready(connection: Connection, place: PoolPlace) -> bool:
    """Whether the pool is there and active; looks only."""
    try:
        return bool(connection.storagePoolLookupByName(place.name).isActive())
    except LibvirtError as error:
        if Failure.of(error).code == Code.NO_POOL:
            return False
        raise


def start(connection: Connection, place: PoolPlace) -> None:
    """Defines the pool if it is not known, builds it if that is wanted and it does not start, and starts it."""
    try:
        pool = connection.storagePoolLookupByName(place.name)
    except LibvirtError as error:
        if Failure.of(error).code != Code.NO_POOL or not place.path:
            raise
        pool = connection.storagePoolDefineXML(_pool_xml(place), 0)
    if pool.isActive():
        return
    try:
        pool.create(0)
    except LibvirtError:
        if pool.isActive():  # somebody else was faster
            return
        if not (place.build or place.kind.build):
            raise
        pool.build(0)
        pool.create(0)


def room(connection: Connection, place: PoolPlace) -> tuple[int, int, int]:
    """Bytes of the pool: all, allocated, available."""
    _, capacity, allocation, available = connection.storagePoolLookupByName(place.name).info()
    return capacity, allocation, available


def refresh(connection: Connection, place: PoolPlace) -> None:
    """Has the pool look again at its sizes and formats; not while it is copying, which is no error here."""
    with contextlib.suppress(LibvirtError):
        connection.storagePoolLookupByName(place.name).refresh(0)


def volumes(connection: Connection, place: PoolPlace, prefix: str) -> list[Volume]:
    """The pool's volumes whose names begin so, by name."""
    found: list[Volume] = []
    for volume in connection.storagePoolLookupByName(place.name).listAllVolumes(0):
        name = volume.name()
        if name.startswith(prefix):
            with _missing_is_fine():
                found.append(_volume(volume))
    return sorted(found, key=lambda each: each.name)


def volume(connection: Connection, place: PoolPlace, name: str) -> Volume | None:
    """One volume, None if there is none."""
    with _missing_is_fine():
        return _volume(_find(connection, place, name))
    return None


def create(
    connection: Connection, place: PoolPlace, name: str, size: int, *, format: str = "raw", upon: Volume | None = None
) -> Volume:
    """Makes an empty volume, or one upon another: a snapshot in a volume group, an overlay elsewhere."""
    backing = (upon.path, "raw" if place.kind.block else upon.format) if upon else None
    # Thick in a volume group: less than all is a sparse device there, or no snapshot at all.
    allocation = size if place.kind.block else 0
    pool = connection.storagePoolLookupByName(place.name)
    return _volume(pool.createXML(_volume_xml(name, size, allocation, format, backing), 0))


def clone(connection: Connection, place: PoolPlace, name: str, size: int, source: Volume) -> Volume:
    """Copies a volume of the pool to a raw one of at least its size; blocks as long as that takes."""
    pool = connection.storagePoolLookupByName(place.name)
    origin = pool.storageVolLookupByName(source.name)
    allocation = size if place.kind.block else None
    made = pool.createXMLFrom(_volume_xml(name, size, allocation, "raw", None), origin, 0)
    if not place.kind.block and _physical(made) < size:  # qemu-img leaves what it converts at the source's size
        made.resize(size, 0)
    return _volume(made)


def delete(connection: Connection, place: PoolPlace, name: str) -> None:
    """Deletes a volume; one that is gone is no error."""
    with _missing_is_fine():
        _find(connection, place, name).delete(0)


def write(connection: Connection, place: PoolPlace, name: str, offset: int, data: bytes, zeros: int = 0) -> None:
    """Writes a piece, and so many zeros behind it. In a file nothing of worth may lie there: a hole cuts it off."""
    with _stream(connection) as stream:
        _find(connection, place, name).upload(stream, offset, len(data) + zeros, _SPARSE_UP)
        _send(stream, data)
        if zeros:
            stream.sendHole(zeros)


def write_some(
    connection: Connection,
    place: PoolPlace,
    name: str,
    offset: int,
    chunks: Iterator[bytes],
    enough: Callable[[], bool],
) -> int:
    """Writes chunks from there on until there are no more, or it is enough for one call; returns where it stopped."""
    with _stream(connection) as stream:
        _find(connection, place, name).upload(stream, offset, 0, _SPARSE_UP)
        for chunk in chunks:
            _send(stream, chunk)
            offset += len(chunk)
            if enough():
                break
    return offset


def zero(connection: Connection, place: PoolPlace, name: str, offset: int, length: int) -> None:
    """Fills a piece of a block device with zeros, which the host writes by itself."""
    with _stream(connection) as stream:
        _find(connection, place, name).upload(stream, offset, length, _SPARSE_UP)
        stream.sendHole(length)


def read(connection: Connection, place: PoolPlace, name: str, offset: int, length: int) -> bytes:
    """Reads a piece, less where the volume ends; holes do not travel."""
    piece = bytearray()
    with _stream(connection) as stream:
        flags = 0 if place.kind.block else _SPARSE_DOWN  # a block device has no holes
        _find(connection, place, name).download(stream, offset, length, flags)
        while True:
            got = stream.recvFlags(_CHUNK, _AT_HOLE)
            if got == -3:
                piece += bytes(stream.recvHole(0))
            elif not got:
                break
            else:
                piece += got
    return bytes(piece)


def runs(data: bytes) -> Iterator[tuple[int, int, bool]]:
    """The piece as runs of data and of zeros: begin, end, whether it is a hole."""
    begin, hole = 0, False
    for at in range(0, len(data), BLOCK):
        block = data[at : at + BLOCK]
        zeros = block == (_ZERO_BLOCK if len(block) == BLOCK else bytes(len(block)))
        if zeros is not hole and at:
            yield begin, at, hole
            begin = at
        hole = zeros
    if data:
        yield begin, len(data), hole


def _send(stream: Any, data: bytes) -> None:
    for begin, end, hole in runs(data):
        if hole:
            stream.sendHole(end - begin)
            continue
        while begin < end:
            begin += stream.send(data[begin : min(end, begin + _CHUNK)])


def _find(connection: Connection, place: PoolPlace, name: str) -> Any:
    return connection.storagePoolLookupByName(place.name).storageVolLookupByName(name)


def _volume(volume: Any) -> Volume:
    root = etree.fromstring(volume.XMLDesc(0).encode())
    target = root.find("target/format")
    return Volume(
        name=root.findtext("name", ""),
        path=root.findtext("target/path", ""),
        capacity=int(root.findtext("capacity", "0")),
        allocation=int(root.findtext("allocation", "0")),
        physical=int(root.findtext("physical", "0")) or int(root.findtext("capacity", "0")),
        format="raw" if target is None else target.get("type", "raw"),
        backing=root.findtext("backingStore/path", ""),
    )


def _physical(volume: Any) -> int:
    return int(volume.infoFlags(libvirt.VIR_STORAGE_VOL_GET_PHYSICAL)[2])


@contextlib.contextmanager
def _stream(connection: Connection) -> Iterator[Any]:
    """A stream that is finished, or aborted where something went wrong."""
    stream = connection.newStream(0)
    try:
        yield stream
        stream.finish()
    except BaseException:
        with contextlib.suppress(LibvirtError):
            stream.abort()
        raise


@contextlib.contextmanager
def _missing_is_fine() -> Iterator[None]:
    try:
        yield
    except LibvirtError as error:
        if Failure.of(error).code != Code.NO_VOLUME:
            raise


def _element(parent: etree._Element, tag: str, text: str = "", /, **attributes: str) -> etree._Element:
    element = etree.SubElement(parent, tag, attributes)
    element.text = text or None
    return element


def _volume_xml(name: str, size: int, allocation: int | None, format: str, backing: tuple[str, str] | None) -> str:
    root = etree.Element("volume")
    _element(root, "name", name)
    _element(root, "capacity", str(size))
    if allocation is not None:
        _element(root, "allocation", str(allocation))
    _element(_element(root, "target"), "format", type=format)
    if backing is not None:
        below = _element(root, "backingStore")
        _element(below, "path", backing[0])
        _element(below, "format", type=backing[1])
    return etree.tostring(root, encoding="unicode")


def _pool_xml(place: PoolPlace) -> str:
    root = etree.Element("pool", type=place.type)
    _element(root, "name", place.name)
    source = _element(root, "source")
    if place.server:
        _element(source, "host", name=place.server)
    if place.device:
        _element(source, "device", path=place.device)
    if place.type == "logical":
        _element(source, "name", place.source)
        _element(source, "format", type="lvm2")
    elif place.source:
        _element(source, "dir", path=place.source)
    _element(_element(root, "target"), "path", place.path)
    return etree.tostring(root, encoding="unicode")
