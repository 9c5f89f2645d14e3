"""Reads workload traces: what was asked for, when, and how long it really ran.

Two formats, told apart by the end of the file's name:

- `.swf`, the Standard Workload Format 2.2 of the Parallel Workloads Archive (Chapin et al., "Benchmarks and Standards
  for the Evaluation of Parallel Job Schedulers", JSSPP 1999): 18 columns a line, -1 for what is not known, comments
  after ";". Lines of status 2, 3 and 4 are parts of a job that stands there as a whole, too, and are left out.
- `.lwf`, the lines of Haizea's first Lease Workload Format: 10 columns a line, comments after "#".

Every line that cannot be read is named with its file, all at once. Nothing is placed here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

PROBLEMS_SHOWN: Final = 20
SWF_COLUMNS: Final = 18
LWF_COLUMNS: Final = 10
SHORTEST: Final = timedelta(seconds=1)
"""What a request is at least: nobody leases nothing."""

LONGEST: Final = 10**10
"""Seconds that a time in a trace is at most: three centuries."""

NOTHING: Final = timedelta()
NO_IMAGE: Final = "NONE"


class Kind(StrEnum):
    """How an entry wants its capacity."""

    JOB = "job"  # as soon as there is room
    RESERVATION = "reservation"  # at its start, or not at all


class Entry(Struct, frozen=True, kw_only=True):
    """One request of a trace. Instants are counted from the start of the traces."""

    id: str
    kind: Kind
    submit: timedelta
    requested: timedelta
    real: timedelta  # how long it would run, if it were let
    nodes: int
    start: timedelta | None = None  # of a reservation
    amounts: dict[str, int] | None = None  # a node; None: a host, or the share of one that stands for a node
    image: str = ""
    user: str = ""


class Trace(Struct, frozen=True, kw_only=True):
    """A file's entries in its order, and what of it was left out."""

    file: str  # without its folder, so that a log is the same wherever the file lies
    format: str
    entries: tuple[Entry, ...]
    left_out: tuple[str, ...] = ()


class TraceError(Exception):
    """Traces that cannot be read; `problems` has one line for each."""

    def __init__(self, problems: Sequence[str]) -> None:
        count = f"{len(problems)} problem{'s' * (len(problems) != 1)} in the traces"
        shown = list(problems[:PROBLEMS_SHOWN])
        if len(problems) > len(shown):
            shown.append(f"and {len(problems) - len(shown)} more")
        super().__init__("\n  ".join([count, *shown]))
        self.problems = list(problems)


class _LineError(ValueError):
    """What is wrong with a line."""


class _LeftOut(Exception):
    """A line that says nothing to be replayed, and why."""


def read(paths: Sequence[Path]) -> list[Trace]:
    """Reads traces that are replayed together. Raises TraceError with everything that is wrong in any of them."""
    problems: list[str] = []
    traces = [trace for path in paths if (trace := _read(path, problems)) is not None]
    if problems:
        raise TraceError(problems)
    return _with_distinct_ids(traces)


def _with_distinct_ids(traces: Sequence[Trace]) -> list[Trace]:
    """Traces in which no id comes twice: those of later files get the file's place in front where they have to."""
    taken: set[str] = set()
    found = []
    for place, trace in enumerate(traces, start=1):
        if any(entry.id in taken for entry in trace.entries):
            entries = tuple(replace(entry, id=f"{place}-{entry.id}") for entry in trace.entries)
            trace = replace(trace, entries=entries)
        taken.update(entry.id for entry in trace.entries)
        found.append(trace)
    return found


def _read(path: Path, problems: list[str]) -> Trace | None:
    formats: dict[str, tuple[str, Callable[[list[str], int], Entry]]] = {".swf": (";", _swf), ".lwf": ("#", _lwf)}
    if path.suffix not in formats:
        problems.append(f"{path}: its name tells no format: it ends in .swf or .lwf")
        return None
    comment, parse = formats[path.suffix]
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        problems.append(f"{path}: cannot be read: {error.strerror or error}")
        return None
    except UnicodeDecodeError as error:
        problems.append(f"{path}: is not UTF-8 text: byte {error.start} cannot be read")
        return None
    entries: list[Entry] = []
    left_out: list[str] = []
    lines: dict[str, int] = {}
    found = len(problems)
    for number, columns in _lines(text, comment):
        try:
            entry = parse(columns, number)
            first = lines.setdefault(entry.id, number)
            if first != number:
                raise _LineError(f"{entry.id} stands in line {first} already")
            entries.append(entry)
        except _LineError as error:
            problems.append(f"{path}:{number}: {error}")
        except _LeftOut as why:
            left_out.append(f"line {number}: {why}")
    if not entries and len(problems) == found:
        problems.append(f"{path}: there is nothing in it to replay")
    return Trace(file=path.name, format=path.suffix[1:], entries=tuple(entries), left_out=tuple(left_out))


