"""What placement answers: a plan, or a refusal with verdicts that say why and whether waiting can help.

Values only; the names of outcomes and codes are those of the API's PlacementVerdict. How verdicts are made
stands in reasons.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum

from msgspec import Struct, field


class Outcome(StrEnum):
    """Whether it fits, may fit later, or never will."""

    FITS = "FITS"
    NOT_NOW = "NOT_NOW"
    NEVER = "NEVER"


class ReasonCode(StrEnum):
    """What kind of obstacle."""

    INSUFFICIENT_RESOURCE = "INSUFFICIENT_RESOURCE"
    GROUP = "GROUP"
    SELECTOR = "SELECTOR"
    PLACEMENT_RULE = "PLACEMENT_RULE"
    IMAGE_MISSING = "IMAGE_MISSING"
    IMAGE_MISMATCH = "IMAGE_MISMATCH"
    NETWORK_MISSING = "NETWORK_MISSING"
    CAPABILITY = "CAPABILITY"
    PARAMETER = "PARAMETER"
    HOST_CORDONED = "HOST_CORDONED"
    HOST_DISABLED = "HOST_DISABLED"
    HOST_LOST = "HOST_LOST"
    POOL_DRAINING = "POOL_DRAINING"
    POOL_UNREACHABLE = "POOL_UNREACHABLE"
    POOL_FORBIDDEN = "POOL_FORBIDDEN"
    QUOTA = "QUOTA"  # the caller's to give: placement knows no tenants
    LEASE_TOO_LONG = "LEASE_TOO_LONG"
    WINDOW = "WINDOW"
    DISK_ELSEWHERE = "DISK_ELSEWHERE"
    SEARCH_LIMIT = "SEARCH_LIMIT"
    QUEUED = "QUEUED"


class Reason(Struct, frozen=True, kw_only=True):
    """One obstacle. `host_count`: in a pool's verdict, on how many of all its hosts; 0 where it is the pool's
    own.
    """

    code: ReasonCode
    message: str
    resource: str = ""
    requested: int = 0
    available: int = 0  # in a pool's verdict: on the best host
    resolvable: bool = False  # waiting may clear it
    node_set: str = ""
    host_count: int = 0


class Verdict(Struct, frozen=True, kw_only=True):
    """Why a pool, or one of its hosts, can or cannot take the request.

    A host's verdict looks at single nodes: `nodes_fit` is how many nodes of the set that fits it best it
    could take.
    """

    pool: str
    host: str | None = None
    outcome: Outcome
    earliest: datetime | None = None
    score: float = 0.0  # FITS: share of the tightest resource left free after placement, 0 to 1
    reasons: tuple[Reason, ...] = ()
    nodes_fit: int = 0
    host_total: int = 0  # of a pool's verdict: how many hosts it has


class SetAssignment(Struct, frozen=True, kw_only=True):
    """Where the nodes of one set go: a host for each node, in node order."""

    set_index: int
    pool: str
    hosts: tuple[str, ...]


class Plan(Struct, frozen=True, kw_only=True):
    """A placement that fits over `[prepare, end)`; `end` None is open-ended. One assignment a set, in their
    order.
    """

    assignments: tuple[SetAssignment, ...]
    prepare: datetime  # from when on capacity is held, so that all is ready at the start
    start: datetime
    end: datetime | None
    full: bool  # every set got its full count
    score: float
    verdicts: tuple[Verdict, ...] = ()
    generations: Mapping[str, int] = field(default_factory=dict)  # of the pools used


class NotNow(Struct, frozen=True, kw_only=True):
    """No room now. `earliest` None: no known end would give it, or it was not found within the bound on
    work.
    """

    earliest: datetime | None
    verdicts: tuple[Verdict, ...]


class Never(Struct, frozen=True, kw_only=True):
    """It would not fit even if every host were enabled, answering and empty."""

    verdicts: tuple[Verdict, ...]
