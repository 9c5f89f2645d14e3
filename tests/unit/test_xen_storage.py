"""The disks of nodes on hosts whose pools do what real ones were seen to do: whole or not there, wherever it breaks."""

from __future__ import annotations

import asyncio
import hashlib
import random
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("libvirt", reason="libvirt-python is not installed")

from backends.base import (
    BackendContext,
    BackendError,
    BackendRejected,
    DiskSpec,
    HostState,
    Identity,
    NodeSpec,
    TransientBackendError,
)
from backends.xen import storage_settings
from backends.xen.errors import NotYet
from backends.xen.host import Host
from backends.xen.images import Image
from backends.xen.places import MIB
from backends.xen.seed import Seed
from backends.xen.storage import PoolStorage
from broker.core.clock import SystemClock
from tests.support.fake_volumes import OLD, FakeVolume, Hurried, Machine

UUID = "6f1f6a0e-6d0b-5d0c-9a7e-3a1f0f3e9c55"
OTHER = "6f1f6a0e-6d0b-5d0c-9a7e-3a1f0f3e9c56"
IMAGE = random.Random(1).randbytes(512 * 1024) + bytes(640 * 1024) + random.Random(2).randbytes(128 * 1024)
"""Data, a hole, data: 1.25 MiB."""


def spec(disk: int = 0, image: str = "debian", disks: tuple[DiskSpec, ...] = (), **more: Any) -> NodeSpec:
    return NodeSpec(
        identity=Identity(broker_id="b", workspace_uid="w", node_index=0),
        name="head-0",
        host="xen1",
        amounts={"disk": disk} if disk else {},
        image=image,
        disks=disks,
        **more,
    )


@dataclass
class World:
    """A pool of two hosts, its repository, and the storage that is tested."""

    directory: Path
    type: str
    machines: dict[str, Machine]
    hosts: dict[str, Host] = field(default_factory=dict)
    storage: PoolStorage = None  # type: ignore[assignment]

    @property
    def machine(self) -> Machine:
        return self.machines["xen1"]

    @property
    def host(self) -> Host:
        return self.hosts["xen1"]

    def node(self, uuid: str = UUID, machine: Machine | None = None) -> dict[str, bytes]:
        """The node's volumes by the last part of their names, "ok" the mark."""
        at = machine or self.machine
        names = [name for name in at.volumes if uuid in name]
        return {name.partition(uuid)[2][1:]: at.content(name) for name in sorted(names)}

    def bases(self, machine: Machine | None = None) -> list[str]:
        """The bases, "+" with a mark."""
        names = (machine or self.machine).volumes
        return sorted(
            name.rpartition("-")[2][:8] + "+" * (f"{name}.ok" in names)
            for name in names
            if "-base-" in name and not name.endswith(".ok")
        )

    async def answers(self, name: str = "xen1") -> None:
        """Returns when the host is connected."""
        async with asyncio.timeout(20):
            while self.hosts[name].state is not HostState.ACTIVE:
                await asyncio.sleep(0.01)

    async def settled(self) -> None:
        """Returns when nothing is under way any more."""
        async with asyncio.timeout(20):
            while self.storage._nodes.running() or self.storage._bases._making.running():
                await asyncio.sleep(0.005)


def write_image(world: World, name: str, data: bytes = IMAGE, **more: object) -> None:
    """An image of the repository; `more` goes into its sidecar."""
    directory = world.directory / "images"
    directory.mkdir(exist_ok=True)
    (directory / f"{name}.img").write_bytes(data)
    lines = [f"{key} = {value if isinstance(value, int) else repr(value)}" for key, value in more.items()]
    (directory / f"{name}.toml").write_text("\n".join([f'file = "{name}.img"', *lines]))


