"""What the verbs do to domains and in which order, on libvirt's test driver and a storage that keeps a record."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from backends.base import (
    Action,
    Backend,
    BackendRejected,
    Capability,
    DiskSpec,
    NicSpec,
    NodeSpec,
    Observation,
    ObservedImage,
    Step,
    StepCall,
    TransientBackendError,
)

pytest.importorskip("libvirt", reason="libvirt-python is not installed")

from backends.xen import acts, domain
from backends.xen.acts import Node
from backends.xen.host import Host
from backends.xen.library import LibvirtError
from backends.xen.seam import Disk
from tests.support.libvirt_pool import Machines, ShiftedClock, Wire, node, pool

RUNNING, PAUSED, SUSPENDED = Observation.RUNNING, Observation.PAUSED, Observation.SUSPENDED
OFF, ABSENT = Observation.OFF, Observation.ABSENT
UUID = domain.uuid_of(node().identity)


@dataclass
class Record:
    """A storage that makes nothing and notes what it is asked, with what the node's domain is meanwhile."""

    machines: Machines
    shared: bool = False
    moves: bool = True
    saves: bool = True
    problems: Sequence[str] = ()
    asked: list[tuple[str, str, str]] = field(default_factory=list)
    refuse: set[str] = field(default_factory=set)
    there: set[str] = field(default_factory=set)
    addresses: dict[str, tuple[NicSpec, ...]] = field(default_factory=dict)

    async def open(self) -> None:
        pass

    async def close(self) -> None:
        pass

    async def guest(self, spec: NodeSpec) -> Mapping[str, str]:
        return {"kernel": "/image/kernel"} if spec.image == "with-kernel" else {}

    async def propagate(self, host: Host, spec: NodeSpec, uuid: str) -> None:
        self.addresses[uuid] = spec.nics
        self.note("propagate", host, uuid)
        self.there.add(host.name)

    async def disks(self, host: Host, spec: NodeSpec, uuid: str) -> Sequence[Disk]:
        return (Disk(source=f"/dev/vg0/{uuid}", device=""),)

    async def unpropagate(self, host: Host, uuid: str) -> None:
        self.note("unpropagate", host, uuid)
        self.there.discard(host.name)

    async def transfer(self, source: Host, target: Host, spec: NodeSpec, uuid: str) -> None:
        self.note("transfer", target, uuid)
        self.there.add(target.name)

    async def present(self, host: Host, spec: NodeSpec, uuid: str) -> bool:
        return self.shared or host.name in self.there

    async def save(self, host: Host, uuid: str, device: str, image_name: str) -> None:
        self.note("save", host, uuid)

    async def images(self) -> tuple[ObservedImage, ...] | None:
        return None

    async def capacity(self, host: Host) -> tuple[int, int] | None:
        return 1000, 100

    def note(self, what: str, host: Host, uuid: str) -> None:
        number = int(host.name.removeprefix("host-"))
        self.asked.append((what, host.name, self.machines.state(number, uuid)))
        if what in self.refuse:
            raise BackendRejected(f"{what} is refused", host_fault=True)


@pytest.fixture
def machines() -> Iterator[Machines]:
    made = Machines()
    yield made
    made.close()


@pytest.fixture
def clock() -> ShiftedClock:
    return ShiftedClock()


@pytest.fixture
async def backend(machines: Machines, clock: ShiftedClock, tmp_path: Path) -> AsyncIterator[Backend]:
    async with pool(tmp_path, machines, clock) as made:
        yield made


@pytest.fixture
def record(machines: Machines) -> Record:
    return Record(machines)


@pytest.fixture
async def with_disks(machines: Machines, record: Record, tmp_path: Path) -> AsyncIterator[Backend]:
    async with pool(tmp_path, machines, storage=record) as made:
        yield made


async def do(backend: Backend, action: Action, spec: NodeSpec | None = None, **changes: Any) -> None:
    spec = spec or node()
    for step in backend.steps(action):
        await backend.perform(StepCall(step=step, node=spec, backend_id=domain.uuid_of(spec.identity), **changes))


async def seen(backend: Backend, spec: NodeSpec | None = None) -> Observation:
    return (await backend.find((spec or node()).identity)).observation


async def eventually(backend: Backend, wanted: Observation) -> None:
    while await seen(backend) is not wanted:
        await backend.observe()
        await asyncio.sleep(0.01)


