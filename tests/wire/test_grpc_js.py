"""`@grpc/grpc-js` with proto-loader on Node.js: list, create, a refusal decoded, a watch stream, a retry."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support import node
from tests.support.process import BrokerProcess

TENANT = "tenants/js"
SMALL = {"node_sets": [{"count": 1, "instance_type": "small"}]}


@pytest.fixture(autouse=True)
def _grpc_js() -> None:
    node.require_grpc_js()


def request(workspace_id: str, workspace: dict[str, Any] = SMALL, **fields: Any) -> dict[str, Any]:
    return {"parent": TENANT, "workspace_id": workspace_id, "workspace": workspace, **fields}


def test_lists(lab: BrokerProcess) -> None:
    seen = node.run(lab.port, "list")
    assert [(pool["name"], pool["state"]) for pool in seen["pools"]] == [("pools/lab", "STATE_ACTIVE")]
    assert seen["pools"][0]["total"]["amounts"]["cpu"] == 800_000


def test_creates_and_waits(lab: BrokerProcess) -> None:
    waited = node.run(lab.port, "create", request=request("made"))
    assert waited["reached"]
    assert waited["workspace"]["name"] == f"{TENANT}/workspaces/made"
    assert waited["workspace"]["nodes"][0]["host"].startswith("pools/lab/hosts/")


def test_a_refused_placement_is_decoded(lab: BrokerProcess) -> None:
    huge = {"node_sets": [{"count": 1, "amounts": {"amounts": {"cpu": 9000, "memory": 1024}}}]}
    refused = node.run(lab.port, "refuse", request=request("huge", huge))
    assert refused["grpcCode"] == refused["code"] == "FAILED_PRECONDITION"
    info = refused["details"]["google.rpc.ErrorInfo"]
    assert (info["reason"], info["domain"]) == ("NEVER_FITS", "workspacebroker")
    pool, host, *_ = refused["details"]["workspacebroker.v1.PlacementFailure"]["verdicts"]
    assert (pool["resource_name"], pool["outcome"]) == ("pools/lab", "OUTCOME_NEVER")
    (reason,) = host["reasons"]
    assert (reason["code"], reason["resource"]) == ("CODE_INSUFFICIENT_RESOURCE", "cpu")
    assert (reason["requested"], reason["available"]) == (9000, 8000)


def test_bad_fields_are_named(lab: BrokerProcess) -> None:
    refused = node.run(lab.port, "refuse", request=request("Bad Id"))
    assert refused["code"] == "INVALID_ARGUMENT"
    (violation,) = refused["details"]["google.rpc.BadRequest"]["field_violations"]
    assert (violation["field"], violation["reason"]) == ("workspace_id", "BAD_CHARACTERS")


def test_the_same_request_id_is_the_same_workspace(lab: BrokerProcess) -> None:
    tried = node.run(lab.port, "retry", request=request("", request_id="js-1"))
    assert tried["first"]["uid"] == tried["again"]["uid"]
    assert tried["other"]["code"] == "ALREADY_EXISTS"
    assert tried["other"]["details"]["google.rpc.ErrorInfo"]["reason"] == "REQUEST_ID_REUSED"
    assert tried["other"]["details"]["google.rpc.ResourceInfo"]["resource_name"] == tried["first"]["name"]


def test_a_watch_streams_until_it_is_cancelled(lab: BrokerProcess) -> None:
    changes = node.run(lab.port, "watch", request=request("watched"))["changes"]
    ours = [change for change in changes if (change["workspace"] or {}).get("name", "").endswith("/watched")]
    assert [change["workspace"]["state"] for change in ours][-1] == "STATE_RUNNING"
    revisions = [change["revision"] for change in changes]
    assert revisions == sorted(revisions)
