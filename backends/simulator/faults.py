"""Decides which call goes wrong, and how. Counts calls, so that the same calls always meet the same faults."""

from __future__ import annotations

from collections.abc import Sequence

from backends.base import Step
from backends.simulator.settings import Fault

_STEPS = frozenset(step.value for step in Step)


class Faults:
    """The faults of a pool, with how often each was met."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        self._faults = list(faults)
        self._met = [0] * len(self._faults)
        self._done = [0] * len(self._faults)

    def add(self, fault: Fault) -> None:
        """One more, from now on."""
        self._faults.append(fault)
        self._met.append(0)
        self._done.append(0)

    def clear(self) -> None:
        """From now on all goes well."""
        self._faults, self._met, self._done = [], [], []

    def next(self, step: str, host: str) -> Fault | None:
        """The fault that this call meets: the first that matches and whose turn it is."""
        for i, fault in enumerate(self._faults):
            if fault.host not in ("", host) or not (fault.step == step or (not fault.step and step in _STEPS)):
                continue
            if fault.count is not None and self._done[i] >= fault.count:
                continue
            self._met[i] += 1
            if self._met[i] % fault.every == 0:
                self._done[i] += 1
                return fault
        return None
