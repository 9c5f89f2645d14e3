"""A host whose calls block, break and come back: driven by a clock that is moved by hand, without sleeping."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pytest

from backends.base import BackendRejected, HostState, OutcomeUnknown, TransientBackendError
from broker.core.clock import ManualClock

pytest.importorskip("libvirt", reason="libvirt-python is not installed")

from backends.xen.deadlines import Deadlines
from backends.xen.errors import HostLost, Kind, Refused
from backends.xen.host import CLOSE_SECONDS, Host
from backends.xen.library import Facts
from tests.support.libvirt_pool import error

DEADLINES = Deadlines(connect=10.0, look=5.0, change=60.0)
XEN = Facts(driver="xen", version="4.17.0")


class Connection:
    """As much of a connection as a host needs."""

    def __init__(self) -> None:
        self.alive = True
        self.closed = False

    def isAlive(self) -> int:
        return int(self.alive)

    def unregisterCloseCallback(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True


@dataclass
class Daemon:
    """The far end. `door` shut: a connection is not answered; `refusals`: it is, with an error."""

    door: threading.Event = field(default_factory=threading.Event)
    refusals: int = 0
    facts: Facts = XEN
    attempts: int = 0
    connections: list[Connection] = field(default_factory=list)
    closed: Callable[[str], None] = lambda why: None
    noticed: Callable[[], None] = lambda: None

    def __post_init__(self) -> None:
        self.door.set()

    def connect(self, uri: str, closed: Callable[[str], None], noticed: Callable[[], None]) -> tuple[Connection, Facts]:
        self.attempts += 1
        self.door.wait()
        if self.refusals:
            self.refusals -= 1
            raise error(38, "Connection refused")
        self.closed, self.noticed = closed, noticed
        self.connections.append(Connection())
        return self.connections[-1], self.facts


@asynccontextmanager
async def host(daemon: Daemon, clock: ManualClock, **options: Any) -> AsyncIterator[Host]:
    one = Host("x", "xen:///system", clock, deadlines=DEADLINES, connect=daemon.connect, **options)
    one.start()
    try:
        yield one
    finally:
        daemon.door.set()
        await ended(one.close(), clock)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(datetime(2026, 1, 1, tzinfo=UTC))


@pytest.fixture
def daemon() -> Daemon:
    return Daemon()


async def until(reached: Callable[[], bool]) -> None:
    """Waits for another thread; a test that waits in vain is ended by its time-out."""
    while not reached():
        await asyncio.sleep(0.001)


async def ended(work: Any, clock: ManualClock) -> Any:
    """The outcome of what may wait for the clock."""
    task = asyncio.ensure_future(work)
    while not task.done():
        await clock.advance(1.0)
        await asyncio.sleep(0.001)
    return task.result()


class Stuck:
    """An operation that does not come back until it is let go."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.released = threading.Event()

    def __call__(self, connection: Connection) -> str:
        self.begun.set()
        self.released.wait()
        return "at last"


async def stuck_call(one: Host, kind: Kind = Kind.LOOK) -> tuple[Stuck, asyncio.Task[str]]:
    stuck = Stuck()
    task = asyncio.create_task(one.call("listing", stuck, kind=kind))
    await until(stuck.begun.is_set)
    return stuck, task


async def test_a_call_is_answered(daemon: Daemon, clock: ManualClock) -> None:
    async with host(daemon, clock) as one:
        await one.tried()
        assert one.state is HostState.ACTIVE
        assert one.facts == XEN
        assert await one.call("asking", lambda connection: connection.isAlive() + 1) == 2


@pytest.mark.parametrize(
    ("kind", "seconds", "kind_of_error"),
    [(Kind.LOOK, 5.0, HostLost), (Kind.CHANGE, 60.0, OutcomeUnknown), (Kind.TRANSFER, 3600.0, OutcomeUnknown)],
)
async def test_a_call_past_its_deadline_loses_the_host(
    daemon: Daemon, clock: ManualClock, kind: Kind, seconds: float, kind_of_error: type[Exception]
) -> None:
    async with host(daemon, clock) as one:
        await one.tried()
        stuck, task = await stuck_call(one, kind)
        await clock.advance(seconds - 0.1)
        assert not task.done()
        await clock.advance(0.2)
        with pytest.raises(kind_of_error, match=f"listing on x: no answer within {seconds:g} s"):
            await task
        assert one.state is HostState.LOST
        asked: list[Connection] = []
        with pytest.raises(HostLost, match="it was not tried") as refused:
            await one.call("asking", asked.append)
        assert asked == []
        assert not refused.value.answered
        stuck.released.set()


async def test_a_deadline_of_its_own(daemon: Daemon, clock: ManualClock) -> None:
    async with host(daemon, clock) as one:
        await one.tried()
        stuck = Stuck()
        task = asyncio.create_task(one.call("saving", stuck, deadline=900.0))
        await until(stuck.begun.is_set)
        await clock.advance(899.0)
        stuck.released.set()
        assert await task == "at last"


