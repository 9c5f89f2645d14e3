"""Whether the lab is up: what stands for the tests of this folder where it is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.xen.conftest import WORK
from tests.xen.lab import setup


@pytest.mark.xen_quick
def test_the_lab_is_up() -> None:
    if not WORK:
        pytest.skip("no emulated Xen hosts are up: make test-xen")
    assert [host.status() for host in setup.hosts(Path(WORK))] == ["running", "running"]
