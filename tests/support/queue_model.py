"""Who holds what and who comes before whom in a broker's queue, worked out from records alone, the plain way.

Order, room and the earliest start are the documents' words as loops; nothing here asks the modules under test.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from datetime import datetime, timedelta
from typing import Final

from broker.core.model import FINAL, State, Workspace
from tests.support.naive_room import FAR, Ledger, exists
from tests.support.queue_broker import QueueBroker, overdue, waits

RESOURCES: Final = ("cpu", "memory")
INSTANT: Final = timedelta(microseconds=1)
MOVING: Final = frozenset({State.STARTING, State.SUSPENDING, State.RESUMING, State.STOPPING, State.TERMINATING})


class QueueModel:
    """The records of one broker as they were noted last, and what follows from them."""

    def __init__(self, broker: QueueBroker) -> None:
        self.broker = broker
        self.settings = broker.settings
        self.totals = {pool: broker.totals(pool) for pool in self.settings.pools}
        self.known: dict[str, Workspace] = {}
        self.shares: defaultdict[str, list[tuple[datetime, float]]] = defaultdict(list)
        """By tenant, what part of all there is it held from when on."""

    def keep(self, workspace: Workspace) -> Workspace | None:
        """Takes in a change of a record; returns what it was before."""
        was = self.known.get(workspace.uid)
        self.known[workspace.uid] = workspace
        self.shares[workspace.tenant].append((self.broker.now, self.share(workspace.tenant)))
        return was

    # What is there

    def records(self) -> list[Workspace]:
        """Every workspace that is not at its end, as it was noted last."""
        return [each for each in self.known.values() if each.state not in FINAL]

    def policy(self, pool: str) -> str:
        """Its backfill."""
        return self.settings.pools[pool].backfill

    def pools(self, workspace: Workspace) -> set[str]:
        """Where it could go."""
        if workspace.nodes:
            return {node.pool for node in workspace.nodes}
        return {workspace.requested_pool} if workspace.requested_pool else set(self.settings.pools)

    def wanted(self, workspace: Workspace) -> list[dict[str, int]]:
        """What each node that wants a place takes."""
        if workspace.nodes:
            return [dict(node.held) for node in workspace.nodes if node.state not in FINAL]
        return [dict(each.amounts) for each in workspace.node_sets for _ in range(each.count)]

    def length(self, workspace: Workspace, now: datetime) -> timedelta:
        """For how long."""
        if not workspace.nodes:
            return FAR - now if workspace.terms.duration is None else workspace.terms.duration
        if workspace.end_time is None:
            return FAR - now
        left = workspace.end_time - (workspace.preempted_time or now)
        if workspace.preempted_time is not None and workspace.terms.deadline is not None:
            left = min(left, workspace.terms.deadline - now)
        return left

    def room(self, workspace: Workspace, start: datetime, length: timedelta, ledger: Ledger) -> bool:
        """Whether all its nodes find room somewhere, on hosts that are not lost, for all that time."""
        nodes = tuple((tuple(each.get(name, 0) for name in RESOURCES), -1) for each in self.wanted(workspace))
        end = min(FAR, start + length)
        return any(
            exists(
                tuple(
                    tuple(total[name] - ledger.most(pool, host, name, start, end) for name in RESOURCES)
                    for host, total in self.totals[pool].items()
                    if (pool, host) not in self.broker.lost
                ),
                nodes,
            )
            for pool in self.pools(workspace)
        )

    def earliest(self, workspace: Workspace, now: datetime, ledger: Ledger) -> datetime | None:
        """The first start there is room for: now, or where something ends."""
        length = self.length(workspace, now)
        starts = [now, now + INSTANT, *(end for end in ledger.ends() if end < FAR)]
        return next((start for start in starts if self.room(workspace, start, length, ledger)), None)

    def never_fits(self, workspace: Workspace) -> bool:
        """Whether it would not even fit if every host were there and empty."""
        lost, self.broker.lost = self.broker.lost, set()
        try:
            return not self.room(workspace, self.broker.now, timedelta(1), Ledger((), self.broker.now))
        finally:
            self.broker.lost = lost

    # Order

    def share(self, tenant: str) -> float:
        """What part of all there is a tenant holds, of the resource of which that is most; what is reserved counts."""
        total: Counter[str] = Counter()
        for hosts in self.totals.values():
            for amounts in hosts.values():
                total.update({name: amounts[name] for name in RESOURCES})
        held = self.used_now(tenant)
        return max(held[name] / total[name] for name in RESOURCES)

    def used_now(self, tenant: str) -> Counter[str]:
        """What counts against a tenant's limits."""
        held: Counter[str] = Counter()
        for each in self.records():
            if each.tenant != tenant:
                continue
            if not each.nodes:
                held["nodes"] += sum(wanted.count for wanted in each.node_sets)
            for node in each.nodes:
                held["nodes"] += node.state not in FINAL
                if not node.released and node.state is not State.PENDING and node.state not in FINAL:
                    held.update(node.held)
        return held

    def used(self, tenant: str, now: datetime) -> float:
        """Its share added up over time, halved with each half-life, by its weight."""
        half_life = self.settings.queue.half_life
        total = 0.0
        changes = self.shares[tenant]
        for (begin, share), (until, _) in zip(changes, [*changes[1:], (now, 0.0)], strict=True):
            # The integral of a power of two from `until` back to `begin`, both in half-lives before now.
            ages = [0.5 ** ((now - instant) / half_life) for instant in (until, begin)]
            total += share * (ages[0] - ages[1])
        return total / self.settings.tenants[tenant].share

    def ahead(self, one: Workspace, other: Workspace, now: datetime) -> bool:
        """Whether one is surely before the other; not where what their tenants used is the same but for rounding."""
        keys = []
        for each in (one, other):
            key: list[float] = [not overdue(each)]
            if self.settings.queue.order == "fair-share":
                starved = self.starved(each, now)
                came = since(each).timestamp() if starved else 0.0
                key += [each.terms.preemptible, not starved, came, -each.terms.priority]
                if one.tenant != other.tenant:
                    key.append(self.used(each.tenant, now))
            keys.append(key)
        mine, theirs = keys
        shares_count = len(mine) > 1 and one.tenant != other.tenant
        if shares_count and mine[:-1] == theirs[:-1] and abs(mine[-1] - theirs[-1]) < 1e-9:
            return False
        return (mine, since(one)) < (theirs, since(other))

    def starved(self, workspace: Workspace, now: datetime) -> bool:
        """Whether it has waited for too long."""
        return waits(workspace) and now - since(workspace) >= self.settings.queue.starvation_limit

    def ready(self, workspace: Workspace) -> bool:
        """Whether nothing but room keeps it waiting: neither its window, nor its limits, nor what is under way."""
        earliest = workspace.terms.earliest_start_time
        if not workspace.nodes and earliest is not None and earliest > self.broker.now:
            return False
        if any(node.state in MOVING for node in workspace.nodes):
            return False
        held = self.used_now(workspace.tenant)
        held.update({"cpu": sum(each["cpu"] for each in self.wanted(workspace))})
        limits = self.settings.tenants[workspace.tenant].limits
        return all(held[name] <= limit for name, limit in limits.items())

    def within_limits(self, record: Workspace) -> bool:
        """Whether its tenant may have that as well."""
        held = self.used_now(record.tenant)
        held.update({"cpu": sum(each["cpu"] for each in self.wanted(record)), "nodes": len(self.wanted(record))})
        return all(held[name] <= limit for name, limit in self.settings.tenants[record.tenant].limits.items())


