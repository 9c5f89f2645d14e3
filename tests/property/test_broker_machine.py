"""The whole broker as a state machine: API verbs, faults of its pools, jumps of its clock, stops and kills.

What must hold stands in tests/support/machine_rules.py and is checked after every step; at the end of a run everything
is made well again, must come to rest, and must then leave nothing behind. A run takes no real time and repeats from
its seed, which is printed. MACHINE_EXAMPLES, MACHINE_STEPS and MACHINE_SEED make it longer, or the same again.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, Final, NamedTuple

import pytest
from hypothesis import HealthCheck, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test
from msgspec import structs

from backends import registry
from backends.base import HostState, Identity, Observation, Step
from backends.simulator import FaultKind, Machine
from broker.core.errors import BrokerError, Reason
from broker.core.lifecycle import Verb
from broker.core.model import EndAction, Nic, NodeSet, State, Terms, Workspace
from broker.core.placement import Placement
from broker.core.requests import CreateRequest, SaveRequest, Target, UpdateRequest, WorkspaceRequest
from tests.support.machine_broker import POOLS, PortlessBroker, Rig
from tests.support.machine_loop import InstantLoop, settle
from tests.support.machine_rules import FINAL, Rules, check_answer, expected

EXAMPLES: Final = int(os.environ.get("MACHINE_EXAMPLES", "60"))
STEPS: Final = int(os.environ.get("MACHINE_STEPS", "30"))
SEED: Final = int(os.environ.get("MACHINE_SEED") or random.SystemRandom().randrange(2**32))
MEMORY: Final = Path("/dev/shm")
"""State files lie in memory where they can: what a kill leaves is the same, and no commit waits for a disk."""

TENANTS: Final = ("red", "blue")
HOSTS: Final = {"alpha": ("alpha-1", "alpha-2", "alpha-3"), "beta": ("beta-1", "beta-2")}
LEAPS: Final = (1.0, 7.0, 45.0, 200.0, 900.0, 3600.0, 6 * 3600.0, 86_400.0, 3 * 86_400.0, 8 * 86_400.0)
DURATIONS: Final = (60, 600, 3600, 7200, 86_400)

OFTEN: Final = (Verb.SUSPEND, Verb.STOP, Verb.SUSPEND, Verb.STOP, Verb.RESUME, Verb.START)

CONFIGURATION: Final = """
[server]
listen = "127.0.0.1:0"
watch_history = {history}
[tenants.red]
limits = {{ nodes = 9, cpu = 12000 }}
[tenants.blue]
pool_limits = {{ beta = {{ nodes = 3 }} }}
[pools.alpha]
backend = "simulator"
world = "WORLD OF alpha"
refresh_interval = "10m"
start_timeout = "150s"
transition_timeout = "90s"
keep_after_end = "1d"
max_duration = "none"
breaker = {{ failures = {failures}, probe_interval = "1m" }}
retry = {{ budget = "20s", initial = "0.5s", maximum = "5s" }}
max_in_flight = {in_flight}
memory_overhead = 16
placement = "{placement}"
latency = "{latency}"
enforce_capacity = {enforce}
delays = {delays}
hosts = [{{ name = "alpha", count = 3, cpu = {cpu}, memory = 4096, disk = 1000 }}]
[pools.beta]
backend = "simulator"
world = "WORLD OF beta"
refresh_interval = "7m"
start_timeout = "150s"
transition_timeout = "90s"
keep_after_end = "2h"
breaker = {{ failures = {failures}, probe_interval = "40s" }}
retry = {{ budget = "20s", initial = "0.5s", maximum = "5s" }}
shared_disk = 900
networks = [{{ name = "net", addresses = 3 }}]
images = ["debian"]
enforce_capacity = {enforce}
delays = {delays}
{capabilities}
hosts = [{{ name = "beta", count = 2, cpu = {cpu}, memory = 2048 }}]
"""
DELAYS: Final = (
    "{}",
    '{ deploy = "20s", suspend = "5s", stop = "5s", terminate = "3s", resume = "4s" }',
    '{ allocate = "2s", deploy = "40s", suspend_release = "15s", stop_release = "15s", live_migrate = "10s", '
    'terminate = "70s", save = "30s", reboot = "5s", start = "10s" }',
)
COLD: Final = 'capabilities = ["PAUSE", "SUSPEND", "RELEASE", "STOP", "REBOOT", "MIGRATE", "ADVANCE_RESERVATION"]'


@dataclass(frozen=True)
class Asked:
    """A request id that was answered: which workspace it stands for, and the call, to be made again."""

    tenant: str
    method: str
    request_id: str
    uid: str
    call: Callable[[PortlessBroker, str], Coroutine[Any, Any, Workspace]]  # the broker, and a digest
    digest: str


def picks() -> st.SearchStrategy[int]:
    return st.integers(0, 11)


def ticks() -> st.SearchStrategy[int]:
    """Turns of the loop before a kill."""
    return st.one_of(st.integers(0, 8), st.integers(0, 60))


class SetWish(NamedTuple):
    """What is drawn for a node set."""

    number: int
    least: int
    cpu: int
    memory: int
    disk: int
    nic: bool
    placement: str
    save_as: str

    def node_set(self, name: str, nic: bool) -> NodeSet:
        """The set as it is asked for."""
        return NodeSet(
            name=name,
            count=self.number,
            min_count=min(self.least, self.number),
            amounts={"cpu": self.cpu, "memory": self.memory} | ({"disk": self.disk} if self.disk else {}),
            nics=(Nic(network="net"),) if self.nic and nic else (),
            placement=Placement[self.placement] if self.placement else None,
            save_as=self.save_as,
        )


set_wishes: Final = st.builds(
    SetWish,
    number=st.sampled_from((1, 1, 2, 2, 3, 4)),
    least=st.integers(0, 2),
    cpu=st.sampled_from((500, 500, 1000, 2000)),
    memory=st.sampled_from((256, 256, 1000)),
    disk=st.sampled_from((0, 100, 300)),
    nic=st.sampled_from((False, False, True)),
    placement=st.sampled_from(("", "", "ONE_PER_HOST", "SPREAD")),
    save_as=st.sampled_from(("", "kept")),
)

wishes: Final[st.SearchStrategy[dict[str, Any]]] = st.fixed_dictionaries(
    {
        "tenant": st.sampled_from(TENANTS),
        "sets": st.lists(set_wishes, min_size=1, max_size=2),
        "pool": st.sampled_from(("alpha", "beta", "")),
        "duration": st.sampled_from((*DURATIONS, None)),
        "later": st.sampled_from((None, None, None, 60, 3600, 7200)),
        "end": st.sampled_from(list(EndAction)),
        "paused": st.sampled_from((False, False, False, True)),
        "with_id": st.booleans(),
    }
)
"""What is drawn for a create."""

asks: Final[st.SearchStrategy[dict[str, Any]]] = st.fixed_dictionaries(
    {
        "verb": st.sampled_from([*(verb for verb in Verb if verb is not Verb.UPDATE), *OFTEN]),
        "nodes": st.one_of(st.just(()), st.just(()), st.sets(st.integers(0, 3), min_size=1, max_size=2).map(tuple)),
        "force": st.booleans(),
        "release": st.booleans(),
        "with_id": st.booleans(),
        "stale": st.sampled_from((False, False, False, True)),
    }
)
"""What is drawn for a verb."""

pauses: Final = st.sampled_from((0.0, 0.0, 2.0, 30.0, 200.0))
"""Seconds that pass after a call."""


class BrokerMachine(RuleBasedStateMachine):
    """One run."""

    counted: ClassVar[Counter[str]] = Counter()

    def __init__(self) -> None:
        super().__init__()
        self.folder = TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None)
        self.loop = InstantLoop()
        self.rig: Rig
        self.laws: Rules
        self.asked: list[Asked] = []
        self.names = 0
        self.hanging = False
        self.begun = False
        self.failed = False

    # The frame of each step

    def run(self, step: Coroutine[Any, Any, None]) -> None:
        """A step, and then all that must hold."""

        async def whole() -> None:
            await step
            await settle()
            await self.laws.check()

        try:
            self.loop.run_until_complete(whole())
        except BaseException:
            self.failed = True
            raise

    def count(self, what: str) -> None:
        self.counted[what] += 1

    @initialize(
        cpu=st.sampled_from((2000, 3000, 8000)),
        latency=st.sampled_from(("0s", "0s", "300ms")),
        delays=st.sampled_from(DELAYS),
        placement=st.sampled_from(("pack", "spread")),
        enforce=st.sampled_from(("true", "false")),
        failures=st.sampled_from((1, 5)),
        in_flight=st.sampled_from((1, 8)),
        capabilities=st.sampled_from(("", COLD)),
        history=st.sampled_from((3, 1000)),
        first=st.lists(wishes, min_size=1, max_size=3),
    )
    def begin(self, first: list[dict[str, Any]], **values: object) -> None:
        self.rig = Rig(Path(self.folder.name), CONFIGURATION.format(**values))
        self.laws = Rules(self.rig)
        for name in ("broker", "backends", "asyncio"):
            logging.getLogger(name).addHandler(self.rig.complaints)
        self.begun = True

        async def start() -> None:
            await self.rig.start()
            self.laws.watcher.resume(self.rig)

        self.run(start())
        for wish in first:
            self._create(wish, twins=False)
        self.run(self._pass(60.0))

    def teardown(self) -> None:
        try:
            if self.begun and not self.failed:
                self.run(self._made_well())
        finally:
            if self.begun:
                self.loop.run_until_complete(self.rig.kill())
                self.rig.forget()
                for name in ("broker", "backends", "asyncio"):
                    logging.getLogger(name).removeHandler(self.rig.complaints)
                if not self.failed:
                    self.counted.update({f"state {state}": times for state, times in self.laws.watcher.states.items()})
                    self.counted["changes watched"] += self.laws.watcher.states.total()
                    self.counted["watchers compacted"] += self.laws.watcher.compactions
                    self.counted["runs"] += 1
            self.loop.close()
            self.folder.cleanup()

    # What is there

    def workspace(self, pick: int) -> Workspace | None:
        """One of the workspaces, those that live before those that ended."""
        every = sorted(
            self.rig.broker.book.workspaces.values(), key=lambda each: (each.state in FINAL, each.create_time, each.uid)
        )
        return every[pick % len(every)] if every else None

    def machine(self, pool: str, pick: int) -> Machine | None:
        """One of a pool's VMs that are somewhere."""
        placed = [machine for machine in self.rig.machines(pool) if machine.host]
        return placed[pick % len(placed)] if placed else None

    def shown(self, answer: Workspace | BrokerError, what: str) -> None:
        """Notes an answer."""
        if isinstance(answer, BrokerError):
            self.count(f"{what} {answer.reason}")
        else:
            self.count(f"{what} ok")
            self.laws.acknowledged[answer.uid] = max(answer.revision, self.laws.acknowledged.get(answer.uid, 0))

    # What callers ask

    def _create_request(
        self,
        tenant: str,
        sets: list[SetWish],
        pool: str,
        duration: int | None,
        later: int | None,
        end: EndAction,
        paused: bool,
        with_id: bool,
    ) -> CreateRequest:
        self.names += 1
        now = self.rig.clock.now()
        wanted = WorkspaceRequest(
            # alpha takes any network, beta's addresses are few
            node_sets=tuple(each.node_set(f"set{place}", pool != "alpha") for place, each in enumerate(sets)),
            pool=pool,
            terms=Terms(
                start_time=now + timedelta(seconds=later) if later is not None else None,
                duration=timedelta(seconds=duration) if duration is not None else None,
                open_ended=duration is None and pool == "alpha",
                end_action=end,
            ),
            initial_state=State.PAUSED if paused else State.RUNNING,
        )
        return CreateRequest(
            tenant=tenant,
            workspace=wanted,
            workspace_id=f"w{self.names}",
            request_id=f"id{self.names}" if with_id else "",
            digest=f"{wanted}",
        )

    @rule(wish=wishes, twins=st.booleans(), seconds=pauses)
    def create(self, wish: dict[str, Any], twins: bool, seconds: float) -> None:
        self._create(wish, twins)
        self.run(self._pass(seconds))

    def _create(self, wish: dict[str, Any], twins: bool) -> None:
        request = self._create_request(**wish)

        async def step() -> None:
            create = self.rig.broker.workspaces.create
            if not (twins and request.request_id):
                self._created(request, await self.rig.tried(create(request)))
                return
            one, other = await self.rig.tried_together([create(request), create(request)])
            self._created(request, one)
            if isinstance(one, BrokerError) or isinstance(other, BrokerError):
                assert getattr(one, "reason", None) is getattr(other, "reason", None), (one, other)
            else:
                assert one.uid == other.uid, "two calls with one request id made two workspaces"
                self.count("twin creates")

        self.run(step())

    def _created(self, request: CreateRequest, answer: Workspace | BrokerError) -> None:
        self.shown(answer, "create")
        if isinstance(answer, BrokerError):
            return
        terms = request.workspace.terms
        if terms.start_time is not None and terms.start_time > answer.create_time:
            assert answer.state is State.RESERVED, answer.state
            self.count("reservations")
        assert len(answer.nodes) <= request.workspace.nodes
        for number, each in enumerate(request.workspace.node_sets):
            made = sum(node.set_index == number for node in answer.nodes)
            assert (each.min_count or each.count) <= made <= each.count, f"{made} nodes of {each}"
        self._remember(
            request.tenant,
            "CreateWorkspace",
            request.request_id,
            answer,
            request.digest,
            lambda broker, digest: broker.workspaces.create(structs.replace(request, digest=digest)),
        )

    def _remember(
        self,
        tenant: str,
        method: str,
        request_id: str,
        answer: Workspace,
        digest: str,
        call: Callable[[PortlessBroker, str], Coroutine[Any, Any, Workspace]],
    ) -> None:
        if request_id:
            self.asked.append(
                Asked(tenant=tenant, method=method, request_id=request_id, uid=answer.uid, call=call, digest=digest)
            )

    @precondition(lambda self: self.asked)
    @rule(pick=picks(), other=st.booleans())
    def ask_again(self, pick: int, other: bool) -> None:
        asked = self.asked[pick % len(self.asked)]

        async def step() -> None:
            book = self.rig.broker.book
            before = book.workspaces.get(asked.uid)
            if before is None:  # its record is forgotten, and the id with it
                self.asked.remove(asked)
                return
            revision = book.revision
            answer = await self.rig.tried(asked.call(self.rig.broker, "other content" if other else asked.digest))
            if other:
                assert isinstance(answer, BrokerError), (
                    f"{asked.method} {asked.request_id} with other content: {answer}"
                )
                assert answer.reason is Reason.REQUEST_ID_REUSED, answer
                self.count("request ids reused")
            else:
                assert isinstance(answer, Workspace), f"{asked.method} {asked.request_id} again: {answer!r}"
                assert answer.uid == asked.uid, f"{asked.request_id} stood for {asked.uid}, now for {answer.uid}"
                self.count("request ids again")
            if revision != book.revision:
                self.count("revisions during ask_again")

        self.run(step())

    @rule(verbs=st.lists(st.tuples(picks(), asks, pauses), min_size=1, max_size=4))
    def verbs(self, verbs: list[tuple[int, dict[str, Any], float]]) -> None:
        for pick, ask, seconds in verbs:
            self._verb(pick, ask)
            self.run(self._pass(seconds))

    def _verb(self, pick: int, ask: dict[str, Any]) -> None:
        workspace = self.workspace(pick)
        if workspace is None:
            return
        call, target, indexes = self._verb_call(workspace, **ask)
        verb, force, stale = ask["verb"], ask["force"], ask["stale"]
        release = ask["release"] and verb in (Verb.SUSPEND, Verb.STOP)

        async def step() -> None:
            await settle()
            before = self.rig.broker.book.workspaces[workspace.uid]
            wanted = expected(
                verb,
                before,
                indexes,
                force=force,
                release=release,
                now=self.rig.clock.now(),
                migrating=self._migrating(before),
            )
            unreachable = [name for name, pool in self.rig.broker.pools.items() if not pool.reachable.is_set()]
            answer = await self.rig.tried(call(self.rig.broker, target.digest))
            self.shown(answer, verb.value.lower())
            if isinstance(answer, BrokerError):
                early = {
                    Reason.FIELD_INVALID: any(index >= len(before.nodes) for index in indexes)
                    or (verb is Verb.SAVE and len(indexes or before.nodes) != 1),
                    Reason.CAPABILITY_MISSING: True,
                    Reason.ETAG_MISMATCH: stale,
                    Reason.NAME_TAKEN: verb is Verb.SAVE,
                }
                if answer.reason in early:
                    assert early[answer.reason], answer
                    return
                assert answer.reason in _VERB_REFUSALS, answer
            assert not stale, "an old etag was accepted"
            check_answer(wanted, verb, before, answer, unreachable)
            if isinstance(answer, Workspace):
                method = "SaveNode" if verb is Verb.SAVE else f"{verb.value.capitalize()}Workspace"
                self._remember(workspace.tenant, method, target.request_id, answer, target.digest, call)

        self.run(step())

    def _migrating(self, workspace: Workspace) -> bool:
        tasks = self.rig.broker.book.tasks
        return any(
            (task := tasks.get((workspace.uid, node.index))) is not None and task.action == "live_migrate"
            for node in workspace.nodes
        )

    def _verb_call(
        self,
        workspace: Workspace,
        verb: Verb,
        nodes: tuple[int, ...],
        force: bool,
        release: bool,
        with_id: bool,
        stale: bool,
    ) -> tuple[Callable[[PortlessBroker, str], Coroutine[Any, Any, Workspace]], Target, tuple[int, ...]]:
        self.names += 1
        indexes = nodes[:1] if verb is Verb.SAVE else nodes
        target = Target(
            tenant=workspace.tenant,
            workspace_id=workspace.id,
            node_indexes=indexes,
            request_id=f"id{self.names}" if with_id else "",
            etag="r0" if stale else "",
            digest=f"{verb} {workspace.name} {nodes} {force} {release}",
        )
        image = f"image{self.names % 3}"

        def call(broker: PortlessBroker, digest: str) -> Coroutine[Any, Any, Workspace]:
            same = structs.replace(target, digest=digest)
            if verb is Verb.SAVE:
                return broker.verbs.save(SaveRequest(target=same, image_name=image, terminate_after=force))
            return broker.verbs.verb(
                verb,
                same,
                force=force and verb in (Verb.STOP, Verb.TERMINATE),
                release=release and verb in (Verb.SUSPEND, Verb.STOP),
            )

        return call, target, indexes

    @rule(
        pick=picks(),
        what=st.sampled_from(("duration", "end_action", "labels", "all")),
        duration=st.sampled_from((*DURATIONS, 3 * 86_400, None)),
        end=st.sampled_from(list(EndAction)),
        with_id=st.booleans(),
    )
    def update(self, pick: int, what: str, duration: int | None, end: EndAction, with_id: bool) -> None:
        workspace = self.workspace(pick)
        if workspace is None:
            return
        self.names += 1
        paths = {"duration": {"terms.duration", "terms.open_ended"}, "end_action": {"terms.end_action"}}
        asked = paths.get(what, set()) if what != "all" else set().union(*paths.values())
        request = UpdateRequest(
            tenant=workspace.tenant,
            workspace_id=workspace.id,
            paths=frozenset(asked | ({"labels"} if what in ("labels", "all") else set())),
            labels={"run": str(self.names)},
            duration=timedelta(seconds=duration) if duration is not None else None,
            open_ended=duration is None,
            end_action=end,
            request_id=f"id{self.names}" if with_id else "",
            digest=f"{workspace.name} {what} {duration} {end}",
        )

        def call(broker: PortlessBroker, digest: str) -> Coroutine[Any, Any, Workspace]:
            return broker.updates.update(structs.replace(request, digest=digest))

        async def step() -> None:
            before = self.rig.broker.book.workspaces[workspace.uid]
            wanted = expected(
                Verb.UPDATE, before, (), force=False, release=False, now=self.rig.clock.now(), migrating=False
            )
            answer = await self.rig.tried(call(self.rig.broker, request.digest))
            self.shown(answer, "update")
            if isinstance(answer, BrokerError):
                assert answer.reason in (*_VERB_REFUSALS, Reason.FIELD_INVALID), answer
                if answer.reason is Reason.FIELD_INVALID:
                    return
            check_answer(wanted, Verb.UPDATE, before, answer, ())
            if isinstance(answer, Workspace):
                self._remember(workspace.tenant, "UpdateWorkspace", request.request_id, answer, request.digest, call)

        self.run(step())

    # What operators ask

    @rule(
        pool=st.sampled_from(POOLS),
        pick=picks(),
        what=st.sampled_from(("cordon", "uncordon", "drain", "suspend", "close", "open", "refresh")),
    )
    def operate(self, pool: str, pick: int, what: str) -> None:
        host = HOSTS[pool][pick % len(HOSTS[pool])]

        async def step() -> None:
            operators = self.rig.broker.operators
            calls: dict[str, Callable[[], Coroutine[Any, Any, object]]] = {
                "cordon": lambda: operators.set_cordoned(pool, host, True),
                "uncordon": lambda: operators.set_cordoned(pool, host, False),
                "drain": lambda: operators.drain(pool, host, suspend_rest=False),
                "suspend": lambda: operators.drain(pool, host, suspend_rest=True),
                "close": lambda: operators.set_draining(pool, True),
                "open": lambda: operators.set_draining(pool, False),
                "refresh": lambda: operators.refresh(pool),
            }
            answer = await self.rig.tried(calls[what]())
            if isinstance(answer, BrokerError):
                unread = not self.rig.broker.pools[pool].hosts
                assert answer.reason is Reason.BACKEND_UNREACHABLE or (answer.reason is Reason.NOT_FOUND and unread)
            self.count(f"operator {what}{' refused' if isinstance(answer, BrokerError) else ''}")

        self.run(step())

    # What befalls the pools

    @rule(
        pool=st.sampled_from(POOLS),
        kind=st.sampled_from(list(FaultKind)),
        step=st.sampled_from(("", "allocate", "deploy", "deploy", "terminate", *(step.value for step in Step))),
        host=picks(),
        times=st.integers(1, 6),
        every=st.integers(1, 2),
    )
    def fault(self, pool: str, kind: FaultKind, step: str, host: int, times: int, every: int) -> None:
        names = ("", "", *HOSTS[pool])
        self.rig.fail(pool, kind, step, names[host % len(names)], times, every)
        self.hanging |= kind is FaultKind.HANG
        self.count(f"fault {kind}")

    @rule(
        pool=st.sampled_from(POOLS),
        what=st.sampled_from(("silent", "back", "hidden", "shown", "LOST", "DISABLED", "ACTIVE", "read", "stranger")),
        pick=picks(),
        times=st.integers(1, 6),
    )
    def befall(self, pool: str, what: str, pick: int, times: int) -> None:
        host = HOSTS[pool][pick % len(HOSTS[pool])]
        match what:
            case "silent" | "back":
                self.rig.set_silent(pool, what == "silent")
            case "hidden" | "shown":
                self.rig.set_hidden(pool, what == "hidden")
            case "read":
                kind = FaultKind.REJECTED if times == 3 else FaultKind.TRANSIENT
                self.rig.fail(pool, kind, ("inventory", "observe", "find")[pick % 3], "", times, 1)
            case "stranger":
                self._stranger(pool, host, f"stray{pick}", ours=times < 3)
            case _:
                self.rig.backend(pool).by_hand.set_host(host, HostState(what))
        self.count(f"befell {what}")

    def _stranger(self, pool: str, host: str, uid: str, ours: bool) -> None:
        if len(self.laws.strays) < 2:
            identity = Identity(broker_id=self.rig.broker_id if ours else "another", workspace_uid=uid, node_index=0)
            made = self.rig.backend(pool).by_hand.add_stray(identity, host, {"cpu": 500, "memory": 128})
            self.laws.strays.add(f"{pool}/{made}")

    @rule(
        pool=st.sampled_from(POOLS),
        pick=picks(),
        what=st.sampled_from(("stop", "start", "move", "break", "remove", "suspend", "pause")),
        where=picks(),
    )
    def by_hand(self, pool: str, pick: int, what: str, where: int) -> None:
        machine = self.machine(pool, pick)
        if machine is None:
            return
        hand, name = self.rig.backend(pool).by_hand, machine.backend_id
        key = (machine.identity.workspace_uid, machine.identity.node_index)
        host = HOSTS[pool][where % len(HOSTS[pool])] if what == "move" else ""
        if what in ("start", "pause", "move") and (not machine.placed or host not in ("", machine.host)):
            self.laws.moved_by_hand.add(key)
        match what:
            case "stop":
                hand.stop(name)
            case "start" | "move":
                hand.start(name, host)
            case "break":
                hand.break_vm(name)
            case "remove":
                hand.remove(name)
            case "suspend":
                hand.show(name, Observation.SUSPENDED)
            case "pause":
                hand.show(name, Observation.PAUSED)
        self.count(f"by hand {what}")

    # Time, and the broker's own life

    @rule(seconds=st.sampled_from(LEAPS), clock=st.sampled_from((0, 0, 0, 0, -7200, -120, -10, 10, 120, 7200)))
    def time_passes(self, seconds: float, clock: int) -> None:
        """Time passes; and, `clock`, somebody sets the wall clock."""

        async def step() -> None:
            if clock:
                self.rig.clock.set(self.rig.clock.now() + timedelta(seconds=clock))
                self.count("clock steps")
            await self._pass(seconds)

        self.run(step())
        self.count("time passes")

    async def _pass(self, seconds: float) -> None:
        """What is short passes exactly, what is long in leaps."""
        exact = min(seconds, 20.0)
        await self.rig.clock.advance(exact)
        leaps = 20
        for _ in range(leaps if seconds > exact else 0):
            await self.rig.clock.leap((seconds - exact) / leaps)

    @rule(orderly=st.booleans(), down=st.sampled_from((0.0, 0.0, 30.0, 5000.0)))
    def restart(self, orderly: bool, down: float) -> None:
        async def step() -> None:
            if orderly:
                await self.rig.stop()
            else:
                await self.rig.kill()
            await self.rig.clock.leap(down)
            await self._start()

        self.run(step())
        self.count("restarts" if orderly else "kills")

    async def _start(self) -> None:
        await self.rig.start()
        self.laws.watcher.resume(self.rig)

    async def _turns(self, turns: int) -> None:
        """So many turns of the loop, with time for some commits."""
        for turn in range(turns):
            await asyncio.sleep(0.0007 if turn % 4 == 3 else 0)

    @rule(seconds=st.sampled_from((0.3, 5.0, 60.0, 3600.0)), turns=ticks())
    def kill_while_time_passes(self, seconds: float, turns: int) -> None:
        async def step() -> None:
            moving = asyncio.ensure_future(self.rig.clock.leap(seconds))
            await self._turns(turns)
            moving.cancel()
            await asyncio.gather(moving, return_exceptions=True)
            await self.rig.kill()
            await self._start()

        self.run(step())
        self.count("kills while time passes")

    @rule(wish=wishes, turns=ticks())
    def kill_during_create(self, wish: dict[str, Any], turns: int) -> None:
        request = self._create_request(**{**wish, "with_id": True})

        async def step() -> None:
            call = asyncio.ensure_future(self.rig.broker.workspaces.create(request))
            await self._turns(turns)
            answered = call.done() and call.exception() is None
            uid = call.result().uid if answered else ""
            await self.rig.kill()
            await asyncio.gather(call, return_exceptions=True)
            await self._start()
            book = self.rig.broker.book
            record = book.requests.get((request.tenant, "CreateWorkspace", request.request_id))
            assert not answered or (record is not None and record.uid == uid), "an answered create is lost"
            kept = record.uid if record is not None else ""
            again = await self.rig.tried(self.rig.broker.workspaces.create(request))
            assert not kept or (isinstance(again, Workspace) and again.uid == kept), f"{kept} became {again!r}"
            self._created(request, again)
            self.count(f"kills during create, {'answered' if answered else 'durable' if kept else 'lost'}")

        self.run(step())

    @rule(pick=picks(), ask=asks, turns=ticks())
    def kill_during_verb(self, pick: int, ask: dict[str, Any], turns: int) -> None:
        workspace = self.workspace(pick)
        if workspace is None:
            return
        call, target, _ = self._verb_call(workspace, **{**ask, "with_id": True, "stale": False})

        async def step() -> None:
            first = asyncio.ensure_future(call(self.rig.broker, target.digest))
            await self._turns(turns)
            answered = first.done() and first.exception() is None
            if answered:
                self.shown(first.result(), "verb before a kill")
            await self.rig.kill()
            await asyncio.gather(first, return_exceptions=True)
            await self._start()
            self.count(f"kills during a verb, {'answered' if answered else 'not'}")

        self.run(step())

    # The end

    async def _made_well(self) -> None:
        """Faults, silence and losses end; then everything comes to rest, adds up, ends, and is forgotten."""
        for pool in POOLS:
            self.rig.faults[pool].clear()
            self.rig.set_silent(pool, False)
            self.rig.set_hidden(pool, False)
            for host in HOSTS[pool]:
                self.rig.backend(pool).by_hand.set_host(host, HostState.ACTIVE)
            self._unstall(pool)
        if self.hanging:
            await self.rig.stop()
            await self._start()
        await self._come_to_rest()
        self.laws.check_settled()
        await self.laws.check()
        for workspace in list(self.rig.broker.book.workspaces.values()):
            target = Target(tenant=workspace.tenant, workspace_id=workspace.id)
            answer = await self.rig.tried(self.rig.broker.verbs.verb(Verb.TERMINATE, target))
            assert isinstance(answer, Workspace), f"terminate was refused: {answer!r}"
        await self._come_to_rest()
        self.laws.check_settled()
        await self.laws.check()
        book = self.rig.broker.book
        unended = [workspace.name for workspace in book.workspaces.values() if workspace.state not in FINAL]
        assert not unended, f"terminated, and not at their end: {unended}"
        for pool in POOLS:
            assert not list(book.slots[pool].all())
            assert not self.laws.machines_of_nodes(pool)
            assert self.rig.world(pool).addresses.used("net") == 0
        await self.rig.clock.advance(61.0)  # the clock is trusted again
        for _ in range(10):
            await self.rig.clock.leap(86_400.0)
        assert not book.workspaces, f"not forgotten after ten days: {list(book.workspaces.values())}"
        assert not book.requests, f"request ids without a record: {list(book.requests)}"
        await self.rig.stop()
        await self._start()
        assert self.rig.broker.book.revision >= self.laws.watcher.last, "revisions begin anew"

    def _unstall(self, pool: str) -> None:
        """What would never have got anywhere gets there."""
        world = self.rig.world(pool)
        for machine in list(world.machines.values()):
            if machine.change is not None and machine.change.due is None:
                world.put(structs.replace(machine, change=structs.replace(machine.change, due=self.rig.clock.now())))

    async def _come_to_rest(self) -> None:
        for _ in range(4):
            for seconds in (*[1.0] * 20, *[30.0] * 20, *[120.0] * 40):
                if not self.rig.broker.book.tasks:
                    break
                await self.rig.clock.leap(seconds)
            for pool in POOLS:
                answer = await self.rig.tried(self.rig.broker.operators.refresh(pool))
                assert not isinstance(answer, BrokerError), answer
            await settle()
            if not self.rig.broker.book.tasks:
                return