def _lines(text: str, comment: str) -> Iterator[tuple[int, list[str]]]:
    """Each line's number and columns, but for empty ones and comments."""
    for number, line in enumerate(text.splitlines(), start=1):
        columns = line.partition(comment)[0].split()
        if columns:
            yield number, columns


def _swf(columns: list[str], number: int) -> Entry:
    _count(columns, SWF_COLUMNS)
    column = _Columns(columns)
    job, status, user = column.whole(1), column.whole(11), column.whole(12)
    submit, real, requested = column.seconds(2), column.seconds(4), column.seconds(9)
    asked, allocated = column.whole(8), column.whole(5)
    column.need(2, "submit", submit >= NOTHING, "0 at least")
    column.check()
    if status in (2, 3, 4):
        raise _LeftOut(f"a part of job {job} (status {status})")
    nodes = asked if asked > 0 else allocated
    if nodes <= 0:
        raise _LeftOut(f"job {job} tells no number of processors (columns 8 and 5)")
    return Entry(
        id=f"job-{job}",
        kind=Kind.JOB,
        submit=submit,
        requested=max(requested if requested > NOTHING else real, SHORTEST),
        real=max(real, NOTHING),
        nodes=nodes,
        user=f"user-{user}" if user >= 0 else "",
    )


def _lwf(columns: list[str], number: int) -> Entry:
    _count(columns, LWF_COLUMNS)
    column = _Columns(columns)
    submit, start, requested, real = (column.seconds(place) for place in (1, 2, 3, 4))
    nodes, cpu, memory, disk = column.whole(5), column.number(6), column.whole(7), column.whole(8)
    best_effort = start < NOTHING
    column.need(1, "submit", submit >= NOTHING, "0 at least")
    column.need(2, "start", best_effort or start >= submit, f"not before it is asked for, at {columns[0]}")
    column.need(3, "requested duration", requested > NOTHING, "more than 0 seconds")
    column.need(4, "real duration", real >= NOTHING, "0 at least")
    column.need(5, "nodes", nodes >= 1, "1 at least")
    column.need(6, "cpu", cpu >= 0.001, "a thousandth of a core at least")
    column.need(7, "memory", memory >= 1, "1 MiB at least")
    column.need(8, "disk", disk >= 0, "0 MiB at least")
    column.check()
    kind = Kind.JOB if best_effort else Kind.RESERVATION
    image = columns[8].strip("'\"").removesuffix(".img")
    return Entry(
        id=f"{'lease' if best_effort else kind}-{number}",
        kind=kind,
        submit=submit,
        start=None if best_effort else start,
        requested=requested,
        real=real,
        nodes=nodes,
        amounts={"cpu": round(cpu * 1000), "memory": memory} | ({"disk": disk} if disk else {}),
        image="" if image == NO_IMAGE else image,
    )


def _count(columns: list[str], wanted: int) -> None:
    if len(columns) != wanted:
        raise _LineError(f"has {len(columns)} columns; {wanted} are needed")


class _Columns:
    """The columns of a line, counted from 1; what is wrong with any of them is collected."""

    def __init__(self, columns: list[str]) -> None:
        self._columns = columns
        self._problems: dict[int, str] = {}

    def whole(self, place: int) -> int:
        """A whole number, or 0 where it is none."""
        text = self._columns[place - 1]
        if re.fullmatch(r"-?\d{1,12}", text, re.ASCII):
            return int(text)
        self._problems[place] = f"column {place} is {text!r}: a whole number is needed"
        return 0

    def number(self, place: int) -> float:
        """A number, or 0 where it is none."""
        text = self._columns[place - 1]
        if re.fullmatch(r"-?\d{1,12}(\.\d*)?", text, re.ASCII):
            return float(text)
        self._problems[place] = f"column {place} is {text!r}: a number is needed"
        return 0.0

    def seconds(self, place: int) -> timedelta:
        """A length of time in seconds, or none where it is no number."""
        number = self.number(place)
        if abs(number) <= LONGEST:
            return timedelta(seconds=number)
        self._problems[place] = f"column {place} is {self._columns[place - 1]}: at most {LONGEST} seconds"
        return NOTHING

    def need(self, place: int, name: str, holds: bool, wanted: str) -> None:
        """Notes a column that is a number and not one that is wanted."""
        if not holds and place not in self._problems:
            self._problems[place] = f"column {place} ({name}) is {self._columns[place - 1]}: {wanted}"

    def check(self) -> None:
        """Raises _LineError where anything was wrong."""
        if self._problems:
            raise _LineError("; ".join(self._problems[place] for place in sorted(self._problems)))
