"""The settings of a libvirt pool: from a TOML table to one frozen value, with every bad key named at once.

Invariant: a `Settings` that came out of `read` without problems is usable as it stands. It touches no file and no
host; whether a host is what its URI says, the first connection tells. What storage is told is read by `storage`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Any, Final

from backends.base import SettingProblem
from backends.xen import uris
from backends.xen.addresses import Network, Range, parse_range
from backends.xen.deadlines import Deadlines
from backends.xen.uris import Uri

_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_DEVICE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,14}")  # the kernel's limit
GUESTS: Final = ("pv", "pvh", "hvm")

XEN_DRIVERS: Final = frozenset({"xen", "test"})
ALL_DRIVERS: Final = frozenset(uris.DRIVERS)


@dataclass(frozen=True, slots=True, kw_only=True)
class HostSettings:
    """One host. Memory in MiB; None: as the hypervisor says, less what its kind usually needs."""

    name: str
    uri: Uri
    reserve_memory: int | None = None
    cpus: int | None = None
    migrate_uri: str = ""  # where a guest is sent when it moves here, "tcp://host:49152"
    guest: str = ""  # these four where they differ from the pool's
    kernel: str = ""
    initrd: str = ""
    cmdline: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """A pool of hosts. Times in seconds."""

    hosts: tuple[HostSettings, ...] = ()
    guest: str = "pv"
    kernel: str = ""
    initrd: str = ""
    cmdline: str = ""
    networks: Mapping[str, Network] = field(default_factory=dict)
    deadlines: Deadlines = field(default_factory=Deadlines)
    shutdown_wait: float = 60.0
    cpu_weights: bool = True
    storage: Mapping[str, object] = field(default_factory=dict)  # as it was written


class _Table:
    """A table that is read key by key; what is wrong with it is gathered."""

    def __init__(self, values: Mapping[str, object], path: str, problems: list[SettingProblem]) -> None:
        self.values = values
        self.path = path
        self.problems = problems
        self.read: set[str] = set()

    def bad(self, key: str, message: str) -> None:
        where = f"{self.path}.{key}" if self.path and key else self.path or key
        self.problems.append(SettingProblem(key=where, message=message))

    def get(self, key: str, convert: Callable[[object], Any], default: Any = None) -> Any:
        self.read.add(key)
        if key not in self.values:
            return default
        try:
            return convert(self.values[key])
        except ValueError as error:
            self.bad(key, str(error))
            return default

    def entries(self, key: str) -> Iterator[tuple[str, object]]:
        """The entries of a list, each with its path."""
        self.read.add(key)
        value = self.values.get(key, ())
        if isinstance(value, str) or not isinstance(value, Sequence):
            self.bad(key, "a list is wanted")
            return
        where = f"{self.path}.{key}" if self.path else key
        for number, entry in enumerate(value):
            yield f"{where}[{number}]", entry

    def finish(self) -> None:
        for key in self.values:
            if key not in self.read:
                self.bad(key, f"no such setting; there are: {', '.join(sorted(self.read))}")


def _text(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError("text is wanted, not empty")
    if any(ord(letter) < 32 for letter in value):
        raise ValueError("text of one line is wanted")
    return value


def _name(value: object) -> str:
    if not _NAME.fullmatch(text := _text(value)):
        raise ValueError(f'a name of up to 63 letters, digits and "._-" is wanted, not "{text}"')
    return text


def _device(value: object) -> str:
    if not _DEVICE.fullmatch(text := _text(value)):
        raise ValueError(f'the name of a bridge is wanted, of at most 15 letters, not "{text}"')
    return text


def _path(value: object) -> str:
    if not (text := _text(value)).startswith("/"):
        raise ValueError(f'a full path on the host is wanted, not "{text}"')
    return text


def _bool(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError("true or false is wanted")
    return value


def _whole(least: int, most: int) -> Callable[[object], int]:
    def convert(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise ValueError(f"a whole number from {least} to {most} is wanted")
        return value

    return convert


def _duration(value: object) -> float:
    match = _DURATION.fullmatch(value) if isinstance(value, str) else None
    if match is None or float(match[1]) <= 0:
        raise ValueError('a duration is wanted, such as "30s", "2m" or "1.5h"')
    return float(match[1]) * _UNITS[match[2]]


def _one_of(*choices: str) -> Callable[[object], str]:
    def convert(value: object) -> str:
        if value not in choices:
            raise ValueError(f"one of {', '.join(choices)} is wanted")
        return str(value)

    return convert


def _migrate_uri(value: object) -> str:
    if not re.fullmatch(r"(tcp|rdma|unix)://\S+", text := _text(value)):
        raise ValueError(f'where guests are sent is wanted, such as "tcp://host:49152", not "{text}"')
    return text


def _ranges(value: object) -> tuple[Range, ...]:
    found = (value,) if isinstance(value, str) else value
    if not isinstance(found, Sequence) or not all(isinstance(each, str) for each in found):
        raise ValueError('ranges of addresses are wanted, such as "10.77.0.100-10.77.0.199"')
    return tuple(parse_range(each) for each in found)


def _addresses(value: object) -> tuple[Any, ...]:
    found = (value,) if isinstance(value, str) else value
    if not isinstance(found, Sequence) or not all(isinstance(each, str) for each in found):
        raise ValueError("addresses are wanted")
    return tuple(ip_address(each) for each in found)


def _subnet(value: object) -> IPv4Network | IPv6Network:
    return ip_network(_text(value))


def read(
    table: Mapping[str, object],
    drivers: frozenset[str] = ALL_DRIVERS,
    storage_keys: frozenset[str] = frozenset(),
) -> tuple[Settings, list[SettingProblem]]:
    """The settings in a table and everything that is wrong with it; what is wrong has its default. `drivers`: those
    whose hosts the kind of pool takes; `storage_keys`: keys that are kept for storage unread."""
    problems: list[SettingProblem] = []
    top = _Table(table, "", problems)
    top.read |= storage_keys
    hosts = _hosts(top, drivers)
    settings = Settings(
        hosts=hosts,
        guest=top.get("guest", _one_of(*GUESTS), "pv"),
        kernel=top.get("kernel", _path, ""),
        initrd=top.get("initrd", _path, ""),
        cmdline=top.get("cmdline", _text, ""),
        networks=_networks(top),
        deadlines=Deadlines(
            connect=top.get("connect_timeout", _duration, Deadlines.connect),
            look=top.get("look_timeout", _duration, Deadlines.look),
            change=top.get("change_timeout", _duration, Deadlines.change),
            save=top.get("save_timeout", _duration, Deadlines.save),
            transfer=top.get("transfer_timeout", _duration, Deadlines.transfer),
        ),
        shutdown_wait=top.get("shutdown_wait", _duration, 60.0),
        cpu_weights=top.get("cpu_weights", _bool, True),
        storage={key: value for key, value in table.items() if key in storage_keys},
    )
    top.finish()
    _check_boot(top, settings)
    return settings, problems


def _check_boot(top: _Table, settings: Settings) -> None:
    """A kernel may be the image's matter, what belongs to one is not without it."""
    if not settings.kernel:
        for key, value in (("initrd", settings.initrd), ("cmdline", settings.cmdline)):
            if value:
                top.bad(key, "is of no use without kernel")


