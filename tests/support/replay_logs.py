"""A made-up log of a replay, right in everything, and how to spoil one."""

from __future__ import annotations

import json
from typing import Any

Line = dict[str, Any]
AMOUNTS = {"cpu": 1000, "memory": 1024}


def on(*hosts: str) -> list[Line]:
    """Nodes on hosts, each taking one whole."""
    return [{"host": f"pool/{host}", "amounts": AMOUNTS} for host in hosts]


def header(*, jobs: int, reservations: int, hosts: int = 3, preemptible: bool = True) -> Line:
    """The first line."""
    return {
        "log": "workspace-broker replay",
        "version": 1,
        "traces": [{"file": "made-up.swf", "format": "swf", "entries": jobs, "left_out": 0}],
        "jobs": jobs,
        "reservations": reservations,
        "preemptible": preemptible,
        "order": "fair-share",
        "policies": {"pool": {"backfill": "none", "victims": "youngest", "preemption": True}},
        "hosts": [{"name": f"pool/h{number}", "amounts": AMOUNTS} for number in range(1, hosts + 1)],
    }


def submit(time: float, entry: str, count: int, requested: float, real: float, start: float | None = None) -> Line:
    """An entry is asked for."""
    kind = "job" if start is None else "reservation"
    line = {"time": time, "event": "submit", "id": entry, "kind": kind, "count": count, "amounts": AMOUNTS}
    return line | {"requested": requested, "real": real} | ({"start": start} if start is not None else {})


def line(time: float, event: str, entry: str, **fields: Any) -> Line:
    """Anything else happens."""
    return {"time": time, "event": event, "id": entry, "kind": entry.partition("-")[0], **fields}


def right_log() -> list[Line]:
    """Three hosts; job-2 waits for job-1 and gives way to reservation-1; job-3 is cut at its end."""
    return [
        header(jobs=3, reservations=2),
        submit(0, "job-1", 2, 100, 60),
        line(0, "started", "job-1", end=100, nodes=on("h1", "h2")),
        line(0.05, "running", "job-1", end=100),
        submit(10, "job-2", 3, 1000, 400),
        line(10, "queued", "job-2"),
        submit(20, "reservation-1", 1, 50, 50, start=200),
        line(20, "accepted", "reservation-1", start=200, end=250, nodes=on("h3")),
        submit(30, "reservation-2", 4, 50, 50, start=300),
        line(30, "refused", "reservation-2", how="NEVER_FITS", message="there are 3 hosts"),
        line(60.05, "ending", "job-1", end=100),
        line(60.1, "ended", "job-1", nodes=[], how="terminated"),
        line(60.1, "started", "job-2", end=1060.1, until=200, nodes=on("h1", "h2", "h3")),
        line(60.15, "running", "job-2", end=1060.1, until=200),
        line(200, "suspending", "job-2", end=1060.1, until=200),
        line(200, "started", "reservation-1", end=250, nodes=on("h3")),
        line(200.05, "suspended", "job-2", end=1060.1, nodes=[]),
        line(200.05, "running", "reservation-1", end=250),
        line(250, "ending", "reservation-1", end=250),
        line(250.05, "ended", "reservation-1", nodes=[], how="expired"),
        line(250.05, "resumed", "job-2", end=1110.15, nodes=on("h1", "h2", "h3")),
        line(250.1, "running", "job-2", end=1110.2),
        submit(300, "job-3", 3, 100, 500),
        line(300, "queued", "job-3"),
        line(510.25, "ending", "job-2", end=1110.2),
        line(510.3, "ended", "job-2", nodes=[], how="terminated"),
        line(510.3, "started", "job-3", end=610.3, nodes=on("h1", "h2", "h3")),
        line(510.35, "running", "job-3", end=610.3),
        line(610.3, "ending", "job-3", end=610.3),
        line(610.3, "changed", "job-3", end=610.3, nodes=on("h1")),
        line(610.35, "ended", "job-3", nodes=[], how="expired"),
    ]


def written(lines: list[Line]) -> str:
    """The log as a file holds it."""
    return "".join(json.dumps(each) + "\n" for each in lines)
