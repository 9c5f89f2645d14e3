"""The whole table of states, written down a second time, and what numbers nobody knows yet amount to."""

from __future__ import annotations

import pyone
import pytest

from backends.base import HostState, Observation
from backends.opennebula import states
from backends.opennebula.states import Lcm, State

R, S, O = Observation.RUNNING, Observation.SUSPENDED, Observation.OFF  # noqa: E741
B, X, A, Q = Observation.BUSY, Observation.BROKEN, Observation.ABSENT, Observation.SILENT

STATES = {
    (0, "INIT"): B,
    (1, "PENDING"): B,
    (2, "HOLD"): B,
    (4, "STOPPED"): S,
    (5, "SUSPENDED"): S,
    (6, "DONE"): A,
    (7, "FAILED"): X,
    (8, "POWEROFF"): O,
    (9, "UNDEPLOYED"): O,
    (10, "CLONING"): B,
    (11, "CLONING_FAILURE"): X,
}

LCM_STATES = {
    (0, "LCM_INIT"): B,
    (1, "PROLOG"): B,
    (2, "BOOT"): B,
    (3, "RUNNING"): R,
    (4, "MIGRATE"): B,
    (5, "SAVE_STOP"): B,
    (6, "SAVE_SUSPEND"): B,
    (7, "SAVE_MIGRATE"): B,
    (8, "PROLOG_MIGRATE"): B,
    (9, "PROLOG_RESUME"): B,
    (10, "EPILOG_STOP"): B,
    (11, "EPILOG"): B,
    (12, "SHUTDOWN"): B,
    (13, "CANCEL"): B,
    (14, "FAILURE"): X,
    (15, "CLEANUP_RESUBMIT"): B,
    (16, "UNKNOWN"): Q,
    (17, "HOTPLUG"): R,
    (18, "SHUTDOWN_POWEROFF"): B,
    (19, "BOOT_UNKNOWN"): B,
    (20, "BOOT_POWEROFF"): B,
    (21, "BOOT_SUSPENDED"): B,
    (22, "BOOT_STOPPED"): B,
    (23, "CLEANUP_DELETE"): B,
    (24, "HOTPLUG_SNAPSHOT"): R,
    (25, "HOTPLUG_NIC"): R,
    (26, "HOTPLUG_SAVEAS"): B,
    (27, "HOTPLUG_SAVEAS_POWEROFF"): B,
    (28, "HOTPLUG_SAVEAS_SUSPENDED"): B,
    (29, "SHUTDOWN_UNDEPLOY"): B,
    (30, "EPILOG_UNDEPLOY"): B,
    (31, "PROLOG_UNDEPLOY"): B,
    (32, "BOOT_UNDEPLOY"): B,
    (33, "HOTPLUG_PROLOG_POWEROFF"): B,
    (34, "HOTPLUG_EPILOG_POWEROFF"): B,
    (35, "BOOT_MIGRATE"): B,
    (36, "BOOT_FAILURE"): X,
    (37, "BOOT_MIGRATE_FAILURE"): X,
    (38, "PROLOG_MIGRATE_FAILURE"): X,
    (39, "PROLOG_FAILURE"): X,
    (40, "EPILOG_FAILURE"): X,
    (41, "EPILOG_STOP_FAILURE"): X,
    (42, "EPILOG_UNDEPLOY_FAILURE"): X,
    (43, "PROLOG_MIGRATE_POWEROFF"): B,
    (44, "PROLOG_MIGRATE_POWEROFF_FAILURE"): X,
    (45, "PROLOG_MIGRATE_SUSPEND"): B,
    (46, "PROLOG_MIGRATE_SUSPEND_FAILURE"): X,
    (47, "BOOT_UNDEPLOY_FAILURE"): X,
    (48, "BOOT_STOPPED_FAILURE"): X,
    (49, "PROLOG_RESUME_FAILURE"): X,
    (50, "PROLOG_UNDEPLOY_FAILURE"): X,
    (51, "DISK_SNAPSHOT_POWEROFF"): B,
    (52, "DISK_SNAPSHOT_REVERT_POWEROFF"): B,
    (53, "DISK_SNAPSHOT_DELETE_POWEROFF"): B,
    (54, "DISK_SNAPSHOT_SUSPENDED"): B,
    (55, "DISK_SNAPSHOT_REVERT_SUSPENDED"): B,
    (56, "DISK_SNAPSHOT_DELETE_SUSPENDED"): B,
    (57, "DISK_SNAPSHOT"): R,
    (58, "DISK_SNAPSHOT_REVERT"): R,
    (59, "DISK_SNAPSHOT_DELETE"): R,
    (60, "PROLOG_MIGRATE_UNKNOWN"): B,
    (61, "PROLOG_MIGRATE_UNKNOWN_FAILURE"): X,
    (62, "DISK_RESIZE"): R,
    (63, "DISK_RESIZE_POWEROFF"): B,
    (64, "DISK_RESIZE_UNDEPLOYED"): B,
    (65, "HOTPLUG_NIC_POWEROFF"): B,
    (66, "HOTPLUG_RESIZE"): R,
    (67, "HOTPLUG_SAVEAS_UNDEPLOYED"): B,
    (68, "HOTPLUG_SAVEAS_STOPPED"): B,
    (69, "BACKUP"): R,
    (70, "BACKUP_POWEROFF"): B,
    (71, "RESTORE"): B,
}

