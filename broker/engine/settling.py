"""What an observation makes of a node: its record afterwards, by the effect that the table names.

Values only: nothing is written, called or timed here.
"""

from __future__ import annotations

from datetime import datetime

from msgspec.structs import replace

from backends.base import Action, Observation, ObservedNode
from broker.core.errors import Failure, Reason
from broker.core.lifecycle import Do, Effect
from broker.core.model import Cause, Node, SeenNic, State, Task, Workspace
from broker.engine.tasks import RELEASING


def node_after(
    workspace: Workspace,
    node: Node,
    task: Task | None,
    observed: ObservedNode,
    effect: Effect,
    now: datetime,
) -> Node:
    """The node as an observation leaves it; the very same value where it changes nothing."""
    absent = observed.observation is Observation.ABSENT
    nics = tuple(
        SeenNic(network=nic.network, name=nic.name, addresses=nic.addresses, mac=nic.mac) for nic in observed.nics
    )
    settled = node
    if not absent and (nics != node.nics or observed.backend_id != node.backend_id):
        settled = replace(settled, nics=nics, backend_id=observed.backend_id)
    if not absent and observed.host and observed.host not in (node.host, node.target_host):
        # Moved by hand: the slot goes with the VM, over capacity if need be. The fact counts.
        settled = replace(settled, host=observed.host)
    match effect.do:
        case Do.DONE:
            released = node.released or (task is not None and task.action in RELEASING)
            arrived = node.target_host and observed.host == node.target_host
            settled = replace(
                settled,
                state=effect.to or node.state,
                released=released and effect.to in (State.SUSPENDED, State.STOPPED),
                saved=node.saved or (task is not None and task.action == Action.SAVE and task.cause is Cause.LEASE),
                host=node.target_host if arrived else settled.host,
                target_host="",
                observe_time=now,
                last_error=None,
            )
        case Do.AS_SEEN:
            running = effect.to in (State.RUNNING, State.PAUSED)
            settled = replace(
                settled,
                state=effect.to or node.state,
                cause=Cause.BACKEND,
                released=node.released and not running,
                target_host="",
                observe_time=now,
            )
        case Do.VERB_FAILED:
            what = f"{task.action} of node {node.index}" if task is not None else f"node {node.index}"
            why = observed.message or f"the backend shows it as {observed.detail or observed.observation}"
            reason = effect.reason or Reason.BACKEND_REJECTED
            settled = replace(
                settled,
                state=effect.to or (task.back_to if task is not None and task.back_to else node.state),
                cause=Cause.ERROR,
                target_host="",
                observe_time=now,
                last_error=Failure(
                    reason=reason,
                    message=f"{what} failed: {why}",
                    resource=workspace.name,
                    metadata={"node": str(node.index), "seen": observed.observation.value},
                ),
            )
            if settled.state is node.state and node.last_error == settled.last_error:
                return node
        case Do.GONE:
            settled = replace(
                settled,
                state=State.FAILED,
                cause=Cause.ERROR,
                target_host="",
                observe_time=now,
                last_error=Failure(
                    reason=Reason.NODE_GONE,
                    message=f"node {node.index} is gone: its backend has no VM {node.backend_id or 'of its tag'}",
                    resource=workspace.name,
                    metadata={"node": str(node.index), "backend_id": node.backend_id},
                ),
            )
        case Do.FINAL:
            settled = replace(
                settled,
                state=task.final_state if task is not None else State.TERMINATED,
                target_host="",
                observe_time=now,
            )
            if not settled.state.final:  # it begins anew one day, of which nothing is there yet
                settled = replace(settled, backend_id="", nics=(), released=False, saved=False)
    return settled
