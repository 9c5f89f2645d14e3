"""Every way the broker refuses, as one tree.

BrokerError                    reason, message, metadata, retry_after
├── FieldsInvalid              all violations of a request at once
├── PlacementRefused           NO_CAPACITY or NEVER_FITS, with verdicts
├── QuotaExceeded              each limit that is passed
└── (plain)                    every other reason; `resource` names what it is about

A reason is a name of the API's `ErrorReason` and stands for exactly one gRPC code and one set of details
(broker/api/status.py). A message says what happened, with which numbers, and what the caller can do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING

from msgspec import Struct, field

if TYPE_CHECKING:
    from broker.core.placement import Verdict


class Reason(StrEnum):
    """The API's ErrorReason, without its prefix."""

    FIELD_INVALID = "FIELD_INVALID"
    UNAUTHENTICATED = "UNAUTHENTICATED"
    PERMISSION_DENIED = "PERMISSION_DENIED"
    NOT_FOUND = "NOT_FOUND"
    NAME_TAKEN = "NAME_TAKEN"
    REQUEST_ID_REUSED = "REQUEST_ID_REUSED"
    STATE_FORBIDS = "STATE_FORBIDS"
    TRANSITION_UNDER_WAY = "TRANSITION_UNDER_WAY"
    ETAG_MISMATCH = "ETAG_MISMATCH"
    GENERATION_MISMATCH = "GENERATION_MISMATCH"
    NO_CAPACITY = "NO_CAPACITY"
    NEVER_FITS = "NEVER_FITS"
    QUOTA_EXCEEDED = "QUOTA_EXCEEDED"
    POOL_DRAINING = "POOL_DRAINING"
    HOST_IN_USE = "HOST_IN_USE"
    CAPABILITY_MISSING = "CAPABILITY_MISSING"
    BACKEND_UNREACHABLE = "BACKEND_UNREACHABLE"
    OVERLOADED = "OVERLOADED"
    STORE_UNAVAILABLE = "STORE_UNAVAILABLE"
    SHUTTING_DOWN = "SHUTTING_DOWN"
    DEADLINE_TOO_SHORT = "DEADLINE_TOO_SHORT"
    REVISION_COMPACTED = "REVISION_COMPACTED"
    INTERNAL = "INTERNAL"
    BACKEND_REJECTED = "BACKEND_REJECTED"
    TASK_TIMEOUT = "TASK_TIMEOUT"
    NODE_GONE = "NODE_GONE"


class FieldReason(StrEnum):
    """The API's FieldReason, without its prefix."""

    REQUIRED = "REQUIRED"
    OUT_OF_RANGE = "OUT_OF_RANGE"
    TOO_LONG = "TOO_LONG"
    BAD_CHARACTERS = "BAD_CHARACTERS"
    UNKNOWN_VALUE = "UNKNOWN_VALUE"
    UNKNOWN_POOL = "UNKNOWN_POOL"
    UNKNOWN_IMAGE = "UNKNOWN_IMAGE"
    UNKNOWN_NETWORK = "UNKNOWN_NETWORK"
    UNKNOWN_KEY_PAIR = "UNKNOWN_KEY_PAIR"
    WRONG_KIND = "WRONG_KIND"
    DUPLICATE = "DUPLICATE"
    CONFLICT = "CONFLICT"
    IN_THE_PAST = "IN_THE_PAST"
    UNKNOWN_ENSEMBLE = "UNKNOWN_ENSEMBLE"


class FieldViolation(Struct, frozen=True, kw_only=True):
    """One bad field: its path in the request, why, and what would do."""

    path: str
    reason: FieldReason
    message: str


class QuotaViolation(Struct, frozen=True, kw_only=True):
    """One limit that a request would pass, in the limit's own unit."""

    subject: str  # tenants/{tenant}, or tenants/{tenant}/pools/{pool}
    resource: str
    limit: int
    used: int
    requested: int


class Failure(Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """An error kept on a resource (`last_error`): the same reason and words a failed call would carry."""

    reason: Reason
    message: str
    metadata: dict[str, str] = field(default_factory=dict)
    resource: str = ""


class BrokerError(Exception):
    """A refusal with a stable reason. `resource` is the full name of what it is about."""

    def __init__(
        self,
        reason: Reason,
        message: str,
        *,
        resource: str = "",
        metadata: Mapping[str, str] | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.resource = resource
        self.metadata = dict(metadata or {})
        self.retry_after = retry_after  # seconds

    def failure(self) -> Failure:
        """The form in which the error is kept on a resource."""
        return Failure(reason=self.reason, message=self.message, metadata=self.metadata, resource=self.resource)


class FieldsInvalid(BrokerError):
    """A request with bad fields: every one of them is named."""

    def __init__(self, violations: Sequence[FieldViolation]) -> None:
        shown = "; ".join(f"{v.path}: {v.message}" for v in violations[:5])
        rest = f" (and {len(violations) - 5} more)" if len(violations) > 5 else ""
        super().__init__(
            Reason.FIELD_INVALID,
            f"{len(violations)} field{'s' * (len(violations) != 1)} of the request cannot be accepted: {shown}{rest}",
            metadata={"fields": ",".join(v.path for v in violations)[:1000]},
        )
        self.violations = tuple(violations)


class PlacementRefused(BrokerError):
    """Nothing can hold the request, now (NO_CAPACITY) or ever (NEVER_FITS)."""

    def __init__(
        self,
        reason: Reason,
        message: str,
        verdicts: Sequence[Verdict],
        *,
        retry_after: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(reason, message, retry_after=retry_after, metadata=metadata)
        self.verdicts = tuple(verdicts)


class QuotaExceeded(BrokerError):
    """Each limit of the tenant that the request would pass."""

    def __init__(self, violations: Sequence[QuotaViolation]) -> None:
        shown = "; ".join(f"{v.resource}: limit {v.limit}, used {v.used}, asked {v.requested}" for v in violations)
        super().__init__(
            Reason.QUOTA_EXCEEDED,
            f"the quota of {violations[0].subject} does not allow it ({shown}); end a workspace or ask an operator",
            resource=violations[0].subject,
            metadata={v.resource: f"{v.used}+{v.requested}>{v.limit}" for v in violations},
        )
        self.violations = tuple(violations)


def shutting_down() -> BrokerError:
    """SHUTTING_DOWN, for calls that come, or would last, too long."""
    return BrokerError(Reason.SHUTTING_DOWN, "the broker is shutting down; try again when it is back", retry_after=2.0)


def overloaded(what: str, bound: int) -> BrokerError:
    """OVERLOADED: a bound is reached, and the same request may be sent again a little later."""
    return BrokerError(
        Reason.OVERLOADED,
        f"the broker has {bound} {what} under way, which is its bound; try again in a moment",
        retry_after=1.0,
        metadata={"bound": str(bound)},
    )


def not_found(kind: str, name: str) -> BrokerError:
    """NOT_FOUND for what a name or parent names, or what the caller may not see."""
    return BrokerError(Reason.NOT_FOUND, f"there is no {kind} {name}", resource=name, metadata={"name": name})
