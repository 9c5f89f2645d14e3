"""The things the broker keeps: workspaces, their nodes, the tasks under way on them, and ensembles of workspaces.

All are frozen values; a change is a new value put in place of the old one in one transaction (broker/book.py).
Instants are aware UTC datetimes of whole microseconds; amounts are integers in one unit a resource (cpu in
milli-cores, memory and disk in MiB). `end_time` None is open-ended: no end, not a far one.
Nothing here decides anything: the rules stand in lifecycle.py, placement.py and accounting.py.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from enum import StrEnum

from msgspec import Struct, field

from broker.core.errors import Failure
from broker.core.placement import Placement


class State(StrEnum):
    """Life cycle of a workspace and of each of its nodes; the names are those of the API."""

    PENDING = "PENDING"
    RESERVED = "RESERVED"
    STARTING = "STARTING"
    RUNNING = "RUNNING"
    PAUSING = "PAUSING"
    PAUSED = "PAUSED"
    SUSPENDING = "SUSPENDING"
    SUSPENDED = "SUSPENDED"
    STOPPING = "STOPPING"
    STOPPED = "STOPPED"
    RESUMING = "RESUMING"
    REBOOTING = "REBOOTING"
    SAVING = "SAVING"
    TERMINATING = "TERMINATING"
    TERMINATED = "TERMINATED"
    EXPIRED = "EXPIRED"
    FAILED = "FAILED"

    @property
    def final(self) -> bool:
        """Whether it is one of the three that hold nothing."""
        return self in FINAL

    @property
    def moving(self) -> bool:
        """Whether it moves on by itself (its name ends in -ING and it waits for nothing)."""
        return self in MOVING


FINAL = frozenset({State.TERMINATED, State.EXPIRED, State.FAILED})
MOVING = frozenset(
    {
        State.STARTING,
        State.PAUSING,
        State.SUSPENDING,
        State.STOPPING,
        State.RESUMING,
        State.REBOOTING,
        State.SAVING,
        State.TERMINATING,
    }
)
RESTING = frozenset({State.RUNNING, State.PAUSED, State.SUSPENDED, State.STOPPED})


class Cause(StrEnum):
    """Why the state is what it is."""

    REQUESTED = "REQUESTED"
    LEASE = "LEASE"
    PREEMPTED = "PREEMPTED"
    BACKEND = "BACKEND"
    OPERATOR = "OPERATOR"
    ERROR = "ERROR"


class EndAction(StrEnum):
    """What happens to the nodes when the lease ends."""

    TERMINATE = "TERMINATE"
    SUSPEND = "SUSPEND"
    SAVE = "SAVE"


class NoticeKind(StrEnum):
    """What a notice is about."""

    ENDING = "ENDING"
    PREEMPTION = "PREEMPTION"
    AT_RISK = "AT_RISK"
    STUCK = "STUCK"
    DEGRADED = "DEGRADED"


class ValueKind(StrEnum):
    """Which kind of value a parameter carries; the names are those of the API."""

    STRING = "STRING"
    INT = "INT"
    DOUBLE = "DOUBLE"
    BOOL = "BOOL"
    DURATION = "DURATION"  # float seconds
    TIMESTAMP = "TIMESTAMP"  # RFC 3339 text
    STRING_LIST = "STRING_LIST"


class TypedValue(Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """A parameter's value together with its kind."""

    kind: ValueKind
    value: bool | int | float | str | tuple[str, ...]


