"""The plain values of scenario files: YAML read strictly, and readers that say what a value should have been.

A reader takes what YAML gave and returns what it means, or raises ValueError in words for whoever wrote the file.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TypeAlias

import yaml

from broker.toml_reader import did_you_mean

Reader: TypeAlias = Callable[[object], Any]

DAY: Final = datetime(2026, 11, 24, tzinfo=UTC)
"""The first day of every scenario."""

_INSTANT: Final = re.compile(r"(~?)(?:day ([1-9][0-9]*) )?([0-2][0-9]):([0-5][0-9])(?::([0-5][0-9]))?")
_LENGTH: Final = re.compile(r"(?:([0-9]+)d)?(?:([0-9]+)h)?(?:([0-9]+)m)?(?:([0-9]+)s)?")


# YAML


class Located(dict[Any, Any]):
    """A mapping that knows its line."""

    line = 0


class _Loader(yaml.SafeLoader):
    """YAML with the plain values of its version 1.2: 13:30 is a text and so is off; a key stands once."""


_Loader.yaml_implicit_resolvers = {}
for _tag, _form, _first in (
    ("bool", r"true|false", "tf"),
    ("null", r"~|null|", "~n"),
    ("int", r"-?[0-9]+", "-0123456789"),
    ("float", r"-?[0-9]+\.[0-9]+", "-0123456789"),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_form})$"), [*_first, ""])


def _mapping(loader: _Loader, node: yaml.MappingNode) -> Located:
    made = Located()
    made.line = node.start_mark.line + 1
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, Hashable) or key in made:
            raise yaml.MarkedYAMLError(problem=f"{key!r} is there twice", problem_mark=key_node.start_mark)
        made[key] = loader.construct_object(value_node, deep=True)
    return made


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)


def parse(text: str) -> Any:
    """The document. Raises yaml.MarkedYAMLError."""
    return yaml.load(text, _Loader)


# Readers


@dataclass(frozen=True, slots=True, kw_only=True)
class Instant:
    """An instant; `roughly`: within a second of it."""

    time: datetime
    roughly: bool = False


def instant(value: object) -> Instant:
    """An instant of the scenario, or "~" and one."""
    found = _INSTANT.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        raise ValueError(f'{value!r} is no instant such as 13:30, 13:30:05 or "day 2 09:00"')
    hours, minutes, seconds = (int(part or 0) for part in found.groups()[2:])
    since = timedelta(days=int(found[2] or 1) - 1, hours=hours, minutes=minutes, seconds=seconds)
    return Instant(time=DAY + since, roughly=bool(found[1]))


def exactly(value: object) -> datetime:
    """An instant without a "~"."""
    read = instant(value)
    if read.roughly:
        raise ValueError(f"{value!r} must be exact")
    return read.time


def perhaps(value: object) -> Instant | None:
    """An instant, or "none"."""
    return None if value == "none" else instant(value)


def length(value: object) -> timedelta:
    """A length of time."""
    found = _LENGTH.fullmatch(value) if isinstance(value, str) and value else None
    if found is None:
        raise ValueError(f"{value!r} is no length of time such as 1h, 90s or 1d12h")
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)


def kind(of: type[Any], form: str) -> Reader:
    """Values of one type."""

    def read(value: object) -> Any:
        if not isinstance(value, of) or (of is int and isinstance(value, bool)):
            raise ValueError(f"{value!r} is not {form}")
        return value

    return read


text, whole, flag = kind(str, "a text"), kind(int, "a whole number"), kind(bool, "true or false")


def many(read: Reader) -> Callable[[object], tuple[Any, ...]]:
    """Lists."""

    def each(value: object) -> tuple[Any, ...]:
        if not isinstance(value, list):
            raise ValueError(f"{value!r} is no list")
        return tuple(map(read, value))

    return each


def named(read: Reader) -> Callable[[object], dict[str, Any]]:
    """Mappings with any keys."""

    def each(value: object) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise ValueError(f"{value!r} is no mapping")
        return {str(key): read(one) for key, one in value.items()}

    return each


def one_of(prefix: str, names: Iterable[str]) -> Callable[[object], str]:
    """Names of an enum of the API, without their prefix."""
    known = {name.removeprefix(prefix) for name in names}

    def read(value: object) -> str:
        if not isinstance(value, str) or value not in known:
            raise ValueError(f"{value!r} is none of {', '.join(sorted(known))}")
        return value

    return read


def keyed(keys: Mapping[str, Reader]) -> Callable[[object], dict[str, Any]]:
    """Mappings of known keys."""

    def read(value: object) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise ValueError(f"{value!r} is no mapping")
        values, problems = read_keys(value, keys)
        if problems:
            raise ValueError("; ".join(problems))
        return values

    return read


def read_keys(given: Mapping[Any, Any], keys: Mapping[str, Reader]) -> tuple[dict[str, Any], list[str]]:
    """The values of a mapping, and everything that is wrong with it."""
    values: dict[str, Any] = {}
    problems = []
    for key, value in given.items():
        if key not in keys:
            problems.append(f"{key}: no such key here{did_you_mean(str(key), keys)}")
            continue
        try:
            values[key] = keys[key](value)
        except ValueError as error:
            problems.append(f"{key}: {error}")
    return values, problems
