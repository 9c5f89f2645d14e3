"""Typed values for `--param NS:NAME=VALUE`: a pool publishes which kind each parameter takes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import click
from workspacebroker.v1.resources_pb2 import ParameterSpec, ParameterValue

from clients.amounts import parse_duration, parse_instant
from clients.cli.session import Session
from clients.names import pool_name, short_name

_BOOLS = {
    **dict.fromkeys(("true", "yes", "on", "1"), True),
    **dict.fromkeys(("false", "no", "off", "0"), False),
}


def _bool(text: str) -> bool:
    if text.lower() not in _BOOLS:
        raise ValueError(f"{text!r} is neither true nor false")
    return _BOOLS[text.lower()]


def typed_value(text: str, kind: int) -> ParameterValue:
    """The value that `text` spells; raises ValueError."""
    value = ParameterValue()
    match kind:
        case ParameterSpec.KIND_INT:
            value.int_value = int(text)
        case ParameterSpec.KIND_DOUBLE:
            value.double_value = float(text)
        case ParameterSpec.KIND_BOOL:
            value.bool_value = _bool(text)
        case ParameterSpec.KIND_DURATION:
            value.duration_value.FromTimedelta(parse_duration(text))
        case ParameterSpec.KIND_TIMESTAMP:
            value.timestamp_value.FromDatetime(parse_instant(text))
        case ParameterSpec.KIND_STRING_LIST:
            value.string_list.values.extend(part.strip() for part in text.split(",") if part.strip())
        case _:
            value.string_value = text
    return value


def typed_parameters(session: Session, given: Iterable[tuple[str, str]], pool: str) -> Mapping[str, ParameterValue]:
    """The values of --param, by the specs of the pool or, where none is named, of all pools."""
    pairs = dict(given)
    if not pairs:
        return {}
    client = session.client
    pools = [client.pool(pool_name(pool))] if pool else list(client.pools())
    specs: dict[str, dict[int, str]] = {}  # key -> kind -> a pool that takes it so
    for each in pools:
        for spec in each.parameter_specs:
            specs.setdefault(spec.key, {})[spec.kind] = short_name(each.name)
    return {key: _typed(key, text, specs) for key, text in pairs.items()}


def _typed(key: str, text: str, specs: Mapping[str, Mapping[int, str]]) -> ParameterValue:
    def refuse(why: Any) -> click.BadParameter:
        return click.BadParameter(f"{key}: {why}", param_hint="--param")

    if key not in specs:
        raise refuse(f"no pool knows it; known are {', '.join(sorted(specs)) or 'none'}")
    kinds = specs[key]
    if len(kinds) > 1:
        raise refuse(f"pools {', '.join(sorted(kinds.values()))} take different kinds; name one with --pool")
    try:
        return typed_value(text, next(iter(kinds)))
    except (ValueError, OverflowError) as error:
        raise refuse(error) from None
