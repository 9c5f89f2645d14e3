"""The figures and the picture of a replay, from a made-up log whose figures were worked out by hand."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import pytest

from broker.replay.log import read
from broker.replay.picture import picture, stretches, waiting
from broker.replay.report import Preemptions, Report, Reservations, report
from tests.support.replay_logs import header, line, on, right_log, submit, written

SVG = "{http://www.w3.org/2000/svg}"


def of(lines: list[dict[str, object]]) -> Report:
    return report(*read(written(lines).encode()))


def test_jobs() -> None:
    jobs = of(right_log()).jobs
    assert (jobs.submitted, jobs.queued, jobs.started, jobs.ended) == (3, 2, 3, 3)
    assert (jobs.refused, jobs.failed, jobs.never_started) == (0, 0, 0)
    assert jobs.cut == 1  # job-3 would run for 500 seconds and asked for 100


def test_waiting() -> None:
    wait = of(right_log()).jobs.wait_seconds
    # job-1 waits 0 s, job-2 50.1 s, job-3 210.3 s
    assert wait.mean == pytest.approx((0 + 50.1 + 210.3) / 3)
    assert (wait.p50, wait.p95, wait.max) == pytest.approx((50.1, 210.3, 210.3))


def test_bounded_slowdown() -> None:
    slowdown = of(right_log()).jobs.bounded_slowdown
    # job-1 ran 60 s at once; job-2 waited 50.1 s, ran 139.85 + 260.15 s and stood still for 50.1 s between;
    # job-3 waited 210.3 s and ran 99.95 s.
    first, second, third = 1.0, (50.1 + 400 + 50.1) / 400, (210.3 + 99.95) / 99.95
    assert slowdown.p50 == pytest.approx(second, abs=1e-6)
    assert slowdown.max == pytest.approx(third, abs=1e-6)
    assert slowdown.mean == pytest.approx((first + second + third) / 3, abs=1e-6)


def test_a_job_of_a_second_counts_as_one_of_ten_in_slowdown() -> None:
    slowdown = of(
        [
            header(jobs=1, reservations=0),
            submit(0, "job-1", 1, 100, 1),
            line(0, "queued", "job-1"),
            line(30, "started", "job-1", end=130, nodes=on("h1")),
            line(30, "running", "job-1", end=130),
            line(31, "ending", "job-1", end=130),
            line(31, "ended", "job-1", nodes=[], how="terminated"),
        ]
    ).jobs.bounded_slowdown
    assert slowdown.mean == pytest.approx(31 / 10)


def test_reservations() -> None:
    assert of(right_log()).reservations == Reservations(
        submitted=2, accepted=1, acceptance_rate=0.5, refused={"NEVER_FITS": 1}, on_time=1, late=0
    )
    lines = right_log()
    next(each for each in lines if each.get("event") == "running" and each["id"] == "reservation-1")["time"] = 201
    assert (of(lines).reservations.on_time, of(lines).reservations.late) == (0, 1)


def test_preemptions() -> None:
    assert of(right_log()).preemptions == Preemptions(suspensions=1, jobs=1, suspended_seconds=50.1)


def test_utilisation_is_what_is_held_over_what_there_is() -> None:
    figures = of(right_log())
    held = 2 * 60.1 + 3 * (200 - 60.1)  # job-1 and job-2; at 200 the reservation takes one host of job-2's
    held += (3 + 1) * 0.05 + 1 * (250.05 - 200.05)  # for a moment both are there, then the reservation alone
    held += 3 * (510.3 - 250.05) + 3 * (610.3 - 510.3) + 1 * 0.05
    assert figures.utilisation.overall == pytest.approx(held / (3 * 610.35), abs=1e-6)
    before = 2 * 60.1 + 3 * (200 - 60.1) + 4 * 0.05 + 50 + 3 * (300 - 250.05)
    assert figures.utilisation.while_jobs_came == pytest.approx(before / (3 * 300), abs=1e-6)
    assert (figures.first_submit, figures.last_end) == (0, 610.35)


def test_a_job_that_never_starts_is_counted() -> None:
    jobs = of([header(jobs=1, reservations=0), submit(0, "job-1", 1, 100, 1), line(0, "queued", "job-1")]).jobs
    assert (jobs.submitted, jobs.started, jobs.never_started) == (1, 0, 1)
    assert jobs.wait_seconds.mean == 0


def test_who_held_what_in_the_picture() -> None:
    _, lines = read(written(right_log()).encode())
    drawn = [(each.id, each.begin, each.end, len(each.hosts), each.suspended) for each in stretches(lines)]
    assert drawn == [
        ("job-1", 0, 60.1, 2, False),
        ("job-2", 60.1, 200.05, 3, True),
        ("reservation-1", 200, 250.05, 1, False),
        ("job-2", 250.05, 510.3, 3, False),
        ("job-3", 510.3, 610.3, 3, False),
        ("job-3", 610.3, 610.35, 1, False),
    ]
    assert waiting(lines) == [(10, 3), (60.1, 0), (300, 3), (510.3, 0)]


def test_the_picture_is_svg_in_which_every_box_lies_on_its_hosts() -> None:
    lines = right_log()
    lines[0]["hosts"].append({"name": "pool/<odd> & last", "amounts": {"cpu": 1000}})
    log = read(written(lines).encode())
    drawing = picture(*log, report(*log))
    root = ElementTree.fromstring(drawing)
    boxes = {}
    for group in root.iter(f"{SVG}g"):
        title, *rects = list(group)
        boxes[title.text] = [(float(rect.get("y", "")), float(rect.get("height", ""))) for rect in rects]
    top, row = 84.0, 16.0
    assert boxes["job-1: 2 nodes from 0 to 00:01"] == [(top, 2 * row)]
    assert boxes["reservation-1: 1 nodes from 00:03:20 to 00:04:10"] == [(top + 2 * row, row)]
    said = boxes["job-2: 3 nodes from 00:01 to 00:03:20, then suspended"]
    assert said == [(top, 3 * row), (top, 3 * row)]  # the stretch, and the mark that it goes on later
    texts = [text.text for text in root.iter(f"{SVG}text")]
    assert "<odd> & last" in texts
    assert any("waiting 87 s in the mean" in (text or "") for text in texts)
    assert picture(*log, report(*log)) == drawing
