"""Pools, hosts, images, networks, strays and tenants out: the views of core/views.py as messages.

What a caller may not see is left out of a view before it comes here.
"""

from __future__ import annotations

from collections.abc import Mapping

from workspacebroker.v1 import resources_pb2 as pb
from workspacebroker.v1.pool_service_pb2 import Stray

from broker.api import names
from broker.api.enums import CAPABILITIES, HOST_STATES, STATES, VALUE_KINDS
from broker.api.parameters import render_attribute
from broker.api.render import optional_failure, quantities
from broker.api.times import optional_duration, optional_timestamp, timestamp
from broker.core.inventory import AttributeValue
from broker.core.views import (
    HostView,
    ImageView,
    NetworkView,
    ParameterView,
    PoolView,
    SlotView,
    StrayView,
    TenantView,
)

MIB = 1024 * 1024


def pool(view: PoolView) -> pb.Pool:
    """A pool."""
    return pb.Pool(
        name=names.pool_name(view.name),
        backend=view.backend,
        state=pb.Pool.STATE_ACTIVE if view.reachable else pb.Pool.STATE_UNREACHABLE,
        capabilities=sorted(CAPABILITIES[each] for each in view.capabilities),
        parameter_specs=[_parameter(each) for each in view.parameters],
        instance_types=[
            pb.InstanceType(name=name, amounts=quantities(amounts)) for name, amounts in view.instance_types.items()
        ],
        total=quantities(view.total),
        allocated=quantities(view.allocated),
        reserved=quantities(view.reserved),
        generation=view.generation,
        refresh_time=optional_timestamp(view.refresh_time),
        last_error=optional_failure(view.last_error),
        draining=view.draining,
        default_lease_duration=optional_duration(view.default_duration),
        max_lease_duration=optional_duration(view.max_duration),
    )


def host(view: HostView) -> pb.Host:
    """A host with its slots."""
    return pb.Host(
        name=names.host_name(view.pool, view.name),
        state=HOST_STATES[view.state],
        total=quantities(view.total),
        free=quantities(view.free),
        slots=[_slot(each) for each in view.slots],
        attributes=_attributes(view.attributes),
        foreign=quantities(view.foreign),
        cordoned=view.cordoned,
        last_error=optional_failure(view.last_error),
    )


def image(view: ImageView) -> pb.Image:
    """An image."""
    return pb.Image(
        name=view.name,
        display_name=view.display_name,
        ready=view.ready,
        size_bytes=view.size_mib * MIB,
        attributes=_attributes(view.attributes),
        tenant=names.tenant_name(view.tenant) if view.tenant else "",
    )


def network(view: NetworkView) -> pb.Network:
    """A network."""
    return pb.Network(
        name=view.name,
        display_name=view.display_name,
        total_addresses=view.total_addresses,
        free_addresses=view.free_addresses,
    )


def stray(view: StrayView) -> Stray:
    """A VM with our tag and no owner."""
    return Stray(
        name=names.stray_name(view.pool, view.backend_id),
        backend_id=view.backend_id,
        host=names.host_name(view.pool, view.host) if view.host else "",
        workspace=view.workspace,
        reason=view.reason,
        found_time=timestamp(view.found_time),
        workspace_uid=view.workspace_uid,
        node_index=view.node_index,
        amounts=quantities(view.amounts),
        seen=pb.Workspace.STATE_UNSPECIFIED if view.seen is None else STATES[view.seen],
    )


def tenant(view: TenantView) -> pb.Tenant:
    """A tenant."""
    return pb.Tenant(
        name=names.tenant_name(view.name),
        display_name=view.display_name,
        limits=quantities(view.limits),
        pool_limits={each: quantities(amounts) for each, amounts in view.pool_limits.items()},
        used=quantities(view.used),
        pool_used={each: quantities(amounts) for each, amounts in view.pool_used.items()},
        allowed_pools=view.allowed_pools,
        max_lease_duration=optional_duration(view.max_duration),
        create_time=optional_timestamp(view.create_time),
        etag=view.etag,
    )


def _parameter(view: ParameterView) -> pb.ParameterSpec:
    return pb.ParameterSpec(
        key=view.key, description=view.description, kind=VALUE_KINDS[view.kind], required=view.required
    )


def _slot(view: SlotView) -> pb.Host.Slot:
    return pb.Host.Slot(
        workspace=view.workspace,
        node_index=view.node_index,
        amounts=quantities(view.amounts),
        start_time=timestamp(view.start_time),
        end_time=optional_timestamp(view.end_time),
        preparation=view.preparation,
    )


def _attributes(attributes: Mapping[str, AttributeValue]) -> dict[str, pb.ParameterValue]:
    return {key: render_attribute(value) for key, value in attributes.items()}
