"""How long calls of a host may take. Values only."""

from __future__ import annotations

from dataclasses import dataclass

from backends.xen.errors import Kind


@dataclass(frozen=True, kw_only=True)
class Deadlines:
    """How long calls may take, in seconds."""

    connect: float = 15.0
    look: float = 15.0
    change: float = 120.0
    save: float = 900.0  # a managed save, going on from one, a migration: they take as long as the memory is large
    transfer: float = 3600.0

    def of(self, kind: Kind) -> float:
        """The deadline of a call that names none."""
        return {Kind.LOOK: self.look, Kind.CHANGE: self.change, Kind.TRANSFER: self.transfer}[kind]
