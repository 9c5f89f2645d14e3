"""`buf curl` by reflection: list, create, a refusal with its details, a watch stream."""

from __future__ import annotations

import pytest
from google.rpc import error_details_pb2 as rpc
from workspacebroker.v1 import errors_pb2
from workspacebroker.v1 import pool_service_pb2 as pools_pb
from workspacebroker.v1 import resources_pb2 as pb
from workspacebroker.v1 import tenant_service_pb2 as tenants_pb
from workspacebroker.v1 import workspace_service_pb2 as workspaces_pb

from tests.support import buf
from tests.support.process import BrokerProcess

TENANT = "tenants/buf"
SMALL = {"node_sets": [{"count": 1, "instance_type": "small"}]}
OUR_FILES = (workspaces_pb, pools_pb, tenants_pb)


def test_reflection_lists_every_service_and_method(lab: BrokerProcess) -> None:
    services = [service for file in OUR_FILES for service in file.DESCRIPTOR.services_by_name.values()]
    listed = buf.lines(lab.port, "--list-services")
    assert {service.full_name for service in services} | {"grpc.health.v1.Health"} <= set(listed)
    methods = {f"{service.full_name}/{method.name}" for service in services for method in service.methods}
    assert methods <= set(buf.lines(lab.port, "--list-methods"))


def test_lists(lab: BrokerProcess) -> None:
    (pool,) = buf.call(lab.port, "PoolService.ListPools", {})["pools"]
    assert (pool["name"], pool["backend"], pool["state"]) == ("pools/lab", "simulator", "STATE_ACTIVE")
    assert pool["instanceTypes"][0]["name"] == "small"
    hosts = buf.call(lab.port, "PoolService.ListHosts", {"parent": "pools/lab"})["hosts"]
    assert len(hosts) == 100
    assert hosts[0]["attributes"]["arch"] == {"stringValue": "x86_64"}


def test_creates_and_lists_what_it_created(lab: BrokerProcess) -> None:
    request = {"parent": TENANT, "workspace_id": "made", "workspace": SMALL, "request_id": "buf-1"}
    made = buf.call(lab.port, "WorkspaceService.CreateWorkspace", request)["workspace"]
    assert made["name"] == f"{TENANT}/workspaces/made"
    waited = buf.call(lab.port, "WorkspaceService.WaitWorkspace", {"name": made["name"], "states": ["STATE_RUNNING"]})
    assert waited["reached"]
    again = buf.call(lab.port, "WorkspaceService.CreateWorkspace", request)["workspace"]
    assert again["uid"] == made["uid"]
    listed = buf.call(lab.port, "WorkspaceService.ListWorkspaces", {"parent": TENANT})["workspaces"]
    assert [workspace["uid"] for workspace in listed] == [made["uid"]]


def test_a_refused_placement_arrives_with_its_details(lab: BrokerProcess) -> None:
    huge = {"node_sets": [{"count": 1, "amounts": {"amounts": {"cpu": "9000", "memory": "1024"}}}]}
    with pytest.raises(buf.Refused) as refused:
        buf.call(lab.port, "WorkspaceService.CreateWorkspace", {"parent": TENANT, "workspace": huge})
    refusal = refused.value.refusal
    assert (refusal.code, refusal.exit_code) == ("failed_precondition", 9 << 3)
    assert refusal.types == ["google.rpc.ErrorInfo", "workspacebroker.v1.PlacementFailure"]
    info = refusal.detail(rpc.ErrorInfo)
    assert (info.reason, info.domain) == ("NEVER_FITS", "workspacebroker")
    pool, host, *_ = refusal.detail(errors_pb2.PlacementFailure).verdicts
    assert (pool.resource_name, pool.outcome) == ("pools/lab", pb.PlacementVerdict.OUTCOME_NEVER)
    assert host.resource_name.startswith("pools/lab/hosts/")
    (reason,) = host.reasons
    assert reason.code == pb.PlacementVerdict.Reason.CODE_INSUFFICIENT_RESOURCE
    assert (reason.resource, reason.requested, reason.available) == ("cpu", 9000, 8000)


def test_bad_fields_are_all_named(lab: BrokerProcess) -> None:
    bad = {"node_sets": [{"count": -1, "instance_type": "smal"}]}
    with pytest.raises(buf.Refused) as refused:
        buf.call(lab.port, "WorkspaceService.CreateWorkspace", {"parent": "tenants/Buf", "workspace": bad})
    refusal = refused.value.refusal
    assert refusal.code == "invalid_argument"
    violations = {each.field: each.reason for each in refusal.detail(rpc.BadRequest).field_violations}
    assert violations == {
        "parent": "BAD_CHARACTERS",
        "workspace.node_sets[0].count": "OUT_OF_RANGE",
        "workspace.node_sets[0].instance_type": "UNKNOWN_VALUE",
    }


def test_a_watch_streams_changes_and_resumes(lab: BrokerProcess) -> None:
    method, tenant = "WorkspaceService.WatchWorkspaces", "tenants/buf-watch"
    start = int(buf.call(lab.port, "WorkspaceService.ListWorkspaces", {"parent": tenant}).get("revision", 0))
    buf.call(lab.port, "WorkspaceService.CreateWorkspace", {"parent": tenant, "workspace": SMALL})
    with buf.stream(lab.port, method, {"parent": tenant, "after_revision": start}) as changes:
        seen = []
        for change in changes:
            seen.append(change)
            if change.get("workspace", {}).get("state") == "STATE_RUNNING":
                break
    revisions = [int(change["revision"]) for change in seen]
    assert revisions == sorted(set(revisions))
    assert seen[0]["workspace"]["state"] == "STATE_STARTING"
    assert seen[-1]["previousState"] == "STATE_STARTING"
    with buf.stream(lab.port, method, {"parent": tenant, "after_revision": revisions[0]}) as rest:
        assert int(next(rest)["revision"]) == revisions[1]


def test_health_is_open_to_it_too(lab: BrokerProcess) -> None:
    for service in ("", "workspacebroker.v1.WorkspaceService", "pool:lab"):
        answer = buf.call(lab.port, "grpc.health.v1.Health.Check", {"service": service})
        assert answer == {"status": "SERVING"}
    with pytest.raises(buf.Refused) as refused:
        buf.call(lab.port, "grpc.health.v1.Health.Check", {"service": "pool:lap"})
    assert refused.value.refusal.code == "not_found"
