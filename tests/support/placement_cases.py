"""Small pools and requests for tests of placement, with one now and one hour."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from broker.core.placement import (
    HostInventory,
    HostRecord,
    Never,
    NotNow,
    PlacementRequest,
    Plan,
    PoolSnapshot,
    Reason,
    ReasonCode,
    SetRequest,
    Verdict,
    Window,
    plan,
)
from broker.core.slots import SlotTable

NOW = datetime(2026, 5, 4, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
AT_ONCE = Window(start=NOW, duration=HOUR, immediate=True)


def host(name: str, memory: int = 4096, cpu: int = 4000, **more: Any) -> HostRecord:
    """A host with cpu in milli-cores and memory in MiB."""
    return HostRecord(name=name, total={"cpu": cpu, "memory": memory, **more.pop("extra", {})}, **more)


def pool(name: str = "lab", hosts: Iterable[HostRecord] = (), **more: Any) -> PoolSnapshot:
    """A pool that can promise ahead, of two equal hosts unless told."""
    records = list(hosts) or [host(f"{name}-1"), host(f"{name}-2")]
    more.setdefault("capabilities", frozenset({"ADVANCE_RESERVATION"}))
    more.setdefault("now", NOW)
    return PoolSnapshot(name=name, hosts=HostInventory.build(records), slots=SlotTable(), **more)


def nodes(count: int = 1, memory: int = 1024, cpu: int = 0, **more: Any) -> SetRequest:
    """A set of equal nodes."""
    extra: Mapping[str, int] = more.pop("extra", {})
    return SetRequest(count=count, amounts={"cpu": cpu, "memory": memory, **extra}, **more)


def occupy(
    snapshot: PoolSnapshot,
    where: str,
    memory: int,
    *,
    start: datetime = NOW,
    end: datetime | None,
    **extra: int,
) -> None:
    """Hold memory, and whatever else is named, for somebody else."""
    key = (f"other{len(snapshot.slots)}", 0, "node")
    snapshot.slots.hold(key, where, {"memory": memory, **extra}, start, end)


def ask(
    *wanted: SetRequest, at: PoolSnapshot | Iterable[PoolSnapshot], window: Window = AT_ONCE, **more: Any
) -> Plan | NotNow | Never:
    """Put a request to one or several pools."""
    snapshots = [at] if isinstance(at, PoolSnapshot) else list(at)
    options = {name: more.pop(name) for name in ("search_limit", "nearest_hosts") if name in more}
    request = PlacementRequest(sets=wanted, **more)
    return plan(request, {snapshot.name: snapshot for snapshot in snapshots}, window, **options)


def placed(answer: Plan | NotNow | Never) -> list[tuple[str, ...]]:
    """The hosts of each set of what must be a plan."""
    assert isinstance(answer, Plan), answer
    return [assignment.hosts for assignment in answer.assignments]


def verdict(answer: Plan | NotNow | Never, name: str = "lab", on: str | None = None) -> Verdict:
    """The verdict of a pool, or of one of its hosts."""
    found = [v for v in answer.verdicts if v.pool == name and v.host == on]
    assert len(found) == 1, (name, on, answer.verdicts)
    return found[0]


def reason(found: Verdict, code: ReasonCode, resource: str = "") -> Reason:
    """The one reason of a code, and of a resource where one is named."""
    reasons = [r for r in found.reasons if r.code is code and (not resource or r.resource == resource)]
    assert len(reasons) == 1, found.reasons
    return reasons[0]
