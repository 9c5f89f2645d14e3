"""The commands against a broker of canned answers: what is asked, and what is printed."""

from __future__ import annotations

import io
import json
import re
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.json_format import MessageToJson, ParseDict
from workspacebroker.v1 import workspace_service_pb2 as api
from workspacebroker.v1.resources_pb2 import LeaseTerms, NodeSet, ParameterSpec, Tenant, Workspace

from clients.cli.app import cli, run
from clients.cli.failures import Exit
from clients.names import VERBS
from tests.support.fake_broker import FakeBroker, refusal, workspace


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeBroker]:
    with FakeBroker() as running:
        monkeypatch.setenv("WORKSPACE_SERVER", running.address)
        yield running


def created(broker: FakeBroker) -> api.CreateWorkspaceRequest:
    request = broker.asked("CreateWorkspace")[-1]
    assert isinstance(request, api.CreateWorkspaceRequest)
    return request


def test_flags_become_a_request(broker: FakeBroker, tmp_path: Path) -> None:
    key, data = tmp_path / "id.pub", tmp_path / "data"
    key.write_text("# mine\nssh-ed25519 AAAA me\n")
    data.write_bytes(b"#!/bin/sh\n\xff")
    before = datetime.now(UTC)
    flags = "--pool lab --image debian-12 --type m1.small --cpu 1.5 --memory 4GiB --disk 20GB --count 3"
    more = "--min-count 2 --network lan --network wan --start +2h --duration 1d12h --placement one-per-host"
    lists = "--select arch=x86_64 --select arch=arm64 --label team=web --amount example.com/gpu=1"
    terms = "--end-action suspend --initial-state paused --id web --name Web"
    files = ["--ssh-key", str(key), "--user-data", str(data)]
    assert run(["create", *flags.split(), *more.split(), *lists.split(), *terms.split(), *files]) == 0
    request = created(broker)
    wish, node_set = request.workspace, request.workspace.node_sets[0]
    assert (request.parent, request.workspace_id, wish.display_name) == ("tenants/default", "web", "Web")
    assert (node_set.image, node_set.instance_type) == ("debian-12", "m1.small")
    assert dict(node_set.amounts.amounts) == {
        "cpu": 1500,
        "memory": 4096,
        "disk": 19074,
        "example.com/gpu": 1,
    }
    assert (node_set.count, node_set.min_count) == (3, 2)
    assert [nic.network for nic in node_set.nics] == ["lan", "wan"]
    assert list(node_set.ssh_public_keys) == ["ssh-ed25519 AAAA me"]
    assert node_set.user_data == b"#!/bin/sh\n\xff"
    assert list(node_set.host_selector["arch"].values) == ["x86_64", "arm64"]
    assert node_set.placement == NodeSet.PLACEMENT_ONE_PER_HOST
    start = wish.terms.start_time.ToDatetime(tzinfo=UTC) - timedelta(hours=2)
    assert timedelta(0) <= start - before < timedelta(seconds=30)
    assert wish.terms.duration.ToTimedelta() == timedelta(days=1, hours=12)
    assert wish.terms.end_action == LeaseTerms.END_ACTION_SUSPEND
    assert (wish.pool, dict(wish.labels)) == ("lab", {"team": "web"})
    assert wish.initial_state == Workspace.STATE_PAUSED


def test_what_the_broker_does_not_offer_has_no_flag(broker: FakeBroker) -> None:
    assert run(["create", "--image", "x", "--initial-state=stopped"]) == 2
    assert not broker.calls


def test_waiting_and_giving_way_have_flags(broker: FakeBroker) -> None:
    assert run(["create", "--image", "x", "--queue-until=2031-01-01T00:00Z", "--preemptible", "--priority=3"]) == 0
    terms = created(broker).workspace.terms
    assert (terms.queue_until.ToSeconds(), terms.preemptible, terms.priority) == (1_924_992_000, True, 3)


