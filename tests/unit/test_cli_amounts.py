"""Amounts as people write them: exact, or refused with what would do."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clients.amounts import (
    format_amount,
    format_cpu,
    format_duration,
    format_instant,
    format_mib,
    parse_amount,
    parse_cpu,
    parse_duration,
    parse_instant,
    parse_mib,
)

INT64 = st.integers(min_value=0, max_value=2**63 - 1)
NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


@given(INT64)
def test_cpu_round_trip(milli: int) -> None:
    assert parse_cpu(format_cpu(milli)) == milli
    assert parse_cpu(f"{milli}m") == milli


@given(INT64)
def test_size_round_trip(mib: int) -> None:
    assert parse_mib(format_mib(mib)) == mib
    assert parse_mib(str(mib)) == mib


@given(st.sampled_from(["cpu", "memory", "disk", "example.com/gpu"]), INT64)
def test_amount_round_trip(resource: str, amount: int) -> None:
    assert parse_amount(resource, format_amount(resource, amount)) == amount


@given(st.timedeltas(min_value=timedelta(0)))
def test_duration_round_trip(span: timedelta) -> None:
    assert parse_duration(format_duration(span)) == span


@given(st.datetimes(min_value=datetime(1980, 1, 1), max_value=datetime(2200, 1, 1)))
def test_instant_round_trip(moment: datetime) -> None:
    whole = moment.replace(microsecond=0, tzinfo=UTC)
    assert parse_instant(format_instant(whole)) == whole


@given(st.text(max_size=12))
def test_any_text_is_read_or_refused(text: str) -> None:
    for parse in (parse_cpu, parse_mib, parse_duration, parse_instant):
        with contextlib.suppress(ValueError):
            parse(text)


@pytest.mark.parametrize(
    ("text", "mib"),
    [
        ("4GiB", 4096),
        ("512MiB", 512),
        ("512", 512),
        (".5GiB", 512),
        ("10GB", 9537),
        ("1 tib", 2**20),
        ("1B", 1),
    ],
)
def test_sizes(text: str, mib: int) -> None:
    assert parse_mib(text) == mib


@pytest.mark.parametrize(("text", "milli"), [("2", 2000), ("500m", 500), ("0.5", 500), (".001", 1), ("1.5m", None)])
def test_cpus(text: str, milli: int | None) -> None:
    if milli is None:
        with pytest.raises(ValueError, match="finer than a milli-core"):
            parse_cpu(text)
    else:
        assert parse_cpu(text) == milli


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("15m", 900), ("2h", 7200), (".5h", 1800), ("1d", 86400), ("1d12h", 129600), ("1.5m", 90)],
)
def test_durations(text: str, seconds: int) -> None:
    assert parse_duration(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize("text", ["", "90", "h", "1h1h", "-1h", "1y", "1h30", "0.0000001s"])
def test_durations_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"duration|microsecond"):
        parse_duration(text)


@pytest.mark.parametrize(("text", "shown"), [("1536", "1.5GiB"), ("1000", "1000MiB"), ("4096", "4GiB"), ("0", "0MiB")])
def test_sizes_shown_exactly(text: str, shown: str) -> None:
    assert format_mib(parse_mib(text)) == shown


def test_instants() -> None:
    assert parse_instant("now", NOW) == NOW
    assert parse_instant("+2h", NOW) == NOW + timedelta(hours=2)
    assert parse_instant("2026-05-01T14:00Z") == datetime(2026, 5, 1, 14, tzinfo=UTC)
    assert parse_instant("2026-05-01T14:00+02:00") == datetime(2026, 5, 1, 12, tzinfo=UTC)
    assert parse_instant("2026-05-01T14:00") == datetime(2026, 5, 1, 14).astimezone(UTC)
    with pytest.raises(ValueError, match="local"):
        parse_instant("tomorrow")
