"""What time alone does to leases: their begin, the warning before the end, the end, and when a record is forgotten.

Every workspace has at most one next due instant, a function of its record; a heap holds them, and what has changed
meanwhile is skipped. After a restart what ended meanwhile is ended now. When the wall clock jumps, nothing is begun or
ended by time until it agrees with the monotonic clock again.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from msgspec.structs import replace

from backends.base import Action
from broker.book import Book, Transaction
from broker.core.clock import Clock
from broker.core.errors import BrokerError
from broker.core.model import Cause, EndAction, Node, Notice, NoticeKind, State, Task, Workspace, without
from broker.engine.driver import STUCK_AFTER
from broker.engine.giving_way import GivingWay
from broker.engine.reservations import Reservations
from broker.engine.retry import interrupted_sleep
from broker.engine.tasks import begin, letting_go
from broker.pools import Pool
from broker.preempting import pools_of
from broker.queue import Queue
from broker.waiting import lapses_at

log = logging.getLogger(__name__)

FIRST_END_PAUSE: Final = 10.0
LONGEST_END_PAUSE: Final = 300.0
"""Seconds until an end action that failed is tried again; they double from the first to the longest."""

LONGEST_NAP: Final = 3600.0

LOOK_AGAIN_AFTER: Final = timedelta(seconds=1)
"""After that long what could not be done when it was due is tried again."""


CLOCK_STEP: Final = 30.0
"""Seconds by which the wall clock may differ from the monotonic one before time is doubted."""

CLOCK_TRUSTED_AFTER: Final = 60.0
"""Seconds both clocks have to agree before leases begin and end by time again."""


class ClockWatch:
    """Tells steps of the wall clock: it compares how far both clocks came since the last look."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._wall = clock.now()
        self._steady = clock.monotonic()
        self._doubted_until = float("-inf")

    def trusted(self) -> bool:
        """Looks at both clocks; False for a while after a step."""
        wall, steady = self._clock.now(), self._clock.monotonic()
        step = (wall - self._wall).total_seconds() - (steady - self._steady)
        self._wall, self._steady = wall, steady
        if abs(step) > CLOCK_STEP:
            self._doubted_until = steady + CLOCK_TRUSTED_AFTER
            log.error("clock=stepped by=%.0fs leases wait %.0fs", step, CLOCK_TRUSTED_AFTER)
        return steady >= self._doubted_until

    def trust(self) -> None:
        """An operator says the clock is right."""
        self._doubted_until = float("-inf")

    @property
    def wait(self) -> float:
        """Seconds until time may be trusted again."""
        return max(0.0, self._doubted_until - self._clock.monotonic())


@dataclass(frozen=True, slots=True, kw_only=True)
class _Refused:
    """An end action that failed: how often, at which revision the last time, and when it is tried again."""

    times: int
    revision: int
    again: datetime


