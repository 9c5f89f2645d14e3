"""What restoring yesterday's state file does: nothing is lost silently, doubled, or ended unasked."""

from __future__ import annotations

import shutil
from pathlib import Path

from workspacebroker.v1 import pool_service_pb2 as pools

from tests.scenarios.test_lifecycle import held, state_of, with_lab
from tests.support.broker import running

LAB = with_lab('refresh_interval = "50ms"\nstate_file = "vms.json"')


async def test_a_restored_file_shows_what_it_does_not_know_and_what_is_gone(tmp_path: Path) -> None:
    async with running(tmp_path, LAB) as broker:
        kept = await broker.until((await broker.create(workspace_id="kept")).name, "RUNNING")
        ended = await broker.until((await broker.create(workspace_id="ended")).name, "RUNNING")
    yesterday = tmp_path / "yesterday.db"
    shutil.copy(tmp_path / "broker.db", yesterday)  # a stopped broker leaves everything in the one file
    assert not (tmp_path / "broker.db-wal").exists()

    async with running(tmp_path, LAB) as broker:
        await broker.verb("Terminate", ended.name)
        await broker.until(ended.name, "TERMINATED")
        newer = await broker.until((await broker.create(workspace_id="newer")).name, "RUNNING")
    shutil.copy(yesterday, tmp_path / "broker.db")

    async with running(tmp_path, LAB) as broker:
        assert state_of(await broker.until(kept.name, "RUNNING")) == "RUNNING"
        lost = await broker.until(ended.name, "FAILED")  # it said RUNNING; the backend has no such VM
        assert "gone" in lost.last_error.message
        strays = (await broker.pools.ListStrays(pools.ListStraysRequest(parent="pools/lab"))).strays
        assert [stray.workspace_uid for stray in strays] == [newer.uid]
        assert {vm.backend_id for vm in broker.backend().vms} == {
            kept.nodes[0].backend_id,
            newer.nodes[0].backend_id,
        }
        assert await held(broker) == {"cpu": 1000, "memory": 1024}
        hosts = (await broker.pools.ListHosts(pools.ListHostsRequest(parent="pools/lab"))).hosts
        assert sum(host.foreign.amounts["memory"] for host in hosts) == 1024  # the stray's room is not promised again
