"""Collects what is wrong with the fields of one request, so that all of it is answered at once.

Each check names the field by its path in the request, says what would do, and hands back a value that is
safe to go on with; nothing raises before `check`. What is shown of a caller's text is cut, because a
violation travels in a trailer: a name of 10 MB makes a message of a line. It knows kinds of fields (text,
id, number, enum, instant), not the messages they stand in.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from itertools import islice
from typing import TypeVar

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from broker.api import times
from broker.api.limits import LIMITS, Limits
from broker.core.errors import FieldReason, FieldsInvalid, FieldViolation

T = TypeVar("T")

IDENTIFIER = re.compile(r"[a-z](?:[a-z0-9-]{0,61}[a-z0-9])?")
IDENTIFIER_FORM = "1 to 63 of a-z, 0-9 and '-', a letter first and no '-' last"
PARAMETER_KEY = re.compile(r"[A-Za-z][A-Za-z0-9._-]{0,62}:[A-Za-z0-9][A-Za-z0-9._/-]{0,126}")
PARAMETER_FORM = '"namespace:name" of letters, digits, ".", "_" and "-"'


def shown(text: str, longest: int = 64) -> str:
    """The text in quotes, cut and escaped so that it fits on a line."""
    cut = text[:longest]
    quoted = json.dumps(cut, ensure_ascii=not cut.isprintable())
    return quoted if len(text) <= longest else f'{quoted[:-1]}…"'


def keyed(path: str, key: str) -> str:
    """The path of one entry of a map."""
    return f"{path}[{shown(key)}]"


def nearest(wrong: str, known: Iterable[str]) -> str:
    """'; did you mean "x"?' where a known word is near, else nothing."""
    near = difflib.get_close_matches(wrong[:128], list(known), n=1)
    return f"; did you mean {shown(near[0])}?" if near else ""


class Problems:
    """The violations found so far."""

    def __init__(self, limits: Limits = LIMITS) -> None:
        self.limits = limits
        self.found: list[FieldViolation] = []

    def add(self, path: str, reason: FieldReason, message: str) -> None:
        """Notes one violation."""
        self.found.append(FieldViolation(path=path, reason=reason, message=message))

    def check(self) -> None:
        """Raises FieldsInvalid with all that was found, if anything was."""
        if self.found:
            raise FieldsInvalid(self.found)

    def attempt(self, parse: Callable[[str, str], T], text: str, path: str, instead: T) -> T:
        """What `parse(text, path)` answers, or `instead` with its violations noted."""
        try:
            return parse(text, path)
        except FieldsInvalid as error:
            self.found.extend(error.violations)
            return instead

    def required(self, path: str, message: str) -> None:
        """Notes that a field is missing."""
        self.add(path, FieldReason.REQUIRED, message)

    def text(self, path: str, value: str, longest: int, *, needed: bool = False, lines: bool = False) -> str:
        """A printable text of bounded length; `lines` allows line ends and tabs, too."""
        if not value:
            if needed:
                self.required(path, f"is missing; 1 to {longest} printable characters")
        elif len(value) > longest:
            self.add(path, FieldReason.TOO_LONG, f"has {len(value)} characters; at most {longest}")
            return ""
        elif not value.isprintable():
            for at, character in enumerate(value):
                if not (character.isprintable() or (lines and character in "\n\r\t")):
                    self.add(
                        path,
                        FieldReason.BAD_CHARACTERS,
                        f"character {at} is U+{ord(character):04X}; only printable characters",
                    )
                    return ""
        return value

    def name(self, path: str, value: str, *, needed: bool = False) -> str:
        """A name as a backend or a site gives it."""
        return self.text(path, value, self.limits.name, needed=needed)

    def identifier(self, path: str, value: str, *, needed: bool = False) -> str:
        """An id of the broker's own form."""
        if not value:
            if needed:
                self.required(path, f"is missing; {IDENTIFIER_FORM}")
        elif len(value) > 63:
            self.add(path, FieldReason.TOO_LONG, f"has {len(value)} characters; {IDENTIFIER_FORM}")
            return ""
        elif not IDENTIFIER.fullmatch(value):
            self.add(path, FieldReason.BAD_CHARACTERS, f"{shown(value)} is no id: {IDENTIFIER_FORM}")
            return ""
        return value

    def token(self, path: str, value: str) -> str:
        """A request id or an etag: printable ASCII, or none."""
        if len(value) > self.limits.request_id:
            self.add(
                path,
                FieldReason.TOO_LONG,
                f"has {len(value)} characters; 1 to {self.limits.request_id} printable ASCII ones",
            )
        elif not (value.isascii() and value.isprintable()):
            self.add(path, FieldReason.BAD_CHARACTERS, "only printable ASCII characters")
        return value

    def parameter_key(self, path: str, value: str) -> str:
        """A parameter's key."""
        if not PARAMETER_KEY.fullmatch(value):
            long = len(value) > 190
            self.add(
                path,
                FieldReason.TOO_LONG if long else FieldReason.BAD_CHARACTERS,
                f"{shown(value)} is no key: {PARAMETER_FORM}",
            )
        return value

    def whole(self, path: str, value: int, low: int, high: int, *, needed: bool = False) -> int:
        """A number within [low, high]; with `needed`, 0 counts as missing."""
        if needed and value == 0:
            self.required(path, f"is missing or 0; {low} to {high}")
        elif not low <= value <= high:
            self.add(path, FieldReason.OUT_OF_RANGE, f"is {value}; {low} to {high}")
        else:
            return value
        return low

    def choice(self, path: str, number: int, table: Mapping[int, T], instead: T) -> T:
        """What an enum's number stands for."""
        try:
            return table[number]
        except KeyError:
            self.add(path, FieldReason.UNKNOWN_VALUE, f"{number} is not a value that can be asked for here")
            return instead

    def instant(self, path: str, value: Timestamp, now: datetime) -> datetime | None:
        """An instant, not absurdly far away."""
        at = times.instant(value)
        if at is None or abs(at - now) > self.limits.horizon:
            self.add(
                path,
                FieldReason.OUT_OF_RANGE,
                f"{value.seconds} s and {value.nanos} ns after 1970 is no instant within "
                f"{self.limits.horizon.days} days of now",
            )
            return None
        return at

    def length(self, path: str, value: Duration, *, zero: bool = False) -> timedelta | None:
        """A positive length of time; with `zero`, none at all will do."""
        given = times.length(value)
        if given is None or given < timedelta(0) or given > self.limits.horizon or not (given or zero):
            self.add(
                path,
                FieldReason.OUT_OF_RANGE,
                f"{value.seconds} s and {value.nanos} ns is no length "
                f"{'from 0' if zero else 'above 0'} up to {self.limits.horizon.days} days",
            )
            return None
        return given

    def few(self, path: str, values: Sequence[T], most: int, what: str) -> Sequence[T]:
        """The values, at most so many of them: those past the bound are counted, not looked at."""
        if len(values) > most:
            self.add(path, FieldReason.TOO_LONG, f"has {len(values)} {what}; at most {most}")
            return values[:most]
        return values

    def few_keys(self, path: str, keys: Mapping[str, T], most: int, what: str) -> list[str]:
        """The keys of a map in order (protobuf gives none), at most so many of them."""
        if len(keys) > most:
            self.add(path, FieldReason.TOO_LONG, f"has {len(keys)} {what}; at most {most}")
            return sorted(islice(keys, most))
        return sorted(keys)

    def distinct(self, path: str, value: str, seen: dict[str, str]) -> None:
        """Notes a value that an earlier field (`seen`: value -> path) has, too."""
        first = seen.setdefault(value, path)
        if first != path:
            self.add(path, FieldReason.DUPLICATE, f"{shown(value)} is the value of {first}, too")

    def labels(self, path: str, labels: Mapping[str, str]) -> dict[str, str]:
        """A map of labels, or a selector by them."""
        limits = self.limits
        kept = {}
        for key in self.few_keys(path, labels, limits.labels, "labels"):
            value = labels[key]
            short = 0 < len(key) <= limits.label_key and len(value) <= limits.label_value
            if short and key.isprintable() and value.isprintable():
                kept[key] = value
                continue
            at = keyed(path, key)
            self.text(at, key, limits.label_key, needed=True)
            kept[key] = self.text(at, value, limits.label_value)
        return kept
