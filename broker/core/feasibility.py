"""Which hosts may take which node set, and how much room each has: one pool's share of a request as arrays.

Resource checks and rules are masks over all hosts; nothing here loops over hosts. It decides about single
hosts only; how a group lies on them is arrange.py's business.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from msgspec import Struct
from msgspec.structs import replace
from numpy.typing import NDArray

from broker.core.answers import ReasonCode
from broker.core.demand import Placement, SetRequest
from broker.core.inventory import BoolArray, FloatArray, PoolSnapshot, as_texts
from broker.core.slots import POOL_ROW, Rows, to_us
from broker.core.sweep import IntArray

MEMORY = "memory"
ADDRESS_PREFIX = "address:"
_IMAGE_ATTRIBUTES = ("arch", "hypervisor")

FULLNESS, OPENING = 0.1, 0.3
"""How much filling the fullest host, and not opening an empty one, weigh beside the shape of what is left."""

HostRows: TypeAlias = NDArray[np.intp]
"""Hosts, as rows of the inventory."""

TINY = 1e-12

CASES_KEPT = 1_024
"""Cases remembered with one inventory."""


def held_amounts(snapshot: PoolSnapshot, wanted: SetRequest) -> tuple[dict[str, int], dict[str, int]]:
    """Return what one node of the set holds: (of its host, of the pool). Exactly these amounts are planned
    with.
    """
    host: dict[str, int] = {}
    pool: dict[str, int] = {}
    for name, amount in wanted.amounts.items():
        (pool if name in snapshot.pool_totals else host)[name] = amount
    if snapshot.memory_overhead:
        side = pool if MEMORY in snapshot.pool_totals else host
        side[MEMORY] = side.get(MEMORY, 0) + snapshot.memory_overhead
    for network, addresses in wanted.networks.items():
        pool[ADDRESS_PREFIX + network] = addresses
    return (
        {name: amount for name, amount in host.items() if amount},
        {name: amount for name, amount in pool.items() if amount},
    )


class Rule(Struct, frozen=True, kw_only=True):
    """Hosts that a rule of the request keeps from a set, whatever their room; waiting never lifts it."""

    code: ReasonCode
    barred: BoolArray
    message: str


class Room(Struct, frozen=True, kw_only=True):
    """What is free: of each host, and of the pool."""

    host: IntArray  # (resources of the case, hosts)
    pool: Sequence[int]
    usable: BoolArray | None  # None: every host


class Case(Struct, frozen=True, kw_only=True, eq=False):
    """The sets of one request that go to one pool, and what they need there.

    Resources are those the sets need; arrays have a row a resource and a column a host.
    """

    snapshot: PoolSnapshot
    indices: tuple[int, ...]  # of the sets in the request
    sets: tuple[SetRequest, ...]
    counts: tuple[int, ...]  # full counts
    least: tuple[int, ...]  # least counts
    resources: tuple[str, ...]
    pool_resources: tuple[str, ...]
    needs: list[list[int]]  # needs[s][r]: what one node of set s holds of a host
    asked: list[IntArray]  # asked[s]: needs[s] as a column
    pool_needs: list[list[int]]  # pool_needs[s][p]: what it holds of the pool
    one_per_host: list[bool]
    rules: list[list[Rule]]
    allowed: list[BoolArray | None]
    total: IntArray
    unheld: IntArray  # what would be free if no slot were held
    per_unit: FloatArray  # 1 / total, 1 where total is 0
    usable: BoolArray | None
    rows: Rows  # where the slot table keeps the hosts
    held_in: Rows  # and the resources
    pool_held_in: list[int]

    @property
    def pool(self) -> str:
        """The pool's name."""
        return self.snapshot.name

    def room(self, start: int, end: int) -> Room:
        """Return what is free throughout `[start, end)` in microseconds."""
        return self.room_beside(self.snapshot.slots.peak_us(start, end, to_us(self.snapshot.now)))

    def room_beside(self, held: IntArray) -> Room:
        """Return what is free beside what the slot table says is held: (its resources, its hosts)."""
        snapshot, rows = self.snapshot, self.rows
        pool_row = snapshot.slots.host_row(POOL_ROW)
        return Room(
            host=self.unheld - held[self.held_in][:, rows],
            pool=[
                self.pool_total(name) - snapshot.pool_foreign.get(name, 0) - int(held[column, pool_row])
                for name, column in zip(self.pool_resources, self.pool_held_in, strict=True)
            ],
            usable=self.usable,
        )

    def empty_room(self) -> Room:
        """Return what would be free with every host enabled, answering and empty, strangers' VMs gone."""
        return Room(host=self.total, pool=[self.pool_total(name) for name in self.pool_resources], usable=None)

    def pool_total(self, name: str) -> int:
        """The pool's total of a resource of its own; addresses of a network nobody counts never run out."""
        unlimited = 1 << 62 if name.startswith(ADDRESS_PREFIX) else 0
        return self.snapshot.pool_totals.get(name, unlimited)

    def mask(self, room: Room, index: int) -> BoolArray | None:
        """Return the hosts that may take a node of the set, room aside; None: all of them."""
        allowed = self.allowed[index]
        if allowed is None or room.usable is None:
            return room.usable if allowed is None else allowed
        return allowed & room.usable

    def fitting(self, room: Room, index: int) -> BoolArray:
        """Return the hosts that can take one node of the set."""
        fits = self.mask(room, index)
        for free, need in zip(room.host, self.needs[index], strict=True):
            if need:
                enough = free >= need
                fits = enough if fits is None else fits & enough
        return np.ones(len(self.snapshot.hosts.names), dtype=np.bool_) if fits is None else fits

    def capacity(self, room: Room, index: int, limit: int) -> IntArray:
        """Return how many nodes of the set each host could take by itself, at most `limit`."""
        fits = self.fitting(room, index)
        most = fits.astype(np.int64)
        if limit > 1 and not self.one_per_host[index]:
            hosts = np.flatnonzero(fits)
            most[hosts] = self.capacity_of(room, index, limit, hosts)
        return most * min(limit, 1)

    def capacity_of(self, room: Room, index: int, limit: int, hosts: HostRows) -> IntArray:
        """Return the `capacity` of some hosts that take a node of the set; `limit` is at least 1."""
        if self.one_per_host[index] or limit == 1:
            return np.ones(len(hosts), dtype=np.int64)
        most = np.full(len(hosts), limit, dtype=np.int64)
        for free, need in zip(room.host, self.needs[index], strict=True):
            if need:
                np.minimum(most, free.take(hosts) // need, out=most)
        return most

    def tightness(self, room: Room, index: int, hosts: HostRows | None = None) -> FloatArray:
        """Return the share left free on the tightest resource of each host, or of some, once one node of the set is on
        it; below 0 where it lacks room.
        """
        return self._tightest(index, (_of(room.host, hosts) - self.asked[index]) * _of(self.per_unit, hosts))

    def waste(self, room: Room, index: int, hosts: HostRows | None = None) -> FloatArray:
        """Return how badly each host, or each of some, would be filled by one node of the set: the least is the best.

        What a node leaves behind is worth most where it has the shape of what is asked: cpu without memory serves
        nobody. So hosts go by the angle between the two (cosine squared, as in vector bin packing by dot product:
        Panigrahy et al. 2011), and fuller ones before emptier ones. Where an empty host would have to be taken for it,
        a host in use has the advantage: see `opening`. The weights were fitted to drawn instances, see
        docs/performance.md.
        """
        asked, per_unit = self.asked[index], _of(self.per_unit, hosts)
        left = (_of(room.host, hosts) - asked) * per_unit  # shares of each total, once a node is on it
        shares = per_unit * asked  # and what the node takes
        alike: FloatArray = np.add.reduce(left * shares, axis=0)
        alike *= alike
        length = np.add.reduce(left * left, axis=0)
        length *= np.add.reduce(shares * shares, axis=0)
        # A host that is filled to the last has nothing left that could be wasted: that is as good as it gets.
        alike += TINY
        length += TINY
        alike /= length
        waste = FULLNESS * self._tightest(index, left)
        waste -= alike
        return waste

    def opening(self, room: Room, hosts: HostRows | None = None) -> FloatArray:
        """Return what it adds to the `waste` of each host, or of some, that it is empty."""
        empty = np.logical_and.reduce(_of(room.host, hosts) >= _of(self.total, hosts), axis=0)
        opening: FloatArray = OPENING * empty
        return opening

    def _tightest(self, index: int, left: FloatArray) -> FloatArray:
        needs = self.needs[index]
        rows = left if all(needs) else left[[row for row, need in enumerate(needs) if need]]
        tightest: FloatArray = np.minimum.reduce(rows, axis=0) if len(rows) else np.zeros(left.shape[1])
        return tightest


def _of(table: NDArray[Any], hosts: HostRows | None) -> NDArray[Any]:
    """The columns of some hosts; None: of all."""
    return table if hosts is None else table.take(hosts, axis=1)


def case_of(snapshot: PoolSnapshot, indices: Sequence[int], sets: tuple[SetRequest, ...]) -> Case:
    """Return the case of some sets of a request, by `indices`, in a pool.

    What does not change from one instant to the next is worked out once for the same sets (the very same values) and
    remembered with the pool's inventory.
    """
    known = snapshot.cases.get(tuple(map(id, sets)))
    if known is None or not _same_pool(known.snapshot, snapshot):
        if len(snapshot.cases) >= CASES_KEPT:
            snapshot.cases.clear()
        known = snapshot.cases[tuple(map(id, sets))] = _new_case(snapshot, sets)  # it keeps the sets, and so their ids
    return replace(known, snapshot=snapshot, indices=tuple(indices))


def _same_pool(one: PoolSnapshot, other: PoolSnapshot) -> bool:
    """Whether two snapshots differ in nothing that a case is made from."""
    return (
        one.hosts is other.hosts
        and one.slots is other.slots
        and one.images is other.images
        and one.pool_totals is other.pool_totals
        and one.memory_overhead == other.memory_overhead
        and one.policy is other.policy
    )


def _new_case(snapshot: PoolSnapshot, sets: tuple[SetRequest, ...]) -> Case:
    held = [held_amounts(snapshot, wanted) for wanted in sets]
    resources = tuple(dict.fromkeys(name for host, _ in held for name in host))
    pool_resources = tuple(dict.fromkeys(name for _, pool in held for name in pool))
    rules = [_rules(snapshot, wanted) for wanted in sets]
    hosts, slots = snapshot.hosts, snapshot.slots
    columns = [hosts.columns.get(name, -1) for name in resources]
    needs = [[host.get(name, 0) for name in resources] for host, _ in held]
    return Case(
        snapshot=snapshot,
        indices=(),
        sets=sets,
        counts=tuple(wanted.count for wanted in sets),
        least=tuple(wanted.least for wanted in sets),
        resources=resources,
        pool_resources=pool_resources,
        needs=needs,
        asked=[np.array(need, dtype=np.int64).reshape(-1, 1) for need in needs],
        pool_needs=[[pool.get(name, 0) for name in pool_resources] for _, pool in held],
        one_per_host=[(wanted.placement or snapshot.policy) is Placement.ONE_PER_HOST for wanted in sets],
        rules=rules,
        allowed=[_allowed(of_set) for of_set in rules],
        total=_rows(hosts.total, columns, 0),
        unheld=_rows(hosts.room, columns, 0),
        per_unit=_rows(hosts.per_unit, columns, 1.0),
        usable=None if hosts.usable.all() else hosts.usable,
        rows=slots.rows_of(hosts.names),
        # A name the slot table has not met gets a place that holds nothing.
        held_in=_as_rows([slots.column(name) for name in resources]),
        pool_held_in=[slots.column(name) for name in pool_resources],
    )


def _rows(table: NDArray[Any], rows: Sequence[int], unknown: float) -> Any:
    """Some rows of a table; -1: one that is not there, all `unknown`. Not copied if they follow each other."""
    if -1 not in rows:
        return table[_as_rows(rows)]
    chosen = np.full((len(rows), table.shape[1]), unknown, dtype=table.dtype)
    known = [at for at, row in enumerate(rows) if row >= 0]
    chosen[known] = table[[rows[at] for at in known]]
    return chosen


def _as_rows(rows: Sequence[int]) -> Rows:
    """These rows as an index, and as a slice if they follow each other."""
    if rows and list(rows) == list(range(rows[0], rows[0] + len(rows))):
        return slice(rows[0], rows[0] + len(rows))
    return np.array(rows, dtype=np.intp)


def _rules(snapshot: PoolSnapshot, wanted: SetRequest) -> list[Rule]:
    hosts = snapshot.hosts
    rules: list[Rule] = []

    def bar(code: ReasonCode, barred: BoolArray, message: str) -> None:
        if barred.any():
            rules.append(Rule(code=code, barred=barred, message=message))

    if wanted.pinned_host is not None:
        elsewhere = ~hosts.among([wanted.pinned_host])
        bar(ReasonCode.DISK_ELSEWHERE, elsewhere, f"the node's disk lies on host {wanted.pinned_host}")
    if wanted.excluded_hosts:
        barred = hosts.among(wanted.excluded_hosts)
        bar(ReasonCode.PLACEMENT_RULE, barred, "the request excludes this host")
    for attribute, values in wanted.host_selector.items():
        asked = " or ".join(values)
        bar(ReasonCode.SELECTOR, ~hosts.having(attribute, values), f"{attribute} {asked} asked")
    image = (snapshot.images or {}).get(wanted.image or "", {})
    for attribute in _IMAGE_ATTRIBUTES:
        if attribute in image:
            texts = as_texts(image[attribute])
            wrong = hosts.carrying(attribute) & ~hosts.having(attribute, texts)
            made_for = " or ".join(sorted(texts))
            bar(ReasonCode.IMAGE_MISMATCH, wrong, f"image {wanted.image} is for {attribute} {made_for}")
    return rules


def _allowed(rules: Sequence[Rule]) -> BoolArray | None:
    if not rules:
        return None
    barred = rules[0].barred
    for rule in rules[1:]:
        barred = barred | rule.barred
    return ~barred
