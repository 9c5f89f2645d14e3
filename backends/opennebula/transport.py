"""HTTP for calls that share nothing: each request on a socket of its own, which is gone with the answer.

A front-end closes every connection after its answer, so a pool of connections only costs time, and the one that httpx
brings costs most of what a call takes. This is httpx's transport without it: same requests, answers and errors.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Final

import h11
import httpx

_HEADERS_LIMIT: Final = 100 * 1024
_READ_BYTES: Final = 256 * 1024


class OneCallTransport(httpx.AsyncBaseTransport):
    """Connects, asks and reads; keeps nothing, so a call that is cancelled leaves nothing behind. Knows no proxies."""

    def __init__(self, tls: ssl.SSLContext) -> None:
        self._tls = tls

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Sends a request and reads the head of its answer; the rest comes as it is read. Raises httpx.HTTPError."""
        limits = request.extensions["timeout"]
        reader, writer = await self._connect(request.url, limits["connect"])
        exchange = _Exchange(reader, writer, limits["read"])
        try:
            head = await exchange.ask(request)
        except BaseException:
            writer.transport.abort()
            raise
        return httpx.Response(head.status_code, headers=head.headers.raw_items(), stream=exchange)

    async def _connect(
        self, url: httpx.URL, seconds: float | None
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        secure = url.scheme == "https"
        try:
            async with asyncio.timeout(seconds):
                return await asyncio.open_connection(
                    url.host, url.port or (443 if secure else 80), ssl=self._tls if secure else None, limit=_READ_BYTES
                )
        except TimeoutError as error:
            raise httpx.ConnectTimeout(str(error)) from error
        except OSError as error:
            raise httpx.ConnectError(str(error)) from error


class _Exchange(httpx.AsyncByteStream):
    """One request and its answer; as a stream, the answer's body."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, seconds: float | None) -> None:
        self._reader = reader
        self._writer = writer
        self._seconds = seconds
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=_HEADERS_LIMIT)

    async def ask(self, request: httpx.Request) -> h11.Response:
        """Sends the request; returns the head of the answer."""
        with _told_as(httpx.WriteTimeout, httpx.WriteError):
            for part in (
                h11.Request(method=request.method, target=request.url.raw_path, headers=request.headers.raw),
                h11.Data(data=await request.aread()),
                h11.EndOfMessage(),
            ):
                self._writer.write(self._http.send(part) or b"")
        while not isinstance(head := await self._next(), h11.Response):
            pass  # "100 Continue" and the like
        return head

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while isinstance(event := await self._next(), h11.Data):
            yield bytes(event.data)

    async def aclose(self) -> None:
        """Gives the socket back at once: nothing is waited for, and nothing is left to send."""
        self._writer.transport.abort()

    async def _next(self) -> h11.Event:
        with _told_as(httpx.ReadTimeout, httpx.ReadError):
            while (event := self._http.next_event()) is h11.NEED_DATA:
                async with asyncio.timeout(self._seconds):
                    self._http.receive_data(await self._reader.read(_READ_BYTES))
        assert not isinstance(event, type)  # h11.PAUSED is for who reads on after the end
        return event


@contextmanager
def _told_as(late: type[httpx.HTTPError], broken: type[httpx.HTTPError]) -> Iterator[None]:
    """Errors of sockets and of the protocol as the errors of httpx."""
    try:
        yield
    except TimeoutError as error:
        raise late(str(error)) from error
    except OSError as error:
        raise broken(str(error)) from error
    except h11.LocalProtocolError as error:
        raise httpx.LocalProtocolError(str(error)) from error
    except h11.RemoteProtocolError as error:
        raise httpx.RemoteProtocolError(str(error)) from error
