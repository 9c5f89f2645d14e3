"""What each step is after, so that a refusal can be judged by a look at the VM.

Responsible for the answer to "it was refused: is it done already, on its way, worth another try, or
impossible?". A front-end refuses a repeated action with one and the same code (2048) as an impossible one. It
calls nobody.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from backends.base import Observation, Step
from backends.opennebula import states
from backends.opennebula.documents import Vm
from backends.opennebula.states import Lcm, State


class Verdict(StrEnum):
    """What a refused step amounts to."""

    DONE = "done"  # reached, or under way
    RETRY = "retry"  # the VM is on its way somewhere, or moved meanwhile: the same call may work yet
    RECOVER = "recover"  # it failed on the way to where the step leads: the front-end's own recovery
    HOST = "host"  # the VM is ready for it, so it is the host that was refused
    NEVER = "never"


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """`states` and `lcms` mean reached or under way; from `ready` the front-end takes the call."""

    states: frozenset[State] = frozenset()
    lcms: frozenset[Lcm] = frozenset()
    ready: frozenset[State] = frozenset()
    from_running: bool = False
    recovers: bool = False
    wants_host: bool = False


_RUNS: Final = frozenset(lcm for lcm, seen in states.LCM_TABLE.items() if seen is Observation.RUNNING)

GOALS: Final[Mapping[Step, Goal]] = {
    Step.DEPLOY: Goal(
        lcms=states.STARTING | _RUNS,
        ready=frozenset({State.PENDING, State.HOLD, State.STOPPED, State.UNDEPLOYED}),
        recovers=True,
        wants_host=True,
    ),
    Step.SUSPEND: Goal(
        states=frozenset({State.SUSPENDED, State.STOPPED}),
        lcms=frozenset({Lcm.SAVE_SUSPEND, Lcm.SAVE_STOP, Lcm.EPILOG_STOP}),
        from_running=True,
    ),
    Step.SUSPEND_RELEASE: Goal(
        states=frozenset({State.STOPPED}),
        lcms=frozenset({Lcm.SAVE_STOP, Lcm.EPILOG_STOP}),
        ready=frozenset({State.SUSPENDED}),
        from_running=True,
    ),
    Step.STOP: Goal(
        states=frozenset({State.POWEROFF, State.UNDEPLOYED}),
        lcms=frozenset({Lcm.SHUTDOWN_POWEROFF, Lcm.SHUTDOWN_UNDEPLOY, Lcm.EPILOG_UNDEPLOY}),
        from_running=True,
    ),
    Step.STOP_RELEASE: Goal(
        states=frozenset({State.UNDEPLOYED}),
        lcms=frozenset({Lcm.SHUTDOWN_UNDEPLOY, Lcm.EPILOG_UNDEPLOY}),
        ready=frozenset({State.POWEROFF}),
        from_running=True,
    ),
    # One action brings both back; only from these two does it stay on the host. From STOPPED and UNDEPLOYED
    # the same action would hand the VM to OpenNebula's scheduler, so that it is never sent there.
    Step.RESUME: Goal(
        lcms=_RUNS | {Lcm.BOOT_SUSPENDED, Lcm.BOOT_POWEROFF},
        ready=frozenset({State.SUSPENDED, State.POWEROFF}),
        recovers=True,
    ),
    Step.START: Goal(
        lcms=_RUNS | {Lcm.BOOT_SUSPENDED, Lcm.BOOT_POWEROFF},
        ready=frozenset({State.SUSPENDED, State.POWEROFF}),
        recovers=True,
    ),
    Step.REBOOT: Goal(from_running=True),
    Step.SAVE: Goal(
        lcms=frozenset(
            {
                Lcm.HOTPLUG_SAVEAS,
                Lcm.HOTPLUG_SAVEAS_POWEROFF,
                Lcm.HOTPLUG_SAVEAS_SUSPENDED,
                Lcm.HOTPLUG_SAVEAS_UNDEPLOYED,
                Lcm.HOTPLUG_SAVEAS_STOPPED,
            }
        ),
        ready=frozenset({State.POWEROFF, State.SUSPENDED, State.UNDEPLOYED, State.STOPPED}),
        from_running=True,
    ),
    Step.MIGRATE: Goal(
        states=frozenset({State.POWEROFF, State.SUSPENDED}),
        lcms=states.MIGRATING | _RUNS,
        ready=frozenset({State.POWEROFF, State.SUSPENDED}),
        from_running=True,
        wants_host=True,
    ),
    Step.LIVE_MIGRATE: Goal(
        lcms=states.MIGRATING | _RUNS,
        from_running=True,
        wants_host=True,
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """A VM as it was found when a step was refused, or before it is sent; `host` is the one the step wants."""

    vm: Vm
    host: str = ""
    seen: Observation = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "seen", states.observation(self.vm.state, self.vm.lcm))

    def reached(self, goal: Goal) -> bool:
        if goal.wants_host and self.vm.host != self.host:
            return False
        if self.vm.state == State.ACTIVE:
            return self.vm.lcm in goal.lcms
        return self.vm.state in goal.states

    def ready(self, goal: Goal) -> bool:
        return self.vm.state in goal.ready or (goal.from_running and self.seen is Observation.RUNNING)


def judge(step: Step, look: Look) -> Verdict:
    """What it means that this step was refused for a VM that looks like this."""
    goal = GOALS[step]
    if look.reached(goal):
        return Verdict.DONE
    if look.ready(goal):
        return Verdict.HOST if goal.wants_host else Verdict.RETRY
    if look.seen is Observation.BROKEN and goal.recovers and look.host in ("", look.vm.host):
        return Verdict.RECOVER
    return Verdict.RETRY if look.seen in (Observation.BUSY, Observation.SILENT) else Verdict.NEVER
