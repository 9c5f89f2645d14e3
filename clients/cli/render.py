"""The pieces tables are made of: words for enums, local times, amounts, and text safe to print."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

from clients.amounts import format_duration, format_instant, show_amount, show_instant, show_share

KNOWN_AMOUNTS = ("cpu", "memory", "disk")


def clean(text: str, keep: str = "") -> str:
    """Text of strangers' without control characters: a name must not move the cursor or clear the screen."""
    return "".join(c if c.isprintable() or c in keep else "?" for c in text)


def plain(message: Message) -> dict[str, Any]:
    """A message as JSON has it: every field that has a value or a default, so that 0, false and [] are there, too."""
    document: dict[str, Any] = MessageToDict(message, always_print_fields_with_no_presence=True)
    return document


def enum_word(message: Any, field: str) -> str:
    """The value of an enum field without its prefix; empty if unset, a number if this client is too old."""
    number = getattr(message, field)
    enum = message.DESCRIPTOR.fields_by_name[field].enum_type
    value = enum.values_by_number.get(number)
    if value is None:
        return str(number)
    prefix = enum.values_by_number[0].name.removesuffix("UNSPECIFIED")
    return value.name.removeprefix(prefix) if number else ""


def instant(message: Message, field: str) -> str:
    """A timestamp field in local time; empty if unset."""
    if not message.HasField(field):
        return ""
    return format_instant(getattr(message, field).ToDatetime(tzinfo=UTC))


def span(message: Message, field: str) -> str:
    """A duration field; empty if unset."""
    return format_duration(getattr(message, field).ToTimedelta()) if message.HasField(field) else ""


def moment(message: Message, field: str) -> datetime | None:
    """A timestamp field; None if unset."""
    if not message.HasField(field):
        return None
    found: datetime = getattr(message, field).ToDatetime(tzinfo=UTC)
    return found


def soon(when: datetime) -> str:
    """A time in a sentence: local, with its offset, without a date if it is today."""
    return show_instant(when, datetime.now(UTC))


def amounts(quantities: Mapping[str, int]) -> str:
    """All amounts on one line, the known ones first."""
    keys = [k for k in KNOWN_AMOUNTS if k in quantities]
    keys += sorted(k for k in quantities if k not in KNOWN_AMOUNTS)
    shown = [show_amount(k, quantities[k]) + ("" if k == "cpu" else f" {clean(k)}") for k in keys]
    return ", ".join(shown)


def share(resource: str, part: Mapping[str, int], whole: Mapping[str, int]) -> str:
    """part/whole of one resource; empty where there is none."""
    if resource not in whole and resource not in part:
        return ""
    return show_share(resource, part.get(resource, 0), whole.get(resource, 0))


def natural(name: str) -> list[tuple[int, str]]:
    """A key to sort names by, that has node-9 before node-10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def value_text(value: Any) -> str:
    """A ParameterValue as it would be typed."""
    kind = value.WhichOneof("kind")
    if kind is None:
        return ""
    if kind == "string_list":
        return clean(",".join(value.string_list.values))
    if kind == "duration_value":
        return span(value, kind)
    if kind == "timestamp_value":
        return instant(value, kind)
    plain = getattr(value, kind)
    return str(plain).lower() if isinstance(plain, bool) else clean(str(plain))
