"""Each reason that a caller can meet: its gRPC code, its ErrorInfo, its details, and whether the same call helps."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from workspacebroker.v1 import pool_service_pb2 as pool_api
from workspacebroker.v1 import resources_pb2 as pb
from workspacebroker.v1 import tenant_service_pb2 as tenant_api
from workspacebroker.v1 import workspace_service_pb2 as api

from broker.core.clock import ManualClock
from broker.workspaces import Workspaces
from tests.support.api import (
    Refusal,
    at,
    by_host,
    by_pool,
    codes_of,
    created,
    ended,
    footprint,
    lasting,
    outcome_of,
    pool,
    refused,
    site,
    taken_apart,
    updated,
)
from tests.support.broker import TENANT, running, small

START = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
WS = f"{TENANT}/workspaces/ws"


def is_refusal(refusal: Refusal, code: str, reason: str, details: Iterable[str] = ()) -> None:
    """The row of the table: code, reason, details, domain, and words for people."""
    assert (refusal.code, refusal.reason, refusal.domain) == (code, reason, "workspacebroker")
    assert set(refusal.details) == set(details)
    assert refusal.message


def waits(refusal: Refusal) -> float:
    """Seconds that RetryInfo says to wait."""
    return float(refusal.details["RetryInfo"].retry_delay.ToTimedelta().total_seconds())


async def test_name_taken(tmp_path: Path) -> None:
    async with running(tmp_path) as broker:
        await broker.create(workspace_id="ws")
        refusal = await refused(broker.create(workspace_id="ws"))
        is_refusal(refusal, "ALREADY_EXISTS", "NAME_TAKEN", ["ResourceInfo"])
        info = refusal.details["ResourceInfo"]
        assert (info.resource_type, info.resource_name) == ("Workspace", WS)


async def test_a_name_stays_taken_after_the_end(tmp_path: Path) -> None:
    """As long as the record is kept."""
    async with running(tmp_path) as broker:
        await ended(broker, (await broker.create(workspace_id="ws")).name)
        assert (await refused(broker.create(workspace_id="ws"))).reason == "NAME_TAKEN"


async def test_not_found(tmp_path: Path) -> None:
    async with running(tmp_path, site(pool("lab"), rest="[tenants.default]")) as broker:
        gone = [
            (broker.get(WS), "Workspace", WS),
            (broker.verb("Stop", WS), "Workspace", WS),
            (updated(broker, pb.Workspace(name=WS), "display_name"), "Workspace", WS),
            (broker.workspaces.WaitWorkspace(api.WaitWorkspaceRequest(name=WS)), "Workspace", WS),
            (
                broker.workspaces.SaveNode(api.SaveNodeRequest(target=api.Target(name=WS), image_name="x")),
                "Workspace",
                WS,
            ),
            (broker.pools.GetPool(pool_api.GetPoolRequest(name="pools/lap")), "Pool", "pools/lap"),
            (broker.pools.RefreshPool(pool_api.RefreshPoolRequest(name="pools/lap")), "Pool", "pools/lap"),
            (
                broker.pools.UpdatePool(
                    pool_api.UpdatePoolRequest(pool=pb.Pool(name="pools/lap"), update_mask={"paths": ["draining"]})
                ),
                "Pool",
                "pools/lap",
            ),
            (broker.pools.ListHosts(pool_api.ListHostsRequest(parent="pools/lap")), "Pool", "pools/lap"),
            (broker.pools.ListStrays(pool_api.ListStraysRequest(parent="pools/lap")), "Pool", "pools/lap"),
            (broker.pools.ListImages(pool_api.ListImagesRequest(parent="pools/lap")), "Pool", "pools/lap"),
            (broker.pools.ListNetworks(pool_api.ListNetworksRequest(parent="pools/lap")), "Pool", "pools/lap"),
            (
                broker.pools.DrainHost(pool_api.DrainHostRequest(name="pools/lab/hosts/x")),
                "Host",
                "pools/lab/hosts/x",
            ),
            (broker.tenants.GetTenant(tenant_api.GetTenantRequest(name="tenants/no")), "Tenant", "tenants/no"),
            (created(broker, small(), parent="tenants/no"), "Tenant", "tenants/no"),
            (
                broker.workspaces.ListWorkspaces(api.ListWorkspacesRequest(parent="tenants/no")),
                "Tenant",
                "tenants/no",
            ),
            (
                broker.workspaces.WatchWorkspaces(api.WatchWorkspacesRequest(parent="tenants/no")).read(),
                "Tenant",
                "tenants/no",
            ),
        ]
        for call, kind, name in gone:
            refusal = await refused(call)
            is_refusal(refusal, "NOT_FOUND", "NOT_FOUND", ["ResourceInfo"])
            info = refusal.details["ResourceInfo"]
            assert (info.resource_type, info.resource_name) == (kind, name)


async def test_etag_mismatch_tells_the_etag_and_reading_again_helps(tmp_path: Path) -> None:
    async with running(tmp_path) as broker:
        first = await broker.until((await broker.create(workspace_id="ws")).name, "RUNNING")
        second = await updated(broker, pb.Workspace(name=WS, display_name="x", etag=first.etag), "display_name")
        assert second.etag != first.etag
        for stale in (
            updated(broker, pb.Workspace(name=WS, display_name="y", etag=first.etag), "display_name"),
            broker.verb("Stop", WS, etag=first.etag),
            broker.verb("Terminate", WS, etag=first.etag),
        ):
            refusal = await refused(stale)
            is_refusal(refusal, "ABORTED", "ETAG_MISMATCH", ["ResourceInfo"])
            assert refusal.metadata["etag"] == second.etag
        assert (await broker.get(WS)).display_name == "x"
        await broker.verb("Stop", WS, etag=refusal.metadata["etag"])


async def test_generation_mismatch_and_checking_again_helps(tmp_path: Path) -> None:
    async with running(tmp_path) as broker:
        answer = await broker.workspaces.CheckPlacement(api.CheckPlacementRequest(parent=TENANT, workspace=small()))
        judged = dict(answer.pool_generations)
        await broker.create()
        refusal = await refused(created(broker, small(), if_pool_generations=judged))
        is_refusal(refusal, "ABORTED", "GENERATION_MISMATCH", ["ResourceInfo"])
        assert refusal.metadata["expected"] == str(judged["lab"])
        assert refusal.details["ResourceInfo"].resource_name == "pools/lab"
        again = await broker.workspaces.CheckPlacement(api.CheckPlacementRequest(parent=TENANT, workspace=small()))
        assert refusal.metadata["generation"] == str(again.pool_generations["lab"])
        await created(broker, small(), if_pool_generations=dict(again.pool_generations))


async def test_no_capacity_tells_when_and_it_comes_true(tmp_path: Path) -> None:
    """The earliest instant is the end of the shorter lease: one host of its room is enough."""
    clock = ManualClock(START)
    async with running(tmp_path, site(pool("lab", hosts=2, memory=4096)), clock=clock) as broker:
        for hours in (3, 2):
            workspace = small(memory=4096)
            workspace.terms.duration.CopyFrom(lasting(hours=hours))
            name = (await created(broker, workspace, workspace_id=f"ws{hours}")).name
            await broker.until(name, "RUNNING")
        end = (await broker.get(f"{TENANT}/workspaces/ws2")).end_time.ToDatetime(UTC)
        before = await footprint(broker)
        asked = clock.now()
        refusal = await refused(broker.create(memory=2048))
        is_refusal(refusal, "RESOURCE_EXHAUSTED", "NO_CAPACITY", ["PlacementFailure", "RetryInfo"])
        assert await footprint(broker) == before
        assert waits(refusal) == pytest.approx((end - asked).total_seconds(), abs=0.001)
        assert datetime.fromisoformat(refusal.metadata["earliest_start_time"]) == end
        verdict = by_pool(refusal.verdicts)["lab"]
        assert outcome_of(verdict) == "NOT_NOW"
        assert verdict.earliest_start_time.ToDatetime(UTC) == end
        reasons = {reason.resource: reason for reason in verdict.reasons}
        assert (reasons["memory"].requested, reasons["memory"].available) == (2048, 0)
        assert reasons["memory"].host_count == 2
        assert reasons["memory"].resolvable
        assert set(by_host(refusal.verdicts)) == {"lab-host-1", "lab-host-2"}
        await broker.until(f"{TENANT}/workspaces/ws2", "EXPIRED", step=120)
        await broker.create(memory=2048)


async def test_no_capacity_without_a_known_end_tells_no_time(tmp_path: Path) -> None:
    async with running(tmp_path, site(pool("lab", 'max_duration = "none"', hosts=1, memory=4096))) as broker:
        workspace = small(memory=4096)
        workspace.terms.open_ended = True
        await created(broker, workspace)
        refusal = await refused(broker.create(memory=2048))
        is_refusal(refusal, "RESOURCE_EXHAUSTED", "NO_CAPACITY", ["PlacementFailure"])
        assert not by_pool(refusal.verdicts)["lab"].HasField("earliest_start_time")
        assert "earliest_start_time" not in refusal.metadata


async def test_never_fits_names_every_host_though_the_sum_would_do(tmp_path: Path) -> None:
    """5 VMs of 2 GiB on 4 hosts of 3 GiB: 12 GiB in all, and never room for a fifth."""
    async with running(tmp_path, site(pool("lab", hosts=4, memory=3072))) as broker:
        before = await footprint(broker)
        refusal = await refused(broker.create(memory=2048, count=5))
        is_refusal(refusal, "FAILED_PRECONDITION", "NEVER_FITS", ["PlacementFailure"])
        verdict = by_pool(refusal.verdicts)["lab"]
        assert (outcome_of(verdict), verdict.nodes_fit, codes_of(verdict)) == ("NEVER", 4, {"GROUP"})
        assert (verdict.reasons[0].requested, verdict.reasons[0].available) == (5, 4)
        assert set(by_host(refusal.verdicts)) == {f"lab-host-{n}" for n in range(1, 5)}
        assert {each.nodes_fit for each in by_host(refusal.verdicts).values()} == {1}
        assert await footprint(broker) == before
        await broker.create(memory=2048, count=4)


async def test_quota_exceeded_names_each_limit_with_what_is_used(tmp_path: Path) -> None:
    limits = (
        "[tenants.default.limits]\nnodes = 3\ncpu = 2500\nworkspaces = 9\n"
        "[tenants.default.pool_limits.lab]\nmemory = 3000\n"
    )
    async with running(tmp_path, site(pool("lab"), rest=limits)) as broker:
        first = (await broker.create(count=2)).name
        await broker.until(first, "RUNNING")
        before = await footprint(broker)
        for call in (
            broker.create(count=2),
            broker.workspaces.CheckPlacement(api.CheckPlacementRequest(parent=TENANT, workspace=small(count=2))),
        ):
            refusal = await refused(call)
            is_refusal(refusal, "RESOURCE_EXHAUSTED", "QUOTA_EXCEEDED", ["QuotaFailure"])
            told = {
                (each.subject, each.quota_metric): (each.quota_value, dict(each.quota_dimensions))
                for each in refusal.details["QuotaFailure"].violations
            }
            assert told == {
                (TENANT, "cpu"): (2500, {"used": "2000", "requested": "2000"}),
                (TENANT, "nodes"): (3, {"used": "2", "requested": "2"}),
                (f"{TENANT}/pools/lab", "memory"): (3000, {"used": "2048", "requested": "2048"}),
            }
        assert await footprint(broker) == before
        await ended(broker, first)  # something is given back
        await broker.create(count=2)


async def test_pool_draining(tmp_path: Path) -> None:
    async with running(tmp_path) as broker:
        await broker.pools.UpdatePool(
            pool_api.UpdatePoolRequest(
                pool=pb.Pool(name="pools/lab", draining=True), update_mask={"paths": ["draining"]}
            )
        )
        refusal = await refused(broker.create(pool="lab"))
        is_refusal(refusal, "FAILED_PRECONDITION", "POOL_DRAINING", ["ResourceInfo"])
        assert refusal.details["ResourceInfo"].resource_name == "pools/lab"


@pytest.mark.parametrize(
    ("verb", "capability", "options"),
    [
        ("Pause", "PAUSE", {}),
        ("Suspend", "SUSPEND", {}),
        ("Stop", "RELEASE", {"release_capacity": True}),
        ("Reboot", "REBOOT", {}),
    ],
)
async def test_capability_missing(tmp_path: Path, verb: str, capability: str, options: dict[str, Any]) -> None:
    async with running(tmp_path, site(pool("lab", 'capabilities = ["STOP"]'))) as broker:
        workspace = await broker.until((await broker.create()).name, "RUNNING")
        refusal = await refused(broker.verb(verb, workspace.name, **options))
        is_refusal(refusal, "UNIMPLEMENTED", "CAPABILITY_MISSING", ["ResourceInfo"])
        assert refusal.metadata == {"capability": capability, "pool": "lab"}
        pool_message = (await broker.pools.GetPool(pool_api.GetPoolRequest(name="pools/lab"))).pool
        offered = {pb.Capability.Name(each).removeprefix("CAPABILITY_") for each in pool_message.capabilities}
        assert offered == {"STOP"}  # it said so beforehand
        assert (await broker.get(workspace.name)).etag == workspace.etag


async def test_backend_unreachable_but_what_needs_no_backend_is_taken(tmp_path: Path) -> None:
    settings = (
        'refresh_interval = "50ms"\nretry = { initial = "10ms" }\nbreaker = { failures = 2, probe_interval = "3s" }'
    )
    async with running(tmp_path, site(pool("lab", settings)), clock=ManualClock(START)) as broker:
        workspace = await broker.until((await broker.create(workspace_id="ws")).name, "RUNNING")
        broker.backend().by_hand.go_silent()
        await broker.eventually(
            lambda: broker.pools.GetPool(pool_api.GetPoolRequest(name="pools/lab")),
            lambda answer: answer.pool.state == pb.Pool.STATE_UNREACHABLE,
        )
        for call in (broker.verb("Stop", workspace.name), broker.create(pool="lab"), broker.create()):
            refusal = await refused(call)
            is_refusal(refusal, "UNAVAILABLE", "BACKEND_UNREACHABLE", ["RetryInfo"])
            assert waits(refusal) > 0
        assert (await broker.get(WS)).state == pb.Workspace.STATE_RUNNING  # as last seen
        await updated(broker, pb.Workspace(name=WS, display_name="x"), "display_name")
        assert (await broker.verb("Terminate", WS)).state == pb.Workspace.STATE_TERMINATING
        broker.backend().by_hand.come_back()
        await broker.until(WS, "TERMINATED", step=1)


async def test_state_forbids_says_which_verb_would_do(tmp_path: Path) -> None:
    async with running(tmp_path) as broker:
        workspace = await broker.until((await broker.create()).name, "RUNNING")
        await broker.verb("Pause", workspace.name)
        await broker.until(workspace.name, "PAUSED")
        refusal = await refused(broker.verb("Resume", workspace.name))
        is_refusal(refusal, "FAILED_PRECONDITION", "STATE_FORBIDS", ["PreconditionFailure"])
        violation = refusal.details["PreconditionFailure"].violations[0]
        assert (violation.type, violation.subject) == ("STATE", workspace.name)
        assert "unpause" in refusal.message.lower()
        await broker.verb("Unpause", workspace.name)


async def test_transition_under_way_names_it_and_goes_once_it_has_settled(tmp_path: Path) -> None:
    async with running(tmp_path, site(pool("lab", 'delays = { suspend = "60s" }')), clock=ManualClock(START)) as broker:
        workspace = await broker.until((await broker.create()).name, "RUNNING")
        await broker.verb("Suspend", workspace.name)
        refusal = await refused(broker.verb("Resume", workspace.name))
        is_refusal(refusal, "ABORTED", "TRANSITION_UNDER_WAY", ["ResourceInfo"])
        assert refusal.metadata["under_way"] == "SUSPENDING"
        assert refusal.details["ResourceInfo"].resource_name == workspace.name
        await broker.until(workspace.name, "SUSPENDED", step=5)
        await broker.verb("Resume", workspace.name)
        await broker.until(workspace.name, "RUNNING", step=5)


async def test_a_deadline_too_short_changes_nothing(tmp_path: Path) -> None:
    async with running(tmp_path) as broker:
        before = await footprint(broker)
        request = api.CreateWorkspaceRequest(parent=TENANT, workspace=small(), workspace_id="ws")
        with pytest.raises(grpc.aio.AioRpcError) as late:
            await broker.workspaces.CreateWorkspace(request, timeout=0.000_001)
        assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert await footprint(broker) == before


async def test_a_call_without_a_deadline_ends_by_the_brokers_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never(*_: object) -> None:
        await asyncio.Event().wait()

    async with running(tmp_path, site(pool("lab"), server='call_timeout = "50ms"')) as broker:
        monkeypatch.setattr(broker.broker.workspaces, "create", never)
        is_refusal(await refused(broker.create()), "DEADLINE_EXCEEDED", "DEADLINE_TOO_SHORT")


async def test_a_mistake_of_the_broker_keeps_its_words_to_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("a secret of the site")

    async with running(tmp_path) as broker:
        with monkeypatch.context() as patched:
            patched.setattr(Workspaces, "get", broken)
            refusal = await refused(broker.get(WS))
        is_refusal(refusal, "INTERNAL", "INTERNAL")
        assert "secret" not in refusal.message + str(refusal.metadata)
        assert refusal.metadata["error_id"] in refusal.message
        assert refusal.metadata["error_id"] in caplog.text
        assert "a secret of the site" in caplog.text
        await broker.create()  # it serves on


async def test_a_full_disk_refuses_and_keeps_nothing_until_there_is_room(tmp_path: Path) -> None:
    async with running(tmp_path) as broker:
        running_one = await broker.until((await broker.create(workspace_id="first")).name, "RUNNING")
        before = await footprint(broker)
        database: Any = broker.broker.store._db
        pages = database.execute("PRAGMA page_count").fetchone()[0]
        database.execute(f"PRAGMA max_page_count = {pages}")
        big = small(display_name="ä" * 256, labels={f"k{n}": "v" * 250 for n in range(60)})
        refusals = []
        for _ in range(20):
            try:
                await created(broker, big, request_id="again")
            except grpc.aio.AioRpcError as error:
                refusals.append(taken_apart(error))
                break
        is_refusal(refusals[0], "UNAVAILABLE", "STORE_UNAVAILABLE", ["RetryInfo"])
        assert waits(refusals[0]) > 0
        after = await footprint(broker)
        assert [*after[:3], *after[4:]] == [*before[:3], *before[4:]]  # the generation may have moved on
        assert (await broker.get(running_one.name)).etag == running_one.etag  # it can be read all the same
        database.execute("PRAGMA max_page_count = 1000000")
        again = await created(broker, big, request_id="again")  # the very same request
        await broker.until(again.name, "RUNNING")


async def test_shutting_down(tmp_path: Path) -> None:
    async with running(tmp_path) as broker:
        before = await footprint(broker)
        broker.broker._calls.stopping = True
        refusal = await refused(broker.create())
        is_refusal(refusal, "UNAVAILABLE", "SHUTTING_DOWN", ["RetryInfo"])
        assert waits(refusal) > 0
        watch = broker.workspaces.WatchWorkspaces(api.WatchWorkspacesRequest(parent=TENANT))
        is_refusal(await refused(watch.read()), "UNAVAILABLE", "SHUTTING_DOWN", ["RetryInfo"])
        broker.broker._calls.stopping = False
        assert await footprint(broker) == before


async def test_a_watcher_learns_at_once_that_the_broker_shuts_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def is_stopped() -> None:
        pass

    async with running(tmp_path) as broker:
        watch = broker.workspaces.WatchWorkspaces(api.WatchWorkspacesRequest(parent=TENANT))
        await broker.create()
        await watch.read()
        begun = asyncio.get_running_loop().time()
        stopping = asyncio.create_task(broker.broker.stop())
        refusal = None
        while refusal is None:
            try:
                assert await watch.read() is not grpc.aio.EOF
            except grpc.aio.AioRpcError as error:
                refusal = taken_apart(error)
        await stopping
        monkeypatch.setattr(broker.broker, "stop", is_stopped)
        is_refusal(refusal, "UNAVAILABLE", "SHUTTING_DOWN", ["RetryInfo"])
        assert asyncio.get_running_loop().time() - begun < 2.0


async def test_revision_compacted(tmp_path: Path) -> None:
    async with running(tmp_path, site(pool("lab"), server="watch_history = 3")) as broker:
        name = (await broker.create(workspace_id="ws")).name
        for number in range(5):
            await updated(broker, pb.Workspace(name=name, display_name=str(number)), "display_name")
        for revision in (1, 10**9):
            watch = broker.workspaces.WatchWorkspaces(
                api.WatchWorkspacesRequest(parent=TENANT, after_revision=revision)
            )
            refusal = await refused(watch.read())
            is_refusal(refusal, "OUT_OF_RANGE", "REVISION_COMPACTED")
            assert int(refusal.metadata["compacted_revision"]) > 1
        listed = await broker.workspaces.ListWorkspaces(api.ListWorkspacesRequest(parent=TENANT))
        watch = broker.workspaces.WatchWorkspaces(
            api.WatchWorkspacesRequest(parent=TENANT, after_revision=listed.revision)
        )
        await updated(broker, pb.Workspace(name=name, display_name="last"), "display_name")
        seen = await watch.read()
        assert seen.workspace.display_name == "last"
        watch.cancel()


async def test_request_id_reused(tmp_path: Path) -> None:
    async with running(tmp_path) as broker:
        await broker.create(workspace_id="ws", request_id="once")
        refusal = await refused(broker.create(workspace_id="ws2", request_id="once"))
        is_refusal(refusal, "ALREADY_EXISTS", "REQUEST_ID_REUSED", ["ResourceInfo"])
        assert refusal.metadata["request_id"] == "once"
        assert refusal.details["ResourceInfo"].resource_name == WS


async def test_a_failure_that_comes_later_is_told_like_one_that_comes_at_once(tmp_path: Path) -> None:
    """last_error has the reason, the domain and the details that a failed call would carry."""
    faults = 'faults = [{ step = "allocate", kind = "rejected" }]'
    async with running(tmp_path, site(pool("lab", faults))) as broker:
        workspace = await broker.until((await broker.create()).name, "FAILED")
        assert workspace.last_error.code == grpc.StatusCode.FAILED_PRECONDITION.value[0]
        kinds = [packed.TypeName() for packed in workspace.last_error.details]
        assert kinds == ["google.rpc.ErrorInfo", "google.rpc.ResourceInfo"]
        assert b"BACKEND_REJECTED" in workspace.last_error.details[0].value


async def test_a_start_ahead_that_cannot_be_kept_is_refused(tmp_path: Path) -> None:
    clock = ManualClock(START)
    async with running(tmp_path, site(pool("lab", hosts=1, memory=4096)), clock=clock) as broker:
        first = small(memory=4096)
        first.terms.start_time.CopyFrom(at(START + timedelta(hours=2)))
        first.terms.duration.CopyFrom(lasting(hours=1))
        await created(broker, first)
        second = small(memory=1024)
        second.terms.start_time.CopyFrom(at(START + timedelta(hours=2, minutes=30)))
        second.terms.duration.CopyFrom(lasting(hours=1))
        refusal = await refused(created(broker, second))
        is_refusal(refusal, "RESOURCE_EXHAUSTED", "NO_CAPACITY", ["PlacementFailure", "RetryInfo"])
        assert datetime.fromisoformat(refusal.metadata["earliest_start_time"]) == START + timedelta(hours=3)


async def test_details_of_a_large_refusal_arrive(tmp_path: Path) -> None:
    """1,000 hosts make a status that still fits a trailer."""
    async with running(tmp_path, site(pool("lab", hosts=1000, memory=1024))) as broker:
        refusal = await refused(broker.create(memory=2048))
        is_refusal(refusal, "FAILED_PRECONDITION", "NEVER_FITS", ["PlacementFailure"])
        assert refusal.details["PlacementFailure"].ByteSize() <= 4096
        assert by_pool(refusal.verdicts)["lab"].reasons[0].host_count == 1000
        assert len(by_host(refusal.verdicts)) > 10
