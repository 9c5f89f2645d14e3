"""The volumes of nodes: made, recognised as complete, copied to another host, removed.

Responsible for what belongs to one node on one host. Invariants:
- a node's volumes are named by its UUID, so that they are found and removed by anybody at any time;
- they count only once the node's mark, written last, says which they are. Whatever is there without it, half-made or
  whole, is removed before the node's volumes are made; libvirt cannot say which of them are whole;
- no volume belongs to two nodes: a file that two guests open is refused by nobody;
- what fails or is cancelled is undone, after the calls that are under way.
One thing at a time is done for a node: `storage` sees to it, and that the pools are ready.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AsyncExitStack
from functools import partial

from backends.base import BackendError, BackendRejected, NodeSpec
from backends.xen import reading
from backends.xen import seed as seeds
from backends.xen.bases import Bases
from backends.xen.errors import Code, Kind, NotYet, Refused
from backends.xen.host import Host
from backends.xen.images import Image
from backends.xen.library import Connection
from backends.xen.parts import Made, NodeMark, Part, plan
from backends.xen.places import MARK_BYTES, Names, is_mark, mark_of
from backends.xen.pool import HostPool
from backends.xen.repository import LocalImage, Repository
from backends.xen.seam import Disk
from backends.xen.seed import Seed
from backends.xen.shared import to_the_end
from backends.xen.storage_settings import Clones
from backends.xen.volumes import Volume

log = logging.getLogger(__name__)

SeedOf = Callable[[NodeSpec, str], Seed | None]
"""What a guest is told, by its spec and UUID; None: nothing."""


class Nodes:
    """The nodes of one pool on all its hosts."""

    def __init__(self, names: Names, repository: Repository, bases: Bases, clones: Clones, seed_of: SeedOf) -> None:
        self._names = names
        self._repository = repository
        self._bases = bases
        self._clones = clones
        self._seed_of = seed_of

    async def make(self, pool: HostPool, spec: NodeSpec, uuid: str) -> None:
        """Makes all volumes of a node; what is complete is left as it is."""
        if await self.complete(pool, uuid) is not None:
            return
        await pool.refresh()  # what somebody removed by hand is still listed, bases too
        await self.remove(pool, uuid)
        try:
            async with AsyncExitStack() as held:
                names = dict.fromkeys(name for name in (spec.image, *(disk.image for disk in spec.disks)) if name)
                images = {name: await held.enter_async_context(self._repository.local(name)) for name in names}
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
        wanted = self._clones
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
        volume = await pool.create(mark_of(self._names.node(mark.node)), MARK_BYTES)
        await pool.store(volume, mark.encoded())

    async def complete(self, pool: HostPool, uuid: str) -> NodeMark | None:
        """The node's mark, if it and all volumes that it names are there."""
        name = mark_of(self._names.node(uuid))
        there = {volume.name for volume in await pool.volumes(self._names.node(uuid))}
        if name not in there:
            return None
        try:
            data = await pool.read(name, MARK_BYTES)
        except Refused:
            await pool.refresh()  # what somebody removed by hand is still listed
            if await pool.volume(name) is None:
                return None
            raise
        mark = NodeMark.decoded(data, uuid)
        return mark if mark is not None and there.issuperset(made.volume for made in mark.made) else None

    async def marked(self, pool: HostPool, uuid: str) -> NodeMark:
        """The node's mark. Raises BackendRejected where the node is not complete."""
        mark = await self.complete(pool, uuid)
        if mark is None:
            raise BackendRejected(f"the volumes of {uuid} are not all on {pool.host.name}", host_fault=True)
        return mark

    async def remove(self, pool: HostPool, uuid: str) -> None:
        """Removes every volume of the node, its mark first, unless the node runs."""
        found = await pool.volumes(self._names.node(uuid), settled=True)
        if not found:
            return
        if await _runs(pool.host, uuid):
            raise NotYet(f"{uuid} runs on {pool.host.name}: its volumes are not removed")
        for volume in sorted(found, key=lambda volume: not is_mark(volume.name)):
            await pool.delete(volume.name)

    async def _undo(self, pool: HostPool, uuid: str) -> None:
        """As well as it can be: what stays has no mark, and is found by the node's UUID."""
        try:
            await self.remove(pool, uuid)
        except BackendError as error:
            log.warning("host=%s domain=%s volumes left behind: %s", pool.host.name, uuid, error)

    async def copy(self, source: HostPool, target: HostPool, uuid: str) -> None:
        """Copies all volumes of a node, which nobody writes to meanwhile, to another host."""
        if await self.complete(target, uuid) is not None:
            return
        mark = await self.marked(source, uuid)
        await self.remove(target, uuid)
        try:
            async with AsyncExitStack() as held:
                there = {volume.name: volume for volume in await source.volumes(self._names.node(uuid))}
                parts = [there[made.volume] for made in mark.made]
                for below in {volume.backing for volume in parts if volume.backing and volume.format != "raw"}:
                    await held.enter_async_context(self._bases.copied(source, target, below))
                needed = sum(map(target.place.kind.taken, [*(volume.stored for volume in parts), MARK_BYTES]))
                await self._bases.make_room(target, needed, f"node {uuid}")
                for volume in parts:
                    copy = await target.create(volume.name, volume.stored)
                    if copy.path != volume.path:
                        raise BackendRejected(
                            f"{volume.path} would be {copy.path} on {target.host.name}: the storage pools of a pool's "
                            "hosts must lie at the same path",
                            host_fault=True,
                        )
                    await source.copy_to(target, volume.name, volume.stored, copy)
                await target.refresh()
            await self._mark(target, mark)
        except BaseException:
            await to_the_end(self._undo(target, uuid))
            raise


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
