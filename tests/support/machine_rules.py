"""What must hold of a broker at every moment, worked out again from its records and its pools, the plain way.

Nothing here asks the modules under test how they would count: the tables are the life cycle's document, the sums are
loops. `check` is for every moment at which the loop rests; `check_settled` for when nothing is under way.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Final

from backends.base import Observation
from broker.core.errors import BrokerError, Reason
from broker.core.lifecycle import Verb
from broker.core.model import Node, NodeKey, State, Workspace
from broker.events import Change, Subscription
from tests.support.machine_broker import POOLS, Rig

FINAL: Final = frozenset({State.TERMINATED, State.EXPIRED, State.FAILED})
RESTING: Final = frozenset({State.RUNNING, State.PAUSED, State.SUSPENDED, State.STOPPED})
RECORD_KEPT: Final = timedelta(days=7)

_VERBS: Final = """
.           START PAUSE UNPAUSE SUSPEND RESUME STOP REBOOT SAVE UPDATE TERMINATE
PENDING     F     F     F       F       F      F    F      F    ok     go
RESERVED    F     F     F       F       F      F    F      F    ok     go
STARTING    =     U     =       U       =      U    U      U    ok     go
RUNNING     =     go    =       go      =      go   go     go   ok     go
PAUSING     U     =     U       U       U      U    U      U    ok     go
PAUSED      F     =     go      F       F      F+   F      F    ok     go
SUSPENDING  U     U     U       =       U      U    U      U    ok     go
SUSPENDED   F     F     F       =*      go     F    F      F    ok     go
STOPPING    U     U     U       U       U      =    U      U    ok     go
STOPPED     go    F     F       F       F      =*   F      go   ok     go
RESUMING    =     U     =       U       =      U    U      U    ok     go
REBOOTING   =     U     =       U       =      U    =      U    ok     go
SAVING      U     U     U       U       U      U    U      U    ok     go
TERMINATING F     F     F       F       F      F    F      F    F      =+
TERMINATED  F     F     F       F       F      F    F      F    F      =
EXPIRED     F     F     F       F       F      F    F      F    F      =
FAILED      F     F     F       F       F      F    F      F    F      =
"""
"""The document's table. +: go with force. *: go with release, unless it is released already."""

_header, *_rows = (line.split() for line in _VERBS.strip().splitlines())
_CELLS: Final = {
    (Verb(verb), State(row[0])): cell for row in _rows for verb, cell in zip(_header[1:], row[1:], strict=True)
}

_ENDS: Final = frozenset({State.FAILED, State.TERMINATING})
_NEXT: Final[Mapping[State, frozenset[State]]] = {
    State.PENDING: frozenset({State.STARTING, State.TERMINATED, State.FAILED}),
    State.RESERVED: frozenset({State.STARTING, State.PENDING, State.TERMINATED, State.FAILED}),
    State.RUNNING: RESTING | _ENDS | {State.PAUSING, State.SUSPENDING, State.STOPPING, State.REBOOTING, State.SAVING},
    State.PAUSED: RESTING | _ENDS | {State.RESUMING, State.STOPPING},
    State.SUSPENDED: RESTING | _ENDS | {State.RESUMING, State.SUSPENDING},
    State.STOPPED: RESTING | _ENDS | {State.STARTING, State.STOPPING, State.SAVING},
    State.TERMINATING: FINAL,
    **dict.fromkeys(
        (State.STARTING, State.PAUSING, State.STOPPING, State.RESUMING, State.REBOOTING, State.SAVING),
        RESTING | _ENDS,
    ),
    State.SUSPENDING: RESTING | _ENDS | {State.RESUMING},  # the last: a cold migration
    **dict.fromkeys(FINAL, frozenset()),
}
"""Where a node may go from a state in one change."""

_AS_SEEN: Final = {
    State.RUNNING: {Observation.RUNNING},
    State.PAUSED: {Observation.PAUSED},
    State.SUSPENDED: {Observation.SUSPENDED, Observation.BROKEN},
    State.STOPPED: {Observation.OFF, Observation.BROKEN},
}


