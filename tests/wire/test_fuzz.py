"""Nonsense at the gRPC port: no crash, no leak, nothing stored, nothing held, and the next caller is served.

Every test has a broker process of its own, and ends by comparing what the kernel says of it with what it was before.
The nonsense is random but the same on every run; a failure names the seed.
"""

from __future__ import annotations

import contextlib
import random
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import grpc
import pytest
from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass
from google.rpc import error_details_pb2 as rpc
from google.rpc import status_pb2
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from workspacebroker.v1 import pool_service_pb2 as pools_pb
from workspacebroker.v1 import resources_pb2 as pb
from workspacebroker.v1 import tenant_service_pb2 as tenants_pb
from workspacebroker.v1 import workspace_service_pb2 as api

from tests.support.broker import running
from tests.support.process import BrokerProcess, broker_process, until

CONFIGURATION: Final = """
[server]
listen = "127.0.0.1:0"
[pools.lab]
backend = "simulator"
[[pools.lab.hosts]]
name = "node"
count = 4
cpu = 8000
memory = 16384
disk = 200000
[instance_types.small]
cpu = 1000
memory = 1024
"""
SEED: Final = 20_260_301
MIB: Final = 1024 * 1024
PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
FILES: Final = (api, pools_pb, tenants_pb, health_pb2, reflection_pb2)
METHODS: Final[list[MethodDescriptor]] = [
    method for file in FILES for service in file.DESCRIPTOR.services_by_name.values() for method in service.methods
]
UNARY: Final = [method for method in METHODS if not method.server_streaming]
OURS: Final = [method for method in METHODS if method.containing_service.full_name.startswith("workspacebroker.")]


class Port:
    """A broker's port, with a client for well-formed calls of any bytes."""

    def __init__(self, process: BrokerProcess) -> None:
        self.process = process
        self.channel: Any = grpc.insecure_channel(process.address, options=[("grpc.use_local_subchannel_pool", 1)])

    def raw(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.process.port), timeout=5)

    def send(self, method: MethodDescriptor, payload: bytes, **options: Any) -> bytes:
        """One call with these bytes as its message; the first answer's bytes. Raises grpc.RpcError."""
        path = f"/{method.containing_service.full_name}/{method.name}"
        if method.client_streaming:
            answers: Any = self.channel.stream_stream(path)(iter([payload]), timeout=20, **options)
        elif method.server_streaming:
            answers = self.channel.unary_stream(path)(payload, timeout=20, **options)
        else:
            answer: bytes = self.channel.unary_unary(path)(payload, timeout=20, **options)
            return answer
        try:
            first: bytes = next(answers)
            return first
        except StopIteration:
            return b""
        finally:
            answers.cancel()

    def ask(self, method: str, request: Message) -> Any:
        """One ordinary call."""
        (found,) = [each for each in OURS if each.name == method]
        return GetMessageClass(found.output_type).FromString(self.send(found, request.SerializeToString()))

    def workspaces(self) -> list[Any]:
        """All there are, the ended among them."""
        states: Any = list(pb.Workspace.State.values())[1:]  # all but UNSPECIFIED
        return list(
            self.ask(
                "ListWorkspaces", api.ListWorkspacesRequest(parent="tenants/-", states=states, page_size=1000)
            ).workspaces
        )

    def free_hosts(self) -> bool:
        """Whether nothing is held on any host."""
        return all(
            host.total == host.free and not host.slots
            for host in self.ask("ListHosts", pools_pb.ListHostsRequest(parent="pools/lab")).hosts
        )


