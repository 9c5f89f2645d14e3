"""Numbers as people say them, in messages."""

from __future__ import annotations

from datetime import timedelta

_UNITS = (("day", 86_400), ("h", 3600), ("min", 60), ("s", 1))


def length(duration: timedelta | None) -> str:
    """A duration: "14 days", "1 h 30 min", "0.5 s"; None is "without an end"."""
    if duration is None:
        return "without an end"
    seconds, fraction = divmod(duration.total_seconds(), 1)
    rest = int(seconds)
    parts = []
    for unit, size in _UNITS:
        number, rest = divmod(rest, size)
        if number or (unit == "s" and fraction):
            shown = f"{number + fraction:g}" if unit == "s" and fraction else str(number)
            parts.append(f"{shown} {unit}{'s' * (unit == 'day' and number != 1)}")
    return " ".join(parts) or "0 s"
