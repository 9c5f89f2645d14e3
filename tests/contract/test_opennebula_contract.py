"""The OpenNebula backend keeps the contract of all backends, in front of a stand-in."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest

from backends.base import Identity, NicSpec, NodeSpec, Step
from backends.opennebula.adapter import OpenNebulaBackend
from backends.opennebula.standin import HostConfig, ImageConfig, NetworkConfig, Standin, StandinConfig
from tests.contract.backend_contract import BackendContract
from tests.support.opennebula_pool import BROKER, HandClock, pool

METHODS = {Step.ALLOCATE: "one.vm.allocate"}
CONFIG = StandinConfig(
    hosts=tuple(HostConfig(name=f"host-{number}", cores=4, memory_mb=4096) for number in (1, 2)),
    images=(ImageConfig(name="os"),),
    networks=(NetworkConfig(name="net"),),
    scheduler=False,
    default_dwell=0.001,
    image_delay=0.001,
)


@dataclass(slots=True)
class OpenNebulaRig:
    """Two hosts of a stand-in; the adapter's own clock is moved by hand."""

    backend: OpenNebulaBackend
    standin: Standin
    clock: HandClock
    other_host: str = "host-2"

    def node(self, number: int = 0) -> NodeSpec:
        return NodeSpec(
            identity=Identity(broker_id=BROKER, workspace_uid=f"u{number}", node_index=0),
            name=f"node-{number}",
            host="host-1",
            amounts={"cpu": 1000, "memory": 512},
            image="os",
            nics=(NicSpec(network="net"),),
        )

    async def settle(self) -> None:
        while not self.standin.settled:
            await asyncio.sleep(0.001)
        # What has only just been accepted may not show yet, and the adapter gives it time.
        await self.clock.sleep(10)

    def lose_answer(self, step: Step) -> None:
        self.standin.faults.add("drop_after", METHODS[step], count=1)

    def lose_call(self, step: Step) -> None:
        self.standin.faults.add("drop_before", METHODS[step], count=1)

    def refuse_once(self, step: Step) -> None:
        self.standin.faults.add("auth_refused", METHODS[step], count=1)


@pytest.fixture
async def rig() -> AsyncIterator[OpenNebulaRig]:
    clock = HandClock()
    with Standin(CONFIG) as standin:
        async with pool(standin, clock) as backend:
            yield OpenNebulaRig(backend=backend, standin=standin, clock=clock)


class TestOpenNebula(BackendContract):
    """The suite on the OpenNebula backend."""
