"""The request of each call, protobuf in, plain values out: names, ids, masks, pages, and what they envelop.

Invariant: every function names all bad fields of its request in one FieldsInvalid, those of an enveloped
workspace included, and answers only values that are within bounds. Nobody's rights are looked at here, and
nothing is looked up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Final, Protocol

from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message
from workspacebroker.v1 import pool_service_pb2 as pools_pb
from workspacebroker.v1 import resources_pb2 as pb
from workspacebroker.v1 import workspace_service_pb2 as calls_pb

from broker.api import names
from broker.api.digest import request_digest
from broker.api.enums import STATES_IN
from broker.api.fields import Problems, keyed, nearest, shown
from broker.api.limits import DEFAULT_PAGE_SIZE
from broker.api.offered import MESSAGE, NOT_OFFERED, refuse_not_offered
from broker.api.pages import PageTokens
from broker.api.terms import read_duration, read_end_action, read_queue_until, refuse_open_end
from broker.api.validate import KnownSets, WorkspaceReader
from broker.core.errors import FieldReason, FieldViolation
from broker.core.model import FINAL, EndAction, State
from broker.core.requests import (
    CheckRequest,
    CreateRequest,
    ListRequest,
    Page,
    SaveRequest,
    StrayRequest,
    Target,
    UpdateRequest,
    WaitRequest,
    WatchRequest,
    WorkspaceRequest,
)

TERMS_PATHS: Final = (
    "terms.duration",
    "terms.open_ended",
    "terms.end_action",
    "terms.queue_until",
    "terms.priority",
)
UPDATE_PATHS: Final = ("display_name", "labels", *TERMS_PATHS)

VerbRequest = (
    calls_pb.StartWorkspaceRequest
    | calls_pb.PauseWorkspaceRequest
    | calls_pb.UnpauseWorkspaceRequest
    | calls_pb.SuspendWorkspaceRequest
    | calls_pb.ResumeWorkspaceRequest
    | calls_pb.StopWorkspaceRequest
    | calls_pb.RebootWorkspaceRequest
    | calls_pb.TerminateWorkspaceRequest
    | calls_pb.SaveNodeRequest
)
_NOBODY = ("", "")
STRAY_ACTIONS: Final[Mapping[int, bool | None]] = {
    pools_pb.ResolveStrayRequest.ACTION_UNSPECIFIED: None,
    pools_pb.ResolveStrayRequest.ACTION_ADOPT: True,
    pools_pb.ResolveStrayRequest.ACTION_END: False,
}
Unknown = Callable[[WorkspaceRequest], Iterable[FieldViolation]]
"""What of a request no pool knows. Asked here only of a request that is refused anyway, so that all its bad fields are
named at once; of every other one the use case asks."""


def create_request(
    message: calls_pb.CreateWorkspaceRequest,
    *,
    known: KnownSets,
    now: datetime,
    unknown: Unknown = lambda _: (),
) -> CreateRequest:
    """CreateWorkspace."""
    problems = Problems()
    reader = WorkspaceReader(problems, known, now=now)
    generations = message.if_pool_generations
    at = "if_pool_generations"
    kept = {}
    for pool in problems.few_keys(at, generations, problems.limits.if_pool_generations, "pools"):
        problems.identifier(keyed(at, pool), pool, needed=True)
        kept[pool] = problems.whole(keyed(at, pool), generations[pool], 0, 2**63 - 1)
    request = CreateRequest(
        tenant=problems.attempt(names.tenant, message.parent, "parent", ""),
        workspace_id=problems.identifier("workspace_id", message.workspace_id),
        workspace=reader.enveloped(message),
        request_id=problems.token("request_id", message.request_id),
        digest=request_digest(message),
        validate_only=message.validate_only,
        if_pool_generations=kept,
    )
    if kept and message.workspace.ensemble:
        problems.add(at, FieldReason.CONFLICT, "excludes workspace.ensemble: nothing is placed before its seal")
    _check_with(problems, request.tenant, request.workspace, unknown)
    return request


def check_request(
    message: calls_pb.CheckPlacementRequest,
    *,
    known: KnownSets,
    now: datetime,
    unknown: Unknown = lambda _: (),
) -> CheckRequest:
    """CheckPlacement."""
    problems = Problems()
    reader = WorkspaceReader(problems, known, now=now)
    request = CheckRequest(
        tenant=problems.attempt(names.tenant, message.parent, "parent", ""),
        workspace=reader.enveloped(message),
        include_hosts=message.include_hosts,
        include_offers=message.include_offers,
    )
    _check_with(problems, request.tenant, request.workspace, unknown)
    return request


def _check_with(problems: Problems, tenant: str, workspace: WorkspaceRequest, unknown: Unknown) -> None:
    """Raises FieldsInvalid if a field is bad, naming also what nobody knows; a field is named once."""
    if tenant and workspace.ensemble is not None and workspace.ensemble[0] != tenant:
        at = f"{workspace.path}.ensemble"
        problems.add(at, FieldReason.CONFLICT, f"{names.ensemble_name(*workspace.ensemble)} is another tenant's")
    if problems.found:
        named = {violation.path for violation in problems.found}
        problems.found.extend(each for each in unknown(workspace) if each.path not in named)
    problems.check()


def verb_target(message: VerbRequest) -> Target:
    """The target of a life-cycle verb, with the digest of the whole request."""
    problems = Problems()
    target = _target(problems, message)
    problems.check()
    return target


def save_request(message: calls_pb.SaveNodeRequest) -> SaveRequest:
    """SaveNode."""
    problems = Problems()
    target = _target(problems, message)
    if len(target.node_indexes) > 1:
        problems.add("target.node_indexes", FieldReason.OUT_OF_RANGE, "one node is saved at a time")
    request = SaveRequest(
        target=target,
        image_name=problems.name("image_name", message.image_name, needed=True),
        device=problems.text("device", message.device, problems.limits.device),
        terminate_after=message.terminate_after,
    )
    problems.check()
    return request


def _target(problems: Problems, message: VerbRequest) -> Target:
    target = message.target
    at = "target.node_indexes"
    indexes = problems.few(at, target.node_indexes, problems.limits.nodes, "indexes")
    seen: dict[str, str] = {}
    for place, index in enumerate(indexes):
        problems.whole(f"{at}[{place}]", index, 0, 2**31 - 1)
        problems.distinct(f"{at}[{place}]", str(index), seen)
    tenant, workspace = problems.attempt(names.workspace, target.name, "target.name", _NOBODY)
    return Target(
        tenant=tenant,
        workspace_id=workspace,
        node_indexes=tuple(indexes),
        request_id=problems.token("target.request_id", target.request_id),
        etag=problems.token("target.etag", target.etag),
        digest=request_digest(message),
    )


def update_request(message: calls_pb.UpdateWorkspaceRequest, *, now: datetime) -> UpdateRequest:
    """UpdateWorkspace. Fields outside the mask are not looked at."""
    problems = Problems()
    asked = message.workspace
    tenant, workspace = problems.attempt(names.workspace, asked.name, "workspace.name", _NOBODY)
    paths = _update_paths(problems, message.update_mask, asked)
    display_name, labels, duration, end_action, until = "", dict[str, str](), None, EndAction.TERMINATE, None
    if "display_name" in paths:
        display_name = problems.text("workspace.display_name", asked.display_name, problems.limits.display_name)
    if "labels" in paths:
        labels = problems.labels("workspace.labels", asked.labels)
    if "terms.duration" in paths:
        duration = read_duration(problems, asked.terms, "workspace.terms")
        if "terms.open_ended" in paths:
            refuse_open_end(problems, asked.terms, "workspace.terms", "duration")
    if "terms.end_action" in paths:
        end_action = read_end_action(problems, asked.terms, "workspace.terms")
    if "terms.queue_until" in paths:
        until = read_queue_until(problems, asked.terms, "workspace.terms", now)
    request = UpdateRequest(
        tenant=tenant,
        workspace_id=workspace,
        paths=paths,
        display_name=display_name,
        labels=labels,
        duration=duration,
        open_ended=asked.terms.open_ended and "terms.open_ended" in paths,
        end_action=end_action,
        queue_until=until,
        priority=asked.terms.priority,
        request_id=problems.token("request_id", message.request_id),
        etag=problems.token("workspace.etag", asked.etag),
        digest=request_digest(message),
        validate_only=message.validate_only,
    )
    problems.check()
    return request


def _update_paths(problems: Problems, mask: FieldMask, asked: pb.Workspace) -> frozenset[str]:
    """The paths to change. "terms" means those of its fields that may change: the others stay as they are."""
    if not mask.paths:
        problems.required("update_mask", f"is empty; it names some of {', '.join(UPDATE_PATHS)}")
    paths: set[str] = set()
    for index, path in enumerate(problems.few("update_mask.paths", mask.paths, 64, "paths")):
        at = f"update_mask.paths[{index}]"
        if path in UPDATE_PATHS:
            paths.add(path)
        elif path == "terms":
            paths.update(TERMS_PATHS)
            refuse_not_offered(problems, "terms", asked.terms, "workspace.terms")
        elif path in NOT_OFFERED:
            problems.add(at, FieldReason.UNKNOWN_VALUE, f"{shown(path)} {MESSAGE}")
        else:
            problems.add(
                at,
                FieldReason.UNKNOWN_VALUE,
                f"{shown(path)} cannot be changed; one of {', '.join(UPDATE_PATHS)}{nearest(path, UPDATE_PATHS)}",
            )
    return frozenset(paths)


def list_request(message: calls_pb.ListWorkspacesRequest, tokens: PageTokens) -> ListRequest:
    """ListWorkspaces."""
    problems = Problems()
    uids = problems.few("uids", message.uids, problems.limits.uids, "uids")
    for index, uid in enumerate(uids):
        problems.name(f"uids[{index}]", uid, needed=True)
    states = _states(problems, message.states)
    request = ListRequest(
        tenant=problems.attempt(names.tenants, message.parent, "parent", None),
        page=_page(problems, message, tokens),
        states=states or frozenset(State) - FINAL,
        label_selector=problems.labels("label_selector", message.label_selector),
        pool=problems.identifier("pool", message.pool),
        uids=frozenset(uids),
    )
    problems.check()
    return request


def wait_request(message: calls_pb.WaitWorkspaceRequest) -> WaitRequest:
    """WaitWorkspace."""
    problems = Problems()
    tenant, workspace = problems.attempt(names.workspace, message.name, "name", _NOBODY)
    timeout = None
    if message.HasField("timeout"):
        timeout = problems.length("timeout", message.timeout, zero=True)
    states = _states(problems, message.states)
    problems.check()
    return WaitRequest(tenant=tenant, workspace_id=workspace, states=states, timeout=timeout)


def watch_request(message: calls_pb.WatchWorkspacesRequest) -> WatchRequest:
    """WatchWorkspaces."""
    problems = Problems()
    request = WatchRequest(
        tenant=problems.attempt(names.tenants, message.parent, "parent", None),
        after_revision=problems.whole("after_revision", message.after_revision, 0, 2**63 - 1),
        label_selector=problems.labels("label_selector", message.label_selector),
    )
    problems.check()
    return request


def pools_page(message: pools_pb.ListPoolsRequest, tokens: PageTokens) -> Page:
    """ListPools."""
    problems = Problems()
    page = _page(problems, message, tokens)
    problems.check()
    return page


def pool_page(
    message: pools_pb.ListHostsRequest
    | pools_pb.ListStraysRequest
    | pools_pb.ListImagesRequest
    | pools_pb.ListNetworksRequest,
    tokens: PageTokens,
) -> tuple[str, Page]:
    """A list of what one pool has: the pool, and which page."""
    problems = Problems()
    pool = problems.attempt(names.pool, message.parent, "parent", "")
    page = _page(problems, message, tokens)
    problems.check()
    return pool, page


def pool_update(message: pools_pb.UpdatePoolRequest) -> tuple[str, bool]:
    """UpdatePool: the pool, and whether it is to drain."""
    problems = Problems()
    pool = problems.attempt(names.pool, message.pool.name, "pool.name", "")
    _only(problems, message.update_mask, "draining")
    problems.check()
    return pool, message.pool.draining


def host_update(message: pools_pb.UpdateHostRequest) -> tuple[str, str, bool]:
    """UpdateHost: pool, host, and whether it is to be cordoned."""
    problems = Problems()
    pool, host = problems.attempt(names.host, message.host.name, "host.name", _NOBODY)
    _only(problems, message.update_mask, "cordoned")
    problems.check()
    return pool, host, message.host.cordoned


def stray_request(message: pools_pb.ResolveStrayRequest) -> StrayRequest:
    """ResolveStray: to be ended, or adopted by a tenant under terms."""
    problems = Problems()
    pool, backend_id = problems.attempt(names.stray, message.name, "name", _NOBODY)
    adopted = problems.choice("action", message.action, STRAY_ACTIONS, None)
    if message.action == pools_pb.ResolveStrayRequest.ACTION_UNSPECIFIED:
        problems.required("action", "is missing; ACTION_ADOPT or ACTION_END")
    tenant, duration, end_action = "", None, EndAction.TERMINATE
    if adopted:
        tenant = problems.attempt(names.tenant, message.parent, "parent", "")
        refuse_not_offered(problems, "terms", message.terms, "terms")
        duration = read_duration(problems, message.terms, "terms")
        refuse_open_end(problems, message.terms, "terms", "duration")
        end_action = read_end_action(problems, message.terms, "terms")
    request = StrayRequest(
        pool=pool,
        backend_id=backend_id,
        tenant=tenant,
        duration=duration,
        open_ended=message.terms.open_ended,
        end_action=end_action,
        request_id=problems.token("request_id", message.request_id),
        digest=request_digest(message),
    )
    problems.check()
    return request


def _only(problems: Problems, mask: FieldMask, path: str) -> None:
    if not mask.paths:
        problems.required("update_mask", f"is empty; it names {path}")
    for index, named in enumerate(problems.few("update_mask.paths", mask.paths, 64, "paths")):
        if named != path:
            problems.add(
                f"update_mask.paths[{index}]",
                FieldReason.UNKNOWN_VALUE,
                f"{shown(named)} cannot be changed; only {path}",
            )


class _Paged(Protocol):
    """What every list request has."""

    page_size: int
    page_token: str


def _page(problems: Problems, message: _Paged, tokens: PageTokens) -> Page:
    size = problems.whole("page_size", message.page_size, 0, problems.limits.page_size)
    assert isinstance(message, Message)
    position = problems.attempt(
        lambda token, path: tokens.read(token, message, path), message.page_token, "page_token", ""
    )
    return Page(size=size or DEFAULT_PAGE_SIZE, position=position)


def _states(problems: Problems, numbers: Sequence[int]) -> frozenset[State]:
    kept = problems.few("states", numbers, 64, "states")
    known = [problems.choice(f"states[{index}]", number, STATES_IN, None) for index, number in enumerate(kept)]
    return frozenset(state for state in known if state is not None)
