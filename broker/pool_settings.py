"""The settings of one pool, read from its table; what the broker does not know of it, its backend checks.

Invariant: a key belongs to the broker or to the backend, and one that neither knows is named with its path. Nothing is
opened or reached here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from types import MappingProxyType
from typing import Final

from backends import registry
from backends.base import BackendFactory
from broker.core.demand import Placement
from broker.core.policies import DEFAULTS
from broker.policy_registry import PLACEMENTS, Kind, own
from broker.toml_reader import Table, did_you_mean

SHARED: Final[Mapping[str, object]] = {"max_in_flight": 8}
"""Keys of the broker that a backend may have, too, each with a value that any backend takes."""
PACKAGES: Final = {"libvirt": "libvirt-python"}  # where a library is not named like its package

PolicyNames = Callable[[Kind], Sequence[str]]
"""The names that can be configured for a kind of policy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RetrySettings:
    """How a step is tried again, in seconds: waits grow from `initial` to `maximum` within `budget`."""

    budget: float = 60.0
    initial: float = 0.2
    maximum: float = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerSettings:
    """When a backend counts as unreachable, and how often (seconds) it is then asked."""

    failures: int = 5
    probe_interval: float = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSettings:
    """One pool: what the broker heeds, and what its backend does. Plain numbers of time are seconds."""

    name: str
    backend: str
    default_duration: timedelta | None = timedelta(days=1)  # None: open-ended
    max_duration: timedelta | None = timedelta(days=14)  # None: no limit
    preference: int = 0  # higher first, where a request names no pool
    placement: Placement = Placement.PACK
    host_choice: str = ""  # the third party's policy that says which host is best; empty: as `placement` does
    refresh_interval: float = 10.0
    memory_overhead: int = 0  # MiB a VM takes beside its own memory
    overcommit: Mapping[str, float] = field(default_factory=dict)
    reserve: Mapping[str, int] = field(default_factory=dict)  # taken off each host
    start_timeout: float = 1800.0
    transition_timeout: float = 600.0
    end_warning: float = 600.0
    shutdown_grace: float = 0.0  # guests are asked to shut down so long before the end, a tenth of the lease at most
    keep_after_end: float = 7 * 86_400.0
    max_in_flight: int = 8  # calls to the backend at once
    max_tasks: int = 10_000  # nodes with something under way; more creates are told to come again
    retry: RetrySettings = field(default_factory=RetrySettings)
    breaker: BreakerSettings = field(default_factory=BreakerSettings)
    backfill: str = DEFAULTS["backfill"]  # the policy that says who may pass whom in the queue
    victims: str = DEFAULTS["victims"]  # the policy that says who gives way first
    preemption: bool = True  # whether preemptible leases are made to give way here
    preemption_notice: float = 0.0  # told that long before it has to give way
    start_lead: float = 0.0  # what a first start takes, until ten were measured; held before a promised start
    suspend_lead: float = 0.0  # what suspending takes, until ten were measured
    measure_leads: bool = True  # whether what was measured counts instead, once ten are known
    backend_settings: Mapping[str, object] = field(default_factory=dict)


