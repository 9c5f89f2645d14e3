"""The Python SDK: a blocking `Client`, and `AsyncClient` for the same calls under asyncio.

Both send any request message of the API with `call`, which fills in what every caller needs: a request id, so
that gRPC may repeat a call without doing it twice; a deadline; retries (service_config.json); typed errors
(clients/errors.py). `Client` adds names for the common calls, paging, waiting and watching. Asyncio users
have `call` and the generated messages; waiting and watching there are the plain rpcs.

    with Client("broker:7443") as client:
        accepted = client.create(CreateWorkspaceRequest(parent=tenant_name("default"), workspace=wish))
        result = client.wait(accepted.name, [State.STATE_RUNNING], timeout=600)

Invariant: a message handed in is never changed, so the same wish sent twice is two requests unless it carries
its own request_id. Decides nothing about presentation.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum
from typing import Any, Self

import grpc
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import status_pb2
from workspacebroker.v1 import pool_service_pb2 as pool_api
from workspacebroker.v1 import tenant_service_pb2 as tenant_api
from workspacebroker.v1 import workspace_service_pb2 as api
from workspacebroker.v1.resources_pb2 import Ensemble, Host, Image, LeaseTerms, Network, Pool, Tenant, Workspace

from clients.aio import AsyncClient
from clients.errors import BrokerError, RevisionCompacted, TransportError, Unavailable, from_rpc_error, from_status
from clients.names import (
    FINAL,
    RESTING,
    VERBS,
    State,
    ensemble_name,
    host_name,
    pool_name,
    tenant_name,
    workspace_name,
)
from clients.transport import (
    CALL_SECONDS,
    DEFAULT_SERVER,
    Outage,
    channel_options,
    methods,
    new_request_id,
    with_request_id,
)

__all__ = [
    "DEFAULT_SERVER",
    "FINAL",
    "RESTING",
    "VERBS",
    "AsyncClient",
    "BrokerError",
    "Change",
    "Client",
    "Outcome",
    "Progress",
    "State",
    "WaitResult",
    "channel_options",
    "ensemble_name",
    "host_name",
    "new_request_id",
    "pool_name",
    "tenant_name",
    "workspace_name",
]

POLL_SECONDS = 20.0
LEAST_SECONDS = 1.0  # between polls, whatever a broker answers
GRACE_SECONDS = 10.0  # a long poll's deadline lies this far behind the time it asks for
STREAM_SECONDS = 600.0  # a watch is renewed this often, so that a dead connection is noticed
PAGE = 1000


class Outcome(Enum):
    """How a wait ended."""

    REACHED = "reached"
    ELSEWHERE = "elsewhere"  # at rest in a state that was not wanted
    TIMED_OUT = "timed out"


@dataclass(frozen=True, slots=True)
class WaitResult:
    """How a wait ended, and the workspace as it was then."""

    outcome: Outcome
    workspace: Workspace


@dataclass(frozen=True, slots=True)
class Change:
    """One change of a workspace. Where the change itself is no longer kept, its time is None."""

    workspace: Workspace
    previous_state: Workspace.State
    revision: int
    time: Timestamp | None


Progress = Callable[[Workspace | None, BrokerError | None], None]


class Client:
    """The API, blocking. `timeout` is a call's deadline in seconds; waits and watches have their own."""

    def __init__(
        self,
        server: str = DEFAULT_SERVER,
        *,
        credentials: grpc.ChannelCredentials | None = None,
        timeout: float = CALL_SECONDS,
    ) -> None:
        options = channel_options(server)
        self.timeout = timeout
        self._closed = threading.Event()
        self._channel = (
            grpc.secure_channel(server, credentials, options=options)
            if credentials
            else grpc.insecure_channel(server, options=options)
        )
        self._rpcs = methods(self._channel)
        # A broker that has answered once is worth waiting for when it goes away; one that never did may be
        # a typo.
        self._met = False

    def close(self) -> None:
        """Closes the connection, from any thread; what is under way in another ends CANCELLED, a TransportError."""
        self._closed.set()
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # gRPC's close waits for every call, for ever for one that Ctrl-C tore out of gRPC's own bookkeeping.
        if kind is not KeyboardInterrupt:
            self.close()

    def call(self, request: Message, *, timeout: float | None = None, wait_for_ready: bool = False) -> Any:
        """Sends a request (not a watch) and returns its response message; raises a BrokerError."""
        sent, request_id = with_request_id(request)
        try:
            answer = self._start(sent, self.timeout if timeout is None else timeout, wait_for_ready)
        except grpc.RpcError as error:
            raise self._refused(error, request_id) from error
        self._met = True
        return answer

    def _start(self, request: Message, timeout: float, wait_for_ready: bool) -> Any:
        """The answer to a request, or its stream."""
        try:
            return self._rpcs[request.DESCRIPTOR.full_name](request, timeout=timeout, wait_for_ready=wait_for_ready)
        except ValueError:
            if not self._closed.is_set():
                raise
            status = status_pb2.Status(code=grpc.StatusCode.CANCELLED.value[0], message="the client is closed")
            raise from_status(status) from None

    def _refused(self, error: grpc.RpcError, request_id: str = "") -> BrokerError:
        refusal = from_rpc_error(error, request_id=request_id)
        self._met = self._met or not isinstance(refusal, TransportError)
        return refusal

    def _pages(self, request: Any) -> Iterator[Any]:
        """The answers to a request for a list, page by page."""
        while True:
            answer = self.call(request)
            yield answer
            if not answer.next_page_token:
                return
            request.page_token = answer.next_page_token

    def _items(self, request: Any, field: str) -> Iterator[Any]:
        return (item for page in self._pages(request) for item in getattr(page, field))

    # Workspaces

    def check(self, request: api.CheckPlacementRequest) -> api.CheckPlacementResponse:
        """Says where a wish fits, or why not."""
        answer: api.CheckPlacementResponse = self.call(request)
        return answer

    def create(self, request: api.CreateWorkspaceRequest) -> Workspace:
        """Leases a workspace; answers as soon as it is accepted."""
        return _workspace(self.call(request))

    def workspace(self, name: str) -> Workspace:
        """Reads one workspace."""
        return _workspace(self.call(api.GetWorkspaceRequest(name=name)))

    def workspaces(
        self,
        parent: str,
        *,
        states: Collection[Workspace.State] = (),
        labels: Mapping[str, str] | None = None,
        pool: str = "",
    ) -> Iterator[Workspace]:
        """Every workspace of `tenants/{tenant}` or `tenants/-`; without `states` all but the final ones."""
        request = api.ListWorkspacesRequest(
            parent=parent, states=sorted(states), label_selector=labels, pool=pool, page_size=PAGE
        )
        return self._items(request, "workspaces")

    def update(self, workspace: Workspace, paths: Sequence[str], *, request_id: str = "") -> Workspace:
        """Changes the fields of `workspace` that `paths` name."""
        request = api.UpdateWorkspaceRequest(workspace=workspace, request_id=request_id)
        request.update_mask.paths.extend(paths)
        return _workspace(self.call(request))

    def act(
        self,
        verb: str,
        name: str,
        *,
        nodes: Sequence[int] = (),
        request_id: str = "",
        etag: str = "",
        **options: bool,
    ) -> Workspace:
        """Runs one of VERBS on a workspace or some of its nodes; options are fields of its request."""
        target = api.Target(name=name, node_indexes=nodes, request_id=request_id, etag=etag)
        request: Any = VERBS[verb].request
        return _workspace(self.call(request(target=target, **options)))

    def save_node(
        self,
        name: str,
        node: int,
        image_name: str,
        *,
        device: str = "",
        terminate_after: bool = False,
        request_id: str = "",
    ) -> api.SaveNodeResponse:
        """Saves one disk of a node as an image; it is ready once the workspace leaves SAVING."""
        answer: api.SaveNodeResponse = self.call(
            api.SaveNodeRequest(
                target=api.Target(name=name, node_indexes=[node], request_id=request_id),
                image_name=image_name,
                device=device,
                terminate_after=terminate_after,
            )
        )
        return answer

    def wait(
        self,
        name: str,
        states: Collection[Workspace.State] = (),
        *,
        timeout: float | None = None,
        or_settled: bool = False,
        poll: float = POLL_SECONDS,
        on_progress: Progress | None = None,
    ) -> WaitResult:
        """Waits until a workspace is in one of `states` (default: any that does not move on by itself).

        Ends early when it is final. `or_settled`: also when it rests elsewhere and is not queued to go on,
        which is how a verb that failed looks. An outage of the broker is waited out, within `timeout`
        (seconds; None: for ever). `on_progress` is told after every poll, with the error while the broker
        does not answer. Polls at most once in `poll` seconds or LEAST_SECONDS, whichever is less.
        """
        ends = None if timeout is None else time.monotonic() + timeout
        last: Workspace | None = None
        outage = Outage(self._closed)
        while True:
            left = float("inf") if ends is None else max(0.0, ends - time.monotonic())
            span = max(0.001, min(poll, left))  # 0 might read as "no time-out"
            queued = last is not None and last.queue_position > 0
            asked = set(states) | (RESTING if or_settled and not queued else set())
            request = api.WaitWorkspaceRequest(name=name, states=sorted(asked))
            request.timeout.FromTimedelta(timedelta(seconds=span))
            asked_at = time.monotonic()
            try:
                answer = self.call(request, timeout=span + GRACE_SECONDS, wait_for_ready=outage.on)
            except BrokerError as error:
                if not self._passes(error):
                    raise
                if on_progress:
                    on_progress(last, error)
                if left <= 0 and last is not None:
                    return WaitResult(Outcome.TIMED_OUT, last)
                if left <= 0:
                    raise
                outage.pause(error, left)
                continue
            outage.over()
            last = _workspace(answer)
            settled = or_settled and last.state in RESTING and last.queue_position == 0
            if (last.state in states) if states else answer.reached:
                return WaitResult(Outcome.REACHED, last)
            if last.state in FINAL or settled:
                return WaitResult(Outcome.ELSEWHERE, last)
            if on_progress:
                on_progress(last, None)
            if left <= span:
                return WaitResult(Outcome.TIMED_OUT, last)
            self._closed.wait(min(LEAST_SECONDS, span) - (time.monotonic() - asked_at))

    def watch(
        self, parent: str, *, labels: Mapping[str, str] | None = None, after_revision: int = 0
    ) -> Iterator[Change]:
        """Yields changes for ever, from the current workspaces on if `after_revision` is 0.

        Survives outages by resuming at the last revision; when that is no longer kept it lists, yields what
        has changed since, and goes on. Close the iterator to stop.
        """
        revision, compacted = after_revision, False
        outage = Outage(self._closed)
        while True:
            error: BrokerError | None = None
            try:
                if compacted:
                    missed, revision = self._since(parent, labels, revision)
                    compacted = False
                    yield from missed
                for event in self._events(parent, labels, revision, outage.on):
                    outage.over()
                    revision = max(revision, event.revision)
                    if event.HasField("workspace"):
                        yield Change(event.workspace, event.previous_state, event.revision, event.time)
            except RevisionCompacted:
                compacted = True
                continue
            except BrokerError as failure:
                if not self._passes(failure):
                    raise
                error = failure
            outage.pause(error)

    def _events(
        self, parent: str, labels: Mapping[str, str] | None, revision: int, wait_for_ready: bool
    ) -> Iterator[api.WatchWorkspacesResponse]:
        """One stream of changes and bookmarks, to its end."""
        request = api.WatchWorkspacesRequest(parent=parent, after_revision=revision, label_selector=labels)
        stream = self._start(request, STREAM_SECONDS, wait_for_ready)
        try:
            for event in stream:
                self._met = True
                yield event
        except grpc.RpcError as error:
            raise self._refused(error) from error
        finally:
            stream.cancel()

    def _since(self, parent: str, labels: Mapping[str, str] | None, revision: int) -> tuple[list[Change], int]:
        """What a list shows to have changed after `revision`, in order, and where to watch on from."""
        every = State.keys()[1:]  # the final ones, too: an end is a change
        request = api.ListWorkspacesRequest(parent=parent, states=every, label_selector=labels, page_size=PAGE)
        pages = list(self._pages(request))
        changed = [
            Change(workspace, Workspace.STATE_UNSPECIFIED, workspace.revision, None)
            for page in pages
            for workspace in page.workspaces
            if workspace.revision > revision
        ]
        # The first page's revision: what changes while the others are read is seen again rather than missed.
        return sorted(changed, key=lambda change: change.revision), pages[0].revision

    def _passes(self, error: BrokerError) -> bool:
        """Whether an outage is likely to pass by itself."""
        if self._closed.is_set():
            return False
        if isinstance(error, TransportError):
            passing = (
                grpc.StatusCode.UNAVAILABLE,
                grpc.StatusCode.DEADLINE_EXCEEDED,
                grpc.StatusCode.CANCELLED,  # a server that stops cancels what is open
            )
            return self._met and error.code in passing
        return isinstance(error, Unavailable)

    # Ensembles

    def create_ensemble(
        self, parent: str, ensemble_id: str = "", *, expire_time: datetime | None = None, request_id: str = ""
    ) -> Ensemble:
        """Opens an ensemble of `tenants/{tenant}`: workspaces created with its name wait until it is sealed."""
        request = api.CreateEnsembleRequest(parent=parent, ensemble_id=ensemble_id, request_id=request_id)
        if expire_time is not None:
            request.ensemble.expire_time.FromDatetime(expire_time)
        return _ensemble(self.call(request))

    def ensemble(self, name: str) -> Ensemble:
        """Reads one ensemble."""
        return _ensemble(self.call(api.GetEnsembleRequest(name=name)))

    def seal_ensemble(self, name: str, *, request_id: str = "", etag: str = "") -> api.SealEnsembleResponse:
        """Places all its workspaces or none."""
        answer: api.SealEnsembleResponse = self.call(
            api.SealEnsembleRequest(name=name, request_id=request_id, etag=etag)
        )
        return answer

    def cancel_ensemble(self, name: str, *, request_id: str = "", etag: str = "") -> Ensemble:
        """Gives up an open ensemble and its workspaces."""
        return _ensemble(self.call(api.CancelEnsembleRequest(name=name, request_id=request_id, etag=etag)))

    # Pools and tenants

    def pools(self) -> Iterator[Pool]:
        """Every pool."""
        return self._items(pool_api.ListPoolsRequest(), "pools")

    def pool(self, name: str) -> Pool:
        """Reads one pool."""
        answer: pool_api.GetPoolResponse = self.call(pool_api.GetPoolRequest(name=name))
        return answer.pool

    def hosts(self, parent: str) -> Iterator[Host]:
        """A pool's hosts with the slots taken on them."""
        return self._items(pool_api.ListHostsRequest(parent=parent, page_size=PAGE), "hosts")

    def images(self, parent: str) -> Iterator[Image]:
        """A pool's images."""
        return self._items(pool_api.ListImagesRequest(parent=parent, page_size=PAGE), "images")

    def networks(self, parent: str) -> Iterator[Network]:
        """A pool's networks."""
        return self._items(pool_api.ListNetworksRequest(parent=parent, page_size=PAGE), "networks")

    def strays(self, parent: str) -> Iterator[pool_api.Stray]:
        """VMs of this broker's that belong to no workspace."""
        return self._items(pool_api.ListStraysRequest(parent=parent, page_size=PAGE), "strays")

    def end_stray(self, name: str) -> None:
        """Has the backend remove a stray."""
        self.call(pool_api.ResolveStrayRequest(name=name, action=pool_api.ResolveStrayRequest.ACTION_END))

    def adopt_stray(self, name: str, parent: str, terms: LeaseTerms) -> Workspace:
        """Makes a stray a workspace of a tenant, under a lease that begins now."""
        request = pool_api.ResolveStrayRequest(
            name=name, action=pool_api.ResolveStrayRequest.ACTION_ADOPT, parent=parent, terms=terms
        )
        answer: pool_api.ResolveStrayResponse = self.call(request)
        return answer.workspace

    def refresh(self, name: str) -> pool_api.RefreshPoolResponse:
        """Has the broker look at a pool's backend now."""
        answer: pool_api.RefreshPoolResponse = self.call(pool_api.RefreshPoolRequest(name=name))
        return answer

    def set_draining(self, name: str, draining: bool) -> Pool:
        """Closes a pool for new workspaces, or opens it again."""
        request = pool_api.UpdatePoolRequest(pool=Pool(name=name, draining=draining))
        request.update_mask.paths.append("draining")
        answer: pool_api.UpdatePoolResponse = self.call(request)
        return answer.pool

    def set_cordoned(self, name: str, cordoned: bool) -> Host:
        """Closes a host for new nodes, or opens it again."""
        request = pool_api.UpdateHostRequest(host=Host(name=name, cordoned=cordoned))
        request.update_mask.paths.append("cordoned")
        answer: pool_api.UpdateHostResponse = self.call(request)
        return answer.host

    def drain(self, name: str, *, suspend_rest: bool = False) -> pool_api.DrainHostResponse:
        """Cordons a host and moves its nodes away."""
        request = pool_api.DrainHostRequest(name=name, suspend_rest=suspend_rest)
        answer: pool_api.DrainHostResponse = self.call(request)
        return answer

    def tenant(self, name: str) -> Tenant:
        """A tenant with its limits and use."""
        answer: tenant_api.GetTenantResponse = self.call(tenant_api.GetTenantRequest(name=name))
        return answer.tenant


def _ensemble(answer: Any) -> Ensemble:
    ensemble: Ensemble = answer.ensemble
    return ensemble


def _workspace(answer: Any) -> Workspace:
    workspace: Workspace = answer.workspace
    return workspace
