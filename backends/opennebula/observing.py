"""From a VM document to what the broker is told of a node, remembering what was accepted a moment ago.

Responsible for the rule that "accepted" is not "done": a front-end answers true and moves the VM some ten
milliseconds later, so that a document read in between shows the VM as it was. Invariant: for `SETTLE_SECONDS`
after a step was accepted, a VM that has visibly not begun it is BUSY; as soon as it moves, or the time is
over, it is what the document says.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from backends.base import BackendClock, Identity, Observation, ObservedNic, ObservedNode, Step
from backends.opennebula import states
from backends.opennebula.documents import Vm

SETTLE_SECONDS: Final = 2.0

# What a VM is seen as while it has not begun a step. Steps that show nothing in between are not here.
_BEFORE: Final[Mapping[Step, frozenset[Observation]]] = {
    Step.SUSPEND: frozenset({Observation.RUNNING}),
    Step.SUSPEND_RELEASE: frozenset({Observation.RUNNING, Observation.SUSPENDED}),
    Step.STOP: frozenset({Observation.RUNNING}),
    Step.STOP_RELEASE: frozenset({Observation.RUNNING, Observation.OFF}),
    Step.RESUME: frozenset({Observation.SUSPENDED}),
    Step.START: frozenset({Observation.OFF}),
    Step.DEPLOY: frozenset({Observation.SUSPENDED, Observation.OFF}),
    Step.SAVE: frozenset({Observation.RUNNING, Observation.OFF}),
    Step.MIGRATE: frozenset({Observation.RUNNING, Observation.SUSPENDED, Observation.OFF}),
    Step.LIVE_MIGRATE: frozenset({Observation.RUNNING}),
    Step.TERMINATE: frozenset(
        {Observation.RUNNING, Observation.SUSPENDED, Observation.OFF, Observation.BROKEN, Observation.SILENT}
    ),
}
_RELEASES: Final = frozenset({Step.SUSPEND_RELEASE, Step.STOP_RELEASE})
_MIGRATES: Final = frozenset({Step.MIGRATE, Step.LIVE_MIGRATE})


@dataclass(frozen=True, slots=True, kw_only=True)
class _Accepted:
    step: Step
    target: str
    until: float

    def begun(self, vm: Vm, seen: Observation) -> bool:
        if self.step in _RELEASES and not states.holds_host(vm.state):
            return True
        if self.step in _MIGRATES and vm.host == self.target:
            return True
        return seen not in _BEFORE[self.step]


class Observer:
    """Turns VMs into observed nodes for one pool."""

    def __init__(self, clock: BackendClock) -> None:
        self._clock = clock
        self._accepted: dict[int, _Accepted] = {}

    def accepted(self, vm_id: int, step: Step, target: str = "") -> None:
        """Notes that a step on a VM was just accepted."""
        now = self._clock.monotonic()
        self._accepted = {key: entry for key, entry in self._accepted.items() if entry.until > now}
        if step in _BEFORE:
            self._accepted[vm_id] = _Accepted(step=step, target=target, until=now + SETTLE_SECONDS)

    def node(self, vm: Vm, identity: Identity, network_name: Callable[[int, str], str]) -> ObservedNode:
        """What the broker is told of a VM. Its host is empty once it has let go of it."""
        return ObservedNode(
            identity=identity,
            backend_id=str(vm.vm_id),
            observation=self._observation(vm),
            host=vm.host if states.holds_host(vm.state) else "",
            detail=states.word(vm.state, vm.lcm),
            message=vm.message,
            amounts={"cpu": vm.cpu, "memory": vm.memory, "disk": vm.disk},
            nics=tuple(
                ObservedNic(
                    network=network_name(nic.network_id, nic.network),
                    addresses=nic.addresses,
                    mac=nic.mac,
                    name=nic.name,
                )
                for nic in vm.nics
            ),
        )

    def _observation(self, vm: Vm) -> Observation:
        seen = states.observation(vm.state, vm.lcm)
        entry = self._accepted.get(vm.vm_id)
        if entry is None:
            return seen
        if entry.until > self._clock.monotonic() and not entry.begun(vm, seen):
            return Observation.BUSY
        del self._accepted[vm.vm_id]
        return seen


def absent(identity: Identity, backend_id: str = "", message: str = "") -> ObservedNode:
    """The answer for a VM that is not there."""
    return ObservedNode(identity=identity, backend_id=backend_id, observation=Observation.ABSENT, message=message)
