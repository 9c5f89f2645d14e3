"""The moments between two steps at which a broker may die: named, so that tests can let it die at each of them.

A point costs one call of a function that does nothing. Every step of every action has three, every action two more
for its end, and every call that changes something two between its decision and its answer; what is enumerated and what
is passed cannot differ, because the names are made in one place each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from enum import StrEnum
from typing import Final

from broker.book import CALL_DECIDED, CALL_DURABLE


class Moment(StrEnum):
    """Where in a step, or at the end of an action."""

    BEFORE = "before"  # the step is committed and not tried
    CALLED = "called"  # the backend has accepted it, and that is not written down
    COMMITTED = "committed"  # that is durable, the next step is not begun
    SEEN = "seen"  # the action was seen to be done, and that is not durable
    SETTLED = "settled"  # that is durable


FaultPoint = Callable[[str], None]
"""Called with the name of each point that is passed."""


def nowhere(point: str) -> None:
    """The usual fault point: nothing happens."""


def point_of(action: str, step: str, moment: Moment) -> str:
    """A point's name; `step` empty at the end of an action."""
    return f"{action}/{step}/{moment}" if step else f"{action}/{moment}"


def enumerate_points(action: str, steps: Iterable[str]) -> list[str]:
    """Every point of an action, in the order they are passed."""
    inside = [
        point_of(action, step, moment) for step in steps for moment in (Moment.BEFORE, Moment.CALLED, Moment.COMMITTED)
    ]
    return [*inside, point_of(action, "", Moment.SEEN), point_of(action, "", Moment.SETTLED)]


LEAVING: Final = ("create/leave_host/before", "create/leave_host/committed")
"""A node goes on at another host: its VM was seen gone, and that is durable."""

CALLS: Final = (CALL_DECIDED, CALL_DURABLE)
"""Those of every call that changes something."""
