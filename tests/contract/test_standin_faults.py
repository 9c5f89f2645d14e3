"""Every fault the stand-in can be told to make is really seen by a client, and nothing a peer sends hurts.

A raw client looks at the bytes; threads and file descriptors are counted before and after.
"""

from __future__ import annotations

import os
import random
import socket
import threading
import time
import xml.etree.ElementTree as ElementTree
import xmlrpc.client
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from backends.opennebula.standin import FaultKind, FaultRule, HostConfig, Standin, StandinConfig
from backends.opennebula.standin.registry import METHODS
from tests.support.standin_shape import parse_answer
from tests.support.standin_wire import RawReply, call, connect, exchange, post, read_all, until

ALLOCATE = 'CPU="1"\nMEMORY="64"'


@pytest.fixture
def one() -> Iterator[Standin]:
    config = StandinConfig(hosts=(HostConfig(name="big"),), scheduler=False, default_dwell=0.001, idle_timeout=0.4)
    with Standin(config) as standin:
        yield standin


def request(one: Standin, method: str, *params: Any) -> bytes:
    return xmlrpc.client.dumps((one.session, *params), method).encode()


def allocate(one: Standin, timeout: float = 10.0) -> RawReply:
    return post(one.endpoint, request(one, "one.vm.allocate", ALLOCATE, True), timeout)


def test_drop_before_the_work(one: Standin) -> None:
    one.faults.add("drop_before", "one.vm.allocate", count=1)
    assert allocate(one).status == 0
    assert one.vms() == []
    assert [record.outcome for record in one.calls] == ["drop_before"]
    assert allocate(one).status == 200


def test_drop_after_the_work(one: Standin) -> None:
    one.faults.add(FaultKind.DROP_AFTER, "one.vm.allocate", count=1)
    assert allocate(one).status == 0
    assert [vm.id for vm in one.vms()] == [0]


def test_delay(one: Standin) -> None:
    one.faults.add("delay", seconds=0.2, count=1)
    start = time.monotonic()
    assert allocate(one).status == 200
    assert time.monotonic() - start >= 0.2


@pytest.mark.parametrize("status", [500, 502, 503, 504])
def test_http_status_with_a_page(one: Standin, status: int) -> None:
    one.faults.add("http_status", status=status, count=1)
    reply = allocate(one)
    assert (reply.status, reply.body[:6]) == (status, b"<HTML>")
    assert "content-length" not in reply.headers.lower()
    assert one.vms() == []


def test_http_status_after_the_work(one: Standin) -> None:
    one.faults.add("http_status", status=500, after_work=True, count=1)
    assert allocate(one).status == 500
    assert len(one.vms()) == 1


@pytest.mark.parametrize("kind", ["broken_xml", "empty_body", "truncated"])
def test_a_damaged_answer_to_work_done(one: Standin, kind: str) -> None:
    one.faults.add(kind, count=1)
    reply = allocate(one)
    assert reply.status == 200
    assert parse_answer(reply.body).kind == "not-xmlrpc"
    announced = int(reply.headers.lower().partition("content-length: ")[2].split("\r\n")[0])
    assert (announced > len(reply.body)) == (kind == "truncated")
    assert len(one.vms()) == 1


def test_authentication_refused(one: Standin) -> None:
    one.faults.add("auth_refused", "one.vm.*", count=1)
    assert parse_answer(allocate(one).body).code == "256"
    assert one.vms() == []
    assert parse_answer(allocate(one).body).kind == "true"


def test_hang(one: Standin) -> None:
    one.faults.add("hang", count=1)
    with pytest.raises(TimeoutError):
        allocate(one, timeout=0.3)
    assert one.vms() == []
    assert allocate(one).status == 200


def test_rules_choose_their_calls(one: Standin) -> None:
    rule = one.faults.add("drop_before", "one.vm.allocate", nth=2, count=2)
    assert [allocate(one).status for _ in range(5)] == [200, 0, 0, 200, 200]
    one.faults.remove(rule)
    one.faults.add("drop_before", "one.host.*")
    assert allocate(one).status == 200
    one.faults.clear()
    assert call(one.endpoint, "one.host.info", one.session, 0)[0] is True


