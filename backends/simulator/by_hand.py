"""What befalls a pool from outside: hosts are lost, somebody stops a VM, strangers take room, all falls silent.

For tests, demonstrations and what-if; the broker never calls any of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from msgspec.structs import replace

from backends.base import HostState, Identity, NodeSpec, Observation
from backends.simulator.faults import Faults
from backends.simulator.settings import Fault, FaultKind
from backends.simulator.world import Machine, World


@dataclass(slots=True, kw_only=True)
class ByHand:
    """A hand that reaches into a simulated pool, past its backend. A VM is named by identity or backend id."""

    world: World
    faults: Faults
    changed: Callable[[], None]  # what is to happen after a change
    silent: bool = False  # every call raises TransientBackendError
    hidden: bool = False  # documents show no VM, as to a user who lost its rights; `find` still does

    def machine(self, which: Identity | str) -> Machine:
        """A VM. Raises KeyError."""
        found = self.world.machines.get(which) if isinstance(which, str) else self.world.find(which)
        if found is None:
            raise KeyError(which)
        return found

    def show(self, which: Identity | str, seen: Observation, *, host: str = "", message: str = "") -> None:
        """Makes a VM be something, now; RUNNING or PAUSED take it to `host`, or leave it where its disk is."""
        machine = self.machine(which)
        runs = seen in (Observation.RUNNING, Observation.PAUSED)
        self.world.put(
            replace(
                machine,
                observation=seen,
                host=host or machine.host,
                placed=machine.placed or runs,
                booted=True,
                message=message,
                change=None,
            )
        )
        self.changed()

    def stop(self, which: Identity | str) -> None:
        """Somebody shuts the guest down."""
        self.show(which, Observation.OFF)

    def start(self, which: Identity | str, host: str = "") -> None:
        """Somebody starts it."""
        self.show(which, Observation.RUNNING, host=host)

    def break_vm(self, which: Identity | str, message: str = "broken by hand") -> None:
        """It fails and will not move by itself."""
        self.show(which, Observation.BROKEN, message=message)

    def remove(self, which: Identity | str) -> None:
        """Somebody deletes it."""
        self.world.remove(self.machine(which))
        self.changed()

    def add_stray(self, identity: Identity, host: str, amounts: Mapping[str, int], name: str = "stray") -> str:
        """A running VM that nobody asked for; with the broker's own id in its identity it is a stray."""
        machine = Machine(
            backend_id=str(self.world.next_number()),
            identity=identity,
            name=name,
            amounts=dict(amounts),
            observation=Observation.RUNNING,
            booted=True,
            host=host,
            placed=True,
        )
        self.world.put(machine)
        self.changed()
        return machine.backend_id

    def set_host(self, host: str, state: HostState) -> None:
        """A host is LOST, DISABLED, or ACTIVE again; its VMs are SILENT while it is lost."""
        self.world.set_host(host, state)

    def set_foreign(self, host: str, amounts: Mapping[str, int]) -> None:
        """What VMs without any tag hold of a host."""
        self.world.foreign[host] = dict(amounts)

    def go_silent(self) -> None:
        """From now on no call is answered."""
        self.silent = True

    def come_back(self) -> None:
        """Calls are answered again."""
        self.silent = False

    def fail(self, kind: FaultKind | str, step: str = "", *, host: str = "", count: int = 1, every: int = 1) -> None:
        """One more fault, for the next `count` calls of the step that match."""
        self.faults.add(Fault(kind=FaultKind(kind), step=step, host=host, count=count, every=every))

    def spec(self, which: Identity | str) -> NodeSpec | None:
        """What the VM was asked to be; None after a restart from a state file."""
        return self.machine(which).spec
