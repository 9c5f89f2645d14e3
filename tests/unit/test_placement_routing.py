"""Which pool: named, best, or none of them and why."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from broker.core.placement import (
    HostInventory,
    Never,
    NotNow,
    Outcome,
    Plan,
    PoolSnapshot,
    ReasonCode,
    Window,
)
from tests.support.placement_cases import HOUR, NOW, ask, host, nodes, occupy, placed, pool, reason, verdict


def where(answer: Plan | NotNow | Never) -> list[str]:
    """The pool of each set of what must be a plan."""
    assert isinstance(answer, Plan), answer
    return [assignment.pool for assignment in answer.assignments]


def test_a_request_that_names_a_pool_goes_there_or_nowhere() -> None:
    pools = [pool("a", preference=9), pool("b")]
    assert where(ask(nodes(), at=pools, pool="b")) == ["b"]
    occupy(pools[1], "b-1", 4096, end=None)
    occupy(pools[1], "b-2", 4096, end=None)
    answer = ask(nodes(), at=pools, pool="b")
    assert isinstance(answer, NotNow)
    assert {v.pool for v in answer.verdicts} == {"b"}
    with pytest.raises(KeyError):
        ask(nodes(), at=pools, pool="c")


def test_full_count_then_preference_then_room_then_name() -> None:
    small = pool("a", hosts=[host("a1", memory=2048)], preference=5)
    tight = pool("b", hosts=[host("b1", memory=4096)], preference=1)
    roomy = pool("c", hosts=[host("c1", memory=8192)], preference=1)
    twin = pool("d", hosts=[host("d1", memory=8192)], preference=1)
    pools = [twin, roomy, tight, small]
    assert where(ask(nodes(2), at=pools)) == ["a"]  # preference beats room
    assert where(ask(nodes(3, min_count=1), at=pools)) == ["c"]  # the full count beats preference
    assert where(ask(nodes(9, min_count=1), at=pools)) == ["a"]  # nobody takes it in full
    assert where(ask(nodes(), at=[twin, roomy, tight])) == ["c"]  # room, then name
    assert where(ask(nodes(), at=[twin, tight])) == ["d"]


def test_room_is_measured_on_the_tightest_resource_after_placement() -> None:
    lopsided = pool("a", hosts=[host("a1", memory=1 << 20, cpu=1000)])
    even = pool("b", hosts=[host("b1", memory=4096, cpu=4000)])
    answer = ask(nodes(memory=1024, cpu=800), at=[lopsided, even])
    assert where(answer) == ["b"]
    assert isinstance(answer, Plan)
    assert answer.score == pytest.approx(0.75)
    assert verdict(answer, "a").score == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("change", "code", "outcome", "resolvable"),
    [
        ({"draining": True}, ReasonCode.POOL_DRAINING, Outcome.NOT_NOW, False),
        ({"reachable": False}, ReasonCode.POOL_UNREACHABLE, Outcome.NOT_NOW, True),
        ({"ever_read": False}, ReasonCode.POOL_UNREACHABLE, Outcome.NOT_NOW, True),
        ({"capabilities": frozenset()}, ReasonCode.CAPABILITY, Outcome.NEVER, False),
        ({"parameters": frozenset()}, ReasonCode.PARAMETER, Outcome.NEVER, False),
        ({"images": {}}, ReasonCode.IMAGE_MISSING, Outcome.NEVER, False),
        ({"networks": frozenset()}, ReasonCode.NETWORK_MISSING, Outcome.NEVER, False),
        ({"max_duration": HOUR / 2}, ReasonCode.LEASE_TOO_LONG, Outcome.NEVER, False),
    ],
)
def test_a_pool_that_cannot_is_skipped_and_says_why(
    change: dict[str, Any], code: ReasonCode, outcome: Outcome, resolvable: bool
) -> None:
    good = pool(
        "a",
        capabilities=frozenset({"PAUSE"}),
        parameters=frozenset({"xen:mode"}),
        images={"deb": {}},
        networks=frozenset({"lan"}),
        preference=9,
    )
    bad: PoolSnapshot = replace(good, **change)
    other = replace(pool("b"), capabilities=good.capabilities, parameters=good.parameters)
    wanted = nodes(image="deb", networks={"lan": 1})
    needs: dict[str, Any] = {
        "capabilities": frozenset({"PAUSE"}),
        "parameters": frozenset({"xen:mode", "core:any"}),
    }
    assert where(ask(wanted, at=[good, other], **needs)) == ["a"]
    routed = ask(wanted, at=[bad, other], **needs)
    assert where(routed) == ["b"]
    for answer in (routed, ask(wanted, at=[bad], **needs)):
        judged = verdict(answer, "a")
        assert judged.outcome is outcome
        assert reason(judged, code).resolvable is resolvable
        assert judged.earliest is None
    assert isinstance(ask(wanted, at=[bad], **needs), Never if outcome is Outcome.NEVER else NotNow)


def test_a_forbidden_pool_is_never_and_a_draining_one_may_be_never_by_its_size() -> None:
    answer = ask(nodes(), at=pool(), allowed_pools=frozenset({"other"}))
    assert isinstance(answer, Never)
    assert reason(verdict(answer), ReasonCode.POOL_FORBIDDEN)
    assert isinstance(ask(nodes(), at=pool(), allowed_pools=frozenset({"lab"})), Plan)
    assert isinstance(ask(nodes(memory=9999), at=pool(draining=True)), Never)


def test_a_refusal_has_a_verdict_for_every_pool_and_the_least_of_their_times() -> None:
    never = pool("a", hosts=[host("a1", memory=512)])
    later, sooner = pool("b", hosts=[host("b1")]), pool("c", hosts=[host("c1")])
    occupy(later, "b1", 4096, end=NOW + 5 * HOUR)
    occupy(sooner, "c1", 4096, end=NOW + 2 * HOUR)
    answer = ask(nodes(), at=[never, later, sooner])
    assert isinstance(answer, NotNow)
    assert answer.earliest == NOW + 2 * HOUR
    outcomes = {v.pool: (v.outcome, v.earliest) for v in answer.verdicts if v.host is None}
    assert outcomes == {
        "a": (Outcome.NEVER, None),
        "b": (Outcome.NOT_NOW, NOW + 5 * HOUR),
        "c": (Outcome.NOT_NOW, NOW + 2 * HOUR),
    }
    assert isinstance(ask(nodes(), at=[never]), Never)


def test_sets_that_name_pools_are_one_plan_all_or_nothing() -> None:
    xen, one = pool("xen", hosts=[host("x1")]), pool("one", hosts=[host("o1"), host("o2")])
    head, workers = nodes(name="head", pool="xen"), nodes(2, memory=4096, name="worker", pool="one")
    answer = ask(head, workers, at=[xen, one])
    assert where(answer) == ["xen", "one"]
    assert placed(answer) == [("x1",), ("o1", "o2")]
    assert isinstance(answer, Plan)
    assert set(answer.generations) == {"xen", "one"}
    occupy(one, "o1", 1024, end=NOW + 2 * HOUR)
    occupy(xen, "x1", 1024, end=NOW + 5 * HOUR)
    refused = ask(head, workers, at=[xen, one])
    assert isinstance(refused, NotNow)
    assert refused.earliest == NOW + 2 * HOUR
    assert verdict(refused, "xen").outcome is Outcome.FITS
    assert verdict(refused, "one").outcome is Outcome.NOT_NOW
    never = ask(head, replace(workers, count=3), at=[xen, one])
    assert isinstance(never, Never)


def test_pools_of_one_plan_start_together_once_each_of_them_has_room() -> None:
    """Each is free at some time; both at once only later."""
    a, b = pool("a", hosts=[host("a1")]), pool("b", hosts=[host("b1")])
    occupy(a, "a1", 4096, end=NOW + HOUR)
    occupy(b, "b1", 4096, start=NOW + HOUR, end=NOW + 3 * HOUR)
    answer = ask(nodes(pool="a"), nodes(pool="b"), at=[a, b])
    assert isinstance(answer, NotNow)
    assert answer.earliest == NOW + 3 * HOUR


def test_sets_without_a_pool_stay_together_also_beside_one_that_names_it() -> None:
    small, large = pool("a", hosts=[host("a1")], preference=9), pool("b", hosts=[host("b1"), host("b2")])
    assert where(ask(nodes(memory=3000), nodes(memory=3000), at=[small, large])) == ["b", "b"]
    # In pool a the named set leaves too little room for the other, so that goes to b.
    answer = ask(nodes(memory=3000, pool="a"), nodes(memory=3000), at=[small, large])
    assert where(answer) == ["a", "b"]
    assert where(ask(nodes(memory=1000, pool="a"), nodes(memory=3000), at=[small, large])) == ["a", "a"]


def test_a_lease_over_several_pools_lasts_the_least_of_their_defaults() -> None:
    a, b, c = pool("a", default_duration=3 * HOUR), pool("b", default_duration=2 * HOUR), pool("c")
    answer = ask(nodes(pool="a"), nodes(pool="b"), nodes(pool="c"), at=[a, b, c], window=Window(start=NOW))
    assert isinstance(answer, Plan)
    assert answer.end == NOW + 2 * HOUR


def test_a_pool_in_several_routes_is_judged_with_all_the_sets_it_would_take() -> None:
    """The named set alone fits in pool b; together with the one that names no pool it does not."""
    a, b = pool("a", hosts=[host("a1", memory=512)]), pool("b", hosts=[host("b1")])
    answer = ask(nodes(memory=3000, pool="b"), nodes(memory=3000), at=[a, b])
    assert isinstance(answer, Never)
    assert verdict(answer, "a").outcome is Outcome.NEVER
    assert verdict(answer, "b").outcome is Outcome.NEVER


def test_a_pool_without_hosts_never_fits() -> None:
    empty = replace(pool("a"), hosts=HostInventory.build([]))
    for wanted in ([nodes()], [nodes(3)], [nodes(2), nodes(memory=5)]):
        answer = ask(*wanted, at=empty)
        assert isinstance(answer, Never)
        assert verdict(answer, "a").nodes_fit == 0
    assert where(ask(nodes(), at=[empty, pool("b")])) == ["b"]
