"""All pools at work: one driver and one observer a pool, and one timer for every lease.

The engine learns of new work from the book, after it is durable. Nothing that happens at one pool waits for another.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from msgspec.structs import replace

from backends.base import BackendError
from broker.book import Book
from broker.core.clock import Clock
from broker.core.errors import BrokerError, Reason
from broker.core.model import NodeKey, Task, Workspace
from broker.engine.breaker import Breaker
from broker.engine.driver import Driver
from broker.engine.ensembles import EnsembleExpiry
from broker.engine.expiry import Expiry
from broker.engine.fault_points import FaultPoint, nowhere
from broker.engine.observer import Observer
from broker.engine.reservations import Reservations
from broker.engine.starts import Starts
from broker.metrics import Metrics
from broker.pools import Pool
from broker.queue import Queue

log = logging.getLogger(__name__)

LOOK_AGAIN_AFTER: Final = 1.0
"""Seconds until what the store could not keep is decided again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolWork:
    """What works for one pool."""

    pool: Pool
    breaker: Breaker
    driver: Driver
    observer: Observer


class Engine:
    """Runs what the book says is to be done."""

    def __init__(
        self,
        pools: Mapping[str, Pool],
        book: Book,
        clock: Clock,
        metrics: Metrics,
        queue: Queue,
        *,
        broker_id: str,
        jitter: Callable[[], float] = random.random,
        keep_records: timedelta,
        fault_point: FaultPoint = nowhere,
    ) -> None:
        self._book = book
        self.starts = Starts(pools, book, clock)
        self.reservations = Reservations(pools, book, clock)
        self.queue = queue
        self.expiry = Expiry(pools, book, clock, queue, self.reservations, keep_records=keep_records)
        self._freed = 0  # what the book had given back when that was looked at last
        self.ensembles = EnsembleExpiry(book, clock, self.expiry.clock_watch, keep_records=keep_records)
        self.work: dict[str, PoolWork] = {}
        for name, pool in pools.items():
            breaker = Breaker(pool, clock, metrics)
            driver = Driver(
                pool,
                book,
                clock,
                metrics,
                breaker,
                self.starts,
                broker_id=broker_id,
                jitter=jitter,
                fault_point=fault_point,
            )
            observer = Observer(pool, book, clock, metrics, breaker, driver, self.starts, fault_point=fault_point)
            driver.on_accepted = observer.soon
            driver.on_gone = lambda key, seen, observer=observer: observer.apply({key: seen})  # type: ignore[misc]
            breaker.on_change = lambda outage, observer=observer: self._outage(observer, outage)  # type: ignore[misc]
            observer.on_room = self.room_changed
            self.work[name] = PoolWork(pool=pool, breaker=breaker, driver=driver, observer=observer)
        self._clock = clock
        self._lost = asyncio.Event()
        self._loops: list[asyncio.Task[None]] = []
        book.on_task = self._on_task
        book.on_lost = self._lost.set
        book.on_ensemble = self.ensembles.watch
        book.fault_point = fault_point
        queue.before_pass = self.expiry.start_late
        book.on_workspace += [self.expiry.watch, queue.changed, self._on_change]

    async def start(self) -> None:
        """Opens the backends and takes up what was under way when the broker last stopped."""
        self._doubt_interrupted()
        for work in self.work.values():
            await work.pool.backend.open()
            self._loops.append(asyncio.create_task(work.observer.run(), name=f"observe {work.pool.name}"))
        self._loops.append(asyncio.create_task(self.expiry.run(), name="expiry"))
        self._loops.append(asyncio.create_task(self.ensembles.run(), name="ensembles"))
        self._loops.append(asyncio.create_task(self.queue.run(), name="queue"))
        self._loops.append(asyncio.create_task(self._look_again(), name="look again"))
        self._take_up()

    def _take_up(self) -> None:
        """Works on every task there is."""
        for task in list(self._book.tasks.values()):
            self._on_task(task)

    async def _look_again(self) -> None:
        """When the store has lost decisions, they are taken again a little later."""
        while True:
            await self._lost.wait()
            await self._clock.sleep(LOOK_AGAIN_AFTER)
            self._lost.clear()
            self._take_up()
            for workspace in self._book.workspaces.values():
                self.expiry.watch(workspace)
            self.ensembles.watch_all()

    def _doubt_interrupted(self) -> None:
        """A step that was being tried when the broker stopped may have been carried out."""
        with self._book.transaction() as tx:
            for task in list(self._book.tasks.values()):
                if task.step is not None and not task.unsure:
                    tx.put_task(replace(task, unsure=True))

    def room_changed(self) -> None:
        """A pool was looked at, or an operator has spoken: hosts may be out or in again, room may have come free."""
        self.reservations.secure()
        self.expiry.room_freed()
        self.queue.wake()

    def _on_change(self, workspace: Workspace) -> None:
        """A workspace has changed: reservations may have waited for what it gave back."""
        if self._book.freed != self._freed:
            self._freed = self._book.freed
            self.expiry.room_freed()
        if workspace.state.final and self._book.giving_way:
            self.expiry.ended(workspace)

    async def stop(self) -> None:
        """Stops working; what is under way stays in the book."""
        for loop in self._loops:
            loop.cancel()
        await asyncio.gather(*self._loops, return_exceptions=True)
        for work in self.work.values():
            await work.driver.stop()
            await work.pool.backend.close()

    async def refresh(self, pool: str) -> int:
        """A complete look at one pool's backend now; returns how many nodes changed.

        Raises BrokerError BACKEND_UNREACHABLE where it does not answer.
        """
        self.expiry.clock_watch.trust()
        try:
            return await self.work[pool].observer.refresh()
        except BackendError as error:
            raise BrokerError(
                Reason.BACKEND_UNREACHABLE,
                f"the backend of pool {pool} does not answer: {error}",
                resource=f"pools/{pool}",
                retry_after=self.work[pool].pool.settings.breaker.probe_interval,
            ) from error

    def seen_at(self, key: NodeKey, pool: str) -> datetime | None:
        """When a node was last seen; None where the last look at its pool did not see it."""
        work = self.work.get(pool)
        return work.observer.seen_at(key) if work is not None else None

    def _on_task(self, task: Task) -> None:
        work = self.work.get(task.pool)
        if work is not None:
            work.driver.wake(task.key)

    def _outage(self, observer: Observer, outage: float | None) -> None:
        if outage is not None:
            observer.extend_deadlines(outage)
            observer.soon()
