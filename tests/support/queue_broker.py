"""A whole broker without a port or a file, over simulated pools, for a model of its queue to look at.

Time is moved from one instant at which anybody wakes to the next; whoever looks is called after each that changed a
record, and told every change in order.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any, Final

from backends.base import HostState
from backends.simulator import Simulator
from broker.assembly import BROKER_ID_KEY, Assembly
from broker.config import Settings
from broker.core.clock import ManualClock
from broker.core.errors import BrokerError
from broker.core.lifecycle import Verb
from broker.core.model import FINAL, State, Workspace
from broker.core.requests import CreateRequest, Target, WorkspaceRequest
from broker.queue_pass import NOWHERE, Place
from broker.store.memory import MemoryStore
from tests.support.machine_broker import Complaints

START: Final = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
MOMENT: Final = timedelta(seconds=1)
"""After what is done and before what is next: VMs begin and end within it."""

LOGGERS: Final = ("broker", "backends", "asyncio")


class QueueBroker:
    """One broker from its start to its end."""

    def __init__(self, settings: Settings, *, asks: bool = False) -> None:
        """`asks`: places are asked for, as users do."""
        self.settings = settings
        self._asks = asks
        self.clock = ManualClock(START)
        self.lost: set[tuple[str, str]] = set()  # hosts, by pool and name
        self.noted: Callable[[Workspace], None] = lambda workspace: None
        self.looked: Callable[[], None] = lambda: None
        self._complaints = Complaints()
        self._loop = asyncio.new_event_loop()
        uids = count(1)
        self._names = count(1)
        self._seen = -1  # the revision at which somebody looked last
        self._broker = Assembly(settings, clock=self.clock, new_uid=lambda: f"{next(uids):04}", jitter=lambda: 0.5)
        for name in LOGGERS:
            logging.getLogger(name).addHandler(self._complaints)

    def start(self) -> None:
        """Starts it, and has it look at its pools."""

        async def start() -> None:
            await self._broker.assemble(MemoryStore({BROKER_ID_KEY: "queue"}))
            self._broker.book.on_workspace.append(lambda workspace: self.noted(workspace))
            await self._broker.engine.start()
            await self.clock.advance(0.0)

        self._loop.run_until_complete(start())

    def stop(self) -> None:
        """Stops it, whatever has happened."""
        try:
            self._loop.run_until_complete(self._broker.engine.stop())
        finally:
            self._loop.close()
            for name in LOGGERS:
                logging.getLogger(name).removeHandler(self._complaints)

    # What it shows

    @property
    def now(self) -> datetime:
        """The time there."""
        return self.clock.now()

    @property
    def records(self) -> list[Workspace]:
        """Every workspace that is not at its end."""
        return [each for each in self._broker.book.workspaces.values() if each.state not in FINAL]

    def place(self, uid: str) -> Place:
        """Where one stands in the queue: as who asks is told, or, which changes nothing, as of the last pass."""
        queue = self._broker.queue
        return queue.place(uid) if self._asks else queue._places.get(uid, NOWHERE)

    def totals(self, pool: str) -> dict[str, dict[str, int]]:
        """What there is, by host, lost or not."""
        backend = self._backend(pool)
        return {name: dict(hosts.total) for name, hosts in backend._stage.hosts.items()}

    # What is done to it

    def create(self, tenant: str, wanted: WorkspaceRequest) -> Workspace | BrokerError:
        """Asks for a workspace; its answer, or its refusal."""
        request = CreateRequest(tenant=tenant, workspace=wanted, workspace_id=f"w{next(self._names)}")
        try:
            answer: Workspace = self._done(self._broker.workspaces.create(request))
        except BrokerError as refusal:
            return refusal
        return answer

    def end(self, workspace: Workspace) -> None:
        """Its owner ends it."""
        target = Target(tenant=workspace.tenant, workspace_id=workspace.id)
        self._done(self._broker.verbs.verb(Verb.TERMINATE, target))

    def set_lost(self, pool: str, host: str, lost: bool) -> None:
        """A host is lost, or is back; the broker sees it at once."""
        (self.lost.add if lost else self.lost.discard)((pool, host))
        self._backend(pool).by_hand.set_host(host, HostState.LOST if lost else HostState.ACTIVE)
        self._done(self._broker.engine.refresh(pool))

    def advance(self, length: timedelta) -> None:
        """Moves time on."""

        async def advance() -> None:
            to = self.now + length
            await self.clock.advance(0.0)
            self._look()
            while self.now < to:
                wake = self.clock.next_wake
                until = to if wake is None else min(max(wake, self.now), to)
                await self.clock.advance((until - self.now).total_seconds())
                self._look()

        self._loop.run_until_complete(advance())

    # Inside

    def _backend(self, pool: str) -> Simulator:
        backend = self._broker.pools[pool].backend
        assert isinstance(backend, Simulator)
        return backend

    def _done(self, call: Coroutine[Any, Any, Any]) -> Any:
        """The answer of a call, for which time stands still."""

        async def answer() -> Any:
            task = asyncio.ensure_future(call)
            await self.clock.advance(0.0)
            assert task.done(), f"no answer to {call} without the clock moving"
            return await task

        return self._loop.run_until_complete(answer())

    def _look(self) -> None:
        assert not self._complaints.found, "\n".join(self._complaints.found)
        if self._seen != self._broker.book.revision:
            self._seen = self._broker.book.revision
            self.looked()


def waits(workspace: Workspace) -> bool:
    """Whether it waits in the queue."""
    return workspace.waiting_since is not None and workspace.state not in FINAL


def overdue(workspace: Workspace) -> bool:
    """Whether it is a reservation that could not begin when it was due."""
    return workspace.state is State.PENDING and bool(workspace.nodes) and workspace.preempted_time is None
