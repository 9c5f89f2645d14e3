"""The broker's memory, and the only way to change it.

`Book` holds every record, with what is derived from them: names, slots by pool, quota use by tenant. A change is a
`Transaction`: it takes effect in memory at once, so that the next decision sees it, and is answered for only when the
store has it. All derived state follows from single steps "record X replaces record Y" (`_replace`), so undoing a
transaction is the same steps backwards, whether a use case raised midway or the disk was full.

Everything here runs in the event loop without awaiting, which makes the loop the one writer of every pool.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left, bisect_right, insort
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Final, Self, cast

from msgspec.structs import replace

from broker.core.accounting import holdings, node_quota_use, quota_use, same_holding, same_terms
from broker.core.clock import Clock
from broker.core.model import Ensemble, NodeKey, RequestRecord, State, Task, Workspace
from broker.core.slots import SlotTable
from broker.events import Change, EventLog
from broker.store.base import Row, Store, Table

REVISION_KEY: Final = "revision"
COMPACTED_KEY: Final = "compacted_revision"
RESOURCES: Final = ("cpu", "memory", "disk")
CALL_DECIDED: Final = "call/decided"  # fault points, see engine/fault_points.py: accepted and not durable,
CALL_DURABLE: Final = "call/durable"  # durable and not answered


class Transaction:
    """Changes that belong together. Reads of the book see them at once."""

    def __init__(self, book: Book, *, awaited: bool) -> None:
        self._book = book
        self._awaited = awaited
        self._revision = book.revision
        self._generations = dict(book.generations)
        self._before: dict[tuple[Table, Hashable], object] = {}  # what stood there before, for taking back
        self._changed: list[tuple[Workspace | None, Workspace]] = []
        self._durable: asyncio.Future[None] | None = None
        self.after_commit: list[Callable[[], None]] = []
        """Called once the transaction is durable."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if kind is not None:
            self._book._undo(self)
        else:
            self._book._submit(self)

    def put(self, workspace: Workspace) -> Workspace:
        """Writes a workspace under a new revision, and returns it so."""
        book = self._book
        book.revision += 1
        workspace = replace(workspace, revision=book.revision)
        old = book.workspaces.get(workspace.uid)
        self._write(Table.WORKSPACES, workspace.uid, workspace)
        self._changed.append((old, workspace))
        return workspace

    def forget(self, workspace: Workspace) -> None:
        """Removes a workspace's record and the request ids that go with it."""
        book = self._book
        for key in book.requests_of(workspace.uid):
            self._write(Table.REQUESTS, key, None)
        self._write(Table.WORKSPACES, workspace.uid, None)
        # What a removed record's revision stood for can no longer be told to a watcher.
        compacted = max(workspace.revision, int(book.settings.get(COMPACTED_KEY, "0")))
        self.set(REVISION_KEY, str(book.revision))
        self.set(COMPACTED_KEY, str(compacted))
        self.after_commit.append(lambda: book.events.compact(compacted))

    def put_ensemble(self, ensemble: Ensemble) -> Ensemble:
        """Writes an ensemble under a new revision, and returns it so."""
        self._book.revision += 1
        ensemble = replace(ensemble, revision=self._book.revision)
        self._write(Table.ENSEMBLES, ensemble.uid, ensemble)
        self.after_commit.append(lambda: self._book.on_ensemble(ensemble))
        return ensemble

    def forget_ensemble(self, ensemble: Ensemble) -> None:
        """Removes an ensemble's record and the request ids that go with it."""
        for key in self._book.requests_of(ensemble.uid):
            self._write(Table.REQUESTS, key, None)
        self._write(Table.ENSEMBLES, ensemble.uid, None)
        self.set(REVISION_KEY, str(self._book.revision))

    def put_task(self, task: Task) -> Task:
        """Writes the task of a node, in place of the one it has."""
        self._write(Table.TASKS, task.key, task)
        return task

    def drop_task(self, key: NodeKey) -> None:
        """Removes the task of a node, if there is one."""
        if key in self._book.tasks:
            self._write(Table.TASKS, key, None)

    def remember(self, record: RequestRecord) -> None:
        """Keeps an answered request id."""
        self._write(Table.REQUESTS, record.key, record)

    def forget_request(self, key: tuple[str, str, str]) -> None:
        """Removes a request id."""
        self._write(Table.REQUESTS, key, None)

    def set(self, key: str, value: str | None) -> None:
        """Writes one of the broker's own values, or removes it."""
        self._write(Table.SETTINGS, key, value)

    @contextmanager
    def part(self) -> Iterator[Transaction]:
        """A part of it, which an exception takes back without the rest."""
        part = Transaction(self._book, awaited=False)
        try:
            yield part
        except BaseException:
            self._book._undo(part)
            raise
        for place, value in part._before.items():
            self._before.setdefault(place, value)
        self._changed += part._changed
        self.after_commit += part.after_commit

    async def durable(self) -> None:
        """Returns when the transaction would survive a power cut. Raises BrokerError STORE_UNAVAILABLE."""
        if self._durable is not None:
            if self._awaited:
                self._book.fault_point(CALL_DECIDED)
            await self._written()
            if self._awaited:
                self._book.fault_point(CALL_DURABLE)

    async def _written(self) -> None:
        if self._durable is not None:
            await self._durable

    def _write(self, table: Table, key: Hashable, value: object) -> None:
        before = self._book._replace(table, key, value)
        self._before.setdefault((table, key), before)

    def _take_back(self) -> None:
        for (table, key), value in reversed(self._before.items()):
            self._book._replace(table, key, value)
        self._book.revision = self._revision


