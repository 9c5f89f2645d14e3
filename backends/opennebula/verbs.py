"""The steps: which call carries out which, what it may be asked of, and what its refusal means.

Responsible for performing each step so that doing it twice does no harm. Invariants: a refusal for the VM's
state is believed only after a look at the VM; nothing is ended or resumed whose tag is not that of the node;
two calls that take capacity on one host never overlap.

It keeps no state of a VM and waits for none: a step is over when the front-end has accepted it.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from backends.base import (
    BackendError,
    BackendRejected,
    Identity,
    NodeSpec,
    Observation,
    Step,
    StepCall,
)
from backends.opennebula import parameters, states, template
from backends.opennebula.documents import Disk, Vm
from backends.opennebula.failures import Code, NotYet, RefusedByFrontEnd
from backends.opennebula.frontend import FrontEnd
from backends.opennebula.goals import GOALS, Look, Verdict, judge
from backends.opennebula.names import Directory
from backends.opennebula.rpc import Argument, Rpc
from backends.opennebula.states import Lcm, State

_RECOVER_RETRY: Final = 2
_RECOVER_DELETE: Final = 3
_NEWEST_SNAPSHOT: Final = -1

# The action of one.vm.action for a step, without and with force.
ACTIONS: Final[Mapping[Step, tuple[str, str]]] = {
    Step.SUSPEND: ("suspend", "suspend"),
    Step.SUSPEND_RELEASE: ("stop", "stop"),
    Step.STOP: ("poweroff", "poweroff-hard"),
    Step.STOP_RELEASE: ("undeploy", "undeploy-hard"),
    Step.RESUME: ("resume", "resume"),
    Step.START: ("resume", "resume"),
    Step.REBOOT: ("reboot", "reboot-hard"),
    Step.TERMINATE: ("terminate", "terminate-hard"),
}


TAKING_ROOM: Final = frozenset({Step.DEPLOY, Step.MIGRATE, Step.LIVE_MIGRATE})
"""The front-end checks a host's room when it answers and takes it later: its check means something only if one call at
a time takes room there. What may be promised, the broker's slot table alone decides. Whoever asks keeps to turns by
himself, so that none waits here with a place among the calls at once; the lock holds for anybody else."""


class Verbs:
    """Performs steps on one front-end."""

    def __init__(self, rpc: Rpc, front: FrontEnd, directory: Directory, datastore: int) -> None:
        self._rpc = rpc
        self._front = front
        self._directory = directory
        self._datastore = datastore
        self._host_locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def perform(self, call: StepCall) -> str:
        """Performs a step and returns the VM's id."""
        if call.step is Step.ALLOCATE:
            return call.backend_id or await self._allocate(call.node)
        if call.step is Step.TERMINATE:
            return await self._terminate(call)
        handler = self._handlers().get(call.step)
        if handler is None:
            raise BackendRejected(f"OpenNebula has no step {call.step}")
        await handler(call, _number(call))
        return call.backend_id

    def _handlers(self) -> Mapping[Step, Callable[[StepCall, int], Awaitable[None]]]:
        return {
            Step.DEPLOY: self._deploy,
            Step.RESUME: self._come_back,
            Step.START: self._come_back,
            Step.SUSPEND: self._act,
            Step.SUSPEND_RELEASE: self._act,
            Step.STOP: self._act,
            Step.STOP_RELEASE: self._act,
            Step.REBOOT: self._act,
            Step.SAVE: self._save,
            Step.MIGRATE: self._migrate,
            Step.LIVE_MIGRATE: self._migrate,
        }

    async def _allocate(self, node: NodeSpec) -> str:
        if node.start_paused:
            raise BackendRejected("OpenNebula cannot start a VM paused: it has no such action")
        given = parameters.read(node.parameters)
        images = await self._directory.images({node.image, *(disk.image for disk in node.disks)} - {""})
        networks = await self._directory.networks({nic.network for nic in node.nics})
        text = template.build(node, given, images, networks)
        try:
            # On hold, so that OpenNebula's scheduler leaves the VM to the deploy that follows.
            if given.template is None:
                return str(await self._rpc.call_int("one.vm.allocate", text, True))
            return str(
                await self._rpc.call_int("one.template.instantiate", given.template, node.name, True, text, False)
            )
        except RefusedByFrontEnd:
            self._directory.forget()
            raise

    async def _deploy(self, call: StepCall, vm_id: int) -> None:
        chosen = parameters.read(call.node.parameters).datastore
        store = self._datastore if chosen is None else chosen
        await self._on_host(call, vm_id, call.node.host, "one.vm.deploy", lambda host_id: (host_id, True, store))

    async def _migrate(self, call: StepCall, vm_id: int) -> None:
        live = call.step is Step.LIVE_MIGRATE
        await self._on_host(call, vm_id, call.target_host, "one.vm.migrate", lambda host_id: (host_id, live, True))

    async def _on_host(
        self, call: StepCall, vm_id: int, host: str, method: str, arguments: Callable[[int], tuple[Argument, ...]]
    ) -> None:
        """A call that takes room on a host, always with enforce=true.

        Enforcing costs nothing of ours, because the slot table never promises more than there is, and it
        keeps us from taking what a stranger's VM took since the last inventory.
        """
        async with self._host_locks[host]:
            host_id = await self._directory.host_id(host)
            try:
                await self._rpc.call_int(method, vm_id, *arguments(host_id))
            except RefusedByFrontEnd as refusal:
                if refusal.code == Code.NO_EXISTS and "host" in str(refusal).lower():
                    self._directory.forget()
                    raise BackendRejected(str(refusal), host_fault=True) from refusal
                await self._settle(call, vm_id, host, refusal)

    async def _act(self, call: StepCall, vm_id: int) -> None:
        soft, hard = ACTIONS[call.step]
        try:
            await self._rpc.call_int("one.vm.action", hard if call.force else soft, vm_id)
        except RefusedByFrontEnd as refusal:
            await self._settle(call, vm_id, "", refusal)

    async def _come_back(self, call: StepCall, vm_id: int) -> None:
        """Resume and start: looks first, because from STOPPED the same action would choose another host."""
        vm = await self._known(vm_id, call.node.identity)
        look = Look(vm=vm)
        if look.ready(GOALS[call.step]):
            await self._act(call, vm_id)
        elif vm.state in (State.STOPPED, State.UNDEPLOYED):
            raise BackendRejected(
                f"VM {vm_id} is {states.word(vm.state, vm.lcm)} and has given its host back: it comes back by a deploy"
            )
        else:
            why = BackendRejected(f"OpenNebula cannot {call.step} VM {vm_id}")
            await self._judged(call, look, why)

    async def _settle(self, call: StepCall, vm_id: int, host: str, refusal: RefusedByFrontEnd) -> None:
        """Looks at the VM after a refusal; returns if what was wanted is so, raises the right kind if not."""
        if refusal.code != Code.ACTION:
            raise refusal
        vm = await self._known(vm_id, call.node.identity)
        await self._judged(call, Look(vm=vm, host=host), refusal)

    async def _judged(self, call: StepCall, look: Look, refusal: BackendError) -> None:
        vm = look.vm
        text = f"{refusal}; the VM is in {states.word(vm.state, vm.lcm)}"
        match judge(call.step, look):
            case Verdict.DONE:
                return
            case Verdict.RECOVER:
                await self._rpc.call_int("one.vm.recover", vm.vm_id, _RECOVER_RETRY)
            case Verdict.RETRY:
                raise NotYet(f"{text}: to be tried again once it has settled") from refusal
            case Verdict.HOST:
                raise BackendRejected(text, host_fault=True) from refusal
            case Verdict.NEVER:
                raise BackendRejected(text) from refusal

    async def _terminate(self, call: StepCall) -> str:
        """Ends a VM in whatever state it is: the only step that also looks for a VM by its identity."""
        vm = await self._to_end(call)
        if vm is None:
            return call.backend_id
        for _ in range(2):  # the VM may move between the look and the call, once
            if _is_ending(vm, call.force) or await self._ended(vm, call.force):
                return str(vm.vm_id)
            vm = await self._known(vm.vm_id, call.node.identity)
        raise NotYet(
            f"OpenNebula ends no VM in {states.word(vm.state, vm.lcm)}: VM {vm.vm_id} is to be tried again once it "
            "has settled, or with force"
        )

    async def _ended(self, vm: Vm, force: bool) -> bool:
        """Sends the call that ends a VM in its state; False if it was refused for that state."""
        try:
            if _takes_recover_only(vm, force):
                await self._rpc.call_int("one.vm.recover", vm.vm_id, _RECOVER_DELETE)
            else:
                await self._rpc.call_int("one.vm.action", ACTIONS[Step.TERMINATE][force], vm.vm_id)
        except RefusedByFrontEnd as refusal:
            if refusal.code not in (Code.NO_EXISTS, Code.ACTION):
                raise
            return refusal.code == Code.NO_EXISTS
        return True

    async def _to_end(self, call: StepCall) -> Vm | None:
        if call.backend_id:
            vm = await self._front.vm(_number(call))
            return None if vm is None else _same(vm, call.node.identity)
        return oldest(await self._front.vms(), call.node.identity)

    async def _save(self, call: StepCall, vm_id: int) -> None:
        name = template.check_name(call.image_name)
        vm = await self._known(vm_id, call.node.identity)
        disk = _disk(vm, call.device)
        try:
            await self._rpc.call_int("one.vm.disksaveas", vm_id, disk.disk_id, name, "", _NEWEST_SNAPSHOT)
        except RefusedByFrontEnd as refusal:
            # No image says which VM it came from. The broker asks for a name that was free, so one that is taken at a
            # second try was taken by the first.
            if not (call.repeated and refusal.code == Code.ALLOCATE):
                await self._settle(call, vm_id, "", refusal)

    async def _known(self, vm_id: int, identity: Identity) -> Vm:
        vm = await self._front.vm(vm_id)
        if vm is None:
            raise BackendRejected(f"OpenNebula has no VM {vm_id}")
        return _same(vm, identity)


