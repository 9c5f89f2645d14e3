"""The pool's networks and their addresses: which there are, which are taken, and which a node gets.

Responsible for ranges written as `ipaddress` reads them and for handing out the lowest free address. What is taken is
read off the metadata of all domains of all hosts, so that nothing has to be kept in step with it; what was handed out
just now and shows nowhere yet is remembered until a look that began later has had the chance to show it. Invariant:
an address is never given to two nodes, also not while a host is silent: its domains' last known addresses count, and
as long as some host was never read nothing is handed out. It gives no address to a guest: the seed does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final

from msgspec import Struct

from backends.base import BackendRejected, NicSpec, ObservedNetwork
from backends.xen.errors import NotYet

Address = IPv4Address | IPv6Address

LARGEST: Final = 1 << 20
"""Addresses of a range that are counted; a larger one is refused as a slip of the pen."""


class Range(Struct, frozen=True, kw_only=True):
    """Addresses from `first` to `last`, both included."""

    first: Address
    last: Address

    def __len__(self) -> int:
        return int(self.last) - int(self.first) + 1

    def __contains__(self, address: Address) -> bool:
        return address.version == self.first.version and int(self.first) <= int(address) <= int(self.last)


def parse_range(text: str) -> Range:
    """Reads "a-b", "a", or a network "a/n" without its network and broadcast address. Raises ValueError."""
    if "/" in text:
        network = ip_network(text.strip())
        hosts = network.num_addresses > 2
        first, last = network[1 if hosts else 0], network[-2 if hosts and network.version == 4 else -1]
    else:
        begin, _, end = text.partition("-")
        first = ip_address(begin.strip())
        last = ip_address(end.strip()) if end else first
    if first.version != last.version or int(first) > int(last):
        raise ValueError(f'"{text}" is no range of addresses: its end lies before its beginning')
    found = Range(first=first, last=last)
    if len(found) > LARGEST:
        raise ValueError(f'"{text}" has {len(found)} addresses; at most {LARGEST} are handled')
    return found


class Network(Struct, frozen=True, kw_only=True):
    """A network of the pool: a bridge of the hosts, or a network of their libvirt."""

    name: str
    bridge: str = ""
    source: str = ""  # libvirt's network
    addresses: tuple[Range, ...] = ()  # none: addresses are not the pool's matter
    reserved: tuple[Range, ...] = ()
    subnet: IPv4Network | IPv6Network | None = None
    gateways: tuple[Address, ...] = ()
    nameservers: tuple[Address, ...] = ()

    @property
    def total(self) -> int | None:
        """How many addresses there are; None: as many as asked for."""
        if not self.addresses:
            return None
        return sum(len(each) for each in self.addresses)

    def is_reserved(self, address: Address) -> bool:
        """Whether no node may have it."""
        return any(address in each for each in self.reserved) or address in self.gateways

    def with_prefix(self, address: str) -> str:
        """An address as a guest is told it, "10.77.0.100/24"; a host's own where no subnet is known."""
        bits = self.subnet.prefixlen if self.subnet is not None else ip_address(address).max_prefixlen
        return f"{address}/{bits}"


Nics = tuple[NicSpec, ...]


@dataclass(slots=True)
class _Given:
    """What a node was given; once its domain stands, on which host and since which look."""

    nics: Nics
    host: str = ""
    look: int = 0


