"""What tenants used lately: the closed form against sums over short times, half-lives, weights, restarts."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from backends.base import HostState, Inventory, ObservedHost
from broker.config import TenantSettings
from broker.core.fairness import DecayedUse
from broker.core.model import Node, NodeSet, State, Terms, Workspace
from broker.pool_settings import PoolSettings
from broker.tenant_use import TenantUse
from broker.tenants import Tenants
from tests.support.still_broker import Still

NOW = datetime(2026, 5, 4, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
HALF_LIFE = 8 * HOUR


def after(hours: float) -> datetime:
    return NOW + hours * HOUR


def added_up(held: list[tuple[float, float, float]], until: float) -> float:
    """Seconds of the whole capacity, each minute weighed by how long it is past: (from, to, share), in hours."""
    total = 0.0
    for start, end, share in held:
        minutes = round((end - start) * 60)
        for minute in range(minutes):
            middle = start + (minute + 0.5) / 60
            total += share * 60.0 * 0.5 ** ((until - middle) / (HALF_LIFE / HOUR))
    return total


histories = st.lists(st.tuples(st.sampled_from([0.0, 0.25, 1, 7.5, 24]), st.floats(0, 1)), min_size=1, max_size=8)
"""So long, so much."""


@settings(max_examples=60, deadline=None)
@given(history=histories, idle=st.sampled_from([0.0, 3.0, 40.0]))
def test_it_is_the_sum_of_what_was_held_each_minute_weighed_by_its_age(
    history: list[tuple[float, float]], idle: float
) -> None:
    use = DecayedUse(HALF_LIFE)
    held = []
    at = 0.0
    for hours, share in history:
        use.note("red", share, after(at))
        held.append((at, at + hours, share))
        at += hours
    use.note("red", 0.0, after(at))
    at += idle
    assert use.used("red", after(at)) == pytest.approx(added_up(held, at), rel=1e-5, abs=1e-6)


@settings(max_examples=60, deadline=None)
@given(history=histories, idle=st.sampled_from([0.0, 3.0]), running=st.booleans())
def test_what_is_told_afterwards_counts_the_same(
    history: list[tuple[float, float]], idle: float, running: bool
) -> None:
    """After a restart each record is told from its start to its end, in any order."""
    lived, told = DecayedUse(HALF_LIFE), DecayedUse(HALF_LIFE)
    at = 0.0
    spans = []
    for hours, share in history:
        lived.note("red", share, after(at))
        spans.append((share, after(at), after(at + hours)))
        at += hours
    last = 0.5 if running else 0.0
    lived.note("red", last, after(at))
    for share, start, end in reversed(spans):
        told.add("red", share, start, end, after(at))
    told.note("red", last, after(at))
    for later in (at, at + idle, at + idle + 1):
        assert told.used("red", after(later)) == pytest.approx(lived.used("red", after(later)), rel=1e-9, abs=1e-9)


def test_it_counts_half_after_each_half_life() -> None:
    use = DecayedUse(HALF_LIFE)
    use.note("red", 0.5, NOW)
    use.note("red", 0.0, after(1))
    first = use.used("red", after(1))
    assert 0 < first < 1800
    for times in range(1, 5):
        assert use.used("red", after(1) + times * HALF_LIFE) == pytest.approx(first / 2**times)


def test_who_holds_a_share_for_ever_comes_to_rest() -> None:
    """At the share, times the half-life over the logarithm of two; at half of that after one half-life."""
    use = DecayedUse(HALF_LIFE)
    use.note("red", 0.25, NOW)
    rest = 0.25 * HALF_LIFE.total_seconds() / 0.6931471805599453
    assert use.used("red", NOW + HALF_LIFE) == pytest.approx(rest / 2)
    assert use.used("red", NOW + 100 * HALF_LIFE) == pytest.approx(rest)


def test_tenants_have_accounts_of_their_own() -> None:
    use = DecayedUse(HALF_LIFE)
    use.note("red", 1.0, NOW)
    use.note("blue", 0.5, NOW)
    assert use.used("red", after(2)) == pytest.approx(2 * use.used("blue", after(2)))
    assert use.used("nobody", after(2)) == 0.0


def test_a_clock_that_steps_back_counts_nothing_twice() -> None:
    use = DecayedUse(HALF_LIFE)
    use.note("red", 1.0, NOW)
    at_one = use.used("red", after(1))
    use.note("red", 1.0, after(1))
    use.note("red", 1.0, after(-5))
    assert use.used("red", after(-5)) == pytest.approx(at_one)
    assert use.used("red", after(1)) == pytest.approx(at_one)


# In a broker


def lease(tenant: str, number: int, cpu: int, start: float, end: float | None, state: State) -> Workspace:
    """A lease of one node on the pool's host, that began and ended so many hours after now."""
    node = Node(index=0, set_index=0, pool="p", host="h", held={"cpu": cpu, "memory": 100}, pool_held={}, state=state)
    return Workspace(
        uid=f"{number}",
        tenant=tenant,
        id=f"w{number}",
        create_time=after(start),
        node_sets=(NodeSet(amounts=node.held),),
        terms=Terms(duration=100 * HOUR),
        state=state,
        nodes=(node,),
        pool="p",
        start_time=after(start),
        actual_start_time=after(start),
        end_time=after(start + 100),
        final_time=after(end) if end is not None else None,
    )


def tenant_use(records: list[Workspace]) -> tuple[Still, TenantUse]:
    host = ObservedHost(name="h", state=HostState.ACTIVE, total={"cpu": 4000, "memory": 1000})
    pool = PoolSettings(name="p", backend="simulator")
    still = Still(NOW, {"p": (pool, Inventory(hosts=(host,), nodes=()))}, records)
    tenants = Tenants(still.book, {"red": TenantSettings(name="red"), "blue": TenantSettings(name="blue", share=4)})
    return still, TenantUse(still.book, still.pools, still.clock, tenants, half_life=HALF_LIFE)


def test_a_tenant_of_four_times_the_weight_counts_a_fourth() -> None:
    still, use = tenant_use(
        [lease(tenant, at, 1000, -2, None, State.RUNNING) for at, tenant in enumerate(["red", "blue"])]
    )
    assert use.used("red", after(5)) == pytest.approx(4 * use.used("blue", after(5)))
    assert use.used("red", after(5)) > 0
    still.close()


def test_it_is_the_resource_of_which_most_is_held_that_counts() -> None:
    """1000 of 4000 cpu is more than 100 of 1000 memory, and 200 of 4000 cpu is less."""
    for cpu, share in ((1000, 0.25), (200, 0.1)):
        still, use = tenant_use([lease("red", 1, cpu, -3, -1, State.TERMINATED)])
        assert use.used("red", NOW) == pytest.approx(added_up([(-3, -1, share)], 0), rel=1e-5)
        still.close()


@pytest.mark.parametrize("first_asked", [0.0, 3.0])
def test_a_restart_changes_nothing_of_what_was_used(first_asked: float) -> None:
    """Made from the records it is what it was, and goes on from there, whenever the queue asks first."""
    records = [
        lease("red", 1, 1000, -9, -2, State.TERMINATED),
        lease("red", 2, 2000, -4, None, State.RUNNING),
        lease("red", 3, 3000, -1, None, State.PENDING),  # holds nothing, and never has
    ]
    records[2] = replace(records[2], actual_start_time=None, nodes=())
    still, use = tenant_use(records)
    for hours in (3.0, 6.0):
        expected = added_up([(-9, -2, 0.25), (-4, hours, 0.5)], hours)
        assert use.used("red", after(hours)) == pytest.approx(expected, rel=1e-5)
    still.close()
