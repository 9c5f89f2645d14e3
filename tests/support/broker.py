"""A whole broker in the test's own process, behind a real port, on the system's clock or a manual one."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from workspacebroker.v1 import pool_service_pb2_grpc as pools_grpc
from workspacebroker.v1 import resources_pb2 as pb
from workspacebroker.v1 import tenant_service_pb2_grpc as tenants_grpc
from workspacebroker.v1 import workspace_service_pb2 as api
from workspacebroker.v1 import workspace_service_pb2_grpc as workspaces_grpc

from broker.config import load
from broker.core.clock import Clock, ManualClock
from broker.server import Broker

TENANT = "tenants/default"

LAB = """
[server]
listen = "127.0.0.1:0"
[pools.lab]
backend = "simulator"
[[pools.lab.hosts]]
count = 4
cpu = 8000
memory = 16384
disk = 200000
attributes = { hypervisor = "xen", arch = "x86_64" }
"""


class Running:
    """A running broker and the stubs of its services."""

    def __init__(self, broker: Broker, port: int) -> None:
        self.broker = broker
        self.port = port
        self.channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}")
        self.workspaces: Any = workspaces_grpc.WorkspaceServiceStub(self.channel)
        self.pools: Any = pools_grpc.PoolServiceStub(self.channel)
        self.tenants: Any = tenants_grpc.TenantServiceStub(self.channel)

    def backend(self, pool: str = "lab") -> Any:
        """A pool's backend: the simulator's own levers."""
        return self.broker.pools[pool].backend

    async def create(
        self,
        *,
        workspace: pb.Workspace | None = None,
        workspace_id: str = "",
        request_id: str = "",
        **options: Any,
    ) -> pb.Workspace:
        """CreateWorkspace, of one small node unless told otherwise."""
        wanted = workspace if workspace is not None else small(**options)
        answer = await self.workspaces.CreateWorkspace(
            api.CreateWorkspaceRequest(
                parent=TENANT, workspace_id=workspace_id, workspace=wanted, request_id=request_id
            )
        )
        return answer.workspace  # type: ignore[no-any-return]

    async def get(self, name: str) -> pb.Workspace:
        """GetWorkspace."""
        return (await self.workspaces.GetWorkspace(api.GetWorkspaceRequest(name=name))).workspace  # type: ignore[no-any-return]

    async def verb(self, verb: str, name: str, *, nodes: tuple[int, ...] = (), **options: Any) -> pb.Workspace:
        """A life-cycle verb by its name, such as "Suspend"."""
        request_type = getattr(api, f"{verb}WorkspaceRequest")
        target = api.Target(
            name=name, node_indexes=nodes, request_id=options.pop("request_id", ""), etag=options.pop("etag", "")
        )
        answer = await getattr(self.workspaces, f"{verb}Workspace")(request_type(target=target, **options))
        return answer.workspace  # type: ignore[no-any-return]

    async def until(self, name: str, *states: str, timeout: float = 20.0, step: float = 0.0) -> Any:
        """Waits until a workspace is in one of the states; on a manual clock time moves by `step` a look."""
        wanted = {pb.Workspace.State.Value(f"STATE_{state}") for state in states}
        return await self.eventually(lambda: self.get(name), lambda ws: ws.state in wanted, timeout, step)

    async def eventually(
        self,
        look: Callable[[], Any],
        holds: Callable[[Any], bool],
        timeout: float = 20.0,
        step: float = 0.0,
    ) -> Any:
        """Looks until what was seen holds; fails with what was seen last."""
        deadline = asyncio.get_running_loop().time() + timeout
        while True:
            seen = look()
            if inspect.isawaitable(seen):
                seen = await seen
            if holds(seen):
                return seen
            assert asyncio.get_running_loop().time() < deadline, f"not reached; last seen: {seen}"
            if isinstance(self.broker.clock, ManualClock):
                await self.broker.clock.advance(step or 0.05)
            await asyncio.sleep(0.005)


def small(
    *,
    cpu: int = 1000,
    memory: int = 1024,
    disk: int = 0,
    count: int = 1,
    pool: str = "",
    image: str = "",
    **fields: Any,
) -> pb.Workspace:
    """A wished-for workspace of one set."""
    amounts = {"cpu": cpu, "memory": memory} | ({"disk": disk} if disk else {})
    set_fields = {key: fields.pop(key) for key in list(fields) if key in pb.NodeSet.DESCRIPTOR.fields_by_name}
    set_fields.pop("pool", None)
    nodes = pb.NodeSet(count=count, image=image, amounts=pb.Quantities(amounts=amounts), **set_fields)
    return pb.Workspace(pool=pool, node_sets=[nodes], **fields)


def reason_of(error: grpc.aio.AioRpcError) -> str:
    """The reason in an error's ErrorInfo."""
    return details_of(error, error_details_pb2.ErrorInfo)[0].reason  # type: ignore[no-any-return]


def details_of(error: grpc.aio.AioRpcError, kind: Any) -> list[Any]:
    """The details of one type that an error carries."""
    status: Any = rpc_status.from_call(error)  # type: ignore[arg-type]
    assert status is not None, error
    found = []
    for packed in status.details:
        if packed.Is(kind.DESCRIPTOR):
            message = kind()
            packed.Unpack(message)
            found.append(message)
    return found


@asynccontextmanager
async def running(
    folder: Path, configuration: str = LAB, *, clock: Clock | None = None, ready: bool = True
) -> AsyncIterator[Running]:
    """A broker on a state file in a folder; with `ready`, each pool has been read."""
    file = folder / "broker.toml"
    file.write_text(configuration)
    broker = Broker(load(file), clock=clock, jitter=lambda: 0.5)
    port = await broker.start()
    running_broker = Running(broker, port)
    try:
        if ready:
            await running_broker.eventually(lambda: [pool.reachable.is_set() for pool in broker.pools.values()], all)
        yield running_broker
    finally:
        await running_broker.channel.close()
        await broker.stop()
