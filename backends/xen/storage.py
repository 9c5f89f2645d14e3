"""The disks of a pool's nodes in libvirt storage pools: made from images, removed, moved and saved.

Responsible for the `Storage` protocol of seam.py, with `repository` (what images there are), `bases` (base images on
the hosts), `nodes` (the volumes of each node), `parts` (which disks it has) and `pool` (one storage pool, in pieces).
Invariants: every method may be repeated, so a call whose answer was lost is a transient failure here, never an unknown
one; one thing at a time is done for a node; who is cancelled is not kept waiting, and what is under way is undone
before anything else is done for that node. A pool that a restarted host has forgotten is started first.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final

import httpx
from lxml import etree

from backends.base import BackendContext, BackendError, BackendRejected, NodeSpec, ObservedImage, OutcomeUnknown
from backends.xen import reading
from backends.xen.bases import Bases
from backends.xen.errors import HostLost, Kind, NotYet
from backends.xen.fetch import Progress
from backends.xen.host import Host
from backends.xen.images import Image
from backends.xen.library import Connection
from backends.xen.nodes import Nodes, SeedOf
from backends.xen.parts import Made, NodeMark
from backends.xen.places import MIB, Names, PoolPlace
from backends.xen.pool import HostPool
from backends.xen.repository import Repository
from backends.xen.seam import Disk
from backends.xen.shared import SharedWork, to_the_end
from backends.xen.storage_settings import StorageSettings

log = logging.getLogger(__name__)

_REFRESH_SECONDS: Final = 60.0
"""How old the sizes of a pool may be: the host counts what others do to it only when asked to look again."""

_CLOSE_SECONDS: Final = 10.0


class PoolStorage:
    """See `seam.Storage` for what each method promises. `host_of` finds a host by name, for images that are volumes of
    one."""

    def __init__(
        self,
        settings: StorageSettings,
        context: BackendContext,
        host_of: Callable[[str], Host | None],
        seed_of: SeedOf,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._settings = settings
        self._clock = context.clock
        self._host_of = host_of
        self._seed_of = seed_of
        self._names = Names.of(context.broker_id, context.pool)
        self.repository = Repository(
            settings.images, Path(context.base_directory), self._names.tag, self._read_volume, transport
        )
        self._bases = Bases(self.repository, self._names, settings.cache_limit * MIB, context.clock)
        self._volumes = Nodes(self._names, self.repository, self._bases, settings.clones, seed_of)
        self._nodes: SharedWork[tuple[str, str], None] = SharedWork()
        self._refreshed: dict[str, float] = {}
        self.problems: tuple[str, ...] = ()
        """What was wrong with images when they were looked at last, for the operator."""

    @property
    def shared(self) -> bool:
        return self._settings.place.kind.shared

    @property
    def moves(self) -> bool:
        return True

    @property
    def saves(self) -> bool:
        return self.repository.saves

    @property
    def progress(self) -> dict[str, tuple[int, int]]:
        """What is on its way: bytes done and in all (0: not known), by "image" or "host/image"."""
        uploads = {f"{host}/{image}": amounts for (host, image), amounts in self._bases.progress.items()}
        return {**self.repository.progress, **uploads}

    async def open(self) -> None:
        """Removes what an earlier life of the broker left unfinished here."""
        await self.repository.open()

    async def close(self) -> None:
        """Gives up everything under way and cleans up after it, as far as the hosts answer soon. What waits for a call
        that takes longer fails when its host is closed; its volumes have no mark."""
        closing = asyncio.ensure_future(self._close())
        sleeper = asyncio.ensure_future(self._clock.sleep(_CLOSE_SECONDS))
        try:
            await asyncio.wait({closing, sleeper}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            sleeper.cancel()

    async def _close(self) -> None:
        await self._nodes.close()
        await self._bases.close()
        await self.repository.close()

    async def guest(self, spec: NodeSpec) -> Mapping[str, str]:
        return (await self.repository.find(spec.image)).guest if spec.image else {}

    async def images(self) -> tuple[ObservedImage, ...]:
        found, problems = await self.repository.images()
        self.problems = tuple(problems)
        return found

    async def capacity(self, host: Host) -> tuple[int, int]:
        pool = self._pool(host)
        await self._ready(pool)
        if self._clock.monotonic() - self._refreshed.get(host.name, float("-inf")) > _REFRESH_SECONDS:
            await pool.refresh()
            self._refreshed[host.name] = self._clock.monotonic()
        total, allocated, _ = await pool.room()
        ours = sum(volume.allocation for volume in await pool.volumes(self._names.all))
        return max(0, total // MIB - self._settings.cache_limit), max(0, allocated - ours) // MIB

    async def cached(self, host: Host) -> frozenset[str]:
        """The images whose base the host has: a node of one is there sooner."""
        pool = self._pool(host)
        await self._ready(pool)
        bases = await self._bases.held_by(pool)
        return frozenset(
            name for name, digest in (await self.repository.sums()).items() if self._names.base(digest) in bases
        )

    async def propagate(self, host: Host, spec: NodeSpec, uuid: str) -> None:
        pool = self._pool(host)
        with _repeatable(host):
            await self._nodes.run((pool.where, uuid), lambda: self._make(pool, spec, uuid))

    async def unpropagate(self, host: Host, uuid: str) -> None:
        pool = self._pool(host)
        with _repeatable(host):
            await self._nodes.stop((pool.where, uuid))
            await self._ready(pool)
            await self._volumes.remove(pool, uuid)

    async def transfer(self, source: Host, target: Host, spec: NodeSpec, uuid: str) -> None:
        there, here = self._pool(source), self._pool(target)
        if there.where == here.where:
            return
        with _repeatable(source, target):
            await self._nodes.run((here.where, uuid), lambda: self._copy(there, here, uuid))

    async def present(self, host: Host, spec: NodeSpec, uuid: str) -> bool:
        pool = self._pool(host)
        await self._ready(pool)
        await pool.refresh()  # a guest that is sent to a disk that is only listed stays frozen
        return await self._volumes.complete(pool, uuid) is not None

    async def disks(self, host: Host, spec: NodeSpec, uuid: str) -> Sequence[Disk]:
        pool = self._pool(host)
        await self._ready(pool)
        return [made.disk for made in (await self._volumes.marked(pool, uuid)).made]

    async def save(self, host: Host, uuid: str, device: str, image_name: str) -> None:
        pool = self._pool(host)
        with _repeatable(host):
            await self._ready(pool)
            mark = await self._volumes.marked(pool, uuid)
            made = await self._disk_of(pool, mark, device)
            like = Image(name=image_name, attributes=mark.attributes, guest=mark.guest)
            async with self.repository.saving(image_name, f"{uuid}/{made.volume}", like) as save:
                if save is not None:
                    save.sha256 = await self._read_disk(pool, uuid, made, save.path, image_name)

    def _pool(self, host: Host, place: PoolPlace | None = None) -> HostPool:
        return HostPool(host, place or self._settings.place, self._clock)

    async def _ready(self, pool: HostPool) -> None:
        """A restarted host has forgotten its pool."""
        if await pool.make_ready():
            log.info("host=%s storage_pool=%s started", pool.host.name, pool.place.name)
            await self._bases.forget_unsure(pool)

    async def _make(self, pool: HostPool, spec: NodeSpec, uuid: str) -> None:
        await self._ready(pool)
        await self._volumes.make(pool, spec, uuid)

    async def _copy(self, source: HostPool, target: HostPool, uuid: str) -> None:
        await self._ready(target)
        await self._ready(source)
        await self._volumes.copy(source, target, uuid)

    async def _disk_of(self, pool: HostPool, mark: NodeMark, device: str) -> Made:
        """The disk that the guest knows by a name; the first one for none."""
        disks = [made for made in mark.made if made.volume != self._names.part(mark.node, "seed")]
        paths = (
            {} if not device else await pool.host.call("reading disks", partial(_paths, uuid=mark.node), kind=Kind.LOOK)
        )
        for made in disks:
            if device in ("", made.disk.device) or paths.get(device) == made.disk.source:
                return made
        known = ", ".join(sorted(paths)) or "none"
        raise BackendRejected(f'{mark.node} has no disk "{device}"; there are: {known}')

    async def _read_disk(self, pool: HostPool, uuid: str, made: Made, path: Path, image_name: str) -> str:
        """Copies a disk as a guest sees it into a file; returns its checksum."""

        def progress(done: int, expected: int) -> None:
            self.repository.progress[image_name] = (done, expected)

        volume = await pool.volume(made.volume)
        if volume is None:
            raise BackendRejected(f"volume {made.volume} is not on {pool.host.name} any more", host_fault=True)
        flat = self._names.part(uuid, "save")
        try:
            if made.disk.format != "raw":
                await pool.delete(flat)
                await self._bases.make_room(pool, volume.capacity, f"saving {made.volume}")
                volume = await pool.clone(flat, volume.capacity, volume)
            return await pool.download(volume.name, path, volume.capacity, progress)
        finally:
            self.repository.progress.pop(image_name, None)
            if made.disk.format != "raw":
                await to_the_end(self._drop(pool, flat))

    async def _drop(self, pool: HostPool, name: str) -> None:
        try:
            await pool.delete(name)
        except BackendError as error:
            log.warning("host=%s volume=%s left behind: %s", pool.host.name, name, error)

    async def _read_volume(self, place: str, path: Path, progress: Progress) -> str:
        """An image that is a volume of some host's pool, as a file here."""
        host_name, pool_name, name = place.split("/")
        host = self._host_of(host_name)
        if host is None:
            raise BackendRejected(f"{place}: this pool has no host {host_name}")
        pool = self._pool(host, PoolPlace(name=pool_name))
        with _repeatable(host):
            await pool.make_ready()
            volume = await pool.volume(name)
            if volume is None:
                raise BackendRejected(f"{place}: the storage pool {pool_name} on {host_name} has no volume {name}")
            return await pool.download(name, path, volume.stored, progress)


@contextmanager
def _repeatable(*hosts: Host) -> Iterator[None]:
    """What may be repeated is worth repeating where nobody knows what became of it."""
    try:
        yield
    except OutcomeUnknown as unknown:
        for host in hosts:
            try:
                host.connection  # noqa: B018 - asked for what it raises
            except HostLost as lost:
                raise HostLost(str(unknown), answered=lost.answered) from None
        raise NotYet(str(unknown)) from None


def _paths(connection: Connection, uuid: str) -> dict[str, str]:
    """The disks of a domain: paths on the host by the guest's names."""
    domain = reading.lookup(connection, uuid)
    if domain is None:
        return {}
    disks = etree.fromstring(domain.XMLDesc(0).encode()).findall("devices/disk")
    found = {}
    for disk in disks:
        target, source = disk.find("target"), disk.find("source")
        if target is not None and source is not None:
            found[target.get("dev", "")] = source.get("dev") or source.get("file") or ""
    return found
