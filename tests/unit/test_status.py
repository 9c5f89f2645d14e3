"""Errors as statuses: the table says what errors.proto says, and every status fits into a trailer."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeVar

import grpc
import pytest
from google.protobuf.message import Message
from google.rpc import error_details_pb2 as rpc
from google.rpc import status_pb2
from grpc_status import rpc_status
from hypothesis import given
from hypothesis import strategies as st
from workspacebroker.v1 import errors_pb2

from broker.api import status
from broker.api.status import MESSAGE_BYTES, ROWS, TRAILER_BYTES, Detail
from broker.api.verdicts import PLACEMENT_FAILURE_BYTES
from broker.core.answers import Outcome, ReasonCode, Verdict
from broker.core.answers import Reason as Obstacle
from broker.core.errors import (
    BrokerError,
    Failure,
    FieldReason,
    FieldsInvalid,
    FieldViolation,
    PlacementRefused,
    QuotaExceeded,
    QuotaViolation,
    Reason,
)

PROTO = Path(__file__).parents[2] / "protos/workspacebroker/v1/errors.proto"
NAME = "tenants/acme/workspaces/w1"
M = TypeVar("M", bound=Message)


def details(made: status_pb2.Status) -> list[str]:
    return [each.type_url.rpartition(".")[2] for each in made.details]


def detail(made: status_pb2.Status, kind: type[M]) -> M:
    message = kind()
    assert any(each.Unpack(message) for each in made.details)
    return message


def cost(made: status_pb2.Status) -> int:
    """Bytes in the trailer: the status, and its message again, percent-encoded."""
    encoded = sum(1 if 0x20 <= byte <= 0x7E and byte != 0x25 else 3 for byte in made.message.encode())
    return int(made.ByteSize()) + encoded


def violations(count: int, text: str = "is 9; 0 to 3") -> FieldsInvalid:
    return FieldsInvalid(
        [
            FieldViolation(path=f'workspace.labels["{i}"]', reason=FieldReason.TOO_LONG, message=text)
            for i in range(count)
        ]
    )


def verdicts(pools: int, hosts: int) -> list[Verdict]:
    reasons = tuple(
        Obstacle(
            code=ReasonCode.INSUFFICIENT_RESOURCE, message="prose " * 50, resource=name, requested=9**9, available=8**9
        )
        for name in ("cpu", "memory", "example.com/gpu")
    )
    many = [
        Verdict(pool="lab", host=f"host-{i:04}", outcome=Outcome.NEVER if i % 2 else Outcome.NOT_NOW, reasons=reasons)
        for i in range(hosts)
    ]
    return many + [Verdict(pool=f"pool-{i}", outcome=Outcome.NOT_NOW, reasons=reasons) for i in range(pools)]


def refusal(reason: Reason) -> BrokerError:
    """An error as its reason is raised."""
    match reason:
        case Reason.FIELD_INVALID:
            return violations(2)
        case Reason.NO_CAPACITY | Reason.NEVER_FITS:
            return PlacementRefused(reason, "no room", verdicts(1, 2), retry_after=60)
        case Reason.QUOTA_EXCEEDED:
            asked = QuotaViolation(subject="tenants/acme", resource="nodes", limit=5, used=4, requested=2)
            return QuotaExceeded([asked])
        case _:
            return BrokerError(reason, "it is so", resource=NAME, metadata={"name": NAME})


# The table


def documented() -> dict[str, list[str]]:
    """The three parts of each reason's comment in errors.proto."""
    lines = re.findall(r"ERROR_REASON_(\w+) = (\d+); // (.+)", PROTO.read_text())
    return {name: [part.strip() for part in comment.split(";")][:3] for name, number, comment in lines if number != "0"}


def test_every_reason_of_the_api_has_a_row() -> None:
    in_api = {name.removeprefix("ERROR_REASON_") for name in errors_pb2.ErrorReason.keys()} - {"UNSPECIFIED"}  # noqa: SIM118
    assert in_api == {reason.value for reason in Reason} == {reason.value for reason in ROWS} == set(documented())


