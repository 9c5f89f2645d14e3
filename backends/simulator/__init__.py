"""The simulator: `check` and `create` for the broker, and what tests reach into it with.

Nothing else of the package is meant to be imported from outside. A pool's settings, all but `hosts` optional:

    shared_disk = 2_000_000             # MiB: disk belongs to the pool, hosts have none of their own
    images = ["debian-12", { name = "big", size_mib = 20_480, attributes = { arch = "x86_64" } }]  # unset: any name
    networks = [{ name = "net", addresses = 250, subnet = "192.0.2.0/24" }]                        # unset: any name
    enforce_capacity = true             # a full host refuses; false where the broker overcommits
    delays = { deploy = "20s", suspend = "5s" }  # by step: how long until it is done; unset: at once
    latency = "50ms"                    # how long each call takes
    capabilities = ["STOP", "REBOOT"]   # unset: all but CONSOLE and MANAGE_HOSTS
    world = "lab"                       # VMs live on in this process for whoever names the same world
    state_file = "lab.jsonl"            # VMs live on when the process is killed
    hosts = [{ count = 4, name = "lab", cpu = 8000, memory = 16_384, extra = { "example.com/gpu" = 2 } }]
    faults = [{ step = "allocate", kind = "lost_answer", every = 3, count = 2 }]
    parameters = [{ key = "sim:speed", kind = "INT", description = "for tests" }]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from backends.base import BackendContext, SettingProblem
from backends.simulator.adapter import Simulator
from backends.simulator.by_hand import ByHand
from backends.simulator.settings import Fault, FaultKind, read
from backends.simulator.world import Machine, World

__all__ = ["ByHand", "Fault", "FaultKind", "Machine", "Simulator", "World", "check", "create"]


def check(settings: Mapping[str, object]) -> Sequence[SettingProblem]:
    """Names every bad or unknown key."""
    return read(settings)[1]


def create(settings: Mapping[str, object], context: BackendContext) -> Simulator:
    """Makes a simulated pool. Raises ValueError where `check` has something to say."""
    values, problems = read(settings)
    if problems:
        raise ValueError("; ".join(f"{problem.key}: {problem.message}" for problem in problems))
    return Simulator(values, context)