def read_pool(table: Table, name: str, backend: Callable[[str], BackendFactory], policies: PolicyNames) -> PoolSettings:
    """One pool's table; `backend` finds a kind of backend by name."""
    kind = table.text("backend")
    retry, breaker = table.table("retry"), table.table("breaker")
    placement = policy_name(table, "placement", Kind.HOST_CHOICE, "pack", policies)
    max_duration = table.length("max_duration", "14d")
    default_duration = table.length("default_duration", "1d")
    if "default_duration" not in table.values and default_duration and max_duration:
        default_duration = min(default_duration, max_duration)
    common = PoolSettings(
        name=name,
        backend=kind,
        default_duration=default_duration,
        max_duration=max_duration,
        preference=table.whole("preference", 0, low=-1_000_000, high=1_000_000),
        placement=PLACEMENTS.get(placement, Placement.PACK),
        host_choice="" if placement in PLACEMENTS else placement,
        refresh_interval=table.seconds("refresh_interval", "10s"),
        memory_overhead=table.whole("memory_overhead", 0),
        overcommit=table.each("overcommit", lambda factors, key: factors.factor(key, 1.0)),
        reserve=table.amounts("reserve"),
        start_timeout=table.seconds("start_timeout", "30m"),
        transition_timeout=table.seconds("transition_timeout", "10m"),
        end_warning=table.seconds("end_warning", "10m", zero=True),
        shutdown_grace=table.seconds("shutdown_grace", "0s", zero=True),
        keep_after_end=table.seconds("keep_after_end", "7d", zero=True),
        max_in_flight=table.whole("max_in_flight", 8, low=1, high=1000),
        max_tasks=table.whole("max_tasks", 10_000, low=1, high=10_000_000),
        backfill=policy_name(table, "backfill", Kind.BACKFILL, DEFAULTS["backfill"], policies),
        victims=policy_name(table, "victims", Kind.VICTIM_CHOICE, DEFAULTS["victims"], policies),
        preemption=table.choice("preemption", {"on": True, "off": False}, True),
        preemption_notice=table.seconds("preemption_notice", "0s", zero=True),
        start_lead=table.seconds("start_lead", "0s", zero=True),
        suspend_lead=table.seconds("suspend_lead", "0s", zero=True),
        measure_leads=table.choice("measure_leads", {"on": True, "off": False}, kind != "simulator"),
        retry=RetrySettings(
            budget=retry.seconds("budget", "60s"),
            initial=retry.seconds("initial", "0.2s"),
            maximum=retry.seconds("maximum", "10s"),
        ),
        breaker=BreakerSettings(
            failures=breaker.whole("failures", 5, low=1, high=1000),
            probe_interval=breaker.seconds("probe_interval", "5s"),
        ),
    )
    retry.finish()
    breaker.finish()
    if common.retry.initial > common.retry.maximum:
        retry.bad("initial", f"is longer than maximum ({common.retry.maximum:g} s)")
    if max_duration is not None and (default_duration is None or default_duration > max_duration):
        table.bad("default_duration", "is longer than max_duration")
    return _with_backend(common, table, backend)


def policy_name(table: Table, key: str, kind: Kind, default: str, policies: PolicyNames) -> str:
    """The name of a policy. What is installed is looked through only for a name that is not the broker's own."""
    known = own(kind)
    if isinstance(value := table.values.get(key), str) and value not in known:
        known = list(policies(kind))
    return table.choice(key, {name: name for name in known}, default)


def _with_backend(pool: PoolSettings, table: Table, find: Callable[[str], BackendFactory]) -> PoolSettings:
    """The pool with the keys that are its backend's, which its backend has checked."""
    known = list(table.read)
    if not pool.backend:
        if "backend" not in table.values:
            table.bad("backend", f"is missing; there are: {', '.join(registry.names()) or 'none'}")
        return _misspelt(pool, table, known)
    try:
        factory = find(pool.backend)
    except LookupError as error:
        table.bad("backend", f"{error.args[0]}{did_you_mean(pool.backend, registry.names())}")
        return _misspelt(pool, table, known)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("backends"):
            raise  # not a library that is missing, but a defect of ours
        library = (error.name or str(error)).partition(".")[0]
        package = PACKAGES.get(library, library)
        table.bad("backend", f"{pool.backend} needs {library}, which is not installed: pip install {package}")
        return _misspelt(pool, table, known)
    own = table.unread()
    shared = _heeded(factory, own, {key: table.values[key] for key in SHARED if key in table.values})
    for problem in factory.check({**own, **shared}):
        hint = did_you_mean(problem.key, known) if problem.key in own else ""
        table.problems.append((f"{table.path}.{problem.key}", f"{problem.message}{hint}"))
    return replace(pool, backend_settings=MappingProxyType({**own, **shared}))


def _misspelt(pool: PoolSettings, table: Table, known: list[str]) -> PoolSettings:
    """Without its backend, only keys that look like one of the broker's are surely wrong."""
    for key in table.unread():
        if hint := did_you_mean(key, known):
            table.bad(key, f"is no key here{hint}")
    return pool


def _heeded(factory: BackendFactory, own: Mapping[str, object], given: dict[str, object]) -> dict[str, object]:
    """Those of the broker's own keys that a backend has, too: it takes them at a value surely good."""
    problems = {problem.key for problem in factory.check({**own, **{key: SHARED[key] for key in given}})}
    return {key: value for key, value in given.items() if key not in problems}
