"""The storage pool of one host, awaited: what `volumes` does, cut so that no call keeps the host's others waiting.

Responsible for copies in pieces of about a second, with progress and bounded memory, and for a pool that a restarted
host has forgotten. Invariants: whatever changes the pool runs in the host's one thread for transfers, in the order
asked for, also what was asked for by somebody who was cancelled meanwhile: a removal asked for afterwards comes
afterwards. A block device is written from its first byte to its last, so that nothing of a deleted one shows. It
decides nothing about what is kept.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

from backends.base import BackendClock, BackendRejected
from backends.xen import volumes
from backends.xen.errors import Code, Kind, NotYet, Refused
from backends.xen.fetch import Progress
from backends.xen.host import Host
from backends.xen.library import Connection
from backends.xen.places import MIB, PoolPlace
from backends.xen.volumes import Volume

T = TypeVar("T")

_SECONDS: Final = 1.0
"""How long a piece is to take."""
_FIRST: Final = 2 * MIB
_MOST: Final = 16 * MIB  # of a piece that is held in memory
_MOST_ZEROS: Final = 512 * MIB
_SLOWEST: Final = MIB
"""Bytes a second: a copy within a host that is slower than that is taken for stuck."""


class _Pace:
    """The size of the next piece, by how long those before it took."""

    def __init__(self, most: int) -> None:
        self.size = _FIRST
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
        pace = _Pace(_MOST_ZEROS)
        while self.place.kind.block and offset < volume.capacity:
            size = min(pace.size, volume.capacity - offset)
            wipe = partial(volumes.zero, name=volume.name, offset=offset, length=size)
            await self._piece(f"wiping volume {volume.name}", pace, wipe)
            offset += size

    async def upload(self, volume: Volume, path: Path, size: int, progress: Progress) -> str:
        """Writes a file into a new volume; returns the SHA-256 of what was written."""
        digest = hashlib.sha256()
        pace = _Pace(_MOST)
        offset = 0
        file = await asyncio.to_thread(os.open, path, os.O_RDONLY)
        try:
            while offset < size:
                data = await asyncio.to_thread(_read, file, min(pace.size, size - offset), offset, digest.update)
                if not data:
                    raise BackendRejected(f"{path} ended after {offset} of {size} bytes: somebody changed it")
                await self._write(volume, offset, data, pace)
                offset += len(data)
                progress(offset, size)
        finally:
            os.close(file)
        await self.zero(volume, size)
        return digest.hexdigest()

    async def store(self, volume: Volume, data: bytes) -> None:
        """Writes a few bytes as a new volume's content."""
        await self._write(volume, 0, data, _Pace(_MOST))
        await self.zero(volume, len(data))

    async def read(self, name: str, length: int) -> bytes:
        """The first few bytes of a volume."""
        return await self._look(f"reading volume {name}", partial(volumes.read, name=name, offset=0, length=length))

    async def download(self, name: str, path: Path, size: int, progress: Progress) -> str:
        """Copies the first bytes of a volume to a new file; returns their SHA-256."""
        digest = hashlib.sha256()
        file = await asyncio.to_thread(os.open, path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:

            async def keep(offset: int, data: bytes) -> None:
                await asyncio.to_thread(_keep, file, offset, data, digest.update)
                progress(offset + len(data), size)

            await self._pieces(name, size, keep)
            await asyncio.to_thread(os.truncate, file, size)
        finally:
            os.close(file)
        return digest.hexdigest()

    async def copy_to(self, target: HostPool, name: str, size: int, volume: Volume) -> None:
        """Copies the first bytes of a volume into a new one on another host."""
        pace = _Pace(_MOST)
        await self._pieces(name, size, lambda offset, data: target._write(volume, offset, data, pace))
        await target.zero(volume, size)

    async def _pieces(self, name: str, size: int, keep: Callable[[int, bytes], Awaitable[None]]) -> None:
        """Reads a volume piece by piece, and has each kept before the next is read."""
        pace = _Pace(_MOST)
        offset = 0
        while offset < size:
            wanted = min(pace.size, size - offset)
            piece = partial(volumes.read, name=name, offset=offset, length=wanted)
            data = await self._piece(f"reading volume {name}", pace, piece)
            if len(data) != wanted:
                raise NotYet(f"volume {name} on {self.host.name} ended after {offset + len(data)} of {size} bytes")
            await keep(offset, data)
            offset += wanted

    async def _write(self, volume: Volume, offset: int, data: bytes, pace: _Pace) -> None:
        piece = partial(volumes.write, name=volume.name, offset=offset, data=data)
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


def _read(file: int, size: int, offset: int, update: Callable[[bytes], object]) -> bytes:
    data = os.pread(file, size, offset)
    update(data)
    return data


def _keep(file: int, offset: int, data: bytes, update: Callable[[bytes], object]) -> None:
    """Writes a piece of a new file, its zeros as holes."""
    update(data)
    for begin, end, hole in volumes.runs(data):
        while not hole and begin < end:
            begin += os.pwrite(file, data[begin:end], offset + begin)
