"""Errors as google.rpc.Status: one table from a reason to its gRPC code and details.

Invariants: every status has exactly one ErrorInfo and each other detail at most once; the table says what
errors.proto says (a test compares); and a status stays within TRAILER_BYTES whatever went wrong, because it
travels in a trailer. What is cut says that it was.
An exception that is no BrokerError becomes INTERNAL without its text, which goes to the log under an id.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import Final

import grpc
from google.protobuf.any_pb2 import Any
from google.protobuf.message import Message
from google.rpc import error_details_pb2 as rpc
from google.rpc import status_pb2
from grpc_status import rpc_status

from broker.api.times import duration
from broker.api.verdicts import placement_failure
from broker.core.errors import BrokerError, Failure, FieldsInvalid, PlacementRefused, QuotaExceeded, Reason

DOMAIN: Final = "workspacebroker"
TRAILER_BYTES: Final = 7 * 1024
"""What a status and grpc-message, which repeats its message, may take together: near 8 KiB of metadata
(GRPC_ARG_MAX_METADATA_SIZE) clients begin to drop whole answers at random."""
MESSAGE_BYTES: Final = 768
METADATA_BYTES: Final = 768
KEY_BYTES: Final = 64
VALUE_BYTES: Final = 256
VIOLATIONS_BYTES: Final = 4 * 1024
NAME_BYTES: Final = 512
LONGEST_WAIT: Final = 1e9  # seconds; protobuf and timedelta bear no infinity

log = logging.getLogger(__name__)


class Detail(StrEnum):
    """Kinds of detail beside ErrorInfo; the values are the messages' names."""

    BAD_REQUEST = "BadRequest"
    RESOURCE = "ResourceInfo"
    PRECONDITION = "PreconditionFailure"
    PLACEMENT = "PlacementFailure"
    RETRY = "RetryInfo"
    QUOTA = "QuotaFailure"


@dataclass(frozen=True, slots=True)
class Row:
    """What a reason stands for. `again`: may the very same request, with its request_id, be sent again?"""

    code: grpc.StatusCode
    details: tuple[Detail, ...]
    again: str


ROWS: Final[Mapping[Reason, Row]] = {
    Reason.FIELD_INVALID: Row(grpc.StatusCode.INVALID_ARGUMENT, (Detail.BAD_REQUEST,), "no"),
    Reason.UNAUTHENTICATED: Row(grpc.StatusCode.UNAUTHENTICATED, (), "no"),
    Reason.PERMISSION_DENIED: Row(grpc.StatusCode.PERMISSION_DENIED, (Detail.RESOURCE,), "no"),
    Reason.NOT_FOUND: Row(grpc.StatusCode.NOT_FOUND, (Detail.RESOURCE,), "no"),
    Reason.NAME_TAKEN: Row(grpc.StatusCode.ALREADY_EXISTS, (Detail.RESOURCE,), "no"),
    Reason.REQUEST_ID_REUSED: Row(grpc.StatusCode.ALREADY_EXISTS, (Detail.RESOURCE,), "no"),
    Reason.STATE_FORBIDS: Row(grpc.StatusCode.FAILED_PRECONDITION, (Detail.PRECONDITION,), "no"),
    Reason.TRANSITION_UNDER_WAY: Row(grpc.StatusCode.ABORTED, (Detail.RESOURCE,), "once it has settled"),
    Reason.ETAG_MISMATCH: Row(grpc.StatusCode.ABORTED, (Detail.RESOURCE,), "after reading again"),
    Reason.GENERATION_MISMATCH: Row(grpc.StatusCode.ABORTED, (Detail.RESOURCE,), "after checking again"),
    Reason.NO_CAPACITY: Row(grpc.StatusCode.RESOURCE_EXHAUSTED, (Detail.PLACEMENT, Detail.RETRY), "later"),
    Reason.NEVER_FITS: Row(grpc.StatusCode.FAILED_PRECONDITION, (Detail.PLACEMENT,), "no"),
    Reason.QUOTA_EXCEEDED: Row(grpc.StatusCode.RESOURCE_EXHAUSTED, (Detail.QUOTA,), "when something is given back"),
    Reason.POOL_DRAINING: Row(grpc.StatusCode.FAILED_PRECONDITION, (Detail.RESOURCE,), "no"),
    Reason.HOST_IN_USE: Row(grpc.StatusCode.FAILED_PRECONDITION, (Detail.RESOURCE,), "no"),
    Reason.CAPABILITY_MISSING: Row(grpc.StatusCode.UNIMPLEMENTED, (Detail.RESOURCE,), "no"),
    Reason.BACKEND_UNREACHABLE: Row(grpc.StatusCode.UNAVAILABLE, (Detail.RETRY,), "yes"),
    Reason.OVERLOADED: Row(grpc.StatusCode.UNAVAILABLE, (Detail.RETRY,), "yes"),
    Reason.STORE_UNAVAILABLE: Row(grpc.StatusCode.UNAVAILABLE, (Detail.RETRY,), "yes"),
    Reason.SHUTTING_DOWN: Row(grpc.StatusCode.UNAVAILABLE, (Detail.RETRY,), "yes"),
    Reason.DEADLINE_TOO_SHORT: Row(grpc.StatusCode.DEADLINE_EXCEEDED, (), "yes"),
    Reason.REVISION_COMPACTED: Row(grpc.StatusCode.OUT_OF_RANGE, (), "list, then watch"),
    Reason.INTERNAL: Row(grpc.StatusCode.INTERNAL, (), "yes"),
    Reason.BACKEND_REJECTED: Row(grpc.StatusCode.FAILED_PRECONDITION, (Detail.RESOURCE,), "no"),
    Reason.TASK_TIMEOUT: Row(grpc.StatusCode.DEADLINE_EXCEEDED, (Detail.RESOURCE,), "no"),
    Reason.NODE_GONE: Row(grpc.StatusCode.NOT_FOUND, (Detail.RESOURCE,), "no"),
}

