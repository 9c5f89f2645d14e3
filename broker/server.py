"""Serves one broker: the API on a port in front of the parts that broker/assembly.py wires; decides nothing.

Order matters at both ends. Start: state file (and its lock), book, backends, then the port. Stop: health says
NOT_SERVING, calls under way may finish, then the engine rests, then the file is let go.
"""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from workspacebroker.v1 import pool_service_pb2 as pool_calls
from workspacebroker.v1 import pool_service_pb2_grpc as pool_grpc
from workspacebroker.v1 import tenant_service_pb2 as tenant_calls
from workspacebroker.v1 import tenant_service_pb2_grpc as tenant_grpc
from workspacebroker.v1 import workspace_service_pb2 as workspace_calls
from workspacebroker.v1 import workspace_service_pb2_grpc as workspace_grpc

from broker.api.pages import PageTokens
from broker.api.pool_services import PoolService, TenantService
from broker.api.services import WorkspaceService
from broker.api.serving import Calls, Shown, UseCases
from broker.api.unreadable import RefuseUnreadable
from broker.assembly import Assembly
from broker.config import Settings
from broker.core.clock import Clock
from broker.core.errors import shutting_down
from broker.engine.fault_points import FaultPoint, nowhere
from broker.store.sqlite import SqliteStore

log = logging.getLogger(__name__)

MESSAGE_BYTES = 16 * 1024 * 1024
"""What the server takes, so that a request too large gets our answer, not gRPC's."""

PAGE_KEY = "page_key"
SERVICES = tuple(
    module.DESCRIPTOR.services_by_name[name].full_name
    for module, name in (
        (workspace_calls, "WorkspaceService"),
        (pool_calls, "PoolService"),
        (tenant_calls, "TenantService"),
    )
)


class Broker(Assembly):
    """One broker: everything between a state file and a port."""

    def __init__(
        self,
        settings: Settings,
        *,
        clock: Clock | None = None,
        new_uid: Callable[[], str] = lambda: uuid4().hex,
        jitter: Callable[[], float] = random.random,
        fault_point: FaultPoint = nowhere,
    ) -> None:
        super().__init__(settings, clock=clock, new_uid=new_uid, jitter=jitter, fault_point=fault_point)
        self._tasks: list[asyncio.Task[None]] = []
        self._stop_metrics: Callable[[], None] = lambda: None

    async def start(self) -> int:
        """Starts to serve; returns the port. Raises StoreProblem, or OSError where the address is taken."""
        self.store = SqliteStore(self.settings.server.state)
        try:
            return await self._start()
        except BaseException:
            self.store.close()
            raise

    async def _start(self) -> int:
        settings = self.settings
        await self.assemble(self.store)
        page_key = await self._made_once(PAGE_KEY, lambda: secrets.token_hex(32))
        self._calls = Calls(settings.server)
        self._server = self._make_server(PageTokens(bytes.fromhex(page_key)))
        try:
            port = self._server.add_insecure_port(settings.server.listen)
        except RuntimeError as error:
            raise OSError(f"cannot listen on {settings.server.listen}: {error}") from error
        await self.engine.start()
        await self._server.start()
        self._tasks.append(asyncio.create_task(self._tell_health(), name="health"))
        if settings.server.metrics is not None:
            self._stop_metrics = self.metrics.serve(*settings.server.metrics)
        log.info(
            "serving=%s:%d pools=%s state=%s",
            settings.server.host,
            port,
            ",".join(self.pools),
            settings.server.state,
        )
        return port

    def _make_server(self, tokens: PageTokens) -> grpc.aio.Server:
        server = grpc.aio.server(
            interceptors=[RefuseUnreadable()],
            options=[
                ("grpc.max_receive_message_length", MESSAGE_BYTES),
                ("grpc.max_send_message_length", MESSAGE_BYTES),
                ("grpc.so_reuseport", 0),  # a port in use is an error, not a second broker
            ],
        )
        shown = Shown(self.book, self.engine, self.queue)
        use_cases = UseCases(
            workspaces=self.workspaces,
            verbs=self.verbs,
            updates=self.updates,
            tenants=self.tenants,
            operators=self.operators,
            strays=self.strays,
            ensembles=self.ensembles,
        )
        workspace_grpc.add_WorkspaceServiceServicer_to_server(
            WorkspaceService(self._calls, use_cases, shown, self.book, self.settings, self.clock, tokens, self.metrics),
            server,
        )
        pool_grpc.add_PoolServiceServicer_to_server(PoolService(self._calls, use_cases, shown, tokens), server)
        tenant_grpc.add_TenantServiceServicer_to_server(TenantService(self._calls, use_cases), server)
        self._health: Any = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        reflection.enable_server_reflection((*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
        return server

    async def _tell_health(self) -> None:
        """Keeps one status a service, and by convention one a pool ("pool:NAME")."""
        serving, not_serving = (
            health_pb2.HealthCheckResponse.SERVING,
            health_pb2.HealthCheckResponse.NOT_SERVING,
        )
        for service in (*SERVICES, ""):
            await self._health.set(service, serving)
        told: dict[str, bool] = {}
        while True:
            for name, pool in self.pools.items():
                answers = pool.reachable.is_set()
                if told.get(name) is not answers:
                    told[name] = answers
                    await self._health.set(f"pool:{name}", serving if answers else not_serving)
            await asyncio.sleep(0.25)

    async def stop(self) -> None:
        """Drains: no new calls, those under way may finish, then everything rests."""
        self._calls.stopping = True
        grace = self.settings.server.drain_timeout
        await self._health.enter_graceful_shutdown()
        self.events.end(shutting_down())
        # Those who wait for a state may still see it, but are told in time where they will not.
        last_call = asyncio.get_running_loop().call_later(max(0.0, grace - 0.5), self.workspaces.end_waits)
        await self._server.stop(grace)
        last_call.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._stop_metrics()
        await self.engine.stop()
        self.store.close()
        log.info("stopped")
