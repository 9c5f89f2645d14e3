"""The adapter against the stand-in: every verb, from every state it is for, and twice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest
from msgspec.structs import replace

from backends.base import (
    Action,
    BackendRejected,
    Observation,
    Step,
)
from backends.opennebula.adapter import OpenNebulaBackend
from backends.opennebula.failures import NotYet
from backends.opennebula.observing import SETTLE_SECONDS
from backends.opennebula.standin import HostConfig, ImageConfig, NetworkConfig, Standin, StandinConfig
from tests.support.opennebula_pool import HandClock, act, identity, node, pool, running, seen, step
from tests.support.standin_wire import until


@pytest.fixture
def one() -> Iterator[Standin]:
    config = StandinConfig(
        hosts=(HostConfig(name="node000"), HostConfig(name="node001"), HostConfig(name="small", cores=1)),
        images=(ImageConfig(name="os"),),
        networks=(NetworkConfig(name="net", size=10),),
        scheduler=False,
    )
    with Standin(config) as standin:
        yield standin


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
async def backend(one: Standin, clock: HandClock) -> AsyncIterator[OpenNebulaBackend]:
    async with pool(one, clock) as opened:
        yield opened


def usage(one: Standin, host: str) -> int:
    return one.host_usage(host)[0]


async def test_a_whole_life(one: Standin, backend: OpenNebulaBackend, clock: HandClock) -> None:
    spec = node(image="os", cpu=2000)
    vm = await act(backend, Action.CREATE, spec)
    found = await seen(backend, vm, Observation.RUNNING)
    assert found.host == "node000"
    assert found.amounts == {"cpu": 2000, "memory": 512, "disk": 1024}

    await act(backend, Action.SUSPEND, spec, vm)
    found = await seen(backend, vm, Observation.SUSPENDED)
    assert (found.host, found.detail, usage(one, "node000")) == ("node000", "SUSPENDED", 200)
    await act(backend, Action.RESUME, spec, vm)
    await seen(backend, vm, Observation.RUNNING)

    await act(backend, Action.SUSPEND_RELEASE, spec, vm)
    found = await seen(backend, vm, Observation.SUSPENDED)
    assert (found.host, found.detail, usage(one, "node000")) == ("", "STOPPED", 0)
    elsewhere = replace(spec, host="node001")
    await act(backend, Action.RESUME_RELEASED, elsewhere, vm)
    assert (await seen(backend, vm, Observation.RUNNING)).host == "node001"

    await act(backend, Action.STOP, spec, vm)
    found = await seen(backend, vm, Observation.OFF)
    assert (found.host, found.detail, usage(one, "node001")) == ("node001", "POWEROFF", 200)
    await act(backend, Action.START, spec, vm)
    await seen(backend, vm, Observation.RUNNING)

    await act(backend, Action.STOP_RELEASE, spec, vm)
    found = await seen(backend, vm, Observation.OFF)
    assert (found.host, found.detail, usage(one, "node001")) == ("", "UNDEPLOYED", 0)
    await act(backend, Action.START_RELEASED, spec, vm)
    assert (await seen(backend, vm, Observation.RUNNING)).host == "node000"

    await act(backend, Action.REBOOT, spec, vm)
    await act(backend, Action.REBOOT, spec, vm, force=True)
    assert (await seen(backend, vm, Observation.RUNNING)).detail == "RUNNING"

    await act(backend, Action.LIVE_MIGRATE, spec, vm, target_host="node001")
    assert (await seen(backend, vm, Observation.RUNNING)).host == "node001"
    await act(backend, Action.MIGRATE, spec, vm, target_host="node000")
    assert (await seen(backend, vm, Observation.RUNNING)).host == "node000"

    await act(backend, Action.SAVE, spec, vm, image_name="golden")
    clock.seconds += SETTLE_SECONDS
    await seen(backend, vm, Observation.RUNNING)
    assert "golden" in {image.name for image in (await backend.inventory()).images or ()}

    await act(backend, Action.TERMINATE, spec, vm)
    await seen(backend, vm, Observation.ABSENT)
    assert usage(one, "node000") == 0
    assert await act(backend, Action.TERMINATE, spec, vm) == vm
    assert [call.args[0] for call in one.calls if call.method == "one.vm.action"] == [
        "suspend",
        "resume",
        "stop",
        "poweroff",
        "resume",
        "undeploy",
        "reboot",
        "reboot-hard",
        "terminate",
    ]


async def test_released_later(one: Standin, backend: OpenNebulaBackend) -> None:
    spec = node()
    vm = await running(backend, spec)
    await act(backend, Action.SUSPEND, spec, vm)
    await seen(backend, vm, Observation.SUSPENDED)
    await act(backend, Action.RELEASE_SUSPENDED, spec, vm)
    await asyncio.to_thread(_until_settled, one)
    assert (await seen(backend, vm, Observation.SUSPENDED)).host == ""
    await act(backend, Action.RESUME_RELEASED, spec, vm)
    await seen(backend, vm, Observation.RUNNING)
    await act(backend, Action.STOP, spec, vm, force=True)
    await seen(backend, vm, Observation.OFF)
    await act(backend, Action.RELEASE_STOPPED, spec, vm, force=True)
    await asyncio.to_thread(_until_settled, one)
    assert (await seen(backend, vm, Observation.OFF)).host == ""


def _until_settled(one: Standin) -> None:
    until(lambda: one.settled, what="a settled stand-in")


async def test_every_step_twice(one: Standin, backend: OpenNebulaBackend) -> None:
    spec = node()
    vm = await step(backend, Step.ALLOCATE, spec)
    assert await step(backend, Step.ALLOCATE, spec, vm) == vm
    one.hold("BOOT")
    for _ in range(2):  # the second while it boots
        assert await step(backend, Step.DEPLOY, spec, vm) == vm
    one.release()
    await seen(backend, vm, Observation.RUNNING)
    await step(backend, Step.DEPLOY, spec, vm)
    away_and_back = (
        (Step.SUSPEND, "SAVE_SUSPEND", Observation.SUSPENDED, Step.RESUME),
        (Step.SUSPEND_RELEASE, "EPILOG_STOP", Observation.SUSPENDED, Step.DEPLOY),
        (Step.STOP, "SHUTDOWN_POWEROFF", Observation.OFF, Step.START),
        (Step.STOP_RELEASE, "EPILOG_UNDEPLOY", Observation.OFF, Step.DEPLOY),
    )
    for away, between, rest, back in away_and_back:
        one.hold(between)
        await step(backend, away, spec, vm)
        await step(backend, away, spec, vm)  # under way
        one.release()
        await seen(backend, vm, rest)
        await step(backend, away, spec, vm)  # reached
        await step(backend, back, spec, vm)
        await seen(backend, vm, Observation.RUNNING)
        await step(backend, back, spec, vm)
    for move in (Step.LIVE_MIGRATE, Step.MIGRATE):
        target = "node001" if move is Step.LIVE_MIGRATE else "node000"
        await step(backend, move, spec, vm, target_host=target)
        await seen(backend, vm, Observation.RUNNING)
        await step(backend, move, spec, vm, target_host=target)
    one.hold("EPILOG")
    await step(backend, Step.TERMINATE, spec, vm)
    await step(backend, Step.TERMINATE, spec, vm)
    one.release()
    await seen(backend, vm, Observation.ABSENT)
    assert await step(backend, Step.TERMINATE, spec, vm) == vm
    assert await step(backend, Step.TERMINATE, spec, "4711") == "4711"
    assert len(one.vms()) == 1


@pytest.mark.parametrize("place", ["PROLOG", "BOOT"])
async def test_terminate_while_it_starts(one: Standin, backend: OpenNebulaBackend, place: str) -> None:
    spec = node()
    one.hold(place)
    vm = await act(backend, Action.CREATE, spec)
    await asyncio.to_thread(_until_at, one, int(vm), place)
    await act(backend, Action.TERMINATE, spec, vm)
    one.release()
    await seen(backend, vm, Observation.ABSENT)
    assert [call.method for call in one.calls if call.method == "one.vm.recover"] == ["one.vm.recover"]


def _until_at(one: Standin, vm_id: int, place: str) -> None:
    until(lambda: one.place(vm_id) == place, what=place)


async def test_terminate_in_between_waits_unless_forced(one: Standin, backend: OpenNebulaBackend) -> None:
    spec = node()
    vm = await running(backend, spec)
    one.hold("SHUTDOWN_POWEROFF")
    await step(backend, Step.STOP, spec, vm)
    with pytest.raises(NotYet, match="SHUTDOWN_POWEROFF"):
        await step(backend, Step.TERMINATE, spec, vm)
    await step(backend, Step.TERMINATE, spec, vm, force=True)
    one.release()
    await seen(backend, vm, Observation.ABSENT)


async def test_terminate_rests_and_holds(one: Standin, backend: OpenNebulaBackend) -> None:
    spec = node()
    held = await step(backend, Step.ALLOCATE, spec)
    await step(backend, Step.TERMINATE, spec, held)
    await seen(backend, held, Observation.ABSENT)
    for away in (Step.SUSPEND, Step.SUSPEND_RELEASE, Step.STOP, Step.STOP_RELEASE):
        vm = await running(backend, spec)
        await step(backend, away, spec, vm)
        await asyncio.to_thread(_until_settled, one)
        await step(backend, Step.TERMINATE, spec, vm)
        await seen(backend, vm, Observation.ABSENT)


async def test_terminate_without_an_id_looks_for_the_identity(one: Standin, backend: OpenNebulaBackend) -> None:
    spec = node()
    vm = await running(backend, spec)
    assert await step(backend, Step.TERMINATE, spec) == vm
    await seen(backend, vm, Observation.ABSENT)
    assert await step(backend, Step.TERMINATE, spec) == ""


async def test_somebody_elses_vm_is_left_alone(one: Standin, backend: OpenNebulaBackend) -> None:
    one.call("one.vm.allocate", 'NAME="theirs"\nCPU="1"\nMEMORY="64"', True)
    theirs = "0"
    for what in (Step.TERMINATE, Step.RESUME, Step.START, Step.SAVE):
        with pytest.raises(BackendRejected, match="does not bear the tag"):
            await step(backend, what, node(), theirs, image_name="x")
    assert one.place(int(theirs)) == "HOLD"


async def test_resume_is_never_left_to_the_scheduler(one: Standin, backend: OpenNebulaBackend) -> None:
    spec = node()
    vm = await running(backend, spec)
    for away, back in ((Step.SUSPEND_RELEASE, Step.RESUME), (Step.STOP_RELEASE, Step.START)):
        await step(backend, away, spec, vm)
        await asyncio.to_thread(_until_settled, one)
        with pytest.raises(BackendRejected, match="comes back by a deploy"):
            await step(backend, back, spec, vm)
        await step(backend, Step.DEPLOY, spec, vm)
        await seen(backend, vm, Observation.RUNNING)
    assert "resume" not in [call.args[0] for call in one.calls if call.method == "one.vm.action"]


async def test_a_pending_vm_is_deployed_where_we_choose(one: Standin, backend: OpenNebulaBackend) -> None:
    spec = node()
    vm = await running(backend, spec)
    await step(backend, Step.SUSPEND_RELEASE, spec, vm)
    await seen(backend, vm, Observation.SUSPENDED)
    one.call("one.vm.action", "resume", int(vm))  # by hand
    assert (await seen(backend, vm, Observation.BUSY)).detail == "PENDING"
    await step(backend, Step.DEPLOY, replace(spec, host="node001"), vm)
    assert (await seen(backend, vm, Observation.RUNNING)).host == "node001"


async def test_a_full_host_is_the_hosts_fault(one: Standin, backend: OpenNebulaBackend) -> None:
    spec = node("small", cpu=2000)
    vm = await step(backend, Step.ALLOCATE, spec)
    with pytest.raises(BackendRejected, match="does not fit") as refused:
        await step(backend, Step.DEPLOY, spec, vm)
    assert refused.value.host_fault
    with pytest.raises(BackendRejected, match='no host "gone"') as refused:
        await step(backend, Step.DEPLOY, replace(spec, host="gone"), vm)
    assert refused.value.host_fault
    await step(backend, Step.DEPLOY, replace(spec, host="node001"), vm)
    await seen(backend, vm, Observation.RUNNING)
    with pytest.raises(BackendRejected, match="does not fit") as refused:
        await step(backend, Step.LIVE_MIGRATE, spec, vm, target_host="small")
    assert refused.value.host_fault
    assert (await seen(backend, vm, Observation.RUNNING)).host == "node001"


async def test_a_host_that_went_away_is_the_hosts_fault(one: Standin, backend: OpenNebulaBackend) -> None:
    spec = node("small")
    vm = await step(backend, Step.ALLOCATE, spec)
    await backend.inventory()
    one.call("one.host.delete", one.host("small").id)
    with pytest.raises(BackendRejected, match="Error getting host") as refused:
        await step(backend, Step.DEPLOY, spec, vm)
    assert refused.value.host_fault


async def test_a_deploy_that_runs_elsewhere_is_no_success(one: Standin, backend: OpenNebulaBackend) -> None:
    spec = node()
    vm = await running(backend, spec)
    with pytest.raises(BackendRejected) as refused:
        await step(backend, Step.DEPLOY, replace(spec, host="node001"), vm)
    assert not refused.value.host_fault


async def test_deploys_to_one_host_never_overlap(one: Standin, backend: OpenNebulaBackend) -> None:
    """In parallel, eight enforced deploys of one core onto an empty single core are nearly all accepted."""
    specs = [node("small", identity=identity(f"ws-{number}")) for number in range(8)]
    vms = [await step(backend, Step.ALLOCATE, spec) for spec in specs]
    answers = await asyncio.gather(
        *(step(backend, Step.DEPLOY, spec, vm) for spec, vm in zip(specs, vms, strict=True)),
        return_exceptions=True,
    )
    refused = [answer for answer in answers if isinstance(answer, BackendRejected)]
    assert len(refused) == 7
    assert all(error.host_fault for error in refused)
    assert usage(one, "small") == 100


async def test_a_disabled_host_still_takes_a_deploy(one: Standin, backend: OpenNebulaBackend) -> None:
    one.call("one.host.status", one.host("node001").id, 1)
    vm = await running(backend, node("node001"))
    assert (await backend.find(identity(), vm)).host == "node001"


async def test_boot_failure_and_the_front_ends_own_recovery(one: Standin, backend: OpenNebulaBackend) -> None:
    spec = node()
    one.fail_next("DEPLOY")
    vm = await act(backend, Action.CREATE, spec)
    found = await seen(backend, vm, Observation.BROKEN)
    assert found.detail == "BOOT_FAILURE"
    assert found.message
    with pytest.raises(BackendRejected):
        await step(backend, Step.SUSPEND, spec, vm)
    with pytest.raises(BackendRejected):  # it hangs on the host where it failed
        await step(backend, Step.DEPLOY, replace(spec, host="node001"), vm)
    await step(backend, Step.DEPLOY, spec, vm)
    await seen(backend, vm, Observation.RUNNING)
    one.fail_next("DEPLOY")
    other = node(identity=identity("ws-2"))
    vm = await act(backend, Action.CREATE, other)
    await seen(backend, vm, Observation.BROKEN, other.identity)
    await step(backend, Step.TERMINATE, other, vm)
    await seen(backend, vm, Observation.ABSENT, other.identity)


async def test_a_lost_host_is_silence(one: Standin, backend: OpenNebulaBackend) -> None:
    vm = await running(backend, node())
    one.fail_host("node000")
    found = await seen(backend, vm, Observation.SILENT)
    assert (found.detail, found.host) == ("UNKNOWN", "node000")
    with pytest.raises(NotYet, match="UNKNOWN"):
        await step(backend, Step.SUSPEND, node(), vm)


async def test_saving(one: Standin, backend: OpenNebulaBackend, clock: HandClock) -> None:
    spec = node(image="os")
    vm = await running(backend, spec)
    one.hold("HOTPLUG_SAVEAS")
    await step(backend, Step.SAVE, spec, vm, image_name="golden")
    await seen(backend, vm, Observation.BUSY)
    one.release()
    await seen(backend, vm, Observation.RUNNING)
    with pytest.raises(BackendRejected, match="already taken"):
        await step(backend, Step.SAVE, spec, vm, image_name="os")
    with pytest.raises(BackendRejected, match='no disk "vdz"'):
        await step(backend, Step.SAVE, spec, vm, image_name="other", device="vdz")
    with pytest.raises(BackendRejected, match="takes no name"):
        await step(backend, Step.SAVE, spec, vm, image_name="a/b")
    # A saved image is known by its name at once.
    clock.seconds += SETTLE_SECONDS
    second = node(image="golden", identity=identity("ws-2"))
    await running(backend, second)


async def test_what_opennebula_cannot_do(backend: OpenNebulaBackend) -> None:
    assert backend.steps(Action.PAUSE) == ()
    with pytest.raises(BackendRejected, match="no step pause"):
        await step(backend, Step.PAUSE, node(), "0")
    with pytest.raises(BackendRejected, match="start a VM paused"):
        await step(backend, Step.ALLOCATE, node(start_paused=True))
    with pytest.raises(BackendRejected, match="needs a VM's id"):
        await step(backend, Step.DEPLOY, node())
    with pytest.raises(BackendRejected, match="no VM 99"):
        await step(backend, Step.START, node(), "99")
    with pytest.raises(BackendRejected, match="Error getting virtual machine"):
        await step(backend, Step.SUSPEND, node(), "99")


async def test_accepted_is_not_done(one: Standin, backend: OpenNebulaBackend, clock: HandClock) -> None:
    """A document read before the front-end moved the VM does not look like a failed verb."""
    spec = node()
    vm = await running(backend, spec)
    await step(backend, Step.REBOOT, spec, vm)
    assert (await backend.find(identity(), vm)).observation is Observation.RUNNING
    await step(backend, Step.LIVE_MIGRATE, spec, vm, target_host="node001")
    await seen(backend, vm, Observation.RUNNING)
    assert [found.host for found in await backend.observe()] == ["node001"]
