"""Messages put together from the bytes of their parts, so that what is shown often is serialised once.

The wire format of protobuf lets a field follow another in any order, and a message of one field is that field's tag,
the length of its content and the content (protobuf.dev/programming-guides/encoding). A method may answer with bytes
instead of a message; unreadable.py, which stands before every method, lets them pass.
"""

from __future__ import annotations

from google.protobuf.message import Message

LENGTH_DELIMITED = 2


def embedded(number: int, content: bytes) -> bytes:
    """A field below 16 that holds a message."""
    length = len(content)
    if length < 128:
        return bytes((number << 3 | LENGTH_DELIMITED, length)) + content
    if length < 16_384:
        return bytes((number << 3 | LENGTH_DELIMITED, length & 127 | 128, length >> 7)) + content
    head = bytearray((number << 3 | LENGTH_DELIMITED,))
    while length >= 128:
        head.append(length & 127 | 128)
        length >>= 7
    head.append(length)
    return bytes(head) + content


def number_of(kind: type[Message], field: str) -> int:
    """The number of a message's field."""
    return int(kind.DESCRIPTOR.fields_by_name[field].number)
