"""What a broker is doing when it is killed: one scenario for each way through the life cycle, and all points in it.

The points are not chosen: they are those of every step that the backend takes for the scenario's actions, before and
after it, those at the end of each action, and those between a call's decision and its answer. `nodes` and `calls` say
how often a point is passed, since each passage is a case of its own.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from workspacebroker.v1 import pool_service_pb2 as pools_api
from workspacebroker.v1 import resources_pb2 as pb
from workspacebroker.v1 import workspace_service_pb2 as api

from backends.base import Action, Step
from broker.engine.fault_points import CALLS, LEAVING, Moment, enumerate_points, point_of
from tests.support.broker import TENANT
from tests.support.crash_life import STATE, Life
from tests.support.crash_worlds import OpenNebula, Simulated

Case = tuple[str, int]
"""A point and which of its passages."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One way through the life cycle."""

    name: str
    play: Callable[[Life], Awaitable[None]]
    actions: tuple[Action, ...]
    nodes: int = 1
    calls: tuple[int, ...] = ()  # which calls of the scenario are killed; those that others kill are left out
    passages: Mapping[str, int] = field(default_factory=dict)  # at which passage, where it is not each up to `nodes`
    extra: tuple[str, ...] = ()
    first_steps: tuple[Step, ...] = ()  # that the engine puts before those of the action
    simulator: str = ""  # settings of the simulated pool
    opennebula: Callable[[OpenNebula], None] = lambda world: None  # sets the scene at the stand-in
    only: str = ""  # the one backend that it is for

    def points(self, steps: Callable[[Action], tuple[Step, ...]]) -> list[str]:
        """Every point in it, in order."""
        found = [
            point for action in self.actions for point in enumerate_points(action, (*self.first_steps, *steps(action)))
        ]
        return [*found, *self.extra]

    def cases(self, steps: Callable[[Action], tuple[Step, ...]]) -> list[Case]:
        """Every point and passage in it."""
        found = []
        for point in self.points(steps):
            nth = self.passages.get(point)
            found += [(point, each) for each in ([nth] if nth else range(1, self.nodes + 1))]
        return [*found, *((point, call) for call in self.calls for point in CALLS)]

    def world(self, kind: str, folder: Path) -> OpenNebula | Simulated:
        """A backend of its own."""
        if kind == "simulator":
            return Simulated(folder, self.simulator)
        world = OpenNebula(folder)
        self.opennebula(world)
        return world


async def _running(life: Life, **options: Any) -> str:
    name = await life.create(**options)
    await life.until(name, "RUNNING")
    return name


async def _create(life: Life) -> None:
    await _running(life)


async def _group(life: Life) -> None:
    await _running(life, count=3)


def _there_and_back(there: str, state: str, back: str, **options: Any) -> Callable[[Life], Awaitable[None]]:
    async def play(life: Life) -> None:
        name = await _running(life)
        await life.verb(there, name, **options)
        workspace = await life.until(name, state)
        assert workspace.nodes[0].capacity_released is bool(options.get("release_capacity")), workspace
        await life.check()
        await life.verb(back, name)
        await life.until(name, "RUNNING")

    return play


def _released_later(verb: str, state: str) -> Callable[[Life], Awaitable[None]]:
    async def play(life: Life) -> None:
        name = await _running(life)
        await life.verb(verb, name)
        await life.until(name, state)
        await life.verb(verb, name, release_capacity=True)
        workspace = await life.until(name, state)
        assert workspace.nodes[0].capacity_released, workspace

    return play


async def _reboot(life: Life) -> None:
    name = await _running(life)
    await life.verb("Reboot", name)
    await life.until(name, "RUNNING")


async def _save(life: Life) -> None:
    name = await _running(life, image="debian-12")
    await life.save(name, "saved")
    await life.until(name, "RUNNING")
    answer = await life.ask("ListImages", pools_api.ListImagesRequest(parent=f"pools/{life.world.pool}"))
    assert [image.ready for image in answer.images if image.name == "saved"] == [True], answer


async def _save_and_terminate(life: Life) -> None:
    name = await _running(life, image="debian-12")
    await life.save(name, "saved", terminate_after=True)
    await life.until(name, "TERMINATED")
    assert await life.world.machines() == []


async def _terminate(life: Life) -> None:
    name = await _running(life)
    await life.verb("Terminate", name)
    await life.until(name, "TERMINATED")
    assert await life.world.machines() == []


async def _terminate_group(life: Life) -> None:
    name = await _running(life, count=3)
    await life.verb("Terminate", name)
    await life.until(name, "TERMINATED")
    assert await life.world.machines() == []


async def _terminate_starting(life: Life) -> None:
    """Ends a node whose first start never ends by itself, once its VM is being made."""
    name = await life.create()
    while not (await life.get(name)).nodes[0].backend_id:
        pass
    assert (await life.get(name)).state == STATE.STATE_STARTING
    await life.verb("Terminate", name)
    await life.until(name, "TERMINATED")
    assert await life.world.machines() == []


async def _drain(life: Life) -> None:
    name = await _running(life)
    host = (await life.get(name)).nodes[0].host
    answer = await life.ask("DrainHost", pools_api.DrainHostRequest(name=host))
    assert not answer.staying, answer
    workspace = await life.until(name, "RUNNING")
    assert workspace.nodes[0].host != host


