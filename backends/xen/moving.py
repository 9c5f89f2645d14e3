"""Nodes that go to another host: for a drain, and when what gave its capacity back goes on elsewhere.

Responsible for the order in which a definition, volumes and saved memory change hosts. Invariants: a guest is sent
only to a host that has its disks (one without freezes it for good); a node is undefined where it was before it is
started where it goes to, unless the hypervisor itself sends it, so that it never runs twice; each step may be broken
off and taken again, since what is found on either host says how far it came. Live is for what the hypervisor can.
"""

from __future__ import annotations

import hashlib
from functools import partial
from typing import Final

from backends.base import BackendRejected, NodeSpec, Observation, StepCall
from backends.xen import acts, domain, volumes
from backends.xen.errors import Kind, NotYet
from backends.xen.host import Host
from backends.xen.hosts import Hosts
from backends.xen.reading import DomainReading
from backends.xen.seam import Storage
from backends.xen.settings import Settings
from backends.xen.verbs import Verbs
from backends.xen.volumes import PoolPlace

SAVES: Final = {"xen": "/var/lib/libvirt/libxl/save", "qemu": "/var/lib/libvirt/qemu/save"}
"""Where libvirtd keeps a managed save, as NAME.save; it looks there when a domain is started."""

PIECE: Final = 8 * 1024 * 1024

OFF, SUSPENDED, RUNNING = Observation.OFF, Observation.SUSPENDED, Observation.RUNNING


