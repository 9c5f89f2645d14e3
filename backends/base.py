"""The one file a backend is written against: what it is asked, what it answers, how it fails.

A backend translates the verbs of one kind of pool (OpenNebula, libvirt, a simulator) and nothing else. It knows no
broker, keeps no lease and decides no placement: the host of a node is chosen before the backend is called.

Invariants every backend keeps:
- a step may be performed twice without harm;
- a VM it makes carries the node's `Identity`, so that it is found again when an answer was lost;
- every failure is exactly one of `TransientBackendError`, `BackendRejected`, `OutcomeUnknown`;
- "accepted" is not "done": a step returns once the backend took it, and observations tell the rest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from types import MappingProxyType
from typing import Final, Protocol

from msgspec import Struct, field

Amounts = Mapping[str, int]
"""Amounts by resource: "cpu" in milli-cores, "memory" and "disk" in MiB, any other name in its own whole unit."""


class BackendError(Exception):
    """Base of the three kinds; the message says what happened, with the backend's own words and numbers."""


class TransientBackendError(BackendError):
    """Nothing happened at the backend: the very same call may be tried again.

    `answered`: the backend itself is well; it is this node that is not ready for the call.
    """

    answered = False


class BackendRejected(BackendError):
    """The backend understood and refused; the same call will never work. `host_fault`: another host may take it."""

    def __init__(self, message: str, *, host_fault: bool = False) -> None:
        super().__init__(message)
        self.host_fault = host_fault


class OutcomeUnknown(BackendError):
    """The call may have been carried out: look for the node by its identity before trying again."""


class Capability(StrEnum):
    """What a pool can do; the names are those of the API."""

    PAUSE = "PAUSE"
    SUSPEND = "SUSPEND"
    STOP = "STOP"
    REBOOT = "REBOOT"
    SAVE_IMAGE = "SAVE_IMAGE"
    ADVANCE_RESERVATION = "ADVANCE_RESERVATION"
    RELEASE = "RELEASE"
    MIGRATE = "MIGRATE"
    LIVE_MIGRATE = "LIVE_MIGRATE"
    USER_DATA = "USER_DATA"
    STATIC_ADDRESS = "STATIC_ADDRESS"
    CONSOLE = "CONSOLE"
    MANAGE_HOSTS = "MANAGE_HOSTS"


class Observation(StrEnum):
    """What was seen of a node, in eight words; every state an adapter does not know is BUSY."""

    RUNNING = "RUNNING"
    PAUSED = "PAUSED"
    SUSPENDED = "SUSPENDED"  # memory on disk
    OFF = "OFF"  # disk kept
    BUSY = "BUSY"  # in between, or unknown to the adapter
    BROKEN = "BROKEN"  # failed, will not move by itself
    ABSENT = "ABSENT"  # the backend answered that there is none
    SILENT = "SILENT"  # no answer from the backend or the host


class Action(StrEnum):
    """What the broker wants done with a node; a backend answers with the steps it takes."""

    CREATE = "create"
    PAUSE = "pause"
    UNPAUSE = "unpause"
    SUSPEND = "suspend"  # capacity kept
    SUSPEND_RELEASE = "suspend_release"
    RELEASE_SUSPENDED = "release_suspended"  # SUSPENDED and kept, now give the capacity back
    RESUME = "resume"
    RESUME_RELEASED = "resume_released"  # on the host the broker chose
    STOP = "stop"
    STOP_RELEASE = "stop_release"
    RELEASE_STOPPED = "release_stopped"
    START = "start"
    START_RELEASED = "start_released"
    REBOOT = "reboot"
    SAVE = "save"
    MIGRATE = "migrate"
    LIVE_MIGRATE = "live_migrate"
    TERMINATE = "terminate"


class Step(StrEnum):
    """One call to a backend. A task is a sequence of them; backends share the common ones."""

    PROPAGATE = "propagate"
    ALLOCATE = "allocate"
    DEPLOY = "deploy"
    PAUSE = "pause"
    UNPAUSE = "unpause"
    SUSPEND = "suspend"
    SUSPEND_RELEASE = "suspend_release"
    RESUME = "resume"
    STOP = "stop"
    STOP_RELEASE = "stop_release"
    START = "start"
    REBOOT = "reboot"
    SAVE = "save"
    MIGRATE = "migrate"
    LIVE_MIGRATE = "live_migrate"
    TERMINATE = "terminate"
    UNPROPAGATE = "unpropagate"


