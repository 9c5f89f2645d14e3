"""The storage pool of one host, awaited: what `volumes` does, cut so that no call keeps the host's others waiting.

Responsible for copies in pieces of about two seconds, with progress and bounded memory, and for a pool that a
restarted host has forgotten. A piece is not made smaller than need be: after each that was written libvirt looks at
the whole pool, which takes most of a second on a slow host. Invariants: whatever changes the pool runs in the host's
one thread for transfers, in the order asked for, also what was asked for by somebody who was cancelled meanwhile: a
removal asked for afterwards comes afterwards. A block device is written from its first byte to its last, so that
nothing of a deleted one shows. It decides nothing about what is kept.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import BinaryIO, Final, TypeVar

from backends.base import BackendClock, BackendRejected
from backends.xen import volumes
from backends.xen.errors import Code, Kind, NotYet, Refused
from backends.xen.fetch import Progress, of_os
from backends.xen.host import Host
from backends.xen.library import Connection
from backends.xen.places import MIB, PoolPlace
from backends.xen.volumes import Volume

T = TypeVar("T")

_SECONDS: Final = 2.0
"""How long a piece is to take."""
_CHUNK: Final = MIB  # what is read of a file at a time
_FIRST: Final = 4 * MIB
_MOST: Final = 32 * MIB  # of a piece that is held in memory
_FIRST_ZEROS: Final = 64 * MIB
_MOST_ZEROS: Final = 1024 * MIB
_SLOWEST: Final = MIB
"""Bytes a second: a copy within a host that is slower than that is taken for stuck."""


class _Pace:
    """The size of the next piece, by how long those before it took."""

    def __init__(self, first: int = _FIRST, most: int = _MOST) -> None:
        self.size = first
        self._most = most

    def took(self, seconds: float) -> None:
        if seconds < _SECONDS / 2:
            self.size = min(self.size * 2, self._most)
        elif seconds > _SECONDS:
            self.size = max(self.size // 2 // MIB * MIB, MIB)


class HostPool:
    """One storage pool on one host. Raises the three kinds of BackendError, libvirt's refusals as `Refused`."""

    def __init__(self, host: Host, place: PoolPlace, clock: BackendClock) -> None:
        self.host = host
        self.place = place
        self._clock = clock

    @property
    def where(self) -> str:
        """What this pool is told from others by: one that is shared is the same on every host."""
        return "" if self.place.kind.shared else self.host.name

    async def make_ready(self) -> bool:
        """Has the pool defined and started; whether it had to be."""
        if await self._look("looking for the storage pool", volumes.ready):
            return False
        try:
            await self._change(f"starting the storage pool {self.place.name}", volumes.start)
        except Refused as refused:
            if refused.code == Code.NO_POOL:
                raise BackendRejected(
                    f"{refused}: define it there, or say storage.path, so that it can be defined", host_fault=True
                ) from None
            raise
        return True

    async def room(self) -> tuple[int, int, int]:
        """Bytes: all, allocated, available."""
        return await self._look("reading the storage pool's size", volumes.room)

    async def refresh(self) -> None:
        """Has the host look again at what is in the pool."""
        await self._change("refreshing the storage pool", volumes.refresh)

    async def volumes(self, prefix: str, *, settled: bool = False) -> list[Volume]:
        """The volumes whose names begin so; `settled`: after everything that was asked for before."""
        asked = self._change if settled else self._look
        return await asked("listing volumes", partial(volumes.volumes, prefix=prefix))

    async def volume(self, name: str) -> Volume | None:
        """A volume, None if there is none."""
        return await self._look(f"looking for volume {name}", partial(volumes.volume, name=name))

    async def create(self, name: str, size: int, upon: Volume | None = None) -> Volume:
        """Makes a volume; what it shows is whatever was there. `upon`: an overlay or a snapshot of that one."""
        form = "qcow2" if upon is not None and not self.place.kind.block else "raw"
        making = partial(volumes.create, name=name, size=size, format=form, upon=upon)
        return await self._change(f"creating volume {name} of {size} bytes", making)

    async def clone(self, name: str, size: int, source: Volume) -> Volume:
        """Copies a volume to a larger or equal one; what is behind the copy reads as zeros. Raises BackendRejected for
        a smaller one, which libvirt would silently enlarge."""
        if size < source.capacity:
            raise BackendRejected(
                f"volume {name} of {size} bytes cannot hold the {source.capacity} bytes of {source.name}"
            )
        copy = await self._change(
            f"copying volume {source.name} to {name}",
            partial(volumes.clone, name=name, size=size, source=source),
            deadline=max(self.host.deadlines.transfer, size / _SLOWEST),
        )
        if copy.capacity < size:
            raise BackendRejected(f"volume {name} came out with {copy.capacity} bytes of {size}", host_fault=True)
        await self.zero(copy, source.capacity)
        return copy

    async def delete(self, name: str) -> None:
        """Deletes a volume, gone or not. Raises NotYet while something uses it."""
        try:
            await self._change(f"deleting volume {name}", partial(volumes.delete, name=name))
        except Refused as refused:
            if refused.code in (Code.INTERNAL, Code.OPERATION_INVALID):
                raise NotYet(f"{refused}; something still uses it") from None
            raise

    async def zero(self, volume: Volume, offset: int = 0) -> None:
        """Fills a block device with zeros from there to its end; a new file reads as zeros anyway."""
        pace = _Pace(_FIRST_ZEROS, _MOST_ZEROS)
        while self.place.kind.block and offset < volume.capacity:
            size = min(pace.size, volume.capacity - offset)
            wipe = partial(volumes.zero, name=volume.name, offset=offset, length=size)
            await self._piece(f"wiping volume {volume.name}", pace, wipe)
            offset += size

    async def upload(self, volume: Volume, path: Path, size: int, progress: Progress) -> str:
        """Writes a file into a new volume; returns the SHA-256 of what was written."""
        digest = hashlib.sha256()
        offset = 0
        while offset < size:
            # Opened for each piece: one that goes on after a cancellation shares nothing with anybody.
            def piece(connection: Connection, place: PoolPlace, begin: int = offset) -> int:
                end = self._clock.monotonic() + _SECONDS
                with path.open("rb") as file:
                    file.seek(begin)
                    chunks = _chunks(file, size - begin, digest.update)
                    return volumes.write_some(
                        connection, place, volume.name, begin, chunks, lambda: self._clock.monotonic() > end
                    )

            try:
                reached = await self._change(f"writing volume {volume.name}", piece)
            except OSError as error:
                raise BackendRejected(f"{path} cannot be read: {error.strerror or error}") from None
            if reached == offset:
                raise BackendRejected(f"{path} ended after {offset} of {size} bytes: somebody changed it")
            offset = reached
            progress(offset, size)
        await self.zero(volume, size)
        return digest.hexdigest()

    async def store(self, volume: Volume, data: bytes) -> None:
        """Writes a few bytes as a new volume's content, and zeros behind them."""
        zeros = volume.capacity - len(data) if self.place.kind.block else 0
        await self._write(volume, 0, data, _Pace(), zeros)

    async def read(self, name: str, length: int) -> bytes:
        """The first few bytes of a volume."""
        return await self._look(f"reading volume {name}", partial(volumes.read, name=name, offset=0, length=length))

    async def download(self, name: str, path: Path, size: int, progress: Progress) -> str:
        """Copies the first bytes of a volume to a new file; returns their SHA-256."""
        digest = hashlib.sha256()

        async def keep(offset: int, data: bytes) -> None:
            await asyncio.to_thread(_keep, path, offset, data, digest.update)
            progress(offset + len(data), size)

        try:
            await asyncio.to_thread(_create, path, size)
            await self._pieces(name, size, keep)
        except OSError as error:
            raise of_os(f"volume {name} could not be stored in {path}", error) from None
        return digest.hexdigest()

    async def copy_to(self, target: HostPool, name: str, size: int, volume: Volume) -> None:
        """Copies the first bytes of a volume into a new one on another host."""
        pace = _Pace()
        await self._pieces(name, size, lambda offset, data: target._write(volume, offset, data, pace))
        await target.zero(volume, size)

    async def _pieces(self, name: str, size: int, keep: Callable[[int, bytes], Awaitable[None]]) -> None:
        """Reads a volume piece by piece, and has each kept before the next is read."""
        pace = _Pace()
        offset = 0
        while offset < size:
            wanted = min(pace.size, size - offset)
            piece = partial(volumes.read, name=name, offset=offset, length=wanted)
            data = await self._piece(f"reading volume {name}", pace, piece)
            if len(data) != wanted:
                raise NotYet(f"volume {name} on {self.host.name} ended after {offset + len(data)} of {size} bytes")
            await keep(offset, data)
            offset += wanted

    async def _write(self, volume: Volume, offset: int, data: bytes, pace: _Pace, zeros: int = 0) -> None:
        piece = partial(volumes.write, name=volume.name, offset=offset, data=data, zeros=zeros)
        await self._piece(f"writing volume {volume.name}", pace, piece)

    async def _piece(self, what: str, pace: _Pace, operation: Callable[[Connection, PoolPlace], T]) -> T:
        """Makes one of many calls and learns how large the next may be."""

        def timed(connection: Connection, place: PoolPlace) -> tuple[T, float]:
            began = self._clock.monotonic()
            answer = operation(connection, place)
            return answer, self._clock.monotonic() - began

        answer, seconds = await self._change(what, timed)
        pace.took(seconds)
        return answer

    async def _look(self, what: str, operation: Callable[[Connection, PoolPlace], T]) -> T:
        return await self.host.call(what, lambda connection: operation(connection, self.place), kind=Kind.LOOK)

    async def _change(
        self, what: str, operation: Callable[[Connection, PoolPlace], T], deadline: float | None = None
    ) -> T:
        return await self.host.call(
            what, lambda connection: operation(connection, self.place), kind=Kind.TRANSFER, deadline=deadline
        )


def _chunks(file: BinaryIO, size: int, update: Callable[[bytes], object]) -> Iterator[bytes]:
    """So many bytes of a file, less where it ends."""
    while size and (chunk := file.read(min(_CHUNK, size))):
        update(chunk)
        yield chunk
        size -= len(chunk)


def _create(path: Path, size: int) -> None:
    with path.open("xb") as file:
        file.truncate(size)


def _keep(path: Path, offset: int, data: bytes, update: Callable[[bytes], object]) -> None:
    """Writes a piece of a new file, its zeros as holes."""
    update(data)
    with path.open("r+b") as file:
        for begin, end, hole in volumes.runs(data):
            if not hole:
                file.seek(offset + begin)
                file.write(data[begin:end])
