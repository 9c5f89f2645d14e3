"""Nodes' disks in real storage pools: libvirt's directory pools, on daemons that are killed, full, and forgetful."""

from __future__ import annotations

import asyncio
import hashlib
import random
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

pytest.importorskip("libvirt", reason="libvirt-python is not installed")

from backends.base import (
    BackendContext,
    BackendRejected,
    DiskSpec,
    HostState,
    Identity,
    NodeSpec,
    TransientBackendError,
)
from backends.xen import places, storage_settings
from backends.xen.host import Host
from backends.xen.places import MIB
from backends.xen.seed import Seed
from backends.xen.storage import PoolStorage
from broker.core.clock import SystemClock
from tests.support import libvirtd
from tests.support.fake_volumes import Hurried
from tests.support.libvirtd import POOL, Daemon

pytestmark = pytest.mark.skipif(libvirtd.missing(), reason=libvirtd.SKIP)

UUID = "6f1f6a0e-6d0b-5d0c-9a7e-3a1f0f3e9c55"
OTHER = "6f1f6a0e-6d0b-5d0c-9a7e-3a1f0f3e9c56"
IMAGE = random.Random(1).randbytes(5 * MIB + 512) + bytes(9 * MIB) + random.Random(2).randbytes(2 * MIB)


def spec(disk: int = 0, image: str = "debian", disks: tuple[DiskSpec, ...] = ()) -> NodeSpec:
    return NodeSpec(
        identity=Identity(broker_id="b", workspace_uid="w", node_index=0),
        name="head-0",
        host="xen1",
        amounts={"disk": disk} if disk else {},
        image=image,
        disks=disks,
    )


@dataclass
class World:
    """Two daemons that are two hosts, a repository, and the storage that is tested."""

    directory: Path
    daemons: dict[str, Daemon]
    hosts: dict[str, Host] = field(default_factory=dict)
    storage: PoolStorage = None  # type: ignore[assignment]

    @property
    def host(self) -> Host:
        return self.hosts["xen1"]

    @property
    def daemon(self) -> Daemon:
        return self.daemons["xen1"]

    def files(self, uuid: str = UUID, host: str = "xen1") -> list[str]:
        """The node's files, by the last part of their names."""
        return sorted(name.partition(uuid)[2][1:] for name in self.daemons[host].files() if uuid in name)

    def bases(self) -> list[str]:
        return [name for name in self.daemon.files() if "-base-" in name and not places.is_mark(name)]

    def disk(self, number: int | str = 0, uuid: str = UUID, host: str = "xen1") -> Path:
        """A file of a node."""
        daemon = self.daemons[host]
        return daemon.file(next(name for name in daemon.files() if name.endswith(f"{uuid}-{number}")))

    async def restart(self, name: str = "xen1") -> None:
        """Starts a daemon that was killed, and returns when the host is connected again."""
        before = self.hosts[name].connections
        self.daemons[name].start()
        async with asyncio.timeout(30):
            while self.hosts[name].state is not HostState.ACTIVE or self.hosts[name].connections == before:
                await asyncio.sleep(0.02)


@asynccontextmanager
async def started(
    directory: Path, driver: str = "xen", mib: int = 64, cache: int = 32, hosts: tuple[str, ...] = ("xen1",)
) -> AsyncIterator[World]:
    clock = SystemClock()
    world = World(directory, {name: Daemon(mib, driver) for name in hosts})
    images = directory / "images"
    images.mkdir()
    (images / "debian.img").write_bytes(IMAGE)
    (images / "debian.toml").write_text(f'file = "debian.img"\nsha256 = "{hashlib.sha256(IMAGE).hexdigest()}"\n')
    found, problems = storage_settings.read(
        {
            "storage": {"pool": "guests", "path": str(POOL), "cache_limit": cache},
            "images": {
                "directory": "images",
                "catalog": {
                    "golden": {"volume": "xen1/guests/golden", "sha256": hashlib.sha256(IMAGE[::-1]).hexdigest()}
                },
            },
        }
    )
    assert found is not None
    assert not problems
    context = BackendContext(pool="lab", broker_id="b", clock=Hurried(), base_directory=str(directory))
    try:
        for name, daemon in world.daemons.items():
            daemon.start()
            world.hosts[name] = Host(name, daemon.uri, clock, connect=daemon.connect)
            world.hosts[name].start()
            await world.hosts[name].tried()
            assert world.hosts[name].state is HostState.ACTIVE, world.hosts[name].message
        world.storage = PoolStorage(
            found, context, world.hosts.get, lambda node, uuid: Seed(instance_id=uuid, host_name=node.name)
        )
        await world.storage.open()
        yield world
        await world.storage.close()
    finally:
        for host in world.hosts.values():
            await host.close()
        for daemon in world.daemons.values():
            daemon.stop()