def test_the_same_seed_hits_the_same_calls() -> None:
    def statuses() -> list[int]:
        rule = FaultRule(kind=FaultKind.DROP_BEFORE, probability=0.5)
        with Standin(StandinConfig(seed=7, faults=(rule,))) as one:
            return [allocate(one).status for _ in range(20)]

    first = statuses()
    assert 0 in first
    assert 200 in first
    assert statuses() == first


# Connections


def test_fifteen_connections_at_once(one: Standin) -> None:
    limit = one.config.max_connections
    idle = [connect(one.endpoint) for _ in range(limit)]
    try:
        start = time.monotonic()
        assert call(one.endpoint, "one.system.version", one.session)[0] is True
        # The call waited for an idle socket's time to run out.
        assert time.monotonic() - start >= one.config.idle_timeout / 2
    finally:
        for connection in idle:
            connection.close()


def test_one_less_leaves_room() -> None:
    with Standin(StandinConfig()) as one:
        idle = [connect(one.endpoint) for _ in range(one.config.max_connections - 1)]
        start = time.monotonic()
        assert call(one.endpoint, "one.system.version", one.session)[0] is True
        assert time.monotonic() - start < 1.0
        for connection in idle:
            connection.close()


def together(calls: list[Callable[[], object]]) -> list[float]:
    """Makes calls at once; the seconds until each was answered."""
    start = time.monotonic()

    def timed(make: Callable[[], object]) -> float:
        make()
        return time.monotonic() - start

    with ThreadPoolExecutor(len(calls)) as threads:
        return list(threads.map(timed, calls))


def test_connections_are_counted_while_they_are_in_use() -> None:
    with Standin(StandinConfig(call_latency={"one.system.version": 0.3})) as one:
        together([lambda: call(one.endpoint, "one.system.version", one.session)] * 3)
        call(one.endpoint, "one.system.version", one.session)
        assert one.connections.most == 3
        until(lambda: one.connections.open == 0)


def test_serial_calls_take_turns_and_others_do_not_wait() -> None:
    with Standin(StandinConfig(scheduler=False, serial_latency={"one.vm.allocate": 0.1})) as one:
        asked: list[Callable[[], object]] = [lambda: call(one.endpoint, "one.system.version", one.session)]
        asked += [lambda: allocate(one)] * 4
        version, *allocates = together(asked)
        assert version < 0.3
        for turn, seconds in enumerate(sorted(allocates), 1):
            assert seconds >= turn * 0.1


def test_a_half_sent_request_times_out(one: Standin) -> None:
    assert exchange(one.endpoint, b"POST /RPC2 HTTP/1.1\r\nContent-Length: 100\r\n\r\n<half").status == 408


def test_a_huge_header_is_dropped(one: Standin) -> None:
    huge = b"POST /RPC2 HTTP/1.1\r\nX: " + b"x" * 20_000 + b"\r\nContent-Length: 1\r\n\r\nx"
    assert exchange(one.endpoint, huge).status == 0


def test_no_keep_alive(one: Standin) -> None:
    body = request(one, "one.system.version")
    head = f"POST /RPC2 HTTP/1.1\r\nConnection: keep-alive\r\nContent-Length: {len(body)}\r\n\r\n"
    with connect(one.endpoint) as connection:
        connection.sendall(head.encode() + body)
        assert b"Connection: close" in read_all(connection)  # and the end came


# Whatever a peer sends


def _resources() -> tuple[int, int]:
    return threading.active_count(), len(os.listdir("/proc/self/fd"))


def _garbage(chance: random.Random, valid: bytes) -> bytes:
    kind = chance.randrange(5)
    if kind == 0:
        return chance.randbytes(chance.randrange(1, 4000))
    if kind == 1:
        return b"POST /RPC2 HTTP/1.1\r\n" + chance.randbytes(chance.randrange(1, 400))
    if kind == 2:
        return valid[: chance.randrange(1, len(valid))]
    body = bytearray(valid)
    for _ in range(chance.randrange(1, 30)):
        body[chance.randrange(len(body))] = chance.randrange(256)
    if kind == 3:
        return bytes(body)
    payload = bytes(body)
    return f"POST /RPC2 HTTP/1.1\r\nContent-Length: {len(payload)}\r\n\r\n".encode() + payload


