"""A proxy that spoils calls on their way to a front-end and back: the network between a broker and OpenNebula.

Responsible for relaying one call a connection, for deciding which calls are spoiled and how, and for a log of every
decision. Invariant: a decision depends on the seed, on what is asked about which VM, and on how often that was asked
before, never on time or order; so the same seed spoils the same calls, however clients interleave. All methods are
spoiled alike. A request that is held up still arrives before its caller gives up; an answer may come too late.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import socket
import struct
import threading
import xmlrpc.client
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Self
from urllib.parse import urlsplit

_NAME: Final = re.compile(r"<NAME>([^<]*)</NAME>")
_ACCEPTED_ID: Final = re.compile(rb"<boolean>1</boolean></value>\s*<value><i4>(\d+)</i4>")
_MAKES_A_VM: Final = frozenset({"one.vm.allocate", "one.template.instantiate"})
_LENGTH: Final = re.compile(rb"content-length:\s*(\d+)", re.IGNORECASE)
_AT_ONCE: Final = 12  # calls handed on at a time: a front-end serves 15
_HEADER_LIMIT: Final = 64 * 1024


class Kind(StrEnum):
    """What becomes of a call."""

    PASSED = "passed"
    DROPPED_REQUEST = "dropped request"  # never handed on
    DROPPED_ANSWER = "dropped answer"  # handed on and done; the connection is closed without a word
    DELAYED = "delayed"  # on its way there, or back
    TRUNCATED = "truncated"  # handed on and done; the connection is closed in the middle of the answer
    HTTP_500 = "HTTP 500"  # before or after the work, as are the next two
    HTTP_502 = "HTTP 502"
    RESET = "reset"


FAULTS: Final = tuple(kind for kind in Kind if kind is not Kind.PASSED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What was done to one call."""

    method: str
    subject: str
    attempt: int
    kind: Kind
    early: bool = False  # before the work: on the way there, not back
    seconds: float = 0.0
    cut: float = 1.0  # the part of the answer that goes through

    @property
    def worked(self) -> bool:
        """Whether the front-end was given the call, and so did what it asks for."""
        return self.kind is Kind.DELAYED or not self.early


class Judge:
    """Decides by a hash: of the calls, `share` are spoiled, each kind as often as any other.

    `longest`: seconds by which a call is delayed at most, most of them much less. One in twenty delays holds the answer
    for `too_late`, when nobody waits for it any more.
    """

    def __init__(self, seed: int, *, share: float = 0.2, longest: float = 0.06, too_late: float = 0.0) -> None:
        self.seed = seed
        self.share = share
        self._longest = longest
        self._too_late = too_late
        self._asked: Counter[tuple[str, str]] = Counter()

    def decide(self, method: str, subject: str) -> Decision:
        """What becomes of a call; asking again about the same is its next attempt."""
        self._asked[method, subject] += 1
        attempt = self._asked[method, subject]
        text = f"{self.seed}/{method}/{subject}/{attempt}".encode()
        numbers = struct.unpack(">4Q", hashlib.blake2b(text, digest_size=32).digest())
        which, kind_number, where, amount = (number / 2**64 for number in numbers)
        if which >= self.share:
            return Decision(method=method, subject=subject, attempt=attempt, kind=Kind.PASSED)
        kind = FAULTS[int(kind_number * len(FAULTS))]
        late = bool(self._too_late) and amount > 0.95
        either = kind in (Kind.HTTP_500, Kind.HTTP_502, Kind.RESET) or (kind is Kind.DELAYED and not late)
        return Decision(
            method=method,
            subject=subject,
            attempt=attempt,
            kind=kind,
            early=where < 0.5 if either else kind is Kind.DROPPED_REQUEST,
            seconds=(self._too_late if late else amount**3 * self._longest) if kind is Kind.DELAYED else 0.0,
            cut=amount if kind is Kind.TRUNCATED else 1.0,
        )


