"""Which of the three kinds a failed call is: the one place where refusals, faults, HTTP and socket errors are
mapped.

Invariant: every way a call can fail is exactly one kind, by a table. What decides is whether the front-end
may have done the work: nothing was done -> transient or rejected, it may have been done -> outcome unknown. A
call that only reads changes nothing, so its failures are transient unless the same question can never be
answered.

It does not look at VMs: whether a refused action was in fact done already is for `verbs` to find out.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from typing import Final

import httpx

from backends.base import BackendError, BackendRejected, OutcomeUnknown, TransientBackendError


class Code(IntEnum):
    """Element 3 of a refusal, as recorded."""

    AUTHENTICATION = 0x100
    AUTHORIZATION = 0x200
    NO_EXISTS = 0x400
    ACTION = 0x800
    API = 0x1000
    INTERNAL = 0x2000
    ALLOCATE = 0x4000


class RefusedByFrontEnd(BackendRejected):
    """A refusal with its code, for callers who look at the VM before they believe it."""

    def __init__(self, message: str, *, method: str, code: int) -> None:
        super().__init__(message)
        self.method = method
        self.code = code


class SessionRefused(TransientBackendError):
    """The password was refused.

    Nothing was done and an operator may put it right, so the call may be repeated.
    """


class NotYet(TransientBackendError):
    """The front-end answered and is well; it is this one VM that is not ready for the call, or unclear."""

    answered = True


class Unusable(Exception):
    """An answer that cannot be used: broken, empty, too large, of the wrong shape.

    The kind depends on the call.
    """


_REJECT: Final = "reject"
_UNKNOWN: Final = "unknown"

# A refusal means the front-end looked and said no; only an internal error may hide half-done work. It is a
# plain refusal in the methods where the recording shows what it stands for: a bad template, a datastore of
# the wrong type.
_REFUSALS: Final[Mapping[int, str]] = {
    Code.AUTHORIZATION: _REJECT,
    Code.NO_EXISTS: _REJECT,
    Code.ACTION: _REJECT,
    Code.API: _REJECT,
    Code.INTERNAL: _UNKNOWN,
    Code.ALLOCATE: _REJECT,
}
_INTERNAL_IS_A_REFUSAL: Final = frozenset(
    {"one.vm.allocate", "one.template.instantiate", "one.vm.deploy", "one.vm.disksaveas"}
)
# For a question: what may be answered once rights or the front-end's health are back, is asked again.
_READ_REJECTED: Final = frozenset({Code.NO_EXISTS, Code.ACTION, Code.API, Code.ALLOCATE})

# xmlrpc-c refuses a call it cannot read before it runs anything; -500 wraps whatever the method threw.
_FAULTS_BEFORE_WORK: Final[Mapping[int, str]] = {
    -501: "arguments of the wrong number or type",
    -502: "an index out of range",
    -503: "a call that is no XML-RPC",
    -506: "a method it does not have",
    -507: "a refused request",
    -509: "a limit exceeded",
    -510: "text that is no UTF-8",
}

# HTTP answers that no daemon gives after work: a wrong path, a proxy that wants a password, a malformed
# request.
_HTTP_NOTHING_DONE: Final = frozenset({401, 403, 404, 405, 407, 408, 425, 429})
_HTTP_BAD_REQUEST: Final = frozenset({400, 411, 413, 414, 415, 431})

# Errors of the transport before the request was handed over. Everything else httpx raises may come after it.
_BEFORE_SENDING: Final[tuple[type[httpx.HTTPError], ...]] = (
    httpx.ConnectError,
    httpx.ConnectTimeout,
    httpx.PoolTimeout,
    httpx.ProxyError,
    httpx.UnsupportedProtocol,
)


def _perhaps_done(message: str, changes: bool) -> BackendError:
    if changes:
        return OutcomeUnknown(f"{message}; it may have been done")
    return TransientBackendError(message)


def of_refusal(method: str, code: int, message: str, *, changes: bool) -> BackendError:
    """The error for an answer [false, message, code, ...]."""
    text = f"OpenNebula refused {method}: {message} (code {code})"
    if code == Code.AUTHENTICATION:
        return SessionRefused(f"{text}; look at the pool's session")
    if not changes:
        if code in _READ_REJECTED:
            return RefusedByFrontEnd(text, method=method, code=code)
        return TransientBackendError(text)
    verdict = _REFUSALS.get(code, _UNKNOWN)
    if verdict == _REJECT or (code == Code.INTERNAL and method in _INTERNAL_IS_A_REFUSAL):
        return RefusedByFrontEnd(text, method=method, code=code)
    return OutcomeUnknown(f"{text}; it may have been done in part")


def of_fault(method: str, code: int, message: str, *, changes: bool) -> BackendError:
    """The error for an XML-RPC fault."""
    meaning = _FAULTS_BEFORE_WORK.get(code)
    if meaning is not None:
        return BackendRejected(f"OpenNebula found {meaning} in {method}: {message} (fault {code})")
    return _perhaps_done(f"OpenNebula failed at {method}: {message} (fault {code})", changes)


def of_http(method: str, status: int, page: str, *, changes: bool) -> BackendError:
    """The error for an HTTP status other than 200; `page` is the beginning of its body."""
    text = f"{method} was answered with HTTP {status}"
    if status == 500 and "too large" in page:
        return BackendRejected(f"{text}: the request is larger than the front-end's MESSAGE_SIZE")
    if status in _HTTP_BAD_REQUEST:
        return BackendRejected(f"{text}: the front-end or a proxy cannot read the request")
    if status in _HTTP_NOTHING_DONE or 300 <= status < 400:
        return TransientBackendError(f"{text}: look at the pool's endpoint and proxy")
    return _perhaps_done(text, changes)


def of_transport(method: str, error: httpx.HTTPError, *, changes: bool) -> BackendError:
    """The error for what httpx raised."""
    text = f"{method}: {type(error).__name__}: {error}" if str(error) else f"{method}: {type(error).__name__}"
    if isinstance(error, _BEFORE_SENDING):
        return TransientBackendError(f"{text}; the front-end was not reached")
    return _perhaps_done(text, changes)


def of_timeout(method: str, seconds: float, *, changes: bool) -> BackendError:
    """The error for a call that took longer than it may, whatever it was doing."""
    return _perhaps_done(f"{method}: no whole answer within {seconds:g} s", changes)


def of_answer(method: str, trouble: Unusable, *, changes: bool) -> BackendError:
    """The error for an answer nobody can use."""
    return _perhaps_done(f"{method}: {trouble}", changes)
