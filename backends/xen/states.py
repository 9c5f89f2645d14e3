"""libvirt's states of a domain, and what the broker takes them for.

Responsible for the whole table of states and reasons. Invariant: every pair, with or without saved memory, has exactly
one observation; a number from a later libvirt is BUSY and says so in its word. It looks at no domain.

A domain that is off may have its memory on disk (a managed save): then it is SUSPENDED. One that shows as off while it
still is active is on its way: Xen says so for two seconds, until its devices are gone, and its name is taken so long.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from typing import Final

from backends.base import Observation


class State(IntEnum):
    """virDomainState."""

    NOSTATE = 0
    RUNNING = 1
    BLOCKED = 2
    PAUSED = 3
    SHUTDOWN = 4
    SHUTOFF = 5
    CRASHED = 6
    PMSUSPENDED = 7


_STATES: Final[Mapping[State, Observation]] = {
    State.NOSTATE: Observation.BUSY,
    State.RUNNING: Observation.RUNNING,
    State.BLOCKED: Observation.RUNNING,  # it waits for something to do
    State.PAUSED: Observation.PAUSED,
    State.SHUTDOWN: Observation.BUSY,
    State.SHUTOFF: Observation.OFF,
    State.CRASHED: Observation.BROKEN,
    State.PMSUSPENDED: Observation.PAUSED,  # it put itself to sleep, its memory is kept
}

# Reasons that change what a state means.
_REASONS: Final[Mapping[tuple[State, int], tuple[Observation, str]]] = {
    (State.PAUSED, 2): (Observation.BUSY, "it is being migrated"),
    (State.PAUSED, 3): (Observation.BUSY, "its memory is being saved"),
    (State.PAUSED, 4): (Observation.BUSY, "its memory is being dumped"),
    (State.PAUSED, 5): (Observation.BROKEN, "a disk failed"),
    (State.PAUSED, 6): (Observation.BROKEN, "its watchdog stopped it"),
    (State.PAUSED, 8): (Observation.BUSY, "it is shutting down"),
    (State.PAUSED, 9): (Observation.BUSY, "a snapshot is being made"),
    (State.PAUSED, 10): (Observation.BROKEN, "the guest crashed"),
    (State.PAUSED, 11): (Observation.BUSY, "it is being started"),
    (State.PAUSED, 12): (Observation.BUSY, "it is being migrated"),
    (State.PAUSED, 13): (Observation.BROKEN, "a migration failed half way"),
    (State.SHUTOFF, 3): (Observation.BROKEN, "the guest crashed"),
    (State.RUNNING, 9): (Observation.BROKEN, "the guest crashed"),
    (State.RUNNING, 11): (Observation.BROKEN, "a migration failed half way"),
}


def observation(state: int, reason: int, *, saved: bool, active: bool) -> Observation:
    """What a domain is seen as; `saved`: its memory is on disk."""
    return _judged(state, reason, saved=saved, active=active)[0]


def message(state: int, reason: int) -> str:
    """Why it is so, where the reason says anything."""
    return _judged(state, reason, saved=False, active=state != State.SHUTOFF)[1]


def word(state: int, reason: int, *, saved: bool, active: bool, persistent: bool = True) -> str:
    """libvirt's own word, "RUNNING/1", with what is unusual about it."""
    known = {each.value: each.name for each in State}
    said = f"{known[state]}/{reason}" if state in known else f"state {state}, unknown to this broker"
    if saved:
        said += ", memory saved"
    if state == State.SHUTOFF and active:
        said += ", not gone yet"
    if active and not persistent:
        said += ", transient: it will be gone when it is off"
    return said


def _judged(state: int, reason: int, *, saved: bool, active: bool) -> tuple[Observation, str]:
    try:
        known = State(state)
    except ValueError:
        return Observation.BUSY, ""
    if known is State.SHUTOFF:
        if active:
            return Observation.BUSY, "its devices are not gone yet"
        if saved:
            return Observation.SUSPENDED, ""
    return _REASONS.get((known, reason), (_STATES[known], ""))
