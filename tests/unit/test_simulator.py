"""The simulator beyond the contract: settings, time, capacity, faults, what is done by hand, and survival."""

from __future__ import annotations

import asyncio
import json
import textwrap
import time
import tomllib
from datetime import UTC, datetime
from pathlib import Path

import pytest
from msgspec.structs import replace

from backends import simulator
from backends.base import (
    Action,
    BackendContext,
    BackendFactory,
    BackendRejected,
    Capability,
    HostState,
    Identity,
    NicSpec,
    NodeSpec,
    Observation,
    OutcomeUnknown,
    ParameterKind,
    StepCall,
    TransientBackendError,
)
from backends.simulator import FaultKind, Simulator, World
from broker.core.clock import ManualClock

HOSTS = [{"count": 2, "name": "host", "cpu": 4000, "memory": 4096, "disk": 10_000}]
FACTORY: BackendFactory = simulator


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(datetime(2026, 1, 1, tzinfo=UTC))


def make(clock: ManualClock, *, broker_id: str = "b", directory: Path = Path(), **settings: object) -> Simulator:
    context = BackendContext(pool="lab", broker_id=broker_id, clock=clock, base_directory=str(directory))
    return simulator.create({"hosts": HOSTS, **settings}, context)


def node(number: int = 0, host: str = "host-1", **changes: object) -> NodeSpec:
    spec = NodeSpec(
        identity=Identity(broker_id="b", workspace_uid="u", node_index=number),
        name=f"n{number}",
        host=host,
        amounts={"cpu": 1000, "memory": 1024, "disk": 1000},
    )
    return replace(spec, **changes)


async def act(pool: Simulator, action: Action, spec: NodeSpec, backend_id: str = "", **more: object) -> str:
    for step in pool.steps(action):
        call = StepCall(step=step, node=spec, backend_id=backend_id)
        backend_id = await pool.perform(replace(call, **more))
    return backend_id


async def seen(pool: Simulator, spec: NodeSpec) -> Observation:
    return (await pool.find(spec.identity)).observation


# --- settings ---


def test_every_bad_key_is_named_at_once() -> None:
    problems = simulator.check(
        {
            "hosts": [
                {"count": -1, "cpu": "many", "memory": 16, "colour": "red"},
                {"name": "x", "cpu": 1, "memory": 1, "extra": {"cpu": 3, "gpu": "two"}},
                "host",
            ],
            "delays": {"deploy": "soon", "boot": 1},
            "faults": [{"kind": "meteor", "step": "deploy"}, {"kind": "lost_answer", "step": "observe"}],
            "capabilities": ["PAUSE", "CONSOLE"],
            "parameters": [{"key": "speed", "kind": "INT"}],
            "networks": [{"name": "n", "subnet": "10.0.0.1/8"}, {"addresses": 3}],
            "images": ["os", "os"],
            "latency": -1,
            "shared_disks": 7,
        }
    )
    assert {problem.key for problem in problems} == {
        "hosts[0].count",
        "hosts[0].cpu",
        "hosts[0].colour",
        "hosts[1].extra.cpu",
        "hosts[1].extra.gpu",
        "hosts[2].cpu",
        "hosts[2].memory",
        "delays.deploy",
        "delays.boot",
        "faults[0].kind",
        "faults[1].kind",
        "capabilities",
        "parameters[0].key",
        "networks[0].subnet",
        "networks[1].name",
        "images",
        "latency",
        "shared_disks",
    }


def test_a_pool_without_hosts_is_a_mistake() -> None:
    assert [problem.key for problem in simulator.check({})] == ["hosts"]
    with pytest.raises(ValueError, match="hosts: is required"):
        simulator.create({}, BackendContext(pool="p", broker_id="b", clock=ManualClock(datetime.now(UTC))))


def test_the_settings_in_the_documentation_are_good() -> None:
    text = (simulator.__doc__ or "").partition("optional:\n")[2]
    problems = simulator.check(tomllib.loads(textwrap.dedent(text)))
    assert problems == []


