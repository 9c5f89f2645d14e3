"""Workspaces that wait for capacity: what each is asked for as, and what it becomes when there is room.

Four kinds wait: new ones that have no place yet; reservations whose hosts could not take them when they were due;
leases that had to give way and have nothing left but their record; and those that are suspended or stopped, have given
their capacity back and want to go on. Values only: nothing is planned or written here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from msgspec.structs import replace

from backends.base import Action
from broker.core.model import Cause, Node, NoticeKind, State, Workspace
from broker.core.placement import PlacementRequest, Plan, PoolSnapshot, Window
from broker.core.policies import Waiting
from broker.placing import hosts_of, nodes_again, placed, placement_request, rest_of_lease, wanted_of

FAR: Final = timedelta(days=3650)
"""How far ahead a start is looked for."""

ONWARD: Final[Mapping[State, Action]] = {
    State.SUSPENDED: Action.RESUME_RELEASED,
    State.STOPPED: Action.START_RELEASED,
}
"""How a node that gave its capacity back goes on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One workspace that waits. `nodes`: those that want a place; none while it has none yet."""

    workspace: Workspace
    waiting: Waiting
    request: PlacementRequest
    nodes: tuple[Node, ...]

    @property
    def shape(self) -> tuple[object, ...]:
        """Equal for two that ask for the very same for equally long: where one does not fit, the other does not."""
        request = self.request
        deadline = self.workspace.terms.deadline
        return (tuple(map(id, request.sets)), request.pool, self.waiting.duration, deadline, request.allowed_pools)

    @property
    def ends_by(self) -> datetime | None:
        """When it ends whenever it begins: the end of a reservation that is overdue does not move."""
        return self.workspace.end_time if self.waiting.overdue else None

    def eligible(self, now: datetime) -> bool:
        """Whether it could begin now, were there room."""
        earliest = self.workspace.terms.earliest_start_time
        if not self.workspace.nodes:
            return earliest is None or earliest <= now
        return bool(self.nodes) and not any(node.state.moving for node in self.workspace.nodes)

    def pools(self, seen: Mapping[str, PoolSnapshot]) -> frozenset[str]:
        """The pools it could go to."""
        request = self.request
        named = [each.pool or request.pool for each in request.sets]
        if all(named):
            return frozenset(name for name in named if name)
        pools = frozenset(seen) if request.allowed_pools is None else request.allowed_pools & seen.keys()
        return pools | {name for name in named if name}

    def may_go(self, open_pools: Mapping[str, PoolSnapshot]) -> bool:
        """Whether there is any way for it through these pools."""
        request = self.request
        named = {each.pool for each in request.sets if each.pool}
        if request.pool and not all(each.pool for each in request.sets):
            named.add(request.pool)
        return all(name in open_pools for name in named) and bool(open_pools)

    def window(self, now: datetime) -> Window:
        """When it is wanted, if it is to begin now."""
        if self.workspace.nodes:
            return rest_of_lease(self.workspace, now)
        terms = self.workspace.terms
        return Window(
            start=now, duration=terms.duration, open_ended=terms.open_ended, deadline=terms.deadline, immediate=True
        )

    def window_ahead(self, now: datetime) -> Window:
        """When it is wanted, if it may begin later."""
        window = self.window(now)
        start = max(now, self.workspace.terms.earliest_start_time or now) if not self.workspace.nodes else now
        return replace(window, start=start, immediate=False, latest_start=start + FAR)

    def begun(
        self, answer: Plan, seen: Mapping[str, PoolSnapshot], now: datetime
    ) -> tuple[Workspace, dict[int, Action]]:
        """The workspace as it begins by a plan that starts now, and what is to be done with each node."""
        if not self.workspace.nodes:
            begun = placed(self.workspace, answer, seen, now)
            return begun, {node.index: Action.CREATE for node in begun.nodes}
        begun = going_on(self.workspace, now)
        if begun.end_time is not None and answer.end is not None:  # no longer than there is room for
            begun = replace(begun, end_time=min(begun.end_time, answer.end))
        actions = {node.index: ONWARD.get(node.state, Action.CREATE) for node in self.nodes}
        nodes = list(begun.nodes)  # as they hold their room again, for the tenant's limits
        for node in self.nodes:
            nodes[node.index] = replace(node, released=False)
        if begun.state is State.PENDING:
            for index, host in hosts_of(answer, self.nodes).items():
                nodes[index] = replace(nodes[index], host=host, state=State.STARTING)
            begun = replace(begun, state=State.STARTING)
        begun = replace(begun, nodes=tuple(nodes))
        return begun, actions

    def reserved(self, answer: Plan, seen: Mapping[str, PoolSnapshot], now: datetime) -> Workspace:
        """The workspace as it holds what a plan gives it, from the plan's own time on."""
        if not self.workspace.nodes:
            return placed(self.workspace, answer, seen, now, reserved=True)
        hosts = hosts_of(answer, self.nodes)
        ends = [end for end in (answer.end, self.ends_by) if end is not None]
        nodes = tuple(
            replace(node, host=hosts[node.index], state=State.RESERVED, released=False) if node.index in hosts else node
            for node in self.workspace.nodes
        )
        return replace(
            going_on(self.workspace, now),
            nodes=nodes,
            state=State.RESERVED,
            prepare_time=answer.prepare,
            start_time=answer.start,
            end_time=min(ends, default=None),
        )

    def hosts(self, answer: Plan) -> dict[int, str]:
        """The host each node goes on at, where it has given its capacity back."""
        return hosts_of(answer, self.nodes) if self.nodes and self.workspace.state is not State.PENDING else {}


