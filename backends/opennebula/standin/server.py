"""HTTP as the daemon's library speaks it, and the faults that were asked for.

Responsible for sockets: one call for each connection, no keep-alive, at most `max_connections` served at
once and the rest left in the kernel's backlog, silence for `idle_timeout` at most. Invariant: whatever a
peer sends, its connection ends and its slot is given back. Knows nothing of what a method does.
"""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

from backends.opennebula.standin.config import StandinConfig
from backends.opennebula.standin.envelope import Call, Value, decode_call, encode_answer, encode_fault
from backends.opennebula.standin.errors import Fault
from backends.opennebula.standin.faults import FaultKind, FaultPlan, FaultRule
from backends.opennebula.standin.frontend import FrontEnd
from backends.opennebula.standin.registry import Deferred

_PATH: Final = "/RPC2"
_HEADER_LIMIT: Final = 16 * 1024
_BACKLOG: Final = 15
_LINGER: Final = 0.5
_REQUEST_LINE: Final = re.compile(r"([A-Z]+) (\S+) HTTP/1\.[01]")
_SERVER: Final = "Xmlrpc-c_Abyss/1.33.14"


class _Drop(Exception):
    """Close the connection without a word."""


class _Page(Exception):
    """Answer with an HTML page instead of a call's answer."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = text


@dataclass(frozen=True, slots=True, kw_only=True)
class _Head:
    verb: str
    path: str
    length: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CallRecord:
    """One call as it was served; `outcome` is `true`, a code, a fault code, or the kind of a fault rule."""

    method: str
    args: tuple[Value, ...]
    outcome: str


@dataclass(slots=True, kw_only=True)
class Connections:
    """Connections that were accepted and not yet answered: now, and at most."""

    open: int = 0
    most: int = 0

    @contextmanager
    def one(self) -> Iterator[None]:
        """Counts a connection as open while it is in use."""
        self.open += 1
        self.most = max(self.most, self.open)
        try:
            yield
        finally:
            self.open -= 1


class Server:
    """Serves one front-end on one listening socket, within one event loop."""

    def __init__(self, front: FrontEnd, faults: FaultPlan, record: Callable[[CallRecord], None]) -> None:
        self.front = front
        self.faults = faults
        self.record = record
        self.config: StandinConfig = front.config
        self.listener = socket.create_server((self.config.listen_host, self.config.listen_port), backlog=_BACKLOG)
        self.listener.setblocking(False)
        self._served: set[asyncio.Task[None]] = set()
        self.connections = Connections()
        self._serial_until = 0.0  # on the loop's clock: when the last serial call so far is over

    @property
    def endpoint(self) -> str:
        host, port = self.listener.getsockname()[:2]
        return f"http://{host}:{port}{_PATH}"

    async def serve(self, stop: asyncio.Event) -> None:
        slots = asyncio.Semaphore(self.config.max_connections)
        accepting = asyncio.create_task(self._accept(slots))
        try:
            await stop.wait()
        finally:
            accepting.cancel()
            for task in self._served:
                task.cancel()
            await asyncio.gather(accepting, *self._served, return_exceptions=True)
            self.listener.close()

    async def _accept(self, slots: asyncio.Semaphore) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await slots.acquire()
            try:
                connection, _ = await loop.sock_accept(self.listener)
            except OSError:
                slots.release()
                await asyncio.sleep(0.01)
                continue
            task = asyncio.create_task(self._connection(connection))
            self._served.add(task)
            task.add_done_callback(self._served.discard)
            task.add_done_callback(lambda _: slots.release())

    async def _connection(self, connection: socket.socket) -> None:
        try:
            reader, writer = await asyncio.open_connection(sock=connection, limit=_HEADER_LIMIT)
        except OSError:
            connection.close()
            return
        try:
            with self.connections.one():
                await self._exchange(reader, writer)
            await asyncio.wait_for(writer.drain(), self.config.idle_timeout)
            writer.close()
            await asyncio.wait_for(writer.wait_closed(), self.config.idle_timeout)
        except (_Drop, OSError, TimeoutError):
            pass
        finally:
            writer.transport.abort()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head: _Head | None = None
        try:
            async with asyncio.timeout(self.config.idle_timeout):
                head = await self._head(reader)
                if head.verb == "OPTIONS":
                    writer.write(_message(200, b"", "text/xml", ("Allow: POST",)))
                    return
                body = await self._body(reader, head)
        except _Page as page:
            writer.write(_page(page.status, page.text))
            await self._linger(reader, writer)
            return
        except TimeoutError:
            writer.write(_page(408, "Timed out waiting for the request"))
            return
        await self._serve_call(reader, writer, body)

    @staticmethod
    async def _linger(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Let the peer read the page: closing with its request half read would reset the connection."""
        await writer.drain()
        writer.write_eof()
        with suppress(TimeoutError):
            async with asyncio.timeout(_LINGER):
                while await reader.read(1 << 16):
                    pass

    async def _head(self, reader: asyncio.StreamReader) -> _Head:
        try:
            raw = await reader.readuntil(b"\r\n")
            line = raw.decode("latin-1").strip()
            found = _REQUEST_LINE.fullmatch(line)
            if found is None:
                raise _Page(400, f"Unable to parse the request header {line[:200]!r}")
            size, length = len(raw), None
            while raw.strip():
                raw = await reader.readuntil(b"\n")
                size += len(raw)
                name, _, value = raw.decode("latin-1").partition(":")
                if name.strip().lower() == "content-length":
                    length = self._length(value.strip())
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
            raise _Drop from error
        if size > _HEADER_LIMIT:
            raise _Drop
        return _Head(verb=found.group(1), path=found.group(2).partition("?")[0], length=length)

    @staticmethod
    def _length(text: str) -> int:
        if not (text.isascii() and text.isdigit()) or len(text) > 18:
            raise _Page(400, "The content-length HTTP header is no number")
        return int(text)

    async def _body(self, reader: asyncio.StreamReader, head: _Head) -> bytes:
        if head.path != _PATH:
            raise _Page(404, f"This server responds to only one URI path, which is not {head.path[:200]!r}")
        if head.verb != "POST":
            raise _Page(405, "POST is the only HTTP method this server understands")
        if head.length is None:
            raise _Page(411, "You must send a content-length HTTP header in an XML-RPC call.")
        if head.length == 0:
            raise _Page(400, "According to your content-length HTTP header, your request is empty")
        if head.length > self.config.message_size:
            raise _Page(500, "XML-RPC request too large")
        parts: list[bytes] = []
        missing = head.length
        while missing:
            part = await reader.read(min(missing, 1 << 20))
            if not part:
                raise _Drop
            parts.append(part)
            missing -= len(part)
        return b"".join(parts)

    async def _serve_call(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: bytes) -> None:
        try:
            call = decode_call(body)
        except Fault as fault:
            writer.write(_message(200, encode_fault(fault)))
            return
        rule = self.faults.pick(call.method)
        if rule is not None:
            await self._faulty(reader, writer, call, rule)
            return
        writer.write(_message(200, await self._answer(call)))

    async def _answer(self, call: Call, outcome: str | None = None) -> bytes:
        try:
            refuse = outcome == FaultKind.AUTH_REFUSED
            value = self.front.call(call.method, call.params, refuse_session=refuse)
            await asyncio.sleep(self._latency(call.method))
            if isinstance(value, Deferred):
                value = self.front.finish(call.method, value)
        except Fault as fault:
            self._note(call, outcome or str(fault.code))
            return encode_fault(fault)
        self._note(call, outcome or _outcome(value))
        return encode_answer(value)

    def _latency(self, method: str) -> float:
        """Seconds from now until the answer of a call, its turn among the serial ones waited for."""
        latency = self.config.call_latency.get(method, self.config.default_call_latency)
        serial = self.config.serial_latency.get(method)
        if serial is None:
            return latency
        now = asyncio.get_running_loop().time()
        self._serial_until = max(now, self._serial_until) + serial
        return self._serial_until - now + latency

    def _note(self, call: Call, outcome: str) -> None:
        self.record(CallRecord(method=call.method, args=call.params[1:], outcome=outcome))

    async def _faulty(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, call: Call, rule: FaultRule
    ) -> None:
        """Carry out a fault; what is dropped before the work is only noted."""
        kind = rule.kind
        if kind is FaultKind.DELAY:
            await asyncio.sleep(rule.seconds)
            writer.write(_message(200, await self._answer(call)))
            return
        if kind is FaultKind.AUTH_REFUSED:
            writer.write(_message(200, await self._answer(call, kind)))
            return
        undone = kind in (FaultKind.DROP_BEFORE, FaultKind.HANG)
        if undone or (kind is FaultKind.HTTP_STATUS and not rule.after_work):
            self._note(call, kind)
            answer = b""
        else:
            answer = await self._answer(call, kind)
        match kind:
            case FaultKind.DROP_BEFORE | FaultKind.DROP_AFTER:
                raise _Drop
            case FaultKind.HANG:
                with suppress(OSError):
                    await reader.read()  # until the peer gives up
                raise _Drop
            case FaultKind.HTTP_STATUS:
                writer.write(_page(rule.status, "The server was told to fail"))
            case FaultKind.EMPTY_BODY:
                writer.write(_message(200, b""))
            case FaultKind.BROKEN_XML:
                writer.write(_message(200, answer[: len(answer) // 2] + b"<&"))
            case FaultKind.TRUNCATED:
                whole = _message(200, answer)
                writer.write(whole[: len(whole) - len(answer) // 2])


def _outcome(value: Value) -> str:
    if isinstance(value, list) and value and isinstance(value[0], bool) and len(value) in (3, 5):
        return "true" if value[0] else str(value[2])
    return "other"


def _message(status: int, body: bytes, kind: str = "text/xml; charset=utf-8", more: tuple[str, ...] = ()) -> bytes:
    headers = (
        *more,
        f"Content-type: {kind}",
        f"Content-length: {len(body)}",
        "Connection: close",
        f"Server: {_SERVER}",
    )
    return _head_bytes(status, headers) + body


def _page(status: int, text: str) -> bytes:
    """An HTML page; it has no Content-Length, its end is the connection's."""
    title = f"Error {status}"
    page = f"<HTML><HEAD><TITLE>{title}</TITLE></HEAD><BODY><H1>{title}</H1><P>{text}</P></BODY></HTML>"
    headers = ("Content-type: text/html", "Connection: close", f"Server: {_SERVER}")
    return _head_bytes(status, headers) + page.encode()


def _head_bytes(status: int, headers: tuple[str, ...]) -> bytes:
    try:
        phrase = HTTPStatus(status).phrase
    except ValueError:
        phrase = "Unknown"
    return "\r\n".join((f"HTTP/1.1 {status} {phrase}", *headers, "", "")).encode()
