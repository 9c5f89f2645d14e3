"""A load generator in a process of its own; prints what it measured as one line of JSON.

    python -m benchmarks.load_client ADDRESS METHOD IN_FLIGHT SECONDS [--fresh-ids] < requests
    python -m benchmarks.load_client ADDRESS METHOD --messages N < requests

Requests are serialised messages, one a line in hexadecimal. The first form keeps so many unary calls in flight, taking
the requests in turn; the second reads the first N messages of a stream. Answers are not parsed, so that the client is
cheaper than any server it is pointed at. Any refusal ends it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle, islice
from typing import Any, Final

import grpc.aio
from workspacebroker.v1 import workspace_service_pb2 as api

from benchmarks.http2 import messages_of

WARM_UP: Final = 0.3
"""Seconds of calls before those that are timed."""

LARGEST_MESSAGE: Final = 16 * 1024 * 1024
SERVICE: Final = "/workspacebroker.v1.WorkspaceService/"


def with_fresh_ids(requests: Iterator[bytes]) -> Iterator[bytes]:
    """CreateWorkspace requests, each with a request id that no other has."""
    for request in requests:
        # Serialised messages merge by standing one behind the other.
        yield request + api.CreateWorkspaceRequest(request_id=uuid.uuid4().hex).SerializeToString()


async def load(
    call: Callable[[bytes], Any], requests: Iterator[bytes], in_flight: int, seconds: float
) -> dict[str, float]:
    """Keeps unary calls in flight; `calls` were timed, `warm_up_calls` came before."""
    latencies: list[float] = []

    async def caller(until: float) -> None:
        while (began := time.perf_counter()) < until:
            await call(next(requests))
            latencies.append(time.perf_counter() - began)

    async def callers(seconds: float) -> None:
        until = time.perf_counter() + seconds
        await asyncio.gather(*(caller(until) for _ in range(in_flight)))

    await callers(WARM_UP)
    warm_up_calls = len(latencies)
    latencies.clear()
    began, used = time.perf_counter(), time.process_time()
    await callers(seconds)
    took, used = time.perf_counter() - began, time.process_time() - used
    latencies.sort()
    return {
        "warm_up_calls": warm_up_calls,
        "calls": len(latencies),
        "seconds": took,
        "cpu": used,
        "latency p50": latencies[len(latencies) // 2],
        "latency p99": latencies[len(latencies) * 99 // 100],
    }


def stream(address: str, path: str, request: bytes, messages: int) -> dict[str, float]:
    """Reads so many messages of one stream."""
    began, used = time.perf_counter(), time.process_time()
    for _ in islice(messages_of(address, path, request), messages):
        pass
    took, used = time.perf_counter() - began, time.process_time() - used
    return {"warm_up_calls": 0, "calls": messages, "seconds": took, "cpu": used}


async def unary(options: argparse.Namespace, requests: Sequence[bytes]) -> dict[str, float]:
    """Connects, and makes the calls that the command line says."""
    async with grpc.aio.insecure_channel(
        options.address, options=[("grpc.max_receive_message_length", LARGEST_MESSAGE)]
    ) as channel:
        await channel.channel_ready()
        call: Any = channel.unary_unary(SERVICE + options.method)
        endless: Iterator[bytes] = cycle(requests)
        if options.fresh_ids:
            endless = with_fresh_ids(endless)
        return await load(call, endless, options.in_flight, options.seconds)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser()
    parser.add_argument("address")
    parser.add_argument("method")
    parser.add_argument("in_flight", type=int, nargs="?")
    parser.add_argument("seconds", type=float, nargs="?")
    parser.add_argument("--fresh-ids", action="store_true")
    parser.add_argument("--messages", type=int)
    options = parser.parse_args()
    requests = [bytes.fromhex(line) for line in sys.stdin.read().split()]
    if options.messages is not None:
        measured = stream(options.address, SERVICE + options.method, requests[0], options.messages)
    else:
        try:
            import uvloop
        except ImportError:
            measured = asyncio.run(unary(options, requests))
        else:
            measured = uvloop.run(unary(options, requests))
    json.dump(measured, sys.stdout)


if __name__ == "__main__":
    main()
