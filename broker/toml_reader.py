"""Reads tables of a TOML document key by key and remembers everything that is wrong.

Each reader answers the value, or the default after noting a problem, so that one run names them all. Keys
nobody asked for are what `unread` finds. It knows kinds of values, not which keys there are: that is
config.py.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from types import MappingProxyType
from typing import Final, TypeVar

T = TypeVar("T")
Problem = tuple[str, str]
"""(path of the key, what is wrong with it)."""

_PART: Final = re.compile(r"([0-9]+\.?[0-9]*|\.[0-9]+)(ms|s|m|h|d|w)")
_SECONDS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
LONGEST: Final = timedelta(days=36_525)
DURATION_FORM: Final = 'a duration such as "90s", "15m", "1d12h" or a number of seconds'
_BARE: Final = re.compile(r"[A-Za-z0-9_-]+")


def parse_duration(text: str) -> float:
    """Seconds of "90s", "15m", ".5h", "1d12h". Raises ValueError."""
    seconds, at = 0.0, 0
    while at < len(text):
        part = _PART.match(text, at)
        if part is None:
            break
        seconds += float(part[1]) * _SECONDS[part[2]]
        at = part.end()
    if not text or at < len(text) or seconds > LONGEST.total_seconds():
        raise ValueError(f"{text!r} is not {DURATION_FORM}")
    return seconds


def did_you_mean(wrong: str, known: Iterable[str]) -> str:
    """'; did you mean x?' where a known key is near, else nothing."""
    near = difflib.get_close_matches(wrong, list(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""


def joined(path: str, key: str) -> str:
    """The path of a key in a table, as TOML would write it."""
    shown = key if _BARE.fullmatch(key) else f'"{key}"'
    return f"{path}.{shown}" if path else shown


class Table:
    """One table: its values, its path, and the problems of the whole document."""

    def __init__(self, values: Mapping[str, object], path: str, problems: list[Problem]) -> None:
        self.values = values
        self.path = path
        self.problems = problems
        self.read: list[str] = []

    def bad(self, key: str, message: str) -> None:
        """Notes a problem of one key."""
        self.problems.append((joined(self.path, key), message))

    def _value(self, key: str, form: str, *kinds: type[T]) -> T | None:
        """The value if it is of one of the kinds; bool, which Python takes for a number, is none."""
        self.read.append(key)
        value = self.values.get(key)
        if value is None:
            return None
        if isinstance(value, kinds) and not isinstance(value, bool):
            return value
        self.bad(key, f"{value!r} is not {form}")
        return None

    def text(self, key: str, default: str = "", *, longest: int = 256) -> str:
        """A printable text."""
        value = self._value(key, "a text in quotes", str)
        if value is None:
            return default
        if len(value) > longest or not value.isprintable():
            self.bad(key, f"takes at most {longest} printable characters")
            return default
        return value

    def choice(self, key: str, choices: Mapping[str, T], default: T) -> T:
        """One of a few words."""
        value = self._value(key, f"one of {', '.join(choices)}", str)
        if value is None:
            return default
        if value not in choices:
            self.bad(key, f"{value!r} is not one of {', '.join(choices)}{did_you_mean(value, choices)}")
            return default
        return choices[value]

    def whole(self, key: str, default: int, *, low: int = 0, high: int = 2**53) -> int:
        """A whole number within [low, high]."""
        value = self._value(key, "a whole number", int)
        if value is None:
            return default
        if not low <= value <= high:
            self.bad(key, f"is {value}; {low} to {high}")
            return default
        return value

    def factor(self, key: str, default: float, *, high: float = 1000.0) -> float:
        """A number above 0."""
        value = self._value(key, "a number", float, int)
        if value is None:
            return default
        if not 0 < value <= high:
            self.bad(key, f"is {value}; above 0, at most {high:g}")
            return default
        return float(value)

    def seconds(self, key: str, default: str, *, zero: bool = False) -> float:
        """A duration, in seconds; above 0 unless `zero`."""
        value = self._value(key, DURATION_FORM, str, int, float)
        fallback = parse_duration(default)
        try:
            given = parse_duration(value) if isinstance(value, str) else value
        except ValueError as error:
            self.bad(key, str(error))
            return fallback
        if not isinstance(given, (int, float)):
            return fallback  # it is missing, or named already
        most = LONGEST.total_seconds()
        if not 0 <= given <= most or not (given or zero):  # also where it is not a number
            self.bad(key, f"is {value}; {'0' if zero else 'above 0'} to {LONGEST.days} days")
            return fallback
        return float(given)

    def length(self, key: str, default: str) -> timedelta | None:
        """A duration, or None where "none" stands for it."""
        if self.values.get(key, default) == "none":
            self.read.append(key)
            return None
        return timedelta(seconds=self.seconds(key, default if default != "none" else "1s"))

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of texts."""
        value = self._value(key, "a list of texts", list)
        if value is None:
            return ()
        if not all(isinstance(each, str) and each for each in value):
            self.bad(key, "is not a list of texts")
            return ()
        return tuple(value)

    def table(self, key: str) -> Table:
        """A table below; an empty one where there is none."""
        value = self._value(key, "a table", dict)
        return Table(value or {}, joined(self.path, key), self.problems)

    def tables(self, key: str) -> dict[str, Table]:
        """A table whose every value is a table."""
        outer = self.table(key)
        return {name: outer.table(name) for name in outer.values}

    def each(self, key: str, read: Callable[[Table, str], T]) -> Mapping[str, T]:
        """A table whose every value is read alike: amounts, factors."""
        outer = self.table(key)
        return MappingProxyType({name: read(outer, name) for name in outer.values})

    def amounts(self, key: str, *, low: int = 0) -> Mapping[str, int]:
        """Amounts by resource."""
        return self.each(key, lambda table, name: table.whole(name, low, low=low))

    def unread(self) -> dict[str, object]:
        """What stands in the table and nobody asked for."""
        return {key: value for key, value in self.values.items() if key not in self.read}

    def finish(self) -> None:
        """Notes every key nobody asked for."""
        for key in self.unread():
            self.bad(key, f"is no key here{did_you_mean(key, self.read)}")
