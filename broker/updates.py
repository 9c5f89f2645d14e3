"""Changing a workspace: its names and labels, and when and how its lease ends.

A new end is one the slots allow: what others were promised is not taken back for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from msgspec.structs import replace

from broker.book import Book, Transaction
from broker.core import wording
from broker.core.clock import Clock
from broker.core.errors import BrokerError, FieldReason, FieldsInvalid, FieldViolation, Reason, not_found
from broker.core.lifecycle import Verb
from broker.core.model import EndAction, NoticeKind, Workspace, without
from broker.core.requests import UpdateRequest
from broker.core.whole import ask_workspace
from broker.ledger import Call, Ledger, matching
from broker.placing import capabilities_of_end, lacking_room
from broker.pools import Pool
from broker.queue import Queue
from broker.tenants import Tenants


class Updates:
    """UpdateWorkspace."""

    def __init__(
        self,
        book: Book,
        pools: Mapping[str, Pool],
        clock: Clock,
        tenants: Tenants,
        ledger: Ledger,
        queue: Queue,
    ) -> None:
        self._book = book
        self._pools = dict(pools)
        self._clock = clock
        self._tenants = tenants
        self._ledger = ledger
        self._queue = queue

    async def update(self, request: UpdateRequest) -> Workspace:
        """Changes what the mask names."""

        def decide(tx: Transaction) -> Workspace:
            workspace = self._book.find(request.tenant, request.workspace_id)
            if workspace is None:
                raise not_found("workspace", f"tenants/{request.tenant}/workspaces/{request.workspace_id}")
            matching(workspace, request.etag)
            ask_workspace(Verb.UPDATE, workspace)
            return tx.put(self._updated(workspace, request, self._clock.now()))

        call = Call(
            tenant=request.tenant,
            method="UpdateWorkspace",
            request_id=request.request_id,
            digest=request.digest,
        )
        return await self._ledger.once(call, decide, trial=request.validate_only)

    def _updated(self, workspace: Workspace, request: UpdateRequest, now: datetime) -> Workspace:
        paths = request.paths
        changed = workspace
        if "display_name" in paths:
            changed = replace(changed, display_name=request.display_name)
        if "labels" in paths:
            changed = replace(changed, labels=request.labels)
        if "terms.end_action" in paths:
            self._check_end_action(workspace, request.end_action)
            changed = replace(changed, terms=replace(changed.terms, end_action=request.end_action))
        if "terms.priority" in paths:
            self._tenants.check_priority(workspace.tenant, request.priority)
            changed = replace(changed, terms=replace(changed.terms, priority=request.priority))
        if "terms.queue_until" in paths:
            changed = self._with_patience(changed, request)
        # Not to be open-ended says nothing about how long: a lease that has an end keeps it.
        endless = workspace.end_time is None
        if "terms.duration" in paths or ("terms.open_ended" in paths and request.open_ended is not endless):
            changed = self._with_new_end(changed, request, now)
        return changed

    def _with_patience(self, workspace: Workspace, request: UpdateRequest) -> Workspace:
        """Waiting longer, or less long. What waits already cannot stop to and be neither begun nor ended."""
        path = "workspace.terms.queue_until"
        if request.queue_until is None and workspace.waiting_since is not None and workspace.preempted_time is None:
            message = "it waits in the queue; to stop waiting, terminate it, or give an earlier queue_until"
            raise FieldsInvalid([FieldViolation(path=path, reason=FieldReason.REQUIRED, message=message)])
        if request.queue_until is not None and workspace.awaits_seal:
            message = "it waits for the seal of its ensemble, not in the queue"
            raise FieldsInvalid([FieldViolation(path=path, reason=FieldReason.CONFLICT, message=message)])
        return replace(workspace, terms=replace(workspace.terms, queue_until=request.queue_until))

    def _check_end_action(self, workspace: Workspace, end_action: EndAction) -> None:
        """Refuses an end that a pool cannot make, or that would save nothing."""
        problem = ""
        if end_action is EndAction.SAVE and not any(each.save_as for each in workspace.node_sets):
            problem = "END_ACTION_SAVE saves nothing: no node set of it has save_as"
        for node in workspace.nodes:
            can = {capability.value for capability in self._pools[node.pool].backend.capabilities}
            lacking = capabilities_of_end(end_action) - can
            if lacking and not problem:
                problem = f"pool {node.pool} cannot do it: it lacks {', '.join(sorted(lacking))}"
        if problem:
            path = "workspace.terms.end_action"
            raise FieldsInvalid([FieldViolation(path=path, reason=FieldReason.CONFLICT, message=problem)])

    def _with_new_end(self, workspace: Workspace, request: UpdateRequest, now: datetime) -> Workspace:
        if not workspace.nodes:  # it waits, and is planned anew with what it asks for now
            length = None if request.open_ended else request.duration
            return replace(workspace, terms=replace(workspace.terms, duration=length, open_ended=request.open_ended))
        begin_time = workspace.start_time or now
        pools = [self._pools[node.pool] for node in workspace.nodes]
        length = None if request.open_ended else request.duration
        if length is None and not request.open_ended:
            defaults = [pool.settings.default_duration for pool in pools]
            length = min((each for each in defaults if each is not None), default=None)
        end = None if length is None else begin_time + length
        problem = ""
        reason = FieldReason.OUT_OF_RANGE
        longest = min((pool.settings.max_duration for pool in pools if pool.settings.max_duration), default=None)
        if end is not None and end <= now:
            reason = FieldReason.IN_THE_PAST
            problem = (
                f"would end the lease at {end.isoformat()}, and it is {now.isoformat()} here; to end it, terminate"
            )
        elif longest is not None and (length is None or length > longest):
            problem = f"{wording.length(length)} is more than the {wording.length(longest)} its pool allows"
        if problem:
            path = "workspace.terms.open_ended" if request.open_ended else "workspace.terms.duration"
            raise FieldsInvalid([FieldViolation(path=path, reason=reason, message=problem)])
        terms = replace(workspace.terms, duration=length, open_ended=length is None, deadline=None)
        changed = replace(workspace, terms=terms, end_time=end, notices=without(workspace.notices, NoticeKind.ENDING))
        if workspace.end_time is not None and (end is None or end > workspace.end_time):
            self._check_extension(workspace, max(workspace.end_time, now), end, now)
        self._tenants.check(workspace.tenant, changed, besides=workspace)
        return changed

    def _check_extension(self, workspace: Workspace, start: datetime, end: datetime | None, now: datetime) -> None:
        """Refuses an extension that would take what others were promised. Raises NO_CAPACITY."""
        with self._queue.firm_plans():
            lacking = lacking_room(self._pools, workspace, start, end, now)
        if lacking:
            raise BrokerError(
                Reason.NO_CAPACITY,
                f"the lease cannot be extended, the room is promised to others ({lacking}); "
                "ask for a shorter extension",
                resource=workspace.name,
            )
