"""SIGKILL at every point of every task, on both backends: no VM lost, none doubled, nothing held by nothing."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_asyncio

from backends import registry
from backends.base import Action, BackendContext, Capability, Step
from broker.core.clock import SystemClock
from tests.crash.process import PERFORM
from tests.crash.scenarios import SCENARIOS, Case, Scenario
from tests.support.crash import Nursery, nursery
from tests.support.crash_life import Life

KINDS = ("simulator", "opennebula")
AT_ONCE = 6
"""Cases that run side by side: most of a case's time it waits."""


def steps_of(kind: str, scenario: Scenario, folder: Path) -> Callable[[Action], tuple[Step, ...]]:
    """The steps that a backend takes, asked of the backend that the scenario has."""
    import tomllib

    world = scenario.world(kind, folder)
    try:
        settings = tomllib.loads(world.configuration())["pools"][world.pool]
        for key in ("backend", "refresh_interval", "retry", "breaker"):
            del settings[key]
        context = BackendContext(pool=world.pool, broker_id="none", clock=SystemClock())
        return registry.load(kind).create(settings, context).steps
    finally:
        world.close()


def scenarios(kind: str) -> list[Scenario]:
    return [scenario for scenario in SCENARIOS if scenario.only in ("", kind)]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def forks() -> AsyncIterator[Nursery]:
    """One nursery for all: its imports take longer than a case."""
    async with nursery() as made:
        yield made


async def run(forks: Nursery, kind: str, scenario: Scenario, folder: Path, case: Case | None) -> None:
    """One case; without one, the scenario undisturbed, with a trace."""
    world = scenario.world(kind, folder)
    kill_at, nth = case or ("", 1)
    try:
        async with Life(forks, folder, world, kill_at=kill_at, nth=nth, trace=case is None) as life:
            await scenario.play(life)
            await life.check()
            assert life.deaths == (case is not None), "the point was never reached"
    finally:
        world.close()


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    ("kind", "scenario"),
    [pytest.param(kind, each, id=f"{kind}-{each.name}") for kind in KINDS for each in scenarios(kind)],
)
async def test_killed_at_every_point(scenario: Scenario, kind: str, forks: Nursery, tmp_path: Path) -> None:
    steps = steps_of(kind, scenario, tmp_path)
    cases = scenario.cases(steps)
    print(f"\n{kind}, {scenario.name}: {len(cases)} cases")
    for point, nth in cases:
        print(f"  {point} #{nth}")
    problems: list[str] = []
    slots = asyncio.Semaphore(AT_ONCE)

    folders: dict[Case | None, Path] = {None: tmp_path / "undisturbed"}
    folders |= {case: tmp_path / re.sub(r"\W", "-", f"{case[0]}-{case[1]}") for case in cases}
    for folder in folders.values():
        folder.mkdir()

    async def one(case: Case | None) -> None:
        name = folders[case].name
        async with slots:
            try:
                await run(forks, kind, scenario, folders[case], case)
            except Exception as error:
                problems.append(f"{name}: {type(error).__name__}: {error}")

    await asyncio.gather(*map(one, folders))
    problems += untraced(scenario, steps, (folders[None] / "trace").read_text().split("\n"))
    assert problems == [], f"{len(problems)} of {len(cases)} cases fail:\n" + "\n\n".join(problems)


def untraced(scenario: Scenario, steps: Callable[[Action], tuple[Step, ...]], trace: list[str]) -> list[str]:
    """What is passed and not enumerated, or the other way round; and steps without their points."""
    problems: list[str] = []
    prefixes = tuple(f"{action}/" for action in scenario.actions)
    passed = {line for line in trace if line.startswith(prefixes)}
    wanted = set(scenario.points(steps))
    problems += [f"{point} is passed and not enumerated" for point in sorted(passed - wanted)]
    problems += [f"{point} is enumerated and never passed" for point in sorted(wanted - passed)]
    for step in Step:
        performed = trace.count(f"{PERFORM}{step}")
        for moment in ("before", "called", "committed"):
            points = sum(re.fullmatch(rf"\w+/{step}/{moment}", line) is not None for line in trace)
            if points != performed:
                problems.append(f"{step} was performed {performed} times, {moment} it were {points} points")
    return problems


@pytest.mark.parametrize("kind", KINDS)
def test_every_step_of_every_action_is_in_a_scenario(kind: str, tmp_path: Path) -> None:
    missing = []
    for action in Action:
        takers = [scenario for scenario in scenarios(kind) if action in scenario.actions]
        plain = steps_of(kind, takers[0] if takers else SCENARIOS[0], tmp_path)(action)
        if plain and not takers:
            missing.append(action)
        covered = {point for scenario in takers for point in scenario.points(steps_of(kind, scenario, tmp_path))}
        for step in plain:
            assert not takers or any(f"{action}/{step}/" in point for point in covered), (action, step)
    # The broker moves a node cold only where the pool cannot do it live.
    assert missing == ([Action.MIGRATE] if kind == "opennebula" else [])


def test_opennebula_moves_nodes_live(tmp_path: Path) -> None:
    from backends.opennebula.adapter import CAPABILITIES

    assert Capability.LIVE_MIGRATE in CAPABILITIES


def test_the_check_of_points_misses_nothing(tmp_path: Path) -> None:
    """A step without its points, a point never passed and one that nobody enumerated are each found."""
    scenario = next(each for each in SCENARIOS if each.name == "reboot")
    steps = steps_of("simulator", scenario, tmp_path)
    reboot = ["reboot/reboot/before", f"{PERFORM}reboot", "reboot/reboot/called", "reboot/reboot/committed"]
    good = [*reboot, "reboot/seen", "reboot/settled"]
    assert untraced(scenario, steps, good) == []
    for line in good:
        assert untraced(scenario, steps, [each for each in good if each != line]) != [], line
    assert untraced(scenario, steps, [*good, "reboot/unheard/of"]) != []
    assert untraced(scenario, steps, [*good, f"{PERFORM}deploy"]) != []
