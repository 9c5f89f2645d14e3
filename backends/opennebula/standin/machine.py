"""The VM state machine: for each call, from where, through which states, to where.

Responsible for the states and for the table of transitions as recorded. Invariant: a state in `through`
is one no other route starts from, so a VM on its way refuses every action but `recover`. Does not move
any VM; `lifecycle` walks the routes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, NamedTuple


class State(IntEnum):
    INIT = 0
    PENDING = 1
    HOLD = 2
    ACTIVE = 3
    STOPPED = 4
    SUSPENDED = 5
    DONE = 6
    POWEROFF = 8
    UNDEPLOYED = 9
    CLONING = 10
    CLONING_FAILURE = 11


class Lcm(IntEnum):
    LCM_INIT = 0
    PROLOG = 1
    BOOT = 2
    RUNNING = 3
    MIGRATE = 4
    SAVE_STOP = 5
    SAVE_SUSPEND = 6
    SAVE_MIGRATE = 7
    PROLOG_MIGRATE = 8
    PROLOG_RESUME = 9
    EPILOG_STOP = 10
    EPILOG = 11
    SHUTDOWN = 12
    CLEANUP_RESUBMIT = 15
    UNKNOWN = 16
    HOTPLUG = 17
    SHUTDOWN_POWEROFF = 18
    BOOT_UNKNOWN = 19
    BOOT_POWEROFF = 20
    BOOT_SUSPENDED = 21
    BOOT_STOPPED = 22
    CLEANUP_DELETE = 23
    HOTPLUG_SNAPSHOT = 24
    HOTPLUG_NIC = 25
    HOTPLUG_SAVEAS = 26
    HOTPLUG_SAVEAS_POWEROFF = 27
    SHUTDOWN_UNDEPLOY = 29
    EPILOG_UNDEPLOY = 30
    PROLOG_UNDEPLOY = 31
    BOOT_UNDEPLOY = 32
    BOOT_MIGRATE = 35
    BOOT_FAILURE = 36
    PROLOG_MIGRATE_POWEROFF = 43
    DISK_SNAPSHOT = 57
    DISK_RESIZE = 62
    HOTPLUG_RESIZE = 66


class HostState(IntEnum):
    INIT = 0
    MONITORED = 2
    ERROR = 3
    DISABLED = 4
    OFFLINE = 8


class ImageState(IntEnum):
    READY = 1
    USED = 2
    LOCKED = 4
    USED_PERS = 8


class HistoryAction(IntEnum):
    """HISTORY/ACTION as far as it was seen."""

    NONE = 0
    MIGRATE = 1
    LIVE_MIGRATE = 2
    UNDEPLOY = 5
    UNDEPLOY_HARD = 6
    STOP = 9
    SUSPEND = 10
    DELETE = 13
    POWEROFF = 19
    POWEROFF_HARD = 20
    DISK_ATTACH = 21
    DISK_DETACH = 22
    NIC_ATTACH = 23
    NIC_DETACH = 24
    TERMINATE = 27
    TERMINATE_HARD = 28
    DISK_RESIZE = 29
    RESIZE = 35
    MONITOR = 44
    POWEROFF_MIGRATE = 48


class Place(NamedTuple):
    """Where a VM is; the LCM state only counts when it is ACTIVE."""

    state: State
    lcm: Lcm = Lcm.LCM_INIT

    @property
    def label(self) -> str:
        return self.lcm.name if self.state is State.ACTIVE else self.state.name


PENDING: Final = Place(State.PENDING)
HOLD: Final = Place(State.HOLD)
RUNNING: Final = Place(State.ACTIVE, Lcm.RUNNING)
UNKNOWN: Final = Place(State.ACTIVE, Lcm.UNKNOWN)
BOOT_FAILURE: Final = Place(State.ACTIVE, Lcm.BOOT_FAILURE)
STOPPED: Final = Place(State.STOPPED)
SUSPENDED: Final = Place(State.SUSPENDED)
POWEROFF: Final = Place(State.POWEROFF)
UNDEPLOYED: Final = Place(State.UNDEPLOYED)
DONE: Final = Place(State.DONE)

SETTLED: Final[Mapping[str, Place]] = {
    place.label: place
    for place in (
        PENDING,
        HOLD,
        RUNNING,
        UNKNOWN,
        BOOT_FAILURE,
        STOPPED,
        SUSPENDED,
        POWEROFF,
        UNDEPLOYED,
        DONE,
    )
}
WAITING: Final = frozenset({PENDING, HOLD})
# A VM in one of these has given its host back.
OFF_HOST: Final = frozenset({PENDING, HOLD, STOPPED, UNDEPLOYED, DONE})


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One way through the machine; `fails_to` is where a failing driver leaves the VM."""

    through: tuple[Lcm, ...] = ()
    to: Place
    action: HistoryAction = HistoryAction.NONE
    driver: str = ""
    fails_to: Place | None = None


# What the hypervisor does for us, and can fail at.
DRIVERS: Final = frozenset({"DEPLOY", "SAVE", "SHUTDOWN"})


def _save(through: tuple[Lcm, ...], to: Place, action: HistoryAction) -> Route:
    return Route(through=through, to=to, action=action, driver="SAVE", fails_to=RUNNING)


def _shutdown(through: tuple[Lcm, ...], to: Place, action: HistoryAction) -> Route:
    return Route(through=through, to=to, action=action, driver="SHUTDOWN", fails_to=RUNNING)