class Terms(Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """When capacity is wanted. Nothing set: as soon as possible, for the pool's default duration."""

    start_time: datetime | None = None
    duration: timedelta | None = None
    earliest_start_time: datetime | None = None
    deadline: datetime | None = None
    open_ended: bool = False
    end_action: EndAction = EndAction.TERMINATE
    queue_until: datetime | None = None  # what does not fit may wait until then; None: it is refused
    preemptible: bool = False  # may be made to give way to a lease that is not
    priority: int = 0  # place in the queue, higher first


class Nic(Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """A wanted interface."""

    network: str
    name: str = ""
    addresses: tuple[str, ...] = ()


class Disk(Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """A wanted extra disk: from an image, or blank."""

    image: str = ""
    size_mib: int = 0
    device: str = ""
    read_only: bool = False
    save_as: str = ""


class NodeSet(Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """count identical nodes. `amounts` is what a guest gets: the instance type's with the request's own on top."""

    name: str = ""
    count: int = 1
    min_count: int = 0
    image: str = ""
    instance_type: str = ""
    own_amounts: dict[str, int] = field(default_factory=dict)  # as asked, beside the instance type
    amounts: dict[str, int] = field(default_factory=dict)
    user_data: bytes = b""
    ssh_public_keys: tuple[str, ...] = ()
    nics: tuple[Nic, ...] = ()
    disks: tuple[Disk, ...] = ()
    host_selector: dict[str, tuple[str, ...]] = field(default_factory=dict)
    placement: Placement | None = None
    pool: str = ""
    save_as: str = ""

    @property
    def networks(self) -> dict[str, int]:
        """Addresses one node takes, by network."""
        taken: dict[str, int] = {}
        for nic in self.nics:
            taken[nic.network] = taken.get(nic.network, 0) + max(1, len(nic.addresses))
        return taken


class SeenNic(Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """An interface as the backend showed it."""

    network: str
    name: str = ""
    addresses: tuple[str, ...] = ()
    mac: str = ""


class Node(Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """One VM of a workspace.

    `held` and `pool_held` are what it takes of its host and of its pool (overhead included) while it holds anything.
    `target_host` is a second host it holds while it moves there.
    """

    index: int
    set_index: int
    pool: str
    host: str
    held: dict[str, int]
    pool_held: dict[str, int]
    state: State
    cause: Cause = Cause.REQUESTED
    backend_id: str = ""
    released: bool = False  # seen to have let go of cpu, memory and extras
    target_host: str = ""
    saved: bool = False  # its disk was saved under END_ACTION SAVE
    failed_hosts: tuple[str, ...] = ()  # hosts that could not start it, during its first start
    nics: tuple[SeenNic, ...] = ()
    observe_time: datetime | None = None
    last_error: Failure | None = None


class Notice(Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """Something its owner should know in time; it stays until it no longer holds."""

    kind: NoticeKind
    time: datetime
    due_time: datetime | None = None
    message: str = ""


class Preemption(Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """A lease that has to give way: its room belongs to another from `free_time` on.

    It is told at `notice_time`, and begins to let go at `begin_time` so that it has done so in time. `by` is the uid
    of the workspace it gives way to.
    """

    by: str
    notice_time: datetime
    begin_time: datetime
    free_time: datetime


def without(notices: tuple[Notice, ...], kind: NoticeKind) -> tuple[Notice, ...]:
    """Notices but those of a kind."""
    return tuple(notice for notice in notices if notice.kind is not kind)


class Workspace(Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """A lease of one or more VMs, placed all or nothing."""

    uid: str
    tenant: str
    id: str
    create_time: datetime
    node_sets: tuple[NodeSet, ...]
    terms: Terms
    state: State
    nodes: tuple[Node, ...]
    display_name: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    pool: str = ""  # the pool of the sets that name none
    requested_pool: str = ""
    parameters: dict[str, TypedValue] = field(default_factory=dict)
    optional_parameters: tuple[str, ...] = ()
    ignored_parameters: tuple[str, ...] = ()
    initial_state: State = State.RUNNING
    cause: Cause = Cause.REQUESTED
    start_time: datetime | None = None  # when its capacity is, or was, due
    prepare_time: datetime | None = None
    actual_start_time: datetime | None = None
    end_time: datetime | None = None
    final_time: datetime | None = None
    last_error: Failure | None = None
    notices: tuple[Notice, ...] = ()
    revision: int = 0
    ensemble: str = ""  # the id of the ensemble it is, or was, placed with
    waiting_since: datetime | None = None  # set while it waits for capacity, in the queue
    preemption: Preemption | None = None  # set while its room is promised to another
    preempted_time: datetime | None = None  # since when its lease stands still

    @property
    def name(self) -> str:
        """Its full resource name."""
        return f"tenants/{self.tenant}/workspaces/{self.id}"

    @property
    def etag(self) -> str:
        """Changes with every change of the workspace."""
        return f"r{self.revision}"

    @property
    def started(self) -> bool:
        """Whether its first start has succeeded."""
        return self.actual_start_time is not None

    @property
    def awaits_seal(self) -> bool:
        """Whether it has no place yet because its ensemble is not sealed."""
        return bool(self.ensemble) and self.state is State.PENDING and not self.nodes and self.waiting_since is None

    def lease_over(self, now: datetime) -> bool:
        """Whether its end has come. While it gives way its lease stands still, but not past its deadline."""
        end = self.end_time if self.preempted_time is None else self.terms.deadline
        return end is not None and end <= now and not self.state.final

    @property
    def held_until(self) -> datetime | None:
        """Until when it holds its capacity: its end, or when it has to give way."""
        if self.preemption is None:
            return self.end_time
        return self.preemption.free_time if self.end_time is None else min(self.end_time, self.preemption.free_time)

    def node_set(self, node: Node) -> NodeSet:
        """The set a node belongs to."""
        return self.node_sets[node.set_index]


NodeKey = tuple[str, int]
"""(workspace uid, node index)."""


class Task(Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """What is under way on one node: a row, committed before each step is tried.

    `position` counts the steps the backend has accepted; past the last one the task waits until the node is seen to
    be where the action leads. `attempt` counts tries of the present step, from 1. `unsure`: a try may have been
    carried out, so the node is looked for before the step is tried again.
    """

    uid: str
    index: int
    pool: str
    action: str
    steps: tuple[str, ...]
    position: int = 0
    attempt: int = 0
    unsure: bool = False
    create_time: datetime
    deadline: datetime | None  # None: goes on until it is done
    next_attempt_time: datetime | None = None
    last_error: Failure | None = None
    cause: Cause = Cause.REQUESTED
    force: bool = False
    back_to: State | None = None  # SAVING: the state it came from
    final_state: State = State.TERMINATED  # TERMINATE: where it ends
    image_name: str = ""
    device: str = ""
    terminate_after: bool = False

    @property
    def key(self) -> NodeKey:
        """The node it is about; a node has one task at most."""
        return (self.uid, self.index)

    @property
    def step(self) -> str | None:
        """The step to try next, or None when all are accepted."""
        return self.steps[self.position] if self.position < len(self.steps) else None


class EnsembleState(StrEnum):
    """Whether an ensemble takes workspaces; the names are those of the API."""

    OPEN = "OPEN"
    SEALED = "SEALED"
    CANCELLED = "CANCELLED"


class Ensemble(Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """Several workspaces placed together, all or none.

    `workspaces` are the uids of all that were added, in that order; once it is closed, of those it was closed with.
    """

    uid: str
    tenant: str
    id: str
    create_time: datetime
    expire_time: datetime  # cancelled if still open then
    state: EnsembleState = EnsembleState.OPEN
    cause: Cause = Cause.REQUESTED
    workspaces: tuple[str, ...] = ()
    close_time: datetime | None = None  # when it was sealed or cancelled
    revision: int = 0

    @property
    def name(self) -> str:
        """Its full resource name."""
        return f"tenants/{self.tenant}/ensembles/{self.id}"

    @property
    def open(self) -> bool:
        """Whether it takes workspaces, and can be sealed or cancelled."""
        return self.state is EnsembleState.OPEN


class RequestRecord(Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """An answered request id: which workspace or ensemble it made or changed, and a hash of all that was asked."""

    tenant: str
    method: str
    request_id: str
    digest: str
    uid: str
    time: datetime

    @property
    def key(self) -> tuple[str, str, str]:
        """Its scope and id."""
        return (self.tenant, self.method, self.request_id)
