"""A broker of canned answers, for tests of the clients: a real gRPC server without any rules.

Runs in threads (asyncio servers in ever new loops of one process miss wake-ups) and is steered from the test's.
What was asked stands in `calls`; what to
answer is set beforehand. A wait takes the next state of `script`, a watch plays `events`. Decides nothing that
a broker decides.
"""

from __future__ import annotations

import threading
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any, Self

import grpc
from google.protobuf import any_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status
from workspacebroker.v1 import pool_service_pb2 as pool_api
from workspacebroker.v1 import (
    pool_service_pb2_grpc,
    tenant_service_pb2_grpc,
    workspace_service_pb2_grpc,
)
from workspacebroker.v1 import tenant_service_pb2 as tenant_api
from workspacebroker.v1 import workspace_service_pb2 as api
from workspacebroker.v1.resources_pb2 import Host, Image, Network, Node, Pool, Quantities, Tenant, Workspace

MOMENT = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
FINAL = (Workspace.STATE_TERMINATED, Workspace.STATE_EXPIRED, Workspace.STATE_FAILED)
TRANSIENT = {
    "Start": Workspace.STATE_STARTING,
    "Pause": Workspace.STATE_PAUSING,
    "Unpause": Workspace.STATE_RESUMING,
    "Suspend": Workspace.STATE_SUSPENDING,
    "Resume": Workspace.STATE_RESUMING,
    "Stop": Workspace.STATE_STOPPING,
    "Reboot": Workspace.STATE_REBOOTING,
    "Terminate": Workspace.STATE_TERMINATING,
}


def refusal(code: grpc.StatusCode, reason: str, message: str = "", *details: Message, **metadata: str) -> Any:
    """A status as the broker gives it; without a reason, as gRPC or a proxy does."""
    status = status_pb2.Status(code=code.value[0], message=message or f"refused: {reason}")
    info = error_details_pb2.ErrorInfo(reason=reason, domain="workspacebroker", metadata=metadata)
    for detail in (info, *details) if reason else details:
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    return status


def workspace(name: str = "web", state: Any = Workspace.STATE_RUNNING, **fields: Any) -> Workspace:
    """A workspace of tenants/default with one node."""
    made = Workspace(name=f"tenants/default/workspaces/{name}", pool="lab", state=state, **fields)
    if not made.nodes:
        made.nodes.append(Node(host="pools/lab/hosts/xen-1", pool="lab", state=state))
        made.nodes[0].nics.add(network="lan", addresses=["10.0.0.7"])
    return made


class FakeBroker:
    """The server and its state; a context manager."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []
        self.workspaces: dict[str, Workspace] = {}
        self.revision = 1
        self.pool = Pool(
            name="pools/lab",
            backend="simulator",
            state=Pool.STATE_ACTIVE,
            total=Quantities(amounts={"cpu": 8000, "memory": 16384}),
            allocated=Quantities(amounts={"cpu": 2000, "memory": 4096}),
        )
        self.host = Host(
            name="pools/lab/hosts/xen-1",
            state=Host.STATE_ACTIVE,
            total=Quantities(amounts={"cpu": 8000, "memory": 16384}),
            free=Quantities(amounts={"cpu": 6000, "memory": 12288}),
        )
        self.tenant = Tenant(name="tenants/default")
        self.check = api.CheckPlacementResponse()
        self.failures: dict[str, deque[status_pb2.Status]] = defaultdict(deque)
        self.script: deque[Workspace] = deque()
        self.events: list[api.WatchWorkspacesResponse] = []
        self.cuts: deque[tuple[int, status_pb2.Status]] = deque()  # after so many events a stream fails so
        self.page = 1000
        self.on_call: Callable[[str], None] = lambda method: None
        self._port = 0

    @property
    def address(self) -> str:
        """HOST:PORT, the same after a restart."""
        return f"127.0.0.1:{self._port}"

    def asked(self, method: str) -> list[Any]:
        """The requests of one method."""
        return [request for name, request in self.calls if name == method]

    def put(self, *added: Workspace) -> None:
        """Makes workspaces known."""
        for each in added:
            self.workspaces[each.name] = Workspace()
            self.workspaces[each.name].CopyFrom(each)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Listens."""
        self._pool = ThreadPoolExecutor(max_workers=8)
        self._server = grpc.server(self._pool)
        servicer = _Servicer(self)
        workspace_service_pb2_grpc.add_WorkspaceServiceServicer_to_server(servicer, self._server)
        pool_service_pb2_grpc.add_PoolServiceServicer_to_server(servicer, self._server)
        tenant_service_pb2_grpc.add_TenantServiceServicer_to_server(servicer, self._server)
        self._port = self._server.add_insecure_port(f"127.0.0.1:{self._port}")
        self._server.start()

    def stop(self) -> None:
        """Stops listening and drops what is open."""
        self._server.stop(grace=None).wait(timeout=10)
        self._pool.shutdown()


