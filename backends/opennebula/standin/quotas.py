"""Quotas: what a user or a group may have, and what they have.

Responsible for reading limits and for counting. Invariant: usage is counted from the VMs there are, never
kept. Enforcement order is the recorded one; the first limit hit names itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from math import isfinite
from typing import Final

from backends.opennebula.standin.errors import Refusal
from backends.opennebula.standin.machine import DONE, OFF_HOST, POWEROFF, WAITING
from backends.opennebula.standin.state import Group, User, Vm, World
from backends.opennebula.standin.template import Vector

QUOTA_NAMES: Final = (
    "CPU",
    "MEMORY",
    "PCI_DEV",
    "PCI_NIC",
    "RUNNING_CPU",
    "RUNNING_MEMORY",
    "RUNNING_PCI_DEV",
    "RUNNING_PCI_NIC",
    "RUNNING_VMS",
    "SYSTEM_DISK_SIZE",
    "VMS",
)
_CHECKED: Final = ("VMS", "RUNNING_VMS", "CPU", "RUNNING_CPU", "MEMORY", "RUNNING_MEMORY")


@dataclass(slots=True, kw_only=True)
class Usage:
    """Cores, MB and counts by quota name."""

    used: dict[str, float] = field(default_factory=dict)

    @property
    def any(self) -> bool:
        return bool(self.used)

    def text(self, name: str) -> str:
        value = self.used.get(name, 0)
        return str(int(value)) if value == int(value) else f"{value:.2f}"


def _counts_as_running(vm: Vm) -> bool:
    """Taken at allocate already, on hold too; given back in POWEROFF and whenever the host is."""
    return vm.place in WAITING or (vm.place not in OFF_HOST and vm.place != POWEROFF)


def usage_of(world: World, whose: Callable[[Vm], bool]) -> Usage:
    return usage_of_vms(vm for vm in world.vms.values() if whose(vm))


def usage_of_vms(vms: Iterable[Vm]) -> Usage:
    usage = Usage()
    for vm in vms:
        if vm.place == DONE:
            usage.used.setdefault("VMS", 0)  # a record once there stays there
            continue
        amounts = amounts_of(float(vm.template.get("CPU", "0")), int(vm.template.get("MEMORY", "0")), 1)
        for name, amount in amounts.items():
            if not name.startswith("RUNNING_") or _counts_as_running(vm):
                usage.used[name] = usage.used.get(name, 0) + amount
    return usage


def amounts_of(cpu: float, memory: float, vms: int) -> dict[str, float]:
    plain = {"CPU": cpu, "MEMORY": memory, "VMS": vms}
    return plain | {f"RUNNING_{name}": amount for name, amount in plain.items()}


def read_limits(vector: Vector) -> dict[str, float]:
    """A quota record; what is left out becomes -1, and text for a number 0, without a word."""
    limits: dict[str, float] = {}
    for name in QUOTA_NAMES:
        try:
            limit = float(vector.get(name, "-1"))
        except ValueError:
            limit = 0
        limits[name] = limit if isfinite(limit) else 0
    return limits


def check(world: World, caller: User, owner: User, group: Group, amounts: dict[str, float]) -> None:
    """Refuse what would go over a limit of the owner or of the group."""
    if owner.id == 0:
        return
    for kind, holder, used in (
        ("user", owner, usage_of(world, lambda vm: vm.uid == owner.id)),
        ("group", group, usage_of(world, lambda vm: vm.gid == group.id)),
    ):
        for name in _CHECKED:
            limit = (holder.quota or {}).get(name, -1)
            if limit >= 0 and amounts.get(name, 0) > 0 and used.used.get(name, 0) + amounts[name] > limit + 1e-9:
                text = str(int(limit)) if limit == int(limit) else f"{limit:g}"
                raise Refusal(
                    Refusal.AUTHORIZATION,
                    f"User [{caller.id}] : {kind} [{holder.id}] limit of {text} reached for {name} quota in VM.",
                )
