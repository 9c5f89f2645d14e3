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
from typing import Any, Final, TypeVar

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
from broker.operators import Operators
from broker.strays import Strays
from broker.tenants import Tenants
from broker.updates import Updates
from broker.verbs import Verbs
from broker.workspaces import Workspaces

LEAST_TIME: Final = 0.005
"""Seconds a caller must leave a mutation to be made durable in."""

RENDERED_KEPT: Final = 20_000
"""Workspaces remembered as they were shown last, about 1 KiB each."""

T = TypeVar("T")
Context = grpc.aio.ServicerContext[Any, Any]


class Calls:
    """What all calls share: whether the broker still takes any, how many at once, and how long one may last."""

    def __init__(self, settings: ServerSettings) -> None:
        self.stopping = False
        self.timeout = settings.call_timeout
        self._bounds = {"calls": settings.max_calls, "waits and watches": settings.max_watchers}
        self._under_way = dict.fromkeys(self._bounds, 0)

    @contextmanager
    def admitted(self, context: Context, *, waits: bool = False) -> Iterator[None]:
        """A place for a call. Raises BrokerError for one that comes too late, leaves too little time, or is one too
        many; those that mostly wait are counted apart, so that they keep nobody out."""
        if self.stopping:
            raise shutting_down()
        remaining = context.time_remaining()
        if remaining is not None and remaining < LEAST_TIME:
            raise BrokerError(
                Reason.DEADLINE_TOO_SHORT, f"{max(0.0, remaining):.3f} s is too short a deadline for this call"
            )
        kind = "waits and watches" if waits else "calls"
        if self._under_way[kind] >= self._bounds[kind]:
            raise overloaded(kind, self._bounds[kind])
        self._under_way[kind] += 1
        try:
            yield
        finally:
            self._under_way[kind] -= 1


def answered(method: Callable[..., Awaitable[T]], *, waits: bool = False) -> Callable[..., Awaitable[T]]:
    """Wraps a unary method: errors leave as statuses."""

    @wraps(method)
    async def call(self: Any, request: Message, context: Context) -> T:
        try:
            with self._calls.admitted(context, waits=waits):
                if context.time_remaining() is None:
                    async with asyncio.timeout(self._calls.timeout):
                        return await method(self, request, context)
                return await method(self, request, context)
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
    wire: bytes


class Shown:
    """Workspaces as the API shows them: the record, what is under way on its nodes, and when they were last seen."""

    def __init__(self, book: Book, engine: Engine) -> None:
        self._book = book
        self._engine = engine
        self._rendered: dict[str, _Rendered] = {}  # by uid

    def wire(self, workspace: Workspace) -> bytes:
        """A workspace, serialised; what was rendered before is found again while nothing of it has changed."""
        tasks = {}
        seen = {}
        for node in workspace.nodes:
            key = (workspace.uid, node.index)
            task = self._book.tasks.get(key)
            if task is not None:
                tasks[node.index] = task
            at = self._engine.seen_at(key, node.pool)
            if at is not None:
                seen[node.index] = at
        known = self._rendered.get(workspace.uid)
        if known is not None and known.workspace is workspace and known.tasks == tasks and known.seen == seen:
            return known.wire
        message = render.workspace(workspace, state_message=_message(workspace), tasks=tasks, observe_times=seen)
        wire = message.SerializeToString()
        if len(self._rendered) >= RENDERED_KEPT:
            self._rendered.clear()
        self._rendered[workspace.uid] = _Rendered(workspace=workspace, tasks=tasks, seen=seen, wire=wire)
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


def _message(workspace: Workspace) -> str:
    """Why the state is what it is, where its nodes differ or it waits."""
    if workspace.notices and workspace.state.value == "PENDING":
        return workspace.notices[0].message
    return workspace_state(workspace.nodes, started=workspace.started).message
