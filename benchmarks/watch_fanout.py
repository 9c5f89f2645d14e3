"""Watch fan-out: 1,000 watchers of one broker, against a bare grpc.aio server that sends them the same bytes.

A change is an UpdateWorkspace of a display name. Its delivery is timed from the moment it is sent, by a writer that
does not wait for answers, until one watcher has its message; the percentiles are over all changes and watchers. The
broker makes the change durable in that time; the bare server has nothing to do but send. 1,000 watchers at 200 changes
a second are 200,000 messages a second, which no grpc.aio server on two cores comes near: latency is measured at a rate
that both hold, and at 200 a second how much is delivered, and what that does to the server.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Final

from google.protobuf.field_mask_pb2 import FieldMask
from workspacebroker.v1 import resources_pb2 as pb
from workspacebroker.v1 import workspace_service_pb2 as api

from benchmarks.harness import CLIENT_SATURATED, Options, Row, cpu_of, memory_of, row, server
from benchmarks.load import answer_to, broker, stream_of
from benchmarks.population import TENANT, workspace_name, write_population
from benchmarks.watchers_client import Delivery, Watchers

NAME: Final = "watch fan-out"
BARE: Final = "bare gRPC fan-out"
WORKSPACES: Final = 1_000
HOSTS: Final = 10
WATCHERS: Final = 1_000
HELD: Final = 10.0
HELD_SECONDS: Final = 3.0
OFFERED: Final = 200.0
OFFERED_SECONDS: Final = 2.0
"""Changes a second that both servers hold, and that the issue asks for; and how long they are sent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One round against one server."""

    held: Delivery
    held_cpu: float  # seconds the server used
    offered: Delivery
    idle_memory: float  # bytes a watcher, before any change
    full_memory: float  # bytes a watcher, after all of them


def updates() -> Iterator[api.UpdateWorkspaceRequest]:
    """Changes without end, each of another workspace than the one before."""
    for number in count():
        yield api.UpdateWorkspaceRequest(
            workspace=pb.Workspace(name=workspace_name(number % WORKSPACES + 1), display_name=f"change {number:06d}"),
            update_mask=FieldMask(paths=["display_name"]),
        )


def watch(after: int) -> api.WatchWorkspacesRequest:
    """Everything of the tenant after a revision."""
    return api.WatchWorkspacesRequest(parent=f"tenants/{TENANT}", after_revision=after)


@contextmanager
def fresh_broker() -> Iterator[tuple[str, int]]:
    """A broker whose latest change has the revision `WORKSPACES`."""
    with TemporaryDirectory() as folder, broker(write_population(Path(folder), WORKSPACES, HOSTS)) as started:
        yield started


@contextmanager
def bare(change: bytes, answer: bytes) -> Iterator[tuple[str, int]]:
    """The ceiling, likewise."""
    prebuilt = round(HELD * HELD_SECONDS + OFFERED * OFFERED_SECONDS)
    with server(
        "-m", "benchmarks.fanout_server", change.hex(), answer.hex(), str(WORKSPACES), str(prebuilt + 1)
    ) as started:
        yield started


async def one_round(started: tuple[str, int]) -> Round:
    """Watches, then changes at either rate."""
    address, process = started
    watchers = Watchers(address, WATCHERS)
    before = memory_of(process)
    await watchers.connect(watch(WORKSPACES - 1))
    idle = memory_of(process)
    changes = updates()
    used = cpu_of(process)
    held = await watchers.deliver(changes, HELD, HELD_SECONDS, all_of_it=True)
    used = cpu_of(process) - used
    offered = await watchers.deliver(changes, OFFERED, OFFERED_SECONDS, all_of_it=False)
    full = memory_of(process)
    watchers.close()
    return Round(
        held=held,
        held_cpu=used,
        offered=offered,
        idle_memory=(idle - before) / WATCHERS,
        full_memory=(full - before) / WATCHERS,
    )


def run(options: Options) -> list[Row]:
    """Measures."""
    with fresh_broker() as (address, _):
        change = stream_of(address, "WatchWorkspaces", watch(WORKSPACES - 1), 1)[0]
        answer = answer_to(address, "UpdateWorkspace", next(updates()))
    rounds = []
    for number in range(options.rounds):
        options.progress(f"{NAME}: round {number + 1} of {options.rounds}")
        with fresh_broker() as ours:
            measured = asyncio.run(one_round(ours))
        with bare(change, answer) as ceiling:
            rounds.append((measured, asyncio.run(one_round(ceiling))))
    return rows(rounds)


def rows(rounds: Sequence[tuple[Round, Round]]) -> list[Row]:
    """A row a measure of rounds (the broker's, the bare server's)."""

    def line(
        case: str,
        measure: str,
        unit: str,
        figure: Callable[[Round], float],
        *,
        more_is_better: bool = False,
        note: str = "",
        void: str = "",
    ) -> Row:
        pairs = [(figure(ours), figure(ceiling)) for ours, ceiling in rounds]
        return row(
            NAME, case, measure, unit, pairs, against=BARE, higher_is_better=more_is_better, note=note, void=void
        )

    held = f"{WATCHERS:,} watchers, {HELD:g} changes/s"
    offered = f"{WATCHERS:,} watchers, {OFFERED:g} changes/s"
    late = not_held([each.held for pair in rounds for each in pair])
    saturated = slow_client([each for pair in rounds for side in pair for each in (side.held, side.offered)])
    taken = [median(pair[side].offered.taken / pair[side].offered.seconds for pair in rounds) for side in (0, 1)]
    closed = [max(pair[side].offered.closed for pair in rounds) for side in (0, 1)]
    return [
        line(held, "delivery p50", "ms", lambda each: each.held.percentile(50) * 1e3, void=late or saturated),
        line(held, "delivery p99", "ms", lambda each: each.held.percentile(99) * 1e3, void=late or saturated),
        line(held, "server CPU", "us a message", lambda each: each.held_cpu / each.held.messages * 1e6, void=late),
        line(held, "memory, before changes", "kB a watcher", lambda each: each.idle_memory / 1e3),
        line(
            offered,
            "messages delivered",
            "1/s",
            lambda each: each.offered.messages / each.offered.seconds,
            more_is_better=True,
            note=f"of {OFFERED:g} changes offered a second the broker took {taken[0]:.0f}, the bare server "
            f"{taken[1]:.0f}: the rest waits at the writer; watchers closed: {closed[0]} and {closed[1]}",
            void=saturated,
        ),
        line(offered, "memory, after them", "kB a watcher", lambda each: each.full_memory / 1e3),
    ]


def not_held(deliveries: Sequence[Delivery]) -> str:
    """Why latencies at a rate mean nothing: some messages did not come."""
    due = sum(each.sent for each in deliveries) * WATCHERS
    came = sum(len(each.latencies) for each in deliveries)
    return "" if came == due else f"{due - came:,} of {due:,} messages did not come in time"


def slow_client(deliveries: Sequence[Delivery]) -> str:
    """Why a rate means nothing: the client was the slow side."""
    busiest = max(each.client_cpu for each in deliveries)
    return f"the client used {busiest:.2f} of a core" if busiest >= CLIENT_SATURATED else ""
