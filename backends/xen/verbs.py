"""What each step becomes on a host: the calls, their order, and what is waited for.

Responsible for the steps that stay on one host; moving.py has those between two. Invariants:
- the domain is defined before anything is made for the node, and undefined after all of that is gone, so that it
  stands for whatever there is;
- a step waits for the host's answer, never for a guest: a guest that is asked to stop has its time noted on the
  domain, and whoever looks when that is over ends it (`end_overdue`), also after a restart;
- a domain that is not on the host the broker believes is looked for on the others before it is said to be gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Collection, Coroutine
from datetime import datetime, timedelta
from functools import partial
from typing import Final, TypeVar

from msgspec.structs import replace

from backends.base import (
    BackendClock,
    BackendError,
    BackendRejected,
    Identity,
    NodeSpec,
    Observation,
    OutcomeUnknown,
    StepCall,
)
from backends.xen import acts, domain, inventory
from backends.xen.acts import Gone, Node
from backends.xen.addresses import Addresses
from backends.xen.domain import Boot, Platform
from backends.xen.errors import Kind, NotYet
from backends.xen.host import Host
from backends.xen.hosts import Hosts
from backends.xen.library import Connection
from backends.xen.reading import DomainReading
from backends.xen.seam import Disk, Storage
from backends.xen.settings import Settings

log = logging.getLogger(__name__)

T = TypeVar("T")

GONE_SECONDS: Final = 30.0
"""How long an end waits for a host to give up a domain's devices and name: Xen takes two seconds."""

LOOK_AGAIN: Final = 0.5

OFF, SUSPENDED = Observation.OFF, Observation.SUSPENDED