@pytest.fixture
def port(tmp_path: Path) -> Iterator[Port]:
    """A broker that must be, afterwards, as it was before: serving, empty, with as many threads and files."""
    with broker_process(tmp_path, CONFIGURATION) as process:
        there = Port(process)
        until(lambda: len(there.ask("ListHosts", pools_pb.ListHostsRequest(parent="pools/lab")).hosts) == 4, "hosts")
        threads, descriptors = process.threads(), process.descriptors()
        yield there
        assert process.process.poll() is None, process.errors()
        final = (pb.Workspace.STATE_TERMINATED, pb.Workspace.STATE_FAILED, pb.Workspace.STATE_EXPIRED)
        until(lambda: all(workspace.state in final for workspace in there.workspaces()), "an end of all workspaces")
        until(there.free_hosts, "free hosts")
        until(lambda: process.descriptors() <= descriptors, f"{descriptors} descriptors")
        until(lambda: process.threads() <= threads, f"{threads} threads")
        there.channel.close()


def leave(connection: socket.socket, how: int) -> None:
    """Closes in one of the ways that connections end."""
    with contextlib.suppress(OSError):
        if how == 0:
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(65536):
                pass
        elif how == 1:  # reset instead of an orderly end
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def test_random_bytes(port: Port) -> None:
    random_ = random.Random(SEED)
    for turn in range(150):
        connection = port.raw()
        connection.settimeout(2)
        with contextlib.suppress(OSError):
            connection.sendall(random_.randbytes(random_.choice([0, 1, 9, 24, 500, 70_000])))
        leave(connection, turn % 3)


@pytest.mark.parametrize(
    "words",
    [
        b"GET / HTTP/1.1\r\nHost: broker\r\n\r\n",
        b"POST /workspacebroker.v1.PoolService/ListPools HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n\0\0\0\0\0",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 500,  # the beginning of TLS
        b"SSH-2.0-OpenSSH_9.6\r\n",
        PREFACE[:10],
    ],
    ids=["http1", "http1-post", "tls", "ssh", "half-a-preface"],
)
def test_other_protocols(port: Port, words: bytes) -> None:
    connection = port.raw()
    connection.sendall(words)
    leave(connection, 0)


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """An HTTP/2 frame."""
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def test_http2_with_random_frames(port: Port) -> None:
    random_ = random.Random(SEED)
    for turn in range(150):
        connection = port.raw()
        connection.settimeout(2)
        frames = [PREFACE, frame(4, 0, 0, b"")]
        for _ in range(random_.randrange(20)):
            payload = random_.randbytes(random_.choice([0, 4, 8, 30, 2000]))
            frames.append(
                frame(random_.randrange(12), random_.randrange(256), random_.choice([0, 1, 3, 2**31 - 1]), payload)
            )
        with contextlib.suppress(OSError):
            connection.sendall(b"".join(frames))
        leave(connection, turn % 3)


def test_connections_that_say_nothing(port: Port) -> None:
    with contextlib.ExitStack() as idle:
        for turn in range(200):
            connection = idle.enter_context(port.raw())
            connection.sendall(PREFACE[: turn % 25])
        assert port.workspaces() == []  # others are served meanwhile


def ended(port: Port, method: MethodDescriptor, payload: bytes, **options: Any) -> tuple[Any, str]:
    """How a call of these bytes ends: its code, and the reason that a refusal gives."""
    try:
        port.send(method, payload, **options)
    except grpc.RpcError as error:
        call: Any = error
        packed = dict(call.trailing_metadata() or ()).get("grpc-status-details-bin")
        info = rpc.ErrorInfo()
        if packed is not None:
            status_pb2.Status.FromString(packed).details[0].Unpack(info)
        return call.code(), str(info.reason)
    return grpc.StatusCode.OK, ""


def is_message(method: MethodDescriptor, payload: bytes) -> bool:
    try:
        GetMessageClass(method.input_type).FromString(payload)
    except DecodeError:
        return False
    return True


def test_bytes_that_are_no_message(port: Port) -> None:
    random_ = random.Random(SEED)
    payloads = [b"\xff", b"\x0a\xff\xff\xff\xff\x0f", b"\x0a\x02\xff\xfe", *map(random_.randbytes, (9, 80, 3000))]
    odd = {
        f"{method.full_name} {payload[:10]!r}": code
        for method in METHODS
        for payload in payloads
        if not is_message(method, payload)
        and (code := ended(port, method, payload)[0])
        not in (grpc.StatusCode.INTERNAL, grpc.StatusCode.INVALID_ARGUMENT)
    }
    assert not odd


