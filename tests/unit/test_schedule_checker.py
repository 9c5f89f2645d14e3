"""The checker of schedules: a right log holds, and one that was tampered with anywhere does not."""

from __future__ import annotations

import ast
import copy
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import replay_logs, schedule_checker
from tests.support.replay_logs import Line, on, right_log, written
from tests.support.schedule_checker import check, main


def find(lines: list[Line], event: str, entry: str) -> Line:
    return next(line for line in lines if line.get("event") == event and line["id"] == entry)


def spoiled(spoil: Callable[[list[Line]], object]) -> list[str]:
    """What the checker says of the right log after something was done to it."""
    lines = copy.deepcopy(right_log())
    result = spoil(lines)
    if isinstance(result, list) and isinstance(result[0], dict):  # other lines in place of these
        lines = result
    lines[1:] = sorted(lines[1:], key=lambda line: line["time"])
    return check(written(lines))


def test_a_right_log_holds() -> None:
    assert check(written(right_log())) == []


def test_the_checker_knows_nothing_of_the_broker() -> None:
    tree = ast.parse(Path(schedule_checker.__file__).read_text())
    modules = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    modules |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert modules
    assert not [name for name in modules if name.split(".")[0] in ("broker", "backends", "clients", "tests")]


SPOILED: list[tuple[str, Callable[[list[Line]], object], str]] = [
    (
        "a reservation runs two seconds late",
        lambda lines: find(lines, "running", "reservation-1").update(time=202),
        "reservation-1 at 202: promised for 200, held from 200, runs from 202",
    ),
    (
        "a reservation is promised for another second than was asked for",
        lambda lines: find(lines, "accepted", "reservation-1").update(start=201),
        "reservation-1 at 20: promised for 201, asked for 200",
    ),
    (
        "a job's start is moved",
        lambda lines: find(lines, "started", "job-3").update(time=510.31),
        "job-3 at 510.31: its end is 610.3, and should be 610.31",
    ),
    (
        "a node is put on a host that is taken",
        lambda lines: find(lines, "started", "job-1").update(nodes=on("h1", "h1")),
        "pool/h1 at 0: 2000 of cpu held by job-1, job-1; there are 1000",
    ),
    (
        "a node is put on a host that is not there",
        lambda lines: find(lines, "started", "job-1").update(nodes=on("h1", "h9")),
        "job-1 holds pool/h9, which is not there",
    ),
    (
        "somebody starts before another lets go",
        lambda lines: find(lines, "resumed", "job-2").update(time=240, end=1100.1),
        "pool/h3 at 240: 2000 of cpu held by job-2, reservation-1; there are 1000",
    ),
    (
        "a job is lost from the log",
        lambda lines: [line for line in lines if line.get("id") != "job-3"],
        "3 jobs in the traces, 2 in the log",
    ),
    (
        "a job never starts",
        lambda lines: [line for line in lines if line.get("id") != "job-3" or line["event"] in ("submit", "queued")],
        "job-3 at 300: lost: the last that is told is queued",
    ),
    (
        "a job never ends",
        lambda lines: [line for line in lines if line.get("id") != "job-3" or line["event"] != "ended"],
        "job-3 at 610.3: lost: the last that is told is ending",
    ),
    (
        "a job holds on for longer than its lease",
        lambda lines: find(lines, "ended", "job-3").update(time=620),
        "job-3 at 620: held to 620, by right to 610.3",
    ),
    (
        "a job is ended before it has done its work",
        lambda lines: find(lines, "ending", "job-1").update(time=50),
        "job-1 at 60.1: ran 49.95 seconds, it takes 60",
    ),
    (
        "a job gets fewer nodes",
        lambda lines: find(lines, "started", "job-1").update(nodes=on("h1")),
        "job-1 at 0: 1 nodes, 2 were asked for",
    ),
    (
        "a job gets less of a host",
        lambda lines: find(lines, "started", "job-1")["nodes"][0].update(amounts={"cpu": 1000, "memory": 512}),
        "job-1 at 0: pool/h1 gives {'cpu': Decimal('1000'), 'memory': Decimal('512')}, {'cpu': Decimal('1000'), "
        "'memory': Decimal('1024')} were asked for",
    ),
    (
        "what it stood still is not put on the end",
        lambda lines: [line.update(end=1060.1) for line in lines if line.get("end") in (1110.15, 1110.2)],
        "job-2 at 250.1: its end is 1060.1, and should be 1110.2",
    ),
    (
        "somebody is suspended who is not preemptible",
        lambda lines: lines[0].update(preemptible=False),
        "job-2 at 200: suspended, and not preemptible",
    ),
    (
        "a job is refused that could have waited",
        lambda lines: [
            *(line for line in lines if line.get("id") != "job-3" or line["event"] == "submit"),
            replay_logs.line(300, "refused", "job-3", how="NO_CAPACITY", message="full"),
        ],
        "job-3 at 300: a job is refused (NO_CAPACITY)",
    ),
]


@pytest.mark.parametrize(("what", "spoil", "said"), SPOILED, ids=[what for what, *_ in SPOILED])
def test_a_spoiled_log_does_not(what: str, spoil: Callable[[list[Line]], object], said: str) -> None:
    assert said in spoiled(spoil)


def test_lines_out_of_order() -> None:
    lines = right_log()
    lines[1:3], lines[3:5] = lines[3:5], lines[1:3]
    assert any("after a line of" in problem for problem in check(written(lines)))


@pytest.mark.parametrize("text", ["", "{}\n", "no json\n"])
def test_what_is_no_log(text: str) -> None:
    assert [problem[:7] for problem in check(text)] == ["no log:"]


def test_as_a_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = tmp_path / "good.jsonl", tmp_path / "bad.jsonl"
    good.write_text(written(right_log()))
    bad.write_text(written(right_log()[:-1]))
    assert main([str(good)]) == 0
    assert main([str(good), str(bad)]) == 1
    assert "job-3 at 610.3: lost" in capsys.readouterr().out