class Expiry:
    """Leases of all pools in time."""

    def __init__(
        self,
        pools: Mapping[str, Pool],
        book: Book,
        clock: Clock,
        queue: Queue,
        reservations: Reservations,
        *,
        keep_records: timedelta,
    ) -> None:
        self._pools = dict(pools)
        self._book = book
        self._clock = clock
        self._queue = queue
        self._reservations = reservations
        self._giving_way = GivingWay(pools, book)
        self._keep_records = keep_records  # how long a workspace's record outlives it, its request ids with it
        self._heap: list[tuple[datetime, str]] = []
        self._noted: dict[str, datetime] = {}  # what was put on the heap last for each workspace
        self._wake = asyncio.Event()
        self._refused: dict[str, _Refused] = {}  # end actions that failed
        self.clock_watch = ClockWatch(clock)

    def watch(self, workspace: Workspace) -> None:
        """Notes when a workspace is due next; called at each change of it."""
        due = self.due(workspace)
        if due is None or workspace.state.final:
            self._refused.pop(workspace.uid, None)
        if due is not None and self._noted.get(workspace.uid) != due:
            self._push(due, workspace.uid)

    def _push(self, due: datetime, uid: str) -> None:
        self._noted[uid] = due
        heapq.heappush(self._heap, (due, uid))
        if self._heap[0][1] == uid:
            self._wake.set()

    def _has_to_wait(self, workspace: Workspace, now: datetime) -> bool:
        """Whether an end action that failed is tried again later only: ever more slowly, but it is."""
        if any(node.state.moving for node in workspace.nodes):
            return False
        if workspace.cause is not Cause.ERROR:
            self._refused.pop(workspace.uid, None)
            return False
        known = self._refused.get(workspace.uid, _Refused(times=0, revision=0, again=now))
        if known.revision != workspace.revision:  # it has failed once more
            pause = min(LONGEST_END_PAUSE, FIRST_END_PAUSE * 2.0 ** min(known.times, 10))
            again = now + timedelta(seconds=pause)
            known = _Refused(times=known.times + 1, revision=workspace.revision, again=again)
            self._refused[workspace.uid] = known
            self._push(again, workspace.uid)
        return now < known.again

    def due(self, workspace: Workspace) -> datetime | None:
        """The next instant at which time alone does something to a workspace."""
        if workspace.state.final:
            return (workspace.final_time or workspace.create_time) + self._keep_records
        if workspace.state is State.TERMINATING:
            return workspace.end_time if self._asked_to_end(workspace) else None
        instants = [self._giving_way.due(workspace)]
        if workspace.state is State.RESERVED:
            instants.append(workspace.prepare_time)
        if workspace.waiting_since is not None:
            instants.append(lapses_at(workspace))
            instants.append(self._eligible_at(workspace))
        if workspace.preempted_time is None:
            instants.append(self._warning_time(workspace))
            instants.append(self._end_begins(workspace))
        return min((instant for instant in instants if instant is not None), default=None)

    def _end_begins(self, workspace: Workspace) -> datetime | None:
        """When its end action begins: as long before the end as it takes to suspend, or as its guests are given to shut
        down; neither is allowed more than a tenth of the lease."""
        end, start = workspace.end_time, workspace.start_time
        if end is None or start is None or not workspace.started or workspace.terms.end_action is EndAction.SAVE:
            return end
        pools = [self._pools[name] for name in pools_of(workspace) if name in self._pools]
        if workspace.terms.end_action is EndAction.SUSPEND:
            early = max((pool.suspend_lead for pool in pools), default=timedelta())
        else:
            early = timedelta(seconds=max((pool.settings.shutdown_grace for pool in pools), default=0.0))
        return end - min(early, (end - start) / 10)

    def _asked_to_end(self, workspace: Workspace) -> list[Task]:
        """What goes on with nodes whose guests were asked to shut down before the end of the lease."""
        tasks = [self._book.tasks.get((workspace.uid, node.index)) for node in workspace.nodes]
        return [
            task
            for task in tasks
            if task is not None and task.action == Action.TERMINATE and task.cause is Cause.LEASE and not task.force
        ]

    def _eligible_at(self, workspace: Workspace) -> datetime | None:
        """When one that waits may begin, if that is still ahead."""
        earliest = workspace.terms.earliest_start_time
        return earliest if earliest is not None and earliest > self._clock.now() else None

    def _warning_time(self, workspace: Workspace) -> datetime | None:
        """When the notice ENDING comes: before the end, but not in the first half of the lease."""
        if workspace.end_time is None or workspace.start_time is None or workspace.state is State.PENDING:
            return None
        if workspace.notices and any(notice.kind is NoticeKind.ENDING for notice in workspace.notices):
            return None
        pools = {node.pool for node in workspace.nodes}
        warnings = [self._pools[pool].settings.end_warning for pool in pools if pool in self._pools]
        middle = workspace.start_time + (workspace.end_time - workspace.start_time) / 2
        return max(middle, workspace.end_time - timedelta(seconds=max(warnings, default=0.0)))

    async def run(self) -> None:
        """Does what is due, for ever; ends by cancellation."""
        for workspace in self._book.workspaces.values():
            self.watch(workspace)
        while True:
            self._wake.clear()
            now = self._clock.now()
            nap = LONGEST_NAP
            if not self.clock_watch.trusted():
                nap = min(nap, self.clock_watch.wait)
            else:
                while self._heap and self._heap[0][0] <= now:
                    uid = heapq.heappop(self._heap)[1]
                    self._noted.pop(uid, None)
                    try:
                        self.act(uid, now)
                    except BrokerError as error:  # the store: again a little later
                        log.error("workspace=%s error=%s", uid, error)
                        self._push(now + timedelta(seconds=1), uid)
                        break
                    except Exception:
                        log.exception("workspace=%s expiry=lost", uid)
                    self._look_again(uid, now)
                if self._heap:
                    nap = min(nap, (self._heap[0][0] - now).total_seconds())
            await interrupted_sleep(self._clock, max(nap, 0.001), self._wake)

    def _look_again(self, uid: str, now: datetime) -> None:
        """What could not be done yet is tried again a little later: a start whose room is not free, a lease that is to
        give way and still has something under way."""
        workspace = self._book.workspaces.get(uid)
        if workspace is not None and (workspace.state is State.RESERVED or workspace.preemption is not None):
            due = self.due(workspace)
            if due is not None and uid not in self._noted:
                self._push(max(due, now + LOOK_AGAIN_AFTER), uid)

    def room_freed(self) -> None:
        """Room has come free: starts that wait for theirs are tried again at once."""
        now = self._clock.now()
        for uid in self._reservations.late():
            self._push(now, uid)

    def ended(self, workspace: Workspace) -> None:
        """A workspace has come to its end: who was to give way to it need not, perhaps."""
        for victim in self._giving_way.concerned(workspace.uid):
            self.watch(victim)

    def start_late(self) -> None:
        """Starts that wait for room, before anybody in the queue takes it."""
        if self.clock_watch.wait <= 0.0:
            for uid in self._reservations.late():
                self.act(uid, self._clock.now())

    def act(self, uid: str, now: datetime) -> None:
        """Does to one workspace what is due at an instant."""
        workspace = self._book.workspaces.get(uid)
        due = self.due(workspace) if workspace is not None else None
        if workspace is None:
            return
        if due is None or due > now:
            if self._eligible_at(workspace) is None and uid in self._book.queue:
                self._queue.wake()  # it may begin from now on
            self.watch(workspace)
            return
        over = workspace.lease_over(now)
        begins = self._end_begins(workspace) if workspace.preempted_time is None else None
        ended = over or (begins is not None and begins <= now and not workspace.state.final)
        if ended and self._has_to_wait(workspace, now):
            return
        if not ended and not workspace.state.final:
            giving_way = self._giving_way.due(workspace)
            if giving_way is not None and giving_way <= now:
                self._giving_way.act(workspace, now)
                return
            if workspace.state is State.RESERVED:
                self._reservations.start(workspace, now)
                return
            lapse = lapses_at(workspace) if workspace.waiting_since is not None else None
            if lapse is not None and lapse <= now:
                self._queue.lapse(workspace, now)
                return
        with self._book.transaction() as tx:
            if workspace.state.final:
                tx.forget(workspace)
            elif ended:
                refused = self._refused.get(uid)
                if workspace.preempted_time is not None:  # it gave way until its deadline: that is its end
                    workspace = tx.put(
                        replace(
                            workspace,
                            end_time=workspace.terms.deadline,
                            waiting_since=None,
                            preempted_time=None,
                            preemption=None,
                            cause=Cause.LEASE,
                        )
                    )
                workspace = replace(workspace, notices=without(workspace.notices, NoticeKind.ENDING))
                if refused is not None and refused.times >= STUCK_AFTER:
                    workspace = self._stuck(workspace, now)
                self._end(tx, workspace, now, over=over)
            else:
                self._warn(tx, workspace, now)

    def _warn(self, tx: Transaction, workspace: Workspace, now: datetime) -> None:
        assert workspace.end_time is not None
        notice = Notice(
            kind=NoticeKind.ENDING,
            time=now,
            due_time=workspace.end_time,
            message=f"the lease ends and the workspace will be {_END_WORDS[workspace.terms.end_action]}; "
            "update its duration to keep it",
        )
        tx.put(replace(workspace, notices=(*workspace.notices, notice)))

    def _stuck(self, workspace: Workspace, now: datetime) -> Workspace:
        """With the notice that its end action keeps failing."""
        why = workspace.last_error.message if workspace.last_error is not None else "no more is known"
        since = next((notice.time for notice in workspace.notices if notice.kind is NoticeKind.STUCK), now)
        notice = Notice(kind=NoticeKind.STUCK, time=since, message=f"its end action keeps failing: {why}")
        return replace(workspace, notices=(*without(workspace.notices, NoticeKind.STUCK), notice))

    # End

    def _end(self, tx: Transaction, workspace: Workspace, now: datetime, *, over: bool) -> None:
        """One move of the end action; its next follows when this one shows. `over`: there is no time left."""
        if workspace.state in (State.PENDING, State.RESERVED):
            failed = replace(
                workspace,
                nodes=_moved(workspace.nodes, State.FAILED),
                state=State.FAILED,
                final_time=now,
                notices=(),
            )
            tx.put(failed)
            return
        live = [node for node in workspace.nodes if not node.state.final]
        action = workspace.terms.end_action
        unstarted = not workspace.started
        if action is EndAction.TERMINATE or unstarted:
            for task in self._asked_to_end(workspace):
                tx.put_task(replace(task, force=True, position=0, attempt=task.attempt + 1))
            self._expire(tx, workspace, live, now, force=over)
            return
        if any(node.state.moving and node.state is not State.REBOOTING for node in live):
            return  # it is awaited to its deadline, and looked at again when it has settled
        actions = {node.index: self._ending_action(workspace, node) for node in live}
        wanted = {index: next_action for index, next_action in actions.items() if next_action is not None}
        if wanted:
            index, following = min(wanted.items())
            # Each save makes an image of its own; anything else is done with all nodes at once.
            saving = following is Action.SAVE
            begin(
                tx,
                self._pools,
                workspace,
                {index: following} if saving else {each: move for each, move in wanted.items() if move is following},
                now,
                cause=Cause.LEASE,
                image_name=self._image_name(workspace, index) if saving else "",
            )
        elif action is EndAction.SAVE or (
            workspace.end_time is not None and now >= workspace.end_time + self._kept_after_end(live)
        ):
            self._expire(tx, workspace, live, now)
        elif workspace.end_time is not None:
            self._push(workspace.end_time + self._kept_after_end(live), workspace.uid)

    def _image_name(self, workspace: Workspace, index: int) -> str:
        wanted = workspace.node_set(workspace.nodes[index])
        return wanted.save_as if wanted.count == 1 else f"{wanted.save_as}-{index}"

    def _kept_after_end(self, live: list[Node]) -> timedelta:
        return timedelta(seconds=max((self._pools[node.pool].settings.keep_after_end for node in live), default=0.0))

    def _ending_action(self, workspace: Workspace, node: Node) -> Action | None:
        """The next move of one node under SUSPEND or SAVE; None when nothing is left to do."""
        can = self._pools[node.pool].backend.capabilities
        if node.state is State.PAUSED:
            return Action.UNPAUSE
        if workspace.terms.end_action is EndAction.SAVE:
            if node.state in (State.RUNNING, State.SUSPENDED):
                return Action.STOP if node.state is State.RUNNING else Action.RESUME
            return Action.SAVE if workspace.node_set(node).save_as and not node.saved else None
        return letting_go(node, can)

    def _expire(
        self, tx: Transaction, workspace: Workspace, live: list[Node], now: datetime, *, force: bool = True
    ) -> None:
        """No grace after the end: whatever still runs is ended hard."""
        begin(
            tx,
            self._pools,
            workspace,
            {node.index: Action.TERMINATE for node in live if node.state is not State.TERMINATING},
            now,
            cause=Cause.LEASE,
            force=force,
            final_state=State.EXPIRED,
        )


def _moved(nodes: tuple[Node, ...], state: State) -> tuple[Node, ...]:
    """Nodes in another state, but those that are at their end."""
    return tuple(node if node.state.final else replace(node, state=state) for node in nodes)


_END_WORDS: Final = {
    EndAction.TERMINATE: "terminated",
    EndAction.SUSPEND: "suspended",
    EndAction.SAVE: "saved and terminated",
}
