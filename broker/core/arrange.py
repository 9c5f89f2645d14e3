"""How a group lies on the hosts of one pool: all nodes of all sets at once, or not at all.

One set: each host's own capacity decides exactly, and its policy picks the hosts by array operations.
Several sets: largest first, each by its policy; if that fails, an exact search (search.py) on the few hosts
that matter. So an answer "does not fit" is always exact, and only the search may give up, by `SearchLimit`.

With `min_count` the counts are the greatest in lexicographic order - earlier sets first - so that no set of
the answer can be raised by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np

from broker.core.demand import Placement
from broker.core.feasibility import Case, HostRows, Room
from broker.core.inventory import BoolArray, FloatArray, Undecided
from broker.core.search import Budget, SearchLimit, search

Arrangement: TypeAlias = list[HostRows]
"""For each set of a case: the host of each of its nodes, as a row of the inventory."""


def arrange(case: Case, room: Room, counts: Sequence[int], budget: Budget) -> Arrangement | None:
    """Return hosts for exactly `counts` nodes, or None if there is no way. Raises SearchLimit when
    undecided.
    """
    if not _pool_takes(case, room, counts):
        return None
    if len(counts) == 1:
        return _whole(_choose(case, room, 0, counts[0]), counts[0])
    placed = _largest_first(case, room, counts)
    if all(len(rows) == count for rows, count in zip(placed, counts, strict=True)):
        return placed
    return _exact(case, room, counts, budget)


def fits(case: Case, room: Room, counts: Sequence[int], budget: Budget) -> bool:
    """Return whether `arrange` finds hosts, without choosing any where that can be told. Raises SearchLimit."""
    if len(counts) > 1:
        return arrange(case, room, counts, budget) is not None
    if not _pool_takes(case, room, counts):
        return False
    taking = np.flatnonzero(case.fitting(room, 0))
    if len(taking) >= counts[0]:
        return True
    return int(case.capacity_of(room, 0, counts[0], taking).sum()) >= counts[0]


def arrange_most(case: Case, room: Room, budget: Budget) -> Arrangement | None:
    """Return hosts for as many nodes as fit between the sets' least and full counts, or None.

    Counts are lexicographically greatest. A step upwards that the search leaves undecided counts as not
    possible; only the least counts being undecided raises SearchLimit.
    """
    full, least = case.counts, case.least
    if full == least:
        return arrange(case, room, full, budget)
    try:
        placed = arrange(case, room, full, budget)
    except SearchLimit:
        placed = None
        budget = budget.renewed()
    if placed is not None:
        return placed
    if len(full) == 1:
        rows = _choose(case, room, 0, most_of_one(case, room))
        return [rows] if len(rows) >= least[0] else None
    placed = arrange(case, room, least, budget)
    if placed is None:
        return None
    counts = list(least)
    for index in range(len(counts)):
        low, high = counts[index], full[index]
        while low < high:
            middle = (low + high + 1) // 2
            trial = [*counts[:index], middle, *counts[index + 1 :]]
            try:
                better = arrange(case, room, trial, budget)
            except SearchLimit:
                better = None
            if better is None:
                high = middle - 1
            else:
                low, placed = middle, better
        counts[index] = low
    return placed


def most_of_one(case: Case, room: Room) -> int:
    """Return how many nodes of a case of one set fit at once, at most its full count."""
    want = case.counts[0]
    for free, need in zip(room.pool, case.pool_needs[0], strict=True):
        if need:
            want = min(want, max(0, free // need))
    return min(want, int(case.capacity(room, 0, want).sum())) if want else 0


def nodes_fit(case: Case, room: Room) -> int:
    """Return how many of the nodes asked for fit at once: exact for one set, else what largest-first
    finds.
    """
    if len(case.sets) == 1:
        return most_of_one(case, room)
    placed = _largest_first(case, room, case.counts)
    most = sum(len(rows) for rows in placed)
    for p, free in enumerate(room.pool):
        smallest = min((needs[p] for needs in case.pool_needs if needs[p]), default=0)
        if smallest and all(needs[p] for needs in case.pool_needs):
            most = min(most, max(0, free // smallest))
    return most


def _pool_takes(case: Case, room: Room, counts: Sequence[int]) -> bool:
    for p, free in enumerate(room.pool):
        asked = sum(count * needs[p] for count, needs in zip(counts, case.pool_needs, strict=True))
        if asked and asked > free:  # an overdrawn pool does not block those who ask nothing of it
            return False
    return True


def _whole(rows: HostRows, count: int) -> Arrangement | None:
    return [rows] if len(rows) == count else None


def _choose(case: Case, room: Room, index: int, count: int) -> HostRows:
    """Return hosts for up to `count` nodes of one set by its policy; fewer only if no more fit."""
    if count == 0:
        return np.empty(0, dtype=np.intp)
    policy = case.sets[index].placement or case.snapshot.policy
    if policy is Placement.ONE_PER_HOST and case.snapshot.policy is not Placement.ONE_PER_HOST:
        policy = case.snapshot.policy  # the rule says how many a host; the pool's policy, which hosts
    able = case.fitting(room, index)
    pack = policy is Placement.PACK
    own = case.snapshot.host_choice is not None and case.sets[index].placement in (None, Placement.ONE_PER_HOST)
    if count == 1 and not own:
        return _best(case, room, index, able, pack=pack)
    hosts = np.flatnonzero(able)
    if not len(hosts):
        return hosts
    ranks = _ranks(case, room, index, hosts) if own else None
    if ranks is None and pack:
        ranks = case.waste(room, index, hosts) + case.opening(room, hosts)
    elif ranks is None:
        ranks = -case.tightness(room, index, hosts)
    if count == 1:
        return hosts[[int(ranks.argmin())]]
    best_first = hosts[smallest(ranks, min(count, len(hosts)))]
    room_there = case.capacity_of(room, index, count, best_first)
    if pack:
        return np.repeat(best_first, room_there)[:count]
    # Level by level: every host gets its first node before any gets its second.
    chosen: list[HostRows] = []
    missing, level = count, 1
    while missing > 0:
        taking = best_first[room_there >= level][:missing]
        if not len(taking):
            break
        chosen.append(taking)
        missing -= len(taking)
        level += 1
    return np.concatenate(chosen) if chosen else np.empty(0, dtype=np.intp)


def _best(case: Case, room: Room, index: int, able: BoolArray, *, pack: bool) -> HostRows:
    """Return the host for one node by our own policies, out of those that are able; none if there are none."""
    number = np.count_nonzero(able)
    # To work it out for all hosts is quicker than to pick most of them out first.
    hosts = np.flatnonzero(able) if 2 * number <= len(able) else None
    if not number:
        return np.empty(0, dtype=np.intp)
    ranks = case.waste(room, index, hosts) if pack else -case.tightness(room, index, hosts)
    if hosts is None and number < len(able):
        ranks[~able] = np.inf
    best: HostRows = ranks.argmin(axis=0, keepdims=True)
    # That a host is empty only makes it worse, so who is best without that and is not empty stays the best.
    if pack and case.opening(room, best if hosts is None else hosts.take(best))[0]:
        best = (ranks + case.opening(room, hosts)).argmin(axis=0, keepdims=True)
    return best if hosts is None else hosts.take(best)


def _ranks(case: Case, room: Room, index: int, hosts: HostRows) -> FloatArray | None:
    """What the pool's own policy says of some hosts, the least of the best; None: it has no answer."""
    snapshot = case.snapshot
    assert snapshot.host_choice is not None
    left = {
        name: (free.take(hosts) - need) * per_unit.take(hosts)
        for name, free, need, per_unit in zip(case.resources, room.host, case.needs[index], case.per_unit, strict=True)
        if need
    }
    try:
        return snapshot.host_choice.rank([snapshot.hosts.names[row] for row in hosts.tolist()], left)
    except Undecided:
        return None


