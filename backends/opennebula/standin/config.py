"""What a stand-in front-end is made of: hosts, images, networks, users, latencies and faults.

Responsible for the values a stand-in starts from and for reading them from TOML. Invariant: a
`StandinConfig` never changes once made; what changes while a stand-in runs lives in `state.World`.
Does not check that names refer to each other; `seed` does that when it fills the world.

Units: `cores` may be a fraction, memory and sizes are whole MB, times are seconds.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from backends.opennebula.standin.faults import FaultRule

DEFAULT_PASSWORD: Final = "dummy-password"


def _frozen(values: Mapping[str, Any] | None = None) -> Mapping[str, Any]:
    return MappingProxyType(dict(values or {}))


@dataclass(frozen=True, slots=True, kw_only=True)
class HostConfig:
    """One host. `state`: `on`, `disabled`, `offline`, `error` or `init` (never reported)."""

    name: str
    cores: float = 8.0
    memory_mb: int = 16384
    cluster: str = "default"
    state: str = "on"
    reserved_cpu: str = ""
    reserved_mem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostProfile:
    """What a host made by `one.host.allocate` turns out to be; the first pattern that fits its name holds."""

    pattern: str = "*"
    cores: float = 8.0
    memory_mb: int = 16384
    fails: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageConfig:
    name: str
    size_mb: int = 1024
    type: str = "OS"
    datastore: str = "default"
    persistent: bool = False
    owner: str = "oneadmin"
    public: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkConfig:
    """A network with one IPv4 range; `public` lets every user put a NIC on it."""

    name: str
    first_ip: str = "10.0.0.10"
    size: int = 200
    bridge: str = "br0"
    dns: str = ""
    gateway: str = ""
    owner: str = "oneadmin"
    public: bool = False
    clusters: tuple[str, ...] = ("default",)


@dataclass(frozen=True, slots=True, kw_only=True)
class DatastoreConfig:
    """A datastore besides the three every front-end has. `type`: `SYSTEM_DS`, `IMAGE_DS` or `FILE_DS`."""

    name: str
    type: str = "SYSTEM_DS"
    clusters: tuple[str, ...] = ("default",)


@dataclass(frozen=True, slots=True, kw_only=True)
class UserConfig:
    name: str
    password: str
    group: str = "users"


@dataclass(frozen=True, slots=True, kw_only=True)
class TemplateConfig:
    name: str
    text: str
    owner: str = "oneadmin"
    public: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class VmConfig:
    """A VM that is there from the start, a stranger's perhaps. `state` as in `machine.SETTLED`."""

    name: str
    cores: float = 1.0
    memory_mb: int = 512
    host: str | None = None
    state: str = "RUNNING"
    owner: str = "oneadmin"
    template: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class StandinConfig:
    """Everything a stand-in needs to start; every field has the value of an ordinary empty front-end.

    `dwell` maps the name of an LCM state (`BOOT`, `SAVE_SUSPEND`, …) to the time a VM stays in it and
    `call_latency` a method name to the time its answer takes; `serial_latency` is what it takes on top of that
    while no other such call goes on, as a daemon writes one thing after another. `first_ids` maps a pool (`vm`, `host`,
    `image`, `network`, `template`, `cluster`, `datastore`, `user`, `group`) to its first id.
    """

    hosts: tuple[HostConfig, ...] = ()
    host_profiles: tuple[HostProfile, ...] = (HostProfile(),)
    host_drivers: tuple[str, ...] = ("dummy", "kvm", "qemu", "lxc")
    clusters: tuple[str, ...] = ()
    datastores: tuple[DatastoreConfig, ...] = ()
    images: tuple[ImageConfig, ...] = ()
    networks: tuple[NetworkConfig, ...] = ()
    templates: tuple[TemplateConfig, ...] = ()
    groups: tuple[str, ...] = ()
    users: tuple[UserConfig, ...] = ()
    vms: tuple[VmConfig, ...] = ()
    first_ids: Mapping[str, int] = field(default_factory=_frozen)
    oneadmin_password: str = DEFAULT_PASSWORD
    version: str = "7.4.0"
    default_dwell: float = 0.004
    dwell: Mapping[str, float] = field(default_factory=_frozen)
    default_call_latency: float = 0.0
    # A deploy looks at the capacity first and takes it when it answers: between the two another may look.
    call_latency: Mapping[str, float] = field(
        default_factory=lambda: _frozen({"one.vm.deploy": 0.005, "one.vm.action": 0.001})
    )
    serial_latency: Mapping[str, float] = field(default_factory=_frozen)
    report_delay: float = 0.004
    image_delay: float = 0.004
    scheduler: bool = True
    scheduler_window: float = 10.0
    scheduler_interval: float = 60.0
    max_connections: int = 15
    idle_timeout: float = 15.0
    message_size: int = 1 << 30
    listen_host: str = "127.0.0.1"
    listen_port: int = 0
    seed: int = 0
    faults: tuple[FaultRule, ...] = ()


_NESTED: Final[Mapping[str, type[Any]]] = {
    "hosts": HostConfig,
    "host_profiles": HostProfile,
    "datastores": DatastoreConfig,
    "images": ImageConfig,
    "networks": NetworkConfig,
    "templates": TemplateConfig,
    "users": UserConfig,
    "vms": VmConfig,
    "faults": FaultRule,
}


def _record(kind: type[Any], values: Mapping[str, Any], where: str) -> Any:
    known = {entry.name for entry in fields(kind)}
    unknown = set(values) - known
    if unknown:
        raise ValueError(f"{where}: unknown {', '.join(sorted(unknown))}; known are {', '.join(sorted(known))}")
    return kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})


def config_from_mapping(values: Mapping[str, Any]) -> StandinConfig:
    """A configuration from parsed TOML: tables for single values, arrays of tables for hosts and the like."""
    plain: dict[str, Any] = {}
    for key, value in values.items():
        if key in _NESTED:
            plain[key] = tuple(_record(_NESTED[key], entry, key) for entry in value)
        elif isinstance(value, dict):
            plain[key] = _frozen(value)
        else:
            plain[key] = value
    config = _record(StandinConfig, plain, "stand-in")
    assert isinstance(config, StandinConfig)
    return config


def load_config(path: Path) -> StandinConfig:
    with path.open("rb") as file:
        return config_from_mapping(tomllib.load(file))
