"""What plays in the demo: a stand-in OpenNebula in this process, the real broker in one of its own.

Invariant: when a scene is left, whatever the reason, nothing of it runs any more. Files stay in the folder given.
"""

from __future__ import annotations

import selectors
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from backends.opennebula.standin import HostConfig, ImageConfig, NetworkConfig, Standin, StandinConfig
from examples.demo.frontend import FrontEnd
from examples.demo.shell import PATIENCE, PROGRAMS, Differs, Shell, local_environment

CONFIGURATION = """\
[server]
listen = "127.0.0.1:0"            # any free port

[pools.one]
backend = "opennebula"
endpoint = "{endpoint}"
session_file = "one_auth"

[pools.lab]
backend = "simulator"
[[pools.lab.hosts]]
name = "xen"
count = 2
cpu = 8000
memory = 8192
disk = 200000
attributes = {{ hypervisor = "xen", hypervisor_version = "4.17", arch = "x86_64" }}
"""
ANNOUNCEMENT = "serving on "  # the broker's one line on standard output


@dataclass(frozen=True, slots=True)
class Scene:
    """The stand-in with its levers, a look at it from outside, and a shell for the broker in front of it."""

    standin: Standin
    opennebula: FrontEnd
    shell: Shell
    server: str


@contextmanager
def playing(folder: Path, node_memory: int) -> Iterator[Scene]:
    """A scene whose pool `one` has four nodes of `node_memory` MiB; configuration, state and log are in `folder`."""
    nodes = tuple(HostConfig(name=f"node-{number}", cores=4, memory_mb=node_memory) for number in range(1, 5))
    images, networks = (ImageConfig(name="debian-12"),), (NetworkConfig(name="lan"),)
    with Standin(StandinConfig(hosts=nodes, images=images, networks=networks)) as standin:
        (folder / "one_auth").write_text(standin.session)
        (folder / "broker.toml").write_text(CONFIGURATION.format(endpoint=standin.endpoint))
        with _broker(folder) as server:
            yield Scene(standin, FrontEnd(standin.endpoint, standin.session), Shell(server), server)


@contextmanager
def _broker(folder: Path) -> Iterator[str]:
    """A broker while it runs: its HOST:PORT."""
    with (folder / "broker.log").open("w") as log:
        process = subprocess.Popen(
            [PROGRAMS / "workspace-brokerd", "--config", folder / "broker.toml"],
            env=local_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,  # Ctrl-C is for the demo, which stops the broker itself
        )
        with process:
            try:
                yield _address(process)
            finally:
                _stop(process)


def _address(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        line = process.stdout.readline() if selector.select(PATIENCE) else f"nothing within {PATIENCE:g} s"
    if not line.startswith(ANNOUNCEMENT):
        raise Differs("the broker starts", expected=f"{ANNOUNCEMENT}HOST:PORT", got=line.rstrip() or "its end")
    return line.removeprefix(ANNOUNCEMENT).rstrip()


def _stop(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