DEFAULT_RETRY_AFTER: Final[Mapping[Reason, float]] = {
    Reason.BACKEND_UNREACHABLE: 5.0,
    Reason.OVERLOADED: 1.0,
    Reason.STORE_UNAVAILABLE: 5.0,
    Reason.SHUTTING_DOWN: 2.0,
}
"""Seconds to wait where the error does not say; NO_CAPACITY has RetryInfo only when a time is known."""

_RESOURCE_TYPES: Final = {
    "pools": "Pool",
    "hosts": "Host",
    "strays": "Stray",
    "tenants": "Tenant",
    "workspaces": "Workspace",
    "ensembles": "Ensemble",
}


def grpc_status(error: BaseException) -> grpc.Status:
    """What `context.abort_with_status` takes, whatever was raised."""
    known = error if isinstance(error, BrokerError) else unexpected(error)
    return rpc_status.to_status(to_status(known))


def unexpected(error: BaseException, make_id: Callable[[], str] = lambda: secrets.token_hex(6)) -> BrokerError:
    """INTERNAL for an exception nobody foresaw: its text goes to the log, under an id the caller is given."""
    error_id = make_id()
    log.error("unexpected error error_id=%s type=%s", error_id, type(error).__name__, exc_info=error)
    return BrokerError(
        Reason.INTERNAL,
        f"the broker made a mistake; its log has the details under error_id={error_id}",
        metadata={"error_id": error_id},
    )


def failure_status(failure: Failure) -> status_pb2.Status:
    """The status of an error kept on a resource."""
    return to_status(BrokerError(failure.reason, failure.message, resource=failure.resource, metadata=failure.metadata))


def to_status(error: BrokerError) -> status_pb2.Status:
    """The status of a refusal, with every detail its reason has."""
    row = ROWS[error.reason]
    message = cut_message(error.message)
    info = rpc.ErrorInfo(reason=error.reason.value, domain=DOMAIN, metadata=_metadata(error.metadata))
    status = status_pb2.Status(code=row.code.value[0], message=message, details=[_packed(info)])
    for detail in row.details:
        made = _BUILDERS[detail](error)
        if made is not None:
            status.details.append(made)
    return status


def cut(text: str, most: int) -> str:
    """The text within so many bytes of UTF-8; what was cut ends in an ellipsis."""
    raw = text.encode(errors="replace")  # a backend's words may hold what is no character
    if len(raw) > most:
        return raw[: most - 3].decode(errors="ignore") + "…"
    return raw.decode()


