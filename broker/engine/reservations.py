"""Reservations whose host fails before they begin: another host in time, or a warning as soon as it is known.

After each complete look at a pool, a reserved node whose host is gone, lost or cordoned is planned anew for the whole
of its lease, on the room there is at its time; what it holds goes with it. Where no host can take it, the workspace
stays RESERVED under the notice AT_RISK, is tried again at each look, and is told when the danger is over. A pool that
does not answer changes nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from datetime import datetime

from msgspec.structs import replace

from broker.book import Book
from broker.core.clock import Clock
from broker.core.model import Node, Notice, NoticeKind, State, Workspace, without
from broker.core.placement import Plan, Window, plan
from broker.placing import hosts_of, nodes_again, snapshots_for_their_own
from broker.pools import Pool

log = logging.getLogger(__name__)


class Reservations:
    """Those of all pools."""

    def __init__(self, pools: Mapping[str, Pool], book: Book, clock: Clock) -> None:
        self._pools = dict(pools)
        self._book = book
        self._clock = clock
        self._looked: tuple[int, ...] = ()  # the versions of hosts and cordons that were looked at last
        self._in_danger: set[str] = set()  # by uid, as of the last look

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
            self._in_danger.discard(workspace.uid)
            stranded = [node for node in workspace.nodes if self._stranded(node)]
            told = any(notice.kind is NoticeKind.AT_RISK for notice in workspace.notices)
            if stranded:
                self._in_danger.add(workspace.uid)
                if all(self._pools[node.pool].reachable.is_set() for node in stranded):
                    self._move(workspace, stranded, now, told=told)
            elif told:
                self._put(replace(workspace, notices=without(workspace.notices, NoticeKind.AT_RISK)))
        self._in_danger &= reserved

    def _stranded(self, node: Node) -> bool:
        pool = self._pools.get(node.pool)
        return pool is not None and not node.state.final and not pool.usable(node.host)

    def _move(self, workspace: Workspace, stranded: Sequence[Node], now: datetime, *, told: bool) -> None:
        start = workspace.prepare_time or workspace.start_time or now
        window = Window(
            start=max(start, now),
            duration=workspace.end_time - start if workspace.end_time is not None else None,
            open_ended=workspace.end_time is None,
        )
        # What they hold lies on hosts that take nothing, so it stands in nobody's way.
        request = nodes_again(workspace, stranded, still_held=True)
        answer = plan(request, snapshots_for_their_own(self._pools.values(), now), window, judged=False)
        if isinstance(answer, Plan):
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

    def _put(self, workspace: Workspace) -> None:
        with self._book.transaction() as tx:
            tx.put(workspace)
