"""The simulated machines: where they are, what they hold, and what becomes of them in time.

A change begins at once and is over when it is due; whoever looks first settles what is due, so nothing runs in the
background and the same calls at the same times give the same world. A world outlives the backend that made it
(`World.named`, or a state file), as VMs outlive a broker. It knows no faults and judges no step.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import ClassVar

from msgspec import Struct
from msgspec.structs import replace

from backends.base import Amounts, HostState, Identity, NodeSpec, Observation, ObservedNic, ObservedNode
from backends.simulator.addresses import AddressBook

POOL = ""  # the holder of what belongs to the pool and to no host


class Change(Struct, frozen=True, kw_only=True):
    """What is under way on a machine. `due` None: it never gets there."""

    step: str
    due: datetime | None
    then: Observation
    placed: bool
    shown: Observation = Observation.BUSY
    target: str = ""  # the host it moves to, held meanwhile
    message: str = ""


class Machine(Struct, frozen=True, kw_only=True):
    """A VM. `host` is where its disk lies; `placed`: it also holds the rest of what it was promised there."""

    backend_id: str
    identity: Identity
    name: str
    amounts: Amounts
    nics: tuple[ObservedNic, ...] = ()
    image: str = ""
    start_paused: bool = False
    observation: Observation = Observation.BUSY
    booted: bool = False  # it has run once
    host: str = ""
    placed: bool = False
    message: str = ""
    change: Change | None = None
    spec: NodeSpec | None = None  # as it was asked for; not kept in a state file

    @property
    def seen(self) -> Observation:
        """What it shows, its host's silence aside."""
        return self.change.shown if self.change else self.observation


class SavedImage(Struct, frozen=True, kw_only=True):
    """A disk that was saved."""

    name: str
    source: str  # the machine's id
    ready_time: datetime


@dataclass(slots=True)
class World:
    """Every machine of a simulated pool, whoever made it."""

    addresses: AddressBook
    shared_disk: bool = False
    machines: dict[str, Machine] = field(default_factory=dict)
    images: dict[str, SavedImage] = field(default_factory=dict)
    host_states: dict[str, HostState] = field(default_factory=dict)  # those that are not ACTIVE
    foreign: dict[str, dict[str, int]] = field(default_factory=dict)  # by hand, by host
    log: list[Machine | SavedImage | str] | None = None  # what has changed since it was last written; str: gone
    _held: dict[str, Counter[str]] = field(default_factory=dict)
    _by_identity: dict[Identity, list[str]] = field(default_factory=dict)
    _due: list[tuple[datetime, int, str]] = field(default_factory=list)
    _shown: dict[str, ObservedNode] = field(default_factory=dict)
    _serial: int = 0

    _worlds: ClassVar[dict[str, World]] = {}

    @classmethod
    def named(cls, name: str, made: World) -> World:
        """The world of a name in this process, which is `made` if it is the first."""
        return cls._worlds.setdefault(name, made)

    @classmethod
    def forget(cls, name: str) -> None:
        """Ends the world of a name."""
        cls._worlds.pop(name, None)

    def next_number(self) -> int:
        """A number no machine had before."""
        self._serial += 1
        return self._serial

    def put(self, machine: Machine) -> Machine:
        """Adds a machine, or replaces what it was."""
        before = self.machines.get(machine.backend_id)
        if before is None:
            self._by_identity.setdefault(machine.identity, []).append(machine.backend_id)
            self._serial = max(self._serial, int(machine.backend_id))
        else:
            self._count(before, -1)
        self._count(machine, 1)
        self.machines[machine.backend_id] = machine
        self._shown.pop(machine.backend_id, None)
        if machine.change is not None and machine.change.due is not None:
            heapq.heappush(self._due, (machine.change.due, self._serial, machine.backend_id))
        if self.log is not None:
            self.log.append(machine)
        return machine

    def remove(self, machine: Machine) -> None:
        """Ends a machine; nothing of it is left."""
        self._count(self.machines.pop(machine.backend_id), -1)
        self._shown.pop(machine.backend_id, None)
        self.addresses.free(machine.nics)
        ids = self._by_identity[machine.identity]
        ids.remove(machine.backend_id)
        if not ids:
            del self._by_identity[machine.identity]
        if self.log is not None:
            self.log.append(machine.backend_id)

    def save(self, image: SavedImage) -> None:
        """Adds a saved image."""
        self.images[image.name] = image
        if self.log is not None:
            self.log.append(image)

    def find(self, identity: Identity, backend_id: str = "") -> Machine | None:
        """The machine of an id that bears the identity, or without an id the oldest that bears it."""
        if backend_id:
            machine = self.machines.get(backend_id)
            return machine if machine is not None and machine.identity == identity else None
        ids = self._by_identity.get(identity)
        return self.machines[ids[0]] if ids else None

    def settle(self, now: datetime) -> None:
        """Lets everything happen that is due."""
        while self._due and self._due[0][0] <= now:
            due, _, backend_id = heapq.heappop(self._due)
            machine = self.machines.get(backend_id)
            if machine is None or machine.change is None or machine.change.due != due:
                continue  # something else was begun meanwhile
            self.arrive(machine, machine.change)

    def arrive(self, machine: Machine, change: Change) -> None:
        """A change is over."""
        if change.then is Observation.ABSENT:
            self.remove(machine)
            return
        self.put(
            replace(
                machine,
                observation=change.then,
                booted=machine.booted or change.then in (Observation.RUNNING, Observation.PAUSED),
                placed=change.placed,
                host=change.target or machine.host,
                message=change.message,
                change=None,
            )
        )

    def observed(self) -> Iterator[ObservedNode]:
        """Every machine as it shows itself, oldest first."""
        shown = self._shown
        for backend_id, machine in self.machines.items():
            yield shown.get(backend_id) or self.show(machine)

    def show(self, machine: Machine) -> ObservedNode:
        """A machine as it shows itself: SILENT where its host is lost."""
        node = self._shown.get(machine.backend_id)
        if node is None:
            host = machine.host if machine.placed else ""
            lost = self.host_states.get(host) is HostState.LOST
            node = ObservedNode(
                identity=machine.identity,
                backend_id=machine.backend_id,
                observation=Observation.SILENT if lost else machine.seen,
                host=host,
                detail=machine.change.step if machine.change else machine.observation.lower(),
                message=f"host {host} does not answer" if lost else machine.message,
                amounts=machine.amounts,
                nics=machine.nics,
            )
            self._shown[machine.backend_id] = node
        return node

    def set_host(self, host: str, state: HostState) -> None:
        """A host is lost, taken out, or back."""
        if state is HostState.ACTIVE:
            self.host_states.pop(host, None)
        else:
            self.host_states[host] = state
        self._shown.clear()

    def held(self, host: str) -> Mapping[str, int]:
        """What machines hold of a host, or of the pool."""
        return self._held.get(host, {})

    def _count(self, machine: Machine, sign: int) -> None:
        target = machine.change.target if machine.change else ""
        for host, placed in ((machine.host, machine.placed), (target, True)):
            if not host:
                continue
            for resource, amount in machine.amounts.items():
                disk = resource == "disk"
                if disk and self.shared_disk:
                    if host == machine.host:
                        self._held.setdefault(POOL, Counter())[resource] += sign * amount
                elif placed or disk:
                    self._held.setdefault(host, Counter())[resource] += sign * amount
