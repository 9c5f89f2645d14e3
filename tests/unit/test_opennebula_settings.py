"""The settings of a pool: every bad key is named, all at once, and nothing secret is shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from backends.base import BackendContext, TransientBackendError
from backends.opennebula import adapter, settings
from backends.opennebula.rpc import Session
from tests.support.opennebula_pool import BROKER, HandClock

LEAST = {"endpoint": "http://one.example.org:2633/RPC2", "session": "oneadmin:secret"}


def problems(**table: object) -> dict[str, str]:
    return {problem.key: problem.message for problem in adapter.check(table)}


def test_the_least_and_its_defaults() -> None:
    assert problems(**LEAST) == {}
    found, _ = settings.read(LEAST)
    assert (found.max_in_flight, found.call_timeout, found.page_size) == (8, 30.0, 1000)
    assert (found.verify, found.datastore, found.shared_storage) == (True, -1, None)
    assert "secret" not in repr(found)


def test_everything() -> None:
    table = {
        "endpoint": "https://one.example.org/RPC2",
        "session_file": "one_auth",
        "cluster": 100,
        "images": {"debian": "Debian 12", "small": 7},
        "networks": {"lan": "private"},
        "max_in_flight": 4,
        "call_timeout": "1.5m",
        "page_size": 50,
        "ca_file": "ca.pem",
        "verify": True,
        "proxy": "http://proxy:3128",
        "datastore": 0,
        "shared_storage": False,
        "max_response_bytes": 1_000_000,
    }
    found, bad = settings.read(table)
    assert bad == []
    assert (found.cluster, found.images["small"], found.call_timeout) == ("100", "7", 90.0)
    assert set(table) | {"session"} == set(settings._KEYS)


BAD: list[tuple[str, object]] = [
    ("endpoint", "one.example.org"),
    ("endpoint", "ftp://one"),
    ("endpoint", "http://:80/"),
    ("endpoint", "http://one:port/"),
    ("endpoint", 7),
    ("session", "nocolon"),
    ("session", ""),
    ("cluster", ""),
    ("cluster", True),
    ("cluster", -1),
    ("images", "os"),
    ("images", {"os": []}),
    ("networks", {"lan": ""}),
    ("max_in_flight", 0),
    ("max_in_flight", "8"),
    ("max_in_flight", True),
    ("call_timeout", 30),
    ("call_timeout", "30"),
    ("call_timeout", "0s"),
    ("call_timeout", "-1s"),
    ("page_size", 0),
    ("ca_file", 1),
    ("verify", "yes"),
    ("proxy", "proxy:3128"),
    ("datastore", -1),
    ("shared_storage", 1),
    ("max_response_bytes", 10),
    ("no_such_key", 1),
]


@pytest.mark.parametrize(("key", "value"), BAD)
def test_a_bad_key_is_named(key: str, value: object) -> None:
    assert list(problems(**{**LEAST, key: value})) == [key]


def test_all_at_once() -> None:
    found = problems(max_in_flight=0, wat=1, verify=2)
    assert set(found) == {"max_in_flight", "wat", "verify", "endpoint", "session_file"}
    assert "endpoint" in found["wat"]  # it lists the known ones


def test_exactly_one_session() -> None:
    assert list(problems(endpoint=LEAST["endpoint"])) == ["session_file"]
    assert list(problems(**LEAST, session_file="x")) == ["session_file"]


def test_a_ca_file_that_would_not_be_used() -> None:
    assert list(problems(**LEAST, ca_file="ca.pem", verify=False)) == ["ca_file"]


@pytest.mark.parametrize(
    ("text", "seconds"), [("250ms", 0.25), ("30s", 30), ("2m", 120), ("1.5h", 5400), ("1d", 86400)]
)
def test_durations(text: str, seconds: float) -> None:
    assert settings.read({**LEAST, "call_timeout": text})[0].call_timeout == seconds


async def test_the_session_file_is_read_again_after_a_refusal(tmp_path: Path) -> None:
    file = tmp_path / "one_auth"
    session = Session("", file)
    with pytest.raises(TransientBackendError, match="one_auth"):
        await session.get()
    file.write_text("\n")
    with pytest.raises(TransientBackendError, match="empty"):
        await session.get()
    file.write_text("oneadmin:old\n")
    assert await session.get() == "oneadmin:old"
    file.write_text("oneadmin:new\n")
    assert await session.get() == "oneadmin:old"
    session.forget()
    assert await session.get() == "oneadmin:new"
    given = Session("oneadmin:given", None)
    given.forget()
    assert await given.get() == "oneadmin:given"


async def test_a_ca_file_that_cannot_be_read(tmp_path: Path) -> None:
    context = BackendContext(pool="one", broker_id=BROKER, clock=HandClock(), base_directory=str(tmp_path))
    backend = adapter.create({**LEAST, "ca_file": "missing.pem"}, context)
    with pytest.raises(TransientBackendError, match=r"missing\.pem"):
        await backend.open()
    await backend.close()
