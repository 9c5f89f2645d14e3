"""Filling a world: the objects every front-end has, and those of the configuration.

Responsible for making objects, for the configuration and for the methods alike. Invariant: an object is
made in one place only, so a configured one and an allocated one are the same. Checks no rights.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from backends.opennebula.standin import devices
from backends.opennebula.standin.config import HostConfig, HostProfile, NetworkConfig, StandinConfig, VmConfig
from backends.opennebula.standin.machine import (
    DEPLOY,
    HOLD,
    SETTLED,
    STOPPED,
    UNDEPLOYED,
    WAITING,
    HostState,
    ImageState,
    Route,
    State,
)
from backends.opennebula.standin.state import (
    Cluster,
    Datastore,
    Group,
    Host,
    Image,
    Network,
    User,
    VmTemplate,
    World,
)
from backends.opennebula.standin.template import Template, Value, Vector, parse_template

if TYPE_CHECKING:
    from backends.opennebula.standin.frontend import FrontEnd


def add_user(world: World, name: str, password: str, gid: int, driver: str = "core") -> User:
    return world.users.put(User(id=world.users.next_id, name=name, password=password, gid=gid, driver=driver))


def add_group(world: World, name: str) -> Group:
    return world.groups.put(Group(id=world.groups.next_id, name=name))


def add_cluster(world: World, name: str) -> Cluster:
    return world.clusters.put(Cluster(id=world.clusters.next_id, name=name))


def add_datastore(world: World, name: str, kind: str, clusters: Iterable[str], ds_id: int | None = None) -> Datastore:
    """A datastore on the dummy drivers; a system one is larger, as the recorded ones were."""
    system = kind == "SYSTEM_DS"
    facts = {
        "ALLOW_ORPHANS": "NO",
        "PERSISTENT_SNAPSHOTS": "YES",
        "RESTRICTED_DIRS": "/",
        "SAFE_DIRS": "/var/tmp",
    }
    facts |= {"TM_MAD": "dummy", "TYPE": kind}
    if system:
        facts |= {"DS_LIVE_MIGRATE": "YES", "DS_MIGRATE": "YES", "DS_MIGRATE_SNAP": "YES", "SHARED": "YES"}
    else:
        facts |= {"CLONE_TARGET": "SYSTEM", "DS_MAD": "dummy", "LN_TARGET": "NONE"}
    if kind != "FILE_DS":
        facts["DISK_TYPE"] = "FILE"
    total, free, used = (4_796_800, 3_333_260, 1_429_920) if system else (20_480, 20_480, 9_720)
    datastore = world.datastores.put(
        Datastore(
            id=world.datastores.next_id if ds_id is None else ds_id,
            name=name,
            uid=0,
            gid=0,
            template=Template({key: [value] for key, value in facts.items()}),
            total_mb=total,
            free_mb=free,
            used_mb=used,
        )
    )
    datastore.permissions.bits[3] = 1
    for cluster_name in clusters:
        _named_cluster(world, cluster_name).datastores.add(datastore.id)
    return datastore


def _named_cluster(world: World, name: str) -> Cluster:
    cluster = world.clusters.named(name)
    if cluster is None:
        raise ValueError(f"no cluster {name!r} in the configuration")
    return cluster


def add_host(
    world: World,
    name: str,
    cluster_id: int,
    *,
    im_mad: str = "dummy",
    vm_mad: str = "dummy",
    profile: HostProfile | None = None,
) -> Host:
    """A host that has not reported yet; without a profile its name says what it is."""
    if profile is None:
        fitting = (one for one in world.config.host_profiles if fnmatchcase(name, one.pattern))
        profile = next(fitting, HostProfile())
    facts: dict[str, list[Value]] = {
        "IM_MAD": [im_mad],
        "VM_MAD": [vm_mad],
        "RESERVED_CPU": [""],
        "RESERVED_MEM": [""],
    }
    return world.hosts.put(
        Host(
            id=world.hosts.next_id,
            name=name,
            im_mad=im_mad,
            vm_mad=vm_mad,
            cluster_id=cluster_id,
            profile=profile,
            template=Template(facts),
        )
    )


def add_image(
    world: World,
    name: str,
    size_mb: int,
    kind: str,
    datastore_id: int,
    owner: User,
    *,
    persistent: bool = False,
    path: str = "",
) -> Image:
    """An image that is LOCKED until its copy is done."""
    image = world.images.put(
        Image(
            id=world.images.next_id,
            name=name,
            uid=owner.id,
            gid=owner.gid,
            type=kind,
            size_mb=size_mb,
            datastore_id=datastore_id,
            path=path,
            persistent=persistent,
            registered_at=world.now(),
            template=Template({"DEV_PREFIX": ["sd"]}),
        )
    )

    def ready() -> None:
        if image.state is ImageState.LOCKED:
            image.state = ImageState.READY

    world.agenda.after(world.config.image_delay, ready, label="IMAGE_COPY")
    return image


def add_network(world: World, given: Template, owner: User, clusters: set[int]) -> Network:
    name = given.get("NAME")
    given.pop("NAME")
    for key, value in (("BRIDGE_TYPE", "linux"), ("PHYDEV", ""), ("SECURITY_GROUPS", "0")):
        if key not in given:
            given.set(key, value)
    wanted = given.vectors("AR")
    given.pop("AR")
    for number, vector in enumerate(wanted):
        devices.make_range(number, vector)  # refuse now what cannot be made later
    network = world.networks.put(
        Network(
            id=world.networks.next_id,
            name=name,
            uid=owner.id,
            gid=owner.gid,
            template=given,
            clusters=clusters,
            pending=[Template({"AR": [vector]}) for vector in wanted],
        )
    )

    world.agenda.after(world.config.image_delay, lambda: make_ready(network), label="NETWORK_SETUP")
    return network


def make_ready(network: Network) -> None:
    """The network's driver is done: the ranges asked for are there."""
    if network.ready:
        return
    network.ready = True
    network.template.set("VLAN_ID", "")
    network.template.set("OUTER_VLAN_ID", "")
    for wanted in network.pending:
        for vector in wanted.vectors("AR"):
            add_range(network, vector)
    network.pending.clear()