def _boot(*through: Lcm) -> Route:
    return Route(through=through, to=RUNNING, driver="DEPLOY", fails_to=BOOT_FAILURE)


def _poweroff(action: HistoryAction) -> dict[Place, Route]:
    return {RUNNING: _shutdown((Lcm.SHUTDOWN_POWEROFF,), POWEROFF, action)}


def _undeploy(action: HistoryAction) -> dict[Place, Route]:
    return {
        RUNNING: _shutdown((Lcm.SHUTDOWN_UNDEPLOY, Lcm.EPILOG_UNDEPLOY), UNDEPLOYED, action),
        POWEROFF: Route(through=(Lcm.EPILOG_UNDEPLOY,), to=UNDEPLOYED, action=action),
    }


def _terminate(action: HistoryAction) -> dict[Place, Route]:
    epilog = Route(through=(Lcm.EPILOG,), to=DONE, action=action)
    at_once = Route(to=DONE, action=action)
    return {
        PENDING: at_once,
        HOLD: at_once,
        RUNNING: _shutdown((Lcm.SHUTDOWN, Lcm.EPILOG), DONE, action),
        SUSPENDED: epilog,
        POWEROFF: epilog,
        STOPPED: epilog,
        UNDEPLOYED: epilog,
    }


_STAY: Final = {RUNNING: Route(to=RUNNING)}

# one.vm.action: name -> from -> route
ACTIONS: Final[Mapping[str, Mapping[Place, Route]]] = {
    "hold": {PENDING: Route(to=HOLD)},
    "release": {HOLD: Route(to=PENDING)},
    "suspend": {RUNNING: _save((Lcm.SAVE_SUSPEND,), SUSPENDED, HistoryAction.SUSPEND)},
    "stop": {
        RUNNING: _save((Lcm.SAVE_STOP, Lcm.EPILOG_STOP), STOPPED, HistoryAction.STOP),
        SUSPENDED: Route(through=(Lcm.EPILOG_STOP,), to=STOPPED, action=HistoryAction.STOP),
    },
    "poweroff": _poweroff(HistoryAction.POWEROFF),
    "poweroff-hard": _poweroff(HistoryAction.POWEROFF_HARD),
    "undeploy": _undeploy(HistoryAction.UNDEPLOY),
    "undeploy-hard": _undeploy(HistoryAction.UNDEPLOY_HARD),
    "resume": {
        SUSPENDED: _boot(Lcm.BOOT_SUSPENDED),
        POWEROFF: _boot(Lcm.BOOT_POWEROFF),
        UNKNOWN: _boot(Lcm.BOOT_UNKNOWN),
        STOPPED: Route(to=PENDING),
        UNDEPLOYED: Route(to=PENDING),
    },
    "reboot": _STAY,
    "reboot-hard": _STAY,
    "resched": _STAY,
    "unresched": _STAY,
    "terminate": _terminate(HistoryAction.TERMINATE),
    "terminate-hard": _terminate(HistoryAction.TERMINATE_HARD),
}

# one.vm.deploy: what was kept of an earlier life -> route
DEPLOY: Final[Mapping[State | None, Route]] = {
    None: _boot(Lcm.LCM_INIT, Lcm.PROLOG, Lcm.BOOT),
    State.STOPPED: _boot(Lcm.LCM_INIT, Lcm.PROLOG_RESUME, Lcm.BOOT_STOPPED),
    State.UNDEPLOYED: _boot(Lcm.LCM_INIT, Lcm.PROLOG_UNDEPLOY, Lcm.BOOT_UNDEPLOY),
}
DEPLOYABLE: Final = frozenset({PENDING, HOLD, STOPPED, UNDEPLOYED})

MIGRATE_LIVE: Final = Route(through=(Lcm.MIGRATE,), to=RUNNING, action=HistoryAction.LIVE_MIGRATE)
MIGRATE_SAVE: Final = Route(
    through=(Lcm.SAVE_MIGRATE, Lcm.PROLOG_MIGRATE, Lcm.BOOT_MIGRATE), to=RUNNING, action=HistoryAction.MIGRATE
)
MIGRATE_POWEROFF: Final = Route(
    through=(Lcm.SAVE_MIGRATE, Lcm.PROLOG_MIGRATE, Lcm.BOOT),
    to=RUNNING,
    action=HistoryAction.POWEROFF_MIGRATE,
)
MIGRATE_OFF: Final = Route(through=(Lcm.PROLOG_MIGRATE_POWEROFF,), to=POWEROFF, action=HistoryAction.MIGRATE)

RETRY_BOOT: Final = _boot(Lcm.BOOT)
DELETE: Final = Route(through=(Lcm.CLEANUP_DELETE,), to=DONE, action=HistoryAction.DELETE)
RECREATE: Final = Route(through=(Lcm.CLEANUP_RESUBMIT,), to=PENDING)
FORGET: Final = Route(to=DONE)
# The hypervisor says the VM is off although nobody asked.
FOUND_OFF: Final = Route(through=(Lcm.SHUTDOWN_POWEROFF,), to=POWEROFF, action=HistoryAction.MONITOR)


def hotplug(lcm: Lcm, back_to: Place = RUNNING, action: HistoryAction = HistoryAction.NONE) -> Route:
    """A change to a VM that comes back to where it was."""
    return Route(through=(lcm,), to=back_to, action=action)