def cut_message(text: str) -> str:
    """The text within MESSAGE_BYTES as grpc-message, which percent-encodes all but printable ASCII."""
    text = cut(text, MESSAGE_BYTES)
    spent = kept = 0
    for place, character in enumerate(text):
        plain = " " <= character <= "~" and character != "%"
        spent += 1 if plain else 3 * len(character.encode())
        if spent > MESSAGE_BYTES:
            return text[:kept] + "…"
        if spent <= MESSAGE_BYTES - 9:  # what the ellipsis takes
            kept = place + 1
    return text


def _packed(message: Message) -> Any:
    packed = Any()
    packed.Pack(message)
    return packed


def _metadata(given: Mapping[str, str]) -> dict[str, str]:
    """The first entries that fit, each cut to a readable length."""
    room = METADATA_BYTES
    kept = {}
    for key, value in given.items():
        name, short = cut(key, KEY_BYTES), cut(value, VALUE_BYTES)
        room -= len(name.encode()) + len(short.encode()) + 6
        if room < 0:
            break
        kept[name] = short
    return kept


def _fitting(messages: Iterable[Message]) -> tuple[list[Message], bool]:
    """Messages until their bound is reached, and whether that was all of them."""
    room = VIOLATIONS_BYTES
    kept: list[Message] = []
    for message in messages:
        room -= message.ByteSize() + 4
        if room < 0:
            return kept, False
        kept.append(message)
    return kept, True


def _bad_request(error: BrokerError) -> Any | None:
    """The violations that fit, then one that counts the others."""
    if not isinstance(error, FieldsInvalid):
        return None
    kept, all_of_them = _fitting(
        rpc.BadRequest.FieldViolation(
            field=cut(each.path, NAME_BYTES),
            reason=each.reason.value,
            description=cut(each.message, NAME_BYTES),
        )
        for each in error.violations
    )
    bad = rpc.BadRequest(field_violations=kept)
    if not all_of_them:
        left = error.violations[len(kept) :]
        bad.field_violations.add(
            field=cut(left[0].path, NAME_BYTES),
            reason=left[0].reason.value,
            description=f"this and {len(left) - 1} further violations are not described here",
        )
    return _packed(bad)


def _resource(error: BrokerError) -> Any:
    parts = error.resource.split("/")
    return _packed(
        rpc.ResourceInfo(
            resource_type=_RESOURCE_TYPES.get(parts[-2], "") if len(parts) > 1 else "",
            resource_name=cut(error.resource, NAME_BYTES),
            description=cut(error.message, NAME_BYTES),
        )
    )


def _precondition(error: BrokerError) -> Any:
    violation = rpc.PreconditionFailure.Violation(
        type="STATE", subject=cut(error.resource, NAME_BYTES), description=cut(error.message, NAME_BYTES)
    )
    return _packed(rpc.PreconditionFailure(violations=[violation]))


def _placement(error: BrokerError) -> Any | None:
    return _packed(placement_failure(error.verdicts)) if isinstance(error, PlacementRefused) else None


def _retry(error: BrokerError) -> Any | None:
    wait = error.retry_after
    if wait is None:
        wait = DEFAULT_RETRY_AFTER.get(error.reason)
    if wait is None:
        return None
    return _packed(rpc.RetryInfo(retry_delay=duration(timedelta(seconds=min(max(wait, 0.0), LONGEST_WAIT)))))


def _quota(error: BrokerError) -> Any:
    if not isinstance(error, QuotaExceeded):
        only = rpc.QuotaFailure.Violation(
            subject=cut(error.resource, NAME_BYTES), description=cut(error.message, NAME_BYTES)
        )
        return _packed(rpc.QuotaFailure(violations=[only]))
    kept, _ = _fitting(
        rpc.QuotaFailure.Violation(
            subject=cut(each.subject, NAME_BYTES),
            description=f"limit {each.limit}, used {each.used}, asked {each.requested}",
            quota_metric=cut(each.resource, VALUE_BYTES),
            quota_value=each.limit,
            quota_dimensions={"used": str(each.used), "requested": str(each.requested)},
        )
        for each in error.violations
    )
    return _packed(rpc.QuotaFailure(violations=kept))


_BUILDERS: Final[Mapping[Detail, Callable[[BrokerError], Any | None]]] = {
    Detail.BAD_REQUEST: _bad_request,
    Detail.RESOURCE: _resource,
    Detail.PRECONDITION: _precondition,
    Detail.PLACEMENT: _placement,
    Detail.RETRY: _retry,
    Detail.QUOTA: _quota,
}
