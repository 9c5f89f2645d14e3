"""The hosts of a pool together: looked at at once, and what each last showed.

Responsible for rounds of looks, for what is still believed of a host that does not answer, and for finding a domain
without knowing where it is. Invariants: a host that is slow or lost delays a round by `PATIENCE` at most; whatever
may be on a host that does not answer is never said to be absent. It changes nothing on a host.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from functools import partial
from math import inf
from typing import Final

from backends.base import BackendClock, BackendError, BackendRejected, HostState
from backends.xen import library, reading
from backends.xen.errors import HostLost, Kind
from backends.xen.host import Connect, Host
from backends.xen.reading import DomainReading, HostReading
from backends.xen.settings import HostSettings, Settings

PATIENCE: Final = 5.0
"""Seconds after which a round goes on without a host whose look takes longer."""


class Hosts:
    """The hosts of one pool, by name."""

    def __init__(
        self, settings: Settings, clock: BackendClock, drivers: frozenset[str], connect: Connect = library.connect
    ) -> None:
        self._clock = clock
        self.settings: Mapping[str, HostSettings] = {each.name: each for each in settings.hosts}
        self.all: dict[str, Host] = {
            each.name: Host(
                each.name,
                each.uri.text,
                clock,
                deadlines=settings.deadlines,
                drivers=drivers,
                others_answer=self._any_answers,
                connect=connect,
            )
            for each in settings.hosts
        }
        self.readings: dict[str, HostReading] = {}
        """The last look at each host that was ever read."""
        self.troubles: dict[str, str] = {}
        """Hosts that answer and could not be read, and why."""
        self.on_read: Callable[[Host, int], None] = lambda host, look: None
        """Called with every reading, and the number of its look."""
        self.looks = 0
        """Looks that were begun; each has its number."""
        self._expected: dict[tuple[str, str], float] = {}  # host and UUID: a domain that may be there since that look
        self._slow: dict[str, asyncio.Task[None]] = {}

    def start(self) -> None:
        """Begins to connect to all of them."""
        for host in self.all.values():
            host.start()

    async def close(self) -> None:
        """Lets go of all of them."""
        for task in self._slow.values():
            task.cancel()
        await asyncio.gather(*(host.close() for host in self.all.values()))

    async def tried(self) -> None:
        """Returns once each host was tried to reach for the first time, or took too long."""
        for host in self.all.values():
            await host.tried()

    def get(self, name: str) -> Host:
        """A host by name. Raises BackendRejected, which another host may heal."""
        host = self.all.get(name)
        if host is None:
            raise BackendRejected(
                f'the pool has no host "{name}"; there are: {", ".join(sorted(self.all))}', host_fault=True
            )
        return host

    @property
    def unread(self) -> list[str]:
        """Hosts whose domains nobody has seen yet."""
        return [name for name in self.all if name not in self.readings]

    async def look(self) -> frozenset[str]:
        """Reads every host that answers; returns whose reading is new. Raises HostLost where there is none."""
        await self.tried()
        asked = {
            name: asyncio.create_task(self._read(host))
            for name, host in self.all.items()
            if host.state is HostState.ACTIVE and name not in self._slow
        }
        if asked:
            sleeper = asyncio.ensure_future(self._clock.sleep(PATIENCE))
            waiting: set[asyncio.Future[None]] = set(asked.values())
            while waiting and not sleeper.done():
                done, _ = await asyncio.wait({sleeper, *waiting}, return_when=asyncio.FIRST_COMPLETED)
                waiting -= done
            sleeper.cancel()
        fresh = set()
        for name, task in asked.items():
            if not task.done():
                self._slow[name] = task
                self.troubles[name] = f"it takes longer than {PATIENCE:g} s to list its domains"
                task.add_done_callback(partial(self._no_longer_slow, name))
            elif (error := task.exception()) is None:
                fresh.add(name)
                self.troubles.pop(name, None)
            elif isinstance(error, BackendError):
                self.troubles[name] = str(error)
            else:
                raise error
        if not fresh:
            reasons = "; ".join(f"{name}: {self.why_silent(name)}" for name in self.all)
            raise HostLost(f"no host of the pool answers: {reasons}")
        return frozenset(fresh)

    def why_silent(self, name: str) -> str:
        """Why nothing is known of a host now."""
        return self.all[name].message or self.troubles.get(name, "")

    async def domain(self, host: Host, uuid: str) -> DomainReading | None:
        """One domain of one host; None if it has none of this UUID. Raises BackendError where it does not answer."""
        driver = host.facts.driver if host.facts else ""
        return await host.call(
            "looking for a domain", partial(reading.domain, uuid=uuid, driver=driver), kind=Kind.LOOK
        )

    async def find(self, uuid: str, *, but: Host | None = None) -> tuple[Host, DomainReading] | None:
        """Where a domain is: one that is active before one that is not; None if no host has it.

        Raises HostLost where it is on no host that answers, and may be on one that does not.
        """
        hosts = [host for host in self.all.values() if host is not but]
        answers = await asyncio.gather(*(self.domain(host, uuid) for host in hosts), return_exceptions=True)
        found: list[tuple[Host, DomainReading]] = []
        silent: list[Host] = []
        for host, answer in zip(hosts, answers, strict=True):
            if isinstance(answer, DomainReading):
                found.append((host, answer))
            elif isinstance(answer, BackendError):
                silent.append(host)
            elif answer is not None:
                raise answer
        if found:
            return max(found, key=lambda each: each[1].active)
        for host in silent:
            if self.may_hold(host.name, uuid):
                raise HostLost(
                    f"the domain may be on host {host.name}, which does not answer: {self.why_silent(host.name)}",
                    answered=self._any_answers(),
                )
        return None

    def may_hold(self, name: str, uuid: str) -> bool:
        """Whether a host that does not answer may have a domain: it was seen there, or sent there since; or nobody
        has ever looked."""
        last = self.readings.get(name)
        return last is None or uuid in last.domains or (name, uuid) in self._expected

    def last_seen(self, uuid: str) -> tuple[Host, DomainReading] | None:
        """A domain as it was last read, on a host that does not answer now."""
        for name, last in self.readings.items():
            if uuid in last.domains and (self.all[name].state is not HostState.ACTIVE or name in self.troubles):
                return self.all[name], last.domains[uuid]
        return None

    def expect(self, host: Host, uuid: str) -> None:
        """A domain is about to be made on a host: from now on it may be there."""
        self._expected[host.name, uuid] = inf

    def settled(self, host: Host, uuid: str) -> None:
        """The call that makes a domain is over, however it ended: looks that begin after this one tell."""
        if (host.name, uuid) in self._expected:
            self._expected[host.name, uuid] = self.looks

    def forget(self, host: Host, uuid: str) -> None:
        """A domain is gone from a host."""
        self._expected.pop((host.name, uuid), None)
        if (last := self.readings.get(host.name)) is not None:
            last.domains.pop(uuid, None)

    async def _read(self, host: Host) -> None:
        self.looks += 1
        number = self.looks
        driver = host.facts.driver if host.facts else ""
        read = await host.call("reading its domains", partial(reading.host, look=number, driver=driver), kind=Kind.LOOK)
        self.readings[host.name] = read
        for key, look in list(self._expected.items()):
            if key[0] == host.name and look < number:
                del self._expected[key]
        self.on_read(host, number)

    def _no_longer_slow(self, name: str, task: asyncio.Task[None]) -> None:
        del self._slow[name]
        if not task.cancelled():
            task.exception()

    def _any_answers(self) -> bool:
        return any(host.state is HostState.ACTIVE for host in self.all.values())
