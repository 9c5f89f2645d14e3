"""When and for how long: the terms of a lease, read from a request against the broker's own time.

A start up to a minute in the past means now, because clocks differ; what contradicts itself or lies in the
past is named with the broker's time. The pool's default and longest duration are not known here.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from workspacebroker.v1 import resources_pb2 as pb

from broker.api import times
from broker.api.enums import END_ACTIONS_IN
from broker.api.fields import Problems
from broker.api.offered import refuse_not_offered
from broker.core import wording
from broker.core.errors import FieldReason
from broker.core.model import EndAction, Terms


def read_terms(problems: Problems, message: pb.LeaseTerms, path: str, now: datetime) -> Terms:
    """The terms, with starts that have just gone by moved to `now`."""
    refuse_not_offered(problems, "terms", message, path)
    start = _start(problems, message, path, "start_time", now)
    earliest = _start(problems, message, path, "earliest_start_time", now)
    duration = read_duration(problems, message, path)
    deadline = None
    if message.HasField("deadline"):
        deadline = problems.instant(f"{path}.deadline", message.deadline, now)
    if message.HasField("start_time") and message.HasField("earliest_start_time"):
        problems.add(
            f"{path}.earliest_start_time",
            FieldReason.CONFLICT,
            "excludes start_time: an exact start or a window",
        )
    if message.HasField("start_time") and message.HasField("queue_until"):
        problems.add(f"{path}.queue_until", FieldReason.CONFLICT, "excludes start_time: an exact start does not wait")
    refuse_open_end(problems, message, path, "duration", "deadline")
    if deadline is not None and not message.open_ended:
        _window(problems, path, start or earliest, duration, deadline, now)
    return Terms(
        start_time=start,
        duration=duration,
        earliest_start_time=earliest,
        deadline=deadline,
        open_ended=message.open_ended,
        end_action=read_end_action(problems, message, path),
        queue_until=read_queue_until(problems, message, path, now),
        preemptible=message.preemptible,
        priority=message.priority,
    )


def read_queue_until(problems: Problems, message: pb.LeaseTerms, path: str, now: datetime) -> datetime | None:
    """Until when it may wait, or None where it may not."""
    if not message.HasField("queue_until"):
        return None
    at = problems.instant(f"{path}.queue_until", message.queue_until, now)
    if at is not None and at <= now:
        _in_the_past(problems, f"{path}.queue_until", at, now)
    return at


def read_duration(problems: Problems, message: pb.LeaseTerms, path: str) -> timedelta | None:
    """The duration, or None where there is none."""
    return problems.length(f"{path}.duration", message.duration) if message.HasField("duration") else None


def read_end_action(problems: Problems, message: pb.LeaseTerms, path: str) -> EndAction:
    """The end action; unset is TERMINATE."""
    return problems.choice(f"{path}.end_action", message.end_action, END_ACTIONS_IN, EndAction.TERMINATE)


def refuse_open_end(problems: Problems, message: pb.LeaseTerms, path: str, *excluded: str) -> None:
    """Notes each of these fields that stands beside open_ended."""
    for name in excluded:
        if message.open_ended and message.HasField(name):
            problems.add(f"{path}.open_ended", FieldReason.CONFLICT, f"excludes {name}")


def _start(problems: Problems, message: pb.LeaseTerms, path: str, name: str, now: datetime) -> datetime | None:
    if not message.HasField(name):
        return None
    at = problems.instant(f"{path}.{name}", getattr(message, name), now)
    if at is not None and at < now - problems.limits.past:
        _in_the_past(problems, f"{path}.{name}", at, now)
    return None if at is None else max(at, now)


def _window(
    problems: Problems,
    path: str,
    start: datetime | None,
    duration: timedelta | None,
    deadline: datetime,
    now: datetime,
) -> None:
    begin = start or now
    if deadline <= now:
        _in_the_past(problems, f"{path}.deadline", deadline, now)
    elif begin >= deadline or (duration is not None and begin + duration > deadline):
        lease = "a lease" if duration is None else f"a lease of {wording.length(duration)}"
        problems.add(
            f"{path}.deadline",
            FieldReason.CONFLICT,
            f"{lease} that begins at {times.rfc3339(begin)} or later does not end by "
            f"{times.rfc3339(deadline)}; the broker's time is {times.rfc3339(now)}",
        )


def _in_the_past(problems: Problems, path: str, at: datetime, now: datetime) -> None:
    problems.add(
        path,
        FieldReason.IN_THE_PAST,
        f"{times.rfc3339(at)} is past; the broker's time is {times.rfc3339(now)}",
    )
