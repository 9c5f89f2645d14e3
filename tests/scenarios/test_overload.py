"""Bounds: past them a caller is told to come again, and others are served as before."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc
import grpc.aio
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2
from workspacebroker.v1 import workspace_service_pb2 as api

from tests.scenarios.test_lifecycle import with_lab
from tests.support.broker import LAB, TENANT, Running, details_of, reason_of, running

NARROW = LAB.replace('listen = "127.0.0.1:0"\n', 'listen = "127.0.0.1:0"\nmax_watchers = 3\nmax_calls = 4\n')


def is_overload(error: grpc.aio.AioRpcError) -> bool:
    return (
        error.code() is grpc.StatusCode.UNAVAILABLE
        and reason_of(error) == "OVERLOADED"
        and len(details_of(error, error_details_pb2.RetryInfo)) == 1
    )


async def waits(broker: Running, name: str, number: int) -> list[asyncio.Task[object]]:
    """Waits for a state that does not come."""
    request = api.WaitWorkspaceRequest(name=name, states=["STATE_PAUSED"], timeout=Duration(seconds=20))

    async def one() -> object:
        return await broker.workspaces.WaitWorkspace(request)

    return [asyncio.create_task(one()) for _ in range(number)]


async def test_waits_past_their_bound_are_refused_and_other_calls_go_on(tmp_path: Path) -> None:
    async with running(tmp_path, NARROW) as broker:
        workspace = await broker.until((await broker.create()).name, "RUNNING")
        waiting = await waits(broker, workspace.name, 3)
        await broker.eventually(lambda: broker.broker._calls._under_way["waits and watches"], lambda held: held == 3)
        [late] = await waits(broker, workspace.name, 1)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await late
        assert is_overload(refused.value)
        watch = broker.workspaces.WatchWorkspaces(api.WatchWorkspacesRequest(parent=TENANT))
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await watch.read()
        assert is_overload(refused.value)
        await broker.verb("Pause", workspace.name)
        answers = await asyncio.gather(*waiting)
        assert all(answer.reached for answer in answers)  # type: ignore[attr-defined]
        assert not any(broker.broker._calls._under_way.values())


async def test_creates_past_a_pools_bound_are_refused_and_terminate_is_not(tmp_path: Path) -> None:
    stuck = with_lab('max_tasks = 3\nfaults = [{ step = "deploy", kind = "stall" }]')
    async with running(tmp_path, stuck) as broker:
        created = await broker.create(count=3)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await broker.create(request_id="later")
        assert is_overload(refused.value)
        await broker.verb("Terminate", created.name)
        await broker.until(created.name, "TERMINATED")
        await broker.create(request_id="later")  # the id is still free


async def test_a_slow_pool_leaves_the_others_quick(tmp_path: Path) -> None:
    two = (
        LAB
        + '[pools.slow]\nbackend = "simulator"\nlatency = "1h"\nhosts = [{ count = 1, cpu = 8000, memory = 8192 }]\n'
    )
    async with running(tmp_path, two, ready=False) as broker:
        await broker.eventually(lambda: broker.broker.pools["lab"].reachable.is_set(), bool)
        workspace = await broker.create(pool="lab")
        await broker.until(workspace.name, "RUNNING", timeout=5)
