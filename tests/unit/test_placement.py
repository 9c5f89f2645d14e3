"""What fits, what does not now, what never will, and when."""

from __future__ import annotations

from datetime import timedelta

import pytest

from broker.core.placement import HostState, Never, NotNow, Placement, Plan, ReasonCode, Window, held_amounts
from broker.core.slots import POOL_ROW
from tests.support.placement_cases import (
    AT_ONCE,
    HOUR,
    NOW,
    ask,
    host,
    nodes,
    occupy,
    placed,
    pool,
    reason,
    verdict,
)

# Never and not now --------------------------------------------------------------------------------------------


def test_a_group_that_adds_up_but_fits_no_hosts_is_never() -> None:
    """5 VMs of 2 GiB on 4 hosts of 3 GiB: 12 GiB are there, and never 5 nodes."""
    lab = pool(hosts=[host(f"h{number}", memory=3072) for number in range(4)])
    answer = ask(nodes(5, memory=2048), at=lab)
    assert isinstance(answer, Never)
    group = reason(verdict(answer), ReasonCode.GROUP)
    assert (group.requested, group.available, group.resolvable) == (5, 4, False)
    assert verdict(answer).nodes_fit == 4
    assert placed(ask(nodes(4, memory=2048), at=lab)) == [("h0", "h1", "h2", "h3")]


def test_never_looks_past_slots_strangers_and_hosts_out_of_order() -> None:
    lab = pool(
        hosts=[host("a", foreign={"memory": 4096}), host("b", state=HostState.LOST), host("c")],
        pool_totals={"disk": 100},
        pool_foreign={"disk": 100},
    )
    occupy(lab, "c", 4096, end=None)
    answer = ask(nodes(3, memory=4096, extra={"disk": 30}), at=lab)
    assert isinstance(answer, NotNow)
    assert answer.earliest is None  # no known end would help
    assert isinstance(ask(nodes(4, memory=4096), at=lab), Never)


@pytest.mark.parametrize("state", [HostState.CORDONED, HostState.DISABLED, HostState.LOST])
def test_a_host_out_of_order_takes_nothing(state: HostState) -> None:
    lab = pool(hosts=[host("a", state=state), host("b", memory=1024)])
    assert placed(ask(nodes(memory=1024), at=lab)) == [("b",)]
    assert isinstance(ask(nodes(memory=2048), at=lab), NotNow)


def test_a_resource_nobody_asks_for_never_blocks_even_overdrawn() -> None:
    lab = pool(hosts=[host("a", foreign={"cpu": 9000})], pool_totals={"disk": 5}, pool_foreign={"disk": 9})
    assert placed(ask(nodes(2, cpu=0, extra={"gpu": 0, "disk": 0}), at=lab)) == [("a", "a")]
    busy = pool(hosts=[host("a", foreign={"cpu": 9000}), host("b", memory=512)])
    for rule in (None, Placement.ONE_PER_HOST):
        answer = ask(nodes(cpu=0, placement=rule), nodes(memory=500, cpu=100), at=busy)
        assert placed(answer) == [("a",), ("b",)]


def test_a_resource_no_host_knows_counts_as_none() -> None:
    answer = ask(nodes(extra={"gpu": 1}), at=pool())
    assert isinstance(answer, Never)
    assert reason(verdict(answer), ReasonCode.INSUFFICIENT_RESOURCE, "gpu").available == 0
    some = pool(hosts=[host("a"), host("b", extra={"gpu": 1})])
    assert placed(ask(nodes(extra={"gpu": 1}), at=some)) == [("b",)]


def test_a_shared_datastore_and_addresses_belong_to_the_pool() -> None:
    lab = pool(pool_totals={"disk": 100, "address:lan": 3}, memory_overhead=64)
    wanted = nodes(2, memory=1000, extra={"disk": 40}, networks={"lan": 1})
    assert held_amounts(lab, wanted) == ({"memory": 1064}, {"disk": 40, "address:lan": 1})
    assert isinstance(ask(wanted, at=lab), Plan)
    occupy(lab, POOL_ROW, 0, end=NOW + HOUR, disk=30)
    answer = ask(wanted, at=lab)
    assert isinstance(answer, NotNow)
    assert answer.earliest == NOW + HOUR
    short = reason(verdict(answer), ReasonCode.INSUFFICIENT_RESOURCE)
    assert (short.resource, short.requested, short.available, short.resolvable) == ("disk", 80, 70, True)
    addresses = ask(nodes(4, networks={"lan": 1}), at=lab)
    assert isinstance(addresses, Never)
    why = reason(verdict(addresses), ReasonCode.INSUFFICIENT_RESOURCE)
    assert (why.resource, why.resolvable) == ("address:lan", False)
    assert why.message == "network lan: 4 addresses asked, pool lab has 3 addresses in all"