def add_range(network: Network, vector: Vector) -> None:
    network.ranges.append(devices.make_range(len(network.ranges), vector))


def add_vm_template(world: World, name: str, given: Template, owner: User) -> VmTemplate:
    given.pop("NAME")
    return world.templates.put(
        VmTemplate(
            id=world.templates.next_id,
            name=name,
            uid=owner.id,
            gid=owner.gid,
            template=given,
            registered_at=world.now(),
        )
    )


def fill(front: FrontEnd) -> None:
    """Everything there is before the first call."""
    world, config = front.world, front.config
    world.groups.put(Group(id=0, name="oneadmin"))
    world.groups.put(Group(id=1, name="users"))
    world.users.put(User(id=0, name="oneadmin", password=config.oneadmin_password, gid=0))
    world.users.put(User(id=1, name="serveradmin", password="", gid=0, driver="server_cipher"))
    world.clusters.put(Cluster(id=0, name="default"))
    for name in config.clusters:
        add_cluster(world, name)
    everywhere = ["default", *config.clusters]
    for ds_id, (name, kind) in enumerate((("system", "SYSTEM_DS"), ("default", "IMAGE_DS"), ("files", "FILE_DS"))):
        add_datastore(world, name, kind, everywhere, ds_id)
    for store in config.datastores:
        add_datastore(world, store.name, store.type, store.clusters)
    for name in config.groups:
        add_group(world, name)
    for entry in config.users:
        group = world.groups.named(entry.group)
        add_user(world, entry.name, entry.password, (group or add_group(world, entry.group)).id)
    world.creators.update(world.groups)  # whoever configured a group meant it to be used
    for host in config.hosts:
        _configured_host(front, host)
    _configured_store(world, config)
    for vm in config.vms:
        _configured_vm(front, vm)


