"""What the slot table remembers to answer quickly is never seen in its answers, however often it is made anew."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from broker.core import crests, levels, order
from broker.core.order import BEGINNING, INFINITY, TimeOrder
from broker.core.slots import POOL_ROW, Slot, SlotTable
from broker.core.sweep import IntArray, sums_at_starts

NOW = datetime(2026, 5, 4, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


@pytest.fixture
def little_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounds so low that a few slots are enough to pass them all the time."""
    monkeypatch.setattr(order, "WAITING", 3)
    monkeypatch.setattr(levels, "NEAR", 1)
    monkeypatch.setattr(levels, "KEPT", 3)
    monkeypatch.setattr(levels, "JOURNAL", 4)
    monkeypatch.setattr(crests, "LONG", 6)


def peak_by_hand(table: SlotTable, start: datetime, end: datetime | None, now: datetime) -> IntArray:
    """The peak as `SlotTable.peak` defines it, from the slots alone: at its start, and wherever a slot starts in it."""
    slots = list(table.all())
    instants = [start, *(slot.start for slot in slots if slot.start > start and (end is None or slot.start < end))]
    sums = np.zeros((len(instants), len(table.resources), len(table.hosts)), dtype=np.int64)
    rows = {host: row for row, host in enumerate(table.hosts)}
    columns = {resource: column for column, resource in enumerate(table.resources)}
    for at, instant in enumerate(instants):
        for slot in slots:
            if slot.start <= instant and (slot.end is None or instant < slot.end or instant <= now):
                for resource, amount in slot.amounts.items():
                    sums[at, columns[resource], rows[slot.host]] += amount
    peak: IntArray = sums.max(axis=0)
    return peak


# Orders


def test_an_order_tells_what_lies_between_two_instants_through_all_changes(little_is_kept: None) -> None:
    rng = random.Random(5)
    kept = TimeOrder(64)
    instants = [INFINITY] * 64
    for _ in range(3000):
        place = rng.randrange(64)
        instants[place], before = rng.choice([INFINITY, rng.randrange(40)]), instants[place]
        assert kept.set(place, instants[place]) == before
        after, until = sorted((rng.randrange(-1, 41), rng.randrange(-1, 41)))
        expected = [place for place in range(64) if after < instants[place] <= until]
        assert sorted(kept.between(after, until).tolist()) == expected
        known = [instant for instant in instants if instant < INFINITY]
        assert kept.first_after(after) == min((at for at in known if at > after), default=INFINITY)
        assert kept.last() == max(known, default=BEGINNING)
        if rng.random() < 0.05:
            places, ascending = kept.ascending()
            assert ascending.tolist() == sorted(known)
            assert sorted(places.tolist()) == [place for place in range(64) if instants[place] < INFINITY]