def test_the_overhead_of_a_vm_is_planned_with() -> None:
    lab = pool(hosts=[host("a", memory=2048)], memory_overhead=64)
    assert isinstance(ask(nodes(memory=2048), at=lab), Never)
    assert isinstance(ask(nodes(2, memory=960), at=lab), Plan)
    assert isinstance(ask(nodes(2, memory=961), at=lab), Never)


# When ---------------------------------------------------------------------------------------------------------


def test_the_earliest_start_is_when_the_whole_group_fits() -> None:
    lab = pool()
    for ending, where in ((3, "lab-1"), (1, "lab-2"), (2, "lab-2")):
        occupy(lab, where, 2048, end=NOW + ending * HOUR)
    occupy(lab, "lab-1", 2048, end=None)
    for memory, hours in ((2048, 1), (4096, 2)):
        answer = ask(nodes(memory=memory), at=lab)
        assert isinstance(answer, NotNow)
        assert answer.earliest == verdict(answer).earliest == NOW + hours * HOUR
    three = ask(nodes(3, memory=2048), at=lab)
    assert isinstance(three, NotNow)
    assert three.earliest == NOW + 3 * HOUR
    four = ask(nodes(4, memory=2048), at=lab)
    assert isinstance(four, NotNow)
    assert four.earliest is None


def test_a_reservation_ahead_is_stepped_over_not_into() -> None:
    """Free now for an hour, then reserved for two: a long lease waits until after it, a short one starts
    now.
    """
    lab = pool(hosts=[host("a")])
    occupy(lab, "a", 4096, start=NOW + HOUR, end=NOW + 3 * HOUR)
    assert isinstance(ask(nodes(memory=4096), at=lab), Plan)
    long = Window(start=NOW, duration=HOUR * 2, immediate=True)
    answer = ask(nodes(memory=4096), at=lab, window=long)
    assert isinstance(answer, NotNow)
    assert answer.earliest == NOW + 3 * HOUR
    assert isinstance(ask(nodes(memory=4096), at=lab, window=Window(start=NOW, open_ended=True)), NotNow)


def test_a_gap_between_two_reservations_is_found() -> None:
    lab = pool(hosts=[host("a")])
    occupy(lab, "a", 4096, end=NOW + HOUR)
    occupy(lab, "a", 4096, start=NOW + 3 * HOUR, end=NOW + 4 * HOUR)
    for hours, earliest in ((2, 1), (3, 4)):
        answer = ask(nodes(memory=4096), at=lab, window=Window(start=NOW, duration=hours * HOUR))
        assert isinstance(answer, NotNow)
        assert answer.earliest == NOW + earliest * HOUR


def test_a_window_starts_at_the_earliest_instant_that_fits() -> None:
    lab = pool(hosts=[host("a")])
    occupy(lab, "a", 4096, end=NOW + 2 * HOUR)
    window = Window(start=NOW, duration=HOUR, latest_start=NOW + 2 * HOUR)
    answer = ask(nodes(), at=lab, window=window)
    assert isinstance(answer, Plan)
    assert (answer.start, answer.end) == (NOW + 2 * HOUR, NOW + 3 * HOUR)
    too_late = ask(nodes(), at=lab, window=Window(start=NOW, duration=HOUR, latest_start=NOW + HOUR))
    assert isinstance(too_late, NotNow)
    assert too_late.earliest == NOW + 2 * HOUR
    assert reason(verdict(too_late), ReasonCode.WINDOW)
    by_deadline = Window(start=NOW, duration=HOUR, latest_start=NOW + 9 * HOUR, deadline=NOW + 3 * HOUR)
    assert isinstance(ask(nodes(), at=lab, window=by_deadline), Plan)


def test_a_window_that_cannot_hold_the_lease_is_refused_as_such() -> None:
    for window in (
        Window(start=NOW + HOUR, duration=HOUR, latest_start=NOW),
        Window(start=NOW, duration=2 * HOUR, deadline=NOW + HOUR),
        Window(start=NOW, open_ended=True, deadline=NOW + HOUR),
    ):
        answer = ask(nodes(), at=pool(), window=window)
        assert isinstance(answer, Never)
        assert reason(verdict(answer), ReasonCode.WINDOW)


def test_an_overdue_slot_blocks_now_and_is_expected_gone_just_after() -> None:
    lab = pool(hosts=[host("a")])
    occupy(lab, "a", 4096, start=NOW - 2 * HOUR, end=NOW - HOUR)
    answer = ask(nodes(), at=lab)
    assert isinstance(answer, NotNow)
    assert answer.earliest == NOW + timedelta(microseconds=1)
    assert isinstance(ask(nodes(), at=lab, window=Window(start=NOW + HOUR, duration=HOUR)), Plan)


