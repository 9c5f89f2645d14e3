"""The use cases of a tenant: check, create, the verbs, update, save, wait.

Each decides on what the book and the pools hold, in one transaction and without awaiting a backend, and answers when
that is durable. A refusal leaves no trace. The work itself is the engine's.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

from backends.base import Action
from broker.book import Book, Transaction
from broker.config import TenantSettings
from broker.core.accounting import quota_use
from broker.core.clock import Clock
from broker.core.errors import (
    BrokerError,
    FieldReason,
    FieldsInvalid,
    FieldViolation,
    QuotaExceeded,
    QuotaViolation,
    Reason,
    not_found,
    shutting_down,
)
from broker.core.lifecycle import ACCEPTED_UNREACHABLE, CAPABILITIES, Answer, Verb
from broker.core.model import Cause, Node, Notice, NoticeKind, RequestRecord, State, Workspace
from broker.core.placement import Outcome, PlacementRequest, Plan, Verdict, plan
from broker.core.requests import (
    CheckRequest,
    CreateRequest,
    SaveRequest,
    Target,
    UpdateRequest,
    WaitRequest,
    WorkspaceRequest,
)
from broker.core.slots import POOL_ROW
from broker.core.whole import ask_workspace
from broker.engine.tasks import action_for, begin
from broker.metrics import Metrics
from broker.placing import (
    best_outcome,
    hosts_of,
    nodes_again,
    placed_nodes,
    placement_request,
    refused,
    rest_of_lease,
    snapshots,
    snapshots_for_their_own,
    window,
)
from broker.pools import Pool
from broker.references import check_references, unknown_references

HOSTS_SHOWN: Final = 50
"""Host verdicts a refusal carries; CheckPlacement gives them all where asked to."""

WAITED_FOR: Final = frozenset(state for state in State if not state.moving and state is not State.PENDING)
"""What a wait for no state in particular waits for: anything that does not move on by itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckAnswer:
    """Where a request fits, or why not; the generations are those that were judged."""

    outcome: Outcome
    verdicts: tuple[Verdict, ...]
    generations: dict[str, int]