def test_field_reasons_are_those_of_the_api() -> None:
    in_api = {name.removeprefix("FIELD_REASON_") for name in errors_pb2.FieldReason.keys()}  # noqa: SIM118
    assert in_api - {"UNSPECIFIED"} == {reason.value for reason in FieldReason}


@pytest.mark.parametrize("reason", list(Reason))
def test_row_says_what_the_proto_says(reason: Reason) -> None:
    code, written, again = documented()[reason.value]
    row = ROWS[reason]
    assert row.code.name == code
    assert {each.value for each in row.details} == {each.value for each in Detail if each.value in written}
    assert again == row.again or again.startswith(f"{row.again}.")


# Statuses


@pytest.mark.parametrize("reason", list(Reason))
def test_status_of_every_reason(reason: Reason) -> None:
    error = refusal(reason)
    made = status.to_status(error)
    assert made.code == ROWS[reason].code.value[0]
    assert made.message == error.message
    assert details(made) == ["ErrorInfo", *ROWS[reason].details]
    info = detail(made, rpc.ErrorInfo)
    assert (info.reason, info.domain) == (reason.value, "workspacebroker")
    assert dict(info.metadata) == error.metadata
    assert cost(made) <= TRAILER_BYTES


@pytest.mark.parametrize("reason", list(Reason))
def test_failure_kept_on_a_resource(reason: Reason) -> None:
    made = status.failure_status(refusal(reason).failure())
    assert detail(made, rpc.ErrorInfo).reason == reason.value
    assert len(set(details(made))) == len(details(made))


def test_field_violations() -> None:
    first = detail(status.to_status(violations(2)), rpc.BadRequest).field_violations[0]
    assert (first.field, first.reason) == ('workspace.labels["0"]', "TOO_LONG")
    assert first.description == "is 9; 0 to 3"


def test_resource() -> None:
    about = detail(status.to_status(BrokerError(Reason.NOT_FOUND, "no", resource="pools/lab")), rpc.ResourceInfo)
    assert (about.resource_type, about.resource_name) == ("Pool", "pools/lab")


def test_quota() -> None:
    (violation,) = detail(status.to_status(refusal(Reason.QUOTA_EXCEEDED)), rpc.QuotaFailure).violations
    assert (violation.subject, violation.quota_metric, violation.quota_value) == ("tenants/acme", "nodes", 5)


@pytest.mark.parametrize(("wait", "seconds"), [(None, 1), (7.0, 7), (-3.0, 0), (float("inf"), 10**9)])
def test_when_to_retry(wait: float | None, seconds: int) -> None:
    made = status.to_status(BrokerError(Reason.OVERLOADED, "busy", retry_after=wait))
    assert detail(made, rpc.RetryInfo).retry_delay.seconds == seconds


def test_no_capacity_without_a_known_time_has_no_retry_info() -> None:
    assert "RetryInfo" not in details(status.to_status(PlacementRefused(Reason.NO_CAPACITY, "full", verdicts(1, 0))))


# Bounds


def test_thousand_violations_are_cut_and_counted() -> None:
    made = status.to_status(violations(1000, "x" * 200))
    bad = detail(made, rpc.BadRequest)
    assert 5 < len(bad.field_violations) < 50
    last = bad.field_violations[-1]
    assert last.field == f'workspace.labels["{len(bad.field_violations) - 1}"]'
    assert last.description == f"this and {1000 - len(bad.field_violations)} further violations are not described here"
    assert cost(made) <= TRAILER_BYTES


def test_thousand_hosts() -> None:
    made = status.to_status(PlacementRefused(Reason.NO_CAPACITY, "full " * 1000, verdicts(3, 1000), retry_after=1))
    failure = detail(made, errors_pb2.PlacementFailure)
    assert failure.ByteSize() <= PLACEMENT_FAILURE_BYTES
    shown = [each.resource_name for each in failure.verdicts]
    assert shown[:3] == ["pools/pool-0", "pools/pool-1", "pools/pool-2"]
    assert shown[3:5] == ["pools/lab/hosts/host-0000", "pools/lab/hosts/host-0002"]
    assert len(shown) > 20
    assert not any(reason.message for each in failure.verdicts for reason in each.reasons)
    assert cost(made) <= TRAILER_BYTES


