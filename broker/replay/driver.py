"""Plays traces to the whole broker, on a clock that jumps from one thing that happens to the next.

Each entry is asked for when it comes, as any caller would (`Workspaces.create`), and is terminated when it has run for
as long as it really ran; everything else is the broker's: placement, queue, preemption, engine, the pools' backends.
Nothing is random and nothing waits for the machine: ids are counted, jitter is fixed, the store is memory.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Final

from broker.assembly import BROKER_ID_KEY, Assembly
from broker.config import Settings
from broker.core.clock import ManualClock
from broker.core.errors import BrokerError
from broker.core.lifecycle import Verb
from broker.core.model import FINAL, NodeSet, State, Terms, Workspace
from broker.core.requests import CreateRequest, Target, WorkspaceRequest
from broker.engine.retry import interrupted_sleep
from broker.pools import Pool
from broker.replay.log import Header, Host, Line, Recorder, Source
from broker.replay.traces import Entry, Kind, Trace
from broker.store.memory import MemoryStore

BEGIN: Final = datetime(2001, 1, 1, tzinfo=UTC)
"""The instant 0 of every replay."""

FOR_EVER: Final = datetime(9000, 1, 1, tzinfo=UTC)
"""Until when a job waits."""

STANDSTILL: Final = timedelta(days=1)
"""How long nothing may happen, beyond what the longest lease and the farthest reservation explain."""


class ReplayError(Exception):
    """A replay that cannot be made, and why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What of a trace may be read in more than one way."""

    preemptible: bool = False  # whether jobs may be made to give way
    nodes_per_host: int = 1


async def replay(settings: Settings, traces: Sequence[Trace], options: Options) -> tuple[Header, list[Line]]:
    """The log of a replay: its header and lines. Raises ReplayError."""
    run = _Run(settings, traces, options)
    await run.start()
    try:
        await run.play()
        return run.header(), run.recorder.lines()
    finally:
        await run.stop()


class _Track:
    """One entry's workspace, as far as its caller cares."""

    def __init__(self, entry: Entry) -> None:
        self.entry = entry
        self.state: State | None = None
        self.changed = asyncio.Event()


