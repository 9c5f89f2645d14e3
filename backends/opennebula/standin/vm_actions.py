"""one.vm.* that move VMs: action, deploy, migrate, resize, recover.

Responsible for what is checked before a VM is sent on its way. Invariant: true means accepted; the VM
moves after the answer. With enforce the capacity is looked at before the call's latency and taken after
it, so parallel deploys overbook a host, as on a real front-end. The machine's table says what may be done.
"""

from __future__ import annotations

from typing import Final

from backends.opennebula.standin import quotas
from backends.opennebula.standin.errors import Refusal
from backends.opennebula.standin.frontend import Request
from backends.opennebula.standin.machine import (
    ACTIONS,
    BOOT_FAILURE,
    DELETE,
    DEPLOY,
    DEPLOYABLE,
    DONE,
    FORGET,
    MIGRATE_LIVE,
    MIGRATE_OFF,
    MIGRATE_POWEROFF,
    MIGRATE_SAVE,
    POWEROFF,
    RECREATE,
    RETRY_BOOT,
    RUNNING,
    WAITING,
    HistoryAction,
    HostState,
    Lcm,
    Route,
    State,
    hotplug,
)
from backends.opennebula.standin.permissions import Right
from backends.opennebula.standin.registry import Deferred, Reply, method
from backends.opennebula.standin.state import Host, Vm
from backends.opennebula.standin.template import TemplateError, parse_template, whole
from backends.opennebula.standin.vm_methods import is_positive

_ADMIN_ACTIONS: Final = frozenset({"resched", "unresched"})
_RESIZABLE: Final = WAITING | {POWEROFF, RUNNING}
_SUCCESS, _RETRY, _DELETE, _RECREATE, _FORGET = 1, 2, 3, 4, 5


@method("one.vm.action", str, int)
def vm_action(request: Request, name: str, vm_id: int) -> Reply:
    """Perform an action on a Virtual Machine"""
    routes = ACTIONS.get(name)
    if routes is None:
        raise Refusal(Refusal.ACTION, f'Action "{name}" is not supported')
    vm = request.vm(vm_id, Right.ADMIN if name in _ADMIN_ACTIONS else Right.MANAGE)
    terminates = name.startswith("terminate")
    if terminates and vm.place == DONE:
        return vm_id
    route = routes.get(vm.place)
    if route is None:
        why = f"This action is not available for state {vm.place.label}"
        if terminates:
            why = f"Could not terminate VM {vm_id}, wrong state {vm.place.label}."
        raise Refusal(Refusal.ACTION, f'Error performing action "{name}": {why}')
    before = vm.place

    def apply() -> int:
        # Of several truly simultaneous ones all are accepted and one has an effect.
        if vm.place == before:
            _act(request, vm, name, route)
        return vm_id

    return Deferred(apply=apply)


def _act(request: Request, vm: Vm, name: str, route: Route) -> None:
    if name in ("resched", "unresched"):
        vm.resched = name == "resched"
    elif route.to != vm.place:
        request.lifecycle.start(vm, route, request.asker)


@method("one.vm.deploy", int, int, optional=(False, -1, ""))
def vm_deploy(request: Request, vm_id: int, host_id: int, enforce: bool, datastore_id: int, _extra: str) -> Reply:
    """Deploy a Virtual Machine"""
    world = request.world
    vm = request.find(world.vms, vm_id)
    host = request.find(world.hosts, host_id)
    if datastore_id != -1 and not request.find(world.datastores, datastore_id).is_system:
        raise Refusal(
            Refusal.INTERNAL,
            f"Trying to use datastore [{datastore_id}] to deploy the VM, but it is not of type system datastore.",
        )
    request.vm(vm_id, Right.ADMIN)
    _check_deployable(vm)
    chosen = _target_datastore(request, host, datastore_id)
    if enforce:
        _check_fits(request, vm, host)

    def apply() -> int:
        _check_deployable(vm)  # of parallel deploys of one VM exactly one wins
        request.lifecycle.start(vm, DEPLOY[_kept(vm)], request.asker, target=host, datastore_id=chosen)
        return vm_id

    return Deferred(apply=apply)


def _kept(vm: Vm) -> State | None:
    return vm.place.state if vm.place.state in DEPLOY else vm.kept


def _check_deployable(vm: Vm) -> None:
    if vm.place not in DEPLOYABLE:
        raise Refusal(Refusal.ACTION, f"Deploy action is not available for state {vm.place.label}")


def _target_datastore(request: Request, host: Host, datastore_id: int) -> int:
    if host.state is HostState.OFFLINE:
        raise Refusal(Refusal.ACTION, "Host is offline, cannot use it to deploy VM")
    available = request.world.system_datastores(host.cluster_id)
    if datastore_id == -1:
        if not available:
            raise Refusal(Refusal.ACTION, f"cluster [{host.cluster_id}] does not have any datastore of type SYSTEM_DS.")
        return available[0]
    if datastore_id not in available:
        raise Refusal(
            Refusal.ACTION,
            f"datastore [{datastore_id}] and host [{host.id}] are not in the same cluster [{host.cluster_id}].",
        )
    return datastore_id


def _check_fits(request: Request, vm: Vm, host: Host) -> None:
    why = request.world.shortage(host, vm.cpu, vm.memory)
    if why:
        raise Refusal(Refusal.ACTION, f"virtual machine [{vm.id}] does not fit in host [{host.id}]. {why}")


