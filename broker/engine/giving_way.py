"""Leases that have to give way: told in time, and made to let go when their time has come.

Whose room it is that was promised stands in `Workspace.preemption`, see broker/preempting.py. At `begin_time` it is
looked at whether anybody still needs it: if all there is fits beside it, it stays. A node that its backend can suspend
and release is suspended; one of another pool is ended, and begins anew when there is room: to be preemptible is its
owner's consent. Both then wait in the queue, and their lease stands still.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Final

from msgspec.structs import replace

from backends.base import Action, Capability
from broker.book import Book
from broker.core.model import Cause, NoticeKind, State, Workspace, without
from broker.engine.tasks import begin, letting_go
from broker.placing import lacking_room
from broker.pools import Pool
from broker.preempting import with_notice

log = logging.getLogger(__name__)

AGAIN_AFTER: Final = timedelta(seconds=10)
"""After that long a lease that would not let go is told again."""

INSTANT: Final = timedelta(microseconds=1)


class GivingWay:
    """Those of all pools."""

    def __init__(self, pools: Mapping[str, Pool], book: Book) -> None:
        self._pools = dict(pools)
        self._book = book
        self._again: dict[str, datetime] = {}

    def due(self, workspace: Workspace) -> datetime | None:
        """When it has to be told, or to let go; None where it has done all that."""
        preemption = workspace.preemption
        if preemption is None:
            self._again.pop(workspace.uid, None)
            return None
        if self._for_nobody(workspace):
            return workspace.create_time  # at once
        if workspace.preempted_time is None and preemption.notice_time < preemption.begin_time and not _told(workspace):
            return preemption.notice_time
        if any(node.state.moving for node in workspace.nodes):
            return None  # it is looked at again when that is over
        if workspace.cause is Cause.ERROR:
            return max(preemption.begin_time, self._again.get(workspace.uid, preemption.begin_time))
        return preemption.begin_time

    def act(self, workspace: Workspace, now: datetime) -> None:
        """Does what is due."""
        preemption = workspace.preemption
        assert preemption is not None
        if self._for_nobody(workspace):
            if not self._spared(workspace, anyway=False, now=now):  # others were promised the room meanwhile
                with self._book.transaction() as tx:
                    tx.put(replace(workspace, preemption=replace(preemption, by="")))
            return
        if now < preemption.begin_time:
            with self._book.transaction() as tx:
                tx.put(with_notice(workspace, now))
            return
        holding = [node for node in workspace.nodes if not (node.state.final or node.released)]
        if workspace.preempted_time is None and self._spared(workspace, anyway=not holding, now=now):
            return
        self._again[workspace.uid] = now + AGAIN_AFTER
        log.info("workspace=%s preempted by=%s", workspace.name, preemption.by)
        ran = any(node.state in (State.RUNNING, State.PAUSED) for node in holding)
        waits = workspace.create_time if ran or workspace.waiting_since is not None else None
        given = replace(
            workspace,
            preempted_time=workspace.preempted_time or now,
            waiting_since=waits,
            notices=without(without(workspace.notices, NoticeKind.PREEMPTION), NoticeKind.ENDING),
        )
        pools = [self._pools[node.pool].backend.capabilities for node in holding]
        with self._book.transaction() as tx:
            if all({Capability.SUSPEND, Capability.RELEASE} <= can for can in pools):
                actions = {node.index: letting_go(node, can) for node, can in zip(holding, pools, strict=True)}
                begin(
                    tx,
                    self._pools,
                    given,
                    {index: action for index, action in actions.items() if action is not None},
                    now,
                    cause=Cause.PREEMPTED,
                )
            else:
                begin(
                    tx,
                    self._pools,
                    replace(given, waiting_since=workspace.create_time, actual_start_time=None),
                    {node.index: Action.TERMINATE for node in workspace.nodes if not node.state.final},
                    now,
                    cause=Cause.PREEMPTED,
                    force=True,
                    final_state=State.PENDING,
                )

    def concerned(self, beneficiary: str) -> list[Workspace]:
        """Those who have to give way to a workspace."""
        found = (self._book.workspaces[uid] for uid in self._book.giving_way)
        return [each for each in found if each.preemption is not None and each.preemption.by == beneficiary]

    def _for_nobody(self, workspace: Workspace) -> bool:
        """Whether the workspace that it is to give way to has come to its end before it did."""
        if workspace.preemption is None or workspace.preempted_time is not None or not workspace.preemption.by:
            return False
        beneficiary = self._book.workspaces.get(workspace.preemption.by)
        return beneficiary is None or beneficiary.state.final

    def _spared(self, workspace: Workspace, *, anyway: bool, now: datetime) -> bool:
        """Whether it need not give way: it has let go by itself, or nobody is in want of its room any more."""
        assert workspace.preemption is not None
        start = max(
            workspace.preemption.free_time, now
        )  # now what is on its way out still counts, as when it was chosen
        end = workspace.end_time
        kept = replace(workspace, preemption=None, notices=without(workspace.notices, NoticeKind.PREEMPTION))
        try:
            with self._book.transaction() as tx:
                tx.put(kept)
                if not anyway and (end is None or start < end):
                    lacking = lacking_room(self._pools, kept, start, end, now, held=True)
                    if lacking:
                        raise _Needed
        except _Needed:
            return False
        log.info("workspace=%s spared", workspace.name)
        return True


class _Needed(Exception):
    """Takes a trial back."""


def _told(workspace: Workspace) -> bool:
    return any(notice.kind is NoticeKind.PREEMPTION for notice in workspace.notices)