def test_unlimited_is_open_ended(broker: FakeBroker) -> None:
    assert run(["create", "--image", "x", "--duration", "unlimited"]) == 0
    terms = created(broker).workspace.terms
    assert terms.open_ended
    assert not terms.HasField("duration")


WISH: dict[str, Any] = {
    "pool": "lab",
    "nodeSets": [{"name": "head", "count": 2, "image": "old", "amounts": {"amounts": {"cpu": "1000"}}}],
    "terms": {"openEnded": True},
    "labels": {"a": "1"},
}


def write(path: Path, document: Any) -> str:
    path.write_text(json.dumps(document))
    return str(path)


def test_flags_override_a_file_with_a_workspace(broker: FakeBroker, tmp_path: Path) -> None:
    file = write(tmp_path / "r.json", WISH)
    flags = ["--image", "new", "--memory", "512MiB", "--label", "b=2", "--duration", "2h"]
    assert run(["create", "--file", file, *flags]) == 0
    wish = created(broker).workspace
    assert wish.node_sets[0].image == "new"
    assert dict(wish.node_sets[0].amounts.amounts) == {"cpu": 1000, "memory": 512}
    assert (wish.node_sets[0].name, wish.node_sets[0].count) == ("head", 2)
    assert dict(wish.labels) == {"a": "1", "b": "2"}
    assert not wish.terms.open_ended


def test_a_file_with_a_whole_request_keeps_its_own_parent_and_ids(broker: FakeBroker, tmp_path: Path) -> None:
    request = {"parent": "tenants/physics", "workspaceId": "web", "requestId": "r-1", "workspace": WISH}
    file = write(tmp_path / "r.json", request)
    assert run(["create", "--file", file]) == 0
    sent = created(broker)
    assert (sent.parent, sent.workspace_id, sent.request_id) == ("tenants/physics", "web", "r-1")
    assert run(["create", "--file", file, "--tenant", "maths", "--request-id", "r-2"]) == 0
    assert (created(broker).parent, created(broker).request_id) == ("tenants/maths", "r-2")


@pytest.mark.parametrize(
    ("document", "flags", "said"),
    [
        ({"nodeSets": [{"cuont": 1}]}, [], "cuont"),
        ([], [], "a JSON object is needed"),
        ({"nodeSets": [{"count": 1}, {"count": 2}]}, ["--image", "x"], "--image describes one set of nodes"),
        ({}, [], "Say what to lease"),
    ],
)
def test_a_bad_file_is_refused_here(
    broker: FakeBroker,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    document: Any,
    flags: list[str],
    said: str,
) -> None:
    assert run(["create", "--file", write(tmp_path / "r.json", document), *flags]) == 2
    assert said in capsys.readouterr().err
    assert not broker.calls


