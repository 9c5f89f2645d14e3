"""A book and its pools that stand still: records and hosts as a test wants them, without an engine, a port or a file.

Who decides on what stands in the book (preemption, fair share) can be asked as if all that had come about.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime

from backends.base import BackendContext, Inventory
from backends.simulator import create
from broker.book import Book
from broker.core.clock import ManualClock
from broker.core.model import Workspace
from broker.events import EventLog
from broker.pool_settings import PoolSettings
from broker.pools import Pool
from broker.store.base import Row, Stored


class Kept:
    """A store that holds records to begin with, and keeps what comes for as long as the test lasts."""

    def __init__(self, workspaces: Sequence[Workspace]) -> None:
        self.on_failure: Callable[[], None] | None = None
        self._workspaces = list(workspaces)
        self._loop = asyncio.new_event_loop()

    def load(self) -> Stored:
        """The records it was made with."""
        return Stored(workspaces=self._workspaces)

    def submit(self, rows: Sequence[Row], *, alone: bool) -> asyncio.Future[None]:
        """Never answers: nobody here waits for it."""
        return self._loop.create_future()

    def close(self) -> None:
        """Lets go of the loop."""
        self._loop.close()


class Still:
    """The book of some records, and pools that were looked at once."""

    def __init__(
        self,
        now: datetime,
        pools: Mapping[str, tuple[PoolSettings, Inventory]],
        workspaces: Sequence[Workspace] = (),
    ) -> None:
        self.clock = ManualClock(now)
        self._store = Kept(workspaces)
        self.book = Book(self._store, self.clock, EventLog(kept=100))
        self.book.load()
        self.pools: dict[str, Pool] = {}
        for name, (settings, inventory) in pools.items():
            context = BackendContext(pool=name, broker_id="still", clock=self.clock)
            backend = create({"hosts": [{"cpu": 1, "memory": 1}], **settings.backend_settings}, context)
            self.pools[name] = pool = Pool(settings, backend, self.book, self.clock)
            pool.learn(inventory, now)
            pool.reachable.set()

    def close(self) -> None:
        """Ends it."""
        self._store.close()
