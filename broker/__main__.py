"""workspace-brokerd: runs the broker of one configuration file until SIGTERM or SIGINT.

Its sub-command `simulate` replays workload traces instead (broker/replay/command.py).

Exit codes: 0 stopped as asked, 1 it could not start or serve, 2 the configuration (or the command line) is wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import signal
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from broker.config import ConfigError, Settings, load
from broker.replay.command import main as simulate
from broker.server import Broker
from broker.store.base import StoreProblem

log = logging.getLogger("broker")


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="workspace-brokerd",
        description="Leases of virtual machines over named pools, behind one gRPC API.",
        epilog="workspace-brokerd simulate TRACE ... --config FILE replays workload traces; see simulate --help.",
    )
    parser.add_argument("--config", required=True, type=Path, metavar="FILE", help="the configuration, TOML")
    parser.add_argument("--check", action="store_true", help="only check the configuration")
    parser.add_argument("--log-level", default="info", choices=["debug", "info", "warning", "error"])
    parser.add_argument("--version", action="version", version=f"%(prog)s {version('workspace-broker')}")
    return parser


async def _serve(settings: Settings) -> None:
    broker = Broker(settings)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    port = await broker.start()
    # What was read at the start lives as long as the broker: looking it over again and again for garbage would stop all
    # calls for tenths of a second where there are 100,000 workspaces.
    gc.collect()
    gc.freeze()
    # The one line on standard output: scripts read the port from it.
    sys.stdout.write(f"serving on {settings.server.host}:{port}\n")
    sys.stdout.flush()
    await stop.wait()
    log.info("stopping: calls under way may finish")
    await broker.stop()


def main(arguments: Sequence[str] | None = None) -> None:
    """The entry point."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments and arguments[0] == "simulate":
        raise SystemExit(simulate(arguments[1:]))
    options = _arguments().parse_args(arguments)
    logging.basicConfig(
        level=options.log_level.upper(),
        format="%(asctime)s %(levelname)s %(name)s %(message)s",
        stream=sys.stderr,
    )
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        settings = load(options.config)
    except ConfigError as error:
        sys.stderr.write(f"{error}\n")
        raise SystemExit(2) from None
    if options.check:
        sys.stdout.write(f"{options.config} is valid: {len(settings.pools)} pools\n")
        return
    try:
        _run(settings)
    except (StoreProblem, OSError) as error:
        sys.stderr.write(f"workspace-brokerd: {error}\n")
        raise SystemExit(1) from None


def _run(settings: Settings) -> None:
    try:
        import uvloop
    except ImportError:
        asyncio.run(_serve(settings))
    else:
        uvloop.run(_serve(settings))


if __name__ == "__main__":
    main()
