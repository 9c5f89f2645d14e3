"""Watch fan-out: 1,000 watchers of one broker, against a bare grpc.aio server that sends them the same bytes.

A change is an UpdateWorkspace of a display name. Its delivery is timed from the moment it is sent, by a writer that
does not wait for answers, until one watcher has its message; the percentiles are over all changes and watchers. The
broker makes the change durable in that time; the bare server has nothing to do but send. 1,000 watchers at 200 changes
a second are 200,000 messages a second, which no grpc.aio server on two cores comes near: latency is measured at the
largest rate that the bare server holds, and at half of it; and at 200 a second, how much is delivered and what becomes
of the server.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
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
HELD: Final = (10, 20)
"""Changes a second at which latency is measured: the bare server holds 25 on two cores, and not 40."""

OFFERED: Final = 200
SECONDS: Final = 2.0
"""How long changes are sent at each rate."""

P50: Final = "delivery p50"
P99: Final = "delivery p99"
SERVER_CPU: Final = "server CPU"
MESSAGES: Final = "messages delivered"
IDLE_MEMORY: Final = "memory, idle before"
FULL_MEMORY: Final = "memory, after"
UNITS: Final = {
    P50: "ms",
    P99: "ms",
    SERVER_CPU: "us a message",
    MESSAGES: "1/s",
    IDLE_MEMORY: "kB a watcher",
    FULL_MEMORY: "kB a watcher",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One round against one server: figures by changes a second and measure, in `UNITS`, and what they are from."""

    figures: Mapping[tuple[int, str], float]
    deliveries: Mapping[int, Delivery]


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
    prebuilt = round((sum(HELD) + OFFERED) * SECONDS)
    with server(
        "-m", "benchmarks.fanout_server", change.hex(), answer.hex(), str(WORKSPACES), str(prebuilt + 1)
    ) as started:
        yield started


async def one_round(started: tuple[str, int]) -> Round:
    """Watches, then changes at each rate."""
    address, process = started
    watchers = Watchers(address, WATCHERS)
    changes = updates()
    figures: dict[tuple[int, str], float] = {}
    deliveries = {}
    before = memory_of(process)
    await watchers.connect(watch(WORKSPACES - 1))
    idle = memory_of(process)
    for rate in HELD:
        used = cpu_of(process)
        held = deliveries[rate] = await watchers.deliver(changes, rate, SECONDS, all_of_it=True)
        figures[rate, P50] = held.percentile(50) * 1e3
        figures[rate, P99] = held.percentile(99) * 1e3
        figures[rate, SERVER_CPU] = (cpu_of(process) - used) / held.messages * 1e6
    offered = deliveries[OFFERED] = await watchers.deliver(changes, OFFERED, SECONDS, all_of_it=False)
    figures[OFFERED, MESSAGES] = offered.messages / offered.seconds
    figures[OFFERED, IDLE_MEMORY] = (idle - before) / WATCHERS / 1e3
    figures[OFFERED, FULL_MEMORY] = (memory_of(process) - before) / WATCHERS / 1e3
    watchers.close()
    return Round(figures=figures, deliveries=deliveries)


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
    """A row a figure of rounds (the broker's, the bare server's)."""
    return [
        row(
            NAME,
            f"{WATCHERS:,} watchers, {rate} changes/s",
            measure,
            UNITS[measure],
            [(ours.figures[rate, measure], ceiling.figures[rate, measure]) for ours, ceiling in rounds],
            against=BARE,
            higher_is_better=measure == MESSAGES,
            note=overload(rounds) if measure == MESSAGES else "",
            void=void([side.deliveries[rate] for pair in rounds for side in pair], all_of_it=rate in HELD),
        )
        for rate, measure in rounds[0][0].figures
    ]


def overload(rounds: Sequence[tuple[Round, Round]]) -> str:
    """What became of changes and watchers at the rate that was offered."""
    ours, ceiling = ([pair[side].deliveries[OFFERED] for pair in rounds] for side in (0, 1))

    def taken(deliveries: Sequence[Delivery]) -> float:
        return median(each.taken / each.seconds for each in deliveries)

    def closed(deliveries: Sequence[Delivery]) -> int:
        return max(each.closed for each in deliveries)

    return (
        f"of {OFFERED} changes a second the broker took {taken(ours):.0f} and the bare server {taken(ceiling):.0f}, "
        f"the others wait for their answer; watchers closed: {closed(ours)} and {closed(ceiling)}"
    )


def void(deliveries: Sequence[Delivery], *, all_of_it: bool) -> str:
    """Why figures mean nothing: the client was the slow side, or not all messages came where all had to."""
    busiest = max(each.client_cpu for each in deliveries)
    if busiest >= CLIENT_SATURATED:
        return f"the client used {busiest:.2f} of a core"
    due = sum(each.sent for each in deliveries) * WATCHERS
    came = sum(len(each.latencies) for each in deliveries)
    return f"{due - came:,} of {due:,} messages did not come in time" if all_of_it and came != due else ""
