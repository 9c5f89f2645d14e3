"""Drives one pool's tasks: each step committed before it is tried, tried until it is accepted, settled when unsure.

One coroutine a node at most, and at most `max_in_flight` calls to the backend at once, so that a backend that hangs
takes its own pool down and no other. A call under way is never cut off, since it may be carried out; a wait between
two tries is, when something else is wanted of the node. What a step led to is told by observations (observer.py).
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TypeVar

from msgspec.structs import replace

from backends.base import (
    Action,
    BackendError,
    BackendRejected,
    Identity,
    Observation,
    ObservedNode,
    OutcomeUnknown,
    Step,
    StepCall,
    TransientBackendError,
)
from broker.book import Book
from broker.core.clock import Clock
from broker.core.errors import BrokerError, Failure, Reason
from broker.core.model import Node, NodeKey, Notice, NoticeKind, Task, Workspace
from broker.engine.breaker import Breaker
from broker.engine.fault_points import LEAVING, FaultPoint, Moment, point_of
from broker.engine.nodes import node_spec
from broker.engine.retry import Interrupted, RetryPolicy, call_with_retries, interrupted_sleep
from broker.engine.starts import Starts
from broker.engine.tasks import write
from broker.metrics import Metrics
from broker.pools import Pool

log = logging.getLogger(__name__)

T = TypeVar("T")

STUCK_AFTER = 3
"""Spent budgets after which a task that goes on for ever is shown as stuck."""

UNFORESEEN_PAUSE = 5.0
"""Seconds after an exception nobody foresaw until the task is looked at again."""

LONGEST_PAUSE = 300.0
"""Seconds between two rounds of a task that goes on for ever."""


@dataclass(slots=True)
class _Running:
    """A node's coroutine, the task it works on, and what cuts its waits short."""

    job: asyncio.Task[None] | None = None
    task: Task | None = None
    interrupt: asyncio.Event = field(default_factory=asyncio.Event)
    rounds: int = 0  # budgets spent in a row
    doubted: bool = False  # a call was made, and what became of it could not be written down


