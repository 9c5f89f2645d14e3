"""What the lab asks of this machine: Debian packages, installed where that is allowed.

Says what is missing and why it cannot be had. Changes nothing but by apt-get.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

APT_TIMEOUT: Final = 300.0
XEN_PACKAGE: Final = "xen-hypervisor-4.17-amd64"

# What a package is there for, as a program or file that shows that it is there.
NEEDED: Final[dict[str, tuple[str, ...]]] = {
    "qemu-system-x86": ("qemu-system-x86_64",),
    "cpio": ("cpio",),
    "xz-utils": ("xz",),
    "e2fsprogs": ("mke2fs",),
    "openssh-client": ("ssh", "ssh-keygen"),
    "util-linux": ("setpriv",),
    "libvirt-daemon": ("libvirtd",),
    "libvirt-daemon-driver-qemu": ("/usr/lib/x86_64-linux-gnu/libvirt/connection-driver/libvirt_driver_qemu.so",),
    "libvirt-dev": ("/usr/include/libvirt/libvirt.h",),  # libvirt-python is built against it
    "pkg-config": ("pkg-config",),
    "gcc": ("gcc",),
}


class CannotBeHad(Exception):
    """The machine lacks something, and it cannot be installed here; the message says what, why and what to do."""


def missing() -> list[str]:
    """The Debian packages that are not there."""
    return [package for package, signs in NEEDED.items() if not all(_is_there(sign) for sign in signs)]


def _is_there(sign: str) -> bool:
    if sign.startswith("/"):
        return Path(sign).exists()
    return shutil.which(sign) is not None or Path("/usr/sbin", sign).exists()


def install(tell: Callable[[str], None]) -> None:
    """Installs what is missing and sees that apt knows Xen; raises CannotBeHad where that is not possible."""
    if shutil.which("apt-get") is None:
        raise CannotBeHad("this machine has no apt-get: the lab is built from packages of Debian 12")
    wanted = missing()
    if wanted:
        prefix = _as_root(wanted)
        tell(f"installing {' '.join(wanted)}")
        command = [*prefix, "apt-get", "install", "--yes", "--quiet", "--no-install-recommends", *wanted]
        if _apt(command) and (error := _apt([*prefix, "apt-get", "update", "--quiet"]) or _apt(command)):
            raise CannotBeHad(f"apt-get could not install {' '.join(wanted)}: {error}")
    if not candidates(XEN_PACKAGE):
        _apt([*_as_root([]), "apt-get", "update", "--quiet"])
        if not candidates(XEN_PACKAGE):
            raise CannotBeHad(f"apt knows no {XEN_PACKAGE}: the lab is built from packages of Debian 12")


def candidates(*packages: str) -> dict[str, str]:
    """The versions apt would install; those it does not know are missing."""
    shown = subprocess.run(
        ["apt-cache", "policy", *packages], capture_output=True, text=True, timeout=60, check=False, env=_environment()
    )
    found, package = {}, ""
    for line in shown.stdout.splitlines():
        if not line.startswith(" "):
            package = line.removesuffix(":")
        elif line.startswith("  Candidate: ") and not line.endswith("(none)"):
            found[package] = line.removeprefix("  Candidate: ")
    return found


def _as_root(wanted: Sequence[str]) -> list[str]:
    """How a command becomes root's."""
    if os.geteuid() == 0:
        return []
    sudo = shutil.which("sudo")
    if sudo is not None:
        allowed = subprocess.run([sudo, "-n", "true"], capture_output=True, timeout=10, check=False)
        if allowed.returncode == 0:
            return [sudo, "-n"]
    raise CannotBeHad(
        f"may not install packages here; as root: apt-get update && apt-get install {' '.join(wanted)}".rstrip()
    )


def _apt(command: Sequence[str]) -> str:
    """Runs apt-get; its last words where it fails."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=APT_TIMEOUT, check=False, env=_environment()
        )
    except subprocess.TimeoutExpired:
        return f"no end after {APT_TIMEOUT:.0f} s"
    return "" if done.returncode == 0 else " ".join(done.stderr.split()[-40:]) or f"exit code {done.returncode}"


def _environment() -> dict[str, str]:
    return {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C"}