def smallest(key: FloatArray, count: int) -> HostRows:
    """Return the positions of the `count` smallest keys, ascending; equal keys by position, that is by
    name.
    """
    if count >= len(key):
        return np.argsort(key, kind="stable")
    if count == 0:
        return np.empty(0, dtype=np.intp)
    border = np.partition(key, count - 1)[count - 1]
    below = np.flatnonzero(key < border)
    level = np.flatnonzero(key == border)[: count - len(below)]
    found = np.sort(np.concatenate([below, level]))
    return found[np.argsort(key[found], kind="stable")]


def _largest_first(case: Case, room: Room, counts: Sequence[int]) -> Arrangement:
    """Place the sets one after another, the largest node first; a set that does not fit is placed as far as
    it does.
    """
    left = Room(host=room.host.copy(), pool=room.pool, usable=room.usable)
    placed: Arrangement = [np.empty(0, dtype=np.intp)] * len(counts)
    for index in _by_size(case):
        placed[index] = _choose(case, left, index, counts[index])
        _take(case, left, index, placed[index])
    return placed


def _by_size(case: Case) -> list[int]:
    """Sets by the largest share of the largest host that one node takes, ties in request order."""
    largest = [max(1, int(total.max(initial=0))) for total in case.total]
    size = [max((need / most for need, most in zip(needs, largest, strict=True)), default=0.0) for needs in case.needs]
    return sorted(range(len(size)), key=lambda index: (-size[index], index))


