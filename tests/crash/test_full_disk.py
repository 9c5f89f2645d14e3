"""A file that cannot be written: calls are refused, nothing is half done or done twice, and all goes on afterwards."""

from __future__ import annotations

import asyncio
import resource
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf.duration_pb2 import Duration
from workspacebroker.v1 import resources_pb2 as pb
from workspacebroker.v1 import workspace_service_pb2 as api

from broker.config import load
from broker.core.clock import ManualClock
from broker.server import Broker
from tests.support.broker import LAB, TENANT, Running, reason_of, running, small
from tests.support.crash import nursery
from tests.support.crash_life import Life
from tests.support.crash_worlds import OpenNebula, Simulated

LARGEST = 8 * 2**20


@pytest.fixture
def tmpfs(tmp_path: Path) -> Iterator[Path | None]:
    """A small file system of its own; None where this user may not mount one."""
    place = tmp_path / "small"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={LARGEST}", "tmpfs", str(place)]
    if subprocess.run(command, check=False, capture_output=True).returncode != 0:
        yield None
        return
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill(place: Path) -> None:
    """Takes what room is left."""
    with (place / "balloon").open("wb", buffering=0) as balloon:
        for size in (65536, 4096, 1):
            try:
                while True:
                    balloon.write(bytes(size))
            except OSError:
                continue


@pytest.mark.parametrize("how", ["no space", "limit"])
async def test_a_full_disk_refuses_calls_and_the_broker_recovers(how: str, tmpfs: Path | None, tmp_path: Path) -> None:
    """On a file system that is full; or, also where none can be mounted, past the largest size a file may have."""
    place = tmpfs if how == "no space" else None
    state = (place or tmp_path) / "broker.db"
    async with nursery() as forks, Life(forks, tmp_path, Simulated(tmp_path), at_work=True, state=state) as life:
        before = await life.create()
        await life.until(before, "RUNNING")
        assert life.process is not None
        if place is not None:
            fill(place)
        else:
            written = state.with_name("broker.db-wal").stat().st_size
            resource.prlimit(life.process.pid, resource.RLIMIT_FSIZE, (written, resource.RLIM_INFINITY))
        accepted = []
        refusal: grpc.aio.AioRpcError | None = None
        for number in range(100):
            request = api.CreateWorkspaceRequest(
                parent=TENANT,
                workspace=small(memory=64, cpu=100),
                workspace_id=f"late{number}",
                request_id=f"late-{number}",
            )
            try:
                accepted.append((await life.workspaces.CreateWorkspace(request)).workspace)
            except grpc.aio.AioRpcError as error:
                refusal = error
                break
        assert refusal is not None, "the disk was never full"
        assert (refusal.code(), reason_of(refusal)) == (grpc.StatusCode.UNAVAILABLE, "STORE_UNAVAILABLE")
        refused = f"{TENANT}/workspaces/{request.workspace_id}"
        # Reading goes on; what was refused is not there, not even after a kill.
        names = {workspace.name for workspace in await life.listed()}
        assert names == {before, *(workspace.name for workspace in accepted)}
        with pytest.raises(grpc.aio.AioRpcError) as refused_too:
            await life.workspaces.TerminateWorkspace(api.TerminateWorkspaceRequest(target=api.Target(name=before)))
        assert reason_of(refused_too.value) == "STORE_UNAVAILABLE"

        if place is not None:
            (place / "balloon").unlink()
        else:
            unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
            resource.prlimit(life.process.pid, resource.RLIMIT_FSIZE, unlimited)
        again = (await life.ask("CreateWorkspace", request)).workspace
        assert again.name == refused
        await life.until(again.name, "RUNNING")
        await life.check()
        await life.kill()
        await life.check()
        assert refused in {workspace.name for workspace in await life.listed()}


# A file that can only be read, in this process


@asynccontextmanager
async def faulty(
    folder: Path, configuration: str, fault_point: Callable[[Broker, str], None]
) -> AsyncIterator[Running]:
    """A broker with a fault point that may reach into it."""
    file = folder / "broker.toml"
    file.write_text(configuration)
    broker = Broker(load(file), jitter=lambda: 0.5, fault_point=lambda point: fault_point(broker, point))
    shown = Running(broker, await broker.start())
    try:
        await shown.eventually(lambda: [pool.reachable.is_set() for pool in broker.pools.values()], all)
        yield shown
    finally:
        await shown.channel.close()
        await broker.stop()


