"""What tenants used lately: the share they held, added up over time, and halved with each half-life.

A tenant's share at an instant is its dominant one (Ghodsi et al. 2011): of the resources it holds, the one of which it
holds the largest part of all there is. Sums are in seconds of the whole capacity. Knows no records and no clock.
"""

from __future__ import annotations

import math
from datetime import datetime, timedelta

from msgspec import Struct


class _Account(Struct):
    """Used up to an instant, and what is held from then on."""

    used: float
    share: float
    at: datetime


class DecayedUse:
    """One account a tenant."""

    def __init__(self, half_life: timedelta) -> None:
        self._rate = math.log(2.0) / half_life.total_seconds()
        self._accounts: dict[str, _Account] = {}

    def note(self, tenant: str, share: float, now: datetime) -> None:
        """From now on a tenant holds this share; up to now it held what was noted before."""
        account = self._accounts.get(tenant)
        if account is None:
            self._accounts[tenant] = _Account(used=0.0, share=share, at=now)
            return
        account.used = self._at(account, now)
        account.share, account.at = share, max(now, account.at)

    def add(self, tenant: str, share: float, start: datetime, end: datetime, now: datetime) -> None:
        """A tenant held a share over a time that has passed."""
        account = self._accounts.setdefault(tenant, _Account(used=0.0, share=0.0, at=now))
        length = max(0.0, (end - start).total_seconds())
        since = max(0.0, (now - end).total_seconds())
        held = share / self._rate * -math.expm1(-self._rate * length)
        account.used = self._at(account, now) + held * math.exp(-self._rate * since)
        account.at = max(now, account.at)

    def used(self, tenant: str, now: datetime) -> float:
        """Seconds of the whole capacity that count against a tenant now."""
        account = self._accounts.get(tenant)
        return 0.0 if account is None else self._at(account, now)

    def _at(self, account: _Account, now: datetime) -> float:
        passed = max(0.0, (now - account.at).total_seconds())
        decay = math.exp(-self._rate * passed)
        return account.used * decay + account.share / self._rate * (1.0 - decay)
