"""A quick way to find a packing that largest-first misses: squeaky wheel optimisation (Joslin and Clements
1999).

Each round fills host after host with the configuration worth most at the present prices, then raises the
price of every kind of node that found no place; hard kinds thus go first where they fit best. It only
finds, it proves nothing: no answer means nothing. Deterministic: no random numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Configs: TypeAlias = NDArray[np.int64]
"""Configurations of one host: (configurations, kinds)."""

_MOST_CONFIGS = 20_000  # of one host; more are not listed, and such a search is left to the other means

_STEP = 0.15  # share by which the price of a kind with all its nodes left over rises in a round


def maximal_configs(needs: Sequence[Sequence[int]], free: Sequence[int], most: Sequence[int]) -> Configs | None:
    """Return all configurations within `most` to which no node can be added, or None if they are too many."""
    need = np.array(needs, dtype=np.int64).reshape(len(needs), len(free))
    configs = np.zeros((1, len(needs)), dtype=np.int64)
    left = np.array([free], dtype=np.int64).reshape(1, len(free))
    for kind, limit in enumerate(most):
        takes = np.flatnonzero(need[kind])
        fit = np.minimum((left[:, takes] // need[kind, takes]).min(axis=1, initial=limit), limit)
        if int(fit.sum()) + len(fit) > _MOST_CONFIGS:
            return None
        rows = np.repeat(np.arange(len(configs)), fit + 1)
        number = np.arange(len(rows)) - np.repeat(np.cumsum(fit + 1) - (fit + 1), fit + 1)
        configs, left = configs[rows], left[rows]
        configs[:, kind] = number
        left -= number[:, None] * need[kind]
    maximal = np.ones(len(configs), dtype=np.bool_)
    for kind, limit in enumerate(most):
        maximal &= (configs[:, kind] >= limit) | (left < need[kind]).any(axis=1)
    return configs[maximal]


def squeaky_wheel(
    configs: Sequence[Configs],
    counts: Sequence[int],
    prices: Sequence[float],
    rounds: int,
    spend: Callable[[], None],
) -> list[tuple[int, ...]] | None:
    """Return a configuration a host that places all `counts`, or None if no round found one.

    `configs`: for each host all it can hold at most; a part of one will do as well. `prices`: what a node
    of each kind is worth at first. `spend` is called once a host and round and may raise.
    """
    wanted = np.array(counts, dtype=np.int64)
    price = np.array(prices, dtype=np.float64)
    # Hosts that promise least come first, so that the roomy ones take what is left over.
    for turn in range(rounds):  # every other round the other way round: some packings want it so
        worth = [float((options @ price).max()) for options in configs]
        order = sorted(range(len(configs)), key=lambda host: (worth[host], host))
        if turn % 2:
            order.reverse()
        left = wanted.copy()
        chosen: list[tuple[int, ...]] = [(0,) * len(wanted)] * len(configs)
        for host in order:
            spend()
            useful = np.minimum(configs[host], left)
            best = useful[int((useful @ price).argmax())]
            left -= best
            chosen[host] = tuple(best.tolist())
            if not left.any():
                return chosen
        price *= 1.0 + _STEP * left / np.maximum(wanted, 1) + 0.02 * (left > 0)
    return None
