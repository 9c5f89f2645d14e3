"""The configuration: a TOML file in, frozen settings out; every unknown or bad key is named with its path.

    [server]                          listen, state, drain_timeout, call_timeout, watch_history, keep_records,
                                      max_calls, max_watchers, metrics
    [pools.NAME]                      backend, and what pool_settings.py reads; every other key is the backend's own
    [queue]                           order, policy_budget, starvation_limit, half_life, depth
    [instance_types.NAME]             amounts by resource: cpu in milli-cores, memory and disk in MiB
    [tenants.NAME]                    display_name, limits, pool_limits, allowed_pools, max_duration,
                                      max_priority, share

Relative file names start at the configuration file's directory; durations are text ("90s", "1d12h") or seconds, and
"none" where there need be none. Nothing is opened or reached here except the file itself.
"""

from __future__ import annotations

import ipaddress
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from types import MappingProxyType
from typing import Final

from backends import registry
from backends.base import BackendFactory
from broker import policy_registry
from broker.core.policies import DEFAULTS
from broker.policy_registry import Kind
from broker.pool_settings import PolicyNames, PoolSettings, policy_name, read_pool
from broker.toml_reader import Problem, Table, did_you_mean, joined

ID: Final = re.compile(r"[a-z](?:[a-z0-9-]{0,61}[a-z0-9])?")
ID_FORM: Final = "1 to 63 of a-z, 0-9 and '-', a letter first and no '-' last"
LONGEST_BUDGET: Final = 10.0
"""Seconds. While a policy thinks, the broker does nothing else."""


class ConfigError(Exception):
    """A configuration that cannot be used; `problems` has the path and the reason of each bad key."""

    def __init__(self, file: Path, problems: list[Problem]) -> None:
        lines = [f"{path}: {message}" if path else message for path, message in problems]
        count = f"{len(problems)} problem{'s' * (len(problems) != 1)}"
        super().__init__("\n  ".join([f"{file}: {count}", *lines]))
        self.problems = list(problems)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """The process. `host` and `port`: where it listens."""

    host: str = "127.0.0.1"
    port: int = 7443
    state: Path = Path("broker.db")
    drain_timeout: float = 10.0  # seconds for calls under way when it is told to stop
    call_timeout: float = 30.0  # seconds for a call that came without a deadline
    watch_history: int = 10_000  # changes kept for watchers that come late
    keep_records: float = 7 * 86_400.0  # seconds a workspace's record and its request ids outlive it
    max_calls: int = 1000  # calls at once; more are told to come again
    max_watchers: int = 5000  # watches at once
    metrics: tuple[str, int] | None = None  # where counters are served over HTTP; None: nowhere

    @property
    def listen(self) -> str:
        """The address as grpc takes it."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueSettings:
    """The queue of all pools."""

    order: str = DEFAULTS["order"]  # the policy that says who is next
    policy_budget: float = 0.05  # seconds that a third party's policy has for an answer
    starvation_limit: timedelta = timedelta(days=1)  # who has waited that long is passed by nobody
    half_life: timedelta = timedelta(days=7)  # what a tenant used counts half after it
    depth: int = 100  # workspaces that are looked at in one pass


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantSettings:
    """One tenant. A resource without a limit is not limited."""

    name: str
    display_name: str = ""
    limits: Mapping[str, int] = field(default_factory=dict)
    pool_limits: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    allowed_pools: tuple[str, ...] = ()  # empty: all
    max_duration: timedelta | None = None
    max_priority: int = 0
    share: int = 1  # its weight in the queue's fair share


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All of it."""

    server: ServerSettings
    pools: Mapping[str, PoolSettings]
    instance_types: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    tenants: Mapping[str, TenantSettings] = field(default_factory=dict)
    queue: QueueSettings = field(default_factory=QueueSettings)
    directory: Path = Path()  # of the file: where relative names start


def load(
    path: Path | str,
    backend: Callable[[str], BackendFactory] = registry.load,
    policies: PolicyNames = policy_registry.names,
) -> Settings:
    """Reads a file. Raises ConfigError with every problem; `backend` finds a kind of backend by name, `policies` the
    names a policy may have.
    """
    file = Path(path)
    try:
        document = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(file, [("", f"cannot be read: {error.strerror or error}")]) from error
    except UnicodeDecodeError as error:
        raise ConfigError(file, [("", f"is not UTF-8 text: byte {error.start} cannot be read")]) from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(file, [("", f"is not TOML: {error}")]) from error
    problems: list[Problem] = []
    root = Table(document, "", problems)
    directory = file.resolve().parent
    pools = {name: read_pool(table, name, backend, policies) for name, table in _named(root, "pools").items()}
    if document.get("pools", {}) == {}:
        problems.append(("pools", "is empty; one pool at least: [pools.NAME] with backend = ..."))
    tenants = {name: _tenant(table, name, pools) for name, table in _named(root, "tenants").items()}
    settings = Settings(
        server=_server(root.table("server"), directory, tenants),
        pools=MappingProxyType(pools),
        instance_types=_instance_types(root),
        tenants=MappingProxyType(tenants),
        queue=_queue(root.table("queue"), policies),
        directory=directory,
    )
    root.finish()
    if problems:
        raise ConfigError(file, problems)
    return settings


