"""What the broker adds to OpenNebula: VMs from request to running, against a script that makes the same calls.

Either is alone on a stand-in OpenNebula in a process of its own, and has eight calls to it in flight. Time is from the
first request until the last VM is seen running. What the front-end saw stands beside it: calls a VM, of which every one
is a connection, and connections at once.

The stand-in answers as a real oned 7.4.0 was recorded to, with dummy drivers on 2 cores (rates and median latencies):

                   one client           eight clients          here
one.vm.allocate    237/s, 4.1 ms        251/s, 30.9 ms         4.0 ms, one call after another
one.vm.deploy      48/s, 16.6 ms        134/s, 53.5 ms         7.5 ms, one call after another, and 9.0 ms

so more clients at once get no more done, as there. In a second case each call takes the eight clients' median, whoever
else calls: no delay of ours is covered by another's turn there, and each moment without a call counts.

From the answer to RUNNING a VM takes 41 ms (median of 13): 17 until PROLOG, 6 there, 18 in BOOT. That daemon got no
more than 37 VMs a second to RUNNING, however they were asked for; the stand-in knows no such bound, as waiting for it
would hide what is measured. Documents of a pool take the stand-in longer to write than the daemon, which took 8 ms for
500 VMs.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any, Final

import grpc.aio
from workspacebroker.v1 import resources_pb2 as pb
from workspacebroker.v1 import workspace_service_pb2 as api
from workspacebroker.v1 import workspace_service_pb2_grpc as services

from backends.opennebula.standin import HostConfig, Standin, StandinConfig
from benchmarks.harness import Options, Row, row
from benchmarks.load import broker

NAME: Final = "backend overhead"
TENANT: Final = "tenants/default"
BY_HAND: Final = "script, 8 threads"
WALL: Final = "request to running"
GOALS: Final = MappingProxyType({WALL: 1.05})
HOSTS: Final = 50
IN_FLIGHT: Final = 32
"""Creates at once."""

TIME_LIMIT: Final = 120.0
DWELL: Final = MappingProxyType({"LCM_INIT": 0.017, "PROLOG": 0.006, "BOOT": 0.018})
CONFIGURATION: Final = """
[server]
listen = "127.0.0.1:0"
[pools.lab]
backend = "opennebula"
endpoint = "{endpoint}"
session = "{session}"
placement = "spread"
"""
"""Hosts in turn, as the script takes them; all else is as it comes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """How many VMs are started, and the seconds calls take: one after another, and besides."""

    name: str
    vms: int
    serial_latency: Mapping[str, float]
    call_latency: Mapping[str, float]


