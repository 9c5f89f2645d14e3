"""Resources out: exact times, nothing secret, and names that can be used."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

import pytest
from google.rpc import error_details_pb2 as rpc
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from workspacebroker.v1 import resources_pb2 as pb

from broker.api import render, render_pools, times
from broker.api.parameters import render_value
from broker.api.verdicts import verdict
from broker.core.answers import Outcome, Reason, ReasonCode, Verdict
from broker.core.errors import Failure
from broker.core.errors import Reason as ErrorReason
from broker.core.model import (
    Cause,
    Node,
    NodeSet,
    Notice,
    NoticeKind,
    SeenNic,
    State,
    Task,
    Terms,
    TypedValue,
    ValueKind,
    Workspace,
)
from broker.core.views import (
    HostCondition,
    HostView,
    ImageView,
    NetworkView,
    ParameterView,
    PoolView,
    SlotView,
    StrayView,
    TenantView,
)

NOW = datetime(2026, 3, 1, 12, 0, 0, 123_456, tzinfo=UTC)
GONE = Failure(reason=ErrorReason.NODE_GONE, message="VM 7 is gone", resource="tenants/acme/workspaces/w1")


def lease(nodes: int = 2) -> Workspace:
    return Workspace(
        uid="u1",
        tenant="acme",
        id="w1",
        create_time=NOW,
        node_sets=(
            NodeSet(
                name="n",
                count=nodes,
                user_data=b"secret",
                own_amounts={"cpu": 1},
                amounts={"cpu": 1, "memory": 2},
            ),
        ),
        terms=Terms(duration=timedelta(hours=1)),
        state=State.RUNNING,
        cause=Cause.LEASE,
        labels={"a": "b"},
        pool="lab",
        nodes=tuple(
            Node(
                index=index,
                set_index=0,
                pool="lab",
                host="rack 1/h1",
                held={},
                pool_held={},
                state=State.RUNNING,
                nics=(SeenNic(network="net", addresses=("10.0.0.1",), mac="02:00:00:00:00:01"),),
                observe_time=NOW,
                last_error=GONE if index else None,
            )
            for index in range(nodes)
        ),
        start_time=NOW,
        end_time=NOW + timedelta(hours=1),
        notices=(Notice(kind=NoticeKind.ENDING, time=NOW, message="soon"),),
        revision=7,
    )


def test_workspace() -> None:
    task = Task(
        uid="u1",
        index=1,
        pool="lab",
        action="reboot",
        steps=("stop", "start"),
        position=2,
        attempt=3,
        create_time=NOW,
        deadline=None,
        last_error=GONE,
    )
    later = NOW + timedelta(microseconds=1)
    shown = render.workspace(
        lease(), state=State.REBOOTING, state_message="1 of 2", tasks={1: task}, observe_times={0: later}
    )
    assert (shown.name, shown.etag, shown.revision, shown.uid) == ("tenants/acme/workspaces/w1", "r7", 7, "u1")
    assert (shown.state, shown.state_message) == (pb.Workspace.STATE_REBOOTING, "1 of 2")
    assert shown.cause == pb.Workspace.CAUSE_LEASE
    assert shown.create_time.nanos == 123_456_000
    assert not shown.HasField("last_error")
    assert dict(shown.node_sets[0].amounts.amounts) == {"cpu": 1}
    first, second = shown.nodes
    assert first.host == "pools/lab/hosts/rack%201%2Fh1"
    assert first.observe_time == times.timestamp(later)
    assert second.observe_time == times.timestamp(NOW)
    assert (first.nics[0].mac, first.node_set) == ("02:00:00:00:00:01", "n")
    assert not first.HasField("activity")
    assert (second.activity.step, second.activity.attempt) == ("start", 3)
    info = rpc.ErrorInfo()
    assert second.last_error.details[0].Unpack(info)
    assert info.reason == "NODE_GONE"
    assert (shown.notices[0].kind, shown.notices[0].HasField("due_time")) == (pb.Workspace.Notice.KIND_ENDING, False)


def test_user_data_never_leaves() -> None:
    assert b"secret" not in render.workspace(lease()).SerializeToString()


def test_open_end_has_no_end() -> None:
    shown = render.workspace(replace(lease(), end_time=None, terms=Terms(open_ended=True)))
    assert not shown.HasField("end_time")
    assert shown.terms.open_ended


def test_a_workspace_is_rendered_quickly() -> None:
    ws = lease(nodes=1)
    begun = time.perf_counter()
    for _ in range(200):
        render.workspace(ws)
    assert (time.perf_counter() - begun) / 200 < 0.002


@given(st.datetimes(timezones=st.just(UTC)))
def test_instants_are_exact(at: datetime) -> None:
    assert times.instant(times.timestamp(at)) == at


@given(st.timedeltas(timedelta(days=-3_000_000), timedelta(days=3_000_000)))
def test_lengths_are_exact(length: timedelta) -> None:
    assert times.length(times.duration(length)) == length


@pytest.mark.parametrize(
    ("value", "field"),
    [
        (TypedValue(kind=ValueKind.STRING, value="x"), "string_value"),
        (TypedValue(kind=ValueKind.INT, value=3), "int_value"),
        (TypedValue(kind=ValueKind.DOUBLE, value=3.0), "double_value"),
        (TypedValue(kind=ValueKind.BOOL, value=False), "bool_value"),
        (TypedValue(kind=ValueKind.DURATION, value=1.5), "duration_value"),
        (TypedValue(kind=ValueKind.TIMESTAMP, value="2026-03-01T12:00:00.5Z"), "timestamp_value"),
        (TypedValue(kind=ValueKind.STRING_LIST, value=("a", "b")), "string_list"),
    ],
)
def test_values(value: TypedValue, field: str) -> None:
    assert render_value(value).WhichOneof("kind") == field


def test_verdict() -> None:
    reason = Reason(
        code=ReasonCode.INSUFFICIENT_RESOURCE,
        message="prose",
        resource="memory",
        requested=9,
        available=4,
        resolvable=True,
    )
    judged = Verdict(pool="lab", host="h/1", outcome=Outcome.NOT_NOW, earliest=NOW, score=0.5, reasons=(reason,) * 9)
    shown = verdict(judged)
    assert shown.resource_name == "pools/lab/hosts/h%2F1"
    assert shown.outcome == pb.PlacementVerdict.OUTCOME_NOT_NOW
    assert (shown.reasons[0].message, shown.reasons[0].available, len(shown.reasons)) == ("prose", 4, 9)
    brief = verdict(judged, prose=False)
    assert (brief.reasons[0].message, len(brief.reasons)) == ("", 8)


def test_pools_and_their_things() -> None:
    pool = render_pools.pool(
        PoolView(
            name="lab",
            backend="simulator",
            reachable=False,
            capabilities=frozenset({"PAUSE", "RELEASE"}),
            parameters=[ParameterView(key="a:b", kind=ValueKind.STRING_LIST)],
            instance_types={"m1.small": {"cpu": 1}},
            total={"cpu": 5},
            last_error=GONE,
            default_duration=timedelta(days=1),
        )
    )
    assert pool.state == pb.Pool.STATE_UNREACHABLE
    assert list(pool.capabilities) == [pb.CAPABILITY_PAUSE, pb.CAPABILITY_RELEASE]
    assert pool.parameter_specs[0].kind == pb.ParameterSpec.KIND_STRING_LIST
    assert (pool.instance_types[0].amounts.amounts["cpu"], pool.default_lease_duration.seconds) == (1, 86_400)
    assert not pool.HasField("max_lease_duration")
    host = render_pools.host(
        HostView(
            pool="lab",
            name="h1",
            state=HostCondition.LOST,
            attributes={"arch": "x86_64", "ssd": True, "rank": 2, "load": 0.5, "tags": ("a",)},
            slots=[SlotView(workspace="", node_index=0, amounts={"cpu": 1}, start_time=NOW)],
        )
    )
    assert (host.state, host.slots[0].HasField("end_time")) == (pb.Host.STATE_LOST, False)
    assert [host.attributes[key].WhichOneof("kind") for key in ("arch", "ssd", "rank", "load", "tags")] == [
        "string_value",
        "bool_value",
        "int_value",
        "double_value",
        "string_list",
    ]
    assert render_pools.image(ImageView(name="i", size_mib=2, tenant="acme")).size_bytes == 2 * 1024 * 1024
    assert render_pools.network(NetworkView(name="n", total_addresses=4, free_addresses=1)).free_addresses == 1
    stray = render_pools.stray(
        StrayView(pool="lab", backend_id="one/7", reason="no owner", found_time=NOW, seen=State.RUNNING)
    )
    assert (stray.name, stray.seen) == ("pools/lab/strays/one%2F7", pb.Workspace.STATE_RUNNING)
    tenant = render_pools.tenant(TenantView(name="acme", pool_limits={"lab": {"nodes": 5}}))
    assert tenant.pool_limits["lab"].amounts["nodes"] == 5
