"""What grows with hosts and with live workspaces: creates a second, plan(), memory and start-up.

Every figure stands against the smallest size, so that a ratio of 1 is what does not grow at all; memory stands against
the bytes that the same workspaces take in the state file. Hosts are measured on empty brokers, and for plan() with one
VM a host, as larger clusters run more; workspaces are measured on 1,000 hosts.
"""

from __future__ import annotations

import shutil
import sqlite3
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Final, NamedTuple

from benchmarks.create import REQUEST
from benchmarks.harness import CLIENT_SATURATED, Options, Row, memory_of, row
from benchmarks.load import THROUGHPUT, broker, drive
from benchmarks.population import AMOUNTS, write_population
from broker.core.inventory import HostInventory, HostRecord, PoolSnapshot
from broker.core.placement import NotNow, PlacementRequest, Plan, SetRequest, Window, plan
from broker.core.slots import Slot, SlotTable

NAME: Final = "growth"
HOSTS: Final = (10, 100, 1_000, 10_000, 100_000)
WORKSPACES: Final = (0, 10_000, 100_000)
IN_FLIGHT: Final = "32"
SECONDS: Final = "1.0"
PLANS: Final = 30
REFUSALS: Final = 5
"""Calls of plan() in a round, of which the median counts."""

NOW: Final = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
HOUR: Final = timedelta(hours=1)
ONE_VM: Final = PlacementRequest(sets=(SetRequest(amounts=AMOUNTS),))


class Size(NamedTuple):
    """How large a broker is."""

    workspaces: int
    hosts: int


def empty(hosts: int) -> Size:
    """No workspaces."""
    return Size(0, hosts)


def loaded(hosts: int) -> Size:
    """One VM a host."""
    return Size(hosts, hosts)


def on_hosts(workspaces: int) -> Size:
    """So many workspaces on the same hosts."""
    return Size(workspaces, 1_000)


def pool(size: Size, *, full: bool) -> PoolSnapshot:
    """A pool whose VMs lie evenly on its hosts and end one after another; each host takes one more, or is `full`."""
    each = size.workspaces // size.hosts + (0 if full else 1)
    names = [f"host-{number:06d}" for number in range(size.hosts)]
    table = SlotTable(tuple(AMOUNTS))
    table.advance(NOW)
    table.hold_all(
        Slot(
            key=(f"w{number}", 0, "host"),
            host=names[number % size.hosts],
            amounts=AMOUNTS,
            start=NOW - HOUR,
            end=NOW + (1 + number * 7 % 500) * HOUR,
        )
        for number in range(size.workspaces)
    )
    total = {name: amount * each for name, amount in AMOUNTS.items()}
    inventory = HostInventory.build(HostRecord(name=name, total=total) for name in names)
    return PoolSnapshot(name="lab", hosts=inventory, slots=table, now=NOW)


def plan_time(snapshot: PoolSnapshot, answer: type, calls: int) -> float:
    """Microseconds that plan() takes to give this kind of answer to a create of one VM.

    A slot comes and goes before each call: in a broker, too, the table is never the one of the call before.
    """
    window = Window(start=NOW, duration=HOUR, immediate=True)
    passing = ("passing", 0, "host")
    times = []
    for _ in range(calls):
        snapshot.slots.hold(passing, snapshot.hosts.names[0], AMOUNTS, NOW, NOW + HOUR)
        snapshot.slots.release(passing)
        began = time.perf_counter()
        found = plan(ONE_VM, {snapshot.name: snapshot}, window, judged=False)
        times.append(time.perf_counter() - began)
        assert isinstance(found, answer)
    return median(times) * 1e6


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """What one start of a broker came to."""

    start_up: float  # milliseconds until it has looked at its pool
    memory: int  # bytes, then
    creates: float  # a second
    client_cpu: float


