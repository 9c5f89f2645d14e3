"""The libvirt backend keeps the contract of all backends, on two hosts of libvirt's test driver."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from msgspec.structs import replace

from backends.base import Action, Backend, BackendRejected, NodeSpec, Observation, Step
from tests.contract.backend_contract import BackendContract, act, walk

pytest.importorskip("libvirt", reason="libvirt-python is not installed")

from tests.support.libvirt_pool import Machines, node, pool

CALLS = {Step.ALLOCATE: "defineXML"}
TIMED_OUT, ABORTED = 68, 78


@dataclass(slots=True)
class XenRig:
    """Two hosts; each call that is made of a step may fail."""

    backend: Backend
    machines: Machines
    other_host: str = "host-2"

    def node(self, number: int = 0) -> NodeSpec:
        return node(number)

    async def settle(self) -> None:
        """The test driver has done what it was told when it answers."""

    def lose_answer(self, step: Step) -> None:
        self.machines.faults.lose_answer(CALLS[step])

    def lose_call(self, step: Step) -> None:
        self.machines.faults.fail(CALLS[step], ABORTED)

    def refuse_once(self, step: Step) -> None:
        self.machines.faults.fail(CALLS[step], TIMED_OUT)


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[XenRig]:
    machines = Machines()
    async with pool(tmp_path, machines) as backend:
        yield XenRig(backend=backend, machines=machines)
    machines.close()


class TestXen(BackendContract):
    """The suite on the libvirt backend."""

    async def test_released_capacity_comes_back_on_another_host(self, rig: XenRig) -> None:  # type: ignore[override]
        """What is off goes on anywhere where its disks are. Saved memory is a file that the test driver does not
        have: there, a node that is suspended goes on where it was, and another host is refused as a host."""
        spec = node()
        elsewhere = replace(spec, host=rig.other_host)
        backend_id = await walk(rig, (Action.CREATE, Action.STOP_RELEASE), spec)
        await act(rig, Action.START_RELEASED, elsewhere, backend_id)
        found = await rig.backend.find(spec.identity, backend_id)
        assert (found.observation, found.host) == (Observation.RUNNING, rig.other_host)
        await act(rig, Action.SUSPEND_RELEASE, elsewhere, backend_id)
        with pytest.raises(BackendRejected, match="its memory is saved on host-2") as refused:
            await act(rig, Action.RESUME_RELEASED, spec, backend_id)
        assert refused.value.host_fault
        await act(rig, Action.RESUME_RELEASED, elsewhere, backend_id)
        assert (await rig.backend.find(spec.identity)).host == rig.other_host