def ignore(itself: Callable[[], Any]) -> int:
    """What a guest does that does not listen."""
    return 0


# Making


async def test_a_name_that_is_taken_by_hand_is_refused_on_that_host(backend: Backend, machines: Machines) -> None:
    await backend.inventory()
    xml = f"<domain type='test'><name>{domain.name_of(node())}</name><memory>1024</memory><os><type>hvm</type></os>"
    by_hand = machines.of(1).defineXML(f"{xml}</domain>")
    with pytest.raises(BackendRejected, match=r'host-1 has a domain "node-0-.*" that is not this broker\'s') as refused:
        await do(backend, Action.CREATE)
    assert refused.value.host_fault
    assert by_hand.isPersistent()
    await do(backend, Action.CREATE, node(host="host-2"))
    assert await seen(backend) is RUNNING


async def test_a_node_that_is_made_paused(backend: Backend) -> None:
    spec = node(start_paused=True)
    await do(backend, Action.CREATE, spec)
    assert await seen(backend) is PAUSED
    await do(backend, Action.UNPAUSE, spec)
    await do(backend, Action.STOP_RELEASE, spec)
    await do(backend, Action.START_RELEASED, spec)
    assert await seen(backend) is RUNNING, "it is made paused once"


async def test_the_definition_comes_first_and_goes_last(with_disks: Backend, record: Record) -> None:
    await do(with_disks, Action.CREATE)
    assert record.asked == [("propagate", "host-1", "off")]
    xml = record.machines.of(1).lookupByUUIDString(UUID).XMLDesc(0)
    assert f"/dev/vg0/{UUID}" in xml
    assert "10.77.0.100" in xml
    assert record.addresses[UUID] == (NicSpec(network="lan", addresses=("10.77.0.100",)),), "for the seed"
    record.asked.clear()
    await do(with_disks, Action.TERMINATE)
    assert record.asked == [("unpropagate", "host-1", "off"), ("unpropagate", "host-1", "gone")]
    assert await seen(with_disks) is ABSENT


async def test_what_an_end_cannot_clear_away_keeps_its_definition(with_disks: Backend, record: Record) -> None:
    await do(with_disks, Action.CREATE)
    record.refuse = {"unpropagate"}
    with pytest.raises(BackendRejected):
        await do(with_disks, Action.TERMINATE)
    assert await seen(with_disks) is OFF, "so that it is found, and ended again"
    record.refuse.clear()
    await do(with_disks, Action.TERMINATE)
    assert await seen(with_disks) is ABSENT


async def test_an_end_of_what_has_no_domain_still_clears_away(with_disks: Backend, record: Record) -> None:
    await do(with_disks, Action.TERMINATE)
    assert ("unpropagate", "host-1", "gone") in record.asked


async def test_an_image_says_what_its_guest_is(with_disks: Backend, record: Record) -> None:
    await do(with_disks, Action.CREATE, node(image="with-kernel"))
    assert "<kernel>/image/kernel</kernel>" in record.machines.of(1).lookupByUUIDString(UUID).XMLDesc(0)


async def test_disks_of_a_pool_without_storage_are_not_its_affair(backend: Backend) -> None:
    assert Step.PROPAGATE not in backend.steps(Action.CREATE)
    assert not {Capability.SAVE_IMAGE, Capability.USER_DATA} & backend.capabilities
    with pytest.raises(BackendRejected, match="this pool has no storage"):
        await do(backend, Action.CREATE, node(disks=(DiskSpec(size_mib=10),)))
    assert await seen(backend) is ABSENT


async def test_the_disk_of_hosts_is_their_own_and_a_shared_one_the_pools(with_disks: Backend, record: Record) -> None:
    inventory = await with_disks.inventory()
    assert [(host.total["disk"], host.foreign["disk"]) for host in inventory.hosts] == [(1000, 100)] * 2
    record.shared = True
    inventory = await with_disks.inventory()
    assert ["disk" in host.total for host in inventory.hosts] == [False, False]
    assert (inventory.pool_totals, inventory.pool_foreign) == ({"disk": 1000}, {"disk": 100})


# Why it was not started


