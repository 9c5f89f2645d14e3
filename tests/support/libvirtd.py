"""A libvirtd of one's own for tests of real storage pools: unprivileged, in a directory, on a socket there.

Where it may, it runs in a mount namespace of its own with a small file system at `POOL`, so that two of them are two
hosts whose pools lie at the same path, and so that a pool can be full.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import libvirt

from backends.xen import library
from backends.xen.library import Facts

SKIP = "libvirtd is not on this machine (libvirt-daemon), or root's mount namespaces are not"
POOL = Path("/mnt")
NOBODY = 65534


def missing() -> bool:
    """Whether this machine cannot run one."""
    if os.geteuid() or any(shutil.which(each) is None for each in ("libvirtd", "unshare", "setpriv", "qemu-img")):
        return True
    return subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode != 0


class Daemon:
    """One libvirtd with an empty directory for a pool; `mib`: its size, `driver`: what its host is taken for."""

    def __init__(self, mib: int = 64, driver: str = "xen") -> None:
        self.driver = driver
        self.directory = Path(tempfile.mkdtemp(prefix="libvirtd-"))  # not within pytest's, which is root's alone
        self.mib = mib
        self.keeper: subprocess.Popen[bytes] | None = None
        self.process: subprocess.Popen[bytes] | None = None
        for each in (self.directory, self.directory / "home", self.directory / "run"):
            each.mkdir(exist_ok=True)
            os.chown(each, NOBODY, NOBODY)

    @property
    def uri(self) -> str:
        return f"storage+unix:///session?socket={self.directory}/run/libvirt/libvirt-sock"

    def start(self) -> None:
        """Starts it, with what was in its pool before, and returns when it listens."""
        if self.keeper is None:
            mount = (
                f"mount -t tmpfs -o size={self.mib}m,uid={NOBODY},gid={NOBODY} pool {POOL} && echo && exec sleep 600"
            )
            self.keeper = subprocess.Popen(["unshare", "--mount", "sh", "-c", mount], stdout=subprocess.PIPE)
            assert self.keeper.stdout is not None
            assert self.keeper.stdout.read(1) == b"\n"
            self.keeper.stdout.close()
        path = self.directory / "run/libvirt/libvirt-sock"
        path.unlink(missing_ok=True)
        environment = {"PATH": os.environ["PATH"], "HOME": f"{self.directory}/home"}
        environment["XDG_RUNTIME_DIR"] = f"{self.directory}/run"
        drop = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
        with (self.directory / "log").open("ab") as log:
            self.process = subprocess.Popen(
                ["nsenter", f"--target={self.keeper.pid}", "--mount", *drop, "libvirtd", "--timeout", "600"],
                env=environment,
                stdout=log,
                stderr=log,
            )
        end = time.monotonic() + 30
        while not _listens(path):
            assert self.process.poll() is None, (self.directory / "log").read_text()
            assert time.monotonic() < end, "libvirtd does not listen"
            time.sleep(0.02)

    def kill(self) -> None:
        """Ends it without a warning; its pool stays."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def forget(self) -> None:
        """What it was told is lost, as on a host that starts from an image; not while it runs."""
        for name in ("home", "run"):
            shutil.rmtree(self.directory / name)
            (self.directory / name).mkdir()
            os.chown(self.directory / name, NOBODY, NOBODY)

    def stop(self) -> None:
        """Ends it, its pool and all."""
        for process in (self.process, self.keeper):
            if process is not None:
                process.kill()
                process.wait()
        shutil.rmtree(self.directory)

    def file(self, name: str) -> Path:
        """A file of the pool, as seen from here."""
        assert self.keeper is not None
        return Path(f"/proc/{self.keeper.pid}/root{POOL}/{name}")

    def files(self) -> list[str]:
        """The names in the pool."""
        return sorted(os.listdir(self.file("")))

    def connect(self, uri: str, closed: Any, noticed: Any) -> tuple[Any, Facts]:
        """As `library.connect`, for a daemon that has no domains."""
        library.prepare()
        connection = libvirt.open(uri)
        connection.setKeepAlive(5, 3)
        connection.registerCloseCallback(lambda _, reason, __: closed(f"reason {reason}"), None)
        return connection, Facts(driver=self.driver, arch="x86_64")


def _listens(path: Path) -> bool:
    """Whether somebody accepts connections there; a socket is seen before that."""
    with socket.socket(socket.AF_UNIX) as asking:
        return asking.connect_ex(str(path)) == 0