def _hosts(top: _Table, drivers: frozenset[str]) -> tuple[HostSettings, ...]:
    found: list[HostSettings] = []
    places: dict[tuple[str, str, int, str], str] = {}
    names: dict[str, str] = {}
    if not top.values.get("hosts"):
        top.bad("hosts", 'is required: a list of URIs, such as ["xen+ssh://root@host.example.org/system"]')
    for path, entry in top.entries("hosts") if top.values.get("hosts") else ():
        top.read.add("hosts")
        values = {"uri": entry} if isinstance(entry, str) else entry
        if not isinstance(values, Mapping):
            top.problems.append(SettingProblem(key=path, message="a URI or a table with uri is wanted"))
            continue
        one = _Table(values, path, top.problems)
        where = path if isinstance(entry, str) else f"{path}.uri"
        uri = _uri(values.get("uri"), where, drivers, top.problems)
        one.read.add("uri")
        name = one.get("name", _name, uri.default_name if uri else "")
        host = HostSettings(
            name=name,
            uri=uri or Uri(text="", driver="test", transport="unix"),
            reserve_memory=one.get("reserve_memory", _whole(0, 2**40)),
            cpus=one.get("cpus", _whole(1, 2**20)),
            migrate_uri=one.get("migrate_uri", _migrate_uri, ""),
            guest=one.get("guest", _one_of(*GUESTS), ""),
            kernel=one.get("kernel", _path, ""),
            initrd=one.get("initrd", _path, ""),
            cmdline=one.get("cmdline", _text, ""),
        )
        one.finish()
        if uri is None:
            continue
        if (other := places.get(uri.place)) is not None:
            top.problems.append(SettingProblem(key=where, message=f"is the same host as {other}"))
            continue
        places[uri.place] = path
        if (other := names.get(name)) is not None:
            one.bad("name", f'"{name}" is the name of {other}, too: give both a name')
        names[name] = path
        found.append(host)
    top.read.add("hosts")
    return tuple(found)


