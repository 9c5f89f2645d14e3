"""What every benchmark shares: rows of the table, servers in processes of their own, and rounds that take turns.

A figure is a ratio to a baseline taken in the same rounds, ours and the baseline's in turn, so that a drift of the
machine meets both. Absolute figures are printed beside it and never compared between runs.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Protocol

DEFAULT_ROUNDS = 5
CLIENT_SATURATED = 0.95
"""Share of a core from which a load generator counts as the slow side."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the table.

    `ours` and `baseline` are medians in `unit`; `ratio` is the median of ours / baseline round by round, `low` and
    `high` its extremes. A goal is a bound on the ratio: at least it where higher is better, at most it otherwise.
    """

    benchmark: str
    case: str
    measure: str
    unit: str
    ours: float
    baseline: float
    baseline_name: str
    ratio: float
    low: float
    high: float
    higher_is_better: bool
    goal: float | None = None
    note: str = ""
    void: str = ""  # why the row counts for nothing, as where the load generator was the slow side

    @property
    def key(self) -> str:
        """What the row is known by in the committed table."""
        return f"{self.benchmark} / {self.case} / {self.measure}"

    @property
    def reached(self) -> bool | None:
        """Whether the goal is met; None without one, or where the row is void."""
        if self.goal is None or self.void:
            return None
        return self.ratio >= self.goal if self.higher_is_better else self.ratio <= self.goal


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How a run is made."""

    rounds: int = DEFAULT_ROUNDS
    progress: Callable[[str], None] = lambda line: None


class Benchmark(Protocol):
    """One module of this folder: `run` measures and answers its rows."""

    def run(self, options: Options) -> list[Row]:
        """Measures."""


def row(
    benchmark: str,
    case: str,
    measure: str,
    unit: str,
    pairs: Sequence[tuple[float, float]],
    *,
    against: str,
    higher_is_better: bool,
    goal: float | None = None,
    note: str = "",
    void: str = "",
) -> Row:
    """A row of rounds, each (ours, baseline) in the same unit."""
    ratios = sorted(ours / baseline for ours, baseline in pairs)
    return Row(
        benchmark=benchmark,
        case=case,
        measure=measure,
        unit=unit,
        ours=median(ours for ours, _ in pairs),
        baseline=median(baseline for _, baseline in pairs),
        baseline_name=against,
        ratio=median(ratios),
        low=ratios[0],
        high=ratios[-1],
        higher_is_better=higher_is_better,
        goal=goal,
        note=note,
        void=void,
    )


@contextmanager
def server(*command: str) -> Iterator[tuple[str, int]]:
    """A Python server process that prints its address at the end of its first line; (address, process id)."""
    with subprocess.Popen(
        [sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        try:
            yield line.split()[-1], process.pid
        finally:
            process.terminate()
            process.wait(30)


def cpu_of(process: int) -> float:
    """Seconds of CPU a process has used."""
    fields = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / 100


def memory_of(process: int) -> int:
    """Bytes of resident memory of a process."""
    line = next(line for line in Path(f"/proc/{process}/status").read_text().splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) * 1024
