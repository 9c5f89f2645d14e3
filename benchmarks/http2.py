"""Just enough HTTP/2 to read one gRPC stream: for each message a client of grpcio costs more than a server does."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from typing import Final

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, SETTINGS, PING, WINDOW_UPDATE = 0x0, 0x1, 0x4, 0x6, 0x8  # types of frames
ACK = END_STREAM = 0x1  # flags
END_HEADERS: Final = 0x4
INITIAL_WINDOW_SIZE: Final = 0x4  # a setting
LARGEST_WINDOW: Final = 2**31 - 1
FIRST_WINDOW: Final = 2**16 - 1
STREAM: Final = 1


def frame(kind: int, payload: bytes, *, flags: int = 0, stream: int = 0) -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def header(name: str, value: str) -> bytes:
    """A literal that is not indexed; name and value are shorter than 127 characters."""
    return b"\0" + bytes((len(name),)) + name.encode() + bytes((len(value),)) + value.encode()


def messages_of(address: str, path: str, request: bytes) -> Iterator[bytes]:
    """The messages of a stream of at most 2 GiB, serialised. Raises EOFError where it ends."""
    headers = (
        header(":method", "POST")
        + header(":scheme", "http")
        + header(":path", path)
        + header(":authority", address)
        + header("te", "trailers")
        + header("content-type", "application/grpc")
    )
    host, port = address.rsplit(":", 1)
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(
            PREFACE
            + frame(SETTINGS, struct.pack(">HI", INITIAL_WINDOW_SIZE, LARGEST_WINDOW))
            + frame(WINDOW_UPDATE, struct.pack(">I", LARGEST_WINDOW - FIRST_WINDOW))
            + frame(HEADERS, headers, flags=END_HEADERS, stream=STREAM)
            + frame(DATA, struct.pack(">BI", 0, len(request)) + request, flags=END_STREAM, stream=STREAM)
        )
        unread = b""
        for part in _data(connection):
            unread += part
            place = 0
            while len(unread) >= place + 5:
                end = place + 5 + int.from_bytes(unread[place + 1 : place + 5], "big")
                if end > len(unread):
                    break
                yield unread[place + 5 : end]
                place = end
            unread = unread[place:]
    raise EOFError("the stream ended")


def _data(connection: socket.socket) -> Iterator[bytes]:
    """What comes in DATA frames, until the stream ends."""
    with connection.makefile("rb") as frames:
        while len(head := frames.read(9)) == 9:
            kind, flags = head[3], head[4]
            payload = frames.read(int.from_bytes(head[:3], "big"))
            if kind == DATA:
                yield payload
            elif kind in (SETTINGS, PING) and not flags & ACK:
                connection.sendall(frame(kind, payload if kind == PING else b"", flags=ACK))
            if kind in (DATA, HEADERS) and flags & END_STREAM:
                return