async def _next_host(life: Life) -> None:
    """The first host fails to start the node; another one does it."""
    name = await life.create()
    workspace: pb.Workspace = await life.until(name, "RUNNING")
    assert workspace.nodes[0].host.endswith("-2"), workspace


def _fails_and_goes_slowly(world: OpenNebula) -> None:
    """The first VM does not boot, and is still there for a while after it was deleted."""
    world.standin.fail_next("DEPLOY", vm_id=0)
    world.standin.set_dwell("CLEANUP_DELETE", 2.0)  # longer than a restart takes


async def _ensembles(life: Life) -> None:
    """One is sealed and one is given up, each with two workspaces: all or none of them, whenever it dies."""
    for number, ends in (("one", "Seal"), ("two", "Cancel")):
        ensemble = f"{TENANT}/ensembles/{number}"
        opened = api.CreateEnsembleRequest(parent=TENANT, ensemble_id=number, request_id=f"open-{number}")
        await life.ask("CreateEnsemble", opened)
        names = [await life.create(count=2, ensemble=ensemble), await life.create(ensemble=ensemble)]
        request: Any = getattr(api, f"{ends}EnsembleRequest")(name=ensemble, request_id=f"{ends}-{number}")
        answer = await life.ask(f"{ends}Ensemble", request)
        assert list(answer.ensemble.workspaces) == names, answer
        for name in names:
            await life.until(name, "RUNNING" if ends == "Seal" else "TERMINATED")


_STEPS_AGAIN: Final = {
    point_of(Action.CREATE, step, moment): 2
    for step in (Step.ALLOCATE, Step.DEPLOY)
    for moment in (Moment.BEFORE, Moment.CALLED, Moment.COMMITTED)
}

SCENARIOS: Final = (
    Scenario(name="create", play=_create, actions=(Action.CREATE,), calls=(1,)),
    Scenario(name="group_create", play=_group, actions=(Action.CREATE,), nodes=3),
    Scenario(name="ensembles", play=_ensembles, actions=(), calls=(1, 2, 3, 4, 8), only="simulator"),
    Scenario(
        name="suspend",
        play=_there_and_back("Suspend", "SUSPENDED", "Resume"),
        actions=(Action.SUSPEND, Action.RESUME),
        calls=(2, 3),
    ),
    Scenario(
        name="suspend_released",
        play=_there_and_back("Suspend", "SUSPENDED", "Resume", release_capacity=True),
        actions=(Action.SUSPEND_RELEASE, Action.RESUME_RELEASED),
        calls=(2, 3),
    ),
    Scenario(
        name="release_suspended",
        play=_released_later("Suspend", "SUSPENDED"),
        actions=(Action.RELEASE_SUSPENDED,),
        calls=(3,),
    ),
    Scenario(
        name="stop", play=_there_and_back("Stop", "STOPPED", "Start"), actions=(Action.STOP, Action.START), calls=(2, 3)
    ),
    Scenario(
        name="stop_released",
        play=_there_and_back("Stop", "STOPPED", "Start", release_capacity=True),
        actions=(Action.STOP_RELEASE, Action.START_RELEASED),
        calls=(2, 3),
    ),
    Scenario(
        name="release_stopped",
        play=_released_later("Stop", "STOPPED"),
        actions=(Action.RELEASE_STOPPED,),
        calls=(3,),
    ),
    Scenario(
        name="pause",
        play=_there_and_back("Pause", "PAUSED", "Unpause"),
        actions=(Action.PAUSE, Action.UNPAUSE),
        calls=(2, 3),
        only="simulator",
    ),
    Scenario(name="reboot", play=_reboot, actions=(Action.REBOOT,), calls=(2,)),
    Scenario(
        name="save",
        play=_save,
        actions=(Action.SAVE,),
        calls=(2,),
        simulator='images = [{ name = "debian-12" }]',
    ),
    Scenario(
        name="save_and_terminate",
        play=_save_and_terminate,
        actions=(Action.SAVE, Action.TERMINATE),
        simulator='images = [{ name = "debian-12" }]',
    ),
    Scenario(name="terminate", play=_terminate, actions=(Action.TERMINATE,), calls=(2,)),
    Scenario(name="terminate_group", play=_terminate_group, actions=(Action.TERMINATE,), nodes=3),
    Scenario(
        name="terminate_starting",
        play=_terminate_starting,
        actions=(Action.TERMINATE,),
        simulator='delays = { deploy = "1h" }',
        opennebula=lambda world: world.standin.hold("BOOT"),
    ),
    Scenario(name="live_migrate", play=_drain, actions=(Action.LIVE_MIGRATE,), calls=(2, 3)),
    Scenario(
        name="migrate",
        play=_drain,
        actions=(Action.MIGRATE,),
        calls=(3,),
        simulator='capabilities = ["SUSPEND", "STOP", "RELEASE", "MIGRATE"]',
        only="simulator",
    ),
    Scenario(
        name="next_host",
        play=_next_host,
        actions=(Action.CREATE,),
        first_steps=(Step.TERMINATE,),
        passages=_STEPS_AGAIN,
        extra=LEAVING,
        simulator='faults = [{ kind = "broken", step = "deploy", host = "lab-host-1" }]',
        opennebula=_fails_and_goes_slowly,
    ),
)
