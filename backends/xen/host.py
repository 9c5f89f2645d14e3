"""One host: its connection, the threads its calls run in, and whether it answers.

Responsible for making libvirt's blocking calls awaitable with a deadline, although libvirt has none, and for the
host's state. Invariants:
- every libvirt call of a host runs in one of its few threads, one a kind (`Kind`), one call after another each;
- a call past its deadline makes the host LOST at once: it fails, calls that wait behind it were never made, and all
  further ones fail without being tried, until the stuck call has returned and a new connection stands;
- nothing a host does, or does not do, keeps another host waiting;
- no exception and no answer carries a connection out of its threads, since dropping the last reference to a dead one
  may block whoever drops it.

A frozen host blocks `libvirt.open` for ever: that thread, one a host at most, is left to itself until it returns.
Domains are none of its business.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import threading
import traceback
from collections.abc import Callable, Collection
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, Generic, TypeVar

from tenacity import AsyncRetrying, retry_if_exception_type, wait_exponential, wait_random

from backends.base import BackendClock, BackendError, HostState
from backends.xen import errors, library
from backends.xen.deadlines import Deadlines
from backends.xen.errors import HostLost, Kind
from backends.xen.library import Connection, Facts, Failure

log = logging.getLogger(__name__)

T = TypeVar("T")

CLOSE_SECONDS: Final = 5.0
"""How long closing waits for calls under way, and for the connection to close."""

Connect = Callable[[str, Callable[[str], None], Callable[[], None]], tuple[Connection, Facts]]


@dataclass(slots=True, eq=False)
class _Job(Generic[T]):
    """Something a thread is to do; `begun` is when it did, None while it waits."""

    work: Callable[[], T]
    future: Future[T] = field(default_factory=Future)
    begun: float | None = None


class _Thread:
    """A thread that does one thing after another. It is a daemon: a call that never returns must not keep the process
    from ending."""

    def __init__(self, name: str, now: Callable[[], float]) -> None:
        self._name = name
        self._now = now
        self._jobs: queue.SimpleQueue[_Job[Any] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def put(self, job: _Job[T]) -> asyncio.Future[T]:
        """Has a job done after those before it."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            self._thread.start()
        self._jobs.put(job)
        return asyncio.wrap_future(job.future)

    def end(self) -> None:
        """Lets the thread end once it has nothing more to do."""
        self._jobs.put(None)

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            if not job.future.set_running_or_notify_cancel():
                continue
            job.begun = self._now()
            try:
                answer = job.work()
            except BaseException as error:  # whoever awaits it judges it
                job.future.set_exception(_detached(error))
                del error
            else:
                job.future.set_result(answer)
                del answer
            del job  # while it waits for the next, the thread holds on to nothing


@dataclass(frozen=True, slots=True)
class _Outcome(Generic[T]):
    """What became of a call: its answer, or libvirt's error; `dead`: the connection broke, `made`: not before it."""

    answer: T | None = None
    failure: Failure | None = None
    dead: bool = False
    made: bool = True


class _NotReached(Exception):
    """An attempt to connect failed."""


