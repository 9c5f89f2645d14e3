"""The soak: `python -m tests.faults.soak --minutes 10`. Half of the time with a bad network, half without.

A `workspace-brokerd` of its own process serves 32 clients. At the start and at the end of the second, fault-free half
the clients pause, so that what is measured is what stays: memory, open files and threads of the broker may then differ
by 5 % at most. Records of ended workspaces are kept for days on purpose; what they take is measured apart, on a broker
that is started anew on the same state file, and taken off. Prints the figures; exits 1 when one is past its bound.
"""

from __future__ import annotations

import argparse
import os
import secrets
import statistics
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from clients.names import pool_name
from clients.sdk import Client
from tests.faults.cycles import Tally, Tenant
from tests.faults.run import Result, Site, Watch, configuration, in_parallel, settle, site
from tests.faults.sums import POOL
from tests.support.process import BrokerProcess, broker_process

CLIENTS: Final = 32
BOUND: Final = 0.05
SETTLES: Final = 5.0
"""Seconds of rest before a measurement: sockets in TIME_WAIT are none of the broker's, freed memory goes back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What the kernel says of the broker at rest, and how many workspaces it keeps."""

    mib: float
    files: int
    threads: int
    records: int

    def __str__(self) -> str:
        return f"{self.mib:7.1f} MiB {self.files:4} files {self.threads:3} threads {self.records:6} records"


def measure(broker: BrokerProcess, records: int) -> Figures:
    """Medians over a rest."""
    samples = []
    until = time.monotonic() + SETTLES
    rest = threading.Event()
    while time.monotonic() < until:
        rest.wait(0.1)
        samples.append((broker.resident_mib(), broker.descriptors(), broker.threads()))
    late = samples[len(samples) // 2 :]
    return Figures(
        mib=statistics.median(sample[0] for sample in late),
        files=int(statistics.median(sample[1] for sample in late)),
        threads=int(statistics.median(sample[2] for sample in late)),
        records=records,
    )


class Crowd:
    """The clients, who work until they are told to pause and go on where they stopped."""

    def __init__(self, where: Site, seed: int, clients: int) -> None:
        self._stop = threading.Event()
        self._tenants = [Tenant(where.broker.address, seed, number, self._stop) for number in range(clients)]
        self._next = [0] * clients

    def work(self, seconds: float) -> None:
        """Life cycles for so many seconds; each client ends the one it is at."""
        until = time.monotonic() + seconds

        def one(number: int, tenant: Tenant) -> None:
            while time.monotonic() < until:
                tenant.cycle(self._next[number])
                self._next[number] += 1

        in_parallel([partial(one, number, tenant) for number, tenant in enumerate(self._tenants)])

    def tally(self) -> Tally:
        total = Tally()
        for tenant in self._tenants:
            total.add(tenant.tally)
        return total

    def close(self) -> None:
        for tenant in self._tenants:
            tenant.close()


def soak(folder: Path, *, seed: int, minutes: float, clients: int) -> bool:
    """The whole of it; whether every figure is within its bound."""
    half = minutes * 30
    result = Result(seed=seed, clients=clients)
    began = time.monotonic()
    with site(folder, seed, clients=2 * clients) as where:  # so much room that nobody has to give up
        _say(began, "fresh            ", measure(where.broker, 0))
        crowd = Crowd(where, seed, clients)
        with Watch(where.one) as watch:
            crowd.work(half)
            result.take_calls(where.proxy)
            where.proxy.calm()
            first = crowd.tally().cycles
            # One more with every client, so that nothing of the bad time is still under way.
            crowd.work(1.0)
            start = measure(where.broker, crowd.tally().cycles)
            _say(began, "second half from ", start)
            for part in (1, 2, 3):
                crowd.work(half / 4)
                _say(began, f"  {part}/4            ", measure(where.broker, crowd.tally().cycles))
            crowd.work(half / 4)
            end = measure(where.broker, crowd.tally().cycles)
            _say(began, "second half to   ", end)
        result.tally, result.samples, result.wrong = crowd.tally(), watch.samples, list(watch.wrong)
        result.seconds = time.monotonic() - began
        result.outages = where.broker.errors().count("state=UNREACHABLE")
        settle(where, result)
        crowd.close()
        endpoint, session = where.proxy.endpoint, where.one.session
        assert where.broker.stop() == 0, where.broker.errors()
        with tempfile.TemporaryDirectory() as empty:
            mib_empty = _anew(Path(empty), endpoint, session)
        mib_a_record = (_anew(folder, endpoint, session) - mib_empty) / max(1, end.records)
    print(result.report())
    print(f"faulty half: {first} life cycles; fault-free half: {end.records - start.records}")
    on_disk = os.path.getsize(folder / "broker.db") / max(1, end.records) / 1024
    grown = (end.mib - start.mib) / max(1, end.records - start.records) * 1024
    print(f"the fault-free half grew by {grown:.1f} KiB a life cycle")
    print(f"a kept record takes {mib_a_record * 1024:.1f} KiB of memory, {on_disk:.1f} KiB of file")
    kept = (end.records - start.records) * mib_a_record
    return _verdict(start, end, kept, result)


def _anew(folder: Path, endpoint: str, session: str) -> float:
    """MiB of a broker just started on the state file: what its records take, and nothing that only a run leaves."""
    with broker_process(folder, configuration(endpoint, session)) as broker, Client(broker.address) as client:
        client.refresh(pool_name(POOL))
        return measure(broker, 0).mib


def _verdict(start: Figures, end: Figures, kept: float, result: Result) -> bool:
    """Prints the second half's end by its start; memory without what records take."""
    memory = (end.mib - kept) / start.mib
    files, threads = end.files / start.files, end.threads / start.threads
    print(f"memory  {memory:.3f} (with {kept:.1f} MiB of records kept: {end.mib / start.mib:.3f})")
    print(f"files   {files:.3f}")
    print(f"threads {threads:.3f}")
    good = all(abs(ratio - 1) <= BOUND for ratio in (memory, files)) and end.threads <= start.threads + 1
    good = good and not result.complaints()
    print("within 5 %" if good else "PAST 5 %, or the sums differ")
    return good


def _say(began: float, what: str, figures: Figures) -> None:
    print(f"{time.monotonic() - began:6.0f} s  {what}{figures}", flush=True)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--clients", type=int, default=CLIENTS)
    parser.add_argument("--seed", type=int, default=None, help="of the run to repeat; default: a new one")
    options = parser.parse_args(arguments)
    seed = secrets.randbelow(2**31) if options.seed is None else options.seed
    print(f"seed {seed}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        good = soak(Path(folder), seed=seed, minutes=options.minutes, clients=options.clients)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
