"""Base images on the hosts: uploaded once a host, copied or built upon for each node, let go of when room is short.

Responsible for the cache of bases in each storage pool. Invariants:
- a base is named by the checksum of its image, and used only once a second volume, its mark, is there too. An upload
  that broke off leaves a volume that looks whole, and libvirt renames none; so the mark is made last, after every piece
  was finished and the checksum of what was sent agreed, and removed first. A base without its mark is deleted;
- one upload of a base at a time; who asks meanwhile shares it;
- the cache keeps its limit: the base used longest ago goes first, never one that is in use or that volumes are upon
  (libvirt would delete it, and all that is upon it with it);
- files of a host that was restarted may not have been on its disk yet, although their marks were; where the pool had to
  be started the bases that nothing is upon are made anew. A block device is written when libvirt closes it.

Which one was used last is remembered by this process; after a restart of the broker they count as unused.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from backends.base import BackendClock, BackendError, BackendRejected, TransientBackendError
from backends.xen.errors import NotYet
from backends.xen.images import Format
from backends.xen.places import MARK_BYTES, MIB, Names, is_mark, mark_of
from backends.xen.pool import HostPool
from backends.xen.repository import LocalImage, Repository
from backends.xen.shared import SharedWork, to_the_end
from backends.xen.volumes import Volume

log = logging.getLogger(__name__)

Key = tuple[str, str]
"""Where a base is, and its name."""


class Bases:
    """The bases of one broker on all hosts of a pool; `limit` in bytes a host."""

    def __init__(self, repository: Repository, names: Names, limit: int, clock: BackendClock) -> None:
        self._repository = repository
        self._names = names
        self._limit = limit
        self._clock = clock
        self._making: SharedWork[Key, Volume] = SharedWork()
        self._in_use: Counter[Key] = Counter()
        self._used: dict[Key, float] = {}
        self._making_room: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self.progress: dict[tuple[str, str], tuple[int, int]] = {}
        """Uploads by host and image: bytes done and in all."""

    async def close(self) -> None:
        """Gives up what is being uploaded and cleans up after it."""
        await self._making.close()

    @asynccontextmanager
    async def hold(self, pool: HostPool, local: LocalImage) -> AsyncIterator[Volume]:
        """The base of an image, complete; it stays as long as the context lasts."""
        key = (pool.where, self._names.base(local.sha256))
        async with self._held(key):
            yield await self._making.run(key, lambda: self._upload(pool, key, local))

    @asynccontextmanager
    async def copied(self, source: HostPool, target: HostPool, path: str) -> AsyncIterator[None]:
        """On the target, a base that the source has under a path, for what is upon it."""
        bases = {volume.path: volume for volume in await source.volumes(self._names.bases)}
        if path not in bases:
            raise BackendRejected(f"{path} on {source.host.name} is no base of this broker: it is not copied")
        base = bases[path]
        key = (target.where, base.name)
        async with self._held((source.where, base.name)), self._held(key):
            made = await self._making.run(key, lambda: self._copy(source, target, key, base))
            if made.path != path:
                raise BackendRejected(f"{path} would be {made.path} on {target.host.name}", host_fault=True)
            yield

    async def held_by(self, pool: HostPool) -> set[str]:
        """The names of the bases that are complete there."""
        there = {volume.name for volume in await pool.volumes(self._names.bases)}
        return {name for name in there if mark_of(name) in there}

    async def make_room(self, pool: HostPool, size: int, what: str) -> None:
        """Lets go of bases until the pool has so many bytes free. Raises BackendRejected where it never will."""
        async with self._making_room[pool.where]:
            await self._free(pool, size, what)

    async def forget_unsure(self, pool: HostPool) -> None:
        """The pool had to be started: what may not have reached its disk is deleted."""
        if not pool.place.kind.block:
            for base in await self._idle(pool):
                await self._remove(pool, base.name)

    @asynccontextmanager
    async def _held(self, key: Key) -> AsyncIterator[None]:
        self._in_use[key] += 1
        try:
            yield
        finally:
            self._in_use[key] -= 1
            self._used[key] = self._clock.monotonic()

    async def _upload(self, pool: HostPool, key: Key, local: LocalImage) -> Volume:
        name, size = key[1], local.look.size
        if (there := await self._complete(pool, name)) is not None:
            return there

        def progress(done: int, expected: int) -> None:
            self.progress[pool.host.name, local.image.name] = (done, expected)

        try:
            volume = await self._begin(pool, name, size, f"image {local.image.name}")
            progress(0, size)
            found = await pool.upload(volume, local.path, size, progress)
            if found != local.sha256:
                await self._repository.spoilt(local)
                raise _differs(local, found)
            return await self._finish(pool, name, local.look.format)
        except BaseException:
            await to_the_end(self._undo(pool, name))
            raise
        finally:
            self.progress.pop((pool.host.name, local.image.name), None)

    async def _copy(self, source: HostPool, target: HostPool, key: Key, base: Volume) -> Volume:
        name = key[1]
        if (there := await self._complete(target, name)) is not None:
            return there
        if await self._complete(source, name) is None:
            raise BackendRejected(f"base {name} on {source.host.name} has no mark: it may be half an upload")
        size = base.stored
        try:
            volume = await self._begin(target, name, size, f"base {name}")
            await source.copy_to(target, name, size, volume)
            return await self._finish(target, name, Format.QCOW2 if base.format == Format.QCOW2 else Format.RAW)
        except BaseException:
            await to_the_end(self._undo(target, name))
            raise

    async def _complete(self, pool: HostPool, name: str) -> Volume | None:
        """The base, if its mark is there; what is there without one is deleted."""
        there = {volume.name: volume for volume in await pool.volumes(name)}
        if name in there and mark_of(name) in there:
            return there[name]
        if name in there and there[name].path in await self._backing(pool):
            raise BackendRejected(
                f"volume {name} on {pool.host.name} has lost its mark, and nodes are upon it: an operator must look",
                host_fault=True,
            )
        for left in there:
            await pool.delete(left)
        return None

    async def _begin(self, pool: HostPool, name: str, size: int, what: str) -> Volume:
        """Makes room within the limit, and the volume, so that nobody else takes that room for theirs."""
        if size > self._limit:
            raise BackendRejected(f"{what} has {_mib(size)} MiB, and storage.cache_limit allows {self._limit // MIB}")
        total, _, _ = await pool.room()
        if size > total:
            raise BackendRejected(
                f"{what} has {_mib(size)} MiB, and the storage pool {pool.place.name} on {pool.host.name} has "
                f"{total // MIB} in all",
                host_fault=True,
            )
        async with self._making_room[pool.where]:
            there = [each for each in await pool.volumes(self._names.bases) if not is_mark(each.name)]
            held = sum(volume.stored for volume in there)
            for base in await self._idle(pool):
                if held + size <= self._limit:
                    break
                await self._remove(pool, base.name)
                held -= base.stored
            if held + size > self._limit:
                raise NotYet(
                    f"{what} has {_mib(size)} MiB, and {_mib(held)} of storage.cache_limit's {self._limit // MIB} on "
                    f"{pool.host.name} are in use"
                )
            taken = pool.place.kind.taken
            await self._free(pool, taken(size) + taken(MARK_BYTES), what)
            return await pool.create(name, size)

    async def _free(self, pool: HostPool, size: int, what: str) -> None:
        total, _, available = await pool.room()
        for base in await self._idle(pool) if available < size else ():
            await self._remove(pool, base.name)
            total, _, available = await pool.room()
            if available >= size:
                break
        if available < size:
            raise BackendRejected(
                f"{what} needs {_mib(size)} MiB, and the storage pool {pool.place.name} on {pool.host.name} has "
                f"{available // MIB} free of {total // MIB}",
                host_fault=True,
            )

    async def _finish(self, pool: HostPool, name: str, form: Format) -> Volume:
        """Sets the mark upon a base that was written whole."""
        if not pool.place.kind.block:
            await pool.refresh()  # only then is the format known
        volume = await pool.volume(name)
        if volume is None or (volume.format != form and Format.QCOW2 in (volume.format, form)):
            seen = "gone" if volume is None else f"taken for {volume.format}"
            raise NotYet(f"volume {name} on {pool.host.name} is {seen} after its upload as {form}")
        await pool.create(mark_of(name), MARK_BYTES)
        return volume

    async def _idle(self, pool: HostPool) -> list[Volume]:
        """The bases that nobody uses and nothing is upon, the one used longest ago first."""
        backing = await self._backing(pool)
        idle = [
            volume
            for volume in await pool.volumes(self._names.bases)
            if not is_mark(volume.name) and volume.path not in backing and not self._in_use[pool.where, volume.name]
        ]
        return sorted(idle, key=lambda volume: self._used.get((pool.where, volume.name), float("-inf")))

    async def _backing(self, pool: HostPool) -> set[str]:
        return {volume.backing for volume in await pool.volumes("") if volume.backing}

    async def _remove(self, pool: HostPool, name: str) -> None:
        """Its mark first: half a removal is no base any more."""
        await pool.delete(mark_of(name))
        await pool.delete(name)
        self._used.pop((pool.where, name), None)

    async def _undo(self, pool: HostPool, name: str) -> None:
        """As well as it can be: what stays has no mark, and is deleted when it is asked for again."""
        try:
            await self._remove(pool, name)
        except BackendError as error:
            log.warning("host=%s volume=%s left behind: %s", pool.host.name, name, error)


def _mib(size: int) -> int:
    return -(-size // MIB)


def _differs(local: LocalImage, found: str) -> BackendError:
    text = f"image {local.image.name}: {local.path} has the SHA-256 {found}, and {local.sha256} is expected"
    if local.image.file and local.image.sha256:
        return BackendRejected(f"{text}: correct whichever is wrong")
    return TransientBackendError(f"{text}: it has changed meanwhile")