@asynccontextmanager
async def started(directory: Path, type: str, **settings: object) -> AsyncIterator[World]:
    clock = SystemClock()
    driver = str(settings.pop("driver", "xen"))
    world = World(directory, type, {name: Machine(type=type, driver=driver) for name in ("xen1", "xen2")})
    path = {"logical": "/dev/vg0", "dir": "/pool", "netfs": "/pool"}[type]
    more = {"source": "vg0"} if type == "logical" else {}
    table = {"pool": "guests", "type": type, "path": path, "cache_limit": 64, **more, **settings}
    found, problems = storage_settings.read({"storage": table, "images": {"directory": "images"}})
    assert found is not None
    assert not problems
    for name, machine in world.machines.items():
        world.hosts[name] = Host(name, f"test:///{name}", clock, connect=machine.connect)
        world.hosts[name].start()
        await world.answers(name)
    world.storage = PoolStorage(
        found,
        BackendContext(pool="lab", broker_id="b", clock=Hurried(), base_directory=str(directory)),
        world.hosts.get,
        lambda node, uuid: Seed(instance_id=uuid, host_name=node.name, user_data=node.user_data),
    )
    await world.storage.open()
    write_image(world, "debian", sha256=hashlib.sha256(IMAGE).hexdigest())
    yield world
    for machine in world.machines.values():
        machine.on_call = lambda call: None
    await world.storage.close()
    for host in world.hosts.values():
        await host.close()


@pytest.fixture(params=["logical", "dir"])
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    async with started(tmp_path, request.param) as world:
        yield world


async def make(world: World, uuid: str = UUID, wanted: NodeSpec | None = None) -> dict[str, bytes]:
    await world.storage.propagate(world.host, wanted or spec(), uuid)
    return world.node(uuid)


def is_whole(disk: bytes, size: int = 0) -> bool:
    """The image, and nothing but zeros behind it."""
    return disk[: len(IMAGE)] == IMAGE and not any(disk[len(IMAGE) :]) and len(disk) >= max(size, len(IMAGE))


async def test_a_node_gets_a_copy_of_its_image_and_a_seed(world: World) -> None:
    made = await make(world, wanted=spec(disk=9, user_data=b"#!/bin/sh\n"))
    assert is_whole(made["0"], 9 * MIB)
    assert b"CD001" in made["seed"]
    assert b"#!/bin/sh\n" in made["seed"]
    assert len(world.bases()) == 1
    boot, seed = await world.storage.disks(world.host, spec(), UUID)
    assert (boot.driver, boot.format, boot.block, boot.read_only) == ("phy", "raw", world.type == "logical", False)
    assert boot.source.endswith(f"{UUID}-0")
    assert (seed.source.endswith("-seed"), seed.read_only) == (True, True)
    assert await world.storage.present(world.host, spec(), UUID)


async def test_nothing_of_a_deleted_volume_shows(world: World) -> None:
    made = await make(world, wanted=spec(disk=20, disks=(DiskSpec(size_mib=5), DiskSpec(image="debian", size_mib=6))))
    assert OLD[:8] not in b"".join(made.values())
    assert made["1"] == bytes(len(made["1"]))
    assert is_whole(made["2"], 6 * MIB)
    assert is_whole(made["0"], 9 * MIB)
    assert all(OLD[:8] not in data.data for name, data in world.machine.volumes.items() if not name.endswith(".ok"))


async def test_a_second_node_shares_the_base_and_no_volume(world: World) -> None:
    first, second = await asyncio.gather(make(world), make(world, OTHER))
    assert is_whole(first["0"])
    assert is_whole(second["0"])
    assert len(world.bases()) == 1
    assert (
        sum(call.startswith("made wsb") and "base" in call and ".ok" not in call for call in world.machine.calls) == 1
    )
    disks = [await world.storage.disks(world.host, spec(), uuid) for uuid in (UUID, OTHER)]
    assert not {disk.source for disk in disks[0]} & {disk.source for disk in disks[1]}


async def test_what_is_complete_is_left_alone(world: World) -> None:
    await make(world)
    calls = len(world.machine.calls)
    await make(world)
    assert len(world.machine.calls) == calls