@pytest.mark.parametrize("value", ["500ms", 0.5, "0.5s", "0.5"])
def test_durations(value: object) -> None:
    assert simulator.check({"hosts": HOSTS, "latency": value, "delays": {"deploy": value}}) == []


async def test_hosts_are_numbered_so_that_they_sort(clock: ManualClock) -> None:
    gpu = {"count": 7, "cpu": 8000, "memory": 8, "extra": {"example.com/gpu": 2}, "attributes": {"arch": "x86_64"}}
    pool = make(clock, hosts=[{"count": 5, "cpu": 1, "memory": 1}, gpu, {"name": "big", "cpu": 9, "memory": 9}])
    hosts = (await pool.inventory()).hosts
    assert [host.name for host in hosts] == [*(f"lab-host-{i:02}" for i in range(1, 13)), "big"]
    assert hosts[5].total == {"cpu": 8000, "memory": 8, "disk": 1024 * 1024, "example.com/gpu": 2}
    assert hosts[5].attributes == {"arch": "x86_64"}


def test_capabilities_restrict_the_steps(clock: ManualClock) -> None:
    pool = make(clock, capabilities=["STOP"], parameters=[{"key": "sim:speed", "kind": "INT"}])
    assert pool.capabilities == {Capability.STOP}
    assert pool.steps(Action.STOP)
    assert not pool.steps(Action.STOP_RELEASE)
    assert not pool.steps(Action.PAUSE)
    assert [(spec.key, spec.kind) for spec in pool.parameter_specs] == [("sim:speed", ParameterKind.INT)]


# --- time ---


async def test_a_change_takes_its_time_and_no_more(clock: ManualClock) -> None:
    pool = make(clock, delays={"allocate": "2s", "deploy": "3s", "terminate": "1m"})
    backend_id = await act(pool, Action.CREATE, node())
    await clock.advance(4.999999)
    assert await seen(pool, node()) is Observation.BUSY
    await clock.advance(0.000001)
    assert await seen(pool, node()) is Observation.RUNNING
    await act(pool, Action.TERMINATE, node(), backend_id)
    assert await seen(pool, node()) is Observation.BUSY
    await act(pool, Action.TERMINATE, node(), backend_id, force=True)  # the guest is not asked any more
    assert await seen(pool, node()) is Observation.ABSENT


async def test_one_step_at_a_time(clock: ManualClock) -> None:
    pool = make(clock, delays={"suspend": 5})
    backend_id = await act(pool, Action.CREATE, node())
    await act(pool, Action.SUSPEND, node(), backend_id)
    with pytest.raises(TransientBackendError, match="suspend is under way"):
        await act(pool, Action.STOP, node(), backend_id)
    await clock.advance(5)
    with pytest.raises(BackendRejected, match="is suspended: it cannot stop"):
        await act(pool, Action.STOP, node(), backend_id)


async def test_a_node_may_start_paused(clock: ManualClock) -> None:
    pool = make(clock)
    spec = node(start_paused=True)
    backend_id = await act(pool, Action.CREATE, spec)
    assert await seen(pool, spec) is Observation.PAUSED
    await act(pool, Action.UNPAUSE, spec, backend_id)
    await act(pool, Action.STOP_RELEASE, spec, backend_id)
    await act(pool, Action.START_RELEASED, spec, backend_id)
    assert await seen(pool, spec) is Observation.RUNNING  # the first time only


async def test_a_paused_guest_stops_only_with_force(clock: ManualClock) -> None:
    pool = make(clock)
    backend_id = await act(pool, Action.CREATE, node())
    await act(pool, Action.PAUSE, node(), backend_id)
    with pytest.raises(BackendRejected):
        await act(pool, Action.STOP, node(), backend_id)
    await act(pool, Action.STOP, node(), backend_id, force=True)
    assert await seen(pool, node()) is Observation.OFF