async def test_what_waits_behind_a_stuck_call_is_never_made(daemon: Daemon, clock: ManualClock) -> None:
    async with host(daemon, clock) as one:
        await one.tried()
        stuck, first = await stuck_call(one, Kind.CHANGE)
        made: list[Connection] = []
        second = asyncio.create_task(one.call("defining", made.append))
        await clock.advance(60.1)
        with pytest.raises(OutcomeUnknown):
            await first
        with pytest.raises(TransientBackendError, match="it was not tried"):
            await second
        stuck.released.set()
        await ended(one.tried(), clock)
        await until(lambda: len(daemon.connections) == 2)
        assert made == []


async def test_the_deadline_counts_from_when_a_call_begins(daemon: Daemon, clock: ManualClock) -> None:
    async with host(daemon, clock) as one:
        await one.tried()
        first, task = await stuck_call(one)
        second = Stuck()
        waiting = asyncio.create_task(one.call("asking", second, kind=Kind.LOOK))
        await clock.advance(4.0)
        first.released.set()
        await task
        await until(second.begun.is_set)
        await clock.advance(4.0)  # 8 s after it was asked for, 4 s after it began
        assert one.state is HostState.ACTIVE
        second.released.set()
        assert await waiting == "at last"


async def test_it_comes_back_once_the_stuck_call_has_returned(daemon: Daemon, clock: ManualClock) -> None:
    async with host(daemon, clock) as one:
        await one.tried()
        stuck, task = await stuck_call(one)
        await clock.advance(5.1)
        with pytest.raises(HostLost):
            await task
        await clock.advance(600.0)
        assert daemon.attempts == 1, "the connection that a call is stuck in is not closed under its feet"
        assert not daemon.connections[0].closed
        stuck.released.set()
        await until(lambda: one.state is HostState.ACTIVE)
        assert (daemon.attempts, one.connections) == (2, 2)
        assert daemon.connections[0].closed
        assert await one.call("asking", lambda connection: connection is daemon.connections[1])


async def test_an_open_that_hangs_is_left_alone_and_tried_once(daemon: Daemon, clock: ManualClock) -> None:
    daemon.door.clear()
    async with host(daemon, clock) as one:
        await until(lambda: daemon.attempts == 1)
        await clock.advance(10.1)
        await one.tried()
        assert (one.state, one.message) == (HostState.LOST, "no answer to a connection within 10 s")
        await clock.advance(3600.0)
        assert daemon.attempts == 1
        daemon.door.set()
        await until(lambda: one.state is HostState.ACTIVE)
        assert one.message == ""


async def test_other_hosts_go_on(daemon: Daemon, clock: ManualClock) -> None:
    other = Daemon()
    async with host(other, clock) as well, host(daemon, clock, others_answer=lambda: True) as one:
        await one.tried()
        await well.tried()
        stuck, task = await stuck_call(one)
        assert await well.call("asking", lambda connection: "there") == "there"
        await clock.advance(5.1)
        with pytest.raises(HostLost) as lost:
            await task
        assert lost.value.answered, "the pool is well, so its breaker is not told otherwise"
        assert await well.call("asking", lambda connection: "there") == "there"
        stuck.released.set()


async def test_a_look_does_not_wait_for_a_change(daemon: Daemon, clock: ManualClock) -> None:
    async with host(daemon, clock) as one:
        await one.tried()
        stuck, task = await stuck_call(one, Kind.CHANGE)
        assert await one.call("looking", lambda connection: "seen", kind=Kind.LOOK) == "seen"
        stuck.released.set()
        assert await task == "at last"


async def test_a_connection_that_breaks_in_a_call(daemon: Daemon, clock: ManualClock) -> None:
    def breaks(connection: Connection) -> None:
        connection.alive = False
        raise error(38, "End of file while reading data")

    async with host(daemon, clock) as one:
        await one.tried()
        with pytest.raises(OutcomeUnknown, match=r"End of file .* it may have been done"):
            await one.call("defining", breaks)
        await until(lambda: one.state is HostState.ACTIVE)
        with pytest.raises(HostLost, match="End of file"):
            await one.call("looking", breaks, kind=Kind.LOOK)
        await until(lambda: one.state is HostState.ACTIVE)
        assert one.connections == 3


async def test_a_zero_that_only_means_a_dead_connection_is_not_believed(daemon: Daemon, clock: ManualClock) -> None:
    def free_memory(connection: Connection) -> int:
        connection.alive = False
        return 0

    async with host(daemon, clock) as one:
        await one.tried()
        with pytest.raises(HostLost):
            await one.call("asking for free memory", free_memory, kind=Kind.LOOK)


