"""Wires the parts of one broker together, all but the port: store, book, pools, engine and use cases; decides nothing.

broker/server.py puts the API in front of it; a replay (broker/replay) calls the use cases itself. Order matters: what
the store holds is read before anything is made from it, and the engine starts when all is wired.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from datetime import timedelta
from uuid import uuid4

from backends import registry
from backends.base import BackendContext
from broker.admission import Admission
from broker.book import Book
from broker.config import Settings
from broker.core.clock import Clock, SystemClock
from broker.engine.engine import Engine
from broker.engine.fault_points import FaultPoint, nowhere
from broker.ensembles import Ensembles
from broker.events import EventLog
from broker.ledger import Ledger
from broker.metrics import Metrics
from broker.operators import Operators
from broker.policies import Policies
from broker.pools import Pool
from broker.preempting import Preempting
from broker.queue import Queue
from broker.store.base import Store
from broker.strays import Strays
from broker.tenant_use import TenantUse
from broker.tenants import Tenants
from broker.updates import Updates
from broker.verbs import Verbs
from broker.workspaces import Workspaces

log = logging.getLogger(__name__)


BROKER_ID_KEY = "broker_id"


class Assembly:
    """One broker without a port: everything between a store and those who call."""

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

    async def assemble(self, store: Store) -> None:
        """Makes all parts on what a store holds; nothing runs yet. Raises StoreProblem."""
        settings = self.settings
        self.book = Book(store, self.clock, self.events)
        self.book.load()
        broker_id = await self._made_once(BROKER_ID_KEY, lambda: uuid4().hex)
        policies = Policies(settings, self.metrics)
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
                host_choice=policies.host_choice.get(name),
            )
            for name, pool in settings.pools.items()
        }
        self._warn_of_lost_pools()
        self.tenants = Tenants(self.book, settings.tenants)
        use = TenantUse(self.book, self.pools, self.clock, self.tenants, half_life=settings.queue.half_life)
        preempting = Preempting(self.book, self.pools, self.clock, policies)
        self.queue = Queue(self.book, self.pools, self.clock, self.tenants, policies, preempting, use, settings.queue)
        self.engine = Engine(
            self.pools,
            self.book,
            self.clock,
            self.metrics,
            self.queue,
            broker_id=broker_id,
            keep_records=timedelta(seconds=settings.server.keep_records),
            jitter=self._jitter,
            fault_point=self._fault_point,
        )
        ledger = Ledger(self.book, self.clock)
        admission = Admission(self.book, self.pools, self.tenants, preempting)
        self.ensembles = Ensembles(
            self.book,
            self.pools,
            self.clock,
            self.tenants,
            ledger,
            self.queue,
            admission,
            new_uid=self._new_uid,
        )
        self.workspaces = Workspaces(
            self.book,
            self.pools,
            self.clock,
            self.metrics,
            self.tenants,
            ledger,
            self.queue,
            admission,
            self.ensembles,
            new_uid=self._new_uid,
        )
        self.verbs = Verbs(self.book, self.pools, self.clock, self.tenants, ledger)
        self.updates = Updates(self.book, self.pools, self.clock, self.tenants, ledger, self.queue)
        self.operators = Operators(
            self.book, self.pools, self.engine, self.clock, self.tenants, settings.instance_types
        )
        self.strays = Strays(self.book, self.pools, self.engine, self.clock, self.tenants, ledger)

    async def _made_once(self, key: str, make: Callable[[], str]) -> str:
        """A value of this broker's own, made at its first start."""
        with self.book.transaction() as tx:
            if key not in self.book.settings:
                tx.set(key, make())
        await tx.durable()
        return self.book.settings[key]

    def _warn_of_lost_pools(self) -> None:
        lost = {
            node.pool
            for workspace in self.book.workspaces.values()
            for node in workspace.nodes
            if not node.state.final and node.pool not in self.pools
        }
        for name in sorted(lost):
            log.error("pool=%s is not configured any more, and workspaces have nodes there", name)
