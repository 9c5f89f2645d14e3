"""What the queue must keep to, worked out again from records alone, the plain way; checked after every change.

Nothing here asks the modules under test (see queue_model.py), but for the planned starts that are told, which are
compared with what was told before.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Final

from broker.core.errors import BrokerError, Reason
from broker.core.model import FINAL, State, Workspace
from broker.core.requests import WorkspaceRequest
from tests.support.naive_room import FAR, Ledger
from tests.support.queue_broker import MOMENT, QueueBroker, waits
from tests.support.queue_model import INSTANT, RESOURCES, QueueModel, brief, told

TOLERANCE: Final = 2 * MOMENT
"""VMs are seen gone a moment after the end of their lease."""


@dataclass(frozen=True)
class Begun:
    """Somebody who began, or was promised room at once, since the last check."""

    workspace: Workspace  # as it began
    before: Workspace  # as it waited, if it did
    time: datetime
    queued: bool  # it waited before


@dataclass(frozen=True)
class Waiter:
    """Somebody who waits, as of a check."""

    workspace: Workspace
    position: int
    start: datetime | None  # what it was told and is to be kept
    due: datetime | None  # what it was told before and came a moment ago
    planned: datetime | None  # as things stand
    ready: bool  # nothing but room keeps it waiting
    starved: bool
    shut: bool  # it was starved when its start was told
    heeded: bool  # nobody who comes later may put it off


@dataclass
class Told:
    """What was seen of one workspace when it was accepted, and since."""

    promised: datetime | None = None  # its start, if that is firm
    lost_a_host: bool = False


@dataclass
class Happened:
    """What happened since the last check."""

    begun: list[Begun] = field(default_factory=list)
    promised: list[Workspace] = field(default_factory=list)
    failures: bool = False
    preemption: bool = False
    spared: bool = False  # somebody who was to give way need not


class Rules(QueueModel):
    """The rules of one run. `seen` counts how often what happened."""

    def __init__(self, broker: QueueBroker, seen: Counter[str]) -> None:
        super().__init__(broker)
        self.seen = seen
        self.told: defaultdict[str, Told] = defaultdict(Told)
        self.before: dict[str, Waiter] = {}  # who waited at the last check
        self.happened = Happened()
        self.lingered = False  # whether, at the last check, VMs were still there because their host was lost
        self.story: list[str] = []
        """What happened, for whoever has to find out why."""
        broker.noted = self.note
        broker.looked = self.check

    # What happens

    def note(self, workspace: Workspace) -> None:
        """Takes in one change."""
        now = self.broker.now
        was = self.keep(workspace)
        self.story.append(f"{told(now)} {brief(workspace)}")
        self._check_standing_still(was, workspace, now)
        moved = was is not None and [node.host for node in was.nodes] != [node.host for node in workspace.nodes]
        old = was.state if was is not None else None
        if workspace.state is State.RESERVED and old is not State.RESERVED:
            told_it = self.told[workspace.uid]
            told_it.promised = workspace.start_time
            told_it.lost_a_host |= workspace.start_time != now and self._not_gone(workspace)
            self.happened.promised.append(workspace)
            if any(each.preemption is not None and each.preemption.by == workspace.uid for each in self.records()):
                self.seen["preemptions"] += 1
                self.happened.preemption = True
                terms = workspace.terms
                if was is not None or not (terms.start_time or terms.earliest_start_time or terms.deadline):
                    self._begins(was, workspace, now)
        elif workspace.state is State.STARTING and old is State.RESERVED:
            self._check_punctual(workspace, now)
            self.happened.failures |= moved
        elif (workspace.state is State.STARTING and old in (None, State.PENDING)) or (
            was is not None and waits(was) and not waits(workspace) and workspace.state is State.RESUMING
        ):
            self._begins(was, workspace, now)
        elif moved or (workspace.state is State.PENDING and old is State.RESERVED):
            self.happened.failures = True
        if workspace.preempted_time is not None and (was is None or was.preempted_time is None):
            self.seen["made to give way"] += 1
            self.happened.preemption = True
        if was is not None and was.preemption is not None and workspace.preemption is None:
            spared = was.preempted_time is None and workspace.state not in FINAL
            self.seen["spared"] += spared
            self.happened.spared |= spared
        self._check_waited_in_vain(was, workspace, now)

    def _begins(self, was: Workspace | None, workspace: Workspace, now: datetime) -> None:
        queued = was is not None and waits(was)
        before = was if was is not None and queued else workspace
        self.happened.begun.append(Begun(workspace=workspace, before=before, time=now, queued=queued))
        self.seen["began from the queue" if queued else "began at once"] += 1

    def _not_gone(self, workspace: Workspace) -> bool:
        """Whether the VM of a lease that ended on a lost host is still there, on one of its hosts."""
        hosts = {(node.pool, node.host) for node in workspace.nodes}
        return any(
            self.told[each.uid].lost_a_host and hosts & {(node.pool, node.host) for node in each.nodes}
            for each in self.records()
            if each.state is State.TERMINATING
        )

    def host_lost(self, pool: str, host: str) -> None:
        """A host was lost, or came back."""
        self.happened.failures = True
        self.story.append(f"{told(self.broker.now)} {pool}/{host} is lost, or back")
        for each in self.records():
            if any((node.pool, node.host) == (pool, host) for node in each.nodes):
                self.told[each.uid].lost_a_host = True
                if each.preemption is not None:
                    self.told[each.preemption.by].lost_a_host = True

    # What is asked

    def asks(self, tenant: str, wanted: WorkspaceRequest) -> None:
        """Somebody is about to ask for something: what must come of it follows from what is there now."""
        now = self.broker.now
        terms = wanted.terms
        record = Workspace(
            uid="asked",
            tenant=tenant,
            id="asked",
            create_time=now,
            node_sets=wanted.node_sets,
            terms=terms,
            state=State.PENDING,
            nodes=(),
            requested_pool=wanted.pool,
        )
        self.asked = record
        self.free_now = False
        waiting = [each for each in self.records() if waits(each)]
        start = terms.start_time or terms.earliest_start_time or now
        length = self.length(record, now)
        heeds_nobody = not waiting or (start > now and not any(self.starved(each, now) for each in waiting))
        if heeds_nobody and terms.deadline is None and self.within_limits(record):
            self.free_now = self.room(record, start, length, Ledger(self.records(), now))

    def accepted(self, workspace: Workspace) -> None:
        """It was accepted."""
        assert not self.never_fits(self.asked), f"{workspace.id} can never fit and was accepted"
        if self.free_now:
            assert not waits(workspace), f"{workspace.id} waits, and there is room and nobody before it"
            self.seen["accepted for want of a reason to refuse"] += 1
        start = workspace.terms.start_time or workspace.terms.earliest_start_time
        if workspace.state is State.RESERVED and start is not None and not self.happened.failures:
            shut = [
                each.workspace.id
                for each in self.before.values()
                if each.shut and each.ready and each.start is None
                if self.pools(each.workspace) & {node.pool for node in workspace.nodes}
            ]
            assert not shut, f"{workspace.id} was reserved before {shut}, of whom nobody can tell when they begin"

    def refused(self, refusal: BrokerError) -> None:
        """It was refused."""
        never = self.never_fits(self.asked)
        limits = refusal.reason is Reason.QUOTA_EXCEEDED
        assert limits or never == (refusal.reason is Reason.NEVER_FITS), f"{refusal.reason}: {refusal}"
        assert limits or never or not self.free_now, f"there is room, and nobody before it: {refusal}"
        assert limits or never or self.asked.terms.queue_until is None, f"it would have waited: {refusal}"

    # The rules

    def check(self) -> None:
        """Everything that holds whenever anything has changed."""
        now = self.broker.now
        self._check_capacity(now)
        self._check_limits()
        self._check_due(now)
        waiters = self._waiters(now)
        self._check_passing(waiters, now)
        self._check_plans(waiters)
        self._check_first(waiters, now)
        self.before, self.happened = waiters, Happened()
        self.lingered = any(
            self.told[each.uid].lost_a_host and each.state is State.TERMINATING for each in self.records()
        )
        if waiters:
            queue = [f"{each.workspace.id} {told(each.start)}{' starved' * each.starved}" for each in waiters.values()]
            self.story.append(f"{told(now)} queue: {', '.join(queue)}")

    def _waiters(self, now: datetime) -> dict[str, Waiter]:
        """Those who wait, by position."""
        found = {}
        for each in self.records():
            if waits(each):
                place = self.broker.place(each.uid)
                policies = {self.policy(pool) for pool in self.pools(each)}
                found[each.uid] = Waiter(
                    workspace=each,
                    position=place.position,
                    start=place.start,
                    due=place.due,
                    planned=place.start,
                    ready=self.ready(each),
                    starved=self.starved(each, now),
                    shut=place.starved,
                    heeded=place.position == 1 or self.starved(each, now) or policies <= {"conservative", "none"},
                )
        return dict(sorted(found.items(), key=lambda item: item[1].position))

    def _check_capacity(self, now: datetime) -> None:
        """At no instant is more promised of a host than there is; nor does more hold it now."""
        records = self.records()
        promised = Ledger(records, now)
        there = Ledger([each for each in records if each.state is not State.RESERVED], now)
        for pool, hosts in self.totals.items():
            for host, total in hosts.items():
                for name in RESOURCES:
                    later = promised.most(pool, host, name, now + INSTANT, FAR)
                    assert later <= total[name], f"{later} {name} promised of {total[name]} on {pool}/{host}"
                    held = there.most(pool, host, name, now, now + INSTANT)
                    assert held <= total[name], f"{held} {name} held of {total[name]} on {pool}/{host}"

    def _check_limits(self) -> None:
        """No tenant passes its limits."""
        for tenant, settings in self.settings.tenants.items():
            held = self.used_now(tenant)
            for name, limit in settings.limits.items():
                assert held[name] <= limit, f"{tenant} has {held[name]} {name}, its limit is {limit}"
                self.seen["limits reached"] += held[name] == limit

    def _check_due(self, now: datetime) -> None:
        """Reservations have begun, and those who have waited in vain have failed."""
        for each in self.records():
            told = self.told[each.uid]
            if told.promised is not None and each.state in (State.RESERVED, State.PENDING) and not told.lost_a_host:
                late = now - told.promised
                assert late < MOMENT or each.preempted_time is not None, f"{each.id} should have begun {late} ago"
            until = each.terms.queue_until
            if waits(each) and until is not None and not each.nodes:
                assert now - until < MOMENT, f"{each.id} waits in vain since {until}"

    def _check_punctual(self, workspace: Workspace, now: datetime) -> None:
        """A reservation that lost no host begins at its second."""
        told = self.told[workspace.uid]
        if told.lost_a_host:
            self.seen["reservations that lost a host"] += 1
            return
        assert told.promised is not None
        assert workspace.start_time == told.promised, f"{workspace.id} was promised {told.promised}"
        assert timedelta() <= now - told.promised < MOMENT, f"{workspace.id} begins {now - told.promised} late"
        self.seen["reservations in time"] += 1

    def _check_standing_still(self, was: Workspace | None, workspace: Workspace, now: datetime) -> None:
        """Only who is preemptible gives way; its end moves by just the time it stood still, up to its deadline."""
        if workspace.preemption is not None or workspace.preempted_time is not None:
            assert workspace.terms.preemptible, f"{workspace.id} is not preemptible and has to give way"
        if was is None or was.preempted_time is None or workspace.state in FINAL:
            moved = was is not None and was.nodes and workspace.end_time != was.end_time
            assert not moved, f"{workspace.id} ends at another time, and has not given way"
            return
        if workspace.preempted_time is not None:
            return
        if was.end_time is None:
            assert workspace.end_time is None
            return
        expected = was.end_time + (now - was.preempted_time)
        deadline = workspace.terms.deadline
        if deadline is not None:
            self.seen["deadlines met after giving way"] += expected > deadline
            expected = min(expected, deadline)
        if workspace.state is State.TERMINATING:
            return
        # One that goes on when it was told may end when it was told, though VMs were seen gone a moment later.
        assert workspace.end_time is not None
        assert timedelta() <= expected - workspace.end_time < MOMENT, (
            f"{workspace.id} ends at {workspace.end_time}, not at {expected}"
        )
        self.seen["went on after giving way"] += 1

    def _check_waited_in_vain(self, was: Workspace | None, workspace: Workspace, now: datetime) -> None:
        if was is None or not waits(was) or workspace.state is not State.FAILED:
            return
        self.seen["waited in vain"] += 1
        limits = [was.terms.queue_until, was.terms.deadline, was.end_time]
        assert any(limit is not None and limit - now < latest_before(was) + MOMENT for limit in limits), (
            f"{was.id} has failed before its time was up"
        )

    def _check_passing(self, waiters: Mapping[str, Waiter], now: datetime) -> None:
        """Nobody who began has passed or put off somebody before it, where the policy forbids that."""
        stayed = [each for uid, each in waiters.items() if each.ready and uid in self.before and self.before[uid].ready]
        for begun in self.happened.begun:
            mine = {node.pool for node in begun.workspace.nodes}
            passed = [
                each
                for each in stayed
                if self.ahead(each.workspace, begun.before, begun.time) and mine & self.pools(each.workspace)
            ]
            for each in passed:
                shut = [pool for pool in mine & self.pools(each.workspace) if self.policy(pool) == "none"]
                assert not shut, f"{begun.workspace.id} has passed {each.workspace.id} in {shut}"
            if passed:
                self.seen["passed somebody"] += 1
                self._check_unhurt(begun, passed[0], now)

    def _check_unhurt(self, begun: Begun, passed: Waiter, now: datetime) -> None:
        """Who began has not put off the first of those it passed: without it that one could begin no earlier."""
        if passed.position != 1 or self.happened.preemption or self.happened.failures or self.happened.promised:
            return
        first = passed.workspace
        records = self.records()
        uid = begun.workspace.uid
        alone = self.earliest(first, now, Ledger([each for each in records if each.uid != uid], now))
        beside = self.earliest(first, now, Ledger(records, now))
        if alone is None:
            return
        assert beside is not None, f"{begun.workspace.id} keeps {first.id} waiting for ever"
        assert beside <= alone, f"{begun.workspace.id} puts off {first.id} from {alone} to {beside}"
        self.seen["passed the first without hurting it"] += 1

    def _check_plans(self, waiters: dict[str, Waiter]) -> None:
        """Planned starts that somebody has to heed do not move, but for a reason that may move them."""
        before = self.before
        for uid, each in list(waiters.items()):
            was = before.get(uid)
            if was is None or was.start is None or not (each.ready and was.ready):
                continue
            if not (each.heeded and was.heeded) or self._excused(uid, was, waiters):
                continue
            if each.due == was.start and self.broker.now - was.start < TOLERANCE:
                waiters[uid] = replace(each, start=was.start)  # a VM has to go first
                continue
            first = each.position == was.position == 1
            behind = [begun for begun in self.happened.begun if self.ahead(each.workspace, begun.before, begun.time)]
            self.seen["plans kept"] += 1
            self.seen["plans of the first kept, somebody began behind"] += first and bool(behind)
            self.seen["plans of others kept, somebody began behind"] += not first and bool(behind)
            self.seen["plans of starved ones kept, room was promised"] += was.starved and bool(self.happened.promised)
            later = each.start is None or each.start > max(was.start, self.broker.now) + TOLERANCE
            assert not later, f"{each.workspace.id} was to begin at {was.start}, and now at {each.start}"

    def _excused(self, uid: str, was: Waiter, waiters: Mapping[str, Waiter]) -> bool:
        """Whether a planned start may have become later: hosts failed, room was promised, others gave way, or those
        before it are not what they were."""
        happened = self.happened
        if happened.failures or happened.spared or self.broker.lost or self.lingered:
            return True
        mine = waiters[uid].workspace
        if not was.starved and (happened.promised or happened.preemption):
            return True
        # A starved one is heeded by reservations, but who has to give way is by nobody it would give way to.
        if any(
            mine.terms.preemptible > each.terms.preemptible and not each.terms.start_time for each in happened.promised
        ):
            return True
        if any(not self.ahead(mine, begun.before, begun.time) for begun in happened.begun):
            return True  # who began was before it
        position = waiters[uid].position
        ahead = {other: each for other, each in waiters.items() if each.position < position}
        before = {other: each for other, each in self.before.items() if each.position < was.position}
        return ahead.keys() != before.keys() or any(_other_plan(before[other], ahead[other]) for other in ahead)

    def _check_first(self, waiters: Mapping[str, Waiter], now: datetime) -> None:
        """The first in the queue does not fit: else it would have begun."""
        first = next((each for each in waiters.values() if each.ready), None)
        if first is None or first.position != 1:
            return
        length = self.length(first.workspace, now)
        ledger = Ledger(self.records(), now)
        assert not self.room(first.workspace, now, length, ledger), f"{first.workspace.id} waits, and there is room"
        self.seen["the first does not fit"] += 1
        able = frozenset(each.uid for each in self.records() if self._gives_way_at_once(each, first.workspace))
        if able and not first.workspace.terms.preemptible and first.workspace.state is State.PENDING:
            made = Ledger(self.records(), now, able, now)
            assert not self.room(first.workspace, now, length, made), (
                f"{first.workspace.id} waits, others could give way"
            )
            self.seen["nor if others gave way"] += 1

    def _gives_way_at_once(self, workspace: Workspace, to: Workspace) -> bool:
        """Whether it can be made to give way, and needs no time for it."""
        settings = [self.settings.pools[node.pool] for node in workspace.nodes]
        return (
            workspace.terms.preemptible
            and workspace.preemption is None
            and workspace.preempted_time is None
            and workspace.state not in (State.PENDING, State.RESERVED, State.TERMINATING)
            and not any(pool.preemption_notice or pool.suspend_lead for pool in settings)
            and any(node.pool in self.pools(to) for node in workspace.nodes)
        )


def _other_plan(before: Waiter, now: Waiter) -> bool:
    """Whether what one keeps others from may be another than before."""
    return (before.ready, before.shut, before.planned) != (now.ready, now.shut, now.planned)


def latest_before(workspace: Workspace) -> timedelta:
    """How long before its deadline one that has no place yet must begin."""
    return timedelta() if workspace.nodes else workspace.terms.duration or timedelta()