async def test_a_change_that_was_answered_before_the_connection_broke_counts(
    daemon: Daemon, clock: ManualClock
) -> None:
    def done(connection: Connection) -> str:
        connection.alive = False
        return "done"

    async with host(daemon, clock) as one:
        await one.tried()
        assert await one.call("defining", done) == "done"
        assert one.connections == 1 or one.state is HostState.ACTIVE


async def test_nothing_is_asked_on_a_connection_that_is_dead_already(daemon: Daemon, clock: ManualClock) -> None:
    async with host(daemon, clock) as one:
        await one.tried()
        daemon.connections[0].alive = False
        made: list[Connection] = []
        with pytest.raises(HostLost, match="it was not tried"):
            await one.call("defining", made.append)
        assert made == []


async def test_libvirt_says_that_the_connection_was_closed(daemon: Daemon, clock: ManualClock) -> None:
    async with host(daemon, clock) as one:
        await one.tried()
        daemon.door.clear()
        threading.Thread(target=daemon.closed, args=("keepalive got no answer",)).start()
        await until(lambda: one.state is HostState.LOST)
        assert "keepalive got no answer" in one.message
        old = daemon.closed
        daemon.door.set()
        await until(lambda: one.connections == 2)
        old("once more, of the connection before")
        await asyncio.sleep(0)
        assert one.state is HostState.ACTIVE


async def test_it_is_tried_again_and_again(daemon: Daemon, clock: ManualClock) -> None:
    daemon.refusals = 3
    async with host(daemon, clock) as one:
        await one.tried()
        assert (one.state, one.message) == (HostState.LOST, "Connection refused (libvirt code 38)")
        while one.state is not HostState.ACTIVE:
            await clock.advance(1.0)
            await asyncio.sleep(0.001)
        assert daemon.attempts == 4


async def test_a_host_of_another_hypervisor_is_not_used(daemon: Daemon, clock: ManualClock) -> None:
    daemon.facts = Facts(driver="qemu")
    async with host(daemon, clock, drivers=frozenset({"xen", "test"})) as one:
        await one.tried()
        assert (one.state, one.message) == (HostState.DISABLED, "its hypervisor is qemu, not test or xen")
        with pytest.raises(HostLost, match="its hypervisor is qemu"):
            await one.call("asking", lambda connection: None)


async def test_refusals_keep_their_code(daemon: Daemon, clock: ManualClock) -> None:
    def refuses(connection: Connection) -> None:
        raise error(9, "domain 'web' already exists")

    async with host(daemon, clock) as one:
        await one.tried()
        with pytest.raises(Refused, match=r"defining on x: domain 'web' already exists \(libvirt code 9\)") as refused:
            await one.call("defining", refuses)
        assert (refused.value.code, refused.value.host_fault) == (9, True)
        assert one.state is HostState.ACTIVE


async def test_what_an_operation_raises_itself_comes_out_as_it_is(daemon: Daemon, clock: ManualClock) -> None:
    class Large:
        """Stands for a connection: whoever holds it keeps it open."""

    held: list[weakref.ref[Large]] = []

    def refuses(connection: Connection) -> None:
        large = Large()
        held.append(weakref.ref(large))
        try:
            raise error(1)
        except Exception:
            raise BackendRejected("no") from None

    async with host(daemon, clock) as one:
        await one.tried()
        with pytest.raises(BackendRejected, match="no") as refused:
            await one.call("defining", refuses)
        gc.collect()
        assert held[0]() is None, f"an exception must not hold what its frames held: {refused.value!r}"


async def test_closing_does_not_wait_for_ever_for_a_stuck_call(daemon: Daemon, clock: ManualClock) -> None:
    async with host(daemon, clock) as one:
        await one.tried()
        stuck, task = await stuck_call(one, Kind.CHANGE)
        closing = asyncio.create_task(one.close())
        await clock.advance(CLOSE_SECONDS + 0.1)
        await closing
        assert not daemon.connections[0].closed, "a connection in use is not closed"
        stuck.released.set()
        await task


async def test_closing_does_not_wait_for_ever_for_a_host_that_does_not_answer(
    daemon: Daemon, clock: ManualClock
) -> None:
    daemon.door.clear()
    async with host(daemon, clock) as one:
        await until(lambda: daemon.attempts == 1)
        closing = asyncio.create_task(one.close())
        await clock.advance(CLOSE_SECONDS + 0.1)
        await closing
        daemon.door.set()
        await until(lambda: bool(daemon.connections) and daemon.connections[0].closed)


async def test_an_event_ends_a_wait_for_a_change(daemon: Daemon, clock: ManualClock) -> None:
    async with host(daemon, clock) as one:
        await one.tried()
        waiting = asyncio.create_task(one.changed(60.0))
        await asyncio.sleep(0)
        threading.Thread(target=daemon.noticed).start()
        await until(waiting.done)
        later = asyncio.create_task(one.changed(60.0))
        await clock.advance(60.0)
        assert later.done()
