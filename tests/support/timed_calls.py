"""What a scenario asks for, as messages of the API."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from google.protobuf.field_mask_pb2 import FieldMask
from workspacebroker.v1 import pool_service_pb2 as pool_api
from workspacebroker.v1 import resources_pb2 as pb
from workspacebroker.v1 import workspace_service_pb2 as api

NOTICE: Final = "core:preemption_notice"
NODE: Final = {"cpu": 1000, "memory": 256}
"""What a node takes unless a scenario says otherwise."""


def create(
    tenant: str, workspace_id: str, options: Mapping[str, Any], *, ensemble: str = ""
) -> api.CreateWorkspaceRequest:
    """CreateWorkspace."""
    wish = _wish(options)
    wish.ensemble = ensemble
    return api.CreateWorkspaceRequest(parent=tenant, workspace_id=workspace_id, workspace=wish)


def check(tenant: str, options: Mapping[str, Any]) -> api.CheckPlacementRequest:
    """CheckPlacement, with offers."""
    return api.CheckPlacementRequest(parent=tenant, workspace=_wish(options), include_offers=True)


def update(name: str, options: Mapping[str, Any]) -> api.UpdateWorkspaceRequest:
    """UpdateWorkspace of the terms that are named."""
    return api.UpdateWorkspaceRequest(
        workspace=pb.Workspace(name=name, terms=_terms(options)),
        update_mask=FieldMask(paths=[f"terms.{key}" for key in options]),
    )


def verb(name: str, word: str, options: Mapping[str, Any]) -> Any:
    """A life-cycle verb's request."""
    target = api.Target(name=name, node_indexes=options.get("nodes", ()))
    released = {"release_capacity": True} if options.get("release") else {}
    return getattr(api, f"{word}WorkspaceRequest")(target=target, **released)


def open_ensemble(tenant: str, ensemble_id: str, options: Mapping[str, Any]) -> api.CreateEnsembleRequest:
    """CreateEnsemble."""
    request = api.CreateEnsembleRequest(parent=tenant, ensemble_id=ensemble_id)
    if "expire_time" in options:
        request.ensemble.expire_time.FromDatetime(options["expire_time"])
    return request


def cordon(host: str, cordoned: bool) -> pool_api.UpdateHostRequest:
    """UpdateHost."""
    return pool_api.UpdateHostRequest(
        host=pb.Host(name=host, cordoned=cordoned), update_mask=FieldMask(paths=["cordoned"])
    )


def drain(pool: str, draining: bool) -> pool_api.UpdatePoolRequest:
    """UpdatePool."""
    return pool_api.UpdatePoolRequest(
        pool=pb.Pool(name=pool, draining=draining), update_mask=FieldMask(paths=["draining"])
    )


def _wish(options: Mapping[str, Any]) -> pb.Workspace:
    """A workspace as it is asked for; one small node unless it says otherwise."""
    sets = options.get("sets") or ({key: value for key, value in options.items() if key != "pool"},)
    wish = pb.Workspace(pool=options.get("pool", ""), node_sets=list(map(_node_set, sets)), terms=_terms(options))
    if "preemption_notice" in options:
        wish.parameters[NOTICE].duration_value.FromTimedelta(options["preemption_notice"])
    return wish


def _node_set(options: Mapping[str, Any]) -> pb.NodeSet:
    amounts = {key: options.get(key, NODE.get(key, 0)) for key in ("cpu", "memory", "disk")}
    return pb.NodeSet(
        name=options.get("name", ""),
        count=options.get("nodes", 1),
        min_count=options.get("at_least", 0),
        amounts=pb.Quantities(amounts={key: amount for key, amount in amounts.items() if amount}),
        placement=f"PLACEMENT_{options.get('placement', 'UNSPECIFIED')}",
        pool=options.get("pool", ""),
    )


def _terms(options: Mapping[str, Any]) -> pb.LeaseTerms:
    terms = pb.LeaseTerms(
        open_ended=options.get("open_ended", False),
        preemptible=options.get("preemptible", False),
        priority=options.get("priority", 0),
        end_action=f"END_ACTION_{options.get('end_action', 'UNSPECIFIED')}",
    )
    for key in ("start_time", "earliest_start_time", "deadline", "queue_until"):
        if key in options:
            getattr(terms, key).FromDatetime(options[key])
    if "duration" in options:
        terms.duration.FromTimedelta(options["duration"])
    return terms