async def test_latency_is_the_time_of_a_call(clock: ManualClock) -> None:
    pool = make(clock, latency="3s")
    reading = asyncio.create_task(pool.observe())
    await clock.advance(2.9)
    assert not reading.done()
    await clock.advance(0.1)
    assert await reading == []


# --- capacity ---


async def test_a_full_host_refuses_and_another_may_take_it(clock: ManualClock) -> None:
    pool = make(clock)
    for number in range(4):
        await act(pool, Action.CREATE, node(number))
    with pytest.raises(BackendRejected, match="host-1 has 0 of cpu free, 1000 wanted") as caught:
        await act(pool, Action.CREATE, node(4))
    assert caught.value.host_fault
    await act(pool, Action.CREATE, node(4, "host-2"))
    assert await seen(pool, node(4)) is Observation.RUNNING


async def test_released_capacity_is_free_once_it_was_let_go(clock: ManualClock) -> None:
    pool = make(clock, delays={"suspend_release": 5})
    ids = [await act(pool, Action.CREATE, node(number)) for number in range(4)]
    await act(pool, Action.SUSPEND_RELEASE, node(0), ids[0])
    late = node(4)
    with pytest.raises(BackendRejected):
        await act(pool, Action.CREATE, late)
    await clock.advance(5)
    assert (await pool.find(node(0).identity)).host == ""
    await act(pool, Action.CREATE, late)
    with pytest.raises(BackendRejected, match="deploy it on one"):
        await act(pool, Action.RESUME, node(0), ids[0])
    await act(pool, Action.RESUME_RELEASED, node(0, "host-2"), ids[0])
    assert (await pool.find(node(0).identity)).host == "host-2"


async def test_a_migration_holds_both_hosts(clock: ManualClock) -> None:
    pool = make(clock, delays={"live_migrate": 5})
    big = node(amounts={"cpu": 4000, "memory": 1024})
    backend_id = await act(pool, Action.CREATE, big)
    await act(pool, Action.LIVE_MIGRATE, big, backend_id, target_host="host-2")
    assert await seen(pool, big) is Observation.RUNNING
    for host in ("host-1", "host-2"):
        with pytest.raises(BackendRejected):
            await act(pool, Action.CREATE, node(1, host))
    await clock.advance(5)
    assert (await pool.find(big.identity)).host == "host-2"
    await act(pool, Action.CREATE, node(1))
    assert await seen(pool, node(1)) is Observation.RUNNING


async def test_foreign_use_counts(clock: ManualClock) -> None:
    pool = make(clock)
    pool.by_hand.set_foreign("host-1", {"cpu": 3500, "memory": 0})
    with pytest.raises(BackendRejected, match="500 of cpu free"):
        await act(pool, Action.CREATE, node())
    host = (await pool.inventory()).hosts[0]
    assert host.foreign == {"cpu": 3500, "memory": 0}


async def test_a_shared_disk_belongs_to_the_pool(clock: ManualClock) -> None:
    hosts = [{"count": 2, "name": "host", "cpu": 9000, "memory": 9000}]
    pool = make(clock, hosts=hosts, shared_disk=2500)
    await act(pool, Action.CREATE, node(0))
    await act(pool, Action.CREATE, node(1, "host-2"))
    with pytest.raises(BackendRejected, match="500 of disk free"):
        await act(pool, Action.CREATE, node(2))
    inventory = await pool.inventory()
    assert inventory.pool_totals == {"disk": 2500}
    assert "disk" not in inventory.hosts[0].total


async def test_capacity_need_not_be_enforced(clock: ManualClock) -> None:
    pool = make(clock, enforce_capacity=False)
    for number in range(9):
        await act(pool, Action.CREATE, node(number))
    assert len(await pool.observe()) == 9


