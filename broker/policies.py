"""The policies in use: for each kind and pool the one that is configured.

The broker's own run as they are, on the way of every request; a third party's runs behind a guard (policy_guard.py).
One that cannot even be made is reported, and the default stands in for it: a package that broke must not keep the
broker from starting. The protocols stand in broker/core/policies.py, the names in policy_registry.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from broker.config import Settings
from broker.core.inventory import FloatArray, Undecided
from broker.core.policies import DEFAULTS, Backfill, HostChoice, QueueOrder, VictimChoice
from broker.metrics import Metrics
from broker.policy_guard import Guard, GuardedBackfill, GuardedHostChoice, GuardedOrder, Subject, Why
from broker.policy_registry import BUILT_IN, Kind, UnknownPolicy, load


class Packed:
    """No opinion: the broker packs, which it does with more knowledge than a HostChoice has."""

    def rank(self, hosts: Sequence[str], left: Mapping[str, FloatArray]) -> FloatArray:
        """Raise Undecided."""
        raise Undecided


DEFAULT_NAMES: Final[Mapping[Kind, str]] = {
    Kind.QUEUE_ORDER: DEFAULTS["order"],
    Kind.BACKFILL: DEFAULTS["backfill"],
    Kind.VICTIM_CHOICE: DEFAULTS["victims"],
    Kind.HOST_CHOICE: "pack",
}
GUARDED: Final[Mapping[Kind, Callable[[Any, Any, Guard], Any]]] = {
    Kind.QUEUE_ORDER: GuardedOrder,
    Kind.BACKFILL: GuardedBackfill,
    Kind.VICTIM_CHOICE: GuardedOrder,
    Kind.HOST_CHOICE: GuardedHostChoice,
}


class Policies:
    """Those of one broker. Every pool has policies, and guards, of its own."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        """Imports what is configured. Raises LookupError where there is no policy of a configured name."""
        self._metrics = metrics
        self._budget = settings.queue.policy_budget
        pools = settings.pools
        self.order: QueueOrder = self._made(Kind.QUEUE_ORDER, settings.queue.order, "queue.order")
        self.backfill: Mapping[str, Backfill] = {
            name: self._made(Kind.BACKFILL, pool.backfill, f"pools.{name}.backfill") for name, pool in pools.items()
        }
        self.victims: Mapping[str, VictimChoice] = {
            name: self._made(Kind.VICTIM_CHOICE, pool.victims, f"pools.{name}.victims") for name, pool in pools.items()
        }
        self.host_choice: Mapping[str, HostChoice] = {
            name: self._made(Kind.HOST_CHOICE, pool.host_choice, f"pools.{name}.placement")
            for name, pool in pools.items()
            if pool.host_choice
        }
        """By pool; only pools that have one."""

    def _made(self, kind: Kind, name: str, key: str) -> Any:
        """A policy that keeps the protocol of its kind, come what may."""
        if name in BUILT_IN[kind]:
            return load(kind, name)()
        fallback = DEFAULT_NAMES[kind]
        default = Packed() if kind is Kind.HOST_CHOICE else load(kind, fallback)()
        subject = Subject(kind=kind, name=name, key=key, default=fallback, metrics=self._metrics)
        try:
            policy = load(kind, name)()
        except UnknownPolicy:
            raise
        except Exception as error:
            subject.failed(Why.ERROR)
            subject.log(
                Why.ERROR,
                f"it could not be made, {type(error).__name__}: {error}",
                "Mend it and restart the broker, or configure another",
                error,
            )
            return default
        return GUARDED[kind](policy, default, Guard(subject, self._budget))
