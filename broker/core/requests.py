"""What callers ask for, checked as far as a request alone can be: plain values, no protobuf.

A `WorkspaceRequest` is everything of a workspace that a caller may set. What only pools can tell (does this
image exist there?) is left as `references`, each with the path of the field that made it.
Nothing here is stored: broker/workspaces.py turns requests into workspaces.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from enum import StrEnum

from msgspec import Struct, field

from broker.core.errors import FieldReason, FieldViolation
from broker.core.model import EndAction, NodeSet, State, Terms, TypedValue


class ReferenceKind(StrEnum):
    """What a request names that a pool must know."""

    POOL = "pool"
    IMAGE = "image"
    NETWORK = "network"
    PARAMETER = "parameter"


_UNKNOWN = {
    ReferenceKind.POOL: FieldReason.UNKNOWN_POOL,
    ReferenceKind.IMAGE: FieldReason.UNKNOWN_IMAGE,
    ReferenceKind.NETWORK: FieldReason.UNKNOWN_NETWORK,
    ReferenceKind.PARAMETER: FieldReason.UNKNOWN_VALUE,
}


class Reference(Struct, frozen=True, kw_only=True):
    """One name to be looked up. `pools`: where it must be known; empty: in any pool the caller may use."""

    path: str
    kind: ReferenceKind
    name: str
    pools: tuple[str, ...] = ()
    value: TypedValue | None = None  # of a parameter

    def unknown(self, message: str) -> FieldViolation:
        """The violation to report when nothing of this name is known."""
        return FieldViolation(path=self.path, reason=_UNKNOWN[self.kind], message=message)

    def wrong_kind(self, message: str) -> FieldViolation:
        """The violation to report when a parameter is known with another kind of value."""
        return FieldViolation(path=self.path, reason=FieldReason.WRONG_KIND, message=message)


class WorkspaceRequest(Struct, frozen=True, kw_only=True):
    """A workspace as wished for. `path` is where it stood in the request."""

    node_sets: tuple[NodeSet, ...]
    terms: Terms = field(default_factory=Terms)
    display_name: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    pool: str = ""
    parameters: dict[str, TypedValue] = field(default_factory=dict)
    optional_parameters: tuple[str, ...] = ()
    initial_state: State = State.RUNNING
    ensemble: tuple[str, str] | None = None  # tenant and id
    path: str = "workspace"

    @property
    def nodes(self) -> int:
        """How many nodes it asks for."""
        return sum(each.count for each in self.node_sets)

    def pools_named(self) -> tuple[str, ...]:
        """The pools its nodes must go to; empty if any node may go anywhere."""
        named = [each.pool or self.pool for each in self.node_sets]
        return tuple(dict.fromkeys(named)) if all(named) else ()

    def references(self) -> list[Reference]:
        """Every name that pools must know, with the path of its field.

        Optional parameters are among the parameters: whoever looks them up knows which may be unknown.
        """
        found = []
        if self.pool:
            found.append(Reference(path=f"{self.path}.pool", kind=ReferenceKind.POOL, name=self.pool))
        for index, each in enumerate(self.node_sets):
            found += _of_set(each, f"{self.path}.node_sets[{index}]", each.pool or self.pool)
        everywhere = self.pools_named()
        found += [
            Reference(
                path=f'{self.path}.parameters["{key}"]',
                kind=ReferenceKind.PARAMETER,
                name=key,
                pools=everywhere,
                value=value,
            )
            for key, value in self.parameters.items()
        ]
        return found


def _of_set(nodes: NodeSet, path: str, pool: str) -> list[Reference]:
    pools = (pool,) if pool else ()
    found = []
    if nodes.pool:
        found.append(Reference(path=f"{path}.pool", kind=ReferenceKind.POOL, name=nodes.pool))
    if nodes.image:
        found.append(Reference(path=f"{path}.image", kind=ReferenceKind.IMAGE, name=nodes.image, pools=pools))
    found += [
        Reference(path=f"{path}.disks[{at}].image", kind=ReferenceKind.IMAGE, name=disk.image, pools=pools)
        for at, disk in enumerate(nodes.disks)
        if disk.image
    ]
    found += [
        Reference(path=f"{path}.nics[{at}].network", kind=ReferenceKind.NETWORK, name=nic.network, pools=pools)
        for at, nic in enumerate(nodes.nics)
    ]
    return found


class CreateRequest(Struct, frozen=True, kw_only=True):
    """CreateWorkspace. `workspace_id` "" : the broker picks one."""

    tenant: str
    workspace: WorkspaceRequest
    workspace_id: str = ""
    request_id: str = ""
    digest: str = ""
    validate_only: bool = False
    if_pool_generations: dict[str, int] = field(default_factory=dict)


class CheckRequest(Struct, frozen=True, kw_only=True):
    """CheckPlacement."""

    tenant: str
    workspace: WorkspaceRequest
    include_hosts: bool = False
    include_offers: bool = False


class Target(Struct, frozen=True, kw_only=True):
    """What a verb acts on. `node_indexes` (): all nodes that are not final. `etag` "": whatever it is now."""

    tenant: str
    workspace_id: str
    node_indexes: tuple[int, ...] = ()
    request_id: str = ""
    etag: str = ""
    digest: str = ""


class SaveRequest(Struct, frozen=True, kw_only=True):
    """SaveNode. At most one node index; none is for a workspace of one node."""

    target: Target
    image_name: str
    device: str = ""
    terminate_after: bool = False


class UpdateRequest(Struct, frozen=True, kw_only=True):
    """UpdateWorkspace. Only what `paths` names is meant; `duration` None: the pool's default again."""

    tenant: str
    workspace_id: str
    paths: frozenset[str]  # display_name, labels; of terms duration, open_ended, end_action, queue_until, priority
    display_name: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    duration: timedelta | None = None
    open_ended: bool = False
    end_action: EndAction = EndAction.TERMINATE
    queue_until: datetime | None = None
    priority: int = 0
    request_id: str = ""
    etag: str = ""
    digest: str = ""
    validate_only: bool = False