def moves(state: State) -> bool:
    """Whether a state is one of those that go on by themselves."""
    return state.value.endswith("ING") and state not in (State.RUNNING, State.PENDING)


def expected(
    verb: Verb,
    workspace: Workspace,
    targets: Collection[int],
    *,
    force: bool,
    release: bool,
    now: datetime,
    migrating: bool,
) -> str:
    """What the document says to a verb on a workspace: "go", "=" (already so), "U" or "F"."""
    over = workspace.end_time is not None and workspace.end_time <= now

    def cell(state: State, released: bool) -> str:
        sign = _CELLS[verb, state]
        if sign.endswith("+"):
            return "go" if force else sign[0]
        if sign.endswith("*"):
            return "go" if release and not released else sign[0]
        if over and (state, verb) in ((State.SUSPENDED, Verb.RESUME), (State.STOPPED, Verb.START)):
            return "F"
        return "go" if sign == "ok" else sign

    chosen = [node for node in workspace.nodes if (node.index in targets if targets else node.state not in FINAL)]
    if not chosen:
        return cell(workspace.state, False)
    if verb is Verb.UPDATE:
        chosen = [node for node in chosen if node.state is not State.TERMINATING] or chosen
    cells = [cell(node.state, node.released) for node in chosen]
    if set(cells) == {"="}:
        return "="
    if verb not in (Verb.TERMINATE, Verb.UPDATE):
        ended = all(node.state in FINAL or node.state is State.TERMINATING for node in chosen)
        if not ended and (migrating or any(map(moves, (node.state for node in workspace.nodes)))):
            return "U"
    return "F" if "F" in cells else "go"


def check_answer(
    wanted: str, verb: Verb, before: Workspace, answer: Workspace | BrokerError, unreachable: Collection[str]
) -> None:
    """A verb must be answered as the document says."""
    told = f"{verb} on {before.state} {[node.state.value for node in before.nodes]}: {wanted}, was {answer!r}"
    if isinstance(answer, BrokerError):
        if answer.reason is Reason.STATE_FORBIDS:
            assert wanted == "F", told
        elif answer.reason is Reason.TRANSITION_UNDER_WAY:
            assert wanted == "U", told
        elif wanted in ("F", "U", "="):
            raise AssertionError(told)
        return
    assert wanted in ("go", "="), told
    if wanted == "=":
        assert answer.revision == before.revision, told
    elif verb not in (Verb.TERMINATE, Verb.UPDATE):
        moved = {
            node.pool
            for node, was in zip(answer.nodes, before.nodes, strict=True)
            if node.state is not was.state or node is not was
        }
        assert not moved & set(unreachable), f"{told}; it was accepted while {unreachable} did not answer"


# Sums


@dataclass(frozen=True)
class Held:
    """One thing held: by whom, where ("" the pool), how much, how long."""

    key: tuple[str, int, str]
    pool: str
    host: str
    amounts: tuple[tuple[str, int], ...]
    start: datetime
    end: datetime | None


def _kept(node: Node, amounts: Mapping[str, int]) -> dict[str, int]:
    return {
        name: amount
        for name, amount in amounts.items()
        if amount and (not node.released or name == "disk" or name.startswith("address:"))
    }


def held_by(workspace: Workspace) -> Iterator[Held]:
    """What the document says that a workspace holds."""
    if workspace.state in FINAL or workspace.state is State.PENDING:
        return
    start = workspace.prepare_time or workspace.start_time or workspace.create_time
    for node in workspace.nodes:
        if node.state in FINAL or node.state is State.PENDING:
            continue
        places = {"host": (node.host, node.held), "pool": ("", node.pool_held)}
        if node.target_host:
            places["target"] = (node.target_host, node.held)
        for kind, (host, amounts) in places.items():
            if kept := _kept(node, amounts):
                yield Held(
                    key=(workspace.uid, node.index, kind),
                    pool=node.pool,
                    host=host,
                    amounts=tuple(sorted(kept.items())),
                    start=start,
                    end=workspace.end_time,
                )


