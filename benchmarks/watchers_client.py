"""Many watchers and one paced writer, over plain HTTP/2: for each message grpcio's client costs more than a server.

A change is on its way from the moment its UpdateWorkspace is sent until a watcher has the message of its revision.
"""

from __future__ import annotations

import asyncio
import struct
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Final, cast

from google.protobuf.message import Message
from workspacebroker.v1 import workspace_service_pb2 as api

from benchmarks import http2
from benchmarks.http2 import frame as frame
from benchmarks.http2 import header as header
from benchmarks.load_client import SERVICE

CONNECTIONS: Final = 10
"""Among which the watchers are divided."""

LIMIT: Final = 30.0
"""Seconds in which every watcher must have its first message."""

PATIENCE: Final = 5.0
"""Seconds after the last change in which the rest of the messages must come, where they are waited for."""

FRAME: Final = struct.Struct(">IBI")  # length and type, flags, stream
MESSAGE: Final = struct.Struct(">BI")  # compressed, length


class Connection(asyncio.Protocol):
    """One connection; `received` is called with each message and the stream it came on, `ended` with streams."""

    def __init__(
        self, address: str, received: Callable[[int, bytes], None], ended: Callable[[int], None] = lambda stream: None
    ) -> None:
        self._address = address
        self._received = received
        self._ended = ended
        self._streams = 0
        self._unread = b""
        self._parts: dict[int, bytes] = {}  # of messages that go on in the next frame

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        window = struct.pack(">HI", http2.INITIAL_WINDOW_SIZE, http2.LARGEST_WINDOW)
        opened = struct.pack(">I", http2.LARGEST_WINDOW - http2.FIRST_WINDOW)
        self.transport.write(http2.PREFACE + frame(http2.SETTINGS, window) + frame(http2.WINDOW_UPDATE, opened))

    def call(self, method: str, request: bytes) -> int:
        """Sends a request; returns the stream that its answers come on."""
        stream = 2 * self._streams + 1
        self._streams += 1
        headers = {
            ":method": "POST",
            ":scheme": "http",
            ":path": SERVICE + method,
            ":authority": self._address,
            "te": "trailers",
            "content-type": "application/grpc",
        }
        fields = b"".join(header(name, value) for name, value in headers.items())
        self.transport.write(
            frame(http2.HEADERS, fields, flags=http2.END_HEADERS, stream=stream)
            + frame(http2.DATA, MESSAGE.pack(0, len(request)) + request, flags=http2.END_STREAM, stream=stream)
        )
        return stream

    def data_received(self, data: bytes) -> None:
        data = self._unread + data
        begin = 0
        while begin + FRAME.size <= len(data):
            length_and_kind, flags, stream = FRAME.unpack_from(data, begin)
            end = begin + FRAME.size + (length_and_kind >> 8)
            if end > len(data):
                break
            self._take(length_and_kind & 0xFF, flags, stream, data[begin + FRAME.size : end])
            begin = end
        self._unread = data[begin:]

    def _take(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == http2.DATA:
            self._messages(stream, self._parts.pop(stream, b"") + payload)
        elif kind in (http2.SETTINGS, http2.PING) and not flags & http2.ACK:
            self.transport.write(frame(kind, payload if kind == http2.PING else b"", flags=http2.ACK))
        if kind in (http2.DATA, http2.HEADERS) and flags & http2.END_STREAM:
            self._ended(stream)

    def _messages(self, stream: int, data: bytes) -> None:
        begin = 0
        while begin + MESSAGE.size <= len(data):
            _, length = MESSAGE.unpack_from(data, begin)
            end = begin + MESSAGE.size + length
            if end > len(data):
                break
            self._received(stream, data[begin + MESSAGE.size : end])
            begin = end
        if begin < len(data):
            self._parts[stream] = data[begin:]


def revision_of(change: bytes) -> int:
    """The first field of a serialised WatchWorkspacesResponse: a tag, then seven bits a byte, the lowest first."""
    revision = shift = 0
    for byte in change[1:]:
        revision |= (byte & 0x7F) << shift
        if byte < 0x80:
            break
        shift += 7
    return revision


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """What came of changes at a fixed rate."""

    sent: int
    taken: int  # changes that were acknowledged
    messages: int  # all that watchers were sent
    latencies: Sequence[float]  # seconds, of the messages of changes that were taken, in order of size
    seconds: float  # from the first change until what was waited for had come
    closed: int  # watchers whose stream the server ended
    client_cpu: float  # share of a core

    def percentile(self, percent: int) -> float:
        """Seconds that so many of a hundred messages did not take longer than."""
        return self.latencies[len(self.latencies) * percent // 100]


class Watchers:
    """Watchers of one server, and the writer whose changes they are told of."""

    def __init__(self, address: str, count: int) -> None:
        self._address = address
        self._count = count
        self._connections: list[Connection] = []
        self._came: list[tuple[int, float]] = []  # revision, and when
        self._awaited = 0
        self._come = asyncio.Event()  # that many have come
        self._sent: dict[int, float] = {}  # by the writer's stream
        self._changed: dict[int, float] = {}  # by revision, when the change was sent
        self._closed = 0

    async def connect(self, request: Message) -> None:
        """Opens all streams; `request` is such that each watcher is told of one change at once."""
        self._writer = await self._connection(self._acknowledged)
        connections = [await self._connection(self._told, self._ended) for _ in range(CONNECTIONS)]
        for connection in islice(cycle(connections), self._count):
            connection.call("WatchWorkspaces", request.SerializeToString())
        if not await self._all(self._count, LIMIT):
            raise TimeoutError(f"{len(self._came)} of {self._count} watchers were told something in {LIMIT:g} s")

    def close(self) -> None:
        """Leaves the server."""
        for connection in self._connections:
            connection.transport.abort()

    async def deliver(self, updates: Iterable[Message], rate: float, seconds: float, *, all_of_it: bool) -> Delivery:
        """Sends updates at a fixed rate, whether or not earlier ones are answered; `all_of_it`: waits for the rest."""
        self._came.clear()
        self._changed.clear()
        changes = round(rate * seconds)
        began, used = time.monotonic(), time.process_time()
        for number, update in enumerate(islice(updates, changes)):
            await asyncio.sleep(began + number / rate - time.monotonic())
            self._sent[self._writer.call("UpdateWorkspace", update.SerializeToString())] = time.monotonic()
        await asyncio.sleep(began + seconds - time.monotonic())
        if all_of_it:
            await self._all(changes * self._count, PATIENCE)
        took, used = time.monotonic() - began, time.process_time() - used
        return Delivery(
            sent=changes,
            taken=len(self._changed),
            messages=len(self._came),
            latencies=sorted(at - self._changed[revision] for revision, at in self._came if revision in self._changed),
            seconds=took,
            closed=self._closed,
            client_cpu=used / took,
        )

    async def _connection(
        self, received: Callable[[int, bytes], None], ended: Callable[[int], None] = lambda stream: None
    ) -> Connection:
        host, port = self._address.rsplit(":", 1)
        _, connection = await asyncio.get_running_loop().create_connection(
            lambda: Connection(self._address, received, ended), host, int(port)
        )
        self._connections.append(connection)
        return connection

    async def _all(self, messages: int, limit: float) -> bool:
        """Whether so many messages come in so many seconds."""
        self._awaited = messages
        self._come.clear()
        if len(self._came) < messages:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._come.wait(), limit)
        return len(self._came) >= messages

    def _told(self, stream: int, message: bytes) -> None:
        self._came.append((revision_of(message), time.monotonic()))
        if len(self._came) == self._awaited:
            self._come.set()

    def _ended(self, stream: int) -> None:
        self._closed += 1

    def _acknowledged(self, stream: int, message: bytes) -> None:
        changed = api.UpdateWorkspaceResponse.FromString(message).workspace
        self._changed[changed.revision] = self._sent.pop(stream)
