"""Which of the three kinds a failed libvirt call is: the one place where codes are mapped, with what each driver means
by them.

Responsible for the table of (code, driver), recorded from real Xen 4.17 (libvirt 9.0) and from libvirt's test driver.
Invariant: every failed call is exactly one kind. What decides is whether the host may have done the work: a call that
only looks changes nothing, so its failures are transient; a refusal means the host looked and said no; what is cut
off is unknown. A `Refused` keeps its code, since some codes say nothing (1) or the same for "done already" and
"impossible" (55): whoever made the call looks at the domain and says which. It calls nobody.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum, StrEnum
from typing import Final

from backends.base import BackendError, BackendRejected, OutcomeUnknown, TransientBackendError


class Code(IntEnum):
    """The libvirt codes that are told apart here."""

    INTERNAL = 1
    NO_SUPPORT = 3
    INVALID_ARG = 8
    OPERATION_FAILED = 9
    NO_NAME = 21
    XML_ERROR = 27
    OPERATION_DENIED = 29
    XML_DETAIL = 35
    SYSTEM = 38
    RPC = 39
    NO_DOMAIN = 42
    NO_NETWORK = 43
    AUTH_FAILED = 45
    NO_POOL = 49
    NO_VOLUME = 50
    OPERATION_INVALID = 55
    CONFIG_UNSUPPORTED = 67
    TIMEOUT = 68
    ARGUMENT_UNSUPPORTED = 74
    POOL_BUILT = 76
    ABORTED = 78
    NO_METADATA = 80
    AUTH_CANCELLED = 79
    OPERATION_UNSUPPORTED = 84
    BUSY = 87
    ACCESS_DENIED = 88
    VOLUME_EXISTS = 90
    AUTH_UNAVAILABLE = 94


class Kind(StrEnum):
    """What a call is, which decides the thread it runs in, its deadline, and what it means when it is cut off."""

    LOOK = "look"  # changes nothing
    CHANGE = "change"
    TRANSFER = "transfer"  # a change that moves much data: it has a thread of its own


class Verdict(StrEnum):
    """What a code amounts to, for a call that changes something."""

    REQUEST = "request"  # refused, as it would be on every host
    HOST = "host"  # refused here; another host may take it
    WAIT = "wait"  # nothing was done, and the same call may work in a moment
    UNKNOWN = "unknown"


# What was seen: Xen and the test driver agree except where a row for one driver says so. Code 1 is what Xen says for
# "no memory", "no kernel", "too many vcpus", a missing disk or bridge: always the host's matter, whatever it is.
_CODES: Final[Mapping[Code, Verdict]] = {
    Code.INTERNAL: Verdict.HOST,
    Code.NO_SUPPORT: Verdict.REQUEST,
    Code.INVALID_ARG: Verdict.REQUEST,
    Code.OPERATION_FAILED: Verdict.HOST,  # a name that is taken; dom0's disk full at a managed save
    Code.NO_NAME: Verdict.REQUEST,
    Code.XML_ERROR: Verdict.REQUEST,
    Code.OPERATION_DENIED: Verdict.HOST,
    Code.XML_DETAIL: Verdict.REQUEST,
    Code.SYSTEM: Verdict.HOST,  # dom0's disk full at a define or an upload
    Code.RPC: Verdict.UNKNOWN,
    Code.NO_DOMAIN: Verdict.REQUEST,
    Code.NO_NETWORK: Verdict.HOST,
    Code.AUTH_FAILED: Verdict.HOST,
    Code.NO_POOL: Verdict.HOST,
    Code.NO_VOLUME: Verdict.HOST,
    Code.OPERATION_INVALID: Verdict.REQUEST,
    Code.CONFIG_UNSUPPORTED: Verdict.HOST,
    Code.TIMEOUT: Verdict.WAIT,  # another job holds the domain
    Code.ARGUMENT_UNSUPPORTED: Verdict.REQUEST,
    Code.POOL_BUILT: Verdict.HOST,
    Code.ABORTED: Verdict.UNKNOWN,
    Code.NO_METADATA: Verdict.REQUEST,
    Code.AUTH_CANCELLED: Verdict.HOST,
    Code.OPERATION_UNSUPPORTED: Verdict.REQUEST,
    Code.BUSY: Verdict.WAIT,
    Code.ACCESS_DENIED: Verdict.HOST,
    Code.VOLUME_EXISTS: Verdict.HOST,
    Code.AUTH_UNAVAILABLE: Verdict.HOST,
}
_BY_DRIVER: Final[Mapping[tuple[Code, str], Verdict]] = {
    # The test driver says 1 where Xen says 55: "is running already", "is not running".
    (Code.INTERNAL, "test"): Verdict.REQUEST,
}


class Refused(BackendRejected):
    """A refusal with its code, for callers who look at the domain before they believe it."""

    def __init__(self, message: str, *, code: int, host_fault: bool = False) -> None:
        super().__init__(message, host_fault=host_fault)
        self.code = code


class HostLost(TransientBackendError):
    """The host does not answer, so the call was not made. `answered`: other hosts of the pool do."""

    def __init__(self, message: str, *, answered: bool = False) -> None:
        super().__init__(message)
        self.answered = answered


class NotYet(TransientBackendError):
    """The host is well; it is this one node that is not ready for the call."""

    answered = True


def verdict(code: int, driver: str) -> Verdict:
    """What a code of a driver amounts to; a code that nobody has seen may stand for half-done work."""
    try:
        known = Code(code)
    except ValueError:
        return Verdict.UNKNOWN
    return _BY_DRIVER.get((known, driver), _CODES[known])


def of_libvirt(what: str, host: str, code: int, message: str, *, driver: str, kind: Kind) -> BackendError:
    """The error for a call that the host answered with an error."""
    text = f"{what} on {host}: {message} (libvirt code {code})"
    found = verdict(code, driver)
    if found is Verdict.WAIT:
        return NotYet(text)
    if found in (Verdict.REQUEST, Verdict.HOST):
        return Refused(text, code=code, host_fault=found is Verdict.HOST)
    if kind is Kind.LOOK:
        return NotYet(text)
    return OutcomeUnknown(f"{text}; it may have been done")


def of_cut_off(what: str, host: str, why: str, *, kind: Kind, answered: bool) -> BackendError:
    """The error for a call whose answer will not come: overdue, or its connection broke."""
    text = f"{what} on {host}: {why}"
    if kind is Kind.LOOK:
        return HostLost(text, answered=answered)
    return OutcomeUnknown(f"{text}; it may have been done")
