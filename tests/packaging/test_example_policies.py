"""The example of a package of policies, built as a wheel and found as an installed one is."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import pytest

from broker.config import Settings, load
from broker.core.policies import Passing, Victim, Waiting
from broker.metrics import Metrics
from broker.policies import Policies
from tests.support import timed_file
from tests.support.placement_cases import ask, host, nodes, occupy, placed, pool
from tests.support.timed import play

ROOT: Final = Path(__file__).parents[2]
NOW: Final = datetime(2026, 5, 4, 12, tzinfo=UTC)
CONFIGURATION: Final = """
[pools.lab]
backend = "simulator"
backfill = "protect-large"
victims = "longest-left"
placement = "old-last"
[[pools.lab.hosts]]
cpu = 8000
memory = 16384
[queue]
order = "shortest-first"
policy_budget = "10s"
"""
SCENARIO: Final = """# Cases:
# - the host, the order and the victim are chosen by the example's policies, otherwise than by the defaults
pools:
  lab:
    backfill: protect-large
    victims: longest-left
    placement: old-last
    hosts: {old-1: 4000, young-1: 4000}
queue: {order: shortest-first, policy_budget: 10s}
steps:
  - create: long
    cpu: 4000
    duration: 8h
    preemptible: true
    expect: {host: young-1}
  - after: 1m
    create: nearly-done
    cpu: 4000
    duration: 1h
    preemptible: true
    expect: {host: old-1}
  - after: 1m
    create: firm
    cpu: 4000
    duration: 1h
    see: {firm: {state: RUNNING, host: young-1}, long: SUSPENDED, nearly-done: RUNNING}
  - after: 1m
    create: waits-long
    cpu: 4000
    duration: 5h
    preemptible: true
    queue_until: 23:00
  - after: 1m
    create: waits-short
    cpu: 4000
    duration: 30m
    preemptible: true
    queue_until: 23:00
    queue: [waits-short, waits-long, long]
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("example")
    shutil.copytree(ROOT / "examples/policies", folder / "source", ignore=shutil.ignore_patterns("__pycache__"))
    built = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder / "dist"],
        cwd=folder / "source",
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    [found] = (folder / "dist").glob("*.whl")
    return found


@pytest.fixture
def settings(wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """A configuration that names them, with the wheel unpacked where packages are looked for."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.delitem(sys.modules, "example_policies", raising=False)
    (tmp_path / "broker.toml").write_text(CONFIGURATION)
    return load(tmp_path / "broker.toml")


@pytest.fixture
def policies(settings: Settings) -> Policies:
    return Policies(settings, Metrics())


def test_what_the_documentation_shows_is_the_example() -> None:
    text = (ROOT / "docs/policies.md").read_text(encoding="utf-8")
    module = (ROOT / "examples/policies/example_policies.py").read_text(encoding="utf-8")
    metadata = (ROOT / "examples/policies/pyproject.toml").read_text(encoding="utf-8")
    shown = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(shown) == 2
    assert [block for block in shown if block not in module] == []
    lines = re.findall(r"```toml\n(\[project.*?)```", text, re.DOTALL)[0].splitlines()
    assert [line for line in lines if line not in metadata.splitlines()] == []


def waiting(uid: str, hours: int | None, **more: Any) -> Waiting:
    duration = None if hours is None else timedelta(hours=hours)
    return Waiting(uid=uid, tenant="t", duration=duration, **{"since": NOW, "nodes": 1, **more})


def test_shortest_first(policies: Policies) -> None:
    queue = [
        waiting("open-ended", None),
        waiting("long", 9),
        waiting("late", 1, since=NOW + timedelta(seconds=1)),
        waiting("short", 1),
        waiting("overdue", 20, overdue=True),
    ]
    ordered = [each.uid for each in policies.order.order(queue, NOW)]
    assert ordered == ["overdue", "short", "late", "long", "open-ended"]


def test_protect_large(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROTECT_LARGE_NODES", "4")
    backfill = Policies(settings, Metrics()).backfill["lab"]
    assert backfill.blocked(waiting("first", 1), 0, NOW) is Passing.UNHURT
    assert backfill.blocked(waiting("small", 1, nodes=3), 1, NOW) is Passing.FREELY
    assert backfill.blocked(waiting("large", 1, nodes=4), 1, NOW) is Passing.UNHURT


def test_longest_left(policies: Policies) -> None:
    candidates = [
        Victim(
            uid=uid,
            tenant="t",
            started=NOW,
            nodes=1,
            amounts={"cpu": 1000},
            end=None if hours is None else NOW + timedelta(hours=hours),
        )
        for uid, hours in (("nearly-done", 1), ("long", 9), ("open-ended", None))
    ]
    ordered = [each.uid for each in policies.victims["lab"].order(candidates, NOW)]
    assert ordered == ["open-ended", "long", "nearly-done"]


def test_old_last(policies: Policies) -> None:
    choice = policies.host_choice["lab"]
    lab = pool(hosts=[host("old-1"), host("young-1"), host("young-2")], host_choice=choice)
    occupy(lab, "old-1", 2048, end=None)  # the fullest
    occupy(lab, "young-2", 1024, end=None)
    assert placed(ask(nodes(9, memory=1024), at=lab)) == [("young-2",) * 3 + ("young-1",) * 4 + ("old-1",) * 2]


def test_a_broker_asks_them(settings: Settings, tmp_path: Path) -> None:
    """A whole broker, where the defaults would have decided otherwise at each step."""
    (tmp_path / "scenario.yaml").write_text(SCENARIO)
    play(timed_file.load(tmp_path / "scenario.yaml"), tmp_path)
