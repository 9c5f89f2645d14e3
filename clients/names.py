"""The words of the API: resource names from what people type, groups of states, and the verbs as one table.

Knows no connection.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import quote, unquote

from google.protobuf.message import Message
from workspacebroker.v1 import workspace_service_pb2 as api
from workspacebroker.v1.resources_pb2 import Workspace

State = Workspace.State
FINAL = frozenset({Workspace.STATE_TERMINATED, Workspace.STATE_EXPIRED, Workspace.STATE_FAILED})
RESTING = FINAL | {
    Workspace.STATE_RUNNING,
    Workspace.STATE_PAUSED,
    Workspace.STATE_SUSPENDED,
    Workspace.STATE_STOPPED,
}


@dataclass(frozen=True, slots=True)
class Verb:
    """A life-cycle verb: its request message and the state it leads to."""

    request: type[Message]
    leads_to: Workspace.State


VERBS: Mapping[str, Verb] = {
    "start": Verb(api.StartWorkspaceRequest, Workspace.STATE_RUNNING),
    "pause": Verb(api.PauseWorkspaceRequest, Workspace.STATE_PAUSED),
    "unpause": Verb(api.UnpauseWorkspaceRequest, Workspace.STATE_RUNNING),
    "suspend": Verb(api.SuspendWorkspaceRequest, Workspace.STATE_SUSPENDED),
    "resume": Verb(api.ResumeWorkspaceRequest, Workspace.STATE_RUNNING),
    "stop": Verb(api.StopWorkspaceRequest, Workspace.STATE_STOPPED),
    "reboot": Verb(api.RebootWorkspaceRequest, Workspace.STATE_RUNNING),
    "terminate": Verb(api.TerminateWorkspaceRequest, Workspace.STATE_TERMINATED),
}


def tenant_name(tenant: str) -> str:
    """`tenants/{tenant}`, of a short or a full name."""
    return tenant if tenant.startswith("tenants/") else f"tenants/{quote(tenant, safe='')}"


def workspace_name(workspace: str, tenant: str = "default") -> str:
    """`tenants/{tenant}/workspaces/{workspace}`, of a short or a full name."""
    if re.fullmatch(r"tenants/[^/]+/workspaces/[^/]+", workspace):
        return workspace
    return f"{tenant_name(tenant)}/workspaces/{quote(workspace, safe='')}"


def ensemble_name(ensemble: str, tenant: str = "default") -> str:
    """`tenants/{tenant}/ensembles/{ensemble}`, of a short or a full name."""
    if re.fullmatch(r"tenants/[^/]+/ensembles/[^/]+", ensemble):
        return ensemble
    return f"{tenant_name(tenant)}/ensembles/{quote(ensemble, safe='')}"


def pool_name(pool: str) -> str:
    """`pools/{pool}`, of a short or a full name."""
    return pool if re.fullmatch(r"pools/[^/]+", pool) else f"pools/{quote(pool, safe='')}"


def host_name(host: str) -> str:
    """`pools/{pool}/hosts/{host}`, of POOL/HOST (HOST as its backend spells it) or a full name."""
    if re.fullmatch(r"pools/[^/]+/hosts/[^/]+", host):
        return host
    pool, slash, own = host.partition("/")
    if not (pool and slash and own):
        raise ValueError(f"{host!r} names no host; write POOL/HOST")
    return f"{pool_name(pool)}/hosts/{quote(own, safe='')}"


def stray_name(stray: str) -> str:
    """`pools/{pool}/strays/{stray}`, of POOL/ID or a full name."""
    if re.fullmatch(r"pools/[^/]+/strays/[^/]+", stray):
        return stray
    pool, slash, own = stray.partition("/")
    if not (pool and slash and own):
        raise ValueError(f"{stray!r} names no stray; write POOL/ID, as `workspace strays POOL` lists them")
    return f"{pool_name(pool)}/strays/{quote(own, safe='')}"


def short_name(name: str, tenant: str = "") -> str:
    """What a person would type for a full name: POOL, POOL/HOST, or W where it belongs to `tenant`."""
    parts = [unquote(part) for part in name.split("/")]
    if len(parts) == 4 and parts[0] == "tenants":
        return parts[3] if parts[1] == tenant else name
    return "/".join(parts[1::2]) or name


def state_word(state: int) -> str:
    """RUNNING for STATE_RUNNING; the number for a state this client does not know yet."""
    known = State.DESCRIPTOR.values_by_number.get(state)
    return known.name.removeprefix("STATE_") if known else str(state)
