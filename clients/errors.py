"""The broker's refusals as exceptions, one family for everything a caller would handle alike.

BrokerError            reason, message, code, metadata, violations, verdicts, retry_after, resource, ...
├── InvalidRequest     FIELD_INVALID
├── Denied             UNAUTHENTICATED, PERMISSION_DENIED
├── QuotaExceeded      QUOTA_EXCEEDED
├── NotFound           NOT_FOUND, NODE_GONE
├── Conflict           NAME_TAKEN, REQUEST_ID_REUSED, TRANSITION_UNDER_WAY, ETAG_MISMATCH, GENERATION_MISMATCH
├── StateForbids       STATE_FORBIDS, POOL_DRAINING, HOST_IN_USE
├── NotNow             NO_CAPACITY: waiting or asking for less helps
├── NeverFits          NEVER_FITS: waiting does not help
├── Unsupported        CAPABILITY_MISSING
├── Unavailable        BACKEND_UNREACHABLE, OVERLOADED, STORE_UNAVAILABLE, SHUTTING_DOWN, DEADLINE_TOO_SHORT
├── RevisionCompacted  REVISION_COMPACTED: list, then watch on
├── BrokerFault        INTERNAL, BACKEND_REJECTED, TASK_TIMEOUT, and any reason this client does not know yet
└── TransportError     no reason of the broker's: the failure is gRPC's own, see code

Decodes statuses only; which exit code or advice a family deserves is for whoever shows it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import grpc
from google.protobuf import any_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status
from workspacebroker.v1 import errors_pb2, resources_pb2

DOMAIN = "workspacebroker"
_CODES = {code.value[0]: code for code in grpc.StatusCode}
_Detail = TypeVar("_Detail", bound=Message)


@dataclass(frozen=True, slots=True)
class Violation:
    """One thing wrong: the field, quota or precondition it is about, why in a word, and in a sentence."""

    subject: str
    reason: str
    message: str


class BrokerError(Exception):
    """A refusal with a stable reason; see the tree in the module's docstring."""

    def __init__(self, status: status_pb2.Status, *, request_id: str = "") -> None:
        super().__init__(status.message)
        self.status = status
        self.message: str = status.message
        self.code: grpc.StatusCode = _CODES.get(status.code, grpc.StatusCode.UNKNOWN)
        self.request_id = request_id  # send it again to repeat the call without doing it twice
        self.reason = ""
        self.metadata: dict[str, str] = {}
        self.violations: list[Violation] = []
        self.verdicts: list[resources_pb2.PlacementVerdict] = []
        self.retry_after: float | None = None  # seconds
        self.resource = ""
        for detail in status.details:
            self._take(detail)

    def _take(self, detail: any_pb2.Any) -> None:
        if (info := _unpacked(detail, error_details_pb2.ErrorInfo)) is not None:
            if info.domain == DOMAIN:
                self.reason, self.metadata = info.reason, dict(info.metadata)
        elif (bad := _unpacked(detail, error_details_pb2.BadRequest)) is not None:
            self.violations += [Violation(v.field, v.reason, v.description) for v in bad.field_violations]
        elif (quota := _unpacked(detail, error_details_pb2.QuotaFailure)) is not None:
            self.violations += [Violation(v.subject, v.quota_metric, v.description) for v in quota.violations]
        elif (forbids := _unpacked(detail, error_details_pb2.PreconditionFailure)) is not None:
            self.violations += [Violation(v.subject, v.type, v.description) for v in forbids.violations]
        elif (placement := _unpacked(detail, errors_pb2.PlacementFailure)) is not None:
            self.verdicts += placement.verdicts
        elif (retry := _unpacked(detail, error_details_pb2.RetryInfo)) is not None:
            self.retry_after = retry.retry_delay.ToTimedelta().total_seconds()
        elif (about := _unpacked(detail, error_details_pb2.ResourceInfo)) is not None:
            self.resource = about.resource_name


class InvalidRequest(BrokerError):
    """The request is wrong as it stands; `violations` names every field."""


class Denied(BrokerError):
    """Not known, or not allowed."""


class QuotaExceeded(BrokerError):
    """A limit of the tenant would be passed; `violations` names each."""


class NotFound(BrokerError):
    """No such resource, or none that the caller may see."""


class Conflict(BrokerError):
    """Someone or something else was first."""


class StateForbids(BrokerError):
    """The resource's state does not allow it; the message names what would."""


class NotNow(BrokerError):
    """No room now; `verdicts` say where and how much is missing."""


class NeverFits(BrokerError):
    """No room even if everything were empty; `verdicts` say why."""


class Unsupported(BrokerError):
    """The pool's backend cannot do that."""


class Unavailable(BrokerError):
    """The broker answers but cannot serve now; the same request may be sent again."""


class RevisionCompacted(BrokerError):
    """The changes asked for are no longer kept."""


class BrokerFault(BrokerError):
    """The broker or its backend failed."""


class TransportError(BrokerError):
    """gRPC's own failure: nothing listens, the deadline passed, the server knows no such call."""


_FAMILIES: dict[type[BrokerError], tuple[str, ...]] = {
    InvalidRequest: ("FIELD_INVALID",),
    Denied: ("UNAUTHENTICATED", "PERMISSION_DENIED"),
    QuotaExceeded: ("QUOTA_EXCEEDED",),
    NotFound: ("NOT_FOUND", "NODE_GONE"),
    Conflict: (
        "NAME_TAKEN",
        "REQUEST_ID_REUSED",
        "TRANSITION_UNDER_WAY",
        "ETAG_MISMATCH",
        "GENERATION_MISMATCH",
    ),
    StateForbids: ("STATE_FORBIDS", "POOL_DRAINING", "HOST_IN_USE"),
    NotNow: ("NO_CAPACITY",),
    NeverFits: ("NEVER_FITS",),
    Unsupported: ("CAPABILITY_MISSING",),
    Unavailable: (
        "BACKEND_UNREACHABLE",
        "OVERLOADED",
        "STORE_UNAVAILABLE",
        "SHUTTING_DOWN",
        "DEADLINE_TOO_SHORT",
    ),
    RevisionCompacted: ("REVISION_COMPACTED",),
    BrokerFault: ("INTERNAL", "BACKEND_REJECTED", "TASK_TIMEOUT"),
}
FAMILY_BY_REASON = {reason: family for family, reasons in _FAMILIES.items() for reason in reasons}


def from_status(status: status_pb2.Status, *, request_id: str = "") -> BrokerError:
    """The error that `status` describes; also for a `last_error` kept on a resource."""
    reason = BrokerError(status).reason
    family = FAMILY_BY_REASON.get(reason, BrokerFault) if reason else TransportError
    return family(status, request_id=request_id)


def from_rpc_error(error: grpc.RpcError, *, request_id: str = "") -> BrokerError:
    """The error that a failed call describes, of either kind of gRPC channel."""
    try:
        status = rpc_status.from_call(error)  # type: ignore[arg-type]  # what is raised is a Call as well
    except ValueError:  # a proxy replaced the code or the message: believe what gRPC saw
        status = None
    if status is None:
        status = status_pb2.Status(code=error.code().value[0], message=error.details() or "")
    return from_status(status, request_id=request_id)


def _unpacked(detail: any_pb2.Any, kind: type[_Detail]) -> _Detail | None:
    """The detail as `kind`, or None if it is something else."""
    message = kind()
    return message if detail.Unpack(message) else None
