"""The network-fault run: `python -m tests.faults.run --cycles 2000 --clients 16 [--seed N]`.

A `workspace-brokerd` of its own process, a stand-in OpenNebula, a proxy between them that spoils a fifth of all calls,
and clients that lease, use and give back. Afterwards the sums must hold. Prints the seed and the figures; exits 1 if
anything differs.
"""

from __future__ import annotations

import argparse
import secrets
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

from backends.opennebula.standin import HostConfig, Standin, StandinConfig
from clients.names import pool_name
from clients.sdk import Client
from tests.faults.cycles import Tally, Tenant
from tests.faults.sums import POOL, Observer, differences, shown
from tests.support.process import BrokerProcess, broker_process
from tests.support.proxy import FAULTS, Judge, Kind, Proxy

SHARE: Final = 0.2
ENDS: Final = frozenset({"TERMINATED", "kept", "FAILED"})
"""How a life cycle may end; FAILED with a reason only, and rarely."""

CALL_SECONDS: Final = 1.0
TOO_LATE: Final = 1.4 * CALL_SECONDS
"""Seconds after which a held answer comes when nobody waits for it any more."""


def front_end(clients: int) -> StandinConfig:
    """Room for 7 nodes of the larger kind for 4 clients, who want 8 on average: it runs out now and then."""
    return StandinConfig(
        hosts=tuple(HostConfig(name=f"node-{number}", cores=4, memory_mb=4096) for number in range(clients * 7 // 16)),
        scheduler=False,
        default_dwell=0.001,
        report_delay=0.001,
        image_delay=0.001,
    )


STANDIN: Final = front_end(16)


def configuration(endpoint: str, session: str, settings: str = "") -> str:
    """A broker with one pool, which is reached as `endpoint` says."""
    return f"""
[server]
listen = "127.0.0.1:0"
watch_history = 1000
[pools.{POOL}]
backend = "opennebula"
endpoint = "{endpoint}"
session = "{session}"
call_timeout = "{CALL_SECONDS * 1000:.0f}ms"
refresh_interval = "5s"
retry = {{ initial = "20ms", maximum = "500ms" }}
breaker = {{ probe_interval = "100ms" }}
{settings}
"""


@dataclass(slots=True, kw_only=True)
class Result:
    """What a run came to."""

    seed: int
    clients: int
    seconds: float = 0.0
    tally: Tally = field(default_factory=Tally)
    calls: Counter[Kind] = field(default_factory=Counter)
    spoiled_by_method: Counter[str] = field(default_factory=Counter)
    calls_by_method: Counter[str] = field(default_factory=Counter)
    outages: int = 0
    samples: int = 0
    kept: int = 0
    vms_ever: int = 0
    wrong: list[str] = field(default_factory=list)

    def take_calls(self, proxy: Proxy) -> None:
        """What the proxy's log says so far."""
        self.calls = proxy.counts()
        self.calls_by_method = Counter(decision.method for decision in proxy.log)
        self.spoiled_by_method = Counter(decision.method for decision in proxy.log if decision.kind is not Kind.PASSED)

    def complaints(self) -> list[str]:
        """What a run must not show: sums that differ, workspaces that failed for want of tries, too few faults."""
        cycles, total = self.tally.cycles, self.calls.total()
        found = list(self.wrong)
        found += [f"{n} life cycles {how}" for how, n in self.tally.ended.items() if how not in ENDS]
        if self.tally.ended["FAILED"] * 100 > cycles:
            found.append(f"{self.tally.ended['FAILED']} of {cycles} workspaces FAILED")
        if self.tally.failures.total() * 50 > cycles:
            found.append(f"{self.tally.failures.total()} verbs and starts failed in {cycles} life cycles")
        for kind in FAULTS:
            if not 0.5 < self.calls[kind] / total / (SHARE / len(FAULTS)) < 1.5:
                found.append(f"{kind}: {self.calls[kind]} of {total} calls")
        return found

    def report(self) -> str:
        """The figures, for people."""
        total = self.calls.total()
        lines = [
            f"seed {self.seed}: {self.tally.cycles} life cycles by {self.clients} clients in {self.seconds:.0f} s, "
            f"{self.tally.cycles / self.seconds:.1f} a second",
            f"  ended      {_listed(self.tally.ended)}",
            f"  verbs      {_listed(self.tally.verbs)}",
            f"  repeated   {_listed(self.tally.repeated)}",
            f"  failures   {_listed(self.tally.failures) or 'none'}",
            f"  calls      {total}, spoiled {sum(self.calls[kind] for kind in FAULTS) / total:.1%}",
            *(f"    {kind.value:16}{self.calls[kind]:7}  {self.calls[kind] / total:6.2%}" for kind in FAULTS),
            "  by method  "
            + ", ".join(
                f"{method.removeprefix('one.')} {self.spoiled_by_method[method]}/{calls}"
                for method, calls in sorted(self.calls_by_method.items())
            ),
            f"  outages    {self.outages} (the breaker opened)",
            f"  seen       {self.samples} looks by pyone on the way; {self.kept} VMs at the end, {self.vms_ever} ever",
        ]
        lines += [f"  ! {message[:400]}" for message in self.tally.messages[:20]]
        lines += [f"  WRONG {line}" for line in self.complaints()[:40]]
        return "\n".join(lines)


def _listed(counter: Counter[str]) -> str:
    return ", ".join(f"{key} {value}" for key, value in counter.most_common())


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """Everything a run talks to."""

    one: Standin
    proxy: Proxy
    broker: BrokerProcess


@contextmanager
def site(folder: Path, seed: int, *, clients: int = 16, share: float = SHARE, settings: str = "") -> Iterator[Site]:
    """A broker, a stand-in, and the network between them."""
    judge = Judge(seed, share=share, too_late=TOO_LATE)
    with (
        Standin(front_end(clients)) as one,
        Proxy(one.endpoint, judge) as proxy,
        broker_process(folder, configuration(proxy.endpoint, one.session, settings)) as broker,
    ):
        yield Site(one=one, proxy=proxy, broker=broker)


class Watch:
    """Looks at the front-end while clients are at work: no host may be overbooked, no node doubled, at any time."""

    def __init__(self, one: Standin) -> None:
        self._observer = Observer(one.endpoint, one.session)
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self.samples = 0
        self.wrong: list[str] = []

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._done.wait(0.25):
            try:
                front = self._observer.look()
            except Exception as error:
                self.wrong.append(f"on the way: pyone failed: {error!r}")
                return
            self.samples += 1
            self.wrong += [f"on the way: {line}" for line in (*front.overbooked(), *front.doubled())]


def run(folder: Path, *, seed: int, cycles: int, clients: int) -> Result:
    """One run. Every fourth client leaves its last workspace as it is, so that the sums are about something."""
    result = Result(seed=seed, clients=clients)
    with site(folder, seed, clients=clients) as where:
        stop = threading.Event()
        tenants = [Tenant(where.broker.address, seed, number, stop) for number in range(clients)]

        def work(tenant: Tenant, number: int) -> None:
            mine = range(number, cycles, clients)
            for cycle in mine:
                tenant.cycle(cycle, keep=cycle == mine[-1] and number % 4 == 0)

        began = time.monotonic()
        with Watch(where.one) as watch:
            in_parallel([partial(work, tenant, number) for number, tenant in enumerate(tenants)])
        result.seconds = time.monotonic() - began
        for tenant in tenants:
            result.tally.add(tenant.tally)
            tenant.close()
        result.samples, result.wrong = watch.samples, list(watch.wrong)
        result.take_calls(where.proxy)
        result.wrong += [f"the proxy itself failed: {line}" for line in where.proxy.broken]
        result.outages = where.broker.errors().count("state=UNREACHABLE")
        settle(where, result)
    return result


def settle(where: Site, result: Result) -> None:
    """Faults off; then the sums, and the whole history."""
    where.proxy.calm()
    observer = Observer(where.one.endpoint, where.one.session)
    with Client(where.broker.address) as client:
        client.refresh(pool_name(POOL))
        front = observer.look()
        result.kept = len(front.vms)
        result.wrong += differences(front, shown(client))
    made = Counter(vm.key for vm in observer.ever())
    result.vms_ever = made.total()
    result.wrong += [f"node {key} had {vms} VMs in its life" for key, vms in made.items() if vms > 1]


def in_parallel(works: Sequence[Callable[[], None]]) -> None:
    """Does all at once, each in a thread; the first exception of any is raised when all have ended."""
    errors: list[BaseException] = []

    def guarded(work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.run", description=__doc__)
    parser.add_argument("--cycles", type=int, default=2000)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seed", type=int, default=None, help="of the run to repeat; default: a new one")
    options = parser.parse_args(arguments)
    seed = secrets.randbelow(2**31) if options.seed is None else options.seed
    print(f"seed {seed}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        result = run(Path(folder), seed=seed, cycles=options.cycles, clients=options.clients)
    print(result.report())
    failed = bool(result.complaints())
    if failed:
        print(f"again: python -m tests.faults.run --seed {seed} --cycles {options.cycles} --clients {options.clients}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
