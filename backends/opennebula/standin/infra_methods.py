"""one.host.*, one.cluster.*, one.datastore.* and their pools.

Responsible for what the machines under the VMs look like and how they are set up. Invariant: a host is in
exactly one cluster. Does not move VMs.
"""

from __future__ import annotations

from backends.opennebula.standin import documents
from backends.opennebula.standin.errors import Refusal
from backends.opennebula.standin.frontend import Request
from backends.opennebula.standin.machine import HostState
from backends.opennebula.standin.registry import Reply, method
from backends.opennebula.standin.seed import add_cluster, add_datastore, add_host
from backends.opennebula.standin.state import Host
from backends.opennebula.standin.template import Template
from backends.opennebula.standin.vm_methods import read_template, selected

_HOST_NAME_MAX = 64
_ENABLE, _DISABLE, _OFFLINE = 0, 1, 2


def write_template(template: Template, given: Template, append: int, kept: frozenset[str] = frozenset()) -> Template:
    """What an update leaves: appended to, or replaced but for what is kept."""
    if append not in (0, 1):
        raise Refusal(Refusal.API, "Wrong update type")
    if append:
        template.merge(given)
        return template
    replaced = template.take(kept)
    replaced.merge(given)
    return replaced


# Hosts


@method("one.host.allocate", str, str, str, int)
def host_allocate(request: Request, name: str, im_mad: str, vm_mad: str, cluster_id: int) -> Reply:
    """Allocate a new host"""
    world = request.world
    cluster = request.find(world.clusters, 0 if cluster_id == -1 else cluster_id)
    request.admin_only(f"CREATE HOST; Not authorized to perform ADMIN CLUSTER [{cluster.id}]")
    what = "Error allocating a new host."
    if not 0 < len(name) < _HOST_NAME_MAX:
        raise Refusal(
            Refusal.ALLOCATE,
            f"{what} Invalid HOSTNAME, HOSTNAME length should be greater than 1,"
            f" but smaller than {_HOST_NAME_MAX} characters",
        )
    taken = world.hosts.named(name)
    if taken is not None:
        raise Refusal(Refusal.ALLOCATE, f"{what} NAME is already taken by HOST {taken.id}.")
    host = add_host(world, name, cluster.id, im_mad=im_mad, vm_mad=vm_mad)
    request.lifecycle.expect_report(host)
    return host.id


@method("one.host.info", int, optional=(False,))
def host_info(request: Request, host_id: int, _decrypt: bool) -> Reply:
    """Retrieve information for a host"""
    host = request.find(request.world.hosts, host_id)
    request.admin_only(f"USE HOST [{host_id}]")
    return documents.host(request.world, host, in_pool=False)


@method("one.hostpool.info")
def hostpool_info(request: Request) -> Reply:
    """Retrieve information for all the hosts"""
    hosts = request.world.hosts.newest_first() if request.is_admin else ()
    return documents.pool("HOST_POOL", (documents.host(request.world, host, in_pool=True) for host in hosts))


@method("one.host.monitoring", int, optional=(-1,))
def host_monitoring(request: Request, host_id: int, _seconds: int) -> Reply:
    """Retrieve the monitoring of a host"""
    host = request.find(request.world.hosts, host_id)
    request.admin_only(f"USE HOST [{host_id}]")
    return documents.pool("MONITORING_DATA", [documents.host_monitoring(host)] if host.monitored_at else [])


@method("one.hostpool.monitoring", optional=(-1,))
def hostpool_monitoring(request: Request, _seconds: int) -> Reply:
    """Retrieve the monitoring of all the hosts"""
    return documents.hosts_monitoring(request.world)


@method("one.host.status", int, int)
def host_status(request: Request, host_id: int, status: int) -> Reply:
    """Enable, disable or set a host offline"""
    host = request.find(request.world.hosts, host_id)
    request.admin_only(f"ADMIN HOST [{host_id}]")
    if status not in (_ENABLE, _DISABLE, _OFFLINE):
        raise Refusal(Refusal.INTERNAL, "Wrong status code")
    if status == _DISABLE:
        host.state = HostState.DISABLED
    else:
        host.state = HostState.OFFLINE if status == _OFFLINE else HostState.INIT
        _forget_totals(host)
    if status == _ENABLE:
        request.lifecycle.expect_report(host)
    return host_id


def _forget_totals(host: Host) -> None:
    host.reported = False
    for name in ("TOTALCPU", "TOTALMEMORY"):
        host.template.pop(name)


@method("one.host.update", int, str, optional=(0,))
def host_update(request: Request, host_id: int, text: str, append: int) -> Reply:
    """Replace or append to the template of a host"""
    host = request.find(request.world.hosts, host_id)
    request.admin_only(f"MANAGE HOST [{host_id}]")
    given = read_template(text, Refusal.ACTION)
    host.template = write_template(host.template, given, append, frozenset({"IM_MAD", "VM_MAD"}))
    return host_id


@method("one.host.rename", int, str)
def host_rename(request: Request, host_id: int, name: str) -> Reply:
    """Rename a host"""
    host = request.find(request.world.hosts, host_id)
    request.admin_only(f"ADMIN HOST [{host_id}]")
    taken = request.world.hosts.named(name)
    if taken is not None and taken is not host:
        raise Refusal(Refusal.ACTION, f"NAME is already taken by HOST {taken.id}.")
    host.name = name
    return host_id


