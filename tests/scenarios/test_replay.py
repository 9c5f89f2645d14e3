"""Replays of workload traces through the whole broker, each judged by the checker that knows only the log.

Hours of a real trace, with reservations a day ahead or at short notice, under every backfill; and traces of a few lines
whose schedule is known. `make replay` does the same with whole traces.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from broker.__main__ import main
from broker.config import load
from broker.replay.driver import Options, replay
from broker.replay.log import lines_of, read
from broker.replay.report import Report, report
from broker.replay.traces import read as read_traces
from tests.support.replay_matrix import BACKFILLS
from tests.support.schedule_checker import check

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "examples" / "replay.toml"
TRACES = Path(__file__).parent / "traces"
JOBS, AHEAD, SOON = (TRACES / name for name in ("blue-11h.swf", "a-day-ahead.lwf", "at-short-notice.lwf"))

SMALL = """
[queue]
order = "arrival"
[pools.lab]
backend = "simulator"
backfill = "aggressive"
default_duration = "none"
max_duration = "none"
refresh_interval = "1h"
[[pools.lab.hosts]]
count = 2
name = "h"
cpu = 2000
memory = 2048
"""


@cache
def log_of(reservations: Path, backfill: str, *, preemptible: bool = False) -> bytes:
    """The log of a replay of the hours of the trace."""
    settings = load(CONFIG)
    pools = {name: replace(pool, backfill=backfill) for name, pool in settings.pools.items()}
    traces = read_traces([JOBS, reservations])
    return lines_of(*asyncio.run(replay(replace(settings, pools=pools), traces, Options(preemptible=preemptible))))


def figures_of(reservations: Path, backfill: str, *, preemptible: bool = False) -> Report:
    return report(*read(log_of(reservations, backfill, preemptible=preemptible)))


class Small:
    """Traces of a few lines on two hosts of two cores and 2 GiB."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "broker.toml").write_text(SMALL)

    def run(self, *, swf: str = "", lwf: str = "", **options: Any) -> list[dict[str, Any]]:
        """The lines of the log after its header; it holds what the checker demands."""
        paths = []
        for name, text in (("a.swf", swf), ("b.lwf", lwf)):
            if text:
                (self.folder / name).write_text(text)
                paths.append(self.folder / name)
        header, lines = asyncio.run(replay(load(self.folder / "broker.toml"), read_traces(paths), Options(**options)))
        log = lines_of(header, lines).decode()
        assert check(log) == []
        return [json.loads(line) for line in log.splitlines()[1:]]


@pytest.fixture
def small(tmp_path: Path) -> Small:
    return Small(tmp_path)


def job(number: int, submit: int, run: int, nodes: int, requested: int, user: int = 1) -> str:
    return f"{number} {submit} -1 {run} -1 -1 -1 {nodes} {requested} -1 1 {user} -1 -1 -1 -1 -1 -1\n"


def times(lines: list[dict[str, Any]], event: str) -> dict[str, float]:
    """When something happened first to each entry, to the second."""
    found: dict[str, float] = {}
    for line in lines:
        if line["event"] == event:
            found.setdefault(line["id"], int(line["time"]))
    return found


# The hours of a real trace


@pytest.mark.parametrize("backfill", BACKFILLS)
def test_with_reservations_a_day_ahead(backfill: str) -> None:
    assert check(log_of(AHEAD, backfill).decode()) == []
    figures = figures_of(AHEAD, backfill)
    assert figures.jobs.submitted == figures.jobs.started == figures.jobs.ended == 220
    assert figures.jobs.queued > 0
    assert figures.reservations.accepted == figures.reservations.on_time == 16


def test_with_reservations_at_short_notice_and_preemptible_jobs() -> None:
    assert check(log_of(SOON, "aggressive", preemptible=True).decode()) == []
    figures = figures_of(SOON, "aggressive", preemptible=True)
    assert figures.jobs.submitted == figures.jobs.started == figures.jobs.ended == 220
    assert figures.reservations.accepted == figures.reservations.on_time
    assert figures.preemptions.suspensions > 0
    assert figures.preemptions.suspended_seconds > 0


def test_reservations_that_find_no_room_find_it_where_jobs_are_preemptible() -> None:
    plain = figures_of(SOON, "aggressive")
    preemptible = figures_of(SOON, "aggressive", preemptible=True)
    assert check(log_of(SOON, "aggressive").decode()) == []
    assert plain.preemptions.suspensions == 0
    assert plain.reservations.refused == {"NO_CAPACITY": plain.reservations.submitted - plain.reservations.accepted}
    assert plain.reservations.accepted < preemptible.reservations.accepted


