"""What the planning benchmark measures on: a schedule that could be one, and questions that were never asked before."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from benchmarks import planning
from benchmarks.harness import Row
from benchmarks.planning import GROUP, NOW, QUESTIONS, RESERVED, RUNNING, Lab, Passes, Question, build, rows


@pytest.fixture
def lab() -> Lab:
    return build(20)


def test_ten_leases_a_host_and_nobody_over_capacity_at_any_instant(lab: Lab) -> None:
    hosts, table = lab.snapshot.hosts, lab.snapshot.slots
    for _ in range(200):
        lab.change()
        lab.asked += 1
    for host in hosts.names:
        slots = table.slots(host)
        assert len(slots) == RUNNING + RESERVED == 10
        assert sum(slot.start > NOW for slot in slots) == RESERVED
        for instant in [slot.start for slot in slots]:
            held: Counter[str] = Counter()
            for slot in slots:
                if slot.start <= instant and (slot.end is None or instant < slot.end):
                    held.update(slot.amounts)
            for resource, column in hosts.columns.items():
                assert held[resource] <= hosts.total[column, hosts.rows[host]], (host, instant)


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda question: question.name)
def test_no_two_calls_ask_the_same_and_each_is_answered_by_a_plan(lab: Lab, question: Question) -> None:
    assert len({repr(question.ask(number)) for number in range(300)}) == 300
    assert lab.time_of(replace(question, calls=12)) > 0
    assert Passes(lab).time_of(replace(question, calls=2)) > 0


def test_the_table_is_another_at_each_call(lab: Lab) -> None:
    seen = set()
    for _ in range(30):
        lab.asked += 1
        lab.change()
        seen.add(tuple(sorted((slot.key, slot.end) for slot in lab.snapshot.slots.all())))
    assert len(seen) == 30


def test_the_slowest_kind_of_a_question_counts(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, slow = [0.0], planning.LENGTHS.index(None)

    def tick() -> float:
        clock[0] += 5.0 if lab.asked % len(planning.LENGTHS) == slow else 1.0
        return clock[0]

    monkeypatch.setattr("time.perf_counter", tick)
    ahead = next(question for question in QUESTIONS if question.kinds > 1)
    assert lab.time_of(replace(ahead, calls=20)) == 5e6


def row_of(table: list[Row], case: str, measure: str) -> Row:
    found = [row for row in table if row.case == case and measure in row.measure]
    assert len(found) == 1
    return found[0]


def test_growth_has_a_goal_and_the_largest_pool_says_whether_it_reached_its_time() -> None:
    times = {
        (question.name, hosts): (question.goal * hosts / 10_000, 2.0)
        for question in QUESTIONS
        for hosts in planning.HOSTS
    }
    slower = {key: (ours * 1.5, base) for key, (ours, base) in times.items()}
    table = rows([times, slower, times])
    assert len(table) == len(QUESTIONS) * 5
    growth = row_of(table, "10,000 hosts, growth", f"earliest of {GROUP}")
    assert (growth.ratio, growth.goal, growth.reached) == (10.0, 12.0, True)
    now = row_of(table, "10,000 hosts", "now")
    assert (now.ours, now.baseline, now.ratio) == (100.0, 2.0, 50.0)
    assert "goal 100 us: reached" in now.note
    assert "goal 100 us: not reached" in row_of(rows([slower]), "10,000 hosts", "now").note
    assert row_of(table, "10 hosts", "now").note == ""