def entry_of(workspace: Workspace, allowed_pools: frozenset[str] | None) -> Entry:
    """A workspace as one that waits; one that does not, as it would."""
    terms = workspace.terms
    overdue = False
    nodes: tuple[Node, ...] = ()
    if not workspace.nodes:
        request = placement_request(wanted_of(workspace), allowed_pools)
        duration = terms.duration
        count = sum(each.count for each in workspace.node_sets)
    else:
        pending = workspace.state is State.PENDING
        nodes = tuple(
            node
            for node in workspace.nodes
            if not node.state.final and (pending or (node.released and node.state in ONWARD))
        )
        request = nodes_again(workspace, nodes or workspace.nodes, still_held=not pending)
        overdue = pending and workspace.preempted_time is None
        since = workspace.preempted_time or workspace.start_time or workspace.create_time
        duration = None if workspace.end_time is None else workspace.end_time - since
        count = len(nodes)
    return Entry(
        workspace=workspace,
        nodes=nodes,
        request=request,
        waiting=Waiting(
            uid=workspace.uid,
            tenant=workspace.tenant,
            since=workspace.waiting_since or workspace.create_time,
            nodes=count,
            duration=duration,
            priority=terms.priority,
            preemptible=terms.preemptible,
            overdue=overdue,
        ),
    )


def going_on(workspace: Workspace, now: datetime) -> Workspace:
    """A workspace that waits no longer: its lease's clock, which stood still while it gave way, runs again."""
    end = workspace.end_time
    if end is not None and workspace.preempted_time is not None:
        end += max(timedelta(), now - workspace.preempted_time)
        if workspace.terms.deadline is not None:
            end = min(end, workspace.terms.deadline)
    return replace(
        workspace,
        end_time=end,
        waiting_since=None,
        preemption=None,
        preempted_time=None,
        cause=Cause.LEASE,
        last_error=None,
        notices=tuple(
            notice for notice in workspace.notices if notice.kind not in (NoticeKind.PREEMPTION, NoticeKind.AT_RISK)
        ),
    )


def lapses_at(workspace: Workspace) -> datetime | None:
    """When a workspace that waits has waited in vain; None: it waits for as long as it takes."""
    terms = workspace.terms
    if workspace.preempted_time is not None:
        return terms.deadline
    if workspace.nodes:
        return workspace.end_time if workspace.state is State.PENDING else terms.queue_until
    latest = [terms.queue_until] if terms.queue_until is not None else []
    if terms.deadline is not None:
        latest.append(terms.deadline - (terms.duration or timedelta()))
    return min(latest, default=None)