class Driver:
    """The tasks of one pool."""

    def __init__(
        self,
        pool: Pool,
        book: Book,
        clock: Clock,
        metrics: Metrics,
        breaker: Breaker,
        starts: Starts,
        *,
        broker_id: str,
        jitter: Callable[[], float],
        fault_point: FaultPoint,
    ) -> None:
        self.pool = pool
        self._book = book
        self._clock = clock
        self._metrics = metrics
        self._breaker = breaker
        self._starts = starts
        self._broker_id = broker_id
        self._jitter = jitter
        self._fault_point = fault_point
        self._turns: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)  # by host
        self._workers = asyncio.Semaphore(pool.settings.max_in_flight)
        retry = pool.settings.retry
        self._retries = RetryPolicy(initial=retry.initial, maximum=retry.maximum, budget=retry.budget)
        self._running: dict[NodeKey, _Running] = {}
        self.accepted: dict[NodeKey, float] = {}
        """When the backend accepted a node's last step, monotonic: older observations say nothing about it."""
        self.on_accepted: Callable[[], None] = lambda: None
        self.on_gone: Callable[[NodeKey, ObservedNode], None] = lambda key, seen: None

    def identity(self, workspace: Workspace, node: Node) -> Identity:
        """Whose VM a node is."""
        return Identity(broker_id=self._broker_id, workspace_uid=workspace.uid, node_index=node.index)

    def wake(self, key: NodeKey) -> None:
        """Sees to it that a node's task is worked on, as it stands in the book now."""
        task = self._book.tasks.get(key)
        running = self._running.get(key)
        if running is not None:
            if running.task is not None and (task is None or not same_transition(running.task, task)):
                running.interrupt.set()  # something else is wanted now: a wait is cut short
        elif task is not None and task.step is not None:
            running = _Running()
            running.job = asyncio.create_task(self._work(key, running), name=f"{self.pool.name}/{key[0]}/{key[1]}")
            self._running[key] = running

    async def stop(self) -> None:
        """Ends all work; calls under way are left to the next start, which looks before it tries again."""
        jobs = [running.job for running in self._running.values() if running.job is not None]
        for job in jobs:
            job.cancel()
        await asyncio.gather(*jobs, return_exceptions=True)

    async def queued(self, what: str, operation: Callable[[], Awaitable[T]], *, host: str = "") -> T:
        """One call, when the pool's bound on calls at once allows it, and when it is its turn on a host that takes one
        at a time ("": no turns)."""
        if not host:
            async with self._workers:
                return await self.call(what, operation)
        async with self._turns[host], self._workers:
            return await self.call(what, operation)

    async def call(self, what: str, operation: Callable[[], Awaitable[T]]) -> T:
        """One call to the backend, counted, and told to the breaker."""
        try:
            answer = await operation()
        except BackendError as error:
            kind = type(error).__name__
            self._metrics.backend_calls.labels(self.pool.name, what, kind).inc()
            if isinstance(error, BackendRejected) or (isinstance(error, TransientBackendError) and error.answered):
                self._breaker.answered()
            else:
                self._breaker.failed(error)
            raise
        except Exception as error:
            # A backend that answers nonsense must not end the coroutine that cares for a node.
            self._metrics.backend_calls.labels(self.pool.name, what, "defect").inc()
            log.exception("pool=%s call=%s defect of the backend", self.pool.name, what)
            self._breaker.failed(error)
            raise OutcomeUnknown(f"the backend's adapter failed: {error!r}") from error
        self._metrics.succeeded(self.pool.name, what)
        self._breaker.answered()
        return answer

    async def _work(self, key: NodeKey, running: _Running) -> None:
        try:
            while (task := self._book.tasks.get(key)) is not None and task.step is not None:
                running.task = task
                running.interrupt.clear()
                await self.pool.reachable.wait()
                try:
                    await self._book.task_settled(key)  # nothing is tried that a kill would make unsaid
                    if self._book.tasks.get(key) is not task:
                        continue
                    if task.deadline is not None and self._clock.now() >= task.deadline:
                        self._starts.failed(task, "it took too long", host_fault=False, reason=Reason.TASK_TIMEOUT)
                        continue
                    await self._turn(task, running)
                except Interrupted:
                    continue
                except BrokerError as error:  # the store: nothing was changed, so the same again a little later
                    log.error("pool=%s workspace=%s node=%d error=%s", self.pool.name, *key, error)
                    await self._clock.sleep(error.retry_after or 1.0)
                except Exception:  # a mistake of ours must not leave a node without anybody who cares for it
                    log.exception("pool=%s workspace=%s node=%d step=%s", self.pool.name, *key, task.step)
                    await self._clock.sleep(UNFORESEEN_PAUSE)
        finally:
            del self._running[key]

    async def _turn(self, task: Task, running: _Running) -> None:
        """One try, and what follows from how it went."""
        try:
            await self._try(task, running)
            running.rounds, running.doubted = 0, False
        except TransientBackendError as error:
            running.rounds += 1
            await self._budget_spent(task, error, running.rounds, running.interrupt)
        except BackendRejected as error:
            running.rounds += 1
            await self._rejected(task, error, running.rounds, running.interrupt)
        except OutcomeUnknown as error:
            await self._unsure(task, error, running.interrupt)

    async def _try(self, task: Task, running: _Running) -> None:
        interrupt = running.interrupt
        workspace = self._book.workspaces[task.uid]
        node = workspace.nodes[task.index]
        ending = task.action == Action.TERMINATE
        if task.action == Action.CREATE and node.target_host and task.position == 1:
            # Whatever is found now is the VM that is left behind, never one of the next host.
            await self._leave_host(task, workspace, node, interrupt)
            return
        if task.unsure or running.doubted or (ending and not node.backend_id):
            found = await self._retried(task, "find", lambda: self.find(workspace, node), interrupt)
            await self._settle(task, found)
            return
        call = StepCall(
            step=Step(task.steps[task.position]),
            node=node_spec(workspace, node, self.identity(workspace, node)),
            backend_id=node.backend_id,
            force=task.force,
            target_host=node.target_host,
            image_name=task.image_name,
            device=task.device,
            repeated=task.attempt > 1,
        )
        self._fault_point(point_of(task.action, call.step, Moment.BEFORE))
        running.doubted = True
        try:
            host = (node.target_host or node.host) if call.step in self.pool.backend.in_turn else ""
            backend_id = await self._retried(
                task, call.step, lambda: self.pool.backend.perform(call), interrupt, host=host
            )
        except (TransientBackendError, BackendRejected, Interrupted):
            running.doubted = False  # nothing happened
            raise
        self._fault_point(point_of(task.action, call.step, Moment.CALLED))
        await self._advance(task, backend_id)

    async def _leave_host(self, task: Task, workspace: Workspace, node: Node, interrupt: asyncio.Event) -> None:
        """A node that its first host could not start goes on at another once its VM is seen gone."""
        found = await self._retried(task, "find", lambda: self.find(workspace, node), interrupt)
        if found.observation is not Observation.ABSENT:
            await interrupted_sleep(self._clock, self.pool.settings.retry.initial, interrupt)
            return
        gone, moved = LEAVING
        self._fault_point(gone)
        current = self._book.tasks.get(task.key)
        if current is None or not same_transition(current, task):
            return
        workspace = self._book.workspaces[task.uid]  # other nodes may have moved on meanwhile
        nodes = list(workspace.nodes)
        node = nodes[task.index]
        nodes[task.index] = replace(node, host=node.target_host, target_host="", backend_id="")
        with self._book.transaction() as tx:
            write(tx, workspace, nodes)
            tx.put_task(replace(current, steps=current.steps[1:], position=0, force=False))
        await tx.durable()
        self._fault_point(moved)

    async def find(self, workspace: Workspace, node: Node) -> ObservedNode:
        """Asks the backend for this very VM."""
        return await self.pool.backend.find(self.identity(workspace, node), node.backend_id)

    async def _retried(
        self,
        task: Task,
        what: str,
        operation: Callable[[], Awaitable[T]],
        interrupt: asyncio.Event,
        *,
        host: str = "",
    ) -> T:
        async def told(attempt: int, seconds: float, error: TransientBackendError) -> None:
            workspace = self._book.workspaces[task.uid]
            log.warning(
                "retry pool=%s workspace=%s node=%d step=%s attempt=%d next_in=%.2fs error=%s",
                self.pool.name,
                workspace.name,
                task.index,
                what,
                attempt,
                seconds,
                error,
            )
            self._metrics.backend_retries.labels(self.pool.name, what).inc()
            current = self._book.tasks.get(task.key)
            if current is None or not same_transition(current, task):
                raise Interrupted
            with self._book.transaction() as tx:
                tx.put_task(
                    replace(
                        current,
                        attempt=current.attempt + 1,
                        next_attempt_time=self._clock.now() + timedelta(seconds=seconds),
                        last_error=_failure(error),
                    )
                )

        return await call_with_retries(
            lambda: self.queued(what, operation, host=host),
            policy=self._retries,
            clock=self._clock,
            jitter=self._jitter,
            told=told,
            interrupt=interrupt,
        )

    async def _advance(self, task: Task, backend_id: str) -> None:
        """A step was accepted: the next one is committed before it is tried."""
        current = self._book.tasks.get(task.key)
        workspace = self._book.workspaces.get(task.uid)
        if workspace is None:
            return
        node = workspace.nodes[task.index]
        with self._book.transaction() as tx:
            if backend_id and node.backend_id != backend_id:
                nodes = list(workspace.nodes)
                nodes[task.index] = replace(node, backend_id=backend_id)
                write(tx, workspace, nodes)
            if current is not None and same_transition(current, task):
                advanced = replace(
                    current,
                    position=task.position + 1,
                    attempt=1,
                    unsure=False,
                    next_attempt_time=None,
                    last_error=None,
                )
                tx.put_task(advanced)
                if advanced.step is None:
                    self.accepted[task.key] = self._clock.monotonic()
        await tx.durable()
        self._fault_point(point_of(task.action, task.step or "", Moment.COMMITTED))
        log.info(
            "step=%s pool=%s workspace=%s node=%d backend_id=%s accepted",
            task.step,
            self.pool.name,
            workspace.name,
            task.index,
            backend_id,
        )
        self.on_accepted()

    async def _settle(self, task: Task, found: ObservedNode) -> None:
        """What a look by identity says about a step whose outcome was not known."""
        current = self._book.tasks.get(task.key)
        if current is None or not same_transition(current, task):
            return
        absent = found.observation is Observation.ABSENT
        if task.action == Action.TERMINATE:
            if absent:
                self.on_gone(task.key, found)
                return
            await self._found(task, found.backend_id)
        elif task.step == Step.ALLOCATE and not absent:
            await self._advance(task, found.backend_id)
        else:
            # It is tried again, and the backend is told that it is not the first time.
            with self._book.transaction() as tx:
                tx.put_task(replace(current, unsure=False, attempt=max(2, current.attempt)))
            await tx.durable()

    async def _found(self, task: Task, backend_id: str) -> None:
        """A VM to be ended was found by its identity: now it can be named."""
        workspace = self._book.workspaces[task.uid]
        nodes = list(workspace.nodes)
        nodes[task.index] = replace(nodes[task.index], backend_id=backend_id)
        with self._book.transaction() as tx:
            write(tx, workspace, nodes)
            tx.put_task(replace(task, unsure=False))
        await tx.durable()

    async def _unsure(self, task: Task, error: OutcomeUnknown, interrupt: asyncio.Event) -> None:
        """Remembers that a try may have been carried out, and looks again after a while."""
        current = self._book.tasks.get(task.key)
        if current is None or not same_transition(current, task):
            return
        retry = self.pool.settings.retry
        pause = RetryPolicy(initial=retry.initial, maximum=retry.maximum).wait(current.attempt, self._jitter())
        log.warning(
            "unsure pool=%s workspace=%s node=%d step=%s attempt=%d error=%s",
            self.pool.name,
            task.uid,
            task.index,
            task.step,
            current.attempt,
            error,
        )
        self._metrics.backend_retries.labels(self.pool.name, str(task.step)).inc()
        with self._book.transaction() as tx:
            tx.put_task(
                replace(
                    current,
                    unsure=True,
                    attempt=current.attempt + 1,
                    next_attempt_time=self._clock.now() + timedelta(seconds=pause),
                    last_error=_failure(error),
                )
            )
        await tx.durable()
        await interrupted_sleep(self._clock, pause, interrupt)

    async def _rejected(self, task: Task, error: BackendRejected, rounds: int, interrupt: asyncio.Event) -> None:
        current = self._book.tasks.get(task.key)
        if current is None or not same_transition(current, task):
            return
        if current.action == Action.TERMINATE:
            # A refused end is asked for again, the harder way: it goes on until the VM is seen gone.
            with self._book.transaction() as tx:
                tx.put_task(replace(current, force=True, attempt=current.attempt + 1, last_error=_failure(error)))
            await self._pause(current, error, rounds, interrupt)
        else:
            self._starts.failed(current, str(error), host_fault=error.host_fault)

    async def _budget_spent(
        self, task: Task, error: TransientBackendError, rounds: int, interrupt: asyncio.Event
    ) -> None:
        """The tries of a budget are used up: a task with a deadline fails, one without goes on, ever more slowly."""
        current = self._book.tasks.get(task.key)
        if current is None or not same_transition(current, task):
            return
        if not self.pool.reachable.is_set():
            return  # the pool's fault, not the node's: the transition waits
        if current.deadline is not None:
            self._starts.failed(current, str(error), host_fault=True)
        else:
            await self._pause(current, error, rounds, interrupt)

    async def _pause(self, task: Task, error: BackendError, rounds: int, interrupt: asyncio.Event) -> None:
        if rounds >= STUCK_AFTER:
            self._show_stuck(task, error)
        retry = self.pool.settings.retry
        await interrupted_sleep(
            self._clock, min(LONGEST_PAUSE, max(retry.initial, 0.1) * 2.0 ** min(rounds, 12)), interrupt
        )

    def _show_stuck(self, task: Task, error: BackendError) -> None:
        workspace = self._book.workspaces[task.uid]
        if any(notice.kind is NoticeKind.STUCK for notice in workspace.notices):
            return
        notice = Notice(kind=NoticeKind.STUCK, time=self._clock.now(), message=f"{task.action} keeps failing: {error}")
        with self._book.transaction() as tx:
            tx.put(replace(workspace, notices=(*workspace.notices, notice)))


def same_transition(one: Task, other: Task) -> bool:
    """Whether two rows are about the same thing under way, not one that took its place."""
    return (one.action, one.create_time, one.steps) == (other.action, other.create_time, other.steps)


def _failure(error: BackendError) -> Failure:
    rejected = isinstance(error, BackendRejected)
    return Failure(reason=Reason.BACKEND_REJECTED if rejected else Reason.BACKEND_UNREACHABLE, message=str(error))
