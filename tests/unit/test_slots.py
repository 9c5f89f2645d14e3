"""The slot table: half-open intervals, real infinity, overdue slots, all or nothing."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from msgspec.structs import replace

from broker.core.slots import INFINITY, POOL_ROW, Slot, SlotTable, from_us, to_us

NOW = datetime(2026, 5, 4, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)


def peak(table: SlotTable, host: str, resource: str, start: datetime, end: datetime | None) -> int:
    """The peak of one resource on one host, as of NOW."""
    row, column = table.host_row(host), table.column(resource)
    return int(table.peak(start, end, NOW)[column, row])


def test_instants_are_whole_microseconds_and_no_end_is_infinity() -> None:
    odd = datetime(2026, 5, 4, 12, 0, 0, 123457, tzinfo=UTC)
    assert from_us(to_us(odd)) == odd
    assert to_us(None) == INFINITY
    assert from_us(INFINITY) is None


def test_a_slot_counts_from_its_start_up_to_but_not_at_its_end() -> None:
    table = SlotTable(["cpu"])
    table.hold(("w", 0, "node"), "h", {"cpu": 2}, NOW + HOUR, NOW + 2 * HOUR)
    assert peak(table, "h", "cpu", NOW, NOW + HOUR) == 0
    assert peak(table, "h", "cpu", NOW, NOW + HOUR + timedelta(microseconds=1)) == 2
    assert peak(table, "h", "cpu", NOW + 2 * HOUR, None) == 0


def test_slots_that_follow_each_other_do_not_add_up() -> None:
    table = SlotTable(["cpu"])
    for number in range(3):
        table.hold(("w", number, "node"), "h", {"cpu": 2}, NOW + number * HOUR, NOW + (number + 1) * HOUR)
    assert peak(table, "h", "cpu", NOW, None) == 2
    table.hold(("x", 0, "node"), "h", {"cpu": 1}, NOW + HOUR / 2, NOW + HOUR * 3 / 2)
    assert peak(table, "h", "cpu", NOW, None) == 3


def test_an_overdue_slot_counts_now_but_not_in_what_is_said_about_later() -> None:
    table = SlotTable(["cpu"])
    table.hold(("w", 0, "node"), "h", {"cpu": 2}, NOW - 2 * HOUR, NOW - HOUR)
    assert peak(table, "h", "cpu", NOW, NOW + HOUR) == 2
    assert peak(table, "h", "cpu", NOW + timedelta(microseconds=1), NOW + HOUR) == 0
    table.release(("w", 0, "node"))
    assert peak(table, "h", "cpu", NOW, NOW + HOUR) == 0


def test_an_open_ended_slot_never_ends() -> None:
    table = SlotTable()
    table.hold(("w", 0, "node"), "h", {"cpu": 2}, NOW, None)
    assert peak(table, "h", "cpu", NOW + 1_000_000 * HOUR, None) == 2
    assert table.ends(NOW) == []
    found = table.get(("w", 0, "node"))
    assert found is not None
    assert found.end is None


def test_a_slot_begins_when_time_reaches_it_and_a_clock_set_back_undoes_that() -> None:
    table = SlotTable(["cpu"])
    table.hold(("w", 0, "node"), "h", {"cpu": 2}, NOW + HOUR, None)
    row, column = table.host_row("h"), table.column("cpu")
    for now, held in ((NOW, 0), (NOW + HOUR, 2), (NOW, 0), (NOW + 2 * HOUR, 2)):
        assert table.peak(now, now + HOUR, now)[column, row] == held


def test_every_slot_of_a_batch_is_held_or_none() -> None:
    table = SlotTable(["cpu"])
    good = Slot(key=("w", 0, "node"), host="h", amounts={"cpu": 1}, start=NOW, end=NOW + HOUR)
    backwards = Slot(key=("w", 1, "node"), host="h", amounts={"cpu": 1}, start=NOW, end=NOW)
    negative = Slot(key=("w", 1, "node"), host="h", amounts={"cpu": -1}, start=NOW, end=None)
    for bad in (backwards, negative, good):
        with pytest.raises(ValueError, match="slot"):
            table.hold_all([good, bad])
        assert len(table) == 0
        assert peak(table, "h", "cpu", NOW, None) == 0


def test_replace_moves_and_keeps_the_old_slot_if_the_new_one_makes_no_sense() -> None:
    table = SlotTable(["cpu"])
    old = Slot(key=("w", 0, "node"), host="a", amounts={"cpu": 1}, start=NOW, end=NOW + HOUR)
    table.hold_all([old])
    table.replace(Slot(key=old.key, host="b", amounts={"cpu": 2}, start=NOW, end=None))
    assert peak(table, "a", "cpu", NOW, None) == 0
    assert peak(table, "b", "cpu", NOW, None) == 2
    with pytest.raises(ValueError, match="ends"):
        table.replace(Slot(key=old.key, host="c", amounts={"cpu": 2}, start=NOW, end=NOW))
    assert peak(table, "b", "cpu", NOW, None) == 2
    with pytest.raises(KeyError):
        table.replace(Slot(key=("x", 0, "node"), host="a", amounts={}, start=NOW, end=None))


def test_what_a_workspace_holds_is_found_and_given_back_together() -> None:
    table = SlotTable(["cpu"])
    table.hold(("w", 0, "node"), "h", {"cpu": 1}, NOW, None)
    table.hold(("w", 0, "pool"), POOL_ROW, {"address:lan": 1}, NOW, None)
    table.hold(("v", 0, "node"), "h", {"cpu": 4}, NOW, NOW + HOUR)
    assert [slot.key for slot in table.of_workspace("w")] == [("w", 0, "node"), ("w", 0, "pool")]
    assert [dict(slot.amounts) for slot in table.slots("h")] == [{"cpu": 4}, {"cpu": 1}]
    table.release_workspace("w")
    table.release_workspace("w")
    assert ("w", 0, "pool") not in table
    assert peak(table, "h", "cpu", NOW, None) == 4
    assert peak(table, POOL_ROW, "address:lan", NOW, None) == 0
    with pytest.raises(KeyError):
        table.release(("w", 0, "node"))


def test_hosts_and_resources_are_added_as_they_come_and_places_are_used_again() -> None:
    table = SlotTable()
    for number in range(200):
        table.hold((f"w{number}", 0, "node"), f"h{number}", {f"r{number % 9}": number}, NOW, NOW + HOUR)
    for number in range(0, 200, 2):
        table.release((f"w{number}", 0, "node"))
    for number in range(0, 200, 2):
        table.hold((f"v{number}", 0, "node"), f"h{number}", {"r0": 1}, NOW + HOUR, None)
    sums = table.peak(NOW, None, NOW)
    assert sums.shape == (9, 201)
    expected = np.zeros_like(sums)
    for number in range(200):
        resource, amount = ("r0", 1) if number % 2 == 0 else (f"r{number % 9}", number)
        expected[table.column(resource), table.host_row(f"h{number}")] = amount
    assert (sums == expected).all()


def test_rows_follow_an_inventory_also_when_a_host_is_added_in_the_middle() -> None:
    table = SlotTable(["cpu"])
    first = ("a", "c")
    assert isinstance(table.rows_of(first), slice)
    table.hold(("w", 0, "node"), "c", {"cpu": 3}, NOW, None)
    grown = ("a", "b", "c")
    rows = table.rows_of(grown)
    assert table.peak(NOW, None, NOW)[0][rows].tolist() == [0, 0, 3]


def test_plans_made_and_dropped_again_leave_nothing_behind() -> None:
    """A queue plans its starts anew all the time; one that stays must still begin when its time comes."""
    table = SlotTable(["cpu"])
    table.hold(("stays", 0, "node"), "h", {"cpu": 1}, NOW + HOUR, None)
    for number in range(1000):
        table.hold(("soft", 0, "node"), "h", {"cpu": 5}, NOW + HOUR + timedelta(seconds=number % 7), None)
        table.release(("soft", 0, "node"))
    assert len(table._entries.row) == 64  # places are used again
    assert peak(table, "h", "cpu", NOW, NOW + 2 * HOUR) == 1
    assert table.peak(NOW + HOUR, None, NOW + HOUR)[0, table.host_row("h")] == 1


def test_what_has_begun_is_told_right_after_a_few_changes_in_a_large_table() -> None:
    """The order of ends is mended, not made anew: the same as that of a table that never knew another."""
    table = SlotTable(["cpu"])
    slots = [
        Slot(
            key=(f"w{number}", 0, "node"),
            host=f"h{number % 7}",
            amounts={"cpu": 1 + number % 5},
            start=NOW - HOUR,
            end=NOW + timedelta(minutes=1 + number * 37 % 400),
        )
        for number in range(400)
    ]
    table.hold_all(slots)
    now = to_us(NOW)
    table.begun(now).held(now + 1)
    kept = {slot.key: slot for slot in slots}
    for number in range(0, 30, 2):  # gone for good, their places taken by others, or running longer
        table.release(kept.pop((f"w{number}", 0, "node")).key)
        longer = replace(slots[number + 1], end=NOW + timedelta(minutes=number * 13), host="h3")
        if number:
            table.replace(longer)
            kept[longer.key] = longer
        if number % 4 == 0:
            fresh = replace(slots[number], key=(f"v{number}", 0, "node"), end=NOW + timedelta(minutes=200))
            table.hold_all([fresh])
            kept[fresh.key] = fresh
    by_end = sorted(kept.values(), key=lambda slot: slot.end or NOW)
    table.begun(now)
    for slot in by_end[len(by_end) // 2 - 10 : len(by_end) // 2 + 10]:  # where a binary search looks first
        table.release(kept.pop(slot.key).key)
    late = Slot(key=("late", 0, "node"), host="h1", amounts={"cpu": 9}, start=NOW - HOUR, end=NOW + 6 * HOUR)
    table.hold_all([late])
    kept[late.key] = late
    anew = SlotTable(["cpu"])
    for host in table.hosts:
        anew.host_row(host)
    anew.hold_all(kept.values())
    mended, expected = table.begun(now), anew.begun(now)
    assert mended.ends.tolist() == expected.ends.tolist()
    for minutes in (399, 3, 200, 201, 50):
        instant = to_us(NOW + timedelta(minutes=minutes))
        assert (mended.held(instant) == expected.held(instant)).all()
        assert (mended.held(instant) == table.peak(NOW + timedelta(minutes=minutes), None, NOW)).all()
