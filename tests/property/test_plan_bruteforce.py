"""`plan` against brute force on small pools: it finds what exists, and never claims what does not.

Two generators. Fragmented pools are made from a placement, with room for little else, so that it exists by
construction and first-fit misses it often; at least a third must be so. Pools in time have slots that end
and start, strangers, cordoned hosts, two pools and sets that name one; there the oracle tries every
instant.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import cache
from unittest.mock import patch

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from broker.core import search
from broker.core.placement import (
    HostInventory,
    HostRecord,
    HostState,
    Never,
    NotNow,
    Outcome,
    Placement,
    PlacementRequest,
    Plan,
    PoolSnapshot,
    ReasonCode,
    SetRequest,
    Window,
    held_amounts,
    plan,
)
from broker.core.slots import POOL_ROW, SlotTable

EPOCH = datetime(2026, 5, 4, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)
RESOURCES = ("cpu", "memory")
HORIZON = 14  # microseconds within which everything known begins and ends

Amounts = tuple[int, ...]


def at(instant: int) -> datetime:
    return EPOCH + instant * MICROSECOND


@cache
def exists(free: tuple[Amounts, ...], nodes: tuple[tuple[Amounts, frozenset[int], int], ...]) -> bool:
    """Try every host for every node: (amounts, hosts allowed, set if one per host, else -1)."""
    if not nodes:
        return True
    (amounts, allowed, rule), rest = nodes[0], nodes[1:]
    for host in sorted(allowed):
        left = tuple(have - take if take else have for have, take in zip(free[host], amounts, strict=True))
        if any(have < 0 for have, take in zip(left, amounts, strict=True) if take):
            continue
        others = tuple((a, hosts - {host} if rule >= 0 and r == rule else hosts, r) for a, hosts, r in rest)
        if exists((*free[:host], left, *free[host + 1 :]), others):
            return True
    return False


def first_fit(free: Sequence[Amounts], nodes: Sequence[Amounts]) -> bool:
    """Each node in the order given, on the first host by name that has room."""
    left = [list(row) for row in free]
    for node in nodes:
        for row in left:
            if all(have >= take for have, take in zip(row, node, strict=True)):
                for r, take in enumerate(node):
                    row[r] -= take
                break
        else:
            return False
    return True


# Fragmented pools ---------------------------------------------------------------------------------------------


@st.composite
def fragmented(draw: st.DrawFn) -> tuple[list[Amounts], list[tuple[Amounts, int]]]:
    """Draw hosts' free room, and sets as (amounts, count), such that some placement of all nodes exists."""
    kinds = draw(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=2, max_size=4, unique=True))
    hosts = [
        draw(st.lists(st.integers(0, len(kinds) - 1), min_size=1, max_size=3)) for _ in range(draw(st.integers(2, 3)))
    ]
    slack = draw(st.integers(0, 1))
    free = [tuple(sum(kinds[k][r] for k in on_host) + slack for r in range(len(RESOURCES))) for on_host in hosts]
    counts = Counter(itertools.chain.from_iterable(hosts))
    # Small nodes first and the roomiest host first in name order: what first-fit likes least.
    sets: list[tuple[Amounts, int]] = sorted((kinds[k], count) for k, count in counts.items())
    return sorted(free, reverse=True), sets


def fragmented_pool(free: Sequence[Amounts], policy: Placement, taken: int) -> PoolSnapshot:
    """Hosts larger than their free room: the rest is held by open-ended slots and a little by strangers."""
    table = SlotTable(RESOURCES)
    hosts: list[HostRecord] = []
    for number, row in enumerate(free):
        name = f"h{number}"
        total = {resource: amount + taken for resource, amount in zip(RESOURCES, row, strict=True)}
        hosts.append(HostRecord(name=name, total=total, foreign=dict.fromkeys(RESOURCES, 1)))
        if taken > 1:
            table.hold(("other", number, "node"), name, dict.fromkeys(RESOURCES, taken - 1), at(-3), None)
    return PoolSnapshot(name="p", hosts=HostInventory.build(hosts), slots=table, now=at(0), policy=policy)


