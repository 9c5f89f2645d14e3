"""Finds a policy by the name a configuration gives it; third parties join by entry points.

An entry point of one of the four groups names a class, or a function without arguments, that makes the policy (the
protocols stand in broker/core/policies.py). The names of the broker's own policies are taken: whatever a third party
brings under one of them is not found. A policy is imported only when it is configured.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import StrEnum
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Final

from broker.core.demand import Placement
from broker.core.policies import BACKFILLS, QUEUE_ORDERS, VICTIM_CHOICES
from broker.toml_reader import did_you_mean


class Kind(StrEnum):
    """What a policy decides."""

    QUEUE_ORDER = "queue_order"
    BACKFILL = "backfill"
    VICTIM_CHOICE = "victim_choice"
    HOST_CHOICE = "host_choice"

    @property
    def group(self) -> str:
        """The group of entry points third parties join by."""
        return f"workspace_broker.{self}s"


class UnknownPolicy(LookupError):
    """No policy of the kind has that name."""


BUILT_IN: Final[Mapping[Kind, Mapping[str, Callable[[], Any]]]] = {
    Kind.QUEUE_ORDER: QUEUE_ORDERS,
    Kind.BACKFILL: BACKFILLS,
    Kind.VICTIM_CHOICE: VICTIM_CHOICES,
    Kind.HOST_CHOICE: {},
}

PLACEMENTS: Final[Mapping[str, Placement]] = {
    "pack": Placement.PACK,
    "spread": Placement.SPREAD,
    "one-per-host": Placement.ONE_PER_HOST,
}
"""The broker's own ways to choose hosts: no policies, since they see more than one does; their names are taken, too."""


def own(kind: Kind) -> list[str]:
    """The broker's own names of a kind."""
    return list(PLACEMENTS if kind is Kind.HOST_CHOICE else BUILT_IN[kind])


def names(kind: Kind) -> list[str]:
    """Every name that can be configured for a kind: the broker's own, then those of third parties, sorted."""
    return [*own(kind), *sorted(_brought(kind))]


def load(kind: Kind, name: str) -> Callable[[], Any]:
    """What makes a policy. Raises UnknownPolicy naming those there are; a third party's import may raise anything."""
    if name in BUILT_IN[kind]:
        return BUILT_IN[kind][name]
    brought = _brought(kind)
    if name in brought:
        made: Callable[[], Any] = brought[name].load()
        return made
    known = sorted({*BUILT_IN[kind], *brought})
    raise UnknownPolicy(
        f'no {kind.replace("_", " ")} is called "{name}"; there are: {", ".join(known) or "none"}'
        f"{did_you_mean(name, known)}"
    )


def _brought(kind: Kind) -> dict[str, EntryPoint]:
    """What third parties bring, by name; of two with one name the one that is found first."""
    taken = own(kind)
    found: dict[str, EntryPoint] = {}
    for entry in entry_points(group=kind.group):
        if entry.name not in taken:
            found.setdefault(entry.name, entry)
    return found
