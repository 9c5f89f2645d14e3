"""The requests of calls other than their workspace: names, ids, targets, masks, lists, and what makes two alike."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message
from workspacebroker.v1 import pool_service_pb2 as pools_pb
from workspacebroker.v1 import resources_pb2 as pb
from workspacebroker.v1 import workspace_service_pb2 as calls_pb

from broker.api import calls, names
from broker.api.digest import request_digest
from broker.api.pages import PageTokens
from broker.api.times import timestamp
from broker.api.validate import KnownSets
from broker.core.errors import FieldsInvalid
from broker.core.model import FINAL, EndAction, NodeSet, State
from broker.core.requests import UpdateRequest

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
TYPES = {"m1.small": {"cpu": 1000, "memory": 2048}}
TOKENS = PageTokens(b"key")
NAME = "tenants/acme/workspaces/w1"
SMALL = pb.Workspace(node_sets=[pb.NodeSet(count=1, instance_type="m1.small")])


def create(message: calls_pb.CreateWorkspaceRequest) -> object:
    return calls.create_request(message, known=KnownSets(TYPES), now=NOW)


def check(message: calls_pb.CheckPlacementRequest) -> object:
    return calls.check_request(message, known=KnownSets(TYPES), now=NOW)


def update(message: calls_pb.UpdateWorkspaceRequest) -> UpdateRequest:
    return calls.update_request(message, now=NOW)


def listed(message: calls_pb.ListWorkspacesRequest) -> object:
    return calls.list_request(message, TOKENS)


def updated(*paths: str, workspace: pb.Workspace | None = None) -> calls_pb.UpdateWorkspaceRequest:
    asked = pb.Workspace(name=NAME)
    asked.MergeFrom(workspace or pb.Workspace())
    return calls_pb.UpdateWorkspaceRequest(workspace=asked, update_mask=FieldMask(paths=paths))


def target(**fields: object) -> calls_pb.StartWorkspaceRequest:
    return calls_pb.StartWorkspaceRequest(target=calls_pb.Target(**{"name": NAME, **fields}))  # type: ignore[arg-type]


Create, List = calls_pb.CreateWorkspaceRequest, calls_pb.ListWorkspacesRequest
BAD: list[tuple[Callable[..., object], Message, str, str]] = [
    (create, Create(parent="tenants/acme"), "workspace", "REQUIRED"),
    (create, Create(workspace=SMALL), "parent", "REQUIRED"),
    (create, Create(parent="tenants/-", workspace=SMALL), "parent", "BAD_CHARACTERS"),
    (create, Create(parent="x" * 10_000, workspace=SMALL), "parent", "TOO_LONG"),
    (create, Create(parent="tenants/acme", workspace_id="A b"), "workspace_id", "BAD_CHARACTERS"),
    (create, Create(parent="tenants/acme", workspace_id="a" * 64), "workspace_id", "TOO_LONG"),
    (create, Create(request_id="r" * 65), "request_id", "TOO_LONG"),
    (create, Create(request_id="é"), "request_id", "BAD_CHARACTERS"),
    (create, Create(if_pool_generations={"lab": -1}), 'if_pool_generations["lab"]', "OUT_OF_RANGE"),
    (create, Create(if_pool_generations={"": 1}), 'if_pool_generations[""]', "REQUIRED"),
    (create, Create(workspace=pb.Workspace()), "workspace.node_sets", "REQUIRED"),
    (check, calls_pb.CheckPlacementRequest(parent="tenants/acme"), "workspace", "REQUIRED"),
    (calls.verb_target, calls_pb.StartWorkspaceRequest(), "target.name", "REQUIRED"),
    (calls.verb_target, target(name="tenants/a/workspace/b"), "target.name", "BAD_CHARACTERS"),
    (calls.verb_target, target(node_indexes=[0, -1]), "target.node_indexes[1]", "OUT_OF_RANGE"),
    (calls.verb_target, target(node_indexes=[3, 1, 3]), "target.node_indexes[2]", "DUPLICATE"),
    (calls.verb_target, target(node_indexes=range(1001)), "target.node_indexes", "TOO_LONG"),
    (calls.verb_target, target(request_id="a\n"), "target.request_id", "BAD_CHARACTERS"),
    (calls.verb_target, target(etag="a" * 65), "target.etag", "TOO_LONG"),
    (calls.save_request, calls_pb.SaveNodeRequest(target={"name": NAME}), "image_name", "REQUIRED"),
    (
        calls.save_request,
        calls_pb.SaveNodeRequest(target={"name": NAME, "node_indexes": [0, 1]}, image_name="a"),
        "target.node_indexes",
        "OUT_OF_RANGE",
    ),
    (update, updated(), "update_mask", "REQUIRED"),
    (update, updated("pool"), "update_mask.paths[0]", "UNKNOWN_VALUE"),
    (update, updated("labels", "*"), "update_mask.paths[1]", "UNKNOWN_VALUE"),
    (update, updated("terms.preemptible"), "update_mask.paths[0]", "UNKNOWN_VALUE"),
    (
        update,
        updated("terms.queue_until", workspace=pb.Workspace(terms=pb.LeaseTerms(queue_until=timestamp(NOW)))),
        "workspace.terms.queue_until",
        "IN_THE_PAST",
    ),
    (
        update,
        updated("terms", workspace=pb.Workspace(terms=pb.LeaseTerms(open_ended=True, duration=Duration(seconds=1)))),
        "workspace.terms.open_ended",
        "CONFLICT",
    ),
    (
        update,
        updated("terms.duration", workspace=pb.Workspace(terms=pb.LeaseTerms(duration=Duration(seconds=-1)))),
        "workspace.terms.duration",
        "OUT_OF_RANGE",
    ),
    (
        update,
        updated("display_name", workspace=pb.Workspace(display_name="\n")),
        "workspace.display_name",
        "BAD_CHARACTERS",
    ),
    (
        update,
        calls_pb.UpdateWorkspaceRequest(update_mask=FieldMask(paths=["labels"])),
        "workspace.name",
        "REQUIRED",
    ),
    (listed, List(), "parent", "REQUIRED"),
    (listed, List(parent="tenants/-", page_size=-1), "page_size", "OUT_OF_RANGE"),
    (listed, List(parent="tenants/-", page_size=1001), "page_size", "OUT_OF_RANGE"),
    (listed, List(parent="tenants/-", states=[pb.Workspace.STATE_UNSPECIFIED]), "states[0]", "UNKNOWN_VALUE"),
    (listed, List(parent="tenants/-", states=[4, 99]), "states[1]", "UNKNOWN_VALUE"),  # type: ignore[list-item]
    (listed, List(parent="tenants/-", page_token="nonsense"), "page_token", "BAD_CHARACTERS"),
    (listed, List(parent="tenants/-", label_selector={"a": "\t"}), 'label_selector["a"]', "BAD_CHARACTERS"),
    (listed, List(parent="tenants/-", uids=[""]), "uids[0]", "REQUIRED"),
    (listed, List(parent="tenants/-", pool="A"), "pool", "BAD_CHARACTERS"),
    (calls.wait_request, calls_pb.WaitWorkspaceRequest(name="w1"), "name", "BAD_CHARACTERS"),
    (
        calls.wait_request,
        calls_pb.WaitWorkspaceRequest(name=NAME, timeout=Duration(seconds=-1)),
        "timeout",
        "OUT_OF_RANGE",
    ),
    (
        calls.watch_request,
        calls_pb.WatchWorkspacesRequest(parent="tenants/-", after_revision=-1),
        "after_revision",
        "OUT_OF_RANGE",
    ),
    (calls.pool_update, pools_pb.UpdatePoolRequest(pool={"name": "pools/lab"}), "update_mask", "REQUIRED"),
    (
        calls.pool_update,
        pools_pb.UpdatePoolRequest(pool={"name": "pools/lab"}, update_mask=FieldMask(paths=["state"])),
        "update_mask.paths[0]",
        "UNKNOWN_VALUE",
    ),
    (
        calls.host_update,
        pools_pb.UpdateHostRequest(host={"name": "pools/lab/hosts/%zz"}, update_mask=FieldMask(paths=["cordoned"])),
        "host.name",
        "BAD_CHARACTERS",
    ),
]


@pytest.mark.parametrize(("read", "message", "path", "reason"), BAD)
def test_bad_field_is_named(read: Callable[..., object], message: Message, path: str, reason: str) -> None:
    with pytest.raises(FieldsInvalid) as refused:
        read(message)
    assert (path, reason) in [(each.path, each.reason.value) for each in refused.value.violations]


def test_envelope_and_workspace_are_refused_together() -> None:
    message = Create(parent="acme", request_id="r" * 99, workspace=pb.Workspace(labels={"": ""}))
    with pytest.raises(FieldsInvalid) as refused:
        create(message)
    assert {each.path for each in refused.value.violations} == {
        "parent",
        'workspace.labels[""]',
        "workspace.node_sets",
        "request_id",
    }


def test_create() -> None:
    message = Create(
        parent="tenants/acme", workspace_id="w1", workspace=SMALL, request_id="r 1", if_pool_generations={"lab": 7}
    )
    request = calls.create_request(message, known=KnownSets(TYPES), now=NOW)
    assert (request.tenant, request.workspace_id, request.request_id) == ("acme", "w1", "r 1")
    assert request.if_pool_generations == {"lab": 7}
    assert request.digest == request_digest(message)


def test_target_and_save() -> None:
    asked = calls.verb_target(target(node_indexes=[2, 0], etag="r4"))
    assert (asked.tenant, asked.workspace_id, asked.node_indexes, asked.etag) == ("acme", "w1", (2, 0), "r4")
    saved = calls.save_request(
        calls_pb.SaveNodeRequest(target={"name": NAME, "node_indexes": [1]}, image_name="mine", terminate_after=True)
    )
    assert (saved.image_name, saved.target.node_indexes, saved.terminate_after) == ("mine", (1,), True)


def test_update_terms_means_those_that_may_change() -> None:
    lasting = pb.LeaseTerms(duration=Duration(seconds=60), end_action=pb.LeaseTerms.END_ACTION_SUSPEND)
    request = update(updated("terms", "labels", workspace=pb.Workspace(terms=lasting, etag="r9")))
    assert request.paths == {*calls.TERMS_PATHS, "labels"}
    assert (request.duration, request.end_action) == (timedelta(minutes=1), EndAction.SUSPEND)
    assert (request.labels, request.etag) == ({}, "r9")


def test_update_looks_only_at_what_the_mask_names() -> None:
    asked = pb.Workspace(display_name="ok", labels={"": "\x00"}, terms=pb.LeaseTerms(priority=4))
    assert update(updated("display_name", workspace=asked)).display_name == "ok"


def test_list_defaults_and_pages() -> None:
    message = List(parent="tenants/-")
    request = calls.list_request(message, TOKENS)
    assert (request.tenant, request.page.size, request.page.position) == (None, 100, "")
    assert request.states == frozenset(State) - FINAL
    message.page_token = TOKENS.issue("w42", message)
    message.page_size = 5
    request = calls.list_request(message, TOKENS)
    assert (request.page.size, request.page.position) == (5, "w42")


def test_wait_and_watch() -> None:
    wait = calls.wait_request(
        calls_pb.WaitWorkspaceRequest(name=NAME, timeout=Duration(), states=[pb.Workspace.STATE_RUNNING])
    )
    assert (wait.timeout, wait.states) == (timedelta(0), frozenset({State.RUNNING}))
    wait = calls.wait_request(calls_pb.WaitWorkspaceRequest(name=NAME))
    assert (wait.timeout, wait.states) == (None, frozenset())
    watch = calls.watch_request(calls_pb.WatchWorkspacesRequest(parent="tenants/acme", after_revision=2**62))
    assert (watch.tenant, watch.after_revision) == ("acme", 2**62)


def test_pool_calls() -> None:
    mask = FieldMask(paths=["cordoned"])
    host = pb.Host(name="pools/lab/hosts/node%2F1", cordoned=True)
    assert calls.host_update(pools_pb.UpdateHostRequest(host=host, update_mask=mask)) == ("lab", "node/1", True)
    draining = pools_pb.UpdatePoolRequest(pool=pb.Pool(name="pools/lab"), update_mask=FieldMask(paths=["draining"]))
    assert calls.pool_update(draining) == ("lab", False)
    pool, page = calls.pool_page(pools_pb.ListHostsRequest(parent="pools/lab", page_size=3), TOKENS)
    assert (pool, page.size) == ("lab", 3)
    assert calls.pools_page(pools_pb.ListPoolsRequest(), TOKENS).size == 100


# Names


@pytest.mark.parametrize("host", ["plain", "a/b", "50%", "käfig 7", "..", "a%2Fb", "x" * 128])
def test_host_names_come_back(host: str) -> None:
    name = names.host_name("lab", host)
    assert name.count("/") == 3
    assert names.host(name) == ("lab", host)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "a" * 9999,
        "pools/lab",
        "pools/lab/hosts/",
        "pools/lab/hosts/%ff",
        "pools/lab/hosts/%00",
        "pools/LAB/hosts/a",
        "pools/lab/hosts/a/b",
        "pools/lab/images/a",
        "pools/lab/hosts/" + "x" * 129,
    ],
)
def test_bad_host_names(name: str) -> None:
    with pytest.raises(FieldsInvalid) as refused:
        names.host(name, "host.name")
    assert [each.path for each in refused.value.violations] == ["host.name"]


@pytest.mark.parametrize("name", ["tenants/a-", "tenants/-a", "tenants/9a", "tenants/" + "a" * 64, "tenants/a\n", "/a"])
def test_bad_tenant_names(name: str) -> None:
    with pytest.raises(FieldsInvalid):
        names.tenant(name)


def test_ids_of_one_and_63_characters() -> None:
    assert names.tenants("tenants/a") == "a"
    assert names.tenants("tenants/-") is None
    assert names.workspace(f"tenants/a/workspaces/{'b' * 63}") == ("a", "b" * 63)


# Digests


def test_digest_does_not_depend_on_map_order_or_defaults() -> None:
    keys = [f"key{index}" for index in range(50)]
    one, other = Create(parent="tenants/a"), Create(parent="tenants/a")
    one.workspace.labels.update(dict.fromkeys(keys, "v"))
    other.workspace.labels.update(dict.fromkeys(reversed(keys), "v"))
    other.validate_only = False
    other.workspace.display_name = ""
    one.request_id = "r1"
    assert request_digest(one) == request_digest(other)
    assert request_digest(one).startswith("v1:")


def test_digest_takes_in_unknown_fields_and_content() -> None:
    plain = Create(parent="tenants/a")
    later = Create.FromString(plain.SerializeToString() + b"\xa2\x06\x01x")  # field 100, unknown today
    digests = {request_digest(plain), request_digest(later), request_digest(Create(parent="tenants/b"))}
    assert len(digests) == 3


def test_digest_is_of_the_type_and_leaves_the_request_as_it_was() -> None:
    start, stop = target(request_id="r1"), calls_pb.StopWorkspaceRequest(target={"name": NAME, "request_id": "r2"})
    assert request_digest(start) != request_digest(stop)
    assert request_digest(start) == request_digest(target(request_id="r3"))
    assert start.target.request_id == "r1"


def test_a_set_that_was_read_before_is_the_very_same_value_whatever_stands_around_it() -> None:
    known = KnownSets(TYPES)

    def read(label: str, count: int = 1) -> NodeSet:
        message = Create(parent="tenants/acme", workspace=SMALL)
        message.workspace.labels["a"] = label
        message.workspace.node_sets[0].count = count
        return calls.create_request(message, known=known, now=NOW).workspace.node_sets[0]

    assert read("x") is read("y")
    assert read("x") is not read("x", count=2)


def test_a_set_with_user_data_is_not_kept() -> None:
    known = KnownSets(TYPES)
    message = Create(parent="tenants/acme", workspace=SMALL)
    message.workspace.node_sets[0].user_data = b"secret"
    first, second = (calls.create_request(message, known=known, now=NOW).workspace.node_sets[0] for _ in range(2))
    assert first == second
    assert first is not second


def test_a_bad_set_is_named_each_time_it_comes() -> None:
    known = KnownSets(TYPES)
    message = Create(parent="tenants/acme", workspace=SMALL)
    message.workspace.node_sets[0].count = -1
    for _ in range(2):
        with pytest.raises(FieldsInvalid) as refused:
            calls.create_request(message, known=known, now=NOW)
        assert [each.path for each in refused.value.violations] == ["workspace.node_sets[0].count"]