def used_by(workspaces: Collection[Workspace], tenant: str) -> tuple[Counter[str], dict[str, Counter[str]]]:
    """What a tenant uses, in all and by pool."""
    used: Counter[str] = Counter()
    by_pool: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for workspace in workspaces:
        if workspace.tenant != tenant or workspace.state in FINAL:
            continue
        used["workspaces"] += 1
        for node in workspace.nodes:
            if node.state in FINAL:
                continue
            amounts = Counter({"nodes": 1})
            if node.state is not State.PENDING:
                amounts.update(_kept(node, node.held))
                amounts.update(_kept(node, node.pool_held))
            used += amounts
            by_pool[node.pool] += amounts
    return used, dict(by_pool)


# The watcher


@dataclass
class Watcher:
    """One that watches all along, over restarts, and checks every change it is told of."""

    last: int = 0
    known: dict[str, Workspace] = field(default_factory=dict)
    states: Counter[str] = field(default_factory=Counter)
    compactions: int = 0
    place: Subscription | None = None

    def resume(self, rig: Rig) -> None:
        """Takes its place at a broker that has just started, or that has closed it."""
        book = rig.broker.book
        try:
            self.place = book.events.subscribe(self.last, None, rig.clock.now())
        except BrokerError as error:
            if error.reason is not Reason.REVISION_COMPACTED or self.last > book.revision:
                raise AssertionError(f"at {self.last}, the broker at {book.revision}: {error}") from error
            self.compactions += 1
            self.known = {}
            self.place = book.events.subscribe(0, list(book.workspaces.values()), rig.clock.now())
            self.last = 0

    async def drain(self, rig: Rig) -> None:
        """Takes in all that has changed."""
        while True:
            assert self.place is not None
            try:
                change = await self.place.next(0)
            except BrokerError as error:
                if error.reason is not Reason.REVISION_COMPACTED:
                    raise
                self.resume(rig)
                continue
            if change is None:
                return
            self._take(change)

    def _take(self, change: Change) -> None:
        workspace, before = change.workspace, self.known.get(change.workspace.uid)
        assert change.revision > self.last, f"revision {change.revision} came after {self.last}"
        assert change.revision == workspace.revision
        self.last = change.revision
        self.known[workspace.uid] = workspace
        self.states[workspace.state] += 1
        if before is not None and change.previous is not None:
            assert change.previous is before.state, f"{workspace.name}: {change.previous} was {before.state}"
            assert before.state not in FINAL, f"{workspace.name} changed after its end: {before.state}"
            assert before.create_time == workspace.create_time
            assert len(before.nodes) == len(workspace.nodes)
            for was, node in zip(before.nodes, workspace.nodes, strict=True):
                assert node.state is was.state or node.state in _NEXT[was.state], (
                    f"{workspace.name} node {node.index}: {was.state} -> {node.state}"
                )
        for node in workspace.nodes:
            assert not (node.released and node.state in (State.RUNNING, State.PAUSED, State.RESERVED)), (
                f"{workspace.name} node {node.index} is {node.state} and has released its capacity"
            )
        live = [node for node in workspace.nodes if node.state not in FINAL]
        assert (workspace.state in FINAL) == (not live), f"{workspace.name} is {workspace.state}: {workspace.nodes}"
        if workspace.state in FINAL:
            assert workspace.final_time is not None
            assert not workspace.notices


# Invariants


