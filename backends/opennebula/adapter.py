"""The OpenNebula backend: a pool that is one front-end, or one cluster of it.

Responsible for answering the `Backend` protocol with the parts beside it: `settings` (what the operator
wrote), `rpc` and `failures` (the wire), `frontend` and `documents` (what is read), `inventory` and
`observing` (what that means), `verbs`, `goals` and `template` (what is done). Invariant: every error that
leaves here is one of the three kinds. It retries nothing, polls nothing and decides no placement.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Final

from backends.base import (
    COMMON_STEPS,
    Action,
    Backend,
    BackendContext,
    BackendError,
    BackendRejected,
    Capability,
    Identity,
    Inventory,
    ObservedNode,
    ParameterSpec,
    SettingProblem,
    Step,
    StepCall,
)
from backends.opennebula import inventory, names, parameters
from backends.opennebula import settings as pool_settings
from backends.opennebula.documents import Vm
from backends.opennebula.failures import NotYet
from backends.opennebula.frontend import FrontEnd
from backends.opennebula.inventory import Accountant, Reading
from backends.opennebula.names import Directory
from backends.opennebula.observing import Observer, absent
from backends.opennebula.rpc import Rpc
from backends.opennebula.settings import Settings
from backends.opennebula.verbs import TAKING_ROOM, Verbs, oldest

CAPABILITIES: Final = frozenset(
    {
        Capability.SUSPEND,
        Capability.STOP,
        Capability.REBOOT,
        Capability.SAVE_IMAGE,
        Capability.ADVANCE_RESERVATION,
        Capability.RELEASE,
        Capability.MIGRATE,
        Capability.LIVE_MIGRATE,
        Capability.USER_DATA,
        Capability.STATIC_ADDRESS,
    }
)
"""No PAUSE: OpenNebula has no such action."""

# No PAUSE; and from STOPPED and UNDEPLOYED straight to DEPLOY, as a resume would hand the VM to ONE's own scheduler.
STEPS: Final[Mapping[Action, tuple[Step, ...]]] = {
    action: steps for action, steps in COMMON_STEPS.items() if action not in (Action.PAUSE, Action.UNPAUSE)
}


class OpenNebulaBackend:
    """One pool. See `backends.base.Backend` for what each method promises."""

    def __init__(self, settings: Settings, context: BackendContext) -> None:
        self._settings = settings
        self._broker_id = context.broker_id
        self._rpc = Rpc(settings, context.base_directory)
        self._front = FrontEnd(self._rpc, settings.page_size)
        self._directory = Directory(self._front, settings)
        self._accountant = Accountant(settings, context.broker_id)
        self._observer = Observer(context.clock)
        self._verbs = Verbs(self._rpc, self._front, self._directory, settings.datastore)

    @property
    def capabilities(self) -> frozenset[Capability]:
        return CAPABILITIES

    @property
    def parameter_specs(self) -> Sequence[ParameterSpec]:
        return parameters.SPECS

    @property
    def in_turn(self) -> frozenset[Step]:
        return TAKING_ROOM

    def steps(self, action: Action) -> tuple[Step, ...]:
        return STEPS.get(action, ())

    async def open(self) -> None:
        self._rpc.open()

    async def close(self) -> None:
        await self._rpc.close()

    async def inventory(self) -> Inventory:
        reading = await self._read()
        images = names.of_images(reading.images, self._settings)
        networks = names.of_networks(reading.networks, self._settings)
        self._directory.learn(reading.hosts, images, networks)
        total, foreign = self._accountant.pool_disk(reading)
        return Inventory(
            hosts=self._accountant.hosts(reading),
            nodes=self._ours(reading.vms),
            images=inventory.observed_images(images),
            networks=self._accountant.networks(reading, networks),
            pool_totals=total,
            pool_foreign=foreign,
            warnings=self._accountant.warnings(reading, images, networks),
        )

    async def observe(self) -> Sequence[ObservedNode]:
        return self._ours(await self._front.vms())

    async def find(self, identity: Identity, backend_id: str = "") -> ObservedNode:
        if not backend_id:
            vm = oldest(await self._front.vms(), identity)
            return absent(identity) if vm is None else self._node(vm, identity)
        if not backend_id.isdecimal():
            raise BackendRejected(f'"{backend_id}" is no id of an OpenNebula VM')
        vm = await self._front.vm(int(backend_id))
        if vm is None:
            return absent(identity, backend_id, f"OpenNebula has no VM {backend_id}")
        if vm.identity is None:
            # Somebody replaced its attributes, or the front-end was set up anew. Neither "it is gone" nor
            # "that is it" would be safe to say.
            raise NotYet(f"VM {backend_id} ({vm.name}) bears no tag any more: an operator must look")
        if vm.identity != identity:
            return absent(identity, backend_id, f"VM {backend_id} is another one now ({vm.name})")
        return self._node(vm, identity)

    async def perform(self, call: StepCall) -> str:
        backend_id = await self._verbs.perform(call)
        if backend_id:
            self._observer.accepted(int(backend_id), call.step, call.target_host)
        return backend_id

    async def _read(self) -> Reading:
        """The five documents of an inventory, at once; all of them or an error."""
        try:
            async with asyncio.TaskGroup() as group:
                all_hosts = group.create_task(self._front.hosts())
                vms = group.create_task(self._front.vms())
                images = group.create_task(self._front.images())
                networks = group.create_task(self._front.networks())
                datastores = group.create_task(self._front.datastores())
        except* BackendError as failed:
            raise _first(failed) from None
        hosts = inventory.in_cluster(all_hosts.result(), self._settings.cluster)
        reading = Reading(
            hosts=hosts,
            vms=vms.result(),
            images=images.result(),
            networks=networks.result(),
            datastores=datastores.result(),
            clusters=frozenset(host.cluster_id for host in hosts),
            saw_hosts=bool(all_hosts.result()),
        )
        return inventory.narrowed(reading) if self._settings.cluster else reading

    def _ours(self, vms: tuple[Vm, ...]) -> tuple[ObservedNode, ...]:
        return tuple(
            self._node(vm, vm.identity)
            for vm in vms
            if vm.identity is not None and vm.identity.broker_id == self._broker_id
        )

    def _node(self, vm: Vm, identity: Identity) -> ObservedNode:
        return self._observer.node(vm, identity, self._directory.network_name)


def _first(failed: BaseExceptionGroup[BackendError]) -> BackendError:
    error: BaseException = failed
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, BackendError)
    return error


def check(settings: Mapping[str, object]) -> Sequence[SettingProblem]:
    """Names every bad or unknown key of a pool's settings."""
    return pool_settings.read(settings)[1]


def create(settings: Mapping[str, object], context: BackendContext) -> Backend:
    """Makes the backend of one pool; settings have passed `check`."""
    return OpenNebulaBackend(pool_settings.read(settings)[0], context)
