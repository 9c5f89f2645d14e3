"""Finds a backend by the name a configuration gives it; third parties join by an entry point.

Entry points of the group "workspace_broker.backends" name a module (or object) that satisfies `BackendFactory`.
A backend is imported only when a pool asks for it, so that a heavy library costs nobody else anything.
"""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import cast

from backends.base import BackendFactory

GROUP = "workspace_broker.backends"


def names() -> list[str]:
    """Every kind of backend that is installed, sorted."""
    return sorted({entry.name for entry in entry_points(group=GROUP)})


def load(name: str) -> BackendFactory:
    """The factory of a kind. Raises LookupError naming the kinds there are, ImportError if its library lacks."""
    for entry in entry_points(group=GROUP, name=name):
        return cast(BackendFactory, entry.load())
    raise LookupError(f'no backend is called "{name}"; there are: {", ".join(names()) or "none"}')