def _configured_host(front: FrontEnd, entry: HostConfig) -> None:
    profile = HostProfile(cores=entry.cores, memory_mb=entry.memory_mb)
    host = add_host(front.world, entry.name, _named_cluster(front.world, entry.cluster).id, profile=profile)
    if entry.reserved_cpu or entry.reserved_mem:
        host.template.set("RESERVED_CPU", entry.reserved_cpu)
        host.template.set("RESERVED_MEM", entry.reserved_mem)
    if entry.state != "init":
        front.lifecycle.report(host)
    match entry.state:
        case "on" | "init":
            pass
        case "disabled":
            host.state = HostState.DISABLED
        case "offline":
            host.state, host.reported = HostState.OFFLINE, False
        case "error":
            front.lifecycle.fail_host(host, "")
        case other:
            raise ValueError(f"host {entry.name}: unknown state {other!r}")


def _configured_store(world: World, config: StandinConfig) -> None:
    for entry in config.images:
        owner, store = _owner(world, entry.owner), world.datastores.named(entry.datastore)
        if store is None:
            raise ValueError(f"image {entry.name}: no datastore {entry.datastore!r}")
        image = add_image(world, entry.name, entry.size_mb, entry.type, store.id, owner, persistent=entry.persistent)
        image.state = ImageState.READY
        image.permissions.bits[6] = int(entry.public)
    for wanted in config.networks:
        network = add_network(
            world,
            _network_template(wanted),
            _owner(world, wanted.owner),
            {_named_cluster(world, name).id for name in wanted.clusters},
        )
        make_ready(network)
        network.permissions.bits[6] = int(wanted.public)
    for template in config.templates:
        made = add_vm_template(world, template.name, parse_template(template.text), _owner(world, template.owner))
        made.permissions.bits[6] = int(template.public)


def _network_template(entry: NetworkConfig) -> Template:
    template = Template({"NAME": [entry.name], "VN_MAD": ["dummy"], "BRIDGE": [entry.bridge]})
    template.add("AR", {"TYPE": "IP4", "IP": entry.first_ip, "SIZE": str(entry.size)})
    for name, value in (("DNS", entry.dns), ("GATEWAY", entry.gateway)):
        if value:
            template.set(name, value)
    return template


def _owner(world: World, name: str) -> User:
    owner = world.users.named(name)
    if owner is None:
        raise ValueError(f"no user {name!r} in the configuration")
    return owner


def _configured_vm(front: FrontEnd, entry: VmConfig) -> None:
    """Made by the ordinary calls, then put where the configuration says it is."""
    world = front.world
    place = SETTLED[entry.state]
    owner = _owner(world, entry.owner)
    text = f"NAME={json.dumps(entry.name)}\nCPU={entry.cores}\nMEMORY={entry.memory_mb}\n{entry.template}"
    reply = front.call("one.vm.allocate", [f"{owner.name}:{owner.password}", text, place == HOLD])
    if not isinstance(reply, list) or reply[0] is not True:
        raise ValueError(f"VM {entry.name}: {reply}")
    vm = world.vms[world.vms.next_id - 1]
    if place not in WAITING:
        host = world.hosts.named(entry.host or "") or next(iter(world.hosts.values()), None)
        if host is None:
            raise ValueError(f"VM {entry.name}: no host for it")
        front.lifecycle.start(vm, DEPLOY[None], target=host, datastore_id=0)
        front.lifecycle.start(vm, Route(to=place))
        vm.history[-1].pstime = vm.history[-1].petime = vm.history[-1].rstime = world.now()
    if place in (STOPPED, UNDEPLOYED):
        vm.kept = State(place.state)