@pytest.mark.parametrize(
    ("faults", "part"),
    [
        ({"getFreeMemory": 100 << 20}, "memory: 512 MiB are needed, 100 MiB are free"),
        ({"getFreeMemory": 8 << 30, "getMaxVcpus": 0}, "8192 MiB of memory are free for 512, so look whether the host"),
        ({"getFreeMemory": 8 << 30}, "kernel /guest/vmlinux, bridge xenbr0"),
    ],
)
async def test_a_start_that_fails_without_a_reason_is_looked_into(
    backend: Backend, machines: Machines, faults: dict[str, int], part: str
) -> None:
    machines.faults.fail("create", 1, "libxenlight failed to create new domain 'node'")
    for call, answer in faults.items():
        machines.faults.answer(call, answer)
    with pytest.raises(BackendRejected) as refused:
        await do(backend, Action.CREATE)
    assert refused.value.host_fault
    assert "libxenlight failed to create new domain 'node' (libvirt code 1)" in str(refused.value)
    assert part in str(refused.value)


async def test_more_vcpus_than_the_host_gives(backend: Backend, machines: Machines) -> None:
    machines.faults.fail("create", 1)
    machines.faults.add("getMaxVcpus", lambda itself: 2)
    with pytest.raises(BackendRejected, match="vcpus: 3 are needed, the host gives a guest 2 at most"):
        await do(backend, Action.CREATE, node(amounts={"cpu": 3000, "memory": 100}))


# Stopping


async def test_a_guest_that_shuts_down(backend: Backend, machines: Machines) -> None:
    await do(backend, Action.CREATE)
    await do(backend, Action.STOP)
    assert await seen(backend) is OFF
    assert "stopping" not in machines.of(1).lookupByUUIDString(UUID).XMLDesc(0)


async def test_a_guest_that_does_not_is_ended_when_its_time_is_over(
    backend: Backend, machines: Machines, clock: ShiftedClock
) -> None:
    await do(backend, Action.CREATE)
    machines.faults.add("shutdown", ignore)
    await do(backend, Action.STOP)
    await backend.observe()
    assert await seen(backend) is RUNNING
    clock.shift += timedelta(seconds=59)
    await backend.observe()
    assert machines.faults.calls["destroy"] == 0
    clock.shift += timedelta(seconds=2)
    await eventually(backend, OFF)


async def test_it_is_ended_in_time_by_whoever_looks_after_a_restart(
    machines: Machines, clock: ShiftedClock, tmp_path: Path
) -> None:
    async with pool(tmp_path, machines, clock) as backend:
        await do(backend, Action.CREATE)
        machines.faults.add("shutdown", ignore)
        await do(backend, Action.STOP)
    clock.shift += timedelta(seconds=61)
    async with pool(tmp_path, machines, clock) as backend:
        await eventually(backend, OFF)


async def test_a_guest_that_was_started_again_is_not_ended(
    backend: Backend, machines: Machines, clock: ShiftedClock
) -> None:
    await do(backend, Action.CREATE)
    await do(backend, Action.STOP)
    machines.of(1).lookupByUUIDString(UUID).create()
    clock.shift += timedelta(hours=1)
    await backend.observe()
    await asyncio.sleep(0.05)
    assert await seen(backend) is RUNNING


async def test_only_the_stop_that_is_overdue_ends_a_guest(backend: Backend, machines: Machines) -> None:
    await do(backend, Action.CREATE)
    machines.faults.answer("shutdown", 0)
    await do(backend, Action.STOP)
    this = Node(uuid=UUID, identity=node().identity, host="host-1", driver="test")
    acts.end(machines.of(1), this, overdue="2026-01-01T00:00:00+00:00")  # noted by an earlier stop
    assert machines.state(1, UUID) == "running"


async def test_a_stop_that_is_repeated_gives_no_more_time(backend: Backend, machines: Machines) -> None:
    await do(backend, Action.CREATE)
    machines.faults.add("shutdown", ignore)
    await do(backend, Action.STOP)
    before = machines.of(1).lookupByUUIDString(UUID).XMLDesc(0)
    await do(backend, Action.STOP, repeated=True)
    assert machines.of(1).lookupByUUIDString(UUID).XMLDesc(0) == before
    assert machines.faults.calls["shutdown"] == 1


async def test_a_guest_that_cannot_be_asked_is_ended_in_its_time(
    backend: Backend, machines: Machines, clock: ShiftedClock
) -> None:
    await do(backend, Action.CREATE)
    machines.faults.fail("shutdown", 1, "the guest has no control channel")
    await do(backend, Action.STOP)
    assert await seen(backend) is RUNNING
    clock.shift += timedelta(seconds=61)
    await eventually(backend, OFF)


