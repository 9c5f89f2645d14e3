"""Several emulated hosts as one setup: ports, cables between their bridges, all started together, all ended.

Invariant: what `running` started is ended when it is left, however it is left.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from tests.xen.lab.host import Cable, Host, LabError, Ports

HOSTS: Final = 2


def hosts(work: Path, count: int = HOSTS) -> tuple[Host, ...]:
    """The hosts of a working directory, running or not."""
    return tuple(Host(work, index) for index in range(1, count + 1))


def start(these: Sequence[Host], *, outlive: bool = False) -> None:
    """Starts hosts together, each with empty disks, and waits for all; none is left where one fails."""
    up = [host.name for host in these if host.pid is not None]
    if up:
        raise LabError(f"{' and '.join(up)} run already: end them with python -m tests.xen.lab down")
    try:
        for host, ports in zip(these, _ports(these), strict=True):
            host.empty()
            host.start(ports, outlive=outlive)
        for host in these:
            host.wait()
    except BaseException:
        stop(these)
        raise


def stop(these: Sequence[Host]) -> None:
    """Ends hosts."""
    with ExitStack() as each:
        for host in these:
            each.callback(host.stop)


@contextmanager
def running(these: Sequence[Host]) -> Iterator[None]:
    """Hosts, for the time of a block."""
    start(these)
    try:
        yield
    finally:
        stop(these)


def _ports(these: Sequence[Host]) -> list[Ports]:
    """Free ports of 127.0.0.1; host 1 has a cable to each of the others."""
    with ExitStack() as held:  # all at once, so that no port is given twice

        def free(kind: socket.SocketKind) -> int:
            taken = held.enter_context(socket.socket(socket.AF_INET, kind))
            taken.bind(("127.0.0.1", 0))
            return int(taken.getsockname()[1])

        first, *others = these
        ends = {host: (free(socket.SOCK_DGRAM), free(socket.SOCK_DGRAM)) for host in others}
        cables = {first: tuple(Cable(other=host.index, local=a, remote=b) for host, (a, b) in ends.items())}
        cables |= {host: (Cable(other=first.index, local=b, remote=a),) for host, (a, b) in ends.items()}
        return [
            Ports(libvirt=free(socket.SOCK_STREAM), ssh=free(socket.SOCK_STREAM), cables=cables[host]) for host in these
        ]
