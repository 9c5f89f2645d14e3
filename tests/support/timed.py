"""Plays a scenario (timed_file.py) on a whole broker without waiting: a manual clock, an instant loop, no port.

The broker is spoken to through its own stubs. The clock is moved from one instant at which anything happens to the
next, and after each at which anything changed no host may be over its capacity: neither in what is promised on it from
now on, nor in what really runs on it. A step that does not come out as expected ends the play.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any, Final, Never

import grpc.aio
from workspacebroker.v1 import pool_service_pb2 as pool_api
from workspacebroker.v1 import pool_service_pb2_grpc as pools_grpc
from workspacebroker.v1 import resources_pb2 as pb
from workspacebroker.v1 import workspace_service_pb2 as api
from workspacebroker.v1 import workspace_service_pb2_grpc as workspaces_grpc

from backends.base import HostState
from backends.simulator import Simulator, World
from broker.config import load
from broker.server import Broker
from tests.support import timed_calls as calls
from tests.support.api import EVERY_STATE, state_of
from tests.support.inprocess import serve
from tests.support.machine_broker import Complaints
from tests.support.machine_loop import InstantLoop, LeapingClock, settle
from tests.support.timed_file import WORLD, Scenario, Step
from tests.support.timed_seen import (
    brief,
    check_differences,
    compared,
    differences,
    over_capacity,
    refusal_differences,
    told,
)

MOMENT: Final = timedelta(seconds=0.9)
"""After what is done and before what is seen: the broker looks at its pools several times in it."""

LOGGERS: Final = ("broker", "backends", "asyncio")
_numbers = count()


def play(scenario: Scenario, folder: Path) -> None:
    """Plays a scenario, with the broker's files in a folder. Raises AssertionError where it does not come out so."""
    loop = InstantLoop()
    stage = Stage(scenario, folder)
    for name in LOGGERS:
        logging.getLogger(name).addHandler(stage.complaints)
    try:
        loop.run_until_complete(stage.play())
    finally:
        for name in LOGGERS:
            logging.getLogger(name).removeHandler(stage.complaints)
        for world in stage.worlds.values():
            World.forget(world)
        loop.close()


class CameOutOtherwise(AssertionError):
    """A step that did not come out as its file says, with all that had happened."""