def write_into(daemon: Daemon, name: str) -> None:
    """What a guest with a qcow2 disk does: writes 64 KiB of sevens at 1 MiB."""
    assert daemon.keeper is not None
    within = ["nsenter", f"--target={daemon.keeper.pid}", "--mount"]
    subprocess.run([*within, "qemu-io", "-c", "write -P 7 1M 64k", POOL / name], check=True, capture_output=True)


def to_qcow2(raw: Path, path: Path) -> None:
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", raw, path], check=True)


async def test_the_whole_way_on_a_host_that_reads_raw_disks(tmp_path: Path) -> None:
    async with started(tmp_path) as world:
        await world.storage.propagate(world.host, spec(disk=20, disks=(DiskSpec(size_mib=3),)), UUID)
        data = world.disk().read_bytes()
        assert data[: len(IMAGE)] == IMAGE
        assert data[len(IMAGE) :] == bytes(17 * MIB - len(IMAGE))
        assert world.disk(1).read_bytes() == bytes(3 * MIB)
        assert b"CD001" in world.disk("seed").read_bytes()
        boot, blank, seed = await world.storage.disks(world.host, spec(), UUID)
        assert (boot.driver, boot.format, boot.block) == ("phy", "raw", False)
        assert (blank.read_only, seed.read_only) == (False, True)
        total, foreign = await world.storage.capacity(world.host)
        assert (total, foreign) == (64 - 32, 0)
        await world.storage.unpropagate(world.host, UUID)
        await world.storage.unpropagate(world.host, UUID)
        assert world.files() == []
        (base,) = world.bases()
        assert world.daemon.file(base).read_bytes() == IMAGE
        assert world.daemon.file(base).stat().st_blocks * 512 < 8 * MIB, "its hole takes no room"


async def test_overlays_are_saved_flat_and_a_node_starts_from_that(tmp_path: Path) -> None:
    async with started(tmp_path, driver="qemu", mib=128, cache=48) as world:
        await world.storage.propagate(world.host, spec(disk=20), UUID)
        (boot, _) = await world.storage.disks(world.host, spec(), UUID)
        assert (boot.driver, boot.format) == ("qemu", "qcow2")
        assert world.disk().stat().st_size < MIB
        write_into(world.daemon, world.disk().name)
        await world.storage.save(world.host, UUID, "", "mine")
        assert world.files() == ["0", "ok", "seed"], "no copy for the save is left"
        await world.storage.propagate(world.host, spec(image="mine"), OTHER)
        (flat,) = [path for path in (tmp_path / "images").iterdir() if path.name.startswith("mine-")]
        data = flat.read_bytes()
        assert len(data) == 20 * MIB
        assert data[:MIB] == IMAGE[:MIB]
        assert data[MIB : MIB + 65536] == bytes([7]) * 65536
        assert data[MIB + 65536 : len(IMAGE)] == IMAGE[MIB + 65536 :]


async def test_a_qcow2_image_becomes_a_raw_disk_where_nothing_reads_qcow2(tmp_path: Path) -> None:
    async with started(tmp_path) as world:
        images = tmp_path / "images"
        await asyncio.to_thread(to_qcow2, images / "debian.img", images / "small.qcow2")
        (images / "small.toml").write_text('file = "small.qcow2"\nformat = "qcow2"\n')
        seen = {image.name: image for image in await world.storage.images()}
        assert seen["small"].size_mib == seen["debian"].size_mib == 17
        await world.storage.propagate(world.host, spec(disk=20, image="small"), UUID)
        data = world.disk().read_bytes()
        assert len(data) == 20 * MIB
        assert data[: len(IMAGE)] == IMAGE
        assert not any(data[len(IMAGE) :])


