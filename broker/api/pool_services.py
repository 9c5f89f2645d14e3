"""The services of pools and tenants: each call is read, handed to a use case, and its answer rendered."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from google.protobuf.message import Message
from workspacebroker.v1 import pool_service_pb2 as pools_pb
from workspacebroker.v1 import pool_service_pb2_grpc as pools_grpc
from workspacebroker.v1 import tenant_service_pb2 as tenants_pb
from workspacebroker.v1 import tenant_service_pb2_grpc as tenants_grpc

from broker.api import calls, names, render_pools
from broker.api.pages import PageTokens
from broker.api.serving import Calls, Context, Shown, UseCases, answered
from broker.core.requests import Page

T = TypeVar("T")


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
    async def ResolveStray(self, request: pools_pb.ResolveStrayRequest, context: Context) -> bytes:
        asked = calls.stray_request(request)
        if not asked.tenant:
            await self._strays.end(asked)
            return pools_pb.ResolveStrayResponse().SerializeToString()
        return self._shown.alone(await self._strays.adopt(asked))

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
