"""Durable creates against a bare gRPC echo of the same messages.

CreateWorkspace, acknowledged once it is fsynced, on a pool of 1,000 simulated hosts. The echo answers with what the
broker was seen to answer, so both send the same types and sizes. The broker carries each lease out, two backend steps
and what is seen of them, inside the time that is measured: all of them where the backend is done at once; where it is
as slow as OpenNebula, those that the backend has come to.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from workspacebroker.v1 import resources_pb2 as pb
from workspacebroker.v1 import workspace_service_pb2 as api

from benchmarks.harness import Options, Row
from benchmarks.load import P50, SERVER_CPU, THROUGHPUT, Round, answer_to, broker, drive, echo, rows

NAME: Final = "create"
CONFIGURATION: Final = """
[server]
listen = "127.0.0.1:0"
[pools.lab]
backend = "simulator"
refresh_interval = "1h"
{backend}
[[pools.lab.hosts]]
count = 1000
cpu = 100000000
memory = 100000000
disk = 100000000
"""
AT_ONCE: Final = ""
LIKE_OPENNEBULA: Final = """latency = "42ms"
delays = { deploy = "45ms" }"""
"""As a real front-end was recorded: one.vm.allocate takes 31 ms and one.vm.deploy 53 ms with 8 calls in flight, as many
as the broker makes; from there a VM takes 27 to 66 ms until it runs."""
GOALS: Final[Mapping[int, Mapping[str, float]]] = {
    1: {P50: 2.0, SERVER_CPU: 1.5},
    32: {THROUGHPUT: 0.9, SERVER_CPU: 1.5},
    128: {THROUGHPUT: 0.9, SERVER_CPU: 1.5},
}
"""Bounds on the ratios, by calls in flight."""

SLOW_IN_FLIGHT: Final = 32
SECONDS: Final = 2.0
REQUEST: Final = api.CreateWorkspaceRequest(
    parent="tenants/default",
    workspace=pb.Workspace(
        labels={"bench": "1"},
        node_sets=[pb.NodeSet(count=1, amounts=pb.Quantities(amounts={"cpu": 100, "memory": 64}))],
    ),
)


@contextmanager
def fresh_broker(backend: str) -> Iterator[tuple[str, int]]:
    """A broker on an empty state file: what is measured is a create, not a table that grows."""
    with TemporaryDirectory() as folder:
        configuration = Path(folder) / "broker.toml"
        configuration.write_text(CONFIGURATION.format(backend=backend))
        with broker(configuration) as started:
            yield started


def creates(started: tuple[str, int], in_flight: int) -> Round:
    """One round of creates."""
    return drive(started, "CreateWorkspace", [REQUEST], str(in_flight), str(SECONDS), "--fresh-ids")


def run(options: Options) -> list[Row]:
    """Measures."""
    at_once: dict[int, list[tuple[Round, Round]]] = {in_flight: [] for in_flight in GOALS}
    slow: list[tuple[Round, Round]] = []
    with TemporaryDirectory() as folder:
        with fresh_broker(AT_ONCE) as (address, _):
            recorded = {"CreateWorkspace": [answer_to(address, "CreateWorkspace", REQUEST)]}
        with echo(recorded, Path(folder)) as bare:
            for number in range(options.rounds):
                for in_flight, rounds in at_once.items():
                    options.progress(f"{NAME}: {in_flight} in flight, round {number + 1} of {options.rounds}")
                    with fresh_broker(AT_ONCE) as ours:
                        rounds.append((creates(ours, in_flight), creates(bare, in_flight)))
                with fresh_broker(LIKE_OPENNEBULA) as ours:
                    slow.append((creates(ours, SLOW_IN_FLIGHT), at_once[SLOW_IN_FLIGHT][-1][1]))
    table = [
        line
        for in_flight, rounds in at_once.items()
        for line in rows(NAME, f"{in_flight} in flight, backend at once", rounds, GOALS[in_flight])
    ]
    return table + rows(NAME, f"{SLOW_IN_FLIGHT} in flight, backend as slow as OpenNebula", slow, {})
