"""What the API's scenario tests share: configurations, refusals taken apart, and what a broker holds."""

from __future__ import annotations

from collections.abc import Awaitable, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import error_details_pb2 as rpc
from grpc_status import rpc_status
from workspacebroker.v1 import errors_pb2
from workspacebroker.v1 import pool_service_pb2 as pool_api
from workspacebroker.v1 import resources_pb2 as pb
from workspacebroker.v1 import tenant_service_pb2 as tenant_api
from workspacebroker.v1 import workspace_service_pb2 as api

from tests.support.broker import TENANT, Running

EVERY_STATE: tuple[Any, ...] = tuple(number for number in pb.Workspace.State.values() if number)
SERVER = '[server]\nlisten = "127.0.0.1:0"\n'


def pool(
    name: str, settings: str = "", *, hosts: int = 4, cpu: int = 8000, memory: int = 16_384, more: str = ""
) -> str:
    """A simulated pool of equal hosts; `more` are further lines of each host."""
    return (
        f'[pools.{name}]\nbackend = "simulator"\n{settings}\n[[pools.{name}.hosts]]\n'
        f"count = {hosts}\ncpu = {cpu}\nmemory = {memory}\n{more}\n"
    )


def site(*pools: str, server: str = "", rest: str = "") -> str:
    """A configuration of these pools; `rest` are further tables."""
    return f"{SERVER}{server}\n{''.join(pools)}\n{rest}\n"


@dataclass(frozen=True)
class Refusal:
    """A refused call: its gRPC code, the ErrorInfo and every other detail by the name of its type."""

    code: str
    reason: str
    domain: str
    message: str
    metadata: dict[str, str]
    details: dict[str, Any]

    @property
    def violations(self) -> dict[str, str]:
        """Path -> reason of each bad field."""
        found = self.details["BadRequest"].field_violations
        assert len({each.field for each in found}) == len(found), f"a field is named twice: {found}"
        return {each.field: each.reason for each in found}

    @property
    def verdicts(self) -> list[pb.PlacementVerdict]:
        """The verdicts of a refused placement."""
        return list(self.details["PlacementFailure"].verdicts)


_KINDS = (
    rpc.BadRequest,
    rpc.ResourceInfo,
    rpc.PreconditionFailure,
    rpc.RetryInfo,
    rpc.QuotaFailure,
    errors_pb2.PlacementFailure,
)


def taken_apart(error: grpc.aio.AioRpcError) -> Refusal:
    """An error with the details of its status; each kind is there once at most."""
    status: Any = rpc_status.from_call(error)  # type: ignore[arg-type]
    assert status is not None, f"no status came with {error}"
    infos, details = [], {}
    for packed in status.details:
        if packed.Is(rpc.ErrorInfo.DESCRIPTOR):
            info = rpc.ErrorInfo()
            packed.Unpack(info)
            infos.append(info)
            continue
        kind = next(each for each in _KINDS if packed.Is(each.DESCRIPTOR))
        message = kind()
        packed.Unpack(message)
        assert kind.DESCRIPTOR.name not in details, f"{kind} is there twice"
        details[kind.DESCRIPTOR.name] = message
    assert len(infos) == 1, "exactly one ErrorInfo"
    return Refusal(
        code=error.code().name,
        reason=infos[0].reason,
        domain=infos[0].domain,
        message=status.message,
        metadata=dict(infos[0].metadata),
        details=details,
    )