class Workspaces:
    """Everything a tenant may do with workspaces."""

    def __init__(
        self,
        book: Book,
        pools: Mapping[str, Pool],
        clock: Clock,
        metrics: Metrics,
        tenants: Mapping[str, TenantSettings],
        *,
        new_uid: Callable[[], str],
    ) -> None:
        self._book = book
        self._pools = dict(pools)
        self._clock = clock
        self._metrics = metrics
        self._tenants = dict(tenants)
        self._new_uid = new_uid
        self._waiting: defaultdict[str, set[asyncio.Event]] = defaultdict(set)
        self._ending = False
        book.on_workspace.append(self._tell_waiting)

    # Reading

    def get(self, tenant: str, workspace_id: str) -> Workspace:
        """A workspace by name. Raises NOT_FOUND."""
        workspace = self._book.find(tenant, workspace_id)
        if workspace is None:
            raise not_found("workspace", f"tenants/{tenant}/workspaces/{workspace_id}")
        return workspace

    async def wait(self, request: WaitRequest, time_remaining: float | None) -> tuple[Workspace, bool]:
        """The workspace once it is in one of the states, is final, or the time is up; and whether it got there."""
        wanted = request.states or WAITED_FOR
        limits = [request.timeout.total_seconds()] if request.timeout is not None else []
        if time_remaining is not None:
            limits.append(max(0.0, time_remaining - 0.1))  # so that the answer still arrives
        workspace = self.get(request.tenant, request.workspace_id)
        changed = asyncio.Event()
        self._waiting[workspace.uid].add(changed)
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(min(limits, default=None)):
                    while workspace.state not in wanted and not workspace.state.final:
                        changed.clear()
                        await changed.wait()
                        if self._ending:
                            raise shutting_down()
                        workspace = self._book.workspaces.get(workspace.uid, workspace)
        finally:
            self._waiting[workspace.uid].discard(changed)
            if not self._waiting[workspace.uid]:
                del self._waiting[workspace.uid]
        return workspace, workspace.state in wanted

    def end_waits(self) -> None:
        """Sends those who wait home: the broker is about to stop."""
        self._ending = True
        for waiting in self._waiting.values():
            for changed in waiting:
                changed.set()

    def _tell_waiting(self, workspace: Workspace) -> None:
        for changed in self._waiting.get(workspace.uid, ()):
            changed.set()

    # Placing

    def check(self, request: CheckRequest) -> CheckAnswer:
        """Says where a request fits now, or why not. Holds nothing."""
        now = self._clock.now()
        wanted = request.workspace
        asked = self._asked(request.tenant, wanted)
        seen = snapshots(self._pools.values(), now)
        answer = plan(asked, seen, window(wanted, now), nearest_hosts=2**31 if request.include_hosts else HOSTS_SHOWN)
        verdicts = answer.verdicts
        outcome = Outcome.FITS if isinstance(answer, Plan) else best_outcome(verdicts)
        if isinstance(answer, Plan):
            self._check_quota(request.tenant, self._draft(request.tenant, "check", wanted, answer, now))
        judged = {verdict.pool for verdict in verdicts}
        return CheckAnswer(
            outcome=outcome,
            verdicts=verdicts,
            generations={name: pool.generation for name, pool in self._pools.items() if name in judged},
        )

    def unknown(self, wanted: WorkspaceRequest) -> list[FieldViolation]:
        """Every name in a request that no pool it could go to knows."""
        return unknown_references(wanted, self._pools)

    def _asked(self, tenant: str, wanted: WorkspaceRequest) -> PlacementRequest:
        """The request in placement's terms. Raises FieldsInvalid for names that no pool knows."""
        check_references(wanted, self._pools)
        allowed = self._tenant(tenant).allowed_pools
        return placement_request(wanted, frozenset(allowed) if allowed else None)

    def check_tenant(self, tenant: str | None) -> None:
        """Raises NOT_FOUND for a tenant that is not there; None is all of them."""
        if tenant is not None:
            self._tenant(tenant)

    def _tenant(self, tenant: str) -> TenantSettings:
        """A tenant's settings; where none are configured, every tenant is there and has no limits."""
        settings = self._tenants.get(tenant)
        if settings is not None:
            return settings
        if self._tenants:
            raise not_found("tenant", f"tenants/{tenant}")
        return TenantSettings(name=tenant)

    # Create

    async def create(self, request: CreateRequest) -> Workspace:
        """Leases a workspace, all nodes or none, and returns it once that is durable."""
        with self._book.call():
            try:
                workspace = await self._create(request)
            except BrokerError as error:
                self._metrics.creates.labels(error.reason.value).inc()
                raise
        self._metrics.creates.labels("ok").inc()
        return workspace

    async def _create(self, request: CreateRequest) -> Workspace:
        known = await self._answered(request.tenant, "CreateWorkspace", request.request_id, request.digest)
        if known is not None:
            return known
        now = self._clock.now()
        wanted = request.workspace
        asked = self._asked(request.tenant, wanted)
        uid = self._new_uid()
        workspace_id = request.workspace_id or f"ws-{uid[:8]}"
        if self._book.find(request.tenant, workspace_id) is not None:
            name = f"tenants/{request.tenant}/workspaces/{workspace_id}"
            raise BrokerError(Reason.NAME_TAKEN, f"{name} is there already; choose another workspace_id", resource=name)
        answer = plan(asked, snapshots(self._pools.values(), now), window(wanted, now))
        if not isinstance(answer, Plan):
            raise refused(answer, now, _described(wanted))
        for pool, generation in answer.generations.items():
            expected = request.if_pool_generations.get(pool, generation)
            if expected != generation:
                raise BrokerError(
                    Reason.GENERATION_MISMATCH,
                    f"pool {pool} has moved on from generation {expected} to {generation}; check again",
                    resource=f"pools/{pool}",
                    metadata={"expected": str(expected), "generation": str(generation)},
                )
        draft = self._draft(request.tenant, workspace_id, wanted, answer, now, uid)
        self._check_quota(request.tenant, draft)
        if request.validate_only:
            return draft
        with self._book.transaction(awaited=True) as tx:
            if draft.state is State.RESERVED:
                workspace = tx.put(draft)
            else:
                workspace = begin(tx, self._pools, draft, {node.index: Action.CREATE for node in draft.nodes}, now)
            self._remember(tx, request.tenant, "CreateWorkspace", request.request_id, request.digest, uid, now)
        await tx.durable()
        return workspace

    def _draft(
        self,
        tenant: str,
        workspace_id: str,
        wanted: WorkspaceRequest,
        placed: Plan,
        now: datetime,
        uid: str = "",
    ) -> Workspace:
        """The workspace a plan makes."""
        later = placed.start > now
        state = State.RESERVED if later else State.STARTING
        nodes = placed_nodes(placed, wanted.node_sets, snapshots(self._pools.values(), now), state)
        shared = next((a.pool for a in placed.assignments if not wanted.node_sets[a.set_index].pool), wanted.pool)
        known = {spec.key for node in nodes for spec in self._pools[node.pool].parameter_specs}
        return Workspace(
            uid=uid,
            tenant=tenant,
            id=workspace_id,
            display_name=wanted.display_name,
            labels=wanted.labels,
            create_time=now,
            node_sets=wanted.node_sets,
            terms=wanted.terms,
            state=state,
            nodes=tuple(nodes),
            pool=shared,
            requested_pool=wanted.pool,
            parameters=wanted.parameters,
            optional_parameters=wanted.optional_parameters,
            ignored_parameters=tuple(key for key in wanted.optional_parameters if key not in known),
            initial_state=wanted.initial_state,
            cause=Cause.REQUESTED,
            start_time=placed.start if later else now,
            prepare_time=placed.start if later else now,
            end_time=placed.end,
        )

    # Request ids

    async def _answered(self, tenant: str, method: str, request_id: str, digest: str) -> Workspace | None:
        """The workspace an earlier call with this id made or changed, as it is now; None for a new id."""
        record = self._book.requests.get((tenant, method, request_id)) if request_id else None
        if record is None:
            return None
        await self._book.settled()  # an answer must not promise what is not durable yet
        workspace = self._book.workspaces.get(record.uid)
        if workspace is None:
            return None
        if record.digest != digest:
            raise BrokerError(
                Reason.REQUEST_ID_REUSED,
                f'request_id "{request_id}" was used for another {method} (it made or changed {workspace.name}); '
                "use a new id for a new request",
                resource=workspace.name,
                metadata={"request_id": request_id},
            )
        return workspace

    def _remember(
        self, tx: Transaction, tenant: str, method: str, request_id: str, digest: str, uid: str, now: datetime
    ) -> None:
        if request_id:
            tx.remember(
                RequestRecord(tenant=tenant, method=method, request_id=request_id, digest=digest, uid=uid, time=now)
            )

    # Quota

    def _check_quota(self, tenant: str, wanted: Workspace, *, besides: Workspace | None = None) -> None:
        """Refuses what would pass a limit of the tenant; `besides` is what it replaces. Raises QuotaExceeded."""
        settings = self._tenant(tenant)
        asked: defaultdict[tuple[str, str], int] = defaultdict(int)
        for sign, workspace in ((1, wanted), (-1, besides)):
            for pool, resource, amount in quota_use(workspace) if workspace is not None else ():
                asked["", resource] += sign * amount
                if pool:
                    asked[pool, resource] += sign * amount
        violations = []
        for (pool, resource), amount in sorted(asked.items()):
            limits = settings.pool_limits.get(pool, {}) if pool else settings.limits
            used = self._book.used[tenant, pool, resource]
            if amount > 0 and resource in limits and used + amount > limits[resource]:
                subject = f"tenants/{tenant}" + (f"/pools/{pool}" if pool else "")
                violations.append(
                    QuotaViolation(
                        subject=subject,
                        resource=resource,
                        limit=limits[resource],
                        used=used,
                        requested=amount,
                    )
                )
        if violations:
            raise QuotaExceeded(violations)
        if settings.max_duration is not None and wanted.start_time is not None:
            too_long = wanted.end_time is None or wanted.end_time - wanted.start_time > settings.max_duration
            if too_long:
                raise FieldsInvalid(
                    [
                        FieldViolation(
                            path="workspace.terms.duration",
                            reason=FieldReason.OUT_OF_RANGE,
                            message=f"tenant {tenant} may lease for {settings.max_duration} at most",
                        )
                    ]
                )

    # Verbs

    async def verb(
        self,
        verb: Verb,
        target: Target,
        *,
        force: bool = False,
        release: bool = False,
    ) -> Workspace:
        """Puts nodes in motion; what is already so, or on its way, changes nothing."""
        method = f"{verb.value.capitalize()}Workspace"
        with self._book.call():
            known = await self._answered(target.tenant, method, target.request_id, target.digest)
            if known is not None:
                return known
            workspace = self._matching(target.tenant, target.workspace_id, target.etag)
            now = self._clock.now()
            with self._book.transaction(awaited=True) as tx:
                changed = self._verb(tx, verb, workspace, target.node_indexes, now, force, release)
                self._remember(tx, target.tenant, method, target.request_id, target.digest, workspace.uid, now)
            await tx.durable()
            return changed

    def _matching(self, tenant: str, workspace_id: str, etag: str) -> Workspace:
        workspace = self.get(tenant, workspace_id)
        if etag and etag != workspace.etag:
            raise BrokerError(
                Reason.ETAG_MISMATCH,
                f"{workspace.name} has changed since you read it (etag {etag}, now {workspace.etag}); read it again",
                resource=workspace.name,
                metadata={"etag": workspace.etag},
            )
        return workspace

    def _verb(
        self,
        tx: Transaction,
        verb: Verb,
        workspace: Workspace,
        indexes: Collection[int],
        now: datetime,
        force: bool,
        release: bool,
        **options: object,
    ) -> Workspace:
        _check_indexes(workspace, indexes)
        self._check_capable(verb, workspace, release)
        asked = ask_workspace(
            verb,
            workspace,
            targets=indexes or None,
            force=force,
            release=release,
            lease_over=workspace.end_time is not None and workspace.end_time <= now,
            under_way=self._under_way(workspace),
        )
        if asked.answer is Answer.ALREADY:
            return workspace
        moving = [workspace.nodes[index] for index in asked.nodes]
        if verb not in ACCEPTED_UNREACHABLE:
            self._check_reachable(workspace, moving)
        if asked.to is State.TERMINATED:
            return self._end_unbegun(tx, workspace, set(asked.nodes), now)
        actions = {node.index: action_for(verb, node, release=release) for node in moving}
        hosts = self._hosts_for_released(workspace, actions, now)
        return begin(
            tx,
            self._pools,
            workspace,
            actions,
            now,
            force=force,
            hosts=hosts,
            **options,  # type: ignore[arg-type]
        )

    def _under_way(self, workspace: Workspace) -> str:
        """A transition that shows in no state."""
        tasks = self._book.tasks
        migrating = any(
            (task := tasks.get((workspace.uid, node.index))) is not None and task.action == Action.LIVE_MIGRATE
            for node in workspace.nodes
        )
        return "migrate" if migrating else ""

    def _check_capable(self, verb: Verb, workspace: Workspace, release: bool) -> None:
        needed = [CAPABILITIES[verb]] if verb in CAPABILITIES else []
        if release:
            needed.append("RELEASE")
        for node in workspace.nodes:
            can = {capability.value for capability in self._pools[node.pool].backend.capabilities}
            for capability in needed:
                if capability not in can and not node.state.final:
                    raise BrokerError(
                        Reason.CAPABILITY_MISSING,
                        f"pool {node.pool} cannot {verb.value.lower()}"
                        f"{' and release capacity' if capability == 'RELEASE' else ''}: it lacks {capability}",
                        resource=f"pools/{node.pool}",
                        metadata={"capability": capability, "pool": node.pool},
                    )

    def _check_reachable(self, workspace: Workspace, nodes: Iterable[Node]) -> None:
        for node in nodes:
            pool = self._pools[node.pool]
            if not pool.reachable.is_set():
                raise BrokerError(
                    Reason.BACKEND_UNREACHABLE,
                    f"the backend of pool {node.pool} does not answer, so {workspace.name} stays as it was last seen; "
                    "try again later (terminate is taken all the same)",
                    resource=f"pools/{node.pool}",
                    retry_after=pool.settings.breaker.probe_interval,
                )

    def _end_unbegun(self, tx: Transaction, workspace: Workspace, indexes: set[int], now: datetime) -> Workspace:
        """Ends what was never begun: nothing of it is at a backend."""
        nodes = tuple(
            replace(node, state=State.TERMINATED) if node.index in indexes else node for node in workspace.nodes
        )
        ended = all(node.state.final for node in nodes)
        return tx.put(
            replace(
                workspace,
                nodes=nodes,
                state=State.TERMINATED if ended else workspace.state,
                cause=Cause.REQUESTED,
                final_time=now if ended else None,
                notices=() if ended else workspace.notices,
            )
        )

    def _hosts_for_released(self, workspace: Workspace, actions: Mapping[int, Action], now: datetime) -> dict[int, str]:
        """Where nodes that gave their capacity back go on, placed together for the rest of the lease."""
        returning = [
            index for index, action in actions.items() if action in (Action.RESUME_RELEASED, Action.START_RELEASED)
        ]
        if not returning:
            return {}
        nodes = [workspace.nodes[index] for index in returning]
        again = nodes_again(workspace, nodes, still_held=True)
        answer = plan(again, snapshots_for_their_own(self._pools.values(), now), rest_of_lease(workspace, now))
        if not isinstance(answer, Plan):
            raise refused(answer, now, f"{workspace.name}, which gave its capacity back,")
        taken = tuple(replace(node, released=False) if node.index in returning else node for node in workspace.nodes)
        self._check_quota(workspace.tenant, replace(workspace, nodes=taken), besides=workspace)
        return hosts_of(answer, nodes)

    async def save(self, request: SaveRequest) -> Workspace:
        """Saves one disk of one node as an image."""
        target = request.target
        with self._book.call():
            known = await self._answered(target.tenant, "SaveNode", target.request_id, target.digest)
            if known is not None:
                return known
            workspace = self._matching(target.tenant, target.workspace_id, target.etag)
            indexes = target.node_indexes or tuple(node.index for node in workspace.nodes)
            if len(indexes) != 1:
                raise FieldsInvalid(
                    [
                        FieldViolation(
                            path="target.node_indexes",
                            reason=FieldReason.REQUIRED,
                            message=f"the workspace has {len(workspace.nodes)} nodes; name one",
                        )
                    ]
                )
            now = self._clock.now()
            with self._book.transaction(awaited=True) as tx:
                changed = self._verb(
                    tx,
                    Verb.SAVE,
                    workspace,
                    indexes,
                    now,
                    False,
                    False,
                    image_name=request.image_name,
                    device=request.device,
                    terminate_after=request.terminate_after,
                )
                self._remember(tx, target.tenant, "SaveNode", target.request_id, target.digest, workspace.uid, now)
            await tx.durable()
            return changed

    # Update

    async def update(self, request: UpdateRequest) -> Workspace:
        """Changes what the mask names; a new end must be one the slots allow."""
        with self._book.call():
            known = await self._answered(request.tenant, "UpdateWorkspace", request.request_id, request.digest)
            if known is not None:
                return known
            workspace = self._matching(request.tenant, request.workspace_id, request.etag)
            now = self._clock.now()
            ask_workspace(Verb.UPDATE, workspace)
            changed = self._updated(workspace, request, now)
            if request.validate_only:
                return changed
            with self._book.transaction(awaited=True) as tx:
                changed = tx.put(changed)
                self._remember(
                    tx,
                    request.tenant,
                    "UpdateWorkspace",
                    request.request_id,
                    request.digest,
                    workspace.uid,
                    now,
                )
            await tx.durable()
            return changed

    def _updated(self, workspace: Workspace, request: UpdateRequest, now: datetime) -> Workspace:
        paths = request.paths
        changed = workspace
        if "display_name" in paths:
            changed = replace(changed, display_name=request.display_name)
        if "labels" in paths:
            changed = replace(changed, labels=request.labels)
        if "terms.end_action" in paths:
            changed = replace(changed, terms=replace(changed.terms, end_action=request.end_action))
        # Not to be open-ended says nothing about how long: a lease that has an end keeps it.
        endless = workspace.end_time is None
        if "terms.duration" in paths or ("terms.open_ended" in paths and request.open_ended is not endless):
            changed = self._with_new_end(changed, request, now)
        return changed

    def _with_new_end(self, workspace: Workspace, request: UpdateRequest, now: datetime) -> Workspace:
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
            problem = f"is more than the {longest} its pool allows"
        if problem:
            raise FieldsInvalid([FieldViolation(path="workspace.terms.duration", reason=reason, message=problem)])
        terms = replace(workspace.terms, duration=length, open_ended=length is None, deadline=None)
        changed = replace(workspace, terms=terms, end_time=end, notices=_without_ending(workspace))
        if workspace.end_time is not None and (end is None or end > workspace.end_time):
            self._check_extension(workspace, max(workspace.end_time, now), end, now)
        self._check_quota(workspace.tenant, changed, besides=workspace)
        return changed

    def _check_extension(self, workspace: Workspace, start: datetime, end: datetime | None, now: datetime) -> None:
        """Refuses an extension that would take what others were promised. Raises NO_CAPACITY."""
        wanted: defaultdict[tuple[str, str], defaultdict[str, int]] = defaultdict(lambda: defaultdict(int))
        for node in workspace.nodes:
            if node.state.final:
                continue
            for host, amounts in (
                (node.host, node.held if not node.released else {}),
                (POOL_ROW, node.pool_held),
            ):
                for name, amount in amounts.items():
                    wanted[node.pool, host][name] += amount
        for (pool, host), amounts in sorted(wanted.items()):
            lacking = self._pools[pool].room(host, amounts, start, end, now)
            if lacking:
                raise BrokerError(
                    Reason.NO_CAPACITY,
                    f"the lease cannot be extended, the room is promised to others ({lacking}); "
                    "ask for a shorter extension",
                    resource=workspace.name,
                )


def _check_indexes(workspace: Workspace, indexes: Iterable[int]) -> None:
    """Raises FieldsInvalid naming each index that is no node's."""
    wrong = [
        FieldViolation(
            path=f"target.node_indexes[{place}]",
            reason=FieldReason.OUT_OF_RANGE,
            message=f"is {index}; {workspace.name} has nodes 0 to {len(workspace.nodes) - 1}",
        )
        for place, index in enumerate(indexes)
        if not 0 <= index < len(workspace.nodes)
    ]
    if wrong:
        raise FieldsInvalid(wrong)


def _without_ending(workspace: Workspace) -> tuple[Notice, ...]:
    return tuple(notice for notice in workspace.notices if notice.kind is not NoticeKind.ENDING)


def _described(wanted: WorkspaceRequest) -> str:
    """The request in a few words."""
    return " + ".join(
        f"{each.count} x ({', '.join(f'{name} {amount}' for name, amount in sorted(each.amounts.items()))})"
        for each in wanted.node_sets
    )