COMMON_STEPS: Final[Mapping[Action, tuple[Step, ...]]] = MappingProxyType(
    {
        Action.CREATE: (Step.ALLOCATE, Step.DEPLOY),
        Action.PAUSE: (Step.PAUSE,),
        Action.UNPAUSE: (Step.UNPAUSE,),
        Action.SUSPEND: (Step.SUSPEND,),
        Action.SUSPEND_RELEASE: (Step.SUSPEND_RELEASE,),
        Action.RELEASE_SUSPENDED: (Step.SUSPEND_RELEASE,),
        Action.RESUME: (Step.RESUME,),
        # What gave its capacity back is deployed again, to the host that was chosen for it.
        Action.RESUME_RELEASED: (Step.DEPLOY,),
        Action.STOP: (Step.STOP,),
        Action.STOP_RELEASE: (Step.STOP_RELEASE,),
        Action.RELEASE_STOPPED: (Step.STOP_RELEASE,),
        Action.START: (Step.START,),
        Action.START_RELEASED: (Step.DEPLOY,),
        Action.REBOOT: (Step.REBOOT,),
        Action.SAVE: (Step.SAVE,),
        Action.MIGRATE: (Step.MIGRATE,),
        Action.LIVE_MIGRATE: (Step.LIVE_MIGRATE,),
        Action.TERMINATE: (Step.TERMINATE,),
    }
)
"""The steps most backends take; a backend declares its own where it differs, and leaves out what it cannot do."""


UNDO: Final[Mapping[Step, Step | None]] = MappingProxyType(
    {
        Step.PROPAGATE: Step.UNPROPAGATE,
        Step.ALLOCATE: Step.TERMINATE,
        Step.DEPLOY: Step.TERMINATE,
        Step.PAUSE: Step.UNPAUSE,
        Step.UNPAUSE: Step.PAUSE,
        Step.SUSPEND: Step.RESUME,
        Step.SUSPEND_RELEASE: Step.DEPLOY,
        Step.RESUME: Step.SUSPEND,
        Step.STOP: Step.START,
        Step.STOP_RELEASE: Step.DEPLOY,
        Step.START: Step.STOP,
        Step.MIGRATE: Step.MIGRATE,
        Step.LIVE_MIGRATE: Step.LIVE_MIGRATE,
        Step.REBOOT: None,  # leaves nothing behind
        Step.SAVE: None,  # an image that was made is kept
        Step.TERMINATE: None,  # never taken back
        Step.UNPROPAGATE: None,
    }
)
"""The step that takes a step back; None where there is nothing to take back.

What a backend's CREATE makes, its TERMINATE takes back: the contract suite checks it against this table.
"""


class ParameterKind(StrEnum):
    """Which kind of value a scheduler parameter takes; the names are those of the API."""

    STRING = "STRING"
    INT = "INT"
    DOUBLE = "DOUBLE"
    BOOL = "BOOL"
    DURATION = "DURATION"
    TIMESTAMP = "TIMESTAMP"
    STRING_LIST = "STRING_LIST"


ParameterValue = str | int | float | bool | tuple[str, ...]
"""A parameter's value: durations arrive as float seconds, timestamps as RFC 3339 text, lists as tuples of str."""


class ParameterSpec(Struct, frozen=True, kw_only=True):
    """One scheduler parameter a pool understands, or refuses by name; `key` is "namespace:name"."""

    key: str
    kind: ParameterKind
    description: str
    required: bool = False
    refused: str = ""  # why the pool refuses a key that a user may well try, and what to use instead


class Identity(Struct, frozen=True, kw_only=True):
    """Whose VM this is: what the tag on every VM carries. A workspace's uid is never used again, its name may be."""

    broker_id: str
    workspace_uid: str
    node_index: int


class NicSpec(Struct, frozen=True, kw_only=True):
    """A network interface to make: `network` as the pool's inventory names it."""

    network: str
    name: str = ""
    addresses: tuple[str, ...] = ()


class DiskSpec(Struct, frozen=True, kw_only=True):
    """An extra disk: from an image, or blank of `size_mib` MiB."""

    image: str = ""
    size_mib: int = 0
    device: str = ""
    read_only: bool = False


class NodeSpec(Struct, frozen=True, kw_only=True):
    """Everything a backend needs to make one node, on the host the broker chose."""

    identity: Identity
    name: str  # for people; not unique at the backend
    host: str
    amounts: Amounts  # what the guest gets, without the pool's overhead
    image: str = ""
    nics: tuple[NicSpec, ...] = ()
    disks: tuple[DiskSpec, ...] = ()
    user_data: bytes = b""
    ssh_public_keys: tuple[str, ...] = ()
    parameters: Mapping[str, ParameterValue] = field(default_factory=dict)
    start_paused: bool = False


class StepCall(Struct, frozen=True, kw_only=True):
    """One step to perform on one node."""

    step: Step
    node: NodeSpec
    backend_id: str = ""  # empty before ALLOCATE
    force: bool = False  # do not ask the guest
    target_host: str = ""  # MIGRATE and LIVE_MIGRATE
    image_name: str = ""  # SAVE: the image to make
    device: str = ""  # SAVE: which disk; empty: the boot disk
    repeated: bool = False  # an earlier try of this very step may have been carried out


class ObservedNic(Struct, frozen=True, kw_only=True):
    """An interface as the backend shows it."""

    network: str
    addresses: tuple[str, ...] = ()
    mac: str = ""
    name: str = ""


class ObservedNode(Struct, frozen=True, kw_only=True):
    """A VM that bears an identity, as the backend shows it. `detail` is the backend's own word for its state."""

    identity: Identity
    backend_id: str
    observation: Observation
    host: str = ""  # empty where it is on none
    detail: str = ""
    message: str = ""  # why, where the backend says so
    amounts: Amounts = field(default_factory=dict)
    nics: tuple[ObservedNic, ...] = ()


