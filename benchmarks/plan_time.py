"""How long plan() takes by the number of hosts, with 100,000 live slots: figures and the growth as a ratio.

python -m benchmarks.plan_time [--rounds 50]
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from statistics import median

from broker.core.placement import (
    HostInventory,
    HostRecord,
    NotNow,
    PlacementRequest,
    Plan,
    PoolSnapshot,
    SetRequest,
    Window,
    plan,
)
from broker.core.slots import Slot, SlotTable

NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
HOUR = timedelta(hours=1)
SLOTS = 100_000


def pool(hosts: int, room: int) -> PoolSnapshot:
    """A pool of so many hosts under `SLOTS` leases that end one after another, with `room` MiB left on each host."""
    a_host = SLOTS // hosts
    names = [f"host-{number:05d}" for number in range(hosts)]
    slots = SlotTable(("cpu", "memory"))
    slots.advance(NOW)
    slots.hold_all(
        Slot(
            key=(f"w{number}", place, "host"),
            host=name,
            amounts={"cpu": 1000, "memory": 1024},
            start=NOW - HOUR,
            end=NOW + (1 + (number * 7 + place) % 500) * HOUR,
        )
        for number, name in enumerate(names)
        for place in range(a_host)
    )
    total = {"cpu": 1000 * a_host + 64_000, "memory": 1024 * a_host + room}
    inventory = HostInventory.build(HostRecord(name=name, total=total) for name in names)
    return PoolSnapshot(name="lab", hosts=inventory, slots=slots, now=NOW)


def timed(call: Callable[[], object], rounds: int) -> float:
    """Median seconds of a call, after one to warm up."""
    call()
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return median(times)


def main() -> None:
    """Runs and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=50)
    rounds = parser.parse_args().rounds
    window = Window(start=NOW, duration=HOUR, immediate=True)
    one = PlacementRequest(sets=(SetRequest(amounts={"cpu": 1000, "memory": 1024}),))
    group = PlacementRequest(sets=(SetRequest(count=16, amounts={"cpu": 1000, "memory": 1024}),))
    sys.stdout.write("hosts | one VM us | group of 16 us | refused, earliest start ms\n")
    base = 0.0
    for hosts in (10, 100, 1_000, 10_000):
        free, full = {"lab": pool(hosts, 4096)}, {"lab": pool(hosts, 0)}
        assert isinstance(plan(one, free, window), Plan)
        assert isinstance(plan(one, full, window), NotNow)
        single = timed(lambda seen=free: plan(one, seen, window), rounds)  # type: ignore[misc]
        together = timed(lambda seen=free: plan(group, seen, window), rounds)  # type: ignore[misc]
        refused = timed(lambda seen=full: plan(one, seen, window), max(3, rounds // 10))  # type: ignore[misc]
        base = single if hosts == 1_000 else base
        growth = f"   {single / base:.1f} times 1,000 hosts" if hosts > 1_000 else ""
        sys.stdout.write(f"{hosts:5} | {single * 1e6:9.0f} | {together * 1e6:14.0f} | {refused * 1e3:26.1f}{growth}\n")


if __name__ == "__main__":
    main()