def test_parameters_take_the_kind_the_pool_publishes(broker: FakeBroker, capsys: pytest.CaptureFixture[str]) -> None:
    kinds = {
        "core:tries": ParameterSpec.KIND_INT,
        "core:weight": ParameterSpec.KIND_DOUBLE,
        "sim:fast": ParameterSpec.KIND_BOOL,
        "sim:delay": ParameterSpec.KIND_DURATION,
        "sim:at": ParameterSpec.KIND_TIMESTAMP,
        "sim:zones": ParameterSpec.KIND_STRING_LIST,
        "sim:note": ParameterSpec.KIND_STRING,
    }
    broker.pool.parameter_specs.extend(ParameterSpec(key=key, kind=kind) for key, kind in kinds.items())
    values = ["core:tries=3", "core:weight=.5", "sim:fast=yes", "sim:delay=.5h", "sim:zones=a, b", "sim:note=7=x"]
    flags = [word for value in [*values, "sim:at=2026-05-01T14:00Z"] for word in ("--param", value)]
    assert run(["create", "--image", "x", *flags]) == 0
    sent = created(broker).workspace.parameters
    assert sent["core:tries"].int_value == 3
    assert sent["core:weight"].double_value == 0.5
    assert sent["sim:fast"].bool_value
    assert sent["sim:delay"].duration_value.seconds == 1800
    assert list(sent["sim:zones"].string_list.values) == ["a", "b"]
    assert sent["sim:note"].string_value == "7=x"
    assert sent["sim:at"].timestamp_value.ToDatetime(tzinfo=UTC).hour == 14
    for bad, said in (("sim:none=1", "no pool knows it; known are core:tries"), ("core:tries=x", "core:tries: ")):
        assert run(["create", "--image", "x", "--param", bad]) == 2
        assert said in capsys.readouterr().err


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_asks_its_own_rpc(broker: FakeBroker, verb: str) -> None:
    broker.put(workspace())
    fields = VERBS[verb].request.DESCRIPTOR.fields_by_name
    flags = ["--force"] * ("force" in fields) + ["--release"] * ("release_capacity" in fields)
    assert run([verb, "web", "--node", "0", "--node", "2", "--request-id", "mine", *flags]) == 0
    (request,) = broker.asked(f"{verb.capitalize()}Workspace")
    assert request.target.name == "tenants/default/workspaces/web"
    assert (list(request.target.node_indexes), request.target.request_id) == ([0, 2], "mine")
    assert all(getattr(request, field) for field in {"force", "release_capacity"} & set(fields))


def test_options_a_verb_does_not_take_are_refused(broker: FakeBroker) -> None:
    assert run(["pause", "web", "--force"]) == 2
    assert not broker.calls


