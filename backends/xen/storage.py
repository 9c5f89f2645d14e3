"""The disks of a pool's nodes in libvirt storage pools: made from images, removed, moved and saved.

Responsible for the `Storage` protocol of seam.py, with `repository` (what images there are), `bases` (base images on
the hosts), `parts` (which disks a node has) and `pool` (one storage pool, in pieces). Invariants:
- a node's volumes are named by its UUID, so that they are found and removed by anybody at any time;
- they count only once the node's mark, written last, says which they are. Whatever is there without it, half-made or
  whole, is removed before the node's volumes are made; libvirt cannot say which of them are whole;
- no volume belongs to two nodes: a file that two guests open is refused by nobody;
- every method may be repeated, so a call whose answer was lost is a transient failure here, never an unknown one;
- who is cancelled is not kept waiting; what is under way for the node is undone before anything else is done for it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Final

import httpx
from lxml import etree

from backends.base import BackendContext, BackendError, BackendRejected, NodeSpec, ObservedImage, OutcomeUnknown
from backends.xen import reading, volumes
from backends.xen import seed as seeds
from backends.xen.bases import Bases
from backends.xen.errors import Code, HostLost, Kind, NotYet, Refused
from backends.xen.fetch import Progress
from backends.xen.host import Host
from backends.xen.images import Image
from backends.xen.library import Connection
from backends.xen.parts import Made, NodeMark, Part, plan
from backends.xen.pool import HostPool
from backends.xen.repository import LocalImage, Repository
from backends.xen.seam import Disk
from backends.xen.seed import Seed
from backends.xen.shared import SharedWork, to_the_end
from backends.xen.storage_settings import Clones, StorageSettings
from backends.xen.volumes import MARK_BYTES, MIB, Names, PoolPlace, Volume

log = logging.getLogger(__name__)

_REFRESH_SECONDS: Final = 60.0
"""How old the sizes of a pool may be: the host counts what others do to it only when asked to look again."""


class PoolStorage:
    """See `seam.Storage` for what each method promises. `host_of` finds a host by name, for images that are volumes of
    one; `seed_of` says what a guest is told, None for nothing."""

    def __init__(
        self,
        settings: StorageSettings,
        context: BackendContext,
        host_of: Callable[[str], Host | None],
        seed_of: Callable[[NodeSpec, str], Seed | None],
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
        """Gives up everything under way, and cleans up after it as far as the hosts answer."""
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

    async def propagate(self, host: Host, spec: NodeSpec, uuid: str) -> None:
        pool = self._pool(host)
        with _repeatable(host):
            await self._nodes.run((pool.where, uuid), lambda: self._propagate(pool, spec, uuid))

    async def unpropagate(self, host: Host, uuid: str) -> None:
        pool = self._pool(host)
        with _repeatable(host):
            await self._nodes.stop((pool.where, uuid))
            await self._ready(pool)
            await self._remove(pool, uuid)

    async def transfer(self, source: Host, target: Host, spec: NodeSpec, uuid: str) -> None:
        there, here = self._pool(source), self._pool(target)
        if there.where == here.where:
            return
        with _repeatable(source, target):
            await self._nodes.run((here.where, uuid), lambda: self._transfer(there, here, uuid))

    async def present(self, host: Host, spec: NodeSpec, uuid: str) -> bool:
        pool = self._pool(host)
        await self._ready(pool)
        return await self._complete(pool, uuid) is not None

    async def disks(self, host: Host, spec: NodeSpec, uuid: str) -> Sequence[Disk]:
        pool = self._pool(host)
        await self._ready(pool)
        return [made.disk for made in (await self._marked(pool, uuid)).made]

    async def save(self, host: Host, uuid: str, device: str, image_name: str) -> None:
        pool = self._pool(host)
        with _repeatable(host):
            await self._ready(pool)
            mark = await self._marked(pool, uuid)
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

    async def _propagate(self, pool: HostPool, spec: NodeSpec, uuid: str) -> None:
        await self._ready(pool)
        if await self._complete(pool, uuid) is not None:
            return
        await self._remove(pool, uuid)
        try:
            async with AsyncExitStack() as held:
                names = dict.fromkeys(name for name in (spec.image, *(disk.image for disk in spec.disks)) if name)
                images = {name: await held.enter_async_context(self.repository.local(name)) for name in names}
                for name, local in images.items():
                    _check_arch(name, local, pool.host)
                parts = plan(spec, images, pool.place)
                bases = {
                    name: await held.enter_async_context(self._bases.hold(pool, local))
                    for name, local in images.items()
                }
                seed = self._seed_of(spec, uuid)
                data = seeds.build(seed) if seed is not None else b""
                needed = sum(map(pool.place.kind.taken, [*(part.size for part in parts), len(data), MARK_BYTES]))
                await self._bases.make_room(pool, needed, f"node {spec.name}")
                made = [
                    await self._make(pool, uuid, part, bases[part.image.image.name] if part.image else None)
                    for part in parts
                ]
            if data:
                made.append(await self._make_seed(pool, uuid, data))
            first = images.get(spec.image)
            about = first.image if first else Image(name="")
            await self._mark(
                pool, NodeMark(node=uuid, made=tuple(made), attributes=about.attributes, guest=about.guest)
            )
        except BaseException:
            await to_the_end(self._undo(pool, uuid))
            raise

    async def _make(self, pool: HostPool, uuid: str, part: Part, base: Volume | None) -> Made:
        """One disk, by the cheapest way there is."""
        name = self._names.part(uuid, part.number)
        if base is None:
            volume = await pool.create(name, part.size)
            await pool.zero(volume)
        elif (way := self._way(pool, part, base)) is Clones.COPY:
            # A volume group has rounded the base up.
            volume = await pool.clone(name, max(part.size, base.capacity), base)
        else:
            size = base.capacity if way is Clones.SNAPSHOT else part.size
            volume = await pool.create(name, size, upon=base)
        return Made(volume=name, disk=_disk(pool, volume, device=part.device, read_only=part.read_only))

    def _way(self, pool: HostPool, part: Part, base: Volume) -> Clones:
        wanted = self._settings.clones
        if wanted is Clones.AUTO:
            reads_qcow2 = pool.host.facts is not None and pool.host.facts.driver == "qemu"
            wanted = Clones.OVERLAY if reads_qcow2 and pool.place.kind.overlays else Clones.COPY
        if wanted is Clones.SNAPSHOT and part.size > base.capacity:
            return Clones.COPY
        return wanted

    async def _make_seed(self, pool: HostPool, uuid: str, data: bytes) -> Made:
        volume = await pool.create(self._names.part(uuid, "seed"), len(data))
        await pool.store(volume, data)
        return Made(volume=volume.name, disk=_disk(pool, volume, read_only=True))

    async def _mark(self, pool: HostPool, mark: NodeMark) -> None:
        volume = await pool.create(volumes.mark_of(self._names.node(mark.node)), MARK_BYTES)
        await pool.store(volume, mark.encoded())

    async def _complete(self, pool: HostPool, uuid: str) -> NodeMark | None:
        """The node's mark, if it and all volumes that it names are there."""
        there = {volume.name for volume in await pool.volumes(self._names.node(uuid))}
        name = volumes.mark_of(self._names.node(uuid))
        if name not in there:
            return None
        mark = NodeMark.decoded(await pool.read(name, MARK_BYTES), uuid)
        return mark if mark is not None and there.issuperset(made.volume for made in mark.made) else None

    async def _marked(self, pool: HostPool, uuid: str) -> NodeMark:
        mark = await self._complete(pool, uuid)
        if mark is None:
            raise BackendRejected(f"the volumes of {uuid} are not all on {pool.host.name}", host_fault=True)
        return mark

    async def _remove(self, pool: HostPool, uuid: str) -> None:
        """Removes every volume of the node, its mark first, unless the node runs."""
        found = await pool.volumes(self._names.node(uuid), settled=True)
        if not found:
            return
        if await _runs(pool.host, uuid):
            raise NotYet(f"{uuid} runs on {pool.host.name}: its volumes are not removed")
        for volume in sorted(found, key=lambda volume: not volumes.is_mark(volume.name)):
            await pool.delete(volume.name)

    async def _undo(self, pool: HostPool, uuid: str) -> None:
        """As well as it can be: what stays has no mark, and is found by the node's UUID."""
        try:
            await self._remove(pool, uuid)
        except BackendError as error:
            log.warning("host=%s domain=%s volumes left behind: %s", pool.host.name, uuid, error)

    async def _transfer(self, source: HostPool, target: HostPool, uuid: str) -> None:
        await self._ready(target)
        if await self._complete(target, uuid) is not None:
            return
        await self._ready(source)
        mark = await self._marked(source, uuid)
        await self._remove(target, uuid)
        try:
            async with AsyncExitStack() as held:
                there = {volume.name: volume for volume in await source.volumes(self._names.node(uuid))}
                parts = [there[made.volume] for made in mark.made]
                for below in {volume.backing for volume in parts if volume.backing and volume.format != "raw"}:
                    await held.enter_async_context(self._bases.copied(source, target, below))
                needed = sum(map(target.place.kind.taken, [*map(_bytes, parts), MARK_BYTES]))
                await self._bases.make_room(target, needed, f"node {uuid}")
                for volume in parts:
                    copy = await target.create(volume.name, _bytes(volume))
                    if copy.path != volume.path:
                        raise BackendRejected(
                            f"{volume.path} would be {copy.path} on {target.host.name}: the storage pools of a pool's "
                            "hosts must lie at the same path",
                            host_fault=True,
                        )
                    await source.copy_to(target, volume.name, _bytes(volume), copy)
                await target.refresh()
            await self._mark(target, mark)
        except BaseException:
            await to_the_end(self._undo(target, uuid))
            raise

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
            return await pool.download(name, path, _bytes(volume), progress)


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