def test_plan_finds_what_first_fit_misses(capsys: pytest.CaptureFixture[str]) -> None:
    """On pools with just enough room the placement that exists is found; one node more is judged as by
    force.
    """
    seen: Counter[str] = Counter()

    @settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(
        case=fragmented(),
        policy=st.sampled_from([Placement.PACK, Placement.SPREAD]),
        more=st.booleans(),
        taken=st.sampled_from([1, 20]),
        wheel=st.sampled_from([0, search.WHEEL_ROUNDS]),
    )
    def check(
        case: tuple[list[Amounts], list[tuple[Amounts, int]]],
        policy: Placement,
        more: bool,
        taken: int,
        wheel: int,
    ) -> None:
        free, sets = case
        pool = fragmented_pool(free, policy, taken)
        window = Window(start=at(0), duration=5 * MICROSECOND, immediate=True)
        nodes = [kind for kind, count in sets for _ in range(count)]
        seen["pools"] += 1
        seen["first-fit fails, a placement exists"] += not first_fit(free, nodes)
        seen["largest-first fails too"] += not first_fit(free, nodes) and not first_fit(
            free, sorted(nodes, reverse=True)
        )
        if more:
            sets = [(kind, count + (position == 0)) for position, (kind, count) in enumerate(sets)]
        request = PlacementRequest(
            sets=tuple(
                SetRequest(name=f"s{i}", count=count, amounts=dict(zip(RESOURCES, kind, strict=True)))
                for i, (kind, count) in enumerate(sets)
            )
        )
        with patch.object(search, "WHEEL_ROUNDS", wheel):  # 0: the exact search is on its own
            answer = plan(request, {"p": pool}, window)
        everywhere = frozenset(range(len(free)))
        asked = tuple((kind, everywhere, -1) for kind, count in sets for _ in range(count))
        if isinstance(answer, Plan):
            seen[Outcome.FITS] += 1
            for number, row in enumerate(free):
                for r in range(len(RESOURCES)):
                    taken = sum(
                        assignment.hosts.count(f"h{number}") * sets[assignment.set_index][0][r]
                        for assignment in answer.assignments
                    )
                    assert taken <= row[r]
            assert [len(assignment.hosts) for assignment in answer.assignments] == [c for _, c in sets]
        else:
            assert not exists(tuple(free), asked)
            roomy = tuple(tuple(amount + taken for amount in row) for row in free)
            assert isinstance(answer, NotNow) == exists(roomy, asked)
            seen[Outcome.NOT_NOW if isinstance(answer, NotNow) else Outcome.NEVER] += 1
            assert isinstance(answer, Never) or answer.earliest is None  # nothing held here has an end

    check()
    missed = seen["first-fit fails, a placement exists"] / seen["pools"]
    with capsys.disabled():
        print("\nfragmented pools:", ", ".join(f"{name} {n / seen['pools']:.0%}" for name, n in seen.items()))
    assert missed >= 1 / 3
    assert seen["largest-first fails too"] > 0


# Pools in time ------------------------------------------------------------------------------------------------


@st.composite
def pools_in_time(draw: st.DrawFn, name: str) -> PoolSnapshot:
    """Draw a pool with slots that are open-ended, overdue, running or yet to start."""
    hosts = [
        HostRecord(
            name=f"{name}{number}",
            total={"cpu": draw(st.integers(3, 8)), "memory": draw(st.integers(3, 8))},
            foreign={"cpu": draw(st.sampled_from([0, 0, 0, 1]))},
            state=draw(st.sampled_from([HostState.ACTIVE, HostState.ACTIVE, HostState.ACTIVE, HostState.LOST])),
        )
        for number in range(draw(st.integers(1, 3)))
    ]
    table = SlotTable()
    for number in range(draw(st.integers(0, 7))):
        start = draw(st.integers(-4, HORIZON - 4))
        end = draw(st.one_of(st.none(), st.integers(start + 1, HORIZON))) if draw(st.booleans()) else start + 3
        table.hold(
            ("other", number, "node"),
            draw(st.sampled_from([*(host.name for host in hosts), POOL_ROW])),
            {"cpu": draw(st.integers(1, 3)), "memory": draw(st.integers(0, 3)), "address:lan": 1},
            at(start),
            None if end is None else at(end),
        )
    return PoolSnapshot(
        name=name,
        hosts=HostInventory.build(hosts),
        slots=table,
        now=at(0),
        pool_totals={"address:lan": draw(st.integers(2, 9))},
        memory_overhead=draw(st.sampled_from([0, 0, 1])),
        policy=draw(st.sampled_from([Placement.PACK, Placement.SPREAD, *Placement])),
        capabilities=frozenset({"ADVANCE_RESERVATION"}),
        preference=draw(st.integers(0, 1)),
    )


