"""The work of placement: bounded where it searches, and the same number of Python steps for 50 hosts or
2,000.
"""

from __future__ import annotations

import random
import sys
from collections import Counter
from types import FrameType
from typing import Any

import pytest

from broker.core.feasibility import case_of
from broker.core.placement import HostRecord, NotNow, Placement, Plan, PoolSnapshot, ReasonCode, SetRequest, Window
from broker.core.search import Budget, SearchLimit, search
from broker.core.slots import Slot, to_us
from broker.core.timing import MAX_STARTS
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


def exact_puzzle(seed: int, size: int, kinds: int, slack: int) -> tuple[list[HostRecord], list[SetRequest]]:
    """Hosts with just the room for some placement of `size` nodes, and the nodes as sets."""
    rng = random.Random(seed)
    sizes = [(rng.randrange(2, 30), rng.randrange(2, 30)) for _ in range(kinds)]
    hosts: list[HostRecord] = []
    counts: Counter[int] = Counter()
    while (missing := size - sum(counts.values())) > 0:
        on_host = [rng.randrange(kinds) for _ in range(min(missing, rng.randrange(1, 5)))]
        counts.update(on_host)
        cpu, memory = (sum(sizes[kind][r] for kind in on_host) + rng.randrange(slack + 1) for r in range(2))
        hosts.append(host(f"h{len(hosts):02d}", cpu=cpu, memory=memory))
    sets = [nodes(n, cpu=sizes[kind][0], memory=sizes[kind][1]) for kind, n in sorted(counts.items())]
    return hosts, sets


@pytest.mark.parametrize("slack", [0, 1, 3, 8])
@pytest.mark.parametrize("seed", range(5))
def test_eight_sizes_and_64_nodes_are_placed_where_they_just_fit(seed: int, slack: int) -> None:
    hosts, sets = exact_puzzle(seed, 64, 8, slack)
    lab = pool(hosts=hosts)
    answer = ask(*sets, at=lab)
    used: Counter[tuple[str, str]] = Counter()
    for wanted, where in zip(sets, placed(answer), strict=True):
        assert len(where) == wanted.count
        for name in where:
            used.update({(name, resource): amount for resource, amount in wanted.amounts.items()})
    for (name, resource), amount in used.items():
        assert amount <= lab.hosts.total[lab.hosts.columns[resource], lab.hosts.rows[name]]


def test_a_bound_that_is_hit_is_told_and_never_called_never() -> None:
    hosts, sets = exact_puzzle(1, 24, 6, 2)
    lab = pool(hosts=hosts)
    assert isinstance(ask(*sets, at=lab), Plan)
    for item in hosts:
        occupy(lab, item.name, 0, end=NOW + HOUR)
    answer = ask(*sets, at=lab, search_limit=3)
    assert isinstance(answer, NotNow)
    assert answer.earliest is None
    limit = reason(verdict(answer), ReasonCode.SEARCH_LIMIT)
    assert limit.resolvable


def test_no_later_start_is_called_the_earliest_while_the_first_is_undecided() -> None:
    """In an hour a large host is free and the question easy; but perhaps it would have fitted now."""
    hosts, sets = exact_puzzle(1, 24, 6, 2)
    lab = pool(hosts=[*hosts, host("large", memory=10_000, cpu=10_000)])
    occupy(lab, "large", 10_000, end=NOW + HOUR, cpu=10_000)
    answer = ask(*sets, at=lab, search_limit=3)
    assert isinstance(answer, NotNow)
    assert answer.earliest is None
    assert reason(verdict(answer), ReasonCode.SEARCH_LIMIT)
    later = ask(*sets, at=lab, search_limit=3, window=Window(start=NOW + 2 * HOUR, duration=HOUR))
    assert isinstance(later, Plan)


def test_the_bound_on_starts_tried_is_told_too() -> None:
    """A long lease beside a chain of short reservations: every gap must be tried."""
    lab = pool(hosts=[host("a")])
    occupy(lab, "a", 4096, end=NOW + HOUR)
    for number in range(1, MAX_STARTS + 20):
        occupy(lab, "a", 4096, start=NOW + (2 * number) * HOUR, end=NOW + (2 * number + 1) * HOUR)
    answer = ask(nodes(), at=lab, window=Window(start=NOW, duration=3 * HOUR))
    assert isinstance(answer, NotNow)
    assert answer.earliest is None
    assert reason(verdict(answer), ReasonCode.SEARCH_LIMIT)
    within = ask(nodes(), at=lab, window=Window(start=NOW, duration=HOUR))
    assert isinstance(within, NotNow)
    assert within.earliest == NOW + HOUR


def test_two_sets_alike_under_one_per_host_share_hosts_but_are_not_one_set() -> None:
    found = search(
        needs=[[1], [1]],
        counts=[2, 2],
        free=[[2], [2]],
        most=[[1, 1], [1, 1]],
        one_per_host=[True, True],
        budget=Budget(),
    )
    assert found == [(1, 1), (1, 1)]


