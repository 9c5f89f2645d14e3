"""The libvirt backend keeps the contract of all backends on two real Xen hosts, with small PV guests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import libvirt
import pytest

from backends.base import BackendContext, Identity, NicSpec, NodeSpec, Step
from backends.xen import library
from backends.xen.adapter import LibvirtBackend
from backends.xen.factory import Factory
from backends.xen.library import Connection, Facts
from backends.xen.settings import XEN_DRIVERS
from broker.core.clock import SystemClock
from tests.contract.backend_contract import BackendContract
from tests.support.libvirt_pool import Faults
from tests.xen import observer
from tests.xen.lab.host import Host
from tests.xen.pools import settings

pytestmark = pytest.mark.timeout(240)

BROKER = "broker-1"
TIMED_OUT, ABORTED = 68, 78


class Tap:
    """A connection, or a domain of one: the real one, but for calls that are to fail; who boots is noted."""

    def __init__(self, real: Any, rig: XenRig) -> None:
        self._real = real
        self._rig = rig

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._real, name)
        if not callable(found):
            return found

        def call(*arguments: Any) -> Any:
            if name == "reboot" or (name == "create" and not self._real.hasManagedSaveImage()):
                self._rig.booting[self._real.UUIDString()] = self._real.ID()
            waiting = self._rig.faults.by_call.get(name)
            answer = waiting.pop(0)(lambda: found(*arguments)) if waiting else found(*arguments)
            return Tap(answer, self._rig) if isinstance(answer, libvirt.virDomain) else answer

        return call


@dataclass(slots=True)
class XenRig:
    """Two hosts of the lab."""

    hosts: tuple[Host, ...]
    backend: LibvirtBackend = field(init=False)
    faults: Faults = field(default_factory=Faults)
    booting: dict[str, int] = field(default_factory=dict)  # UUID -> Xen's id before, -1: none
    other_host: str = "xenlab-2"

    def node(self, number: int = 0) -> NodeSpec:
        return NodeSpec(
            identity=Identity(broker_id=BROKER, workspace_uid=f"u{number}", node_index=0),
            name=f"node-{number}",
            host="xenlab-1",
            amounts={"cpu": 1000, "memory": 96},
            nics=(NicSpec(network="lan"),),
        )

    async def settle(self) -> None:
        """Waits until no guest is on its way: none asked to stop still runs, who boots has booted."""
        deadline = asyncio.get_running_loop().time() + 90
        while under_way := await asyncio.to_thread(self._under_way):
            assert asyncio.get_running_loop().time() < deadline, f"still under way: {under_way}"
            await self.backend.observe()  # as the broker does: who was asked to stop in vain is ended by a look
            await asyncio.sleep(0.2)

    def _under_way(self) -> list[str]:
        found = []
        for host in self.hosts:
            deaf = observer.booting(host)
            for each in observer.domains(host).values():
                before = self.booting.get(each.uuid)
                asked = observer.STOPPING in each.live_xml
                boots = before is not None and each.state != "paused" and (each.id in deaf or each.id == before)
                if each.state == "ending" or asked or boots:
                    found.append(f"{each.name} on {host.name}: {each.state}, id {each.id} after {before}, {asked=}")
                else:
                    self.booting.pop(each.uuid, None)
        return found

    def connect(self, uri: str, closed: Callable[[str], None], noticed: Callable[[], None]) -> tuple[Connection, Facts]:
        """As `library.connect`."""
        real, facts = library.connect(uri, closed, noticed)
        return Tap(real, self), facts

    def lose_answer(self, step: Step) -> None:
        self.faults.lose_answer("defineXML")

    def lose_call(self, step: Step) -> None:
        self.faults.fail("defineXML", ABORTED)

    def refuse_once(self, step: Step) -> None:
        self.faults.fail("defineXML", TIMED_OUT)


@pytest.fixture
async def rig(pair: tuple[Host, ...], tmp_path: Path) -> AsyncIterator[XenRig]:
    made = XenRig(hosts=pair)
    factory = Factory(XEN_DRIVERS, made.connect)
    table = settings(pair)
    assert factory.check(table) == []
    backend = factory.create(table, BackendContext(pool="lab", broker_id=BROKER, clock=SystemClock()))
    assert isinstance(backend, LibvirtBackend)
    made.backend = backend
    await backend.open()
    try:
        yield made
    finally:
        await backend.close()


class TestRealXen(BackendContract):
    """The suite on real Xen."""
