"""Waiting, watching, giving up and completing, as a person at a prompt meets them."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta

import grpc
import pytest
from workspacebroker.v1 import workspace_service_pb2 as api
from workspacebroker.v1.resources_pb2 import Node, Workspace

from clients import sdk
from clients.cli import app
from clients.cli.app import run
from clients.cli.session import Session
from tests.support.fake_broker import MOMENT, FakeBroker, refusal, workspace


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeBroker]:
    with FakeBroker() as running:
        monkeypatch.setenv("WORKSPACE_SERVER", running.address)
        yield running


def starting(step: str) -> Workspace:
    made = workspace(state=Workspace.STATE_STARTING)
    made.nodes[0].activity.step = step
    return made


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sdk, "LEAST_SECONDS", 0.01)


CREATE = ["create", "--image", "x", "--id", "web", "--wait"]


def test_wait_says_what_goes_on_and_ends_with_addresses(broker: FakeBroker, capsys: pytest.CaptureFixture[str]) -> None:
    broker.script.extend([starting("propagate"), starting("propagate"), starting("deploy"), workspace()])
    assert run(CREATE) == 0
    captured = capsys.readouterr()
    assert captured.err.splitlines() == [
        "web STARTING  node 0: propagate",
        "web STARTING  node 0: deploy",
    ]
    assert captured.out.splitlines() == ["web  RUNNING  1 node in lab", "  node 0  10.0.0.7"]


def test_on_a_terminal_progress_is_one_line_that_goes_away(
    broker: FakeBroker, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    failing = starting("deploy")
    failing.nodes[0].activity.attempt = 2
    failing.nodes[0].activity.last_error.message = "no such disk"
    failing.nodes[0].activity.next_attempt_time.FromDatetime(datetime.now(UTC) + timedelta(seconds=90))
    broker.script.extend([failing, workspace()])
    assert run(CREATE) == 0
    line = r"web STARTING  node 0: deploy, try 2, next in 1m\d+s: no such disk"
    assert re.search(line, terminal.getvalue())
    assert "\x1b[2K" in terminal.getvalue()
    assert broker.asked("WaitWorkspace")[0].timeout.seconds == 1
    assert "RUNNING" in capsys.readouterr().out


def test_a_failed_start_exits_9_and_says_why(broker: FakeBroker, capsys: pytest.CaptureFixture[str]) -> None:
    failed = workspace(state=Workspace.STATE_FAILED)
    failed.last_error.CopyFrom(refusal(grpc.StatusCode.FAILED_PRECONDITION, "BACKEND_REJECTED", "bad image"))
    broker.script.append(failed)
    assert run([*CREATE, "--json"]) == 9
    captured = capsys.readouterr()
    assert json.loads(captured.out)["state"] == "STATE_FAILED"
    assert "It is FAILED, not RUNNING.\nLast error (BACKEND_REJECTED): bad image" in captured.err


def test_a_verb_that_failed_ends_at_rest_elsewhere(broker: FakeBroker, capsys: pytest.CaptureFixture[str]) -> None:
    broker.put(workspace())
    broker.script.append(workspace())
    assert run(["suspend", "web", "--wait"]) == 9
    assert "It is RUNNING, not SUSPENDED." in capsys.readouterr().err


def test_a_verb_on_some_nodes_is_done_when_those_are_there(broker: FakeBroker) -> None:
    broker.put(workspace())
    half = workspace()
    half.nodes.append(Node(index=1, state=Workspace.STATE_SUSPENDED))
    broker.script.extend([half, half])
    assert run(["suspend", "web", "--node", "1", "--wait"]) == 0
    assert run(["suspend", "web", "--node", "0", "--wait"]) == 9


def test_a_wait_that_times_out_exits_10_and_says_how_to_go_on(
    broker: FakeBroker, capsys: pytest.CaptureFixture[str]
) -> None:
    broker.put(starting("deploy"))
    assert run(["wait", "web", "--for", "running", "--for", "paused", "--timeout", "0s"]) == 10
    assert "Still STARTING after 0s; it goes on: workspace wait web" in capsys.readouterr().err
    states = broker.asked("WaitWorkspace")[0].states
    assert list(states) == [Workspace.STATE_RUNNING, Workspace.STATE_PAUSED]


def test_terminating_twice_is_fine(broker: FakeBroker) -> None:
    broker.put(workspace())
    for _ in range(2):
        broker.script.append(workspace(state=Workspace.STATE_TERMINATED))
        assert run(["terminate", "web", "--wait"]) == 0


@pytest.fixture
def interrupt(broker: FakeBroker) -> Callable[[str], None]:
    """Has Ctrl-C pressed once the broker has got a call of the method."""

    def at(method: str) -> None:
        broker.on_call = lambda called: os.kill(os.getpid(), signal.SIGINT) if called == method else None

    return at


def test_ctrl_c_leaves_quietly_and_says_how_to_follow(
    broker: FakeBroker, interrupt: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    interrupt("WaitWorkspace")
    broker.script.extend([starting("deploy")] * 1000)
    assert run([*CREATE, "--tenant", "maths"]) == 130
    shown = capsys.readouterr().err.splitlines()
    name = "tenants/maths/workspaces/web"
    assert shown[-1] == f"{name} goes on without this command. Follow it: workspace wait {name}"
    assert not any("Traceback" in line for line in shown)


def test_ctrl_c_before_the_answer_gives_the_id_to_repeat_with(
    broker: FakeBroker, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = threading.Event()

    def press(method: str) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        answer.wait()

    broker.on_call = press
    try:
        assert run(CREATE) == 130
    finally:
        answer.set()
    shown = capsys.readouterr().err
    assert f"--request-id {broker.asked('CreateWorkspace')[0].request_id}" in shown


def changes() -> list[api.WatchWorkspacesResponse]:
    made = []
    for revision, (name, before, state) in enumerate(
        [
            ("web", Workspace.STATE_STARTING, Workspace.STATE_RUNNING),
            ("db", Workspace.STATE_UNSPECIFIED, Workspace.STATE_PENDING),
        ],
        start=1,
    ):
        event = api.WatchWorkspacesResponse(revision=revision, workspace=workspace(name, state), previous_state=before)
        event.time.FromDatetime(MOMENT)
        made.append(event)
    return made


def test_watch_prints_a_line_a_change(broker: FakeBroker, capsys: pytest.CaptureFixture[str]) -> None:
    broker.events = changes()
    end = refusal(grpc.StatusCode.NOT_FOUND, "NOT_FOUND")
    broker.cuts.extend([(2, end)] * 3)
    assert run(["watch"]) == 5
    lines = [line.split("  ", 1)[1] for line in capsys.readouterr().out.splitlines()]
    assert lines == ["web  STARTING -> RUNNING", "db  - -> PENDING"]
    assert run(["watch", "--json"]) == 5
    documents = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [document["revision"] for document in documents] == ["1", "2"]
    assert documents[0]["time"] == "2026-03-01T12:00:00Z"
    assert run(["watch", "db"]) == 5
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_ctrl_c_ends_a_watch(
    broker: FakeBroker, interrupt: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    interrupt("WatchWorkspaces")
    for _ in range(20):
        assert run(["watch"]) == 130
    assert capsys.readouterr().err.strip() == ""
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_twice_does_not_wait_for_a_command_that_cannot_end(
    broker: FakeBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "PATIENCE_SECONDS", 60.0)
    release = threading.Event()

    def stuck(session: Session, arguments: Sequence[str]) -> int:
        assert session.client
        os.kill(os.getpid(), signal.SIGINT)
        while not session.interrupted:  # so that the two do not become one
            release.wait(0.001)
        os.kill(os.getpid(), signal.SIGINT)
        release.wait()
        return 0

    monkeypatch.setattr(app, "_run", stuck)
    assert run(["watch"]) == 130
    release.set()


def test_a_process_that_ignores_ctrl_c_goes_on_ignoring_it(broker: FakeBroker) -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        broker.on_call = lambda method: os.kill(os.getpid(), signal.SIGINT)
        assert run(["pools"]) == 0
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["completion", shell]) == 0
    assert f"_WORKSPACE_COMPLETE={shell}_complete" in capsys.readouterr().out


def completed(line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> list[str]:
    monkeypatch.setenv("_WORKSPACE_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", line)
    monkeypatch.setenv("COMP_CWORD", str(len(line.split(" ")) - 1))
    with pytest.raises(SystemExit):
        run([])
    return [found.partition(",")[2] for found in capsys.readouterr().out.splitlines() if found]


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("workspace sus", ["suspend"]),
        ("workspace show w", ["web", "worker"]),
        ("workspace list --state run", ["running"]),
        ("workspace create --pool ", ["lab"]),
        ("workspace drain lab/", ["lab/xen-1"]),
    ],
)
def test_names_are_completed(
    broker: FakeBroker,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    line: str,
    found: list[str],
) -> None:
    broker.put(workspace(), workspace("worker"), workspace("db"))
    assert [name.lower() for name in completed(line, monkeypatch, capsys)] == found


def test_completion_without_a_broker_offers_nothing_and_says_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with FakeBroker() as gone:
        line = f"workspace --server {gone.address} show w"
    assert completed(line, monkeypatch, capsys) == []
    assert capsys.readouterr().err == ""
