"""What libvirt's states mean to the broker."""

from __future__ import annotations

import pytest

from backends.base import Observation
from backends.xen import states

RUNNING, PAUSED, SUSPENDED = Observation.RUNNING, Observation.PAUSED, Observation.SUSPENDED
OFF, BUSY, BROKEN = Observation.OFF, Observation.BUSY, Observation.BROKEN

CASES = [
    # state, reason, memory saved, active
    (0, 0, False, True, BUSY),
    (1, 0, False, True, RUNNING),
    (1, 1, False, True, RUNNING),
    (1, 5, False, True, RUNNING),
    (1, 9, False, True, BROKEN),
    (2, 0, False, True, RUNNING),
    (3, 0, False, True, PAUSED),  # Xen, created paused
    (3, 1, False, True, PAUSED),
    (3, 2, False, True, BUSY),
    (3, 3, False, True, BUSY),
    (3, 5, False, True, BROKEN),
    (3, 11, False, True, BUSY),
    (4, 1, False, True, BUSY),
    (5, 0, False, False, OFF),
    (5, 1, False, False, OFF),
    (5, 2, False, False, OFF),
    (5, 3, False, False, BROKEN),
    (5, 5, True, False, SUSPENDED),
    (5, 0, True, False, SUSPENDED),  # as after a restart of the daemon
    (5, 5, False, False, OFF),  # saved to a file of somebody's own
    (5, 1, False, True, BUSY),  # Xen: off, and its devices are not gone yet
    (6, 1, False, True, BROKEN),
    (7, 0, False, True, PAUSED),
    (8, 0, False, True, BUSY),  # of a later libvirt
]


@pytest.mark.parametrize(("state", "reason", "saved", "active", "expected"), CASES)
def test_a_state_is_one_observation(state: int, reason: int, saved: bool, active: bool, expected: Observation) -> None:
    assert states.observation(state, reason, saved=saved, active=active) is expected


def test_every_pair_is_known() -> None:
    for state in range(9):
        for reason in range(20):
            for active in (False, True):
                assert states.observation(state, reason, saved=False, active=active) in Observation


def test_words_say_what_is_unusual() -> None:
    assert states.word(1, 1, saved=False, active=True) == "RUNNING/1"
    assert states.word(5, 5, saved=True, active=False) == "SHUTOFF/5, memory saved"
    assert states.word(5, 1, saved=False, active=True) == "SHUTOFF/1, not gone yet"
    assert "transient" in states.word(1, 1, saved=False, active=True, persistent=False)
    assert states.word(8, 0, saved=False, active=True) == "state 8, unknown to this broker"
    assert states.message(5, 3) == "the guest crashed"
    assert states.message(1, 1) == ""
