"""Steps of which a host takes one at a time: a host's queue keeps nobody else from the calls at once."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import pytest

from backends.base import Step, StepCall
from backends.simulator import Simulator
from tests.support.broker import LAB, running, small

ALLOCATED_AND_DEPLOYED = 2


async def test_a_host_takes_one_deploy_at_a_time_and_its_queue_holds_no_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deploys: Counter[str] = Counter()
    most: Counter[str] = Counter()
    go_on = asyncio.Event()
    perform = Simulator.perform

    async def slow(self: Simulator, call: StepCall) -> str:
        if call.step is Step.DEPLOY:
            host = call.node.host
            deploys[host] += 1
            most[host] = max(most[host], deploys[host])
            await go_on.wait()
            deploys[host] -= 1
        return await perform(self, call)

    monkeypatch.setattr(Simulator, "perform", slow)
    monkeypatch.setattr(Simulator, "in_turn", property(lambda self: frozenset({Step.DEPLOY})))
    lab = LAB.replace('backend = "simulator"', 'backend = "simulator"\nmax_in_flight = 3')
    async with running(tmp_path, lab) as broker:
        # Four to a host, on the first of which they wait for each other; the fifth goes to another.
        crowd = [await broker.create(workspace=small(cpu=2000, memory=4096)) for _ in range(4)]
        assert len({node.host for each in crowd for node in (await broker.get(each.name)).nodes}) == 1
        other = await broker.create(workspace=small(cpu=2000, memory=4096))
        await broker.eventually(lambda: sum(deploys.values()), lambda busy: busy == ALLOCATED_AND_DEPLOYED)
        go_on.set()
        for each in (*crowd, other):
            await broker.until(each.name, "RUNNING")
    assert len(most) == ALLOCATED_AND_DEPLOYED
    assert set(most.values()) == {1}
