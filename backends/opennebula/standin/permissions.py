"""Who may do what.

Responsible for the nine permission bits and the rights every user has by default. Invariant: the group
oneadmin may do everything. Does not know which right a method needs, nor locks.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from typing import Final, TypeVar

from backends.opennebula.standin.state import Owned, User


class Right(IntEnum):
    USE = 0
    MANAGE = 1
    ADMIN = 2


OwnedT = TypeVar("OwnedT", bound=Owned)

LABELS: Final[Mapping[str, str]] = {
    "vm": "VM",
    "image": "IMAGE",
    "network": "NET",
    "template": "TEMPLATE",
    "datastore": "DATASTORE",
}
# Default ACLs let every group use networks and datastores.
_OPEN: Final = frozenset({"network", "datastore"})


def is_admin(user: User) -> bool:
    return user.gid == 0


def allowed(user: User, item: Owned, kind: str, right: Right) -> bool:
    if is_admin(user) or (right is Right.USE and kind in _OPEN):
        return True
    bits = item.permissions.bits
    return bool((item.uid == user.id and bits[right]) or (item.gid == user.gid and bits[3 + right]) or bits[6 + right])
