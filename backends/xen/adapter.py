"""The libvirt backend: a pool of hosts, each with a libvirtd of its own and no scheduler behind them.

Responsible for answering the `Backend` protocol with the parts beside it: `settings` (what the operator wrote),
`host` and `hosts` (connections, and who answers), `reading` and `inventory` (what is seen, and what that means),
`acts`, `verbs` and `moving` (what is done), `addresses`, and the storage behind `seam`. Invariant: every error that
leaves here is one of the three kinds. It retries nothing but connections, and decides no placement.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final

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
    ObservedHost,
    ObservedNode,
    ParameterSpec,
    Step,
    StepCall,
)
from backends.xen import domain, inventory
from backends.xen.addresses import Addresses
from backends.xen.errors import NotYet
from backends.xen.host import Host
from backends.xen.hosts import Hosts
from backends.xen.moving import Moves
from backends.xen.seam import NoStorage, Storage
from backends.xen.settings import Settings
from backends.xen.verbs import Verbs

IN_TURN: Final = frozenset(
    {Step.DEPLOY, Step.SUSPEND, Step.SUSPEND_RELEASE, Step.RESUME, Step.START, Step.MIGRATE, Step.LIVE_MIGRATE}
)
"""Steps that keep a host's thread busy for a while: a second one would wait there, and be counted among the calls."""


