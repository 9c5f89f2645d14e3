"""Bad requests over the wire: each names every bad field, and leaves nothing behind."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from workspacebroker.v1 import pool_service_pb2 as pool_api
from workspacebroker.v1 import resources_pb2 as pb
from workspacebroker.v1 import workspace_service_pb2 as api

from tests.support.api import at, footprint, lasting, pool, refused, site, updated
from tests.support.broker import TENANT, running

LAB = site(
    pool(
        "lab",
        'images = ["debian-12", "alpine-3"]\n'
        'networks = [{ name = "net", addresses = 9 }]\n'
        'parameters = [{ key = "sim:speed", kind = "INT", description = "for tests" }]',
    ),
    rest='[instance_types."m1.small"]\ncpu = 1000\nmemory = 1024\n[instance_types.odd]\ncpu = 1000',
)
LONG = "x" * 10_000
HUGE = 2**63 - 1
SET = "workspace.node_sets[0]"
TERMS = "workspace.terms"


def good() -> api.CreateWorkspaceRequest:
    """A request with nothing wrong."""
    request = api.CreateWorkspaceRequest(parent=TENANT, workspace_id="ws", request_id="once")
    request.workspace.node_sets.add(
        count=1, image="debian-12", amounts=pb.Quantities(amounts={"cpu": 1000, "memory": 64})
    )
    return request


def far(**parts: float) -> Timestamp:
    return at(datetime.now(UTC) + timedelta(**parts))


Change = Callable[[api.CreateWorkspaceRequest, pb.Workspace, pb.NodeSet], Any]


def together(*changes: Change) -> Change:
    """Several changes of one request."""

    def change(request: api.CreateWorkspaceRequest, workspace: pb.Workspace, nodes: pb.NodeSet) -> None:
        for each in changes:
            each(request, workspace, nodes)

    return change


def nic(nodes: pb.NodeSet, **fields: Any) -> None:
    nodes.nics.add(**{"network": "net", **fields})


def two_sets(ws: pb.Workspace, *names: str) -> None:
    for name in names[1:]:
        ws.node_sets.add().CopyFrom(ws.node_sets[0])
        ws.node_sets[-1].name = name
    ws.node_sets[0].name = names[0]


TABLE: dict[str, tuple[Change, dict[str, str]]] = {
    # What envelops the workspace
    "no parent": (lambda r, ws, ns: r.ClearField("parent"), {"parent": "REQUIRED"}),
    "parent of another kind": (lambda r, ws, ns: setattr(r, "parent", "pools/lab"), {"parent": "BAD_CHARACTERS"}),
    "parent of everyone": (lambda r, ws, ns: setattr(r, "parent", "tenants/-"), {"parent": "BAD_CHARACTERS"}),
    "parent too long": (lambda r, ws, ns: setattr(r, "parent", "tenants/" + LONG), {"parent": "TOO_LONG"}),
    "no workspace": (lambda r, ws, ns: r.ClearField("workspace"), {"workspace": "REQUIRED"}),
    "id with capitals": (lambda r, ws, ns: setattr(r, "workspace_id", "Web"), {"workspace_id": "BAD_CHARACTERS"}),
    "id with a line end": (lambda r, ws, ns: setattr(r, "workspace_id", "web\n"), {"workspace_id": "BAD_CHARACTERS"}),
    "id with a slash": (lambda r, ws, ns: setattr(r, "workspace_id", "a/b"), {"workspace_id": "BAD_CHARACTERS"}),
    "id of 10,000": (lambda r, ws, ns: setattr(r, "workspace_id", LONG), {"workspace_id": "TOO_LONG"}),
    "request id of 65": (lambda r, ws, ns: setattr(r, "request_id", "x" * 65), {"request_id": "TOO_LONG"}),
    "request id not ASCII": (lambda r, ws, ns: setattr(r, "request_id", "ä"), {"request_id": "BAD_CHARACTERS"}),
    "generation below 0": (
        lambda r, ws, ns: r.if_pool_generations.update({"lab": -1}),
        {'if_pool_generations["lab"]': "OUT_OF_RANGE"},
    ),
    # The workspace
    "display name of 10,000": (
        lambda r, ws, ns: setattr(ws, "display_name", LONG),
        {"workspace.display_name": "TOO_LONG"},
    ),
    "display name with a bell": (
        lambda r, ws, ns: setattr(ws, "display_name", "a\a"),
        {"workspace.display_name": "BAD_CHARACTERS"},
    ),
    "label without a key": (lambda r, ws, ns: ws.labels.update({"": "x"}), {'workspace.labels[""]': "REQUIRED"}),
    "label too long": (lambda r, ws, ns: ws.labels.update({"k": LONG}), {'workspace.labels["k"]': "TOO_LONG"}),
    "65 labels": (
        lambda r, ws, ns: ws.labels.update({f"k{n}": "" for n in range(65)}),
        {"workspace.labels": "TOO_LONG"},
    ),
    "no node sets": (lambda r, ws, ns: ws.ClearField("node_sets"), {"workspace.node_sets": "REQUIRED"}),
    "unknown initial state": (
        lambda r, ws, ns: setattr(ws, "initial_state", 99),
        {"workspace.initial_state": "UNKNOWN_VALUE"},
    ),
    "initial state that none begins in": (
        lambda r, ws, ns: setattr(ws, "initial_state", pb.Workspace.STATE_FAILED),
        {"workspace.initial_state": "UNKNOWN_VALUE"},
    ),
    "an ensemble that is not there": (
        lambda r, ws, ns: setattr(ws, "ensemble", "tenants/default/ensembles/e"),
        {"workspace.ensemble": "UNKNOWN_ENSEMBLE"},
    ),
    # Numbers
    "count missing": (lambda r, ws, ns: ns.ClearField("count"), {f"{SET}.count": "REQUIRED"}),
    "count negative": (lambda r, ws, ns: setattr(ns, "count", -1), {f"{SET}.count": "OUT_OF_RANGE"}),
    "count greatest": (lambda r, ws, ns: setattr(ns, "count", 2**31 - 1), {f"{SET}.count": "OUT_OF_RANGE"}),
    "min_count negative": (lambda r, ws, ns: setattr(ns, "min_count", -1), {f"{SET}.min_count": "OUT_OF_RANGE"}),
    "min_count over count": (lambda r, ws, ns: setattr(ns, "min_count", 2), {f"{SET}.min_count": "OUT_OF_RANGE"}),
    "cpu missing": (
        lambda r, ws, ns: ns.amounts.amounts.pop("cpu"),
        {f'{SET}.amounts.amounts["cpu"]': "REQUIRED"},
    ),
    "all amounts missing": (
        lambda r, ws, ns: ns.ClearField("amounts"),
        {f'{SET}.amounts.amounts["cpu"]': "REQUIRED", f'{SET}.amounts.amounts["memory"]': "REQUIRED"},
    ),
    "memory zero": (
        lambda r, ws, ns: ns.amounts.amounts.update({"memory": 0}),
        {f'{SET}.amounts.amounts["memory"]': "OUT_OF_RANGE"},
    ),
    "memory negative": (
        lambda r, ws, ns: ns.amounts.amounts.update({"memory": -(2**63)}),
        {f'{SET}.amounts.amounts["memory"]': "OUT_OF_RANGE"},
    ),
    "memory 2^63 - 1": (
        lambda r, ws, ns: ns.amounts.amounts.update({"memory": HUGE}),
        {f'{SET}.amounts.amounts["memory"]': "OUT_OF_RANGE"},
    ),
    "resource without a name": (
        lambda r, ws, ns: ns.amounts.amounts.update({"": 1}),
        {f'{SET}.amounts.amounts[""]': "REQUIRED"},
    ),
    "40 resources": (
        lambda r, ws, ns: ns.amounts.amounts.update({f"a{n}": 1 for n in range(40)}),
        {f"{SET}.amounts.amounts": "TOO_LONG"},
    ),
    # Names and bytes
    "two sets of one name": (
        lambda r, ws, ns: two_sets(ws, "a", "a"),
        {"workspace.node_sets[1].name": "DUPLICATE"},
    ),
    "two sets, one without a name": (
        lambda r, ws, ns: two_sets(ws, "a", ""),
        {"workspace.node_sets[1].name": "REQUIRED"},
    ),
    "33 sets": (
        lambda r, ws, ns: two_sets(ws, *(f"s{n}" for n in range(33))),
        {"workspace.node_sets": "TOO_LONG"},
    ),
    "nodes of all sets": (
        together(lambda r, ws, ns: setattr(ns, "count", 600), lambda r, ws, ns: two_sets(ws, "a", "b")),
        {"workspace.node_sets": "OUT_OF_RANGE"},
    ),
    "set name with a space": (lambda r, ws, ns: setattr(ns, "name", "a b"), {f"{SET}.name": "BAD_CHARACTERS"}),
    "10 MB of user data": (
        lambda r, ws, ns: setattr(ns, "user_data", b"x" * 10_000_000),
        {f"{SET}.user_data": "TOO_LONG"},
    ),
    "image of 10,000": (lambda r, ws, ns: setattr(ns, "image", LONG), {f"{SET}.image": "TOO_LONG"}),
    "empty key": (lambda r, ws, ns: ns.ssh_public_keys.append(""), {f"{SET}.ssh_public_keys[0]": "REQUIRED"}),
    "key with a line end": (
        lambda r, ws, ns: ns.ssh_public_keys.append("ssh-rsa a\nssh-rsa b"),
        {f"{SET}.ssh_public_keys[0]": "BAD_CHARACTERS"},
    ),
    "key pairs, not offered": (lambda r, ws, ns: ns.key_pairs.append("me"), {f"{SET}.key_pairs": "UNKNOWN_VALUE"}),
    "unknown placement": (lambda r, ws, ns: setattr(ns, "placement", 9), {f"{SET}.placement": "UNKNOWN_VALUE"}),
    "selector without values": (
        lambda r, ws, ns: ns.host_selector["arch"].Clear(),
        {f'{SET}.host_selector["arch"].values': "REQUIRED"},
    ),
    "nic without a network": (lambda r, ws, ns: nic(ns, network=""), {f"{SET}.nics[0].network": "REQUIRED"}),
    "nic twice": (
        together(lambda r, ws, ns: nic(ns, name="eth0"), lambda r, ws, ns: nic(ns, name="eth0")),
        {f"{SET}.nics[1].name": "DUPLICATE"},
    ),
    "no address": (
        lambda r, ws, ns: nic(ns, addresses=["10.0.0.256"]),
        {f"{SET}.nics[0].addresses[0]": "BAD_CHARACTERS"},
    ),
    "one address for two": (
        together(lambda r, ws, ns: setattr(ns, "count", 2), lambda r, ws, ns: nic(ns, addresses=["10.0.0.1"])),
        {f"{SET}.nics[0].addresses[0]": "CONFLICT"},
    ),
    "blank disk without a size": (lambda r, ws, ns: ns.disks.add(), {f"{SET}.disks[0].size_mib": "REQUIRED"}),
    "blank disk below 0": (
        lambda r, ws, ns: ns.disks.add(size_mib=-1),
        {f"{SET}.disks[0].size_mib": "OUT_OF_RANGE"},
    ),
    "disk of an image and a size": (
        lambda r, ws, ns: ns.disks.add(image="alpine-3", size_mib=1),
        {f"{SET}.disks[0].size_mib": "CONFLICT"},
    ),
    "saved, and ended otherwise": (lambda r, ws, ns: setattr(ns, "save_as", "mine"), {f"{SET}.save_as": "CONFLICT"}),
    # When
    "duration zero": (lambda r, ws, ns: ws.terms.duration.SetInParent(), {f"{TERMS}.duration": "OUT_OF_RANGE"}),
    "duration negative": (
        lambda r, ws, ns: ws.terms.duration.CopyFrom(lasting(hours=-1)),
        {f"{TERMS}.duration": "OUT_OF_RANGE"},
    ),
    "duration 2^63 - 1": (
        lambda r, ws, ns: ws.terms.duration.CopyFrom(Duration(seconds=HUGE)),
        {f"{TERMS}.duration": "OUT_OF_RANGE"},
    ),
    "duration of two signs": (
        lambda r, ws, ns: ws.terms.duration.CopyFrom(Duration(seconds=1, nanos=-1)),
        {f"{TERMS}.duration": "OUT_OF_RANGE"},
    ),
    "start 2^63 - 1": (
        lambda r, ws, ns: ws.terms.start_time.CopyFrom(Timestamp(seconds=HUGE)),
        {f"{TERMS}.start_time": "OUT_OF_RANGE"},
    ),
    "start past": (
        lambda r, ws, ns: ws.terms.start_time.CopyFrom(far(minutes=-2)),
        {f"{TERMS}.start_time": "IN_THE_PAST"},
    ),
    "deadline past": (
        lambda r, ws, ns: ws.terms.deadline.CopyFrom(far(minutes=-2)),
        {f"{TERMS}.deadline": "IN_THE_PAST"},
    ),
    "start after deadline": (
        together(
            lambda r, ws, ns: ws.terms.start_time.CopyFrom(far(hours=2)),
            lambda r, ws, ns: ws.terms.deadline.CopyFrom(far(hours=1)),
        ),
        {f"{TERMS}.deadline": "CONFLICT"},
    ),
    "two starts": (
        together(
            lambda r, ws, ns: ws.terms.start_time.CopyFrom(far(hours=1)),
            lambda r, ws, ns: ws.terms.earliest_start_time.CopyFrom(far(hours=1)),
        ),
        {f"{TERMS}.earliest_start_time": "CONFLICT"},
    ),
    "open end and a duration": (
        together(
            lambda r, ws, ns: ws.terms.duration.CopyFrom(lasting(hours=1)),
            lambda r, ws, ns: setattr(ws.terms, "open_ended", True),
        ),
        {f"{TERMS}.open_ended": "CONFLICT"},
    ),
    "unknown end action": (
        lambda r, ws, ns: setattr(ws.terms, "end_action", 7),
        {f"{TERMS}.end_action": "UNKNOWN_VALUE"},
    ),
    "end action that saves nothing": (
        lambda r, ws, ns: setattr(ws.terms, "end_action", pb.LeaseTerms.END_ACTION_SAVE),
        {f"{TERMS}.end_action": "CONFLICT"},
    ),
    "a wait that is over already": (
        lambda r, ws, ns: ws.terms.queue_until.CopyFrom(far(hours=-1)),
        {f"{TERMS}.queue_until": "IN_THE_PAST"},
    ),
    # Parameters
    "parameter without a value": (
        lambda r, ws, ns: ws.parameters["sim:speed"].Clear(),
        {'workspace.parameters["sim:speed"]': "REQUIRED"},
    ),
    "parameter without a namespace": (
        lambda r, ws, ns: ws.parameters["speed"].MergeFrom(pb.ParameterValue(int_value=1)),
        {'workspace.parameters["speed"]': "BAD_CHARACTERS"},
    ),
    "parameter of no number": (
        lambda r, ws, ns: ws.parameters["sim:speed"].MergeFrom(pb.ParameterValue(double_value=math.nan)),
        {'workspace.parameters["sim:speed"]': "OUT_OF_RANGE"},
    ),
    "optional, and not given": (
        lambda r, ws, ns: ws.optional_parameters.append("sim:speed"),
        {"workspace.optional_parameters[0]": "UNKNOWN_VALUE"},
    ),
    # What no pool knows
    "unknown pool": (lambda r, ws, ns: setattr(ws, "pool", "lap"), {"workspace.pool": "UNKNOWN_POOL"}),
    "pool with wrong characters": (lambda r, ws, ns: setattr(ws, "pool", "Lab!"), {"workspace.pool": "BAD_CHARACTERS"}),
    "unknown pool of a set": (lambda r, ws, ns: setattr(ns, "pool", "lap"), {f"{SET}.pool": "UNKNOWN_POOL"}),
    "unknown image": (lambda r, ws, ns: setattr(ns, "image", "debian-21"), {f"{SET}.image": "UNKNOWN_IMAGE"}),
    "unknown image of a disk": (
        lambda r, ws, ns: ns.disks.add(image="data"),
        {f"{SET}.disks[0].image": "UNKNOWN_IMAGE"},
    ),
    "unknown network": (lambda r, ws, ns: nic(ns, network="nat"), {f"{SET}.nics[0].network": "UNKNOWN_NETWORK"}),
    "unknown instance type": (
        lambda r, ws, ns: setattr(ns, "instance_type", "m1.smal"),
        {f"{SET}.instance_type": "UNKNOWN_VALUE"},
    ),
    "instance type without memory": (
        together(lambda r, ws, ns: ns.ClearField("amounts"), lambda r, ws, ns: setattr(ns, "instance_type", "odd")),
        {f'{SET}.amounts.amounts["memory"]': "REQUIRED"},
    ),
    "unknown parameter": (
        lambda r, ws, ns: ws.parameters["sim:sped"].MergeFrom(pb.ParameterValue(int_value=1)),
        {'workspace.parameters["sim:sped"]': "UNKNOWN_VALUE"},
    ),
    "parameter of another kind": (
        lambda r, ws, ns: ws.parameters["sim:speed"].MergeFrom(pb.ParameterValue(string_value="1")),
        {'workspace.parameters["sim:speed"]': "WRONG_KIND"},
    ),
}


async def test_each_bad_field_is_named_and_nothing_is_kept(tmp_path: Path) -> None:
    """One broker takes the whole table, so that whatever one request left behind shows in the next."""
    async with running(tmp_path, LAB) as broker:
        before = await footprint(broker)
        wrong: list[tuple[object, ...]] = []
        for what, (change, expected) in TABLE.items():
            request = good()
            change(
                request, request.workspace if what != "no workspace" else pb.Workspace(), request.workspace.node_sets[0]
            )
            refusal = await refused(broker.workspaces.CreateWorkspace(request))
            told = (refusal.code, refusal.reason, refusal.violations)
            if told != ("INVALID_ARGUMENT", "FIELD_INVALID", expected):
                wrong.append((what, told, expected))
            if "workspace_id" not in expected and request.HasField("workspace") and "request_id" not in expected:
                check = api.CheckPlacementRequest(parent=request.parent, workspace=request.workspace)
                if not expected.keys() & {'if_pool_generations["lab"]'}:
                    same = await refused(broker.workspaces.CheckPlacement(check))
                    if same.violations != expected:
                        wrong.append((f"{what}, asked by CheckPlacement", same.violations, expected))
        assert not wrong, "\n".join(map(str, wrong))
        assert await footprint(broker) == before
        answer = await broker.workspaces.CreateWorkspace(good())  # the request id and the name are free
        assert answer.workspace.name == f"{TENANT}/workspaces/ws"


async def test_all_bad_fields_of_one_request_are_named_at_once(tmp_path: Path) -> None:
    async with running(tmp_path, LAB) as broker:
        before = await footprint(broker)
        request = api.CreateWorkspaceRequest(parent="nobody", workspace_id="A", request_id="\n")
        workspace = request.workspace
        workspace.terms.duration.CopyFrom(lasting(hours=-1))
        workspace.labels["k"] = LONG
        workspace.parameters["sim:sped"].int_value = 1
        nodes = workspace.node_sets.add(count=-1, image="debian-12", amounts=pb.Quantities(amounts={"cpu": 0}))
        nodes.nics.add(network="")
        workspace.node_sets.add(name="other", count=1, instance_type="odd", image="debian", pool="lap")
        refusal = await refused(broker.workspaces.CreateWorkspace(request))
        assert refusal.violations == {
            "parent": "BAD_CHARACTERS",
            "workspace_id": "BAD_CHARACTERS",
            "request_id": "BAD_CHARACTERS",
            "workspace.terms.duration": "OUT_OF_RANGE",
            'workspace.labels["k"]': "TOO_LONG",
            'workspace.parameters["sim:sped"]': "UNKNOWN_VALUE",
            f"{SET}.name": "REQUIRED",
            f"{SET}.count": "OUT_OF_RANGE",
            f'{SET}.amounts.amounts["cpu"]': "OUT_OF_RANGE",
            f'{SET}.amounts.amounts["memory"]': "REQUIRED",
            f"{SET}.nics[0].network": "REQUIRED",
            'workspace.node_sets[1].amounts.amounts["memory"]': "REQUIRED",
            "workspace.node_sets[1].pool": "UNKNOWN_POOL",
        }
        assert all(each.description for each in refusal.details["BadRequest"].field_violations)
        assert await footprint(broker) == before


async def test_unknown_names_of_one_request_are_named_at_once_with_what_was_meant(tmp_path: Path) -> None:
    async with running(tmp_path, LAB) as broker:
        request = good()
        request.workspace.node_sets[0].image = "debian-21"
        request.workspace.node_sets[0].nics.add(network="nett")
        request.workspace.parameters["sim:sped"].int_value = 1
        refusal = await refused(broker.workspaces.CreateWorkspace(request))
        assert refusal.violations == {
            f"{SET}.image": "UNKNOWN_IMAGE",
            f"{SET}.nics[0].network": "UNKNOWN_NETWORK",
            'workspace.parameters["sim:sped"]': "UNKNOWN_VALUE",
        }
        for meant in ("debian-12", "net", "sim:speed"):
            assert f'did you mean "{meant}"?' in refusal.message


async def test_a_thousand_bad_fields_still_make_an_answer_that_arrives(tmp_path: Path) -> None:
    async with running(tmp_path, LAB) as broker:
        request = good()
        request.workspace.ClearField("node_sets")
        for _ in range(32):
            nodes = request.workspace.node_sets.add(name="Ä" * 60, count=-1)
            for _ in range(16):
                nodes.disks.add(size_mib=-1, device="\x00" * 60, image="\x01" * 100)
        refusal = await refused(broker.workspaces.CreateWorkspace(request))
        assert refusal.reason == "FIELD_INVALID"
        shown = refusal.details["BadRequest"].field_violations
        assert len(shown) > 6
        assert "further violations" in shown[-1].description


@pytest.mark.parametrize("count", [1, 1000])
async def test_the_greatest_amounts_allowed_are_no_mistake_of_the_broker(tmp_path: Path, count: int) -> None:
    """Sums over nodes and disks leave 64 bits; what is asked for is only far too much."""
    async with running(tmp_path, LAB) as broker:
        before = await footprint(broker)
        request = good()
        nodes = request.workspace.node_sets[0]
        nodes.count = count
        nodes.amounts.amounts.update({"cpu": 2**53, "memory": 2**53, "disk": 2**53})
        for _ in range(16):
            nodes.disks.add(size_mib=2**53)
        refusal = await refused(broker.workspaces.CreateWorkspace(request))
        assert (refusal.code, refusal.reason) == ("FAILED_PRECONDITION", "NEVER_FITS")
        assert await footprint(broker) == before


TARGETS: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    "no name": ({}, {"target.name": "REQUIRED"}),
    "a pool's name": ({"name": "pools/lab"}, {"target.name": "BAD_CHARACTERS"}),
    "a name of 10,000": ({"name": f"{TENANT}/workspaces/{LONG}"}, {"target.name": "TOO_LONG"}),
    "bad indexes": (
        {"name": f"{TENANT}/workspaces/ws", "node_indexes": [-1, 0, 0]},
        {"target.node_indexes[0]": "OUT_OF_RANGE", "target.node_indexes[2]": "DUPLICATE"},
    ),
    "etag and id": (
        {"name": f"{TENANT}/workspaces/ws", "etag": "x" * 65, "request_id": "\t"},
        {"target.etag": "TOO_LONG", "target.request_id": "BAD_CHARACTERS"},
    ),
}


@pytest.mark.parametrize("verb", ["Start", "Pause", "Unpause", "Suspend", "Resume", "Stop", "Reboot", "Terminate"])
async def test_bad_targets_of_verbs(tmp_path: Path, verb: str) -> None:
    async with running(tmp_path, LAB) as broker:
        for what, (fields, expected) in TARGETS.items():
            request = getattr(api, f"{verb}WorkspaceRequest")(target=api.Target(**fields))
            refusal = await refused(getattr(broker.workspaces, f"{verb}Workspace")(request))
            assert (refusal.reason, refusal.violations) == ("FIELD_INVALID", expected), what


async def test_a_node_that_is_not_there_is_a_bad_field(tmp_path: Path) -> None:
    async with running(tmp_path, LAB) as broker:
        workspace = (await broker.workspaces.CreateWorkspace(good())).workspace
        await broker.until(workspace.name, "RUNNING")
        refusal = await refused(broker.verb("Stop", workspace.name, nodes=(0, 1, 7)))
        assert (refusal.reason, refusal.violations) == (
            "FIELD_INVALID",
            {"target.node_indexes[1]": "OUT_OF_RANGE", "target.node_indexes[2]": "OUT_OF_RANGE"},
        )
        assert (await broker.get(workspace.name)).state == pb.Workspace.STATE_RUNNING


async def test_bad_requests_of_the_other_calls(tmp_path: Path) -> None:
    name = f"{TENANT}/workspaces/ws"
    async with running(tmp_path, LAB) as broker:
        workspaces, pools = broker.workspaces, broker.pools
        cases: list[tuple[Any, dict[str, str]]] = [
            (workspaces.GetWorkspace(api.GetWorkspaceRequest(name="ws")), {"name": "BAD_CHARACTERS"}),
            (
                workspaces.ListWorkspaces(
                    api.ListWorkspacesRequest(
                        parent="x",
                        page_size=1001,
                        page_token="?",
                        states=[99],  # type: ignore[list-item]
                        pool="?",
                        uids=[""],
                        label_selector={"": ""},
                    )
                ),
                {
                    "parent": "BAD_CHARACTERS",
                    "page_size": "OUT_OF_RANGE",
                    "page_token": "BAD_CHARACTERS",
                    "states[0]": "UNKNOWN_VALUE",
                    "pool": "BAD_CHARACTERS",
                    "uids[0]": "REQUIRED",
                    'label_selector[""]': "REQUIRED",
                },
            ),
            (
                workspaces.WaitWorkspace(
                    api.WaitWorkspaceRequest(name="", states=["STATE_UNSPECIFIED"], timeout=Duration(seconds=-1))
                ),
                {"name": "REQUIRED", "states[0]": "UNKNOWN_VALUE", "timeout": "OUT_OF_RANGE"},
            ),
            (
                workspaces.SaveNode(api.SaveNodeRequest(target=api.Target(name=name, node_indexes=[0, 1]))),
                {"target.node_indexes": "OUT_OF_RANGE", "image_name": "REQUIRED"},
            ),
            (updated(broker, pb.Workspace(name=name)), {"update_mask": "REQUIRED"}),
            (pools.GetPool(pool_api.GetPoolRequest(name="lab")), {"name": "BAD_CHARACTERS"}),
            (pools.ListPools(pool_api.ListPoolsRequest(page_size=-1)), {"page_size": "OUT_OF_RANGE"}),
            (
                pools.ListHosts(pool_api.ListHostsRequest(page_token=LONG)),
                {"parent": "REQUIRED", "page_token": "TOO_LONG"},
            ),
            (
                pools.UpdatePool(pool_api.UpdatePoolRequest(pool=pb.Pool(name="pools/lab"))),
                {"update_mask": "REQUIRED"},
            ),
            (
                pools.UpdateHost(
                    pool_api.UpdateHostRequest(
                        host=pb.Host(name="pools/lab/hosts/%zz"), update_mask={"paths": ["cordoned", "state"]}
                    )
                ),
                {"host.name": "BAD_CHARACTERS", "update_mask.paths[1]": "UNKNOWN_VALUE"},
            ),
            (pools.DrainHost(pool_api.DrainHostRequest(name="pools/lab/hosts/")), {"name": "BAD_CHARACTERS"}),
        ]
        for call, expected in cases:
            refusal = await refused(call)
            assert (refusal.code, refusal.violations) == ("INVALID_ARGUMENT", expected)
        stream = workspaces.WatchWorkspaces(api.WatchWorkspacesRequest(parent="x", after_revision=-1))
        refusal = await refused(stream.read())
        assert refusal.violations == {"parent": "BAD_CHARACTERS", "after_revision": "OUT_OF_RANGE"}
