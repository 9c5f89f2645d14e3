"""Work that several ask for at the same time and that is done once.

Invariant: one task a key at a time. Who asks while it runs shares it and its outcome; when the last one who waits is
cancelled the task is cancelled, too, and has cleaned up before anybody can start it anew. Nobody who leaves waits for
that: cleaning up may take as long as a call that cannot be called back. A failure is not kept: the next one who asks
begins again. It knows nothing of the work.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Hashable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")


@dataclass(slots=True)
class _Work(Generic[T]):
    task: asyncio.Task[T]
    waiting: int = 0


class SharedWork(Generic[K, T]):
    """Tasks by key."""

    def __init__(self) -> None:
        self._running: dict[K, _Work[T]] = {}

    def running(self) -> tuple[K, ...]:
        """What is being worked on."""
        return tuple(self._running)

    async def run(self, key: K, start: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """The outcome of the task of this key; starts it if there is none."""
        while (work := self._running.get(key)) is not None and (not work.waiting or work.task.done()):
            await asyncio.wait([work.task])  # everybody has left it: it is cleaning up; or it has just ended
        if work is None:
            work = self._running[key] = _Work(asyncio.create_task(start()))
            work.task.add_done_callback(lambda task: self._ended(key, task))
        work.waiting += 1
        try:
            return await asyncio.shield(work.task)
        finally:
            work.waiting -= 1
            if not work.waiting and not work.task.done():
                work.task.cancel()

    async def stop(self, key: K) -> None:
        """Cancels the task of this key, if there is one, and returns when it has cleaned up."""
        await self._stop([work.task for at, work in self._running.items() if at == key])

    async def close(self) -> None:
        """Cancels everything and returns when it has cleaned up."""
        await self._stop([work.task for work in self._running.values()])

    async def _stop(self, tasks: list[asyncio.Task[T]]) -> None:
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def _ended(self, key: K, task: asyncio.Task[T]) -> None:
        del self._running[key]
        if not task.cancelled():
            task.exception()  # seen, also where everybody who waited has left


async def to_the_end(work: Awaitable[T]) -> T:
    """The outcome of work that goes on when who waits for it is cancelled; the cancellation comes after it."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is None:
        return task.result()
    if not task.cancelled():
        task.exception()  # seen: the cancellation is what is told
    raise cancelled
