"""An OpenNebula pool for tests: the adapter with settings and a clock of its own, in front of a stand-in.

Responsible for building specs and calls briefly, and for waiting until the adapter itself reports something.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from msgspec.structs import replace

from backends.base import (
    Action,
    BackendContext,
    Identity,
    NodeSpec,
    Observation,
    ObservedNode,
    SettingProblem,
    Step,
    StepCall,
)
from backends.opennebula import adapter
from backends.opennebula.adapter import OpenNebulaBackend
from backends.opennebula.standin import Standin

BROKER = "broker-1"


@dataclass
class HandClock:
    """A clock that moves when told."""

    seconds: float = 0.0

    def now(self) -> datetime:
        return datetime.fromtimestamp(self.seconds, UTC)

    def monotonic(self) -> float:
        return self.seconds

    async def sleep(self, seconds: float) -> None:
        self.seconds += seconds


def identity(workspace: str = "ws-1", index: int = 0, broker: str = BROKER) -> Identity:
    return Identity(broker_id=broker, workspace_uid=workspace, node_index=index)


def node(host: str = "node000", *, cpu: int = 1000, memory: int = 512, **changes: Any) -> NodeSpec:
    spec = NodeSpec(identity=identity(), name="web", host=host, amounts={"cpu": cpu, "memory": memory})
    return replace(spec, **changes)


def make(endpoint: str, session: str, clock: HandClock | None = None, **settings: Any) -> OpenNebulaBackend:
    table: dict[str, object] = {"endpoint": endpoint, "session": session, "call_timeout": "20s", **settings}
    problems: list[SettingProblem] = list(adapter.check(table))
    assert problems == []
    context = BackendContext(pool="one", broker_id=BROKER, clock=clock or HandClock())
    backend = adapter.create(table, context)
    assert isinstance(backend, OpenNebulaBackend)
    return backend


@asynccontextmanager
async def pool(one: Standin, clock: HandClock | None = None, **settings: Any) -> AsyncIterator[OpenNebulaBackend]:
    """An open backend in front of a stand-in; `session` may be another user's."""
    session = settings.pop("session", one.session)
    assert isinstance(session, str)
    backend = make(one.endpoint, session, clock, **settings)
    await backend.open()
    try:
        yield backend
    finally:
        await backend.close()


async def step(backend: OpenNebulaBackend, what: Step, spec: NodeSpec, backend_id: str = "", **more: Any) -> str:
    call = StepCall(step=what, node=spec, backend_id=backend_id)
    return await backend.perform(replace(call, **more))


async def act(backend: OpenNebulaBackend, action: Action, spec: NodeSpec, backend_id: str = "", **more: Any) -> str:
    """All steps of an action, as the engine would take them."""
    steps = backend.steps(action)
    assert steps, action
    for what in steps:
        backend_id = await step(backend, what, spec, backend_id, **more)
    return backend_id


async def seen(
    backend: OpenNebulaBackend, backend_id: str, wanted: Observation, who: Identity | None = None
) -> ObservedNode:
    """Looks until the adapter reports this; fails when it does not come."""
    deadline = time.monotonic() + 10
    while True:
        found = await backend.find(who or identity(), backend_id)
        if found.observation is wanted:
            return found
        assert time.monotonic() < deadline, f"{wanted} did not come, it is {found.observation} ({found.detail})"
        await asyncio.sleep(0.002)


async def running(backend: OpenNebulaBackend, spec: NodeSpec) -> str:
    """Creates a node and waits until it runs."""
    backend_id = await act(backend, Action.CREATE, spec)
    await seen(backend, backend_id, Observation.RUNNING, spec.identity)
    return backend_id
