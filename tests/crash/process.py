"""A broker that kills itself: `workspace-brokerd` with a fault point, in a process of its own.

    python -m tests.crash.process --config FILE [--kill-at POINT [--nth N]] [--trace FILE]
    python -m tests.crash.process --nursery

SIGKILL comes when the point is passed for the N-th time. With a trace every point and every step handed to a backend
is written down as it is passed. A nursery has everything imported and forks a broker for each line on its standard
input, which saves the half second that the imports take; nothing of gRPC is started in it. Each child is a process
like any other.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import logging
import os
import selectors
import signal
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

import anyio._backends._asyncio  # noqa: F401  (httpx imports these two when it is first used)
import httpcore  # noqa: F401
import uvloop

import backends.opennebula.adapter
import backends.simulator.adapter
from backends.base import StepCall
from broker.config import load
from broker.server import Broker
from broker.store.base import StoreProblem

PERFORM = "perform "
"""What stands in a trace before a step that is handed to a backend."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Orders:
    """What one broker is to run on, and where it is to die."""

    config: str
    kill_at: str = ""
    nth: int = 1
    trace: str = ""
    errors: str = ""  # where standard error goes; empty: where it goes anyway


def _serving(orders: Orders, tell: Callable[[str], None]) -> int:
    """Runs the broker until SIGTERM; the exit code."""
    logging.basicConfig(level="INFO", format="%(asctime)s %(levelname)s %(name)s %(message)s", stream=sys.stderr)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    trace = os.open(orders.trace, os.O_WRONLY | os.O_CREAT | os.O_APPEND) if orders.trace else -1
    passed: Counter[str] = Counter()

    def note(line: str) -> None:
        if trace >= 0:
            os.write(trace, f"{line}\n".encode())

    def fault_point(point: str) -> None:
        note(point)
        passed[point] += 1
        if point == orders.kill_at and passed[point] == orders.nth:
            os.kill(os.getpid(), signal.SIGKILL)

    if trace >= 0:
        for kind in (backends.simulator.adapter.Simulator, backends.opennebula.adapter.OpenNebulaBackend):
            _note_steps(kind, note)

    async def serve() -> None:
        broker = Broker(load(orders.config), fault_point=fault_point)
        stop = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
        port = await broker.start()
        tell(f"serving on 127.0.0.1:{port}")
        await stop.wait()
        await broker.stop()

    try:
        uvloop.run(serve())
    except (StoreProblem, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


def _note_steps(kind: Any, note: Callable[[str], None]) -> None:
    perform = kind.perform

    async def noted(self: Any, call: StepCall) -> str:
        note(f"{PERFORM}{call.step}")
        return await perform(self, call)  # type: ignore[no-any-return]

    kind.perform = noted


class Nursery:
    """Forks brokers as told, a JSON line each, and tells in JSON lines what becomes of them."""

    def __init__(self) -> None:
        self._children: set[int] = set()

    def run(self) -> None:
        """Until standard input ends; then every child is killed."""
        gc.collect()
        gc.freeze()  # what is there already is shared with the children as long as nobody touches it
        wakes, woken = os.pipe()
        for end in (wakes, woken):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(woken)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        waits = selectors.DefaultSelector()
        waits.register(0, selectors.EVENT_READ)
        waits.register(wakes, selectors.EVENT_READ)
        rest = b""
        while True:
            ready = {key.fd for key, _ in waits.select()}
            if wakes in ready:
                os.read(wakes, 1024)
                self._reap()
            if 0 in ready:
                read = os.read(0, 65536)
                if not read:
                    break
                *lines, rest = (rest + read).split(b"\n")
                for line in lines:
                    self._fork(Orders(**json.loads(line)))
        for child in self._children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)

    def _reap(self) -> None:
        for child in list(self._children):
            pid, status = os.waitpid(child, os.WNOHANG)
            if pid:
                self._children.discard(pid)
                _tell(pid=pid, ended=os.waitstatus_to_exitcode(status))

    def _fork(self, orders: Orders) -> None:
        pid = os.fork()
        if pid:
            self._children.add(pid)
            _tell(config=orders.config, pid=pid)
            return
        code = 70
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            if orders.errors:
                errors = os.open(orders.errors, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
                os.dup2(errors, 2)
            nothing = os.open(os.devnull, os.O_RDONLY)
            os.dup2(nothing, 0)
            code = _serving(orders, lambda line: _tell(pid=os.getpid(), serving=line))
        finally:
            sys.stderr.flush()
            os._exit(code)


def _tell(**what: object) -> None:
    os.write(1, (json.dumps(what) + "\n").encode())  # one write: lines of several processes do not mix


def ask(orders: Orders) -> bytes:
    """Orders as the nursery reads them."""
    return (json.dumps(asdict(orders)) + "\n").encode()


def main() -> NoReturn:
    """The entry point."""
    parser = argparse.ArgumentParser(prog="tests.crash.process", description=__doc__)
    parser.add_argument("--nursery", action="store_true")
    parser.add_argument("--config", type=Path)
    parser.add_argument("--kill-at", default="")
    parser.add_argument("--nth", type=int, default=1)
    parser.add_argument("--trace", default="")
    options = parser.parse_args()
    if options.nursery:
        Nursery().run()
        raise SystemExit(0)
    if options.config is None:
        parser.error("--config is needed")

    def tell(line: str) -> None:
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()

    orders = Orders(config=str(options.config), kill_at=options.kill_at, nth=options.nth, trace=options.trace)
    raise SystemExit(_serving(orders, tell))


if __name__ == "__main__":
    main()
