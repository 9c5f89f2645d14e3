"""What planning in time costs: plan() for now, for a start in the future and for the earliest start of a group.

Pools of 10 to 10,000 hosts with 10 leases a host. Six of them run and end one after another over two weeks; four are
reservations that follow where one of the six ends, so that the future has starts and ends and nobody is over capacity
at any instant. One host in five has room for one more node now.

No answer is one that is remembered. Before each call a lease that runs is given back and held again with another end,
as an extension does; every request differs from the one before by a few MiB, and starts and lengths vary.

The baseline is one pass of numpy over as many entries: for now, those of the hosts (is there room for this on each
host?); else those of the slots (which of them touch this interval?). An answer that looks at all of them takes no less.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from statistics import median
from typing import Final

import numpy as np

from benchmarks.harness import Options, Row, row
from broker.core.gates import ADVANCE_RESERVATION
from broker.core.inventory import HostInventory, HostRecord, PoolSnapshot
from broker.core.placement import PlacementRequest, Plan, SetRequest, Window, plan
from broker.core.slots import Slot, SlotTable, to_us

NAME: Final = "planning"
HOSTS: Final = (10, 100, 1_000, 10_000)
RUNNING, RESERVED = 6, 4
"""Leases a host: each reservation follows one that runs."""

GROUP: Final = 16
GROWTH_ALLOWED: Final = 12.0
"""How often the time of 1,000 hosts 10,000 may take."""

NOW: Final = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
SECOND: Final = timedelta(seconds=1)
HOUR: Final = timedelta(hours=1)
HORIZON: Final = 14 * 24 * HOUR
"""Within which what runs ends."""

LENGTHS: Final = (HOUR, 8 * HOUR, 7 * 24 * HOUR, None)
"""Of leases in the future; None: open-ended."""

CPU, MEMORY, DISK = 4_000, 8_192, 40_000
"""A node: milli-cores and MiB."""


def amounts(nodes: int, more: int = 0) -> dict[str, int]:
    """What so many nodes take, and a few MiB more."""
    return {"cpu": nodes * CPU, "memory": nodes * MEMORY + more, "disk": nodes * DISK}


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One way to ask for a place in time."""

    name: str
    goal: float  # microseconds on the largest pool
    calls: int  # in a round
    kinds: int = 1  # in turn; the slowest of them counts
    ask: Callable[[int], tuple[PlacementRequest, Window]]  # by number, no two alike
    of_hosts: bool = False  # whether the baseline reads hosts, not slots


def one_now(number: int) -> tuple[PlacementRequest, Window]:
    """One node for some hours from now on."""
    wanted = SetRequest(amounts=amounts(1, number % 499))
    return PlacementRequest(sets=(wanted,)), Window(start=NOW, duration=(1 + number % 8) * HOUR, immediate=True)


def one_ahead(number: int) -> tuple[PlacementRequest, Window]:
    """One node from an exact start within the horizon on."""
    wanted = SetRequest(amounts=amounts(1, number % 499))
    start = NOW + HOUR + (number * 0.618034 % 1.0) * HORIZON
    length = LENGTHS[number % len(LENGTHS)]
    return PlacementRequest(sets=(wanted,)), Window(start=start, duration=length, open_ended=length is None)


