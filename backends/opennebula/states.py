"""OpenNebula's numbers for VM and host states, and what the broker takes them for.

Responsible for the whole table of STATE and LCM_STATE, failure states too, of 5.x to 7.x. Invariant: every
pair has exactly one observation, and a number from a later version is BUSY and says so in its word. It looks
at no document.

OpenNebula's words are not ours: its SUSPENDED and STOPPED are both our SUSPENDED (capacity kept, released),
its POWEROFF and UNDEPLOYED both our OFF.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from typing import Final

from backends.base import HostState, Observation


class State(IntEnum):
    """STATE of a VM."""

    INIT = 0
    PENDING = 1
    HOLD = 2
    ACTIVE = 3  # only here does LCM_STATE count
    STOPPED = 4
    SUSPENDED = 5
    DONE = 6
    FAILED = 7  # before 5.0
    POWEROFF = 8
    UNDEPLOYED = 9
    CLONING = 10
    CLONING_FAILURE = 11


class Lcm(IntEnum):
    """LCM_STATE of an ACTIVE VM."""

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
    CANCEL = 13
    FAILURE = 14
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
    HOTPLUG_SAVEAS_SUSPENDED = 28
    SHUTDOWN_UNDEPLOY = 29
    EPILOG_UNDEPLOY = 30
    PROLOG_UNDEPLOY = 31
    BOOT_UNDEPLOY = 32
    HOTPLUG_PROLOG_POWEROFF = 33
    HOTPLUG_EPILOG_POWEROFF = 34
    BOOT_MIGRATE = 35
    BOOT_FAILURE = 36
    BOOT_MIGRATE_FAILURE = 37
    PROLOG_MIGRATE_FAILURE = 38
    PROLOG_FAILURE = 39
    EPILOG_FAILURE = 40
    EPILOG_STOP_FAILURE = 41
    EPILOG_UNDEPLOY_FAILURE = 42
    PROLOG_MIGRATE_POWEROFF = 43
    PROLOG_MIGRATE_POWEROFF_FAILURE = 44
    PROLOG_MIGRATE_SUSPEND = 45
    PROLOG_MIGRATE_SUSPEND_FAILURE = 46
    BOOT_UNDEPLOY_FAILURE = 47
    BOOT_STOPPED_FAILURE = 48
    PROLOG_RESUME_FAILURE = 49
    PROLOG_UNDEPLOY_FAILURE = 50
    DISK_SNAPSHOT_POWEROFF = 51
    DISK_SNAPSHOT_REVERT_POWEROFF = 52
    DISK_SNAPSHOT_DELETE_POWEROFF = 53
    DISK_SNAPSHOT_SUSPENDED = 54
    DISK_SNAPSHOT_REVERT_SUSPENDED = 55
    DISK_SNAPSHOT_DELETE_SUSPENDED = 56
    DISK_SNAPSHOT = 57
    DISK_SNAPSHOT_REVERT = 58
    DISK_SNAPSHOT_DELETE = 59
    PROLOG_MIGRATE_UNKNOWN = 60
    PROLOG_MIGRATE_UNKNOWN_FAILURE = 61
    DISK_RESIZE = 62
    DISK_RESIZE_POWEROFF = 63
    DISK_RESIZE_UNDEPLOYED = 64
    HOTPLUG_NIC_POWEROFF = 65
    HOTPLUG_RESIZE = 66
    HOTPLUG_SAVEAS_UNDEPLOYED = 67
    HOTPLUG_SAVEAS_STOPPED = 68
    BACKUP = 69
    BACKUP_POWEROFF = 70
    RESTORE = 71


STATE_TABLE: Final[Mapping[State, Observation]] = {
    State.INIT: Observation.BUSY,
    State.PENDING: Observation.BUSY,
    State.HOLD: Observation.BUSY,
    State.STOPPED: Observation.SUSPENDED,
    State.SUSPENDED: Observation.SUSPENDED,
    State.DONE: Observation.ABSENT,
    State.FAILED: Observation.BROKEN,
    State.POWEROFF: Observation.OFF,
    State.UNDEPLOYED: Observation.OFF,
    State.CLONING: Observation.BUSY,
    State.CLONING_FAILURE: Observation.BROKEN,
}

# The guest runs on meanwhile. MIGRATE and HOTPLUG_SAVEAS are not here although it runs in them: while a live
# migration is under way the document names the new host already, and a save that looked like RUNNING would
# look finished. Both are BUSY until they are over.
_RUNS_ON: Final = frozenset(
    {
        Lcm.RUNNING,
        Lcm.HOTPLUG,
        Lcm.HOTPLUG_SNAPSHOT,
        Lcm.HOTPLUG_NIC,
        Lcm.DISK_SNAPSHOT,
        Lcm.DISK_SNAPSHOT_REVERT,
        Lcm.DISK_SNAPSHOT_DELETE,
        Lcm.DISK_RESIZE,
        Lcm.HOTPLUG_RESIZE,
        Lcm.BACKUP,
    }
)


def _lcm_observation(lcm: Lcm) -> Observation:
    if lcm in _RUNS_ON:
        return Observation.RUNNING
    if lcm.name.endswith("FAILURE"):
        return Observation.BROKEN
    return Observation.SILENT if lcm is Lcm.UNKNOWN else Observation.BUSY


LCM_TABLE: Final[Mapping[Lcm, Observation]] = {lcm: _lcm_observation(lcm) for lcm in Lcm}

STARTING: Final = frozenset(
    {
        Lcm.LCM_INIT,
        Lcm.PROLOG,
        Lcm.BOOT,
        Lcm.PROLOG_RESUME,
        Lcm.BOOT_UNKNOWN,
        Lcm.BOOT_POWEROFF,
        Lcm.BOOT_SUSPENDED,
        Lcm.BOOT_STOPPED,
        Lcm.PROLOG_UNDEPLOY,
        Lcm.BOOT_UNDEPLOY,
    }
)
"""On the way to RUNNING: a terminate is refused here, and only recover(delete) ends the VM."""

ENDING: Final = frozenset({Lcm.EPILOG, Lcm.SHUTDOWN, Lcm.CANCEL, Lcm.CLEANUP_DELETE})
"""On the way to DONE."""

MIGRATING: Final = frozenset(
    {
        Lcm.MIGRATE,
        Lcm.SAVE_MIGRATE,
        Lcm.PROLOG_MIGRATE,
        Lcm.BOOT_MIGRATE,
        Lcm.PROLOG_MIGRATE_POWEROFF,
        Lcm.PROLOG_MIGRATE_SUSPEND,
        Lcm.PROLOG_MIGRATE_UNKNOWN,
    }
)

_HOLDS_HOST: Final = frozenset({State.ACTIVE, State.SUSPENDED, State.POWEROFF})


def observation(state: int, lcm: int) -> Observation:
    """What a pair of numbers means to the broker; a number it does not know changes nothing."""
    if state == State.ACTIVE:
        return LCM_TABLE[Lcm(lcm)] if lcm in LCM_TABLE else Observation.BUSY
    return STATE_TABLE[State(state)] if state in STATE_TABLE else Observation.BUSY


def word(state: int, lcm: int) -> str:
    """OpenNebula's own word for a pair."""
    if state == State.ACTIVE:
        return Lcm(lcm).name if lcm in LCM_TABLE else f"LCM_STATE {lcm}, unknown to this broker"
    return State(state).name if state in STATE_TABLE else f"STATE {state}, unknown to this broker"


def holds_host(state: int) -> bool:
    """Whether a VM in this state is counted on its host: suspended and powered off ones are, stopped ones
    not.
    """
    return state in _HOLDS_HOST


_HOST_TABLE: Final[Mapping[int, tuple[HostState, str]]] = {
    0: (HostState.DISABLED, "INIT: it has not reported yet"),
    1: (HostState.ACTIVE, "MONITORING_MONITORED"),
    2: (HostState.ACTIVE, "MONITORED"),
    3: (HostState.LOST, "ERROR"),
    4: (HostState.DISABLED, "DISABLED"),
    5: (HostState.LOST, "MONITORING_ERROR"),
    6: (HostState.DISABLED, "MONITORING_INIT: it has not reported yet"),
    7: (HostState.DISABLED, "MONITORING_DISABLED"),
    8: (HostState.DISABLED, "OFFLINE"),
}


def host_state(state: int) -> tuple[HostState, str]:
    """What a host's STATE means, and OpenNebula's word for it; an unknown one takes no new VMs."""
    return _HOST_TABLE.get(state, (HostState.DISABLED, f"STATE {state}, unknown to this broker"))
