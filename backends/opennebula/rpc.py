"""The wire: one XML-RPC call as one HTTP request, with limits on both directions.

Responsible for the codec (`xmlrpc.client`, hardened), HTTP (httpx on `transport`), the number of calls in flight, the
time a call may take, and the session. Invariants: no more than `max_in_flight` sockets are open, each for
one call only, because a front-end closes every connection after its answer and serves 15 at once; a text the
other side cannot take is refused before anything is sent; a body with a DOCTYPE is never parsed; the session
is in no message.

It does not repeat calls, and knows no method: `failures` says of what kind a failure is.
"""

from __future__ import annotations

import asyncio
import re
import ssl
import xmlrpc.client
from pathlib import Path
from typing import Final, cast
from xml.parsers import expat

import httpx

from backends.base import BackendRejected, TransientBackendError
from backends.opennebula import failures
from backends.opennebula.failures import SessionRefused, Unusable
from backends.opennebula.settings import Settings
from backends.opennebula.transport import OneCallTransport

Argument = str | int | bool

_CONNECT_SECONDS: Final = 10.0
# Decoding a large document takes longer than the loop should stand still for.
_DECODE_ASIDE_BYTES: Final = 64 * 1024
_DOCTYPE: Final = re.compile(rb"<!\s*doctype", re.IGNORECASE)
# xmlrpc-c refuses control characters and whatever takes four bytes of UTF-8.
_REFUSED: Final = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd]")
_INT_RANGE: Final = range(-(2**31), 2**31)


def check_text(text: str, where: str) -> None:
    """Refuses text with a character that a front-end takes for a broken call."""
    bad = _REFUSED.search(text)
    if bad is not None:
        raise BackendRejected(
            f"OpenNebula cannot take the character U+{ord(bad.group()):04X} in {where}: no control characters and "
            "none beyond U+FFFF, such as emoji"
        )


def encode(method: str, arguments: tuple[Argument, ...]) -> bytes:
    """The body of a call. Raises BackendRejected for what the wire cannot carry."""
    for place, argument in enumerate(arguments):
        if isinstance(argument, str):
            check_text(argument, f"argument {place} of {method}")
        elif argument not in _INT_RANGE:
            raise BackendRejected(f"{argument} does not fit into the 32 bits of argument {place} of {method}")
    return xmlrpc.client.dumps(arguments, method, encoding="utf-8").encode("utf-8")


def decode(body: bytes) -> list[object]:
    """The array in an answer. Raises Unusable, or xmlrpc.client.Fault."""
    if not body.strip():
        raise Unusable("an empty answer")
    if b"\x00" in body or body.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise Unusable("an answer that is not UTF-8")
    if _DOCTYPE.search(body):
        raise Unusable("an answer with a DOCTYPE, which is not parsed")
    try:
        values = _unmarshalled(body)
    except xmlrpc.client.Fault:
        raise
    except Exception as error:  # the parser stumbles over nonsense in ways its documentation does not list
        raise Unusable(f"a broken answer ({type(error).__name__}: {error})") from error
    answer: object = values[0] if len(values) == 1 else None
    if not isinstance(answer, list) or len(answer) < 2 or not isinstance(answer[0], bool):
        raise Unusable("an answer of another shape than [true, value, ...] or [false, message, code, ...]")
    return cast("list[object]", answer)


def _unmarshalled(body: bytes) -> tuple[object, ...]:
    """What xmlrpc.client.loads makes of a body, in a fifth of the time where it is long."""
    target = xmlrpc.client.Unmarshaller()
    parser = expat.ParserCreate()
    parser.buffer_text = True  # a document is one text; else each of its escapes is a call
    parser.buffer_size = _DECODE_ASIDE_BYTES
    parser.StartElementHandler = target.start
    parser.EndElementHandler = target.end
    parser.CharacterDataHandler = target.data
    target.xml(None, None)  # type: ignore[arg-type]  # no encoding: the parser has decoded
    parser.Parse(body, True)
    return cast("tuple[object, ...]", target.close())