def since(workspace: Workspace) -> datetime:
    """When it came."""
    return workspace.waiting_since or workspace.create_time


def told(instant: datetime | None) -> str:
    """An instant, briefly."""
    return "never" if instant is None else f"{instant:%H:%M:%S}" + f".{instant.microsecond:06}".rstrip("0").rstrip(".")


def brief(workspace: Workspace) -> str:
    """A workspace, briefly."""
    wanted, terms = workspace.node_sets[0], workspace.terms
    words = [f"{workspace.id} {workspace.state} of {workspace.tenant}, {wanted.count} x {dict(wanted.amounts)}"]
    words += [f"on {'+'.join(node.host for node in workspace.nodes)}"] if workspace.nodes else []
    words += [f"in {workspace.requested_pool or 'any'}, {told(workspace.start_time)} to {told(workspace.end_time)}"]
    words += [f"for {terms.duration}"] * (not workspace.nodes)
    words += ["preemptible"] * terms.preemptible + [f"priority {terms.priority}"] * bool(terms.priority)
    words += [f"deadline {told(terms.deadline)}"] * (terms.deadline is not None)
    words += [f"waits since {told(workspace.waiting_since)}"] * waits(workspace)
    words += [f"gives way at {told(workspace.preemption.free_time)}"] if workspace.preemption else []
    words += [f"stands still since {told(workspace.preempted_time)}"] * (workspace.preempted_time is not None)
    return ", ".join(words)
