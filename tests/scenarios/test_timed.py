"""Every scenario of tests/scenarios/*.yaml on a whole broker, and what the runner itself promises.

Cases: each file comes out as it says; unknown and bad keys are all named, with the file and the line; a wrong
expectation fails and says what was seen; so do a refusal nobody expected, one that does not come, and a host that is
over its capacity, in what is promised or in what runs.
"""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from workspacebroker.v1 import resources_pb2 as pb

from tests.support.timed import play
from tests.support.timed_file import ScenarioError, load
from tests.support.timed_seen import over_capacity
from tests.support.timed_values import DAY

FILES = sorted(Path(__file__).parent.glob("*.yaml"))
HEAD = "# Cases:\n# - one\npools:\n  lab: {hosts: {a: 4000}}\nsteps:\n"


@pytest.mark.parametrize("file", FILES, ids=[file.stem for file in FILES])
def test_it_comes_out_as_the_file_says(file: Path, tmp_path: Path) -> None:
    play(load(file), tmp_path)


def written(folder: Path, content: str) -> Path:
    file = folder / "made.yaml"
    file.write_text(content, encoding="utf-8")
    return file


def played(folder: Path, steps: str) -> None:
    play(load(written(folder, HEAD + steps)), folder)


def test_every_unknown_or_bad_key_is_named_with_the_file_and_the_line(tmp_path: Path) -> None:
    steps = (
        "  - {create: web, durration: 1h}\n"
        "  - {at: 25 o'clock, see: {web: RUNING}}\n"
        "  - {create: web, terminate: web}\n"
        "  - {create: web, expect: {stat: RUNNING}}\n"
        "  - {see: {web: RUNNING}}\n"
        "  - {terminate: web}\n"
        "  - {}\n"
    )
    with pytest.raises(ScenarioError) as caught:
        load(written(tmp_path, HEAD.replace("pools:", "pool: {}\npools:") + steps))
    lines = str(caught.value).splitlines()
    assert all(line.startswith("made.yaml, line ") for line in lines)
    assert [line.removeprefix("made.yaml, ").partition(": ")[0] for line in lines] == [
        "line 3",
        "line 7, step 1",
        "line 8, step 2",
        "line 8, step 2",
        "line 9, step 3",
        "line 10, step 4",
        "line 13, step 7",
        "line 12, step 6",
    ]
    assert "durration: no such key here; did you mean duration?" in lines[1]
    assert "stat: no such key here; did you mean state?" in lines[5]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (HEAD.replace("# Cases:\n# - one\n", "") + "  - {terminate: web}\n", "begins with its cases"),
        (HEAD + "  - {terminate: web, terminate: other}\n", "line 6: 'terminate' is there twice"),
        ("# Cases:\n# - one\nsteps: []\n", "pools is missing"),
    ],
)
def test_a_file_without_what_it_needs_is_refused(tmp_path: Path, content: str, said: str) -> None:
    with pytest.raises(ScenarioError, match=said):
        load(written(tmp_path, content))


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        ("  - {create: web, see: {web: {state: PENDING, host: b, end: none}}}\n", "state is RUNNING, expected PENDING"),
        ("  - {create: web, see: {web: {host: b}}}\n", "host is a, expected b"),
        ("  - {create: web, duration: 1h, expect: {end: 13:01}}\n", "end is 13:00:00, expected 13:01:00"),
        ("  - {create: web, see: {web: {notices: [ENDING]}}}\n", "notices is {}, expected {ENDING}"),
        ("  - {create: web, see: {web: {history: [RUNNING]}}}\n", r"history is \[STARTING, RUNNING\]"),
        ("  - {create: web, queue: [web]}\n", r"the queue is \[\], expected \[web\]"),
        ("  - {create: web, free: {a: 4000}}\n", "free cpu of host a is 3000, expected 4000"),
        ("  - {create: web, cpu: 5000}\n", "refused with NEVER_FITS"),
        ("  - {create: web, cpu: 5000, expect: {refused: NO_CAPACITY}}\n", "refused with NEVER_FITS, expected NO_CAP"),
        ("  - {create: web, expect: {refused: NO_CAPACITY}}\n", "accepted, expected to be refused"),
        ("  - {check: web, expect: {outcome: NEVER}}\n", "outcome is FITS, expected NEVER"),
        ("  - {check: web, expect: {offers: [{nodes: 1}]}}\n", "offers are none, expected nodes 1"),
        ("  - {create: web}\n  - {at: 11:00, terminate: web}\n", "it is 12:00:00 already"),
        ("  - {terminate: web}\n", "there was no create of web"),
    ],
)
def test_what_was_expected_and_what_was_seen_stand_in_the_failure(tmp_path: Path, steps: str, said: str) -> None:
    with pytest.raises(AssertionError, match=said) as caught:
        played(tmp_path, steps)
    assert "made.yaml, line " in str(caught.value)


def test_a_look_comes_before_the_next_second_and_the_clock_stands_still_in_calls(tmp_path: Path) -> None:
    played(
        tmp_path,
        "  - {create: web, duration: 1h}\n"
        "  - {create: other, duration: 1h, expect: {end: 13:00}}\n"
        "  - {at: 12:59:59, see: {web: RUNNING, other: RUNNING}}\n"
        "  - {after: 1s, see: {web: EXPIRED, other: EXPIRED}}\n",
    )


def slot(name: str, begin: int, end: int | None, cpu: int) -> pb.Host.Slot:
    def stamp(hours: int) -> Timestamp:
        made = Timestamp()
        made.FromDatetime(DAY + timedelta(hours=hours))
        return made

    times: dict[str, Any] = {"start_time": stamp(begin)} | ({} if end is None else {"end_time": stamp(end)})
    return pb.Host.Slot(workspace=f"x/{name}", amounts=pb.Quantities(amounts={"cpu": cpu}), **times)


def test_a_host_over_its_capacity_is_found() -> None:
    host = pb.Host(total=pb.Quantities(amounts={"cpu": 4000}))
    host.slots.extend([slot("one", 8, 10, 4000), slot("two", 10, None, 3000), slot("three", 12, 14, 1000)])
    assert over_capacity("a", host, [{"cpu": 4000}], DAY) == []
    assert over_capacity("a", host, [{"cpu": 4000}, {"cpu": 1}], DAY) == [
        "host a: what runs on it takes 4001 cpu of 4000"
    ]
    host.slots.append(slot("four", 13, 15, 1))
    assert over_capacity("a", host, [], DAY) == [
        "host a: 4001 cpu of 4000 from 13:00:00 on, held by two/0, three/0, four/0"
    ]
    assert over_capacity("a", host, [], DAY + timedelta(hours=14)) == []  # what is over is over