def test_a_pool_that_promises_nothing_ahead_takes_leases_that_start_now() -> None:
    lab = pool(hosts=[host("a")], capabilities=frozenset())
    assert isinstance(ask(nodes(), at=lab), Plan)
    ahead = ask(nodes(), at=lab, window=Window(start=NOW + HOUR, duration=HOUR))
    assert isinstance(ahead, Never)
    assert reason(verdict(ahead), ReasonCode.CAPABILITY).resource == "ADVANCE_RESERVATION"
    occupy(lab, "a", 4096, end=NOW + HOUR)
    window = Window(start=NOW, duration=HOUR, latest_start=NOW + 2 * HOUR)
    waits = ask(nodes(), at=lab, window=window)
    assert isinstance(waits, NotNow)
    assert waits.earliest == NOW + HOUR


def test_the_pools_default_gives_the_length_and_its_limit_refuses() -> None:
    unset = Window(start=NOW, immediate=True)
    open_ended = ask(nodes(), at=pool(), window=unset)
    assert isinstance(open_ended, Plan)
    assert open_ended.end is None
    limited = pool(default_duration=2 * HOUR, max_duration=3 * HOUR)
    by_default = ask(nodes(), at=limited, window=unset)
    assert isinstance(by_default, Plan)
    assert by_default.end == NOW + 2 * HOUR
    for window in (Window(start=NOW, duration=4 * HOUR), Window(start=NOW, open_ended=True)):
        answer = ask(nodes(), at=limited, window=window)
        assert isinstance(answer, Never)
        assert reason(verdict(answer), ReasonCode.LEASE_TOO_LONG).available == 3 * 3600


# Groups -------------------------------------------------------------------------------------------------------


def test_sets_of_different_sizes_are_placed_together_where_first_fit_fails() -> None:
    """The large node needs the large host whole, whatever order the sets come in."""
    lab = pool(hosts=[host("big", memory=4096), host("small", memory=2048)])
    answer = ask(nodes(2, memory=1024), nodes(1, memory=4096), at=lab)
    assert placed(answer) == [("small", "small"), ("big",)]


def test_the_exact_search_finds_what_largest_first_misses() -> None:
    """Two hosts of 10 for 5, 4, 3, 3, 3 and 2: only 5+3+2 and 4+3+3 will do, and 5+4 comes first to mind."""
    lab = pool(hosts=[host("a", memory=10), host("b", memory=10)])
    wanted = [nodes(1, memory=5), nodes(1, memory=4), nodes(3, memory=3), nodes(1, memory=2)]
    five, four, threes, two = placed(ask(*wanted, at=lab))
    assert five == two
    assert five != four
    assert sorted(threes) == sorted([*five, *four, *four])


def test_a_set_that_fits_anywhere_leaves_the_hosts_others_need() -> None:
    """The larger node would fill x best, but the others may stand on x and y only."""
    racks = {"x": "a", "y": "a", "z": "b"}
    lab = pool(hosts=[host(name, memory=10 + 2 * (name == "z"), attributes={"rack": racks[name]}) for name in racks])
    anywhere, two = nodes(1, memory=8), nodes(2, memory=6, host_selector={"rack": ("a",)})
    assert placed(ask(anywhere, two, at=lab)) == [("z",), ("x", "y")]


def test_min_count_takes_the_most_that_fits_earlier_sets_first() -> None:
    lab = pool(hosts=[host("a", memory=4096), host("b", memory=3072)])
    answer = ask(nodes(9, min_count=2), at=lab)
    assert isinstance(answer, Plan)
    assert len(answer.assignments[0].hosts) == 7
    assert not answer.full
    both = placed(ask(nodes(3, memory=2048, min_count=1), nodes(5, min_count=1), at=lab))
    assert [len(hosts) for hosts in both] == [3, 1]
    refused = ask(nodes(9, min_count=8), at=lab)
    assert isinstance(refused, Never)
    assert reason(verdict(refused), ReasonCode.GROUP).requested == 8


def test_pack_fills_spread_spreads_and_one_per_host_is_a_rule() -> None:
    lab = pool(hosts=[host("a", memory=8192), host("b"), host("c")])
    occupy(lab, "c", 1024, end=None)
    assert placed(ask(nodes(3, placement=Placement.PACK), at=lab)) == [("c", "c", "c")]
    assert placed(ask(nodes(4, placement=Placement.SPREAD), at=lab)) == [("a", "b", "c", "a")]
    assert placed(ask(nodes(3, placement=Placement.ONE_PER_HOST), at=lab)) == [("c", "b", "a")]
    assert isinstance(ask(nodes(4, placement=Placement.ONE_PER_HOST), at=lab), Never)
    two_sets = [nodes(3, placement=Placement.ONE_PER_HOST, name=name) for name in ("x", "y")]
    assert all(sorted(hosts) == ["a", "b", "c"] for hosts in placed(ask(*two_sets, at=lab)))


