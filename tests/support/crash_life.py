"""One state file through the deaths of its brokers, as clients and an auditor see it.

Every call that dies is asked again, with its request id, once a broker serves again. Whenever all has settled the sums
are taken from outside: the VMs at the backend against the nodes that the broker shows, what its hosts hold against
those nodes, and what a watcher was told, resumed by revision through every death, against the list.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any, Final

import grpc
import grpc.aio
from workspacebroker.v1 import pool_service_pb2 as pools_api
from workspacebroker.v1 import pool_service_pb2_grpc as pools_grpc
from workspacebroker.v1 import resources_pb2 as pb
from workspacebroker.v1 import workspace_service_pb2 as api
from workspacebroker.v1 import workspace_service_pb2_grpc as workspaces_grpc

from tests.crash.process import Orders
from tests.support.broker import TENANT, small
from tests.support.crash import PATIENCE, Nursery, Process
from tests.support.crash_worlds import Machine, World

CALL_SECONDS: Final = 10.0
LOOK_EVERY: Final = 0.02
STATE: Final = pb.Workspace.State
ENDED: Final = frozenset({STATE.STATE_TERMINATED, STATE.STATE_EXPIRED, STATE.STATE_FAILED})
EVERY_STATE: Final = [name for name, value in STATE.items() if value]
MOVING: Final = frozenset(value for name, value in STATE.items() if name.endswith("ING") and name != "STATE_RUNNING")
LOST: Final = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.UNKNOWN})


class Watch:
    """A watcher that resumes by revision: what it was told last of each workspace."""

    def __init__(self) -> None:
        self.revision = 0
        self.latest: dict[str, pb.Workspace] = {}
        self.problems: list[str] = []
        self._task: asyncio.Task[None] | None = None

    def follow(self, stub: Any) -> None:
        """Goes on where it was."""
        self._task = asyncio.create_task(self._follow(stub))

    async def _follow(self, stub: Any) -> None:
        resumed = self.revision
        try:
            async for told in stub.WatchWorkspaces(api.WatchWorkspacesRequest(parent=TENANT, after_revision=resumed)):
                if told.revision < self.revision or (told.HasField("workspace") and told.revision <= self.revision):
                    self.problems.append(f"revision {told.revision} after {self.revision}")
                self.revision = told.revision
                if told.HasField("workspace"):
                    self.latest[told.workspace.name] = told.workspace
        except grpc.aio.AioRpcError as error:
            if error.code() not in LOST:
                self.problems.append(f"resumed from {resumed}: {error.code()} {error.details()}")

    async def stop(self) -> None:
        """Stops to watch."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})


