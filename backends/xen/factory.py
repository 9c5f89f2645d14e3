"""The two kinds of pool that configurations name: "libvirt" takes any host, "xen" insists on Xen.

Responsible for `check` and `create`, which put the parts of a pool together. A pool of kind "xen" takes Xen hosts and,
for tests, libvirt's test driver; what answers at a URI is looked at once more when it is connected. Nothing is reached
here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from backends.base import Backend, BackendContext, NodeSpec, SettingProblem
from backends.xen import domain, library, storage_settings
from backends.xen import settings as pool_settings
from backends.xen.adapter import LibvirtBackend
from backends.xen.addresses import Network
from backends.xen.host import Connect
from backends.xen.hosts import Hosts
from backends.xen.seam import NoStorage, Storage
from backends.xen.seed import Seed, SeedNic
from backends.xen.settings import Settings
from backends.xen.storage import PoolStorage
from backends.xen.storage_settings import StorageSettings


class Factory:
    """One kind of pool: `drivers` are those whose hosts it takes."""

    def __init__(self, drivers: frozenset[str], connect: Connect = library.connect) -> None:
        self._drivers = drivers
        self._connect = connect

    def check(self, settings: Mapping[str, object]) -> Sequence[SettingProblem]:
        """Names every bad or unknown key."""
        return self._read(settings)[2]

    def create(self, settings: Mapping[str, object], context: BackendContext) -> Backend:
        """Makes a pool of hosts. Raises ValueError where `check` has something to say."""
        return self.with_storage(settings, context)

    def with_storage(
        self, settings: Mapping[str, object], context: BackendContext, storage: Storage | None = None
    ) -> LibvirtBackend:
        """Makes a pool whose storage is given, or the one its settings name."""
        values, about_storage, problems = self._read(settings)
        if problems:
            raise ValueError("; ".join(f"{problem.key}: {problem.message}" for problem in problems))
        hosts = Hosts(values, context.clock, self._drivers, self._connect)
        if storage is None and about_storage is not None:
            storage = PoolStorage(
                about_storage, context, hosts.all.get, lambda spec, uuid: seed(spec, uuid, values.networks)
            )
        return LibvirtBackend(values, context, hosts, storage or NoStorage())

    def _read(self, table: Mapping[str, object]) -> tuple[Settings, StorageSettings | None, list[SettingProblem]]:
        values, problems = pool_settings.read(table, self._drivers, storage_settings.KEYS)
        about_storage, others = storage_settings.read(values.storage)
        return values, about_storage, [*problems, *others]


def seed(spec: NodeSpec, uuid: str, networks: Mapping[str, Network]) -> Seed:
    """What a guest is told at its first boot."""
    nics = []
    for index, nic in enumerate(spec.nics):
        network = networks[nic.network]
        nics.append(
            SeedNic(
                mac=domain.mac_of(uuid, index),
                addresses=tuple(map(network.with_prefix, nic.addresses)),
                gateways=tuple(map(str, network.gateways)),
                nameservers=tuple(map(str, network.nameservers)),
            )
        )
    return Seed(
        instance_id=uuid,
        host_name=spec.name,
        nics=tuple(nics),
        ssh_public_keys=spec.ssh_public_keys,
        user_data=spec.user_data,
    )


libvirt = Factory(pool_settings.ALL_DRIVERS)
xen = Factory(pool_settings.XEN_DRIVERS)
