"""Policies of one site, one of each kind: they see values and answer values, quickly.

None of them keeps a promise; the broker does. A policy needs nothing of the broker but the values in
broker/core/policies.py, and must not wait for anything: the broker waits for it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

import numpy as np
from numpy.typing import NDArray

from broker.core.policies import Passing, Victim, Waiting

FOR_EVER = timedelta(days=36_525)  # no lease is longer


class ShortestFirst:
    """A queue order: overdue reservations, then the shortest, then by arrival; open-ended ones last."""

    def order(self, waiting: Sequence[Waiting], now: datetime) -> Sequence[Waiting]:
        """Return them in that order."""
        return sorted(
            waiting,
            key=lambda each: (not each.overdue, each.duration or FOR_EVER, each.since, each.uid),
        )


class ProtectLarge:
    """A backfill: whoever asks for many nodes keeps its planned start, and so does the first; others are passed."""

    def __init__(self, large: int) -> None:
        self.large = large

    def blocked(self, waiting: Waiting, ahead: int, now: datetime) -> Passing:
        """Say UNHURT of those who keep it."""
        return Passing.UNHURT if ahead == 0 or waiting.nodes >= self.large else Passing.FREELY


def protect_large() -> ProtectLarge:
    """What the entry point names makes the policy, without arguments; what it needs comes from its surroundings."""
    return ProtectLarge(int(os.environ.get("PROTECT_LARGE_NODES", "8")))


class LongestLeft:
    """A victim choice: those with the longest time before them give way first; who is nearly done finishes."""

    def order(self, candidates: Sequence[Victim], now: datetime) -> Sequence[Victim]:
        """Return them in that order; open-ended ones first."""
        return sorted(
            candidates,
            key=lambda each: (-(FOR_EVER if each.end is None else each.end - now), each.uid),
        )


class OldLast:
    """A host choice: hosts named old-* only where nothing else is left; among the rest the fullest first."""

    def rank(self, hosts: Sequence[str], left: Mapping[str, NDArray[np.float64]]) -> NDArray[np.float64]:
        """Return a number a host, the least for the best. What is left is a share of each host's total, 0 to 1."""
        old = np.array([host.startswith("old-") for host in hosts], dtype=np.float64)
        return 2.0 * old + sum(left.values()) / max(1, len(left))
