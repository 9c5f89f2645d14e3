"""Checks the log of a replay, and trusts nothing but its lines: who held which host from when to when.

    python -m tests.support.schedule_checker LOG [LOG ...]

Naive on purpose: it imports nothing of the broker, and adds up every host at every instant at which anything changes
there. What it demands:

- Nobody is lost: as many entries are asked for as the header counts, each is refused or ends, each that waits starts.
- No host is over its capacity, in any resource, at any instant.
- An accepted reservation starts at its second, on as many nodes as were asked for, and is never suspended.
- A lease lasts as long as was asked for, and not longer; a job runs for as long as it really takes, or is cut there.
  What it stood still while suspended is put on its end.
- Nobody is suspended who is not preemptible, and who is suspended goes on.

A lease holds its hosts by right until its end, or until it has to give way. To be seen gone takes a moment more, which
is no one's right any more and may be a second.
"""

from __future__ import annotations

import json
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

MOMENT: Final = Decimal(1)
"""Seconds within which something that was told to happen is seen to have happened."""

AFTER: Final[dict[str, set[str]]] = {
    "": {"submit"},
    "submit": {"refused", "accepted", "queued", "started"},
    "refused": set(),
    "accepted": {"started"},
    "queued": {"started"},
    "started": {"running"},
    "running": {"suspending", "ending"},
    "suspending": {"suspended"},
    "suspended": {"resumed"},
    "resumed": {"running"},
    "ending": {"ended"},
    "ended": set(),
}
"""What may happen next to an entry; "changed" may always, once it is accepted or started."""

Line = dict[str, Any]
Interval = tuple[Decimal, Decimal, str, dict[str, int]]  # from, to, whose, amounts


class Entry:
    """What the log tells of one entry."""

    def __init__(self, lines: Sequence[Line]) -> None:
        self.lines = lines
        self.id: str = lines[0]["id"]
        self.problems: list[str] = []
        self.holds: defaultdict[str, list[Interval]] = defaultdict(list)  # by host

    def wrong(self, line: Line, what: str) -> None:
        """Notes a breach."""
        self.problems.append(f"{self.id} at {line['time']}: {what}")

    def first(self, event: str) -> Line | None:
        """The first line of an event."""
        return next((line for line in self.lines if line["event"] == event), None)


def check(text: str) -> list[str]:
    """Everything that is wrong with a log, in words."""
    try:
        header, *lines = [json.loads(line, parse_int=Decimal, parse_float=Decimal) for line in text.splitlines()]
    except ValueError as error:
        return [f"no log: {error}"]
    if header.get("log") != "workspace-broker replay":
        return ["no log: the first line is no header"]
    problems = []
    for before, line in pairwise(lines):
        if line["time"] < before["time"]:
            problems.append(f"{line['id']} at {line['time']}: after a line of {before['time']}")
    by_id: defaultdict[str, list[Line]] = defaultdict(list)
    for line in lines:
        by_id[line["id"]].append(line)
    entries = [Entry(found) for found in by_id.values()]
    kinds = Counter(entry.lines[0]["kind"] for entry in entries)
    for kind, key in (("job", "jobs"), ("reservation", "reservations")):
        if kinds[kind] != header[key]:
            problems.append(f"{header[key]} {key} in the traces, {kinds[kind]} in the log")
    for entry in entries:
        _check_order(entry)
        if not entry.problems:
            _check_promises(entry, header["preemptible"])
            _check_times(entry)
            _collect_holds(entry)
        problems += entry.problems
    return problems + _check_capacity(header, entries)


def _check_order(entry: Entry) -> None:
    """Everything happens to it in order, to the end."""
    state = ""
    for line in entry.lines:
        event = line["event"]
        if event == "changed" and state not in ("", "submit", "refused", "queued", "ended"):
            continue
        if event not in AFTER[state]:
            entry.wrong(line, f"{event} after {state or 'nothing'}")
            return
        state = event
    if state not in ("refused", "ended"):
        entry.wrong(entry.lines[-1], f"lost: the last that is told is {state}")


def _check_promises(entry: Entry, preemptible: bool) -> None:
    submit, accepted, started = entry.lines[0], entry.first("accepted"), entry.first("started")
    running, suspended, ended = entry.first("running"), entry.first("suspending"), entry.lines[-1]
    for line in entry.lines:
        if line["event"] in ("accepted", "started", "resumed"):
            if len(line["nodes"]) != submit["count"]:
                entry.wrong(line, f"{len(line['nodes'])} nodes, {submit['count']} were asked for")
            for node in line["nodes"]:
                if any(node["amounts"].get(name, 0) < amount for name, amount in submit["amounts"].items()):
                    entry.wrong(line, f"{node['host']} gives {node['amounts']}, {submit['amounts']} were asked for")
    if submit["kind"] == "job":
        if suspended is not None and not preemptible:
            entry.wrong(suspended, "suspended, and not preemptible")
        if submit["event"] == "submit" and ended["event"] == "refused" and ended["how"] != "NEVER_FITS":
            entry.wrong(ended, f"a job is refused ({ended['how']})")
    elif ended["event"] != "refused":
        if suspended is not None:
            entry.wrong(suspended, "a reservation is suspended")
        if accepted is None or started is None or running is None:
            entry.wrong(ended, "a reservation that was not refused was not accepted, or did not start")
            return
        start = accepted["start"]
        if start != submit["start"]:
            entry.wrong(accepted, f"promised for {start}, asked for {submit['start']}")
        if not start <= running["time"] < start + MOMENT:
            entry.wrong(running, f"promised for {start}, held from {started['time']}, runs from {running['time']}")
    if ended.get("how") == "failed":
        entry.wrong(ended, f"it failed: {ended.get('message')}")


