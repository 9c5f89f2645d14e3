"""The wire against a front-end that misbehaves: lost, late, broken and refused answers, each of the right kind."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from backends.base import (
    BackendContext,
    BackendRejected,
    Observation,
    OutcomeUnknown,
    Step,
    TransientBackendError,
)
from backends.opennebula import adapter
from backends.opennebula.adapter import OpenNebulaBackend
from backends.opennebula.standin import FaultKind, HostConfig, Standin, StandinConfig
from tests.support.opennebula_pool import BROKER, HandClock, identity, make, node, pool, step


@pytest.fixture
def one() -> Iterator[Standin]:
    with Standin(StandinConfig(hosts=(HostConfig(name="node000"),), scheduler=False)) as standin:
        yield standin


async def test_a_lost_answer_is_found_again(one: Standin) -> None:
    async with pool(one) as backend:
        one.faults.add(FaultKind.DROP_AFTER, "one.vm.allocate", count=1)
        with pytest.raises(OutcomeUnknown):
            await step(backend, Step.ALLOCATE, node())
        found = await backend.find(identity())
        assert (found.backend_id, found.detail) == ("0", "HOLD")
        assert await step(backend, Step.ALLOCATE, node(), found.backend_id) == "0"
        assert len(one.vms()) == 1


async def test_a_call_that_never_arrived_leaves_nothing(one: Standin) -> None:
    async with pool(one) as backend:
        one.faults.add(FaultKind.DROP_BEFORE, "one.vm.allocate", count=1)
        with pytest.raises(OutcomeUnknown):  # a client cannot tell the two apart
            await step(backend, Step.ALLOCATE, node())
        assert (await backend.find(identity())).observation is Observation.ABSENT


ANSWERS = [
    (FaultKind.DROP_BEFORE, {}, OutcomeUnknown),
    (FaultKind.DROP_AFTER, {}, OutcomeUnknown),
    (FaultKind.HANG, {}, OutcomeUnknown),
    (FaultKind.BROKEN_XML, {}, OutcomeUnknown),
    (FaultKind.EMPTY_BODY, {}, OutcomeUnknown),
    (FaultKind.TRUNCATED, {}, OutcomeUnknown),
    (FaultKind.HTTP_STATUS, {"status": 500}, OutcomeUnknown),
    (FaultKind.HTTP_STATUS, {"status": 503}, OutcomeUnknown),
    (FaultKind.HTTP_STATUS, {"status": 503, "after_work": True}, OutcomeUnknown),
    (FaultKind.HTTP_STATUS, {"status": 404}, TransientBackendError),
    (FaultKind.AUTH_REFUSED, {}, TransientBackendError),
]


@pytest.mark.parametrize(("kind", "how", "error"), ANSWERS)
async def test_bad_answers(one: Standin, kind: FaultKind, how: dict[str, int], error: type[Exception]) -> None:
    """To a change as given, to a question always transient; the message names the call."""
    async with pool(one, call_timeout="500ms" if kind is FaultKind.HANG else "20s") as backend:
        vm = await step(backend, Step.ALLOCATE, node())
        one.faults.add(kind, "one.vm.deploy", count=1, **how)  # type: ignore[arg-type]
        with pytest.raises(error, match=r"one\.vm\.deploy"):
            await step(backend, Step.DEPLOY, node(), vm)
        one.faults.add(kind, "one.vmpool.infoextended", count=1, **how)  # type: ignore[arg-type]
        with pytest.raises(TransientBackendError, match=r"one\.vmpool\.infoextended"):
            await backend.observe()
        one.faults.clear()
        one.faults.add(kind, "one.hostpool.info", count=1, **how)  # type: ignore[arg-type]
        with pytest.raises(TransientBackendError, match=r"one\.hostpool\.info"):
            await backend.inventory()
        await backend.inventory()


async def test_a_front_end_that_is_not_there() -> None:
    backend = make("http://127.0.0.1:1/RPC2", "a:b")
    with pytest.raises(TransientBackendError, match="not open"):
        await step(backend, Step.SUSPEND, node(), "0")
    await backend.open()
    with pytest.raises(TransientBackendError, match="not reached"):
        await step(backend, Step.SUSPEND, node(), "0")
    with pytest.raises(TransientBackendError, match="not reached"):
        await backend.observe()
    await backend.close()


async def test_a_wrong_password_and_a_new_one(one: Standin, tmp_path: Path) -> None:
    (tmp_path / "one_auth").write_text("oneadmin:wrong")
    table = {"endpoint": one.endpoint, "session_file": "one_auth"}
    context = BackendContext(pool="one", broker_id=BROKER, clock=HandClock(), base_directory=str(tmp_path))
    backend = adapter.create(table, context)
    await backend.open()
    with pytest.raises(TransientBackendError, match="session") as refused:
        await step(backend, Step.ALLOCATE, node())  # type: ignore[arg-type]
    assert "wrong" not in str(refused.value)
    (tmp_path / "one_auth").write_text(f"{one.session}\n")
    assert await step(backend, Step.ALLOCATE, node()) == "0"  # type: ignore[arg-type]
    await backend.close()


Answer = Callable[[asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def serving(answer: Answer, **settings: Any) -> AsyncIterator[OpenNebulaBackend]:
    """An open backend in front of a server that reads a call and then does whatever it likes."""
    handlers: set[asyncio.Task[None]] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        handlers.add(task)
        with suppress(ConnectionError):
            await reader.readuntil(b"</methodCall>")
            await answer(writer)
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()

    async with await asyncio.start_server(handle, "127.0.0.1", 0) as server:
        backend = make(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/RPC2", "a:b", **settings)
        await backend.open()
        yield backend
        await backend.close()
        await asyncio.gather(*handlers)


def saying(body: bytes) -> Answer:
    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s" % (len(body), body))
        await writer.drain()

    return answer


def _array(value: str) -> bytes:
    values = f"<value><boolean>1</boolean></value><value>{value}</value><value><i4>0</i4></value>"
    array = f"<value><array><data>{values}</data></array></value>"
    return f"<methodResponse><params><param>{array}</param></params></methodResponse>".encode()


DOCTYPE = b'<?xml version="1.0"?><!DOCTYPE m [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]>' + _array("<i4>0</i4>")


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (DOCTYPE, "DOCTYPE"),
        (_array("<string>x</string>"), "no id"),
        (_array("<boolean>1</boolean>"), "no id"),
        (b"x" * 70_000, "more than 65536 bytes"),
        (b"<html>hello</html>", "broken answer|another shape"),
    ],
)
async def test_nonsense(body: bytes, text: str) -> None:
    async with serving(saying(body), max_response_bytes=65536) as backend:
        with pytest.raises(OutcomeUnknown, match=text):
            await step(backend, Step.SUSPEND, node(), "0")
        with pytest.raises(TransientBackendError):
            await backend.observe()


@pytest.mark.parametrize("inner", ["&lt;!DOCTYPE x&gt;&lt;VM_POOL/&gt;", "&lt;html/&gt;", ""])
async def test_a_document_with_a_doctype_or_none_at_all(inner: str) -> None:
    async with serving(saying(_array(f"<string>{inner}</string>"))) as backend:
        with pytest.raises(TransientBackendError, match="no VM_POOL"):
            await backend.observe()


async def test_what_a_proxy_makes_of_an_answer() -> None:
    """Something before it, and no length: it ends with the connection."""

    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.0 200 OK\r\n\r\n" + _array("<i4>0</i4>"))

    async with serving(answer) as backend:
        assert await step(backend, Step.SUSPEND, node(), "0") == "0"


async def test_a_trickle_is_cut_off() -> None:
    """Each byte comes in time, the answer never does."""

    async def trickle(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        while not writer.is_closing():
            writer.write(b" ")
            await writer.drain()
            await asyncio.sleep(0.01)

    async with serving(trickle, call_timeout="300ms") as backend:
        with pytest.raises(OutcomeUnknown, match="no whole answer"):
            await step(backend, Step.SUSPEND, node(), "0")


async def test_no_more_than_eight_calls_at_once() -> None:
    """A front-end serves 15 connections and stalls callers beyond that; the rest wait here."""
    now, most = 0, 0
    yes = saying(_array("<i4>0</i4>"))

    async def count(writer: asyncio.StreamWriter) -> None:
        nonlocal now, most
        now, most = now + 1, max(most, now + 1)
        await asyncio.sleep(0.02)
        now -= 1
        await yes(writer)

    async with serving(count) as backend:
        assert most == 0  # nothing is opened beforehand
        await asyncio.gather(*(step(backend, Step.SUSPEND, node(), str(number)) for number in range(40)))
    assert most == 8


async def test_forty_callers_of_a_real_looking_front_end(one: Standin) -> None:
    async with pool(one) as backend:
        begun = time.monotonic()
        specs = [node(identity=identity("many", number)) for number in range(40)]
        vms = await asyncio.gather(*(step(backend, Step.ALLOCATE, spec) for spec in specs))
        assert len(set(vms)) == 40
        assert time.monotonic() - begun < 10


async def test_an_emoji_is_refused_before_it_is_sent(one: Standin) -> None:
    async with pool(one) as backend:
        for spec in (
            node(name="😀"),
            node(ssh_public_keys=("ssh-rsa 😀",)),
            node(parameters={"opennebula:boot": "😀"}),
        ):
            with pytest.raises(BackendRejected, match=r"U\+1F600"):
                await step(backend, Step.ALLOCATE, spec)
        assert one.calls == []
        await step(backend, Step.ALLOCATE, node(user_data="😀".encode()))


async def test_a_request_over_the_front_ends_limit(one: Standin) -> None:
    small = StandinConfig(hosts=(HostConfig(name="node000"),), message_size=4000)
    with Standin(small) as limited:
        async with pool(limited) as backend:
            with pytest.raises((BackendRejected, OutcomeUnknown)):
                await step(backend, Step.ALLOCATE, node(user_data=b"x" * 100_000))
            assert await step(backend, Step.ALLOCATE, node()) == "0"


async def test_a_locked_vm_is_refused_with_its_reason(one: Standin) -> None:
    async with pool(one) as backend:
        vm = await step(backend, Step.ALLOCATE, node())
        one.call("one.vm.lock", int(vm), 1, False)
        with pytest.raises(BackendRejected, match="locked"):
            await step(backend, Step.SUSPEND, node(), vm)
