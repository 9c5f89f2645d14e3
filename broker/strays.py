"""What an operator decides about strays: VMs that bear this broker's tag and belong to no live node.

A stray is left alone until then. Ended, the backend is told to remove it, and it stays listed until it is seen gone.
Adopted, it becomes a workspace of one node, under the uid and index that its tag bears, since the tag is what it is
found by; its slot is taken at once, over the host's capacity if need be, because it runs there already.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta

from backends.base import BackendError, NodeSpec, Observation, ObservedNode, Step, StepCall
from broker.book import Book, Transaction
from broker.core.clock import Clock
from broker.core.errors import BrokerError, Reason, not_found
from broker.core.lifecycle import AS_STATE, Seen
from broker.core.model import Cause, Node, NodeSet, SeenNic, State, Terms, Workspace
from broker.core.placement import held_amounts
from broker.core.requests import StrayRequest
from broker.engine.engine import Engine
from broker.ledger import Call, Ledger
from broker.placing import set_request
from broker.pools import Pool
from broker.tenants import Tenants


class Strays:
    """ResolveStray."""

    def __init__(
        self,
        book: Book,
        pools: Mapping[str, Pool],
        engine: Engine,
        clock: Clock,
        tenants: Tenants,
        ledger: Ledger,
    ) -> None:
        self._book = book
        self._pools = dict(pools)
        self._engine = engine
        self._clock = clock
        self._tenants = tenants
        self._ledger = ledger

    async def end(self, request: StrayRequest) -> None:
        """Tells the backend to remove a stray. Raises BACKEND_UNREACHABLE, BACKEND_REJECTED, NOT_FOUND."""
        pool, stray = self._find(request)
        call = StepCall(
            step=Step.TERMINATE,
            node=NodeSpec(identity=stray.identity, name="stray", host=stray.host, amounts=stray.amounts),
            backend_id=stray.backend_id,
            force=True,
        )
        work = self._engine.work[request.pool]
        try:
            await work.driver.queued(Step.TERMINATE, lambda: pool.backend.perform(call))
            await work.observer.refresh()
        except BackendError as error:
            raise BrokerError(
                Reason.BACKEND_UNREACHABLE,
                f"the backend of pool {request.pool} did not end VM {stray.backend_id}: {error}; "
                "it stays listed, try again",
                resource=f"pools/{request.pool}",
                retry_after=pool.settings.breaker.probe_interval,
            ) from error

    async def adopt(self, request: StrayRequest) -> Workspace:
        """Makes a stray a workspace of a tenant."""
        call = Call(tenant=request.tenant, method="ResolveStray", request_id=request.request_id, digest=request.digest)
        workspace = await self._ledger.once(call, lambda tx: self._adopt(tx, request))
        self._engine.work[request.pool].observer.soon()
        return workspace

    def _find(self, request: StrayRequest) -> tuple[Pool, ObservedNode]:
        pool = self._pools.get(request.pool)
        if pool is None:
            raise not_found("pool", f"pools/{request.pool}")
        found = pool.strays.get(request.backend_id)
        if found is None:
            raise not_found("stray", f"pools/{request.pool}/strays/{request.backend_id}")
        return pool, found[0]

    def _adopt(self, tx: Transaction, request: StrayRequest) -> Workspace:
        pool, stray = self._find(request)
        identity = stray.identity
        state = AS_STATE.get(Seen(stray.observation.value))
        problem = ""
        if state is None:
            problem = f"it is {stray.observation} ({stray.detail or 'no more is known'}); wait until it has settled"
        elif identity.workspace_uid in self._book.workspaces:
            problem = "the workspace of its tag is still known; end it, or wait until that record is forgotten"
        if state is None or problem:
            raise BrokerError(
                Reason.STATE_FORBIDS,
                f"VM {stray.backend_id} of pool {request.pool} cannot be adopted: {problem}",
                resource=f"pools/{request.pool}/strays/{request.backend_id}",
                metadata={"seen": stray.observation.value},
            )
        workspace = self._workspace(request, pool, stray, state)
        self._tenants.check(request.tenant, workspace)
        adopted = tx.put(workspace)
        strays = {backend_id: each for backend_id, each in pool.strays.items() if backend_id != stray.backend_id}
        tx.after_commit.append(lambda: pool.learn_strays(strays))
        return adopted

    def _workspace(self, request: StrayRequest, pool: Pool, stray: ObservedNode, state: State) -> Workspace:
        now = self._clock.now()
        wanted = NodeSet(count=1, own_amounts=dict(stray.amounts), amounts=dict(stray.amounts))
        held, pool_held = held_amounts(pool.snapshot(now), set_request(wanted))
        index = stray.identity.node_index
        node = Node(
            index=index,
            set_index=0,
            pool=request.pool,
            host=stray.host,
            held=held,
            pool_held=pool_held,
            state=state,
            cause=Cause.OPERATOR,
            backend_id=stray.backend_id,
            released=stray.observation in (Observation.SUSPENDED, Observation.OFF) and not stray.host,
            nics=tuple(
                SeenNic(network=nic.network, name=nic.name, addresses=nic.addresses, mac=nic.mac) for nic in stray.nics
            ),
            observe_time=now,
        )
        # A node stands at the place of its index: those before it ended with the workspace that the tag speaks of.
        gone = tuple(
            Node(index=each, set_index=0, pool=request.pool, host="", held={}, pool_held={}, state=State.TERMINATED)
            for each in range(index)
        )
        length = self._length(request, pool)
        return Workspace(
            uid=stray.identity.workspace_uid,
            tenant=request.tenant,
            id=f"adopted-{stray.identity.workspace_uid[:8]}-{index}".lower(),
            create_time=now,
            node_sets=(wanted,),
            terms=Terms(duration=length, open_ended=length is None, end_action=request.end_action),
            state=state,
            nodes=(*gone, node),
            pool=request.pool,
            requested_pool=request.pool,
            cause=Cause.OPERATOR,
            start_time=now,
            prepare_time=now,
            actual_start_time=now,
            end_time=None if length is None else now + length,
        )

    def _length(self, request: StrayRequest, pool: Pool) -> timedelta | None:
        """How long its lease lasts; None is open-ended."""
        return None if request.open_ended else (request.duration or pool.settings.default_duration)
