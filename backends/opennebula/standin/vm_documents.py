"""The XML of VMs: whole, extended in a pool, and as the pool's digest.

Responsible for what each of the three shows. Invariant: a pool shows only the last HISTORY, the digest no
PERMISSIONS and only a few known keys of USER_TEMPLATE. Changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from backends.opennebula.standin.documents import ids, owner, permissions, pool
from backends.opennebula.standin.state import HistoryRecord, Vm, World
from backends.opennebula.standin.template import Template, Vector, cdata, plain

_DIGEST_DISK: Final = (
    "DISK_ID",
    "DATASTORE",
    "DATASTORE_ID",
    "IMAGE",
    "IMAGE_ID",
    "SIZE",
    "TYPE",
    "CLONE",
    "CLONE_TARGET",
    "LN_TARGET",
    "DISK_SNAPSHOT_TOTAL_SIZE",
)
_DIGEST_NIC: Final = ("IP", "MAC", "NETWORK", "NETWORK_ID", "NIC_ID", "SECURITY_GROUPS")
_DIGEST_GRAPHICS: Final = ("LISTEN", "PORT", "TYPE")
_DIGEST_USER: Final = ("ERROR", "LABELS", "LOGO", "SCHED_MESSAGE", "SCHED_REQUIREMENTS")


def vm(world: World, item: Vm) -> str:
    return _whole(world, item, item.history)


def vm_extended(world: World, item: Vm) -> str:
    return _whole(world, item, item.history[-1:])


def _whole(world: World, item: Vm, history: Iterable[HistoryRecord]) -> str:
    state, lcm = item.place
    lock = ""
    if item.lock is not None:
        lock = (
            f"<LOCK><LOCKED>{item.lock.level}</LOCKED><OWNER>{item.lock.owner}</OWNER>"
            f"<TIME>{item.lock.time}</TIME><REQ_ID>{item.lock.request_id}</REQ_ID></LOCK>"
        )
    scheduled = "".join(
        "<SCHED_ACTION>"
        + "".join(f"<{name}>{plain(str(value))}</{name}>" for name, value in action)
        + "</SCHED_ACTION>"
        for action in item.scheduled
    )
    records = "".join(_record(item, record) for record in history)
    return (
        f"<VM>{owner(world, item)}{permissions(item.permissions)}"
        f"<LAST_POLL>{item.monitoring.get('TIMESTAMP', '0')}</LAST_POLL>"
        f"<STATE>{state:d}</STATE><LCM_STATE>{lcm:d}</LCM_STATE>"
        f"<PREV_STATE>{state:d}</PREV_STATE><PREV_LCM_STATE>{lcm:d}</PREV_LCM_STATE>"
        f"<RESCHED>{int(item.resched)}</RESCHED><STIME>{item.stime}</STIME><ETIME>{item.etime}</ETIME>"
        f"<DEPLOY_ID>{plain(item.deploy_id)}</DEPLOY_ID>{lock}"
        f"<MONITORING>{item.monitoring.inner_xml()}</MONITORING>{ids('SCHED_ACTIONS', range(len(item.scheduled)))}"
        f"<TEMPLATE>{item.template.inner_xml()}{scheduled}</TEMPLATE>"
        f"<USER_TEMPLATE>{item.user_template.inner_xml()}</USER_TEMPLATE>"
        f"{f'<HISTORY_RECORDS>{records}</HISTORY_RECORDS>' if records else '<HISTORY_RECORDS/>'}"
        "<BACKUPS><BACKUP_CONFIG/><BACKUP_IDS></BACKUP_IDS></BACKUPS></VM>"
    )


def _record(item: Vm, record: HistoryRecord) -> str:
    plan, action = record.plan
    return (
        f"<HISTORY><OID>{item.id}</OID><SEQ>{record.seq}</SEQ><HOSTNAME>{plain(record.hostname)}</HOSTNAME>"
        f"<HID>{record.host_id}</HID><CID>{record.cluster_id}</CID><STIME>{record.stime}</STIME>"
        f"<ETIME>{record.etime}</ETIME><VM_MAD>{cdata('dummy')}</VM_MAD><TM_MAD>{cdata('dummy')}</TM_MAD>"
        f"<DS_ID>{record.datastore_id}</DS_ID><PLAN_ID>{plan}</PLAN_ID><ACTION_ID>{action}</ACTION_ID>"
        f"<PSTIME>{record.pstime}</PSTIME><PETIME>{record.petime}</PETIME><RSTIME>{record.rstime}</RSTIME>"
        f"<RETIME>{record.retime}</RETIME><ESTIME>{record.estime}</ESTIME><EETIME>{record.eetime}</EETIME>"
        f"<ACTION>{record.action:d}</ACTION><UID>{record.uid}</UID><GID>{record.gid}</GID>"
        f"<REQUEST_ID>{record.request_id}</REQUEST_ID></HISTORY>"
    )


def vm_digest(world: World, item: Vm) -> str:
    state, lcm = item.place
    monitoring = _digest_monitoring(item.digest_monitoring)
    devices = "".join(_short("DISK", disk, _DIGEST_DISK) for disk in item.template.vectors("DISK"))
    devices += "".join(_short("NIC", nic, _DIGEST_NIC) for nic in item.template.vectors("NIC"))
    for graphics in item.template.vectors("GRAPHICS"):
        devices += _short("GRAPHICS", graphics, tuple(name for name in _DIGEST_GRAPHICS if name in graphics))
    return (
        f"<VM>{owner(world, item)}<LAST_POLL>{item.digest_monitoring.get('TIMESTAMP', '0')}</LAST_POLL>"
        f"<STATE>{state:d}</STATE><LCM_STATE>{lcm:d}</LCM_STATE><RESCHED>{int(item.resched)}</RESCHED>"
        f"<STIME>{item.stime}</STIME><ETIME>{item.etime}</ETIME><DEPLOY_ID>{plain(item.deploy_id)}</DEPLOY_ID>"
        f"<TEMPLATE><CPU>{plain(item.template.get('CPU'))}</CPU><MEMORY>{plain(item.template.get('MEMORY'))}</MEMORY>"
        f"<VCPU>{plain(item.template.get('VCPU'))}</VCPU>{devices}</TEMPLATE>{monitoring}"
        f"{_digest_user(item.user_template)}{_digest_history(item)}</VM>"
    )


def _short(tag: str, vector: Vector, names: tuple[str, ...]) -> str:
    return f"<{tag}>" + "".join(f"<{name}>{cdata(vector.get(name, ''))}</{name}>" for name in names) + f"</{tag}>"


def _digest_monitoring(monitoring: Template) -> str:
    if not monitoring:
        return "<MONITORING/>"
    values = "".join(f"<{name}>{cdata(monitoring.get(name))}</{name}>" for name in ("CPU", "MEMORY", "STATE"))
    return f"<MONITORING>{values}</MONITORING>"


def _digest_user(template: Template) -> str:
    if not template:
        return "<USER_TEMPLATE/>"
    known = "".join(f"<{name}>{cdata(template.get(name))}</{name}>" for name in _DIGEST_USER if name in template)
    return f"<USER_TEMPLATE>{known}</USER_TEMPLATE>"


def _digest_history(item: Vm) -> str:
    if not item.history:
        return "<HISTORY_RECORDS/>"
    record = item.history[-1]
    return (
        f"<HISTORY_RECORDS><HISTORY><OID>{item.id}</OID><SEQ>{record.seq}</SEQ>"
        f"<HOSTNAME>{cdata(record.hostname)}</HOSTNAME><HID>{record.host_id}</HID><CID>{record.cluster_id}</CID>"
        f"<DS_ID>{record.datastore_id}</DS_ID><VM_MAD>{cdata('dummy')}</VM_MAD><TM_MAD>{cdata('dummy')}</TM_MAD>"
        f"<ACTION>{cdata(str(int(record.action)))}</ACTION></HISTORY></HISTORY_RECORDS>"
    )


def vm_pool(members: Iterable[str]) -> str:
    return pool("VM_POOL", members)


def vm_monitoring(item: Vm) -> str:
    return f"<MONITORING>{item.monitoring.inner_xml()}</MONITORING>" if item.monitoring else ""
