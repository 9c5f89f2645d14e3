"""Replays whole traces under every backfill, with and without preemptible jobs, and checks all that must hold.

    python -m tests.support.replay_matrix [--config FILE] [--keep FOLDER] TRACE [TRACE ...]

Each is replayed twice, in processes that hash differently: both logs must be the same, byte for byte. The checker must
find nothing wrong in them, every job must start, every accepted reservation must run in its second, and both kinds of
backfill must make jobs wait for less, in the mean, than none. Prints one table; exits with 1 where something of that
does not hold.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.support.schedule_checker import check

BACKFILLS: Final = ("none", "aggressive", "conservative")
HASH_SEEDS: Final = ("1", "2")
HEAD: Final = (
    *("backfill", "preemptible", "wait mean", "p50", "p95", "max", "slowdown", "load", "accepted", "on time"),
    *("suspensions", "stood still", "log", "took"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One way to replay the traces."""

    backfill: str
    preemptible: bool

    @property
    def name(self) -> str:
        """As files and rows are named."""
        return f"{self.backfill}{'-preemptible' if self.preemptible else ''}"


CASES: Final = tuple(Case(backfill=backfill, preemptible=flag) for flag in (False, True) for backfill in BACKFILLS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a case came to."""

    case: Case
    report: dict[str, Any]
    seconds: float  # of the slower of its runs
    problems: tuple[str, ...]


def simulate(case: Case, config: Path, traces: Sequence[Path], folder: Path, hash_seed: str) -> float:
    """One replay in a process of its own; returns how long it took."""
    stem = folder / f"{case.name}-{hash_seed}"
    began = time.monotonic()
    done = subprocess.run(
        [
            *(sys.executable, "-m", "broker", "simulate", *map(str, traces), "--config", str(config)),
            *("--backfill", case.backfill, *(["--preemptible"] if case.preemptible else [])),
            *("--report", f"{stem}.json", "--log", f"{stem}.jsonl", "--picture", f"{stem}.svg"),
        ],
        env=os.environ | {"PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode not in (0, 1):
        raise SystemExit(done.stderr)
    return time.monotonic() - began


def outcome(case: Case, seconds: float, folder: Path) -> Outcome:
    """Looks at what both runs of a case left behind."""
    first, second = (folder / f"{case.name}-{seed}.jsonl" for seed in HASH_SEEDS)
    log = first.read_text(encoding="utf-8")
    problems = check(log)
    if first.read_bytes() != second.read_bytes():
        problems.append("two runs gave different logs")
    report = json.loads((folder / f"{case.name}-{HASH_SEEDS[0]}.json").read_text(encoding="utf-8"))
    jobs, reservations = report["jobs"], report["reservations"]
    if jobs["started"] != jobs["submitted"]:
        problems.append(f"{jobs['submitted']} jobs, {jobs['started']} started")
    if reservations["late"]:
        problems.append(f"{reservations['late']} reservations were late")
    return Outcome(case=case, report=report, seconds=seconds, problems=tuple(problems))


def comparisons(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """What does not hold between cases."""
    waits = {found.case: found.report["jobs"]["wait_seconds"]["mean"] for found in outcomes}
    for case, wait in waits.items():
        none = waits[Case(backfill="none", preemptible=case.preemptible)]
        if case.backfill != "none" and wait >= none:
            yield f"{case.name}: jobs wait for {wait:,.0f} s in the mean, without backfill {none:,.0f} s"


def table(outcomes: Sequence[Outcome]) -> str:
    """The figures, a row a case."""
    rows: list[tuple[str, ...]] = [HEAD]
    for found in outcomes:
        jobs, booked, gave = (found.report[key] for key in ("jobs", "reservations", "preemptions"))
        wait = jobs["wait_seconds"]
        rows.append(
            (
                found.case.backfill,
                "yes" if found.case.preemptible else "no",
                *(f"{wait[key]:,.0f} s" for key in ("mean", "p50", "p95", "max")),
                f"{jobs['bounded_slowdown']['mean']:,.1f}",
                f"{found.report['utilisation']['while_jobs_came']:.1%}",
                f"{booked['accepted']}/{booked['submitted']}",
                str(booked["on_time"]),
                str(gave["suspensions"]),
                f"{gave['suspended_seconds']:,.0f} s",
                "spoiled" if found.problems else "holds",
                f"{found.seconds:.0f} s",
            )
        )
    widths = [max(len(row[at]) for row in rows) for at in range(len(HEAD))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs all cases."""
    parser = argparse.ArgumentParser(description="Replays whole traces in every way and checks all that must hold.")
    parser.add_argument("traces", nargs="+", type=Path, metavar="TRACE")
    parser.add_argument("--config", type=Path, default=Path("examples/replay.toml"))
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="where reports, logs and pictures are left")
    options = parser.parse_args(arguments)
    missing = [str(path) for path in options.traces if not path.is_file()]
    if missing:
        parser.error(f"there is no file {', '.join(missing)}")
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        outcomes = []
        with ThreadPoolExecutor(len(HASH_SEEDS)) as workers:
            for case in CASES:
                took = workers.map(
                    lambda seed, case=case: simulate(case, options.config, options.traces, folder, seed),
                    HASH_SEEDS,
                )
                outcomes.append(outcome(case, max(took), folder))
    print(table(outcomes))
    problems = [f"{found.case.name}: {problem}" for found in outcomes for problem in found.problems]
    problems += comparisons(outcomes)
    for problem in problems[:50]:
        print(problem)
    return 1 if problems else 0


if __name__ == "__main__":
    raise SystemExit(main())