class Proxy:
    """Listens on loopback, in a thread of its own: `with Proxy(endpoint, judge) as proxy:`."""

    def __init__(self, endpoint: str, judge: Judge) -> None:
        parts = urlsplit(endpoint)
        self._upstream = (parts.hostname, parts.port)
        self._path = parts.path
        self._judge = judge
        self._vm_names: dict[int, str] = {}  # ids differ from run to run, names do not
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="proxy", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._started = threading.Event()
        self.log: list[Decision] = []
        """Every call, in the order of arrival."""
        self.broken: list[str] = []
        """Calls that the proxy itself could not hand on: its own faults, which no decision explains."""

    @property
    def endpoint(self) -> str:
        """Where a broker reaches the front-end through the proxy."""
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}{self._path}"

    def calm(self) -> None:
        """From now on every call goes through."""
        self._judge.share = 0.0

    def counts(self) -> Counter[Kind]:
        """How many calls met with each kind."""
        return Counter(decision.kind for decision in self.log)

    def __enter__(self) -> Self:
        self._thread.start()
        self._started.wait()
        return self

    def __exit__(self, *_: object) -> None:
        if self._loop is not None and self._stop is not None:
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        self._places = asyncio.Semaphore(_AT_ONCE)
        served: set[asyncio.Task[None]] = set()

        def begin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.create_task(self._connection(reader, writer))
            served.add(task)
            task.add_done_callback(served.discard)

        server = await asyncio.start_server(begin, sock=self._listener, limit=_HEADER_LIMIT)
        self._started.set()
        await self._stop.wait()
        server.close()
        for task in served:
            task.cancel()
        await asyncio.gather(*served, return_exceptions=True)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            # A caller who gives up closes before the answer is there.
            with suppress(OSError, asyncio.IncompleteReadError):
                await self._call(reader, writer)
                await writer.drain()
                writer.close()
                await writer.wait_closed()
        finally:
            writer.transport.abort()

    async def _call(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = _LENGTH.search(head)
        body = await reader.readexactly(int(length[1]) if length else 0)
        arguments, method = xmlrpc.client.loads(body)
        decision = self._judge.decide(str(method), self._subject(str(method), arguments[1:]))
        self.log.append(decision)
        if decision.early:
            await asyncio.sleep(decision.seconds)
        answer = await self._hand_on(head + body, decision) if decision.worked else b""
        if not decision.early:
            await asyncio.sleep(decision.seconds)
        match decision.kind:
            case Kind.PASSED | Kind.DELAYED:
                writer.write(answer)
            case Kind.TRUNCATED:
                writer.write(answer[: int(len(answer) * decision.cut)])
            case Kind.HTTP_500:
                writer.write(_page(500, "Internal Server Error"))
            case Kind.HTTP_502:
                writer.write(_page(502, "Bad Gateway"))
            case Kind.RESET:
                # Lingering for no time makes the kernel answer with RST.
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                writer.transport.abort()
            case Kind.DROPPED_REQUEST | Kind.DROPPED_ANSWER:
                pass

    async def _hand_on(self, message: bytes, decision: Decision) -> bytes:
        try:
            async with self._places:
                reader, writer = await asyncio.open_connection(*self._upstream)
                try:
                    writer.write(message)
                    answer = await reader.read(-1)
                finally:
                    writer.transport.abort()
        except OSError as error:
            self.broken.append(f"{decision.method}: {error!r}")
            raise
        if decision.method in _MAKES_A_VM and (made := _ACCEPTED_ID.search(answer)):
            self._vm_names[int(made[1])] = decision.subject
        return answer

    def _subject(self, method: str, arguments: tuple[object, ...]) -> str:
        """What a call is about, in words that are the same in every run."""
        if method in _MAKES_A_VM:
            names = [name for text in arguments if isinstance(text, str) for name in _NAME.findall(text)]
            return " ".join(names)
        if method.startswith("one.vm."):
            words = [text for text in arguments if isinstance(text, str)][:1] if method == "one.vm.action" else []
            ids = [number for number in arguments if type(number) is int][:1]
            return " ".join([*words, *(self._vm_names.get(vm_id, str(vm_id)) for vm_id in ids)])
        return ""


def _page(status: int, phrase: str) -> bytes:
    page = f"<html><body><h1>{status} {phrase}</h1></body></html>"
    return (
        f"HTTP/1.1 {status} {phrase}\r\nContent-Type: text/html\r\nContent-Length: {len(page)}\r\n"
        f"Connection: close\r\n\r\n{page}"
    ).encode()