class _Run:
    """One replay."""

    def __init__(self, settings: Settings, traces: Sequence[Trace], options: Options) -> None:
        self._settings = settings
        self._traces = traces
        self._options = options
        # Entries of one instant are asked for in the order of the traces.
        self._entries = sorted((entry for trace in traces for entry in trace.entries), key=lambda each: each.submit)
        self._tracks = {entry.id: _Track(entry) for entry in self._entries}
        self._clock = ManualClock(BEGIN)
        uids = count(1)
        self._broker = Assembly(settings, clock=self._clock, new_uid=lambda: f"{next(uids):032x}", jitter=lambda: 0.5)
        self.recorder = Recorder(self._entries, BEGIN)
        self._patience = STANDSTILL + max(
            (entry.requested + ((entry.start or entry.submit) - entry.submit) for entry in self._entries),
            default=timedelta(),
        )

    async def start(self) -> None:
        """Puts the broker together and lets it look at its pools."""
        await self._broker.assemble(MemoryStore({BROKER_ID_KEY: "replay"}))
        self._broker.book.on_workspace.append(self._note)
        await self._broker.engine.start()
        await self._clock.advance(0.0)
        unread = sorted(name for name, pool in self._broker.pools.items() if pool.inventory is None)
        if unread:
            raise ReplayError(f"pools that do not answer cannot be replayed on: {', '.join(unread)}")
        lacking = sorted(
            {self._tenant(entry) for entry in self._entries if self._settings.tenants} - self._settings.tenants.keys()
        )
        if lacking:
            raise ReplayError(
                f"the configuration has [tenants], and the traces have others: {', '.join(lacking)}; add them, or "
                "leave [tenants] out"
            )
        self._whole = self._node_amounts()

    async def stop(self) -> None:
        """Lets the broker rest."""
        await self._broker.engine.stop()

    async def play(self) -> None:
        """Returns when every entry is over, or when nothing will happen any more."""
        callers = [asyncio.create_task(self._call(self._tracks[entry.id]), name=entry.id) for entry in self._entries]
        try:
            await self._clock.advance(0.0)
            happened = self._clock.now()
            last = self.recorder.last
            while not all(caller.done() for caller in callers):
                wake = self._clock.next_wake
                if wake is None or wake - happened > self._patience:
                    break  # the log tells who never began
                await self._clock.advance((wake - self._clock.now()).total_seconds())
                if self.recorder.last != last:
                    last, happened = self.recorder.last, self._clock.now()
        finally:
            for caller in callers:
                caller.cancel()
            for ended in await asyncio.gather(*callers, return_exceptions=True):
                if isinstance(ended, Exception):
                    raise ended

    def header(self) -> Header:
        """What the log begins with."""
        pools = self._broker.pools
        return Header(
            traces=tuple(
                Source(file=trace.file, format=trace.format, entries=len(trace.entries), left_out=len(trace.left_out))
                for trace in self._traces
            ),
            jobs=sum(entry.kind is Kind.JOB for entry in self._entries),
            reservations=sum(entry.kind is Kind.RESERVATION for entry in self._entries),
            preemptible=self._options.preemptible,
            order=self._settings.queue.order,
            policies={
                name: {
                    "backfill": pool.settings.backfill,
                    "victims": pool.settings.victims,
                    "preemption": pool.settings.preemption,
                }
                for name, pool in pools.items()
            },
            hosts=tuple(
                Host(name=f"{name}/{host.name}", amounts=pool.promised(host))
                for name, pool in pools.items()
                for host in pool.hosts.values()
            ),
        )

    # One caller

    async def _call(self, track: _Track) -> None:
        """What the owner of one entry does: asks for it, uses it as long as it takes, and ends it."""
        entry = track.entry
        await self._clock.sleep(entry.submit.total_seconds())
        request = self._request(entry)
        self.recorder.submit(entry, request.workspace.node_sets[0].amounts, self._clock.now())
        try:
            await self._broker.workspaces.create(request)
        except BrokerError as error:
            self.recorder.refused(entry, error, self._clock.now())
            return
        left = entry.real
        done = False
        while track.state not in FINAL:
            track.changed.clear()
            if done or track.state is not State.RUNNING:
                if track.state is State.PENDING:
                    left = entry.real  # what has to begin anew has done nothing
                await track.changed.wait()
                continue
            since = self._clock.now()
            if left <= timedelta() or not await interrupted_sleep(self._clock, left.total_seconds(), track.changed):
                await self._broker.verbs.verb(
                    Verb.TERMINATE, Target(tenant=request.tenant, workspace_id=request.workspace_id)
                )
                done = True
            left -= self._clock.now() - since

    def _note(self, workspace: Workspace) -> None:
        track = self._tracks.get(workspace.id)
        if track is None:
            return
        self.recorder.note(workspace, self._clock.now())
        if workspace.state is not track.state:
            track.state = workspace.state
            track.changed.set()

    # What is asked for

    def _request(self, entry: Entry) -> CreateRequest:
        job = entry.kind is Kind.JOB
        return CreateRequest(
            tenant=self._tenant(entry),
            workspace_id=entry.id,
            workspace=WorkspaceRequest(
                node_sets=(
                    NodeSet(
                        count=entry.nodes,
                        image=entry.image if self._has_images else "",
                        amounts=entry.amounts or self._whole,
                    ),
                ),
                terms=Terms(
                    start_time=BEGIN + entry.start if entry.start is not None else None,
                    duration=entry.requested,
                    queue_until=FOR_EVER if job else None,
                    preemptible=job and self._options.preemptible,
                ),
            ),
        )

    @property
    def _has_images(self) -> bool:
        return any(
            pool.inventory is not None and pool.inventory.images is not None for pool in self._broker.pools.values()
        )

    @staticmethod
    def _tenant(entry: Entry) -> str:
        return entry.user or "default"

    def _node_amounts(self) -> dict[str, int]:
        """What a node takes of which the trace says nothing: CPU and memory of the smallest host, or a share."""
        shares = [_share(pool, self._options.nodes_per_host) for pool in self._broker.pools.values() if pool.hosts]
        if not shares:
            raise ReplayError("the configured pools have no hosts")
        amounts = {name: min(share[name] for share in shares) for name in ("cpu", "memory")}
        if min(amounts.values()) < 1:
            raise ReplayError(
                f"{self._options.nodes_per_host} nodes a host are too many: the smallest host leaves each "
                f"{amounts['cpu']} milli-cores and {amounts['memory']} MiB"
            )
        return amounts


def _share(pool: Pool, nodes: int) -> Mapping[str, int]:
    promised = [pool.promised(host) for host in pool.hosts.values()]
    return {
        "cpu": min(amounts.get("cpu", 0) for amounts in promised) // nodes,
        "memory": min(amounts.get("memory", 0) for amounts in promised) // nodes - pool.settings.memory_overhead,
    }
