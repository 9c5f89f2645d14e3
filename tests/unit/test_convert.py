"""A workspace in a request: what is accepted, and that each kind of bad field is named with its path and reason."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from workspacebroker.v1 import resources_pb2 as pb

from broker.api import times
from broker.api.limits import LIMITS
from broker.api.offered import NOT_OFFERED
from broker.api.validate import workspace_request
from broker.core.demand import Placement
from broker.core.errors import FieldReason, FieldsInvalid
from broker.core.model import EndAction, State, TypedValue, ValueKind
from broker.core.requests import Reference, ReferenceKind, WorkspaceRequest

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
TYPES = {"m1.small": {"cpu": 1000, "memory": 2048}, "half": {"memory": 512}}
Edit = Callable[[pb.Workspace], object]


def small() -> pb.Workspace:
    """The least that is accepted."""
    return pb.Workspace(node_sets=[pb.NodeSet(count=1, instance_type="m1.small")])


def full() -> pb.Workspace:
    """Something in every field that this release offers."""
    return pb.Workspace(
        display_name="Überschall",
        labels={"team": "physics", "Ωmega": ""},
        pool="lab",
        node_sets=[
            pb.NodeSet(
                name="head",
                count=1,
                image="debian 12",
                instance_type="m1.small",
                amounts=pb.Quantities(amounts={"memory": 4096, "example.com/gpu": 1}),
                user_data=b"#!/bin/sh\n\x00",
                nics=[pb.Nic(network="private", name="eth0", addresses=["10.0.0.7", "fd00::7"])],
                ssh_public_keys=["ssh-ed25519 AAAA me@here"],
                disks=[pb.Disk(size_mib=1024, device="sdb", save_as="head-data"), pb.Disk(image="data")],
                save_as="head-root",
            ),
            pb.NodeSet(
                name="worker",
                count=8,
                min_count=4,
                amounts=pb.Quantities(amounts={"cpu": 500, "memory": 512}),
                nics=[pb.Nic(network="private")],
                host_selector={"arch": pb.StringList(values=["x86_64", "aarch64"])},
                placement=pb.NodeSet.PLACEMENT_SPREAD,
                pool="farm",
            ),
        ],
        terms=pb.LeaseTerms(
            duration=times.duration(timedelta(hours=2)),
            earliest_start_time=times.timestamp(NOW + timedelta(hours=1)),
            deadline=times.timestamp(NOW + timedelta(hours=9)),
            end_action=pb.LeaseTerms.END_ACTION_SAVE,
        ),
        parameters={
            "one:cluster": pb.ParameterValue(string_value="blue"),
            "one:weight": pb.ParameterValue(double_value=0.5),
            "x:list": pb.ParameterValue(string_list=pb.StringList(values=["a", "b"])),
            "x:zero": pb.ParameterValue(int_value=0),
            "x:off": pb.ParameterValue(bool_value=False),
            "x:wait": pb.ParameterValue(duration_value=times.duration(timedelta(seconds=1.5))),
            "x:at": pb.ParameterValue(timestamp_value=times.timestamp(NOW)),
        },
        optional_parameters=["x:list"],
        initial_state=pb.Workspace.STATE_PAUSED,
    )


def read(message: pb.Workspace, now: datetime = NOW) -> WorkspaceRequest:
    return workspace_request(message, instance_types=TYPES, now=now)


def violations(message: pb.Workspace) -> list[tuple[str, str]]:
    with pytest.raises(FieldsInvalid) as refused:
        read(message)
    return [(each.path, each.reason.value) for each in refused.value.violations]


def test_least_request() -> None:
    request = read(small())
    (only,) = request.node_sets
    assert (only.count, only.amounts, only.own_amounts) == (1, {"cpu": 1000, "memory": 2048}, {})
    assert (request.initial_state, request.terms.end_action) == (State.RUNNING, EndAction.TERMINATE)
    assert request.nodes == 1


def test_every_field_arrives() -> None:
    request = read(full())
    head, worker = request.node_sets
    assert request.labels == {"team": "physics", "Ωmega": ""}
    assert head.amounts == {"cpu": 1000, "memory": 4096, "example.com/gpu": 1}
    assert head.own_amounts == {"memory": 4096, "example.com/gpu": 1}
    assert head.user_data == b"#!/bin/sh\n\x00"
    assert head.nics[0].addresses == ("10.0.0.7", "fd00::7")
    assert [disk.save_as for disk in head.disks] == ["head-data", ""]
    assert (worker.placement, worker.min_count) == (Placement.SPREAD, 4)
    assert worker.host_selector == {"arch": ("x86_64", "aarch64")}
    assert request.terms.earliest_start_time == NOW + timedelta(hours=1)
    assert request.parameters["x:wait"] == TypedValue(kind=ValueKind.DURATION, value=1.5)
    assert request.parameters["x:at"] == TypedValue(kind=ValueKind.TIMESTAMP, value="2026-03-01T12:00:00Z")
    assert request.parameters["x:zero"] == TypedValue(kind=ValueKind.INT, value=0)
    assert (request.initial_state, request.nodes) == (State.PAUSED, 9)


def test_references_name_their_fields() -> None:
    found = read(full()).references()
    assert {(each.path, each.kind, each.name, each.pools) for each in found if each.value is None} == {
        ("workspace.pool", ReferenceKind.POOL, "lab", ()),
        ("workspace.node_sets[0].image", ReferenceKind.IMAGE, "debian 12", ("lab",)),
        ("workspace.node_sets[0].disks[1].image", ReferenceKind.IMAGE, "data", ("lab",)),
        ("workspace.node_sets[0].nics[0].network", ReferenceKind.NETWORK, "private", ("lab",)),
        ("workspace.node_sets[1].pool", ReferenceKind.POOL, "farm", ()),
        ("workspace.node_sets[1].nics[0].network", ReferenceKind.NETWORK, "private", ("farm",)),
    }
    parameter = next(each for each in found if each.name == "one:cluster")
    assert parameter == Reference(
        path='workspace.parameters["one:cluster"]',
        kind=ReferenceKind.PARAMETER,
        name="one:cluster",
        pools=("lab", "farm"),
        value=TypedValue(kind=ValueKind.STRING, value="blue"),
    )
    assert parameter.unknown("no").reason is FieldReason.UNKNOWN_VALUE
    free = full()
    free.pool = ""
    assert next(each for each in read(free).references() if each.value is not None).pools == ()


def _node_set(edit: Callable[[pb.NodeSet], object]) -> Edit:
    return lambda workspace: edit(workspace.node_sets[0])


def _amount(key: str, value: int) -> Edit:
    return lambda workspace: workspace.node_sets[0].amounts.amounts.update({key: value})


def _terms(**fields: object) -> Edit:
    return lambda workspace: workspace.terms.MergeFrom(pb.LeaseTerms(**fields))  # type: ignore[arg-type]


def _sets(*added: pb.NodeSet) -> Edit:
    return lambda workspace: workspace.node_sets.extend(added)


def _parameter(key: str, **value: object) -> Edit:
    return lambda workspace: workspace.parameters[key].MergeFrom(pb.ParameterValue(**value))  # type: ignore[arg-type]


def _disk(**fields: object) -> Edit:
    return _node_set(lambda nodes: nodes.disks.add(**fields))


def at(seconds: float) -> object:
    return times.timestamp(NOW + timedelta(seconds=seconds))


def lasting(seconds: float) -> object:
    return times.duration(timedelta(seconds=seconds))


SET = "workspace.node_sets[0]"
LONG = "x" * 10_000
BAD: list[tuple[str, Edit, str, str]] = [
    # what, how, path, reason
    ("display name long", lambda w: setattr(w, "display_name", LONG), "workspace.display_name", "TOO_LONG"),
    ("display name", lambda w: setattr(w, "display_name", "a\x00"), "workspace.display_name", "BAD_CHARACTERS"),
    ("label key empty", lambda w: w.labels.update({"": "x"}), 'workspace.labels[""]', "REQUIRED"),
    ("label value", lambda w: w.labels.update({"a": "b\n"}), 'workspace.labels["a"]', "BAD_CHARACTERS"),
    ("label long", lambda w: w.labels.update({"a": LONG}), 'workspace.labels["a"]', "TOO_LONG"),
    ("labels", lambda w: w.labels.update({str(i): "" for i in range(65)}), "workspace.labels", "TOO_LONG"),
    ("pool characters", lambda w: setattr(w, "pool", "Lab!"), "workspace.pool", "BAD_CHARACTERS"),
    ("pool long", lambda w: setattr(w, "pool", LONG), "workspace.pool", "TOO_LONG"),
    ("no node set", lambda w: w.ClearField("node_sets"), "workspace.node_sets", "REQUIRED"),
    ("33 sets", _sets(*[pb.NodeSet()] * 32), "workspace.node_sets", "TOO_LONG"),
    ("nameless of two", _sets(pb.NodeSet(name="b")), f"{SET}.name", "REQUIRED"),
    (
        "one name twice",
        _sets(pb.NodeSet(name="b", count=1), pb.NodeSet(name="b", count=1)),
        "workspace.node_sets[2].name",
        "DUPLICATE",
    ),
    ("set name", _node_set(lambda n: setattr(n, "name", "Head node")), f"{SET}.name", "BAD_CHARACTERS"),
    ("count 0", _node_set(lambda n: setattr(n, "count", 0)), f"{SET}.count", "REQUIRED"),
    ("count negative", _node_set(lambda n: setattr(n, "count", -1)), f"{SET}.count", "OUT_OF_RANGE"),
    ("count large", _node_set(lambda n: setattr(n, "count", 1001)), f"{SET}.count", "OUT_OF_RANGE"),
    (
        "nodes of all sets",
        _sets(pb.NodeSet(name="a", count=600), pb.NodeSet(name="b", count=600)),
        "workspace.node_sets",
        "OUT_OF_RANGE",
    ),
    ("min over count", _node_set(lambda n: setattr(n, "min_count", 2)), f"{SET}.min_count", "OUT_OF_RANGE"),
    ("min negative", _node_set(lambda n: setattr(n, "min_count", -2)), f"{SET}.min_count", "OUT_OF_RANGE"),
    ("image", _node_set(lambda n: setattr(n, "image", "a\tb")), f"{SET}.image", "BAD_CHARACTERS"),
    ("image long", _node_set(lambda n: setattr(n, "image", LONG)), f"{SET}.image", "TOO_LONG"),
    ("type", _node_set(lambda n: setattr(n, "instance_type", "m1.smal")), f"{SET}.instance_type", "UNKNOWN_VALUE"),
    ("type long", _node_set(lambda n: setattr(n, "instance_type", LONG)), f"{SET}.instance_type", "TOO_LONG"),
    (
        "type without cpu",
        _node_set(lambda n: setattr(n, "instance_type", "half")),
        f'{SET}.amounts.amounts["cpu"]',
        "REQUIRED",
    ),
    (
        "no memory",
        _node_set(lambda n: n.CopyFrom(pb.NodeSet(count=1, amounts=pb.Quantities(amounts={"cpu": 1})))),
        f'{SET}.amounts.amounts["memory"]',
        "REQUIRED",
    ),
    ("amount 0", _amount("memory", 0), f'{SET}.amounts.amounts["memory"]', "OUT_OF_RANGE"),
    ("amount negative", _amount("cpu", -5), f'{SET}.amounts.amounts["cpu"]', "OUT_OF_RANGE"),
    ("amount 2^63-1", _amount("cpu", 2**63 - 1), f'{SET}.amounts.amounts["cpu"]', "OUT_OF_RANGE"),
    ("amount key", _amount("a\n", 1), f'{SET}.amounts.amounts["a\\n"]', "BAD_CHARACTERS"),
    ("amount keyless", _amount("", 1), f'{SET}.amounts.amounts[""]', "REQUIRED"),
    (
        "user data",
        _node_set(lambda n: setattr(n, "user_data", bytes(256 * 1024 + 1))),
        f"{SET}.user_data",
        "TOO_LONG",
    ),
    (
        "user data 10 MB",
        _node_set(lambda n: setattr(n, "user_data", bytes(10 * 1024 * 1024))),
        f"{SET}.user_data",
        "TOO_LONG",
    ),
    ("key", _node_set(lambda n: n.ssh_public_keys.append("a\nb")), f"{SET}.ssh_public_keys[0]", "BAD_CHARACTERS"),
    ("key empty", _node_set(lambda n: n.ssh_public_keys.append("")), f"{SET}.ssh_public_keys[0]", "REQUIRED"),
    ("key pairs", _node_set(lambda n: n.key_pairs.append("mine")), f"{SET}.key_pairs", "UNKNOWN_VALUE"),
    ("nic without network", _node_set(lambda n: n.nics.add()), f"{SET}.nics[0].network", "REQUIRED"),
    (
        "17 nics",
        _node_set(lambda n: n.nics.extend([pb.Nic(network="a")] * 17)),
        f"{SET}.nics",
        "TOO_LONG",
    ),
    (
        "nic name twice",
        _node_set(lambda n: n.nics.extend([pb.Nic(network="a", name="eth0")] * 2)),
        f"{SET}.nics[1].name",
        "DUPLICATE",
    ),
    (
        "address",
        _node_set(lambda n: n.nics.add(network="a", addresses=["10.0.0.300"])),
        f"{SET}.nics[0].addresses[0]",
        "BAD_CHARACTERS",
    ),
    (
        "address for two",
        _node_set(lambda n: n.MergeFrom(pb.NodeSet(count=2, nics=[pb.Nic(network="a", addresses=["10.0.0.3"])]))),
        f"{SET}.nics[0].addresses[0]",
        "CONFLICT",
    ),
    ("disk blank", _disk(), f"{SET}.disks[0].size_mib", "REQUIRED"),
    ("disk negative", _disk(size_mib=-1), f"{SET}.disks[0].size_mib", "OUT_OF_RANGE"),
    ("disk of both", _disk(size_mib=1, image="a"), f"{SET}.disks[0].size_mib", "CONFLICT"),
    ("disk saved", _disk(size_mib=1, save_as="a"), f"{SET}.disks[0].save_as", "CONFLICT"),
    ("17 disks", _node_set(lambda n: n.disks.extend([pb.Disk(image="a")] * 17)), f"{SET}.disks", "TOO_LONG"),
    ("set saved", _node_set(lambda n: setattr(n, "save_as", "a")), f"{SET}.save_as", "CONFLICT"),
    (
        "saved under one name",
        lambda w: (
            _node_set(lambda n: setattr(n, "save_as", "a"))(w),
            _disk(size_mib=1, save_as="a")(w),
            _terms(end_action=pb.LeaseTerms.END_ACTION_SAVE)(w),
        ),
        f"{SET}.disks[0].save_as",
        "DUPLICATE",
    ),
    ("SAVE of nothing", _terms(end_action=pb.LeaseTerms.END_ACTION_SAVE), "workspace.terms.end_action", "CONFLICT"),
    (
        "selector of nothing",
        _node_set(lambda n: n.host_selector["arch"].values.clear()),
        f'{SET}.host_selector["arch"].values',
        "REQUIRED",
    ),
    ("placement", _node_set(lambda n: setattr(n, "placement", 77)), f"{SET}.placement", "UNKNOWN_VALUE"),
    ("set's pool", _node_set(lambda n: setattr(n, "pool", "-")), f"{SET}.pool", "BAD_CHARACTERS"),
    ("start past", _terms(start_time=at(-61)), "workspace.terms.start_time", "IN_THE_PAST"),
    ("earliest past", _terms(earliest_start_time=at(-61)), "workspace.terms.earliest_start_time", "IN_THE_PAST"),
    ("deadline past", _terms(deadline=at(-1)), "workspace.terms.deadline", "IN_THE_PAST"),
    (
        "start after deadline",
        _terms(start_time=at(7200), deadline=at(3600)),
        "workspace.terms.deadline",
        "CONFLICT",
    ),
    (
        "window too short",
        _terms(earliest_start_time=at(100), duration=lasting(3600), deadline=at(3699)),
        "workspace.terms.deadline",
        "CONFLICT",
    ),
    ("too long from now", _terms(duration=lasting(3601), deadline=at(3600)), "workspace.terms.deadline", "CONFLICT"),
    (
        "two starts",
        _terms(start_time=at(5), earliest_start_time=at(5)),
        "workspace.terms.earliest_start_time",
        "CONFLICT",
    ),
    ("open and long", _terms(open_ended=True, duration=lasting(5)), "workspace.terms.open_ended", "CONFLICT"),
    ("open and bound", _terms(open_ended=True, deadline=at(5)), "workspace.terms.open_ended", "CONFLICT"),
    ("duration 0", _terms(duration=lasting(0)), "workspace.terms.duration", "OUT_OF_RANGE"),
    ("duration negative", _terms(duration=lasting(-1.5)), "workspace.terms.duration", "OUT_OF_RANGE"),
    ("duration far", _terms(duration={"seconds": 2**63 - 1}), "workspace.terms.duration", "OUT_OF_RANGE"),
    (
        "duration of two signs",
        _terms(duration={"seconds": 5, "nanos": -1}),
        "workspace.terms.duration",
        "OUT_OF_RANGE",
    ),
    ("duration cut to 0", _terms(duration={"nanos": 999}), "workspace.terms.duration", "OUT_OF_RANGE"),
    ("instant far", _terms(start_time={"seconds": 2**63 - 1}), "workspace.terms.start_time", "OUT_OF_RANGE"),
    ("instant long ago", _terms(start_time={"seconds": -(2**63)}), "workspace.terms.start_time", "OUT_OF_RANGE"),
    ("nanos", _terms(deadline={"seconds": 1, "nanos": 10**9}), "workspace.terms.deadline", "OUT_OF_RANGE"),
    ("end action", _terms(end_action=9), "workspace.terms.end_action", "UNKNOWN_VALUE"),
    ("queue in the past", _terms(queue_until=at(-5)), "workspace.terms.queue_until", "IN_THE_PAST"),
    ("queue and start", _terms(queue_until=at(9), start_time=at(5)), "workspace.terms.queue_until", "CONFLICT"),
    ("ensemble", lambda w: setattr(w, "ensemble", "a"), "workspace.ensemble", "BAD_CHARACTERS"),
    ("staged", lambda w: setattr(w, "initial_state", 10), "workspace.initial_state", "UNKNOWN_VALUE"),
    ("saving", lambda w: setattr(w, "initial_state", 13), "workspace.initial_state", "UNKNOWN_VALUE"),
    ("state 99", lambda w: setattr(w, "initial_state", 99), "workspace.initial_state", "UNKNOWN_VALUE"),
    ("parameter unset", _parameter("a:b"), 'workspace.parameters["a:b"]', "REQUIRED"),
    ("parameter key", _parameter("ab", int_value=1), 'workspace.parameters["ab"]', "BAD_CHARACTERS"),
    ("parameter NaN", _parameter("a:b", double_value=float("nan")), 'workspace.parameters["a:b"]', "OUT_OF_RANGE"),
    ("parameter text", _parameter("a:b", string_value="\x00"), 'workspace.parameters["a:b"]', "BAD_CHARACTERS"),
    ("parameter long", _parameter("a:b", string_value=LONG), 'workspace.parameters["a:b"]', "TOO_LONG"),
    (
        "parameter length",
        _parameter("a:b", duration_value={"seconds": 2**62}),
        'workspace.parameters["a:b"]',
        "OUT_OF_RANGE",
    ),
    (
        "65 parameters",
        lambda w: [_parameter(f"a:{i}", int_value=1)(w) for i in range(65)],
        "workspace.parameters",
        "TOO_LONG",
    ),
    (
        "optional of none",
        lambda w: w.optional_parameters.append("a:b"),
        "workspace.optional_parameters[0]",
        "UNKNOWN_VALUE",
    ),
]


@pytest.mark.parametrize(("edit", "path", "reason"), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
def test_bad_field_is_named(edit: Edit, path: str, reason: str) -> None:
    message = small()
    edit(message)
    assert (path, reason) in violations(message)


def test_every_bad_field_at_once() -> None:
    message = pb.Workspace(
        display_name="\x00",
        node_sets=[pb.NodeSet(name="a", count=-1), pb.NodeSet(name="a", min_count=-1, nics=[pb.Nic()])],
        terms=pb.LeaseTerms(open_ended=True, duration=times.duration(timedelta(0))),
        parameters={"ns:name": pb.ParameterValue()},
    )
    assert set(violations(message)) == {
        ("workspace.display_name", "BAD_CHARACTERS"),
        ("workspace.terms.duration", "OUT_OF_RANGE"),
        ("workspace.terms.open_ended", "CONFLICT"),
        ("workspace.node_sets[0].count", "OUT_OF_RANGE"),
        ('workspace.node_sets[0].amounts.amounts["cpu"]', "REQUIRED"),
        ('workspace.node_sets[0].amounts.amounts["memory"]', "REQUIRED"),
        ("workspace.node_sets[1].name", "DUPLICATE"),
        ("workspace.node_sets[1].count", "REQUIRED"),
        ("workspace.node_sets[1].min_count", "OUT_OF_RANGE"),
        ('workspace.node_sets[1].amounts.amounts["cpu"]', "REQUIRED"),
        ('workspace.node_sets[1].amounts.amounts["memory"]', "REQUIRED"),
        ("workspace.node_sets[1].nics[0].network", "REQUIRED"),
        ('workspace.parameters["ns:name"]', "REQUIRED"),
    }


def test_each_field_not_offered_has_a_case() -> None:
    refused = {path for _, _, path, reason in BAD if reason == "UNKNOWN_VALUE"}
    assert {f"workspace.{path.replace('[]', '[0]')}" for path in NOT_OFFERED} <= refused


def test_start_up_to_a_minute_past_means_now() -> None:
    message = small()
    _terms(start_time=at(-60))(message)
    assert read(message).terms.start_time == NOW


def test_broker_time_is_told() -> None:
    message = small()
    _terms(start_time=at(-61))(message)
    with pytest.raises(FieldsInvalid, match=r"the broker's time is 2026-03-01T12:00:00Z"):
        read(message)


def test_instants_are_cut_to_microseconds() -> None:
    message = small()
    message.terms.start_time.FromDatetime(NOW + timedelta(hours=1))
    message.terms.start_time.nanos = 123_456_999
    assert read(message).terms.start_time == NOW + timedelta(hours=1, microseconds=123_456)


def test_window_that_just_holds_is_accepted() -> None:
    message = small()
    _terms(earliest_start_time=at(100), duration=lasting(3600), deadline=at(3700))(message)
    assert read(message).terms.duration == timedelta(hours=1)


def test_output_only_fields_are_ignored() -> None:
    message = full()
    message.state = pb.Workspace.STATE_FAILED
    message.nodes.add(index=-4, state=77)
    message.name = "whatever"
    message.node_sets[0].nics[0].mac = "02:00:00:00:00:01"
    message.create_time.seconds = 2**62
    assert read(message) == read(full())


def test_huge_requests_are_refused_quickly_and_briefly() -> None:
    message = small()
    message.labels.update({f"{i}\n": "\x00" * 100 for i in range(20_000)})
    message.node_sets.extend([pb.NodeSet()] * 5_000)
    for index in range(20_000):
        message.parameters[f"k{index}"].Clear()
    message.node_sets[0].image = "\x07" * 10_000_000
    begun = time.perf_counter()
    with pytest.raises(FieldsInvalid) as refused:
        read(message)
    assert time.perf_counter() - begun < 2
    assert len(refused.value.violations) < 1_000
    assert all(len(each.path) < 500 and len(each.message) < 500 for each in refused.value.violations)


def test_long_keys_are_cut_in_paths() -> None:
    message = small()
    message.labels[LONG] = "x"
    ((path, reason),) = violations(message)
    assert reason == "TOO_LONG"
    assert path == 'workspace.labels["' + "x" * 64 + '…"]'
    assert json.loads(path[len("workspace.labels[") : -1]) == "x" * 64 + "…"


def test_bounds_themselves_are_accepted() -> None:
    message = small()
    message.node_sets[0].user_data = bytes(LIMITS.user_data)
    message.node_sets[0].count = LIMITS.nodes
    message.labels.update({"k" * LIMITS.label_key: "v" * LIMITS.label_value})
    message.node_sets[0].amounts.amounts["disk"] = LIMITS.amount
    message.node_sets[0].disks.extend([pb.Disk(image="a")] * LIMITS.disks)
    assert read(message).nodes == LIMITS.nodes
