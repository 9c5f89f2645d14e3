"""Pools on libvirt's test driver: hosts that live in this process, with faults at the connection.

Responsible for hosts whose domains outlive a connection (the driver forgets them with its last one) and for calls that
fail as a real host's do. It needs libvirt-python: import it after asking for that.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import libvirt
from msgspec.structs import replace

from backends.base import BackendContext, Identity, NicSpec, NodeSpec, OutcomeUnknown
from backends.xen import library
from backends.xen.adapter import LibvirtBackend
from backends.xen.factory import Factory
from backends.xen.library import Connection, Facts
from backends.xen.seam import Storage
from backends.xen.settings import ALL_DRIVERS
from broker.core.clock import SystemClock

BROKER = "broker-1"

HOST = """<node>
  <cpu><mhz>2600</mhz><model>x86_64</model><active>4</active><nodes>1</nodes><sockets>1</sockets><cores>4</cores>
    <threads>1</threads></cpu>
  <memory>4194304</memory>
</node>
"""


def error(code: int, message: str = "made by a test") -> Exception:
    """A libvirtError with a code."""
    raised: Exception = libvirt.libvirtError(message)
    vars(raised)["err"] = (code, libvirt.VIR_FROM_TEST, message, libvirt.VIR_ERR_ERROR, "", "", "", -1, -1)
    return raised


@dataclass
class Faults:
    """What goes wrong at a connection: by the name of a call, what is done instead, once each. `calls` counts all."""

    calls: Counter[str] = field(default_factory=Counter)
    by_call: dict[str, list[Callable[[Callable[[], Any]], Any]]] = field(default_factory=dict)

    def add(self, call: str, instead: Callable[[Callable[[], Any]], Any]) -> None:
        """The next such call becomes `instead(the call itself)`."""
        self.by_call.setdefault(call, []).append(instead)

    def answer(self, call: str, answer: Any) -> None:
        """The next such call answers this."""
        self.add(call, lambda itself: answer)

    def lose_answer(self, call: str) -> None:
        """The next such call is carried out, and cut off as a broken connection would: nobody can look at once."""

        def instead(itself: Callable[[], Any]) -> Any:
            itself()
            raise OutcomeUnknown(f"no answer to {call} came back")

        self.add(call, instead)

    def fail(self, call: str, code: int, message: str = "made by a test") -> None:
        """The next such call fails with this code and is not carried out."""

        def instead(itself: Callable[[], Any]) -> Any:
            raise error(code, message)

        self.add(call, instead)


class Wire:
    """A connection, or a domain of one, in front of the real one; everything passes but what is to fail."""

    def __init__(self, real: Any, faults: Faults, uri: str = "") -> None:
        self._real = real
        self._faults = faults
        self.uri = uri
        self.closed = False

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._real, name)
        if not callable(found):
            return found

        def call(*arguments: Any) -> Any:
            self._faults.calls[name] += 1
            waiting = self._faults.by_call.get(name)
            if waiting:
                return waiting.pop(0)(lambda: found(*arguments))
            answer = found(*arguments)
            if isinstance(answer, list):
                return [self._wired(each) for each in answer]
            return self._wired(answer)

        return call

    def _wired(self, answer: Any) -> Any:
        return Wire(answer, self._faults) if isinstance(answer, libvirt.virDomain) else answer

    def isAlive(self) -> int:
        return 0 if self.closed else 1

    def close(self) -> int:
        self.closed = True
        return 0


@dataclass
class Machines:
    """Hosts of the test driver by URI, kept as long as this is."""

    faults: Faults = field(default_factory=Faults)
    opened: dict[str, Connection] = field(default_factory=dict)
    down: set[str] = field(default_factory=set)  # by the end of a URI: these refuse to be connected
    wires: list[Wire] = field(default_factory=list)

    def connect(self, uri: str, closed: Callable[[str], None], noticed: Callable[[], None]) -> tuple[Connection, Facts]:
        """As `library.connect`, but to a host that keeps its domains."""
        if any(uri.endswith(each) for each in self.down):
            raise error(libvirt.VIR_ERR_SYSTEM_ERROR, "Connection refused")
        if uri not in self.opened:
            self.opened[uri] = library.connect(uri, closed, noticed)
        real, facts = self.opened[uri]
        self.wires.append(Wire(real, self.faults, uri))
        return self.wires[-1], facts

    def of(self, number: int) -> Connection:
        """The library's own connection to a host, for what is done by hand."""
        return next(real for uri, (real, _) in self.opened.items() if uri.endswith(f"host-{number}.xml"))

    def state(self, number: int, uuid: str) -> str:
        """What a host says of a domain, in a word."""
        try:
            state = self.of(number).lookupByUUIDString(uuid).state()[0]
        except libvirt.libvirtError:
            return "gone"
        return {1: "running", 3: "paused", 5: "off"}.get(state, str(state))

    def take_down(self, number: int) -> None:
        """Breaks the connection to a host, and refuses others until it is `put_up`."""
        self.down.add(f"host-{number}.xml")
        for wire in self.wires:
            if wire.uri.endswith(f"host-{number}.xml"):
                wire.closed = True

    def put_up(self, number: int) -> None:
        """Lets the host be connected again."""
        self.down.discard(f"host-{number}.xml")

    def close(self) -> None:
        for real, _ in self.opened.values():
            library.disconnect(real)


def node(number: int = 0, host: str = "host-1", **changes: Any) -> NodeSpec:
    """A small node."""
    spec = NodeSpec(
        identity=Identity(broker_id=BROKER, workspace_uid=f"u{number}", node_index=0),
        name=f"node-{number}",
        host=host,
        amounts={"cpu": 1000, "memory": 512},
        image="os",
        nics=(NicSpec(network="lan"),),
    )
    return replace(spec, **changes)


def settings(directory: Path, *, host_count: int = 2, **changes: object) -> dict[str, object]:
    """The settings of a pool of so many hosts, which are described by files in a directory."""
    uris = []
    for number in range(1, host_count + 1):
        path = directory / f"host-{number}.xml"
        path.write_text(HOST)
        uris.append(f"test://{path}")
    lan = {"name": "lan", "bridge": "xenbr0", "addresses": "10.77.0.100-10.77.0.103"}
    return {"hosts": uris, "networks": [lan], "kernel": "/guest/vmlinux", **changes}


class ShiftedClock(SystemClock):
    """The machine's clock, whose wall clock can be put forward."""

    shift = timedelta()

    def now(self) -> datetime:
        return super().now() + self.shift


@asynccontextmanager
async def pool(
    directory: Path,
    machines: Machines | None = None,
    clock: Any = None,
    storage: Storage | None = None,
    **changes: Any,
) -> AsyncIterator[LibvirtBackend]:
    """An open backend."""
    kept = machines or Machines()
    factory = Factory(ALL_DRIVERS, kept.connect)
    table = settings(directory, **changes)
    assert factory.check(table) == []
    context = BackendContext(pool="lab", broker_id=BROKER, clock=clock or SystemClock())
    backend = factory.create(table, context) if storage is None else factory.with_storage(table, context, storage)
    assert isinstance(backend, LibvirtBackend)
    await backend.open()
    try:
        yield backend
    finally:
        await backend.close()
        if machines is None:
            kept.close()