def test_random_bytes_leave_nothing_behind(one: Standin) -> None:
    call(one.endpoint, "one.system.version", one.session)
    before = _resources()
    chance = random.Random(20261124)
    body = request(one, "one.vm.allocate", ALLOCATE, True)
    valid = f"POST /RPC2 HTTP/1.1\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
    for _ in range(300):
        with connect(one.endpoint) as connection:
            connection.sendall(_garbage(chance, valid))
            try:
                connection.shutdown(socket.SHUT_WR)
                read_all(connection)
            except OSError:
                continue
    until(lambda: _resources() == before, what="everything given back")
    assert call(one.endpoint, "one.system.version", one.session)[0] is True


_CAPACITY = "CPU=1\nMEMORY=64\n"
_ODD_TEXTS = (
    *("", "x", "²", "-1", "9" * 5000, "A=[", "<A>", "<A><B/></A>", "<A><x:B xmlns:x='y'>1</x:B></A>"),
    *("DISK=[IMAGE_ID=²]", "NIC=[]", "\r\n", "%n" * 50, "1,²,9" + "9" * 5000, "MEMORY=64.5\nCPU=nan"),
    *("CPU=inf\nMEMORY=64", "CPU=1e308\nMEMORY=1", f"CPU=1\nMEMORY={'9' * 5000}", "CPU=1_0\nMEMORY=1"),
    *(
        _CAPACITY + "DISK=[IMAGE_ID=²]",
        _CAPACITY + "DISK=[TYPE=swap,SIZE=²]",
        _CAPACITY + "NIC=[NETWORK_ID=²]",
    ),
    *(
        "VN_MAD=x\nAR=[IP=1.2.3.999,SIZE=1]",
        "VN_MAD=x\nAR=[IP=255.255.255.255,SIZE=9]",
        "AR=[SIZE=99999999999]",
    ),
    *("VM=[CPU=nan,VMS=inf]", "RESERVED_CPU=inf%\nRESERVED_MEM=" + "9" * 5000, "NAME=i\nSIZE=²\nPATH=/x"),
    *("SCHED_ACTION=[TIME=+²]", 'SCHED_REQUIREMENTS="' + "(" * 5000 + '"\n' + _CAPACITY),
)
_ODD: tuple[Any, ...] = (*_ODD_TEXTS, -1, 0, 1, 2**31 - 1, -(2**31), True, 1.5, [], ["x"], {"a": 1})


@pytest.mark.filterwarnings("error")
def test_any_values_to_any_method_get_an_answer(one: Standin) -> None:
    call(one.endpoint, "one.vm.allocate", one.session, ALLOCATE, True)
    chance = random.Random(11)
    session = one.session
    # Deleting or re-keying oneadmin's world away would end the test early.
    for name in sorted(set(METHODS) - {"one.user.passwd", "one.user.chgrp"}):
        for attempt in range(40):
            if attempt % 2:
                values = [chance.choice(_ODD) for _ in range(chance.randrange(8))]
            else:  # of the right types
                texts, numbers = _ODD_TEXTS, (-1, 0, 1, 2**31 - 1)
                choices: dict[type, tuple[Any, ...]] = {
                    str: texts,
                    int: numbers,
                    bool: (True, False),
                    list: ([],),
                }
                values = [chance.choice(choices[parameter.kind]) for parameter in METHODS[name].parameters]
            body = xmlrpc.client.dumps((session, *values), name).encode()
            parsed = parse_answer(post(one.endpoint, body).body)
            assert parsed.kind in ("true", "false", "fault"), (name, values)
            assert parsed.code != "-500", (name, values)
    for name in ("one.hostpool.info", "one.userpool.info", "one.clusterpool.info", "one.datastorepool.info"):
        assert call(one.endpoint, name, session)[0] is True
    for name, filters in (("vm", (-2, -1, -1, -2)), ("image", (-2, -1, -1)), ("vn", (-2, -1, -1))):
        answer = call(one.endpoint, f"one.{name}pool.info", session, *filters)
        assert ElementTree.fromstring(answer[1]).tag.endswith("_POOL")
    one.run_scheduler()


def test_stopping_leaves_nothing_behind() -> None:
    before = _resources()
    with Standin(StandinConfig()) as one:
        one.faults.add("hang")
        hanging = connect(one.endpoint)
        body = request(one, "one.system.version")
        hanging.sendall(f"POST /RPC2 HTTP/1.1\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        until(lambda: one.calls != [], what="the hanging call")
    hanging.close()
    until(lambda: _resources() == before, what="everything given back")
