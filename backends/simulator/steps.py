"""What each step does to a simulated machine: from what it can be taken, and where it leads.

A step that was taken already does nothing. Where the table has no way from what a machine is, the step is rejected
in words an operator understands. Delays are the pool's; what goes wrong on purpose is told by a `Fault`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from msgspec.structs import replace

from backends.base import BackendRejected, HostState, Observation, Step, StepCall, TransientBackendError
from backends.simulator.settings import FaultKind, Hosts, Settings
from backends.simulator.world import POOL, Change, Machine, SavedImage, World

BROKEN, OFF, PAUSED, RUNNING, SUSPENDED = (
    Observation.BROKEN,
    Observation.OFF,
    Observation.PAUSED,
    Observation.RUNNING,
    Observation.SUSPENDED,
)
# A start from BROKEN is the backend's own recovery.
FROM: Mapping[Step, frozenset[Observation]] = {
    Step.DEPLOY: frozenset({OFF, SUSPENDED, BROKEN}),
    Step.PAUSE: frozenset({RUNNING}),
    Step.UNPAUSE: frozenset({PAUSED}),
    Step.SUSPEND: frozenset({RUNNING}),
    Step.SUSPEND_RELEASE: frozenset({RUNNING, SUSPENDED}),
    Step.RESUME: frozenset({SUSPENDED, BROKEN}),
    Step.STOP: frozenset({RUNNING}),
    Step.STOP_RELEASE: frozenset({RUNNING, OFF}),
    Step.START: frozenset({OFF, BROKEN}),
    Step.REBOOT: frozenset({RUNNING}),
    Step.SAVE: frozenset({RUNNING, PAUSED, SUSPENDED, OFF}),
    Step.MIGRATE: frozenset({RUNNING, SUSPENDED, OFF}),
    Step.LIVE_MIGRATE: frozenset({RUNNING}),
}
TO: Mapping[Step, Observation] = {  # the others lead back to where the machine was
    Step.DEPLOY: RUNNING,
    Step.PAUSE: PAUSED,
    Step.UNPAUSE: RUNNING,
    Step.SUSPEND: SUSPENDED,
    Step.SUSPEND_RELEASE: SUSPENDED,
    Step.RESUME: RUNNING,
    Step.STOP: OFF,
    Step.STOP_RELEASE: OFF,
    Step.START: RUNNING,
}
RELEASES = frozenset({Step.SUSPEND_RELEASE, Step.STOP_RELEASE})
MOVES = frozenset({Step.MIGRATE, Step.LIVE_MIGRATE})


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Where steps are taken: the machines, the hosts there are, and the pool's settings."""

    world: World
    hosts: Mapping[str, Hosts]
    settings: Settings

    def take(self, call: StepCall, now: datetime, fault: FaultKind | None = None) -> str:
        """Takes a step and returns the machine's id. Raises BackendError, and then nothing has happened."""
        machine = self.world.find(call.node.identity, call.backend_id)
        if call.step in (Step.PROPAGATE, Step.UNPROPAGATE):
            return call.backend_id  # images are everywhere
        if call.step is Step.ALLOCATE:
            return (machine or self._allocate(call, now, fault)).backend_id
        if machine is None:
            if call.step is Step.TERMINATE:
                return call.backend_id
            raise BackendRejected(f"there is no VM {call.backend_id or call.node.name} to {call.step}")
        if machine.placed and self.world.host_states.get(machine.host) is HostState.LOST:
            raise TransientBackendError(f"host {machine.host} of VM {machine.backend_id} does not answer")
        if call.step is Step.TERMINATE:
            if call.force or machine.change is None or machine.change.step != Step.TERMINATE:
                self._begin(machine, call, now, fault, then=Observation.ABSENT)
            return machine.backend_id
        if not self._taken(machine, call):
            self._check(machine, call)
            self._change(machine, call, now, fault)
        return machine.backend_id

    def _allocate(self, call: StepCall, now: datetime, fault: FaultKind | None) -> Machine:
        node = call.node
        images = self.settings.images
        names = {image.name for image in images or ()} | self.world.images.keys()
        for image in (node.image, *(disk.image for disk in node.disks)):
            if images is not None and image and image not in names:
                raise BackendRejected(f"there is no image {image}")
        number = self.world.next_number()
        machine = Machine(
            backend_id=str(number),
            identity=node.identity,
            name=node.name,
            amounts=dict(node.amounts),
            nics=self.world.addresses.take(node.nics, number),
            image=node.image,
            start_paused=node.start_paused,
            spec=node,
        )
        self.world.put(machine)
        return self._begin(machine, call, now, fault, then=machine.observation)

    def _taken(self, machine: Machine, call: StepCall) -> bool:
        """Whether the step was taken before, or raises TransientBackendError while another one is under way."""
        change, step = machine.change, call.step
        wanted = call.target_host if step in MOVES else call.node.host
        if change is not None:
            there = change.target if step in MOVES else machine.host
            if change.step == step and (there == wanted or step not in (*MOVES, Step.DEPLOY)):
                return True
            if change.step == Step.ALLOCATE and step is Step.DEPLOY and change.due is not None:
                return False
            raise TransientBackendError(f"VM {machine.backend_id} is busy: {change.step} is under way")
        if step in MOVES:
            return machine.host == wanted
        if step is Step.DEPLOY:
            return machine.observation in (RUNNING, PAUSED) and machine.host == wanted
        if step is Step.SAVE:
            saved = self.world.images.get(call.image_name)
            return saved is not None and saved.source == machine.backend_id
        if step in RELEASES and machine.placed:
            return False
        return TO.get(step) is machine.observation

    def _check(self, machine: Machine, call: StepCall) -> None:
        """Raises BackendRejected where the step cannot be taken."""
        step, is_now = call.step, machine.observation
        first = step is Step.DEPLOY and not machine.booted and is_now is Observation.BUSY
        forced = step in (Step.STOP, Step.STOP_RELEASE) and call.force and is_now is PAUSED
        if not first and not forced and is_now not in FROM[step]:
            raise BackendRejected(f"VM {machine.backend_id} is {is_now.lower()}: it cannot {step}")
        if step is Step.DEPLOY:
            if machine.placed and is_now is not BROKEN and machine.host != call.node.host:
                raise BackendRejected(f"VM {machine.backend_id} is kept on {machine.host}: migrate it")
            self._room(machine, call.node.host)
        elif step in MOVES:
            self._room(machine, call.target_host)
        elif step in (Step.RESUME, Step.START) and not machine.placed:
            raise BackendRejected(f"VM {machine.backend_id} has let go of its host: deploy it on one")
        elif step is Step.SAVE:
            if not call.image_name:
                raise BackendRejected("an image needs a name")
            if call.image_name in self.world.images or call.image_name in {
                image.name for image in self.settings.images or ()
            }:
                raise BackendRejected(f"there is an image {call.image_name} already")

    def _room(self, machine: Machine, host: str) -> None:
        """Raises BackendRejected as a fault of the host where it cannot take the machine."""
        there = self.hosts.get(host)
        if there is None:
            raise BackendRejected(f"there is no host {host}", host_fault=True)
        state = self.world.host_states.get(host)
        if state is not None:
            raise BackendRejected(f"host {host} is {state.lower()}", host_fault=True)
        if not self.settings.enforce_capacity or (machine.placed and machine.host == host):
            return
        foreign = self.world.foreign.get(host, {})
        for resource, amount in machine.amounts.items():
            total, held = there.total.get(resource, 0), self.world.held(host).get(resource, 0)
            if resource == "disk":
                if machine.host == host or (self.settings.shared_disk is not None and machine.host):
                    continue  # its disk is there already
                if self.settings.shared_disk is not None:
                    total, held = self.settings.shared_disk, self.world.held(POOL).get(resource, 0)
            free = total - held - foreign.get(resource, 0)
            if amount > free:
                raise BackendRejected(f"host {host} has {free} of {resource} free, {amount} wanted", host_fault=True)

    def _change(self, machine: Machine, call: StepCall, now: datetime, fault: FaultKind | None) -> None:
        step = call.step
        then = TO.get(step, machine.observation)
        if step is Step.DEPLOY:
            if machine.start_paused and not machine.booted:
                then = PAUSED
            if machine.change is not None and machine.change.due is not None:
                now = max(now, machine.change.due)  # it boots once it is made
            machine = replace(machine, host=call.node.host, placed=True)
        if step is Step.SAVE:
            ready = now + timedelta(seconds=self.settings.delays.get(step, 0.0))
            self.world.save(SavedImage(name=call.image_name, source=machine.backend_id, ready_time=ready))
        self._begin(machine, call, now, fault, then=then)

    def _begin(
        self, machine: Machine, call: StepCall, now: datetime, fault: FaultKind | None, *, then: Observation
    ) -> Machine:
        """Begins a change; one that takes no time is over at once."""
        step = call.step
        delay = 0.0 if step is Step.TERMINATE and call.force else self.settings.delays.get(step, 0.0)
        if fault is FaultKind.BROKEN:
            then = BROKEN
        elif fault is FaultKind.VANISH:
            then = Observation.ABSENT
        due = now + timedelta(seconds=delay)
        change = Change(
            step=step,
            due=None if fault is FaultKind.STALL else due,
            then=then,
            placed=machine.placed and not (step in RELEASES and then is not BROKEN),
            shown=RUNNING if step is Step.LIVE_MIGRATE else Observation.BUSY,
            target=call.target_host if step in MOVES and then is not BROKEN else "",
            message=f"{step} failed" if then is BROKEN else "",
        )
        machine = self.world.put(replace(machine, change=change))
        if delay == 0 and change.due is not None:
            self.world.settle(change.due)
        return self.world.machines.get(machine.backend_id, machine)
