"""What the API has and this release of the broker does not offer: one table.

A field that is set and not offered is a violation, never ignored: a caller who asked to wait in a queue
must not find that nobody waited. A release that offers a field takes its line out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from workspacebroker.v1 import resources_pb2 as pb

from broker.api.fields import Problems
from broker.core.errors import FieldReason

NOT_OFFERED: Final[Mapping[str, Callable[[Any], bool]]] = {
    "initial_state": lambda workspace: bool(workspace.initial_state == pb.Workspace.STATE_STOPPED),
    "node_sets[].key_pairs": lambda nodes: bool(nodes.key_pairs),
}
"""Path in a workspace -> is it set (initial_state: to STOPPED) in the message it belongs to?"""

_BY_OWNER: Final = {
    owner: [
        (path.rpartition(".")[2], is_set) for path, is_set in NOT_OFFERED.items() if path.rpartition(".")[0] == owner
    ]
    for owner in ("", "terms", "node_sets[]")
}

MESSAGE: Final = "is not offered by this release of the broker; leave it out"


def refuse_not_offered(problems: Problems, owner: str, message: object, path: str) -> None:
    """Notes what one message (`owner`: "", "terms" or "node_sets[]") sets and is not offered."""
    for name, is_set in _BY_OWNER[owner]:
        if is_set(message):
            problems.add(f"{path}.{name}", FieldReason.UNKNOWN_VALUE, MESSAGE)