def _disk(pool: HostPool, volume: Volume, *, device: str = "", read_only: bool = False) -> Disk:
    on_xen = pool.host.facts is not None and pool.host.facts.driver == "xen"
    return Disk(
        source=volume.path,
        device=device,
        driver="phy" if on_xen and volume.format == "raw" else "qemu",
        format="qcow2" if volume.format == "qcow2" else "raw",
        block=pool.place.kind.block,
        read_only=read_only,
    )


def _bytes(volume: Volume) -> int:
    """How many bytes a volume holds, as it lies there."""
    return volume.physical if volume.format == "qcow2" else volume.capacity


def _check_arch(name: str, local: LocalImage, host: Host) -> None:
    """A guest of another architecture would start and show nothing."""
    arch = local.image.attributes.get("arch", "")
    wanted = arch if isinstance(arch, tuple) else (arch,) if arch else ()
    if wanted and host.facts is not None and host.facts.arch and host.facts.arch not in wanted:
        raise BackendRejected(
            f"image {name} is for {' or '.join(map(str, wanted))}, and {host.name} is {host.facts.arch}",
            host_fault=True,
        )


async def _runs(host: Host, uuid: str) -> bool:
    try:
        return await host.call("looking for the domain", partial(_active, uuid=uuid), kind=Kind.LOOK)
    except Refused as refused:
        if refused.code == Code.NO_SUPPORT:  # a daemon for storage alone
            return False
        raise


def _active(connection: Connection, uuid: str) -> bool:
    domain = reading.lookup(connection, uuid)
    return domain is not None and bool(domain.isActive())


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
