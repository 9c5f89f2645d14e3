"""The two kinds of pool that configurations name: "libvirt" takes any host, "xen" insists on Xen.

Responsible for `check` and `create`. A pool of kind "xen" takes Xen hosts and, for tests, libvirt's test driver; what
answers at a URI is looked at once more when it is connected.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from backends.base import Backend, BackendContext, SettingProblem
from backends.xen import library
from backends.xen import settings as pool_settings
from backends.xen.adapter import LibvirtBackend
from backends.xen.host import Connect
from backends.xen.seam import NoStorage


class Factory:
    """One kind of pool."""

    def __init__(self, drivers: frozenset[str], connect: Connect = library.connect) -> None:
        self._drivers = drivers
        self._connect = connect

    def check(self, settings: Mapping[str, object]) -> Sequence[SettingProblem]:
        """Names every bad or unknown key."""
        return pool_settings.read(settings, self._drivers)[1]

    def create(self, settings: Mapping[str, object], context: BackendContext) -> Backend:
        """Makes a pool of hosts. Raises ValueError where `check` has something to say."""
        values, problems = pool_settings.read(settings, self._drivers)
        if problems:
            raise ValueError("; ".join(f"{problem.key}: {problem.message}" for problem in problems))
        return LibvirtBackend(values, context, NoStorage(), drivers=self._drivers, connect=self._connect)


libvirt = Factory(pool_settings.ALL_DRIVERS)
xen = Factory(pool_settings.XEN_DRIVERS)