async def test_a_paused_guest_is_never_asked_to_shut_down(backend: Backend, machines: Machines) -> None:
    await do(backend, Action.CREATE)
    await do(backend, Action.PAUSE)
    with pytest.raises(BackendRejected, match="is paused"):
        await do(backend, Action.STOP)
    await do(backend, Action.STOP, force=True)
    assert machines.faults.calls["shutdown"] == 0
    assert await seen(backend) is OFF


# Suspending and going on


async def test_capacity_is_given_back_without_a_call(backend: Backend, machines: Machines) -> None:
    await do(backend, Action.CREATE)
    await do(backend, Action.SUSPEND)
    await do(backend, Action.RELEASE_SUSPENDED)
    assert machines.faults.calls["managedSave"] == 1
    assert (await backend.find(node().identity)).host == "host-1", "its disk and its memory are there"
    await do(backend, Action.RESUME_RELEASED)
    await do(backend, Action.STOP)
    await do(backend, Action.RELEASE_STOPPED)
    assert machines.faults.calls["shutdown"] == 1
    assert await seen(backend) is OFF


async def test_what_is_suspended_is_not_started_and_what_is_off_not_resumed(backend: Backend) -> None:
    await do(backend, Action.CREATE)
    await do(backend, Action.SUSPEND)
    with pytest.raises(BackendRejected, match="is suspended"):
        await do(backend, Action.START)
    await do(backend, Action.RESUME)
    await do(backend, Action.STOP)
    with pytest.raises(BackendRejected, match="is off"):
        await do(backend, Action.RESUME)


async def test_a_refused_call_that_was_done_after_all_is_done(backend: Backend, machines: Machines) -> None:
    await do(backend, Action.CREATE)

    def done_and_refused(itself: Callable[[], Any]) -> Any:
        itself()
        return itself()  # the test driver refuses the second suspend

    machines.faults.add("suspend", done_and_refused)
    await do(backend, Action.PAUSE)
    assert await seen(backend) is PAUSED


async def test_a_reboot_that_may_be_under_way_is_not_refused(backend: Backend) -> None:
    await do(backend, Action.CREATE)
    await do(backend, Action.STOP)
    with pytest.raises(BackendRejected, match="is off"):
        await do(backend, Action.REBOOT)
    with pytest.raises(TransientBackendError, match="it may be rebooting"):
        await do(backend, Action.REBOOT, repeated=True)
    await do(backend, Action.REBOOT, force=True)
    assert await seen(backend) is RUNNING


@pytest.mark.parametrize("running", [True, False])
async def test_a_guest_stands_still_while_its_disk_is_saved(with_disks: Backend, record: Record, running: bool) -> None:
    await do(with_disks, Action.CREATE)
    if not running:
        await do(with_disks, Action.STOP)
    record.asked.clear()
    await do(with_disks, Action.SAVE, image_name="new")
    assert record.asked == [("save", "host-1", "paused" if running else "off")]
    assert await seen(with_disks) is (RUNNING if running else OFF)
    record.refuse = {"save"}
    with pytest.raises(BackendRejected):
        await do(with_disks, Action.SAVE, image_name="new")
    assert await seen(with_disks) is (RUNNING if running else OFF), "also when that fails"


@pytest.mark.parametrize(
    ("call", "act"),
    [
        ("managedSave", acts.save),
        ("reboot", partial(acts.reboot, force=False)),
        ("migrate3", partial(acts.migrate, target=None, uri="", live=False)),
    ],
)
async def test_a_guest_in_its_first_seconds_is_asked_again(
    backend: Backend, machines: Machines, call: str, act: Callable[..., object]
) -> None:
    await do(backend, Action.CREATE)
    on_xen = Node(uuid=UUID, identity=node().identity, host="host-1", driver="xen")
    machines.faults.fail(call, 1, "Failed to save domain '7' with libxenlight")
    with pytest.raises(TransientBackendError, match="it may not be up yet") as refused:
        act(Wire(machines.of(1), machines.faults), on_xen)
    assert refused.value.answered
    machines.faults.fail(call, 9, "No space left on device")
    with pytest.raises(LibvirtError):
        act(Wire(machines.of(1), machines.faults), on_xen)


# Moving


