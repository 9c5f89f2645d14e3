"""The XML of everything but VMs.

Responsible for element names, their order, and what is CDATA and what is not, as recorded. Invariant: a
pool is its members' elements, newest first. Changes nothing and decides nothing about who may see it.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import sha256
from typing import Final

from backends.opennebula.standin.devices import ip_at, mac_at
from backends.opennebula.standin.machine import HostState
from backends.opennebula.standin.quotas import QUOTA_NAMES, Usage
from backends.opennebula.standin.state import (
    AddressRange,
    Cluster,
    Datastore,
    Group,
    Host,
    Image,
    Network,
    Owned,
    Permissions,
    User,
    VmTemplate,
    World,
)
from backends.opennebula.standin.template import Template, cdata, plain

_PERMISSION_NAMES: Final = tuple(f"{who}_{what}" for who in ("OWNER", "GROUP", "OTHER") for what in "UMA")
_IMAGE_TYPES: Final = {"OS": 0, "CDROM": 1, "DATABLOCK": 2, "KERNEL": 3, "RAMDISK": 4, "CONTEXT": 5}
_DATASTORE_TYPES: Final = {"IMAGE_DS": 0, "SYSTEM_DS": 1, "FILE_DS": 2}
_NO_QUOTAS: Final = "<DATASTORE_QUOTA></DATASTORE_QUOTA><NETWORK_QUOTA></NETWORK_QUOTA>{vm}<IMAGE_QUOTA></IMAGE_QUOTA>"


def permissions(bits: Permissions) -> str:
    inner = "".join(f"<{name}>{bit}</{name}>" for name, bit in zip(_PERMISSION_NAMES, bits.bits, strict=True))
    return f"<PERMISSIONS>{inner}</PERMISSIONS>"


def ids(tag: str, values: Iterable[int]) -> str:
    return f"<{tag}>" + "".join(f"<ID>{value}</ID>" for value in sorted(values)) + f"</{tag}>"


def owner(world: World, item: Owned) -> str:
    """ID to NAME, as every object with an owner begins."""
    group = world.groups.get(item.gid)
    return (
        f"<ID>{item.id}</ID><UID>{item.uid}</UID><GID>{item.gid}</GID>"
        f"<UNAME>{plain(world.user_name(item.uid))}</UNAME><GNAME>{plain(group.name if group else '')}</GNAME>"
        f"<NAME>{plain(item.name)}</NAME>"
    )


def _template(template: Template) -> str:
    return f"<TEMPLATE>{template.inner_xml()}</TEMPLATE>"


def pool(tag: str, members: Iterable[str]) -> str:
    return f"<{tag}>{''.join(members)}</{tag}>"


def host_monitoring(host: Host) -> str:
    used_cpu, used_memory = host.total_cpu // 20, host.total_mem // 10
    total_cpu, total_memory = host.total_cpu, host.total_mem
    if not total_cpu:  # offline now: the last figures stand
        total_cpu, total_memory = round(host.profile.cores * 100), host.profile.memory_mb * 1024
        used_cpu, used_memory = total_cpu // 20, total_memory // 10
    capacity = Template(
        {
            "FREE_CPU": [str(total_cpu - used_cpu)],
            "FREE_MEMORY": [str(total_memory - used_memory)],
            "USED_CPU": [str(used_cpu)],
            "USED_MEMORY": [str(used_memory)],
        }
    )
    system = Template({"NETRX": ["2000"], "NETTX": ["1000"]})
    return (
        f"<MONITORING><TIMESTAMP>{host.monitored_at}</TIMESTAMP><ID>{host.id}</ID>"
        f"<CAPACITY>{capacity.inner_xml()}</CAPACITY><SYSTEM>{system.inner_xml()}</SYSTEM></MONITORING>"
    )


def host(world: World, item: Host, *, in_pool: bool) -> str:
    cluster = world.clusters[item.cluster_id]
    cpu, memory = world.used(item)
    disk = ""
    if item.heard_of or not in_pool:
        disk = "".join(
            f"<{name}>{cdata('0')}</{name}>" for name in ("DISK_USAGE", "FREE_DISK", "MAX_DISK", "USED_DISK")
        )
    monitored = item.monitored_at and not in_pool
    return (
        f"<HOST><ID>{item.id}</ID><NAME>{plain(item.name)}</NAME><STATE>{item.state:d}</STATE>"
        f"<PREV_STATE>{item.state:d}</PREV_STATE><IM_MAD>{cdata(item.im_mad)}</IM_MAD>"
        f"<VM_MAD>{cdata(item.vm_mad)}</VM_MAD><CLUSTER_ID>{cluster.id}</CLUSTER_ID>"
        f"<CLUSTER>{plain(cluster.name)}</CLUSTER><HOST_SHARE><MEM_USAGE>{memory}</MEM_USAGE>"
        f"<CPU_USAGE>{cpu}</CPU_USAGE><TOTAL_MEM>{item.total_mem}</TOTAL_MEM><TOTAL_CPU>{item.total_cpu}</TOTAL_CPU>"
        f"<MAX_MEM>{item.max_mem}</MAX_MEM><MAX_CPU>{item.max_cpu}</MAX_CPU>"
        f"<RUNNING_VMS>{len(item.vms)}</RUNNING_VMS><VMS_THREAD>1</VMS_THREAD>"
        f"<DATASTORES>{disk}</DATASTORES><PCI_DEVICES></PCI_DEVICES><NUMA_NODES></NUMA_NODES></HOST_SHARE>"
        f"{ids('VMS', item.vms)}{_template(item.template)}"
        f"{host_monitoring(item) if monitored else '<MONITORING/>'}</HOST>"
    )


def hosts_monitoring(world: World) -> str:
    seen = (item for item in world.hosts.values() if item.monitored_at and item.state is not HostState.ERROR)
    return pool("MONITORING_DATA", (host_monitoring(item) for item in seen))


def cluster(world: World, item: Cluster) -> str:
    networks = [network.id for network in world.networks.values() if item.id in network.clusters]
    return (
        f"<CLUSTER><ID>{item.id}</ID><NAME>{plain(item.name)}</NAME>{ids('HOSTS', world.cluster_hosts(item))}"
        f"{ids('DATASTORES', item.datastores)}{ids('VNETS', networks)}{_template(item.template)}</CLUSTER>"
    )


def datastore(world: World, item: Datastore) -> str:
    images = [image.id for image in world.images.values() if image.datastore_id == item.id]
    kind = item.template.get("TYPE")
    return (
        f"<DATASTORE>{owner(world, item)}{permissions(item.permissions)}"
        f"<DS_MAD>{cdata('-' if item.is_system else item.template.get('DS_MAD'))}</DS_MAD>"
        f"<TM_MAD>{cdata(item.template.get('TM_MAD'))}</TM_MAD>"
        f"<BASE_PATH>{cdata(f'/var/lib/one//datastores/{item.id}')}</BASE_PATH>"
        f"<TYPE>{_DATASTORE_TYPES.get(kind, 0)}</TYPE><DISK_TYPE>0</DISK_TYPE><STATE>0</STATE>"
        f"{ids('CLUSTERS', world.clusters_of(item.id))}<TOTAL_MB>{item.total_mb}</TOTAL_MB>"
        f"<FREE_MB>{item.free_mb}</FREE_MB><USED_MB>{item.used_mb}</USED_MB>"
        f"{ids('IMAGES', images)}{_template(item.template)}</DATASTORE>"
    )


def image(world: World, item: Image) -> str:
    snapshots = Template({"ALLOW_ORPHANS": ["NO"], "CURRENT_BASE": ["-1"], "NEXT_SNAPSHOT": ["0"]})
    locked = item.state.name == "LOCKED"
    return (
        f"<IMAGE>{owner(world, item)}{permissions(item.permissions)}<TYPE>{_IMAGE_TYPES.get(item.type, 0)}</TYPE>"
        f"<DISK_TYPE>0</DISK_TYPE><PERSISTENT>{int(item.persistent)}</PERSISTENT>"
        f"<REGTIME>{item.registered_at}</REGTIME><MODTIME>{item.registered_at}</MODTIME>"
        f"<SOURCE>{cdata('' if locked else 'dummy_path')}</SOURCE><PATH>{cdata(item.path)}</PATH>"
        f"<FORMAT>{cdata('raw')}</FORMAT><FS>{cdata('')}</FS><SIZE>{item.size_mb}</SIZE>"
        f"<STATE>{item.state:d}</STATE><PREV_STATE>{0 if locked else item.state:d}</PREV_STATE>"
        f"<RUNNING_VMS>{len(item.vms)}</RUNNING_VMS><CLONING_OPS>0</CLONING_OPS><CLONING_ID>-1</CLONING_ID>"
        f"<TARGET_SNAPSHOT>-1</TARGET_SNAPSHOT><DATASTORE_ID>{item.datastore_id}</DATASTORE_ID>"
        f"<DATASTORE>{plain(world.datastores[item.datastore_id].name)}</DATASTORE>{ids('VMS', item.vms)}"
        f"<CLONES></CLONES><APP_CLONES></APP_CLONES>{_template(item.template)}"
        f"<SNAPSHOTS>{snapshots.inner_xml()}</SNAPSHOTS>"
        "<BACKUP_INCREMENTS></BACKUP_INCREMENTS><BACKUP_DISK_IDS></BACKUP_DISK_IDS></IMAGE>"
    )


def network(world: World, item: Network, *, in_pool: bool) -> str:
    used = [vm for entry in item.ranges for vm in entry.leases.values()]
    template = item.template.copy()
    for wanted in item.pending:
        template.merge(wanted)
    return (
        f"<VNET>{owner(world, item)}{permissions(item.permissions)}{ids('CLUSTERS', item.clusters)}"
        f"<BRIDGE>{cdata(template.get('BRIDGE'))}</BRIDGE>"
        f"<BRIDGE_TYPE>{cdata(template.get('BRIDGE_TYPE'))}</BRIDGE_TYPE>"
        f"<STATE>{cdata('1' if item.ready else '2')}</STATE>"
        f"<PREV_STATE>{cdata('1' if item.ready else '0')}</PREV_STATE>"
        f"<PARENT_NETWORK_ID/><TEMPLATE_ID/><VN_MAD>{cdata(template.get('VN_MAD'))}</VN_MAD>"
        "<PHYDEV/><VLAN_ID/><OUTER_VLAN_ID/><VLAN_ID_AUTOMATIC>0</VLAN_ID_AUTOMATIC>"
        "<OUTER_VLAN_ID_AUTOMATIC>0</OUTER_VLAN_ID_AUTOMATIC>"
        f"<USED_LEASES>{len(used)}</USED_LEASES><VROUTERS></VROUTERS>{ids('UPDATED_VMS', set(used))}"
        "<OUTDATED_VMS></OUTDATED_VMS><UPDATING_VMS></UPDATING_VMS><ERROR_VMS></ERROR_VMS>"
        f"{_template(template)}{pool('AR_POOL', (_range(entry, in_pool) for entry in item.ranges))}</VNET>"
    )


def _range(item: AddressRange, in_pool: bool) -> str:
    facts = {"AR_ID": str(item.id), "IP": item.ip, "MAC": item.mac, "NEXT_INDEX": str(item.next_index)}
    facts |= {"SHARED": "NO", "SIZE": str(item.size), "TYPE": item.type}
    if in_pool and item.leases == {} and item.next_index:
        facts = {"ALLOCATED": ""} | facts
    inner = "".join(f"<{name}>{cdata(value)}</{name}>" for name, value in facts.items() if value or name == "ALLOCATED")
    if in_pool:
        return f"<AR>{inner}</AR>"
    inner += f"<MAC_END>{cdata(mac_at(item, item.size - 1))}</MAC_END>"
    if item.ip:
        inner += f"<IP_END>{cdata(ip_at(item, item.size - 1))}</IP_END>"
    leases = "".join(
        f"<LEASE><IP>{cdata(ip_at(item, index) if item.ip else '')}</IP><MAC>{cdata(mac_at(item, index))}</MAC>"
        f"<VM>{cdata(str(vm))}</VM></LEASE>"
        for index, vm in sorted(item.leases.items())
    )
    inner += f"<USED_LEASES>{len(item.leases)}</USED_LEASES>{f'<LEASES>{leases}</LEASES>' if leases else '<LEASES/>'}"
    return f"<AR>{inner}</AR>"


def vm_template(world: World, item: VmTemplate) -> str:
    return (
        f"<VMTEMPLATE>{owner(world, item)}{permissions(item.permissions)}<REGTIME>{item.registered_at}</REGTIME>"
        f"{_template(item.template)}</VMTEMPLATE>"
    )


def _quotas(limits: dict[str, float] | None, usage: Usage | None) -> str:
    """The four quota elements; the VM one is empty until there is a limit or something used."""
    if limits is None and (usage is None or not usage.any):
        return _NO_QUOTAS.format(vm="<VM_QUOTA></VM_QUOTA>")
    values: dict[str, str] = {}
    for name in QUOTA_NAMES:
        values[name] = _number((limits or {}).get(name, -1))
        values[f"{name}_USED"] = usage.text(name) if usage else "0"
    inner = Template({name: [value] for name, value in values.items()}).inner_xml()
    return _NO_QUOTAS.format(vm=f"<VM_QUOTA><VM>{inner}</VM></VM_QUOTA>")


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else f"{value:.2f}"


def _user_facts(world: World, item: User) -> str:
    secrets = item.template.copy()
    secrets.set("TOKEN_PASSWORD", sha256(f"{item.id}:{item.name}".encode()).hexdigest())
    return (
        f"<ID>{item.id}</ID><GID>{item.gid}</GID><GROUPS><ID>{item.gid}</ID></GROUPS>"
        f"<GNAME>{plain(world.groups[item.gid].name)}</GNAME><NAME>{plain(item.name)}</NAME>"
        f"<PASSWORD>{cdata(sha256(item.password.encode()).hexdigest())}</PASSWORD><AUTH_DRIVER>{cdata(item.driver)}</AUTH_DRIVER>"
        f"<ENABLED>1</ENABLED>{_template(secrets)}"
    )


def user(world: World, item: User, usage: Usage) -> str:
    return (
        f"<USER>{_user_facts(world, item)}{_quotas(item.quota, usage)}"
        f"<DEFAULT_USER_QUOTAS>{_quotas(None, None)}</DEFAULT_USER_QUOTAS></USER>"
    )


def user_pool(world: World, items: Iterable[tuple[User, Usage]]) -> str:
    members = (
        f"<USER>{_user_facts(world, item)}</USER><QUOTAS><ID>{item.id}</ID>{_quotas(item.quota, usage)}</QUOTAS>"
        for item, usage in items
    )
    return f"<USER_POOL>{''.join(members)}<DEFAULT_USER_QUOTAS>{_quotas(None, None)}</DEFAULT_USER_QUOTAS></USER_POOL>"


def group(world: World, item: Group, usage: Usage) -> str:
    members = [one.id for one in world.users.values() if one.gid == item.id]
    return (
        f"<GROUP><ID>{item.id}</ID><NAME>{plain(item.name)}</NAME><TEMPLATE></TEMPLATE>{ids('USERS', members)}"
        f"<ADMINS></ADMINS>{_quotas(item.quota, usage)}<VLAN_RULES><ID>{cdata(str(item.id))}</ID></VLAN_RULES>"
        f"<DEFAULT_GROUP_QUOTAS>{_quotas(None, None)}</DEFAULT_GROUP_QUOTAS></GROUP>"
    )