async def test_unpropagate_removes_everything_of_the_node_and_nothing_else(world: World) -> None:
    await make(world, wanted=spec(disks=(DiskSpec(size_mib=1),)))
    await make(world, OTHER)
    await world.storage.unpropagate(world.host, UUID)
    await world.storage.unpropagate(world.host, UUID)
    assert world.node() == {}
    assert set(world.node(OTHER)) == {"0", "seed", "ok"}
    assert not await world.storage.present(world.host, spec(), UUID)
    with pytest.raises(BackendRejected, match="not all on xen1"):
        await world.storage.disks(world.host, spec(), UUID)


async def test_what_is_in_use_is_not_removed_now(world: World) -> None:
    await make(world)
    world.machine.domains[UUID] = "<domain/>"
    with pytest.raises(TransientBackendError, match="runs on xen1"):
        await world.storage.unpropagate(world.host, UUID)
    assert set(world.node()) == {"0", "seed", "ok"}
    del world.machine.domains[UUID]
    world.machine.in_use = {name for name in world.machine.volumes if name.endswith("-0")}
    with pytest.raises(TransientBackendError, match=r"something still uses it"):
        await world.storage.unpropagate(world.host, UUID)
    assert not await world.storage.present(world.host, spec(), UUID), "half removed is not complete"
    world.machine.in_use.clear()
    await world.storage.unpropagate(world.host, UUID)
    assert world.node() == {}


Attempt = Callable[[World], Coroutine[Any, Any, None]]


async def _calls_of(tmp_path: Path, type: str, attempt: Attempt, prepare: Attempt | None = None) -> list[str]:
    """The calls that an attempt takes, on the host it changes, when nothing breaks."""
    async with started(tmp_path / "whole", type) as world:
        if prepare is not None:
            await prepare(world)
        before = {name: len(machine.calls) for name, machine in world.machines.items()}
        await attempt(world)
        return [call for name, machine in world.machines.items() for call in machine.calls[before[name] :]]


async def _propagate(world: World) -> None:
    await world.storage.propagate(world.host, spec(disk=7, disks=(DiskSpec(size_mib=2),)), UUID)


