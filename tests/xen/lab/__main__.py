"""The lab's command line; see `USAGE`. Working directory: $XEN_LAB_DIR or ~/.cache/workspace-broker/xen-lab."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Final

from tests.xen.lab import image, programs, run, setup
from tests.xen.lab.host import Host, LabError
from tests.xen.lab.programs import CannotBeHad

USAGE: Final = """\
usage: python -m tests.xen.lab COMMAND
  test [--quick] [PYTEST-ARGUMENTS]  boots two hosts, runs the tests, ends the hosts (make test-xen)
  packages                           only sees to the packages of this machine
  build                              only builds the image, if its inputs have changed
  up | down                          boots two hosts and leaves them running; ends them
  status                             what runs, and where it is reached
  freeze | thaw | reset N            host N: no processor runs; goes on; boots again
"""


def main(arguments: list[str]) -> int:
    """Returns the exit code; 3 where this machine cannot have the lab."""
    match arguments:
        case ["test", *rest]:
            return _told(lambda: run.main(rest))
        case ["packages"]:
            return _told(lambda: programs.install(run.tell))
        case ["build"]:
            return _told(_build)
        case ["up"]:
            return _told(_up)
        case ["down"]:
            return _told(lambda: setup.stop(_hosts()))
        case ["status"]:
            return _told(_status)
        case [("freeze" | "thaw" | "reset") as what, ("1" | "2") as number]:
            return _told(lambda: _one(what, Host(image.directory(), int(number))))
        case _:
            sys.stderr.write(USAGE)
            return 2


def _told(work: Callable[[], int | None]) -> int:
    try:
        return work() or 0
    except CannotBeHad as lacking:
        run.tell(f"not here: {lacking}")
        return 3
    except LabError as error:
        run.tell(f"error: {error}")
        return 1
    except KeyboardInterrupt:
        run.tell("interrupted")
        return 130


def _hosts() -> tuple[Host, ...]:
    return setup.hosts(image.directory())


def _build() -> None:
    programs.install(run.tell)
    if not image.build(image.directory(), run.tell):
        run.tell(f"the image in {image.directory()} is up to date")


def _up() -> None:
    _build()
    setup.start(_hosts(), outlive=True)
    _status()


def _status() -> None:
    for host in _hosts():
        state = host.status()
        run.tell(f"{host.name} {state}" + (f" {host.uri} {host.ssh_uri}" if state != "off" else ""))


def _one(what: str, host: Host) -> None:
    if what == "reset":
        run.tell(f"{host.name} is back after {host.reset():.1f} s")
    else:
        getattr(host, what)()


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
