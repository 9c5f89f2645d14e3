"""Strays: listed, counted, left alone, and ended or adopted on an operator's word."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf.duration_pb2 import Duration
from workspacebroker.v1 import pool_service_pb2 as pools
from workspacebroker.v1 import resources_pb2 as pb

from backends.base import Identity, Observation
from clients.cli.app import run
from tests.scenarios.test_lifecycle import held, state_of, with_lab
from tests.support.broker import TENANT, Running, reason_of, running

QUICK = with_lab('refresh_interval = "50ms"')
END = pools.ResolveStrayRequest.ACTION_END
ADOPT = pools.ResolveStrayRequest.ACTION_ADOPT


async def stray(broker: Running, index: int = 0) -> Any:
    """A VM with our tag whose workspace nobody knows, as after a restore of yesterday's state file."""
    ours = broker.broker.book.settings["broker_id"]
    identity = Identity(broker_id=ours, workspace_uid="0123456789abcdef", node_index=index)
    broker.backend().by_hand.add_stray(identity, "lab-host-1", {"cpu": 500, "memory": 256})
    answer = await broker.eventually(
        lambda: broker.pools.ListStrays(pools.ListStraysRequest(parent="pools/lab")), lambda got: got.strays
    )
    return answer.strays[0]


async def test_a_stray_is_ended_on_an_operators_word(tmp_path: Path) -> None:
    async with running(tmp_path, QUICK) as broker:
        found = await stray(broker)
        assert len(broker.backend().vms) == 1  # left alone until now
        await broker.pools.ResolveStray(pools.ResolveStrayRequest(name=found.name, action=END))
        await broker.eventually(lambda: broker.backend().vms, lambda vms: not vms)
        await broker.eventually(
            lambda: broker.pools.ListStrays(pools.ListStraysRequest(parent="pools/lab")), lambda got: not got.strays
        )


@pytest.mark.parametrize("index", [0, 2])
async def test_a_stray_is_adopted_as_a_workspace_of_one_node(tmp_path: Path, index: int) -> None:
    async with running(tmp_path, QUICK) as broker:
        found = await stray(broker, index)
        request = pools.ResolveStrayRequest(
            name=found.name,
            action=ADOPT,
            parent=TENANT,
            terms=pb.LeaseTerms(duration=Duration(seconds=3600)),
            request_id="adopt-it",
        )
        adopted = (await broker.pools.ResolveStray(request)).workspace
        assert state_of(adopted) == "RUNNING"
        assert adopted.nodes[index].backend_id == found.backend_id
        assert (adopted.end_time.seconds - adopted.planned_start_time.seconds) == 3600
        assert await held(broker) == {"cpu": 500, "memory": 256}
        assert (await broker.pools.ResolveStray(request)).workspace.uid == adopted.uid
        answer = await broker.pools.ListStrays(pools.ListStraysRequest(parent="pools/lab"))
        assert not answer.strays
        await broker.verb("Suspend", adopted.name)
        await broker.until(adopted.name, "SUSPENDED")
        await broker.verb("Terminate", adopted.name)
        await broker.until(adopted.name, "TERMINATED")
        assert broker.backend().vms == []
        assert await held(broker) == {}


async def test_what_cannot_be_resolved_says_why(tmp_path: Path) -> None:
    async with running(tmp_path, QUICK) as broker:
        found = await stray(broker)
        broker.backend().by_hand.show(found.backend_id, Observation.BUSY)
        await broker.pools.RefreshPool(pools.RefreshPoolRequest(name="pools/lab"))
        cases = [
            (pools.ResolveStrayRequest(name=found.name, action=ADOPT, parent=TENANT), "STATE_FORBIDS"),
            (pools.ResolveStrayRequest(name=found.name), "FIELD_INVALID"),
            (pools.ResolveStrayRequest(name=found.name, action=ADOPT), "FIELD_INVALID"),
            (pools.ResolveStrayRequest(name="pools/lab/strays/none", action=END), "NOT_FOUND"),
        ]
        for request, reason in cases:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await broker.pools.ResolveStray(request)
            assert reason_of(refused.value) == reason


async def test_the_command_line_ends_and_adopts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path, QUICK) as broker:
        monkeypatch.setenv("WORKSPACE_SERVER", f"127.0.0.1:{broker.port}")
        first = await stray(broker, 0)
        assert await asyncio.to_thread(run, ["adopt-stray", f"lab/{first.backend_id}", "--duration", "2h"]) == 0
        assert "adopted-01234567-0" in capsys.readouterr().out
        second = await stray(broker, 1)
        assert await asyncio.to_thread(run, ["end-stray", f"lab/{second.backend_id}"]) == 0
        await broker.eventually(
            lambda: [vm.backend_id for vm in broker.backend().vms], lambda ids: ids == [first.backend_id]
        )
        assert await asyncio.to_thread(run, ["end-stray", "lab"]) == 2
