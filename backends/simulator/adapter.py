"""The simulator backend: a pool of any size in memory, on the broker's clock, with faults by configuration.

Responsible for answering the `Backend` protocol; steps.py says what a step does, world.py what becomes of it.
Invariant: the same settings and the same calls at the same times give the same answers; there is no chance in it.
It makes no VMs.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from backends.base import (
    COMMON_STEPS,
    Action,
    BackendContext,
    BackendError,
    BackendRejected,
    Capability,
    HostState,
    Identity,
    Inventory,
    Observation,
    ObservedHost,
    ObservedImage,
    ObservedNetwork,
    ObservedNode,
    OutcomeUnknown,
    ParameterSpec,
    Step,
    StepCall,
    TransientBackendError,
)
from backends.simulator.addresses import AddressBook
from backends.simulator.by_hand import ByHand
from backends.simulator.faults import Faults
from backends.simulator.journal import Journal
from backends.simulator.settings import FaultKind, Settings
from backends.simulator.steps import Stage
from backends.simulator.world import POOL, Machine, World

_NEEDS: dict[Action, tuple[Capability, ...]] = {
    Action.PAUSE: (Capability.PAUSE,),
    Action.UNPAUSE: (Capability.PAUSE,),
    Action.SUSPEND: (Capability.SUSPEND,),
    Action.SUSPEND_RELEASE: (Capability.SUSPEND, Capability.RELEASE),
    Action.RELEASE_SUSPENDED: (Capability.SUSPEND, Capability.RELEASE),
    Action.RESUME: (Capability.SUSPEND,),
    Action.RESUME_RELEASED: (Capability.SUSPEND, Capability.RELEASE),
    Action.STOP: (Capability.STOP,),
    Action.STOP_RELEASE: (Capability.STOP, Capability.RELEASE),
    Action.RELEASE_STOPPED: (Capability.STOP, Capability.RELEASE),
    Action.START: (Capability.STOP,),
    Action.START_RELEASED: (Capability.STOP, Capability.RELEASE),
    Action.REBOOT: (Capability.REBOOT,),
    Action.SAVE: (Capability.SAVE_IMAGE,),
    Action.MIGRATE: (Capability.MIGRATE,),
    Action.LIVE_MIGRATE: (Capability.LIVE_MIGRATE,),
}


class Simulator:
    """One pool. See `backends.base.Backend` for what each method promises.

    For tests: `by_hand` reaches into the pool, `calls` counts calls by step, `vms` lists all machines.
    """

    def __init__(self, settings: Settings, context: BackendContext) -> None:
        self._settings = settings
        self._clock = context.clock
        self._broker_id = context.broker_id
        world = World(addresses=AddressBook(settings.networks), shared_disk=settings.shared_disk is not None)
        self._world = World.named(settings.world, world) if settings.world else world
        self._stage = Stage(world=self._world, hosts=settings.host_table(context.pool), settings=settings)
        self._faults = Faults(settings.faults)
        self._journal: Journal | None = None
        if settings.state_file:
            self._journal = Journal(Path(context.base_directory, settings.state_file), self._world)
        self.by_hand = ByHand(world=self._world, faults=self._faults, changed=self._write)
        self.calls: Counter[str] = Counter()

    @property
    def capabilities(self) -> frozenset[Capability]:
        return self._settings.capabilities

    @property
    def parameter_specs(self) -> Sequence[ParameterSpec]:
        return self._settings.parameters

    @property
    def in_turn(self) -> frozenset[Step]:
        return frozenset()

    def steps(self, action: Action) -> tuple[Step, ...]:
        able = self._settings.capabilities.issuperset(_NEEDS.get(action, ()))
        return COMMON_STEPS.get(action, ()) if able else ()

    async def open(self) -> None:
        if self._journal is not None:
            self._journal.open()

    async def close(self) -> None:
        if self._journal is not None:
            self._journal.close()

    @property
    def vms(self) -> list[Machine]:
        """Every machine there is, oldest first."""
        self._settle()
        return list(self._world.machines.values())

    async def inventory(self) -> Inventory:
        await self._reached("inventory")
        self._settle()
        foreign = {host: Counter(amounts) for host, amounts in self._world.foreign.items()}
        addresses: Counter[str] = Counter()
        for machine in self._world.machines.values():
            if machine.identity.broker_id != self._broker_id:
                self._count_foreign(machine, foreign, addresses)
        shared = self._settings.shared_disk
        return Inventory(
            hosts=tuple(
                ObservedHost(
                    name=name,
                    state=self._world.host_states.get(name, HostState.ACTIVE),
                    total=hosts.total,
                    foreign=foreign.get(name, {}),
                    attributes=hosts.attributes,
                )
                for name, hosts in self._stage.hosts.items()
            ),
            nodes=tuple(self._ours()),
            images=self._images(),
            networks=None
            if self._settings.networks is None
            else tuple(
                ObservedNetwork(
                    name=network.name,
                    total_addresses=network.addresses,
                    foreign_addresses=addresses[network.name],
                )
                for network in self._settings.networks
            ),
            pool_totals={} if shared is None else {"disk": shared},
            pool_foreign={} if shared is None else foreign.get(POOL, {}),
        )

    async def observe(self) -> Sequence[ObservedNode]:
        await self._reached("observe")
        self._settle()
        return self._ours()

    async def find(self, identity: Identity, backend_id: str = "") -> ObservedNode:
        await self._reached("find")
        self._settle()
        machine = self._world.find(identity, backend_id)
        if machine is None:
            return ObservedNode(identity=identity, backend_id=backend_id, observation=Observation.ABSENT)
        return self._world.show(machine)

    async def perform(self, call: StepCall) -> str:
        kind = await self._reached(call.step, call.target_host or call.node.host)
        self._settle()
        if kind is FaultKind.LOST_CALL:
            raise OutcomeUnknown(f"the connection broke while {call.step} was sent (a configured fault)")
        try:
            backend_id = self._stage.take(call, self._clock.now(), kind)
        finally:
            self._write()
        if kind is FaultKind.LOST_ANSWER:
            raise OutcomeUnknown(f"no answer to {call.step} came back (a configured fault)")
        return backend_id

    async def _reached(self, step: str, host: str = "") -> FaultKind | None:
        """Counts a call and lets it take its time. Raises what prevents it; returns a fault that is yet to come."""
        self.calls[step] += 1
        if self._settings.latency:
            await self._clock.sleep(self._settings.latency)
        if self.by_hand.silent:
            raise TransientBackendError("the pool does not answer")
        fault = self._faults.next(step, host)
        if fault is None:
            return None
        said = f"{step} failed (a configured fault)"
        errors: dict[FaultKind, BackendError] = {
            FaultKind.TRANSIENT: TransientBackendError(said),
            FaultKind.REJECTED: BackendRejected(said),
            FaultKind.HOST_REJECTED: BackendRejected(said, host_fault=True),
        }
        if fault.kind in errors:
            raise errors[fault.kind]
        if fault.kind is FaultKind.HANG:
            await asyncio.Event().wait()  # until whoever called gives up
        return fault.kind

    def _settle(self) -> None:
        self._world.settle(self._clock.now())
        self._write()

    def _write(self) -> None:
        if self._journal is not None:
            self._journal.write()

    def _ours(self) -> list[ObservedNode]:
        if self.by_hand.hidden:
            return []
        ours = self._broker_id
        return [node for node in self._world.observed() if node.identity.broker_id == ours]

    def _images(self) -> tuple[ObservedImage, ...] | None:
        if self._settings.images is None:
            return None
        now = self._clock.now()
        saved = [ObservedImage(name=image.name, ready=image.ready_time <= now) for image in self._world.images.values()]
        return (*self._settings.images, *saved)

    def _count_foreign(self, machine: Machine, foreign: dict[str, Counter[str]], addresses: Counter[str]) -> None:
        """Adds what another broker's VM holds."""
        for resource, amount in machine.amounts.items():
            shared = resource == "disk" and self._settings.shared_disk is not None
            if machine.host and (machine.placed or resource == "disk"):
                foreign.setdefault(POOL if shared else machine.host, Counter())[resource] += amount
        for nic in machine.nics:
            addresses[nic.network] += len(nic.addresses)
