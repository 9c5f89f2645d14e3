"""Leases in time, on a clock that the tests move: begin, warning, end and its actions, restarts, steps of the clock."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc.aio
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from workspacebroker.v1 import pool_service_pb2 as pools
from workspacebroker.v1 import resources_pb2 as pb

from backends.base import HostState
from broker.core.clock import ManualClock
from tests.scenarios.test_lifecycle import cause_of, held, state_of, with_lab
from tests.support.broker import Running, reason_of, running

START = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
HOUR = timedelta(hours=1)


def at(instant: datetime) -> Timestamp:
    stamp = Timestamp()
    stamp.FromDatetime(instant)
    return stamp


def lasting(length: timedelta, **terms: object) -> pb.LeaseTerms:
    duration = Duration()
    duration.FromTimedelta(length)
    return pb.LeaseTerms(duration=duration, **terms)  # type: ignore[arg-type]


async def pass_time(broker: Running, length: timedelta) -> None:
    """Moves the clock on, in steps, so that whatever is due happens in its order."""
    clock = broker.broker.clock
    assert isinstance(clock, ManualClock)
    end = clock.now() + length
    while clock.now() < end:
        await clock.advance(min(60.0, (end - clock.now()).total_seconds()))


async def test_a_lease_ends_at_its_second(tmp_path: Path) -> None:
    clock = ManualClock(START)
    async with running(tmp_path, clock=clock) as broker:
        created = await broker.create(terms=lasting(HOUR))
        workspace = await broker.until(created.name, "RUNNING")
        assert workspace.end_time.ToDatetime(UTC) - workspace.planned_start_time.ToDatetime(UTC) == HOUR
        await pass_time(broker, workspace.end_time.ToDatetime(UTC) - clock.now() - timedelta(seconds=1))
        assert state_of(await broker.get(workspace.name)) == "RUNNING"
        await pass_time(broker, timedelta(seconds=1))
        assert state_of(await broker.get(workspace.name)) in ("TERMINATING", "EXPIRED")
        ended = await broker.until(workspace.name, "EXPIRED")
        assert cause_of(ended) == "LEASE"
        assert await held(broker) == {}


async def test_the_end_is_announced_and_an_extension_withdraws_the_notice(tmp_path: Path) -> None:
    clock = ManualClock(START)
    async with running(tmp_path, clock=clock) as broker:
        workspace = await broker.until((await broker.create(terms=lasting(HOUR))).name, "RUNNING")
        await pass_time(broker, timedelta(minutes=51))
        warned = await broker.get(workspace.name)
        assert [notice.kind for notice in warned.notices] == [pb.Workspace.Notice.KIND_ENDING]
        assert warned.notices[0].due_time == workspace.end_time
        from workspacebroker.v1 import workspace_service_pb2 as api

        answer = await broker.workspaces.UpdateWorkspace(
            api.UpdateWorkspaceRequest(
                workspace=pb.Workspace(name=workspace.name, terms=lasting(2 * HOUR)),
                update_mask={"paths": ["terms.duration"]},
            )
        )
        assert not answer.workspace.notices
        await pass_time(broker, timedelta(minutes=30))
        assert state_of(await broker.get(workspace.name)) == "RUNNING"


async def test_a_short_lease_is_not_announced_in_its_first_half(tmp_path: Path) -> None:
    clock = ManualClock(START)
    async with running(tmp_path, clock=clock) as broker:
        workspace = await broker.until((await broker.create(terms=lasting(timedelta(minutes=10)))).name, "RUNNING")
        await pass_time(broker, timedelta(minutes=4))
        assert not (await broker.get(workspace.name)).notices
        await pass_time(broker, timedelta(minutes=2))
        assert (await broker.get(workspace.name)).notices


async def test_a_reservation_holds_its_room_and_starts_on_time(tmp_path: Path) -> None:
    clock = ManualClock(START)
    async with running(tmp_path, clock=clock) as broker:
        later = clock.now() + 2 * HOUR
        reserved = await broker.create(cpu=8000, count=4, terms=lasting(HOUR, start_time=at(later)))
        assert state_of(reserved) == "RESERVED"
        assert reserved.planned_start_time.ToDatetime(UTC) == later
        # What ends where it begins does not collide; one second more does.
        fits = await broker.create(cpu=8000, terms=lasting(later - clock.now()))
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await broker.create(cpu=8000, terms=lasting(later - clock.now() + timedelta(seconds=1)))
        assert reason_of(refused.value) == "NO_CAPACITY"
        await broker.verb("Terminate", fits.name)
        await pass_time(broker, later - clock.now() - timedelta(seconds=1))
        assert state_of(await broker.get(reserved.name)) == "RESERVED"
        await pass_time(broker, timedelta(seconds=2))
        workspace = await broker.until(reserved.name, "RUNNING")
        assert workspace.end_time.ToDatetime(UTC) == later + HOUR
        assert cause_of(workspace) == "LEASE"


async def test_a_reservation_ended_before_it_began_is_terminated_at_once(tmp_path: Path) -> None:
    clock = ManualClock(START)
    async with running(tmp_path, clock=clock) as broker:
        reserved = await broker.create(terms=lasting(HOUR, start_time=at(clock.now() + HOUR)))
        assert state_of(await broker.verb("Terminate", reserved.name)) == "TERMINATED"
        assert await held(broker) == {}
        await pass_time(broker, 2 * HOUR)
        assert broker.backend().vms == []


async def test_a_reservation_whose_host_is_lost_starts_on_another(tmp_path: Path) -> None:
    clock = ManualClock(START)
    async with running(tmp_path, clock=clock) as broker:
        reserved = await broker.create(terms=lasting(HOUR, start_time=at(clock.now() + HOUR)))
        assert reserved.nodes[0].host == "pools/lab/hosts/lab-host-1"
        broker.backend().by_hand.set_host("lab-host-1", HostState.LOST)
        await pass_time(broker, HOUR + timedelta(seconds=1))
        workspace = await broker.until(reserved.name, "RUNNING")
        assert workspace.nodes[0].host == "pools/lab/hosts/lab-host-2"
        assert await held(broker) == {"cpu": 1000, "memory": 1024}


async def test_a_reservation_without_any_host_waits_and_starts_when_one_comes_back(tmp_path: Path) -> None:
    clock = ManualClock(START)
    async with running(tmp_path, clock=clock) as broker:
        reserved = await broker.create(terms=lasting(HOUR, start_time=at(clock.now() + HOUR)))
        hand = broker.backend().by_hand
        for number in range(1, 5):
            hand.set_host(f"lab-host-{number}", HostState.LOST)
        await pass_time(broker, HOUR + timedelta(minutes=1))
        waiting = await broker.get(reserved.name)
        assert state_of(waiting) == "PENDING"
        assert [notice.kind for notice in waiting.notices] == [pb.Workspace.Notice.KIND_AT_RISK]
        hand.set_host("lab-host-4", HostState.ACTIVE)
        workspace = await broker.until(reserved.name, "RUNNING")
        assert workspace.nodes[0].host == "pools/lab/hosts/lab-host-4"
        assert not workspace.notices
        assert workspace.end_time == reserved.end_time


async def test_a_reservation_that_never_finds_a_host_fails_at_its_end(tmp_path: Path) -> None:
    clock = ManualClock(START)
    async with running(tmp_path, clock=clock) as broker:
        reserved = await broker.create(terms=lasting(HOUR, start_time=at(clock.now() + HOUR)))
        for number in range(1, 5):
            broker.backend().by_hand.set_host(f"lab-host-{number}", HostState.LOST)
        await pass_time(broker, 2 * HOUR + timedelta(minutes=1))
        assert state_of(await broker.get(reserved.name)) == "FAILED"
        assert await held(broker) == {}


async def test_end_action_suspend_gives_the_room_back_and_keeps_the_disk(tmp_path: Path) -> None:
    clock = ManualClock(START)
    async with running(tmp_path, clock=clock) as broker:
        terms = lasting(HOUR, end_action=pb.LeaseTerms.END_ACTION_SUSPEND)
        workspace = await broker.until((await broker.create(disk=50, terms=terms)).name, "RUNNING")
        await pass_time(broker, HOUR)
        suspended = await broker.until(workspace.name, "SUSPENDED")
        assert cause_of(suspended) == "LEASE"
        assert suspended.nodes[0].capacity_released
        assert await held(broker) == {"disk": 50}
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await broker.verb("Resume", workspace.name)
        assert reason_of(refused.value) == "STATE_FORBIDS"
        await pass_time(broker, timedelta(days=7, minutes=1))
        assert state_of(await broker.until(workspace.name, "EXPIRED")) == "EXPIRED"
        assert broker.backend().vms == []


async def test_end_action_save_leaves_an_image_a_node(tmp_path: Path) -> None:
    clock = ManualClock(START)
    async with running(tmp_path, with_lab('images = ["debian-12"]'), clock=clock) as broker:
        terms = lasting(HOUR, end_action=pb.LeaseTerms.END_ACTION_SAVE)
        created = await broker.create(image="debian-12", count=2, save_as="kept", terms=terms)
        workspace = await broker.until(created.name, "RUNNING")
        await pass_time(broker, HOUR)
        await broker.until(workspace.name, "EXPIRED")
        images = (await broker.pools.ListImages(pools.ListImagesRequest(parent="pools/lab"))).images
        assert [image.name for image in images] == ["debian-12", "kept-0", "kept-1"]


async def test_an_open_ended_lease_does_not_end(tmp_path: Path) -> None:
    clock = ManualClock(START)
    unlimited = with_lab('refresh_interval = "12h"\nmax_duration = "none"')
    async with running(tmp_path, unlimited, clock=clock) as broker:
        workspace = await broker.until((await broker.create(terms=pb.LeaseTerms(open_ended=True))).name, "RUNNING")
        assert not workspace.HasField("end_time")
        await clock.advance(timedelta(days=400).total_seconds())
        assert state_of(await broker.get(workspace.name)) == "RUNNING"


async def test_the_record_is_forgotten_a_week_after_the_end_and_its_name_is_free_again(tmp_path: Path) -> None:
    clock = ManualClock(START)
    async with running(tmp_path, with_lab('refresh_interval = "12h"'), clock=clock) as broker:
        created = await broker.create(workspace_id="mine", request_id="once")
        await broker.verb("Terminate", created.name)
        await broker.until(created.name, "TERMINATED")
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await broker.create(workspace_id="mine")
        assert reason_of(refused.value) == "NAME_TAKEN"
        assert (await broker.create(workspace_id="mine", request_id="once")).uid == created.uid
        await pass_time(broker, timedelta(days=7, minutes=1))
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await broker.get(created.name)
        assert reason_of(refused.value) == "NOT_FOUND"
        assert not broker.broker.book.requests  # the record's ids went with it
        assert (await broker.create(workspace_id="mine", request_id="once")).uid != created.uid


async def test_what_was_under_way_goes_on_after_a_restart(tmp_path: Path) -> None:
    lab = with_lab('delays = { deploy = "500ms" }\nstate_file = "vms.json"')
    async with running(tmp_path, lab) as broker:
        created = await broker.create(count=2)
    async with running(tmp_path, lab) as broker:
        workspace = await broker.until(created.name, "RUNNING")
        assert workspace.uid == created.uid
        assert len(broker.backend().vms) == 2
        assert await held(broker) == {"cpu": 2000, "memory": 2048}
        await broker.verb("Terminate", workspace.name)
    async with running(tmp_path, lab) as broker:
        await broker.until(created.name, "TERMINATED")
        assert broker.backend().vms == []


async def test_what_ended_while_the_broker_was_down_is_ended_at_its_start(tmp_path: Path) -> None:
    lab = with_lab('state_file = "vms.json"')
    clock = ManualClock(START)
    async with running(tmp_path, lab, clock=clock) as broker:
        workspace = await broker.until((await broker.create(terms=lasting(HOUR))).name, "RUNNING")
    async with running(tmp_path, lab, clock=ManualClock(START + 3 * HOUR)) as broker:
        await broker.until(workspace.name, "EXPIRED")


async def test_a_step_of_the_wall_clock_ends_no_lease(tmp_path: Path) -> None:
    clock = ManualClock(START)
    async with running(tmp_path, clock=clock) as broker:
        workspace = await broker.until((await broker.create(terms=lasting(HOUR))).name, "RUNNING")
        await pass_time(broker, timedelta(seconds=5))
        clock.set(clock.now() + timedelta(days=2))
        await pass_time(broker, timedelta(seconds=30))
        assert state_of(await broker.get(workspace.name)) == "RUNNING"
        clock.set(clock.now() - timedelta(days=2))
        await pass_time(broker, timedelta(minutes=10))
        assert state_of(await broker.get(workspace.name)) == "RUNNING"


async def test_an_end_action_that_is_refused_is_tried_ever_more_slowly_and_shown(tmp_path: Path) -> None:
    clock = ManualClock(START)
    settings = 'faults = [{ step = "suspend_release", kind = "rejected", count = 4 }]'
    async with running(tmp_path, with_lab(settings), clock=clock) as broker:
        terms = lasting(HOUR, end_action=pb.LeaseTerms.END_ACTION_SUSPEND)
        workspace = await broker.until((await broker.create(terms=terms)).name, "RUNNING")
        await pass_time(broker, HOUR)
        ended = clock.now()
        calls = broker.backend().calls
        stuck = await broker.eventually(
            lambda: broker.get(workspace.name),
            lambda ws: any(notice.kind == pb.Workspace.Notice.KIND_STUCK for notice in ws.notices),
            step=1.0,
        )
        assert "configured fault" in stuck.notices[-1].message
        assert clock.now() - ended >= timedelta(seconds=10 + 20 + 40)
        assert calls["suspend_release"] == 4
        await broker.until(workspace.name, "SUSPENDED", step=5.0)
        assert calls["suspend_release"] == 5


async def test_a_step_back_of_the_wall_clock_frees_no_room(tmp_path: Path) -> None:
    clock = ManualClock(START)
    async with running(tmp_path, clock=clock) as broker:
        workspace = await broker.until((await broker.create(cpu=8000, count=4)).name, "RUNNING")
        clock.set(clock.now() - 2 * HOUR)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await broker.create(terms=lasting(timedelta(minutes=10)))
        assert reason_of(refused.value) == "NO_CAPACITY"
        hosts = (await broker.pools.ListHosts(pools.ListHostsRequest(parent="pools/lab"))).hosts
        assert hosts[0].slots[0].start_time == workspace.prepare_time


async def test_a_node_that_was_ended_before_the_start_does_not_start(tmp_path: Path) -> None:
    clock = ManualClock(START)
    async with running(tmp_path, clock=clock) as broker:
        reserved = await broker.create(count=2, terms=lasting(HOUR, start_time=at(clock.now() + HOUR)))
        await broker.verb("Terminate", reserved.name, nodes=(0,))
        for number in (1, 2):  # so that what is left has to be placed anew
            broker.backend().by_hand.set_host(f"lab-host-{number}", HostState.LOST)
        await pass_time(broker, HOUR + timedelta(minutes=1))
        started = await broker.until(reserved.name, "RUNNING")
        assert [node.state for node in started.nodes] == [pb.Workspace.STATE_TERMINATED, pb.Workspace.STATE_RUNNING]
        assert len(broker.backend().vms) == 1
