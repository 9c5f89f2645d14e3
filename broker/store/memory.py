"""A store that keeps nothing: for a broker whose life is one run, such as a replay's.

It keeps the port's promises but the one about power cuts: a future answers in order, and never before the loop has
gone round once, so that what depends on it happens as with a file.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence

from broker.store.base import Commit, Row, Stored


class MemoryStore:
    """Rows that go nowhere. `settings`: what `load` finds of the broker's own values."""

    def __init__(self, settings: Mapping[str, str] | None = None) -> None:
        self.on_failure: Callable[[], None] | None = None
        self._settings = dict(settings or {})

    def load(self) -> Stored:
        """The settings it was made with, and nothing else."""
        return Stored(settings=dict(self._settings))

    def submit(self, rows: Sequence[Row], *, alone: bool) -> asyncio.Future[None]:
        """Answers when the loop comes round; see the port."""
        loop = asyncio.get_running_loop()
        commit = Commit(loop=loop)
        loop.call_soon(commit.set_result, None)
        return commit

    def close(self) -> None:
        """There is nothing to let go of."""
