"""Tenants: who there is, where they may go, and how much they may hold.

What a tenant holds is derived from its workspaces in the book; here it is only held against the limits.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from datetime import timedelta

from broker.book import Book
from broker.config import TenantSettings
from broker.core import wording
from broker.core.accounting import quota_use
from broker.core.errors import (
    FieldReason,
    FieldsInvalid,
    FieldViolation,
    QuotaExceeded,
    QuotaViolation,
    not_found,
)
from broker.core.model import Workspace


class Tenants:
    """The tenants of the configuration; where none are configured, every tenant is there and has no limits."""

    def __init__(self, book: Book, tenants: Mapping[str, TenantSettings]) -> None:
        self._book = book
        self._tenants = dict(tenants)

    def settings(self, tenant: str) -> TenantSettings:
        """A tenant's settings. Raises NOT_FOUND."""
        settings = self._tenants.get(tenant)
        if settings is not None:
            return settings
        if self._tenants:
            raise not_found("tenant", f"tenants/{tenant}")
        return TenantSettings(name=tenant)

    def allowed_pools(self, tenant: str) -> frozenset[str] | None:
        """The pools a tenant may use; None: all."""
        allowed = self.settings(tenant).allowed_pools
        return frozenset(allowed) if allowed else None

    def share(self, tenant: str) -> int:
        """A tenant's weight in the queue."""
        settings = self._tenants.get(tenant)
        return settings.share if settings is not None else 1

    def check_priority(self, tenant: str, priority: int) -> None:
        """Refuses a place in the queue that a tenant may not take. Raises FieldsInvalid."""
        if not self._tenants or priority <= (highest := self.settings(tenant).max_priority):
            return
        raise FieldsInvalid(
            [
                FieldViolation(
                    path="workspace.terms.priority",
                    reason=FieldReason.OUT_OF_RANGE,
                    message=f"is {priority}; tenant {tenant} may ask for {highest} at most",
                )
            ]
        )

    def check(self, tenant: str, wanted: Workspace, *, besides: Workspace | None = None) -> None:
        """Refuses what would pass a limit of the tenant; `besides` is what it replaces. Raises QuotaExceeded."""
        settings = self.settings(tenant)
        if not (settings.limits or settings.pool_limits or settings.max_duration):
            return
        asked: defaultdict[tuple[str, str], int] = defaultdict(int)
        for sign, workspace in ((1, wanted), (-1, besides)):
            for pool, resource, amount in quota_use(workspace) if workspace is not None else ():
                asked["", resource] += sign * amount
                if pool:
                    asked[pool, resource] += sign * amount
        violations = []
        for (pool, resource), amount in sorted(asked.items()):
            limits = settings.pool_limits.get(pool, {}) if pool else settings.limits
            used = self._book.used[tenant, pool, resource]
            if amount > 0 and resource in limits and used + amount > limits[resource]:
                subject = f"tenants/{tenant}" + (f"/pools/{pool}" if pool else "")
                violations.append(
                    QuotaViolation(
                        subject=subject,
                        resource=resource,
                        limit=limits[resource],
                        used=used,
                        requested=amount,
                    )
                )
        if violations:
            raise QuotaExceeded(violations)
        if wanted.start_time is not None:
            self.check_length(tenant, None if wanted.end_time is None else wanted.end_time - wanted.start_time)

    def check_length(self, tenant: str, length: timedelta | None) -> None:
        """Refuses a lease (None: an open-ended one) that is longer than a tenant may have. Raises FieldsInvalid."""
        longest = self.settings(tenant).max_duration
        if longest is not None and (length is None or length > longest):
            raise FieldsInvalid(
                [
                    FieldViolation(
                        path="workspace.terms.duration",
                        reason=FieldReason.OUT_OF_RANGE,
                        message=f"tenant {tenant} may lease for {wording.length(longest)} at most",
                    )
                ]
            )
