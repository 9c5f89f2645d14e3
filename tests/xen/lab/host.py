"""One emulated Xen host: its QEMU is started, frozen, thawed, reset and ended here.

Its files lie in a folder of its own: `host.json` (ports), `console.log`, `pid`, `qmp` (QEMU's monitor), `data.img` (the
guests' disk, /dev/vda in dom0) and `state.img` (what dom0 keeps over a reset, /dev/vdb).

Invariants: only a QEMU that carries this folder's pid file on its command line is ever signalled; it listens on
127.0.0.1 only; every wait has an end. No KVM: software emulation gives the same answers on every machine.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

MEMORY: Final = 2048  # MiB of the whole machine
DOM0_MEMORY: Final = 896
DATA_MIB: Final = 4096
STATE_MIB: Final = 1536
READY: Final = "LAB libvirtd listening"
BOOT_TIMEOUT: Final = float(os.environ.get("XEN_LAB_BOOT_TIMEOUT", "180"))
FORGOTTEN: Final = "4h"  # hosts that nobody ends (`up`) end by themselves
_QMP_TIMEOUT: Final = 10.0

# With SMAP a PV dom0 crashes under QEMU 7.2.
_CPU: Final = "max,-smap"


class LabError(Exception):
    """The lab does not do what it should; the message says what was seen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cable:
    """Joins the guests' bridges of two hosts: UDP, point to point, for a multicast group would echo."""

    other: int
    local: int
    remote: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """Where a host is reached on 127.0.0.1."""

    libvirt: int
    ssh: int
    cables: tuple[Cable, ...] = ()


