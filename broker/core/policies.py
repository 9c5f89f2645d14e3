"""What a site may decide for itself: who is next, who may pass, who gives way, and which host is best.

One small protocol each, and the policies that come with the broker. They see values and answer values; they decide
nothing that is a promise: capacity, quota and what may be preempted are the broker's, whatever a policy says. Third
parties join by the entry point groups named in broker/policies.py, which also bounds what a policy may cost.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final, Protocol

from msgspec import Struct

from broker.core.inventory import FloatArray


class Waiting(Struct, frozen=True, kw_only=True):
    """A workspace that waits for capacity, as a policy sees it."""

    uid: str
    tenant: str
    since: datetime  # when it came
    nodes: int
    duration: timedelta | None  # None: open-ended
    priority: int = 0
    preemptible: bool = False
    overdue: bool = False  # a reservation that could not start when it was due
    starved: bool = False  # it has waited for the starvation limit
    used: float = 0.0  # its tenant's decayed dominant share, by the tenant's weight


class QueueOrder(Protocol):
    """Who is next."""

    def order(self, waiting: Sequence[Waiting], now: datetime) -> Sequence[Waiting]:
        """Return the same workspaces, the first to be served first. They come by arrival."""


class Passing(StrEnum):
    """What those behind a workspace that does not fit yet have to heed."""

    NOBODY = "nobody"  # its pools take nobody who is behind it
    UNHURT = "unhurt"  # they may pass it where its planned start stays as it is
    FREELY = "freely"


class Backfill(Protocol):
    """Who may pass whom."""

    def blocked(self, waiting: Waiting, ahead: int, now: datetime) -> Passing:
        """Say what those behind `waiting` have to heed in a pool in which `ahead` others wait before it."""


class Victim(Struct, frozen=True, kw_only=True):
    """A preemptible workspace that holds capacity, as a policy sees it."""

    uid: str
    tenant: str
    started: datetime
    nodes: int
    amounts: Mapping[str, int]  # what all its nodes hold
    end: datetime | None
    priority: int = 0


class VictimChoice(Protocol):
    """Who gives way first."""

    def order(self, candidates: Sequence[Victim], now: datetime) -> Sequence[Victim]:
        """Return the same workspaces, those that rather give way first. The broker takes a minimal set of them. They
        come by arrival.
        """


class HostChoice(Protocol):
    """Which of the hosts that can take a node takes it."""

    def rank(self, hosts: Sequence[str], left: Mapping[str, FloatArray]) -> FloatArray:
        """Return a number a host, the least for the best.

        `left`: for each resource that is asked for, the share of the host's total left free once the node is on it, 0
        to 1; only hosts that can take the node are asked about.
        """


class PolicySet(Protocol):
    """The policies in use."""

    @property
    def order(self) -> QueueOrder:
        """Of the queue of all pools."""

    @property
    def backfill(self) -> Mapping[str, Backfill]:
        """By pool."""

    @property
    def victims(self) -> Mapping[str, VictimChoice]:
        """By pool."""


class FairShare:
    """By priority, then by what tenants used lately, then by arrival.

    Whoever can make others give way goes before those who would have to, an overdue reservation before all, and who
    has waited for too long before others of its kind.
    """

    def order(self, waiting: Sequence[Waiting], now: datetime) -> Sequence[Waiting]:
        """Return them in that order."""
        return sorted(
            waiting,
            key=lambda each: (
                not each.overdue,
                each.preemptible,
                not each.starved,
                each.since.timestamp() if each.starved else 0.0,
                -each.priority,
                each.used,
                each.since,
            ),
        )


class Arrival:
    """First come, first served."""

    def order(self, waiting: Sequence[Waiting], now: datetime) -> Sequence[Waiting]:
        """Return them by arrival; overdue reservations first."""
        return sorted(waiting, key=lambda each: (not each.overdue, each.since))


class NoBackfill:
    """Nobody passes."""

    def blocked(self, waiting: Waiting, ahead: int, now: datetime) -> Passing:
        """Say NOBODY."""
        return Passing.NOBODY


class Aggressive:
    """The first who waits keeps its planned start, the others may be passed (EASY: Lifka 1995)."""

    def blocked(self, waiting: Waiting, ahead: int, now: datetime) -> Passing:
        """Say UNHURT of the first."""
        return Passing.UNHURT if ahead == 0 else Passing.FREELY


class Conservative:
    """Nobody's planned start is put off by somebody who came later (Mu'alem and Feitelson 2001)."""

    def blocked(self, waiting: Waiting, ahead: int, now: datetime) -> Passing:
        """Say UNHURT."""
        return Passing.UNHURT


class Youngest:
    """Who began last gives way first: least work stands still."""

    def order(self, candidates: Sequence[Victim], now: datetime) -> Sequence[Victim]:
        """Return them by start, the latest first; the lower priority first."""
        return _latest_first(candidates, lambda each: (each.priority, -each.started.timestamp()))


class Smallest:
    """Who holds the fewest nodes gives way first."""

    def order(self, candidates: Sequence[Victim], now: datetime) -> Sequence[Victim]:
        """Return them by the number of their nodes, then the youngest first."""
        return _latest_first(candidates, lambda each: (each.nodes, -each.started.timestamp()))


def _latest_first(candidates: Sequence[Victim], key: Callable[[Victim], tuple[float, float]]) -> list[Victim]:
    """By a key; of those alike, who came last goes first."""
    ordered = list(candidates)
    ordered.reverse()
    ordered.sort(key=key)
    return ordered


QUEUE_ORDERS: Final[Mapping[str, Callable[[], QueueOrder]]] = {"fair-share": FairShare, "arrival": Arrival}
BACKFILLS: Final[Mapping[str, Callable[[], Backfill]]] = {
    "none": NoBackfill,
    "aggressive": Aggressive,
    "conservative": Conservative,
}
VICTIM_CHOICES: Final[Mapping[str, Callable[[], VictimChoice]]] = {"youngest": Youngest, "smallest": Smallest}
DEFAULTS: Final[Mapping[str, str]] = {"order": "fair-share", "backfill": "aggressive", "victims": "youngest"}
"""The policy that is asked where none is configured, or where the configured one fails."""
