"""The queue: who waits for capacity, in which order, and who may pass whom.

Nothing of it is kept but that a workspace waits, and since when. Order, planned starts and what they keep others from
follow from the book in a pass over the queue (queue_pass.py), which runs when room comes free, when somebody joins or
leaves, and after each complete look at a pool. What is held for a planned start stands in the slot tables only while a
question is answered. A planned start is soft: a reservation may take its room, until the workspace has waited for the
starvation limit.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import datetime
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from broker.book import Book
from broker.config import QueueSettings
from broker.core.clock import Clock
from broker.core.errors import BrokerError, Failure, Reason
from broker.core.model import Cause, State, Workspace
from broker.core.placement import (
    NEAREST_HOSTS,
    Never,
    NotNow,
    PlacementRequest,
    Plan,
    PoolSnapshot,
    Window,
    fits,
    plan,
)
from broker.core.policies import PolicySet, Waiting
from broker.engine.retry import interrupted_sleep
from broker.placing import refused, snapshots, snapshots_for_their_own
from broker.pools import Pool
from broker.preempting import MadeRoom, Preempting
from broker.queue_pass import NOWHERE, Pass, Place, holding
from broker.tenant_use import TenantUse
from broker.tenants import Tenants
from broker.waiting import Entry, entry_of

log = logging.getLogger(__name__)

PASS_SHARE: Final = 4.0
"""Seconds of rest after a pass for each second that it took."""


class Asked(Struct, frozen=True, kw_only=True):
    """Where a request goes, or why not, with the pools as they were seen; `made`: if others give way for it, or it
    will have to."""

    answer: Plan | NotNow | Never
    seen: dict[str, PoolSnapshot]
    made: MadeRoom | None = None

    @property
    def plan(self) -> Plan | None:
        """Where it goes, one way or the other."""
        if isinstance(self.answer, Plan):
            return self.answer
        return self.made.plan if self.made is not None else None


class Queue:
    """Those of all pools who wait."""

    def __init__(
        self,
        book: Book,
        pools: Mapping[str, Pool],
        clock: Clock,
        tenants: Tenants,
        policies: PolicySet,
        preempting: Preempting,
        use: TenantUse,
        settings: QueueSettings,
    ) -> None:
        self._book = book
        self._pools = dict(pools)
        self._clock = clock
        self._tenants = tenants
        self._policies = policies
        self._preempting = preempting
        self._use = use
        self._settings = settings
        self._entries: dict[str, Entry] = {}
        self._places: dict[str, Place] = {}  # in the order of the last pass
        self._freed = 0  # what the book had given back when a pass began last
        self._estimated = False
        self._next_starved: datetime | None = None  # when one of them will have waited for the starvation limit
        self._generation = 0  # what was held, and there was, when it ended
        self._awake = asyncio.Event()
        self.before_pass: Callable[[], None] = lambda: None
        """Called before anybody begins: who was promised room that is free now takes it first."""

    # What others see

    def place(self, uid: str) -> Place:
        """Where a workspace stands; `NOWHERE` for one that does not wait."""
        if uid not in self._book.queue:
            return NOWHERE
        now = self._clock.now()
        if not self._estimated:
            self._survey(now, begin=False, estimates=True)
        elif not self._knows(uid):
            self._bring_up_to_date(now)
        return self._places.get(uid, NOWHERE)

    def ask(
        self,
        record: Workspace,
        asked: PlacementRequest,
        window: Window,
        now: datetime,
        *,
        nearest_hosts: int = NEAREST_HOSTS,
        judged: bool = False,
    ) -> Asked:
        """Where a request would go that comes now: it takes nothing from those who wait before it, nor does a
        reservation from those who have waited too long. If it is not preemptible, others may give way for it."""
        seen = snapshots(self._pools.values(), now)
        ahead = self._ahead_of(record, window, now)
        with self._heeded(ahead, seen) as heeded:
            answer = plan(asked, heeded, window, nearest_hosts=nearest_hosts, judged=judged)
            made = None
            if isinstance(answer, NotNow) and not record.terms.preemptible and self._book.preemptible:
                made = self._preempting.room_for(asked, heeded, window, now)
            elif isinstance(answer, NotNow) and record.terms.preemptible and window.immediate and not ahead:
                made = self._preempting.stay(record, asked, heeded, window, now)
        if isinstance(answer, NotNow) and made is None and window.latest_start is not None:
            # Planned starts are soft: a start that can be promised for later need not heed them.
            with self._heeded([place for place in ahead if place.starved], seen) as heeded:
                later = fits(asked, heeded, window)
            if later is not None and later.start > now:
                answer = later
        return Asked(answer=answer, seen=seen, made=made)

    def lapse(self, workspace: Workspace, now: datetime) -> None:
        """A workspace has waited in vain. One that has not begun fails; another stays as it is, and waits no more."""
        entry = entry_of(workspace, self._tenants.allowed_pools(workspace.tenant))
        answer = plan(entry.request, self._seen(entry, now), entry.window(now), nearest_hosts=0)
        if isinstance(answer, Plan):
            failure = Failure(
                reason=Reason.NO_CAPACITY,
                message=f"{workspace.name} has waited in vain for those before it in the queue",
                resource=workspace.name,
            )
        else:
            failure = refused(answer, now, workspace.name).failure()
        lapsed = replace(workspace, waiting_since=None, last_error=failure, cause=Cause.ERROR)
        if workspace.state is State.PENDING:
            nodes = tuple(node if node.state.final else replace(node, state=State.FAILED) for node in workspace.nodes)
            lapsed = replace(lapsed, nodes=nodes, state=State.FAILED, final_time=now, notices=())
        with self._book.transaction() as tx:
            tx.put(lapsed)

    def changed(self, workspace: Workspace) -> None:
        """A workspace has changed, durably: room may have come free, or somebody waits who did not."""
        self._use.note(workspace)
        left = workspace.uid in self._places and workspace.uid not in self._book.queue
        if self._book.queue and (left or self._generations() != self._generation or not self._knows(workspace.uid)):
            self._awake.set()

    def firm_plans(self) -> AbstractContextManager[None]:
        """The slot tables with the planned starts that even promises have to heed."""
        return holding(self._book, [place for place in self._places.values() if place.starved])

    def wake(self) -> None:
        """Asks for a pass."""
        self._awake.set()

    async def run(self) -> None:
        """Passes when there is reason for one, for ever; ends by cancellation."""
        while True:
            if self._next_starved is None:
                await self._awake.wait()
            else:
                nap = (self._next_starved - self._clock.now()).total_seconds()
                await interrupted_sleep(self._clock, nap, self._awake)
            self._awake.clear()
            self._next_starved = None
            if not self._book.queue:
                self._places.clear()
                continue
            began = self._clock.monotonic()
            try:
                self.serve()
            except BrokerError as error:  # the store: the next pass finds the same again
                log.error("queue pass=lost error=%s", error)
            except Exception:
                log.exception("queue pass=lost")
            took = self._clock.monotonic() - began
            if took > 0.0:
                await self._clock.sleep(took * PASS_SHARE)

    # A pass

    def serve(self) -> None:
        """One pass: whoever fits begins, in order, and the others are told when they would."""
        self.before_pass()
        self._survey(self._clock.now(), begin=True)

    def _survey(self, now: datetime, *, begin: bool, estimates: bool = False) -> None:
        """Gives everyone a place, in order; with `begin`, whoever fits begins instead. With `estimates` also those are
        told a start whose start nobody has to heed, which is for those who look alone."""
        self._estimated = estimates
        self._freed = self._book.freed
        ordered = self._in_order(now)
        with self._pass(now, estimates=estimates) as turn:
            self._places = turn.serve(ordered, begin=begin)
        self._note_starving(now)
        self._generation = self._generations()

    def _bring_up_to_date(self, now: datetime) -> None:
        """Gives a place to those who have come since the last pass; looks at all anew where more has changed."""
        new = [uid for uid in self._book.queue if not self._knows(uid)]
        if not new and self._freed == self._book.freed:
            return
        ordered = self._in_order(now)
        known = {uid: place for uid, place in self._places.items() if uid in self._entries and uid not in new}
        if self._freed != self._book.freed or [each.workspace.uid for each in ordered[-len(new) :]] != new:
            self._survey(now, begin=False)
            return
        with self._pass(now, estimates=self._estimated) as turn:  # they stand behind all others
            turn.take_over(known.values())
            for entry in ordered[-len(new) :]:
                known[entry.workspace.uid] = turn.place_of(entry, len(known) + 1)
        self._places = known
        if self._next_starved is None:
            self.wake()

    def _note_starving(self, now: datetime) -> None:
        """Notes when the next of them will have waited for the starvation limit: the order is another from then on."""
        limit = self._settings.starvation_limit
        instants = (self._entries[uid].waiting.since + limit for uid in self._places)
        self._next_starved = min((at for at in instants if at > now), default=None)

    def _generations(self) -> int:
        """Grows with every change of what is held, or of what there is."""
        return sum(self._book.generations.values())

    def _pass(self, now: datetime, *, estimates: bool) -> Pass:
        return Pass(
            self._book,
            self._pools,
            self._tenants,
            self._policies,
            self._preempting,
            self._settings,
            self._places,
            now,
            estimates=estimates,
        )

    def _knows(self, uid: str) -> bool:
        """Whether a workspace, if it waits, has the place it has to have as it stands."""
        if uid not in self._book.queue:
            return True
        entry = self._entries.get(uid)
        return entry is not None and uid in self._places and entry.workspace is self._book.workspaces[uid]

    # Inside

    def _in_order(self, now: datetime) -> list[Entry]:
        """Those who wait, the first to be served first."""
        waiting = []
        entries: dict[str, Entry] = {}
        for uid in self._book.queue:
            workspace = self._book.workspaces[uid]
            entry = self._entries.get(uid)
            if entry is None or entry.workspace is not workspace:
                entry = entry_of(workspace, self._tenants.allowed_pools(workspace.tenant))
            entries[uid] = entry
            waiting.append(self._as_waiting(entry, now))
        self._entries = entries
        return [entries[each.uid] for each in self._policies.order.order(waiting, now)]

    def _as_waiting(self, entry: Entry, now: datetime) -> Waiting:
        """One of them as the order sees it."""
        starved = now - entry.waiting.since >= self._settings.starvation_limit
        return replace(entry.waiting, used=self._use.used(entry.waiting.tenant, now), starved=starved)

    def _ahead_of(self, record: Workspace, window: Window, now: datetime) -> list[Place]:
        """The places of those whom a newcomer has to heed."""
        if not self._book.queue:
            return []
        self._bring_up_to_date(now)
        if window.start > now:
            return [place for place in self._places.values() if place.starved]
        newcomer = replace(
            entry_of(record, None).waiting, since=now, used=self._use.used(record.tenant, now), uid=record.uid
        )
        waiting = [
            self._as_waiting(entry, now)
            for uid, entry in self._entries.items()
            if uid in self._book.queue and uid in self._places
        ]
        ordered = list(self._policies.order.order([*waiting, newcomer], now))
        at = next(place for place, each in enumerate(ordered) if each.uid == newcomer.uid)
        # Who has starved is passed by nobody, whatever the order, but by those it would have to give way to.
        passed = [each for each in ordered[at + 1 :] if each.starved and each.preemptible <= newcomer.preemptible]
        return [self._places[each.uid] for each in (*ordered[:at], *passed)]

    @contextmanager
    def _heeded(self, ahead: Sequence[Place], seen: Mapping[str, PoolSnapshot]) -> Iterator[Mapping[str, PoolSnapshot]]:
        """The pools as they are for somebody behind these: their planned starts are held, their pools closed."""
        if not ahead:
            yield seen
            return
        closed = Counter(pool for place in ahead for pool in place.closes)
        with holding(self._book, ahead):
            if not closed:
                yield seen
                return
            yield {name: replace(pool, queued=closed[name]) if name in closed else pool for name, pool in seen.items()}

    def _seen(self, entry: Entry, now: datetime) -> dict[str, PoolSnapshot]:
        """The pools as they stand: one that drains still takes back what was its own."""
        look = snapshots_for_their_own if entry.workspace.nodes else snapshots
        return look(self._pools.values(), now)