class Moves:
    """What goes from one host of a pool to another."""

    def __init__(self, settings: Settings, hosts: Hosts, storage: Storage, verbs: Verbs) -> None:
        self._settings = settings
        self._hosts = hosts
        self._storage = storage
        self._verbs = verbs

    async def start(self, call: StepCall) -> None:
        """Starts a node that was stopped, on the host the broker chose."""
        await self._bring(call.node)
        await self._verbs.start(call)

    async def resume(self, call: StepCall) -> None:
        """Lets a node go on from its saved memory, on the host the broker chose."""
        brought = await self._bring(call.node)
        await self._verbs.resume(call, brought=brought)

    async def migrate(self, call: StepCall, *, live: bool = False) -> None:
        """Takes a node that runs to another host."""
        target = self._hosts.get(call.target_host)
        identity = call.node.identity
        uuid = domain.uuid_of(identity)
        there = await self._hosts.domain(target, uuid)
        if there is not None and there.active:
            await self._arrived(call.node, target)
            return
        found = await self._hosts.find(uuid, but=target)
        if found is None and there is not None:  # brought, and not started yet
            await self._start_there(call.node, target)
            return
        if found is None:
            raise acts.Gone(f"no host has a domain {uuid} of {call.node.name}")
        source, seen = found
        spec = self._verbs.with_nics(call.node, seen)
        self._check(source, target, seen)
        if self._storage.shared and seen.observation is RUNNING:
            await self._send(spec, source, target, live=live)
            return
        if seen.observation is RUNNING:
            save = self._settings.deadlines.save
            seen = await self._verbs.act(source, identity, "saving the memory", acts.save, deadline=save)
        await self._take(spec, source, seen, target)
        await self._start_there(call.node, target)

    async def _send(self, spec: NodeSpec, source: Host, target: Host, *, live: bool) -> None:
        """Has the hypervisor send a guest to a host that sees the same disks."""
        await self._check_disks(spec, target)
        uuid = domain.uuid_of(spec.identity)
        self._hosts.expect(target, uuid)
        try:
            send = partial(
                acts.migrate,
                target=target.connection,
                uri=self._hosts.settings[target.name].migrate_uri,
                live=live,
            )
            await self._verbs.act(
                source, spec.identity, f"migrating to {target.name}", send, deadline=self._settings.deadlines.save
            )
        finally:
            self._hosts.settled(target, uuid)
        await self._arrived(spec, target)

    async def _arrived(self, spec: NodeSpec, target: Host) -> None:
        """Settles a guest where it came to, and clears away what stayed behind."""
        await self._verbs.act(target, spec.identity, "keeping the domain", acts.keep)
        left = await self._hosts.find(domain.uuid_of(spec.identity), but=target)
        if left is not None:
            if left[1].active:
                raise NotYet(f"domain {left[1].name} is active on {left[0].name} and on {target.name}")
            await self._verbs.remove(left[0], spec.identity, volumes=not self._storage.shared)

    async def _start_there(self, spec: NodeSpec, target: Host) -> None:
        start = partial(acts.start, begins={OFF, SUSPENDED})
        deadline = self._settings.deadlines.save
        await self._verbs.act(target, spec.identity, "starting the domain", start, deadline=deadline)

    async def _bring(self, spec: NodeSpec) -> bool:
        """Brings a node that is off to the host the broker chose, if it is not there; returns whether it had to."""
        host = self._hosts.all.get(spec.host)
        uuid = domain.uuid_of(spec.identity)
        here = None if host is None else await self._hosts.domain(host, uuid)
        if here is not None and uuid not in self._elsewhere(spec.host):
            return False
        target = self._hosts.get(spec.host)
        found = await self._hosts.find(uuid, but=target)
        if found is None or found[1].active:
            return False
        source, seen = found
        if here is not None:  # it was brought before, and only the clearing away was broken off
            await self._verbs.remove(source, spec.identity, volumes=not self._storage.shared)
            return True
        self._check(source, target, seen)
        await self._take(self._verbs.with_nics(spec, seen), source, seen, target)
        return True

    def _elsewhere(self, name: str) -> set[str]:
        """UUIDs of domains that the last looks saw on other hosts."""
        return {uuid for other, read in self._hosts.readings.items() if other != name for uuid in read.domains}

    async def _take(self, spec: NodeSpec, source: Host, seen: DomainReading, target: Host) -> None:
        """Takes all there is of a node that is off from one host to another: copied and checked there before anything
        is removed here."""
        uuid = seen.uuid
        try:
            if not self._storage.shared:
                await self._storage.transfer(source, target, spec, uuid)
            await self._check_disks(spec, target)
            if seen.observation is SUSPENDED:
                await self._take_memory(source, target, seen.name)
            await self._verbs.define(target, spec, await self._storage.disks(target, spec, uuid))
        except BackendRejected:
            await self._verbs.remove(target, spec.identity, volumes=not self._storage.shared)
            raise
        await self._verbs.remove(source, spec.identity, volumes=not self._storage.shared)

    async def _take_memory(self, source: Host, target: Host, name: str) -> None:
        """Copies a managed save, and reads it back to compare."""
        place = PoolPlace(
            name="workspace-broker-saves", type="dir", path=SAVES[source.facts.driver if source.facts else ""]
        )
        file = f"{name}.save"
        for host in (source, target):
            await host.call("opening the saves", partial(volumes.start, place=place))
            await host.call("reading the saves", partial(volumes.refresh, place=place))
        saved = await source.call(
            "looking for saved memory", partial(volumes.volume, place=place, name=file), kind=Kind.LOOK
        )
        if saved is None:
            raise BackendRejected(f"{source.name} has no {place.path}/{file}", host_fault=True)
        size = saved.physical
        await target.call("making room", partial(volumes.delete, place=place, name=file))
        await target.call("making room", partial(volumes.create, place=place, name=file, size=size))
        sent, came = hashlib.sha256(), hashlib.sha256()
        for offset in range(0, size, PIECE):
            length = min(PIECE, size - offset)
            read = partial(volumes.read, place=place, name=file, offset=offset, length=length)
            piece = await source.call("reading saved memory", read, kind=Kind.TRANSFER)
            sent.update(piece)
            write = partial(volumes.write, place=place, name=file, offset=offset, data=piece)
            await target.call("writing saved memory", write, kind=Kind.TRANSFER)
        for offset in range(0, size, PIECE):
            read = partial(volumes.read, place=place, name=file, offset=offset, length=min(PIECE, size - offset))
            came.update(await target.call("comparing saved memory", read, kind=Kind.TRANSFER))
        if sent.digest() != came.digest():
            await target.call("removing a bad copy", partial(volumes.delete, place=place, name=file))
            raise NotYet(f"the memory of {name} did not arrive whole on {target.name}")

    async def _check_disks(self, spec: NodeSpec, target: Host) -> None:
        if not await self._storage.present(target, spec, domain.uuid_of(spec.identity)):
            raise BackendRejected(f"host {target.name} does not have the disks of {spec.name}", host_fault=True)

    def _check(self, source: Host, target: Host, seen: DomainReading) -> None:
        """Raises BackendRejected where a node cannot go from one host to another."""
        mine, theirs = source.facts, target.facts
        if mine is None or theirs is None:
            raise NotYet(f"host {target.name} was not reached yet")
        what = f"domain {seen.name} cannot go from {source.name} to {target.name}: "
        if (mine.driver, mine.arch) != (theirs.driver, theirs.arch):
            raise BackendRejected(
                f"{what}one is {mine.driver} on {mine.arch}, the other {theirs.driver} on {theirs.arch}",
                host_fault=True,
            )
        if not (self._storage.shared or self._storage.moves):
            raise BackendRejected(f"{what}its disks are on {source.name}", host_fault=True)
        if seen.observation is SUSPENDED and mine.driver not in SAVES:
            raise BackendRejected(f"{what}its memory is saved on {source.name}", host_fault=True)
        if seen.observation not in (OFF, SUSPENDED, RUNNING):
            text = f"{what}it is {seen.observation.lower()} ({seen.detail})"
            raise NotYet(text) if seen.observation is Observation.BUSY else BackendRejected(text)
