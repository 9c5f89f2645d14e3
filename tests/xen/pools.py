"""Pools of the lab's hosts: settings as a table, and as the TOML of a whole broker."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from tests.xen.lab.host import Host

NETWORK: Final = {
    "name": "lan",
    "bridge": "xenbr0",
    "addresses": "10.77.0.100-10.77.0.119",
    "subnet": "10.77.0.0/24",
}
BOOT: Final = {"kernel": "/guest/vmlinux", "initrd": "/guest/initrd.gz", "cmdline": "console=hvc0 quiet panic=5"}


def settings(hosts: Sequence[Host], **changes: object) -> dict[str, object]:
    """A pool of PV guests that live in their initramfs, unless `changes` say otherwise."""
    listed = [{"name": host.name, "uri": host.uri} for host in hosts]
    return {"hosts": listed, "networks": [NETWORK], **BOOT, **changes}
