"""The life-cycle verbs on workspaces, and saving a disk: what a caller may put in motion.

Whether a verb is accepted stands in the tables of core/lifecycle.py; here are the checks that need pools: capability,
reachability, room for what gave its capacity back.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from datetime import datetime
from typing import Any

from msgspec.structs import replace

from backends.base import Action
from broker.book import Book, Transaction
from broker.core.clock import Clock
from broker.core.errors import (
    BrokerError,
    FieldReason,
    FieldsInvalid,
    FieldViolation,
    PlacementRefused,
    QuotaExceeded,
    Reason,
    not_found,
)
from broker.core.lifecycle import ACCEPTED_UNREACHABLE, CAPABILITIES, Answer, Verb
from broker.core.model import Cause, Node, State, Workspace
from broker.core.placement import Plan, plan
from broker.core.requests import SaveRequest, Target
from broker.core.whole import ask_workspace
from broker.engine.tasks import action_for, begin
from broker.ledger import Call, Ledger, matching
from broker.placing import hosts_of, nodes_again, refused, rest_of_lease, snapshots_for_their_own
from broker.pools import Pool
from broker.tenants import Tenants
from broker.waiting import ONWARD, going_on


class Verbs:
    """Puts nodes in motion."""

    def __init__(self, book: Book, pools: Mapping[str, Pool], clock: Clock, tenants: Tenants, ledger: Ledger) -> None:
        self._book = book
        self._pools = dict(pools)
        self._clock = clock
        self._tenants = tenants
        self._ledger = ledger

    async def verb(self, verb: Verb, target: Target, *, force: bool = False, release: bool = False) -> Workspace:
        """A verb on nodes of a workspace; what is already so, or on its way, changes nothing."""
        call = _call(target, f"{verb.value.capitalize()}Workspace")
        return await self._ledger.once(
            call,
            lambda tx: self._verb(tx, verb, self._target(target), target.node_indexes, force=force, release=release),
        )

    async def save(self, request: SaveRequest) -> Workspace:
        """Saves one disk of one node as an image."""
        target = request.target

        def decide(tx: Transaction) -> Workspace:
            workspace = self._target(target)
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
            _check_indexes(workspace, indexes)
            self._check_image_free(workspace.nodes[indexes[0]].pool, request.image_name)
            return self._verb(
                tx,
                Verb.SAVE,
                workspace,
                indexes,
                image_name=request.image_name,
                device=request.device,
                terminate_after=request.terminate_after,
            )

        return await self._ledger.once(_call(target, "SaveNode"), decide)

    def _target(self, target: Target) -> Workspace:
        workspace = self._book.find(target.tenant, target.workspace_id)
        if workspace is None:
            raise not_found("workspace", f"tenants/{target.tenant}/workspaces/{target.workspace_id}")
        return matching(workspace, target.etag)

    def _check_image_free(self, pool: str, image_name: str) -> None:
        """Refuses a name that is taken: a repeated save could not tell its own image from another."""
        inventory = self._pools[pool].inventory
        images = inventory.images if inventory is not None else None
        if any(image.name == image_name for image in images or ()):
            raise BrokerError(
                Reason.NAME_TAKEN,
                f'pool {pool} has an image "{image_name}" already; choose another image_name',
                resource=f"pools/{pool}",
                metadata={"image": image_name},
            )

    def _verb(
        self,
        tx: Transaction,
        verb: Verb,
        workspace: Workspace,
        indexes: Collection[int],
        *,
        force: bool = False,
        release: bool = False,
        **options: Any,
    ) -> Workspace:
        now = self._clock.now()
        _check_indexes(workspace, indexes)
        self._check_capable(verb, workspace, release)
        asked = ask_workspace(
            verb,
            workspace,
            targets=indexes or None,
            force=force,
            release=release,
            lease_over=workspace.lease_over(now),
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
        hosts: dict[int, str] = {}
        if any(action in ONWARD.values() for action in actions.values()):
            try:
                hosts = self._hosts_for_released(workspace, actions, now)
            except (PlacementRefused, QuotaExceeded):
                if not _may_wait(workspace, now):
                    raise
                waits = workspace.waiting_since is not None
                return workspace if waits else tx.put(replace(workspace, waiting_since=now))
            workspace = going_on(workspace, now)
        return begin(tx, self._pools, workspace, actions, now, force=force, hosts=hosts, **options)

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
        returning = [index for index, action in actions.items() if action in ONWARD.values()]
        nodes = [workspace.nodes[index] for index in returning]
        again = nodes_again(workspace, nodes, still_held=True)
        answer = plan(
            again, snapshots_for_their_own(self._pools.values(), now), rest_of_lease(workspace, now), judged=False
        )
        if not isinstance(answer, Plan):
            raise refused(answer, now, f"{workspace.name}, which gave its capacity back,")
        taken = tuple(replace(node, released=False) if node.index in returning else node for node in workspace.nodes)
        self._tenants.check(workspace.tenant, replace(workspace, nodes=taken), besides=workspace)
        return hosts_of(answer, nodes)


def _may_wait(workspace: Workspace, now: datetime) -> bool:
    """Whether what finds no room to go on may wait for it."""
    until = workspace.terms.queue_until
    return workspace.waiting_since is not None or (until is not None and until > now)


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


def _call(target: Target, method: str) -> Call:
    return Call(tenant=target.tenant, method=method, request_id=target.request_id, digest=target.digest)