class Verbs:
    """The steps of one pool."""

    def __init__(
        self,
        settings: Settings,
        hosts: Hosts,
        storage: Storage,
        addresses: Addresses,
        clock: BackendClock,
        broker_id: str,
    ) -> None:
        self._settings = settings
        self._hosts = hosts
        self._storage = storage
        self._addresses = addresses
        self._clock = clock
        self._broker_id = broker_id
        self._ending: dict[str, asyncio.Task[None]] = {}

    async def close(self) -> None:
        """Ends what was begun by a look."""
        tasks = list(self._ending.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def allocate(self, call: StepCall) -> None:
        """Defines the domain, with its addresses and without disks."""
        spec, uuid = call.node, domain.uuid_of(call.node.identity)
        host = self._hosts.get(spec.host)
        seen = await self._hosts.domain(host, uuid)
        if seen is not None:
            self._same(host, seen, spec.identity)
            return
        if self._hosts.unread:
            with contextlib.suppress(BackendError):
                await self._hosts.look()
        shown, others = inventory.addresses_shown(self._hosts.readings, self._broker_id)
        nics = self._addresses.give(uuid, spec.nics, {**others, **shown}, self._hosts.unread)
        try:
            await self.define(host, replace(spec, nics=nics))
        except OutcomeUnknown:
            raise
        except BackendError:
            self._addresses.take_back(uuid)
            raise

    async def propagate(self, call: StepCall) -> None:
        """Fills the node's disks, and writes them into its definition."""
        host, seen = await self.where(call.node)
        spec, uuid = self.with_nics(call.node, seen), seen.uuid
        await self._storage.propagate(host, spec, uuid)
        await self.redefine(host, spec)

    async def deploy(self, call: StepCall) -> None:
        """Starts a node for the first time."""
        await self._start(call, {OFF}, paused=call.node.start_paused)

    async def start(self, call: StepCall) -> None:
        """Starts a node that was stopped."""
        await self._start(call, {OFF})

    async def resume(self, call: StepCall, *, brought: bool = False) -> None:
        """Lets a node go on from its saved memory. A host to which that was `brought` shows the domain as off, as its
        daemon did not save it, and finds the memory all the same."""
        await self._start(call, {SUSPENDED, OFF} if brought else {SUSPENDED})

    async def pause(self, call: StepCall) -> None:
        """Stops a guest where it stands."""
        await self.on_its_host(call.node, "pausing", acts.pause)

    async def unpause(self, call: StepCall) -> None:
        """Lets a paused guest go on."""
        await self.on_its_host(call.node, "unpausing", acts.unpause)

    async def suspend(self, call: StepCall) -> None:
        """Saves a guest's memory on its host."""
        await self.on_its_host(call.node, "saving the memory", acts.save, deadline=self._settings.deadlines.save)

    async def stop(self, call: StepCall) -> None:
        """Asks a guest to shut down, or ends it at once."""
        if call.force:
            await self.on_its_host(call.node, "ending", _end)
            return
        until = self._clock.now() + timedelta(seconds=self._settings.shutdown_wait)
        act = partial(acts.ask_to_stop, until=until.isoformat())
        await self.on_its_host(call.node, "asking to stop", act)

    async def reboot(self, call: StepCall) -> None:
        """Has a guest boot anew."""
        act = partial(acts.reboot, force=call.force, again=call.repeated)
        await self.on_its_host(call.node, "rebooting", act)

    async def save(self, call: StepCall) -> None:
        """Makes an image of a disk. The guest stands still meanwhile: a disk that is written to gives no image."""
        host, seen = await self.where(call.node)
        if seen.observation is Observation.RUNNING:
            seen = await self.act(host, call.node.identity, "pausing", acts.pause)
        # Only this step leaves a guest paused in which it can be called again.
        try:
            await self._storage.save(host, seen.uuid, call.device, call.image_name)
        finally:
            if seen.paused:
                await self.act(host, call.node.identity, "unpausing", acts.unpause)

    async def terminate(self, call: StepCall) -> None:
        """Ends a node: its guest, then its volumes, its definition last. What is gone is no error."""
        identity, uuid = call.node.identity, domain.uuid_of(call.node.identity)
        host = self._hosts.all.get(call.node.host)  # None: an operator took it out of the pool
        was_there = host is not None and await self.remove(host, identity)
        holders = [
            self._hosts.all[name]
            for name, read in self._hosts.readings.items()
            if uuid in read.domains and name != call.node.host
        ]
        if not was_there and not holders and (found := await self._hosts.find(uuid, but=host)) is not None:
            holders.append(found[0])
        for holder in holders:
            await self.remove(holder, identity)
        self._addresses.take_back(uuid)

    async def unpropagate(self, call: StepCall) -> None:
        """Makes sure that no volume is left where the node was."""
        host = self._hosts.all.get(call.node.host)
        if host is not None:
            await self._storage.unpropagate(host, domain.uuid_of(call.node.identity))

    async def remove(self, host: Host, identity: Identity, *, volumes: bool = True) -> bool:
        """Leaves nothing of a node on a host; returns whether its domain was there."""
        uuid = domain.uuid_of(identity)
        seen = await self.act(host, identity, "ending", acts.end)
        if seen is not None:
            await self._wait(host, "its devices to go", partial(self._is_off, host, uuid))
        if volumes:
            await self._storage.unpropagate(host, uuid)
        if seen is not None:
            await self.act(host, identity, "undefining", acts.undefine)
            free = partial(acts.is_free, node=self.node(host, identity), name=seen.name)
            await self._wait(host, "its name to be free", lambda: host.call("looking for a name", free, kind=Kind.LOOK))
        self._hosts.forget(host, uuid)
        return seen is not None

    def end_overdue(self, host: Host, seen: DomainReading) -> None:
        """Ends a guest that was asked to stop and has taken longer than it may; called with every domain that a look
        shows."""
        if not seen.stop_until or seen.tag is None or seen.observation is not Observation.RUNNING:
            return
        if seen.uuid in self._ending or self._clock.now() < datetime.fromisoformat(seen.stop_until):
            return
        log.info("host=%s domain=%s did not shut down in time: it is ended", host.name, seen.name)
        task = asyncio.create_task(self._end_overdue(host, seen.tag.identity, seen.stop_until))
        self._ending[seen.uuid] = task
        task.add_done_callback(lambda _: self._ending.pop(seen.uuid, None))

    async def _end_overdue(self, host: Host, identity: Identity, until: str) -> None:
        try:
            await self.act(host, identity, "ending", partial(acts.end, overdue=until))
        except BackendError as error:
            log.warning("host=%s error=%s", host.name, error)  # the next look tries again

    async def where(self, spec: NodeSpec) -> tuple[Host, DomainReading]:
        """Where a node's domain is: on the host the broker believes, or on another. Raises Gone."""
        uuid = domain.uuid_of(spec.identity)
        host = self._hosts.all.get(spec.host)
        if host is not None and (seen := await self._hosts.domain(host, uuid)) is not None:
            return host, self._same(host, seen, spec.identity)
        found = await self._hosts.find(uuid, but=host)
        if found is None:
            raise Gone(f"no host has a domain {uuid} of {spec.name}")
        return found[0], self._same(*found, spec.identity)

    async def on_its_host(
        self,
        spec: NodeSpec,
        what: str,
        act: Callable[[Connection, Node], DomainReading],
        *,
        deadline: float | None = None,
    ) -> DomainReading:
        """Does something to a node's domain wherever that is."""
        host = self._hosts.get(spec.host)
        try:
            return await self.act(host, spec.identity, what, act, deadline=deadline)
        except Gone:
            found = await self._hosts.find(domain.uuid_of(spec.identity), but=host)
            if found is None:
                raise
        return await self.act(found[0], spec.identity, what, act, deadline=deadline)

    async def act(
        self,
        host: Host,
        identity: Identity,
        what: str,
        act: Callable[[Connection, Node], T],
        *,
        deadline: float | None = None,
    ) -> T:
        """Does something to a node's domain on a host."""
        return await host.call(what, partial(act, node=self.node(host, identity)), deadline=deadline)  # type: ignore[call-arg]

    async def define(self, host: Host, spec: NodeSpec, disks: Collection[Disk] = ()) -> None:
        """Defines a node's domain on a host; its interfaces have their addresses."""
        uuid, name = domain.uuid_of(spec.identity), domain.name_of(spec)
        xml = await self._xml(host, spec, disks)
        self._hosts.expect(host, uuid)
        try:
            await self.act(host, spec.identity, "defining the domain", partial(acts.define, name=name, xml=xml))
        except BackendError as error:
            if not isinstance(error, OutcomeUnknown):
                self._hosts.forget(host, uuid)
            raise
        finally:
            self._hosts.settled(host, uuid)
            self._addresses.stands(uuid, host.name, self._hosts.looks)

    async def redefine(self, host: Host, spec: NodeSpec) -> None:
        """Writes a node's disks into the definition of its domain."""
        disks = await self._storage.disks(host, spec, domain.uuid_of(spec.identity))
        xml = await self._xml(host, spec, disks)
        await self.act(host, spec.identity, "defining the domain's disks", partial(acts.redefine, xml=xml))

    def node(self, host: Host, identity: Identity) -> Node:
        """Which domain is meant, on which host."""
        driver = host.facts.driver if host.facts else ""
        return Node(uuid=domain.uuid_of(identity), identity=identity, host=host.name, driver=driver)

    @staticmethod
    def with_nics(spec: NodeSpec, seen: DomainReading) -> NodeSpec:
        """A node with the addresses it was given."""
        return replace(spec, nics=seen.tag.nics if seen.tag is not None else spec.nics)

    async def _start(self, call: StepCall, begins: Collection[Observation], *, paused: bool = False) -> None:
        act = partial(acts.start, begins=begins, paused=paused)
        await self.on_its_host(call.node, "starting the domain", act, deadline=self._settings.deadlines.save)

    async def _xml(self, host: Host, spec: NodeSpec, disks: Collection[Disk]) -> str:
        facts, own = host.facts, self._hosts.settings[host.name]
        if facts is None:
            raise NotYet(f"host {host.name} was not reached yet")
        image = await self._storage.guest(spec)
        boot = Boot(
            guest=image.get("type") or own.guest or self._settings.guest,
            kernel=image.get("kernel") or own.kernel or self._settings.kernel,
            initrd=image.get("initrd") or own.initrd or self._settings.initrd,
            cmdline=image.get("cmdline") or own.cmdline or self._settings.cmdline,
        )
        platform = Platform(
            driver=facts.driver,
            arch=facts.arch,
            accelerated=facts.accelerated,
            weights=self._settings.cpu_weights and not own.uri.session,
        )
        if missing := [nic.network for nic in spec.nics if nic.network not in self._settings.networks]:
            raise BackendRejected(f"there is no network {', '.join(missing)} in the pool any more")
        return domain.build(spec, boot, platform, self._settings.networks, tuple(disks))

    async def _is_off(self, host: Host, uuid: str) -> bool:
        seen = await self._hosts.domain(host, uuid)
        return seen is None or not seen.active

    async def _wait(self, host: Host, what: str, reached: Callable[[], Coroutine[object, object, bool]]) -> None:
        """Waits until something is so on a host, which usually is at once. Raises NotYet where it takes too long."""
        until = self._clock.monotonic() + GONE_SECONDS
        while not await reached():
            if self._clock.monotonic() >= until:
                raise NotYet(f"waited {GONE_SECONDS:g} s on host {host.name} for {what}")
            await host.changed(LOOK_AGAIN)

    def _same(self, host: Host, seen: DomainReading, identity: Identity) -> DomainReading:
        if seen.tag is None or seen.tag.identity != identity:
            raise NotYet(f"domain {seen.name} on {host.name} does not bear this node's tag: an operator must look")
        return seen


def _end(connection: Connection, node: Node) -> DomainReading:
    """Ends a guest that must be there."""
    seen = acts.end(connection, node)
    if seen is None:
        raise Gone(f"host {node.host} has no domain {node.uuid}")
    return seen