async def test_a_daemon_killed_in_the_middle_of_an_upload(tmp_path: Path) -> None:
    async with started(tmp_path) as world:
        killed = asyncio.Event()
        making = asyncio.create_task(world.storage.propagate(world.host, spec(), UUID))
        async with asyncio.timeout(30):
            while not (moving := world.storage.progress.get("xen1/debian")) or moving[0] == 0:
                await asyncio.sleep(0)
        world.daemon.kill()
        killed.set()
        with pytest.raises(TransientBackendError):
            await making
        (base,) = world.bases()
        assert f"{base}.ok" not in world.daemon.files(), "what looks whole has no mark"
        assert world.daemon.file(base).read_bytes() != IMAGE
        await world.restart()
        assert not await world.storage.present(world.host, spec(), UUID)
        await world.storage.propagate(world.host, spec(), UUID)
        assert world.disk().read_bytes() == IMAGE
        assert world.bases() == [base]


async def test_a_cancelled_upload_leaves_nothing(tmp_path: Path) -> None:
    async with started(tmp_path) as world:
        making = asyncio.create_task(world.storage.propagate(world.host, spec(), UUID))
        async with asyncio.timeout(30):
            while not (moving := world.storage.progress.get("xen1/debian")) or moving[0] == 0:
                await asyncio.sleep(0)
        making.cancel()
        with pytest.raises(asyncio.CancelledError):
            await making
        await world.storage.unpropagate(world.host, UUID)
        async with asyncio.timeout(30):
            while world.daemon.files() or world.storage.progress:
                await asyncio.sleep(0.01)


async def test_a_host_that_has_forgotten_its_pool(tmp_path: Path) -> None:
    async with started(tmp_path) as world:
        await world.storage.propagate(world.host, spec(), UUID)
        made = world.daemon.file(world.bases()[0]).stat().st_ino
        world.daemon.kill()
        world.daemon.forget()
        await world.restart()
        assert await world.storage.present(world.host, spec(), UUID)
        assert world.disk().read_bytes() == IMAGE
        await world.storage.propagate(world.host, spec(), OTHER)
        assert world.disk(uuid=OTHER).read_bytes() == IMAGE
        assert world.daemon.file(world.bases()[0]).stat().st_ino != made, "a file may not have reached the disk"


async def test_a_full_pool(tmp_path: Path) -> None:
    async with started(tmp_path, mib=40) as world:
        with pytest.raises(
            BackendRejected, match=r"node head-0 needs 4\d MiB, and the storage pool guests .* has 3\d free of 40"
        ):
            await world.storage.propagate(world.host, spec(disk=40), UUID)
        assert world.files() == []
        await world.storage.propagate(world.host, spec(disk=20), UUID)
        assert await world.storage.present(world.host, spec(), UUID)


async def test_disks_are_copied_to_another_host(tmp_path: Path) -> None:
    async with started(tmp_path, driver="qemu", hosts=("xen1", "xen2")) as world:
        await world.storage.propagate(world.host, spec(disk=20, disks=(DiskSpec(size_mib=2),)), UUID)
        await world.storage.transfer(world.host, world.hosts["xen2"], spec(), UUID)
        assert world.daemons["xen2"].files() == world.daemon.files()
        for name in world.daemon.files():
            assert world.daemons["xen2"].file(name).read_bytes() == world.daemon.file(name).read_bytes(), name
        here, there = [await world.storage.disks(host, spec(), UUID) for host in world.hosts.values()]
        assert here == there
        await world.storage.unpropagate(world.host, UUID)
        assert world.files() == []
        assert await world.storage.present(world.hosts["xen2"], spec(), UUID)


async def test_an_image_that_is_a_volume_of_a_host(tmp_path: Path) -> None:
    async with started(tmp_path) as world:
        world.daemon.file("golden").write_bytes(IMAGE[::-1])
        await world.storage.capacity(world.host)  # starts the pool, which then knows the file
        await world.storage.propagate(world.host, spec(image="golden"), UUID)
        assert world.disk().read_bytes() == IMAGE[::-1]
        await world.storage.unpropagate(world.host, UUID)
        assert world.daemon.file("golden").exists()
