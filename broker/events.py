"""Every committed change of a workspace, in order, to those who watch.

Invariants: a revision is published once, after its transaction is durable, in growing order; a watcher that starts at
a revision misses nothing after it, or is told that it is too old; memory is bounded: a watcher that does not keep up
is closed with that same word, never buffered without end.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections import deque
from collections.abc import AsyncIterator, Sequence
from datetime import datetime

from msgspec import Struct

from broker.core.errors import BrokerError, Reason
from broker.core.model import State, Workspace


class Change(Struct, frozen=True, kw_only=True):
    """One workspace as it was right after a change; `previous` is None for a new one."""

    revision: int
    workspace: Workspace
    previous: State | None
    time: datetime


def _too_old(revision: int, oldest: int) -> BrokerError:
    return BrokerError(
        Reason.REVISION_COMPACTED,
        f"changes after revision {revision} are no longer kept (from {oldest} on they are); "
        "list the workspaces, then watch from the list's revision",
        metadata={"revision": str(revision), "compacted_revision": str(oldest)},
    )


class Subscription:
    """A watcher's place: changes in order, from where it started."""

    def __init__(self, backlog: Sequence[Change], limit: int) -> None:
        self._queue: deque[Change] = deque(backlog)
        self._limit = max(limit, len(backlog) + limit // 4)
        self._wake = asyncio.Event()
        self._ended: BrokerError | None = None

    def end(self, why: BrokerError) -> None:
        """Closes the place; the watcher is told why."""
        self._ended = why
        self._queue.clear()
        self._wake.set()

    def offer(self, change: Change) -> None:
        """Hands over one change; past the limit the watcher is closed instead."""
        if len(self._queue) >= self._limit:
            self.end(_too_old(self._queue[0].revision - 1, change.revision))
        elif self._ended is None:
            self._queue.append(change)
            self._wake.set()

    async def next(self, timeout: float) -> Change | None:
        """The next change, or None when none came within `timeout` seconds (time for a bookmark).

        Raises the BrokerError it was closed with, such as REVISION_COMPACTED when it did not keep up.
        """
        if not self._queue and self._ended is None:
            self._wake.clear()
            try:
                async with asyncio.timeout(timeout):
                    await self._wake.wait()
            except TimeoutError:
                return None
        if self._ended is not None:
            raise self._ended
        return self._queue.popleft() if self._queue else None


class EventLog:
    """The latest changes, and those who wait for the next."""

    def __init__(self, *, kept: int = 20_000, watcher_limit: int = 4_000) -> None:
        self._kept = kept
        self._watcher_limit = watcher_limit
        self._changes: deque[Change] = deque()
        self._subscriptions: set[Subscription] = set()
        self.compacted = 0  # changes up to this revision are not kept
        self.revision = 0  # the latest published

    def restore(self, workspaces: Sequence[Workspace], revision: int, compacted: int, now: datetime) -> None:
        """Begins after a restart: of each workspace the last change is known, and that is enough to resume."""
        recent = sorted(workspaces, key=lambda workspace: workspace.revision)[-self._kept :]
        self._changes = deque(
            Change(revision=item.revision, workspace=item, previous=None, time=now) for item in recent
        )
        self.revision = revision
        self.compacted = compacted
        if len(workspaces) > len(recent):
            self.compacted = max(compacted, recent[0].revision - 1)

    def publish(self, changes: Sequence[Change]) -> None:
        """Makes durable changes known."""
        for change in changes:
            self._changes.append(change)
            self.revision = change.revision
            for subscription in self._subscriptions:
                subscription.offer(change)
        while len(self._changes) > self._kept:
            self.compacted = self._changes.popleft().revision

    def compact(self, revision: int) -> None:
        """Forgets changes up to a revision, as when a record is removed for good."""
        while self._changes and self._changes[0].revision <= revision:
            self._changes.popleft()
        self.compacted = max(self.compacted, revision)

    def subscribe(self, after: int, current: Sequence[Workspace] | None, now: datetime) -> Subscription:
        """A place after a revision; with `current` the watcher is first given those workspaces as they are.

        Raises BrokerError REVISION_COMPACTED where changes after that revision are no longer kept.
        """
        if current is not None:
            backlog = [
                Change(revision=item.revision, workspace=item, previous=None, time=now)
                for item in sorted(current, key=lambda workspace: workspace.revision)
                if item.revision <= self.revision
            ]
        else:
            if after < self.compacted or after > self.revision:
                raise _too_old(after, self.compacted)
            first = bisect_right(self._changes, after, key=lambda change: change.revision)
            backlog = [self._changes[place] for place in range(first, len(self._changes))]
        subscription = Subscription(backlog, self._watcher_limit)
        self._subscriptions.add(subscription)
        return subscription

    def end(self, why: BrokerError) -> None:
        """Closes every watcher."""
        for subscription in self._subscriptions:
            subscription.end(why)

    def unsubscribe(self, subscription: Subscription) -> None:
        """Gives up a place."""
        self._subscriptions.discard(subscription)

    @property
    def watchers(self) -> int:
        """How many watch."""
        return len(self._subscriptions)


async def changes(log: EventLog, subscription: Subscription, bookmark_every: float) -> AsyncIterator[Change | int]:
    """Changes as they come, and the latest revision as a bookmark while nothing changes; ends with the watcher."""
    try:
        while True:
            change = await subscription.next(bookmark_every)
            yield change if change is not None else log.revision
    finally:
        log.unsubscribe(subscription)