@st.composite
def requests(draw: st.DrawFn) -> PlacementRequest:
    """Draw up to three sets of at most six nodes in all."""
    sets: list[SetRequest] = []
    left = 6
    for number in range(draw(st.integers(1, 3))):
        count = draw(st.integers(1, max(1, min(3, left - 2))))
        left -= count
        sets.append(
            SetRequest(
                name=f"s{number}",
                count=count,
                min_count=draw(st.sampled_from([0, 0, 1, count])),
                amounts={"cpu": draw(st.integers(0, 3)), "memory": draw(st.integers(0, 3))},
                pool=draw(st.sampled_from([None, None, None, "p", "q"])),
                networks={"lan": draw(st.sampled_from([0, 1]))},
                placement=draw(st.sampled_from([None, None, None, *Placement])),
                excluded_hosts=draw(st.sampled_from([frozenset(), frozenset(), frozenset({"p0", "q1"})])),
            )
        )
    return PlacementRequest(sets=tuple(sets), pool=draw(st.sampled_from([None, None, "p", "q"])))


class Oracle:
    """Answers by looking at every instant, every route, every count and every host."""

    def __init__(self, request: PlacementRequest, pools: Mapping[str, PoolSnapshot], length: int | None) -> None:
        self.request, self.pools, self.length = request, pools, length
        self.slots = {
            (pool.name, host): [(dict(slot.amounts), slot.start, slot.end) for slot in pool.slots.slots(host)]
            for pool in pools.values()
            for host in (*pool.hosts.names, POOL_ROW)
        }

    def held(self, pool: str, host: str, resource: str, start: int) -> int:
        """The peak over the lease; past the horizon nothing changes any more."""
        end = HORIZON + 2 if self.length is None else start + self.length
        return max(
            sum(
                amounts.get(resource, 0)
                for amounts, begin, finish in self.slots[pool, host]
                if begin <= at(instant) and (finish is None or at(instant) < finish or instant <= 0)
            )
            for instant in range(start, max(end, start + 1))
        )

    def routes(self) -> list[tuple[str, ...]]:
        """A pool for each set."""
        sets = self.request.sets
        free = sorted(self.pools) if self.request.pool is None else [self.request.pool]
        return list(dict.fromkeys(tuple(wanted.pool or pool for wanted in sets) for pool in free))

    def fits(self, route: Sequence[str], counts: Sequence[int], start: int | None) -> bool:
        """Whether exactly these counts fit from `start` on; None: on the empty pool."""
        return all(self._pool_fits(pool, route, counts, start) for pool in set(route))

    def _pool_fits(self, name: str, route: Sequence[str], counts: Sequence[int], start: int | None) -> bool:
        pool = self.pools[name]
        inventory = pool.hosts
        free: list[Amounts] = []
        for row, host in enumerate(inventory.names):
            amounts = []
            for resource in RESOURCES:
                column = inventory.columns[resource]
                have = int(inventory.total[column, row])
                if start is not None:
                    have -= int(inventory.foreign[column, row]) + self.held(name, host, resource, start)
                amounts.append(have)
            free.append(tuple(amounts))
        addresses = pool.pool_totals["address:lan"]
        if start is not None:
            addresses -= self.held(name, POOL_ROW, "address:lan", start)
        nodes = []
        asked = 0
        for number, (wanted, count) in enumerate(zip(self.request.sets, counts, strict=True)):
            if route[number] != name:
                continue
            on_host, of_pool = held_amounts(pool, wanted)
            asked += of_pool.get("address:lan", 0) * count
            allowed = frozenset(
                row
                for row, host in enumerate(inventory.names)
                if host not in wanted.excluded_hosts and (start is None or inventory.usable[row])
            )
            alone = (wanted.placement or pool.policy) is Placement.ONE_PER_HOST
            node = (
                tuple(on_host.get(resource, 0) for resource in RESOURCES),
                allowed,
                number if alone else -1,
            )
            nodes.extend([node] * count)
        return (asked == 0 or asked <= addresses) and exists(tuple(free), tuple(nodes))

    def least(self) -> list[int]:
        return [wanted.least for wanted in self.request.sets]

    def full(self) -> list[int]:
        return [wanted.count for wanted in self.request.sets]

    def earliest(self, start: int) -> int | None:
        """The first instant at which some route takes the least counts."""
        for instant in range(start, HORIZON + 2):
            if any(self.fits(route, self.least(), instant) for route in self.routes()):
                return instant
        return None


