"""The hosts of a lab that is up, for all tests of this folder; without one nothing here is collected but one skip.

Every test finds two hosts that run, answer and hold no guest, whatever the one before it did to them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.xen.lab import setup
from tests.xen.lab.host import Host
from tests.xen.lab.run import ENVIRONMENT

WORK = os.environ.get(ENVIRONMENT, "")

if not WORK:
    collect_ignore_glob = ["test_[!h]*.py"]  # all but test_here.py, which says why


def pytest_configure(config: pytest.Config) -> None:
    """Names the marker of the quicker subset."""
    config.addinivalue_line("markers", "xen_quick: what make test-xen-quick runs on real Xen")


@pytest.fixture(scope="session")
def hosts() -> Iterator[tuple[Host, ...]]:
    """The lab's two hosts."""
    found = setup.hosts(Path(WORK))
    yield found
    for host in found:
        if host.status() == "paused":
            host.thaw()


@pytest.fixture
def pair(hosts: tuple[Host, ...]) -> Iterator[tuple[Host, ...]]:
    """The hosts, without guests before and after."""
    from tests.xen.observer import tidy

    for host in hosts:
        tidy(host)
    yield hosts
    for host in hosts:
        tidy(host)