class Stage:
    """One play of one scenario."""

    def __init__(self, scenario: Scenario, folder: Path) -> None:
        self.scenario = scenario
        self.clock = LeapingClock(scenario.start)
        self.complaints = Complaints()
        number = next(_numbers)
        self.worlds = {pool: f"timed-{number}-{pool}" for pool in scenario.pools}
        configuration = scenario.configuration
        for pool, world in self.worlds.items():
            configuration = configuration.replace(f'"{WORLD}{pool}"', f'"{world}"')
        self._file = folder / "broker.toml"
        self._file.write_text(configuration, encoding="utf-8")
        self._moment = scenario.start  # of the step; looks come a little later
        self._names: dict[str, str] = {}  # full names of workspaces by those of the file
        self._ensembles: dict[str, str] = {}  # the same of ensembles
        self._history: defaultdict[str, list[str]] = defaultdict(list)  # of states, by full name
        self._told: list[str] = []  # what happened, for whoever has to find out why
        self._revision = 0  # that the watch has come to
        self._checked = -1  # the revision at which capacity was looked at last
        self._uids = count(1)  # in order, so that a play comes out the same each time
        self._step: Step | None = None

    async def play(self) -> None:
        """All steps, in order."""
        await self._open()
        try:
            for step in self.scenario.steps:
                self._step = step
                await self._play(step)
        except CameOutOtherwise:
            raise
        except AssertionError as error:  # something goes round and round, or waits for ever
            self._fail([str(error)])
        finally:
            await self._close()

    async def _open(self) -> None:
        self.broker = Broker(
            load(self._file), clock=self.clock, new_uid=lambda: f"{next(self._uids):032x}", jitter=lambda: 0.5
        )
        channel: Any = await serve(self.broker)
        self.workspaces: Any = workspaces_grpc.WorkspaceServiceStub(channel)
        self.pools: Any = pools_grpc.PoolServiceStub(channel)
        self._watch = asyncio.create_task(self._watched())
        for pool in self.scenario.pools:
            await self._refresh(pool)

    async def _close(self) -> None:
        self._watch.cancel()
        with suppress(asyncio.CancelledError):
            await self._watch
        await self.broker.stop()

    async def _watched(self) -> None:
        """Keeps every change there is."""
        request = api.WatchWorkspacesRequest(parent="tenants/-", after_revision=self._revision)
        async for change in self.workspaces.WatchWorkspaces(request):
            self._revision = max(self._revision, change.revision)
            if not change.HasField("workspace"):
                continue
            known = self._history[change.workspace.name]
            if not known or known[-1] != state_of(change.workspace):
                known.append(state_of(change.workspace))
            line = f"{told(change.time.ToDatetime(UTC))} {brief(change.workspace)}"
            if self._told[-1:] != [line]:
                self._told.append(line)

    # Steps

    async def _play(self, step: Step) -> None:
        to = step.at or self._moment + (step.after or timedelta())
        if to < self.clock.now() and (step.at or step.after):
            self._fail([f"is at {told(to)}, and it is {told(self.clock.now())} already"])
        await self._move(to)
        self._moment = max(to, self._moment)
        wrong: list[str] = []
        if step.action:
            self._told.append(f"{told(self.clock.now())} -- {step.action} {step.target}")
            wrong += await self._act(step)
            await self._check_capacity()
        if step.looks:
            await self._move(self.clock.now() + MOMENT)
            wrong += await self._look(step)
        wrong += [f"the broker logged: {said}" for said in self.complaints.found]
        if wrong:
            self._fail(wrong)

    async def _move(self, to: datetime) -> None:
        """Moves the clock on, from one instant at which anyone wakes to the next."""
        while (now := self.clock.now()) < to:
            wake = self.clock.next_wake
            until = to if wake is None else min(max(wake, now), to)
            await self.clock.advance((until - now).total_seconds())
            await self._check_capacity()

    async def _done(self, call: Awaitable[Any]) -> Any:
        """The answer of a call, for which the clock stands still."""
        task = asyncio.ensure_future(call)
        await settle()
        assert task.done(), f"no answer to {call} without the clock moving"
        return await task

    async def _act(self, step: Step) -> list[str]:
        what = f"{step.action} {step.target}"
        try:
            if step.action in _BY_HAND:
                await _BY_HAND[step.action](self, step)
                return []
            answer = await self._done(self._call(step))
        except grpc.aio.AioRpcError as error:
            return refusal_differences(what, error, step.expect)
        if step.action == "check":
            return check_differences(what, answer, step.expect)
        if "refused" in step.expect:
            return [f"{what}: accepted, expected to be refused with {step.expect['refused']}"]
        if not step.expect:
            return []
        return differences(what, answer, step.expect, self._history[answer.name])

    def _call(self, step: Step) -> Awaitable[Any]:
        """What a step asks for."""
        tenant = f"tenants/{step.options.get('tenant', 'default')}"
        word = step.action.capitalize()
        call: Awaitable[Any]
        if step.action == "check":
            call = self.workspaces.CheckPlacement(calls.check(tenant, step.options))
        elif step.action == "create":
            self._names[step.target] = f"{tenant}/workspaces/{step.target}"
            ensemble = self._ensemble(step.options["ensemble"]) if "ensemble" in step.options else ""
            call = self._changed("Create", calls.create(tenant, step.target, step.options, ensemble=ensemble))
        elif step.action == "open":
            self._ensembles[step.target] = f"{tenant}/ensembles/{step.target}"
            call = self.workspaces.CreateEnsemble(calls.open_ensemble(tenant, step.target, step.options))
        elif step.action in ("seal", "cancel"):
            request = getattr(api, f"{word}EnsembleRequest")(name=self._ensemble(step.target))
            call = getattr(self.workspaces, f"{word}Ensemble")(request)
        elif step.action == "update":
            call = self._changed(word, calls.update(self._name(step.target), step.options))
        else:
            call = self._changed(word, calls.verb(self._name(step.target), word, step.options))
        return call

    async def _changed(self, word: str, request: Any) -> pb.Workspace:
        return (await getattr(self.workspaces, f"{word}Workspace")(request)).workspace  # type: ignore[no-any-return]

    def _name(self, known: str) -> str:
        if known not in self._names:
            self._fail([f"there was no create of {known}"])
        return self._names[known]

    def _ensemble(self, known: str) -> str:
        if known not in self._ensembles:
            self._fail([f"no ensemble {known} was opened"])
        return self._ensembles[known]

    # What befalls hosts, pools and the broker

    def _pool_of(self, host: str) -> str:
        given = self.scenario.pools
        found = [name for name, pool in given.items() if host in {each["name"] for each in pool["hosts"]}]
        if len(found) != 1:
            self._fail([f"{len(found)} pools have a host {host}"])
        return found[0]

    def _backend(self, pool: str) -> Simulator:
        backend = self.broker.pools[pool].backend
        assert isinstance(backend, Simulator)
        return backend

    async def _refresh(self, pool: str) -> None:
        await self._done(self.pools.RefreshPool(pool_api.RefreshPoolRequest(name=f"pools/{pool}")))

    async def _set_host(self, step: Step) -> None:
        pool = self._pool_of(step.target)
        self._backend(pool).by_hand.set_host(step.target, _HOST_STATES[step.action])
        await self._refresh(pool)

    async def _cordon(self, step: Step) -> None:
        pool = self._pool_of(step.target)
        request = calls.cordon(f"pools/{pool}/hosts/{step.target}", step.action == "cordon")
        await self._done(self.pools.UpdateHost(request))
        await self._refresh(pool)

    async def _set_foreign(self, step: Step) -> None:
        pool = self._pool_of(step.target)
        self._backend(pool).by_hand.set_foreign(step.target, step.options)
        await self._refresh(pool)

    async def _set_silent(self, step: Step) -> None:
        self._backend(step.target).by_hand.silent = step.action == "silence"

    async def _drain(self, step: Step) -> None:
        request = calls.drain(f"pools/{step.target}", step.action == "drain")
        await self._done(self.pools.UpdatePool(request))

    async def _restart(self, step: Step) -> None:
        await self._close()
        if "down" in step.options:
            await self.clock.advance(step.options["down"].total_seconds())
        await self._open()

    # Looks

    async def _look(self, step: Step) -> list[str]:
        wrong = []
        for known, expected in step.see.items():
            name = self._name(known)
            wrong += differences(known, await self._get(name), expected, self._history[name])
        if step.queue is not None:
            wrong += compared("the queue", await self._queue(), list(step.queue))
        for host, free in step.free.items():
            seen = (await self._hosts(self._pool_of(host)))[host].free.amounts["cpu"]
            wrong += compared(f"free cpu of host {host}", seen, free)
        for known, state in step.ensembles.items():
            request = api.GetEnsembleRequest(name=self._ensemble(known))
            ensemble = (await self._done(self.workspaces.GetEnsemble(request))).ensemble
            wrong += compared(f"ensemble {known}", pb.Ensemble.State.Name(ensemble.state), f"STATE_{state}")
        return wrong

    async def _queue(self) -> list[str]:
        request = api.ListWorkspacesRequest(parent="tenants/-", states=EVERY_STATE, page_size=1000)
        every = (await self._done(self.workspaces.ListWorkspaces(request))).workspaces
        waiting = sorted((each.queue_position, each.name.rpartition("/")[2]) for each in every)
        return [name for position, name in waiting if position]

    async def _get(self, name: str) -> pb.Workspace | None:
        try:
            answer = await self._done(self.workspaces.GetWorkspace(api.GetWorkspaceRequest(name=name)))
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                return None
            raise
        return answer.workspace  # type: ignore[no-any-return]

    async def _hosts(self, pool: str) -> dict[str, pb.Host]:
        request = pool_api.ListHostsRequest(parent=f"pools/{pool}", page_size=1000)
        hosts = (await self._done(self.pools.ListHosts(request))).hosts
        return {host.name.rpartition("/")[2]: host for host in hosts}

    async def _check_capacity(self) -> None:
        """No host is over its capacity, now or at any change that is planned; where anything has changed."""
        if self._checked == self.broker.book.events.revision:
            return
        self._checked = self.broker.book.events.revision
        wrong = []
        for pool in self.scenario.pools:
            machines = [machine for machine in self._backend(pool).vms if machine.placed]
            for name, host in (await self._hosts(pool)).items():
                running = [machine.amounts for machine in machines if machine.host == name]
                wrong += over_capacity(name, host, running, self.clock.now())
        if wrong:
            self._fail(wrong)

    def _fail(self, wrong: list[str]) -> Never:
        step = self._step
        where = self.scenario.path.name
        if step is not None:
            what = f"{step.action} {step.target}".strip() or "look"
            where += f", line {step.line}, step {step.number} ({what})"
        history = "\n    ".join(self._told[-60:])
        raise CameOutOtherwise(
            f"{where} at {told(self.clock.now())}:\n  " + "\n  ".join(wrong) + f"\n  what happened:\n    {history}"
        )


_HOST_STATES: Final = {"fail": HostState.LOST, "disable": HostState.DISABLED, "return": HostState.ACTIVE}
_BY_HAND: Final[Mapping[str, Callable[[Stage, Step], Coroutine[Any, Any, None]]]] = {
    **dict.fromkeys(_HOST_STATES, Stage._set_host),
    **dict.fromkeys(("cordon", "uncordon"), Stage._cordon),
    **dict.fromkeys(("silence", "hear"), Stage._set_silent),
    **dict.fromkeys(("drain", "undrain"), Stage._drain),
    "strangers": Stage._set_foreign,
    "restart": Stage._restart,
}