def everything_long(text: str) -> list[BrokerError]:
    long = text * 20_000
    fields = FieldsInvalid([FieldViolation(path=long, reason=FieldReason.TOO_LONG, message=long)] * 100)
    quota = QuotaExceeded([QuotaViolation(subject=long, resource=long, limit=1, used=1, requested=1)] * 100)
    placement = PlacementRefused(Reason.NO_CAPACITY, long, verdicts(500, 500), metadata={"a": long}, retry_after=5)
    plain = [
        BrokerError(reason, long, resource=f"pools/{long}", metadata={f"key{i}": long for i in range(99)})
        for reason in Reason
    ]
    return [fields, quota, placement, *plain]


@pytest.mark.parametrize("text", ["x", "é", "%", "\n", "語", "\ud800"])
def test_nothing_grows_past_the_trailer(text: str) -> None:
    for error in everything_long(text):
        made = status.to_status(error)
        assert cost(made) <= TRAILER_BYTES
        assert made.message.endswith("…")


@given(st.text(st.characters(codec="utf-8")))
def test_messages_are_cut_to_their_bound(text: str) -> None:
    made = status.to_status(BrokerError(Reason.INTERNAL, text * 50))
    assert cost(made) - made.ByteSize() <= MESSAGE_BYTES
    short = status.to_status(BrokerError(Reason.INTERNAL, text[:80]))
    assert short.message == text[:80]


async def test_largest_statuses_arrive_every_time() -> None:
    """A client drops metadata near 8 KiB at random, so each of the worst is sent many times."""
    errors = [violations(1000, "é" * 200), everything_long("語")[2], everything_long("%")[0]]

    async def refuse(request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        await context.abort_with_status(status.grpc_status(errors[int(request)]))
        return b""

    handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(refuse)
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test", {"Refuse": handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/test/Refuse")
            for index, error in enumerate(errors):
                for _ in range(100):
                    with pytest.raises(grpc.aio.AioRpcError) as refused:
                        await call(str(index).encode())
                    assert refused.value.code() is ROWS[error.reason].code
                    received = rpc_status.from_call(refused.value)  # type: ignore[arg-type]
                    assert received == status.to_status(error)
    finally:
        await server.stop(0)


# Mistakes of the broker's own


def test_unexpected_errors_keep_their_text_to_themselves(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        error = status.unexpected(ValueError("password=hunter2"), make_id=lambda: "id7")
    made = status.to_status(error)
    assert made.code == grpc.StatusCode.INTERNAL.value[0]
    assert b"hunter2" not in made.SerializeToString()
    assert detail(made, rpc.ErrorInfo).metadata["error_id"] == "id7"
    assert "error_id=id7" in caplog.text
    assert "hunter2" in caplog.text


@pytest.mark.parametrize(
    ("raised", "code"),
    [
        (lambda: BrokerError(Reason.SHUTTING_DOWN, "bye"), grpc.StatusCode.UNAVAILABLE),
        (lambda: KeyError("x"), grpc.StatusCode.INTERNAL),
    ],
)
def test_what_grpc_takes(raised: Callable[[], Exception], code: grpc.StatusCode) -> None:
    made = status.grpc_status(raised())
    assert made.code is code
    assert made.trailing_metadata[0][0] == "grpc-status-details-bin"


def test_last_error_of_a_node() -> None:
    kept = Failure(reason=Reason.TASK_TIMEOUT, message="30 min passed", metadata={"step": "deploy"}, resource=NAME)
    made = status.failure_status(kept)
    assert detail(made, rpc.ResourceInfo).resource_type == "Workspace"
    assert detail(made, rpc.ErrorInfo).metadata["step"] == "deploy"


def test_earliest_start_stands_in_the_verdict() -> None:
    at = datetime(2026, 3, 1, tzinfo=UTC) + timedelta(hours=3)
    refused = PlacementRefused(Reason.NO_CAPACITY, "full", [Verdict(pool="a", outcome=Outcome.NOT_NOW, earliest=at)])
    (only,) = detail(status.to_status(refused), errors_pb2.PlacementFailure).verdicts
    assert only.earliest_start_time.ToDatetime(UTC) == at
