"""A `workspace-brokerd` of its own process, as an operator runs it.

Responsible for starting, watching and ending one process. Invariants: a started process is reaped, and its output
kept, whatever the test does. Knows nothing of what the broker answers.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

PROGRAM: Final = Path(sys.executable).with_name("workspace-brokerd")
PATIENCE: Final = 30.0  # seconds; a loaded machine is slow to start an interpreter


def until(holds: Callable[[], bool], what: str, timeout: float = PATIENCE) -> None:
    """Waits for a condition, and fails when it does not come."""
    deadline = time.monotonic() + timeout
    while not holds():
        assert time.monotonic() < deadline, f"{what} did not come within {timeout:g} s"
        time.sleep(0.01)


class BrokerProcess:
    """One process; `port` is there once it serves, `errors()` is what it said on standard error."""

    def __init__(
        self,
        folder: Path,
        configuration: str,
        *,
        program: Path = PROGRAM,
        environment: Mapping[str, str] | None = None,
        log_level: str = "info",
        working_directory: Path | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.file = folder / "broker.toml"
        self.file.write_text(configuration, encoding="utf-8")
        self.port = 0
        self._errors = folder / "stderr"
        self._output = folder / "stdout"
        with self._errors.open("ab") as errors, self._output.open("wb") as output:
            self.process = subprocess.Popen(
                [program, "--config", self.file, "--log-level", log_level],
                stdout=output,
                stderr=errors,
                cwd=working_directory or folder,
                env={**os.environ, "PYTHONWARNINGS": "always", **(environment or {})},
            )

    @property
    def pid(self) -> int:
        """Its number."""
        return self.process.pid

    def errors(self) -> str:
        """What it said on standard error so far."""
        return self._errors.read_text(encoding="utf-8", errors="replace")

    def output(self) -> str:
        """What it said on standard output so far."""
        return self._output.read_text(encoding="utf-8", errors="replace")

    @property
    def address(self) -> str:
        """Where it serves."""
        return f"127.0.0.1:{self.port}"

    def wait_serving(self) -> None:
        """Waits for the line that says where it serves, and fails with its last words if it ends before."""

        def serves() -> bool:
            assert self.process.poll() is None, f"it ended with {self.process.returncode}: {self.errors()}"
            return self.output().endswith("\n")

        until(serves, "the line on standard output")
        line = self.output()
        assert line.startswith("serving on "), line
        self.port = int(line.rpartition(":")[2])

    def signal(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Sends it a signal."""
        self.process.send_signal(number)

    def wait_end(self, timeout: float = PATIENCE) -> int:
        """Its exit code."""
        return self.process.wait(timeout)

    def stop(self) -> int:
        """Ends it as an operator does; its exit code."""
        if self.process.poll() is None:
            self.signal()
        return self.wait_end()

    def kill(self) -> None:
        """Ends it for certain."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    # What the kernel knows of it

    def threads(self) -> int:
        """How many threads it has."""
        return len(os.listdir(f"/proc/{self.pid}/task"))

    def descriptors(self) -> int:
        """How many files and sockets it has open."""
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def resident_mib(self) -> float:
        """Memory that it takes."""
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


@contextmanager
def broker_process(
    folder: Path,
    configuration: str,
    *,
    program: Path = PROGRAM,
    environment: Mapping[str, str] | None = None,
    working_directory: Path | None = None,
) -> Iterator[BrokerProcess]:
    """A broker that serves; it must end well, and have said nothing that a mistake of ours would make it say."""
    process = BrokerProcess(
        folder, configuration, program=program, environment=environment, working_directory=working_directory
    )
    try:
        process.wait_serving()
        yield process
        if process.process.poll() is None:
            assert process.stop() == 0, process.errors()
        for word in ("Traceback", "Warning:", "unexpected error", "was never retrieved", "never awaited"):
            assert word not in process.errors(), process.errors()
    finally:
        process.kill()


def run(arguments: list[str | Path], folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """One command to its end."""
    return subprocess.run(
        [str(argument) for argument in arguments],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
