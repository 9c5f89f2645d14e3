"""A stand-in in a thread of its own, and everything a test or a demo may provoke in it.

Responsible for starting and stopping, and for the world seen from outside. Invariant: after `stop` no
thread and no socket is left. Everything here may be called from any thread.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import TracebackType
from typing import Final, Self

from backends.opennebula.standin import (  # noqa: F401  (they fill the registry)
    device_methods,
    infra_methods,
    store_methods,
    user_methods,
    vm_actions,
    vm_methods,
)
from backends.opennebula.standin.config import StandinConfig
from backends.opennebula.standin.envelope import Value
from backends.opennebula.standin.faults import FaultPlan
from backends.opennebula.standin.frontend import FrontEnd
from backends.opennebula.standin.machine import HostState, Lcm
from backends.opennebula.standin.registry import Deferred
from backends.opennebula.standin.seed import fill
from backends.opennebula.standin.server import CallRecord, Connections, Server
from backends.opennebula.standin.state import Host, Pool, T, Vm, World

# What takes time besides the VMs' states.
OTHER_STEPS: Final = frozenset({"HOST_REPORT", "IMAGE_COPY", "NETWORK_SETUP"})


class Standin:
    """One running front-end. `with Standin(config) as one:` starts and stops it."""

    def __init__(self, config: StandinConfig | None = None) -> None:
        self.config = config or StandinConfig()
        self.faults = FaultPlan(seed=self.config.seed)
        for rule in self.config.faults:
            self.faults.arm(rule)
        self.front = FrontEnd(self.config)
        fill(self.front)
        self._calls: list[CallRecord] = []
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._server: Server | None = None

    # Running

    def start(self) -> Self:
        """Listen and serve; the endpoint is known when this returns."""
        started = threading.Event()
        self._server = server = Server(self.front, self.faults, self._calls.append)

        async def main() -> None:
            self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
            started.set()
            await server.serve(self._stop)

        self._thread = threading.Thread(target=lambda: asyncio.run(main()), name="standin", daemon=True)
        self._thread.start()
        started.wait()
        return self

    def stop(self) -> None:
        if self._thread is None or self._loop is None or self._stop is None:
            return
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        self._thread = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def endpoint(self) -> str:
        return self._started.endpoint

    @property
    def _started(self) -> Server:
        if self._server is None:
            raise RuntimeError("the stand-in was not started")
        return self._server

    @property
    def session(self) -> str:
        """oneadmin's; `session_of` has the others'."""
        return self.session_of("oneadmin")

    def session_of(self, name: str) -> str:
        with self._world() as world:
            return f"{name}:{self._named(world.users, name).password}"

    # Looking

    @property
    def calls(self) -> list[CallRecord]:
        """Every call that was understood, oldest first, without its session."""
        return list(self._calls)

    @property
    def call_counts(self) -> Counter[str]:
        return Counter(record.method for record in self._calls)

    @property
    def connections(self) -> Connections:
        """The connections of now, and the most there were."""
        return replace(self._started.connections)

    @contextmanager
    def _world(self) -> Iterator[World]:
        with self.front.world.lock:
            self.front.world.advance()
            yield self.front.world

    def vm(self, vm_id: int) -> Vm:
        """The VM as it is now; look, do not touch."""
        with self._world() as world:
            return world.vms[vm_id]

    def vms(self) -> list[Vm]:
        with self._world() as world:
            return [vm for _, vm in sorted(world.vms.items())]

    def place(self, vm_id: int) -> str:
        """The name of the VM's LCM state if it is ACTIVE, of its state otherwise."""
        return self.vm(vm_id).place.label

    def host(self, name: str) -> Host:
        with self._world() as world:
            return self._named(world.hosts, name)

    def host_usage(self, name: str) -> tuple[int, int]:
        """Promised CPU in hundredths and memory in KB."""
        with self._world() as world:
            return world.used(self._named(world.hosts, name))

    @property
    def settled(self) -> bool:
        """Whether nothing is on its way but what is held: no VM moves, no host or image is expected."""
        with self._world() as world:
            return world.agenda.idle

    @staticmethod
    def _named(pool: Pool[T], name: str) -> T:
        item = pool.named(name)
        if item is None:
            raise KeyError(name)
        return item

    # Provoking

    def call(self, method: str, *args: Value, session: str | None = None) -> Value:
        """A call without a socket, for setting a scene; it leaves no trace in `calls`."""
        params: list[Value] = [session or self.session, *args]
        reply = self.front.call(method, params)
        return self.front.finish(method, reply) if isinstance(reply, Deferred) else reply

    def fail_host(self, name: str, reason: str = "probe failed") -> None:
        """The monitor reports a failure: host ERROR, its running VMs UNKNOWN."""
        with self._world() as world:
            self.front.lifecycle.fail_host(self._named(world.hosts, name), reason)

    def report_host(self, name: str) -> None:
        """The host reports (again): MONITORED with its figures, unless it is disabled or offline."""
        with self._world() as world:
            host = self._named(world.hosts, name)
            if host.state not in (HostState.DISABLED, HostState.OFFLINE):
                self.front.lifecycle.report(host)

    def power_off_by_hand(self, vm_id: int) -> None:
        """The hypervisor says a running VM is off, without any call."""
        with self._world() as world:
            self.front.lifecycle.power_off_by_hand(world.vms[vm_id])

    def lose_vm(self, vm_id: int) -> None:
        """The hypervisor no longer knows a running VM: UNKNOWN."""
        with self._world() as world:
            self.front.lifecycle.lose(world.vms[vm_id])

    def monitor_vm(self, vm_id: int, **values: str) -> None:
        """The monitor's figures of a VM, e.g. `CPU="42.5", MEMORY="262144"`."""
        with self._world() as world:
            self.front.lifecycle.monitor(world.vms[vm_id], values)

    def fail_next(self, driver: str, vm_id: int | None = None, times: int = 1) -> None:
        """Let the hypervisor fail: `DEPLOY` (BOOT_FAILURE), `SAVE` or `SHUTDOWN` (back to RUNNING)."""
        with self._world():
            self.front.lifecycle.fail_next(driver, vm_id, times)

    def set_dwell(self, lcm: str, seconds: float) -> None:
        """How long VMs that get to this state from now on stay in it."""
        with self._world():
            self.front.lifecycle.set_dwell(lcm, seconds)

    def hold(self, label: str) -> None:
        """Until `release`, keep VMs in this transient state, or keep one of `OTHER_STEPS` from happening."""
        if label not in OTHER_STEPS:
            label = Lcm[label].name
        with self._world() as world:
            world.agenda.hold(label)

    def release(self, label: str | None = None) -> None:
        """Let go what was held; one label only, or all."""
        with self._world() as world:
            world.agenda.release(label)

    def run_scheduler(self) -> None:
        """One round of the scheduler, now, also if it is switched off."""
        with self._world():
            self.front.scheduler.run()
