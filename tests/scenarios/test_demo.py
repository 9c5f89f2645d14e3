"""`python -m examples.demo` as `make demo` runs it: whole, broken, interrupted. Nothing of it is left running."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from broker.config import load

ROOT = Path(__file__).parents[2]


def _start(temporary: Path, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "examples.demo", *options],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(temporary)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _answers(told: str) -> list[bool]:
    """Of the stand-in and the broker that a demo told of: whether something still listens there."""
    addresses = re.findall(r" listens on (?:http://)?([\d.]+):(\d+)", told)
    answers = []
    for host, port in addresses:
        with socket.socket() as connection:
            answers.append(connection.connect_ex((host, int(port))) == 0)
    return answers


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_demo_tells_its_whole_story_and_leaves_nothing_behind(tmp_path: Path) -> None:
    told, complaints = (demo := _start(tmp_path)).communicate()
    assert demo.returncode == 0, told + complaints
    assert complaints == ""
    titles = re.findall(r"^=== (\d) of 8: ", told, re.MULTILINE)
    assert titles == [str(number) for number in range(1, 9)]
    for verb in ("suspend", "resume", "stop", "start", "reboot", "terminate"):
        assert f"$ workspace {verb} group --wait" in told
    assert "All 8 steps went as they should" in told
    assert _answers(told) == [False, False]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_step_that_differs_ends_the_demo_by_name(tmp_path: Path) -> None:
    # On nodes of 8 GiB pool one takes the 4 GiB it must refuse.
    told, complaints = (demo := _start(tmp_path, "--node-memory", "8192")).communicate()
    assert demo.returncode == 1
    assert "FAILED: step 2 of 8: 4 GiB in pool one: NEVER" in complaints
    assert "expected: exit code 4 (never)" in complaints
    assert "got:      exit code 0 (done)" in complaints
    assert "=== 3 of 8" not in told
    assert _answers(told) == [False, False]
    log = re.search(r"The broker's log: (\S+)", complaints)
    assert log is not None
    assert "serving=" in Path(log[1]).read_text()


@pytest.mark.slow
def test_a_demo_told_to_stop_stops_everything(tmp_path: Path) -> None:
    demo = _start(tmp_path)
    assert demo.stdout is not None
    told = ""
    for line in demo.stdout:
        told += line
        if line.startswith("=== 1 of 8"):
            break
    demo.send_signal(signal.SIGTERM)
    demo.communicate()
    assert demo.returncode == 130
    assert _answers(told) == [False, False]
    assert list(tmp_path.iterdir()) == []


def test_the_first_configuration_is_valid() -> None:
    settings = load(ROOT / "examples" / "broker.toml")
    assert {name: pool.backend for name, pool in settings.pools.items()} == {"one": "opennebula", "lab": "simulator"}


def test_what_stands_in_comments_of_the_first_configuration_is_valid_and_the_default(tmp_path: Path) -> None:
    text = (ROOT / "examples" / "broker.toml").read_text()
    everything = tmp_path / "broker.toml"
    everything.write_text(re.sub(r"^# (?=\[|\S+ = )", "", text, flags=re.MULTILINE))
    full, plain = load(everything), load(ROOT / "examples" / "broker.toml")
    assert set(full.tenants) == {"physics"}
    assert full.server.drain_timeout == plain.server.drain_timeout
    assert full.pools["one"].refresh_interval == plain.pools["one"].refresh_interval
    assert full.pools["one"].memory_overhead == plain.pools["one"].memory_overhead
    assert set(full.pools["one"].backend_settings) > {"images", "networks", "cluster"}
