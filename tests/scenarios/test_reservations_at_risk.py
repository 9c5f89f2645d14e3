"""Reservations whose host fails before they begin.

Cases: another host takes it, long before its start, and the room on the first is free again; no other has room: a
warning now, still RESERVED, and it is taken back when the host comes back or when another is free; two in danger and
room for one: the one that begins first has it; a host that is cordoned; a group whose nodes must not meet; a pool that
does not answer changes nothing; others' leases at another time do not stand in the way; strangers that take its room
on a host that is well; room that is not free yet when it is due.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp
from workspacebroker.v1 import pool_service_pb2 as pools_api
from workspacebroker.v1 import resources_pb2 as pb

from backends.base import HostState
from broker.core.clock import ManualClock
from tests.support.broker import LAB, Running, running

START = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
HOUR = timedelta(hours=1)
TWO_HOSTS = LAB.replace("count = 4", "count = 2")
AT_RISK = pb.Workspace.Notice.KIND_AT_RISK


def lasting(length: timedelta, start: datetime | None = None) -> pb.LeaseTerms:
    terms = pb.LeaseTerms()
    terms.duration.FromTimedelta(length)
    if start is not None:
        at = Timestamp()
        at.FromDatetime(start)
        terms.start_time.CopyFrom(at)
    return terms


async def reserved(broker: Running, hours: int = 2, **options: Any) -> pb.Workspace:
    """A reservation of whole hosts for an hour, so many hours from the start of the test."""
    return await broker.create(cpu=8000, terms=lasting(HOUR, START + hours * HOUR), **options)


async def looked(broker: Running, name: str) -> pb.Workspace:
    """The workspace after a complete look at the pool."""
    await broker.pools.RefreshPool(pools_api.RefreshPoolRequest(name="pools/lab"))
    return await broker.get(name)


def hosts(workspace: pb.Workspace) -> list[str]:
    return [node.host.rpartition("-")[2] for node in workspace.nodes]


def kinds(workspace: pb.Workspace) -> list[int]:
    return [notice.kind for notice in workspace.notices]


async def test_a_reservation_moves_long_before_its_start_and_its_old_room_is_free(tmp_path: Path) -> None:
    async with running(tmp_path, TWO_HOSTS, clock=ManualClock(START)) as broker:
        wanted = await reserved(broker)
        assert hosts(wanted) == ["1"]
        broker.backend().by_hand.set_host("lab-host-1", HostState.LOST)
        moved = await looked(broker, wanted.name)
        assert (hosts(moved), kinds(moved), moved.state) == (["2"], [], pb.Workspace.STATE_RESERVED)
        broker.backend().by_hand.set_host("lab-host-1", HostState.ACTIVE)
        await looked(broker, wanted.name)
        assert hosts(await reserved(broker)) == ["1"]
        await broker.broker.clock.advance((2 * HOUR + timedelta(seconds=1)).total_seconds())  # type: ignore[attr-defined]
        assert hosts(await broker.until(wanted.name, "RUNNING")) == ["2"]


async def test_where_no_host_has_room_its_owner_is_warned_until_the_danger_is_over(tmp_path: Path) -> None:
    async with running(tmp_path, TWO_HOSTS, clock=ManualClock(START)) as broker:
        wanted = await reserved(broker)
        await reserved(broker)
        hand = broker.backend().by_hand
        hand.set_host("lab-host-1", HostState.LOST)
        warned = await looked(broker, wanted.name)
        assert (kinds(warned), warned.state) == ([AT_RISK], pb.Workspace.STATE_RESERVED)
        assert "lab-host-1" in warned.notices[0].message
        assert warned.notices[0].due_time == wanted.planned_start_time
        assert (await looked(broker, wanted.name)).revision == warned.revision  # told once
        hand.set_host("lab-host-1", HostState.ACTIVE)
        safe = await looked(broker, wanted.name)
        assert (hosts(safe), kinds(safe)) == (["1"], [])


async def test_one_at_risk_moves_when_another_host_comes_free(tmp_path: Path) -> None:
    async with running(tmp_path, TWO_HOSTS, clock=ManualClock(START)) as broker:
        wanted, other = await reserved(broker), await reserved(broker)
        broker.backend().by_hand.set_host("lab-host-1", HostState.LOST)
        assert kinds(await looked(broker, wanted.name)) == [AT_RISK]
        await broker.verb("Terminate", other.name)
        moved = await looked(broker, wanted.name)
        assert (hosts(moved), kinds(moved)) == (["2"], [])


async def test_the_one_that_begins_first_has_the_room_there_is(tmp_path: Path) -> None:
    async with running(tmp_path, TWO_HOSTS, clock=ManualClock(START)) as broker:
        later = await broker.create(cpu=8000, terms=lasting(3 * HOUR, START + 3 * HOUR))
        sooner = await broker.create(cpu=8000, terms=lasting(HOUR, START + 2 * HOUR))
        blocked = await broker.create(cpu=8000, terms=lasting(HOUR, START + 4 * HOUR))
        assert (hosts(later), hosts(sooner), hosts(blocked)) == (["1"], ["1"], ["2"])
        broker.backend().by_hand.set_host("lab-host-1", HostState.LOST)
        assert hosts(await looked(broker, sooner.name)) == ["2"]
        assert kinds(await broker.get(later.name)) == [AT_RISK]
        assert kinds(await broker.get(blocked.name)) == []


async def test_a_cordoned_hosts_reservations_go_elsewhere(tmp_path: Path) -> None:
    async with running(tmp_path, TWO_HOSTS, clock=ManualClock(START)) as broker:
        wanted = await reserved(broker)
        await broker.pools.UpdateHost(
            pools_api.UpdateHostRequest(
                host=pb.Host(name="pools/lab/hosts/lab-host-1", cordoned=True),
                update_mask=FieldMask(paths=["cordoned"]),
            )
        )
        assert hosts(await looked(broker, wanted.name)) == ["2"]


async def test_nodes_that_must_not_meet_do_not_meet_after_a_move(tmp_path: Path) -> None:
    async with running(tmp_path, LAB.replace("count = 4", "count = 3"), clock=ManualClock(START)) as broker:
        wanted = await broker.create(
            count=2, placement=pb.NodeSet.PLACEMENT_ONE_PER_HOST, terms=lasting(HOUR, START + HOUR)
        )
        assert hosts(wanted) == ["1", "2"]
        broker.backend().by_hand.set_host("lab-host-1", HostState.LOST)
        assert hosts(await looked(broker, wanted.name)) == ["3", "2"]


async def test_silence_moves_nothing_and_warns_of_nothing(tmp_path: Path) -> None:
    async with running(tmp_path, TWO_HOSTS, clock=ManualClock(START)) as broker:
        wanted = await reserved(broker)
        hand = broker.backend().by_hand
        hand.set_host("lab-host-1", HostState.LOST)
        hand.silent = True
        await broker.eventually(lambda: broker.broker.pools["lab"].reachable.is_set(), lambda up: not up, step=1.0)
        seen = await broker.get(wanted.name)
        assert (hosts(seen), kinds(seen)) == (["1"], [])


async def test_room_that_strangers_take_on_a_host_that_is_well_is_seen_before_the_start(tmp_path: Path) -> None:
    async with running(tmp_path, TWO_HOSTS, clock=ManualClock(START)) as broker:
        wanted = await reserved(broker)
        hand = broker.backend().by_hand
        hand.set_foreign("lab-host-1", {"cpu": 1000})
        moved = await looked(broker, wanted.name)
        assert (hosts(moved), kinds(moved)) == (["2"], [])
        hand.set_foreign("lab-host-2", {"cpu": 1000})
        warned = await looked(broker, wanted.name)
        assert (hosts(warned), kinds(warned)) == (["2"], [AT_RISK])
        hand.set_foreign("lab-host-2", {})
        safe = await looked(broker, wanted.name)
        assert (hosts(safe), kinds(safe)) == (["2"], [])


async def test_a_reservation_whose_room_is_not_free_when_it_is_due_waits_and_its_owner_is_told(tmp_path: Path) -> None:
    one_host = LAB.replace("count = 4", "count = 1")
    async with running(tmp_path, one_host, clock=ManualClock(START)) as broker:
        clock: Any = broker.broker.clock
        before = await broker.create(cpu=8000, terms=lasting(2 * HOUR))
        await broker.until(before.name, "RUNNING")
        wanted = await reserved(broker)
        broker.backend().by_hand.fail("transient", "terminate", count=200)
        await clock.advance(2 * HOUR.total_seconds() + 8)
        late = await broker.get(wanted.name)
        assert (late.state, kinds(late)) == (pb.Workspace.STATE_RESERVED, [AT_RISK])
        assert (await broker.get(before.name)).state == pb.Workspace.STATE_TERMINATING
        broker.backend().by_hand.faults.clear()
        started = await broker.until(wanted.name, "RUNNING", step=5, timeout=40)
        assert kinds(started) == []
        assert started.end_time == wanted.end_time  # it is late, not longer
