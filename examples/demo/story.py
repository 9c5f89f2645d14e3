"""What happens in the demo, step by step; every step ends with a look whether it went as it should.

Each step goes on from the one before. It raises Differs at the first answer that is another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from backends.opennebula.standin import FaultKind
from examples.demo.scene import Scene
from examples.demo.shell import Differs, checked, explain, say

NOT_NOW, NEVER = 3, 4  # exit codes of `workspace`
NODES = ("node-1", "node-2", "node-3", "node-4")
ALLOCATE = "one.vm.allocate"
VM_OF_1_5_GIB = "--cpu 1 --memory 1.5GiB --image debian-12 --duration 2h"

# What OpenNebula shows once a verb is done.
AFTER = {
    "suspend": "SUSPENDED",
    "resume": "ACTIVE RUNNING",
    "stop": "POWEROFF",
    "start": "ACTIVE RUNNING",
    "reboot": "ACTIVE RUNNING",
    "terminate": "DONE",
}


def pools(scene: Scene) -> None:
    """One broker in front of two pools"""
    for pool in ("one", "lab"):  # so that each has been read before it is shown
        scene.shell.read(f"workspace refresh {pool}")
    scene.shell.run("workspace pools")
    scene.shell.run("workspace hosts one")
    found = scene.shell.read("workspace pools")["pools"]
    checked(
        "pool one is the OpenNebula, pool lab the simulated Xen hosts; both answer",
        expected={"one": ("opennebula", "STATE_ACTIVE"), "lab": ("simulator", "STATE_ACTIVE")},
        got={_last(pool["name"]): (pool["backend"], pool["state"]) for pool in found},
    )


def never(scene: Scene) -> None:
    """4 GiB in pool one: NEVER, and why, host by host"""
    line = "workspace create --pool one --cpu 1 --memory 4GiB --image debian-12 --id big"
    scene.shell.run(line, exits=NEVER)
    verdicts = _verdicts(scene.shell.read(line, exits=NEVER))
    checked(
        "refused for good, although the pool as a whole has 8 GiB: no single host has 4",
        expected="OUTCOME_NEVER",
        got=verdicts.get("pools/one", {}).get("outcome"),
    )
    checked(
        "each of the four hosts has its own reason: memory, 4096 MiB asked, 2048 MiB there",
        expected={node: [("memory", 4096, 2048)] for node in NODES},
        got={node: _reasons(verdicts.get(f"pools/one/hosts/{node}", {})) for node in NODES},
    )


def elsewhere(scene: Scene) -> None:
    """The same wish without a pool: it lands where it fits"""
    scene.shell.run("workspace create --cpu 1 --memory 4GiB --image debian-12 --id big --wait")
    node = scene.shell.read("workspace show big")["nodes"][0]
    checked(
        "it runs on a Xen host of 8 GiB in pool lab", expected="pools/lab", got=node["host"].partition("/hosts/")[0]
    )


def group(scene: Scene) -> None:
    """A group of four in pool one: one on each host, all or nothing"""
    scene.shell.run(f"workspace create --pool one --count 4 --placement one-per-host {VM_OF_1_5_GIB} --id group --wait")
    scene.shell.run("workspace show group")
    workspace = scene.shell.read("workspace show group")
    checked(
        "the broker has one VM on each of the four hosts",
        expected=list(NODES),
        got=sorted(_last(node["host"]) for node in workspace["nodes"]),
    )
    vms = scene.opennebula.vms_of(workspace["uid"])
    checked(
        "so has OpenNebula, asked by XML-RPC, and all four VMs run",
        expected=[(node, "ACTIVE RUNNING") for node in NODES],
        got=sorted((vm.host, vm.state) for vm in vms),
    )


def not_now(scene: Scene) -> None:
    """A fifth of that size: NOT NOW, and from when on"""
    line = f"workspace create --pool one {VM_OF_1_5_GIB} --id fifth"
    scene.shell.run(line, exits=NOT_NOW)
    verdict = _verdicts(scene.shell.read(line, exits=NOT_NOW)).get("pools/one", {})
    checked(
        "refused for now only, and the earliest start is the very moment the group's lease ends",
        expected=("OUTCOME_NOT_NOW", scene.shell.read("workspace show group")["endTime"]),
        got=(verdict.get("outcome"), verdict.get("earliestStartTime")),
    )


def life(scene: Scene) -> None:
    """The life of the group, each change seen in OpenNebula"""
    uid = scene.shell.read("workspace show group")["uid"]
    for verb, state in AFTER.items():
        scene.shell.run(f"workspace {verb} group --wait")
        checked(
            f"OpenNebula shows its four VMs {state}",
            expected=[state] * 4,
            got=[vm.state for vm in scene.opennebula.vms_of(uid)],
        )
        if verb == "reboot":  # which leaves no trace in a VM's state
            reboots = [call.outcome for call in scene.standin.calls if call.args[:1] == ("reboot",)]
            checked("OpenNebula was told to reboot each of them, once, and did", expected=["true"] * 4, got=reboots)


def repeated(scene: Scene) -> None:
    """The same request twice, with its request id: one workspace"""
    explain("The group is gone, so there is room for the fifth. Its caller did not hear the answer and asks again:")
    line = f"workspace create --pool one {VM_OF_1_5_GIB} --network lan --request-id order-5 --wait"
    before = len(scene.opennebula.vms())
    scene.shell.run(line)
    first = _uids_in_one(scene)
    checked("there is one workspace in pool one", expected=1, got=len(first))
    scene.shell.run(line)
    checked("it is still the only one, and the same", expected=first, got=_uids_in_one(scene))
    _check_one_more_vm(scene, before, first[0])


def lost_answer(scene: Scene) -> None:
    """OpenNebula makes the VM, but its answer is lost: still exactly one VM"""
    explain("The stand-in now carries out the next one.vm.allocate and closes the connection without an answer.")
    scene.standin.faults.add(FaultKind.DROP_AFTER, ALLOCATE, count=1)
    calls, before = len(scene.standin.calls), len(scene.opennebula.vms())
    scene.shell.run("workspace create --pool one --cpu 1 --memory 512MiB --image debian-12 --id once --wait")
    checked(
        "the answer was lost, and the broker did not call one.vm.allocate again",
        expected=[FaultKind.DROP_AFTER],
        got=[call.outcome for call in scene.standin.calls[calls:] if call.method == ALLOCATE],
    )
    _check_one_more_vm(scene, before, scene.shell.read("workspace show once")["uid"])
    strays = scene.shell.read("workspace strays one")["strays"]
    checked("the broker knows of no VM that belongs to no workspace", expected=[], got=strays)


def _check_one_more_vm(scene: Scene, before: int, workspace_uid: str) -> None:
    vms = scene.opennebula.vms()
    checked(
        "OpenNebula has exactly one VM more than before; it bears the tag of this workspace and runs",
        expected=[(workspace_uid, "ACTIVE RUNNING")],
        got=[(vm.workspace, vm.state) for vm in vms[before:]],
    )


def _uids_in_one(scene: Scene) -> list[str]:
    return [workspace["uid"] for workspace in scene.shell.read("workspace list --pool one")["workspaces"]]


STEPS: tuple[Callable[[Scene], None], ...] = (
    pools,
    never,
    elsewhere,
    group,
    not_now,
    life,
    repeated,
    lost_answer,
)


class StepFailed(Exception):
    """A step that did not go as it should; says which, and what was different."""


def tell(scene: Scene) -> None:
    """Plays every step. Raises StepFailed at the first that differs."""
    for number, step in enumerate(STEPS, start=1):
        title = f"{number} of {len(STEPS)}: {step.__doc__}"
        say(f"\n=== {title}")
        try:
            step(scene)
        except Differs as difference:
            raise StepFailed(f"step {title}\n{difference}") from difference


def _last(name: str) -> str:
    return name.rpartition("/")[2]


def _verdicts(status: Mapping[str, Any]) -> dict[str, Any]:
    """The verdicts in a refusal, by the pool or host they are about."""
    details: Iterable[Mapping[str, Any]] = status["details"]
    return {verdict["resourceName"]: verdict for detail in details for verdict in detail.get("verdicts", [])}


def _reasons(verdict: Mapping[str, Any]) -> list[tuple[str, int, int]]:
    reasons = verdict.get("reasons", [])
    return [(reason["resource"], int(reason["requested"]), int(reason["available"])) for reason in reasons]
