"""opennebula-cli, unchanged, against the stand-in: a VM's life and one refusal.

Its entry points are run as programs. Two things are odd about it: it asks `one.system.version` before
every command, and after a refusal it says only how many operations failed, with exit status 17; the
reason has to be read from the stand-in's own log.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from backends.opennebula.standin import HostConfig, Standin, StandinConfig
from tests.support.standin_wire import until

BIN = Path(sys.executable).parent
FAILED = 17


@pytest.fixture
def one() -> Iterator[Standin]:
    config = StandinConfig(hosts=(HostConfig(name="big"),), scheduler=False, default_dwell=0.001)
    with Standin(config) as standin:
        yield standin


@pytest.fixture
def home(one: Standin, tmp_path: Path) -> Path:
    (tmp_path / "auth").write_text(one.session)
    return tmp_path


def run(one: Standin, home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {
        "PATH": os.environ.get("PATH", ""),
        "HOME": str(home),
        "ONE_XMLRPC": one.endpoint,
        "ONE_AUTH": str(home / "auth"),
    }
    return subprocess.run(
        [BIN / "onevm", "--output", "json", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def answer(one: Standin, home: Path, *arguments: str) -> Any:
    done = run(one, home, *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


def test_a_life_and_a_refusal(one: Standin, home: Path) -> None:
    template = home / "vm.one"
    template.write_text('NAME="mine"\nCPU="1"\nMEMORY="512"\n')
    made = answer(one, home, "create", str(template), "--hold")
    vm_id = int(made["id"])
    listed = answer(one, home, "list")
    assert '"mine"' in json.dumps(listed)

    def reached(place: str) -> None:
        until(lambda: one.place(vm_id) == place, what=place)

    number = str(vm_id)
    answer(one, home, "deploy", number, "0")
    reached("RUNNING")
    answer(one, home, "suspend", number)
    reached("SUSPENDED")

    refused = run(one, home, "suspend", number)
    assert refused.returncode == FAILED
    assert one.calls[-1].method == "one.vm.action"
    assert one.calls[-1].outcome == "2048"

    answer(one, home, "resume", number)
    reached("RUNNING")
    assert answer(one, home, "show", number)["lcm_state"] == "RUNNING"
    answer(one, home, "terminate", number)
    reached("DONE")
    assert one.call_counts["one.system.version"] > 0
