"""What the hosts boot: built by build.sh into the working directory, and kept while its inputs stay the same.

The inputs are this folder's files and the versions apt would install. Two builds of one directory never run together.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tests.xen.lab.programs import XEN_PACKAGE, CannotBeHad, candidates

BUILD_TIMEOUT: Final = 600.0
RESULTS: Final = ("xen", "vmlinux", "vmlinuz", "dom0.cpio", "guest.gz", "guest.img", "guest-grub.img", "versions.txt")
_SOURCES: Final = ("build.sh", "dom0", "guest", "disk")
_PACKAGES: Final = (XEN_PACKAGE, "libvirt-daemon", "linux-image-amd64", "qemu-system-xen", "busybox-static")


def directory() -> Path:
    """Where the lab works: $XEN_LAB_DIR, else below the user's cache. Never inside the repository."""
    if chosen := os.environ.get("XEN_LAB_DIR"):
        return Path(chosen).absolute()
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "workspace-broker" / "xen-lab"


def inputs() -> str:
    """A digest of all that an image is made of."""
    digest = hashlib.sha256()
    here = Path(__file__).parent
    for name in _SOURCES:
        source = here / name
        for file in sorted(source.rglob("*")) if source.is_dir() else [source]:
            if file.is_file():
                mode = file.stat().st_mode & 0o111
                digest.update(f"{file.relative_to(here)} {mode:o}\n".encode())
                digest.update(file.read_bytes())
    digest.update(repr(sorted(candidates(*_PACKAGES).items())).encode())
    return digest.hexdigest()


def build(work: Path, tell: Callable[[str], None]) -> bool:
    """Builds the image unless it is there; whether it had to."""
    work.mkdir(parents=True, exist_ok=True)
    stamp = work / "inputs"
    with alone(work / "build.lock"):
        wanted = inputs()
        if stamp.exists() and stamp.read_text() == wanted and all((work / name).exists() for name in RESULTS):
            return False
        free = shutil.disk_usage(work).free >> 20
        if free < 3000:
            raise CannotBeHad(f"the lab's image needs 3000 MiB in {work}, {free} are free (XEN_LAB_DIR names another)")
        stamp.unlink(missing_ok=True)
        with (work / "build.log").open("w") as log:
            tell(f"building the image in {work}")
            done = subprocess.run(
                [Path(__file__).parent / "build.sh", work],
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                timeout=BUILD_TIMEOUT,
                check=False,
            )
        if done.returncode != 0:
            last = (work / "build.log").read_text().strip().splitlines()[-5:]
            raise CannotBeHad("the lab's image could not be built: " + " / ".join(last))
        stamp.write_text(wanted)
        return True


@contextmanager
def alone(file: Path) -> Iterator[None]:
    """One process at a time; who comes second waits."""
    with file.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
