"""Claims a second against OpenStack Placement, which keeps the same account: what each host has, and who holds it.

A claim of ours is a CreateWorkspace over gRPC against a broker process, acknowledged once it is fsynced; the broker
carries each lease out, too. A claim of Placement is a GET of candidates and a PUT of the allocation, through its WSGI
application in the process that makes the claims, so that it is spared HTTP. The hosts and the amounts are the same,
and so is how SQLite writes.

Placement is installed from PyPI into `.cache/bench-placement`, the first time only.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Final

from workspacebroker.v1 import resources_pb2 as pb
from workspacebroker.v1 import workspace_service_pb2 as api

from benchmarks.harness import CLIENT_SATURATED, Options, Row, row
from benchmarks.load import THROUGHPUT, UNITS, Round, broker, drive

NAME: Final = "peers"
PLACEMENT: Final = "OpenStack Placement"
REQUIREMENT: Final = "openstack-placement==16.0.0"
ENVIRONMENT: Final = Path(__file__).resolve().parent.parent / ".cache" / "bench-placement"
SCRIPT: Final = Path(__file__).with_name("placement_peer.py")

HOSTS: Final = (100, 1_000)
GOALS: Final[Mapping[int, float | None]] = {1: None, 32: 100.0}
"""Bounds on the ratios, by our calls in flight."""

SECONDS: Final = 1.0
PEER_THREADS: Final = (1, 4)
"""Tried before the rounds, which are made with the better."""

PEER_SECONDS: Final = 1.5

CPUS: Final = 100_000
MEMORY_MIB: Final = 100_000_000
DISK_GIB: Final = 100_000
CLAIM_CPUS: Final = 1
CLAIM_MEMORY_MIB: Final = 64

CONFIGURATION: Final = f"""
[server]
listen = "127.0.0.1:0"
[pools.lab]
backend = "simulator"
refresh_interval = "1h"
[[pools.lab.hosts]]
count = {{hosts}}
cpu = {CPUS * 1000}
memory = {MEMORY_MIB}
disk = {DISK_GIB * 1024}
"""
REQUEST: Final = api.CreateWorkspaceRequest(
    parent="tenants/default",
    workspace=pb.Workspace(
        labels={"bench": "1"},
        node_sets=[
            pb.NodeSet(count=1, amounts=pb.Quantities(amounts={"cpu": CLAIM_CPUS * 1000, "memory": CLAIM_MEMORY_MIB}))
        ],
    ),
)
PEER_CONFIGURATION: Final = """
[api]
auth_strategy = noauth2
[placement_database]
connection = sqlite:///{database}
sqlite_synchronous = {synchronous}
"""
PEER_INVENTORY: Final = f"VCPU:{CPUS},MEMORY_MB:{MEMORY_MIB},DISK_GB:{DISK_GIB}"
PEER_CLAIM: Final = f"VCPU:{CLAIM_CPUS},MEMORY_MB:{CLAIM_MEMORY_MIB}"


class Peer:
    """A process that makes claims of Placement when told to, by as many threads as it does best with."""

    def __init__(self, orders: IO[str], answers: IO[str]) -> None:
        self._orders = orders
        self._answers = answers
        facts = self._answer()
        self._threads = max(PEER_THREADS, key=self._claims_by)
        self.note = (
            f"Placement: in-process, {self._threads} at a time (tried: {', '.join(map(str, PEER_THREADS))}), asked for "
            f"one candidate, no log, noauth2; {facts}"
        )

    def claims(self) -> float:
        """Claims a second."""
        return self._claims_by(self._threads)

    def _claims_by(self, threads: int) -> float:
        self._orders.write(f"{threads} {PEER_SECONDS}\n")
        self._orders.flush()
        return float(self._answer())

    def _answer(self) -> str:
        line = self._answers.readline()
        if not line:
            raise RuntimeError("Placement ended; what it said stands above")
        return line.strip()


def python_with_placement() -> Path:
    """The interpreter of an environment that holds Placement. Raises RuntimeError where it cannot be built."""
    python = ENVIRONMENT / "bin" / "python"
    installed = ENVIRONMENT / "installed"
    if not installed.exists() or installed.read_text() != REQUIREMENT:
        for command in (
            (sys.executable, "-m", "venv", "--clear", str(ENVIRONMENT)),
            (str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", REQUIREMENT),
        ):
            done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
            if done.returncode:
                raise RuntimeError(f"no environment with {REQUIREMENT}: {done.stdout}")
        installed.write_text(REQUIREMENT)
    return python


@contextmanager
def placement(python: Path, hosts: int, folder: Path) -> Iterator[Peer]:
    """Placement with so many hosts, in a folder of its own."""
    folder.mkdir()
    database = folder / "placement.db"
    filling, claiming = folder / "filling.conf", folder / "claiming.conf"
    # Only how the hosts come into the file is spared its fsyncs.
    filling.write_text(PEER_CONFIGURATION.format(database=database, synchronous="false"))
    claiming.write_text(PEER_CONFIGURATION.format(database=database, synchronous="true"))
    script = (str(python), "-I", str(SCRIPT))
    subprocess.run((*script, "fill", str(filling), str(hosts), PEER_INVENTORY), check=True)
    with subprocess.Popen(
        (*script, "claim", str(claiming), PEER_CLAIM), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        yield Peer(process.stdin, process.stdout)


def creates(started: tuple[str, int], in_flight: int) -> Round:
    """One round of ours."""
    return drive(started, "CreateWorkspace", [REQUEST], str(in_flight), str(SECONDS), "--fresh-ids")


def claims(hosts: int, peer: Peer) -> dict[int, tuple[Round, float]]:
    """One round, on a broker with an empty state file: ours by calls in flight, each with the peer's rate."""
    with TemporaryDirectory() as folder:
        configuration = Path(folder) / "broker.toml"
        configuration.write_text(CONFIGURATION.format(hosts=hosts))
        with broker(configuration) as started:
            ours = {in_flight: creates(started, in_flight) for in_flight in GOALS}
    theirs = peer.claims()
    return {in_flight: (made, theirs) for in_flight, made in ours.items()}


