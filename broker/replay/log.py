"""What happened in a replay, one JSON object a line: enough to check a schedule without the broker.

The first line is the header, each further line one thing that happened to one entry of the traces. Times are seconds
since the start of the traces, exact to the microsecond; amounts are cpu in milli-cores, memory and disk in MiB.
Invariants: lines are in the order of time, those of one instant in the order of the traces, so that the same replay
gives the same bytes; whenever what an entry holds of hosts changes, there is a line that says what it holds from then
on. docs/replay.md describes every field.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from broker.core.errors import BrokerError
from broker.core.lifecycle import holds
from broker.core.model import FINAL, State, Workspace
from broker.replay.traces import Entry, Kind

MICROSECOND: Final = timedelta(microseconds=1)
Seconds = int | float


class Event(StrEnum):
    """What a line tells."""

    SUBMIT = "submit"  # it is asked for
    REFUSED = "refused"
    ACCEPTED = "accepted"  # it is reserved
    QUEUED = "queued"
    STARTED = "started"  # it holds its hosts
    RUNNING = "running"
    SUSPENDING = "suspending"
    SUSPENDED = "suspended"
    RESUMED = "resumed"  # it holds hosts again
    ENDING = "ending"
    ENDED = "ended"
    CHANGED = "changed"  # of what it holds, or until when


EVENTS: Final = {
    State.PENDING: Event.QUEUED,
    State.RESERVED: Event.ACCEPTED,
    State.STARTING: Event.STARTED,
    State.RUNNING: Event.RUNNING,
    State.PAUSED: Event.RUNNING,
    State.SUSPENDING: Event.SUSPENDING,
    State.STOPPING: Event.SUSPENDING,
    State.SUSPENDED: Event.SUSPENDED,
    State.STOPPED: Event.SUSPENDED,
    State.RESUMING: Event.RESUMED,
    State.TERMINATING: Event.ENDING,
    **dict.fromkeys(FINAL, Event.ENDED),
}
"""What reaching a state means; in the others it goes on as before."""


class Host(Struct, frozen=True, kw_only=True):
    """A host and what may be promised of it."""

    name: str  # pool/host
    amounts: dict[str, int]


class Source(Struct, frozen=True, kw_only=True):
    """A trace that was replayed."""

    file: str
    format: str
    entries: int
    left_out: int


class Header(Struct, frozen=True, kw_only=True):
    """The first line."""

    log: str = "workspace-broker replay"
    version: int = 1
    traces: tuple[Source, ...]
    jobs: int
    reservations: int
    preemptible: bool  # whether jobs may be made to give way
    order: str
    policies: dict[str, dict[str, str | bool]]  # by pool
    hosts: tuple[Host, ...]


class Held(Struct, frozen=True):
    """What a node holds of a host."""

    host: str
    amounts: dict[str, int]


class Line(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One thing that happened."""

    time: Seconds
    event: Event
    id: str
    kind: Kind
    user: str = ""
    count: int = 0  # submit: nodes asked for
    amounts: dict[str, int] | None = None  # submit: a node's
    requested: Seconds | None = None  # submit
    real: Seconds | None = None  # submit
    start: Seconds | None = None  # submit: as wanted; accepted: as promised
    end: Seconds | None = None  # of the lease
    until: Seconds | None = None  # when it has to give way, where that is before its end
    nodes: tuple[Held, ...] | None = None  # what it holds from now on (accepted: from its start on); None: as before
    how: str = ""  # ended: the final state; refused: the reason
    message: str = ""


def seconds(length: timedelta) -> Seconds:
    """A length of time in seconds, whole where it is."""
    micros = length // MICROSECOND
    return micros // 1_000_000 if micros % 1_000_000 == 0 else micros / 1_000_000


def lines_of(header: Header, lines: Iterable[Line]) -> bytes:
    """The log's bytes."""
    encoder = msgspec.json.Encoder()
    return b"".join(encoder.encode(each) + b"\n" for each in (header, *lines))


def read(text: bytes) -> tuple[Header, list[Line]]:
    """A log's header and lines. Raises msgspec.DecodeError."""
    first, *rest = text.splitlines()
    decoder = msgspec.json.Decoder(Line)
    return msgspec.json.decode(first, type=Header), [decoder.decode(line) for line in rest]


