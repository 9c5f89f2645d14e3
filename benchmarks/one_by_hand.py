"""A script that starts VMs on an OpenNebula by hand: eight threads, and one question for all of them at the end.

    python -m benchmarks.one_by_hand ENDPOINT SESSION VMS HOSTS

What somebody would write in an afternoon: each thread makes its VMs on hold and deploys them, host by host in turn;
then the pool is read until all run. Prints the seconds from the first call until all were seen running.
"""

from __future__ import annotations

import sys
import threading
import time
import xmlrpc.client
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final
from xml.etree import ElementTree

THREADS: Final = 8
POLL_SECONDS: Final = 0.1
RUNNING: Final = ("3", "3")
"""STATE ACTIVE and LCM_STATE RUNNING."""


class FrontEnd(threading.local):
    """A connection a thread: xmlrpc.client's are not to be shared."""

    def __init__(self, endpoint: str, session: str) -> None:
        self._proxy = xmlrpc.client.ServerProxy(endpoint)
        self._session = session

    def call(self, method: str, *arguments: str | int) -> Any:
        """What a call answers. Raises RuntimeError for a refusal."""
        good, answer, *_ = getattr(self._proxy, method)(self._session, *arguments)
        if not good:
            raise RuntimeError(answer)
        return answer


def start(one: FrontEnd, vms: int, hosts: int) -> None:
    """Makes and deploys all VMs; over when the front-end has accepted the last deploy."""

    def vm(number: int) -> None:
        template = f'NAME = "by-hand-{number}"\nCPU = 1\nVCPU = 1\nMEMORY = 512\n'
        vm_id = one.call("one.vm.allocate", template, True)
        one.call("one.vm.deploy", vm_id, number % hosts, True, -1)

    with ThreadPoolExecutor(THREADS) as threads:
        list(threads.map(vm, range(vms)))


def running(one: FrontEnd) -> int:
    """How many VMs run, from one document."""
    pool = ElementTree.fromstring(one.call("one.vmpool.infoextended", -2, -1, -1, -1))
    return sum((vm.findtext("STATE"), vm.findtext("LCM_STATE")) == RUNNING for vm in pool)


def main() -> None:
    """Starts, waits and prints."""
    endpoint, session, vms, hosts = sys.argv[1:]
    one = FrontEnd(endpoint, session)
    began = time.perf_counter()
    start(one, int(vms), int(hosts))
    while running(one) < int(vms):
        time.sleep(POLL_SECONDS)
    sys.stdout.write(f"{time.perf_counter() - began}\n")


if __name__ == "__main__":
    main()