def _check_times(entry: Entry) -> None:
    """Ends as promised; ran as long as it takes, or to its end."""
    submit, last = entry.lines[0], entry.lines[-1]
    if last["event"] != "ended":
        return
    began: Decimal | None = None
    since: Decimal | None = None
    still_since: Decimal | None = None
    end = ran = still = Decimal(0)
    for line in entry.lines:
        event, time = line["event"], line["time"]
        if event == "started":
            began = line["time"] if submit["kind"] == "job" else submit["start"]
        if event == "running":
            since = time
            if still_since is not None:
                still, still_since = still + time - still_since, None
        if event in ("suspending", "ending") and since is not None:
            ran, since = ran + time - since, None
            if event == "suspending":
                still_since = time
        if "end" in line and began is not None:
            end = line["end"]
            if event in ("started", "running", "ending"):
                wanted = began + submit["requested"] + still
                if abs(end - wanted) > (MOMENT if still else 0):
                    entry.wrong(line, f"its end is {end}, and should be {wanted}")
    if last["time"] > end + MOMENT:
        entry.wrong(last, f"ended at {last['time']}, its lease at {end}")
    if last["how"] == "terminated" and not submit["real"] <= ran <= submit["real"] + MOMENT:
        entry.wrong(last, f"ran {ran} seconds, it takes {submit['real']}")
    if last["how"] == "expired" and (submit["real"] < submit["requested"] - MOMENT or last["time"] < end):
        entry.wrong(
            last, f"cut at {last['time']} after {ran} seconds; it takes {submit['real']}, its lease ends at {end}"
        )


def _collect_holds(entry: Entry) -> None:
    """Which hosts it holds by right, from when to when."""
    nodes: list[Any] = []
    since = right = Decimal(0)
    begun = False
    for line in entry.lines:
        begun = begun or line["event"] == "started"
        if not begun:
            continue  # what is reserved is not held yet
        if "nodes" in line:
            _hold(entry, nodes, since, line["time"], right, line)
            nodes, since = line["nodes"], line["time"]
        if "end" in line:
            right = line["until"] if "until" in line else line["end"]


def _hold(entry: Entry, nodes: Iterable[Any], since: Decimal, seen: Decimal, right: Decimal, line: Line) -> None:
    """Nodes held from `since` on, seen let go at `seen`, to be let go by `right`."""
    if not nodes:
        return
    if seen > right + MOMENT:
        entry.wrong(line, f"held to {seen}, by right to {right}")
        right = seen
    for node in nodes:
        entry.holds[node["host"]].append((since, min(seen, right), entry.id, node["amounts"]))


def _check_capacity(header: Line, entries: Iterable[Entry]) -> list[str]:
    """Adds up each host at each instant at which anything begins there: only then can it become too much."""
    capacity = {host["name"]: host["amounts"] for host in header["hosts"]}
    by_host: defaultdict[str, list[Interval]] = defaultdict(list)
    for entry in entries:
        for host, intervals in entry.holds.items():
            by_host[host] += intervals
    problems = []
    for host, intervals in sorted(by_host.items()):
        if host not in capacity:
            problems.append(f"{intervals[0][2]} holds {host}, which is not there")
            continue
        for instant in sorted({begin for begin, *_ in intervals}):
            there = [each for each in intervals if each[0] <= instant < each[1]]
            held: Counter[str] = Counter()
            for *_, amounts in there:
                held.update(amounts)
            for name, amount in held.items():
                most = capacity[host].get(name, 0)
                if amount > most:
                    who = ", ".join(each[2] for each in there)
                    problems.append(f"{host} at {instant}: {amount} of {name} held by {who}; there are {most}")
    return problems


def main(paths: Sequence[str]) -> int:
    """Checks logs; prints what is wrong."""
    worst = 0
    for path in paths:
        problems = check(Path(path).read_text(encoding="utf-8"))
        print(f"{path}: {len(problems)} problems" if problems else f"{path}: holds")
        for problem in problems[:20]:
            print(f"  {problem}")
        worst = max(worst, bool(problems))
    return worst


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