class _Call:
    """Counts the mutating calls that run."""

    def __init__(self, book: Book) -> None:
        self._book = book

    def __enter__(self) -> None:
        self._book.calls_in_flight += 1

    def __exit__(self, *error: object) -> None:
        self._book.calls_in_flight -= 1


class Book:
    """Every record in memory, durable through a store."""

    def __init__(self, store: Store, clock: Clock, events: EventLog) -> None:
        self._store = store
        self._clock = clock
        self.events = events
        self.workspaces: dict[str, Workspace] = {}
        self.tasks: dict[NodeKey, Task] = {}
        self.requests: dict[tuple[str, str, str], RequestRecord] = {}
        self.settings: dict[str, str] = {}
        self.ensembles: dict[str, Ensemble] = {}
        self._tables: dict[Table, dict[Any, Any]] = {
            Table.WORKSPACES: self.workspaces,
            Table.TASKS: self.tasks,
            Table.REQUESTS: self.requests,
            Table.SETTINGS: self.settings,
            Table.ENSEMBLES: self.ensembles,
        }
        self.settings_version = 0  # grows with every change of them
        self.revision = 0
        self.slots: defaultdict[str, SlotTable] = defaultdict(lambda: SlotTable(RESOURCES))
        self.generations: defaultdict[str, int] = defaultdict(int)
        self.used: defaultdict[tuple[str, str, str], int] = defaultdict(int)
        """Quota use by (tenant, pool, resource); pool "" is the tenant's sum."""
        self.open_ensembles: Counter[str] = Counter()
        """How many ensembles of each tenant are open."""
        self._call = _Call(self)
        self.calls_in_flight = 0
        """Mutating calls that run now: several at once share a commit."""
        self.pool_tasks: defaultdict[str, dict[NodeKey, Task]] = defaultdict(dict)
        """The tasks of each pool."""
        self.on_task: Callable[[Task], None] = lambda task: None
        """Called with each task that a durable transaction wrote."""
        self.on_lost: Callable[[], None] = lambda: None
        """Called when memory went back to what is durable: what acted on the rest has to look again."""
        self.on_workspace: list[Callable[[Workspace], None]] = []
        """Called with each workspace that a durable transaction wrote."""
        self.on_ensemble: Callable[[Ensemble], None] = lambda ensemble: None
        """Called with each ensemble that a durable transaction wrote."""
        self.fault_point: Callable[[str], None] = lambda point: None
        """Called between the decision of a call, its being durable, and its answer."""
        self.live_nodes: defaultdict[str, set[NodeKey]] = defaultdict(set)
        """The nodes of each pool that are not final."""
        self.waiting: dict[State, set[str]] = {State.PENDING: set(), State.RESERVED: set()}
        """The uids of workspaces that wait for capacity, and of those that wait for their start."""
        self.queue: dict[str, None] = {}
        """The uids of workspaces that wait for capacity, in no order that means anything."""
        self.giving_way: dict[str, None] = {}
        """The uids of workspaces whose room is promised to others."""
        self.preemptible: dict[str, None] = {}
        """The uids of workspaces that can be made to give way, were they to hold anything."""
        self.freed = 0
        """Grows with every slot that is given back, or changed."""
        self._uids: dict[tuple[str, str], str] = {}
        self._ensemble_uids: dict[tuple[str, str], str] = {}
        self._names: list[tuple[str, str]] = []  # (tenant, id), sorted
        self._requests_of: defaultdict[str, set[tuple[str, str, str]]] = defaultdict(set)
        self._unconfirmed: dict[Transaction, None] = {}  # in the order they were made
        self._unsettled_tasks: dict[NodeKey, Transaction] = {}  # the last of those that wrote a node's task
        store.on_failure = self._take_back

    def load(self) -> None:
        """Reads the store. Raises StoreProblem."""
        stored = self._store.load()
        for key, value in stored.settings.items():
            self._replace(Table.SETTINGS, key, value)
        for workspace in stored.workspaces:
            self._replace(Table.WORKSPACES, workspace.uid, workspace)
        for task in stored.tasks:
            self._replace(Table.TASKS, task.key, task)
        for record in stored.requests:
            self._replace(Table.REQUESTS, record.key, record)
        for ensemble in stored.ensembles:
            self._replace(Table.ENSEMBLES, ensemble.uid, ensemble)
        revisions = [workspace.revision for workspace in stored.workspaces]
        revisions += [ensemble.revision for ensemble in stored.ensembles]
        self.revision = max([*revisions, int(self.settings.get(REVISION_KEY, "0"))])
        compacted = int(self.settings.get(COMPACTED_KEY, "0"))
        self.events.restore(stored.workspaces, self.revision, compacted, self._clock.now())

    def find(self, tenant: str, workspace_id: str) -> Workspace | None:
        """The workspace of that name, if there is one."""
        uid = self._uids.get((tenant, workspace_id))
        return self.workspaces[uid] if uid is not None else None

    def find_ensemble(self, tenant: str, ensemble_id: str) -> Ensemble | None:
        """The ensemble of that name, if there is one."""
        uid = self._ensemble_uids.get((tenant, ensemble_id))
        return self.ensembles[uid] if uid is not None else None

    def members(self, ensemble: Ensemble) -> list[Workspace]:
        """An ensemble's workspaces in the order they were added; while it is open, those that wait for its seal."""
        kept = [self.workspaces[uid] for uid in ensemble.workspaces if uid in self.workspaces]
        return [workspace for workspace in kept if workspace.awaits_seal] if ensemble.open else kept

    def names_after(self, name: tuple[str, str]) -> Iterator[tuple[str, str]]:
        """Names of workspaces, (tenant, id), in order, from after one on."""
        for place in range(bisect_right(self._names, name), len(self._names)):
            yield self._names[place]

    def in_pool(self, pool: str) -> list[Workspace]:
        """The workspaces that have a node in a pool which is not final, by uid."""
        return [self.workspaces[uid] for uid in sorted({uid for uid, _ in self.live_nodes[pool]})]

    def requests_of(self, uid: str) -> tuple[tuple[str, str, str], ...]:
        """The request ids that a workspace's or an ensemble's record keeps alive."""
        return tuple(self._requests_of.get(uid, ()))

    async def settled(self) -> None:
        """Returns when all that was decided so far is durable. Raises BrokerError STORE_UNAVAILABLE."""
        if self._unconfirmed:
            await next(reversed(self._unconfirmed))._written()

    async def task_settled(self, key: NodeKey) -> None:
        """Returns when a node's task, as it stands, is durable. Raises BrokerError STORE_UNAVAILABLE."""
        transaction = self._unsettled_tasks.get(key)
        if transaction is not None:
            await transaction._written()

    def call(self) -> _Call:
        """Counts a mutating call while it runs."""
        return self._call

    def transaction(self, *, awaited: bool = False) -> Transaction:
        """A transaction, to be entered. An exception inside takes it back whole; else it is handed to the store on
        leaving.

        `awaited`: a caller waits for it, so that it need not wait for others unless there are some.
        """
        return Transaction(self, awaited=awaited)

    def _undo(self, transaction: Transaction) -> None:
        transaction._take_back()
        self.generations.update(transaction._generations)  # nobody has seen the ones in between

    def _submit(self, transaction: Transaction) -> None:
        if not transaction._before:
            for callback in transaction.after_commit:
                callback()
            return
        rows = [Row(table, key, self._records(table).get(key)) for table, key in transaction._before]
        self._unconfirmed[transaction] = None
        for table, key in transaction._before:
            if table is Table.TASKS:
                self._unsettled_tasks[cast(NodeKey, key)] = transaction
        durable = self._store.submit(rows, alone=transaction._awaited and self.calls_in_flight <= 1)
        transaction._durable = durable
        durable.add_done_callback(lambda future: self._confirm(transaction, future))

    def _confirm(self, transaction: Transaction, durable: asyncio.Future[None]) -> None:
        if durable.cancelled() or durable.exception() is not None:
            return  # taken back already
        del self._unconfirmed[transaction]
        now = self._clock.now()
        self.events.publish(
            [
                Change(revision=new.revision, workspace=new, previous=old.state if old else None, time=now)
                for old, new in transaction._changed
            ]
        )
        for _, workspace in transaction._changed:
            for tell in self.on_workspace:
                tell(workspace)
        for table, key in transaction._before:
            if table is Table.TASKS:
                node = cast(NodeKey, key)
                if self._unsettled_tasks.get(node) is transaction:
                    del self._unsettled_tasks[node]
                task = self.tasks.get(node)
                if task is not None:
                    self.on_task(task)
        for callback in transaction.after_commit:
            callback()

    def _take_back(self) -> None:
        """The store lost what it was handed: memory goes back to what is durable."""
        for transaction in reversed(self._unconfirmed):
            transaction._take_back()
        self._unconfirmed.clear()
        self._unsettled_tasks.clear()
        self.on_lost()

    def _records(self, table: Table) -> dict[Any, Any]:
        return self._tables[table]

    def _replace(self, table: Table, key: Hashable, value: object) -> object:
        """Puts one record in place of another (None: none), with all that follows from it; returns the other."""
        records = self._records(table)
        before = records.get(key)
        if value is None:
            records.pop(key, None)
        else:
            records[key] = value
        if table is Table.WORKSPACES:
            self._derive(cast(Workspace | None, before), cast(Workspace | None, value))
        elif table is Table.SETTINGS:
            self.settings_version += 1
        elif table is Table.ENSEMBLES:
            self._name_ensemble(cast(Ensemble | None, before), cast(Ensemble | None, value))
        elif table is Table.TASKS:
            node = cast(NodeKey, key)
            if before is not None:
                self.pool_tasks[cast(Task, before).pool].pop(node, None)
            if value is not None:
                self.pool_tasks[cast(Task, value).pool][node] = cast(Task, value)
        elif table is Table.REQUESTS:
            request = cast(tuple[str, str, str], key)
            if before is not None:
                self._requests_of[cast(RequestRecord, before).uid].discard(request)
            if value is not None:
                self._requests_of[cast(RequestRecord, value).uid].add(request)
        return before

    def _name_ensemble(self, old: Ensemble | None, new: Ensemble | None) -> None:
        for sign, ensemble in ((-1, old), (1, new)):
            if ensemble is not None and ensemble.open:
                self.open_ensembles[ensemble.tenant] += sign
        if new is not None:
            self._ensemble_uids[new.tenant, new.id] = new.uid
        elif old is not None:
            del self._ensemble_uids[old.tenant, old.id]
            self._requests_of.pop(old.uid, None)

    def _derive(self, old: Workspace | None, new: Workspace | None) -> None:
        """Names, slots, generations and quota follow a workspace's record."""
        if old is not None and old.state in self.waiting:
            self.waiting[old.state].discard(old.uid)
        if new is not None and new.state in self.waiting:
            self.waiting[new.state].add(new.uid)
        _index(self.queue, old, new, lambda ws: ws.waiting_since is not None and not ws.state.final)
        _index(self.giving_way, old, new, lambda ws: ws.preemption is not None and not ws.state.final)
        _index(self.preemptible, old, new, lambda ws: ws.terms.preemptible and not ws.state.final)
        if old is not None and new is None:
            name = (old.tenant, old.id)
            del self._uids[name]
            del self._names[bisect_left(self._names, name)]
            self._requests_of.pop(old.uid, None)
        if new is not None and old is None:
            name = (new.tenant, new.id)
            self._uids[name] = new.uid
            insort(self._names, name)
        if old is not None and new is not None and same_terms(old, new):
            # Most changes are of one node among many, and of what it does, not holds: only the rest is derived anew.
            pairs = [
                (was, now)
                for was, now in zip(old.nodes, new.nodes, strict=True)
                if was is not now and not same_holding(was, now)
            ]
            if not pairs:
                return
            before, after = [was for was, _ in pairs], [now for _, now in pairs]
            self._charge(new.tenant, node_quota_use(before), node_quota_use(after))
        else:
            before, after = list(old.nodes) if old is not None else [], list(new.nodes) if new is not None else []
            tenant = cast(Workspace, new or old).tenant
            self._charge(tenant, quota_use(old) if old is not None else (), quota_use(new) if new is not None else ())
        for node in before:
            self.live_nodes[node.pool].discard((cast(Workspace, old).uid, node.index))
        for node in after:
            if not node.state.final:
                self.live_nodes[node.pool].add((cast(Workspace, new).uid, node.index))
        released = holdings(old, before) if old is not None and before else {}
        held = holdings(new, after) if new is not None and after else {}
        for key, holding in released.items():
            if held.get(key) != holding:
                self.slots[holding.pool].release(key)
                self.generations[holding.pool] += 1
                self.freed += 1
        for key, holding in held.items():
            if released.get(key) != holding:
                self.slots[holding.pool].hold(key, holding.host, holding.amounts, holding.start, holding.end)
                self.generations[holding.pool] += 1

    def _charge(
        self, tenant: str, before: Iterable[tuple[str, str, int]], after: Iterable[tuple[str, str, int]]
    ) -> None:
        used = self.used
        for sign, uses in ((-1, before), (1, after)):
            for pool, resource, amount in uses:
                used[tenant, "", resource] += sign * amount
                if pool:
                    used[tenant, pool, resource] += sign * amount


def _index(
    index: dict[str, None], old: Workspace | None, new: Workspace | None, belongs: Callable[[Workspace], bool]
) -> None:
    """Keeps a workspace in an index while its record belongs there."""
    if new is not None and belongs(new):
        index[new.uid] = None
    elif old is not None:
        index.pop(old.uid, None)