class HostState(StrEnum):
    """What the backend says of a host."""

    ACTIVE = "ACTIVE"
    DISABLED = "DISABLED"  # taken out by the backend's operator, or it has not reported yet
    LOST = "LOST"  # does not answer


AttributeValue = str | int | float | bool | tuple[str, ...]


class ObservedHost(Struct, frozen=True, kw_only=True):
    """A host. `total` is what VMs may be promised: the backend's own reserve is taken off already."""

    name: str
    state: HostState
    total: Amounts
    foreign: Amounts = field(default_factory=dict)  # held by VMs that bear no identity of this broker
    attributes: Mapping[str, AttributeValue] = field(default_factory=dict)
    message: str = ""


class ObservedImage(Struct, frozen=True, kw_only=True):
    """A bootable image; `attributes` such as "arch" and "hypervisor" must match a host's."""

    name: str
    display_name: str = ""
    ready: bool = True
    size_mib: int = 0
    attributes: Mapping[str, AttributeValue] = field(default_factory=dict)


class ObservedNetwork(Struct, frozen=True, kw_only=True):
    """A network with its addresses; total None means as many as asked for."""

    name: str
    display_name: str = ""
    total_addresses: int | None = None
    foreign_addresses: int = 0  # held by VMs that bear no identity of this broker, or set aside


class Inventory(Struct, frozen=True, kw_only=True):
    """One complete look at a backend.

    `images` None: the backend takes any name. `pool_totals`: resources that belong to the pool and not to a host,
    such as "disk" on a shared datastore, with what others hold of them in `pool_foreign`. `warnings`: what an
    operator should know, such as a session that may not read hosts.
    """

    hosts: tuple[ObservedHost, ...]
    nodes: tuple[ObservedNode, ...]  # every VM that bears this broker's id
    images: tuple[ObservedImage, ...] | None = None
    networks: tuple[ObservedNetwork, ...] | None = None  # None: any name
    pool_totals: Amounts = field(default_factory=dict)
    pool_foreign: Amounts = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


class BackendClock(Protocol):
    """The time a backend lives in; the broker hands in its own."""

    def now(self) -> datetime:
        """The wall clock, UTC."""

    def monotonic(self) -> float:
        """Seconds that never go back."""

    async def sleep(self, seconds: float) -> None:
        """Waits that long on this clock."""


class BackendContext(Struct, frozen=True, kw_only=True):
    """What the broker tells a backend at its creation."""

    pool: str
    broker_id: str
    clock: BackendClock
    base_directory: str = "."  # relative file names in settings start here


class Backend(Protocol):
    """One pool's hypervisors. All methods may be called concurrently and are cancelled when a pool stops."""

    @property
    def capabilities(self) -> frozenset[Capability]:
        """What it can do; constant for its life."""

    @property
    def parameter_specs(self) -> Sequence[ParameterSpec]:
        """The scheduler parameters it understands."""

    @property
    def in_turn(self) -> frozenset[Step]:
        """Steps of which a host takes one at a time. They wait for their turn before they count among the calls at
        once, so that a host's queue does not keep the others waiting."""

    def steps(self, action: Action) -> tuple[Step, ...]:
        """The steps this kind of backend takes for an action (its request factory); empty: it cannot."""

    async def open(self) -> None:
        """Gets ready; need not reach the backend yet."""

    async def close(self) -> None:
        """Lets go of connections; called once."""

    async def inventory(self) -> Inventory:
        """Reads hosts, nodes, images and networks. Raises BackendError and then answers nothing at all."""

    async def observe(self) -> Sequence[ObservedNode]:
        """Reads the state of every VM that bears this broker's id, in as few calls as one document takes.

        A VM missing from the answer is not ABSENT: ask with `find`.
        """

    async def find(self, identity: Identity, backend_id: str = "") -> ObservedNode:
        """Looks for this very VM, by `backend_id` if it is known, else by identity; ABSENT if there is none.

        With several VMs of one identity (a create whose answer was lost and that was repeated by hand), the
        oldest is answered.
        """

    async def perform(self, call: StepCall) -> str:
        """Performs one step and returns the VM's backend id once the backend has accepted it.

        DEPLOY and the like return before the VM runs; TERMINATE of a VM that is gone is no error.
        """


class SettingProblem(Struct, frozen=True, kw_only=True):
    """A bad key of a pool's settings: `key` is relative to the pool, "hosts[0].cpu"."""

    key: str
    message: str


class BackendFactory(Protocol):
    """What an entry point of the group "workspace_broker.backends" names: a module or object with both."""

    def check(self, settings: Mapping[str, object]) -> Sequence[SettingProblem]:
        """Names every bad or unknown key of a pool's settings, all at once; touches nothing."""

    def create(self, settings: Mapping[str, object], context: BackendContext) -> Backend:
        """Makes the backend of one pool; settings have passed `check`."""
