"""Who has to give way, against brute force on small pools (tests/support/preemption_oracle.py).

Drawn are leases of all kinds in up to two pools, within what there is, and a request for now or for later.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from itertools import chain, combinations
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from backends.base import Action
from broker import preempting as preempting_module
from broker.config import ServerSettings, Settings
from broker.core.model import NodeSet, State, Terms, Workspace
from broker.core.placement import PoolSnapshot, fits
from broker.core.slots import Slot
from broker.metrics import Metrics
from broker.placing import placed, snapshots
from broker.policies import Policies
from broker.preempting import MadeRoom, Preempting
from tests.support.preemption_cases import (
    ADDRESS,
    INSTANT,
    MINUTE,
    NOW,
    POOL_NAMES,
    Case,
    inventories,
    leases,
    pool_settings,
    requests,
    windows,
)
from tests.support.preemption_oracle import Oracle, over
from tests.support.still_broker import Still


@st.composite
def cases(draw: st.DrawFn) -> Case:
    names = draw(POOL_NAMES)
    found = {
        name: draw(inventories(name, 3 - 2 * (len(names) > 1) + (name == "p" and len(names) > 1))) for name in names
    }
    hosts = [(name, host.name) for name in names for host in found[name].hosts]
    case = Case(
        settings={name: draw(pool_settings(name)) for name in names},
        inventories=found,
        measured=draw(st.booleans()),
        records=(),
        request=draw(requests(names)),
        window=draw(windows()),
    )
    assume(Oracle(case).first_start(frozenset(), NOW, case.window, prepared_from=NOW) is not None)
    records: list[Workspace] = []
    crowd = draw(st.booleans())
    for number in range(draw(st.sampled_from([8, 8, 12, 4]))):
        lease = draw(leases(number, hosts, crowd))
        if len(records) < 8 and not over(case, [*records, lease]):
            records.append(lease)
    return Case(**{**vars(case), "records": tuple(records)})


def photographed(still: Still) -> dict[str, tuple[dict[object, Slot], list[Any]]]:
    """Every slot, and what they add up to over every interval that matters."""
    instants = [NOW + minutes * MINUTE for minutes in range(14)]
    intervals = chain(combinations(instants, 2), ((instant, None) for instant in instants))
    asked = list(intervals)
    return {
        name: (
            {slot.key: slot for slot in still.book.slots[name].all()},
            [still.book.slots[name].peak(start, end, NOW).copy() for start, end in asked],
        )
        for name in still.pools
    }


def same(one: Mapping[str, tuple[Any, list[Any]]], other: Mapping[str, tuple[Any, list[Any]]]) -> bool:
    return all(
        one[name][0] == other[name][0]
        and all(
            # columns and rows that were only asked about hold nothing
            np.array_equal(before, after[: before.shape[0], : before.shape[1]]) and after.sum() == before.sum()
            for before, after in zip(one[name][1], other[name][1], strict=True)
        )
        for name in one
    )


def check_promised(case: Case, still: Still, preempting: Preempting, made: MadeRoom, seen: Any) -> None:
    """Once written down, nothing is promised twice, and everyone is told in time."""
    draft = Workspace(
        uid="new",
        tenant="t",
        id="new",
        create_time=NOW,
        node_sets=tuple(
            NodeSet(
                name=each.name,
                count=each.count,
                min_count=each.min_count,
                amounts=dict(each.amounts),
                placement=each.placement,
                pool=each.pool or "",
            )
            for each in case.request.sets
        ),
        terms=Terms(),
        state=State.PENDING,
        nodes=(),
    )
    reserved = placed(draft, made.plan, seen, NOW, reserved=True)
    # addresses are asked for in placement's terms here, not through interfaces
    wanted = {
        node.index: {ADDRESS: 1} if case.request.sets[node.set_index].networks["lan"] else {} for node in reserved.nodes
    }
    reserved = replace(reserved, nodes=tuple(replace(node, pool_held=wanted[node.index]) for node in reserved.nodes))
    with still.book.transaction() as tx:
        tx.put(preempting.promise(tx, made, reserved, NOW))
    after = list(still.book.workspaces.values())
    new = replace(still.book.workspaces["new"], start_time=made.plan.prepare)
    # Who has to let go now does so before the other begins: until then both are there.
    assert not (wrong := over(case, [*(each for each in after if each.uid != "new"), new], NOW + INSTANT)), wrong
    for victim in made.victims:
        told = still.book.workspaces[victim.uid].preemption
        assert told is not None
        assert told.free_time == made.plan.prepare
        assert told.begin_time == max(NOW, told.free_time - case.suspending(victim))
        assert told.begin_time - told.notice_time >= case.needs(victim) - case.suspending(victim)
        assert told.notice_time >= NOW


def test_victims_agree_with_brute_force(capsys: pytest.CaptureFixture[str]) -> None:
    """A plan with victims there is where some set of the preemptible would do and none is needed; it is the set that
    is preferred, none of it can be spared, and asking leaves no trace."""
    seen: Counter[str] = Counter()

    @settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(case=cases(), first_asked=st.sampled_from([1, 2, 16]))
    def check(case: Case, first_asked: int) -> None:
        still = Still(
            NOW, {name: (case.settings[name], case.inventories[name]) for name in case.settings}, case.records
        )
        try:
            with patch.object(preempting_module, "FIRST_ASKED", first_asked):
                look(case, still, seen)
        finally:
            still.close()

    check()
    with capsys.disabled():
        print("\npreemption:", ", ".join(f"{name} {times}" for name, times in sorted(seen.items())))
    wanted = ["one gives way", "two give way", "three or more give way", "another set would do", "nobody could"]
    wanted += [
        "would fit anyway",
        "for now",
        "for later",
        "in a window",
        "a group",
        "has to wait for the notice",
        "in two pools",
    ]
    assert not (missing := [name for name in wanted if not seen[name]]), missing


def look(case: Case, still: Still, seen: Counter[str]) -> None:
    """One case."""
    if case.measured:
        for name, pool in still.pools.items():
            for _ in range(10):
                pool.durations.note(Action.SUSPEND_RELEASE, case.settings[name].suspend_lead)
    policies = Policies(Settings(server=ServerSettings(), pools=case.settings), Metrics())
    preempting = Preempting(still.book, still.pools, still.clock, policies)
    pools: dict[str, PoolSnapshot] = snapshots(still.pools.values(), NOW)
    before = photographed(still)
    made = preempting.room_for(case.request, pools, case.window, NOW)
    assert same(before, photographed(still)), "asking has left a trace in the slot tables"
    oracle = Oracle(case)
    anyway = oracle.first_start(frozenset(), NOW, case.window, prepared_from=NOW)
    assert (fits(case.request, pools, case.window) is None) == (anyway is None), "the oracle and placement differ"
    if anyway is not None:
        seen["would fit anyway"] += 1
        return  # nobody asks for victims then
    expected = oracle.answer()
    if expected is None:
        seen["nobody could"] += 1
        assert made is None, f"{[each.uid for each in made.victims]} give way, and need not or cannot"
        return
    assert made is not None, f"{expected.victims} could give way"
    assert all(each.terms.preemptible for each in made.victims)
    taken = [each.uid for each in made.victims]
    for spared in taken:
        rest = frozenset(taken) - {spared}
        without = oracle.first_start(rest, expected.free, expected.window, prepared_from=expected.free)
        assert without is None, f"{spared} of {taken} gives way and need not"
    assert taken == expected.victims
    assert made.plan.start == expected.start
    seen[("one gives way", "two give way", "three or more give way")[min(len(taken), 3) - 1]] += 1
    seen["another set would do"] += expected.several
    seen["for now"] += case.window.immediate
    seen["for later"] += not case.window.immediate and case.window.latest_start is None
    seen["in a window"] += case.window.latest_start is not None
    seen["a group"] += sum(len(each.hosts) for each in made.plan.assignments) > 1
    seen["has to wait for the notice"] += case.window.immediate and made.plan.start > NOW
    seen["in two pools"] += len({node.pool for each in made.victims for node in each.nodes}) > 1
    check_promised(case, still, preempting, made, pools)