def test_both_kinds_of_backfill_make_jobs_wait_for_less_than_none() -> None:
    waits = {backfill: figures_of(AHEAD, backfill).jobs.wait_seconds.mean for backfill in BACKFILLS}
    assert max(waits["aggressive"], waits["conservative"]) < waits["none"]


def test_two_processes_that_hash_differently_write_the_same_bytes(tmp_path: Path) -> None:
    def started(seed: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [
                *(sys.executable, "-m", "broker", "simulate", JOBS, SOON, "--config", CONFIG),
                *("--backfill", "aggressive", "--preemptible", "--log", tmp_path / f"{seed}.jsonl"),
                *("--report", tmp_path / f"{seed}.json", "--picture", tmp_path / f"{seed}.svg"),
            ],
            env=os.environ | {"PYTHONHASHSEED": seed},
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    for process in [started("1"), started("2")]:
        said, _ = process.communicate(timeout=100)
        assert (process.returncode, said) == (0, "")
    for kind in ("jsonl", "json", "svg"):
        assert (tmp_path / f"1.{kind}").read_bytes() == (tmp_path / f"2.{kind}").read_bytes()
    assert (tmp_path / "1.jsonl").read_bytes() == log_of(SOON, "aggressive", preemptible=True)


# A log that was tampered with does not pass


def _start_moved(lines: list[dict[str, Any]], chance: random.Random) -> None:
    chance.choice([line for line in lines if line["event"] == "started"])["time"] += chance.choice((-7, 7))


def _host_doubled(lines: list[dict[str, Any]], chance: random.Random) -> None:
    line = chance.choice([line for line in lines if line["event"] == "started" and len(line["nodes"]) > 1])
    line["nodes"][0] = line["nodes"][1]


def _job_lost(lines: list[dict[str, Any]], chance: random.Random) -> None:
    lost = chance.choice(lines)["id"]
    lines[:] = [line for line in lines if line["id"] != lost]


def _end_lost(lines: list[dict[str, Any]], chance: random.Random) -> None:
    lines.remove(chance.choice([line for line in lines if line["event"] == "ended"]))


def _hosts_kept_for_longer(lines: list[dict[str, Any]], chance: random.Random) -> None:
    """Somebody keeps hosts until others are on them: the lease gets longer, so that only adding up tells."""
    users: dict[str, list[tuple[float, str]]] = {}
    for line in lines:
        if line["event"] == "started":
            for node in line["nodes"]:
                users.setdefault(node["host"], []).append((line["time"], line["id"]))
    after = [(one[1], other[0]) for host in users.values() for one, other in pairwise(host)]
    entry, until = chance.choice(after)
    for line in lines:
        if line["id"] == entry and line["event"] == "submit":
            line["requested"] += 10_000_000
            line["real"] += until + 60 - next(x["time"] for x in lines if x["id"] == entry and x["event"] == "ended")
        if line["id"] == entry and "end" in line:
            line["end"] += 10_000_000
        if line["id"] == entry and line["event"] in ("ending", "changed", "ended"):
            line["time"] = until + 60


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("spoil", [_start_moved, _host_doubled, _job_lost, _end_lost, _hosts_kept_for_longer])
def test_a_spoiled_log_is_told(spoil: Callable[[list[dict[str, Any]], random.Random], None], seed: int) -> None:
    header, *rest = log_of(AHEAD, "aggressive").decode().splitlines()
    lines = [json.loads(line) for line in rest]
    spoil(lines, random.Random(seed))
    lines.sort(key=lambda line: line["time"])
    problems = check("\n".join([header, *map(json.dumps, lines)]))
    assert problems
    if spoil in (_host_doubled, _hosts_kept_for_longer):
        assert any(" held by " in problem for problem in problems)


# A few lines, and what becomes of them


def test_a_job_ends_when_its_work_is_done_and_who_waits_begins_then(small: Small) -> None:
    lines = small.run(swf=job(1, 0, 100, 2, 1000) + job(2, 10, 50, 2, 1000) + job(3, 20, 1, 1, 1000))
    assert times(lines, "queued") == {"job-2": 10, "job-3": 20}
    assert times(lines, "started") == {"job-1": 0, "job-2": 100, "job-3": 150}


def test_backfill_goes_by_what_was_asked_for(small: Small) -> None:
    # job-2 is to begin at 1000; job-3 would be done by then and passes, job-4 would not and waits.
    swf = job(1, 0, 100, 1, 1000) + job(2, 10, 50, 2, 500) + job(3, 20, 30, 1, 900) + job(4, 21, 30, 1, 990)
    lines = small.run(swf=swf)
    assert times(lines, "started") == {"job-1": 0, "job-3": 20, "job-2": 100, "job-4": 150}


def test_a_job_that_would_run_for_longer_is_cut_and_one_without_a_run_time_ends_at_once(small: Small) -> None:
    lines = small.run(swf=job(1, 0, 500, 1, 100) + job(2, 0, -1, 1, 100))
    assert times(lines, "ended") == {"job-2": 0, "job-1": 100}
    assert {line["id"]: line["how"] for line in lines if line["event"] == "ended"} == {
        "job-1": "expired",
        "job-2": "terminated",
    }


def test_a_job_that_never_fits_is_refused_and_keeps_nobody_waiting(small: Small) -> None:
    lines = small.run(swf=job(1, 0, 100, 3, 1000) + job(2, 10, 50, 2, 1000))
    assert [(line["id"], line["how"]) for line in lines if line["event"] == "refused"] == [("job-1", "NEVER_FITS")]
    assert times(lines, "started") == {"job-2": 10}


def test_nodes_of_an_swf_trace_may_share_a_host(small: Small) -> None:
    lines = small.run(swf=job(1, 0, 100, 4, 1000), nodes_per_host=2)
    [started] = [line for line in lines if line["event"] == "started"]
    assert [(node["host"], node["amounts"]) for node in started["nodes"]] == [
        (host, {"cpu": 1000, "memory": 1024}) for host in ("lab/h-1", "lab/h-1", "lab/h-2", "lab/h-2")
    ]


def test_lines_of_lwf_take_what_they_say_and_begin_when_they_say(small: Small) -> None:
    lwf = "0 200 100 100 2 2 2048 0 'NONE.img' 600\n0 -1 100 60 3 1 512 10 'NONE.img' 600\n"
    lines = small.run(lwf=lwf)
    assert times(lines, "accepted") == {"reservation-1": 0}
    assert times(lines, "started") == {"lease-2": 0, "reservation-1": 200}
    assert times(lines, "ended") == {"lease-2": 60, "reservation-1": 300}
    [lease] = [line for line in lines if line["event"] == "started" and line["id"] == "lease-2"]
    assert [node["amounts"] for node in lease["nodes"]] == [{"cpu": 1000, "memory": 512, "disk": 10}] * 3


def test_a_preemptible_job_gives_way_and_does_the_rest_of_its_work_later(small: Small) -> None:
    lines = small.run(
        swf=job(1, 0, 300, 2, 1000),
        lwf="50 100 100 100 2 2 2048 0 'NONE.img' 600\n",
        preemptible=True,
    )
    assert times(lines, "suspending") == {"job-1": 100}
    assert times(lines, "resumed") == {"job-1": 200}
    assert times(lines, "ended") == {"reservation-1": 200, "job-1": 400}


# The command


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    (tmp_path / "a.swf").write_text(job(1, 0, 100, 1, 1000))
    (tmp_path / "broker.toml").write_text(SMALL)
    return tmp_path / "a.swf"


def exit_code(*arguments: object) -> object:
    with pytest.raises(SystemExit) as stopped:
        main(["simulate", *map(str, arguments)])
    return stopped.value.code


def test_the_command_prints_its_figures(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(trace, "--config", trace.with_name("broker.toml")) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["jobs"]["submitted"] == 1
    assert figures["policies"] == {"lab": {"backfill": "aggressive", "victims": "youngest", "preemption": True}}


def test_the_command_says_what_is_wrong(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = trace.with_name("broker.toml")
    trace.write_text("1 2\n")
    assert exit_code(trace, "--config", config) == 2
    assert f"{trace}:1: has 2 columns; 18 are needed" in capsys.readouterr().err
    trace.write_text(job(1, 0, 100, 1, 1000, user=3))
    config.write_text(SMALL + "[tenants.lab]\n")
    assert exit_code(trace, "--config", config) == 2
    assert "the traces have others: user-3" in capsys.readouterr().err
    config.write_text("")
    assert exit_code(trace, "--config", config) == 2
    assert "pools: is empty" in capsys.readouterr().err
    config.write_text(SMALL)
    assert exit_code(trace, "--config", config, "--nodes-per-host", 5000) == 2
    assert "5000 nodes a host are too many" in capsys.readouterr().err
    assert exit_code(trace, "--config", config, "--log", trace.with_name("none") / "log") == 1
    assert "No such file or directory" in capsys.readouterr().err
