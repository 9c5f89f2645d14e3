"""What keeps a request from a whole pool before any host is looked at.

A gate is judged from what is known of the pool, not from its free room. Those in `WAITING` may open one
day, so they are NOT_NOW; every other one is NEVER.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta

from broker.core import wording
from broker.core.answers import Reason, ReasonCode
from broker.core.demand import PlacementRequest, SetRequest, Window
from broker.core.inventory import PoolSnapshot

WAITING = frozenset({ReasonCode.POOL_UNREACHABLE, ReasonCode.POOL_DRAINING, ReasonCode.QUEUED})
"""Gates that do not make a refusal NEVER."""

ADVANCE_RESERVATION = "ADVANCE_RESERVATION"
"""Capability without which a pool promises nothing ahead: leases start at once there."""

CORE_NAMESPACE = "core:"


def lease_length(window: Window, pools: Iterable[PoolSnapshot]) -> timedelta | None:
    """Return how long a lease over these pools lasts; None: open-ended. Unset: the least of the pools'
    defaults.
    """
    if window.open_ended:
        return None
    if window.duration is not None:
        return window.duration
    defaults = [pool.default_duration for pool in pools if pool.default_duration is not None]
    return min(defaults, default=None)


def starts(window: Window, length: timedelta | None, snapshot: PoolSnapshot) -> tuple[datetime, datetime] | Reason:
    """Return the earliest and the latest start the window and this pool allow, or why there is none.

    A start that has passed means now.
    """
    start = snapshot.now if window.immediate else max(window.start, snapshot.now)
    latest = start if window.immediate or window.latest_start is None else window.latest_start
    if window.deadline is not None:
        if length is None:
            return _window(f"an open-ended lease does not end by {window.deadline.isoformat()}")
        latest = min(latest, window.deadline - length)
    if latest < start:
        late = f"it would have to start by {latest.isoformat()}, before {start.isoformat()}"
        return _window(f"a lease of {wording.length(length)} does not fit the window: {late}")
    if latest > snapshot.now and ADVANCE_RESERVATION not in snapshot.capabilities:
        if start > snapshot.now:
            return Reason(
                code=ReasonCode.CAPABILITY,
                resource=ADVANCE_RESERVATION,
                message=f"pool {snapshot.name} promises no start ahead: only leases that start now",
            )
        latest = start
    return start, latest


def gates(
    snapshot: PoolSnapshot, request: PlacementRequest, sets: Iterable[SetRequest], length: timedelta | None
) -> list[Reason]:
    """Return every gate that is closed. Of a pool that is silent or was never read, nothing more is
    claimed.
    """
    name = snapshot.name
    if request.allowed_pools is not None and name not in request.allowed_pools:
        return [Reason(code=ReasonCode.POOL_FORBIDDEN, message=f"the tenant may not use pool {name}")]
    if not snapshot.ever_read or not snapshot.reachable:
        state = "does not answer" if snapshot.ever_read else "has not been read yet"
        return [Reason(code=ReasonCode.POOL_UNREACHABLE, message=f"pool {name} {state}", resolvable=True)]
    closed: list[Reason] = []
    if snapshot.draining:
        closed.append(
            Reason(code=ReasonCode.POOL_DRAINING, message=f"pool {name} is being drained and takes nothing new")
        )
    if snapshot.queued:
        closed.append(
            Reason(
                code=ReasonCode.QUEUED,
                requested=snapshot.queued,
                resolvable=True,
                message=f"{snapshot.queued} wait for pool {name}, and nobody may pass them",
            )
        )
    closed.extend(
        Reason(code=ReasonCode.CAPABILITY, resource=missing, message=f"pool {name} cannot {missing}")
        for missing in sorted(request.capabilities - snapshot.capabilities)
    )
    closed.extend(
        Reason(code=ReasonCode.PARAMETER, resource=key, message=f"pool {name} does not know parameter {key}")
        for key in sorted(request.parameters - snapshot.parameters)
        if not key.startswith(CORE_NAMESPACE)
    )
    given = request.parameters | request.optional_parameters
    closed.extend(
        Reason(code=ReasonCode.PARAMETER, resource=key, message=f"pool {name} needs parameter {key}")
        for key in sorted(snapshot.required_parameters - given)
    )
    for wanted in sets:
        if wanted.image and snapshot.images is not None and wanted.image not in snapshot.images:
            closed.append(
                Reason(
                    code=ReasonCode.IMAGE_MISSING,
                    resource=wanted.image,
                    node_set=wanted.name,
                    message=f"pool {name} has no image {wanted.image}",
                )
            )
        if snapshot.networks is not None:
            closed.extend(
                Reason(
                    code=ReasonCode.NETWORK_MISSING,
                    resource=network,
                    node_set=wanted.name,
                    message=f"pool {name} has no network {network}",
                )
                for network in sorted(wanted.networks)
                if network not in snapshot.networks
            )
    longest = snapshot.max_duration
    if longest is not None and (length is None or length > longest):
        asked = wording.length(length)
        closed.append(
            Reason(
                code=ReasonCode.LEASE_TOO_LONG,
                requested=0 if length is None else int(length.total_seconds()),
                available=int(longest.total_seconds()),
                message=f"lease: {asked} asked, pool {name} allows at most {wording.length(longest)}",
            )
        )
    return closed


def _window(message: str) -> Reason:
    return Reason(code=ReasonCode.WINDOW, message=message)