class _Servicer(
    workspace_service_pb2_grpc.WorkspaceServiceServicer,
    pool_service_pb2_grpc.PoolServiceServicer,
    tenant_service_pb2_grpc.TenantServiceServicer,
):
    def __init__(self, broker: FakeBroker) -> None:
        self._broker = broker
        for verb, state in TRANSIENT.items():
            setattr(self, f"{verb}Workspace", self._verb(verb, state))

    def _begin(self, method: str, request: Any, context: Any) -> FakeBroker:
        self._broker.calls.append((method, request))
        self._broker.on_call(method)
        if self._broker.failures[method]:
            context.abort_with_status(rpc_status.to_status(self._broker.failures[method].popleft()))
        return self._broker

    def _find(self, name: str, context: Any) -> Workspace:
        if name not in self._broker.workspaces:
            status = refusal(grpc.StatusCode.NOT_FOUND, "NOT_FOUND", f"there is no {name}")
            context.abort_with_status(rpc_status.to_status(status))
        return self._broker.workspaces[name]

    def _verb(self, verb: str, state: Any) -> Any:
        def act(request: Any, context: Any) -> Any:
            self._begin(f"{verb}Workspace", request, context)
            found = self._find(request.target.name, context)
            found.state = state
            return getattr(api, f"{verb}WorkspaceResponse")(workspace=found)

        return act

    def CheckPlacement(self, request: Any, context: Any) -> Any:
        return (self._begin("CheckPlacement", request, context)).check

    def CreateWorkspace(self, request: Any, context: Any) -> Any:
        broker = self._begin("CreateWorkspace", request, context)
        made = Workspace()
        made.CopyFrom(request.workspace)
        made.name = f"{request.parent}/workspaces/{request.workspace_id or 'w-1'}"
        made.state = Workspace.STATE_STARTING
        broker.put(made)
        return api.CreateWorkspaceResponse(workspace=made)

    def GetWorkspace(self, request: Any, context: Any) -> Any:
        self._begin("GetWorkspace", request, context)
        return api.GetWorkspaceResponse(workspace=self._find(request.name, context))

    def ListWorkspaces(self, request: Any, context: Any) -> Any:
        broker = self._begin("ListWorkspaces", request, context)
        found = [
            each
            for each in broker.workspaces.values()
            if (each.state in request.states if request.states else each.state not in FINAL)
        ]
        begin = int(request.page_token or 0)
        end = begin + broker.page
        more = str(end) if end < len(found) else ""
        return api.ListWorkspacesResponse(workspaces=found[begin:end], next_page_token=more, revision=broker.revision)

    def UpdateWorkspace(self, request: Any, context: Any) -> Any:
        self._begin("UpdateWorkspace", request, context)
        return api.UpdateWorkspaceResponse(workspace=self._find(request.workspace.name, context))

    def SaveNode(self, request: Any, context: Any) -> Any:
        self._begin("SaveNode", request, context)
        found = self._find(request.target.name, context)
        return api.SaveNodeResponse(workspace=found, image=Image(name=request.image_name))

    def WaitWorkspace(self, request: Any, context: Any) -> Any:
        broker = self._begin("WaitWorkspace", request, context)
        if broker.script:
            broker.put(broker.script.popleft())
        found = self._find(request.name, context)
        reached = found.state in request.states
        if not (
            reached or found.state in FINAL or broker.script
        ):  # nothing is to come: a long poll, as a broker would keep it
            _hold(context, request.timeout.ToTimedelta().total_seconds())
        return api.WaitWorkspaceResponse(workspace=found, reached=reached)

    def WatchWorkspaces(self, request: Any, context: Any) -> Iterator[Any]:
        broker = self._begin("WatchWorkspaces", request, context)
        left, failure = broker.cuts.popleft() if broker.cuts else (-1, None)
        for event in [each for each in broker.events if each.revision > request.after_revision]:
            if left == 0:
                break
            left -= 1
            yield event
        if failure is not None:
            context.abort_with_status(rpc_status.to_status(failure))
        _hold(context, None)

    def GetPool(self, request: Any, context: Any) -> Any:
        return pool_api.GetPoolResponse(pool=(self._begin("GetPool", request, context)).pool)

    def ListPools(self, request: Any, context: Any) -> Any:
        return pool_api.ListPoolsResponse(pools=[(self._begin("ListPools", request, context)).pool])

    def UpdatePool(self, request: Any, context: Any) -> Any:
        broker = self._begin("UpdatePool", request, context)
        broker.pool.draining = request.pool.draining
        return pool_api.UpdatePoolResponse(pool=broker.pool)

    def RefreshPool(self, request: Any, context: Any) -> Any:
        broker = self._begin("RefreshPool", request, context)
        return pool_api.RefreshPoolResponse(pool=broker.pool, nodes_changed=2, strays=1)

    def ListHosts(self, request: Any, context: Any) -> Any:
        return pool_api.ListHostsResponse(hosts=[(self._begin("ListHosts", request, context)).host])

    def UpdateHost(self, request: Any, context: Any) -> Any:
        broker = self._begin("UpdateHost", request, context)
        broker.host.cordoned = request.host.cordoned
        return pool_api.UpdateHostResponse(host=broker.host)

    def DrainHost(self, request: Any, context: Any) -> Any:
        broker = self._begin("DrainHost", request, context)
        return pool_api.DrainHostResponse(host=broker.host, staying=list(broker.workspaces))

    def ListStrays(self, request: Any, context: Any) -> Any:
        self._begin("ListStrays", request, context)
        return pool_api.ListStraysResponse(strays=[pool_api.Stray(name="pools/lab/strays/7", backend_id="7")])

    def ListImages(self, request: Any, context: Any) -> Any:
        self._begin("ListImages", request, context)
        return pool_api.ListImagesResponse(images=[Image(name="debian-12", ready=True, size_bytes=2**31)])

    def ListNetworks(self, request: Any, context: Any) -> Any:
        self._begin("ListNetworks", request, context)
        network = Network(name="lan", total_addresses=254, free_addresses=250)
        return pool_api.ListNetworksResponse(networks=[network])

    def GetTenant(self, request: Any, context: Any) -> Any:
        return tenant_api.GetTenantResponse(tenant=(self._begin("GetTenant", request, context)).tenant)


def _hold(context: Any, seconds: float | None) -> None:
    """Keeps a call open, until its client or the server ends it."""
    ended = threading.Event()
    if context.add_callback(ended.set):
        ended.wait(seconds)
