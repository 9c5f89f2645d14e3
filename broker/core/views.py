"""What operators and tenants are shown of pools, hosts, strays and tenants: plain values, put together when
asked.

Sums and free capacity are worked out for a view and kept nowhere. How views become messages is
broker/api/render.py; who may see which is decided before they are made.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum

from broker.core.errors import Failure
from broker.core.inventory import AttributeValue
from broker.core.model import State, ValueKind


@dataclass(frozen=True, slots=True, kw_only=True)
class ParameterView:
    """One scheduler parameter a pool understands."""

    key: str
    kind: ValueKind
    description: str = ""
    required: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolView:
    """A pool. `capabilities`: the API's names without prefix. `last_error` None: none."""

    name: str
    backend: str
    reachable: bool
    capabilities: Collection[str] = ()
    parameters: Sequence[ParameterView] = ()
    instance_types: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    total: Mapping[str, int] = field(default_factory=dict)
    allocated: Mapping[str, int] = field(default_factory=dict)
    reserved: Mapping[str, int] = field(default_factory=dict)
    generation: int = 0
    refresh_time: datetime | None = None
    last_error: Failure | None = None
    draining: bool = False
    default_duration: timedelta | None = None  # None: open-ended
    max_duration: timedelta | None = None  # None: no limit


class HostCondition(StrEnum):
    """What the broker sees of a host; what an operator wants stands in `cordoned`."""

    ACTIVE = "ACTIVE"
    DISABLED = "DISABLED"
    LOST = "LOST"


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotView:
    """Capacity held on a host. `workspace`: its full name, "" for those who may not see whose it is."""

    workspace: str
    node_index: int
    amounts: Mapping[str, int]
    start_time: datetime
    end_time: datetime | None = None
    preparation: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class HostView:
    """A host with what is taken of it. `total`: reserve taken off, overcommit put on."""

    pool: str
    name: str
    state: HostCondition
    total: Mapping[str, int] = field(default_factory=dict)
    free: Mapping[str, int] = field(default_factory=dict)
    foreign: Mapping[str, int] = field(default_factory=dict)
    slots: Sequence[SlotView] = ()
    attributes: Mapping[str, AttributeValue] = field(default_factory=dict)
    cordoned: bool = False
    last_error: Failure | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageView:
    """An image. `tenant`: who saved it and alone sees it; "": everyone."""

    name: str
    display_name: str = ""
    ready: bool = True
    size_mib: int = 0
    attributes: Mapping[str, AttributeValue] = field(default_factory=dict)
    tenant: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkView:
    """A network. Both numbers 0: as many addresses as asked for."""

    name: str
    display_name: str = ""
    total_addresses: int = 0
    free_addresses: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class StrayView:
    """A VM with this broker's tag and no owner. `workspace`: the full name its tag says, if it is known."""

    pool: str
    backend_id: str
    reason: str
    found_time: datetime
    host: str = ""
    workspace: str = ""
    workspace_uid: str = ""
    node_index: int = 0
    amounts: Mapping[str, int] = field(default_factory=dict)
    seen: State | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantView:
    """A tenant with its limits and use."""

    name: str
    display_name: str = ""
    limits: Mapping[str, int] = field(default_factory=dict)
    pool_limits: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    used: Mapping[str, int] = field(default_factory=dict)
    pool_used: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    allowed_pools: Sequence[str] = ()
    max_duration: timedelta | None = None
    create_time: datetime | None = None
    etag: str = ""
