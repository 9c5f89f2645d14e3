"""The settings of an OpenNebula pool: from a TOML table to one frozen value, with every bad key named at
once.

Invariant: a `Settings` that came out of `read` without problems is usable as it stands. It touches no file
and no network; whether the session is any good, the first call tells.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, cast
from urllib.parse import urlsplit

from backends.base import SettingProblem

_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How to reach a front-end and which part of it is the pool. Times in seconds."""

    endpoint: str = ""
    session: str = field(default="", repr=False)
    session_file: str = ""
    cluster: str = ""
    images: Mapping[str, str] = field(default_factory=dict)
    networks: Mapping[str, str] = field(default_factory=dict)
    max_in_flight: int = 8
    call_timeout: float = 30.0
    page_size: int = 1000
    ca_file: str = ""
    verify: bool = True
    proxy: str = ""
    datastore: int = -1
    shared_storage: bool | None = None
    max_response_bytes: int = 64 * 1024 * 1024


def _text(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError("text is wanted, not empty")
    return value


def _name(value: object) -> str:
    """A name or an id."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return str(value)
    return _text(value)


def _url(value: object) -> str:
    text = _text(value)
    try:
        parts = urlsplit(text)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    if not good:
        raise ValueError(f'an http or https URL is wanted, such as "http://one.example.org:2633/RPC2", not "{text}"')
    return text


def _session(value: object) -> str:
    text = _text(value)
    if ":" not in text:
        raise ValueError('"user:password" is wanted')
    return text


def _table(value: object) -> Mapping[str, str]:
    if not isinstance(value, Mapping):
        raise ValueError("a table of the broker's names to OpenNebula names or ids is wanted")
    return {str(key): _name(entry) for key, entry in value.items()}


def _bool(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError("true or false is wanted")
    return value


def _whole(least: int, most: int) -> Callable[[object], int]:
    def convert(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise ValueError(f"a whole number from {least} to {most} is wanted")
        return value

    return convert


def _duration(value: object) -> float:
    match = _DURATION.fullmatch(value) if isinstance(value, str) else None
    if match is None or float(match[1]) <= 0:
        raise ValueError('a duration is wanted, such as "30s", "2m" or "1.5h"')
    return float(match[1]) * _UNITS[match[2]]


_KEYS: Final[Mapping[str, Callable[[object], object]]] = {
    "endpoint": _url,
    "session": _session,
    "session_file": _text,
    "cluster": _name,
    "images": _table,
    "networks": _table,
    "max_in_flight": _whole(1, 128),
    "call_timeout": _duration,
    "page_size": _whole(1, 100_000),
    "ca_file": _text,
    "verify": _bool,
    "proxy": _url,
    "datastore": _whole(0, 2**31 - 1),
    "shared_storage": _bool,
    "max_response_bytes": _whole(64 * 1024, 2**31 - 1),
}


def read(table: Mapping[str, object]) -> tuple[Settings, list[SettingProblem]]:
    """The settings in a table and everything that is wrong with it; what is wrong has its default."""
    problems: list[SettingProblem] = []
    values: dict[str, object] = {}
    for key, value in table.items():
        convert = _KEYS.get(key)
        if convert is None:
            known = ", ".join(sorted(_KEYS))
            problems.append(SettingProblem(key=key, message=f"no such setting; there are: {known}"))
            continue
        try:
            values[key] = convert(value)
        except ValueError as error:
            problems.append(SettingProblem(key=key, message=str(error)))
    if "endpoint" not in table:
        problems.append(SettingProblem(key="endpoint", message="is required"))
    if ("session" in table) == ("session_file" in table):
        problems.append(
            SettingProblem(key="session_file", message="exactly one of session and session_file is required")
        )
    if "ca_file" in table and table.get("verify") is False:
        problems.append(SettingProblem(key="ca_file", message="is of no use with verify = false"))
    return Settings(**cast("dict[str, str]", values)), problems  # type: ignore[arg-type]
