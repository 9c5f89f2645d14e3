"""What all services share: which calls are taken, how errors leave, and how a workspace is shown.

Every refusal leaves as a google.rpc.Status with a reason; an exception nobody foresaw leaves as INTERNAL, without its
text. A call that cannot be done in the time its caller gives it is refused before anything happens.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import wraps
from typing import Any, Final, Literal, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import Message
from msgspec import Struct

from broker.api import render
from broker.api.status import grpc_status
from broker.api.wire import embedded
from broker.book import Book
from broker.config import ServerSettings
from broker.core.errors import BrokerError, Reason, overloaded, shutting_down
from broker.core.model import Task, Workspace
from broker.core.whole import workspace_state
from broker.engine.engine import Engine
from broker.ensembles import Ensembles
from broker.operators import Operators
from broker.queue import Queue
from broker.queue_pass import NOWHERE, Place
from broker.strays import Strays
from broker.tenants import Tenants
from broker.updates import Updates
from broker.verbs import Verbs
from broker.workspaces import Workspaces

LEAST_TIME: Final = 0.005
"""Seconds a caller must leave a mutation to be made durable in."""

RENDERED_KEPT: Final = 20_000
"""Workspaces remembered as they were shown last, about 1 KiB each."""

Kind = Literal["calls", "waits and watches"]
CALL: Final = "calls"
WAIT: Final = "waits and watches"

T = TypeVar("T")
Context = grpc.aio.ServicerContext[Any, Any]


class Calls:
    """What all calls share: whether the broker still takes any, how many at once, and how long one may last."""

    def __init__(self, settings: ServerSettings) -> None:
        self.stopping = False
        self.timeout = settings.call_timeout
        self._bounds: dict[Kind, int] = {CALL: settings.max_calls, WAIT: settings.max_watchers}
        self._under_way = dict.fromkeys(self._bounds, 0)

    def enter(self, kind: Kind, remaining: float | None) -> None:
        """Takes a place for a call, which `leave` gives back. Raises BrokerError for one that comes too late, leaves
        too little time (`remaining` seconds; None: as long as it takes), or is one too many; those that mostly wait
        are counted apart, so that they keep nobody out."""
        if self.stopping:
            raise shutting_down()
        if remaining is not None and remaining < LEAST_TIME:
            raise BrokerError(
                Reason.DEADLINE_TOO_SHORT, f"{max(0.0, remaining):.3f} s is too short a deadline for this call"
            )
        if self._under_way[kind] >= self._bounds[kind]:
            raise overloaded(kind, self._bounds[kind])
        self._under_way[kind] += 1

    def leave(self, kind: Kind) -> None:
        """Gives a place back."""
        self._under_way[kind] -= 1

    @contextmanager
    def admitted(self, kind: Kind, context: Context) -> Iterator[None]:
        """A place for a call while it runs; see `enter`."""
        self.enter(kind, context.time_remaining())
        try:
            yield
        finally:
            self.leave(kind)


def answered(
    method: Callable[..., Awaitable[T]], *, kind: Kind = CALL, at_once: bool = False
) -> Callable[..., Awaitable[T]]:
    """Wraps a unary method: errors leave as statuses. `at_once`: it waits for nothing, so it needs no limit in time."""

    @wraps(method)
    async def call(self: Any, request: Message, context: Context) -> T:
        calls = self._calls
        remaining = context.time_remaining()
        try:
            calls.enter(kind, remaining)
            try:
                if at_once or remaining is not None:
                    return await method(self, request, context)
                async with asyncio.timeout(calls.timeout):
                    return await method(self, request, context)
            finally:
                calls.leave(kind)
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


class _Rendered(Struct, frozen=True, kw_only=True):
    """A workspace as it was shown last, and what that was made from."""

    workspace: Workspace
    tasks: dict[int, Task]
    seen: dict[int, datetime]
    place: Place
    wire: bytes


class Shown:
    """Workspaces as the API shows them: the record, what is under way on its nodes, and when they were last seen."""

    def __init__(self, book: Book, engine: Engine, queue: Queue) -> None:
        self._book = book
        self._engine = engine
        self._queue = queue
        self._rendered: dict[str, _Rendered] = {}  # by uid

    def wire(self, workspace: Workspace) -> bytes:
        """A workspace, serialised; what was rendered before is found again while nothing of it has changed."""
        tasks = {}
        seen = {}
        uid, under_way, seen_at = workspace.uid, self._book.tasks, self._engine.seen_at
        for node in workspace.nodes:
            index = node.index
            key = (uid, index)
            task = under_way.get(key)
            if task is not None:
                tasks[index] = task
            at = seen_at(key, node.pool)
            if at is not None:
                seen[index] = at
        place = NOWHERE if workspace.waiting_since is None else self._queue.place(uid)
        known = self._rendered.get(uid)
        if (
            known is not None
            and known.workspace is workspace
            and known.tasks == tasks
            and known.seen == seen
            and known.place is place
        ):
            return known.wire
        message = render.workspace(
            workspace,
            state_message=_message(workspace),
            tasks=tasks,
            queue_position=place.position,
            planned_start=place.start,
            observe_times=seen,
        )
        wire = message.SerializeToString()
        if len(self._rendered) >= RENDERED_KEPT:
            self._rendered.clear()
        self._rendered[workspace.uid] = _Rendered(workspace=workspace, tasks=tasks, seen=seen, place=place, wire=wire)
        return wire

    def alone(self, workspace: Workspace) -> bytes:
        """An answer that is nothing but a workspace, serialised: the first field of every one of them."""
        return embedded(1, self.wire(workspace))


@dataclass(frozen=True, slots=True, kw_only=True)
class UseCases:
    """What calls are handed to."""

    workspaces: Workspaces
    verbs: Verbs
    updates: Updates
    tenants: Tenants
    operators: Operators
    strays: Strays
    ensembles: Ensembles


def _message(workspace: Workspace) -> str:
    """Why the state is what it is, where its nodes differ or it waits."""
    if workspace.notices and workspace.state.value == "PENDING":
        return workspace.notices[0].message
    if workspace.awaits_seal:
        return f"waits for ensemble {workspace.ensemble} to be sealed"
    return workspace_state(workspace.nodes, started=workspace.started).message
