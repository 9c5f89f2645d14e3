"""The vocabulary backends are written against."""

from __future__ import annotations

from backends.base import COMMON_STEPS, UNDO, Action, Observation, Step
from broker.core.lifecycle import Seen


def test_every_step_has_its_undo() -> None:
    assert set(UNDO) == set(Step)


def test_every_action_has_common_steps() -> None:
    assert set(COMMON_STEPS) == set(Action)


def test_the_core_and_the_backends_use_the_same_words() -> None:
    assert {word.value for word in Observation} == {word.value for word in Seen}
