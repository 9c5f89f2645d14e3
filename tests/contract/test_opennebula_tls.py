"""TLS and proxies: whom the adapter believes, and which way it goes."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from backends.base import Step, TransientBackendError
from tests.support.opennebula_pool import make, node, step

# Made for this test, signed by itself, good for 127.0.0.1 until 2120.
KEY = """\
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgOfvlgES+7wwxIPuk
4ZjGEdUc6AETKH+aDbaY21ZVKEmhRANCAASQCgCqVjmnQbCrm7ZJwXPP0v4D+mZw
pTYjVzwKFF40Bxj16mXe9NxyyfMulUuBFE/fDtN9TwN5joXaYUMUjapq
-----END PRIVATE KEY-----
"""
CERTIFICATE = """\
-----BEGIN CERTIFICATE-----
MIIBkjCCATigAwIBAgIBATAKBggqhkjOPQQDAjAnMSUwIwYDVQQDDBxzdGFuZC1p
biBmcm9udC1lbmQgZm9yIHRlc3RzMCAXDTIwMDEwMTAwMDAwMFoYDzIxMjAwMTAx
MDAwMDAwWjAnMSUwIwYDVQQDDBxzdGFuZC1pbiBmcm9udC1lbmQgZm9yIHRlc3Rz
MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEkAoAqlY5p0Gwq5u2ScFzz9L+A/pm
cKU2I1c8ChReNAcY9epl3vTccsnzLpVLgRRP3w7TfU8DeY6F2mFDFI2qaqNTMFEw
DwYDVR0RBAgwBocEfwAAATAPBgNVHRMBAf8EBTADAQH/MA4GA1UdDwEB/wQEAwIC
hDAdBgNVHQ4EFgQUT8AnQXVqy340W29XM3pkLo4tBAUwCgYIKoZIzj0EAwIDSAAw
RQIgCaBQ+foW1IUYNxmHVW2RAmuNEM4fqQPNflBKB9lE3GgCIQCo8840O4Q22qzp
X/staHsx1H4iyuuog0rSEc0SXxa7lw==
-----END CERTIFICATE-----
"""
YES = (
    "<methodResponse><params><param><value><array><data><value><boolean>1</boolean></value>"
    "<value><i4>0</i4></value><value><i4>0</i4></value></data></array></value></param></params></methodResponse>"
)


@pytest.fixture
def pem(tmp_path: Path) -> Path:
    file = tmp_path / "ca.pem"
    file.write_text(KEY + CERTIFICATE)
    return file


@asynccontextmanager
async def serving(seen: list[str], tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """A server that says yes and notes the request lines."""
    handlers: set[asyncio.Task[None]] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        handlers.add(task)
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            seen.append((await reader.readuntil(b"</methodCall>")).decode().splitlines()[0])
            writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: {len(YES)}\r\n\r\n{YES}".encode())
            await writer.drain()
        writer.close()
        with suppress(ConnectionError, ssl.SSLError):
            await writer.wait_closed()

    async with await asyncio.start_server(handle, "127.0.0.1", 0, ssl=tls) as server:
        yield server.sockets[0].getsockname()[1]
        await asyncio.gather(*handlers)


@pytest.mark.parametrize(
    ("settings", "believed"), [({"verify": False}, True), ({"ca_file": "ca.pem"}, True), ({}, False)]
)
async def test_whom_it_believes(pem: Path, settings: dict[str, Any], believed: bool) -> None:
    if "ca_file" in settings:
        settings = {"ca_file": str(pem)}
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(pem)
    seen: list[str] = []
    async with serving(seen, tls) as port:
        backend = make(f"https://127.0.0.1:{port}/RPC2", "a:b", **settings)
        await backend.open()
        if believed:
            assert await step(backend, Step.SUSPEND, node(), "0") == "0"
        else:
            with pytest.raises(TransientBackendError, match="CERTIFICATE_VERIFY_FAILED"):
                await step(backend, Step.SUSPEND, node(), "0")
        await backend.close()
    assert seen == (["POST /RPC2 HTTP/1.1"] if believed else [])


async def test_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the one that was set; what the environment says is for others."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    seen: list[str] = []
    async with serving(seen) as port:
        ways: dict[str, dict[str, Any]] = {
            f"127.0.0.1:{port}": {},
            "one.invalid": {"proxy": f"http://127.0.0.1:{port}"},
        }
        for host, settings in ways.items():
            backend = make(f"http://{host}/RPC2", "a:b", **settings)
            await backend.open()
            assert await step(backend, Step.SUSPEND, node(), "0") == "0"
            await backend.close()
    assert seen == ["POST /RPC2 HTTP/1.1", "POST http://one.invalid/RPC2 HTTP/1.1"]


async def test_a_proxy_that_is_not_there() -> None:
    backend = make("http://one.invalid/RPC2", "a:b", proxy="http://127.0.0.1:1")
    await backend.open()
    with pytest.raises(TransientBackendError, match="not reached"):
        await step(backend, Step.SUSPEND, node(), "0")
    await backend.close()