def test_the_exact_search_goes_back_when_its_first_choices_lead_nowhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without the quick heuristic: 5 + 4 comes first, but only 5 + 3 + 2 and 4 + 3 + 3 fill both."""
    monkeypatch.setattr("broker.core.search.WHEEL_ROUNDS", 0)
    options: dict[str, Any] = {
        "needs": [[5], [4], [3], [2]],
        "counts": [1, 1, 3, 1],
        "most": [[2, 2, 3, 5], [2, 2, 3, 5]],
        "one_per_host": [False] * 4,
    }
    found = search(free=[[10], [10]], budget=Budget(), **options)
    assert found is not None
    assert sorted(found) == [(0, 1, 2, 0), (1, 0, 1, 1)]
    with pytest.raises(SearchLimit):
        search(free=[[10], [10]], budget=Budget(1), **options)
    assert search(free=[[10], [9]], budget=Budget(), **options) is None


@pytest.mark.parametrize("policy", [Placement.PACK, Placement.SPREAD])
@pytest.mark.parametrize("taken", [0, 1, 3])  # nodes a host, at most: from an empty pool to a nearly full one
def test_one_node_goes_where_a_ranking_of_all_hosts_says(policy: Placement, taken: int) -> None:
    rng = random.Random(taken)
    for _ in range(60):
        lab = pool(
            hosts=[
                host(f"h{n:02d}", cpu=rng.choice([4, 8]) * 1000, memory=rng.choice([4, 8]) * 1024) for n in range(20)
            ],
            policy=policy,
        )
        for name in lab.hosts.names:
            for _ in range(rng.randrange(taken + 1)):
                occupy(lab, name, rng.randrange(1, 5) * 512, end=NOW + HOUR, cpu=rng.randrange(1, 5) * 500)
        wanted = nodes(cpu=rng.randrange(1, 4) * 1000, memory=rng.randrange(1, 4) * 1024)
        case = case_of(lab, [0], (wanted,))
        room = case.room(to_us(NOW), to_us(NOW + HOUR))
        ranks = case.waste(room, 0) + case.opening(room) if policy is Placement.PACK else -case.tightness(room, 0)
        able = [row for row in range(20) if case.fitting(room, 0)[row]]
        best = min(able, key=lambda row: (ranks[row], row))
        assert placed(ask(wanted, at=lab)) == [(lab.hosts.names[best],)]


def large_pool(hosts: int, slots_a_host: int, *, full: bool = False) -> PoolSnapshot:
    """A pool with leases that end one after another."""
    room = 0 if full else 2048
    lab = pool(
        hosts=[
            host(f"h{number:05d}", memory=1024 * slots_a_host + room + number % 7 * 100, cpu=200_000)
            for number in range(hosts)
        ]
    )
    lab.slots.advance(NOW)
    lab.slots.hold_all(
        Slot(
            key=(f"w{number}", place, "node"),
            host=f"h{number:05d}",
            amounts={"memory": 1024, "cpu": 1000},
            start=NOW - HOUR,
            end=NOW + (1 + (number * 7 + place) % 500) * HOUR,
        )
        for number in range(hosts)
        for place in range(slots_a_host)
    )
    return lab


def lines_run(lab: PoolSnapshot, *wanted: SetRequest, window: Window = AT_ONCE) -> int:
    """Count the lines of Python one plan runs, when it was asked before and the table has changed since."""
    count = 0

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal count
        count += event == "line"
        return trace

    ask(*wanted, at=lab, window=window)
    changed = lab.slots.of_workspace("w7")
    lab.slots.release_workspace("w7")
    lab.slots.hold_all(changed)
    before = sys.gettrace()
    sys.settrace(trace)
    try:
        ask(*wanted, at=lab, window=window)
    finally:
        sys.settrace(before)
    return count


def reserve(lab: PoolSnapshot) -> PoolSnapshot:
    """A reservation on each host, following one that ends."""
    lab.slots.hold_all(
        Slot(
            key=(f"r{number}", 0, "node"),
            host=name,
            amounts={"memory": 1024, "cpu": 1000},
            start=NOW + (1 + number * 7 % 500) * HOUR,
            end=NOW + (21 + number * 7 % 500) * HOUR,
        )
        for number, name in enumerate(lab.hosts.names)
    )
    return lab


def test_no_python_loop_of_a_plan_in_the_future_runs_over_hosts() -> None:
    few, many = reserve(large_pool(60, 3)), reserve(large_pool(2000, 3))
    for window in (
        Window(start=NOW, duration=100 * HOUR, immediate=True),  # reservations begin within it
        Window(start=NOW + 9 * HOUR, duration=100 * HOUR),
        Window(start=NOW + 250 * HOUR, open_ended=True),
    ):
        assert isinstance(ask(nodes(8), at=many, window=window), Plan)
        assert lines_run(many, nodes(8), window=window) < 1.2 * lines_run(few, nodes(8), window=window)
    few, many = reserve(large_pool(60, 3, full=True)), reserve(large_pool(2000, 3, full=True))
    group, whenever = nodes(16, memory=2048), Window(start=NOW, duration=10 * HOUR, latest_start=NOW + 9999 * HOUR)
    assert isinstance(ask(group, at=many, window=whenever), Plan)
    assert lines_run(many, group, window=whenever) < 2 * lines_run(few, group, window=whenever)


def test_no_python_loop_of_the_request_path_runs_over_hosts() -> None:
    few, many = large_pool(60, 3), large_pool(2000, 3)
    for wanted in ([nodes(memory=1024)], [nodes(8, memory=1024)], [nodes(4), nodes(4, memory=512)]):
        assert isinstance(ask(*wanted, at=many), Plan)
        assert lines_run(many, *wanted) == lines_run(few, *wanted)
    few, many = large_pool(60, 3, full=True), large_pool(2000, 3, full=True)
    refused = nodes(memory=3000)
    assert isinstance(ask(refused, at=many), NotNow)
    # A refusal bisects over the ends and speaks of 50 hosts: a few more steps of bisection are all that may differ.
    assert lines_run(many, refused) < 1.5 * lines_run(few, refused)