def test_an_order_does_not_sort_anew_for_a_few_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some hundred planned starts come and go in one pass over a queue; each is followed by a question."""
    kept = TimeOrder(8192)
    for place in range(8000):
        kept.set(place, place)
    kept.ascending()
    merges: list[int] = []
    merge = TimeOrder._merge

    def counted(which: TimeOrder) -> None:
        merges.append(1)
        merge(which)

    monkeypatch.setattr(TimeOrder, "_merge", counted)
    for place in range(8000, 8000 + order.WAITING // 2):
        kept.set(place, 500)
        assert place in kept.between(499, 501)
        kept.set(place, INFINITY)
        assert kept.between(499, 501).tolist() == [500, 501]
    assert not merges


# The table


@pytest.mark.parametrize("seed", range(6))
def test_peaks_are_those_of_the_slots_whatever_was_asked_before(seed: int, little_is_kept: None) -> None:
    rng = random.Random(seed)
    table = SlotTable(["cpu"])
    hosts = [POOL_ROW, *(f"h{number}" for number in range(5))]
    now, keys = NOW, 0
    for _ in range(250):
        for _ in range(rng.randrange(4)):
            start = now + rng.randrange(-20, 60) * MINUTE
            end = rng.choice([None, *(start + rng.randrange(1, 50) * MINUTE for _ in range(4))])
            host = rng.choice(hosts[: 2 + keys // 40])  # new hosts and resources appear, POOL_ROW becomes long
            amounts = {rng.choice(["cpu", "memory", "disk", "gpu", "address:lan"][: 1 + keys // 30]): rng.randrange(9)}
            table.hold((f"w{keys}", 0, "node"), host, amounts, start, end)
            keys += 1
        there = sorted(slot.key for slot in table.all())
        for key in rng.sample(there, min(len(there), rng.randrange(3 if len(there) < 60 else 9))):
            table.release(key)
        now += rng.choice([0, 0, 0, 0, 1, 2, -3]) * MINUTE
        for _ in range(2):
            start = now + rng.choice([0, 0, rng.randrange(70)]) * MINUTE
            end = rng.choice([None, start + rng.randrange(1, 60) * MINUTE])
            assert (table.peak(start, end, now) == peak_by_hand(table, start, end, now)).all(), (start, end, now)


def test_sums_that_are_kept_follow_what_is_held_and_released(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same instant, asked for before and after: the second answer is made from the first."""
    monkeypatch.setattr(levels, "NEAR", 0)
    monkeypatch.setattr(order, "WAITING", 3)
    table = SlotTable(["cpu"])
    for number in range(20):
        table.hold((f"w{number}", 0, "node"), f"h{number % 4}", {"cpu": 1}, NOW, NOW + (1 + number) * MINUTE)
    at, over = NOW + 10 * MINUTE, NOW + 11 * MINUTE
    before = table.peak(at, over, NOW).copy()
    assert len(table._levels._kept) == 1
    table.hold(("x", 0, "node"), "h1", {"cpu": 7}, NOW + 2 * MINUTE, None)
    table.hold(("y", 0, "node"), "h1", {"cpu": 9}, NOW + 2 * MINUTE, at)  # over just then
    table.release(("w15", 0, "node"))
    expected = before.copy()
    expected[0, table.host_row("h1")] += 7
    expected[0, table.host_row("h3")] -= 1
    assert (table.peak(at, over, NOW) == expected).all()
    table.release(("x", 0, "node"))
    table.hold(("w15", 0, "node"), "h3", {"cpu": 1}, NOW, NOW + 16 * MINUTE)
    assert (table.peak(at, over, NOW) == before).all()


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(levels, "NEAR", 0)
    table = SlotTable(["cpu"])
    table.hold_all(
        Slot(key=(f"w{number}", 0, "node"), host="h", amounts={"cpu": 1}, start=NOW, end=NOW + (1 + number) * MINUTE)
        for number in range(400)
    )
    monkeypatch.setattr(levels, "KEPT_BYTES", 3 * table.peak(NOW, None, NOW).nbytes)
    for number in range(400):
        table.peak(NOW + number * MINUTE, None, NOW)
    assert len(table._levels._kept) == 3
    for number in range(10 * levels.JOURNAL):
        table.release((f"w{number % 400}", 0, "node"))
        table.hold((f"w{number % 400}", 0, "node"), "h", {"cpu": 1}, NOW, NOW + (1 + number % 400) * MINUTE)
    assert len(table._levels._journal) <= 2 * levels.JOURNAL
    assert table.peak(NOW + 390 * MINUTE, None, NOW)[0, table.host_row("h")] == 10


def test_a_host_that_changed_is_worked_out_anew_where_it_matters_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    table = SlotTable(["cpu"])
    for number in range(30):
        start = NOW + (1 + number) * MINUTE
        table.hold((f"w{number}", 0, "node"), f"h{number % 10}", {"cpu": 2}, start, start + 15 * MINUTE)
    worked_out: list[int] = []

    def counted(rows: order.Places, starts: IntArray, ends: IntArray, amounts: IntArray) -> IntArray:
        worked_out.extend(sorted(set(rows.tolist())))
        return sums_at_starts(rows, starts, ends, amounts)

    monkeypatch.setattr(crests, "sums_at_starts", counted)
    table.peak(NOW, None, NOW)
    assert len(worked_out) == 10
    worked_out.clear()
    table.hold(("x", 0, "node"), "h4", {"cpu": 3}, NOW + 2 * MINUTE, NOW + 20 * MINUTE)
    table.hold(("y", 0, "node"), "h5", {"cpu": 3}, NOW + 40 * MINUTE, NOW + 50 * MINUTE)
    assert table.peak(NOW, NOW + 6 * MINUTE, NOW)[0, table.host_row("h4")] == 5
    assert worked_out == [table.host_row("h4")]
