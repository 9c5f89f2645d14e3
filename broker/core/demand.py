"""What is asked of the pools: node sets, where they may stand, and when.

Values only. Amounts are what a guest gets, without a pool's overhead; `feasibility.held_amounts` says what
is held.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from enum import StrEnum

from msgspec import Struct, field


class Placement(StrEnum):
    """How the nodes of a set lie over the hosts."""

    PACK = "PACK"  # least waste, see feasibility.py
    SPREAD = "SPREAD"  # fewest nodes of the set a host, then the host with the most room
    ONE_PER_HOST = "ONE_PER_HOST"  # a rule, not a wish: no two nodes of the set on one host


class SetRequest(Struct, frozen=True, kw_only=True):
    """`count` equal nodes. `min_count` 0 means exactly `count`; else as many as fit from `min_count` to
    `count`.
    """

    name: str = ""
    count: int = 1
    min_count: int = 0
    amounts: Mapping[str, int] = field(default_factory=dict)  # a VM, without overhead
    pool: str | None = None  # None: the pool of the sets that name none
    image: str | None = None
    networks: Mapping[str, int] = field(default_factory=dict)  # addresses one node takes
    host_selector: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # attribute: any of these values
    placement: Placement | None = None  # None: the pool's policy
    excluded_hosts: frozenset[str] = frozenset()
    pinned_host: str | None = None  # its disk lies there

    def __post_init__(self) -> None:
        if self.count < 1 or not 0 <= self.min_count <= self.count:
            raise ValueError(f"node set {self.name!r}: count {self.count}, min_count {self.min_count}")
        if min(self.amounts.values(), default=0) < 0 or min(self.networks.values(), default=0) < 0:
            raise ValueError(f"node set {self.name!r} asks for a negative amount")

    @property
    def least(self) -> int:
        """How many nodes it takes at least."""
        return self.min_count or self.count


class PlacementRequest(Struct, frozen=True, kw_only=True):
    """Node sets placed together, all or nothing."""

    sets: tuple[SetRequest, ...]
    pool: str | None = None  # where the sets go that name none; None: the best pool that fits
    capabilities: frozenset[str] = frozenset()  # every chosen pool must have them
    parameters: frozenset[str] = frozenset()  # keys every chosen pool must know; all know "core:*"
    optional_parameters: frozenset[str] = frozenset()  # keys that are given, and that a pool need not know
    allowed_pools: frozenset[str] | None = None  # None: all

    def __post_init__(self) -> None:
        if not self.sets:
            raise ValueError("a request has at least one node set")


class Window(Struct, frozen=True, kw_only=True):
    """When. `latest_start` None: exactly at `start`; else the earliest start in `[start, latest_start]` that
    fits.

    `immediate`: the lease begins at the snapshot's now, whatever `start` says. `duration` None with
    `open_ended` False: the pool's default. `deadline`: the lease must have ended by then.
    """

    start: datetime
    duration: timedelta | None = None
    open_ended: bool = False
    latest_start: datetime | None = None
    deadline: datetime | None = None
    immediate: bool = False