def _named(root: Table, key: str) -> dict[str, Table]:
    tables = root.tables(key)
    for name in tables:
        if not ID.fullmatch(name):
            root.problems.append((joined(key, name), f"{name!r} is no id: {ID_FORM}"))
    return tables


def _server(table: Table, directory: Path, tenants: Mapping[str, TenantSettings]) -> ServerSettings:
    default = ServerSettings()
    listen = table.text("listen", default.listen)
    host, port = default.host, default.port
    try:
        host, port = _address(listen)
    except ValueError as error:
        table.bad("listen", str(error))
    if not tenants and not _loopback(host):
        table.bad(
            "listen",
            f"{host} is not a loopback address; without [tenants.NAME] whoever reaches it may do anything",
        )
    settings = ServerSettings(
        host=host,
        port=port,
        state=directory / table.text("state", str(default.state), longest=4096),
        drain_timeout=table.seconds("drain_timeout", "10s", zero=True),
        call_timeout=table.seconds("call_timeout", "30s"),
        watch_history=table.whole("watch_history", default.watch_history, low=1, high=10_000_000),
        keep_records=_keep_records(table),
        max_calls=table.whole("max_calls", default.max_calls, low=1, high=1_000_000),
        max_watchers=table.whole("max_watchers", default.max_watchers, low=1, high=1_000_000),
        metrics=_metrics(table),
    )
    table.finish()
    return settings


def _queue(table: Table, policies: PolicyNames) -> QueueSettings:
    default = QueueSettings()
    budget = table.seconds("policy_budget", "50ms")
    if budget > LONGEST_BUDGET:
        table.bad("policy_budget", f"is {budget:g} s; at most {LONGEST_BUDGET:g} s, since the broker waits that long")
    settings = QueueSettings(
        order=policy_name(table, "order", Kind.QUEUE_ORDER, default.order, policies),
        policy_budget=budget,
        starvation_limit=timedelta(seconds=table.seconds("starvation_limit", "24h")),
        half_life=timedelta(seconds=table.seconds("half_life", "7d")),
        depth=table.whole("depth", default.depth, low=1, high=1_000_000),
    )
    table.finish()
    return settings


def _keep_records(table: Table) -> float:
    """A client may repeat a request for a day: its id must still be known then."""
    kept = table.seconds("keep_records", "7d")
    if kept < 86_400.0:
        table.bad(
            "keep_records", f"is {kept:g} s; a day at least, since request ids are promised to be known that long"
        )
    return kept


def _metrics(table: Table) -> tuple[str, int] | None:
    """Counters say who uses what, and nobody is asked who they are: loopback only."""
    text = table.text("metrics", "")
    if not text:
        return None
    try:
        host, port = _address(text)
    except ValueError as error:
        table.bad("metrics", str(error))
        return None
    if not _loopback(host):
        table.bad("metrics", f"{host} is not a loopback address, and whoever reaches it may read the counters")
    return host, port


def _address(listen: str) -> tuple[str, int]:
    host, colon, port = listen.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    host = host[1:-1] if bracketed else host
    plain = port.isascii() and port.isdigit() and len(port) <= 5 and int(port) <= 65_535
    if not (host and colon and plain) or bracketed != (":" in host):
        raise ValueError(f'{listen!r} is no address like "127.0.0.1:7443" or "[::1]:7443" (port 0: any free)')
    return host, int(port)


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _tenant(table: Table, name: str, pools: Mapping[str, PoolSettings]) -> TenantSettings:
    by_pool = table.table("pool_limits")
    settings = TenantSettings(
        name=name,
        display_name=table.text("display_name"),
        limits=table.amounts("limits"),
        pool_limits=MappingProxyType({pool: by_pool.amounts(pool) for pool in by_pool.values}),
        allowed_pools=table.texts("allowed_pools"),
        max_duration=table.length("max_duration", "none"),
        max_priority=table.whole("max_priority", 0, low=-1_000_000, high=1_000_000),
        share=table.whole("share", 1, low=1, high=1_000_000),
    )
    for key, named in (("allowed_pools", settings.allowed_pools), ("pool_limits", tuple(by_pool.values))):
        for pool in named:
            if pool not in pools:
                table.bad(key, f"there is no pool {pool!r}{did_you_mean(pool, pools)}")
    table.finish()
    return settings


def _instance_types(root: Table) -> Mapping[str, Mapping[str, int]]:
    outer = root.table("instance_types")
    types = {}
    for name in outer.values:
        if not (0 < len(name) <= 128 and name.isprintable()):
            outer.bad(name[:128], "a name has 1 to 128 printable characters")
        types[name] = outer.amounts(name, low=1)
        if outer.values[name] == {}:
            outer.bad(name, "says no amounts; cpu (milli-cores) and memory (MiB) are usual")
    return MappingProxyType(types)
