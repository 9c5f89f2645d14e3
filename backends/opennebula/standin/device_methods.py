"""one.vm.* that change a VM's devices: disks, NICs, snapshots, saved disks, actions to come.

Responsible for what is checked before a device changes and for what changes. Invariant: a VM whose
devices change is in a hotplug state until they have. The new image of a saved disk is LOCKED until then.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from backends.opennebula.standin import devices
from backends.opennebula.standin.errors import Refusal
from backends.opennebula.standin.frontend import Request
from backends.opennebula.standin.machine import (
    POWEROFF,
    RUNNING,
    UNDEPLOYED,
    HistoryAction,
    ImageState,
    Lcm,
    hotplug,
)
from backends.opennebula.standin.permissions import Right
from backends.opennebula.standin.registry import Reply, method
from backends.opennebula.standin.seed import add_image
from backends.opennebula.standin.state import Vm
from backends.opennebula.standin.template import Template, Vector, whole
from backends.opennebula.standin.vm_methods import read_template

_SAVEAS_PLACES: Final = {RUNNING: Lcm.HOTPLUG_SAVEAS, POWEROFF: Lcm.HOTPLUG_SAVEAS_POWEROFF}


def _running_vm(request: Request, vm_id: int) -> Vm:
    vm = request.vm(vm_id, Right.MANAGE)
    if vm.place != RUNNING:
        raise Refusal(Refusal.ACTION, f"This action is not available for state {vm.place.label}")
    return vm


def _change(request: Request, vm: Vm, lcm: Lcm, action: HistoryAction, done: Callable[[], None] | None = None) -> None:
    request.lifecycle.start(vm, hotplug(lcm, action=action), request.asker, finish=done)


def _numbered(vm: Vm, kind: str, number: int) -> Vector | None:
    wanted = str(number)
    return next((one for one in vm.template.vectors(kind) if one[f"{kind}_ID"] == wanted), None)


def _drop(vm: Vm, kind: str, gone: Vector) -> None:
    vm.template.set_all(kind, [one for one in vm.template.vectors(kind) if one is not gone])


def _next_number(vm: Vm, kind: str) -> int:
    return max((int(one[f"{kind}_ID"]) for one in vm.template.vectors(kind)), default=-1) + 1


@method("one.vm.attach", int, str)
def vm_attach(request: Request, vm_id: int, text: str) -> Reply:
    """Attach a disk to a Virtual Machine"""
    vm = _running_vm(request, vm_id)
    disk = read_template(text, Refusal.INTERNAL).vector("DISK") or {}
    try:
        image = devices.find_image(request.world, disk, vm.uid)
        built = devices.build_disk(request.world, vm_id, disk, _next_number(vm, "DISK"), image)
    except Refusal as refusal:
        raise Refusal(Refusal.ACTION, refusal.message) from refusal
    vm.template.add("DISK", built | {"TM_MAD_SYSTEM": "dummy"})
    _change(request, vm, Lcm.HOTPLUG, HistoryAction.DISK_ATTACH)
    return vm_id


@method("one.vm.detach", int, int)
def vm_detach(request: Request, vm_id: int, disk_id: int) -> Reply:
    """Detach a disk from a Virtual Machine"""
    vm = _running_vm(request, vm_id)
    disk = _existing_disk(vm, disk_id)

    def gone() -> None:
        _drop(vm, "DISK", disk)
        devices.detach_disk(request.world, disk, vm_id)

    _change(request, vm, Lcm.HOTPLUG, HistoryAction.DISK_DETACH, gone)
    return vm_id


@method("one.vm.attachnic", int, str)
def vm_attachnic(request: Request, vm_id: int, text: str) -> Reply:
    """Attach a network interface to a Virtual Machine"""
    vm = _running_vm(request, vm_id)
    nic = read_template(text, Refusal.INTERNAL).vector("NIC") or {}
    try:
        network = devices.find_network(request.world, nic, vm.uid)
        vm.template.add("NIC", devices.build_nic(vm_id, nic, _next_number(vm, "NIC"), network))
    except Refusal as refusal:
        raise Refusal(Refusal.ACTION, refusal.message) from refusal
    devices.refresh_derived(vm.template)
    _change(request, vm, Lcm.HOTPLUG_NIC, HistoryAction.NIC_ATTACH)
    return vm_id


@method("one.vm.detachnic", int, int)
def vm_detachnic(request: Request, vm_id: int, nic_id: int) -> Reply:
    """Detach a network interface from a Virtual Machine"""
    vm = _running_vm(request, vm_id)
    nic = _numbered(vm, "NIC", nic_id)
    if nic is None:
        raise Refusal(Refusal.ACTION, "VM NIC does not exist")

    def gone() -> None:
        _drop(vm, "NIC", nic)
        devices.detach_nic(request.world, nic, vm_id)
        devices.refresh_derived(vm.template)

    _change(request, vm, Lcm.HOTPLUG_NIC, HistoryAction.NIC_DETACH, gone)
    return vm_id


def _existing_disk(vm: Vm, disk_id: int) -> Vector:
    disk = _numbered(vm, "DISK", disk_id)
    if disk is None:
        raise Refusal(Refusal.ACTION, "VM disk does not exist")
    return disk


def _size_of(disk: Vector) -> int:
    return whole(disk.get("SIZE", "")) or 0


@method("one.vm.diskresize", int, int, str)
def vm_diskresize(request: Request, vm_id: int, disk_id: int, size: str) -> Reply:
    """Resize a disk of a Virtual Machine"""
    vm = _running_vm(request, vm_id)
    disk = _existing_disk(vm, disk_id)
    if (whole(size) or 0) <= _size_of(disk):
        raise Refusal(Refusal.ACTION, "New disk size has to be greater than current one")
    disk["SIZE"] = size
    _change(request, vm, Lcm.DISK_RESIZE, HistoryAction.DISK_RESIZE)
    return vm_id


@method("one.vm.snapshotcreate", int, str, optional=(False,))
def vm_snapshotcreate(request: Request, vm_id: int, name: str, _keep: bool) -> Reply:
    """Take a snapshot of a Virtual Machine"""
    vm = _running_vm(request, vm_id)
    number = _next_snapshot(vm)
    snapshot: Vector = {
        "HYPERVISOR_ID": "dummy-snap",
        "NAME": name,
        "SNAPSHOT_ID": str(number),
        "SYSTEM_DISK_SIZE": vm.template.get("MEMORY"),
        "TIME": str(request.world.now()),
    }
    vm.template.add("SNAPSHOT", snapshot)
    _change(request, vm, Lcm.HOTPLUG_SNAPSHOT, HistoryAction.NONE)
    return number


def _next_snapshot(vm: Vm) -> int:
    return max((int(one["SNAPSHOT_ID"]) for one in vm.template.vectors("SNAPSHOT")), default=-1) + 1


def _snapshot(vm: Vm, snapshot_id: int) -> Vector:
    snapshot = _numbered(vm, "SNAPSHOT", snapshot_id)
    if snapshot is None:
        raise Refusal(Refusal.ACTION, "VM snapshot does not exist")
    return snapshot


@method("one.vm.snapshotrevert", int, int)
def vm_snapshotrevert(request: Request, vm_id: int, snapshot_id: int) -> Reply:
    """Go back to a snapshot"""
    vm = _running_vm(request, vm_id)
    _snapshot(vm, snapshot_id)
    _change(request, vm, Lcm.HOTPLUG_SNAPSHOT, HistoryAction.NONE)
    return vm_id


@method("one.vm.snapshotdelete", int, int)
def vm_snapshotdelete(request: Request, vm_id: int, snapshot_id: int) -> Reply:
    """Delete a snapshot"""
    vm = _running_vm(request, vm_id)
    snapshot = _snapshot(vm, snapshot_id)
    _change(request, vm, Lcm.HOTPLUG_SNAPSHOT, HistoryAction.NONE, lambda: _drop(vm, "SNAPSHOT", snapshot))
    return vm_id


@method("one.vm.disksnapshotcreate", int, int, str)
def vm_disksnapshotcreate(request: Request, vm_id: int, disk_id: int, _name: str) -> Reply:
    """Take a snapshot of a disk"""
    vm = _running_vm(request, vm_id)
    disk = _existing_disk(vm, disk_id)
    number = int(disk.get("DISK_SNAPSHOT_TOTAL_SIZE", "0")) // max(_size_of(disk), 1)
    disk["DISK_SNAPSHOT_TOTAL_SIZE"] = str((number + 1) * _size_of(disk))
    _change(request, vm, Lcm.DISK_SNAPSHOT, HistoryAction.NONE)
    return number


@method("one.vm.disksaveas", int, int, str, str, int)
def vm_disksaveas(request: Request, vm_id: int, disk_id: int, name: str, kind: str, _snapshot_id: int) -> Reply:
    """Save a disk as a new image"""
    world = request.world
    vm = request.vm(vm_id, Right.MANAGE)
    if vm.place not in _SAVEAS_PLACES and vm.place != UNDEPLOYED:
        raise Refusal(Refusal.ACTION, f"This action is not available for state {vm.place.label}")
    disk = _numbered(vm, "DISK", disk_id)
    if disk is None or "IMAGE_ID" not in disk:
        raise Refusal(Refusal.INTERNAL, "VM disk does not exist")
    if any(image.name == name and image.uid == request.user.id for image in world.images.values()):
        raise Refusal(Refusal.ALLOCATE, "NAME is already taken by IMAGE.")
    source = world.images.get(int(disk["IMAGE_ID"]))
    image = add_image(
        world,
        name,
        _size_of(disk),
        kind or (source.type if source else "OS"),
        int(disk["DATASTORE_ID"]),
        request.user,
    )
    image.state = ImageState.LOCKED

    def saved() -> None:
        image.state = ImageState.READY

    lcm = _SAVEAS_PLACES.get(vm.place)
    if lcm is None:
        world.agenda.after(world.config.image_delay, saved, label="IMAGE_COPY")
    else:
        request.lifecycle.start(vm, hotplug(lcm, vm.place), finish=saved)
    return image.id


@method("one.vm.schedadd", int, str)
def vm_schedadd(request: Request, vm_id: int, text: str) -> Reply:
    """Plan an action"""
    vm = request.vm(vm_id, Right.MANAGE)
    wanted = read_template(text, Refusal.INTERNAL).vector("SCHED_ACTION") or {}
    when = wanted.get("TIME", "0")
    ahead = whole(when[1:]) if when.startswith("+") else None
    time = when if ahead is None else request.world.now() + ahead
    number = len(vm.scheduled)
    facts = {"ID": number, "PARENT_ID": vm_id, "TYPE": "VM", "ACTION": wanted.get("ACTION", ""), "ARGS": ""}
    facts |= {"TIME": time, "REPEAT": -1, "DAYS": "", "END_TYPE": -1, "END_VALUE": -1, "DONE": -1}
    facts |= {"MESSAGE": "", "WARNING": 0}
    vm.scheduled.append(Template({name: [str(value)] for name, value in facts.items()}))
    return number


@method("one.vm.updateconf", int, str, optional=(0,))
def vm_updateconf(request: Request, vm_id: int, text: str, append: int) -> Reply:
    """Change the configuration of a Virtual Machine"""
    vm = request.vm(vm_id, Right.MANAGE)
    given = read_template(text, Refusal.ACTION)
    if not append:
        vm.template.pop("OS")
    for name, value in given:
        if isinstance(value, dict):
            value = {key: entry.upper() if entry.lower() in ("yes", "no") else entry for key, entry in value.items()}
        vm.template.set(name, value)
    return vm_id
