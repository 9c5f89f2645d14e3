"""What a task is made of, and how it begins: the one place where a node gets something to do.

A verb, a lease's begin or end, an operator or a failed start all put nodes in motion through `begin`, in the
transaction that decides it.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime, timedelta
from typing import Final

from msgspec.structs import replace

from backends.base import Action, Capability
from broker.book import Transaction
from broker.core.errors import Failure
from broker.core.lifecycle import Verb
from broker.core.model import (
    Cause,
    Node,
    Notice,
    NoticeKind,
    State,
    Task,
    Workspace,
    without,
)
from broker.core.whole import workspace_state
from broker.pools import Pool

STATE_OF: Final[dict[Action, State]] = {
    Action.CREATE: State.STARTING,
    Action.PAUSE: State.PAUSING,
    Action.UNPAUSE: State.RESUMING,
    Action.SUSPEND: State.SUSPENDING,
    Action.SUSPEND_RELEASE: State.SUSPENDING,
    Action.RELEASE_SUSPENDED: State.SUSPENDING,
    Action.RESUME: State.RESUMING,
    Action.RESUME_RELEASED: State.RESUMING,
    Action.STOP: State.STOPPING,
    Action.STOP_RELEASE: State.STOPPING,
    Action.RELEASE_STOPPED: State.STOPPING,
    Action.START: State.STARTING,
    Action.START_RELEASED: State.STARTING,
    Action.REBOOT: State.REBOOTING,
    Action.SAVE: State.SAVING,
    Action.MIGRATE: State.SUSPENDING,
    Action.LIVE_MIGRATE: State.RUNNING,  # the guest does not notice
    Action.TERMINATE: State.TERMINATING,
}
"""The state a node is in while an action is under way."""

RELEASING: Final = frozenset(
    {Action.SUSPEND_RELEASE, Action.RELEASE_SUSPENDED, Action.STOP_RELEASE, Action.RELEASE_STOPPED}
)
"""Actions after which a node holds its disk alone."""


def action_for(verb: Verb, node: Node, *, release: bool) -> Action:
    """What a verb means for one node, by whether its capacity is (to be) given back."""
    match verb:
        case Verb.SUSPEND if release:
            return Action.RELEASE_SUSPENDED if node.state is State.SUSPENDED else Action.SUSPEND_RELEASE
        case Verb.STOP if release:
            return Action.RELEASE_STOPPED if node.state is State.STOPPED else Action.STOP_RELEASE
        case Verb.RESUME if node.released:
            return Action.RESUME_RELEASED
        case Verb.START if node.released:
            return Action.START_RELEASED
    return Action(verb.value.lower())


def letting_go(node: Node, can: Collection[Capability]) -> Action | None:
    """The next move of a node that is to give its capacity back, or at least to rest; None: nothing is left to do."""
    releases = Capability.RELEASE in can
    if node.state is State.PAUSED:
        return Action.UNPAUSE
    if node.state is State.RUNNING:
        return Action.SUSPEND_RELEASE if releases else Action.SUSPEND
    if node.released or not releases:
        return None
    return Action.RELEASE_SUSPENDED if node.state is State.SUSPENDED else Action.RELEASE_STOPPED


def begin(
    tx: Transaction,
    pools: dict[str, Pool],
    workspace: Workspace,
    actions: dict[int, Action],
    now: datetime,
    *,
    cause: Cause = Cause.REQUESTED,
    force: bool = False,
    final_state: State = State.TERMINATED,
    failure: Failure | None = None,
    image_name: str = "",
    device: str = "",
    terminate_after: bool = False,
    hosts: dict[int, str] | None = None,
) -> Workspace:
    """Puts nodes in motion and returns the workspace as written. `failure` becomes the workspace's last error;
    `hosts`: the host each node goes to, where the action takes it to another."""
    hosts = hosts or {}
    nodes = list(workspace.nodes)
    for index, action in actions.items():
        node = nodes[index]
        pool = pools[node.pool]
        timeout = pool.settings.start_timeout if action is Action.CREATE else pool.settings.transition_timeout
        tx.put_task(
            Task(
                uid=workspace.uid,
                index=index,
                pool=node.pool,
                action=action.value,
                steps=tuple(step.value for step in pool.backend.steps(action)),
                attempt=1,
                create_time=now,
                deadline=None if action is Action.TERMINATE else now + timedelta(seconds=timeout),
                cause=cause,
                force=force,
                back_to=node.state,
                final_state=final_state,
                image_name=image_name,
                device=device,
                terminate_after=terminate_after,
            )
        )
        # What is ended to begin anew is not at its end: it shows as stopping.
        state = State.STOPPING if final_state is State.PENDING else STATE_OF[action]
        changed = replace(node, state=state, cause=cause)
        if action in (Action.RESUME_RELEASED, Action.START_RELEASED):
            changed = replace(changed, released=False, host=hosts[index])
        elif index in hosts:
            changed = replace(changed, target_host=hosts[index])
        nodes[index] = changed
    return write(tx, workspace, nodes, cause=cause, failure=failure)


def write(
    tx: Transaction,
    workspace: Workspace,
    nodes: Collection[Node],
    *,
    cause: Cause | None = None,
    failure: Failure | None = None,
    now: datetime | None = None,
) -> Workspace:
    """Writes a workspace with changed nodes: its state, notices and times follow from them."""
    ended = [
        node.state for node, was in zip(nodes, workspace.nodes, strict=True) if node.state.final and not was.state.final
    ]
    changed = replace(workspace, nodes=tuple(nodes), last_error=failure or workspace.last_error)
    summary = workspace_state(changed.nodes, started=workspace.started, last_end=ended[-1] if ended else None)
    notices = without(changed.notices, NoticeKind.DEGRADED)
    if summary.lost and not summary.state.final:
        since = next((notice.time for notice in workspace.notices if notice.kind is NoticeKind.DEGRADED), now)
        if since is not None:
            notices += (Notice(kind=NoticeKind.DEGRADED, time=since, message=summary.message),)
    if summary.state.final:
        notices = ()
    if changed.preempted_time is not None and changed.preemption is not None and _has_let_go(changed):
        changed = replace(
            changed, preemption=None, preempted_time=changed.preempted_time if changed.waiting_since else None
        )
    changed = replace(
        changed,
        state=summary.state,
        cause=cause or changed.cause,
        notices=notices,
        actual_start_time=changed.actual_start_time
        or (now if summary.state in (State.RUNNING, State.PAUSED) else None),
        final_time=now if summary.state.final else None,
    )
    return tx.put(changed)


def _has_let_go(workspace: Workspace) -> bool:
    """Whether none of its nodes holds cpu or memory any more."""
    return all(node.state.final or node.released or node.state is State.PENDING for node in workspace.nodes)