def earliest_group(number: int) -> tuple[PlacementRequest, Window]:
    """A group of nodes half as large as a host, as early as possible; there is no room now."""
    wanted = SetRequest(count=GROUP, amounts=amounts(RUNNING // 2, number % 499))
    return (
        PlacementRequest(sets=(wanted,)),
        Window(start=NOW, duration=(2 + number % 8) * HOUR, latest_start=NOW + 4 * HORIZON),
    )


QUESTIONS: Final = (
    Question(name="now", goal=100.0, calls=60, ask=one_now, of_hosts=True),
    Question(name="a future start", goal=1_000.0, calls=60, kinds=len(LENGTHS), ask=one_ahead),
    Question(name=f"earliest of {GROUP}", goal=20_000.0, calls=8, ask=earliest_group),
)


@dataclass(slots=True)
class Lab:
    """A pool, and the leases in it that may be extended."""

    snapshot: PoolSnapshot
    running: list[Slot]
    asked: int = 0

    def change(self) -> None:
        """Extends a lease by some seconds: another one each time."""
        number = self.asked * 7_919 % len(self.running)
        slot = self.running[number]
        assert slot.end is not None
        table = self.snapshot.slots
        table.release(slot.key)
        table.hold(slot.key, slot.host, slot.amounts, slot.start, slot.end + (self.asked % 50) * SECOND)

    def time_of(self, question: Question) -> float:
        """Microseconds of plan(), in the middle of some calls."""
        times: list[list[float]] = [[] for _ in range(question.kinds)]
        for _ in range(question.calls):
            self.asked += 1
            self.change()
            request, window = question.ask(self.asked)
            began = time.perf_counter()
            found = plan(request, {self.snapshot.name: self.snapshot}, window, judged=False)
            times[self.asked % question.kinds].append(time.perf_counter() - began)
            assert isinstance(found, Plan)
            assert (found.start > window.start) == (window.latest_start is not None)
        return max(map(median, times)) * 1e6


def build(hosts: int) -> Lab:
    """A pool of so many hosts."""
    rng = np.random.default_rng(hosts)
    ends = rng.uniform(0.001, 1.0, (hosts, RUNNING))
    gaps = rng.uniform(0.05, 6.0, (hosts, RESERVED))
    lengths = rng.uniform(1.0, 48.0, (hosts, RESERVED))
    names = [f"host-{number:05d}" for number in range(hosts)]
    slots: list[Slot] = []
    for host, name in enumerate(names):
        for lane in range(RUNNING):
            end = NOW + float(ends[host, lane]) * HORIZON
            key = (f"w{host}-{lane}", 0, "host")
            slots.append(Slot(key=key, host=name, amounts=amounts(1), start=NOW - HOUR, end=end))
        for lane in range(RESERVED):
            key, before = (f"r{host}-{lane}", 0, "host"), slots[-RUNNING].end
            assert before is not None
            start = before + float(gaps[host, lane]) * HOUR
            end = start + float(lengths[host, lane]) * HOUR
            slots.append(Slot(key=key, host=name, amounts=amounts(1), start=start, end=end))
    table = SlotTable(tuple(amounts(1)))
    table.advance(NOW)
    table.hold_all(slots)
    inventory = HostInventory.build(
        HostRecord(name=name, total=amounts(RUNNING + (host % 5 == 0), 1_000)) for host, name in enumerate(names)
    )
    snapshot = PoolSnapshot(
        name="lab", hosts=inventory, slots=table, now=NOW, capabilities=frozenset({ADVANCE_RESERVATION})
    )
    return Lab(snapshot=snapshot, running=[slot for slot in slots if slot.start < NOW])


class Passes:
    """The baseline: one pass over the entries of a pool, in arrays made for it."""

    def __init__(self, lab: Lab) -> None:
        table = lab.snapshot.slots
        slots = list(table.all())
        self.starts = np.array([to_us(slot.start) for slot in slots])
        self.ends = np.array([to_us(slot.end) for slot in slots])
        self.free = np.ascontiguousarray(lab.snapshot.hosts.room)
        self.need = np.array([[1] for _ in self.free])

    def time_of(self, question: Question) -> float:
        """Microseconds of a pass, in the middle of some."""
        times = []
        for number in range(question.calls):
            start = to_us(NOW + number * HOUR)
            began = time.perf_counter()
            if question.of_hosts:
                _ = (self.free >= self.need).all(axis=0)
            else:
                _ = (self.starts < start + 3_600_000_000) & (self.ends > start)
            times.append(time.perf_counter() - began)
        return median(times) * 1e6


Times = Mapping[tuple[str, int], tuple[float, float]]
"""(question, hosts) -> microseconds of plan() and of the baseline: one round."""


def run(options: Options) -> list[Row]:
    """Measures."""
    options.progress(f"{NAME}: pools of up to {HOSTS[-1]:,} hosts are made")
    labs = {hosts: build(hosts) for hosts in HOSTS}
    passes = {hosts: Passes(lab) for hosts, lab in labs.items()}
    rounds: list[Times] = []
    for number in range(options.rounds + 1):
        if number:
            options.progress(f"{NAME}: round {number} of {options.rounds}")
        rounds.append(
            {
                (question.name, hosts): (labs[hosts].time_of(question), passes[hosts].time_of(question))
                for question in QUESTIONS
                for hosts in HOSTS
            }
        )
    return rows(rounds[1:])  # the first is a warm-up: a table sorts what it never was asked about


def rows(rounds: Sequence[Times]) -> list[Row]:
    """A row a question and size, then how it grows between the two largest."""
    table = []
    for question in QUESTIONS:
        for hosts in HOSTS:
            times = [each[question.name, hosts] for each in rounds]
            note = ""
            if hosts == HOSTS[-1]:
                ours = median(ours for ours, _ in times)
                word = "reached" if ours <= question.goal else "not reached"
                note = f"goal {question.goal:,.0f} us: {word}"
            table.append(
                row(
                    NAME,
                    f"{hosts:,} hosts",
                    f"plan(), {question.name}",
                    "us",
                    times,
                    against="a pass over the hosts" if question.of_hosts else "a pass over the slots",
                    higher_is_better=False,
                    note=note,
                )
            )
        fewer, more = HOSTS[-2:]
        table.append(
            row(
                NAME,
                f"{more:,} hosts, growth",
                f"plan(), {question.name}",
                "us",
                [(each[question.name, more][0], each[question.name, fewer][0]) for each in rounds],
                against=f"{fewer:,} hosts",
                higher_is_better=False,
                goal=GROWTH_ALLOWED,
            )
        )
    return table