async def test_addresses(clock: ManualClock) -> None:
    pool = make(clock, networks=[{"name": "net", "addresses": 3, "subnet": "192.0.2.0/24"}])

    def nics(number: int, *addresses: str, network: str = "net") -> NodeSpec:
        return node(number, nics=(NicSpec(network=network, addresses=addresses),))

    await act(pool, Action.CREATE, nics(0, "192.0.2.3"))
    await act(pool, Action.CREATE, nics(1))
    last = await act(pool, Action.CREATE, nics(2))
    shown = [seen.nics[0].addresses for seen in await pool.observe()]
    assert shown == [("192.0.2.3",), ("192.0.2.2",), ("192.0.2.4",)]
    assert len({seen.nics[0].mac for seen in await pool.observe()}) == 3
    with pytest.raises(BackendRejected, match="has 3 addresses, 3 are taken"):
        await act(pool, Action.CREATE, nics(3))
    await act(pool, Action.TERMINATE, nics(2), last)
    for bad in (nics(3, "192.0.2.3"), nics(3, "198.51.100.1"), nics(3, "x"), nics(3, network="other")):
        with pytest.raises(BackendRejected):
            await act(pool, Action.CREATE, bad)
    await act(pool, Action.CREATE, nics(3))
    assert (await pool.find(node(3).identity)).nics[0].addresses == ("192.0.2.4",)


async def test_saved_images_are_listed_once_ready_and_can_be_booted(clock: ManualClock) -> None:
    pool = make(clock, images=["os"], delays={"save": 10})
    backend_id = await act(pool, Action.CREATE, node(image="os"))
    with pytest.raises(BackendRejected, match="no image mine"):
        await act(pool, Action.CREATE, node(1, image="mine"))
    await act(pool, Action.SAVE, node(), backend_id, image_name="mine")

    async def ready() -> dict[str, bool]:
        return {image.name: image.ready for image in (await pool.inventory()).images or ()}

    assert await ready() == {"os": True, "mine": False}
    await clock.advance(10)
    assert await ready() == {"os": True, "mine": True}
    await act(pool, Action.CREATE, node(1, image="mine"))
    with pytest.raises(BackendRejected, match="is an image os already"):
        await act(pool, Action.SAVE, node(), backend_id, image_name="os")


# --- faults ---


async def test_faults_come_in_turn(clock: ManualClock) -> None:
    faults = [
        {"step": "deploy", "kind": "transient", "every": 2, "count": 1},
        {"step": "deploy", "kind": "host_rejected", "host": "host-2"},
        {"step": "observe", "kind": "transient", "count": 1},
    ]
    pool = make(clock, faults=faults)
    with pytest.raises(TransientBackendError):
        await pool.observe()
    assert await pool.observe() == []
    await act(pool, Action.CREATE, node(0))
    with pytest.raises(TransientBackendError):
        await act(pool, Action.CREATE, node(1))
    await act(pool, Action.CREATE, node(1))
    with pytest.raises(BackendRejected) as caught:
        await act(pool, Action.CREATE, node(2, "host-2"))
    assert caught.value.host_fault
    assert pool.calls == {"observe": 2, "allocate": 4, "deploy": 4}


async def test_what_goes_wrong_after_it_was_accepted(clock: ManualClock) -> None:
    pool = make(clock, delays={"deploy": 5})
    wanted = {
        FaultKind.BROKEN: Observation.BROKEN,
        FaultKind.STALL: Observation.BUSY,
        FaultKind.VANISH: Observation.ABSENT,
    }
    for number, (kind, expected) in enumerate(wanted.items()):
        pool.by_hand.fail(kind, "deploy")
        await act(pool, Action.CREATE, node(number))
        await clock.advance(3600)
        assert await seen(pool, node(number)) is expected
    # A first start that broke may go on elsewhere, and what stalls can be ended.
    await act(pool, Action.CREATE, node(0, "host-2"))
    await clock.advance(5)
    assert (await pool.find(node(0).identity)).host == "host-2"
    await act(pool, Action.TERMINATE, node(1))
    assert await seen(pool, node(1)) is Observation.ABSENT