async def test_what_is_off_goes_elsewhere_with_its_disks(with_disks: Backend, record: Record) -> None:
    await do(with_disks, Action.CREATE)
    await do(with_disks, Action.STOP_RELEASE)
    record.asked.clear()
    elsewhere = node(host="host-2")
    await do(with_disks, Action.START_RELEASED, elsewhere)
    assert record.asked == [("transfer", "host-2", "gone"), ("unpropagate", "host-1", "off")]
    found = await with_disks.find(node().identity)
    assert (found.observation, found.host) == (RUNNING, "host-2")
    assert found.nics[0].addresses == ("10.77.0.100",), "it keeps its address"
    assert record.machines.state(1, UUID) == "gone"
    await do(with_disks, Action.START_RELEASED, elsewhere)
    assert record.machines.state(1, UUID) == "gone"


async def test_what_cannot_go_elsewhere_stays_whole(with_disks: Backend, record: Record) -> None:
    await do(with_disks, Action.CREATE)
    await do(with_disks, Action.STOP_RELEASE)
    for record.moves, record.refuse in ((False, set[str]()), (True, {"transfer"})):
        with pytest.raises(BackendRejected) as refused:
            await do(with_disks, Action.START_RELEASED, node(host="host-2"))
        assert refused.value.host_fault
        assert (record.machines.state(1, UUID), record.machines.state(2, UUID)) == ("off", "gone")
    record.refuse = set()
    await do(with_disks, Action.START_RELEASED)
    assert (await with_disks.find(node().identity)).host == "host-1"


async def test_a_move_that_was_broken_off_before_the_clearing_away(with_disks: Backend, record: Record) -> None:
    await do(with_disks, Action.CREATE)
    await do(with_disks, Action.STOP_RELEASE)
    machines = record.machines
    xml = machines.of(1).lookupByUUIDString(UUID).XMLDesc(0)
    machines.of(2).defineXML(xml)
    await with_disks.observe()
    assert len(await with_disks.observe()) == 1, "a node is shown once"
    await do(with_disks, Action.START_RELEASED, node(host="host-2"))
    assert (machines.state(1, UUID), machines.state(2, UUID)) == ("gone", "running")


async def test_a_migration_goes_only_where_the_disks_are(with_disks: Backend, record: Record) -> None:
    record.shared = True
    machines = record.machines
    await do(with_disks, Action.CREATE)

    def migrate(itself: Callable[[], Any]) -> None:
        """As the hypervisor does: it runs there, and is undefined here."""
        mine, theirs = machines.of(1).lookupByUUIDString(UUID), machines.of(2)
        theirs.createXML(mine.XMLDesc(0), 0)
        mine.destroy()
        mine.undefine()

    machines.faults.add("migrate3", migrate)
    call = StepCall(step=Step.MIGRATE, node=node(), backend_id=UUID, target_host="host-2")
    await with_disks.perform(call)
    found = await with_disks.find(node().identity)
    assert (found.observation, found.host) == (RUNNING, "host-2")
    assert machines.of(2).lookupByUUIDString(UUID).isPersistent(), "or it would be gone when it is off"
    await with_disks.perform(replace(call, repeated=True))
    assert machines.faults.calls["migrate3"] == 1