def read_only(broker: Broker, *, on: bool) -> None:
    """Lets the state file only be read, as on a file system that was mounted anew after an error; or ends that."""
    broker.store._db.execute(f"PRAGMA query_only = {int(on)}")


class ReadOnlyAt:
    """From the first time that a point is passed until a write has failed, the file can only be read."""

    def __init__(self, point: str) -> None:
        self.point = point
        self.failures = 0

    def __call__(self, broker: Broker, point: str) -> None:
        if point != self.point or self.failures:
            return
        self.failures = 1
        taken_back = broker.store.on_failure
        assert taken_back is not None

        def failed() -> None:
            read_only(broker, on=False)
            taken_back()

        broker.store.on_failure = failed
        read_only(broker, on=True)


async def test_a_read_only_file_refuses_calls_and_the_broker_recovers(tmp_path: Path) -> None:
    async with running(tmp_path) as broker:
        workspace = await broker.until((await broker.create(request_id="first")).name, "RUNNING")
        await broker.broker.book.settled()
        read_only(broker.broker, on=True)
        calls: list[Any] = [
            broker.create(request_id="second", workspace_id="second"),
            broker.verb("Suspend", workspace.name, request_id="third"),
            broker.verb("Terminate", workspace.name, request_id="fourth"),
        ]
        for call in calls:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await call
            assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
            assert reason_of(refused.value) == "STORE_UNAVAILABLE"
        assert (await broker.get(workspace.name)).state == pb.Workspace.STATE_RUNNING
        read_only(broker.broker, on=False)
        await broker.until((await broker.create(request_id="second", workspace_id="second")).name, "RUNNING")
        await broker.verb("Terminate", workspace.name, request_id="fourth")
        await broker.until(workspace.name, "TERMINATED")


@pytest.mark.parametrize("point", ["create/allocate/called", "create/deploy/called", "create/seen"])
async def test_what_was_done_and_could_not_be_written_down_is_not_done_again(point: str, tmp_path: Path) -> None:
    world = OpenNebula(tmp_path)
    fault = ReadOnlyAt(point)
    try:
        async with faulty(tmp_path, f'[server]\nlisten = "127.0.0.1:0"\n{world.configuration()}', fault) as broker:
            await broker.until((await broker.create()).name, "RUNNING")
            assert fault.failures == 1
            assert len(world.standin.vms()) == 1
    finally:
        world.close()


async def test_a_lost_answer_that_cannot_be_noted_is_looked_for_all_the_same(tmp_path: Path) -> None:
    world = OpenNebula(tmp_path)
    world.standin.faults.add("drop_after", "one.vm.allocate", count=1)
    fault = ReadOnlyAt("create/allocate/before")
    try:
        async with faulty(tmp_path, f'[server]\nlisten = "127.0.0.1:0"\n{world.configuration()}', fault) as broker:
            await broker.until((await broker.create()).name, "RUNNING")
            assert fault.failures == 1
            assert len(world.standin.vms()) == 1
    finally:
        world.close()


async def test_a_failure_that_cannot_be_noted_leaves_the_node_in_somebodys_care(tmp_path: Path) -> None:
    settings = 'faults = [{ kind = "rejected", step = "deploy", count = 1 }]\n'
    configuration = LAB.replace("[[pools.lab.hosts]]", f"{settings}[[pools.lab.hosts]]")
    fault = ReadOnlyAt("create/deploy/before")
    async with faulty(tmp_path, configuration, fault) as broker:
        # The refusal was forgotten with the write; asked again, the pool takes it.
        await broker.until((await broker.create()).name, "RUNNING")
        assert fault.failures == 1


async def test_a_lease_that_ends_while_nothing_can_be_written_ends_afterwards(tmp_path: Path) -> None:
    clock = ManualClock(datetime(2026, 1, 1, tzinfo=UTC))
    async with running(tmp_path, clock=clock) as broker:
        wish = small(terms=pb.LeaseTerms(duration=Duration(seconds=600)))
        workspace = await broker.until((await broker.create(workspace=wish)).name, "RUNNING")
        await broker.broker.book.settled()
        commits = broker.broker.store.commits
        read_only(broker.broker, on=True)
        await clock.advance(timedelta(seconds=601).total_seconds())
        for _ in range(20):
            await asyncio.sleep(0.005)
        assert broker.broker.store.commits == commits
        assert (await broker.get(workspace.name)).state == pb.Workspace.STATE_RUNNING
        read_only(broker.broker, on=False)
        await broker.until(workspace.name, "EXPIRED", step=0.5)
        assert broker.backend().vms == []