class Host:
    """Host `index` (1 to 9), whose dom0 is called xenlab-<index>."""

    def __init__(self, work: Path, index: int) -> None:
        self.work = work
        self.index = index
        self.folder = work / "hosts" / str(index)
        self.name = f"xenlab-{index}"
        self.bridge_address = f"10.77.0.{index}"
        self.boot_seconds = 0.0
        self._child: subprocess.Popen[bytes] | None = None
        self._started = 0.0

    @property
    def ports(self) -> Ports:
        """The ports it was last started with."""
        told = json.loads((self.folder / "host.json").read_text())
        return Ports(libvirt=told["libvirt"], ssh=told["ssh"], cables=tuple(Cable(**cable) for cable in told["cables"]))

    @property
    def uri(self) -> str:
        """libvirt's URI over TCP."""
        return f"xen+tcp://127.0.0.1:{self.ports.libvirt}/system"

    @property
    def ssh_uri(self) -> str:
        """libvirt's URI over ssh."""
        key = self.work / "id_ed25519"
        return f"xen+ssh://root@127.0.0.1:{self.ports.ssh}/system?keyfile={key}&no_verify=1&sshauth=privkey"

    @property
    def console(self) -> str:
        """All that Xen and dom0 have printed."""
        try:
            return (self.folder / "console.log").read_text(errors="replace")
        except FileNotFoundError:
            return ""

    @property
    def pid(self) -> int | None:
        """Its QEMU, where one runs."""
        try:
            pid = int((self.folder / "pid").read_text())
            arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except (OSError, ValueError):
            return None
        return pid if os.fsencode(self.folder / "pid") in arguments else None

    def start(self, ports: Ports | None = None, *, outlive: bool = False) -> None:
        """Starts QEMU; `wait` tells when libvirtd answers. Unless it is to `outlive` this process it ends with it."""
        if self.pid is not None:
            raise LabError(f"{self.name} runs already, pid {self.pid}")
        self.folder.mkdir(parents=True, exist_ok=True)
        if ports is not None:
            (self.folder / "host.json").write_text(json.dumps(asdict(ports)))
        for stale in ("console.log", "pid", "qmp"):
            (self.folder / stale).unlink(missing_ok=True)
        if not (self.folder / "data.img").exists():
            _sparse(self.folder / "data.img", DATA_MIB)
        if not (self.folder / "state.img").exists():
            _sparse(self.folder / "state.img", STATE_MIB)
            made = subprocess.run(
                ["/sbin/mke2fs", "-q", "-t", "ext4", "-m", "0", self.folder / "state.img"],
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
            if made.returncode != 0:
                raise LabError(f"mke2fs of {self.folder / 'state.img'}: {made.stderr}")
        guard = ["timeout", FORGOTTEN] if outlive else ["setpriv", "--pdeathsig", "KILL"]
        with (self.folder / "qemu.err").open("w") as errors:
            self._child = subprocess.Popen(
                [*guard, "qemu-system-x86_64", *self._arguments(self.ports)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                start_new_session=True,
            )
        self._started = time.monotonic()

    def wait(self, boots: int = 1) -> float:
        """Waits until libvirtd answers, after so many boots of this QEMU; the seconds since it was started."""
        while self.console.count(READY) < boots:
            passed = time.monotonic() - self._started
            if self.pid is None and passed > 1:
                said = (self.folder / "qemu.err").read_text()
                raise LabError(f"{self.name} ended while it booted: {said} {self._last_words()}")
            if passed > BOOT_TIMEOUT:
                self.stop()
                raise LabError(f"{self.name}: no libvirtd after {passed:.0f} s; {self._last_words()}")
            time.sleep(0.1)
        self.boot_seconds = time.monotonic() - self._started
        return self.boot_seconds

    def stop(self) -> None:
        """Cuts the power; what dom0 had written stays in its disks."""
        pid = self.pid
        if pid is not None:
            os.kill(pid, signal.SIGKILL)
            if self._child is not None:
                self._child.wait(10)
                self._child = None
            deadline = time.monotonic() + 10
            while self.pid is not None:
                if time.monotonic() > deadline:
                    raise LabError(f"{self.name}: pid {pid} does not end")
                time.sleep(0.02)
        self._leave_ssh()
        for stale in ("pid", "qmp"):
            (self.folder / stale).unlink(missing_ok=True)

    def reset(self) -> float:
        """Pulls the reset: it boots again, with its disks as they were; the seconds that took."""
        boots = self.console.count(READY)
        self._leave_ssh()
        self._started = time.monotonic()
        self._monitor("set-action", reboot="reset")  # until then a reboot ends QEMU, so that a panic shows at once
        self._monitor("system_reset")
        self.thaw()
        return self.wait(boots + 1)

    def empty(self) -> None:
        """Throws its disks away: the next start is that of a new machine."""
        if self.pid is not None:
            raise LabError(f"{self.name} runs: its disks are in use")
        for disk in ("data.img", "state.img"):
            (self.folder / disk).unlink(missing_ok=True)

    def freeze(self) -> None:
        """Stops all its processors: connections stay open and nothing is answered."""
        self._monitor("stop")

    def thaw(self) -> None:
        """Lets it go on; for itself no time has passed."""
        self._monitor("cont")

    def status(self) -> str:
        """QEMU's word for it: "running", "paused" where it is frozen; "off" without a QEMU."""
        return str(self._monitor("query-status")["status"]) if self.pid is not None else "off"

    def ssh(self, command: str, *, timeout: float = 60.0, check: bool = True) -> str:
        """Runs a command in dom0; what it printed."""
        shared = ("ControlMaster=auto", f"ControlPath={self.folder / 'ssh'}", "ControlPersist=60s")
        options = ("StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "ConnectTimeout=15", "LogLevel=ERROR")
        arguments = ["ssh", "-i", str(self.work / "id_ed25519"), "-p", str(self.ports.ssh)]
        arguments += [part for option in (*options, *shared) for part in ("-o", option)]
        done = subprocess.run(
            [*arguments, "root@127.0.0.1", command],
            capture_output=True,
            text=True,
            errors="replace",
            stdin=subprocess.DEVNULL,
            timeout=timeout,
            check=False,
        )
        if check and done.returncode != 0:
            raise LabError(f"{self.name}: {command!r} ended with {done.returncode}: {done.stdout}{done.stderr}")
        return done.stdout

    def _leave_ssh(self) -> None:
        """Ends the connection that `ssh` keeps for a minute."""
        if (self.folder / "ssh").exists():
            leave = ["ssh", "-o", f"ControlPath={self.folder / 'ssh'}", "-O", "exit", "root@127.0.0.1"]
            subprocess.run(leave, capture_output=True, timeout=10, check=False)
            (self.folder / "ssh").unlink(missing_ok=True)

    def _last_words(self) -> str:
        return " / ".join(self.console.splitlines()[-12:])

    def _monitor(self, command: str, **arguments: str) -> Mapping[str, Any]:
        """One command of QEMU's monitor."""
        if self.pid is None:
            raise LabError(f"{self.name} does not run")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as wire:
            wire.settimeout(_QMP_TIMEOUT)
            wire.connect(str(self.folder / "qmp"))
            lines = wire.makefile("rw")
            lines.readline()  # the greeting
            for asked, told in (("qmp_capabilities", {}), (command, arguments)):
                lines.write(json.dumps({"execute": asked, "arguments": told}) + "\n")
                lines.flush()
                answer = json.loads(lines.readline())
                while "event" in answer:
                    answer = json.loads(lines.readline())
                if "error" in answer:
                    raise LabError(f"{self.name}: QEMU refused {asked}: {answer['error']}")
            returned: Mapping[str, Any] = answer["return"]
            return returned

    def _arguments(self, ports: Ports) -> Sequence[str]:
        uuid = f"c0ffee00-0000-4000-8000-{self.index:012x}"
        forwards = f"hostfwd=tcp:127.0.0.1:{ports.libvirt}-:16509,hostfwd=tcp:127.0.0.1:{ports.ssh}-:22"
        xen = f"console=com1 com1=115200,8n1 dom0_mem={DOM0_MEMORY}M,max:{DOM0_MEMORY}M dom0_max_vcpus=1 ucode=no"
        dom0 = "console=hvc0 panic=1 net.ifnames=0 mitigations=off"
        arguments = ["-name", self.name, "-machine", "q35", "-accel", "tcg,thread=multi,tb-size=256", "-cpu", _CPU]
        arguments += ["-smp", "1", "-m", str(MEMORY), "-nodefaults", "-no-user-config", "-display", "none"]
        arguments += ["-no-reboot", "-pidfile", str(self.folder / "pid")]
        arguments += ["-serial", f"file:{self.folder / 'console.log'}"]
        arguments += ["-qmp", f"unix:{self.folder / 'qmp'},server=on,wait=off"]
        arguments += ["-netdev", f"user,id=n0,restrict=on,{forwards}"]
        arguments += ["-device", "virtio-net-pci,netdev=n0,romfile="]
        for cable in ports.cables:
            end = "type=inet,{0}.host=127.0.0.1,{0}.port={1}"
            local, remote = end.format("local", cable.local), end.format("remote", cable.remote)
            arguments += ["-netdev", f"dgram,id=c{cable.other},local.{local},remote.{remote}"]
            mac = f"52:54:00:77:{self.index:02x}:{cable.other:02x}"
            arguments += ["-device", f"virtio-net-pci,netdev=c{cable.other},romfile=,mac={mac}"]
        for name in ("data", "state"):
            file = f"format=raw,cache=unsafe,discard=unmap,file={self.folder / name}.img"
            arguments += ["-drive", f"if=none,id={name},{file}", "-device", f"virtio-blk-pci,drive={name}"]
        arguments += ["-kernel", str(self.work / "xen"), "-append", f"{xen} watchdog=0", "-initrd"]
        return [
            *arguments,
            f"{self.work / 'vmlinux'} {dom0} lab_uuid={uuid} lab_index={self.index},{self.work}/dom0.cpio",
        ]


def _sparse(file: Path, mib: int) -> None:
    with file.open("wb") as made:
        made.truncate(mib << 20)
