"""Hands out addresses of the simulated networks: the lowest that is free, so that a run repeats exactly."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

from backends.base import BackendRejected, NicSpec, ObservedNic
from backends.simulator.settings import Network


@dataclass(slots=True)
class _Pool:
    network: Network
    subnet: IPv4Network | IPv6Network
    used: set[str] = field(default_factory=set)
    next: int = 2  # the first address is the gateway's
    freed: list[int] = field(default_factory=list)


class AddressBook:
    """Which addresses of which network are taken. `networks` None: any name is a network."""

    def __init__(self, networks: Sequence[Network] | None) -> None:
        self._open = networks is None
        self._pools: dict[str, _Pool] = {}
        for network in networks or ():
            self._add(network)

    def _add(self, network: Network) -> _Pool:
        place = len(self._pools)
        default = f"10.{16 * place}.0.0/12" if place < 16 else f"fd00:0:0:{place:x}::/64"
        pool = _Pool(network, network.subnet or ip_network(default))
        self._pools[network.name] = pool
        return pool

    def _pool(self, name: str) -> _Pool:
        pool = self._pools.get(name)
        if pool is None:
            if not self._open:
                raise BackendRejected(f"there is no network {name}; there are: {', '.join(self._pools)}")
            pool = self._add(Network(name=name))
        return pool

    def take(self, nics: Sequence[NicSpec], number: int) -> tuple[ObservedNic, ...]:
        """Addresses for a VM's interfaces, all or none. Raises BackendRejected."""
        taken: list[ObservedNic] = []
        try:
            for place, nic in enumerate(nics):
                pool = self._pool(nic.network)
                mac = "02:" + ":".join(f"{byte:02x}" for byte in (number * 16 + place).to_bytes(5, "big"))
                addresses = self._fixed(pool, nic.addresses) if nic.addresses else (self._lowest(pool),)
                taken.append(ObservedNic(network=nic.network, addresses=addresses, mac=mac, name=nic.name))
        except BackendRejected:
            self.free(taken)
            raise
        return tuple(taken)

    def note(self, nics: Sequence[ObservedNic]) -> None:
        """Marks addresses as taken that a VM from a state file has."""
        for nic in nics:
            self._pool(nic.network).used.update(nic.addresses)

    def free(self, nics: Sequence[ObservedNic]) -> None:
        """Takes addresses back."""
        for nic in nics:
            pool = self._pool(nic.network)
            for address in nic.addresses:
                pool.used.discard(address)
                offset = int(ip_address(address)) - int(pool.subnet.network_address)
                if 2 <= offset < pool.next:
                    heapq.heappush(pool.freed, offset)

    def used(self, name: str) -> int:
        """How many addresses of a network are taken."""
        return len(self._pool(name).used)

    def _room(self, pool: _Pool, wanted: int) -> None:
        limit = pool.network.addresses
        if limit is not None and len(pool.used) + wanted > limit:
            raise BackendRejected(
                f"network {pool.network.name} has {limit} addresses, {len(pool.used)} are taken, {wanted} asked for"
            )

    def _fixed(self, pool: _Pool, wanted: tuple[str, ...]) -> tuple[str, ...]:
        self._room(pool, len(wanted))
        shown = []
        for text in wanted:
            try:
                address = ip_address(text)
            except ValueError:
                raise BackendRejected(f"{text} is no address") from None
            if pool.network.subnet is not None and address not in pool.network.subnet:
                raise BackendRejected(f"{text} is not in {pool.network.subnet} of network {pool.network.name}")
            if str(address) in pool.used or str(address) in shown:
                raise BackendRejected(f"{text} of network {pool.network.name} is taken")
            shown.append(str(address))
        pool.used.update(shown)
        return tuple(shown)

    def _lowest(self, pool: _Pool) -> str:
        self._room(pool, 1)
        while True:
            offset = heapq.heappop(pool.freed) if pool.freed else pool.next
            if offset == pool.next:
                pool.next += 1
            if offset >= pool.subnet.num_addresses:
                raise BackendRejected(f"network {pool.network.name} has no free address in {pool.subnet}")
            address = str(pool.subnet[offset])
            if address not in pool.used:
                pool.used.add(address)
                return address
