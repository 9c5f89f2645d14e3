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
    rounded_up,
    show_about,
    show_amount,
    show_instant,
    show_share,
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


@pytest.mark.parametrize(
    ("resource", "amount", "exact", "about"),
    [
        ("cpu", 1000, "1 core", "1 core"),
        ("cpu", 1500, "1.5 cores", "1.5 cores"),
        ("memory", 4097, "4097 MiB", "4 GiB"),
        ("memory", 1023, "1023 MiB", "1023 MiB"),
        ("disk", 4796800, "4796800 MiB", "4.57 TiB"),
        ("disk", 16383, "16383 MiB", "15.9 GiB"),
        ("example.com/gpu", 2, "2", "2"),
    ],
)
def test_amounts_to_read(resource: str, amount: int, exact: str, about: str) -> None:
    assert (show_amount(resource, amount), show_about(resource, amount)) == (exact, about)


@given(st.integers(min_value=0, max_value=2**53))
def test_about_is_never_more_than_there_is_and_hardly_less(mib: int) -> None:
    read = parse_mib(show_about("memory", mib))  # which rounds up to a MiB
    assert mib * 0.99 - 1 <= read <= mib + 1


@pytest.mark.parametrize(
    ("resource", "part", "whole", "shown"),
    [
        ("cpu", 2500, 32000, "2.5/32"),
        ("memory", 0, 65536, "0/64 GiB"),
        ("memory", 512, 16384, "0.5/16 GiB"),
        ("disk", 1, 4796800, "1 MiB/4.57 TiB"),
        ("example.com/gpu", 1, 4, "1/4"),
    ],
)
def test_shares(resource: str, part: int, whole: int, shown: str) -> None:
    assert show_share(resource, part, whole) == shown


@pytest.mark.parametrize(("seconds", "shown"), [(0.2, "1s"), (90, "90s"), (119.1, "2m"), (7199.5, "2h"), (61, "61s")])
def test_waits_are_rounded_up(seconds: float, shown: str) -> None:
    assert rounded_up(timedelta(seconds=seconds)) == parse_duration(shown)


def test_instants_as_short_as_cannot_be_mistaken() -> None:
    local = NOW.astimezone()
    offset = local.isoformat()[-6:]
    assert show_instant(local, NOW) == f"{local:%H:%M:%S}{offset}"
    assert show_instant(datetime(2026, 3, 9, 12, tzinfo=UTC), NOW, offset=False).startswith("Mar 09 ")
    assert show_instant(datetime(2027, 3, 9, 12, tzinfo=UTC), NOW, offset=False).startswith("2027-03-09 ")
