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
from msgspec.structs import replace

from broker.admission import Admission
from broker.book import Book, Transaction
from broker.core.clock import Clock
from broker.core.errors import (
    BrokerError,
    FieldsInvalid,
    FieldViolation,
    Reason,
    not_found,
    shutting_down,
)
from broker.core.model import State, Workspace
from broker.core.placement import Never, NotNow, Outcome, PlacementRequest, Plan, PoolSnapshot, Verdict
from broker.core.requests import (
    CheckRequest,
    CreateRequest,
    WaitRequest,
    WorkspaceRequest,
)
from broker.ensembles import Ensembles
from broker.ledger import Call, Ledger
from broker.metrics import Metrics
from broker.offers import Offer, offers
from broker.placing import (
    best_outcome,
    placed,
    placement_request,
    refused,
    unplaced,
    window,
)
from broker.pools import Pool
from broker.queue import Queue
from broker.references import unknown_references
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
        queue: Queue,
        admission: Admission,
        ensembles: Ensembles,
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
        self._queue = queue
        self._admission = admission
        self._ensembles = ensembles
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
        tried = self._queue.ask(
            unplaced(request.tenant, "check", wanted, now),
            self._asked(request.tenant, wanted),
            window(wanted, now),
            now,
            nearest_hosts=2**31 if request.include_hosts else HOSTS_SHOWN,
            judged=True,
        )
        answer, seen = tried.answer, tried.seen
        verdicts = answer.verdicts
        outcome = Outcome.FITS if tried.plan is not None else best_outcome(verdicts)
        if tried.plan is not None:
            self._check_tenant(tried.plan, unplaced(request.tenant, "check", wanted, now), seen, now)
        offered: list[Offer] = []
        if request.include_offers and not isinstance(answer, Plan) and tried.plan is None:
            offered = offers(wanted, answer, lambda other: self._tried(request.tenant, other, now))
        judged = {verdict.pool for verdict in verdicts}
        return CheckAnswer(
            outcome=outcome,
            verdicts=verdicts,
            generations={name: pool.generation for name, pool in self._pools.items() if name in judged},
            offers=tuple(offered),
        )

    def _tried(self, tenant: str, wanted: WorkspaceRequest, now: datetime) -> Plan | None:
        """Where a request would go now; None where placement or the tenant's limits would refuse it."""
        record = unplaced(tenant, "offer", wanted, now)
        try:
            tried = self._queue.ask(record, self._asked(tenant, wanted), window(wanted, now), now)
            if tried.plan is not None:
                self._check_tenant(tried.plan, record, tried.seen, now)
        except BrokerError:
            return None
        return tried.plan

    def _check_tenant(self, answer: Plan, record: Workspace, seen: Mapping[str, PoolSnapshot], now: datetime) -> None:
        """Refuses a plan that passes a limit of the tenant's. Raises QuotaExceeded, FieldsInvalid."""
        self._tenants.check_priority(record.tenant, record.terms.priority)
        self._tenants.check(record.tenant, placed(record, answer, seen, now))

    def unknown(self, wanted: WorkspaceRequest) -> list[FieldViolation]:
        """Every name in a request that no pool it could go to knows, and an ensemble that is not there."""
        return [*unknown_references(wanted, self._pools), *self._ensembles.unknown(wanted)]

    def _asked(self, tenant: str, wanted: WorkspaceRequest) -> PlacementRequest:
        """The request in placement's terms. Raises FieldsInvalid for names that nobody knows."""
        violations = self.unknown(wanted)
        if violations:
            raise FieldsInvalid(violations)
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
        record = unplaced(request.tenant, workspace_id, wanted, now, uid)
        self._tenants.check_priority(request.tenant, wanted.terms.priority)
        if wanted.ensemble is not None:
            return self._ensembles.add(tx, wanted.ensemble, record, asked, now)
        tried = self._queue.ask(record, asked, window(wanted, now), now)
        if tried.plan is None:
            return self._wait(tx, record, tried.answer, now)
        _check_generations(tried.plan, request.if_pool_generations)
        return self._admission.admit(tx, record, tried, now)

    def _wait(self, tx: Transaction, record: Workspace, answer: Plan | NotNow | Never, now: datetime) -> Workspace:
        """Queues what does not fit now, where its terms allow it. Raises NO_CAPACITY and its like where not."""
        assert not isinstance(answer, Plan)
        until = record.terms.queue_until
        if isinstance(answer, Never) or until is None or until <= now:
            raise refused(answer, now, _described(record))
        self._tenants.check(record.tenant, record)
        return tx.put(replace(record, waiting_since=now))


def _described(wanted: Workspace) -> str:
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
