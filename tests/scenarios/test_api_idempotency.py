"""Request ids: the same request has one effect, however often and whenever it is sent."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest
from workspacebroker.v1 import resources_pb2 as pb
from workspacebroker.v1 import workspace_service_pb2 as api

from tests.support.api import created, ended, footprint, held, listed, pool, refused, site, state_of, updated
from tests.support.broker import LAB, TENANT, running, small


async def test_ten_at_once_make_one_workspace_and_all_are_told_the_same(tmp_path: Path) -> None:
    async with running(tmp_path) as broker:
        answers = await asyncio.gather(*(broker.create(request_id="once") for _ in range(10)))
        assert len({(each.name, each.uid) for each in answers}) == 1
        assert [each.name for each in await listed(broker)] == [answers[0].name]
        await broker.until(answers[0].name, "RUNNING")
        assert len(broker.backend().vms) == 1
        assert await held(broker) == [(answers[0].name, 0, "lab-host-1")]


async def test_ten_at_once_with_different_content_make_one(tmp_path: Path) -> None:
    async with running(tmp_path) as broker:
        answers = await asyncio.gather(
            *(broker.create(request_id="once", display_name=str(number)) for number in range(10)),
            return_exceptions=True,
        )
        done = [each for each in answers if isinstance(each, pb.Workspace)]
        assert len(done) == 1
        refusals = [each for each in answers if isinstance(each, grpc.aio.AioRpcError)]
        assert {each.code() for each in refusals} == {grpc.StatusCode.ALREADY_EXISTS}
        assert len(refusals) == 9
        assert len(await listed(broker)) == 1


async def test_the_answer_is_the_workspace_as_it_is_now(tmp_path: Path) -> None:
    """Also once it has ended: nothing is made again."""
    async with running(tmp_path) as broker:
        first = await broker.create(request_id="once")
        await broker.until(first.name, "RUNNING")
        again = await broker.create(request_id="once")
        assert (again.uid, state_of(again)) == (first.uid, "RUNNING")
        await ended(broker, first.name)
        again = await broker.create(request_id="once")
        assert (again.uid, state_of(again)) == (first.uid, "TERMINATED")
        assert broker.backend().vms == []


async def test_every_part_of_a_request_counts(tmp_path: Path) -> None:
    async with running(tmp_path) as broker:
        base: dict[str, Any] = {"request_id": "once", "workspace_id": "ws"}
        wish = small(labels={"a": "1", "b": "2"})
        await created(broker, wish, **base)
        same = small(labels={"b": "2", "a": "1"})  # the order of a map is nothing
        assert (await created(broker, same, **base)).name == f"{TENANT}/workspaces/ws"
        for other in (
            small(labels={"a": "1", "b": "3"}),
            small(labels={"a": "1", "b": "2"}, cpu=1001),
            small(labels={"a": "1", "b": "2"}, user_data=b"x"),
            small(labels={"a": "1", "b": "2"}, count=2),
        ):
            assert (await refused(created(broker, other, **base))).reason == "REQUEST_ID_REUSED"
        assert (await refused(created(broker, wish, **base | {"workspace_id": "other"}))).reason == "REQUEST_ID_REUSED"


async def test_tenants_and_methods_have_their_own_ids(tmp_path: Path) -> None:
    async with running(tmp_path) as broker:
        mine = await created(broker, small(), request_id="once")
        theirs = await created(broker, small(), request_id="once", parent="tenants/other")
        assert mine.uid != theirs.uid
        await broker.until(mine.name, "RUNNING")
        assert state_of(await broker.verb("Stop", mine.name, request_id="once")) == "STOPPING"
        await broker.until(mine.name, "STOPPED")


async def test_a_refused_create_leaves_its_id_free(tmp_path: Path) -> None:
    async with running(tmp_path, site(pool("lab", hosts=1, memory=2048))) as broker:
        blocker = await broker.create(memory=2048)
        before = await footprint(broker)
        assert (await refused(broker.create(memory=1024, request_id="once"))).reason == "NO_CAPACITY"
        assert (await refused(broker.create(memory=4096, request_id="once"))).reason == "NEVER_FITS"
        assert (await refused(broker.create(memory=-1, request_id="once"))).reason == "FIELD_INVALID"
        assert (await footprint(broker))[-1] == before[-1]
        await ended(broker, blocker.name)
        await broker.create(memory=512, request_id="once")  # even with other content


async def test_validate_only_leaves_no_trace(tmp_path: Path) -> None:
    async with running(tmp_path) as broker:
        before = await footprint(broker)
        draft = await created(broker, small(count=2), workspace_id="ws", request_id="once", validate_only=True)
        assert draft.name == f"{TENANT}/workspaces/ws"
        assert [node.host.rpartition("/")[2] for node in draft.nodes] == ["lab-host-1", "lab-host-1"]
        assert draft.HasField("end_time")
        assert await footprint(broker) == before
        assert broker.backend().vms == []
        real = await created(broker, small(count=2), workspace_id="ws", request_id="once")
        assert [node.host for node in real.nodes] == [node.host for node in draft.nodes]


async def test_validate_only_fails_where_the_real_call_would(tmp_path: Path) -> None:
    async with running(
        tmp_path, site(pool("lab", hosts=1, memory=4096), rest="[tenants.default.limits]\nnodes = 3")
    ) as broker:
        await broker.create(workspace_id="ws", memory=1024)
        for wish, options in (
            (small(), {"workspace_id": "ws"}),
            (small(memory=4096), {}),
            (small(memory=8192), {}),
            (small(memory=64, count=3), {}),
            (small(memory=0), {}),
            (small(), {"if_pool_generations": {"lab": 0}}),
        ):
            dry = await refused(created(broker, wish, validate_only=True, **options))
            real = await refused(created(broker, wish, **options))
            assert (dry.reason, dry.code) == (real.reason, real.code)


async def test_an_id_on_a_verb(tmp_path: Path) -> None:
    """The verb is done once: sent again much later it does not stop what was started since."""
    async with running(tmp_path) as broker:
        name = (await broker.until((await broker.create()).name, "RUNNING")).name
        await broker.verb("Stop", name, request_id="once")
        await broker.until(name, "STOPPED")
        await broker.verb("Start", name, request_id="once")
        await broker.until(name, "RUNNING")
        assert state_of(await broker.verb("Stop", name, request_id="once")) == "RUNNING"
        assert state_of(await broker.get(name)) == "RUNNING"
        refusal = await refused(broker.verb("Stop", name, request_id="once", force=True))
        assert (refusal.reason, refusal.metadata["request_id"]) == ("REQUEST_ID_REUSED", "once")
        await broker.verb("Stop", name, request_id="twice")
        await broker.until(name, "STOPPED")


async def test_a_refused_verb_leaves_its_id_free(tmp_path: Path) -> None:
    async with running(tmp_path) as broker:
        name = (await broker.until((await broker.create()).name, "RUNNING")).name
        await broker.verb("Pause", name)
        await broker.until(name, "PAUSED")
        assert (await refused(broker.verb("Stop", name, request_id="once"))).reason == "STATE_FORBIDS"
        await broker.verb("Unpause", name)
        await broker.until(name, "RUNNING")
        assert state_of(await broker.verb("Stop", name, request_id="once")) == "STOPPING"
        await broker.until(name, "STOPPED")


async def test_an_id_on_a_verb_comes_before_its_etag(tmp_path: Path) -> None:
    """The etag of the first call has gone by when the call is sent again."""
    async with running(tmp_path) as broker:
        workspace = await broker.until((await broker.create()).name, "RUNNING")
        for _ in range(2):
            await broker.verb("Terminate", workspace.name, request_id="once", etag=workspace.etag)
        await broker.until(workspace.name, "TERMINATED")
        await broker.verb("Terminate", workspace.name, request_id="once", etag=workspace.etag)


async def test_ids_on_update_and_save(tmp_path: Path) -> None:
    async with running(tmp_path) as broker:
        name = (await broker.until((await broker.create()).name, "RUNNING")).name
        await updated(broker, pb.Workspace(name=name, display_name="a"), "display_name", request_id="once")
        await updated(broker, pb.Workspace(name=name, display_name="b"), "display_name", request_id="twice")
        late = await updated(broker, pb.Workspace(name=name, display_name="a"), "display_name", request_id="once")
        assert late.display_name == "b"
        other = updated(broker, pb.Workspace(name=name, display_name="c"), "display_name", request_id="once")
        assert (await refused(other)).reason == "REQUEST_ID_REUSED"

        request = api.SaveNodeRequest(target=api.Target(name=name, request_id="once"), image_name="mine")
        await broker.workspaces.SaveNode(request)
        await broker.until(name, "RUNNING")
        revision = (await broker.get(name)).revision
        await broker.workspaces.SaveNode(request)
        assert (await broker.get(name)).revision == revision
        request.image_name = "other"
        assert (await refused(broker.workspaces.SaveNode(request))).reason == "REQUEST_ID_REUSED"


@pytest.mark.parametrize("vms", ['world = "restart"', 'state_file = "lab.jsonl"'])
async def test_ids_survive_a_restart(tmp_path: Path, vms: str) -> None:
    configuration = LAB.replace('backend = "simulator"\n', f'backend = "simulator"\n{vms}\n')
    if "world" in vms:
        configuration = configuration.replace("restart", tmp_path.as_posix())  # no other test's
    async with running(tmp_path, configuration) as broker:
        first = await broker.create(workspace_id="ws", request_id="once")
        await broker.until(first.name, "RUNNING")
        await broker.verb("Stop", first.name, request_id="stop")
        await broker.until(first.name, "STOPPED")
        token = await broker.workspaces.ListWorkspaces(api.ListWorkspacesRequest(parent=TENANT))
    async with running(tmp_path, configuration) as broker:
        again = await broker.create(workspace_id="ws", request_id="once")
        assert (again.uid, state_of(again)) == (first.uid, "STOPPED")
        assert (await refused(broker.create(workspace_id="ws2", request_id="once"))).reason == "REQUEST_ID_REUSED"
        await broker.verb("Start", first.name, request_id="start")
        await broker.until(first.name, "RUNNING")
        assert state_of(await broker.verb("Stop", first.name, request_id="stop")) == "RUNNING"
        assert len(broker.backend().vms) == 1
        assert await held(broker) == [(first.name, 0, "lab-host-1")]
        assert (await broker.get(first.name)).revision > token.revision  # revisions go on


async def test_a_cancelled_call_is_found_again_by_its_id(tmp_path: Path) -> None:
    async with running(tmp_path) as broker:
        request = api.CreateWorkspaceRequest(parent=TENANT, workspace=small(), request_id="once")
        for _ in range(20):
            call = broker.workspaces.CreateWorkspace(request)
            await asyncio.sleep(0)
            call.cancel()
        answer = await broker.workspaces.CreateWorkspace(request)
        await broker.until(answer.workspace.name, "RUNNING")
        assert [each.name for each in await listed(broker)] == [answer.workspace.name]
        assert len(broker.backend().vms) == 1