HOST_STATES = {
    0: HostState.DISABLED,
    1: HostState.ACTIVE,
    2: HostState.ACTIVE,
    3: HostState.LOST,
    4: HostState.DISABLED,
    5: HostState.LOST,
    6: HostState.DISABLED,
    7: HostState.DISABLED,
    8: HostState.DISABLED,
}


@pytest.mark.parametrize(("number", "word"), STATES)
def test_state(number: int, word: str) -> None:
    assert states.observation(number, 0) is STATES[number, word]
    assert states.word(number, 0) == word


@pytest.mark.parametrize(("number", "word"), LCM_STATES)
def test_lcm_state(number: int, word: str) -> None:
    assert states.observation(State.ACTIVE, number) is LCM_STATES[number, word]
    assert states.word(State.ACTIVE, number) == word


def test_both_tables_are_whole() -> None:
    assert {number for number, _ in STATES} | {State.ACTIVE} == set(State)
    assert {number for number, _ in LCM_STATES} == set(Lcm)


def test_numbers_are_those_of_a_foreign_client() -> None:
    assert {entry.name: int(entry) for entry in pyone.LCM_STATE}.items() <= {lcm.name: int(lcm) for lcm in Lcm}.items()
    assert {entry.name: int(entry) for entry in pyone.VM_STATE} == {state.name: int(state) for state in State}


@pytest.mark.parametrize(("state", "lcm"), [(12, 0), (99, 3), (3, 72), (3, 999), (-1, -1)])
def test_a_state_of_the_future_changes_nothing_and_says_so(state: int, lcm: int) -> None:
    assert states.observation(state, lcm) is Observation.BUSY
    assert "unknown to this broker" in states.word(state, lcm)
    assert str(lcm if state == State.ACTIVE else state) in states.word(state, lcm)


def test_lcm_state_counts_only_when_active() -> None:
    assert states.observation(State.POWEROFF, Lcm.RUNNING) is Observation.OFF


@pytest.mark.parametrize("number", HOST_STATES)
def test_host_state(number: int) -> None:
    assert states.host_state(number)[0] is HOST_STATES[number]


def test_a_host_state_of_the_future_takes_nothing_new() -> None:
    state, word = states.host_state(9)
    assert state is HostState.DISABLED
    assert "STATE 9" in word


def test_who_holds_a_host() -> None:
    """As recorded: suspended and powered off VMs are counted on their host, stopped and undeployed ones are not."""
    holding = {state for state in State if states.holds_host(state)}
    assert holding == {State.ACTIVE, State.SUSPENDED, State.POWEROFF}