@pytest.mark.parametrize("type", ["logical", "dir"])
async def test_a_connection_that_breaks_at_any_call_leaves_nothing_that_counts(type: str, tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    calls = await _calls_of(tmp_path, type, _propagate)
    assert len(calls) > 20
    for at in range(len(calls)):
        directory = tmp_path / str(at)
        directory.mkdir()
        async with started(directory, type) as world:
            machine = world.machine
            machine.on_call = lambda call, at=at, machine=machine: (  # type: ignore[misc]
                machine.die() if len(machine.calls) == at + 1 else None
            )
            with pytest.raises(TransientBackendError):
                await _propagate(world)
            await world.answers()
            if await world.storage.present(world.host, spec(), UUID):
                assert calls[at].endswith(".ok"), "all but the mark was done before"
            else:
                await _propagate(world)
            made = world.node()
            assert set(made) == {"0", "1", "seed", "ok"}
            assert is_whole(made["0"], 5 * MIB), calls[at]
            assert made["1"] == bytes(len(made["1"]))
            assert [base[-1] for base in world.bases()] == ["+"]
            await world.storage.unpropagate(world.host, UUID)
            assert world.node() == {}
            assert len(machine.volumes) == 2, "the base and its mark"


@pytest.mark.parametrize("type", ["logical", "dir"])
async def test_cancelled_at_any_call_it_leaves_nothing_behind(type: str, tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    calls = await _calls_of(tmp_path, type, _propagate)
    for at in range(len(calls) - 1):  # after the last one there is nothing left to cancel
        directory = tmp_path / str(at)
        directory.mkdir()
        async with started(directory, type) as world:
            machine = world.machine
            task = asyncio.create_task(_propagate(world))
            loop = asyncio.get_running_loop()
            cancelled = asyncio.Event()

            def cancel(call: str, at: int = at, machine: Machine = machine, task: asyncio.Task[None] = task) -> None:
                if len(machine.calls) == at + 1:
                    asyncio.run_coroutine_threadsafe(_cancel(task, cancelled), loop).result(10)  # noqa: B023

            machine.on_call = cancel
            with pytest.raises(asyncio.CancelledError):
                await task
            await cancelled.wait()
            await world.settled()
            assert world.node() == {}, calls[at]
            assert all(base.endswith("+") for base in world.bases()), calls[at]
            await _propagate(world)
            assert is_whole(world.node()["0"])


async def _cancel(task: asyncio.Task[None], cancelled: asyncio.Event) -> None:
    """Cancels a task, and lets it notice before the call that is under way goes on."""
    task.cancel()
    for _ in range(5):
        await asyncio.sleep(0)
    cancelled.set()


async def test_unpropagate_waits_for_a_cancelled_propagate_to_be_undone(world: World) -> None:
    go = asyncio.Event()
    loop = asyncio.get_running_loop()
    reached = asyncio.Event()

    def stop(call: str) -> None:
        if call.startswith("copied") or (call.startswith("made") and call.endswith("-0")):
            loop.call_soon_threadsafe(reached.set)
            asyncio.run_coroutine_threadsafe(_wait(go), loop).result(10)

    world.machine.on_call = stop
    making = asyncio.create_task(make(world))
    await reached.wait()
    making.cancel()
    with pytest.raises(asyncio.CancelledError):
        await making  # at once, although the host still copies
    removing = asyncio.create_task(world.storage.unpropagate(world.host, UUID))
    await asyncio.sleep(0)
    assert not removing.done()
    world.machine.on_call = lambda call: None
    go.set()
    await removing
    assert world.node() == {}


async def test_an_end_ends_a_propagate_that_nobody_cancelled(world: World) -> None:
    loop, ending = asyncio.get_running_loop(), list[asyncio.Task[None]]()

    def end(call: str) -> None:
        if "-base-" in call and not ending:
            asyncio.run_coroutine_threadsafe(begin(), loop).result(10)

    async def begin() -> None:
        ending.append(asyncio.create_task(world.storage.unpropagate(world.host, UUID)))
        await asyncio.sleep(0)

    world.machine.on_call = end
    with pytest.raises(asyncio.CancelledError):
        await make(world)
    await ending[0]
    await world.settled()
    assert world.machine.volumes == {}


async def test_closing_cleans_up(world: World) -> None:
    loop = asyncio.get_running_loop()
    reached = asyncio.Event()

    def note(call: str) -> None:
        loop.call_soon_threadsafe(reached.set)

    world.machine.on_call = note
    making = asyncio.create_task(make(world))
    await reached.wait()
    await world.storage.close()
    assert world.machine.volumes == {}
    with pytest.raises(asyncio.CancelledError):
        await making


async def test_closing_does_not_wait_for_a_call_that_takes_long(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    go, reached, loop = threading.Event(), asyncio.Event(), asyncio.get_running_loop()

    def block(call: str) -> None:
        loop.call_soon_threadsafe(reached.set)
        assert go.wait(20)

    monkeypatch.setattr("backends.xen.storage._CLOSE_SECONDS", 0.01)
    world.machine.on_call = block
    making = asyncio.create_task(make(world))
    await reached.wait()
    await world.storage.close()
    assert not go.is_set()
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await making
    await world.settled()
    assert world.machine.volumes == {}


async def _wait(go: asyncio.Event) -> None:
    await go.wait()


async def test_a_checksum_that_does_not_match_leaves_nothing(world: World) -> None:
    write_image(world, "bad", IMAGE[:-512] + bytes(512), sha256=hashlib.sha256(IMAGE).hexdigest())
    with pytest.raises(BackendRejected, match=r"bad\.img has the SHA-256 .* is expected: correct whichever is wrong"):
        await make(world, wanted=spec(image="bad"))
    assert world.machine.volumes == {}


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (spec(disk=1), "a disk of 1 MiB is too small for image debian: ask for 2 MiB"),
        (
            spec(disk=4, disks=(DiskSpec(size_mib=3),)),
            "a disk of 4 MiB beside 3 MiB of other disks is too small for image debian: ask for 2 MiB and those 3",
        ),
        (
            spec(disks=(DiskSpec(image="debian", size_mib=1), DiskSpec())),
            "disk 1 from image debian of 1 MiB is smaller",
        ),
        (spec(disks=(DiskSpec(image="debian", size_mib=1), DiskSpec())), "disk 2 needs an image or a size"),
        (spec(image="debain"), "there is no image debain; there are: arm, debian, gone, odd, short"),
        (spec(image="arm"), "image arm is for aarch64, and xen1 is x86_64"),
        (spec(image="short"), f"it has {len(IMAGE)} bytes, and 2000000 are expected (truncated?)"),
        (spec(image="odd"), "513 bytes are no disk of whole 512-byte sectors"),
        (spec(image="gone"), "gone.img cannot be read: No such file or directory"),
        (spec(disk=5000), "MiB, and the storage pool guests on xen1 has"),
    ],
)
async def test_what_cannot_be_is_refused_and_leaves_nothing(world: World, wanted: NodeSpec, message: str) -> None:
    write_image(world, "arm")
    (world.directory / "images" / "arm.toml").write_text('file = "arm.img"\nattributes = { arch = "aarch64" }')
    write_image(world, "short", size=2_000_000)
    write_image(world, "odd", bytes(513))
    write_image(world, "gone")
    (world.directory / "images" / "gone.img").unlink()
    with pytest.raises(BackendRejected) as refused:
        await make(world, wanted=wanted)
    assert message in str(refused.value)
    assert world.node() == {}


async def test_an_image_larger_than_the_pool_is_refused_before_it_is_sent(world: World) -> None:
    world.machine.size = MIB
    with pytest.raises(BackendRejected, match="has 2 MiB, and the storage pool guests on xen1 has 1 in all") as refused:
        await make(world)
    assert refused.value.host_fault
    assert world.machine.calls == []


@pytest.mark.parametrize("kept", ["one", "two"])
async def test_the_cache_lets_go_of_the_base_used_longest_ago(tmp_path: Path, kept: str) -> None:
    async with started(tmp_path, "dir", cache_limit=3) as world:
        contents = {name: IMAGE + name.encode().ljust(512) for name in ("one", "two", "three")}
        for name, data in contents.items():
            write_image(world, name, data)
        sums = {name: hashlib.sha256(data).hexdigest()[:8] + "+" for name, data in contents.items()}
        for name in ("one", "two", kept):
            await make(world, wanted=spec(image=name))
            await world.storage.unpropagate(world.host, UUID)
        assert world.bases() == sorted([sums["one"], sums["two"]])
        await make(world, wanted=spec(image="three"))
        assert world.bases() == sorted([sums[kept], sums["three"]])


async def test_which_images_a_host_has(world: World) -> None:
    write_image(world, "unsummed", IMAGE[::-1])
    write_image(world, "elsewhere", IMAGE + bytes(512), sha256=hashlib.sha256(IMAGE + bytes(512)).hexdigest())
    assert await world.storage.cached(world.host) == frozenset()
    await make(world)
    await make(world, OTHER, spec(image="unsummed"))
    assert await world.storage.cached(world.host) == {"debian", "unsummed"}
    assert await world.storage.cached(world.hosts["xen2"]) == frozenset()
    mark = next(name for name in world.machine.volumes if "-base-" in name and name.endswith(".ok"))
    del world.machine.volumes[mark]
    assert len(await world.storage.cached(world.host)) == 1


async def test_a_base_that_overlays_are_upon_stays(tmp_path: Path) -> None:
    async with started(tmp_path, "dir", cache_limit=2, driver="qemu") as world:
        write_image(world, "other", IMAGE[::-1])
        await make(world, wanted=spec(disk=5))
        (disk, _) = await world.storage.disks(world.host, spec(), UUID)
        assert (disk.format, disk.driver) == ("qcow2", "qemu")
        with pytest.raises(NotYet, match=r"2 of storage\.cache_limit's 2 on xen1 are in use"):
            await make(world, OTHER, spec(image="other"))
        assert len(world.bases()) == 1
        await world.storage.unpropagate(world.host, UUID)
        await make(world, OTHER, spec(image="other"))
        assert world.bases() == [hashlib.sha256(IMAGE[::-1]).hexdigest()[:8] + "+"]


async def test_snapshots_keep_their_base_and_have_all_they_need(tmp_path: Path) -> None:
    async with started(tmp_path, "logical", clones="snapshot") as world:
        await make(world)
        await make(world, OTHER, spec(disk=9))  # larger than the base: a copy
        upon = {
            name.partition(OTHER[:-1])[2]: each.backing
            for name, each in world.machine.volumes.items()
            if OTHER[:-1] in name
        }
        assert "base" in upon["5-0"]
        assert upon["6-0"] == ""
        assert is_whole(world.node()["0"])
        assert is_whole(world.node(OTHER)["0"], 9 * MIB)


async def test_a_full_pool_says_how_full_it_is_and_idle_bases_make_room(world: World) -> None:
    write_image(world, "other", IMAGE[::-1])
    await make(world)
    await world.storage.unpropagate(world.host, UUID)
    assert len(world.bases()) == 1
    world.machine.size = world.machine.allocated + 13 * MIB
    await make(world, wanted=spec(image="other", disk=4))
    assert world.bases() == [hashlib.sha256(IMAGE[::-1]).hexdigest()[:8] + "+"] or world.type == "dir"
    with pytest.raises(BackendRejected, match=r"node head-0 needs \d+ MiB, .* has \d+ MiB free of \d+|has \d+ free of"):
        await make(world, OTHER, spec(image="other", disk=40))


async def test_a_restarted_host_is_told_its_pool_again(world: World) -> None:
    await make(world)
    await world.storage.unpropagate(world.host, UUID)
    world.machine.defined = world.machine.active = False
    await make(world)
    assert is_whole(world.node()["0"])
    assert world.machine.starts == 1
    uploads = sum("made" in call and "-base-" in call and ".ok" not in call for call in world.machine.calls)
    assert uploads == (2 if world.type == "dir" else 1), "a file may not have reached the disk before"


async def test_a_pool_that_nobody_described_must_be_there(tmp_path: Path) -> None:
    async with started(tmp_path, "dir") as world:
        found, _ = storage_settings.read({"storage": {"pool": "guests"}, "images": {"directory": "images"}})
        assert found is not None
        context = BackendContext(pool="lab", broker_id="b", clock=SystemClock(), base_directory=str(tmp_path))
        storage = PoolStorage(found, context, world.hosts.get, lambda node, uuid: None)
        world.machine.active = False
        await storage.propagate(world.host, spec(), UUID)
        assert set(world.node()) == {"0", "ok"}, "no seed where nothing is to be told"
        world.machine.defined = False
        with pytest.raises(BackendRejected, match=r"define it there, or say storage\.path"):
            await storage.unpropagate(world.host, UUID)
        await storage.close()


async def test_capacity_counts_what_others_hold_and_keeps_the_caches_share(world: World) -> None:
    assert await world.storage.capacity(world.host) == (1024 - 64, 0)
    await make(world)
    world.machine.volumes["theirs"] = FakeVolume(world.machine, "theirs", bytearray(8 * MIB))
    assert await world.storage.capacity(world.host) == (1024 - 64, 8)


async def test_a_nodes_volumes_are_copied_to_another_host(world: World) -> None:
    before = await make(world, wanted=spec(disk=9, disks=(DiskSpec(size_mib=1),)))
    target = world.machines["xen2"]
    assert not await world.storage.present(world.hosts["xen2"], spec(), UUID)
    await world.storage.transfer(world.host, world.hosts["xen2"], spec(), UUID)
    await world.storage.transfer(world.host, world.hosts["xen2"], spec(), UUID)
    assert world.node(machine=target) == before
    assert world.node() == before, "the source keeps its own"
    assert await world.storage.present(world.hosts["xen2"], spec(), UUID)
    here, there = [await world.storage.disks(host, spec(), UUID) for host in world.hosts.values()]
    assert here == there


async def test_what_overlays_are_upon_is_copied_first(tmp_path: Path) -> None:
    async with started(tmp_path, "dir", driver="qemu") as world:
        before = await make(world, wanted=spec(disk=5))
        await world.storage.transfer(world.host, world.hosts["xen2"], spec(), UUID)
        target = world.machines["xen2"]
        assert world.node(machine=target) == before
        assert world.bases(target) == world.bases()
        assert target.volumes.keys() == world.machine.volumes.keys()
        base = next(name for name in target.volumes if "-base-" in name and not name.endswith(".ok"))
        assert target.content(base) == IMAGE


@pytest.mark.parametrize("broken", ["xen1", "xen2"])
async def test_a_copy_to_another_host_that_breaks_does_not_count(world: World, broken: str) -> None:
    before = await make(world)
    machine = world.machines[broken]
    if broken == "xen2":
        machine.on_call = lambda call: machine.die() if call.startswith("sendHole") else None
    else:
        world.machines["xen2"].on_call = lambda call: setattr(
            machine, "alive", machine.alive and "sendHole" not in call
        )
    with pytest.raises(TransientBackendError):
        await world.storage.transfer(world.host, world.hosts["xen2"], spec(), UUID)
    for each in world.machines.values():
        each.on_call = lambda call: None
    await world.answers("xen1")
    await world.answers("xen2")
    assert not await world.storage.present(world.hosts["xen2"], spec(), UUID)
    await world.storage.transfer(world.host, world.hosts["xen2"], spec(), UUID)
    assert world.node(machine=world.machines["xen2"]) == before


async def test_a_disk_is_saved_and_a_second_node_starts_from_it(world: World) -> None:
    (world.directory / "images" / "debian.toml").write_text(
        'file = "debian.img"\nattributes = { arch = "x86_64" }\nguest = { kernel = "/guest/vmlinux" }'
    )
    await make(world)
    volume = next(each for name, each in world.machine.volumes.items() if name.endswith(f"{UUID}-0"))
    volume.data[1000:1004] = b"kept"
    await world.storage.save(world.host, UUID, "", "mine")
    seen = {image.name: image for image in await world.storage.images()}
    assert (seen["mine"].ready, seen["mine"].attributes) == (True, {"arch": "x86_64"})
    assert seen["mine"].size_mib == -(-len(volume.data) // MIB)
    assert await world.storage.guest(spec(image="mine")) == {"kernel": "/guest/vmlinux"}
    made = await make(world, OTHER, spec(image="mine"))
    assert made["0"][: len(volume.data)] == bytes(volume.data)
    assert world.storage.problems == ()


async def test_an_image_is_not_ready_while_it_is_saved(world: World) -> None:
    await make(world)
    loop = asyncio.get_running_loop()
    seen: list[bool] = []

    async def look() -> None:
        seen.append(next(each.ready for each in await world.storage.images() if each.name == "mine"))
        with pytest.raises(TransientBackendError, match=r"image mine is being saved from .*: it is not ready yet"):
            await world.storage.guest(spec(image="mine"))
        with pytest.raises(BackendRejected, match="being saved from another disk: save under another name"):
            async with world.storage.repository.saving("mine", "other", Image(name="mine")):
                pass
        with pytest.raises(TransientBackendError, match="from this disk already: wait for it"):
            await world.storage.save(world.host, UUID, "", "mine")

    world.machine.on_read = lambda call: (
        asyncio.run_coroutine_threadsafe(look(), loop).result(10) if call.endswith("-0") and not seen else None
    )
    await world.storage.save(world.host, UUID, "", "mine")
    assert seen == [False]
    assert next(each.ready for each in await world.storage.images() if each.name == "mine")


async def test_saving_under_a_name_that_is_taken(world: World) -> None:
    await make(world)
    await make(world, OTHER)
    await world.storage.save(world.host, UUID, "", "mine")
    calls = len(world.machine.calls)
    await world.storage.save(world.host, UUID, "", "mine")  # the same once more
    assert len(world.machine.calls) == calls
    with pytest.raises(BackendRejected, match="there is an image mine already: save under another name"):
        await world.storage.save(world.host, OTHER, "", "mine")
    with pytest.raises(BackendRejected, match="there is an image debian already"):
        await world.storage.save(world.host, UUID, "", "debian")
    with pytest.raises(BackendRejected, match="cannot be an image's name"):
        await world.storage.save(world.host, UUID, "", "../mine")


async def test_which_disk_is_saved(world: World) -> None:
    await make(world, wanted=spec(disks=(DiskSpec(size_mib=1, device="xvdc"), DiskSpec(size_mib=2))))
    sources = [disk.source for disk in await world.storage.disks(world.host, spec(), UUID)]
    world.machine.domains[UUID] = (
        "<domain><devices>"
        + "".join(
            f"<disk><source file='{source}'/><target dev='{device}'/></disk>"
            for source, device in zip(sources, ("xvda", "xvdc", "xvdb", "xvdd"), strict=True)
        )
        + "</devices></domain>"
    )
    for device, size in (("xvda", len(IMAGE)), ("xvdb", 2 * MIB), ("xvdc", MIB)):
        await world.storage.save(world.host, UUID, device, f"of-{device}")
        image = await world.storage.repository.find(f"of-{device}")
        rounded = -(-size // (4 * MIB)) * 4 * MIB
        assert image.size == (rounded if world.type == "logical" else size)
    with pytest.raises(BackendRejected, match='has no disk "xvdd"; there are: xvda, xvdb, xvdc, xvdd'):
        await world.storage.save(world.host, UUID, "xvdd", "of-the-seed")


async def test_a_disk_that_looks_like_something_else_is_not_saved(world: World) -> None:
    await make(world)
    volume = next(each for name, each in world.machine.volumes.items() if name.endswith(f"{UUID}-0"))
    volume.data[:4] = b"QFI\xfb"
    with pytest.raises(BackendRejected, match="begins like a qcow2 file"):
        await world.storage.save(world.host, UUID, "", "trap")
    assert {path.name for path in (world.directory / "images").iterdir()} == {"debian.img", "debian.toml"}


async def test_a_save_that_breaks_leaves_no_image(world: World) -> None:
    await make(world)
    world.machine.alive = False
    with pytest.raises(TransientBackendError):
        await world.storage.save(world.host, UUID, "", "mine")
    await world.answers()
    assert [image.name for image in await world.storage.images()] == ["debian"]
    await world.storage.save(world.host, UUID, "", "mine")
    assert [image.name for image in await world.storage.images()] == ["debian", "mine"]
    assert not list((world.directory / "images").glob(".*"))


async def test_hosts_of_a_shared_pool_see_the_same_volumes(tmp_path: Path) -> None:
    async with started(tmp_path, "dir") as world:
        assert not world.storage.shared
    table = {"storage": {"pool": "guests", "type": "netfs"}, "images": {"directory": "images"}}
    found, _ = storage_settings.read(table)
    assert found is not None
    context = BackendContext(pool="lab", broker_id="b", clock=SystemClock(), base_directory=str(tmp_path))
    assert PoolStorage(found, context, lambda name: None, lambda node, uuid: None).shared


async def test_a_lost_host_is_told_as_such(world: World) -> None:
    world.machine.alive = False
    for work in (
        world.storage.propagate(world.host, spec(), UUID),
        world.storage.unpropagate(world.host, UUID),
        world.storage.capacity(world.host),
    ):
        with pytest.raises(BackendError) as failed:
            await work
        assert isinstance(failed.value, TransientBackendError)
