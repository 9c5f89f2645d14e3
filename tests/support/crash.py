"""Brokers in processes of their own that are killed and started again: the nursery of tests/crash/process.py."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from tests.crash.process import Orders, ask

PATIENCE: Final = 30.0
"""Seconds that anything may take on a loaded machine."""


class Process:
    """One broker: alive until `ended` has its exit code (the signal's number, negative)."""

    def __init__(self, pid: int, errors: Path) -> None:
        loop = asyncio.get_running_loop()
        self.pid = pid
        self.errors = errors
        self.serving: asyncio.Future[int] = loop.create_future()
        self.ended: asyncio.Future[int] = loop.create_future()

    async def port(self) -> int:
        """Where it serves; fails with its last words where it ends first."""
        await asyncio.wait({self.serving, self.ended}, timeout=PATIENCE, return_when=asyncio.FIRST_COMPLETED)
        assert self.serving.done(), f"it does not serve: {self.errors.read_text(errors='replace')[-4000:]}"
        return self.serving.result()

    async def end(self, number: signal.Signals) -> int:
        """Sends it a signal; its exit code."""
        if not self.ended.done():
            os.kill(self.pid, number)
        return await asyncio.wait_for(asyncio.shield(self.ended), PATIENCE)


class Nursery:
    """Where brokers come from."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._asked: dict[str, asyncio.Future[Process]] = {}
        self._brokers: dict[int, Process] = {}
        self._reader = asyncio.create_task(self._read())

    async def broker(self, orders: Orders) -> Process:
        """A new one; one at a time for each configuration."""
        assert self._process.stdin is not None
        future: asyncio.Future[Process] = asyncio.get_running_loop().create_future()
        self._asked[orders.config] = future
        self._process.stdin.write(ask(orders))
        process = await asyncio.wait_for(future, PATIENCE)
        process.errors = Path(orders.errors)
        return process

    async def _read(self) -> None:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            told = json.loads(line)
            if "config" in told:
                process = self._brokers.setdefault(told["pid"], Process(told["pid"], Path()))
                self._asked.pop(told["config"]).set_result(process)
                continue
            # A child may speak before its parent has told of it.
            process = self._brokers.setdefault(told["pid"], Process(told["pid"], Path()))
            if "serving" in told:
                process.serving.set_result(int(told["serving"].rpartition(":")[2]))
            else:
                process.ended.set_result(told["ended"])
                del self._brokers[told["pid"]]

    async def close(self) -> None:
        """Ends it, and every broker with it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        await self._process.wait()
        await self._reader


@asynccontextmanager
async def nursery() -> AsyncIterator[Nursery]:
    """A nursery for the length of a test."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.crash.process",
        "--nursery",
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONPATH": os.pathsep.join((".", "protos")), "OPENBLAS_NUM_THREADS": "1"},
    )
    made = Nursery(process)
    try:
        yield made
    finally:
        await made.close()