def check_plan(answer: Plan, oracle: Oracle, start: int) -> None:
    """The plan's hosts take what they are given, its counts cannot be raised, and full beats less."""
    sets = oracle.request.sets
    route = [assignment.pool for assignment in answer.assignments]
    assert tuple(route) in oracle.routes()
    counts = [len(assignment.hosts) for assignment in answer.assignments]
    for wanted, count in zip(sets, counts, strict=True):
        assert wanted.least <= count <= wanted.count
    for name in set(route):
        pool = oracle.pools[name]
        taken: Counter[tuple[str, str]] = Counter()
        for wanted, assignment in zip(sets, answer.assignments, strict=True):
            if assignment.pool != name:
                continue
            on_host, of_pool = held_amounts(pool, wanted)
            if (wanted.placement or pool.policy) is Placement.ONE_PER_HOST:
                assert len(set(assignment.hosts)) == len(assignment.hosts)
            for host in assignment.hosts:
                row = pool.hosts.rows[host]
                assert pool.hosts.usable[row]
                assert host not in wanted.excluded_hosts
                taken.update({(host, resource): amount for resource, amount in on_host.items()})
                taken.update({(POOL_ROW, resource): amount for resource, amount in of_pool.items()})
        for (host, resource), amount in taken.items():
            if host == POOL_ROW:
                most = pool.pool_totals[resource]
            else:
                column, row = pool.hosts.columns[resource], pool.hosts.rows[host]
                most = int(pool.hosts.room[column, row])
            assert amount + oracle.held(name, host, resource, start) <= most
    for position, wanted in enumerate(sets):
        if counts[position] < wanted.count:
            raised = [*counts[:position], counts[position] + 1, *counts[position + 1 :]]
            assert not oracle.fits(route, raised, start)
    full_somewhere = any(oracle.fits(other, oracle.full(), start) for other in oracle.routes())
    assert answer.full == (counts == oracle.full())
    assert answer.full or not full_somewhere


def test_plan_agrees_with_brute_force_in_time(capsys: pytest.CaptureFixture[str]) -> None:
    """Outcome, earliest start, counts and hosts, over one or two pools, fixed starts and windows."""
    seen: Counter[str] = Counter()

    @settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(
        request=requests(),
        first=pools_in_time("p"),
        second=pools_in_time("q"),
        start=st.integers(0, 6),
        length=st.one_of(st.none(), st.integers(1, 6)),
        slack=st.sampled_from([0, 0, 3, HORIZON]),
        wheel=st.sampled_from([0, search.WHEEL_ROUNDS]),
    )
    def check(
        request: PlacementRequest,
        first: PoolSnapshot,
        second: PoolSnapshot,
        start: int,
        length: int | None,
        slack: int,
        wheel: int,
    ) -> None:
        pools = {"p": first, "q": second}
        oracle = Oracle(request, pools, length)
        window = Window(
            start=at(start),
            duration=None if length is None else length * MICROSECOND,
            open_ended=length is None,
            latest_start=at(start + slack) if slack else None,
        )
        with patch.object(search, "WHEEL_ROUNDS", wheel):
            answer = plan(request, pools, window)
            assert answer == plan(request, pools, window)
        earliest = oracle.earliest(start)
        if isinstance(answer, Plan):
            seen[Outcome.FITS] += 1
            begin = (answer.start - EPOCH) // MICROSECOND
            assert start <= begin <= start + slack
            assert answer.end == (None if length is None else answer.start + length * MICROSECOND)
            # Preference may choose a pool with a later start, so only one pool pins the start down.
            if len(oracle.routes()) == 1:
                assert begin == earliest
            else:
                assert earliest is not None
                assert earliest <= begin
            if slack == 0 or len(oracle.routes()) == 1:
                check_plan(answer, oracle, begin)
            return
        assert earliest is None or earliest > start + slack
        could = any(oracle.fits(route, oracle.least(), None) for route in oracle.routes())
        assert isinstance(answer, NotNow) == could
        codes = {reason.code for verdict in answer.verdicts for reason in verdict.reasons}
        assert ReasonCode.SEARCH_LIMIT not in codes
        if isinstance(answer, NotNow):
            seen[Outcome.NOT_NOW] += 1
            seen["earliest known"] += answer.earliest is not None
            assert answer.earliest == (None if earliest is None else at(earliest))
        else:
            seen[Outcome.NEVER] += 1

    check()
    total = seen[Outcome.FITS] + seen[Outcome.NOT_NOW] + seen[Outcome.NEVER]
    with capsys.disabled():
        print("\npools in time:", ", ".join(f"{name} {n / total:.0%}" for name, n in sorted(seen.items())))
    assert min(seen[outcome] for outcome in Outcome) >= total / 20
    assert seen["earliest known"] > 0
