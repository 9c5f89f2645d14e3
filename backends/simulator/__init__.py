"""The simulator: `check` and `create` for the broker, and what tests reach into it with.

Nothing else of the package is meant to be imported from outside.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from backends.base import BackendContext, SettingProblem
from backends.simulator.adapter import Simulator
from backends.simulator.by_hand import ByHand
from backends.simulator.settings import Fault, FaultKind, read
from backends.simulator.world import Machine, World

__all__ = ["ByHand", "Fault", "FaultKind", "Machine", "Simulator", "World", "check", "create"]


def check(settings: Mapping[str, object]) -> Sequence[SettingProblem]:
    """Names every bad or unknown key."""
    return read(settings)[1]


def create(settings: Mapping[str, object], context: BackendContext) -> Simulator:
    """Makes a simulated pool. Raises ValueError where `check` has something to say."""
    values, problems = read(settings)
    if problems:
        raise ValueError("; ".join(f"{problem.key}: {problem.message}" for problem in problems))
    return Simulator(values, context)
