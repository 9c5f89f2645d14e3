"""Between what is kept and what placement is asked: requests out, plans in.

Nothing is decided here. Check, create, update, the first start of a lease and the return of a released node all ask
placement through these few functions, so that the same words get the same answer.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Final

from msgspec.structs import replace

from broker.core.errors import BrokerError, PlacementRefused, Reason
from broker.core.memo import Memo
from broker.core.model import EndAction, Node, NodeSet, State, Workspace
from broker.core.placement import (
    Never,
    NotNow,
    Outcome,
    Placement,
    PlacementRequest,
    Plan,
    PoolSnapshot,
    SetRequest,
    Verdict,
    Window,
    held_amounts,
)
from broker.core.requests import WorkspaceRequest
from broker.core.slots import POOL_ROW
from broker.pools import Pool

Pools = Mapping[str, Pool]


def _set_request(wanted: NodeSet) -> SetRequest:
    amounts = dict(wanted.amounts)
    extra = sum(disk.size_mib for disk in wanted.disks)
    if extra:
        amounts["disk"] = amounts.get("disk", 0) + extra
    return SetRequest(
        name=wanted.name,
        count=wanted.count,
        min_count=wanted.min_count,
        amounts=amounts,
        pool=wanted.pool or None,
        image=wanted.image or None,
        networks=wanted.networks,
        host_selector=wanted.host_selector,
        placement=wanted.placement,
    )


set_request = Memo(_set_request)
"""A node set as placement is asked for it; blank extra disks count with the node's own disk."""


def placement_request(wanted: WorkspaceRequest, allowed_pools: frozenset[str] | None) -> PlacementRequest:
    """A whole request as placement is asked for it."""
    capabilities: set[str] = set()
    for each in wanted.node_sets:
        if each.user_data or each.ssh_public_keys:
            capabilities.add("USER_DATA")
        if any(nic.addresses for nic in each.nics):
            capabilities.add("STATIC_ADDRESS")
    if wanted.initial_state is State.PAUSED:
        capabilities.add("PAUSE")
    capabilities |= capabilities_of_end(wanted.terms.end_action)
    if wanted.terms.start_time is not None or wanted.terms.earliest_start_time is not None:
        capabilities.add("ADVANCE_RESERVATION")
    given, optional = frozenset(wanted.parameters), frozenset(wanted.optional_parameters)
    return PlacementRequest(
        sets=tuple(map(set_request, wanted.node_sets)),
        pool=wanted.pool or None,
        capabilities=frozenset(capabilities),
        parameters=given - optional,
        optional_parameters=given & optional,
        allowed_pools=allowed_pools,
    )


_OF_END: Final = {EndAction.SAVE: frozenset({"STOP", "SAVE_IMAGE"}), EndAction.SUSPEND: frozenset({"SUSPEND"})}


def capabilities_of_end(end_action: EndAction) -> frozenset[str]:
    """What a pool must be able to do for an end action."""
    return _OF_END.get(end_action, frozenset())


def window(wanted: WorkspaceRequest, now: datetime) -> Window:
    """When a request is wanted; an instant that has just passed means now."""
    terms = wanted.terms
    start = terms.start_time or terms.earliest_start_time
    return Window(
        start=max(start, now) if start is not None else now,
        duration=terms.duration,
        open_ended=terms.open_ended,
        deadline=terms.deadline,
        latest_start=terms.deadline if terms.start_time is None else None,
        immediate=(start is None or start <= now) and terms.deadline is None,
    )


def snapshots(pools: Iterable[Pool], now: datetime) -> dict[str, PoolSnapshot]:
    """Every pool as it stands."""
    return {pool.name: pool.snapshot(now) for pool in pools}


def snapshots_for_their_own(pools: Iterable[Pool], now: datetime) -> dict[str, PoolSnapshot]:
    """Pools as they stand for what they hold already: one that drains keeps what it promised."""
    return {pool.name: replace(pool.snapshot(now), draining=False) for pool in pools}


