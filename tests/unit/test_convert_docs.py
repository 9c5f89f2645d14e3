"""docs/limits.md and docs/errors.md hold the tables of the code, row by row and in order."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from broker.api import status
from broker.api.limits import LIMITS
from broker.api.offered import NOT_OFFERED
from broker.api.verdicts import PLACEMENT_FAILURE_BYTES

DOCS = Path(__file__).parents[2] / "docs"

TABLES = {
    "limits.md": [
        ["name", *(f"`{name}` | {bound} | {says}" for name, bound, says in LIMITS.rows())],
        ["field of a workspace", *(f"`{path}`" for path in NOT_OFFERED)],
    ],
    "errors.md": [
        [
            "reason",
            *(
                f"`{reason}` | {row.code.name} | {', '.join(row.details) or 'none'} | {row.again}"
                for reason, row in status.ROWS.items()
            ),
        ]
    ],
}


def tables(document: str) -> list[list[str]]:
    """Each table of a document: its first heading, then its rows."""
    found = []
    for block in re.findall(r"(?:^\|.*\n)+", document, re.MULTILINE):
        heading, _, *rows = [line[2:-2] for line in block.splitlines()]
        found.append([heading.split(" | ")[0], *rows])
    return found


@pytest.mark.parametrize("name", list(TABLES))
def test_tables_are_those_of_the_code(name: str) -> None:
    assert tables((DOCS / name).read_text()) == TABLES[name]


def test_bounds_of_a_status() -> None:
    text = " ".join((DOCS / "errors.md").read_text().split())
    assert f"within {status.TRAILER_BYTES // 1024} KiB" in text
    assert f"`PlacementFailure` takes at most {PLACEMENT_FAILURE_BYTES // 1024} KiB" in text
    assert f"`BadRequest` takes at most {status.VIOLATIONS_BYTES // 1024} KiB" in text
    assert f"cut to {status.MESSAGE_BYTES} bytes" in text
    assert f"{status.VALUE_BYTES} bytes a value and {status.METADATA_BYTES} in all" in text
