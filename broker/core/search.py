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

Config: TypeAlias = tuple[int, ...]
"""Nodes of each set on one host."""

SEARCH_LIMIT = 200_000
"""Default bound on the work of one question to one pool, in configurations looked at: about a second at
worst.
"""


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
        tuple(min(row[members[0]], count) for members, count in zip(kinds, kind_counts, strict=True))
        for row in most
    ]
    hosts = _relevant(free, takes, sum(kind_counts))
    found = _descend(kind_needs, kind_counts, hosts, budget)
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


def _relevant(free: Sequence[Sequence[int]], most: Sequence[Config], nodes: int) -> list[_Host]:
    """Hosts that take any node, those with the fewest choices first; of hosts alike, no more than there are
    nodes.
    """
    alike: dict[tuple[tuple[int, ...], Config], int] = {}
    hosts: list[_Host] = []
    for position, (have, takes) in enumerate(zip(free, most, strict=True)):
        host = _Host(position=position, free=tuple(max(0, amount) for amount in have), most=takes)
        seen = alike.get((host.free, host.most), 0)
        if seen < nodes and any(takes):
            alike[host.free, host.most] = seen + 1
            hosts.append(host)
    hosts.sort(key=lambda host: (sum(host.most), host.most, host.free, host.position))
    return hosts


def _descend(
    needs: Sequence[tuple[int, ...]], counts: Config, hosts: Sequence[_Host], budget: Budget
) -> list[Config] | None:
    """Depth first over hosts, on an explicit stack."""
    bounds = _Bounds(needs, hosts)
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
    """What the hosts from a position on could hold at most, resource by resource.

    For each resource and each size v in it: a host holds at most free // v nodes of size v or more, so the
    nodes that large must not outnumber the sum; and the sum of all amounts must not pass the sum of free
    amounts.
    """

    def __init__(self, needs: Sequence[tuple[int, ...]], hosts: Sequence[_Host]) -> None:
        # Each bound: weight of a node of each kind, and the most the hosts from each position on take in all.
        bounds: list[tuple[tuple[int, ...], list[int]]] = []
        kinds = range(len(needs))
        for kind in kinds:
            weights = tuple(int(k == kind) for k in kinds)
            bounds.append((weights, [host.most[kind] for host in hosts]))
        for r in range(len(needs[0])):
            weights = tuple(need[r] for need in needs)
            bounds.append((weights, [_fill(host, weights, r) for host in hosts]))
            for size in sorted({weight for weight in weights if weight}, reverse=True):
                large = tuple(int(weight >= size) for weight in weights)
                caps = [
                    min(host.free[r] // size, sum(m for m, w in zip(host.most, large, strict=True) if w))
                    for host in hosts
                ]
                bounds.append((large, caps))
        self._weights = [weights for weights, _ in bounds]
        self._sums: list[list[int]] = [[0] * len(bounds) for _ in range(len(hosts) + 1)]
        for position in range(len(hosts) - 1, -1, -1):
            after = self._sums[position + 1]
            self._sums[position] = [after[b] + caps[position] for b, (_, caps) in enumerate(bounds)]

    def allow(self, position: int, left: Config) -> bool:
        """Return False only if the nodes left cannot lie on the hosts from `position` on."""
        for weights, most in zip(self._weights, self._sums[position], strict=True):
            if sum(map(int.__mul__, weights, left)) > most:
                return False
        return True


def _fill(host: _Host, weights: tuple[int, ...], r: int) -> int:
    """The most of resource r that nodes this host takes could use."""
    return min(host.free[r], sum(weight * most for weight, most in zip(weights, host.most, strict=True)))
