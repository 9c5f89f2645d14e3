"""The table of a run: for people, as a file, and against an earlier one."""

from __future__ import annotations

import json
import os
import platform
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

from benchmarks.harness import Row

LOSS_ALLOWED: Final = 0.25
"""Share by which a ratio may be worse than in the committed table."""

PACKAGES: Final = ("grpcio", "protobuf", "numpy", "uvloop")
HEADINGS: Final = ("benchmark", "case", "measure", "ours", "baseline", "which is", "ratio (low-high)", "goal", "")
WIDEST: Final = (14, 34, 24, 9, 9, 18, 18, 7, 11)
"""Characters a column may take; longer cells go on in the next line."""

RIGHT: Final = {3, 4, 6}  # columns of numbers
GAP: Final = "  "
EXPLAINED: Final = (
    "ours, baseline: medians of the rounds; ratio: the median of ours / baseline round by round, and its extremes"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What was measured, by the module that did, and on which machine."""

    machine: Mapping[str, str]
    benchmarks: Mapping[str, Sequence[Row]]

    @property
    def rows(self) -> list[Row]:
        """All rows in order."""
        return [row for rows in self.benchmarks.values() for row in rows]


def machine() -> dict[str, str]:
    """What figures depend on beside the code."""
    facts = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpus": str(os.cpu_count()),
        "python": platform.python_version(),
    }
    for package in PACKAGES:
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            facts[package] = "none"
    return facts


def write(path: Path, run: Run) -> None:
    """Writes a run as JSON."""
    path.write_text(json.dumps(asdict(run), indent=1) + "\n")


def read(path: Path) -> Run:
    """A run that was written. Raises OSError, or ValueError, TypeError or KeyError where the file holds none."""
    document = json.loads(path.read_text())
    return Run(
        machine=document["machine"],
        benchmarks={name: [Row(**row) for row in rows] for name, rows in document["benchmarks"].items()},
    )


def _number(value: float) -> str:
    return f"{value:,.0f}" if 100 <= value < 1e7 else f"{value:.3g}"


def _ratio(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def _verdict(row: Row) -> str:
    if row.void:
        return "void"
    return {None: "", True: "reached", False: "not reached"}[row.reached]


def _cells(row: Row, marks: str) -> tuple[str, ...]:
    goal = "" if row.goal is None else f"{'>=' if row.higher_is_better else '<='} {row.goal:g}"
    return (
        row.benchmark,
        row.case,
        f"{row.measure}, {row.unit}{marks}",
        _number(row.ours),
        _number(row.baseline),
        row.baseline_name,
        f"{_ratio(row.ratio)} ({_ratio(row.low)}-{_ratio(row.high)})",
        goal,
        _verdict(row),
    )


def render(run: Run) -> str:
    """The table in plain text, with what is to be said of single rows below it."""
    footnotes: dict[str, int] = {}
    lines: list[tuple[str, ...]] = [HEADINGS]
    for row in run.rows:
        said = [*filter(None, (row.note, row.void and f"void: {row.void}"))]
        marks = "".join(f" [{footnotes.setdefault(text, len(footnotes) + 1)}]" for text in said)
        lines.append(_cells(row, marks))
    text = _laid_out(lines)
    width = max(map(len, text))
    text += ["", EXPLAINED]
    text += [textwrap.fill(f"[{number}] {said}", width) for said, number in footnotes.items()]
    text += ["", _summary(run.rows), ", ".join(f"{name} {fact}" for name, fact in run.machine.items())]
    return "\n".join(text) + "\n"


def _laid_out(lines: Sequence[Sequence[str]]) -> list[str]:
    """Lines of equal columns, a rule before each benchmark; what stands above already is not said again."""
    wrapped = [[textwrap.wrap(cell, width) or [""] for cell, width in zip(line, WIDEST, strict=True)] for line in lines]
    widths = [max(len(part) for line in wrapped for part in line[column]) for column in range(len(WIDEST))]
    text: list[str] = []
    above: Sequence[Sequence[str]] = ()
    for cells in wrapped:
        same = 0 if not above or cells[0] != above[0] else 1 if cells[1] != above[1] else 2
        if above and not same:
            text.append("-" * (sum(widths) + len(GAP) * (len(widths) - 1)))
        above, cells = cells, [[""]] * same + cells[same:]
        for number in range(max(map(len, cells))):
            text.append(_aligned([cell[number] if number < len(cell) else "" for cell in cells], widths))
    return text


def _summary(rows: Sequence[Row]) -> str:
    goals = [row.reached for row in rows if row.reached is not None]
    return f"{sum(goals)} of {len(goals)} goals reached; {sum(bool(row.void) for row in rows)} rows void"


def _aligned(cells: Iterable[str], widths: Sequence[int]) -> str:
    return GAP.join(
        cell.rjust(width) if column in RIGHT else cell.ljust(width)
        for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ).rstrip()


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What a comparison has to say of one row."""

    key: str
    text: str
    worse: bool


def compare(committed: Run, measured: Run, names: Iterable[str]) -> list[Finding]:
    """Where the ratios of these benchmarks got worse by more than `LOSS_ALLOWED`, or cannot be compared."""
    return [
        finding
        for name in names
        for finding in _compared(committed.benchmarks.get(name, ()), measured.benchmarks.get(name, ()))
    ]


def _compared(committed: Sequence[Row], measured: Sequence[Row]) -> Iterator[Finding]:
    now = {row.key: row for row in measured}
    for before in committed:
        row = now.pop(before.key, None)
        if row is None:
            yield Finding(key=before.key, text="is not measured any more", worse=True)
        elif row.void or before.void:
            yield Finding(key=before.key, text=f"not compared, void: {row.void or before.void}", worse=False)
        else:
            loss = before.ratio - row.ratio if row.higher_is_better else row.ratio - before.ratio
            if loss > LOSS_ALLOWED * before.ratio:  # of nothing at all, any loss is too much
                share = f": {loss / before.ratio:.0%} worse" if before.ratio else ""
                text = f"ratio {row.ratio:.2f}, was {before.ratio:.2f}{share}"
                yield Finding(key=before.key, text=text, worse=True)
    for key in now:
        yield Finding(key=key, text="not compared: new", worse=False)
