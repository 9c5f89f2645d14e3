"""Looks at one pool and draws the conclusions: what each node is seen to be, by the table of observations.

One document a round serves every node; a quick round draws its conclusions for those alone of which something is
awaited. Rounds follow each other quickly while something is awaited, else at the
pool's refresh interval. Only what was asked for after the backend accepted a node's last call counts. A VM missing
from a document is asked for by itself; if many are missing at once, the next round has to say the same.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence, Set
from datetime import datetime, timedelta
from functools import partial
from typing import Final

from msgspec.structs import replace

from backends.base import Action, BackendError, ObservedNode
from broker.book import Book
from broker.core.clock import Clock
from broker.core.errors import BrokerError, Failure, Reason
from broker.core.lifecycle import HARDER_AFTER_SECONDS, Do, Effect, Seen, observe
from broker.core.model import FINAL, Cause, Node, NodeKey, NoticeKind, State, Task, Workspace, without
from broker.engine.breaker import Breaker
from broker.engine.driver import Driver
from broker.engine.fault_points import FaultPoint, Moment, point_of
from broker.engine.retry import interrupted_sleep
from broker.engine.settling import node_after
from broker.engine.starts import Starts
from broker.engine.tasks import write
from broker.metrics import Metrics
from broker.pools import Pool

log = logging.getLogger(__name__)

QUICKEST_ROUND: Final = 0.05
"""Seconds between rounds right after a step was accepted; they double up to SLOWEST_ROUND while nothing comes."""

SLOWEST_ROUND: Final = 1.0

ROUNDS_SHARE: Final = 10
"""Seconds of pause for each second that a round takes, while there are steps that it keeps waiting."""

NOT_BEGUN_OR_FINAL: Final = FINAL | {State.PENDING, State.RESERVED}

END_AGAIN_AFTER: Final = 5.0
"""Seconds after which a VM that was told to end and still shows as before is told again."""

MANY_MISSING: Final = 10
"""More nodes than this and a tenth of a pool missing at once is doubted for one round."""


class Observer:
    """The eyes on one pool."""

    def __init__(
        self,
        pool: Pool,
        book: Book,
        clock: Clock,
        metrics: Metrics,
        breaker: Breaker,
        driver: Driver,
        starts: Starts,
        *,
        fault_point: FaultPoint,
    ) -> None:
        self.pool = pool
        self._book = book
        self._clock = clock
        self._metrics = metrics
        self._breaker = breaker
        self._driver = driver
        self._starts = starts
        self._fault_point = fault_point
        self._soon = asyncio.Event()
        self._looking = asyncio.Lock()
        self._missing_before: frozenset[NodeKey] = frozenset()
        self._seen_at: dict[NodeKey, datetime] = {}
        self._concluded: dict[NodeKey, tuple[Node, ObservedNode]] = {}  # what led to nothing, and on which node
        self.on_room: Callable[[], None] = lambda: None
        """Called when capacity may have come free."""

    def soon(self) -> None:
        """Asks for a round now, as after an accepted step."""
        self._soon.set()

    async def run(self) -> None:
        """Rounds for ever; ends by cancellation."""
        pause = 0.0
        next_refresh = self._clock.monotonic()
        while True:
            began = self._clock.monotonic()
            refresh_due = began >= next_refresh
            try:
                if refresh_due:
                    await self.refresh()
                elif self._awaited():
                    await self.look()
            except BackendError:
                pass  # told to the breaker, which stands in the pool's last_error
            except BrokerError as error:  # the store: the next round finds the same again
                log.error("pool=%s round=lost error=%s", self.pool.name, error)
            except Exception:
                log.exception("pool=%s round=lost", self.pool.name)
            now = self._clock.monotonic()
            if refresh_due:
                interval = self.pool.settings.refresh_interval
                settled = not self._breaker.open and self.pool.inventory is not None
                next_refresh = now + (interval if settled else min(interval, self.pool.settings.breaker.probe_interval))
            if self._soon.is_set():
                self._soon.clear()
                pause = QUICKEST_ROUND
            elif self._awaited():
                pause = min(max(pause * 2, QUICKEST_ROUND), SLOWEST_ROUND)
            else:
                pause = next_refresh - now
            # A round looks at every VM: it takes half of the time at most, and a small share while steps are taken.
            took = now - began
            if took > 0.0:
                await self._clock.sleep(min(SLOWEST_ROUND, took))
            while self._stepping() and self._clock.monotonic() - now < min(SLOWEST_ROUND, took * ROUNDS_SHARE):
                await self._clock.sleep(QUICKEST_ROUND)
            paused = self._clock.monotonic() - now
            await interrupted_sleep(self._clock, max(0.0, min(pause, next_refresh - now) - paused), self._soon)

    def _awaited(self) -> bool:
        """Whether anything is accepted and not yet seen done."""
        return not self._breaker.open and any(task.step is None for task in self._tasks())

    def _stepping(self) -> bool:
        """Whether any step is still to be accepted."""
        return any(task.step is not None for task in self._tasks())

    def _tasks(self) -> Iterable[Task]:
        return self._book.pool_tasks[self.pool.name].values()

    async def refresh(self) -> int:
        """A complete look: hosts, images, networks, nodes. Returns how many nodes changed. Raises BackendError."""
        async with self._looking:
            asked = self._clock.monotonic()
            inventory = await self._driver.call("inventory", self.pool.backend.inventory)
            known = self.pool.inventory.warnings if self.pool.inventory is not None else ()
            for warning in inventory.warnings:
                if warning not in known:
                    log.warning("pool=%s warning=%s", self.pool.name, warning)
            self.pool.learn(inventory, self._clock.now())
            self._breaker.looked()
            changed = await self._conclude(inventory.nodes, asked)
        self.on_room()
        return changed

    async def look(self) -> int:
        """One document, for those nodes of which something is awaited: what befell the others, and strays, are the
        complete look's affair, so that a quick round costs little in a large pool. Returns how many nodes changed.
        Raises BackendError."""
        async with self._looking:
            if any(task.action == Action.SAVE and task.step is None for task in self._tasks()):
                # Whether an image is ready stands in the complete look only.
                inventory = await self._driver.call("inventory", self.pool.backend.inventory)
                self.pool.learn(inventory, self._clock.now())
            asked = self._clock.monotonic()
            nodes = await self._driver.call("observe", self.pool.backend.observe)
            awaited = frozenset(task.key for task in self._tasks() if task.step is None)
            return await self._conclude(nodes, asked, awaited)

    async def _conclude(self, nodes: Sequence[ObservedNode], asked: float, among: Set[NodeKey] | None = None) -> int:
        """Draws the conclusions from a document, about some nodes or (None) about all there are."""
        seen = self._owned(nodes, among)
        live = self._book.live_nodes[self.pool.name]
        looked_for = live if among is None else live & among
        missing = frozenset(key for key in looked_for - seen.keys() if self._counts(key, asked) and self._made(key))
        # Who was told to end is expected to be gone. Of the others, many at once are believed the second time.
        unexpected = frozenset(key for key in missing if not self._ending(key))
        many = len(unexpected) > MANY_MISSING and len(unexpected) * 10 > len(live)
        doubted = unexpected - self._missing_before if many else frozenset()
        self._missing_before = missing if among is None else (self._missing_before - among) | missing
        asked_for = tuple(missing - doubted)
        answers = await asyncio.gather(*map(self._ask_for, asked_for))
        seen.update((key, each) for key, each in zip(asked_for, answers, strict=True) if each is not None)
        if among is None:
            self._seen_at.clear()
        else:
            for key in among - seen.keys():
                self._seen_at.pop(key, None)
        self._seen_at.update(dict.fromkeys(seen, self._clock.now()))
        return self.apply({key: each for key, each in seen.items() if self._is_news(key, each, asked)})

    def _owned(self, nodes: Iterable[ObservedNode], among: Set[NodeKey] | None) -> dict[NodeKey, ObservedNode]:
        """The VMs of live nodes, by node, or of some of them; the others bear this broker's tag and are strays: counted
        as foreign by who reads the pool, shown, and left alone."""
        now = self._clock.now()
        seen: dict[NodeKey, ObservedNode] = {}
        strays = {}
        workspaces = self._book.workspaces
        for observed in nodes:
            identity = observed.identity
            key = (identity.workspace_uid, identity.node_index)
            if among is not None and key not in among:
                continue
            workspace = workspaces.get(key[0])
            node = workspace.nodes[key[1]] if workspace is not None and key[1] < len(workspace.nodes) else None
            if (
                node is not None
                and node.state not in NOT_BEGUN_OR_FINAL
                and key not in seen
                and (not node.backend_id or node.backend_id == observed.backend_id)
            ):
                seen[key] = observed
                continue
            if among is not None:
                continue
            known = self.pool.strays.get(observed.backend_id)
            strays[observed.backend_id] = (observed, known[1] if known else now)
            if known is None:
                log.warning("pool=%s stray=%s workspace=%s node=%d", self.pool.name, observed.backend_id, *key)
        if among is None:
            self.pool.learn_strays(strays)
        return seen

    def _is_news(self, key: NodeKey, observed: ObservedNode, asked: float) -> bool:
        """Whether an observation can change anything: not what led to nothing before, on the very same node."""
        concluded = self._concluded.get(key)
        if concluded is not None:
            workspace = self._book.workspaces.get(key[0])
            node, before = concluded
            if workspace is not None and workspace.nodes[key[1]] is node and (before is observed or before == observed):
                return False
        return key in self._book.live_nodes[self.pool.name] and self._counts(key, asked)

    def seen_at(self, key: NodeKey) -> datetime | None:
        """When a node was last seen; None where the last look at it did not see it."""
        return self._seen_at.get(key)

    async def _ask_for(self, key: NodeKey) -> ObservedNode | None:
        """Asks for one VM that a document did not have; None where the question got no answer, which says nothing."""
        workspace = self._book.workspaces[key[0]]
        node = workspace.nodes[key[1]]
        try:
            return await self._driver.queued("find", lambda: self._driver.find(workspace, node))
        except BackendError:
            return None

    def _ending(self, key: NodeKey) -> bool:
        """Whether a node was told to end."""
        task = self._book.tasks.get(key)
        return task is not None and task.action == Action.TERMINATE

    def _made(self, key: NodeKey) -> bool:
        """Whether a VM of the node should be there at all."""
        return bool(self._book.workspaces[key[0]].nodes[key[1]].backend_id)

    def _counts(self, key: NodeKey, asked: float) -> bool:
        """Whether what was asked for at `asked` says anything about a node."""
        task = self._book.tasks.get(key)
        if task is not None and task.step is not None:
            return False
        return self._driver.accepted.get(key, float("-inf")) < asked

    def apply(self, seen: dict[NodeKey, ObservedNode]) -> int:
        """Acts on what was seen, in one transaction; returns how many nodes changed state."""
        by_workspace: defaultdict[str, dict[int, ObservedNode]] = defaultdict(dict)
        for (uid, index), observed in seen.items():
            by_workspace[uid][index] = observed
        changed = 0
        now = self._clock.now()
        with self._book.transaction() as tx:
            for uid, observations in by_workspace.items():
                workspace = self._book.workspaces[uid]
                nodes = list(workspace.nodes)
                failure: Failure | None = None
                cause: Cause | None = None
                succeeded = False
                saved: list[int] = []  # nodes to end once their disk is saved
                later: list[Callable[[], None]] = []
                for index, observed in observations.items():
                    node = nodes[index]
                    task = self._book.tasks.get((uid, index))
                    effect = self._effect(workspace, node, task, observed)
                    settled = node_after(workspace, node, task, observed, effect, now)
                    if settled is not node:
                        nodes[index] = settled
                    elif task is None and effect.do is Do.KEEP:
                        self._concluded[uid, index] = (node, observed)
                    if settled.state.final:
                        self._concluded.pop((uid, index), None)
                        self._driver.accepted.pop((uid, index), None)
                    if settled.state is not node.state:
                        changed += 1
                        cause = settled.cause
                        self._metrics.transitions.labels(self.pool.name, settled.state, settled.cause).inc()
                    if effect.do is Do.DONE and task is not None and self.pool.settings.measure_leads:
                        self.pool.durations.note(task.action, (now - task.create_time).total_seconds())
                    if effect.do in (Do.DONE, Do.FINAL) and task is not None:
                        self._fault_point(point_of(task.action, "", Moment.SEEN))
                        tx.after_commit.append(partial(self._fault_point, point_of(task.action, "", Moment.SETTLED)))
                    if effect.do in _ENDING_TASK:
                        tx.drop_task((uid, index))
                        succeeded |= effect.do is Do.DONE
                        failure = settled.last_error if settled.last_error is not node.last_error else failure
                    elif effect.do is not Do.KEEP:
                        later.append(lambda k=(uid, index), e=effect, o=observed: self._follow_up(k, e, o))  # type: ignore[misc]
                    if effect.do is Do.DONE and task is not None and task.terminate_after:
                        saved.append(index)
                if nodes != list(workspace.nodes):
                    if succeeded:  # an error is cleared by the next success
                        notices = without(workspace.notices, NoticeKind.STUCK)
                        workspace = replace(workspace, last_error=None, notices=notices)
                    written = write(tx, workspace, nodes, cause=cause, failure=failure, now=now)
                    if saved:  # in the same transaction: a kill between the two would keep the node for ever
                        written = self._starts.end_saved(tx, written, saved)
                    log.info(
                        "workspace=%s pool=%s state=%s revision=%d",
                        written.name,
                        self.pool.name,
                        written.state,
                        written.revision,
                    )
                tx.after_commit.extend(later)
        return changed

    def _effect(self, workspace: Workspace, node: Node, task: Task | None, observed: ObservedNode) -> Effect:
        word = Seen(observed.observation.value)
        if task is not None and task.action == Action.LIVE_MIGRATE:
            # A live migration shows as RUNNING all along: it is over when the VM is seen on its new host.
            if word is Seen.RUNNING and observed.host == node.target_host:
                return Effect(do=Do.DONE, to=State.RUNNING)
            if word in (Seen.RUNNING, Seen.BUSY) and not self._late(task):
                return Effect(do=Do.KEEP)
        moving = task is not None and task.action == Action.MIGRATE
        if moving and word is Seen.RUNNING and observed.host == node.target_host:
            return Effect(do=Do.DONE, to=State.RUNNING)
        if task is not None and task.action == Action.SAVE and word in (Seen.RUNNING, Seen.OFF):
            images = self.pool.inventory.images if self.pool.inventory is not None else None
            # A backend that lists no images shows no more than that the VM is back where it was.
            if images is None or any(image.name == task.image_name and image.ready for image in images):
                return Effect(do=Do.DONE, to=task.back_to)
        ending = task is not None and task.action == Action.TERMINATE
        return observe(
            State.TERMINATING if ending else node.state,  # one that begins anew shows as stopping
            word,
            first_start=not workspace.started and (task is None or task.action == Action.CREATE),
            wanted=workspace.initial_state,
            past_deadline=self._late(task),
            back_to=task.back_to if task is not None else None,
        )

    def _late(self, task: Task | None) -> bool:
        return task is not None and task.deadline is not None and self._clock.now() >= task.deadline

    def _follow_up(self, key: NodeKey, effect: Effect, observed: ObservedNode) -> None:
        """What an observation asks to be done, once it is written down."""
        task = self._book.tasks.get(key)
        if task is None or task.step is not None:
            return
        match effect.do:
            case Do.STEP_AGAIN:
                self._again(task, len(task.steps) - 1)
            case Do.SEARCH:
                self._again(replace(task, unsure=True), 0)
            case Do.UNPAUSE:
                self._again(replace(task, steps=(*task.steps, "unpause")), len(task.steps))
            case Do.NEXT_HOST:
                self._starts.failed(
                    task, observed.message or f"the VM is {observed.detail or 'broken'}", host_fault=True
                )
            case Do.UNDO:
                self._starts.failed(task, "it did not start in time", host_fault=False, reason=Reason.TASK_TIMEOUT)
            case Do.END_AGAIN | Do.END_HARDER | Do.REMOVE:
                self._end_again(key, task, effect, observed)
            case Do.STUCK | Do.KEEP_TRYING | Do.STRAY:
                pass  # shown by what stands there already; the next round looks again

    def _end_again(self, key: NodeKey, task: Task, effect: Effect, observed: ObservedNode) -> None:
        """A VM that was told to end and is still there is told again, after a while the harder way."""
        asked = self._driver.accepted.get(key, 0.0)
        patience = END_AGAIN_AFTER
        force = task.force
        if effect.do is Do.END_HARDER:
            force = True
            starting = task.back_to in (State.STARTING, State.RESUMING)
            patience = 0.0 if starting and not task.force else HARDER_AFTER_SECONDS
        elif effect.do is Do.REMOVE:
            force, patience = True, (0.0 if not task.force else END_AGAIN_AFTER)
        if self._clock.monotonic() - asked >= patience:
            self._again(replace(task, force=force), 0)

    def _again(self, task: Task, position: int) -> None:
        with self._book.transaction() as tx:
            tx.put_task(replace(task, position=position, attempt=task.attempt + 1))

    def extend_deadlines(self, outage: float) -> None:
        """A deadline stands still while the pool does not answer."""
        with self._book.transaction() as tx:
            for task in list(self._tasks()):
                if task.deadline is not None:
                    tx.put_task(replace(task, deadline=task.deadline + timedelta(seconds=outage)))


_ENDING_TASK: Final = frozenset({Do.DONE, Do.AS_SEEN, Do.VERB_FAILED, Do.GONE, Do.FINAL})