def serve(population: Path) -> Served:
    """Starts a broker on a copy of a population's folder, and creates."""
    with TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        shutil.copytree(population, copy)
        began = time.perf_counter()
        with broker(copy / "broker.toml") as started:
            start_up = time.perf_counter() - began
            memory = memory_of(started[1])
            created = drive(started, "CreateWorkspace", [REQUEST], IN_FLIGHT, SECONDS, "--fresh-ids")
    return Served(
        start_up=start_up * 1e3,
        memory=memory,
        creates=created.figures[THROUGHPUT],
        client_cpu=created.client_cpu,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One round, by size."""

    placed: Mapping[Size, float]  # microseconds of plan()
    refused: Mapping[Size, float]
    served: Mapping[Size, Served]


def stored_bytes(population: Path) -> int:
    """What the records in a state file come to, without what SQLite adds."""
    with closing(sqlite3.connect(population / "broker.db")) as state:
        return sum(
            state.execute(f"SELECT sum(length(CAST(record AS BLOB))) FROM {table}").fetchone()[0]
            for table in ("workspaces", "requests")
        )


def run(options: Options) -> list[Row]:
    """Measures."""
    options.progress(f"{NAME}: populations of up to {WORKSPACES[-1]:,} workspaces are written")
    free = {size: pool(size, full=False) for size in (*map(loaded, HOSTS), *map(on_hosts, WORKSPACES))}
    full = {size: pool(size, full=True) for size in map(loaded, HOSTS)}
    rounds = []
    with TemporaryDirectory() as folder:
        populations = {}
        for size in dict.fromkeys((*map(empty, HOSTS), *map(on_hosts, WORKSPACES))):
            populations[size] = Path(folder) / f"{size.workspaces}-on-{size.hosts}"
            populations[size].mkdir()
            write_population(populations[size], size.workspaces, size.hosts)
        for number in range(options.rounds):
            options.progress(f"{NAME}: round {number + 1} of {options.rounds}")
            rounds.append(
                Round(
                    placed={size: plan_time(each, Plan, PLANS) for size, each in free.items()},
                    refused={size: plan_time(each, NotNow, REFUSALS) for size, each in full.items()},
                    served={size: serve(population) for size, population in populations.items()},
                )
            )
        stored = stored_bytes(populations[on_hosts(WORKSPACES[-1])]) / WORKSPACES[-1]
    return rows(rounds, stored)


def rows(rounds: Sequence[Round], stored: float) -> list[Row]:
    """A row a size and measure; `stored`: bytes a workspace in the state file."""
    table = []
    for hosts in HOSTS[1:]:
        case, against = f"{hosts:,} hosts", f"{HOSTS[0]} hosts"
        size, least = loaded(hosts), loaded(HOSTS[0])
        placed = [(each.placed[size], each.placed[least]) for each in rounds]
        refused = [(each.refused[size], each.refused[least]) for each in rounds]
        table += [
            creates(case, against, [(each.served[empty(hosts)], each.served[empty(HOSTS[0])]) for each in rounds]),
            row(NAME, case, "plan(), placed", "us", placed, against=against, higher_is_better=False),
            row(NAME, case, "plan(), refused", "us", refused, against=against, higher_is_better=False),
        ]
    none = on_hosts(WORKSPACES[0])
    for workspaces in WORKSPACES[1:]:
        case, against, size = f"{workspaces:,} workspaces", "no workspaces", on_hosts(workspaces)
        placed = [(each.placed[size], each.placed[none]) for each in rounds]
        table += [
            creates(case, against, [(each.served[size], each.served[none]) for each in rounds]),
            row(NAME, case, "plan(), placed", "us", placed, against=against, higher_is_better=False),
        ]
    held = [((each.served[size].memory - each.served[none].memory) / workspaces, stored) for each in rounds]
    starts = [(each.served[size].start_up, each.served[none].start_up) for each in rounds]
    longer = median(full - bare for full, bare in starts) / workspaces * 1e3
    return [
        *table,
        row(
            NAME,
            case,
            "memory",
            "B a workspace",
            held,
            against="records in the state file",
            higher_is_better=False,
            note="with its simulated VM, which a real pool keeps elsewhere",
        ),
        row(
            NAME,
            case,
            "start-up",
            "ms",
            starts,
            against=against,
            higher_is_better=False,
            note=f"until the pool was looked at: {longer:.0f} us a workspace, with its simulated VM",
        ),
    ]


def creates(case: str, against: str, pairs: Sequence[tuple[Served, Served]]) -> Row:
    """The row of creates a second; void where the client was the slow side."""
    busiest = max(served.client_cpu for pair in pairs for served in pair)
    return row(
        NAME,
        case,
        "creates",
        "1/s",
        [(ours.creates, base.creates) for ours, base in pairs],
        against=against,
        higher_is_better=True,
        void=f"the client used {busiest:.2f} of a core" if busiest >= CLIENT_SATURATED else "",
    )