def run(options: Options) -> list[Row]:
    """Measures."""
    options.progress(f"{NAME}: an environment with {REQUIREMENT}")
    python = python_with_placement()
    measured: dict[int, list[dict[int, tuple[Round, float]]]] = {hosts: [] for hosts in HOSTS}
    with TemporaryDirectory() as folder, ExitStack() as running:
        peers: dict[int, Peer] = {}
        for hosts in HOSTS:
            options.progress(f"{NAME}: {hosts:,} hosts for Placement")
            peers[hosts] = running.enter_context(placement(python, hosts, Path(folder) / str(hosts)))
        for number in range(options.rounds):
            options.progress(f"{NAME}: round {number + 1} of {options.rounds}")
            for hosts, peer in peers.items():
                measured[hosts].append(claims(hosts, peer))
    return [
        claims_row(hosts, in_flight, [each[in_flight] for each in rounds], peers[hosts])
        for hosts, rounds in measured.items()
        for in_flight in GOALS
    ]


def claims_row(hosts: int, in_flight: int, rounds: Sequence[tuple[Round, float]], peer: Peer) -> Row:
    """A row; void where our client was the slow side."""
    busiest = max(ours.client_cpu for ours, _ in rounds)
    return row(
        NAME,
        f"{hosts:,} hosts",
        f"claims, {in_flight} in flight",
        UNITS[THROUGHPUT],
        [(ours.figures[THROUGHPUT], theirs) for ours, theirs in rounds],
        against=PLACEMENT,
        higher_is_better=True,
        goal=GOALS[in_flight],
        note=peer.note,
        void=f"the client used {busiest:.2f} of a core" if busiest >= CLIENT_SATURATED else "",
    )
