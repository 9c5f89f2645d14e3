"""Backends that outlive the brokers in front of them, and what VMs they have, without asking a broker."""

from __future__ import annotations

import asyncio
import json
import xmlrpc.client
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from lxml import etree

from backends.opennebula.standin import HostConfig, ImageConfig, Standin, StandinConfig

HOSTS: Final = 4


@dataclass(frozen=True, slots=True)
class Machine:
    """A VM as its backend's own documents have it."""

    backend_id: str
    workspace_uid: str
    node_index: int


class World(Protocol):
    """A backend that outlives brokers."""

    @property
    def pool(self) -> str:
        """The pool's name."""

    def configuration(self) -> str:
        """The pool in a broker's configuration."""

    async def machines(self) -> list[Machine]:
        """Every VM there is that bears a broker's tag, by what the backend has, not the broker."""

    def close(self) -> None:
        """Ends it."""


class OpenNebula:
    """A stand-in front-end in the test's process; asked by a plain XML-RPC client."""

    pool = "one"

    def __init__(self, folder: Path, settings: str = "", **config: Any) -> None:
        hosts = tuple(HostConfig(name=f"node-{number}", cores=8, memory_mb=8192) for number in range(1, HOSTS + 1))
        self.standin = Standin(
            StandinConfig(hosts=hosts, images=(ImageConfig(name="debian-12"),), scheduler=False, **config)
        ).start()
        self._settings = settings

    def configuration(self) -> str:
        return f"""
[pools.one]
backend = "opennebula"
endpoint = "{self.standin.endpoint}"
session = "{self.standin.session}"
refresh_interval = "1s"
retry = {{ initial = "10ms", maximum = "100ms" }}
breaker = {{ probe_interval = "50ms" }}
{self._settings}
"""

    async def machines(self) -> list[Machine]:
        return await asyncio.to_thread(self._machines)

    def _machines(self) -> list[Machine]:
        with xmlrpc.client.ServerProxy(self.standin.endpoint) as proxy:
            answer: Any = proxy.one.vmpool.infoextended(self.standin.session, -2, -1, -1, -1)
        assert answer[0], answer
        found = []
        for vm in etree.fromstring(str(answer[1]).encode()).iterchildren("VM"):
            tag = vm.find("USER_TEMPLATE/WORKSPACE_BROKER")
            assert tag is not None, etree.tostring(vm)
            found.append(Machine(vm.findtext("ID", ""), tag.findtext("WORKSPACE", ""), int(tag.findtext("NODE", "-1"))))
        return found

    def close(self) -> None:
        self.standin.stop()


class Simulated:
    """A simulated pool whose VMs are in a file; read as the text that it is."""

    pool = "lab"

    def __init__(self, folder: Path, settings: str = "") -> None:
        self._file = folder / "vms.jsonl"
        self._settings = settings

    def configuration(self) -> str:
        return f"""
[pools.lab]
backend = "simulator"
state_file = "{self._file}"
hosts = [{{ count = {HOSTS}, cpu = 8000, memory = 8192 }}]
refresh_interval = "1s"
retry = {{ initial = "10ms", maximum = "100ms" }}
breaker = {{ probe_interval = "50ms" }}
{self._settings}
"""

    async def machines(self) -> list[Machine]:
        found: dict[str, Machine] = {}
        for line in self._file.read_text().splitlines():
            entry = json.loads(line)
            if "gone" in entry:
                found.pop(entry["gone"], None)
            elif "vm" in entry:
                vm = entry["vm"]
                identity = vm["identity"]
                found[vm["backend_id"]] = Machine(vm["backend_id"], identity["workspace_uid"], identity["node_index"])
        return list(found.values())

    def close(self) -> None:
        pass
