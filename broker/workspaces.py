"""The use cases of a tenant: read, wait, check, create. The verbs stand in verbs.py, changes in updates.py.

Each decides on what the book and the pools hold, in one transaction and without awaiting a backend, and answers when
that is durable. A refusal leaves no trace. The work itself is the engine's.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import datetime
from typing import Final

from msgspec import Struct

from backends.base import Action
from broker.book import Book, Transaction
from broker.core.clock import Clock
from broker.core.errors import (
    BrokerError,
    FieldViolation,
    Reason,
    not_found,
    overloaded,
    shutting_down,
)
from broker.core.model import State, Workspace
from broker.core.placement import Outcome, PlacementRequest, Plan, PoolSnapshot, Verdict, plan
from broker.core.requests import (
    CheckRequest,
    CreateRequest,
    WaitRequest,
    WorkspaceRequest,
)
from broker.engine.tasks import begin
from broker.ledger import Call, Ledger
from broker.metrics import Metrics
from broker.offers import Offer, offers
from broker.placing import (
    best_outcome,
    placed,
    placement_request,
    refused,
    snapshots,
    unplaced,
    window,
)
from broker.pools import Pool
from broker.references import check_references, unknown_references
from broker.tenants import Tenants

HOSTS_SHOWN: Final = 50
"""Host verdicts a refusal carries; CheckPlacement gives them all where asked to."""

WAITED_FOR: Final = frozenset(state for state in State if not state.moving and state is not State.PENDING)
"""What a wait for no state in particular waits for: anything that does not move on by itself."""


class CheckAnswer(Struct, frozen=True, kw_only=True):
    """Where a request fits, or why not; the generations are those that were judged."""

    outcome: Outcome
    verdicts: tuple[Verdict, ...]
    generations: dict[str, int]
    offers: tuple[Offer, ...] = ()


class Workspaces:
    """Everything a tenant may do with workspaces."""

    def __init__(
        self,
        book: Book,
        pools: Mapping[str, Pool],
        clock: Clock,
        metrics: Metrics,
        tenants: Tenants,
        ledger: Ledger,
        *,
        new_uid: Callable[[], str],
    ) -> None:
        self._book = book
        self._pools = dict(pools)
        self._clock = clock
        self._metrics = metrics
        self._created = metrics.creates.labels("ok")
        self._tenants = tenants
        self._ledger = ledger
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
            self._tenants.check(
                request.tenant, placed(unplaced(request.tenant, "check", wanted, now), answer, seen, now)
            )
        offered: list[Offer] = []
        if request.include_offers and not isinstance(answer, Plan):
            offered = offers(wanted, answer, lambda other: self._tried(request.tenant, other, seen, now))
        judged = {verdict.pool for verdict in verdicts}
        return CheckAnswer(
            outcome=outcome,
            verdicts=verdicts,
            generations={name: pool.generation for name, pool in self._pools.items() if name in judged},
            offers=tuple(offered),
        )

    def _tried(
        self, tenant: str, wanted: WorkspaceRequest, seen: Mapping[str, PoolSnapshot], now: datetime
    ) -> Plan | None:
        """Where a request would go now; None where placement or the tenant's limits would refuse it."""
        try:
            answer = plan(self._asked(tenant, wanted), seen, window(wanted, now), judged=False)
            if not isinstance(answer, Plan):
                return None
            self._tenants.check(tenant, placed(unplaced(tenant, "offer", wanted, now), answer, seen, now))
        except BrokerError:
            return None
        return answer

    def unknown(self, wanted: WorkspaceRequest) -> list[FieldViolation]:
        """Every name in a request that no pool it could go to knows."""
        return unknown_references(wanted, self._pools)

    def _asked(self, tenant: str, wanted: WorkspaceRequest) -> PlacementRequest:
        """The request in placement's terms. Raises FieldsInvalid for names that no pool knows."""
        check_references(wanted, self._pools)
        return placement_request(wanted, self._tenants.allowed_pools(tenant))

    # Create

    async def create(self, request: CreateRequest) -> Workspace:
        """Leases a workspace, all nodes or none, and returns it once that is durable."""
        call = Call(
            tenant=request.tenant,
            method="CreateWorkspace",
            request_id=request.request_id,
            digest=request.digest,
        )
        try:
            workspace = await self._ledger.once(call, lambda tx: self._create(tx, request), trial=request.validate_only)
        except BrokerError as error:
            self._metrics.creates.labels(error.reason.value).inc()
            raise
        self._created.inc()
        return workspace

    def _create(self, tx: Transaction, request: CreateRequest) -> Workspace:
        now = self._clock.now()
        wanted = request.workspace
        asked = self._asked(request.tenant, wanted)
        uid = self._new_uid()
        workspace_id = request.workspace_id or f"ws-{uid[:8]}"
        if self._book.find(request.tenant, workspace_id) is not None:
            name = f"tenants/{request.tenant}/workspaces/{workspace_id}"
            raise BrokerError(Reason.NAME_TAKEN, f"{name} is there already; choose another name", resource=name)
        seen = snapshots(self._pools.values(), now)
        answer = plan(asked, seen, window(wanted, now), judged=False)
        if not isinstance(answer, Plan):
            raise refused(answer, now, _described(wanted))
        _check_generations(answer, request.if_pool_generations)
        self._check_queues(answer)
        draft = placed(unplaced(request.tenant, workspace_id, wanted, now, uid), answer, seen, now)
        self._tenants.check(request.tenant, draft)
        if draft.state is State.RESERVED:
            return tx.put(draft)
        return begin(tx, self._pools, draft, {node.index: Action.CREATE for node in draft.nodes}, now)

    def _check_queues(self, answer: Plan) -> None:
        """Refuses what would make a pool's work longer than its bound. Raises OVERLOADED."""
        for assignment in answer.assignments:
            bound = self._pools[assignment.pool].settings.max_tasks
            if len(self._book.pool_tasks[assignment.pool]) + len(assignment.hosts) > bound:
                raise overloaded(f"nodes of pool {assignment.pool}", bound)


def _described(wanted: WorkspaceRequest) -> str:
    """The request in a few words."""
    return " + ".join(
        f"{each.count} x ({', '.join(f'{name} {amount}' for name, amount in sorted(each.amounts.items()))})"
        for each in wanted.node_sets
    )


def _check_generations(answer: Plan, insisted: Mapping[str, int]) -> None:
    """Raises GENERATION_MISMATCH where a chosen pool is not as its caller judged it."""
    for pool, generation in answer.generations.items():
        expected = insisted.get(pool, generation)
        if expected != generation:
            raise BrokerError(
                Reason.GENERATION_MISMATCH,
                f"pool {pool} has moved on from generation {expected} to {generation}; check again",
                resource=f"pools/{pool}",
                metadata={"expected": str(expected), "generation": str(generation)},
            )
