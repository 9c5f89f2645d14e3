"""An image file from an http(s) URL, in bounded memory, with its checksum.

Invariant: what is answered is the SHA-256 of exactly what lies in the file; whether it is the right one, the caller
judges, and removes the file where anything failed. It resumes nothing: a second try begins anew.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Final

import httpx

from backends.base import BackendError, BackendRejected, TransientBackendError

_CHUNK: Final = 1024 * 1024
_TIMEOUT: Final = httpx.Timeout(60.0, connect=15.0)  # a silence, not the whole download
_PASSING: Final = frozenset({408, 425, 429})  # among the 4xx, those that another try may not get

Progress = Callable[[int, int], None]
"""Bytes done, and bytes in all; 0: not known."""


async def fetch(
    url: str, path: Path, most: int, progress: Progress, transport: httpx.AsyncBaseTransport | None = None
) -> str:
    """Writes what the URL answers to a new file, at most so many bytes; returns its SHA-256 in hexadecimal.

    Raises BackendRejected where another try will not help, TransientBackendError where it may.
    """
    try:
        async with (
            httpx.AsyncClient(follow_redirects=True, timeout=_TIMEOUT, transport=transport) as client,
            client.stream("GET", url, headers={"Accept-Encoding": "identity"}) as answer,
        ):
            _check(url, answer)
            return await _write(answer, url, path, most, progress)
    except httpx.InvalidURL as error:
        raise BackendRejected(f"{url}: {error}") from None
    except (httpx.TooManyRedirects, httpx.UnsupportedProtocol) as error:
        raise BackendRejected(f"{url}: {error}") from None
    except httpx.HTTPError as error:
        raise TransientBackendError(f"{url}: {str(error) or type(error).__name__}") from None
    except OSError as error:
        raise of_os(f"{url} could not be stored in {path}", error) from None


def of_os(what: str, error: OSError) -> BackendError:
    """The kind of a failure of the broker's own disk: one that is full may be emptied."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return TransientBackendError(f"{what}: {error.strerror}: make room there")
    return BackendRejected(f"{what}: {error.strerror or error}")


def _check(url: str, answer: httpx.Response) -> None:
    status = answer.status_code
    if status == 200:
        return
    text = f"{url}: HTTP status {status} {answer.reason_phrase}"
    if 400 <= status < 500 and status not in _PASSING:
        raise BackendRejected(f"{text}: correct the image's url")
    raise TransientBackendError(text)


async def _write(answer: httpx.Response, url: str, path: Path, most: int, progress: Progress) -> str:
    header = answer.headers.get("Content-Length", "")
    expected = int(header) if header.isdecimal() else 0
    digest = hashlib.sha256()
    done = 0
    with path.open("xb") as file:
        async for chunk in answer.aiter_raw(_CHUNK):
            done += len(chunk)
            if max(done, expected) > most:
                raise BackendRejected(f"{url} has {max(done, expected)} bytes, and at most {most} are expected")
            await asyncio.to_thread(_append, file.write, digest.update, chunk)
            progress(done, expected)
    if done < expected:
        raise TransientBackendError(f"{url} ended after {done} of {expected} bytes")
    return digest.hexdigest()


def _append(write: Callable[[bytes], object], update: Callable[[bytes], object], chunk: bytes) -> None:
    write(chunk)
    update(chunk)