def unknown_fields(random_: random.Random) -> bytes:
    """Fields that no version of the API has: well-formed, of every wire type."""
    number = random_.choice([15_000, 19_000, 2**29 - 1])

    def key(kind: int) -> bytes:
        value, text = number << 3 | kind, b""
        while value > 0x7F:
            text, value = text + bytes([value & 0x7F | 0x80]), value >> 7
        return text + bytes([value])

    return b"".join(
        (
            key(0) + b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
            key(1) + random_.randbytes(8),
            key(2) + b"\x05" + random_.randbytes(5),
            key(3) + key(0) + b"\x01" + key(4),
            key(5) + random_.randbytes(4),
        )
    )


def test_fields_of_the_future_are_ignored(port: Port) -> None:
    random_ = random.Random(SEED)
    for method in UNARY:
        assert ended(port, method, unknown_fields(random_)) == ended(port, method, b""), method.full_name


TEXTS: Final = [
    *(
        "",
        "-",
        "x",
        "lab",
        "small",
        "cpu",
        "memory",
        "core:x",
        "__proto__",
        "a" * 200,
        "%zz",
        "../..",
        "1e400",
        "\0",
        "ü\u202e",
    ),
    *("pools/lab", "pools/lab/hosts/node-1", "pools/x", "tenants/-", "tenants/a", "tenants/a/workspaces/w"),
    *("tenants/a/workspaces/" + "w" * 64, "terms.duration", "labels", "draining", "cordoned"),
]
WHOLE: Final = [0, 1, -1, 2, 3, 100, 1000, 1024, 2**31 - 1, -(2**31)]
LARGE: Final = [*WHOLE, 2**53, 2**53 + 1, 2**63 - 1, -(2**63), 253_402_300_800, -62_135_596_801]


def anything(kind: Any, random_: random.Random, depth: int = 0) -> Any:
    """A message with random fields set, to values of which many are wrong."""
    message = GetMessageClass(kind)()
    for field in kind.fields:
        if random_.random() < (0.35 if depth < 5 else 0.9):
            continue
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            entry = field.message_type.fields_by_name
            for _ in range(random_.randrange(3)):
                name = value_of(entry["key"], random_)
                if entry["value"].message_type is not None:
                    getattr(message, field.name)[name].CopyFrom(
                        anything(entry["value"].message_type, random_, depth + 1)
                    )
                else:
                    getattr(message, field.name)[name] = value_of(entry["value"], random_)
        elif field.message_type is not None:
            if field.is_repeated:
                for _ in range(random_.randrange(4)):
                    getattr(message, field.name).add().CopyFrom(anything(field.message_type, random_, depth + 1))
            elif field.message_type.full_name != "google.protobuf.Any":
                getattr(message, field.name).CopyFrom(anything(field.message_type, random_, depth + 1))
        elif field.is_repeated:
            getattr(message, field.name).extend(value_of(field, random_) for _ in range(random_.randrange(4)))
        else:
            setattr(message, field.name, value_of(field, random_))
    return message


def value_of(field: Any, random_: random.Random) -> Any:
    """A value of a plain field."""
    match field.cpp_type:
        case FieldDescriptor.CPPTYPE_STRING:
            text = random_.choice(TEXTS)
            return text.encode() if field.type == FieldDescriptor.TYPE_BYTES else text
        case FieldDescriptor.CPPTYPE_BOOL:
            return random_.random() < 0.5
        case FieldDescriptor.CPPTYPE_DOUBLE | FieldDescriptor.CPPTYPE_FLOAT:
            return random_.choice([0.0, -1.5, float("inf"), float("nan"), 1e308])
        case FieldDescriptor.CPPTYPE_INT64:
            return random_.choice(LARGE)
        case FieldDescriptor.CPPTYPE_ENUM:
            return random_.choice([*field.enum_type.values_by_number, 999, -1])
        case _:
            return random_.choice(WHOLE)


