"""The port to what survives a crash.

A store keeps rows: a table, a key, and a record or None for "remove it". Rows handed in together are written in one
transaction or not at all, and the future answers only once they would survive a power cut.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable, Sequence
from enum import Enum
from typing import NamedTuple, Protocol

from msgspec import Struct, field

from broker.core.model import Ensemble, RequestRecord, Task, Workspace


class StoreProblem(Exception):
    """The state file cannot be used; the message says why and what to do. Raised at start only."""


class Table(Enum):
    """What rows are of; keys are a uid, a NodeKey, a (tenant, method, request id), a name."""

    WORKSPACES = "workspaces"
    TASKS = "tasks"
    REQUESTS = "requests"
    SETTINGS = "settings"
    ENSEMBLES = "ensembles"

    __hash__ = object.__hash__  # Enum's own is not made for a key looked up at each change


class Row(NamedTuple):
    """Write this record under this key, or with None remove it."""

    table: Table
    key: Hashable
    record: object | None


class Stored(Struct, frozen=True, kw_only=True):
    """Everything a store holds, as read at start."""

    workspaces: list[Workspace] = field(default_factory=list)
    tasks: list[Task] = field(default_factory=list)
    requests: list[RequestRecord] = field(default_factory=list)
    settings: dict[str, str] = field(default_factory=dict)
    ensembles: list[Ensemble] = field(default_factory=list)


class Commit(asyncio.Future[None]):
    """The future of one commit, shared by all who wait for it: one that is cancelled does not cancel the others."""

    def cancel(self, msg: object = None) -> bool:
        """Refused; who waits is cancelled once the commit is over, which is at once."""
        return False


class Store(Protocol):
    """Where rows go."""

    on_failure: Callable[[], None] | None
    """Called, before any future fails, when what was submitted and not yet durable is lost."""

    def load(self) -> Stored:
        """Reads everything. Raises StoreProblem."""

    def submit(self, rows: Sequence[Row], *, alone: bool) -> asyncio.Future[None]:
        """Takes rows for the next commit and answers when they are durable; the future is the commit's, and not to
        be cancelled.

        `alone`: nobody else is waiting to join, so commit at once. The future fails with a BrokerError
        STORE_UNAVAILABLE, and then nothing of the batch was written.
        """

    def close(self) -> None:
        """Commits what is pending and lets go of the file."""
