"""What is there: the hosts of a pool as arrays, and everything else about a pool that placement looks at.

An inventory is made once a refresh and never changed, so a thousand plans read the same arrays. What is
held comes from the slot table, not from here; `foreign` is what strangers' VMs take.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from enum import IntEnum
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from msgspec import Struct, field
from numpy.typing import NDArray

from broker.core.demand import Placement
from broker.core.slots import SlotTable
from broker.core.sweep import IntArray

if TYPE_CHECKING:
    from broker.core.policies import HostChoice

BoolArray: TypeAlias = NDArray[np.bool_]
FloatArray: TypeAlias = NDArray[np.float64]
AttributeValue: TypeAlias = str | int | float | bool | Sequence[str]


class Undecided(Exception):
    """A policy has no answer this time: its pool's hosts are chosen as if it had none."""


class HostState(IntEnum):
    """Whether a host takes nodes. The broker's own wish (CORDONED) goes before what is seen."""

    ACTIVE = 0
    CORDONED = 1
    DISABLED = 2
    LOST = 3


class HostRecord(Struct, frozen=True, kw_only=True):
    """One host as an inventory is built from: `total` is what may be promised (reserve off, overcommit
    on).
    """

    name: str
    total: Mapping[str, int]
    foreign: Mapping[str, int] = field(default_factory=dict)
    state: HostState = HostState.ACTIVE
    attributes: Mapping[str, AttributeValue] = field(default_factory=dict)


class HostInventory(Struct, frozen=True, kw_only=True, eq=False):
    """Hosts by name, resource-major: row r of the tables is resource r of every host. Do not write to the
    arrays.
    """

    names: tuple[str, ...]
    rows: Mapping[str, int]  # where each name stands
    columns: Mapping[str, int]
    total: IntArray  # (resources, hosts)
    foreign: IntArray  # (resources, hosts)
    room: IntArray  # total - foreign
    per_unit: FloatArray  # 1 / total, 1 where total is 0
    states: NDArray[np.int8]
    usable: BoolArray  # ACTIVE
    attributes: tuple[Mapping[str, AttributeValue], ...]
    by_attribute: Mapping[str, Mapping[str, NDArray[np.intp]]]  # attribute -> value as text -> hosts
    zeros: IntArray  # what a resource no host knows amounts to

    @classmethod
    def build(cls, hosts: Iterable[HostRecord]) -> HostInventory:
        """Make the arrays. ValueError: two hosts of one name."""
        records = sorted(hosts, key=lambda host: host.name)
        names = tuple(host.name for host in records)
        if len(set(names)) != len(names):
            raise ValueError("two hosts of one name in an inventory")
        resources = dict.fromkeys(name for host in records for name in (*host.total, *host.foreign))
        columns = {name: column for column, name in enumerate(resources)}
        total = np.zeros((len(columns), len(records)), dtype=np.int64)
        foreign = np.zeros_like(total)
        index: dict[str, dict[str, list[int]]] = {}
        for row, host in enumerate(records):
            for name, amount in host.total.items():
                total[columns[name], row] = amount
            for name, amount in host.foreign.items():
                foreign[columns[name], row] = amount
            for name, value in host.attributes.items():
                for text in as_texts(value):
                    index.setdefault(name, {}).setdefault(text, []).append(row)
        states = np.fromiter((host.state for host in records), dtype=np.int8, count=len(records))
        with np.errstate(divide="ignore"):
            per_unit = np.where(total > 0, 1.0 / total, 1.0)
        return cls(
            names=names,
            rows={name: row for row, name in enumerate(names)},
            columns=columns,
            total=total,
            foreign=foreign,
            room=total - foreign,
            per_unit=per_unit,
            states=states,
            usable=states == HostState.ACTIVE,
            attributes=tuple(host.attributes for host in records),
            by_attribute={
                name: {text: np.array(rows, dtype=np.intp) for text, rows in values.items()}
                for name, values in index.items()
            },
            zeros=np.zeros(len(records), dtype=np.int64),
        )

    def among(self, names: Iterable[str]) -> BoolArray:
        """Return which hosts bear one of these names."""
        found = np.zeros(len(self.names), dtype=np.bool_)
        found[[row for name in names if (row := self.rows.get(name)) is not None]] = True
        return found

    def having(self, attribute: str, values: Iterable[str]) -> BoolArray:
        """Return which hosts carry any of these values (as text) under an attribute."""
        found = np.zeros(len(self.names), dtype=np.bool_)
        known = self.by_attribute.get(attribute, {})
        for value in values:
            rows = known.get(value)
            if rows is not None:
                found[rows] = True
        return found

    def carrying(self, attribute: str) -> BoolArray:
        """Return which hosts have the attribute at all."""
        return self.having(attribute, self.by_attribute.get(attribute, {}))


def as_texts(value: AttributeValue) -> frozenset[str]:
    """Return the texts an attribute's value is found under: true and false, 2 also for 2.0, each member of a
    list.
    """
    if isinstance(value, bool):
        return frozenset({"true" if value else "false"})
    if isinstance(value, str):
        return frozenset({value})
    if isinstance(value, int | float):
        return frozenset({str(value), f"{value:g}"}) if isinstance(value, float) else frozenset({str(value)})
    return frozenset(str(member) for member in value)


class PoolSnapshot(Struct, frozen=True, kw_only=True, eq=False):
    """A pool at `now`. The slot table is read, never changed.

    `pool_totals` names the resources that belong to the pool and not to a host: "disk" on a shared datastore,
    "address:NET" for the addresses of a network. Its slots lie on `POOL_ROW`.
    """

    name: str
    hosts: HostInventory
    slots: SlotTable
    now: datetime
    pool_totals: Mapping[str, int] = field(default_factory=dict)
    pool_foreign: Mapping[str, int] = field(default_factory=dict)
    memory_overhead: int = 0  # MiB a VM
    images: Mapping[str, Mapping[str, AttributeValue]] | None = None  # name -> attributes; None: any name will do
    networks: frozenset[str] | None = None  # None: any name will do
    capabilities: frozenset[str] = frozenset()
    parameters: frozenset[str] = frozenset()
    required_parameters: frozenset[str] = frozenset()  # without these it takes nothing
    draining: bool = False
    reachable: bool = True
    ever_read: bool = True
    preference: int = 0  # higher is better
    policy: Placement = Placement.PACK
    host_choice: HostChoice | None = None  # says which host is best, in place of `policy`; may raise Undecided
    default_duration: timedelta | None = None  # None: open-ended
    max_duration: timedelta | None = None  # None: no limit
    lead: timedelta = timedelta()  # capacity is held that long before a promised start
    queued: int = 0  # how many wait here whom nobody may pass
    generation: int = 0
    cases: dict[tuple[int, ...], Any] = field(default_factory=dict)  # see feasibility.case_of; shared by copies