def test_messages_of_anything(port: Port) -> None:
    """Every refusal is one of the broker's own, and what was accepted is what is there."""
    random_ = random.Random(SEED)
    unforeseen: dict[str, bytes] = {}
    for method in OURS:
        if method.name == "WaitWorkspace":  # it may rightly wait
            continue
        for _ in range(60):
            payload = anything(method.input_type, random_).SerializeToString()
            code, reason = ended(port, method, payload)
            if code in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN) or (
                code is not grpc.StatusCode.OK and not reason
            ):
                unforeseen[f"{method.name} {code.name} {reason}"] = payload
    assert not unforeseen
    put_right(port)


def put_right(port: Port) -> None:
    """Takes back what was accepted: nonsense may be right by chance."""
    port.ask(
        "UpdatePool", pools_pb.UpdatePoolRequest(pool=pb.Pool(name="pools/lab"), update_mask={"paths": ["draining"]})
    )
    for host in port.ask("ListHosts", pools_pb.ListHostsRequest(parent="pools/lab")).hosts:
        opened = pb.Host(name=host.name)
        port.ask("UpdateHost", pools_pb.UpdateHostRequest(host=opened, update_mask={"paths": ["cordoned"]}))
    for workspace in port.ask(
        "ListWorkspaces", api.ListWorkspacesRequest(parent="tenants/-", page_size=1000)
    ).workspaces:
        port.ask("TerminateWorkspace", api.TerminateWorkspaceRequest(target=api.Target(name=workspace.name)))


def right(method: MethodDescriptor, workspace_id: str) -> Any:
    """A request that would be granted, if it suits the state of this workspace of tenants/a."""
    target = api.Target(name=f"tenants/a/workspaces/{workspace_id}", request_id=f"{method.name}-{workspace_id}")
    nodes = pb.NodeSet(name="head", count=2, instance_type="small", placement=pb.NodeSet.PLACEMENT_SPREAD)
    workspace = pb.Workspace(pool="lab", labels={"a": "b"}, node_sets=[nodes], terms={"duration": {"seconds": 3600}})
    changed = pb.Workspace(name=target.name, display_name="x", terms={"duration": {"seconds": 60}})
    mask = {"paths": ["display_name", "terms.duration"]}
    special: dict[str, Message] = {
        "CheckPlacement": api.CheckPlacementRequest(parent="tenants/a", workspace=workspace, include_hosts=True),
        "CreateWorkspace": api.CreateWorkspaceRequest(parent="tenants/a", workspace=workspace),
        "UpdateWorkspace": api.UpdateWorkspaceRequest(workspace=changed, update_mask=mask),
        "SaveNode": api.SaveNodeRequest(target={"name": target.name, "node_indexes": [0]}, image_name="saved"),
        "UpdatePool": pools_pb.UpdatePoolRequest(pool={"name": "pools/lab"}, update_mask={"paths": ["draining"]}),
        "UpdateHost": pools_pb.UpdateHostRequest(
            host={"name": "pools/lab/hosts/node-1"}, update_mask={"paths": ["cordoned"]}
        ),
        "DrainHost": pools_pb.DrainHostRequest(name="pools/lab/hosts/node-2", suspend_rest=True),
        "GetTenant": tenants_pb.GetTenantRequest(name="tenants/a"),
        "GetWorkspace": api.GetWorkspaceRequest(name=target.name),
    }
    if method.name in special:
        return special[method.name]
    message: Any = GetMessageClass(method.input_type)()
    fields = message.DESCRIPTOR.fields_by_name
    if "target" in fields:
        message.target.CopyFrom(target)
    elif "parent" in fields:
        message.parent = "tenants/a" if method.containing_service.name == "WorkspaceService" else "pools/lab"
    elif "name" in fields:
        message.name = "pools/lab"
    return message


