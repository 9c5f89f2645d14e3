"""The pieces every table is made of: words for enums, local times, amounts, and text safe to print."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC
from typing import Any

from google.protobuf.message import Message
from rich.table import Table

from clients.amounts import format_amount, format_duration, format_instant

KNOWN_AMOUNTS = ("cpu", "memory", "disk")


def clean(text: str, keep: str = "") -> str:
    """Text of strangers' without control characters: a name must not move the cursor or clear the screen."""
    return "".join(c if c.isprintable() or c in keep else "?" for c in text)


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


def table(*columns: str) -> Table:
    """A plain table: no frame, nothing cut unless the terminal is too narrow."""
    shown = Table(box=None, pad_edge=False, header_style="bold", show_edge=False)
    for column in columns:
        shown.add_column(column, overflow="fold")
    return shown


def amounts(quantities: Mapping[str, int]) -> str:
    """All amounts on one line, the known ones first."""
    keys = [k for k in KNOWN_AMOUNTS if k in quantities]
    keys += sorted(k for k in quantities if k not in KNOWN_AMOUNTS)
    return ", ".join(f"{clean(k)} {format_amount(k, quantities[k])}" for k in keys)


def share(resource: str, part: Mapping[str, int], whole: Mapping[str, int]) -> str:
    """part/whole of one resource; empty where there is none."""
    if resource not in whole and resource not in part:
        return ""
    return "/".join(format_amount(resource, side.get(resource, 0)) for side in (part, whole))


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