_VERB_REFUSALS: Final = frozenset(
    {
        Reason.STATE_FORBIDS,
        Reason.TRANSITION_UNDER_WAY,
        Reason.BACKEND_UNREACHABLE,
        Reason.NO_CAPACITY,
        Reason.NEVER_FITS,
        Reason.QUOTA_EXCEEDED,
        Reason.POOL_DRAINING,
    }
)


@pytest.mark.timeout(600 if EXAMPLES <= 60 and STEPS <= 30 else 0)  # a failure takes minutes to be made short
def test_the_broker_as_a_state_machine(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "load", cache(registry.load))  # it reads the metadata of every package
    BrokerMachine.counted.clear()
    with capsys.disabled():
        print(f"\nbroker machine: MACHINE_SEED={SEED} MACHINE_EXAMPLES={EXAMPLES} MACHINE_STEPS={STEPS}")
    profile = settings(
        max_examples=EXAMPLES,
        stateful_step_count=STEPS,
        deadline=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(seed(SEED)(BrokerMachine), settings=profile)
    counted = BrokerMachine.counted
    with capsys.disabled():
        print("; ".join(f"{what} {times}" for what, times in sorted(counted.items())))
    reached = {what.removeprefix("state ") for what in counted if what.startswith("state ")}
    assert counted["create ok"] > EXAMPLES
    assert counted["kills"] + counted["restarts"] > EXAMPLES // 4
    assert len(reached) >= 10, reached
