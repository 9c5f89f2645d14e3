"""SIGKILL at any moment while clients are at work: what was acknowledged stays, nothing is there twice, sums hold."""

from __future__ import annotations

import asyncio
import os
import random
from pathlib import Path

import pytest

from tests.support.crash import nursery
from tests.support.crash_life import Life
from tests.support.crash_worlds import OpenNebula, Simulated

CLIENTS = 8
ROUNDS = 5
SHORTEST, LONGEST = 0.5, 2.5
"""Seconds that a broker lives, about: ten in all."""


@pytest.mark.parametrize("kind", ["simulator", "opennebula"])
async def test_killed_at_any_moment_under_eight_clients(kind: str, tmp_path: Path) -> None:
    seed = int(os.environ.get("CRASH_SEED", "0")) or random.SystemRandom().randrange(1, 2**32)
    print(f"CRASH_SEED={seed}")
    chance = random.Random(seed)
    delays = 'delays = { deploy = "20ms", suspend = "20ms", resume = "20ms", terminate = "10ms" }'
    world = Simulated(tmp_path, delays) if kind == "simulator" else OpenNebula(tmp_path)
    try:
        async with nursery() as forks, Life(forks, tmp_path, world, at_work=True) as life:
            over = asyncio.Event()
            clients = [asyncio.create_task(client(life, random.Random(f"{seed} {n}"), over)) for n in range(CLIENTS)]
            for _ in range(ROUNDS):
                moment = chance.uniform(SHORTEST, LONGEST)
                failed, _ = await asyncio.wait(clients, timeout=moment, return_when=asyncio.FIRST_COMPLETED)
                if failed:
                    break
                await life.kill()
            over.set()
            made = sum(await asyncio.gather(*clients))
            await life.check()
            print(f"{made} workspaces were made, {life.deaths} brokers died")
            assert made >= CLIENTS
            assert life.deaths == ROUNDS
    finally:
        world.close()


async def client(life: Life, chance: random.Random, over: asyncio.Event) -> int:
    """Takes workspaces through their lives until it is over; how many."""
    made = 0
    kept: list[str] = []
    while not over.is_set():
        name = await life.create(cpu=250, memory=128, count=chance.choice((1, 1, 2)))
        made += 1
        kept.append(name)
        if chance.random() < 0.7:
            await life.until(name, "RUNNING")
            await life.verb("Suspend", name, release_capacity=chance.random() < 0.5)
            await life.until(name, "SUSPENDED")
            if chance.random() < 0.5:
                await life.verb("Resume", name)
        if len(kept) > 2 or chance.random() < 0.5:
            ended = kept.pop(chance.randrange(len(kept)))
            await life.verb("Terminate", ended)
            await life.until(ended, "TERMINATED")
    return made
