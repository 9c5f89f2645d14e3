"""Runs the benchmarks and prints one table; exit code 1 where one did not run, or a ratio got worse than committed.

python -m benchmarks [--rounds N] [--only NAME ...] [--json FILE] [--compare FILE]
python -m benchmarks --from FILE --compare FILE         compares two runs that were written with --json
"""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Iterable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Final

from benchmarks.harness import DEFAULT_ROUNDS, Benchmark, Options, Row
from benchmarks.table import Run, compare, machine, read, render, write

NAMES: Final = ("create", "reads", "growth", "planning", "watch_fanout", "peers", "backend_overhead", "packing")


def progress(line: str) -> None:
    """Says on standard error what is under way."""
    sys.stderr.write(f"{line}\n")


def written(path: str) -> Run:
    """The run in a file, for the command line."""
    try:
        return read(Path(path))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise argparse.ArgumentTypeError(f"{path} holds no run: {error}") from None


def measure(names: Iterable[str], options: Options) -> Run:
    """Runs benchmarks one after another; one that cannot run leaves no rows and is told of."""
    measured: dict[str, list[Row]] = {}
    for name in names:
        try:
            benchmark: Benchmark = import_module(f"benchmarks.{name}")
            measured[name] = benchmark.run(options)
        except ImportError as error:
            options.progress(f"{name}: did not run: {error}; try: pip install --editable '.[bench]'")
        except Exception:
            options.progress(f"{name}: did not run:\n{traceback.format_exc()}")
    return Run(machine=machine(), benchmarks=measured)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs, prints, and answers the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=DEFAULT_ROUNDS, help="of each measurement (default: %(default)s)")
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES, metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write the run")
    parser.add_argument("--from", type=written, metavar="FILE", dest="source", help="a written run, instead of running")
    parser.add_argument("--compare", type=written, metavar="FILE", help="a written run whose ratios must not get worse")
    options = parser.parse_args(arguments)
    run = options.source or measure(options.only, Options(rounds=options.rounds, progress=progress))
    sys.stdout.write(render(run))
    if options.json:
        write(options.json, run)
    findings = compare(options.compare, run, options.only) if options.compare else []
    for finding in findings:
        sys.stderr.write(f"{finding.key}: {finding.text}\n")
    complete = options.source or all(name in run.benchmarks for name in options.only)
    return 0 if complete and not any(finding.worse for finding in findings) else 1


if __name__ == "__main__":
    sys.exit(main())
