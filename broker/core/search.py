"""Exact search: can these nodes of several sizes lie on these hosts, all at once?

Bin completion (Martello and Toth 1990; Korf 2002) for vector bins of different sizes: hosts are taken one
after another, each is filled to a maximal configuration - if any placement exists, one exists in which no
node placed later would still fit - and what failed is remembered by (host, nodes left). Bounds on the rest
of the hosts cut early. Complete for any size of input within its `Budget`; meant for up to 8 distinct sizes
and 64 nodes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from broker.core.wheel import Configs, maximal_configs, squeaky_wheel

Config: TypeAlias = tuple[int, ...]
"""Nodes of each set on one host."""

SEARCH_LIMIT = 50_000
"""Default bound on the work of one question to one pool, in configurations looked at: about a second at
worst.
"""

WHEEL_ROUNDS = 300


class SearchLimit(Exception):
    """The bound on work was hit: neither found nor ruled out."""


@dataclass(slots=True)
class Budget:
    """Work one question may cost, and what is left of it."""

    limit: int = SEARCH_LIMIT
    left: int = -1

    def __post_init__(self) -> None:
        if self.left < 0:
            self.left = self.limit

    def spend(self) -> None:
        """Take one unit. Raises SearchLimit when none is left."""
        if self.left <= 0:
            raise SearchLimit
        self.left -= 1

    def renewed(self) -> Budget:
        """Return a full budget of the same size, for another question."""
        return Budget(self.limit)


@dataclass(slots=True)
class _Host:
    position: int  # in the caller's order
    free: tuple[int, ...]
    most: Config  # nodes of each kind it takes by itself
    configs: Configs | None  # all maximal ones; None: too many to list


def search(
    *,
    needs: Sequence[Sequence[int]],
    counts: Sequence[int],
    free: Sequence[Sequence[int]],
    most: Sequence[Sequence[int]],
    one_per_host: Sequence[bool],
    budget: Budget,
) -> list[Config] | None:
    """Return nodes of each set on each host, or None if there is no way. Raises SearchLimit.

    needs[s][r]: what a node of set s takes of resource r. free[h][r]: what host h has. most[h][s]: how
    many nodes of s host h takes by itself, rules included, and not cut to a count below the number of all
    nodes (1 under ONE_PER_HOST). Sets should come largest first.
    """
    kinds = _merge(needs, counts, most, one_per_host)
    kind_needs = [tuple(needs[members[0]]) for members in kinds]
    kind_counts = tuple(sum(counts[s] for s in members) for members in kinds)
    takes = [
        tuple(min(row[members[0]], count) for members, count in zip(kinds, kind_counts, strict=True)) for row in most
    ]
    hosts = _relevant(kind_needs, free, takes, sum(kind_counts))
    bounds = _Bounds(kind_needs, hosts)
    if not bounds.allow(0, kind_counts):
        return None
    found = _quickly(kind_needs, kind_counts, hosts, budget)
    if found is None:
        found = _descend(kind_needs, kind_counts, hosts, bounds, budget)
    if found is None:
        return None
    # Share each kind's nodes out to the sets merged into it.
    left = list(counts)
    answer = [[0] * len(counts) for _ in free]
    for host, config in zip(hosts, found, strict=False):
        for members, number in zip(kinds, config, strict=True):
            for s in members:
                given = min(number, left[s])
                answer[host.position][s] += given
                left[s] -= given
                number -= given
    return [tuple(row) for row in answer]


def _merge(
    needs: Sequence[Sequence[int]],
    counts: Sequence[int],
    most: Sequence[Sequence[int]],
    one_per_host: Sequence[bool],
) -> list[list[int]]:
    """Group sets whose nodes are alike: same needs, same hosts, no rule that tells them apart."""
    kinds: dict[tuple[object, ...], list[int]] = {}
    for s, need in enumerate(needs):
        where = tuple(row[s] > 0 for row in most)
        own = s if one_per_host[s] else -1
        kinds.setdefault((tuple(need), where, own), []).append(s)
    return list(kinds.values())


def _relevant(
    needs: Sequence[tuple[int, ...]], free: Sequence[Sequence[int]], most: Sequence[Config], nodes: int
) -> list[_Host]:
    """Hosts that take any node, those with the fewest choices first; of hosts alike, no more than there are
    nodes.
    """
    alike: dict[tuple[tuple[int, ...], Config], list[_Host]] = {}
    hosts: list[_Host] = []
    for position, (have, takes) in enumerate(zip(free, most, strict=True)):
        if not any(takes):
            continue
        room = tuple(max(0, amount) for amount in have)
        like = alike.setdefault((room, takes), [])
        if len(like) < nodes:
            configs = like[0].configs if like else maximal_configs(needs, room, takes)
            like.append(_Host(position=position, free=room, most=takes, configs=configs))
            hosts.append(like[-1])
    hosts.sort(key=lambda host: (sum(host.most), host.most, host.free, host.position))
    return hosts


def _quickly(
    needs: Sequence[tuple[int, ...]], counts: Config, hosts: Sequence[_Host], budget: Budget
) -> list[Config] | None:
    """Try to find a packing by squeaky wheel; a kind is worth what it takes of all that is free."""
    configs = [host.configs for host in hosts if host.configs is not None]
    if len(configs) < len(hosts):
        return None
    free = [max(1, sum(amounts)) for amounts in zip(*(host.free for host in hosts), strict=True)]
    prices = [sum(take / have for take, have in zip(need, free, strict=True)) or 1.0 for need in needs]
    return squeaky_wheel(configs, counts, prices, WHEEL_ROUNDS, budget.spend)


def _descend(
    needs: Sequence[tuple[int, ...]], counts: Config, hosts: Sequence[_Host], bounds: _Bounds, budget: Budget
) -> list[Config] | None:
    """Depth first over hosts, on an explicit stack."""
    failed: set[tuple[int, Config]] = set()
    chosen: list[Config] = []
    stack: list[tuple[int, Config, Iterator[Config]]] = []
    position, left = 0, counts
    while True:
        # Go down from (position, left).
        if not any(left):
            return chosen
        if position < len(hosts) and (position, left) not in failed and bounds.allow(position, left):
            host = hosts[position]
            limits = tuple(map(min, host.most, left))
            stack.append((position, left, _maximal(needs, host.free, limits, budget)))
        else:
            failed.add((position, left))
            if chosen:
                chosen.pop()
        # Take the next choice of the deepest host that has one.
        while stack:
            position, left, choices = stack[-1]
            config = next(choices, None)
            if config is not None:
                chosen.append(config)
                position, left = position + 1, tuple(a - b for a, b in zip(left, config, strict=True))
                break
            failed.add((position, left))
            stack.pop()
            if chosen:
                chosen.pop()
        else:
            return None


def _maximal(
    needs: Sequence[tuple[int, ...]], free: tuple[int, ...], limits: Config, budget: Budget
) -> Iterator[Config]:
    """Yield the configurations within `limits` to which no node can be added, many of the first kinds
    first.
    """
    last = len(needs) - 1
    config = [0] * len(needs)

    def fill(kind: int, free: tuple[int, ...]) -> Iterator[Config]:
        need = needs[kind]
        most = limits[kind]
        for have, take in zip(free, need, strict=True):
            if take:
                most = min(most, have // take)
        for number in range(most, -1 if kind < last else most - 1, -1):
            budget.spend()
            config[kind] = number
            left = tuple(have - number * take for have, take in zip(free, need, strict=True))
            if kind < last:
                yield from fill(kind + 1, left)
            elif not any(
                placed < limit and all(map(int.__le__, other, left))
                for placed, limit, other in zip(config, limits, needs, strict=True)
            ):
                yield tuple(config)

    return fill(0, free)


class _Bounds:
    """What the hosts from a position on could hold at most, weighed in several ways.

    Each kind by itself; each resource; the nodes of at least a size in a resource, by number; all
    resources together. A weight's most on a host is taken over the configurations it really has, so room
    no node can use does not count.
    """

    def __init__(self, needs: Sequence[tuple[int, ...]], hosts: Sequence[_Host]) -> None:
        bounds: list[Config] = []  # weight of a node of each kind
        kinds = range(len(needs))
        for kind in kinds:
            bounds.append(tuple(int(k == kind) for k in kinds))
        for r in range(len(needs[0])):
            amounts = tuple(need[r] for need in needs)
            bounds.append(amounts)
            sizes = sorted({amount for amount in amounts if amount}, reverse=True)
            bounds.extend(tuple(int(amount >= size) for amount in amounts) for size in sizes)
        # All resources together, each in shares of what is free: what one wastes, another cannot make good.
        free = [max(1, sum(amounts)) for amounts in zip(*(host.free for host in hosts), strict=True)]
        shares = [sum((take << 20) // have for take, have in zip(need, free, strict=False)) for need in needs]
        bounds.append(tuple(shares))
        self._weights = list(dict.fromkeys(bounds))
        # The most the hosts from each position on can hold in all, bound by bound.
        self._sums: list[list[int]] = [[0] * len(self._weights) for _ in range(len(hosts) + 1)]
        for position in range(len(hosts) - 1, -1, -1):
            most = _most(needs, hosts[position], self._weights)
            self._sums[position] = [a + b for a, b in zip(self._sums[position + 1], most, strict=True)]

    def allow(self, position: int, left: Config) -> bool:
        """Return False only if the nodes left cannot lie on the hosts from `position` on."""
        for weights, most in zip(self._weights, self._sums[position], strict=True):
            if sum(map(int.__mul__, weights, left)) > most:
                return False
        return True


def _most(needs: Sequence[tuple[int, ...]], host: _Host, weights: Sequence[Config]) -> list[int]:
    """The largest weight of what one host can hold: exact where its configurations are listed, else an upper
    bound.
    """
    if host.configs is not None:
        table = host.configs @ np.array(weights, dtype=np.int64).T
        return [int(most) for most in table.max(axis=0)]
    bounds = []
    for weight in weights:
        most = sum(w * m for w, m in zip(weight, host.most, strict=True))
        for r, free in enumerate(host.free):
            # No node weighs more for its size than the weightiest; one of no size is bounded by its number only.
            if all(need[r] for need, w in zip(needs, weight, strict=True) if w):
                best = max((-(-w * free // need[r]) for need, w in zip(needs, weight, strict=True) if w), default=0)
                most = min(most, best)
        bounds.append(most)
    return bounds
