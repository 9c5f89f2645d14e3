"""A raw client: bytes to a socket, bytes back.

Responsible for one exchange on one connection, however odd. Invariant: the socket is closed afterwards.
Understands neither XML nor what it sends.
"""

from __future__ import annotations

import socket
import time
import xmlrpc.client
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit


@dataclass(frozen=True, slots=True, kw_only=True)
class RawReply:
    """What came back; a status of 0 is a connection that ended without an answer."""

    status: int
    headers: str
    body: bytes


def connect(endpoint: str, timeout: float = 10.0) -> socket.socket:
    parts = urlsplit(endpoint)
    return socket.create_connection((parts.hostname or "", parts.port or 0), timeout=timeout)


def read_all(connection: socket.socket) -> bytes:
    data = b""
    while True:
        try:
            part = connection.recv(1 << 20)
        except ConnectionError:
            return data
        if not part:
            return data
        data += part


def exchange(endpoint: str, data: bytes, timeout: float = 10.0) -> RawReply:
    with connect(endpoint, timeout) as connection:
        with suppress(ConnectionError):  # the answer may be there all the same
            connection.sendall(data)
        raw = read_all(connection)
    head, _, body = raw.partition(b"\r\n\r\n")
    first, _, headers = head.decode("latin-1").partition("\r\n")
    status = int(first.split()[1]) if first.startswith("HTTP/") else 0
    return RawReply(status=status, headers=headers, body=body)


def post(endpoint: str, body: bytes, timeout: float = 10.0) -> RawReply:
    head = f"POST /RPC2 HTTP/1.1\r\nHost: one\r\nContent-Length: {len(body)}\r\n\r\n"
    return exchange(endpoint, head.encode() + body, timeout)


def call(endpoint: str, method: str, *params: Any, timeout: float = 10.0) -> list[Any]:
    """An ordinary call; the array that came back."""
    reply = post(endpoint, xmlrpc.client.dumps(params, method).encode(), timeout)
    answer = xmlrpc.client.loads(reply.body)[0][0]
    assert isinstance(answer, list), answer
    return answer


def until(condition: Callable[[], bool], timeout: float = 10.0, what: str = "condition") -> None:
    """Wait for a condition, and fail when it never comes."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} did not come within {timeout} s")
        time.sleep(0.001)