def unplaced(tenant: str, workspace_id: str, wanted: WorkspaceRequest, now: datetime, uid: str = "") -> Workspace:
    """The record of a request that has no place yet: it has no nodes and holds nothing."""
    return Workspace(
        uid=uid,
        tenant=tenant,
        id=workspace_id,
        display_name=wanted.display_name,
        labels=wanted.labels,
        create_time=now,
        node_sets=wanted.node_sets,
        terms=wanted.terms,
        state=State.PENDING,
        nodes=(),
        pool=wanted.pool,
        requested_pool=wanted.pool,
        parameters=wanted.parameters,
        optional_parameters=wanted.optional_parameters,
        initial_state=wanted.initial_state,
    )


def placed(
    record: Workspace, answer: Plan, seen: Mapping[str, PoolSnapshot], now: datetime, *, reserved: bool = False
) -> Workspace:
    """The workspace a plan makes of a record without nodes: RESERVED for later (or in any case), or STARTING."""
    state = State.RESERVED if reserved or answer.start > now else State.STARTING
    shared = next((a.pool for a in answer.assignments if not record.node_sets[a.set_index].pool), record.pool)
    known = {key for name in answer.generations for key in seen[name].parameters}
    return replace(
        record,
        state=state,
        nodes=tuple(placed_nodes(answer, record.node_sets, seen, state)),
        pool=shared,
        ignored_parameters=tuple(key for key in record.optional_parameters if key not in known),
        start_time=answer.start,
        prepare_time=answer.prepare,
        end_time=answer.end,
        waiting_since=None,
        notices=(),
        last_error=None,
    )


def wanted_of(record: Workspace) -> WorkspaceRequest:
    """What a workspace without nodes was asked for as."""
    return WorkspaceRequest(
        node_sets=record.node_sets,
        terms=record.terms,
        pool=record.requested_pool,
        parameters=record.parameters,
        optional_parameters=record.optional_parameters,
        initial_state=record.initial_state,
    )


def placed_nodes(
    plan: Plan, node_sets: Sequence[NodeSet], seen: Mapping[str, PoolSnapshot], state: State
) -> list[Node]:
    """The nodes a plan makes, numbered through all sets, each with exactly the amounts that were planned with."""
    nodes: list[Node] = []
    for assignment in sorted(plan.assignments, key=lambda each: each.set_index):
        held, pool_held = held_amounts(seen[assignment.pool], set_request(node_sets[assignment.set_index]))
        for host in assignment.hosts:
            nodes.append(
                Node(
                    index=len(nodes),
                    set_index=assignment.set_index,
                    pool=assignment.pool,
                    host=host,
                    held=held,
                    pool_held=pool_held,
                    state=state,
                )
            )
    return nodes


def refused(answer: NotNow | Never, now: datetime, what: str) -> BrokerError:
    """The error for what cannot be placed: a verdict for every pool, and whether waiting helps.

    Where the one pool asked for is draining or does not answer, that is the reason, not its capacity.
    """
    verdicts = answer.verdicts
    pools = [verdict for verdict in verdicts if verdict.host is None]
    best = "; ".join(_brief(verdict) for verdict in pools[:3])
    if isinstance(answer, Never):
        return PlacementRefused(
            Reason.NEVER_FITS,
            f"{what} would not fit even if every host were empty: {best}",
            verdicts,
            metadata={"pools": ",".join(verdict.pool for verdict in pools)},
        )
    if len(pools) == 1:
        codes = {reason.code for reason in pools[0].reasons}
        if codes == {"POOL_DRAINING"}:
            return BrokerError(
                Reason.POOL_DRAINING,
                f"pool {pools[0].pool} is draining and admits nothing new; name another pool, or none",
                resource=f"pools/{pools[0].pool}",
            )
        if codes == {"POOL_UNREACHABLE"}:
            return BrokerError(
                Reason.BACKEND_UNREACHABLE,
                f"the backend of pool {pools[0].pool} does not answer; try again, or name another pool",
                resource=f"pools/{pools[0].pool}",
                retry_after=5.0,
            )
    when = ""
    retry_after = None
    metadata = {"pools": ",".join(verdict.pool for verdict in pools)}
    if answer.earliest is not None:
        when = f"; as things stand it fits from {answer.earliest.isoformat(timespec='seconds')} on"
        retry_after = max(0.0, (answer.earliest - now).total_seconds())
        metadata["earliest_start_time"] = answer.earliest.isoformat()
    return PlacementRefused(
        Reason.NO_CAPACITY,
        f"there is no room for {what} now: {best}{when}",
        verdicts,
        retry_after=retry_after,
        metadata=metadata,
    )


