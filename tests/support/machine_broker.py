"""A broker without a port that can be stopped, killed and started again on its file, over two simulated pools.

The pools' VMs, faults and silence outlive the broker; its memory does not.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any, Final, TypeVar

from backends import registry
from backends.base import Step, StepCall
from backends.simulator import FaultKind, Machine, Simulator, World
from backends.simulator.faults import Faults
from backends.simulator.steps import Stage
from broker.assembly import BROKER_ID_KEY, Assembly
from broker.config import Settings, load
from broker.core.clock import Clock
from broker.core.errors import BrokerError, Reason
from broker.store.sqlite import SqliteStore
from tests.support.machine_loop import LeapingClock, settle

T = TypeVar("T")

START: Final = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
POOLS: Final = ("alpha", "beta")

_worlds = count()


class PortlessBroker(Assembly):
    """The whole broker on its file, wired as ever, without gRPC. `wired` is called before its engine starts."""

    def __init__(
        self, settings: Settings, *, clock: Clock, new_uid: Callable[[], str], wired: Callable[[Assembly], None]
    ) -> None:
        super().__init__(settings, clock=clock, new_uid=new_uid, jitter=lambda: 0.5)
        self._wired = wired

    async def start(self) -> None:
        """Takes up what the file holds."""
        self.store = SqliteStore(self.settings.server.state)
        try:
            await self.assemble(self.store)
        except BaseException:
            self.store.close()
            raise
        self._wired(self)
        await self.engine.start()

    async def stop(self) -> None:
        """Rests, and lets go of the file."""
        await self.engine.stop()
        self.store.close()


class Forgetful(Stage):
    """A pool that makes another VM for each allocate it is sent, as OpenNebula does."""

    def take(self, call: StepCall, now: datetime, fault: FaultKind | None = None) -> str:
        if call.step is Step.ALLOCATE:
            return self._allocate(call, now, fault).backend_id
        return Stage.take(self, call, now, fault)


class Complaints(logging.Handler):
    """Collects what must never be logged: lost work, and exceptions nobody expected."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        said = record.getMessage()
        if record.exc_info or "=lost" in said or "store=failed" in said or record.name == "asyncio":
            self.found.append(self.format(record))


class Rig:
    """The broker of one run, its pools, and the hand that reaches into them."""

    def __init__(self, folder: Path, configuration: str) -> None:
        """`configuration`: "WORLD OF" a pool stands for the name of its world."""
        number = next(_worlds)
        self.worlds = {pool: f"machine-{number}-{pool}" for pool in POOLS}
        file = folder / "broker.toml"
        for pool, world in self.worlds.items():
            configuration = configuration.replace(f"WORLD OF {pool}", world)
        file.write_text(configuration)
        self.settings = load(file, registry.load)
        self.clock = LeapingClock(START)
        self.faults = {pool: Faults(()) for pool in POOLS}
        self.silent: set[str] = set()
        self.hidden: set[str] = set()
        self.complaints = Complaints()
        self.broker: PortlessBroker
        self._uids = count(1)

    # The broker's life

    async def start(self) -> None:
        """Starts a broker on the file."""
        asyncio.get_running_loop().set_exception_handler(self._complain)
        self.broker = PortlessBroker(
            self.settings, clock=self.clock, new_uid=lambda: f"{next(self._uids):032x}", wired=self._rewire
        )
        await self.broker.start()
        await settle()

    def _complain(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self.complaints.found.append(f"{context.get('message')}: {context.get('exception')!r}")

    def _rewire(self, broker: Assembly) -> None:
        """Faults, silence and the like are the pools' own: a new broker meets them as they are."""
        for name, pool in broker.pools.items():
            backend = pool.backend
            assert isinstance(backend, Simulator)
            stage = backend._stage
            backend._stage = Forgetful(world=stage.world, hosts=stage.hosts, settings=stage.settings)
            backend._faults = backend.by_hand.faults = self.faults[name]
            backend.by_hand.silent = name in self.silent
            backend.by_hand.hidden = name in self.hidden

    async def stop(self) -> None:
        """Stops the broker in good order."""
        await self.broker.stop()
        await settle()

    async def kill(self) -> None:
        """The broker's process dies, now: what it has not committed and all it remembers is lost."""
        store: Any = self.broker.store
        if store._timer is not None:
            store._timer.cancel()
        store.submit = lambda rows, alone: asyncio.get_running_loop().create_future()
        store.flush = lambda: None
        if store._commit is not None:
            asyncio.Future.cancel(store._commit)  # it never comes
        store._db.close()
        os.close(store._lock_file)
        logging.disable(logging.CRITICAL)  # the dead say nothing
        try:
            own = asyncio.current_task()
            while tasks := asyncio.all_tasks() - {own}:  # one that ends may leave another
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
        finally:
            logging.disable(logging.NOTSET)

    def forget(self) -> None:
        """Ends the pools."""
        for world in self.worlds.values():
            World.forget(world)

    # Calls

    async def done(self, call: Coroutine[Any, Any, T]) -> T:
        """The answer of a call, for which the clock moves on a little where it has to."""
        task = asyncio.ensure_future(call)
        await settle()
        for _ in range(200):
            if task.done():
                break
            await self.clock.advance(0.1)
        assert task.done(), f"no answer after 20 s: {task}"
        return await task

    async def tried(self, call: Coroutine[Any, Any, T]) -> T | BrokerError:
        """The answer of a call, or its refusal, which must be one with a reason."""
        return (await self.tried_together([call]))[0]

    async def tried_together(self, calls: list[Coroutine[Any, Any, T]]) -> list[T | BrokerError]:
        """The answers of calls that come at the same moment."""
        return await self.done(self._answers(calls))

    @staticmethod
    async def _answers(calls: list[Coroutine[Any, Any, T]]) -> list[T | BrokerError]:
        answers: list[T | BrokerError] = []
        for answer in await asyncio.gather(*calls, return_exceptions=True):
            if isinstance(answer, BaseException) and not isinstance(answer, BrokerError):
                raise answer
            if isinstance(answer, BrokerError) and (answer.reason is Reason.INTERNAL or not str(answer)):
                raise AssertionError(f"no refusal of ours: {answer.reason}: {answer}") from answer
            answers.append(answer)
        return answers

    # The pools

    def backend(self, pool: str) -> Simulator:
        """A pool's backend."""
        backend = self.broker.pools[pool].backend
        assert isinstance(backend, Simulator)
        return backend

    @property
    def broker_id(self) -> str:
        """What the broker's VMs are tagged with."""
        return self.broker.book.settings[BROKER_ID_KEY]

    def machines(self, pool: str) -> list[Machine]:
        """Every machine of a pool, settled."""
        return self.backend(pool).vms

    def world(self, pool: str) -> World:
        """A pool's world."""
        return self.backend(pool).by_hand.world

    def fail(self, pool: str, kind: FaultKind, step: str, host: str, times: int, every: int) -> None:
        """The next calls of a step go wrong."""
        self.backend(pool).by_hand.fail(kind, step, host=host, count=times, every=every)

    def set_silent(self, pool: str, silent: bool) -> None:
        """A pool falls silent, or answers again."""
        (self.silent.add if silent else self.silent.discard)(pool)
        self.backend(pool).by_hand.silent = silent

    def set_hidden(self, pool: str, hidden: bool) -> None:
        """A pool's documents show no VM, or do again."""
        (self.hidden.add if hidden else self.hidden.discard)(pool)
        self.backend(pool).by_hand.hidden = hidden
