"""Policies as third parties might bring them, most of them bad; named by entry points that a test makes up."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar

import pytest

from broker.core.inventory import FloatArray
from broker.core.policies import Waiting
from broker.policy_registry import Kind

MODULE = __name__


class EveryKind:
    """A policy of every kind: each question goes to `answer`, with what it is about."""

    def answer(self, about: Any) -> Any:
        """What the policy says."""
        raise NotImplementedError

    def order(self, workspaces: Sequence[Any], now: datetime) -> Any:
        """A QueueOrder's or a VictimChoice's answer."""
        return self.answer(workspaces)

    def blocked(self, waiting: Waiting, ahead: int, now: datetime) -> Any:
        """A Backfill's answer."""
        return self.answer(waiting)

    def rank(self, hosts: Sequence[str], left: Mapping[str, FloatArray]) -> Any:
        """A HostChoice's answer."""
        return self.answer(hosts)


class Says(EveryKind):
    """Says what the test has told it to."""

    saying: ClassVar[Callable[[Any], Any]]

    def answer(self, about: Any) -> Any:
        """What the test has told."""
        return Says.saying(about)


class Reversed(EveryKind):
    """The last first."""

    def answer(self, about: Any) -> Any:
        """The other way round."""
        return about[::-1]


class Stuck(EveryKind):
    """Answers, well, when it is let go; until then it holds its thread."""

    let_go: ClassVar[threading.Event]
    asked: ClassVar[int]

    def answer(self, about: Any) -> Any:
        """The other way round, late."""
        Stuck.asked += 1
        Stuck.let_go.wait()
        return about[::-1]


class Unmade:
    """Cannot even be made."""

    def __init__(self) -> None:
        raise KeyError("LICENSE")


class Exits(EveryKind):
    """Tries to end the process."""

    def answer(self, about: Any) -> Any:
        """None."""
        sys.exit("enough")


class Bringing:
    """Installs distributions that are nothing but entry points."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._folder = folder
        self._monkeypatch = monkeypatch

    def __call__(self, kind: Kind, name: str, made_by: type | str) -> None:
        """A policy of a third party: `made_by` as an entry point says it, or a class of this module."""
        target = made_by if isinstance(made_by, str) else f"{MODULE}:{made_by.__name__}"
        number = len(list(self._folder.iterdir())) if self._folder.exists() else 0
        site = self._folder / f"site{number}"
        information = site / f"thirdparty{number}-1.0.dist-info"
        information.mkdir(parents=True)
        (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: thirdparty{number}\nVersion: 1.0\n")
        (information / "entry_points.txt").write_text(f"[{kind.group}]\n{name} = {target}\n")
        self._monkeypatch.syspath_prepend(site)