@method("one.host.delete", int)
def host_delete(request: Request, host_id: int) -> Reply:
    """Delete a host"""
    host = request.find(request.world.hosts, host_id)
    request.admin_only(f"ADMIN HOST [{host_id}]")
    if host.vms:
        raise Refusal(Refusal.ACTION, "Cannot delete host. Can not remove a host with running VMs")
    del request.world.hosts[host_id]
    return host_id


# Clusters


@method("one.cluster.allocate", str)
def cluster_allocate(request: Request, name: str) -> Reply:
    """Allocate a new cluster"""
    request.admin_only("CREATE CLUSTER")
    taken = request.world.clusters.named(name)
    if taken is not None:
        raise Refusal(Refusal.ALLOCATE, f"Error allocating a new cluster. NAME is already taken by CLUSTER {taken.id}.")
    return add_cluster(request.world, name).id


@method("one.cluster.info", int, optional=(False,))
def cluster_info(request: Request, cluster_id: int, _decrypt: bool) -> Reply:
    """Retrieve information for a cluster"""
    cluster = request.find(request.world.clusters, cluster_id)
    request.admin_only(f"USE CLUSTER [{cluster_id}]")
    return documents.cluster(request.world, cluster)


@method("one.clusterpool.info")
def clusterpool_info(request: Request) -> Reply:
    """Retrieve information for all the clusters"""
    clusters = request.world.clusters.newest_first() if request.is_admin else ()
    return documents.pool("CLUSTER_POOL", (documents.cluster(request.world, item) for item in clusters))


@method("one.cluster.addhost", int, int)
def cluster_addhost(request: Request, cluster_id: int, host_id: int) -> Reply:
    """Move a host to a cluster"""
    cluster = request.find(request.world.clusters, cluster_id)
    host = request.find(request.world.hosts, host_id)
    request.admin_only(f"ADMIN CLUSTER [{cluster_id}]")
    host.cluster_id = cluster.id
    for vm_id in host.vms:
        request.world.vms[vm_id].history[-1].cluster_id = cluster.id
    return cluster_id


@method("one.cluster.adddatastore", int, int)
def cluster_adddatastore(request: Request, cluster_id: int, datastore_id: int) -> Reply:
    """Add a datastore to a cluster"""
    cluster = request.find(request.world.clusters, cluster_id)
    request.find(request.world.datastores, datastore_id)
    request.admin_only(f"ADMIN CLUSTER [{cluster_id}]")
    cluster.datastores.add(datastore_id)
    return cluster_id


@method("one.cluster.delete", int)
def cluster_delete(request: Request, cluster_id: int) -> Reply:
    """Delete a cluster"""
    cluster = request.find(request.world.clusters, cluster_id)
    request.admin_only(f"ADMIN CLUSTER [{cluster_id}]")
    hosts = request.world.cluster_hosts(cluster)
    if hosts:
        raise Refusal(
            Refusal.ACTION,
            f"Cannot delete cluster. Cluster {cluster_id} is not empty, it contains {len(hosts)} hosts.",
        )
    del request.world.clusters[cluster_id]
    return cluster_id


# Datastores


@method("one.datastore.allocate", str, int)
def datastore_allocate(request: Request, text: str, cluster_id: int) -> Reply:
    """Allocate a new datastore"""
    world = request.world
    request.admin_only("CREATE DATASTORE")
    given = read_template(text, Refusal.INTERNAL)
    if given.get("TYPE") != "SYSTEM_DS" and "DS_MAD" not in given:
        raise Refusal(Refusal.INTERNAL, "No DS_MAD in template.")
    name = given.get("NAME")
    taken = world.datastores.named(name)
    if taken is not None:
        raise Refusal(Refusal.ALLOCATE, f"NAME is already taken by DATASTORE {taken.id}.")
    cluster = request.find(world.clusters, 0 if cluster_id == -1 else cluster_id)
    datastore = add_datastore(world, name, given.get("TYPE", "IMAGE_DS"), [cluster.name])
    given.pop("NAME")
    datastore.template.merge(given)
    return datastore.id


@method("one.datastore.info", int, optional=(False,))
def datastore_info(request: Request, datastore_id: int, _decrypt: bool) -> Reply:
    """Retrieve information for a datastore"""
    return documents.datastore(request.world, request.find(request.world.datastores, datastore_id))


@method("one.datastorepool.info")
def datastorepool_info(request: Request) -> Reply:
    """Retrieve information for all the datastores"""
    found = selected(request, request.world.datastores.newest_first(), "datastore", -2, -1, -1)
    return documents.pool("DATASTORE_POOL", (documents.datastore(request.world, item) for item in found))


@method("one.datastore.update", int, str, optional=(0,))
def datastore_update(request: Request, datastore_id: int, text: str, append: int) -> Reply:
    """Replace or append to the template of a datastore"""
    datastore = request.find(request.world.datastores, datastore_id)
    request.admin_only(f"MANAGE DATASTORE [{datastore_id}]")
    datastore.template = write_template(datastore.template, read_template(text, Refusal.ACTION), append)
    return datastore_id
