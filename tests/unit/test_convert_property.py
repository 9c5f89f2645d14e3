"""Whatever the fields of a message hold, it is accepted or refused with named fields: nothing else is ever raised."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, cast

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from workspacebroker.v1 import pool_service_pb2 as pools_pb
from workspacebroker.v1 import resources_pb2 as pb
from workspacebroker.v1 import workspace_service_pb2 as calls_pb

from broker.api import calls, render
from broker.api.pages import PageTokens
from broker.api.status import TRAILER_BYTES, to_status
from broker.api.validate import KnownSets, workspace_request
from broker.core.errors import FieldsInvalid
from broker.core.requests import WorkspaceRequest

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
TYPES = {"m1.small": {"cpu": 1000, "memory": 2048}}
TOKENS = PageTokens(b"key")

TEXTS = st.sampled_from(["a", "m1.small", "ns:name", "pools/a", "tenants/a", "tenants/a/workspaces/b", "10.0.0.1", ""])
WHOLE = {
    FieldDescriptor.TYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.TYPE_ENUM: (0, 40),
}


def scalars(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    if field.type in WHOLE:
        low, high = WHOLE[field.type]
        return st.sampled_from([0, 1, 2, 60, high, low]) | st.integers(low, high)
    if field.type == FieldDescriptor.TYPE_BOOL:
        return st.booleans()
    if field.type == FieldDescriptor.TYPE_DOUBLE:
        return st.floats()
    if field.type == FieldDescriptor.TYPE_BYTES:
        return st.binary(max_size=20)
    return TEXTS | st.text(max_size=70)


@st.composite
def messages(draw: st.DrawFn, kind: Descriptor, make: Callable[[], Any], depth: int = 0) -> Any:
    """A message of any content, a few entries in each repeated field."""
    message = make()
    for field in kind.fields:
        if depth > 5 or draw(st.integers(0, 3)) == 0:
            continue
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            value = field.message_type.fields_by_name["value"]
            for key in draw(st.lists(TEXTS | st.text(max_size=70), max_size=2)):
                entries = getattr(message, field.name)
                if value.message_type is None:
                    entries[key] = draw(scalars(value))
                else:
                    entries[key].MergeFrom(draw(messages(value.message_type, type(entries[key]), depth + 1)))
        elif field.message_type is not None and not field.is_repeated:
            part = getattr(message, field.name)
            part.SetInParent()
            part.MergeFrom(draw(messages(field.message_type, type(part), depth + 1)))
        elif field.message_type is not None:
            for _ in range(draw(st.integers(0, 2))):
                part = getattr(message, field.name).add()
                part.MergeFrom(draw(messages(field.message_type, type(part), depth + 1)))
        elif field.is_repeated:
            getattr(message, field.name).extend(draw(st.lists(scalars(field), max_size=3)))
        else:
            setattr(message, field.name, draw(scalars(field)))
    return message


def anything(kind: type[Message]) -> st.SearchStrategy[Any]:
    return messages(cast(Descriptor, kind.DESCRIPTOR), kind)


def accepted_or_named(read: Callable[[], object]) -> object:
    """What was read, or None after a look at the refusal."""
    try:
        return read()
    except FieldsInvalid as error:
        refused = error
    assert refused.violations
    assert all(each.path and each.message for each in refused.violations)
    status = to_status(refused)
    assert status.ByteSize() + len(status.message.encode()) <= TRAILER_BYTES
    return None


quick = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))


@quick
@given(anything(pb.Workspace))
def test_any_workspace(message: pb.Workspace) -> None:
    accepted_or_named(lambda: workspace_request(message, instance_types=TYPES, now=NOW))


@quick
@given(anything(calls_pb.CreateWorkspaceRequest))
def test_any_create(message: calls_pb.CreateWorkspaceRequest) -> None:
    accepted_or_named(lambda: calls.create_request(message, known=KnownSets(TYPES), now=NOW))


READERS: list[tuple[type[Message], Callable[[Any], object]]] = [
    (calls_pb.StopWorkspaceRequest, calls.verb_target),
    (calls_pb.SaveNodeRequest, calls.save_request),
    (calls_pb.UpdateWorkspaceRequest, lambda message: calls.update_request(message, now=NOW)),
    (calls_pb.ListWorkspacesRequest, lambda message: calls.list_request(message, TOKENS)),
    (calls_pb.WaitWorkspaceRequest, calls.wait_request),
    (calls_pb.WatchWorkspacesRequest, calls.watch_request),
    (pools_pb.ListPoolsRequest, lambda message: calls.pools_page(message, TOKENS)),
    (pools_pb.ListHostsRequest, lambda message: calls.pool_page(message, TOKENS)),
    (pools_pb.UpdatePoolRequest, calls.pool_update),
    (pools_pb.UpdateHostRequest, calls.host_update),
]


@quick
@given(st.sampled_from(READERS).flatmap(lambda row: st.tuples(st.just(row[1]), anything(row[0]))))
def test_any_other_request(case: tuple[Callable[[Any], object], Message]) -> None:
    read, message = case
    accepted_or_named(lambda: read(message))


@st.composite
def good(draw: st.DrawFn) -> pb.Workspace:
    """A workspace that is accepted, with some of everything."""
    word = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1, max_size=20)
    amounts = st.dictionaries(word, st.integers(1, 2**53), max_size=3)
    sets = [
        pb.NodeSet(
            name=f"set{index}",
            count=draw(st.integers(1, 9)),
            image=draw(word),
            instance_type="m1.small",
            amounts=pb.Quantities(amounts=draw(amounts)),
            nics=[pb.Nic(network=each) for each in draw(st.lists(word, max_size=3))],
            disks=[pb.Disk(image=each) for each in draw(st.lists(word, max_size=3))],
            placement=draw(st.integers(0, 3)),  # type: ignore[arg-type]
            host_selector={draw(word): pb.StringList(values=draw(st.lists(word, min_size=1, max_size=3)))},
        )
        for index in range(draw(st.integers(1, 3)))
    ]
    return pb.Workspace(labels=draw(st.dictionaries(word, word, max_size=3)), node_sets=sets)


@quick
@given(good())
def test_what_was_set_comes_back(message: pb.Workspace) -> None:
    request = accepted_or_named(lambda: workspace_request(message, instance_types=TYPES, now=NOW))
    assert isinstance(request, WorkspaceRequest)
    for asked, kept in zip(message.node_sets, request.node_sets, strict=True):
        shown = render.node_set(kept)
        if not asked.amounts.amounts:
            asked.ClearField("amounts")
        assert shown == asked
