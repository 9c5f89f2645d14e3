"""What becomes of a task that failed: another host, a smaller set, or everything undone.

A first start is all or nothing. A fault of the request undoes it whole; a fault of a host moves that node to another
host, at most three hosts a node; a node that starts nowhere is dropped while its set keeps `min_count`. Any other
verb that fails leaves its node where it was before, with the error.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from typing import Final

from msgspec.structs import replace

from backends.base import Action, Step
from broker.book import Book, Transaction
from broker.core.clock import Clock
from broker.core.errors import Failure, Reason
from broker.core.model import Cause, Node, State, Task, Workspace
from broker.core.placement import Plan, plan
from broker.engine.tasks import begin, write
from broker.placing import hosts_of, nodes_again, rest_of_lease, snapshots_for_their_own
from broker.pools import Pool

log = logging.getLogger(__name__)

HOSTS_TRIED: Final = 3


class Starts:
    """Failures of every pool's tasks."""

    def __init__(self, pools: Mapping[str, Pool], book: Book, clock: Clock) -> None:
        self._pools = dict(pools)
        self._book = book
        self._clock = clock

    def failed(self, task: Task, message: str, *, host_fault: bool, reason: Reason = Reason.BACKEND_REJECTED) -> None:
        """Decides about a task that will not succeed as it stands, in one transaction."""
        workspace = self._book.workspaces[task.uid]
        node = workspace.nodes[task.index]
        failure = Failure(
            reason=reason,
            message=f"{task.action} of node {node.index} failed: {message}",
            resource=workspace.name,
            metadata={"node": str(node.index), "pool": node.pool, "host": node.host, "step": task.step or ""},
        )
        log.warning("workspace=%s node=%d action=%s failed: %s", workspace.name, node.index, task.action, message)
        with self._book.transaction() as tx:
            if task.action != Action.CREATE:
                self._verb_failed(tx, workspace, node, task, failure)
            elif host_fault and self._moved(tx, workspace, node, task, failure):
                pass
            elif self._expendable(workspace, node) and reason is not Reason.TASK_TIMEOUT:
                self._end(tx, workspace, {node.index}, failure)
            else:
                self.undo(tx, workspace, failure)

    def undo(self, tx: Transaction, workspace: Workspace, failure: Failure) -> None:
        """Takes a first start back whole; the workspace ends FAILED."""
        self._end(tx, workspace, {node.index for node in workspace.nodes if not node.state.final}, failure)

    def end_saved(self, tx: Transaction, workspace: Workspace, indexes: Collection[int]) -> Workspace:
        """Ends nodes, as asked for together with saving their disks."""
        return begin(tx, self._pools, workspace, dict.fromkeys(indexes, Action.TERMINATE), self._clock.now())

    def _end(self, tx: Transaction, workspace: Workspace, indexes: set[int], failure: Failure) -> None:
        begin(
            tx,
            self._pools,
            workspace,
            dict.fromkeys(sorted(indexes), Action.TERMINATE),
            self._clock.now(),
            cause=Cause.ERROR,
            force=True,
            final_state=State.FAILED,
            failure=failure,
        )

    def _verb_failed(self, tx: Transaction, workspace: Workspace, node: Node, task: Task, failure: Failure) -> None:
        """Back to where the node was; what it had given back stays given back."""
        nodes = list(workspace.nodes)
        nodes[node.index] = replace(
            node,
            state=task.back_to or node.state,
            released=task.action in (Action.RESUME_RELEASED, Action.START_RELEASED) or node.released,
            target_host="",
            cause=Cause.ERROR,
            last_error=failure,
        )
        tx.drop_task(task.key)
        write(tx, workspace, nodes, cause=Cause.ERROR, failure=failure, now=self._clock.now())

    def _moved(self, tx: Transaction, workspace: Workspace, node: Node, task: Task, failure: Failure) -> bool:
        """Sends a node that its host could not start to another one, where there is one."""
        tried = (*node.failed_hosts, node.host)
        if len(tried) >= HOSTS_TRIED:
            return False
        now = self._clock.now()
        pool = self._pools[node.pool]
        request = nodes_again(workspace, [node], still_held=True, exclude=tried)
        answer = plan(request, snapshots_for_their_own([pool], now), rest_of_lease(workspace, now), judged=False)
        if not isinstance(answer, Plan):
            return False
        host = hosts_of(answer, [node])[node.index]
        steps = tuple(step.value for step in pool.backend.steps(Action.CREATE))
        nodes = list(workspace.nodes)
        if node.backend_id:
            # What the bad host has made of it goes first; until that is seen gone both hosts are held.
            steps = (Step.TERMINATE.value, *steps)
            nodes[node.index] = replace(node, target_host=host, failed_hosts=tried, last_error=failure)
        else:
            nodes[node.index] = replace(node, host=host, failed_hosts=tried, last_error=failure)
        tx.put_task(replace(task, steps=steps, position=0, attempt=1, unsure=False, force=True, last_error=failure))
        write(tx, workspace, nodes)
        log.info("workspace=%s node=%d moves from %s to %s", workspace.name, node.index, node.host, host)
        return True

    def _expendable(self, workspace: Workspace, node: Node) -> bool:
        """Whether its set keeps `min_count` without the node."""
        least = workspace.node_set(node).min_count
        left = sum(
            other.set_index == node.set_index
            and other.index != node.index
            and not other.state.final
            and other.state is not State.TERMINATING
            for other in workspace.nodes
        )
        return 0 < least <= left