@method("one.vm.migrate", int, int, bool, optional=(False, -1, 0))
def vm_migrate(
    request: Request, vm_id: int, host_id: int, live: bool, enforce: bool, datastore_id: int, kind: int
) -> Reply:
    """Migrate a Virtual Machine"""
    vm = request.find(request.world.vms, vm_id)
    host = request.find(request.world.hosts, host_id)
    request.vm(vm_id, Right.ADMIN)
    if vm.place not in (RUNNING, POWEROFF):
        raise Refusal(Refusal.ACTION, f"Migrate action is not available for state {vm.place.label}")
    current = vm.history[-1]
    chosen = _target_datastore(request, host, datastore_id)
    if (current.host_id, current.datastore_id) == (host.id, chosen):
        raise Refusal(Refusal.ACTION, f"VM is already running on host [{host.id}] and datastore [{chosen}]")
    if enforce and current.host_id != host.id:
        _check_fits(request, vm, host)
    if vm.place == POWEROFF:
        route = MIGRATE_OFF
    elif live:
        route = MIGRATE_LIVE
    else:
        route = MIGRATE_POWEROFF if kind == 1 else MIGRATE_SAVE
    request.lifecycle.start(vm, route, request.asker, target=host, datastore_id=chosen)
    return vm_id


@method("one.vm.resize", int, str, optional=(False,))
def vm_resize(request: Request, vm_id: int, text: str, enforce: bool) -> Reply:
    """Change the capacity of a Virtual Machine"""
    vm = request.vm(vm_id, Right.MANAGE)
    if vm.place not in _RESIZABLE:
        raise Refusal(Refusal.ACTION, f"Resize action is not available for state {vm.place.label}")
    wanted = _capacity(text)
    _check_quota(request, vm, wanted)
    host = request.lifecycle.current_host(vm)
    if host is not None and (enforce or not request.is_admin):
        _check_grows(request, vm, host, wanted)

    def grow() -> None:
        for name, value in wanted.items():
            vm.template.set(name, value)

    if vm.place == RUNNING:
        route = hotplug(Lcm.HOTPLUG_RESIZE, RUNNING, HistoryAction.RESIZE)
        request.lifecycle.start(vm, route, request.asker)
    elif vm.place == POWEROFF:
        request.lifecycle.record_resize_when_off(vm, request.asker)
    grow()
    return vm_id


def _capacity(text: str) -> dict[str, str]:
    """What a resize asks for; text that is no number, and a text that is no template, ask for nothing."""
    try:
        given = parse_template(text)
    except TemplateError:
        return {}
    wanted = {name: value for name in ("MEMORY", "VCPU") if whole(value := given.get(name))}
    if is_positive(given.get("CPU")):
        wanted["CPU"] = given.get("CPU")
    return wanted


def _check_quota(request: Request, vm: Vm, wanted: dict[str, str]) -> None:
    world = request.world
    owner = world.users.get(vm.uid)
    if owner is None:
        return
    cpu = float(wanted.get("CPU", vm.template.get("CPU"))) - float(vm.template.get("CPU"))
    memory = float(wanted.get("MEMORY", vm.template.get("MEMORY"))) - float(vm.template.get("MEMORY"))
    quotas.check(world, request.user, owner, world.groups[vm.gid], quotas.amounts_of(cpu, memory, 0))


def _check_grows(request: Request, vm: Vm, host: Host, wanted: dict[str, str]) -> None:
    used_cpu, used_memory = request.world.used(host)
    free_cpu, free_memory = host.max_cpu - used_cpu + vm.cpu, host.max_mem - used_memory + vm.memory
    cpu = int(float(wanted.get("CPU", "0")) * 100 + 1e-9)
    memory = int(float(wanted.get("MEMORY", "0")) * 1024)
    if cpu > free_cpu:
        raise Refusal(Refusal.ACTION, f"Not enough CPU: {cpu}/{free_cpu}")
    if memory > free_memory:
        raise Refusal(Refusal.ACTION, f"Not enough memory: {memory}/{free_memory}")


@method("one.vm.recover", int, int)
def vm_recover(request: Request, vm_id: int, operation: int) -> Reply:
    """Recover a Virtual Machine"""
    vm = request.vm(vm_id, Right.ADMIN)
    if operation not in (_SUCCESS, _RETRY, _DELETE, _RECREATE, _FORGET):
        raise Refusal(Refusal.ACTION, "Wrong recovery operation code")
    settles = operation in (_DELETE, _FORGET) and vm.place != DONE  # these get rid of it wherever it is
    if vm.place.state is not State.ACTIVE and not settles:
        raise Refusal(
            Refusal.ACTION,
            f"Could not perform a recover operation on VM {vm_id}, wrong state {vm.place.label}.",
        )
    route: Route | None = None
    if operation == _DELETE:
        route = DELETE if vm.history else FORGET
    elif operation == _RECREATE:
        route = RECREATE
    elif operation == _FORGET:
        route = FORGET
    elif vm.place == BOOT_FAILURE:
        route = Route(to=RUNNING) if operation == _SUCCESS else RETRY_BOOT
    if route is not None:
        request.lifecycle.start(vm, route, request.asker)
    return vm_id
