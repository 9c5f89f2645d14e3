"""Workload traces: what each column means, and every line that cannot be read is named."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from broker.replay.traces import Entry, Kind, TraceError, read


def s(seconds: float) -> timedelta:
    return timedelta(seconds=seconds)


def swf(
    *,
    job: int = 1,
    submit: object = 0,
    run: object = 50,
    procs: int = 8,
    asked: int = 4,
    time: object = 600,
    **more: int,
) -> str:
    """A line of 18 columns."""
    status, user = more.get("status", 1), more.get("user", 7)
    return f"{job} {submit} 3 {run} {procs} 0.5 -1 {asked} {time} -1 {status} {user} -1 -1 3 -1 -1 -1\n"


def entries(folder: Path, name: str, text: str) -> tuple[Entry, ...]:
    (folder / name).write_text(text)
    [trace] = read([folder / name])
    return trace.entries


def problems(folder: Path, **files: str) -> list[str]:
    """What is wrong with files, without their folder."""
    paths = []
    for name, text in files.items():
        path = folder / name.replace("_", ".")
        path.write_text(text)
        paths.append(path)
    with pytest.raises(TraceError) as raised:
        read(paths)
    return [problem.replace(f"{folder}/", "") for problem in raised.value.problems]


def test_swf_columns(tmp_path: Path) -> None:
    text = "; Version: 2.2\n;\n" + swf(job=13, submit=32, run=43, asked=4, time=64_800, user=96)
    assert entries(tmp_path, "a.swf", text) == (
        Entry(id="job-13", kind=Kind.JOB, submit=s(32), requested=s(64_800), real=s(43), nodes=4, user="user-96"),
    )


@pytest.mark.parametrize(
    ("line", "requested", "real", "nodes"),
    [
        (swf(run=-1), 600, 0, 4),  # without a run time it ends at once
        (swf(run=0), 600, 0, 4),
        (swf(run=900), 600, 900, 4),  # who cuts it is the lease, not the reader
        (swf(time=-1), 50, 50, 4),
        (swf(time=-1, run=-1), 1, 0, 4),
        (swf(time="1.5", run="0.25"), 1.5, 0.25, 4),
        (swf(asked=-1, procs=8), 600, 50, 8),
        (swf(asked=0, procs=8), 600, 50, 8),
    ],
)
def test_swf_what_is_not_known(tmp_path: Path, line: str, requested: float, real: float, nodes: int) -> None:
    [entry] = entries(tmp_path, "a.swf", line)
    assert (entry.requested, entry.real, entry.nodes) == (s(requested), s(real), nodes)


def test_swf_parts_of_jobs_and_jobs_without_processors_are_left_out_and_said(tmp_path: Path) -> None:
    whole, part, nothing = swf(job=1), swf(job=1, status=3), swf(job=2, asked=-1, procs=-1)
    (tmp_path / "a.swf").write_text(whole + part + nothing)
    [trace] = read([tmp_path / "a.swf"])
    assert [entry.id for entry in trace.entries] == ["job-1"]
    assert trace.left_out == (
        "line 2: a part of job 1 (status 3)",
        "line 3: job 2 tells no number of processors (columns 8 and 5)",
    )


def test_lwf_columns(tmp_path: Path) -> None:
    text = "# a comment\n0 86400 1886 1500 22 2 1024 5 'debian.img' 600\n5 -1 60 60 1 0.5 512 0 'NONE.img' 0\n"
    reservation, job = entries(tmp_path, "a.lwf", text)
    assert reservation == Entry(
        id="reservation-2",
        kind=Kind.RESERVATION,
        submit=s(0),
        start=s(86_400),
        requested=s(1886),
        real=s(1500),
        nodes=22,
        amounts={"cpu": 2000, "memory": 1024, "disk": 5},
        image="debian",
    )
    assert job == Entry(
        id="lease-3",
        kind=Kind.JOB,
        submit=s(5),
        requested=s(60),
        real=s(60),
        nodes=1,
        amounts={"cpu": 500, "memory": 512},
    )


def test_every_bad_line_of_every_file_is_named(tmp_path: Path) -> None:
    assert problems(
        tmp_path,
        a_swf=swf() + "1 2 3\n" + swf(job=2, submit="soon", time="1e3") + swf(job=3, submit=-4) + swf(),
        b_lwf="10 5 60 60 1 1 1 0 x 0\n0 -1 0 -1 0 0 0 -1 x 0\n",
        c_txt="",
    ) == [
        "a.swf:2: has 3 columns; 18 are needed",
        "a.swf:3: column 2 is 'soon': a number is needed; column 9 is '1e3': a number is needed",
        "a.swf:4: column 2 (submit) is -4: 0 at least",
        "a.swf:5: job-1 stands in line 1 already",
        "b.lwf:1: column 2 (start) is 5: not before it is asked for, at 10",
        "b.lwf:2: column 3 (requested duration) is 0: more than 0 seconds; column 4 (real duration) is -1: 0 at least; "
        "column 5 (nodes) is 0: 1 at least; column 6 (cpu) is 0: a thousandth of a core at least; "
        "column 7 (memory) is 0: 1 MiB at least; column 8 (disk) is -1: 0 MiB at least",
        "c.txt: its name tells no format: it ends in .swf or .lwf",
    ]


def test_files_without_anything_in_them(tmp_path: Path) -> None:
    assert problems(tmp_path, a_swf="; nothing\n", b_lwf=swf()) == [
        "a.swf: there is nothing in it to replay",
        "b.lwf:1: has 18 columns; 10 are needed",
    ]
    with pytest.raises(TraceError, match=r"none\.swf: cannot be read: No such file"):
        read([tmp_path / "none.swf"])


def test_a_thousand_bad_lines_are_counted_not_listed(tmp_path: Path) -> None:
    (tmp_path / "a.swf").write_text("x\n" * 1000)
    with pytest.raises(TraceError, match=r"(?s)^1000 problems in the traces\n  .*a\.swf:20: .*\n  and 980 more$"):
        read([tmp_path / "a.swf"])


def test_jobs_of_the_same_number_in_two_files_are_two_jobs(tmp_path: Path) -> None:
    for name in ("a.swf", "b.swf"):
        (tmp_path / name).write_text(swf(job=5))
    traces = read([tmp_path / "a.swf", tmp_path / "b.swf"])
    assert [entry.id for trace in traces for entry in trace.entries] == ["job-5", "2-job-5"]
