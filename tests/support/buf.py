"""`buf curl`: a gRPC client that nobody here wrote and that learns the API by reflection.

Responsible for one command and what it printed. Knows no message of the API.
"""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from google.protobuf.message import Message

BUF: Final = Path(sys.executable).with_name("buf")
PACKAGE: Final = "workspacebroker.v1"
M = TypeVar("M", bound=Message)


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """What buf prints when a call fails."""

    code: str
    message: str
    details: tuple[Mapping[str, str], ...]
    exit_code: int

    @property
    def types(self) -> list[str]:
        """The names of the details' messages."""
        return [detail["type"] for detail in self.details]

    def detail(self, kind: type[M]) -> M:
        """The detail of one type, which buf shows as base64 without padding."""
        (shown,) = [detail["value"] for detail in self.details if detail["type"] == kind.DESCRIPTOR.full_name]
        return kind.FromString(base64.b64decode(shown + "=" * (-len(shown) % 4)))

    def size(self) -> int:
        """Bytes of all details' values."""
        return sum(len(detail["value"]) * 3 // 4 for detail in self.details)


class Refused(Exception):
    """A call failed; `refusal` says how."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(f"{refusal.code}: {refusal.message}")
        self.refusal = refusal


def _command(port: int, *arguments: str) -> list[str]:
    return [str(BUF), "curl", "--protocol", "grpc", *arguments, f"http://127.0.0.1:{port}"]


def _call(port: int, method: str, request: Mapping[str, Any]) -> list[str]:
    service = method if method.count(".") > 1 else f"{PACKAGE}.{method}"
    command = _command(port, "--data", json.dumps(request))
    command[-1] += "/" + "/".join(service.rsplit(".", 1))
    return command


def lines(port: int, flag: str) -> list[str]:
    """What --list-services or --list-methods prints."""
    done = subprocess.run(_command(port, flag), capture_output=True, text=True, timeout=30, check=True)
    return done.stdout.split()


def call(port: int, method: str, request: Mapping[str, Any]) -> dict[str, Any]:
    """One unary call, such as PoolService.ListPools. Raises Refused."""
    done = subprocess.run(_call(port, method, request), capture_output=True, text=True, timeout=30, check=False)
    if done.returncode == 0:
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer
    assert done.returncode >= 8, done.stderr  # below, buf itself did not understand
    said = json.loads(done.stderr)
    raise Refused(
        Refusal(
            code=said["code"],
            message=said.get("message", ""),
            details=tuple(said.get("details", ())),
            exit_code=done.returncode,
        )
    )


@contextmanager
def stream(port: int, method: str, request: Mapping[str, Any]) -> Iterator[Iterator[dict[str, Any]]]:
    """The answers of a server stream as they come; the call is cancelled on the way out."""
    with subprocess.Popen(
        _call(port, method, request), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        try:
            yield _documents(iter(process.stdout.readline, ""))
        finally:
            process.terminate()


def _documents(text: Iterator[str]) -> Iterator[dict[str, Any]]:
    """The JSON documents of indented text that has not ended yet: each ends with a bare closing brace."""
    so_far = ""
    for line in text:
        so_far += line
        if line.rstrip("\n") in ("}", "{}"):
            document: dict[str, Any] = json.loads(so_far)
            yield document
            so_far = ""
