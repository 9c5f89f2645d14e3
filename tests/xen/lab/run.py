"""`make test-xen`: from a machine without anything to a verdict, each step with its time; ends what it started.

Exit code: pytest's; 1 where the lab fails; 3 where this machine cannot have it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Final

from tests.xen.lab import image, programs, setup
from tests.xen.lab.host import Host

ROOT: Final = Path(__file__).parents[3]
ENVIRONMENT: Final = "WORKSPACE_BROKER_XEN_LAB"  # the working directory of a lab that is up
TEST_TIMEOUT: Final = 3600.0
QUICK_TIMEOUT: Final = 900.0


def tell(line: str) -> None:
    """Prints a line at once."""
    print(f"xen-lab: {line}", flush=True)


class Times:
    """How long each step took."""

    def __init__(self) -> None:
        self.steps: list[tuple[str, float]] = []

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Times a block."""
        begun = time.monotonic()
        try:
            yield
        finally:
            self.steps.append((name, time.monotonic() - begun))

    def tell(self) -> None:
        """Prints them."""
        for name, seconds in self.steps:
            tell(f"{seconds:7.1f} s  {name}")


def main(arguments: Sequence[str]) -> int:
    """Runs the tests on two hosts; `--quick`: the subset for CI."""
    signal.signal(signal.SIGTERM, _as_interrupt)
    quick = "--quick" in arguments
    chosen = [argument for argument in arguments if argument != "--quick"]
    times = Times()
    work = image.directory()
    try:
        with times.step("packages of this machine"):
            programs.install(tell)
        with times.step("image"):
            image.build(work, tell)
        for line in (work / "versions.txt").read_text().splitlines():
            if line.startswith(("xen-hypervisor", "libvirt-daemon ", "linux-image")):
                tell(f"made of {line}")
        these = setup.hosts(work)
        with times.step("two hosts booted"):
            setup.start(these)
        try:
            with times.step("tests"):
                return _tests(these, work, chosen, quick=quick)
        finally:
            with times.step("hosts ended"):
                setup.stop(these)
    finally:
        times.tell()


def _tests(these: Sequence[Host], work: Path, arguments: Sequence[str], *, quick: bool) -> int:
    for host in these:
        tell(f"{host.name} answered after {host.boot_seconds:.1f} s: {versions(host)}")
    named = any((ROOT / argument.split("::")[0]).exists() for argument in arguments)
    guard = ["setpriv", "--pdeathsig", "TERM"]
    command = [*guard, sys.executable, "-m", "pytest", "--durations=15", *([] if named else ["tests/xen"]), *arguments]
    if quick:
        command += ["-m", "xen_quick"]
    with subprocess.Popen(command, cwd=ROOT, env={**os.environ, ENVIRONMENT: str(work)}) as tests:
        try:
            return tests.wait(QUICK_TIMEOUT if quick else TEST_TIMEOUT)
        except subprocess.TimeoutExpired:
            tell("the tests do not come to an end")
            return 1
        finally:
            tests.terminate()


def versions(host: Host) -> str:
    """What the host itself says it runs."""
    import libvirt  # built against libvirt-dev, which may only just have been installed

    connection = libvirt.openReadOnly(host.uri)
    try:
        kind = connection.getType()
        return f"{kind} {_dotted(connection.getVersion())}, libvirt {_dotted(connection.getLibVersion())}"
    finally:
        connection.close()


def _dotted(number: int) -> str:
    """libvirt's way of writing a version as one number."""
    return f"{number // 1_000_000}.{number // 1000 % 1000}.{number % 1000}"


def _as_interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
