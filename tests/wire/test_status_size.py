"""A refusal arrives whole at every client, however many hosts or fields it could speak of.

Statuses travel in trailers, and clients bound those: a Python client loses all details past its bound.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf.json_format import ParseDict
from google.rpc import error_details_pb2 as rpc
from workspacebroker.v1 import errors_pb2
from workspacebroker.v1 import workspace_service_pb2 as api
from workspacebroker.v1 import workspace_service_pb2_grpc as workspaces_grpc

from tests.support import buf, node
from tests.support.broker import details_of
from tests.support.process import BrokerProcess, broker_process

TENANT = "tenants/default"
BOUND = 4096
HOSTS = 1000
LONG = "ein ziemlich langer Hostname, wie ihn sich nur ein Würfel ausdenkt, " * 2  # percent-encoded in names

CONFIGURATION = f"""
[server]
listen = "127.0.0.1:0"
[pools.big]
backend = "simulator"
[[pools.big.hosts]]
name = "{LONG[:120]}"
count = {HOSTS}
cpu = 8000
memory = 16384
[pools.small]
backend = "simulator"
[[pools.small.hosts]]
name = "node"
count = {HOSTS}
cpu = 8000
memory = 16384
"""


def one(cpu: int, pool: str) -> dict[str, Any]:
    """A request for one node, as JSON, which buf, grpc-js and protobuf all read."""
    nodes = {"count": 1, "amounts": {"amounts": {"cpu": cpu, "memory": 1024}}}
    return {"parent": TENANT, "workspace": {"pool": pool, "node_sets": [nodes]}}


def message(request: dict[str, Any]) -> api.CreateWorkspaceRequest:
    return ParseDict(request, api.CreateWorkspaceRequest())


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerProcess]:
    """Two pools of 1,000 hosts, on each a VM that leaves no room for another."""
    with broker_process(tmp_path_factory.mktemp("large"), CONFIGURATION) as process:
        with grpc.insecure_channel(process.address) as channel:
            stub: Any = workspaces_grpc.WorkspaceServiceStub(channel)
            for pool in ("small", "big"):
                part = one(7500, pool)
                part["workspace"]["node_sets"][0]["count"] = HOSTS // 10
                for _ in range(10):
                    stub.CreateWorkspace(message(part), timeout=60)
        yield process


CASES = [
    ("small", 9000, "NEVER_FITS", "FAILED_PRECONDITION"),
    ("small", 1000, "NO_CAPACITY", "RESOURCE_EXHAUSTED"),
    ("big", 9000, "NEVER_FITS", "FAILED_PRECONDITION"),
    ("big", 1000, "NO_CAPACITY", "RESOURCE_EXHAUSTED"),
    ("", 9000, "NEVER_FITS", "FAILED_PRECONDITION"),
    ("", 1000, "NO_CAPACITY", "RESOURCE_EXHAUSTED"),
]
cases = pytest.mark.parametrize(("pool", "cpu", "reason", "code"), CASES)


def check(failure: errors_pb2.PlacementFailure, pool: str) -> None:
    """The pools come first, and then some of the hosts."""
    assert failure.ByteSize() <= BOUND
    names = [verdict.resource_name for verdict in failure.verdicts]
    pools = {f"pools/{pool}"} if pool else {"pools/small", "pools/big"}
    assert set(names[: len(pools)]) == pools
    assert len(names) > len(pools)
    assert all("/hosts/" in name for name in names[len(pools) :])
    for verdict in failure.verdicts[: len(pools)]:
        assert verdict.reasons[0].host_count == HOSTS  # all hosts count, listed or not


@cases
async def test_at_grpc_aio(large: BrokerProcess, pool: str, cpu: int, reason: str, code: str) -> None:
    async with grpc.aio.insecure_channel(large.address) as channel:
        stub: Any = workspaces_grpc.WorkspaceServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.CreateWorkspace(message(one(cpu, pool)), timeout=20)
    error = refused.value
    assert error.code().name == code
    assert details_of(error, rpc.ErrorInfo)[0].reason == reason
    assert bool(details_of(error, rpc.RetryInfo)) is (reason == "NO_CAPACITY")
    check(details_of(error, errors_pb2.PlacementFailure)[0], pool)


@cases
def test_at_buf_curl(large: BrokerProcess, pool: str, cpu: int, reason: str, code: str) -> None:
    with pytest.raises(buf.Refused) as refused:
        buf.call(large.port, "WorkspaceService.CreateWorkspace", one(cpu, pool))
    refusal = refused.value.refusal
    assert refusal.code == code.lower()
    assert refusal.detail(rpc.ErrorInfo).reason == reason
    check(refusal.detail(errors_pb2.PlacementFailure), pool)


@cases
def test_at_grpc_js(large: BrokerProcess, pool: str, cpu: int, reason: str, code: str) -> None:
    node.require_grpc_js()
    refused = node.run(large.port, "refuse", request=one(cpu, pool))
    assert refused["grpcCode"] == code
    assert refused["details"]["google.rpc.ErrorInfo"]["reason"] == reason
    names = [
        verdict["resource_name"] for verdict in refused["details"]["workspacebroker.v1.PlacementFailure"]["verdicts"]
    ]
    assert names[0].startswith("pools/")
    assert "/hosts/" in names[-1]


def bad_everywhere() -> dict[str, Any]:
    """More violations, with longer paths, than a trailer bears."""
    bad = "Ungültig " * 20
    nodes = {
        "name": bad,
        "count": -1,
        "image": "\t" + bad,
        "disks": [{"image": "\n" + bad, "device": bad} for _ in range(16)],
        "nics": [{"network": "\0" + bad, "addresses": [bad] * 16} for _ in range(16)],
    }
    return {"parent": bad, "workspace_id": bad, "workspace": {"labels": {bad: bad}, "node_sets": [nodes]}}


def test_three_hundred_bad_fields_arrive_at_buf_curl(large: BrokerProcess) -> None:
    request = bad_everywhere()
    with pytest.raises(buf.Refused) as refused:
        buf.call(large.port, "WorkspaceService.CreateWorkspace", request)
    violations = refused.value.refusal.detail(rpc.BadRequest).field_violations
    assert violations[0].field
    assert "further violations" in violations[-1].description


def test_three_hundred_bad_fields_arrive_at_grpc_js(large: BrokerProcess) -> None:
    node.require_grpc_js()
    seen = node.run(large.port, "refuse", request=bad_everywhere())
    assert seen["code"] == "INVALID_ARGUMENT"
    assert "further violations" in seen["details"]["google.rpc.BadRequest"]["field_violations"][-1]["description"]


def test_check_placement_gives_what_the_refusal_left_out(large: BrokerProcess) -> None:
    checked = buf.call(large.port, "WorkspaceService.CheckPlacement", {**one(1000, "small"), "include_hosts": True})
    assert checked["outcome"] == "OUTCOME_NOT_NOW"
    hosts = [verdict for verdict in checked["verdicts"] if "/hosts/" in verdict["resourceName"]]
    assert len(hosts) == HOSTS