def test_full_names_and_tenants(broker: FakeBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKSPACE_TENANT", "maths")
    run(["show", "web"])
    run(["--tenant", "physics", "show", "web"])
    run(["show", "web", "--tenant", "art"])
    run(["show", "tenants/a/workspaces/b"])
    assert [request.name for request in broker.asked("GetWorkspace")] == [
        "tenants/maths/workspaces/web",
        "tenants/physics/workspaces/web",
        "tenants/art/workspaces/web",
        "tenants/a/workspaces/b",
    ]


def test_list_filters_and_pages(broker: FakeBroker, capsys: pytest.CaptureFixture[str]) -> None:
    broker.page = 1
    broker.put(workspace("a"), workspace("b", Workspace.STATE_PENDING, queue_position=2))
    broker.put(workspace("c", Workspace.STATE_TERMINATED))
    assert run(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[1:]] == [["a", "RUNNING"], ["b", "PENDING"]]
    assert "place 2 in the queue" in lines[2]
    assert run(["list", "--all", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["workspaces"]) == 3
    assert run(["list", "--state", "running", "--label", "k=v", "--pool", "lab"]) == 0
    request = broker.asked("ListWorkspaces")[-1]
    assert list(request.states) == [Workspace.STATE_RUNNING]
    assert (dict(request.label_selector), request.pool) == ({"k": "v"}, "lab")


def test_an_empty_list_is_still_a_document(broker: FakeBroker, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--json", "list"]) == 0
    assert json.loads(capsys.readouterr().out) == {"workspaces": []}
    assert run(["list"]) == 0
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "No workspaces; those that have ended: workspace list --all\n")


def test_json_has_zeros_and_false_too(broker: FakeBroker, capsys: pytest.CaptureFixture[str]) -> None:
    broker.put(workspace())
    assert run(["show", "web", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["nodes"][0]["index"], shown["nodes"][0]["capacityReleased"], shown["notices"]) == (0, False, [])
    assert "endTime" not in shown


def test_json_parses_back_to_the_same_message(broker: FakeBroker, capsys: pytest.CaptureFixture[str]) -> None:
    shown = workspace(labels={"a": "ü"}, revision=7, display_name="Wäb")
    shown.end_time.FromDatetime(datetime(2026, 3, 1, 12))
    broker.put(shown)
    assert run(["show", "web", "--json"]) == 0
    out = capsys.readouterr().out
    assert ParseDict(json.loads(out), Workspace()) == shown
    assert '"endTime": "2026-03-01T12:00:00Z"' in out
    assert run(["create", "--image", "x", "--json"]) == 0
    captured = capsys.readouterr()
    assert ParseDict(json.loads(captured.out), Workspace()).state == Workspace.STATE_STARTING
    assert captured.err == ""


def test_show_tells_what_goes_on_and_went_wrong(broker: FakeBroker, capsys: pytest.CaptureFixture[str]) -> None:
    shown = workspace(state=Workspace.STATE_STARTING, state_message="1 of 2", cause=Workspace.CAUSE_REQUESTED)
    shown.nodes[0].activity.step, shown.nodes[0].activity.percent = "deploy", 40
    shown.nodes[0].activity.attempt = 2
    shown.notices.add(kind=Workspace.Notice.KIND_STUCK, message="keeps failing")
    shown.last_error.CopyFrom(refusal(grpc.StatusCode.FAILED_PRECONDITION, "BACKEND_REJECTED", "no such disk"))
    broker.put(shown)
    assert run(["show", "web"]) == 0
    out = capsys.readouterr().out
    for part in (
        "STARTING (requested)",
        "1 of 2",
        "lab/xen-1",
        "10.0.0.7",
        "deploy 40 %, try 2",
        "Notice STUCK: keeps failing",
        "Last error (BACKEND_REJECTED): no such disk",
    ):
        assert part in out


def test_update_names_only_what_changes(broker: FakeBroker) -> None:
    broker.put(workspace(labels={"a": "1", "b": "2"}, etag="e7"))
    assert run(["update", "web", "--duration", "4h", "--end-action", "save", "--name", ""]) == 0
    request = broker.asked("UpdateWorkspace")[0]
    paths = ["terms.duration", "terms.open_ended", "terms.end_action", "display_name"]
    assert list(request.update_mask.paths) == paths
    assert not request.workspace.etag
    assert run(["update", "web", "--label", "c=3", "--remove-label", "a"]) == 0
    request = broker.asked("UpdateWorkspace")[1]
    assert list(request.update_mask.paths) == ["labels"]
    assert (dict(request.workspace.labels), request.workspace.etag) == ({"b": "2", "c": "3"}, "e7")
    assert run(["update", "web"]) == 2


def test_save(broker: FakeBroker) -> None:
    broker.put(workspace())
    assert run(["save", "web", "--node", "3", "--image-name", "golden"]) == 0
    (request,) = broker.asked("SaveNode")
    assert (list(request.target.node_indexes), request.image_name) == ([3], "golden")


def test_pools_and_hosts(broker: FakeBroker, capsys: pytest.CaptureFixture[str]) -> None:
    broker.pool.instance_types.add(name="m1.small").amounts.amounts.update({"cpu": 1500, "memory": 1536})
    broker.pool.parameter_specs.add(key="core:tries", kind=ParameterSpec.KIND_INT, description="how often")
    for command in (
        "pools",
        "hosts lab",
        "images lab",
        "networks lab",
        "types lab",
        "parameters lab",
        "strays lab",
        "refresh lab",
    ):
        assert run(command.split()) == 0
        text = capsys.readouterr().out
        assert run([*command.split(), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)
        assert len(text.splitlines()) >= 2
    assert run(["cordon", "lab/xen-1"]) == 0
    assert "ACTIVE, cordoned" in capsys.readouterr().out
    assert run(["uncordon", "pools/lab/hosts/xen-1"]) == 0
    assert [request.host.cordoned for request in broker.asked("UpdateHost")] == [True, False]
    assert run(["cordon", "lab"]) == 0
    assert broker.pool.draining
    broker.put(workspace())
    assert run(["drain", "lab/xen-1", "--suspend-rest"]) == 0
    assert "Cannot be moved and stay: web" in capsys.readouterr().err
    assert broker.asked("DrainHost")[0].suspend_rest
    assert run(["drain", "lab"]) == 2


def test_usage_shows_limits_and_does_not_make_any_up(broker: FakeBroker, capsys: pytest.CaptureFixture[str]) -> None:
    broker.tenant.limits.amounts["cpu"] = 4000
    broker.tenant.used.amounts["cpu"] = 500
    broker.tenant.pool_used["lab"].amounts["nodes"] = 3
    assert run(["usage"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows[1:] == [
        ["all", "cpu", "0.5", "cores", "4", "cores"],
        ["all", "memory", "0", "MiB", "none"],
        ["all", "nodes", "0", "none"],
        ["all", "workspaces", "0", "none"],
        ["lab", "nodes", "3", "none"],
    ]
    assert run(["usage", "--json"]) == 0
    assert ParseDict(json.loads(capsys.readouterr().out), Tenant()) == broker.tenant
    assert "poolLimits" not in MessageToJson(broker.tenant)


def test_output_without_a_terminal_is_plain_and_not_cut(
    broker: FakeBroker, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    broker.put(workspace("w" * 60, state_message="m" * 200))
    assert run(["list"]) == 0
    out = capsys.readouterr().out
    assert "w" * 60 in out
    assert "m" * 200 in out
    assert "\x1b" not in out
    assert all(line == line.rstrip() for line in out.splitlines())


def test_every_command_has_help_with_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    for name in cli.commands:
        assert run([name, "--help"]) == 0
        shown = capsys.readouterr().out
        assert "Exit codes" not in shown
        assert f"Example:\n  workspace {name}" in shown, name


def test_version_and_unknown_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out.startswith("workspace ")
    assert run(["frobnicate"]) == 2
    assert "No such command" in capsys.readouterr().err


def test_the_help_names_every_command_whole_and_every_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    shown = capsys.readouterr().out
    commands = shown[shown.index("Asking and leasing") : shown.index("Exit codes")]
    assert "..." not in commands
    assert all(f"\n  {name} " in commands for name in cli.commands)
    listed = re.findall(r"^  (\d+) ", shown[shown.index("Exit codes") :], re.MULTILINE)
    assert listed == [str(int(code)) for code in Exit]


class Screen(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("width", [200, 80, 60, 30])
def test_on_a_terminal_no_word_is_cut(broker: FakeBroker, monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setattr(sys, "stdout", screen := Screen())
    why = "the front-end has answered something that is no XML-RPC at all"
    shown = workspace(state_message=why)
    shown.end_time.FromDatetime(datetime(2041, 3, 1, 12, tzinfo=UTC))
    broker.put(shown, workspace("a-rather-long-name"))
    broker.pool.last_error.message = why
    broker.pool.refresh_time.GetCurrentTime()
    for command in ("list", "pools", "hosts lab"):
        assert run(command.split()) == 0
    words = screen.getvalue().split()
    assert {"a-rather-long-name", "2041-03-01", "RUNNING", "simulator", "2/8", "4/16", *why.split()} <= set(words)
    if width >= 80:
        assert max(map(len, screen.getvalue().splitlines())) <= width
        assert "lab/xen-1  ACTIVE  6/8         12/16 GiB    0" in screen.getvalue()


def test_times_of_today_are_short_and_have_their_offset(
    broker: FakeBroker, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "Asia/Kolkata")
    time.tzset()
    try:
        broker.pool.refresh_time.GetCurrentTime()
        seen = broker.pool.refresh_time.ToDatetime(tzinfo=UTC) + timedelta(hours=5, minutes=30)
        assert run(["pools"]) == 0
        head, row = capsys.readouterr().out.splitlines()
        assert head.endswith("SEEN (+05:30)")
        assert row.endswith(f"{seen:%H:%M:%S}")
        assert run(["pools", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["pools"][0]["refreshTime"].endswith("Z")
    finally:
        monkeypatch.undo()
        time.tzset()