class Host:
    """One host of a pool. `others_answer` says whether any other host does, so that the loss of one host is not taken
    for that of the pool."""

    def __init__(
        self,
        name: str,
        uri: str,
        clock: BackendClock,
        *,
        deadlines: Deadlines | None = None,
        drivers: frozenset[str] = frozenset(),
        others_answer: Callable[[], bool] = lambda: False,
        connect: Connect = library.connect,
    ) -> None:
        self.name = name
        self.uri = uri
        self.deadlines = deadlines or Deadlines()
        self.facts: Facts | None = None
        """What the host is; stays known while it is lost."""
        self.connections = 0
        """Grows with every connection that stands."""
        self._clock = clock
        self._drivers = drivers
        self._others_answer = others_answer
        self._connect = connect
        self._threads = {kind: _Thread(f"{name}-{kind}", clock.monotonic) for kind in Kind}
        self._connecting = _Thread(f"{name}-connect", clock.monotonic)
        self._connection: Connection | None = None
        self._old: Connection | None = None  # dead, to be closed by the thread that connects
        self._why = "it was not reached yet"
        self._unfit = False
        self._closing = False
        self._closed = False
        self._jobs: dict[_Job[Any], asyncio.Future[Any]] = {}
        self._tried = asyncio.Event()
        self._down = asyncio.Event()
        self._noticed = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None

    @property
    def state(self) -> HostState:
        """ACTIVE while a connection stands; DISABLED where it answers and is not what the pool wants."""
        if self._connection is not None:
            return HostState.ACTIVE
        return HostState.DISABLED if self._unfit else HostState.LOST

    @property
    def message(self) -> str:
        """Why it is not ACTIVE; empty if it is."""
        return "" if self._connection is not None else self._why

    @property
    def connection(self) -> Connection:
        """The connection, for a call of another host that needs it, such as a migration's. Raises HostLost."""
        if self._connection is None:
            raise self._lost("a connection")
        return self._connection

    def start(self) -> None:
        """Begins to connect."""
        self._keeper = asyncio.create_task(self._keep_connected(), name=f"host {self.name}")

    async def tried(self) -> None:
        """Returns once the first attempt to connect came to something, or took too long."""
        await self._tried.wait()

    async def close(self) -> None:
        """Lets go of the connection, unless a call is stuck in it: then it is left as it is."""
        self._closing = True
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        connection, self._connection = self._connection, None
        self._why = "it was closed"
        self._drop_waiting()
        await self._within(CLOSE_SECONDS, lambda: self._jobs.values())
        if not self._jobs and not self._closed:
            self._closed = True
            done = self._connecting.put(_Job(partial(_disconnect, connection, self._old)))
            await self._within(CLOSE_SECONDS, lambda: [] if done.done() else [done])
            for thread in (*self._threads.values(), self._connecting):
                thread.end()

    async def call(
        self,
        what: str,
        operation: Callable[[Connection], T],
        *,
        kind: Kind = Kind.CHANGE,
        deadline: float | None = None,
    ) -> T:
        """The answer of an operation on the connection, made in the host's thread for its kind.

        `what` names it in errors; `deadline` in seconds from when it begins. Whatever the operation raises but
        libvirtError comes out as it is. Raises one of the three kinds of BackendError: HostLost where it was not
        made, OutcomeUnknown where it may have been done, `Refused` with libvirt's code.
        """
        connection = self._connection
        if connection is None:
            raise self._lost(what)
        job = _Job(partial(_guarded, connection, operation))
        done = self._threads[kind].put(job)
        self._jobs[job] = done
        done.add_done_callback(partial(self._returned, job))
        seconds = self.deadlines.of(kind) if deadline is None else deadline
        if not await self._finished(job, done, seconds):
            why = f"no answer within {seconds:g} s"
            self._lose(connection, f"{what}: {why}")
            raise errors.of_cut_off(what, self.name, why, kind=kind, answered=self._others_answer())
        if done.cancelled():
            raise self._lost(what)
        outcome = done.result()
        if outcome.dead:
            why = outcome.failure.message if outcome.failure else "the connection broke"
            self._lose(connection, why)
            if not outcome.made:
                raise self._lost(what)
            if outcome.failure is None and kind is not Kind.LOOK:
                return outcome.answer  # type: ignore[return-value]
            # What a look read while its connection broke is not believed: some calls answer 0 then.
            raise errors.of_cut_off(what, self.name, why, kind=kind, answered=self._others_answer())
        if outcome.failure is not None:
            failure, driver = outcome.failure, self.facts.driver if self.facts else ""
            raise errors.of_libvirt(what, self.name, failure.code, failure.message, driver=driver, kind=kind)
        return outcome.answer  # type: ignore[return-value]

    async def changed(self, seconds: float) -> None:
        """Returns when the host says that some domain changed, at the latest after so many seconds."""
        noticed = asyncio.ensure_future(self._noticed.wait())
        sleeper = asyncio.ensure_future(self._clock.sleep(seconds))
        try:
            await asyncio.wait({noticed, sleeper}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            noticed.cancel()
            sleeper.cancel()

    def _lost(self, what: str) -> HostLost:
        return HostLost(
            f"{what}: host {self.name} does not answer: {self._why}; it was not tried", answered=self._others_answer()
        )

    def _lose(self, connection: Connection, why: str) -> None:
        """The connection is not to be used any more, whoever found out first."""
        if self._connection is not connection:
            return
        self._connection, self._old = None, connection
        self._why = why
        log.warning("host=%s state=LOST error=%s", self.name, why)
        self._drop_waiting()
        self._down.set()
        self._notice()

    def _drop_waiting(self) -> None:
        """Gives up what has not begun; what runs, runs."""
        for job in list(self._jobs):
            job.future.cancel()

    def _returned(self, job: _Job[Any], done: asyncio.Future[Any]) -> None:
        self._jobs.pop(job, None)
        if not done.cancelled():
            done.exception()  # taken note of, also where nobody waits for it any more

    def _notice(self) -> None:
        self._noticed.set()
        self._noticed = asyncio.Event()

    async def _finished(self, job: _Job[Any], done: asyncio.Future[Any], seconds: float) -> bool:
        """Whether a job was done within so many seconds from when it began; waiting for its turn does not count,
        since what is before it has its own deadline."""
        left = seconds
        while left > 0:
            sleeper = asyncio.ensure_future(self._clock.sleep(left))
            try:
                await asyncio.wait({done, sleeper}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                sleeper.cancel()
            if done.done():
                return True
            left = seconds if job.begun is None else job.begun + seconds - self._clock.monotonic()
        return False

    async def _within(self, seconds: float, pending: Callable[[], Collection[asyncio.Future[Any]]]) -> None:
        """Waits until nothing is pending, at most so many seconds."""
        sleeper = asyncio.ensure_future(self._clock.sleep(seconds))
        try:
            while (waiting := pending()) and not sleeper.done():
                await asyncio.wait({sleeper, *waiting}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            sleeper.cancel()

    async def _keep_connected(self) -> None:
        """Connects, and connects again whenever the connection was lost; ends by cancellation."""
        while True:
            retrying = AsyncRetrying(
                retry=retry_if_exception_type(_NotReached),
                wait=wait_exponential(multiplier=0.5, max=15) + wait_random(0, 0.5),
                sleep=self._clock.sleep,
            )
            await retrying(self._try_to_connect)
            await self._down.wait()
            if self._jobs:  # what is stuck holds the old connection: it is not closed under its feet
                await asyncio.wait(set(self._jobs.values()))

    async def _try_to_connect(self) -> None:
        old, self._old = self._old, None
        job = _Job(partial(self._open, old, asyncio.get_running_loop(), self.connections))
        done = self._connecting.put(job)
        done.add_done_callback(lambda done: done.cancelled() or done.exception())
        if not await self._finished(job, done, self.deadlines.connect):
            self._not_reached(f"no answer to a connection within {self.deadlines.connect:g} s")
            await asyncio.wait({done})  # it may be a while; nothing else waits for it
        try:
            opened = done.result()
        except Exception as error:  # a defect of ours or the library's must not end the watch over a host
            self._not_reached(f"connecting failed: {error!r}")
            raise _NotReached from None
        if isinstance(opened, Failure):
            self._not_reached(f"{opened.message} (libvirt code {opened.code})")
            raise _NotReached
        connection, self.facts = opened
        self._unfit = bool(self._drivers) and self.facts.driver not in self._drivers
        if self._unfit:
            self._old = connection
            self._not_reached(f"its hypervisor is {self.facts.driver}, not {' or '.join(sorted(self._drivers))}")
            raise _NotReached
        self._down.clear()
        self._connection = connection
        self.connections += 1
        self._tried.set()
        log.info("host=%s state=ACTIVE driver=%s version=%s", self.name, self.facts.driver, self.facts.version)

    def _not_reached(self, why: str) -> None:
        if why != self._why:
            log.warning("host=%s state=%s error=%s", self.name, self.state, why)
        self._why = why
        self._tried.set()

    def _open(
        self, old: Connection | None, loop: asyncio.AbstractEventLoop, number: int
    ) -> tuple[Connection, Facts] | Failure:
        """In the connecting thread: closes what was, opens what is to be."""

        def soon(call: Callable[[], None]) -> None:
            with contextlib.suppress(RuntimeError):  # the loop may have ended before libvirt's thread
                loop.call_soon_threadsafe(call)

        def closed(why: str) -> None:
            soon(partial(self._closed_by_libvirt, number, f"the connection was closed: {why}"))

        _disconnect(old)
        try:
            opened = self._connect(self.uri, closed, lambda: soon(self._notice))
        except library.LibvirtError as error:
            return Failure.of(error)
        if self._closing:
            _disconnect(opened[0])
        return opened

    def _closed_by_libvirt(self, number: int, why: str) -> None:
        if self._connection is not None and number + 1 == self.connections:
            self._lose(self._connection, why)


def _guarded(connection: Connection, operation: Callable[[Connection], T]) -> _Outcome[T]:
    """In a host's thread: makes a call, and sees whether the connection outlived it. A connection that died before is
    not asked, as some calls answer 0 on it and raise nothing."""
    if not library.alive(connection):
        return _Outcome(dead=True, made=False)
    try:
        answer = operation(connection)
    except library.LibvirtError as error:
        return _Outcome(failure=Failure.of(error), dead=not library.alive(connection))
    return _Outcome(answer=answer, dead=not library.alive(connection))


def _detached(error: BaseException) -> BaseException:
    """An exception without the frames it came through, which hold on to connections; a defect's are told in words."""
    if not isinstance(error, BackendError):
        error.add_note("".join(traceback.format_exception(error)))
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)


def _disconnect(*connections: Connection | None) -> None:
    for connection in connections:
        if connection is not None:
            library.disconnect(connection)
