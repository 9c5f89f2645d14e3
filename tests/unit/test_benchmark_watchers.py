"""The client of the fan-out benchmark: frames however they are cut, and revisions as protobuf writes them."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from workspacebroker.v1 import workspace_service_pb2 as api

from benchmarks import http2
from benchmarks.watchers_client import Connection, Delivery, revision_of


class Written:
    """A transport that keeps what is written to it."""

    def __init__(self) -> None:
        self.bytes = b""

    def write(self, data: bytes) -> None:
        self.bytes += data


def frame(kind: int, payload: bytes, *, flags: int = 0, stream: int = 0) -> bytes:
    return struct.pack(">I", len(payload) << 8 | kind) + struct.pack(">BI", flags, stream) + payload


def message(text: bytes) -> bytes:
    return struct.pack(">BI", 0, len(text)) + text


def connected(received: list[tuple[int, bytes]], ended: list[int]) -> tuple[Connection, Written]:
    connection = Connection("there:1", lambda stream, text: received.append((stream, text)), ended.append)
    transport: Any = Written()
    connection.connection_made(transport)
    return connection, transport


@pytest.mark.parametrize("size", [1, 2, 7, 10_000])
def test_messages_come_whole_however_bytes_and_frames_are_cut(size: int) -> None:
    sent = (
        frame(http2.DATA, message(b"one") + message(b"two")[:6], stream=1)
        + frame(http2.DATA, message(b"other"), stream=3)
        + frame(http2.DATA, message(b"two")[6:], stream=1)
        + frame(http2.HEADERS, b"trailers", flags=http2.END_STREAM, stream=3)
    )
    received: list[tuple[int, bytes]] = []
    ended: list[int] = []
    connection, _ = connected(received, ended)
    for begin in range(0, len(sent), size):
        connection.data_received(sent[begin : begin + size])
    assert received == [(1, b"one"), (3, b"other"), (1, b"two")]
    assert ended == [3]


def test_a_ping_and_settings_are_acknowledged_once() -> None:
    connection, transport = connected([], [])
    transport.bytes = b""
    connection.data_received(frame(http2.PING, b"12345678") + frame(http2.SETTINGS, b""))
    connection.data_received(frame(http2.SETTINGS, b"", flags=http2.ACK))
    assert transport.bytes == (
        frame(http2.PING, b"12345678", flags=http2.ACK) + frame(http2.SETTINGS, b"", flags=http2.ACK)
    )


@pytest.mark.parametrize("revision", [1, 127, 128, 20_000, 3_000_000_000])
def test_the_revision_is_read_as_protobuf_writes_it(revision: int) -> None:
    change = api.WatchWorkspacesResponse(revision=revision)
    change.workspace.revision = 5
    assert revision_of(change.SerializeToString()) == revision


def test_percentiles_are_of_the_messages_that_came() -> None:
    delivery = Delivery(sent=1, taken=1, messages=100, latencies=range(1, 101), seconds=1.0, closed=0, client_cpu=0.0)
    assert (delivery.percentile(50), delivery.percentile(99)) == (51, 100)
