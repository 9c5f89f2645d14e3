"""Orders in which workspaces are tried, and all as one request: whose node goes where, and when there is none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from broker.core.model import NodeSet, State, Terms, Workspace
from broker.core.placement import Placement, PlacementRequest, Plan, SetRequest, Window, plan
from broker.together import MOST_ORDERS, Member, as_one, one_by_one
from tests.support.placement_cases import AT_ONCE, HOUR, NOW, host, nodes, pool


def member(*sets: SetRequest, window: Window = AT_ONCE, **request: Any) -> Member:
    """A workspace of these sets in the one pool."""
    workspace = Workspace(
        uid="u",
        tenant="t",
        id="w",
        create_time=NOW,
        node_sets=(NodeSet(),),
        terms=Terms(),
        state=State.PENDING,
        nodes=(),
    )
    return Member(workspace=workspace, request=PlacementRequest(sets=sets, **request), window=window)


def tried(members: Sequence[Member], outcomes: dict[tuple[int, ...], int | None], other: int | None) -> Any:
    """The orders that are tried, as places in the list; `other`: where those fail that are not named."""
    orders: list[tuple[int, ...]] = []

    def attempt(order: Sequence[Member]) -> int | None:
        orders.append(tuple(next(at for at, each in enumerate(members) if each is one) for one in order))
        return outcomes.get(orders[-1], other)

    return one_by_one(members, attempt), orders


THREE = [member(nodes(memory=memory)) for memory in (1024, 4096, 2048)]


def test_as_added_then_the_largest_first_then_whoever_did_not_fit() -> None:
    done, orders = tried(THREE, {(2, 0, 1): None}, 2)
    assert done
    assert orders == [(0, 1, 2), (1, 2, 0), (2, 0, 1)]


def test_what_does_not_fit_by_itself_ends_it() -> None:
    assert tried(THREE, {(0, 1, 2): 1}, 0) == (False, [(0, 1, 2), (1, 2, 0)])


def test_every_order_of_a_few_is_tried_once_and_of_equal_ones_one_is_enough() -> None:
    done, orders = tried(THREE, {}, 1)
    assert not done
    assert sorted(orders) == sorted({*orders})
    assert len(orders) == 6
    equal = [member(nodes(memory=1024)) for _ in range(32)]
    assert tried(equal, {}, 5) == (False, [tuple(range(32))])


def test_the_number_of_orders_is_bounded() -> None:
    different = [member(nodes(memory=1024 + number)) for number in range(8)]
    assert len(tried(different, {}, 1)[1]) == MOST_ORDERS
    searched = [member(*[nodes(memory=1024 + number)] * 8) for number in range(2)]
    assert len(tried([*different, *searched], {}, 1)[1]) == 2


def test_equal_sets_are_one_and_parted_again() -> None:
    members = [member(nodes(2, 1024, name="a"), nodes(1, 4096)), member(nodes(3, 1024, name="b"))]
    common = as_one(members, {"lab": pool()})
    assert common is not None
    assert [(each.count, each.amounts["memory"]) for each in common.request.sets] == [(5, 1024), (1, 4096)]


def test_rules_among_the_nodes_of_a_set_and_least_counts_keep_it_whole() -> None:
    alone = nodes(2, placement=Placement.ONE_PER_HOST)
    few = nodes(4, min_count=1)
    common = as_one([member(alone), member(alone), member(few), member(few)], {"lab": pool()})
    assert common is not None
    assert [each.count for each in common.request.sets] == [2, 2, 4, 4]
    assert [each.min_count for each in common.request.sets] == [0, 0, 1, 1]


def test_only_what_asks_for_the_very_same_is_one_request() -> None:
    two = {name: pool(name) for name in ("one", "two")}
    first, other = member(nodes(), pool="one"), member(nodes(), pool="two")
    assert as_one([first, other], two) is not None
    later = replace(AT_ONCE, start=NOW + HOUR, immediate=False)
    window = replace(later, latest_start=NOW + 2 * HOUR)
    unset = replace(AT_ONCE, duration=None)
    assert as_one([first, replace(other, window=later)], two) is None
    assert as_one([replace(each, window=window) for each in (first, other)], two) is None  # each may start by itself
    assert as_one([first, member(nodes())], two) is None  # which pool is open
    assert as_one([first, member(nodes(), pool="two", capabilities=frozenset({"PAUSE"}))], two) is None
    assert as_one([first, member(nodes(), pool="one", capabilities=frozenset({"PAUSE"}))], two) is not None
    defaults = {**two, "two": replace(two["two"], default_duration=timedelta(hours=3))}
    assert as_one([replace(each, window=unset) for each in (first, other)], two) is not None
    assert as_one([replace(each, window=unset) for each in (first, other)], defaults) is None


SETS = st.builds(
    nodes,
    st.integers(1, 3),
    st.sampled_from([512, 1024, 2048]),
    min_count=st.sampled_from([0, 1]),
    placement=st.sampled_from([None, Placement.SPREAD, Placement.ONE_PER_HOST]),
)


@given(st.lists(st.lists(SETS, min_size=1, max_size=2), min_size=1, max_size=4))
def test_everybody_gets_what_it_asked_for_and_no_host_is_over_its_capacity(wanted: list[list[SetRequest]]) -> None:
    there = {"lab": pool(hosts=[host("a"), host("b"), host("c", memory=8192)])}
    members = [member(*sets) for sets in wanted]
    common = as_one(members, there)
    assert common is not None
    answer = plan(common.request, there, common.window)
    if not isinstance(answer, Plan):
        return
    taken: Counter[str] = Counter()
    parts = common.parted(answer)
    assert len(parts) == len(members)
    for own, part in zip(members, parts, strict=True):
        assert [each.set_index for each in part.assignments] == list(range(len(own.request.sets)))
        for each, assignment in zip(own.request.sets, part.assignments, strict=True):
            assert each.least <= len(assignment.hosts) <= each.count
            if each.placement is Placement.ONE_PER_HOST:
                assert len({*assignment.hosts}) == len(assignment.hosts)
            for name in assignment.hosts:
                taken[name] += each.amounts["memory"]
    assert all(taken[name] <= most for name, most in (("a", 4096), ("b", 4096), ("c", 8192)))