class Life:
    """One state file, and a broker on it that dies at a point, once; or often, by `kill`, with clients at work."""

    def __init__(
        self,
        nursery: Nursery,
        folder: Path,
        world: World,
        *,
        kill_at: str = "",
        nth: int = 1,
        trace: bool = False,
        at_work: bool = False,
        state: Path | None = None,
    ) -> None:
        self.world = world
        self.deaths = 0
        self.process: Process | None = None
        self._at_work = at_work
        self._reviving = asyncio.Lock()
        self.trace = folder / "trace"
        self._nursery = nursery
        self._orders = Orders(
            config=str(folder / "broker.toml"),
            kill_at=kill_at,
            nth=nth,
            trace=str(self.trace) if trace else "",
            errors=str(folder / "stderr"),
        )
        self.state = state or folder / "broker.db"
        (folder / "broker.toml").write_text(
            f'[server]\nlisten = "127.0.0.1:0"\nstate = "{self.state}"\n{world.configuration()}'
        )
        self._known: dict[str, str] = {}  # name: uid of every acknowledged workspace
        self._requests = 0
        self._watch = Watch()
        self._channels: list[grpc.aio.Channel] = []

    async def __aenter__(self) -> Life:
        try:
            await self.start(self._orders)
            await self._refresh()
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self._close()

    async def _close(self) -> None:
        await self._watch.stop()
        for channel in self._channels:
            await channel.close()
        if self.process is not None:
            await self.process.end(signal.SIGKILL)

    # Brokers

    async def start(self, orders: Orders | None = None) -> None:
        """A broker on the state file as it is."""
        plain = Orders(config=self._orders.config, errors=self._orders.errors)
        process = await self._nursery.broker(orders or plain)
        channel = grpc.aio.insecure_channel(f"127.0.0.1:{await process.port()}")
        self._channels.append(channel)  # the dead one's is left open: a call on it fails by itself
        self.process = process
        self.workspaces: Any = workspaces_grpc.WorkspaceServiceStub(channel)
        self.pools: Any = pools_grpc.PoolServiceStub(channel)
        await self._watch.stop()
        self._watch.follow(self.workspaces)

    async def kill(self) -> None:
        """SIGKILL, now; then the next broker."""
        process = self.process
        assert process is not None
        await process.end(signal.SIGKILL)
        await self.revive(process)

    async def revive(self, dead: Process) -> None:
        """The next broker, if there is none yet. What was acknowledged is there; where nobody is at work, what was
        under way settles, and the sums hold."""
        async with self._reviving:
            if self.process is not dead:
                return
            code = await asyncio.wait_for(asyncio.shield(dead.ended), PATIENCE)
            assert code == -signal.SIGKILL, f"it ended with {code}: {self.words()}"
            self.deaths += 1
            assert self.deaths == 1 or self._at_work, "it died twice"
            await self.start()
            await self._refresh()
        if not self._at_work:
            await self.check()

    def words(self) -> str:
        """What the brokers said last."""
        return Path(self._orders.errors).read_text(errors="replace")[-6000:]

    # Calls

    async def ask(self, call: str, request: Any) -> Any:
        """One call; asked again of the next broker where this one dies under it."""
        while True:
            process = self.process
            assert process is not None
            stub = self.pools if hasattr(self.pools, call) else self.workspaces
            try:
                return await getattr(stub, call)(request, timeout=CALL_SECONDS)
            except grpc.aio.AioRpcError as error:
                if error.code() not in LOST or not await _died(process):
                    raise AssertionError(f"{call}: {error.code()} {error.details()}\n{self.words()}") from error
            await self.revive(process)

    async def create(self, **options: Any) -> str:
        """CreateWorkspace; the name."""
        number = self._number()
        answer = await self.ask(
            "CreateWorkspace",
            api.CreateWorkspaceRequest(
                parent=TENANT, workspace=small(**options), workspace_id=f"w{number}", request_id=f"request-{number}"
            ),
        )
        self._known[answer.workspace.name] = answer.workspace.uid
        return answer.workspace.name  # type: ignore[no-any-return]

    async def verb(self, verb: str, name: str, **options: Any) -> None:
        """A verb of the life cycle."""
        target = api.Target(name=name, request_id=f"request-{self._number()}")
        await self.ask(f"{verb}Workspace", getattr(api, f"{verb}WorkspaceRequest")(target=target, **options))

    async def save(self, name: str, image: str, *, terminate_after: bool = False) -> None:
        """SaveNode of the only node."""
        target = api.Target(name=name, request_id=f"request-{self._number()}")
        await self.ask(
            "SaveNode", api.SaveNodeRequest(target=target, image_name=image, terminate_after=terminate_after)
        )

    def _number(self) -> int:
        self._requests += 1
        return self._requests

    async def get(self, name: str) -> pb.Workspace:
        """A workspace as it is now."""
        return (await self.ask("GetWorkspace", api.GetWorkspaceRequest(name=name))).workspace  # type: ignore[no-any-return]

    async def until(self, name: str, state: str) -> pb.Workspace:
        """Waits until a workspace has settled, and fails where that is in another state."""
        deadline = time.monotonic() + PATIENCE
        while True:
            workspace = await self.get(name)
            if _settled(workspace):
                assert STATE.Name(workspace.state) == f"STATE_{state}", f"{workspace}\n{self.words()}"
                assert not workspace.HasField("last_error"), f"{workspace}\n{self.words()}"
                return workspace
            assert time.monotonic() < deadline, f"it does not settle: {workspace}\n{self.words()}"
            await asyncio.sleep(LOOK_EVERY)

    # The sums

    async def listed(self) -> list[pb.Workspace]:
        """Every workspace, ended ones too."""
        found: list[pb.Workspace] = []
        token = ""
        while True:
            answer = await self.ask(
                "ListWorkspaces",
                api.ListWorkspacesRequest(parent=TENANT, states=EVERY_STATE, page_size=1000, page_token=token),
            )
            found += answer.workspaces
            token = answer.next_page_token
            if not token:
                return found

    async def settle(self) -> list[pb.Workspace]:
        """Waits until nothing is under way any more; every workspace."""
        deadline = time.monotonic() + PATIENCE
        while True:
            found = await self.listed()
            if all(map(_settled, found)):
                return found
            assert time.monotonic() < deadline, f"it does not settle: {found}\n{self.words()}"
            await asyncio.sleep(LOOK_EVERY)

    async def check(self) -> None:
        """Waits until all has settled and takes the sums."""
        await self.settle()
        await self._refresh()
        workspaces = await self.settle()
        problems = self._acknowledged(workspaces)
        problems += self._machines(workspaces, await self.world.machines())
        problems += await self._capacity(workspaces)
        problems += await self._watched(workspaces)
        assert problems == [], "\n".join([*problems, str(workspaces), self.words()])

    async def _refresh(self) -> None:
        await self.ask("RefreshPool", pools_api.RefreshPoolRequest(name=f"pools/{self.world.pool}"))

    def _acknowledged(self, workspaces: list[pb.Workspace]) -> list[str]:
        shown = {workspace.name: workspace.uid for workspace in workspaces}
        return [f"{name} of uid {uid} is lost" for name, uid in self._known.items() if shown.get(name) != uid]

    def _machines(self, workspaces: list[pb.Workspace], machines: list[Machine]) -> list[str]:
        """The VMs at the backend are the live nodes, by node and by id."""
        nodes = Counter(
            Machine(node.backend_id, workspace.uid, node.index)
            for workspace in workspaces
            for node in workspace.nodes
            if node.state not in ENDED
        )
        there = Counter(machines)
        return [
            *(f"no VM for {node}" for node in (nodes - there).elements()),
            *(f"no node for {machine}" for machine in (there - nodes).elements()),
        ]

    async def _capacity(self, workspaces: list[pb.Workspace]) -> list[str]:
        """Hosts hold what the live nodes on them were promised, nothing else; and nobody is a stranger."""
        held = {}
        problems = []
        hosts = await self.ask("ListHosts", pools_api.ListHostsRequest(parent=f"pools/{self.world.pool}"))
        for host in hosts.hosts:
            if any(host.foreign.amounts.values()):
                problems.append(f"{host.name}: strangers hold {dict(host.foreign.amounts)}")
            for slot in host.slots:
                held[slot.workspace, slot.node_index, host.name] = _compute(slot.amounts)
        wanted = {
            (workspace.name, node.index, node.host): _compute(workspace.node_sets[0].amounts)
            for workspace in workspaces
            for node in workspace.nodes
            if node.state not in ENDED and not node.capacity_released
        }
        held = {key: amounts for key, amounts in held.items() if amounts}
        if held != wanted:
            problems.append(f"held {held}, the live nodes take {wanted}")
        strays = await self.ask("ListStrays", pools_api.ListStraysRequest(parent=f"pools/{self.world.pool}"))
        return problems + [f"stray: {stray}" for stray in strays.strays]

    async def _watched(self, workspaces: list[pb.Workspace]) -> list[str]:
        """What the watcher was told last is what is listed: nothing was left out, over deaths too."""
        listed = {workspace.name: (workspace.etag, workspace.state) for workspace in workspaces}
        deadline = time.monotonic() + PATIENCE
        while True:
            told = {name: (workspace.etag, workspace.state) for name, workspace in self._watch.latest.items()}
            if told == listed or self._watch.problems or time.monotonic() > deadline:
                break
            await asyncio.sleep(LOOK_EVERY)
        problems = list(self._watch.problems)
        if told != listed:
            problems.append(f"the watcher knows {told}, listed are {listed}")
        return problems


async def _died(process: Process) -> bool:
    return bool((await asyncio.wait({process.ended}, timeout=2.0))[0])


def _settled(workspace: pb.Workspace) -> bool:
    waits = workspace.state == STATE.STATE_PENDING and bool(workspace.ensemble)  # for its seal, which is a call
    return (waits or workspace.state not in MOVING) and not any(node.HasField("activity") for node in workspace.nodes)


def _compute(amounts: pb.Quantities) -> dict[str, int]:
    return {name: amount for name, amount in amounts.amounts.items() if name in ("cpu", "memory")}
