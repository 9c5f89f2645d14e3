"""The gRPC services: each call is read, handed to a use case, and its answer rendered. Nothing is decided here.

Every refusal leaves as a google.rpc.Status with a reason; an exception nobody foresaw leaves as INTERNAL, without its
text. A call that cannot be done in the time its caller gives it is refused before anything happens.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial, wraps
from typing import Any, Final, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import Message
from workspacebroker.v1 import pool_service_pb2 as pools_pb
from workspacebroker.v1 import pool_service_pb2_grpc as pools_grpc
from workspacebroker.v1 import resources_pb2 as pb
from workspacebroker.v1 import tenant_service_pb2 as tenants_pb
from workspacebroker.v1 import tenant_service_pb2_grpc as tenants_grpc
from workspacebroker.v1 import workspace_service_pb2 as calls_pb
from workspacebroker.v1 import workspace_service_pb2_grpc as calls_grpc

from broker.api import calls, names, render, render_pools
from broker.api.enums import OUTCOMES, STATES
from broker.api.pages import PageTokens
from broker.api.status import grpc_status
from broker.api.times import timestamp
from broker.api.verdicts import verdict
from broker.book import Book
from broker.config import ServerSettings, Settings
from broker.core.clock import Clock
from broker.core.errors import BrokerError, Reason, overloaded, shutting_down
from broker.core.lifecycle import Verb
from broker.core.model import Workspace
from broker.core.requests import ListRequest, Page
from broker.core.whole import workspace_state
from broker.engine.engine import Engine
from broker.events import changes
from broker.metrics import Metrics
from broker.operators import Operators
from broker.strays import Strays
from broker.tenants import Tenants
from broker.updates import Updates
from broker.verbs import Verbs
from broker.workspaces import Workspaces

PAGE_BYTES: Final = 3 * 1024 * 1024
"""A page ends early rather than pass this."""

BOOKMARK_EVERY: Final = 5.0
"""Seconds of quiet after which a watcher is told the revision."""

LEAST_TIME: Final = 0.005
"""Seconds a caller must leave a mutation to be made durable in."""

T = TypeVar("T")
Context = grpc.aio.ServicerContext[Any, Any]


class Calls:
    """What all calls share: whether the broker still takes any, how many at once, and how long one may last."""

    def __init__(self, settings: ServerSettings) -> None:
        self.stopping = False
        self.timeout = settings.call_timeout
        self._bounds = {"calls": settings.max_calls, "waits and watches": settings.max_watchers}
        self._under_way = dict.fromkeys(self._bounds, 0)

    @contextmanager
    def admitted(self, context: Context, *, waits: bool = False) -> Iterator[None]:
        """A place for a call. Raises BrokerError for one that comes too late, leaves too little time, or is one too
        many; those that mostly wait are counted apart, so that they keep nobody out."""
        if self.stopping:
            raise shutting_down()
        remaining = context.time_remaining()
        if remaining is not None and remaining < LEAST_TIME:
            raise BrokerError(
                Reason.DEADLINE_TOO_SHORT, f"{max(0.0, remaining):.3f} s is too short a deadline for this call"
            )
        kind = "waits and watches" if waits else "calls"
        if self._under_way[kind] >= self._bounds[kind]:
            raise overloaded(kind, self._bounds[kind])
        self._under_way[kind] += 1
        try:
            yield
        finally:
            self._under_way[kind] -= 1


def answered(method: Callable[..., Awaitable[T]], *, waits: bool = False) -> Callable[..., Awaitable[T]]:
    """Wraps a unary method: errors leave as statuses."""

    @wraps(method)
    async def call(self: Any, request: Message, context: Context) -> T:
        try:
            with self._calls.admitted(context, waits=waits):
                if context.time_remaining() is None:
                    async with asyncio.timeout(self._calls.timeout):
                        return await method(self, request, context)
                return await method(self, request, context)
        except asyncio.CancelledError:
            raise
        except TimeoutError:
            late = BrokerError(
                Reason.DEADLINE_TOO_SHORT, f"the call took longer than the {self._calls.timeout:g} s it may last"
            )
            await context.abort_with_status(grpc_status(late))
        except Exception as error:
            await context.abort_with_status(grpc_status(error))
        raise AssertionError("abort_with_status raises")

    return call


class Shown:
    """Workspaces as the API shows them: the record, what is under way on its nodes, and when they were last seen."""

    def __init__(self, book: Book, engine: Engine) -> None:
        self._book = book
        self._engine = engine

    def __call__(self, workspace: Workspace) -> pb.Workspace:
        tasks = {}
        seen = {}
        for node in workspace.nodes:
            key = (workspace.uid, node.index)
            task = self._book.tasks.get(key)
            if task is not None:
                tasks[node.index] = task
            at = self._engine.seen_at(key, node.pool)
            if at is not None:
                seen[node.index] = at
        return render.workspace(workspace, state_message=_message(workspace), tasks=tasks, observe_times=seen)


@dataclass(frozen=True, slots=True, kw_only=True)
class UseCases:
    """What calls are handed to."""

    workspaces: Workspaces
    verbs: Verbs
    updates: Updates
    tenants: Tenants
    operators: Operators
    strays: Strays


class WorkspaceService(calls_grpc.WorkspaceServiceServicer):
    """For tenants."""

    def __init__(
        self,
        shared: Calls,
        use_cases: UseCases,
        shown: Shown,
        book: Book,
        settings: Settings,
        clock: Clock,
        tokens: PageTokens,
        metrics: Metrics,
    ) -> None:
        self._calls = shared
        self._workspaces = use_cases.workspaces
        self._verbs = use_cases.verbs
        self._updates = use_cases.updates
        self._tenants = use_cases.tenants
        self._shown = shown
        self._book = book
        self._types = settings.instance_types
        self._clock = clock
        self._tokens = tokens
        self._metrics = metrics

    def _check_tenant(self, tenant: str | None) -> None:
        """Raises NOT_FOUND for a tenant that is not there; None is all of them."""
        if tenant is not None:
            self._tenants.settings(tenant)

    @answered
    async def CheckPlacement(
        self, request: calls_pb.CheckPlacementRequest, context: Context
    ) -> calls_pb.CheckPlacementResponse:
        asked = calls.check_request(
            request, instance_types=self._types, now=self._clock.now(), unknown=self._workspaces.unknown
        )
        answer = self._workspaces.check(asked)
        return calls_pb.CheckPlacementResponse(
            outcome=OUTCOMES[answer.outcome],
            verdicts=[verdict(each) for each in answer.verdicts],
            pool_generations=answer.generations,
        )

    @answered
    async def CreateWorkspace(
        self, request: calls_pb.CreateWorkspaceRequest, context: Context
    ) -> calls_pb.CreateWorkspaceResponse:
        asked = calls.create_request(
            request, instance_types=self._types, now=self._clock.now(), unknown=self._workspaces.unknown
        )
        return calls_pb.CreateWorkspaceResponse(workspace=self._shown(await self._workspaces.create(asked)))

    @answered
    async def GetWorkspace(
        self, request: calls_pb.GetWorkspaceRequest, context: Context
    ) -> calls_pb.GetWorkspaceResponse:
        tenant, workspace = names.workspace(request.name)
        return calls_pb.GetWorkspaceResponse(workspace=self._shown(self._workspaces.get(tenant, workspace)))

    @answered
    async def ListWorkspaces(
        self, request: calls_pb.ListWorkspacesRequest, context: Context
    ) -> calls_pb.ListWorkspacesResponse:
        asked = calls.list_request(request, self._tokens)
        self._check_tenant(asked.tenant)
        # All pages bear the revision of the first: what changed while they were read comes with the watch.
        began, _, after = asked.page.position.partition(" ")
        revision = int(began) if began else self._book.events.revision
        answer = calls_pb.ListWorkspacesResponse(revision=revision)
        size = 0
        for workspace in self._listed(asked, after):
            shown = self._shown(workspace)
            size += shown.ByteSize()
            if answer.workspaces and (len(answer.workspaces) == asked.page.size or size > PAGE_BYTES):
                last = answer.workspaces[-1].name
                answer.next_page_token = self._tokens.issue(f"{revision} {last}", request)
                break
            answer.workspaces.append(shown)
        return answer

    def _listed(self, asked: ListRequest, after: str) -> Iterable[Workspace]:
        place = names.workspace(after) if after else ((asked.tenant or ""), "")
        for tenant, workspace_id in self._book.names_after(place):
            if asked.tenant is not None and tenant != asked.tenant:
                return  # names are in order, so no more of this tenant's follow
            workspace = self._book.find(tenant, workspace_id)
            if (
                workspace is not None
                and workspace.state in asked.states
                and (not asked.pool or any(node.pool == asked.pool for node in workspace.nodes))
                and (not asked.uids or workspace.uid in asked.uids)
                and _selected(workspace, asked.label_selector)
            ):
                yield workspace

    @answered
    async def UpdateWorkspace(
        self, request: calls_pb.UpdateWorkspaceRequest, context: Context
    ) -> calls_pb.UpdateWorkspaceResponse:
        changed = await self._updates.update(calls.update_request(request))
        return calls_pb.UpdateWorkspaceResponse(workspace=self._shown(changed))

    async def _verb(self, verb: Verb, request: Any, **options: bool) -> pb.Workspace:
        return self._shown(await self._verbs.verb(verb, calls.verb_target(request), **options))

    @answered
    async def StartWorkspace(
        self, request: calls_pb.StartWorkspaceRequest, context: Context
    ) -> calls_pb.StartWorkspaceResponse:
        return calls_pb.StartWorkspaceResponse(workspace=await self._verb(Verb.START, request))

    @answered
    async def PauseWorkspace(
        self, request: calls_pb.PauseWorkspaceRequest, context: Context
    ) -> calls_pb.PauseWorkspaceResponse:
        return calls_pb.PauseWorkspaceResponse(workspace=await self._verb(Verb.PAUSE, request))

    @answered
    async def UnpauseWorkspace(
        self, request: calls_pb.UnpauseWorkspaceRequest, context: Context
    ) -> calls_pb.UnpauseWorkspaceResponse:
        return calls_pb.UnpauseWorkspaceResponse(workspace=await self._verb(Verb.UNPAUSE, request))

    @answered
    async def SuspendWorkspace(
        self, request: calls_pb.SuspendWorkspaceRequest, context: Context
    ) -> calls_pb.SuspendWorkspaceResponse:
        return calls_pb.SuspendWorkspaceResponse(
            workspace=await self._verb(Verb.SUSPEND, request, release=request.release_capacity)
        )

    @answered
    async def ResumeWorkspace(
        self, request: calls_pb.ResumeWorkspaceRequest, context: Context
    ) -> calls_pb.ResumeWorkspaceResponse:
        return calls_pb.ResumeWorkspaceResponse(workspace=await self._verb(Verb.RESUME, request))

    @answered
    async def StopWorkspace(
        self, request: calls_pb.StopWorkspaceRequest, context: Context
    ) -> calls_pb.StopWorkspaceResponse:
        return calls_pb.StopWorkspaceResponse(
            workspace=await self._verb(Verb.STOP, request, force=request.force, release=request.release_capacity)
        )

    @answered
    async def RebootWorkspace(
        self, request: calls_pb.RebootWorkspaceRequest, context: Context
    ) -> calls_pb.RebootWorkspaceResponse:
        return calls_pb.RebootWorkspaceResponse(workspace=await self._verb(Verb.REBOOT, request, force=request.force))

    @answered
    async def TerminateWorkspace(
        self, request: calls_pb.TerminateWorkspaceRequest, context: Context
    ) -> calls_pb.TerminateWorkspaceResponse:
        return calls_pb.TerminateWorkspaceResponse(
            workspace=await self._verb(Verb.TERMINATE, request, force=request.force)
        )

    @answered
    async def SaveNode(self, request: calls_pb.SaveNodeRequest, context: Context) -> calls_pb.SaveNodeResponse:
        workspace = await self._verbs.save(calls.save_request(request))
        return calls_pb.SaveNodeResponse(
            workspace=self._shown(workspace), image=pb.Image(name=request.image_name, ready=False)
        )

    @partial(answered, waits=True)
    async def WaitWorkspace(
        self, request: calls_pb.WaitWorkspaceRequest, context: Context
    ) -> calls_pb.WaitWorkspaceResponse:
        remaining = context.time_remaining()
        limit = self._calls.timeout - 1.0 if remaining is None else remaining
        workspace, reached = await self._workspaces.wait(calls.wait_request(request), limit)
        return calls_pb.WaitWorkspaceResponse(workspace=self._shown(workspace), reached=reached)

    async def WatchWorkspaces(
        self, request: calls_pb.WatchWorkspacesRequest, context: Context
    ) -> AsyncIterator[calls_pb.WatchWorkspacesResponse]:
        self._metrics.watchers.inc()
        try:
            with self._calls.admitted(context, waits=True):
                async for answer in self._watched(request):
                    yield answer
        except (asyncio.CancelledError, GeneratorExit):
            raise
        except Exception as error:
            await context.abort_with_status(grpc_status(error))
        finally:
            self._metrics.watchers.dec()

    async def _watched(
        self, request: calls_pb.WatchWorkspacesRequest
    ) -> AsyncIterator[calls_pb.WatchWorkspacesResponse]:
        asked = calls.watch_request(request)
        self._check_tenant(asked.tenant)
        log = self._book.events
        current = list(self._book.workspaces.values()) if asked.after_revision == 0 else None
        subscription = log.subscribe(asked.after_revision, current, self._clock.now())
        if current is not None:
            current = None
        async for change in changes(log, subscription, BOOKMARK_EVERY):
            if isinstance(change, int):
                yield calls_pb.WatchWorkspacesResponse(revision=change, time=timestamp(self._clock.now()))
                continue
            workspace = change.workspace
            if (asked.tenant is None or workspace.tenant == asked.tenant) and _selected(
                workspace, asked.label_selector
            ):
                yield calls_pb.WatchWorkspacesResponse(
                    revision=change.revision,
                    workspace=self._shown(workspace),
                    previous_state=STATES[change.previous] if change.previous is not None else None,
                    time=timestamp(change.time),
                )


class PoolService(pools_grpc.PoolServiceServicer):
    """Pools, hosts, images and networks."""

    def __init__(self, shared: Calls, use_cases: UseCases, shown: Shown, tokens: PageTokens) -> None:
        self._calls = shared
        self._operators = use_cases.operators
        self._strays = use_cases.strays
        self._shown = shown
        self._tokens = tokens

    def _page(self, items: Sequence[T], key: Callable[[T], str], page: Page, request: Message) -> tuple[list[T], str]:
        """The items of a page, of a sequence sorted by their key, and the token of the next."""
        rest = [item for item in items if not page.position or key(item) > page.position]
        shown = rest[: page.size]
        token = self._tokens.issue(key(shown[-1]), request) if len(rest) > len(shown) else ""
        return shown, token

    @answered
    async def GetPool(self, request: pools_pb.GetPoolRequest, context: Context) -> pools_pb.GetPoolResponse:
        return pools_pb.GetPoolResponse(pool=render_pools.pool(self._operators.pool(names.pool(request.name))))

    @answered
    async def ListPools(self, request: pools_pb.ListPoolsRequest, context: Context) -> pools_pb.ListPoolsResponse:
        page = calls.pools_page(request, self._tokens)
        shown, token = self._page(self._operators.pool_names(), str, page, request)
        return pools_pb.ListPoolsResponse(
            pools=[render_pools.pool(self._operators.pool(name)) for name in shown], next_page_token=token
        )

    @answered
    async def UpdatePool(self, request: pools_pb.UpdatePoolRequest, context: Context) -> pools_pb.UpdatePoolResponse:
        name, draining = calls.pool_update(request)
        return pools_pb.UpdatePoolResponse(pool=render_pools.pool(await self._operators.set_draining(name, draining)))

    @answered
    async def RefreshPool(self, request: pools_pb.RefreshPoolRequest, context: Context) -> pools_pb.RefreshPoolResponse:
        pool, changed, strays = await self._operators.refresh(names.pool(request.name))
        return pools_pb.RefreshPoolResponse(pool=render_pools.pool(pool), nodes_changed=changed, strays=strays)

    @answered
    async def ListHosts(self, request: pools_pb.ListHostsRequest, context: Context) -> pools_pb.ListHostsResponse:
        pool, page = calls.pool_page(request, self._tokens)
        views, generation = self._operators.hosts(pool)
        shown, token = self._page(views, lambda view: view.name, page, request)
        return pools_pb.ListHostsResponse(
            hosts=[render_pools.host(view) for view in shown], next_page_token=token, pool_generation=generation
        )

    @answered
    async def UpdateHost(self, request: pools_pb.UpdateHostRequest, context: Context) -> pools_pb.UpdateHostResponse:
        pool, host, cordoned = calls.host_update(request)
        return pools_pb.UpdateHostResponse(
            host=render_pools.host(await self._operators.set_cordoned(pool, host, cordoned))
        )

    @answered
    async def DrainHost(self, request: pools_pb.DrainHostRequest, context: Context) -> pools_pb.DrainHostResponse:
        pool, host = names.host(request.name)
        view, staying = await self._operators.drain(pool, host, suspend_rest=request.suspend_rest)
        return pools_pb.DrainHostResponse(host=render_pools.host(view), staying=staying)

    @answered
    async def ListStrays(self, request: pools_pb.ListStraysRequest, context: Context) -> pools_pb.ListStraysResponse:
        pool, page = calls.pool_page(request, self._tokens)
        shown, token = self._page(self._operators.strays(pool), lambda view: view.backend_id, page, request)
        return pools_pb.ListStraysResponse(strays=[render_pools.stray(view) for view in shown], next_page_token=token)

    @answered
    async def ResolveStray(
        self, request: pools_pb.ResolveStrayRequest, context: Context
    ) -> pools_pb.ResolveStrayResponse:
        asked = calls.stray_request(request)
        if not asked.tenant:
            await self._strays.end(asked)
            return pools_pb.ResolveStrayResponse()
        return pools_pb.ResolveStrayResponse(workspace=self._shown(await self._strays.adopt(asked)))

    @answered
    async def ListImages(self, request: pools_pb.ListImagesRequest, context: Context) -> pools_pb.ListImagesResponse:
        pool, page = calls.pool_page(request, self._tokens)
        shown, token = self._page(self._operators.images(pool), lambda view: view.name, page, request)
        return pools_pb.ListImagesResponse(images=[render_pools.image(view) for view in shown], next_page_token=token)

    @answered
    async def ListNetworks(
        self, request: pools_pb.ListNetworksRequest, context: Context
    ) -> pools_pb.ListNetworksResponse:
        pool, page = calls.pool_page(request, self._tokens)
        shown, token = self._page(self._operators.networks(pool), lambda view: view.name, page, request)
        return pools_pb.ListNetworksResponse(
            networks=[render_pools.network(view) for view in shown], next_page_token=token
        )


class TenantService(tenants_grpc.TenantServiceServicer):
    """Tenants, their limits and use."""

    def __init__(self, shared: Calls, use_cases: UseCases) -> None:
        self._calls = shared
        self._operators = use_cases.operators

    @answered
    async def GetTenant(self, request: tenants_pb.GetTenantRequest, context: Context) -> tenants_pb.GetTenantResponse:
        view = self._operators.tenant(names.tenant(request.name, "name"))
        return tenants_pb.GetTenantResponse(tenant=render_pools.tenant(view))


def _selected(workspace: Workspace, selector: Mapping[str, str]) -> bool:
    return all(workspace.labels.get(key) == value for key, value in selector.items())


def _message(workspace: Workspace) -> str:
    """Why the state is what it is, where its nodes differ or it waits."""
    if workspace.notices and workspace.state.value == "PENDING":
        return workspace.notices[0].message
    return workspace_state(workspace.nodes, started=workspace.started).message
