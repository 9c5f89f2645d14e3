"""One broker process for the tests that only talk to it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.process import BrokerProcess, broker_process

LAB = """
[server]
listen = "127.0.0.1:0"
[pools.lab]
backend = "simulator"
[[pools.lab.hosts]]
count = 100
cpu = 8000
memory = 16384
disk = 200000
attributes = { hypervisor = "xen", arch = "x86_64" }
[instance_types.small]
cpu = 1000
memory = 1024
"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerProcess]:
    """A broker with one simulated pool that is never full."""
    with broker_process(tmp_path_factory.mktemp("lab"), LAB) as process:
        yield process