class EnsembleRequest(Struct, frozen=True, kw_only=True):
    """CreateEnsemble. `ensemble_id` "": the broker picks one. `expire_time` None: an hour from now."""

    tenant: str
    ensemble_id: str = ""
    expire_time: datetime | None = None
    request_id: str = ""
    digest: str = ""
    validate_only: bool = False


class EnsembleTarget(Struct, frozen=True, kw_only=True):
    """SealEnsemble and CancelEnsemble. `etag` "": whatever it is now."""

    tenant: str
    ensemble_id: str
    request_id: str = ""
    etag: str = ""
    digest: str = ""
    validate_only: bool = False


class StrayRequest(Struct, frozen=True, kw_only=True):
    """ResolveStray. `tenant` "": it is to be ended. `duration` None: the pool's default."""

    pool: str
    backend_id: str
    tenant: str = ""
    duration: timedelta | None = None
    open_ended: bool = False
    end_action: EndAction = EndAction.TERMINATE
    request_id: str = ""
    digest: str = ""


class Page(Struct, frozen=True, kw_only=True):
    """How much of a list is wanted, and after which place. `position` "": from the start."""

    size: int
    position: str = ""


class ListRequest(Struct, frozen=True, kw_only=True):
    """ListWorkspaces. `tenant` None: all the caller may see. `uids` empty: any."""

    tenant: str | None
    page: Page
    states: frozenset[State]
    label_selector: dict[str, str] = field(default_factory=dict)
    pool: str = ""
    uids: frozenset[str] = frozenset()


class WaitRequest(Struct, frozen=True, kw_only=True):
    """WaitWorkspace. `states` empty: any not ending in -ING. `timeout` None: as long as the call."""

    tenant: str
    workspace_id: str
    states: frozenset[State]
    timeout: timedelta | None = None


class WatchRequest(Struct, frozen=True, kw_only=True):
    """WatchWorkspaces. `after_revision` 0: every current workspace first."""

    tenant: str | None
    after_revision: int = 0
    label_selector: dict[str, str] = field(default_factory=dict)