class LibvirtBackend:
    """One pool. See `backends.base.Backend` for what each method promises."""

    def __init__(
        self,
        settings: Settings,
        context: BackendContext,
        hosts: Hosts,
        storage: Storage,
    ) -> None:
        self._settings = settings
        self._broker_id = context.broker_id
        self._storage = storage
        self._has_disks = not isinstance(storage, NoStorage)
        self._hosts = hosts
        self._addresses = Addresses(settings.networks)
        self._disks: dict[str, tuple[int, int] | None] = {}
        self._disk_problems: dict[str, str] = {}
        hosts.on_read = self._read
        self._verbs = Verbs(settings, hosts, storage, self._addresses, context.clock, context.broker_id)
        self._moves = Moves(settings, hosts, storage, self._verbs)
        self._capabilities = self._what_it_can()
        self._steps = self._what_it_takes()
        verbs, moves = self._verbs, self._moves
        self._perform: Mapping[Step, Callable[[StepCall], Awaitable[None]]] = {
            Step.PROPAGATE: verbs.propagate,
            Step.ALLOCATE: verbs.allocate,
            Step.DEPLOY: verbs.deploy,
            Step.PAUSE: verbs.pause,
            Step.UNPAUSE: verbs.unpause,
            Step.SUSPEND: verbs.suspend,
            Step.SUSPEND_RELEASE: verbs.suspend,
            Step.RESUME: moves.resume,
            Step.STOP: verbs.stop,
            Step.STOP_RELEASE: verbs.stop,
            Step.START: moves.start,
            Step.REBOOT: verbs.reboot,
            Step.SAVE: verbs.save,
            Step.MIGRATE: moves.migrate,
            Step.LIVE_MIGRATE: lambda call: moves.migrate(call, live=True),
            Step.TERMINATE: verbs.terminate,
            Step.UNPROPAGATE: verbs.unpropagate,
        }

    @property
    def capabilities(self) -> frozenset[Capability]:
        return self._capabilities

    @property
    def parameter_specs(self) -> Sequence[ParameterSpec]:
        return ()

    @property
    def in_turn(self) -> frozenset[Step]:
        return IN_TURN

    def steps(self, action: Action) -> tuple[Step, ...]:
        return self._steps.get(action, ())

    async def open(self) -> None:
        await self._storage.open()
        self._hosts.start()

    async def close(self) -> None:
        await self._verbs.close()
        await self._storage.close()
        await self._hosts.close()

    async def inventory(self) -> Inventory:
        fresh = await self._hosts.look()
        hosts = self._hosts
        disks = await asyncio.gather(*(self._disk(host, host.name in fresh) for host in hosts.all.values()))
        images = await self._storage.images()
        shared = self._storage.shared
        ours, others = inventory.addresses_shown(hosts.readings, self._broker_id)
        observed: list[ObservedHost] = [
            inventory.host(
                hosts,
                host,
                self._broker_id,
                self._settings.networks,
                None if shared else disk,
                answers=host.name in fresh,
            )
            for host, disk in zip(hosts.all.values(), disks, strict=True)
        ]
        pool = next((disk for disk in disks if disk is not None), None) if shared else None
        return Inventory(
            hosts=tuple(observed),
            nodes=inventory.nodes(hosts, fresh, self._broker_id),
            images=images,
            networks=self._addresses.observed(ours, others),
            pool_totals={} if pool is None else {"disk": pool[0]},
            pool_foreign={} if pool is None else {"disk": pool[1]},
            warnings=(*inventory.warnings(hosts), *self._disk_problems.values(), *self._storage.problems),
        )

    async def observe(self) -> Sequence[ObservedNode]:
        fresh = await self._hosts.look()
        return inventory.nodes(self._hosts, fresh, self._broker_id)

    async def find(self, identity: Identity, backend_id: str = "") -> ObservedNode:
        uuid = domain.uuid_of(identity)
        if backend_id and backend_id != uuid:
            return inventory.absent(identity, backend_id, f"domain {backend_id} is another node's")
        await self._hosts.tried()
        try:
            found = await self._hosts.find(uuid)
        except BackendError as error:
            last = self._hosts.last_seen(uuid)
            if last is None or not inventory.is_ours(last[1], identity.broker_id):
                raise
            return inventory.node(last[1], last[0].name, silent=str(error))
        if found is None:
            return inventory.absent(identity, backend_id, f"no host has a domain {uuid}")
        host, seen = found
        if seen.tag is None or seen.tag.identity != identity:
            # Somebody replaced its metadata. Neither "it is gone" nor "that is it" would be safe to say.
            raise NotYet(f"domain {seen.name} on {host.name} does not bear this node's tag: an operator must look")
        return inventory.node(seen, host.name)

    async def perform(self, call: StepCall) -> str:
        uuid = domain.uuid_of(call.node.identity)
        if call.backend_id and call.backend_id != uuid:
            raise BackendRejected(f"domain {call.backend_id} is another node's than {call.node.name}'s, {uuid}")
        await self._hosts.tried()
        await self._perform[call.step](call)
        return uuid

    def _read(self, host: Host, look: int) -> None:
        """A host has just been read."""
        self._addresses.looked(host.name, look)
        for seen in self._hosts.readings[host.name].domains.values():
            if inventory.is_ours(seen, self._broker_id):
                self._verbs.end_overdue(host, seen)

    async def _disk(self, host: Host, answers: bool) -> tuple[int, int] | None:
        """What the host's storage pool has; as it was last seen where it says nothing."""
        if answers and host.state is HostState.ACTIVE:
            try:
                self._disks[host.name] = await self._storage.capacity(host)
                self._disk_problems.pop(host.name, None)
            except BackendError as error:
                self._disk_problems[host.name] = f"the storage of host {host.name} is not read: {error}"
        return self._disks.get(host.name)

    def _what_it_can(self) -> frozenset[Capability]:
        drivers = {host.uri.driver for host in self._settings.hosts}
        can = {
            Capability.PAUSE,
            Capability.SUSPEND,
            Capability.STOP,
            Capability.REBOOT,
            Capability.ADVANCE_RESERVATION,
            Capability.RELEASE,
        }
        if self._storage.saves:
            can.add(Capability.SAVE_IMAGE)
        if self._has_disks:
            can.add(Capability.USER_DATA)
        if any(network.addresses for network in self._settings.networks.values()):
            can.add(Capability.STATIC_ADDRESS)
        if "test" not in drivers and (self._storage.shared or self._storage.moves):
            can.add(Capability.MIGRATE)
        if drivers == {"qemu"} and self._storage.shared:
            can.add(Capability.LIVE_MIGRATE)
        return frozenset(can)

    def _what_it_takes(self) -> Mapping[Action, tuple[Step, ...]]:
        """Where the steps differ from the common ones: the definition comes first and stands for all that follows; a
        node that let go of its capacity is where it was, so that it is started or resumed, not deployed."""
        with_disks = self._has_disks
        steps = {
            **COMMON_STEPS,
            Action.CREATE: (Step.ALLOCATE, *((Step.PROPAGATE,) if with_disks else ()), Step.DEPLOY),
            Action.RESUME_RELEASED: (Step.RESUME,),
            Action.START_RELEASED: (Step.START,),
            Action.TERMINATE: (Step.TERMINATE, *((Step.UNPROPAGATE,) if with_disks else ())),
        }
        needs = {
            Action.SAVE: Capability.SAVE_IMAGE,
            Action.MIGRATE: Capability.MIGRATE,
            Action.LIVE_MIGRATE: Capability.LIVE_MIGRATE,
        }
        return {action: taken for action, taken in steps.items() if needs.get(action) in {None, *self._capabilities}}
