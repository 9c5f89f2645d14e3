"""The simulator keeps the contract of all backends: with everything at once, and with everything taking time."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime

import pytest

from backends import simulator
from backends.base import BackendContext, Identity, NicSpec, NodeSpec, Step
from backends.simulator import FaultKind, Simulator
from broker.core.clock import ManualClock
from tests.contract.backend_contract import BackendContract


@dataclass(slots=True)
class SimulatorRig:
    """Two hosts on a manual clock."""

    backend: Simulator
    clock: ManualClock
    other_host: str = "host-2"

    def node(self, number: int = 0) -> NodeSpec:
        return NodeSpec(
            identity=Identity(broker_id="b", workspace_uid=f"u{number}", node_index=0),
            name=f"node-{number}",
            host="host-1",
            amounts={"cpu": 1000, "memory": 512, "disk": 1024},
            image="os",
            nics=(NicSpec(network="net"),),
        )

    async def settle(self) -> None:
        await self.clock.advance(60)

    def lose_answer(self, step: Step) -> None:
        self.backend.by_hand.fail(FaultKind.LOST_ANSWER, step)

    def lose_call(self, step: Step) -> None:
        self.backend.by_hand.fail(FaultKind.LOST_CALL, step)

    def refuse_once(self, step: Step) -> None:
        self.backend.by_hand.fail(FaultKind.TRANSIENT, step)


@pytest.fixture(params=["at once", "in time", "shared disk"])
async def rig(request: pytest.FixtureRequest) -> AsyncIterator[SimulatorRig]:
    clock = ManualClock(datetime(2026, 1, 1, tzinfo=UTC))
    settings: dict[str, object] = {
        "hosts": [{"count": 2, "name": "host", "cpu": 4000, "memory": 4096}],
        "images": ["os"],
        "networks": [{"name": "net", "addresses": 4}],
    }
    if request.param == "in time":
        settings["delays"] = {step.value: "2s" for step in Step}
    elif request.param == "shared disk":
        settings["shared_disk"] = 4096
    backend = simulator.create(settings, BackendContext(pool="lab", broker_id="b", clock=clock))
    await backend.open()
    yield SimulatorRig(backend=backend, clock=clock)
    await backend.close()


class TestSimulator(BackendContract):
    """The suite on the simulator."""
