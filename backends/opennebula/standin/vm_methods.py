"""one.vm.* and one.vmpool.* that make, show and describe VMs.

Responsible for what a VM's template must hold, for the pools' filters and for what may be written about
a VM. Invariant: a refused allocate takes no id, no lease and no image. Moves no VM; `vm_actions` does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from backends.opennebula.standin import devices, quotas, vm_documents
from backends.opennebula.standin.errors import Refusal
from backends.opennebula.standin.frontend import Request
from backends.opennebula.standin.machine import HOLD, PENDING, State
from backends.opennebula.standin.permissions import OwnedT, Right, allowed
from backends.opennebula.standin.registry import Reply, method
from backends.opennebula.standin.state import Lock, Owned, User, Vm, World
from backends.opennebula.standin.template import Template, TemplateError, parse_template, whole

# What the daemon keeps under TEMPLATE; everything else is the user's.
_DEVICES: Final = frozenset(
    (
        *("CPU", "MEMORY", "VCPU", "MEMORY_MAX", "VCPU_MAX", "CPU_MODEL", "TOPOLOGY", "NUMA_NODE"),
        *("DISK", "NIC", "NIC_ALIAS", "NIC_DEFAULT", "GRAPHICS", "VIDEO", "INPUT", "PCI"),
        *("CONTEXT", "OS", "FEATURES", "RAW", "HYPERV_OPTIONS", "EMULATOR", "TEMPLATE_ID", "VROUTER_ID"),
    )
)
_RESTRICTED: Final = frozenset({"CPU_COST", "MEMORY_COST", "DISK_COST", "EMULATOR", "USER_PRIORITY"})
_BAD_IN_NAME: Final = "&|:;\\/'#{}$<>\"`"
_NAME_MAX: Final = 128
_CPU_MAX: Final = 1e12
_LAST_STATE: Final = 11


def checked_name(name: str, code: int) -> str:
    for char in name:
        if char in _BAD_IN_NAME:
            raise Refusal(code, f"Invalid NAME, char '{char}' is not allowed")
    if len(name) > _NAME_MAX:
        raise Refusal(code, f"Invalid NAME, max length is {_NAME_MAX} chars")
    return name


def read_template(text: str, code: int) -> Template:
    try:
        return parse_template(text)
    except TemplateError as error:
        raise Refusal(code, str(error)) from error


def is_positive(text: str) -> bool:
    try:
        return 0 < float(text) < _CPU_MAX
    except ValueError:
        return False


def _check_capacity(template: Template) -> None:
    if not whole(template.get("MEMORY")):
        raise Refusal(Refusal.INTERNAL, "MEMORY attribute must be a positive integer value.")
    if not is_positive(template.get("CPU")):
        raise Refusal(Refusal.INTERNAL, "CPU attribute must be a positive float or integer value.")
    if "VCPU" in template and not whole(template.get("VCPU")):
        raise Refusal(Refusal.INTERNAL, "VCPU attribute must be a positive integer value.")


def restricted_attribute(user: User, template: Template) -> str | None:
    if user.gid == 0:
        return None
    return next((name for name in template.names() if name in _RESTRICTED), None)


def allocate(request: Request, given: Template, hold: bool, lease_code: int = Refusal.INTERNAL) -> int:
    """Make a VM of a template."""
    user, world = request.user, request.world
    if user.gid not in world.creators and not request.is_admin:
        request.admin_only("CREATE VM")
    restricted = restricted_attribute(user, given)
    if restricted is not None:
        raise Refusal(
            Refusal.AUTHORIZATION,
            f"User [{user.id}] : VM Template includes a restricted attribute {restricted}.",
        )
    _check_capacity(given)
    name = checked_name(given.get("NAME"), Refusal.INTERNAL)
    given.pop("NAME")
    amounts = quotas.amounts_of(float(given.get("CPU")), float(given.get("MEMORY")), 1)
    quotas.check(world, user, user, world.groups[user.gid], amounts)

    vm_id = world.vms.next_id
    template = given.take(_DEVICES)
    wanted_disks, wanted_nics = template.vectors("DISK"), template.vectors("NIC")
    template.pop("DISK")
    template.pop("NIC")
    try:
        for number, disk in enumerate(wanted_disks):
            try:
                image = devices.find_image(world, disk, user.id)
                if image is not None:
                    request.authorize(image, "image", Right.USE)
                template.add("DISK", devices.build_disk(world, vm_id, disk, number, image))
            except Refusal as refusal:
                if refusal.code == Refusal.INTERNAL:
                    refusal.message = f"DISK {number}: {refusal.message}"
                raise
        for number, nic in enumerate(wanted_nics):
            network = devices.find_network(world, nic, user.id)
            request.authorize(network, "network", Right.USE)
            template.add("NIC", devices.build_nic(vm_id, nic, number, network, lease_code))
    except Refusal:
        devices.release(world, template, vm_id)
        raise
    devices.refresh_derived(template)
    devices.set_requirements(template)
    system = template.vector("OS") or {}
    template.set("OS", {**system, "UUID": f"{world.now():08x}-0000-4000-8000-{vm_id:012x}"})
    template.set("VMID", str(vm_id))
    if hold:
        template.set("SUBMIT_ON_HOLD", "YES")
    place = HOLD if hold else PENDING
    world.vms.put(
        Vm(
            id=vm_id,
            name=name or f"one-{vm_id}",
            uid=user.id,
            gid=user.gid,
            place=place,
            trail=[place],
            template=template,
            user_template=given,
            stime=world.now(),
        )
    )
    if not hold:
        request.front.scheduler.wake()
    return vm_id


@method("one.vm.allocate", str, optional=(False,))
def vm_allocate(request: Request, text: str, hold: bool) -> Reply:
    """Allocate a new Virtual Machine"""
    return allocate(request, read_template(text, Refusal.INTERNAL), hold)


@method("one.vm.info", int, optional=(False,))
def vm_info(request: Request, vm_id: int, _decrypt: bool) -> Reply:
    """Retrieve information for a Virtual Machine"""
    return vm_documents.vm(request.world, request.vm(vm_id, Right.USE))


@method("one.vm.monitoring", int)
def vm_monitoring(request: Request, vm_id: int) -> Reply:
    """Retrieve the monitoring of a Virtual Machine"""
    vm = request.vm(vm_id, Right.USE)
    return f"<MONITORING_DATA>{vm_documents.vm_monitoring(vm)}</MONITORING_DATA>"


# Pools


def selected(request: Request, items: Iterable[OwnedT], kind: str, who: int, start: int, end: int) -> list[OwnedT]:
    """The members of a pool, newest first, that a filter flag and a range of ids or a page leave."""
    if who < -4:
        raise Refusal(Refusal.API, "Incorrect filter_flag")
    user = request.user
    keeps: dict[int, Callable[[Owned], bool]] = {
        -4: lambda item: item.gid == user.gid,
        -3: lambda item: item.uid == user.id,
        -2: lambda item: True,
        -1: lambda item: item.uid == user.id or item.gid == user.gid,
    }
    keep: Callable[[Owned], bool] = keeps.get(who, lambda item: item.uid == who)
    found = [item for item in items if keep(item) and allowed(user, item, kind, Right.USE)]
    if start >= 0 and end < -1:
        return found[start : start - end]
    if start >= 0:
        return [item for item in found if item.id >= start and (end < 0 or item.id <= end)]
    return found


def _vms(request: Request, who: int, start: int, end: int, state: int, search: str) -> list[Vm]:
    if not -2 <= state <= _LAST_STATE:
        raise Refusal(Refusal.API, f"Incorrect state filter {state}")
    if search:
        raise Refusal(Refusal.INTERNAL, "JSON query search is not supported by the SQL backend")

    def wanted(vm: Vm) -> bool:
        if state == -1:
            return vm.place.state is not State.DONE
        return state == -2 or vm.place.state == state

    pool = request.world.vms.newest_first()
    return selected(request, (vm for vm in pool if wanted(vm)), "vm", who, start, end)


@method("one.vmpool.info", int, int, int, int, optional=("",))
def vmpool_info(request: Request, who: int, start: int, end: int, state: int, search: str) -> Reply:
    """Retrieve information for all or part of the Virtual Machines"""
    found = _vms(request, who, start, end, state, search)
    return vm_documents.vm_pool(vm_documents.vm_digest(request.world, vm) for vm in found)


@method("one.vmpool.infoextended", int, int, int, int, optional=("",))
def vmpool_infoextended(request: Request, who: int, start: int, end: int, state: int, search: str) -> Reply:
    """Retrieve extended information for all or part of the Virtual Machines"""
    found = _vms(request, who, start, end, state, search)
    return vm_documents.vm_pool(vm_documents.vm_extended(request.world, vm) for vm in found)


@method("one.vmpool.infoset", str, bool)
def vmpool_infoset(request: Request, ids: str, extended: bool) -> Reply:
    """Retrieve information for a set of Virtual Machines"""
    wanted = {whole(part.strip()) for part in ids.split(",")}
    vms = (vm for vm in request.world.vms.newest_first() if vm.id in wanted)
    document = vm_documents.vm_extended if extended else vm_documents.vm_digest
    return vm_documents.vm_pool(document(request.world, vm) for vm in selected(request, vms, "vm", -2, -1, -1))


@method("one.vmpool.monitoring", int, optional=(-1,))
def vmpool_monitoring(request: Request, who: int, _seconds: int) -> Reply:
    """Retrieve the monitoring of all or part of the Virtual Machines"""
    found = _vms(request, who, -1, -1, -1, "")
    return "<MONITORING_DATA>" + "".join(vm_documents.vm_monitoring(vm) for vm in found) + "</MONITORING_DATA>"


# What is written about a VM


@method("one.vm.update", int, str, optional=(0,))
def vm_update(request: Request, vm_id: int, text: str, append: int) -> Reply:
    """Replace or append to the user template of a Virtual Machine"""
    vm = request.vm(vm_id, Right.MANAGE)
    if append not in (0, 1):
        raise Refusal(Refusal.API, "Wrong update type")
    given = read_template(text, Refusal.ACTION)
    restricted = restricted_attribute(request.user, given)
    if restricted is not None:
        raise Refusal(
            Refusal.INTERNAL,
            f"Cannot update template. User Template includes a restricted attribute {restricted}",
        )
    if append:
        vm.user_template.merge(given)
    else:
        vm.user_template = given
    return vm_id


@method("one.vm.rename", int, str)
def vm_rename(request: Request, vm_id: int, name: str) -> Reply:
    """Rename a Virtual Machine"""
    vm = request.vm(vm_id, Right.MANAGE)
    if not name:
        raise Refusal(Refusal.ACTION, "Invalid NAME, it cannot be empty")
    vm.name = checked_name(name, Refusal.ACTION)
    return vm_id


@method("one.vm.chown", int, int, int)
def vm_chown(request: Request, vm_id: int, uid: int, gid: int) -> Reply:
    """Change the owner and group of a Virtual Machine"""
    world: World = request.world
    vm = request.find(world.vms, vm_id)
    user = request.find(world.users, uid) if uid != -1 else None
    group = request.find(world.groups, gid) if gid != -1 else None
    if user is not None:
        request.admin_only(f"MANAGE USER [{user.id}]")
    request.authorize(vm, "vm", Right.MANAGE)
    if user is not None:
        vm.uid = user.id
    if group is not None:
        vm.gid = group.id
    return vm_id


@method("one.vm.chmod", int, *[int] * 9)
def vm_chmod(request: Request, vm_id: int, *bits: int) -> Reply:
    """Change the permissions of a Virtual Machine"""
    vm = request.vm(vm_id, Right.MANAGE)
    vm.permissions.bits = [old if new == -1 else new for old, new in zip(vm.permissions.bits, bits, strict=True)]
    return vm_id


@method("one.vm.lock", int, int, optional=(False,))
def vm_lock(request: Request, vm_id: int, level: int, _test: bool) -> Reply:
    """Lock a Virtual Machine"""
    vm = request.owned(request.world.vms, vm_id, Right.MANAGE)
    vm.lock = Lock(level=level, owner=request.user.id, time=request.world.now(), request_id=request.request_id)
    return vm_id


@method("one.vm.unlock", int)
def vm_unlock(request: Request, vm_id: int) -> Reply:
    """Unlock a Virtual Machine"""
    vm = request.owned(request.world.vms, vm_id, Right.MANAGE)
    vm.lock = None
    return vm_id