def spoiled(message: Any, random_: random.Random) -> Any:
    """The message with one field, at any depth, set to anything of its type."""
    inside = [field for field, _ in message.ListFields() if field.message_type is not None and not field.is_repeated]
    inside += [field for field, _ in message.ListFields() if field.name == "node_sets"]
    if inside and random_.random() < 0.6:
        field = random_.choice(inside)
        value = getattr(message, field.name)
        spoiled(value[0] if field.is_repeated else value, random_)
        return message
    other = anything(message.DESCRIPTOR, random_)
    if set_fields := [field for field, _ in other.ListFields()]:
        field = random_.choice(set_fields)
        message.ClearField(field.name)
        part = type(message)()
        part.CopyFrom(other)
        for _field, _ in other.ListFields():
            if _field.name != field.name:
                part.ClearField(_field.name)
        message.MergeFrom(part)
    return message


def test_messages_that_are_nearly_right(port: Port) -> None:
    """Past the checks of form: what is wrong is one field at most, and much of it is granted."""
    random_ = random.Random(SEED)
    unforeseen: dict[str, bytes] = {}
    granted = asked = 0
    (create,) = [method for method in OURS if method.name == "CreateWorkspace"]
    for turn in range(60):
        made = right(create, f"w-{turn}")
        made.workspace_id = f"w-{turn}"
        port.ask("CreateWorkspace", made)
        wait = api.WaitWorkspaceRequest(name=f"tenants/a/workspaces/w-{turn}", states=[pb.Workspace.STATE_RUNNING])
        assert port.ask("WaitWorkspace", wait).reached
        for method in random_.sample(OURS, len(OURS)):
            if method.name in ("WaitWorkspace", "WatchWorkspaces"):  # they may rightly wait
                continue
            payload = spoiled(right(method, f"w-{turn}"), random_).SerializeToString()
            code, reason = ended(port, method, payload)
            asked, granted = asked + 1, granted + (code is grpc.StatusCode.OK)
            if reason == "INTERNAL" or (code is not grpc.StatusCode.OK and not reason):
                unforeseen[f"{method.name} {code.name} {reason}"] = payload
        put_right(port)
    assert not unforeseen
    assert granted > asked / 4


def test_mutated_messages(port: Port) -> None:
    """A good request with a few bytes changed is refused, or is a good request."""
    random_ = random.Random(SEED)
    (create,) = [method for method in OURS if method.name == "CreateWorkspace"]
    (check,) = [method for method in OURS if method.name == "CheckPlacement"]
    nodes = pb.NodeSet(count=2, instance_type="small", host_selector={"arch": pb.StringList(values=["x"])})
    good = api.CreateWorkspaceRequest(
        parent="tenants/a", workspace_id="w", workspace=pb.Workspace(pool="lab", node_sets=[nodes]), validate_only=True
    ).SerializeToString()
    for _ in range(800):
        mutated = bytearray(good)
        for _ in range(random_.randrange(1, 4)):
            mutated[random_.randrange(len(mutated))] = random_.randrange(256)
        for method in (create, check):
            if is_message(method, bytes(mutated)):
                code, reason = ended(port, method, bytes(mutated))
                assert code not in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN), bytes(mutated)
                assert code is grpc.StatusCode.OK or reason, bytes(mutated)
    put_right(port)


# Too large


def oversized(size: int) -> api.CreateWorkspaceRequest:
    nodes = pb.NodeSet(count=1, instance_type="small", user_data=b"x" * size)
    return api.CreateWorkspaceRequest(parent="tenants/a", workspace=pb.Workspace(node_sets=[nodes]))


@pytest.mark.parametrize("size", [256 * 1024 + 1, 10 * MIB, 16 * MIB - 200])
def test_a_request_too_large_gets_our_answer(port: Port, size: int) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        port.ask("CreateWorkspace", oversized(size))
    call: Any = refused.value
    assert call.code() is grpc.StatusCode.INVALID_ARGUMENT
    status = status_pb2.Status.FromString(dict(call.trailing_metadata())["grpc-status-details-bin"])
    bad = rpc.BadRequest()
    assert any(detail.Unpack(bad) for detail in status.details)
    (violation,) = bad.field_violations
    assert (violation.field, violation.reason) == ("workspace.node_sets[0].user_data", "TOO_LONG")
    assert str(size) in violation.description


