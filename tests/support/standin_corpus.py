"""The recorded corpus: what a real front-end was asked and what it said.

Responsible for reading `tests/contract/corpus.tar.xz`. Invariant: rows come in recorded order with the
bytes as they crossed the socket. Compares nothing.
"""

from __future__ import annotations

import gzip
import json
import tarfile
import xmlrpc.client
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

ARCHIVE = Path(__file__).parent.parent / "contract" / "corpus.tar.xz"
# Each daemon was started from an empty database: first and last row.
DAEMONS = ((1, 517), (518, 542), (543, 557), (558, 592), (593, 616), (617, 642), (643, 664))


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    n: int
    method: str | None
    case: str
    status: int
    kind: str
    request_line: str
    request: bytes
    response: bytes
    state: str
    transitions: tuple[str, ...]  # "3/3", as the VM was polled

    @property
    def label(self) -> str:
        return f"row {self.n} {self.method} {self.case}"

    @property
    def params(self) -> tuple[Any, ...] | None:
        """The parameters, if the request is an ordinary call."""
        try:
            return xmlrpc.client.loads(self.request, use_builtin_types=True)[0]
        except Exception:  # a row of protocol errors: whatever the parser makes of it
            return None

    @property
    def session(self) -> str:
        params = self.params
        return params[0] if params and isinstance(params[0], str) else ""


@cache
def rows() -> tuple[Row, ...]:
    bodies: dict[str, bytes] = {}
    with tarfile.open(ARCHIVE) as archive:
        for member in archive:
            file = archive.extractfile(member) if member.isfile() else None
            if file is not None:
                data = file.read()
                name = member.name.removeprefix("corpus/")
                bodies[name] = gzip.decompress(data) if name.endswith(".gz") else data
    return tuple(
        Row(
            n=entry["n"],
            method=entry["method"],
            case=entry["case"],
            status=entry["http_status"],
            kind=entry["result"]["kind"],
            request_line=entry["request_line"],
            request=bodies.get(entry["request"], b""),
            response=bodies.get(entry["response"], b""),
            state=entry.get("state") or "",
            transitions=tuple(seen["state"].split()[0] for seen in entry.get("vm_transitions") or ()),
        )
        for entry in json.loads(bodies["index.json"])
    )


def daemon_rows(first: int, last: int) -> tuple[Row, ...]:
    return tuple(row for row in rows() if first <= row.n <= last)
