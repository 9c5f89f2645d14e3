"""The proxy does what its log says, and decides the same way whenever and in whatever order it is asked."""

from __future__ import annotations

import threading
import time
import xmlrpc.client
from collections import Counter
from dataclasses import replace
from http.client import HTTPConnection, IncompleteRead, RemoteDisconnected
from typing import Any
from urllib.parse import urlsplit

import pytest

from backends.opennebula.standin import HostConfig, Standin, StandinConfig
from tests.support.proxy import FAULTS, Decision, Judge, Kind, Proxy

CONFIG = StandinConfig(hosts=(HostConfig(name="node-1"),), scheduler=False, default_dwell=0.001)
CALLS = [(method, f"web-{number}") for method in ("one.vm.allocate", "one.vm.info") for number in range(40)]


class Fixed(Judge):
    """Meets every call with the same decision."""

    def __init__(self, **decision: Any) -> None:
        super().__init__(0)
        self._decision = Decision(method="", subject="", attempt=1, **decision)

    def decide(self, method: str, subject: str) -> Decision:
        return replace(self._decision, method=method, subject=subject)


def test_the_same_seed_decides_alike_in_any_order() -> None:
    asked = CALLS * 3
    one, other = Judge(5), Judge(5)
    first = [one.decide(*call) for call in asked]
    second = [other.decide(*call) for call in reversed(asked)]
    assert sorted(map(str, first)) == sorted(map(str, second))
    assert [Judge(6).decide(*call) for call in CALLS] != first[: len(CALLS)]
    assert [decision.attempt for decision in first] == [1] * 80 + [2] * 80 + [3] * 80


def test_a_share_of_all_calls_is_spoiled_and_every_kind_as_often() -> None:
    judge = Judge(1, too_late=9.0)
    decisions = [judge.decide("one.vm.info", "") for _ in range(20_000)]
    counts = Counter(decision.kind for decision in decisions)
    assert sum(counts[kind] for kind in FAULTS) / len(decisions) == pytest.approx(0.2, abs=0.01)
    for kind in FAULTS:
        assert counts[kind] / len(decisions) == pytest.approx(0.2 / len(FAULTS), rel=0.15), kind
    worked = Counter((decision.kind, decision.worked) for decision in decisions)
    for kind in (Kind.HTTP_500, Kind.HTTP_502, Kind.RESET):
        assert worked[kind, True] / counts[kind] == pytest.approx(0.5, abs=0.1), kind
    assert worked[Kind.DROPPED_REQUEST, True] == worked[Kind.DROPPED_ANSWER, False] == 0
    assert {decision.seconds == 9.0 for decision in decisions if decision.kind is Kind.DELAYED} == {True, False}
    # A request that comes after its caller gave up is a promise nobody could keep.
    assert all(not decision.early for decision in decisions if decision.seconds == 9.0)


@pytest.mark.parametrize(
    ("decision", "outcome"),
    [
        ({"kind": Kind.PASSED}, "200"),
        ({"kind": Kind.DELAYED, "seconds": 0.05}, "200"),
        ({"kind": Kind.DELAYED, "seconds": 0.05, "early": True}, "200"),
        ({"kind": Kind.DROPPED_REQUEST, "early": True}, "no answer"),
        ({"kind": Kind.DROPPED_ANSWER}, "no answer"),
        ({"kind": Kind.TRUNCATED, "cut": 0.9}, "cut"),
        ({"kind": Kind.HTTP_500}, "500"),
        ({"kind": Kind.HTTP_502, "early": True}, "502"),
        ({"kind": Kind.RESET}, "reset"),
        ({"kind": Kind.RESET, "early": True}, "reset"),
    ],
)
def test_every_kind_is_carried_out(decision: dict[str, Any], outcome: str) -> None:
    with Standin(CONFIG) as one, Proxy(one.endpoint, Fixed(**decision)) as proxy:
        began = time.monotonic()
        assert allocate(proxy.endpoint, one.session, "web-0") == outcome
        assert time.monotonic() - began >= decision.get("seconds", 0.0)
        (logged,) = proxy.log
        assert (logged.method, logged.subject, logged.kind) == ("one.vm.allocate", "web-0", decision["kind"])
        assert len(one.vms()) == int(logged.worked)
        assert proxy.broken == []
    assert [thread.name for thread in threading.enumerate() if thread.name in ("proxy", "standin")] == []


def test_calls_about_a_vm_are_told_by_its_name() -> None:
    """Ids differ from run to run, by who came first; what a broker calls a node does not."""
    with Standin(CONFIG) as one, Proxy(one.endpoint, Judge(0, share=0.0)) as proxy:
        allocate(proxy.endpoint, one.session, "web-0")
        call(proxy.endpoint, "one.vm.deploy", one.session, 0, 0, True, -1)
        call(proxy.endpoint, "one.vm.action", one.session, "poweroff", 0)
        call(proxy.endpoint, "one.vm.info", one.session, 0)
        call(proxy.endpoint, "one.hostpool.info", one.session)
        assert [(logged.method, logged.subject, logged.attempt) for logged in proxy.log] == [
            ("one.vm.allocate", "web-0", 1),
            ("one.vm.deploy", "web-0", 1),
            ("one.vm.action", "poweroff web-0", 1),
            ("one.vm.info", "web-0", 1),
            ("one.hostpool.info", "", 1),
        ]


def allocate(endpoint: str, session: str, name: str) -> str:
    text = f"<TEMPLATE><NAME>{name}</NAME><CPU>1</CPU><MEMORY>64</MEMORY></TEMPLATE>"
    return call(endpoint, "one.vm.allocate", session, text, True)


def call(endpoint: str, method: str, *arguments: Any) -> str:
    """What a plain HTTP client meets with."""
    parts = urlsplit(endpoint)
    connection = HTTPConnection(str(parts.hostname), parts.port, timeout=10)
    try:
        connection.request("POST", parts.path, xmlrpc.client.dumps(arguments, method), {"Content-Type": "text/xml"})
        response = connection.getresponse()
        response.read()
        return str(response.status)
    except RemoteDisconnected:
        return "no answer"
    except IncompleteRead:
        return "cut"
    except ConnectionResetError:
        return "reset"
    finally:
        connection.close()