def test_pack_lets_cpu_and_memory_run_out_together() -> None:
    """Host a is the fuller one, but a node with much memory would leave its cpus without any."""
    lab = pool(hosts=[host("a", cpu=8000, memory=8192), host("b", cpu=8000, memory=8192)])
    occupy(lab, "a", 4096, end=None)  # no cpu held
    occupy(lab, "b", 1024, end=None)
    assert placed(ask(nodes(memory=3072, cpu=1000, placement=Placement.PACK), at=lab)) == [("b",)]


def test_pack_fills_a_host_to_the_last_before_it_opens_another() -> None:
    lab = pool(hosts=[host("a", cpu=4000, memory=4096), host("b", cpu=4000, memory=4096)])
    occupy(lab, "b", 3072, cpu=3000, end=None)
    assert placed(ask(nodes(memory=1024, cpu=1000, placement=Placement.PACK), at=lab)) == [("b",)]


def test_ties_go_by_name() -> None:
    for policy in Placement:
        lab = pool(hosts=[host("c"), host("a"), host("b")], policy=policy)
        assert placed(ask(nodes(), at=lab)) == [("a",)]


# Which hosts --------------------------------------------------------------------------------------------------


def test_a_selector_takes_any_of_its_values_compared_as_text() -> None:
    lab = pool(
        hosts=[
            host("a", attributes={"arch": "arm64", "rack": 7, "ssd": True}),
            host("b", attributes={"arch": "x86_64", "rack": 8.0, "tags": ["fast", "new"]}),
            host("c"),
        ]
    )
    for selector, where in (
        ({"arch": ("x86_64", "riscv")}, "b"),
        ({"rack": ("7",)}, "a"),
        ({"rack": ("8",)}, "b"),
        ({"tags": ("new",)}, "b"),
        ({"ssd": ("true",), "arch": ("arm64",)}, "a"),
    ):
        assert placed(ask(nodes(host_selector=selector), at=lab)) == [(where,)]
    answer = ask(nodes(host_selector={"arch": ("arm64",), "rack": ("8",)}), at=lab)
    assert isinstance(answer, Never)
    assert sum(r.host_count for r in verdict(answer).reasons if r.code is ReasonCode.SELECTOR) == 4


def test_an_image_for_another_architecture_keeps_hosts_out_that_say_theirs() -> None:
    lab = pool(
        hosts=[host("a", attributes={"arch": "arm64"}), host("b", memory=1024)],
        images={"deb": {"arch": "x86_64"}, "any": {}},
    )
    assert placed(ask(nodes(image="deb"), at=lab)) == [("b",)]
    assert placed(ask(nodes(memory=2048, image="any"), at=lab)) == [("a",)]
    answer = ask(nodes(memory=2048, image="deb"), at=lab)
    assert isinstance(answer, Never)
    assert reason(verdict(answer), ReasonCode.IMAGE_MISMATCH).host_count == 1


def test_a_pinned_node_goes_to_its_disk_and_an_excluded_host_is_left_out() -> None:
    lab = pool()
    assert placed(ask(nodes(pinned_host="lab-2"), at=lab)) == [("lab-2",)]
    assert placed(ask(nodes(excluded_hosts=frozenset({"lab-1"})), at=lab)) == [("lab-2",)]
    occupy(lab, "lab-2", 4096, end=NOW + HOUR)
    answer = ask(nodes(pinned_host="lab-2"), at=lab)
    assert isinstance(answer, NotNow)
    assert answer.earliest == NOW + HOUR
    assert reason(verdict(answer, on="lab-1"), ReasonCode.DISK_ELSEWHERE)
    assert isinstance(ask(nodes(pinned_host="gone"), at=lab), Never)


def test_the_same_question_gets_the_same_answer_and_changes_nothing() -> None:
    lab = pool()
    occupy(lab, "lab-1", 3000, end=NOW + HOUR)
    before = [slot for name in lab.slots.hosts for slot in lab.slots.slots(name)]
    for wanted in (nodes(2), nodes(9)):
        first = ask(wanted, at=lab)
        assert first == ask(wanted, at=lab, window=AT_ONCE)
    assert [slot for name in lab.slots.hosts for slot in lab.slots.slots(name)] == before
