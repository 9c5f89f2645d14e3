"""The service of workspaces: each call is read, handed to a use case, and its answer rendered. Nothing is decided here.

How errors leave, and which calls are taken, stands in serving.py; pools and tenants in pool_services.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from functools import partial
from typing import Any, Final

from workspacebroker.v1 import resources_pb2 as pb
from workspacebroker.v1 import workspace_service_pb2 as calls_pb
from workspacebroker.v1 import workspace_service_pb2_grpc as calls_grpc

from broker.api import calls, names
from broker.api.ensembles import EnsembleCalls
from broker.api.enums import OUTCOMES, STATES
from broker.api.pages import PageTokens
from broker.api.serving import WAIT, Calls, Context, Shown, UseCases, answered
from broker.api.status import grpc_status
from broker.api.times import timestamp
from broker.api.validate import KnownSets
from broker.api.verdicts import offer, verdict
from broker.api.wire import embedded, number_of
from broker.book import Book
from broker.config import Settings
from broker.core.clock import Clock
from broker.core.lifecycle import Verb
from broker.core.memo import Memo
from broker.core.model import Workspace
from broker.core.requests import ListRequest
from broker.events import Change, changes
from broker.metrics import Metrics

PAGE_BYTES: Final = 3 * 1024 * 1024
"""A page ends early rather than pass this."""

BOOKMARK_EVERY: Final = 5.0
"""Seconds of quiet after which a watcher is told the revision."""


_LISTED: Final = number_of(calls_pb.ListWorkspacesResponse, "workspaces")
_CHANGED: Final = number_of(calls_pb.WatchWorkspacesResponse, "workspace")


class WorkspaceService(EnsembleCalls, calls_grpc.WorkspaceServiceServicer):
    """For tenants."""

    def __init__(
        self,
        shared: Calls,
        use_cases: UseCases,
        shown: Shown,
        book: Book,
        settings: Settings,
        clock: Clock,
        tokens: PageTokens,
        metrics: Metrics,
    ) -> None:
        self._calls = shared
        self._workspaces = use_cases.workspaces
        self._verbs = use_cases.verbs
        self._updates = use_cases.updates
        self._tenants = use_cases.tenants
        self._ensembles = use_cases.ensembles
        self._shown = shown
        self._book = book
        self._known = KnownSets(settings.instance_types)
        self._clock = clock
        self._tokens = tokens
        self._metrics = metrics
        self._told = Memo(self._change)  # the same for every watcher

    def _check_tenant(self, tenant: str | None) -> None:
        """Raises NOT_FOUND for a tenant that is not there; None is all of them."""
        if tenant is not None:
            self._tenants.settings(tenant)

    @partial(answered, at_once=True)
    async def CheckPlacement(
        self, request: calls_pb.CheckPlacementRequest, context: Context
    ) -> calls_pb.CheckPlacementResponse:
        asked = calls.check_request(request, known=self._known, now=self._clock.now(), unknown=self._workspaces.unknown)
        answer = self._workspaces.check(asked)
        return calls_pb.CheckPlacementResponse(
            outcome=OUTCOMES[answer.outcome],
            verdicts=[verdict(each) for each in answer.verdicts],
            pool_generations=answer.generations,
            offers=[offer(request.workspace, each) for each in answer.offers],
        )

    @answered
    async def CreateWorkspace(self, request: calls_pb.CreateWorkspaceRequest, context: Context) -> bytes:
        asked = calls.create_request(
            request, known=self._known, now=self._clock.now(), unknown=self._workspaces.unknown
        )
        return self._shown.alone(await self._workspaces.create(asked))

    @partial(answered, at_once=True)
    async def GetWorkspace(self, request: calls_pb.GetWorkspaceRequest, context: Context) -> bytes:
        tenant, workspace = names.workspace(request.name)
        return self._shown.alone(self._workspaces.get(tenant, workspace))

    @partial(answered, at_once=True)
    async def ListWorkspaces(self, request: calls_pb.ListWorkspacesRequest, context: Context) -> bytes:
        asked = calls.list_request(request, self._tokens)
        self._check_tenant(asked.tenant)
        # All pages bear the revision of the first: what changed while they were read comes with the watch.
        began, _, after = asked.page.position.partition(" ")
        revision = int(began) if began else self._book.events.revision
        answer = calls_pb.ListWorkspacesResponse(revision=revision)
        shown: list[bytes] = []
        size = 0
        last: Workspace | None = None
        for workspace in self._listed(asked, after):
            wire = self._shown.wire(workspace)
            size += len(wire)
            if last is not None and (len(shown) == asked.page.size or size > PAGE_BYTES):
                answer.next_page_token = self._tokens.issue(f"{revision} {last.name}", request)
                break
            shown.append(embedded(_LISTED, wire))
            last = workspace
        return b"".join((answer.SerializeToString(), *shown))

    def _listed(self, asked: ListRequest, after: str) -> Iterable[Workspace]:
        place = names.workspace(after) if after else ((asked.tenant or ""), "")
        for tenant, workspace_id in self._book.names_after(place):
            if asked.tenant is not None and tenant != asked.tenant:
                return  # names are in order, so no more of this tenant's follow
            workspace = self._book.find(tenant, workspace_id)
            if (
                workspace is not None
                and workspace.state in asked.states
                and (not asked.pool or any(node.pool == asked.pool for node in workspace.nodes))
                and (not asked.uids or workspace.uid in asked.uids)
                and _selected(workspace, asked.label_selector)
            ):
                yield workspace

    @answered
    async def UpdateWorkspace(self, request: calls_pb.UpdateWorkspaceRequest, context: Context) -> bytes:
        changed = await self._updates.update(calls.update_request(request, now=self._clock.now()))
        return self._shown.alone(changed)

    async def _verb(self, verb: Verb, request: Any, **options: bool) -> bytes:
        return self._shown.alone(await self._verbs.verb(verb, calls.verb_target(request), **options))

    @answered
    async def StartWorkspace(self, request: calls_pb.StartWorkspaceRequest, context: Context) -> bytes:
        return await self._verb(Verb.START, request)

    @answered
    async def PauseWorkspace(self, request: calls_pb.PauseWorkspaceRequest, context: Context) -> bytes:
        return await self._verb(Verb.PAUSE, request)

    @answered
    async def UnpauseWorkspace(self, request: calls_pb.UnpauseWorkspaceRequest, context: Context) -> bytes:
        return await self._verb(Verb.UNPAUSE, request)

    @answered
    async def SuspendWorkspace(self, request: calls_pb.SuspendWorkspaceRequest, context: Context) -> bytes:
        return await self._verb(Verb.SUSPEND, request, release=request.release_capacity)

    @answered
    async def ResumeWorkspace(self, request: calls_pb.ResumeWorkspaceRequest, context: Context) -> bytes:
        return await self._verb(Verb.RESUME, request)

    @answered
    async def StopWorkspace(self, request: calls_pb.StopWorkspaceRequest, context: Context) -> bytes:
        return await self._verb(Verb.STOP, request, force=request.force, release=request.release_capacity)

    @answered
    async def RebootWorkspace(self, request: calls_pb.RebootWorkspaceRequest, context: Context) -> bytes:
        return await self._verb(Verb.REBOOT, request, force=request.force)

    @answered
    async def TerminateWorkspace(self, request: calls_pb.TerminateWorkspaceRequest, context: Context) -> bytes:
        return await self._verb(Verb.TERMINATE, request, force=request.force)

    @answered
    async def SaveNode(self, request: calls_pb.SaveNodeRequest, context: Context) -> bytes:
        workspace = await self._verbs.save(calls.save_request(request))
        image = calls_pb.SaveNodeResponse(image=pb.Image(name=request.image_name, ready=False))
        return self._shown.alone(workspace) + image.SerializeToString()

    @partial(answered, kind=WAIT)
    async def WaitWorkspace(self, request: calls_pb.WaitWorkspaceRequest, context: Context) -> bytes:
        remaining = context.time_remaining()
        limit = self._calls.timeout - 1.0 if remaining is None else remaining
        workspace, reached = await self._workspaces.wait(calls.wait_request(request), limit)
        return self._shown.alone(workspace) + calls_pb.WaitWorkspaceResponse(reached=reached).SerializeToString()

    async def WatchWorkspaces(self, request: calls_pb.WatchWorkspacesRequest, context: Context) -> AsyncIterator[bytes]:
        self._metrics.watchers.inc()
        try:
            with self._calls.admitted(WAIT, context):
                async for answer in self._watched(request):
                    yield answer
        except (asyncio.CancelledError, GeneratorExit):
            raise
        except Exception as error:
            await context.abort_with_status(grpc_status(error))
        finally:
            self._metrics.watchers.dec()

    async def _watched(self, request: calls_pb.WatchWorkspacesRequest) -> AsyncIterator[bytes]:
        asked = calls.watch_request(request)
        self._check_tenant(asked.tenant)
        log = self._book.events
        current = None
        if asked.after_revision == 0:
            await self._book.settled()  # so that what is shown first is what was published
            current = list(self._book.workspaces.values())
        subscription = log.subscribe(asked.after_revision, current, self._clock.now())
        async for change in changes(log, subscription, BOOKMARK_EVERY):
            if isinstance(change, int):
                bookmark = calls_pb.WatchWorkspacesResponse(revision=change, time=timestamp(self._clock.now()))
                yield bookmark.SerializeToString()
                continue
            workspace = change.workspace
            if (asked.tenant is None or workspace.tenant == asked.tenant) and _selected(
                workspace, asked.label_selector
            ):
                yield self._told(change)

    def _change(self, change: Change) -> bytes:
        """A change as watchers are told of it."""
        told = calls_pb.WatchWorkspacesResponse(
            revision=change.revision,
            previous_state=STATES[change.previous] if change.previous is not None else None,
            time=timestamp(change.time),
        )
        return told.SerializeToString() + embedded(_CHANGED, self._shown.wire(change.workspace))


def _selected(workspace: Workspace, selector: Mapping[str, str]) -> bool:
    return all(workspace.labels.get(key) == value for key, value in selector.items())
