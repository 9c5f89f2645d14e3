"""What a refusal becomes on the command line: an exit code by reason, a table of verdicts, and advice."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator

import grpc
import pytest
from google.rpc import error_details_pb2
from workspacebroker.v1.errors_pb2 import ErrorReason, PlacementFailure
from workspacebroker.v1.resources_pb2 import PlacementVerdict as Verdict

from clients import errors
from clients.cli.app import run
from clients.cli.failures import exit_code
from clients.cli.fields import flag_for
from clients.errors import FAMILY_BY_REASON, from_status
from tests.support.fake_broker import MOMENT, FakeBroker, refusal, workspace

Reason = Verdict.Reason
CODE = grpc.StatusCode

EXITS = {
    "FIELD_INVALID": 2,
    "UNAUTHENTICATED": 8,
    "PERMISSION_DENIED": 8,
    "NOT_FOUND": 5,
    "NAME_TAKEN": 6,
    "REQUEST_ID_REUSED": 6,
    "STATE_FORBIDS": 6,
    "TRANSITION_UNDER_WAY": 6,
    "ETAG_MISMATCH": 6,
    "GENERATION_MISMATCH": 6,
    "NO_CAPACITY": 3,
    "NEVER_FITS": 4,
    "QUOTA_EXCEEDED": 8,
    "POOL_DRAINING": 6,
    "HOST_IN_USE": 6,
    "CAPABILITY_MISSING": 4,
    "BACKEND_UNREACHABLE": 7,
    "OVERLOADED": 7,
    "STORE_UNAVAILABLE": 7,
    "SHUTTING_DOWN": 7,
    "DEADLINE_TOO_SHORT": 7,
    "REVISION_COMPACTED": 1,
    "INTERNAL": 1,
    "BACKEND_REJECTED": 1,
    "TASK_TIMEOUT": 1,
    "NODE_GONE": 5,
}


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeBroker]:
    with FakeBroker() as running:
        monkeypatch.setenv("WORKSPACE_SERVER", running.address)
        yield running


def test_the_table_covers_the_api() -> None:
    reasons = {name.removeprefix("ERROR_REASON_") for name in ErrorReason.keys()[1:]}
    assert set(EXITS) == set(FAMILY_BY_REASON) == reasons


@pytest.mark.parametrize(("reason", "code"), EXITS.items())
def test_exit_code_by_reason(broker: FakeBroker, capsys: pytest.CaptureFixture[str], reason: str, code: int) -> None:
    # ABORTED: the code does not count where there is a reason, and it is not retried.
    broker.failures["GetWorkspace"].append(refusal(CODE.ABORTED, reason, f"it says {reason}"))
    assert run(["show", "web"]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"Error: it says {reason}\n")


@pytest.mark.parametrize(
    ("code", "exit_"), [(CODE.UNAVAILABLE, 7), (CODE.DEADLINE_EXCEEDED, 7), (CODE.UNIMPLEMENTED, 1), (CODE.UNKNOWN, 1)]
)
def test_exit_code_of_grpc_errors(code: grpc.StatusCode, exit_: int) -> None:
    error = from_status(refusal(code, "", "no"))
    assert isinstance(error, errors.TransportError)
    assert exit_code(error) == exit_


def test_a_reason_of_a_newer_broker_is_a_fault_not_a_crash() -> None:
    error = from_status(refusal(CODE.ABORTED, "SOMETHING_NEW"))
    assert isinstance(error, errors.BrokerFault)
    assert exit_code(error) == 1


def verdicts() -> list[Verdict]:
    host = Verdict(
        resource_name="pools/lab/hosts/xen%2D1",
        outcome=Verdict.OUTCOME_NEVER,
        reasons=[
            Reason(code=Reason.CODE_INSUFFICIENT_RESOURCE, resource="cpu", requested=8000, available=1500),
            Reason(code=Reason.CODE_HOST_CORDONED, resolvable=True),
        ],
    )
    short = Reason(
        code=Reason.CODE_INSUFFICIENT_RESOURCE,
        resource="memory",
        requested=8192,
        available=4096,
        resolvable=True,
        host_count=3,
    )
    pool = Verdict(resource_name="pools/lab", outcome=Verdict.OUTCOME_NOT_NOW, reasons=[short], host_total=3)
    pool.earliest_start_time.FromDatetime(MOMENT)
    return [host, pool]


def test_every_detail_is_decoded() -> None:
    error = from_status(
        refusal(
            CODE.RESOURCE_EXHAUSTED,
            "NO_CAPACITY",
            "full",
            PlacementFailure(verdicts=verdicts()),
            error_details_pb2.RetryInfo(retry_delay={"seconds": 90}),
            error_details_pb2.ResourceInfo(resource_name="pools/lab"),
            pool="lab",
        )
    )
    assert isinstance(error, errors.NotNow)
    assert (error.code, error.message, error.reason) == (CODE.RESOURCE_EXHAUSTED, "full", "NO_CAPACITY")
    assert error.metadata == {"pool": "lab"}
    assert len(error.verdicts) == 2
    assert (error.retry_after, error.resource) == (90.0, "pools/lab")


def test_a_refused_create_says_why_host_by_host_and_what_to_do(
    broker: FakeBroker, capsys: pytest.CaptureFixture[str]
) -> None:
    status = refusal(CODE.RESOURCE_EXHAUSTED, "NO_CAPACITY", "no room", PlacementFailure(verdicts=verdicts()))
    broker.failures["CreateWorkspace"].append(status)
    flags = ["--pool", "lab", "--image", "debian 12", "--cpu", "8"]
    assert run(["create", *flags, "--id=web", "--wait", "--timeout", "5m"]) == 3
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("Error: Not now; as things stand it fits from ")
    pool, host, more = (" ".join(line.split()) for line in lines[2:5])
    assert pool.startswith("lab NOT NOW not enough memory, on 3 hosts 8 GiB at most 4 GiB ")
    assert host == "lab/xen-1 NEVER not enough cpu 8 cores 1.5 cores"
    assert more == "cordoned by an operator; waiting may help"
    assert lines[5] == "1 of the 3 hosts of lab are shown, those nearest to fitting."
    assert lines[6] == "To see more hosts use: workspace check --pool lab --image 'debian 12' --cpu 8"
    assert lines[7].startswith("To reserve it from then on add: --start 2026-03-01T")


def test_hosts_stand_by_name_within_an_outcome_under_their_pool(
    broker: FakeBroker, capsys: pytest.CaptureFixture[str]
) -> None:
    short = Reason(code=Reason.CODE_INSUFFICIENT_RESOURCE, resource="cpu", requested=8000, available=1)
    never, not_now = Verdict.OUTCOME_NEVER, Verdict.OUTCOME_NOT_NOW
    order = [("b", never), ("b/hosts/n-1", never), ("a/hosts/n-10", not_now), ("a/hosts/n-2", never), ("a", not_now)]
    order += [("a/hosts/n-9", not_now), ("a/hosts/n-1", never)]
    found = [Verdict(resource_name=f"pools/{name}", outcome=outcome) for name, outcome in order]
    for verdict in found:
        verdict.reasons.add().CopyFrom(short)
        if "/" not in verdict.resource_name.removeprefix("pools/"):
            verdict.host_total = 4 if verdict.outcome == not_now else 1
    failure = PlacementFailure(verdicts=found)
    retry = error_details_pb2.RetryInfo(retry_delay={"seconds": 7199, "nanos": 5})
    status = refusal(CODE.RESOURCE_EXHAUSTED, "NO_CAPACITY", "no room", failure, retry)
    broker.failures["CreateWorkspace"].append(status)
    assert run(["create", "--cpu", "8"]) == 3
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[0] for line in lines[2:9]] == ["a", "a/n-9", "a/n-10", "a/n-1", "a/n-2", "b", "b/n-1"]
    assert lines[9:] == ["Try again in 2h."]  # every host has been shown: no advice to check


def test_check_prints_verdicts_and_exits_by_outcome(broker: FakeBroker, capsys: pytest.CaptureFixture[str]) -> None:
    broker.check.verdicts.extend(verdicts())
    for outcome, code in ((Verdict.OUTCOME_FITS, 0), (Verdict.OUTCOME_NOT_NOW, 3), (Verdict.OUTCOME_NEVER, 4)):
        broker.check.outcome = outcome
        assert run(["check", "--image", "debian-12"]) == code
    shown = capsys.readouterr().out
    assert "Never: it would not fit even if every host were empty." in shown
    assert broker.asked("CheckPlacement")[0].include_hosts


def test_every_bad_field_is_named(broker: FakeBroker, capsys: pytest.CaptureFixture[str]) -> None:
    bad = error_details_pb2.BadRequest()
    bad.field_violations.add(field="node_sets[0].count", reason="OUT_OF_RANGE", description="at most 500")
    bad.field_violations.add(field="pool", reason="UNKNOWN_POOL", description="there is no lab")
    broker.failures["CreateWorkspace"].append(refusal(CODE.INVALID_ARGUMENT, "FIELD_INVALID", "two faults", bad))
    assert run(["create", "--image", "x"]) == 2
    shown = capsys.readouterr().err
    assert shown.splitlines() == [
        "Error: 2 things are wrong with the request:",
        "  --count: at most 500",
        "  --pool: there is no lab; see them: workspace pools",
    ]


@pytest.mark.parametrize(
    ("path", "flag"),
    [
        ('workspace.node_sets[0].amounts.amounts["cpu"]', "--cpu"),
        ('workspace.node_sets[0].amounts.amounts["example.com/gpu"]', "--amount example.com/gpu"),
        ("workspace.node_sets[0].instance_type", "--type"),
        ("workspace.node_sets[0].nics[1].network", "--network"),
        ('workspace.node_sets[0].host_selector["arch"].values[0]', "--select arch"),
        ("workspace.node_sets[1].image", "node_sets[1].image"),
        ("workspace.terms.earliest_start_time", "--earliest"),
        ("workspace.terms.start_time", "--start"),
        ('workspace.labels["A B"]', "--label A B"),
        ('workspace.parameters["core:tries"]', "--param core:tries"),
        ("target.node_indexes[0]", "--node"),
        ("if_pool_generations", "if_pool_generations"),
    ],
)
def test_a_field_is_named_as_its_flag(path: str, flag: str) -> None:
    assert flag_for(path) == flag


def test_one_bad_field_is_one_line_that_says_how_to_mend_it(
    broker: FakeBroker, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = error_details_pb2.BadRequest()
    for _ in range(2):
        field = 'workspace.node_sets[0].amounts.amounts["cpu"]'
        bad.field_violations.add(field=field, reason="REQUIRED", description="is missing")
    broker.failures["CreateWorkspace"].append(refusal(CODE.INVALID_ARGUMENT, "FIELD_INVALID", "copied", bad))
    assert run(["create", "--image", "x"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("Error: --cpu is missing; give --cpu CORES, or a whole size with --type")


def test_with_json_a_refusal_is_a_status(broker: FakeBroker, capsys: pytest.CaptureFixture[str]) -> None:
    failure = PlacementFailure(verdicts=verdicts())
    broker.failures["CreateWorkspace"].append(refusal(CODE.FAILED_PRECONDITION, "NEVER_FITS", "no", failure))
    assert run(["create", "--image", "x", "--json"]) == 4
    captured = capsys.readouterr()
    assert captured.out == ""
    status = json.loads(captured.err)
    assert status["code"] == CODE.FAILED_PRECONDITION.value[0]
    assert {"reason": "NEVER_FITS"}.items() <= status["details"][0].items()


def test_an_unreachable_server_is_named_with_how_to_set_it(capsys: pytest.CaptureFixture[str]) -> None:
    with FakeBroker() as broker:
        address = broker.address
    assert run(["--server", address, "list"]) == 7
    shown = capsys.readouterr().err
    assert address in shown
    assert "--server HOST:PORT or WORKSPACE_SERVER" in shown


def test_a_proxy_is_not_used_on_loopback_and_named_elsewhere(
    broker: FakeBroker, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    monkeypatch.setenv("http_proxy", f"http://me:secret@127.0.0.1:{port}")
    monkeypatch.delenv("no_proxy", raising=False)
    assert run(["pools"]) == 0
    capsys.readouterr()
    assert run(["pools", "--server", "broker.invalid:7443"]) == 7
    shown = capsys.readouterr().err
    assert (
        f"through a proxy, http_proxy=http://127.0.0.1:{port}; to go straight there add the host to no_proxy" in shown
    )
    assert "secret" not in shown


def test_strangers_text_cannot_steer_the_terminal(broker: FakeBroker, capsys: pytest.CaptureFixture[str]) -> None:
    broker.put(workspace("web", display_name="\x1b[2J[red]:smile:", state_message="a\rb"))
    assert run(["show", "web"]) == 0
    shown = capsys.readouterr().out
    assert "?[2J[red]:smile:" in shown
    assert "\x1b" not in shown
    assert "\r" not in shown