def test_a_request_far_too_large_gets_grpcs_answer(port: Port) -> None:
    (create,) = [method for method in OURS if method.name == "CreateWorkspace"]
    code, _ = ended(port, create, oversized(17 * MIB).SerializeToString())
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_a_small_request_that_unpacks_to_a_large_one_is_not_unpacked(port: Port) -> None:
    before = port.process.resident_mib()
    (create,) = [method for method in OURS if method.name == "CreateWorkspace"]
    payload = oversized(200 * MIB).SerializeToString()
    code, _ = ended(port, create, payload, compression=grpc.Compression.Gzip)
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert port.process.resident_mib() - before < 100


def test_metadata_without_bounds(port: Port) -> None:
    method = UNARY[0]
    code, _ = ended(port, method, b"", metadata=[("x", "y" * 200_000)])
    assert code in (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.INTERNAL, grpc.StatusCode.UNAVAILABLE)
    assert ended(port, method, b"", metadata=[("x-bin", b"\xff\0")])[0] is grpc.StatusCode.INVALID_ARGUMENT


def test_methods_that_are_not_there(port: Port) -> None:
    for path in ("/workspacebroker.v1.WorkspaceService/Format", "/x/y", "/workspacebroker.v2.PoolService/ListPools"):
        with pytest.raises(grpc.RpcError) as refused:
            port.channel.unary_unary(path)(b"", timeout=20)
        call: Any = refused.value
        assert call.code() is grpc.StatusCode.UNIMPLEMENTED


# Callers who leave


def test_calls_that_are_given_up_at_once(port: Port) -> None:
    """Streams, waits and mutations, cancelled before, while or after they arrive."""
    nodes = [pb.NodeSet(count=1, instance_type="small")]
    name = port.ask(
        "CreateWorkspace", api.CreateWorkspaceRequest(parent="tenants/a", workspace=pb.Workspace(node_sets=nodes))
    ).workspace.name
    wait = api.WaitWorkspaceRequest(name=name, states=[pb.Workspace.STATE_PAUSED]).SerializeToString()
    watch = api.WatchWorkspacesRequest(parent="tenants/-").SerializeToString()
    service = "/workspacebroker.v1.WorkspaceService"
    for turn in range(300):
        calls: list[Any] = [
            port.channel.unary_unary(f"{service}/WaitWorkspace").future(wait, timeout=30),
            port.channel.unary_stream(f"{service}/WatchWorkspaces")(watch),
        ]
        if turn % 3 == 0:
            next(calls[1])
        for call in calls:
            call.cancel()
    port.ask("TerminateWorkspace", api.TerminateWorkspaceRequest(target=api.Target(name=name)))


async def test_who_gave_up_is_forgotten(tmp_path: Path) -> None:
    async with running(tmp_path) as there:
        name = (await there.create()).name
        for _ in range(50):
            watch = there.workspaces.WatchWorkspaces(api.WatchWorkspacesRequest(parent="tenants/-"))
            await watch.read()
            wait = there.workspaces.WaitWorkspace(
                api.WaitWorkspaceRequest(name=name, states=[pb.Workspace.STATE_PAUSED])
            )
            await there.get(name)
            watch.cancel()
            wait.cancel()
        await there.eventually(lambda: there.broker.events.watchers, lambda watchers: watchers == 0)
        await there.eventually(lambda: len(there.broker.workspaces._waiting), lambda waiting: waiting == 0)


def test_deadlines_too_short_for_anything(port: Port) -> None:
    (create,) = [method for method in OURS if method.name == "CreateWorkspace"]
    path = f"/{create.containing_service.full_name}/{create.name}"
    payload = oversized(10).SerializeToString()
    for timeout in (0.0, 0.0005, 0.001, 0.002, 0.004):
        with contextlib.suppress(grpc.RpcError):
            port.channel.unary_unary(path)(payload, timeout=timeout)
    put_right(port)
