"""The command line against a real broker in a process of its own: what a person types, sees, and is left with.

Most commands run in this process, as `workspace` would run them; Ctrl-C and completion are tried on the program.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from clients.cli.app import run
from tests.support.process import PATIENCE, BrokerProcess, broker_process

WORKSPACE = Path(sys.executable).with_name("workspace")
CONFIGURATION = """
[server]
listen = "127.0.0.1:0"
[pools.lab]
backend = "simulator"
[[pools.lab.hosts]]
name = "xen"
count = 4
cpu = 8000
memory = 16384
disk = 200000
attributes = { hypervisor = "xen", arch = "x86_64" }
[pools.flaky]                     # the first try of a deployment fails
backend = "simulator"
delays = { deploy = "0.5s" }
retry = { budget = "60s", initial = "4s", maximum = "4s" }
faults = [{ step = "deploy", kind = "transient", count = 1 }]
hosts = [{ name = "f", cpu = 4000, memory = 4096 }]
[pools.stuck]                     # never gets anything to run
backend = "simulator"
delays = { deploy = "1h" }
hosts = [{ name = "s", cpu = 4000, memory = 4096 }]
[pools.bad]                       # refuses every deployment
backend = "simulator"
faults = [{ step = "deploy", kind = "rejected" }]
hosts = [{ name = "b", cpu = 4000, memory = 4096 }]
[instance_types.small]
cpu = 1000
memory = 2048
[tenants.default]
[tenants.poor]
limits = { nodes = 1 }
"""


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerProcess]:
    with broker_process(tmp_path_factory.mktemp("broker"), CONFIGURATION) as process:
        yield process


class Said(NamedTuple):
    """What a command said."""

    out: str
    err: str


Type = Callable[..., Said]


@pytest.fixture
def typed(broker: BrokerProcess, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Type]:
    """Types a command line; asserts its exit code. What it leased is terminated afterwards."""
    monkeypatch.setenv("WORKSPACE_SERVER", broker.address)
    monkeypatch.delenv("WORKSPACE_TENANT", raising=False)

    def enter(line: str, exits: int = 0) -> Said:
        code = run(line.split())
        said = Said(*capsys.readouterr())
        assert code == exits, (line, said)
        return said

    yield enter
    for tenant in ("default", "poor"):
        for left in json.loads(enter(f"list --json --tenant {tenant}").out)["workspaces"]:
            enter(f"terminate {left['name']} --wait")


def shown(typed: Type, name: str) -> Any:
    return json.loads(typed(f"show {name} --json").out)


def test_what_there_is(typed: Type) -> None:
    for pool in ("lab", "bad"):
        typed(f"refresh {pool}")
    rows = typed("pools").out.splitlines()
    assert rows[0].split()[:8] == ["POOL", "BACKEND", "STATE", "CORES", "USED", "MEMORY", "USED", "DISK"]
    lab = next(row for row in rows if row.startswith("lab "))
    assert lab.split()[:8] == ["lab", "simulator", "ACTIVE", "0/32", "0/64", "GiB", "0/781", "GiB"]
    assert max(map(len, rows)) <= 80
    hosts = typed("hosts lab").out.splitlines()
    assert [row.split()[0] for row in hosts[1:]] == [f"lab/xen-{number}" for number in range(1, 5)]
    assert "1 core, 2 GiB memory" in typed("types lab").out
    assert typed("strays lab") == ("", "No strays in lab.\n")
    assert json.loads(typed("strays lab --json").out) == {"strays": []}
    assert re.search(r"all +workspaces +0 +none", typed("usage").out)
    assert json.loads(typed("hosts lab --json").out)["hosts"][0]["cordoned"] is False
    typed("hosts nowhere", exits=5)


def test_a_check_says_fits_not_now_or_never(typed: Type) -> None:
    assert typed("check --pool lab --type small").out.startswith("It fits now.\n")
    never = typed("check --pool lab --cpu 9 --memory 1GiB", exits=4).out.splitlines()
    assert [" ".join(row.split()) for row in never[2:]] == [
        "lab NEVER not enough cpu, on 4 hosts 9 cores at most 8 cores",
        *(f"lab/xen-{number} NEVER not enough cpu 9 cores 8 cores" for number in range(1, 5)),
    ]
    typed("create --pool lab --cpu 8 --memory 16GiB --count 4 --duration 2h --id full")
    refused = typed("create --pool lab --cpu 8 --memory 1GiB --id later", exits=3).err.splitlines()
    assert refused[0].startswith("Error: Not now; as things stand it fits from ")
    assert next(row.split()[0] for row in refused if "NOT NOW" in row) == "lab"
    assert not any("workspace check" in line for line in refused)  # all four hosts stand there already
    assert re.fullmatch(r"Try again in (2h|1h\d+m)\.", refused[-1])
    instead = typed("check --pool lab --cpu 8 --memory 1GiB", exits=3).out.splitlines()
    assert instead[-2] == "What would be accepted instead, the nearest first:"
    assert instead[-1].startswith("  1. all of it from ")
    not_now = json.loads(typed("check --pool lab --cpu 8 --memory 1GiB --json", exits=3).out)
    assert not_now["outcome"] == "OUTCOME_NOT_NOW"
    assert next(v["earliestStartTime"] for v in not_now["verdicts"] if v["resourceName"] == "pools/lab").endswith("Z")
    advice = next(line for line in refused if line.startswith("To reserve it from then on add: "))
    typed(f"create --pool lab --cpu 8 --memory 1GiB --id later {advice.rpartition('add: ')[2]}")
    assert shown(typed, "later")["state"] == "STATE_RESERVED"


def test_a_life(typed: Type) -> None:
    done = typed("create --pool lab --type small --count 2 --duration 1h --id web --name Web --label team=a --wait")
    assert done.out.startswith("web  RUNNING  2 nodes in lab, until ")
    (row,) = typed("list --label team=a").out.splitlines()[1:]
    assert row.split()[:4] == ["web", "RUNNING", "lab", "2"]
    seen = typed("show web").out
    assert re.search(r"^State +RUNNING", seen, re.MULTILINE)
    assert [node["index"] for node in shown(typed, "web")["nodes"]] == [0, 1]
    assert typed("suspend web --release --wait").out.startswith("web  SUSPENDED")
    assert all(node["capacityReleased"] for node in shown(typed, "web")["nodes"])
    assert typed("resume web --wait").out.startswith("web  RUNNING")
    assert typed("stop web --node 1 --wait").out
    assert [node["state"] for node in shown(typed, "web")["nodes"]] == ["STATE_RUNNING", "STATE_STOPPED"]
    typed("start web --node 1 --wait")
    assert typed("wait web --for running --timeout 5s").out.startswith("web  RUNNING")
    assert typed("terminate web --wait").out.startswith("web  TERMINATED")
    assert typed("terminate web --wait").out.startswith("web  TERMINATED")
    assert typed("list") == ("", "No workspaces; those that have ended: workspace list --all\n")
    assert "TERMINATED" in typed("list --all").out


def test_a_lease_is_made_longer_shorter_and_another_kind_of_end(typed: Type) -> None:
    typed("create --pool lab --type small --duration 1h --id lease --wait")
    for length, hours in (("2h", 2), ("1d", 24), (".5h", 0.5)):
        typed(f"update lease --duration {length} --label a=1 --end-action suspend")
        now = shown(typed, "lease")
        lease = datetime.fromisoformat(now["endTime"]) - datetime.fromisoformat(now["plannedStartTime"])
        assert lease == timedelta(hours=hours)
        assert (now["labels"], now["terms"]["endAction"]) == ({"a": "1"}, "END_ACTION_SUSPEND")
        assert now["terms"]["openEnded"] is False
    refused = typed("update lease --duration unlimited", exits=2).err
    assert refused.startswith("Error: --duration")
    assert "14" in refused


def test_workspaces_are_placed_together(typed: Type) -> None:
    said = typed("ensemble create pair --expire +2h")
    assert re.fullmatch(r"pair  OPEN  0 workspaces, until \S+( \S+)?\n", said.out), said.out
    assert said.err == "Add to it: workspace create --ensemble pair ...\n"
    full = typed("create --pool lab --cpu 8 --memory 16GiB --count 4 --duration 2h --id all-of-it")
    assert "all-of-it" in full.out
    said = typed("create --ensemble pair --pool lab --type small --id head")
    assert "head  PENDING  1 node in lab" in said.out
    assert said.err == "It waits for the seal: workspace ensemble seal pair\n"
    typed("create --ensemble pair --pool lab --type small --count 2 --id workers")
    rows = [row.split()[:3] for row in typed("ensemble show pair").out.splitlines()[-3:]]
    assert rows == [["WORKSPACE", "STATE", "POOL"], ["head", "PENDING", "lab"], ["workers", "PENDING", "lab"]]
    refused = typed("ensemble seal pair", exits=3).err.splitlines()
    assert refused[0].startswith("Error: workspace head: Not now; as things stand it fits from ")
    assert not any("--start" in line for line in refused)
    typed("terminate all-of-it --wait")
    said = typed("ensemble seal pair")
    assert [row.split()[:2] for row in said.out.splitlines()[1:]] == [["head", "STARTING"], ["workers", "STARTING"]]
    assert said.err == "Follow them: workspace watch head workers\n"
    typed("wait workers --for running --timeout 30s")
    assert "workspace ensemble show tenants/default/ensembles/pair" in " ".join(
        typed("ensemble cancel pair", exits=6).err.split()
    )
    assert json.loads(typed("ensemble show pair --json").out)["state"] == "STATE_SEALED"
    typed("ensemble create other")
    assert typed("ensemble cancel other").out == "other  CANCELLED  0 workspaces\n"
    typed("create --ensemble other --pool lab --type small", exits=6)
    assert "--ensemble" in typed("create --ensemble none --pool lab --type small", exits=2).err


def test_a_bad_request_names_its_flags(typed: Type) -> None:
    said = typed("create --pool lab --image x", exits=2).err.splitlines()
    assert said[0] == "Error: 2 things are wrong with the request:"
    assert [line.split()[:3] for line in said[1:]] == [["--cpu", "is", "missing;"], ["--memory", "is", "missing;"]]
    said = typed("create --pool lab --type huge", exits=2).err.splitlines()
    assert said == ['Error: --type: there is no instance type "huge"; see them: workspace types POOL']
    assert "--pool" in typed("create --pool none --type small", exits=2).err
    assert "--id" in typed("create --pool lab --type small --id NOT_GOOD", exits=2).err
    assert "--count" in typed("create --pool lab --type small --count 2000", exits=2).err
    typed("frobnicate", exits=2)


def test_other_refusals_have_their_codes(typed: Type) -> None:
    assert "workspace list" in typed("show none", exits=5).err
    typed("create --pool lab --type small --id taken")
    assert "--id" in typed("create --pool lab --type small --id taken", exits=6).err
    typed("wait taken --for running --timeout 20s")
    typed("stop taken --wait")
    assert "workspace show" in typed("suspend taken", exits=6).err
    assert "nodes" in typed("create --pool lab --type small --count 2 --tenant poor", exits=8).err
    assert re.search(r"all +nodes +0 +1$", typed("usage --tenant poor").out, re.MULTILINE)
    status = json.loads(typed("show none --json", exits=5).err)
    assert status["details"][0]["reason"] == "NOT_FOUND"
    typed("usage --tenant nobody", exits=5)


def test_a_pool_and_a_host_are_closed_and_opened(typed: Type) -> None:
    assert "cordoned" in typed("cordon lab/xen-1").out
    said = typed("create --pool lab --type small --select hypervisor=xen --count 4 --placement one-per-host", exits=3)
    assert "cordoned" in said.err
    assert "cordoned" not in typed("uncordon lab/xen-1").out
    assert "draining" in typed("cordon lab").out
    assert "workspace pools" in typed("create --pool lab --type small", exits=6).err
    assert "draining" not in typed("uncordon lab").out
    typed("create --pool lab --type small --id here --wait")
    host = shown(typed, "here")["nodes"][0]["host"].rpartition("/")[2]
    typed(f"drain lab/{host}")
    typed(f"uncordon lab/{host}")
    typed("drain lab", exits=2)


def test_a_wait_tells_the_step_the_try_and_why(typed: Type) -> None:
    said = typed("create --pool flaky --type small --id try --wait").err
    assert re.search(r"try STARTING  node 0: deploy, try 2, next at [\d:]+[+-]\d\d:\d\d: ", said)


def test_waits_end_with_9_elsewhere_and_with_10_in_time(typed: Type) -> None:
    said = typed("create --pool stuck --type small --id slow --timeout 1s", exits=10)
    assert said.out.startswith("slow  STARTING")
    assert "Still STARTING after 1s; it goes on: workspace wait slow" in said.err
    said = typed("create --pool bad --type small --id lost --wait", exits=9)
    assert said.out.startswith("lost  FAILED")
    assert "It is FAILED, not RUNNING." in said.err
    assert "See more: workspace show lost" in said.err
    typed("wait lost --for running", exits=9)


def test_nobody_there(typed: Type, broker: BrokerProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    typed("pools")  # a proxy is not for this machine
    said = typed("pools --server 127.0.0.1:1", exits=7).err
    assert said.startswith("Error: no broker answers at 127.0.0.1:1 (")
    assert "--server HOST:PORT or WORKSPACE_SERVER" in said


def test_ctrl_c_while_waiting(typed: Type, broker: BrokerProcess) -> None:
    with subprocess.Popen(
        [WORKSPACE, "create", "--pool", "stuck", "--type", "small", "--id", "calm", "--wait"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "WORKSPACE_SERVER": broker.address},
    ) as process:
        assert process.stderr is not None
        assert process.stderr.readline().startswith("calm STARTING")
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out) == (130, "")
    assert err.splitlines()[-1] == "calm goes on without this command. Follow it: workspace wait calm"
    assert "Traceback" not in err
    assert shown(typed, "calm")["state"] == "STATE_STARTING"


def test_bash_completes_commands_and_names(typed: Type, broker: BrokerProcess) -> None:
    typed("create --pool lab --type small --id webshop --wait")
    script = """
        source <(workspace completion bash)
        complete -p workspace >/dev/null || exit 9
        try() {
            COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
            _workspace_completion workspace
            echo "${COMPREPLY[@]}"
        }
        try workspace susp
        try workspace show web
        try workspace hosts l
    """
    path = f"{WORKSPACE.parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", script],
        env={**os.environ, "PATH": path, "WORKSPACE_SERVER": broker.address},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == ["suspend", "webshop", "lab"]


def test_times_are_utc_for_programs_and_local_for_people(typed: Type) -> None:
    typed("create --pool lab --type small --duration 1h --id clock --wait")
    ends = datetime.fromisoformat(shown(typed, "clock")["endTime"])
    assert ends.tzinfo == UTC
    assert ends.astimezone().isoformat(sep=" ", timespec="seconds") in typed("show clock").out