def _uri(value: object, where: str, drivers: frozenset[str], problems: list[SettingProblem]) -> Uri | None:
    try:
        if value is None:
            raise ValueError("uri is required")
        uri = uris.parse(_text(value))
        if uri.driver not in drivers:
            raise ValueError(
                f'"{uri.driver}" is no Xen host, and backend = "xen" takes none else; backend = "libvirt" does'
            )
    except ValueError as error:
        problems.append(SettingProblem(key=where, message=str(error)))
        return None
    return uri


def _networks(top: _Table) -> Mapping[str, Network]:
    bridge = top.get("bridge", _device, "")
    found: dict[str, Network] = {}
    if bridge and "networks" in top.values:
        top.bad("bridge", "stands in each of networks where there are any")
    elif bridge:
        found[bridge] = Network(name=bridge, bridge=bridge)
    for path, entry in top.entries("networks"):
        if not isinstance(entry, Mapping):
            top.problems.append(SettingProblem(key=path, message="a table with name and bridge is wanted"))
            continue
        network = _network(_Table(entry, path, top.problems))
        if network.name in found:
            top.problems.append(SettingProblem(key=f"{path}.name", message=f'"{network.name}" is there twice'))
        found[network.name] = network
    return found


def _network(one: _Table) -> Network:
    network = Network(
        name=one.get("name", _name, ""),
        bridge=one.get("bridge", _device, ""),
        source=one.get("network", _name, ""),
        addresses=one.get("addresses", _ranges, ()),
        reserved=one.get("reserved", _ranges, ()),
        subnet=one.get("subnet", _subnet),
        gateways=one.get("gateway", _addresses, ()),
        nameservers=one.get("nameservers", _addresses, ()),
    )
    one.finish()
    if "name" not in one.values:
        one.bad("name", "is required")
    if ("bridge" in one.values) == ("network" in one.values):
        one.bad("bridge", "exactly one of bridge and network (one of libvirt's) is required")
    for number, each in enumerate(network.addresses):
        for other in network.addresses[:number]:
            if each.first in other or other.first in each:
                one.bad("addresses", f"{each.first}-{each.last} and {other.first}-{other.last} overlap")
        if network.subnet is not None and not (each.first in network.subnet and each.last in network.subnet):
            one.bad("addresses", f"{each.first}-{each.last} is not within subnet {network.subnet}")
    for key, values in (("gateway", network.gateways), ("nameservers", network.nameservers)):
        if values and not network.addresses:
            one.bad(key, "is told to guests with an address; name addresses, too")
    if network.addresses and network.subnet is None and network.gateways:
        one.bad("subnet", "is required where there is a gateway")
    if network.subnet is not None:
        for gateway in network.gateways:
            if gateway not in network.subnet:
                one.bad("gateway", f"{gateway} is not within subnet {network.subnet}")
    return network