def oldest(vms: tuple[Vm, ...], identity: Identity) -> Vm | None:
    """The VM of an identity; of several the oldest, which has the lowest id."""
    return min((vm for vm in vms if vm.identity == identity), key=lambda vm: vm.vm_id, default=None)


def _is_ending(vm: Vm, force: bool) -> bool:
    """Gone, or on its way out; whoever insists is not content with a guest that was asked to shut down."""
    if vm.state == State.ACTIVE:
        return vm.lcm == Lcm.CLEANUP_DELETE or (vm.lcm in states.ENDING and not force)
    return vm.state == State.DONE


def _takes_recover_only(vm: Vm, force: bool) -> bool:
    """Both terminates are refused while a VM is on its way or has failed there; recover(delete) never is.

    It asks no guest, so it is for a VM that has none, and in the other states in between for whoever insists.
    """
    if vm.state != State.ACTIVE:
        return False
    seen = states.observation(vm.state, vm.lcm)
    return vm.lcm in states.STARTING or seen is Observation.BROKEN or (force and seen is Observation.BUSY)


def _same(vm: Vm, identity: Identity) -> Vm:
    """Ids come again after a front-end was set up anew: a VM with another tag is somebody else's."""
    if vm.identity != identity:
        raise BackendRejected(
            f"VM {vm.vm_id} ({vm.name}) does not bear the tag of node {identity.node_index} of workspace "
            f"{identity.workspace_uid}: it is left alone"
        )
    return vm


def _number(call: StepCall) -> int:
    if not call.backend_id.isdecimal():
        raise BackendRejected(f'step {call.step} needs a VM\'s id and got "{call.backend_id}"')
    return int(call.backend_id)


def _disk(vm: Vm, device: str) -> Disk:
    """The disk of a device or disk id; without one the first that came from an image, else the first."""
    if device:
        fitting = [disk for disk in vm.disks if device in (disk.target, str(disk.disk_id))]
    else:
        fitting = [disk for disk in vm.disks if disk.image_id] or list(vm.disks)
    if not fitting:
        have = ", ".join(disk.target or str(disk.disk_id) for disk in vm.disks) or "none"
        raise BackendRejected(f'VM {vm.vm_id} has no disk "{device}"; it has: {have}')
    return fitting[0]