class Session:
    """ "user:password", from the settings or from a file that is read again after a refusal."""

    def __init__(self, text: str, file: Path | None) -> None:
        self._text = text
        self._file = file

    async def get(self) -> str:
        """The session. Raises TransientBackendError while its file cannot be read."""
        if not self._text and self._file is not None:
            try:
                text = await asyncio.to_thread(self._file.read_text, encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                why = error.strerror if isinstance(error, OSError) else error
                raise TransientBackendError(f"the session file {self._file} cannot be read: {why}") from error
            self._text = text.strip()
            if not self._text:
                raise TransientBackendError(f"the session file {self._file} is empty")
        return self._text

    def forget(self) -> None:
        """An operator may write a new password into the file."""
        if self._file is not None:
            self._text = ""


class Rpc:
    """Calls to one front-end. `call_int` is for what changes something, `read` for what does not."""

    def __init__(self, settings: Settings, base_directory: str) -> None:
        base = Path(base_directory)
        self._settings = settings
        self._ca_file = str(base / settings.ca_file) if settings.ca_file else None
        self._session = Session(settings.session, base / settings.session_file if settings.session_file else None)
        self._places = asyncio.Semaphore(settings.max_in_flight)
        self._tls: ssl.SSLContext | None = None  # made once: each costs a call some 10 ms
        self._connect = min(_CONNECT_SECONDS, settings.call_timeout)

    def open(self) -> None:
        """Reads the certificates; no socket is opened, because one that idles holds a front-end's place for 15 s."""
        self._tls = self._tls_context()

    async def close(self) -> None:
        self._tls = None

    def _client(self) -> httpx.AsyncClient:
        """A client for one call: behind a proxy, calls that are cancelled lose a place of a shared one for ever."""
        if self._tls is None:
            raise TransientBackendError("the pool is not open")
        return httpx.AsyncClient(
            transport=OneCallTransport(self._tls),  # with a proxy httpx takes its own
            verify=self._tls,
            proxy=self._settings.proxy or None,
            trust_env=False,
            follow_redirects=False,
            timeout=httpx.Timeout(self._settings.call_timeout, connect=self._connect, pool=None),
            headers={"Content-Type": "text/xml", "User-Agent": "workspace-broker", "Connection": "close"},
        )

    async def call_int(self, method: str, *arguments: Argument) -> int:
        """A call that changes something and answers an id."""
        value = await self._call(method, arguments, changes=True)
        if isinstance(value, bool) or not isinstance(value, int):
            raise failures.of_answer(method, Unusable("an answer that is no id"), changes=True)
        return value

    async def read(self, method: str, *arguments: Argument) -> str:
        """A call that changes nothing and answers a document."""
        value = await self._call(method, arguments, changes=False)
        if not isinstance(value, str):
            raise failures.of_answer(method, Unusable("an answer that is no document"), changes=False)
        return value

    def _tls_context(self) -> ssl.SSLContext:
        try:
            context = ssl.create_default_context(cafile=self._ca_file)
        except (OSError, ssl.SSLError) as error:
            raise TransientBackendError(f"ca_file {self._ca_file} cannot be used: {error}") from error
        if not self._settings.verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context

    async def _call(self, method: str, arguments: tuple[Argument, ...], *, changes: bool) -> object:
        session = await self._session.get()
        body = encode(method, (session, *arguments))
        async with self._places:
            status, answer = await self._exchange(method, body, changes)
        if status != 200:
            page = answer[:2000].decode("utf-8", "replace")
            raise failures.of_http(method, status, page, changes=changes)
        try:
            aside = len(answer) > _DECODE_ASIDE_BYTES
            values = await asyncio.to_thread(decode, answer) if aside else decode(answer)
        except xmlrpc.client.Fault as fault:
            raise failures.of_fault(method, fault.faultCode, fault.faultString, changes=changes) from None
        except Unusable as trouble:
            raise failures.of_answer(method, trouble, changes=changes) from trouble
        if values[0]:
            return values[1]
        code = values[2] if len(values) > 2 and isinstance(values[2], int) else 0
        error = failures.of_refusal(method, code, str(values[1]), changes=changes)
        if isinstance(error, SessionRefused):
            self._session.forget()
        raise error

    async def _exchange(self, method: str, body: bytes, changes: bool) -> tuple[int, bytes]:
        seconds = self._connect + self._settings.call_timeout
        limit = self._settings.max_response_bytes
        try:
            async with (
                asyncio.timeout(seconds),
                self._client() as client,
                client.stream("POST", self._settings.endpoint, content=body) as response,
            ):
                answer = bytearray()
                async for piece in response.aiter_bytes():
                    answer += piece
                    if len(answer) > limit:
                        trouble = Unusable(f"an answer of more than {limit} bytes (max_response_bytes)")
                        raise failures.of_answer(method, trouble, changes=changes)
                return response.status_code, bytes(answer)
        except TimeoutError:
            raise failures.of_timeout(method, seconds, changes=changes) from None
        except httpx.HTTPError as error:
            raise failures.of_transport(method, error, changes=changes) from error
