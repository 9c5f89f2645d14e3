"""Load on a server from a client process, and what is the same for the broker and for the echo beside it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final

import grpc
from google.protobuf.message import Message
from workspacebroker.v1 import pool_service_pb2 as pool_calls
from workspacebroker.v1 import pool_service_pb2_grpc as pool_services

from benchmarks.harness import CLIENT_SATURATED, Row, cpu_of, row, server
from benchmarks.load_client import LARGEST_MESSAGE, SERVICE

ECHO: Final = "bare gRPC echo"
START_LIMIT: Final = 60.0
"""Seconds a broker may take until it has looked at its pool."""


THROUGHPUT: Final = "throughput"
P50: Final = "latency p50"
P99: Final = "latency p99"
SERVER_CPU: Final = "server CPU"
UNITS: Final = {THROUGHPUT: "1/s", P50: "ms", P99: "ms", SERVER_CPU: "us each"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One round against one server: its figures by measure, in `UNITS`, and the client's share of a core."""

    figures: Mapping[str, float]
    client_cpu: float


@contextmanager
def broker(configuration: Path) -> Iterator[tuple[str, int]]:
    """A broker that has looked at its pool "lab"; (address, process id)."""
    with server("-m", "broker", "--config", str(configuration), "--log-level", "error") as (address, process):
        with grpc.insecure_channel(address) as channel:
            pools: Any = pool_services.PoolServiceStub(channel)
            until = time.monotonic() + START_LIMIT
            asked = pool_calls.GetPoolRequest(name="pools/lab")
            while not pools.GetPool(asked, timeout=START_LIMIT).pool.HasField("refresh_time"):
                if time.monotonic() > until:
                    raise TimeoutError("the broker does not come to look at its pool")
                time.sleep(0.05)
        yield address, process


@contextmanager
def echo(recorded: Mapping[str, Sequence[bytes]], folder: Path) -> Iterator[tuple[str, int]]:
    """The bare server that answers with what was recorded, by method; (address, process id)."""
    path = folder / "recorded.json"
    path.write_text(json.dumps({method: [answer.hex() for answer in answers] for method, answers in recorded.items()}))
    with server("-m", "benchmarks.echo_server", str(path)) as started:
        yield started


def answer_to(address: str, method: str, request: Message) -> bytes:
    """What a server answers to one unary call, serialised."""
    with grpc.insecure_channel(address, options=[("grpc.max_receive_message_length", LARGEST_MESSAGE)]) as channel:
        call: Callable[..., bytes] = channel.unary_unary(SERVICE + method)
        return call(request.SerializeToString(), timeout=30)


def stream_of(address: str, method: str, request: Message, messages: int) -> list[bytes]:
    """The first messages of a stream, serialised."""
    with grpc.insecure_channel(address) as channel:
        call: Callable[..., Iterator[bytes]] = channel.unary_stream(SERVICE + method)
        return list(islice(call(request.SerializeToString(), timeout=60), messages))


def drive(started: tuple[str, int], method: str, requests: Sequence[Message], *arguments: str) -> Round:
    """One round on a started server; `arguments` say to the client how (see load_client)."""
    address, process = started
    before = cpu_of(process)
    client = subprocess.run(
        [sys.executable, "-m", "benchmarks.load_client", address, method, *arguments],
        input="\n".join(request.SerializeToString().hex() for request in requests),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    used = cpu_of(process) - before
    measured = json.loads(client.stdout)
    return Round(
        figures={
            THROUGHPUT: measured["calls"] / measured["seconds"],
            **{name: measured[name] * 1e3 for name in (P50, P99) if name in measured},
            SERVER_CPU: used / (measured["warm_up_calls"] + measured["calls"]) * 1e6,
        },
        client_cpu=measured["cpu"] / measured["seconds"],
    )


def rows(benchmark: str, case: str, rounds: Sequence[tuple[Round, Round]], goals: Mapping[str, float]) -> list[Row]:
    """A row a measure of rounds (the broker's, the echo's); void where the client was the slow side."""
    busiest = max(each.client_cpu for pair in rounds for each in pair)
    return [
        row(
            benchmark,
            case,
            measure,
            UNITS[measure],
            [(ours.figures[measure], echo.figures[measure]) for ours, echo in rounds],
            against=ECHO,
            higher_is_better=measure == THROUGHPUT,
            goal=goals.get(measure),
            note=f"client: {busiest:.2f} of a core" if measure == THROUGHPUT else "",
            void=f"the client used {busiest:.2f} of a core" if busiest >= CLIENT_SATURATED else "",
        )
        for measure in rounds[0][0].figures
    ]