def _brief(verdict: Verdict) -> str:
    reasons = ", ".join(reason.message for reason in verdict.reasons[:2])
    return f"pool {verdict.pool}: {reasons or verdict.outcome}"


def best_outcome(verdicts: Iterable[Verdict]) -> Outcome:
    """The best of the pools' verdicts."""
    found = {verdict.outcome for verdict in verdicts if verdict.host is None}
    return next((each for each in (Outcome.FITS, Outcome.NOT_NOW) if each in found), Outcome.NEVER)


def nodes_again(
    workspace: Workspace, nodes: Sequence[Node], *, still_held: bool, exclude: Iterable[str] = ()
) -> PlacementRequest:
    """Nodes to be placed anew together in their own pools, a set for each set they are of, in its order.

    `still_held`: what they hold of their pools all along is not asked for again, that is addresses, and the disk where
    it is the pool's.
    """
    sets = []
    for index in sorted({node.set_index for node in nodes}):
        of_set = [node for node in nodes if node.set_index == index]
        wanted = _again(workspace, of_set, exclude)
        if still_held:
            kept = of_set[0].pool_held
            amounts = {name: amount for name, amount in wanted.amounts.items() if name not in kept}
            wanted = replace(wanted, amounts=amounts, networks={})
        sets.append(wanted)
    return PlacementRequest(sets=tuple(sets))


def hosts_of(answer: Plan, nodes: Sequence[Node]) -> dict[int, str]:
    """The host a plan of `nodes_again` gives to each node, by index."""
    hosts: dict[int, str] = {}
    for assignment, index in zip(
        sorted(answer.assignments, key=lambda each: each.set_index),
        sorted({node.set_index for node in nodes}),
        strict=True,
    ):
        of_set = [node.index for node in nodes if node.set_index == index]
        hosts.update(zip(of_set, assignment.hosts, strict=True))
    return hosts


def _again(workspace: Workspace, nodes: Sequence[Node], exclude: Iterable[str]) -> SetRequest:
    """Nodes of one set, which keep away from the set's others where each is to have a host of its own."""
    first = nodes[0]
    wanted = set_request(workspace.node_set(first))
    excluded = set(exclude)
    if wanted.placement is Placement.ONE_PER_HOST:
        moving = {node.index for node in nodes}
        excluded.update(
            place
            for node in workspace.nodes
            if node.set_index == first.set_index
            and node.index not in moving
            and not (node.state.final or node.released)
            for place in (node.host, node.target_host)
            if place
        )
    return replace(
        wanted,
        count=len(nodes),
        min_count=0,
        pool=first.pool,
        excluded_hosts=frozenset(excluded),
    )


def rest_of_lease(workspace: Workspace, now: datetime) -> Window:
    """From now to the end of a workspace's lease; of one that gave way, for as long as it had left then."""
    if workspace.end_time is None:
        return Window(start=now, open_ended=True, immediate=True)
    left = workspace.end_time - (workspace.preempted_time or now)
    if workspace.preempted_time is not None and workspace.terms.deadline is not None:
        left = min(left, workspace.terms.deadline - now)
    return Window(start=now, duration=max(left, timedelta(microseconds=1)), immediate=True)


def lacking_room(
    pools: Pools,
    workspace: Workspace,
    start: datetime,
    end: datetime | None,
    now: datetime,
    *,
    held: bool = False,
) -> str:
    """What is missing for a workspace to hold over [start, end) what it holds now, in words; empty if nothing is.

    `held`: the slot tables count it already.
    """
    wanted: defaultdict[tuple[str, str], defaultdict[str, int]] = defaultdict(lambda: defaultdict(int))
    for node in workspace.nodes:
        if node.state.final:
            continue
        for host, amounts in ((node.host, node.held if not node.released else {}), (POOL_ROW, node.pool_held)):
            for name, amount in amounts.items():
                wanted[node.pool, host][name] += 0 if held else amount
    for (pool, host), amounts in sorted(wanted.items()):
        lacking = pools[pool].room(host, amounts, start, end, now)
        if lacking:
            return lacking
    return ""