async def test_a_guest_without_its_disks_there_is_not_sent(
    with_disks: Backend, record: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    await do(with_disks, Action.CREATE)
    record.shared = True

    async def missing(host: Host, spec: NodeSpec, uuid: str) -> bool:
        return host.name == "host-1"

    monkeypatch.setattr(record, "present", missing)
    with pytest.raises(BackendRejected, match="host-2 does not have the disks") as refused:
        await with_disks.perform(StepCall(step=Step.MIGRATE, node=node(), backend_id=UUID, target_host="host-2"))
    assert refused.value.host_fault
    assert record.machines.faults.calls["migrate3"] == 0
    assert await seen(with_disks) is RUNNING


async def test_an_end_finds_a_domain_that_was_moved_by_hand(backend: Backend, machines: Machines) -> None:
    await do(backend, Action.CREATE)
    mine = machines.of(1).lookupByUUIDString(UUID)
    machines.of(2).defineXML(mine.XMLDesc(0)).create()
    mine.destroy()
    mine.undefine()
    await do(backend, Action.PAUSE)
    assert (await backend.find(node().identity)).host == "host-2"
    await do(backend, Action.TERMINATE)
    assert (machines.state(1, UUID), machines.state(2, UUID)) == ("gone", "gone")


# Addresses


async def test_each_node_has_an_address_of_its_own(backend: Backend) -> None:
    for number in range(4):
        await do(backend, Action.CREATE, node(number, f"host-{1 + number % 2}"))
    held = [each.nics[0].addresses[0] for each in await backend.observe()]
    assert sorted(held) == [f"10.77.0.{number}" for number in range(100, 104)]
    with pytest.raises(BackendRejected, match="no address of network lan is free: all 4 are taken"):
        await do(backend, Action.CREATE, node(4))
    await do(backend, Action.TERMINATE, node(1, "host-2"))
    await do(backend, Action.CREATE, node(4))
    assert (await backend.find(node(4).identity)).nics[0].addresses == ("10.77.0.101",)


async def test_addresses_survive_a_restart_and_a_silent_host(machines: Machines, tmp_path: Path) -> None:
    async with pool(tmp_path, machines) as backend:
        await do(backend, Action.CREATE, node(0, "host-2"))
    async with pool(tmp_path, machines) as backend:
        await do(backend, Action.CREATE, node(1))
        assert (await backend.find(node(1).identity)).nics[0].addresses == ("10.77.0.101",)
        machines.take_down(2)
        await do(backend, Action.CREATE, node(2))
        assert (await backend.find(node(2).identity)).nics[0].addresses == ("10.77.0.102",)
    async with pool(tmp_path, machines) as backend:
        with pytest.raises(TransientBackendError, match="host-2 was not read since the start") as waits:
            await do(backend, Action.CREATE, node(3))
        assert waits.value.answered


async def test_an_address_that_is_asked_for(machines: Machines, tmp_path: Path) -> None:
    lan = {
        "name": "lan",
        "bridge": "xenbr0",
        "addresses": "10.77.0.100-10.77.0.109",
        "reserved": ["10.77.0.100", "10.77.0.105"],
    }

    def wants(number: int, *addresses: str) -> NodeSpec:
        return node(number, nics=tuple(NicSpec(network="lan", addresses=(each,)) for each in addresses))

    async with pool(tmp_path, machines, networks=[lan]) as backend:
        assert Capability.STATIC_ADDRESS in backend.capabilities
        await do(backend, Action.CREATE, wants(0, "10.77.0.107"))
        assert (await backend.find(node(0).identity)).nics[0].addresses == ("10.77.0.107",)
        with pytest.raises(BackendRejected) as refused:
            await do(backend, Action.CREATE, wants(1, "10.77.0.107", "10.77.0.105", "10.0.0.1", "x"))
        for part in ("10.77.0.107 is taken", "10.77.0.105 is reserved", "10.0.0.1 is not among", '"x" is no address'):
            assert part in str(refused.value)
        await do(backend, Action.CREATE, node(2))
        assert (await backend.find(node(2).identity)).nics[0].addresses == ("10.77.0.101",)
        networks = (await backend.inventory()).networks
        assert networks is not None
        assert [(each.total_addresses, each.foreign_addresses) for each in networks] == [(10, 2)]


async def test_nodes_that_are_made_at_once_share_no_address(backend: Backend) -> None:
    await asyncio.gather(*(do(backend, Action.CREATE, node(number, f"host-{1 + number % 2}")) for number in range(4)))
    held = {each.nics[0].addresses[0] for each in await backend.observe()}
    assert len(held) == 4


async def test_a_create_that_was_refused_keeps_no_address(backend: Backend, machines: Machines) -> None:
    for _ in range(5):
        machines.faults.fail("defineXML", 38, "No space left on device")
        with pytest.raises(BackendRejected, match="No space left"):
            await do(backend, Action.CREATE)
    await do(backend, Action.CREATE)
    assert (await backend.find(node().identity)).nics[0].addresses == ("10.77.0.100",)


async def test_a_network_that_is_not_there(backend: Backend) -> None:
    with pytest.raises(BackendRejected, match='there is no network "wan"; there are: lan'):
        await do(backend, Action.CREATE, node(nics=(NicSpec(network="wan"),)))
    with pytest.raises(BackendRejected, match='no host "host-9"; there are: host-1, host-2') as refused:
        await do(backend, Action.CREATE, node(host="host-9"))
    assert refused.value.host_fault
