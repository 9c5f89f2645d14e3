"""Reads tables of settings: a value as its key wants it, or a note of what is wrong with it.

A wrong key never ends the reading, so that an operator sees everything at once.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import TypeVar

from backends.base import AttributeValue, SettingProblem

_UNITS = {"ms": 0.001, "s": 1.0, "": 1.0, "m": 60.0, "h": 3600.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|)")
_T = TypeVar("_T")


def seconds(value: object) -> float:
    """A duration in seconds. Raises ValueError."""
    if isinstance(value, int | float) and not isinstance(value, bool) and value >= 0:
        return float(value)
    match = _DURATION.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        raise ValueError('a duration is a number of seconds or text such as "500ms", "2s", "1m"')
    return float(match[1]) * _UNITS[match[2]]


class Table:
    """Reads one table key by key; `end` names the keys that nobody read."""

    def __init__(self, value: object, path: str, problems: list[SettingProblem]) -> None:
        self.path = path
        self._problems = problems
        self._values: Mapping[str, object] = {}
        self._known: set[str] = set()
        if isinstance(value, Mapping):
            self._values = value
        else:
            problems.append(SettingProblem(key=path, message="must be a table"))

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def wrong(self, key: str, message: str) -> None:
        """Notes a problem with a key of this table."""
        self._problems.append(SettingProblem(key=f"{self.path}.{key}".strip("."), message=message))

    def get(self, key: str, default: _T, read: Callable[[object], _T]) -> _T:
        """The key's value as `read` makes it of what was written; the default where it lacks or is wrong."""
        self._known.add(key)
        if key not in self._values:
            return default
        try:
            return read(self._values[key])
        except ValueError as error:
            self.wrong(key, str(error))
            return default

    def tables(self, key: str) -> list[Table]:
        """A list of tables; a plain string stands for a table with that name."""
        values: list[object] = self.get(key, [], listed)
        path = f"{self.path}.{key}".strip(".")
        return [
            Table({"name": value} if isinstance(value, str) else value, f"{path}[{i}]", self._problems)
            for i, value in enumerate(values)
        ]

    def table(self, key: str) -> Table:
        """A table inside this one; empty where it lacks."""
        self._known.add(key)
        return Table(self._values.get(key, {}), f"{self.path}.{key}".strip("."), self._problems)

    def rest(self, read: Callable[[object], _T]) -> dict[str, _T]:
        """All keys of a table whose keys are free."""
        found = {}
        for key in self._values:
            value = self.get(key, None, read)
            if value is not None:
                found[key] = value
        return found

    def end(self) -> None:
        """Names every key that was never asked for."""
        for key in sorted(self._values.keys() - self._known):
            self.wrong(key, f"is not known here; known are: {', '.join(sorted(self._known))}")


def listed(value: object) -> list[object]:
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise ValueError("must be a list")
    return list(value)


def text(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError("must be text, not empty")
    return value


def flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError("must be true or false")
    return value


def whole(least: int) -> Callable[[object], int]:
    def read(value: object) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ValueError(f"must be a whole number, at least {least}")
        return value

    return read


def one_of(words: Sequence[str]) -> Callable[[object], str]:
    def read(value: object) -> str:
        if value not in words:
            raise ValueError(f'"{value}" is none of: {", ".join(words)}')
        return str(value)

    return read


def attribute(value: object) -> AttributeValue:
    if isinstance(value, str | int | float | bool):
        return value
    if isinstance(value, list | tuple) and all(isinstance(one, str) for one in value):
        return tuple(value)
    raise ValueError("must be text, a number, true or false, or a list of text")


def subnet(value: object) -> IPv4Network | IPv6Network:
    return ip_network(text(value))