async def test_a_hanging_call_ends_when_it_is_given_up(clock: ManualClock) -> None:
    pool = make(clock, faults=[{"kind": "hang", "step": "allocate", "count": 1}])
    hanging = asyncio.create_task(act(pool, Action.CREATE, node()))
    await clock.advance(1e6)
    assert not hanging.done()
    hanging.cancel()
    with pytest.raises(asyncio.CancelledError):
        await hanging
    assert await seen(pool, node()) is Observation.ABSENT


async def test_a_lost_answer_at_every_step_is_harmless(clock: ManualClock) -> None:
    pool = make(clock)
    backend_id = await act(pool, Action.CREATE, node())
    for action in (Action.SUSPEND, Action.RESUME, Action.REBOOT, Action.STOP, Action.START, Action.TERMINATE):
        pool.by_hand.fail(FaultKind.LOST_ANSWER)
        with pytest.raises(OutcomeUnknown):
            await act(pool, action, node(), backend_id)
        before = await seen(pool, node())
        await act(pool, action, node(), backend_id)
        assert await seen(pool, node()) is before


# --- by hand ---


async def test_hosts_are_lost_taken_out_and_come_back(clock: ManualClock) -> None:
    pool = make(clock)
    backend_id = await act(pool, Action.CREATE, node())
    pool.by_hand.set_host("host-1", HostState.LOST)
    pool.by_hand.set_host("host-2", HostState.DISABLED)
    assert await seen(pool, node()) is Observation.SILENT
    assert [host.state for host in (await pool.inventory()).hosts] == [HostState.LOST, HostState.DISABLED]
    with pytest.raises(TransientBackendError, match="host-1 of VM 1 does not answer"):
        await act(pool, Action.TERMINATE, node(), backend_id)
    with pytest.raises(BackendRejected, match="host-2 is disabled"):
        await act(pool, Action.CREATE, node(1, "host-2"))
    pool.by_hand.set_host("host-1", HostState.ACTIVE)
    assert await seen(pool, node()) is Observation.RUNNING


async def test_what_somebody_does_by_hand_is_seen(clock: ManualClock) -> None:
    pool = make(clock)
    hand = pool.by_hand
    backend_id = await act(pool, Action.CREATE, node())
    hand.stop(backend_id)
    assert await seen(pool, node()) is Observation.OFF
    hand.start(backend_id, host="host-2")
    assert (await pool.find(node().identity)).host == "host-2"
    hand.break_vm(node().identity, "disk died")
    found = await pool.find(node().identity)
    assert (found.observation, found.message) == (Observation.BROKEN, "disk died")
    await act(pool, Action.START, node(), backend_id)  # the backend's own recovery
    assert await seen(pool, node()) is Observation.RUNNING
    hand.remove(backend_id)
    assert await seen(pool, node()) is Observation.ABSENT
    with pytest.raises(KeyError):
        hand.stop(backend_id)


async def test_silence_and_lost_rights(clock: ManualClock) -> None:
    pool = make(clock)
    backend_id = await act(pool, Action.CREATE, node())
    pool.by_hand.hidden = True
    assert await pool.observe() == []
    assert (await pool.find(node().identity, backend_id)).observation is Observation.RUNNING
    pool.by_hand.go_silent()
    for call in (pool.observe(), pool.inventory(), pool.find(node().identity), act(pool, Action.STOP, node())):
        with pytest.raises(TransientBackendError):
            await call
    pool.by_hand.come_back()
    assert await seen(pool, node()) is Observation.RUNNING


async def test_strays_are_shown_and_strangers_are_foreign(clock: ManualClock) -> None:
    pool = make(clock)
    stray = Identity(broker_id="b", workspace_uid="gone", node_index=0)
    pool.by_hand.add_stray(stray, "host-1", {"cpu": 1000, "memory": 1})
    pool.by_hand.add_stray(replace(stray, broker_id="x"), "host-2", {"cpu": 2000, "memory": 2, "disk": 3})
    inventory = await pool.inventory()
    assert [seen.identity for seen in inventory.nodes] == [stray]
    assert [host.foreign for host in inventory.hosts] == [{}, {"cpu": 2000, "memory": 2, "disk": 3}]


