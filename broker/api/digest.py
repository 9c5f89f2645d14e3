"""What makes two requests the same: a hash of all that was sent.

Protobuf's deterministic form sorts map keys, leaves out fields that have their default, and keeps unknown
fields; the version in front lets a later release hash another way without taking an old id for a reused one.
An empty message and an unset one are told apart: for a Timestamp or a parameter they mean different things.
"""

from __future__ import annotations

from hashlib import sha256

from google.protobuf.message import Message

VERSION = "v1"


def request_digest(message: Message) -> str:
    """The hash of a request without its request_id, wherever that stands (its own field or its target's)."""
    return f"{VERSION}:{sha256(canonical(message, 'request_id')).hexdigest()}"


def canonical(message: Message, *without: str) -> bytes:
    """Type and content of a message, less the named fields of itself and of its target."""
    copy = type(message)()
    copy.CopyFrom(message)
    fields = copy.DESCRIPTOR.fields_by_name
    for name in without:
        if name in fields:
            copy.ClearField(name)
        elif "target" in fields and copy.HasField("target"):
            copy.target.ClearField(name)  # type: ignore[attr-defined]
    return copy.DESCRIPTOR.full_name.encode() + b"\0" + copy.SerializeToString(deterministic=True)