def _take(case: Case, room: Room, index: int, rows: HostRows) -> None:
    for free, need in zip(room.host, case.needs[index], strict=True):
        if need:
            np.subtract.at(free, rows, need)


def _exact(case: Case, room: Room, counts: Sequence[int], budget: Budget) -> Arrangement | None:
    """Search the hosts that matter.

    A set that fits on as many hosts as there are nodes to place can go last, one node on each host the
    others left alone, so it takes no part; this is repeated. Each set that remains fits on fewer hosts
    than there are nodes.
    """
    capacity = [case.capacity(room, index, sum(counts)) for index in range(len(counts))]
    for index, count in enumerate(counts):
        if int(capacity[index].sum()) < count:
            return None
    hard = [index for index in _by_size(case) if counts[index]]
    easy: list[int] = []
    while True:
        nodes = sum(counts[index] for index in hard)
        free_of_care = [index for index in hard if int((capacity[index] > 0).sum()) >= nodes]
        if not free_of_care:
            break
        easy.append(free_of_care[0])
        hard.remove(free_of_care[0])
    left = Room(host=room.host.copy(), pool=room.pool, usable=room.usable)
    placed: Arrangement = [np.empty(0, dtype=np.intp)] * len(counts)
    if hard:
        matter = np.flatnonzero(np.logical_or.reduce([capacity[index] > 0 for index in hard]))
        found = search(
            needs=[case.needs[index] for index in hard],
            counts=[counts[index] for index in hard],
            free=room.host[:, matter].T.tolist(),
            most=np.stack([capacity[index][matter] for index in hard], axis=1).tolist(),
            one_per_host=[case.one_per_host[index] for index in hard],
            budget=budget,
        )
        if found is None:
            return None
        for position, index in enumerate(hard):
            placed[index] = np.repeat(matter, [config[position] for config in found])
            _take(case, left, index, placed[index])
    for index in reversed(easy):
        placed[index] = _choose(case, left, index, counts[index])
        _take(case, left, index, placed[index])
    return placed


def sum_needed(case: Case, placed: Arrangement) -> tuple[list[int], list[int]]:
    """Return what an arrangement takes in all: (of the hosts, of the pool), by the case's resources."""
    host = [
        sum(len(rows) * needs[r] for rows, needs in zip(placed, case.needs, strict=True))
        for r in range(len(case.resources))
    ]
    pool = [
        sum(len(rows) * needs[p] for rows, needs in zip(placed, case.pool_needs, strict=True))
        for p in range(len(case.pool_resources))
    ]
    return host, pool


def score(case: Case, room: Room, placed: Arrangement) -> float:
    """Return the share left free on the pool's tightest resource after placement, 0 to 1.

    The tightest of those the request asks for, summed over the hosts that take nodes, and those of the
    pool itself.
    """
    host, pool = sum_needed(case, placed)
    best = 1.0
    for free, total, asked in zip(room.host, case.total, host, strict=True):
        if asked:
            if room.usable is None:
                have, most = float(np.maximum(free, 0).sum()), float(total.sum())
            else:
                have = float(np.maximum(free, 0).sum(where=room.usable))
                most = float(total.sum(where=room.usable))
            best = min(best, (have - asked) / most if most else 0.0)
    for name, free_of_pool, asked in zip(case.pool_resources, room.pool, pool, strict=True):
        if asked:
            best = min(best, (free_of_pool - asked) / max(1, case.pool_total(name)))
    return max(0.0, best)