class _Seen:
    """What was told of an entry last."""

    def __init__(self, entry: Entry, place: int) -> None:
        self.entry = entry
        self.place = place  # in the traces
        self.event: Event | None = None
        self.started = False
        self.held: tuple[tuple[str, str, str], ...] = ()
        self.until: datetime | None = None


class Recorder:
    """Turns what happens to workspaces into lines; a workspace's id is its entry's."""

    def __init__(self, entries: Sequence[Entry], begin: datetime) -> None:
        self._begin = begin
        self._seen = {entry.id: _Seen(entry, place) for place, entry in enumerate(entries)}
        self._lines: list[Line] = []
        self._instant: list[tuple[int, Line]] = []  # those of the present instant
        self._now: Seconds = 0

    def submit(self, entry: Entry, amounts: dict[str, int], now: datetime) -> None:
        """An entry is asked for, with these amounts a node."""
        self._add(
            self._seen[entry.id],
            now,
            Event.SUBMIT,
            user=entry.user,
            count=entry.nodes,
            amounts=amounts,
            requested=seconds(entry.requested),
            real=seconds(entry.real),
            start=seconds(entry.start) if entry.start is not None else None,
        )

    def refused(self, entry: Entry, error: BrokerError, now: datetime) -> None:
        """An entry was refused."""
        self._add(self._seen[entry.id], now, Event.REFUSED, how=error.reason.value, message=str(error))

    def note(self, workspace: Workspace, now: datetime) -> None:
        """A workspace is as it is from now on."""
        seen = self._seen.get(workspace.id)
        if seen is None:
            return
        event = EVENTS.get(workspace.state, seen.event)
        if event is Event.STARTED and seen.started and seen.event is not Event.STARTED:
            event = Event.RESUMED
        held = _held(workspace)
        until = workspace.held_until
        same = event is seen.event
        if event is None or (same and held == seen.held and until == seen.until):
            return
        told = held != seen.held or event in (Event.ACCEPTED, Event.STARTED, Event.RESUMED, Event.SUSPENDED)
        seen.started = event is Event.STARTED or (seen.started and event is not Event.QUEUED)
        seen.event, seen.held, seen.until = event, held, until
        over = workspace.state.final
        self._add(
            seen,
            now,
            Event.CHANGED if same else event,
            start=self._since(workspace.start_time) if event is Event.ACCEPTED else None,
            end=self._since(workspace.end_time) if not over else None,
            until=self._since(until) if until != workspace.end_time and not over else None,
            nodes=_nodes(workspace) if told else None,
            how=workspace.state.value.lower() if over else "",
            message=workspace.last_error.message if over and workspace.last_error is not None else "",
        )

    def lines(self) -> list[Line]:
        """All lines up to now."""
        self._close_instant()
        return self._lines

    @property
    def last(self) -> Seconds:
        """The time of the last line."""
        return self._now

    def _since(self, instant: datetime | None) -> Seconds | None:
        return seconds(instant - self._begin) if instant is not None else None

    def _add(self, seen: _Seen, now: datetime, event: Event, **fields: object) -> None:
        time = seconds(now - self._begin)
        if time != self._now:
            self._close_instant()
            self._now = time
        line = Line(time=time, event=event, id=seen.entry.id, kind=seen.entry.kind, **fields)  # type: ignore[arg-type]
        if event is Event.CHANGED:
            # Nodes let go one after another: of those in one instant the last tells it all.
            for at in range(len(self._instant) - 1, -1, -1):
                place, before = self._instant[at]
                if place == seen.place:
                    if before.event is Event.CHANGED:
                        line = line if line.nodes is not None else replace(line, nodes=before.nodes)
                        del self._instant[at]
                    break
        self._instant.append((seen.place, line))

    def _close_instant(self) -> None:
        self._lines += [line for _, line in sorted(self._instant, key=lambda each: each[0])]
        self._instant.clear()


def _held(workspace: Workspace) -> tuple[tuple[str, str, str], ...]:
    """Which hosts its nodes hold, or will hold."""
    return tuple(
        (node.pool, node.host, node.target_host)
        for node in workspace.nodes
        if node.state is State.RESERVED or holds(node.state, node.released).host
    )


def _nodes(workspace: Workspace) -> tuple[Held, ...]:
    return tuple(
        Held(f"{node.pool}/{host}", node.held)
        for node in workspace.nodes
        if node.state is State.RESERVED or holds(node.state, node.released).host
        for host in (node.host, node.target_host)
        if host
    )
