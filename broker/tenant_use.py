"""What each tenant used lately of all pools together, for the queue's order.

It follows the book: each change of a workspace that is durable tells how much its tenant holds from then on. After a
restart it is made again from the records that are kept, each counted from its start to its end.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Final

from broker.book import RESOURCES, Book
from broker.core.clock import Clock
from broker.core.fairness import DecayedUse
from broker.core.model import Workspace
from broker.pools import Pool
from broker.tenants import Tenants

COUNTED: Final = RESOURCES
"""The resources of which a tenant's share is looked at."""


class TenantUse:
    """The decayed dominant share of every tenant."""

    def __init__(
        self, book: Book, pools: Mapping[str, Pool], clock: Clock, tenants: Tenants, *, half_life: timedelta
    ) -> None:
        self._book = book
        self._pools = dict(pools)
        self._clock = clock
        self._tenants = tenants
        self._use = DecayedUse(half_life)
        self._totals: tuple[tuple[int, ...], dict[str, int]] = ((), {})
        self._recalled = False

    def note(self, workspace: Workspace) -> None:
        """A workspace has changed: its tenant holds what the book says from now on."""
        now = self._clock.now()
        if not self._recalled:
            self._recall(now)
        self._note(workspace.tenant, now)

    def _note(self, tenant: str, now: datetime) -> None:
        used = self._book.used
        self._use.note(tenant, self._share({name: used[tenant, "", name] for name in COUNTED}), now)

    def _share(self, held: Mapping[str, int]) -> float:
        """The largest part that it is of all there is of a resource."""
        totals = self._all_there_is()
        return max((held[name] / totals[name] for name in COUNTED if totals.get(name) and name in held), default=0.0)

    def used(self, tenant: str, now: datetime) -> float:
        """What counts against a tenant, by its weight."""
        if not self._recalled:
            self._recall(now)
        return self._use.used(tenant, now) / self._tenants.share(tenant)

    def _all_there_is(self) -> dict[str, int]:
        """Totals of all pools, by resource; added up when hosts have changed."""
        versions = tuple(pool.hosts_version for pool in self._pools.values())
        if versions != self._totals[0]:
            totals: Counter[str] = Counter()
            for pool in self._pools.values():
                for host in pool.hosts.values():
                    totals.update(pool.promised(host))
                totals.update(pool.pool_amounts()[0])
            self._totals = (versions, totals)
        return self._totals[1]

    def _recall(self, now: datetime) -> None:
        """Counts what the records say of the time up to now, in which no pool had been read yet."""
        if not self._all_there_is():
            return  # no pool has been read yet
        self._recalled = True
        for workspace in self._book.workspaces.values():
            # What is promised counts from then on; who waited in the queue had nothing yet.
            start = workspace.start_time if workspace.terms.queue_until is not None else workspace.create_time
            end = min(workspace.final_time or now, now)
            if workspace.nodes and start is not None and start < end:
                held: Counter[str] = Counter()
                for node in workspace.nodes:
                    held.update(node.held)
                    held.update(node.pool_held)
                self._use.add(workspace.tenant, self._share(held), start, end, now)
        for tenant in sorted({workspace.tenant for workspace in self._book.workspaces.values()}):
            self._note(tenant, now)