@dataclass(slots=True)
class Addresses:
    """The address book of one pool. Looks at hosts are numbered in the order in which they begin."""

    networks: Mapping[str, Network]
    _given: dict[str, _Given] = field(default_factory=dict)

    def give(self, uuid: str, wanted: Nics, shown: Mapping[str, Nics], unread: Iterable[str] = ()) -> Nics:
        """A node's interfaces with an address each, where their network has any to give. `shown`: what domains hold
        by their metadata; `unread`: hosts nobody has read yet. The same node is given the same again.

        Raises BackendRejected naming every wish that cannot be met.
        """
        if (before := self._given.get(uuid)) is not None:
            return before.nics
        taken = self._taken(shown, besides=uuid)
        problems: list[str] = []
        nics = []
        for nic in wanted:
            network = self.networks.get(nic.network)
            if network is None:
                known = ", ".join(sorted(self.networks)) or "none"
                problems.append(f'there is no network "{nic.network}"; there are: {known}')
                continue
            if network.addresses and (missing := sorted(unread)):
                raise NotYet(
                    f"addresses of {network.name} are not handed out yet: {', '.join(missing)} was not read since the "
                    "start, and domains there may hold some; take the host out of the pool if it will not come back"
                )
            found: tuple[str, ...] | None
            if nic.addresses:
                found = nic.addresses if self._may_have(network, nic, taken, problems) else None
            elif (found := self._next(network, taken)) is None:
                problems.append(f"no address of network {network.name} is free: all {network.total} are taken")
            if found is None:
                continue
            taken.setdefault(network.name, {}).update(dict.fromkeys(map(ip_address, found), uuid))
            nics.append(NicSpec(network=nic.network, name=nic.name, addresses=found))
        if problems:
            raise BackendRejected("; ".join(problems))
        self._given[uuid] = _Given(tuple(nics))
        return tuple(nics)

    def stands(self, uuid: str, host: str, look: int) -> None:
        """The node's domain is defined: looks at its host that begin after this one show what it holds."""
        if (given := self._given.get(uuid)) is not None:
            given.host, given.look = host, look

    def take_back(self, uuid: str) -> None:
        """The node is gone, or was never made."""
        self._given.pop(uuid, None)

    def looked(self, host: str, look: int) -> None:
        """A host has been read by this look: what stands on it since before is shown by its domains now."""
        for uuid, given in list(self._given.items()):
            if given.host == host and given.look < look:
                del self._given[uuid]

    def observed(self, ours: Mapping[str, Nics], others: Mapping[str, Nics]) -> tuple[ObservedNetwork, ...]:
        """The networks with their totals; what others hold, or is set aside, is foreign."""
        foreign = self._taken(others, besides="", given=False)
        mine = self._taken(ours, besides="", given=False)
        seen = []
        for network in self.networks.values():
            held = set(foreign.get(network.name, ())) - set(mine.get(network.name, ()))
            aside = {address for each in network.addresses for address in _within(network, each)}
            in_ranges = {address for address in held if any(address in each for each in network.addresses)}
            seen.append(
                ObservedNetwork(
                    name=network.name,
                    total_addresses=network.total,
                    foreign_addresses=len(in_ranges | aside) if network.total is not None else 0,
                )
            )
        return tuple(seen)

    def _taken(self, shown: Mapping[str, Nics], *, besides: str, given: bool = True) -> dict[str, dict[Address, str]]:
        """Who has which address, by network."""
        held: dict[str, dict[Address, str]] = {}
        entries = list(shown.items())
        if given:
            entries += [(uuid, entry.nics) for uuid, entry in self._given.items()]
        for uuid, nics in entries:
            if uuid != besides:
                for nic in nics:
                    for address in nic.addresses:
                        held.setdefault(nic.network, {})[ip_address(address)] = uuid
        return held

    def _may_have(
        self, network: Network, nic: NicSpec, taken: Mapping[str, Mapping[Address, str]], problems: list[str]
    ) -> bool:
        """Whether the addresses that were asked for may be had; what is wrong with them is added to the problems."""
        before = len(problems)
        for text in nic.addresses:
            try:
                address = ip_address(text)
            except ValueError:
                problems.append(f'"{text}" is no address')
                continue
            if not any(address in each for each in network.addresses):
                ranges = ", ".join(f"{each.first}-{each.last}" for each in network.addresses) or "none"
                problems.append(f"{text} is not among the addresses of network {network.name}; there are: {ranges}")
            elif network.is_reserved(address):
                problems.append(f"{text} is reserved on network {network.name}")
            elif holder := taken.get(network.name, {}).get(address):
                problems.append(f"{text} is taken on network {network.name}, by the domain {holder}")
        return len(problems) == before

    def _next(self, network: Network, taken: Mapping[str, Mapping[Address, str]]) -> tuple[str, ...] | None:
        """The lowest address that is free; none of a network that has none to give; None where all are taken."""
        held = taken.get(network.name, {})
        for each in network.addresses:
            for number in range(int(each.first), int(each.last) + 1):
                address = type(each.first)(number)
                if address not in held and not network.is_reserved(address):
                    return (str(address),)
        return None if network.addresses else ()


def _within(network: Network, among: Range) -> Iterable[Address]:
    """The addresses of a range that are reserved."""
    for each in (*network.reserved, *(Range(first=gateway, last=gateway) for gateway in network.gateways)):
        if each.first.version == among.first.version:
            for number in range(max(int(each.first), int(among.first)), min(int(each.last), int(among.last)) + 1):
                yield type(among.first)(number)