class Rules:
    """The invariants of one run."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.watcher = Watcher()
        self.moved_by_hand: set[NodeKey] = set()
        """Nodes whose VM somebody put where it is: they may stand where there is no room."""
        self.strays: set[str] = set()
        self.acknowledged: dict[str, int] = {}
        """The revision at which a caller was last shown a workspace."""

    async def check(self) -> None:
        """All that holds at every moment."""
        rig, book = self.rig, self.rig.broker.book
        assert not rig.complaints.found, "\n".join(rig.complaints.found)
        await self.watcher.drain(rig)
        told = {uid: workspace.revision for uid, workspace in self.watcher.known.items() if uid in book.workspaces}
        kept = {uid: workspace.revision for uid, workspace in book.workspaces.items()}
        assert told == kept, f"a watcher missed a change: {told} is not {kept}"
        now = rig.clock.now()
        for uid, revision in list(self.acknowledged.items()):
            workspace = book.workspaces.get(uid)
            if workspace is not None:
                assert workspace.revision >= revision, f"{workspace.name} fell back from revision {revision}"
            else:
                last = self.watcher.known.get(uid)
                assert last is None or last.state in FINAL, f"{last.name if last else uid} is lost"
                del self.acknowledged[uid]
        self._check_sums()
        self._check_capacity(now)
        self._check_final()
        self._check_doubles()
        self._check_hosts(now)

    def _check_sums(self) -> None:
        book = self.rig.broker.book
        wanted = {each.key: each for workspace in book.workspaces.values() for each in held_by(workspace)}
        there = {
            slot.key: Held(
                key=(slot.key[0], slot.key[1], slot.key[2]),
                pool=pool,
                host=slot.host,
                amounts=tuple(sorted((name, amount) for name, amount in slot.amounts.items() if amount)),
                start=slot.start,
                end=slot.end,
            )
            for pool in POOLS
            for slot in book.slots[pool].all()
        }
        for key, slot in there.items():
            record = wanted.get(key)
            workspace = book.workspaces.get(key[0])
            # What has begun was held before, too, whatever the wall clock says now.
            if record is not None and workspace is not None and workspace.state is not State.RESERVED:
                assert slot.start <= record.start, f"{slot} begins after {record}"
                there[key] = replace(slot, start=record.start)
        assert there == wanted, f"slots differ from records: {set(there.items()) ^ set(wanted.items())}"
        for tenant in self.rig.settings.tenants:
            view = self.rig.broker.operators.tenant(tenant)
            used, by_pool = used_by(book.workspaces.values(), tenant)
            assert dict(view.used) == +used, f"tenant {tenant} uses {dict(view.used)}, by its records {used}"
            shown = {pool: dict(amounts) for pool, amounts in view.pool_used.items() if amounts}
            assert shown == {pool: dict(+amounts) for pool, amounts in by_pool.items()}, shown

    def _check_capacity(self, now: datetime) -> None:
        """At every instant from now on no more is promised of a host, or of a pool, than there is."""
        for name in POOLS:
            pool = self.rig.broker.pools[name]
            limits = {host: pool.promised(seen) for host, seen in pool.hosts.items()}
            limits[""] = pool.pool_amounts()[0]
            slots = [slot for slot in pool.slots.all() if (slot.key[0], slot.key[1]) not in self.moved_by_hand]
            for instant in {now, *(slot.start for slot in slots if slot.start > now)}:
                sums: defaultdict[tuple[str, str], int] = defaultdict(int)
                for slot in slots:
                    if slot.start <= instant and (slot.end is None or slot.end > instant):
                        for resource, amount in slot.amounts.items():
                            sums[slot.host, resource] += amount
                for (host, resource), amount in sums.items():
                    limit = limits.get(host, {}).get(resource)
                    assert limit is None or amount <= limit, (
                        f"{amount} {resource} promised of {limit} on {name}/{host} at {instant}"
                    )

    def _check_final(self) -> None:
        book = self.rig.broker.book
        for workspace in book.workspaces.values():
            for node in workspace.nodes:
                key = (workspace.uid, node.index)
                if node.state in FINAL:
                    assert key not in book.tasks, f"{workspace.name} node {node.index} is {node.state} with a task"
                    held = [slot for slot in book.slots[node.pool].of_workspace(key[0]) if slot.key[1] == key[1]]
                    assert not held, f"{workspace.name} node {node.index} is {node.state} and holds {held}"
                assert not moves(node.state) or key in book.tasks, (
                    f"{workspace.name} node {node.index} is {node.state} and nothing is under way"
                )
        for key in book.tasks:
            assert key[0] in book.workspaces, f"a task of {key}, which is not there"

    def machines_of_nodes(self, pool: str) -> dict[NodeKey, list[str]]:
        """The VMs that bear the broker's tag, by node; without the strays that a hand has put there."""
        found: defaultdict[NodeKey, list[str]] = defaultdict(list)
        for machine in self.rig.machines(pool):
            if machine.identity.broker_id == self.rig.broker_id and f"{pool}/{machine.backend_id}" not in self.strays:
                found[machine.identity.workspace_uid, machine.identity.node_index].append(machine.backend_id)
        return found

    def _check_doubles(self) -> None:
        everywhere: Counter[NodeKey] = Counter()
        for pool in POOLS:
            for key, ids in self.machines_of_nodes(pool).items():
                everywhere[key] += len(ids)
        doubled = [key for key, number in everywhere.items() if number > 1]
        assert not doubled, f"more than one VM for {doubled}"

    def _check_hosts(self, now: datetime) -> None:
        """The VMs themselves fit, too, where the backend would take any number: those whose lease goes on and that
        stand where the broker has put them."""
        book = self.rig.broker.book
        for name in POOLS:
            pool = self.rig.broker.pools[name]
            sums: defaultdict[tuple[str, str], int] = defaultdict(int)
            names: defaultdict[str, list[str]] = defaultdict(list)
            for machine in self.rig.machines(name):
                key = (machine.identity.workspace_uid, machine.identity.node_index)
                workspace = book.workspaces.get(key[0])
                if workspace is None or key in self.moved_by_hand or not machine.host:
                    continue
                if workspace.end_time is not None and workspace.end_time <= now:
                    continue
                node = workspace.nodes[key[1]]
                names[machine.host].append(
                    f"{workspace.id}/{node.index}: {node.state} on {node.host or '-'}"
                    f"{' released' if node.released else ''}, VM {machine.seen} of {dict(machine.amounts)}"
                )
                for resource, amount in machine.amounts.items():
                    shared = resource in pool.pool_amounts()[0]
                    if machine.placed or resource == "disk":
                        sums["" if shared else machine.host, resource] += amount
            limits = {host: pool.promised(seen) for host, seen in pool.hosts.items()} | {"": pool.pool_amounts()[0]}
            for (host, resource), amount in sums.items():
                limit = limits.get(host, {}).get(resource)
                assert limit is None or amount <= limit, (
                    f"{name}/{host} has VMs of {amount} {resource}, {limit} fit: {'; '.join(names[host])}"
                )

    def check_settled(self) -> None:
        """All that holds when everything is well and nothing is under way."""
        book = self.rig.broker.book
        assert not book.tasks, f"still under way: {list(book.tasks.values())}"
        there: dict[NodeKey, tuple[str, str]] = {}
        for pool in POOLS:
            for key, ids in self.machines_of_nodes(pool).items():
                there[key] = (pool, ids[0])
        for workspace in book.workspaces.values():
            for node in workspace.nodes:
                name = f"{workspace.name} node {node.index} ({node.state})"
                found = there.pop((workspace.uid, node.index), None)
                if node.state in FINAL or node.state in (State.PENDING, State.RESERVED):
                    assert found is None, f"{name} has VM {found}"
                    continue
                assert found is not None, f"{name} has no VM"
                assert found == (node.pool, node.backend_id), f"{name} has VM {found}, by its record {node.backend_id}"
                machine = self.rig.world(node.pool).machines[node.backend_id]
                assert machine.observation in _AS_SEEN[node.state], f"{name} is {machine.observation}"
                if machine.placed:
                    assert machine.host == node.host, f"{name} is on {machine.host}, by its record on {node.host}"
                if not node.released and node.state in (State.RUNNING, State.PAUSED):
                    assert machine.placed, f"{name} holds capacity and is nowhere"
        assert not there, f"VMs of no node: {there}"
