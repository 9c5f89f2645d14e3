"""Wires the parts of one broker together and serves them; decides nothing.

Order matters at both ends. Start: state file (and its lock), book, backends, then the port. Stop: health says
NOT_SERVING, calls under way may finish, then the engine rests, then the file is let go.
"""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
from collections.abc import Callable
from datetime import timedelta
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

from backends import registry
from backends.base import BackendContext
from broker.api.pages import PageTokens
from broker.api.pool_services import PoolService, TenantService
from broker.api.services import WorkspaceService
from broker.api.serving import Calls, Shown, UseCases
from broker.api.unreadable import RefuseUnreadable
from broker.book import Book
from broker.config import Settings
from broker.core.clock import Clock, SystemClock
from broker.core.errors import shutting_down
from broker.engine.engine import Engine
from broker.engine.fault_points import FaultPoint, nowhere
from broker.events import EventLog
from broker.ledger import Ledger
from broker.metrics import Metrics
from broker.operators import Operators
from broker.pools import Pool
from broker.store.sqlite import SqliteStore
from broker.strays import Strays
from broker.tenants import Tenants
from broker.updates import Updates
from broker.verbs import Verbs
from broker.workspaces import Workspaces

log = logging.getLogger(__name__)

MESSAGE_BYTES = 16 * 1024 * 1024
"""What the server takes, so that a request too large gets our answer, not gRPC's."""

BROKER_ID_KEY = "broker_id"
PAGE_KEY = "page_key"
SERVICES = tuple(
    module.DESCRIPTOR.services_by_name[name].full_name
    for module, name in (
        (workspace_calls, "WorkspaceService"),
        (pool_calls, "PoolService"),
        (tenant_calls, "TenantService"),
    )
)


class Broker:
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
        self.settings = settings
        self.clock = clock or SystemClock()
        self.metrics = Metrics()
        self.events = EventLog(kept=settings.server.watch_history)
        self._new_uid = new_uid
        self._jitter = jitter
        self._fault_point = fault_point
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
        self.book = Book(self.store, self.clock, self.events)
        self.book.load()
        broker_id, page_key = await self._identity()
        self.pools = {
            name: Pool(
                pool,
                registry.load(pool.backend).create(
                    pool.backend_settings,
                    BackendContext(
                        pool=name,
                        broker_id=broker_id,
                        clock=self.clock,
                        base_directory=str(settings.directory),
                    ),
                ),
                self.book,
                self.clock,
            )
            for name, pool in settings.pools.items()
        }
        self._warn_of_lost_pools()
        self.engine = Engine(
            self.pools,
            self.book,
            self.clock,
            self.metrics,
            broker_id=broker_id,
            keep_records=timedelta(seconds=settings.server.keep_records),
            jitter=self._jitter,
            fault_point=self._fault_point,
        )
        tenants = Tenants(self.book, settings.tenants)
        ledger = Ledger(self.book, self.clock)
        self.workspaces = Workspaces(
            self.book, self.pools, self.clock, self.metrics, tenants, ledger, new_uid=self._new_uid
        )
        self.operators = Operators(self.book, self.pools, self.engine, self.clock, tenants, settings.instance_types)
        self._use_cases = UseCases(
            workspaces=self.workspaces,
            verbs=Verbs(self.book, self.pools, self.clock, tenants, ledger),
            updates=Updates(self.book, self.pools, self.clock, tenants, ledger),
            tenants=tenants,
            operators=self.operators,
            strays=Strays(self.book, self.pools, self.engine, self.clock, tenants, ledger),
        )
        self._calls = Calls(settings.server)
        self._server = self._make_server(PageTokens(page_key))
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

    async def _identity(self) -> tuple[str, bytes]:
        """This broker's id and the key of its page tokens, both made at the first start."""
        with self.book.transaction() as tx:
            for key, value in ((BROKER_ID_KEY, uuid4().hex), (PAGE_KEY, secrets.token_hex(32))):
                if key not in self.book.settings:
                    tx.set(key, value)
        await tx.durable()
        return self.book.settings[BROKER_ID_KEY], bytes.fromhex(self.book.settings[PAGE_KEY])

    def _warn_of_lost_pools(self) -> None:
        lost = {
            node.pool
            for workspace in self.book.workspaces.values()
            for node in workspace.nodes
            if not node.state.final and node.pool not in self.pools
        }
        for name in sorted(lost):
            log.error("pool=%s is not configured any more, and workspaces have nodes there", name)

    def _make_server(self, tokens: PageTokens) -> grpc.aio.Server:
        server = grpc.aio.server(
            interceptors=[RefuseUnreadable()],
            options=[
                ("grpc.max_receive_message_length", MESSAGE_BYTES),
                ("grpc.max_send_message_length", MESSAGE_BYTES),
                ("grpc.so_reuseport", 0),  # a port in use is an error, not a second broker
            ],
        )
        shown = Shown(self.book, self.engine)
        workspace_grpc.add_WorkspaceServiceServicer_to_server(
            WorkspaceService(
                self._calls, self._use_cases, shown, self.book, self.settings, self.clock, tokens, self.metrics
            ),
            server,
        )
        pool_grpc.add_PoolServiceServicer_to_server(PoolService(self._calls, self._use_cases, shown, tokens), server)
        tenant_grpc.add_TenantServiceServicer_to_server(TenantService(self._calls, self._use_cases), server)
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
