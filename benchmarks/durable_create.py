"""Durable creates against a bare gRPC echo of the same messages: throughput, latency and server CPU, as ratios.

CreateWorkspace is acknowledged once it is fsynced, on a pool of 1,000 simulated hosts. Both servers use the same event
loop and are driven by the same client process, in turn, so that a drift of the machine meets both. A row is void where
the client was the slow side.

    python -m benchmarks.durable_create [--rounds 5] [--seconds 2] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

CONFIGURATION = """
[server]
listen = "127.0.0.1:0"
[pools.lab]
backend = "simulator"
refresh_interval = "1h"
[[pools.lab.hosts]]
count = 1000
cpu = 100000000
memory = 100000000
disk = 100000000
"""
IN_FLIGHT = (1, 32, 128)
CLIENT_SATURATED = 0.95  # of a core


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """One round against one server."""

    throughput: float  # calls a second
    p50: float  # seconds
    p99: float
    server_cpu: float  # seconds a call
    client_cpu: float  # share of a core


@contextmanager
def server(*command: str) -> Iterator[tuple[str, int]]:
    """A server process; its address and process id."""
    with subprocess.Popen(
        [sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        try:
            yield line.split()[-1], process.pid
        finally:
            process.terminate()
            process.wait(30)


def cpu_of(process: int) -> float:
    """Seconds of CPU a process has used."""
    fields = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / 100


def measure(address: str, process: int, in_flight: int, seconds: float) -> Figures:
    """One round."""
    before = cpu_of(process)
    client = subprocess.run(
        [sys.executable, "-m", "benchmarks.load_client", address, str(in_flight), str(seconds)],
        capture_output=True,
        text=True,
        check=True,
    )
    used = cpu_of(process) - before
    measured = json.loads(client.stdout)
    latencies = sorted(measured["latencies"])
    # The warm-up calls cost the server CPU, too.
    all_calls = measured["calls"] * (seconds + 0.3) / seconds
    return Figures(
        throughput=measured["calls"] / measured["seconds"],
        p50=latencies[len(latencies) // 2],
        p99=latencies[len(latencies) * 99 // 100],
        server_cpu=used / all_calls,
        client_cpu=measured["cpu"] / measured["seconds"],
    )


def main() -> None:
    """Runs and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rounds: dict[int, list[tuple[Figures, Figures]]] = {number: [] for number in IN_FLIGHT}
    with tempfile.TemporaryDirectory() as folder:
        configuration = Path(folder) / "bench.toml"
        configuration.write_text(CONFIGURATION)
        for _ in range(options.rounds):
            for in_flight in IN_FLIGHT:
                # A fresh state file each time: what is measured is a create, not a table that grows.
                for old in Path(folder).glob("broker.db*"):
                    old.unlink()
                with (
                    server("-m", "benchmarks.echo_server") as (echo, echo_process),
                    server("-m", "broker", "--config", str(configuration), "--log-level", "error") as (
                        ours,
                        our_process,
                    ),
                ):
                    rounds[in_flight].append(
                        (
                            measure(ours, our_process, in_flight, options.seconds),
                            measure(echo, echo_process, in_flight, options.seconds),
                        )
                    )
    sys.stdout.write(
        "in flight | creates/s | echo/s | ratio (min-max) | p50 ms (echo) | p99 ms (echo) | CPU us (echo) | client\n"
    )
    for in_flight, pairs in rounds.items():
        ratios = sorted(ours.throughput / echo.throughput for ours, echo in pairs)
        creates = [pair[0] for pair in pairs]
        echoes = [pair[1] for pair in pairs]
        busiest = max(figures.client_cpu for figures in (*creates, *echoes))
        void = " void: the client was the slow side" if busiest > CLIENT_SATURATED else ""
        sys.stdout.write(
            f"{in_flight:9} | {median(f.throughput for f in creates):9.0f} | "
            f"{median(f.throughput for f in echoes):6.0f} | "
            f"{median(ratios):.2f} ({ratios[0]:.2f}-{ratios[-1]:.2f}) | "
            f"{median(f.p50 for f in creates) * 1e3:.2f} ({median(f.p50 for f in echoes) * 1e3:.2f}) | "
            f"{median(f.p99 for f in creates) * 1e3:.2f} ({median(f.p99 for f in echoes) * 1e3:.2f}) | "
            f"{median(f.server_cpu for f in creates) * 1e6:.0f} ({median(f.server_cpu for f in echoes) * 1e6:.0f}) | "
            f"{busiest:.2f}{void}\n"
        )
    if options.json:
        options.json.write_text(
            json.dumps(
                {number: [[asdict(a), asdict(b)] for a, b in pairs] for number, pairs in rounds.items()}, indent=1
            )
        )


if __name__ == "__main__":
    main()
