"""Instants and lengths of time: protobuf's seconds and nanoseconds against the broker's whole microseconds.

Exact in both directions; finer digits are cut. A protobuf value outside its own documented range is None here
and no exception: whoever reads a request names the field.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
DAY = 86_400
FIRST_SECOND = -62_135_596_800  # 0001-01-01T00:00:00Z
LAST_SECOND = 253_402_300_799  # 9999-12-31T23:59:59Z
LONGEST = 315_576_000_000  # seconds of a protobuf Duration, about 10,000 years
BILLION = 1_000_000_000


def timestamp(at: datetime) -> Timestamp:
    """The instant as protobuf has it."""
    since = at - EPOCH
    return Timestamp(seconds=since.days * DAY + since.seconds, nanos=since.microseconds * 1000)


def fill(shown: Timestamp, at: datetime) -> None:
    """Writes the instant into a message that is there."""
    since = at - EPOCH
    shown.seconds = since.days * DAY + since.seconds
    shown.nanos = since.microseconds * 1000


def optional_timestamp(at: datetime | None) -> Timestamp | None:
    """The same, where there may be none; a message is built with None as with nothing."""
    return None if at is None else timestamp(at)


def duration(length: timedelta) -> Duration:
    """The length as protobuf has it: seconds and nanoseconds bear the same sign."""
    micros = length // timedelta(microseconds=1)
    seconds, rest = divmod(abs(micros), 1_000_000)
    sign = -1 if micros < 0 else 1
    return Duration(seconds=sign * seconds, nanos=sign * rest * 1000)


def optional_duration(length: timedelta | None) -> Duration | None:
    """The same, where there may be none."""
    return None if length is None else duration(length)


def instant(value: Timestamp) -> datetime | None:
    """The instant cut to microseconds, or None where protobuf's range is left."""
    if not (FIRST_SECOND <= value.seconds <= LAST_SECOND and 0 <= value.nanos < BILLION):
        return None
    return EPOCH + timedelta(seconds=value.seconds, microseconds=value.nanos // 1000)


def length(value: Duration) -> timedelta | None:
    """The length cut to microseconds (towards zero), or None where protobuf's range is left."""
    seconds, nanos = value.seconds, value.nanos
    if abs(seconds) > LONGEST or abs(nanos) >= BILLION or seconds * nanos < 0:
        return None
    micros = abs(nanos) // 1000
    return timedelta(seconds=seconds, microseconds=-micros if nanos < 0 else micros)


def rfc3339(at: datetime) -> str:
    """The instant as text, in UTC with a Z."""
    return at.astimezone(UTC).isoformat().replace("+00:00", "Z")
