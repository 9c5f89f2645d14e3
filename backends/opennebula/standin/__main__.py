"""`python -m backends.opennebula.standin`: a stand-in from the command line.

Responsible for reading options and printing the endpoint, alone on the first line. Runs until it is
interrupted or terminated. Listens on loopback only.
"""

from __future__ import annotations

import argparse
import ipaddress
import signal
import threading
from dataclasses import replace
from pathlib import Path

from backends.opennebula.standin.config import HostConfig, StandinConfig, load_config
from backends.opennebula.standin.standin import Standin


def _loopback(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not ipaddress.ip_address(host).is_loopback:
        raise argparse.ArgumentTypeError("a stand-in listens on loopback only")
    return host, int(port)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m backends.opennebula.standin", description=__doc__)
    parser.add_argument("--config", type=Path, help="a TOML file with the fields of StandinConfig")
    parser.add_argument("--listen", type=_loopback, help="address:port; port 0 picks one")
    parser.add_argument("--hosts", type=int, help="this many hosts of 8 cores and 16 GB, without a file")
    options = parser.parse_args(arguments)
    config = load_config(options.config) if options.config else StandinConfig()
    if options.hosts is not None:
        config = replace(config, hosts=tuple(HostConfig(name=f"node{number:03d}") for number in range(options.hosts)))
    if options.listen is not None:
        config = replace(config, listen_host=options.listen[0], listen_port=options.listen[1])
    done = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: done.set())
    with Standin(config) as one:
        print(one.endpoint, flush=True)
        done.wait()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
