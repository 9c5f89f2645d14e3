"""Reservations: another host in time where theirs fails before they begin, and their begin.

After each complete look at a pool, a reserved node whose host is gone, lost or cordoned is planned anew for the whole
of its lease, on the room there is at its time; what it holds goes with it. Where no host can take it, the workspace
stays RESERVED under the notice AT_RISK, is tried again at each look, and is told when the danger is over. A pool that
does not answer changes nothing.

A reservation begins at its `prepare_time` on hosts where its room is free by then: what held it until that instant may
still be on its way out. It never begins where something else is still there.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Final

from msgspec.structs import replace

from backends.base import Action
from broker.book import Book
from broker.core.clock import Clock
from broker.core.errors import Failure, Reason
from broker.core.model import Cause, Node, Notice, NoticeKind, State, Workspace, without
from broker.core.placement import Window, fits
from broker.engine.giving_way import INSTANT
from broker.engine.tasks import begin
from broker.placing import hosts_of, lacking_room, nodes_again, rest_of_lease, snapshots_for_their_own
from broker.pools import Pool

log = logging.getLogger(__name__)


LATE_AFTER: Final = timedelta(seconds=5)
"""After that long the owner of a reservation that cannot begin is told."""


class Reservations:
    """Those of all pools."""

    def __init__(self, pools: Mapping[str, Pool], book: Book, clock: Clock) -> None:
        self._pools = dict(pools)
        self._book = book
        self._clock = clock
        self._looked: tuple[int, ...] = ()  # the versions of hosts and cordons that were looked at last
        self._in_danger: set[str] = set()  # by uid, as of the last look
        self._late: dict[str, None] = {}  # by uid: their room was not free when they were due

    def secure(self) -> None:
        """Sees to every reservation that is in danger or was; those that begin first have the choice. While no host
        and no cordon has changed, only those that were in danger at the last look can be in it."""
        versions = (self._book.settings_version, *(pool.hosts_version for pool in self._pools.values()))
        reserved = self._book.waiting[State.RESERVED]
        among = reserved if versions != self._looked else reserved & self._in_danger
        self._looked = versions
        now = self._clock.now()
        for workspace in sorted(
            (self._book.workspaces[uid] for uid in among),
            key=lambda each: (each.start_time or each.create_time, each.uid),
        ):
            suspect = workspace.uid in self._in_danger
            self._in_danger.discard(workspace.uid)
            stranded = [node for node in workspace.nodes if self._stranded(node)]
            stranded = stranded or self._crowded(workspace, now, suspect=suspect)
            told = any(notice.kind is NoticeKind.AT_RISK for notice in workspace.notices)
            if stranded:
                self._in_danger.add(workspace.uid)
                if all(self._pools[node.pool].reachable.is_set() for node in stranded):
                    self._move(workspace, stranded, now, told=told)
            elif told:
                self._put(replace(workspace, notices=without(workspace.notices, NoticeKind.AT_RISK)))
        self._in_danger &= reserved
        for pool in self._pools.values():
            pool.tightened.clear()

    def _stranded(self, node: Node) -> bool:
        pool = self._pools.get(node.pool)
        return pool is not None and not node.state.final and not pool.usable(node.host)

    def _crowded(self, workspace: Workspace, now: datetime, *, suspect: bool) -> list[Node]:
        """Nodes on hosts that others have taken so much of that not everyone finds the room they were promised; looked
        for where a host has less than before, or (`suspect`) was found so at the last look."""
        start = max(workspace.prepare_time or now, now)
        if workspace.end_time is not None and workspace.end_time <= start:
            return []
        return [
            node
            for node in workspace.nodes
            if not node.state.final
            and (suspect or node.host in self._pools[node.pool].tightened)
            and lacking_room(self._pools, replace(workspace, nodes=(node,)), start, workspace.end_time, now, held=True)
        ]

    def _move(self, workspace: Workspace, stranded: Sequence[Node], now: datetime, *, told: bool) -> None:
        start = max(workspace.start_time or now, now)
        window = Window(
            start=start,
            duration=workspace.end_time - start if workspace.end_time is not None else None,
            open_ended=workspace.end_time is None,
        )
        # What they hold lies on hosts that take nothing of them, so it stands in nobody's way.
        request = nodes_again(workspace, stranded, still_held=True, exclude={node.host for node in stranded})
        answer = fits(request, snapshots_for_their_own(self._pools.values(), now), window)
        if answer is not None:
            nodes = list(workspace.nodes)
            for index, host in hosts_of(answer, stranded).items():
                log.info(
                    "workspace=%s node=%d reserved on=%s instead_of=%s",
                    workspace.name,
                    index,
                    host,
                    nodes[index].host,
                )
                nodes[index] = replace(nodes[index], host=host)
            notices = without(workspace.notices, NoticeKind.AT_RISK)
            self._put(replace(workspace, nodes=tuple(nodes), notices=notices))
        elif not told:
            hosts = ", ".join(sorted({node.host for node in stranded}))
            log.warning("workspace=%s at_risk hosts=%s", workspace.name, hosts)
            notice = Notice(
                kind=NoticeKind.AT_RISK,
                time=now,
                due_time=workspace.start_time,
                message=f"{hosts} cannot take it at its start, and no other host has the room; it moves as soon as "
                "one has, or starts late",
            )
            self._put(replace(workspace, notices=(*workspace.notices, notice)))

    def start(self, workspace: Workspace, now: datetime) -> None:
        """Begins with a reservation whose time has come. Nodes whose host cannot take them, or whose room there is not
        free yet, go to other hosts that can. Where there are none it waits: for its room, which is held for it, or, if
        a host of its own is out of service, as the first in the queue."""
        stranded = [
            node for node in workspace.nodes if not node.state.final and not self._pools[node.pool].usable(node.host)
        ]
        moving = stranded or self._crowded_out(workspace, now)
        try:
            with self._book.transaction() as tx:
                nodes = list(workspace.nodes)
                if moving:
                    # What they hold must not stand in their own way; the others keep theirs meanwhile.
                    for node in moving:
                        nodes[node.index] = replace(node, state=State.PENDING)
                    tx.put(replace(workspace, nodes=tuple(nodes)))
                    pools = snapshots_for_their_own(self._pools.values(), now)
                    request = nodes_again(workspace, moving, still_held=False)
                    answer = fits(request, pools, rest_of_lease(workspace, now))
                    if answer is None:
                        raise _StillWaiting
                    for index, host in hosts_of(answer, moving).items():
                        nodes[index] = replace(nodes[index], host=host)
                begin(
                    tx,
                    self._pools,
                    replace(workspace, nodes=tuple(nodes), state=State.STARTING, last_error=None, notices=()),
                    {node.index: Action.CREATE for node in nodes if not node.state.final},
                    now,
                    cause=Cause.LEASE,
                )
        except _StillWaiting:
            if stranded:
                self._wait(workspace, now)
            else:
                self._wait_for_room(workspace, now)

    def _crowded_out(self, workspace: Workspace, now: datetime) -> list[Node]:
        """Nodes whose room is promised to them from now on, and not free yet."""
        if not lacking_room(self._pools, workspace, now, now + INSTANT, now, held=True):
            return []
        return [
            node
            for node in workspace.nodes
            if not node.state.final
            and lacking_room(self._pools, replace(workspace, nodes=(node,)), now, now + INSTANT, now, held=True)
        ]

    def _wait_for_room(self, workspace: Workspace, now: datetime) -> None:
        """Its room is not free yet; its owner is told when that lasts."""
        self._late[workspace.uid] = None
        due = workspace.prepare_time or workspace.start_time or now
        if now - due < LATE_AFTER or any(notice.kind is NoticeKind.AT_RISK for notice in workspace.notices):
            return
        notice = Notice(
            kind=NoticeKind.AT_RISK,
            time=now,
            due_time=workspace.start_time,
            message="its room is not free yet, and no other host has any; it starts as soon as one has",
        )
        self._put(replace(workspace, notices=(*workspace.notices, notice)))

    def _wait(self, workspace: Workspace, now: datetime) -> None:
        """No host can take it, and none of its own is in service: it waits as the first in the queue."""
        notice = Notice(
            kind=NoticeKind.AT_RISK,
            time=now,
            due_time=workspace.start_time,
            message="no host can take it at its start; it starts as soon as one can",
        )
        failure = Failure(
            reason=Reason.NO_CAPACITY,
            message="no host can take the workspace at its start; it waits for room",
            resource=workspace.name,
        )
        nodes = tuple(node if node.state.final else replace(node, state=State.PENDING) for node in workspace.nodes)
        self._put(
            replace(
                workspace,
                nodes=nodes,
                state=State.PENDING,
                waiting_since=now,
                notices=(notice,),
                last_error=failure,
            )
        )

    def late(self) -> list[str]:
        """The uids of those that were due and found their room not free yet."""
        self._late = {uid: None for uid in self._late if uid in self._book.waiting[State.RESERVED]}
        return list(self._late)

    def _put(self, workspace: Workspace) -> None:
        with self._book.transaction() as tx:
            tx.put(workspace)


class _StillWaiting(Exception):
    """Takes a trial back."""