CASES: Final = (
    Case(
        name="writes in turn, as recorded",
        vms=500,
        serial_latency={"one.vm.allocate": 0.0040, "one.vm.deploy": 0.0075},
        call_latency={"one.vm.deploy": 0.0090},
    ),
    Case(
        name="each call as with 8 clients",
        vms=300,
        serial_latency={},
        call_latency={"one.vm.allocate": 0.0309, "one.vm.deploy": 0.0535},
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """One start of all VMs: seconds, and what the front-end saw of it: calls by method, connections at once at most."""

    seconds: float
    calls: Counter[str]
    connections: int


def serve_front_end(case: Case, pipe: Connection) -> None:
    """Runs a stand-in in this process; tells its endpoint and session and, once asked, calls and connections."""
    config = StandinConfig(
        hosts=tuple(HostConfig(name=f"node{number:03d}", cores=16, memory_mb=65536) for number in range(HOSTS)),
        scheduler=False,
        serial_latency=case.serial_latency,
        call_latency=case.call_latency,
        dwell=DWELL,
    )
    with Standin(config) as one:
        pipe.send((one.endpoint, one.session))
        pipe.recv()
        pipe.send((one.call_counts, one.connections.most))


def on_front_end(case: Case, start: Callable[[str, str, int], float]) -> Start:
    """One start on a fresh front-end; `start` gets endpoint, session and number of VMs, and answers seconds."""
    spawn = multiprocessing.get_context("spawn")
    pipe, far_end = spawn.Pipe()
    front_end = spawn.Process(target=serve_front_end, args=(case, far_end), daemon=True)
    front_end.start()
    try:
        endpoint, session = pipe.recv()
        seconds = start(endpoint, session, case.vms)
        pipe.send(None)
        calls, connections = pipe.recv()
    finally:
        front_end.terminate()
        front_end.join()
    return Start(seconds=seconds, calls=calls, connections=connections)


def by_hand(endpoint: str, session: str, vms: int) -> float:
    """Seconds the script takes."""
    script = [sys.executable, "-m", "benchmarks.one_by_hand", endpoint, session, str(vms), str(HOSTS)]
    return float(subprocess.run(script, stdout=subprocess.PIPE, check=True).stdout)


def through_broker(endpoint: str, session: str, vms: int) -> float:
    """Seconds a client of a fresh broker takes."""
    with TemporaryDirectory() as folder:
        configuration = Path(folder) / "broker.toml"
        configuration.write_text(CONFIGURATION.format(endpoint=endpoint, session=session))
        with broker(configuration) as (address, _):
            return asyncio.run(lease_all(address, vms))


async def lease_all(address: str, vms: int) -> float:
    """Seconds from the first create of a workspace until a watch has shown all of them running."""
    amounts = pb.Quantities(amounts={"cpu": 1000, "memory": 512})
    request = api.CreateWorkspaceRequest(
        parent=TENANT, workspace=pb.Workspace(node_sets=[pb.NodeSet(count=1, amounts=amounts)])
    )
    left = iter(range(vms))

    async def create() -> None:
        for _ in left:
            await stub.CreateWorkspace(request)

    async def all_run() -> None:
        running = set()
        async for change in stub.WatchWorkspaces(api.WatchWorkspacesRequest(parent=TENANT)):
            if change.workspace.state == pb.Workspace.STATE_RUNNING:
                running.add(change.workspace.name)
                if len(running) == vms:
                    return

    async with grpc.aio.insecure_channel(address) as channel, asyncio.timeout(TIME_LIMIT):
        await channel.channel_ready()
        stub: Any = services.WorkspaceServiceStub(channel)
        began = time.perf_counter()
        await asyncio.gather(all_run(), *(create() for _ in range(IN_FLIGHT)))
        return time.perf_counter() - began


def made(start: Start) -> str:
    """Calls by method, for a note."""
    return ", ".join(f"{count} {method.removeprefix('one.')}" for method, count in start.calls.most_common())


def run(options: Options) -> list[Row]:
    """Measures."""
    measured: dict[str, list[tuple[Start, Start]]] = {case.name: [] for case in CASES}
    for number in range(options.rounds):
        for case in CASES:
            options.progress(f"{NAME}: {case.vms} VMs, {case.name}, round {number + 1} of {options.rounds}")
            measured[case.name].append((on_front_end(case, through_broker), on_front_end(case, by_hand)))
    return [line for case in CASES for line in rows(case, measured[case.name])]


def rows(case: Case, rounds: Sequence[tuple[Start, Start]]) -> list[Row]:
    """A row a measure of rounds (the broker's, the script's)."""
    ours, hand = rounds[-1]
    measures: dict[str, tuple[str, Callable[[Start], float], str]] = {
        WALL: ("s", lambda start: start.seconds, f"{IN_FLIGHT} creates in flight, one watch"),
        "XML-RPC calls": (
            "calls/VM",
            lambda start: start.calls.total() / case.vms,
            f"the last round: {made(ours)}; by hand: {made(hand)}",
        ),
        "open connections": (
            "at most",
            lambda start: float(start.connections),
            "one call each: there is no keep-alive",
        ),
    }
    return [
        row(
            NAME,
            f"{case.vms} VMs, {case.name}",
            measure,
            unit,
            [(figure(ours), figure(hand)) for ours, hand in rounds],
            against=BY_HAND,
            higher_is_better=False,
            goal=GOALS.get(measure),
            note=note,
        )
        for measure, (unit, figure, note) in measures.items()
    ]
