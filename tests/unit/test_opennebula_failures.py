"""Every way a call can fail is exactly one of the three kinds: a test for each row of the table."""

from __future__ import annotations

import httpx
import pytest

from backends.base import BackendError, BackendRejected, OutcomeUnknown, TransientBackendError
from backends.opennebula import failures
from backends.opennebula.failures import Code, Unusable

Kind = type[BackendError]
T, R, U = TransientBackendError, BackendRejected, OutcomeUnknown


def one_kind(error: BackendError) -> Kind:
    kinds = [kind for kind in (T, R, U) if isinstance(error, kind)]
    assert len(kinds) == 1
    return kinds[0]


# code: what it means for a question, for a change, for a change that builds something from a template
REFUSALS = {
    Code.AUTHENTICATION: (T, T, T),
    Code.AUTHORIZATION: (T, R, R),
    Code.NO_EXISTS: (R, R, R),
    Code.ACTION: (R, R, R),
    Code.API: (R, R, R),
    Code.INTERNAL: (T, U, R),
    Code.ALLOCATE: (R, R, R),
    0x8000: (T, U, U),
    0: (T, U, U),
}


@pytest.mark.parametrize("code", REFUSALS)
def test_refusal(code: int) -> None:
    read, change, build = REFUSALS[code]
    assert one_kind(failures.of_refusal("one.vmpool.infoextended", code, "no", changes=False)) is read
    assert one_kind(failures.of_refusal("one.vm.action", code, "no", changes=True)) is change
    for method in ("one.vm.allocate", "one.template.instantiate", "one.vm.deploy", "one.vm.disksaveas"):
        error = failures.of_refusal(method, code, "because", changes=True)
        assert one_kind(error) is build
        assert method in str(error)
        assert "because" in str(error)
        assert str(int(code)) in str(error)


def test_every_code_has_a_row() -> None:
    assert set(Code) <= set(REFUSALS)


def test_a_refused_session_says_where_to_look() -> None:
    error = failures.of_refusal("one.hostpool.info", 256, "User couldn't be authenticated", changes=False)
    assert "session" in str(error)


# fault code: for a question, for a change
FAULTS = {
    -500: (T, U),
    -501: (R, R),
    -502: (R, R),
    -503: (R, R),
    -504: (T, U),
    -505: (T, U),
    -506: (R, R),
    -507: (R, R),
    -509: (R, R),
    -510: (R, R),
    1: (T, U),
}


@pytest.mark.parametrize("code", FAULTS)
def test_fault(code: int) -> None:
    for changes, kind in enumerate(FAULTS[code]):
        error = failures.of_fault("one.vm.info", code, "oh", changes=bool(changes))
        assert one_kind(error) is kind
        assert str(code) in str(error)


HTTP = {
    301: (T, T),
    400: (R, R),
    401: (T, T),
    403: (T, T),
    404: (T, T),
    405: (T, T),
    407: (T, T),
    408: (T, T),
    411: (R, R),
    413: (R, R),
    429: (T, T),
    500: (T, U),
    502: (T, U),
    503: (T, U),
    504: (T, U),
    599: (T, U),
}


@pytest.mark.parametrize("status", HTTP)
def test_http_status(status: int) -> None:
    for changes, kind in enumerate(HTTP[status]):
        error = failures.of_http("one.vm.deploy", status, "<HTML>", changes=bool(changes))
        assert one_kind(error) is kind
        assert str(status) in str(error)


def test_a_request_over_the_servers_limit_never_works() -> None:
    error = failures.of_http("one.vm.allocate", 500, "XML-RPC request too large", changes=True)
    assert one_kind(error) is R
    assert "MESSAGE_SIZE" in str(error)


TRANSPORT: dict[type[httpx.HTTPError], tuple[Kind, Kind]] = {
    httpx.ConnectError: (T, T),
    httpx.ConnectTimeout: (T, T),
    httpx.PoolTimeout: (T, T),
    httpx.ProxyError: (T, T),
    httpx.UnsupportedProtocol: (T, T),
    httpx.WriteError: (T, U),
    httpx.WriteTimeout: (T, U),
    httpx.ReadError: (T, U),
    httpx.ReadTimeout: (T, U),
    httpx.CloseError: (T, U),
    httpx.RemoteProtocolError: (T, U),
    httpx.LocalProtocolError: (T, U),
    httpx.DecodingError: (T, U),
    httpx.TooManyRedirects: (T, U),
}


@pytest.mark.parametrize("kind", TRANSPORT)
def test_transport(kind: type[httpx.HTTPError]) -> None:
    for changes, wanted in enumerate(TRANSPORT[kind]):
        for text in ("boom", ""):
            error = failures.of_transport("one.vm.action", kind(text), changes=bool(changes))
            assert one_kind(error) is wanted
            assert kind.__name__ in str(error)


def test_every_error_of_httpx_has_a_row() -> None:
    def leaves(kind: type[httpx.HTTPError]) -> set[type[httpx.HTTPError]]:
        below = kind.__subclasses__()
        return set().union(*map(leaves, below)) if below else {kind}

    assert leaves(httpx.TransportError) | leaves(httpx.RequestError) == set(TRANSPORT)


def test_time_out_and_broken_answer() -> None:
    assert one_kind(failures.of_timeout("one.vm.info", 30, changes=False)) is T
    assert one_kind(failures.of_timeout("one.vm.allocate", 30, changes=True)) is U
    assert one_kind(failures.of_answer("one.vm.info", Unusable("empty"), changes=False)) is T
    assert one_kind(failures.of_answer("one.vm.allocate", Unusable("empty"), changes=True)) is U