async def test_of_several_vms_of_one_identity_the_oldest_is_found(clock: ManualClock) -> None:
    pool = make(clock)
    first = await act(pool, Action.CREATE, node())
    second = pool.by_hand.add_stray(node().identity, "host-2", {"cpu": 1})
    assert (await pool.find(node().identity)).backend_id == first
    assert (await pool.find(node().identity, second)).backend_id == second
    pool.by_hand.remove(first)
    assert (await pool.find(node().identity)).backend_id == second


# --- survival ---


async def test_a_named_world_outlives_its_backend(clock: ManualClock) -> None:
    World.forget("shared")
    first = make(clock, world="shared")
    await act(first, Action.CREATE, node())
    await first.close()
    assert len(await make(clock, world="shared").observe()) == 1
    assert len(await make(clock).observe()) == 0
    assert len(await make(clock, world="shared", broker_id="other").observe()) == 0
    World.forget("shared")
    assert await make(clock, world="shared").observe() == []


async def test_a_killed_process_finds_its_vms_again(clock: ManualClock, tmp_path: Path) -> None:
    def begin() -> Simulator:
        return make(
            clock,
            directory=tmp_path,
            state_file="pool.jsonl",
            delays={"suspend": 60},
            networks=[{"name": "net", "addresses": 3}],
            images=[],
        )

    first = begin()
    await first.open()
    specs = [node(number, nics=(NicSpec(network="net"),), start_paused=number == 1) for number in range(3)]
    ids = [await act(first, Action.CREATE, spec) for spec in specs]
    await act(first, Action.SUSPEND, specs[0], ids[0])
    await act(first, Action.SAVE, specs[1], ids[1], image_name="mine")
    await act(first, Action.TERMINATE, specs[2], ids[2])
    path = tmp_path / "pool.jsonl"
    with path.open("a", encoding="utf-8") as file:
        file.write('{"vm": {"backend_id": "9')  # killed while it wrote; nothing was closed

    again = begin()
    await again.open()
    assert await again.observe() == await first.observe()
    assert [found.observation for found in await again.observe()] == [Observation.BUSY, Observation.PAUSED]
    assert [image.name for image in (await again.inventory()).images or ()] == ["mine"]
    await clock.advance(60)
    assert await seen(again, specs[0]) is Observation.SUSPENDED
    taken = {address for found in await again.observe() for address in found.nics[0].addresses}
    new = await act(again, Action.CREATE, specs[2])
    assert new not in ids[:2]
    assert not taken & set((await again.find(specs[2].identity)).nics[0].addresses)
    await again.close()
    await first.close()
    for line in path.read_text(encoding="utf-8").splitlines()[:-1]:
        json.loads(line)


async def test_a_spoilt_state_file_is_told(clock: ManualClock, tmp_path: Path) -> None:
    (tmp_path / "s").write_text("nonsense\n{}\n", encoding="utf-8")
    with pytest.raises(ValueError, match="line 1 is not JSON"):
        await make(clock, directory=tmp_path, state_file="s").open()


# --- size ---


async def test_large_pools_are_read_quickly(clock: ManualClock) -> None:
    pool = make(clock, hosts=[{"count": 10_000, "name": "host", "cpu": 16_000, "memory": 65_536}])
    for number in range(100_000):
        who = replace(node().identity, node_index=number)
        pool.by_hand.add_stray(who, f"host-{number % 10_000 + 1:05}", {"cpu": 1000, "memory": 1024})
    await pool.observe()  # the first look makes what later ones reuse
    begin = time.process_time()
    assert len(await pool.observe()) == 100_000
    assert time.process_time() - begin < 1.0
    begin = time.process_time()
    assert len((await pool.inventory()).hosts) == 10_000
    assert time.process_time() - begin < 2.0