async def refused(call: Awaitable[Any]) -> Refusal:
    """What a call is refused with; a call that is answered fails the test."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return taken_apart(caught.value)


async def created(broker: Running, workspace: pb.Workspace, **fields: Any) -> pb.Workspace:
    """CreateWorkspace with any field of its request."""
    request = api.CreateWorkspaceRequest(parent=fields.pop("parent", TENANT), workspace=workspace, **fields)
    return (await broker.workspaces.CreateWorkspace(request)).workspace  # type: ignore[no-any-return]


async def checked(broker: Running, workspace: pb.Workspace, **fields: Any) -> api.CheckPlacementResponse:
    """CheckPlacement."""
    request = api.CheckPlacementRequest(parent=TENANT, workspace=workspace, **fields)
    return await broker.workspaces.CheckPlacement(request)  # type: ignore[no-any-return]


async def updated(broker: Running, workspace: pb.Workspace, *paths: str, **fields: Any) -> pb.Workspace:
    """UpdateWorkspace of these paths."""
    request = api.UpdateWorkspaceRequest(workspace=workspace, **fields)
    request.update_mask.paths.extend(paths)
    return (await broker.workspaces.UpdateWorkspace(request)).workspace  # type: ignore[no-any-return]


async def ended(broker: Running, *names: str) -> None:
    """Terminates workspaces and waits until they are gone."""
    for name in names:
        await broker.verb("Terminate", name)
    for name in names:
        await broker.until(name, "TERMINATED")


async def hosts(broker: Running, of: str = "lab") -> dict[str, pb.Host]:
    """A pool's hosts by their own names."""
    answer = await broker.pools.ListHosts(pool_api.ListHostsRequest(parent=f"pools/{of}"))
    return {host.name.rpartition("/")[2]: host for host in answer.hosts}


async def held(broker: Running, of: str = "lab") -> list[tuple[str, int, str]]:
    """(workspace, node, host) of every slot on a pool's hosts."""
    found = await hosts(broker, of)
    return sorted((slot.workspace, slot.node_index, name) for name, host in found.items() for slot in host.slots)


async def pool_of(broker: Running, name: str = "lab") -> pb.Pool:
    """GetPool."""
    return (await broker.pools.GetPool(pool_api.GetPoolRequest(name=f"pools/{name}"))).pool  # type: ignore[no-any-return]


async def tenant(broker: Running, name: str = TENANT) -> pb.Tenant:
    """GetTenant."""
    return (await broker.tenants.GetTenant(tenant_api.GetTenantRequest(name=name))).tenant  # type: ignore[no-any-return]


async def listed(broker: Running, **fields: Any) -> list[pb.Workspace]:
    """ListWorkspaces, one page; of every state unless told otherwise."""
    fields.setdefault("states", list(EVERY_STATE))
    request = api.ListWorkspacesRequest(parent=fields.pop("parent", TENANT), **fields)
    return list((await broker.workspaces.ListWorkspaces(request)).workspaces)


async def footprint(broker: Running, of: str = "lab") -> tuple[object, ...]:
    """All that a refused request must leave as it was: records, slots, the pool's generation, use, revision."""
    await broker.broker.book.settled()  # what was decided is published
    answer = await broker.workspaces.ListWorkspaces(
        api.ListWorkspacesRequest(parent="tenants/-", states=list(EVERY_STATE))
    )
    return (
        [(each.name, each.etag) for each in answer.workspaces],
        answer.revision,
        await held(broker, of),
        (await pool_of(broker, of)).generation,
        dict((await tenant(broker)).used.amounts),
        len(broker.broker.book.requests),
    )


def state_of(workspace: pb.Workspace) -> str:
    """The state's short name."""
    return pb.Workspace.State.Name(workspace.state).removeprefix("STATE_")


def outcome_of(answer: Any) -> str:
    """The outcome's short name, of an answer or a verdict."""
    return pb.PlacementVerdict.Outcome.Name(answer.outcome).removeprefix("OUTCOME_")


def codes_of(verdict: pb.PlacementVerdict) -> set[str]:
    """The short names of a verdict's reasons."""
    return {pb.PlacementVerdict.Reason.Code.Name(each.code).removeprefix("CODE_") for each in verdict.reasons}


def by_pool(verdicts: Iterable[pb.PlacementVerdict]) -> dict[str, pb.PlacementVerdict]:
    """The verdicts of pools, by the pool's own name."""
    return {each.resource_name.removeprefix("pools/"): each for each in verdicts if "/hosts/" not in each.resource_name}


def by_host(verdicts: Iterable[pb.PlacementVerdict]) -> dict[str, pb.PlacementVerdict]:
    """The verdicts of hosts, by the host's own name."""
    return {each.resource_name.rpartition("/")[2]: each for each in verdicts if "/hosts/" in each.resource_name}


def at(instant: datetime) -> Timestamp:
    """An instant as the API has it."""
    stamp = Timestamp()
    stamp.FromDatetime(instant)
    return stamp


def lasting(**parts: float) -> Duration:
    """A length of time as the API has it, from what timedelta takes."""
    length = Duration()
    length.FromTimedelta(timedelta(**parts))
    return length
