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
from collections.abc import Callable, Iterator
from itertools import cycle
from typing import Any, Final

import grpc.aio
from workspacebroker.v1 import workspace_service_pb2 as api

WARM_UP: Final = 0.3
"""Seconds of calls before those that are timed."""

LARGEST_MESSAGE: Final = 16 * 1024 * 1024
SERVICE: Final = "/workspacebroker.v1.WorkspaceService/"


def with_fresh_ids(requests: Iterator[bytes]) -> Iterator[bytes]:
    """CreateWorkspace requests, each with a request id that no other has."""
    for request in requests:
        # Serialised messages merge by standing one behind the other.
        yield request + api.CreateWorkspaceRequest(request_id=uuid.uuid4().hex).SerializeToString()


async def load(call: Callable[[bytes], Any], requests: Iterator[bytes], in_flight: int, seconds: float) -> Any:
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


async def stream(call: Callable[[bytes], Any], request: bytes, messages: int) -> Any:
    """Reads so many messages of one stream."""
    began, used = time.perf_counter(), time.process_time()
    answers = call(request)
    for _ in range(messages):
        if await answers.read() is grpc.aio.EOF:
            raise EOFError("the stream ended early")
    took, used = time.perf_counter() - began, time.process_time() - used
    answers.cancel()
    return {"warm_up_calls": 0, "calls": messages, "seconds": took, "cpu": used}


async def measure(options: argparse.Namespace, lines: list[str]) -> Any:
    """Connects, and does as the command line says."""
    requests = [bytes.fromhex(line) for line in lines]
    async with grpc.aio.insecure_channel(
        options.address, options=[("grpc.max_receive_message_length", LARGEST_MESSAGE)]
    ) as channel:
        await channel.channel_ready()
        if options.messages is not None:
            reading: Any = channel.unary_stream(SERVICE + options.method)
            return await stream(reading, requests[0], options.messages)
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
    measuring = measure(parser.parse_args(), sys.stdin.read().split())
    try:
        import uvloop
    except ImportError:
        measured = asyncio.run(measuring)
    else:
        measured = uvloop.run(measuring)
    json.dump(measured, sys.stdout)


if __name__ == "__main__":
    main()
