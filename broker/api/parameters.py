"""Typed values, in and out: scheduler parameters and attributes, each of one of seven kinds.

Which keys and kinds a pool understands is asked of pools, later; here a value is only kept whole and bounded.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import cast

from workspacebroker.v1 import resources_pb2 as pb

from broker.api import times
from broker.api.fields import Problems, keyed, shown
from broker.core.errors import FieldReason
from broker.core.inventory import AttributeValue
from broker.core.model import TypedValue, ValueKind


def read_parameters(
    problems: Problems, given: Mapping[str, pb.ParameterValue], path: str, now: datetime
) -> dict[str, TypedValue]:
    """The parameters with their values."""
    found = {}
    for key in problems.few_keys(path, given, problems.limits.parameters, "parameters"):
        at = keyed(path, key)
        problems.parameter_key(at, key)
        value = _read_value(problems, given[key], at, now)
        if value is not None:
            found[key] = value
    return found


def read_optional(
    problems: Problems, keys: Sequence[str], parameters: Mapping[str, object], path: str
) -> tuple[str, ...]:
    """Keys a pool need not know; each is one of the parameters."""
    kept = problems.few(path, keys, problems.limits.parameters, "keys")
    seen: dict[str, str] = {}
    for index, key in enumerate(kept):
        at = f"{path}[{index}]"
        problems.distinct(at, key, seen)
        if key not in parameters:
            problems.add(at, FieldReason.UNKNOWN_VALUE, f"{shown(key)} is none of the request's parameters")
    return tuple(kept)


def _read_value(problems: Problems, message: pb.ParameterValue, path: str, now: datetime) -> TypedValue | None:
    limits = problems.limits
    match message.WhichOneof("kind"):
        case "string_value":
            text = problems.text(path, message.string_value, limits.parameter_text, lines=True)
            return TypedValue(kind=ValueKind.STRING, value=text)
        case "int_value":
            return TypedValue(kind=ValueKind.INT, value=message.int_value)
        case "double_value":
            if not math.isfinite(message.double_value):
                problems.add(path, FieldReason.OUT_OF_RANGE, f"{message.double_value} is not finite")
            return TypedValue(kind=ValueKind.DOUBLE, value=message.double_value)
        case "bool_value":
            return TypedValue(kind=ValueKind.BOOL, value=message.bool_value)
        case "duration_value":
            length = problems.length(path, message.duration_value, zero=True)
            if length is not None:
                return TypedValue(kind=ValueKind.DURATION, value=length.total_seconds())
        case "timestamp_value":
            at = problems.instant(path, message.timestamp_value, now)
            if at is not None:
                return TypedValue(kind=ValueKind.TIMESTAMP, value=times.rfc3339(at))
        case "string_list":
            values = problems.few(path, message.string_list.values, limits.parameter_list, "texts")
            texts = [problems.text(path, each, limits.parameter_text, lines=True) for each in values]
            return TypedValue(kind=ValueKind.STRING_LIST, value=tuple(texts))
        case _:
            problems.required(path, "has no value of a kind this broker knows")
    return None


def render_value(typed: TypedValue) -> pb.ParameterValue:
    """A parameter's value as a message."""
    value = typed.value
    match typed.kind:
        case ValueKind.INT:
            return pb.ParameterValue(int_value=cast(int, value))
        case ValueKind.DOUBLE:
            return pb.ParameterValue(double_value=cast(float, value))
        case ValueKind.DURATION:
            return pb.ParameterValue(duration_value=times.duration(timedelta(seconds=cast(float, value))))
        case ValueKind.TIMESTAMP:
            at = datetime.fromisoformat(cast(str, value))
            return pb.ParameterValue(timestamp_value=times.timestamp(at))
        case _:
            return render_attribute(value)


def render_attribute(value: AttributeValue) -> pb.ParameterValue:
    """A value whose kind is that of its Python type; bool comes before int, which it is, too."""
    if isinstance(value, str):
        return pb.ParameterValue(string_value=value)
    if isinstance(value, bool):
        return pb.ParameterValue(bool_value=value)
    if isinstance(value, int):
        return pb.ParameterValue(int_value=value)
    if isinstance(value, float):
        return pb.ParameterValue(double_value=value)
    return pb.ParameterValue(string_list=pb.StringList(values=value))
