"""The life cycle of a workspace as a whole: a verb on several nodes, and the one state that they make.

A verb is accepted for all the nodes it is asked for or for none, and a workspace has one transition at a time.
The rules for one node stand in lifecycle.py; nothing here moves a node.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence

from msgspec import Struct

from broker.core.errors import BrokerError, Reason, not_found
from broker.core.lifecycle import Answer, Verb, VerbCell, ask
from broker.core.model import RESTING, Node, State, Workspace

GOING_ON = frozenset({Verb.START, Verb.UNPAUSE, Verb.RESUME})


class Asked(Struct, frozen=True, kw_only=True):
    """A verb on a workspace that is not refused: GO moves `nodes` to `to`; ALREADY changes nothing."""

    answer: Answer
    nodes: tuple[int, ...] = ()
    to: State | None = None


class Summary(Struct, frozen=True, kw_only=True):
    """A workspace's state as its nodes make it; `lost` nodes put up the notice DEGRADED."""

    state: State
    message: str = ""
    lost: tuple[int, ...] = ()


def ask_workspace(
    verb: Verb,
    workspace: Workspace,
    *,
    targets: Collection[int] | None = None,
    force: bool = False,
    release: bool = False,
    lease_over: bool = False,
    under_way: str = "",
) -> Asked:
    """Accepts a verb for all nodes named (all that are not final, unless named) or for none.

    `under_way` names a transition that shows in no state, such as "migrate". Raises BrokerError with reason
    STATE_FORBIDS, TRANSITION_UNDER_WAY, or NOT_FOUND for a node that is not there.
    """
    nodes = {node.index: node for node in workspace.nodes}
    for index in sorted(targets or ()):
        if index not in nodes:
            raise not_found("node", f"{index} of {workspace.name}")
    if targets is None:
        targets = [node.index for node in workspace.nodes if not node.state.final]
    chosen = [nodes[index] for index in sorted(targets)]
    if verb is Verb.UPDATE:  # of the whole: a node that ends does not keep the others from a longer lease
        chosen = [node for node in chosen if node.state is not State.TERMINATING] or chosen

    def cell_of(state: State, released: bool) -> VerbCell:
        return ask(verb, state, force=force, release=release, released=released, lease_over=lease_over)

    if not chosen:  # nothing is placed yet, or nothing is left
        cell = cell_of(workspace.state, False)
        if cell.answer is Answer.FORBIDDEN:
            raise _forbidden(verb, workspace, workspace.state, None, cell)
        return Asked(answer=cell.answer, to=cell.to)
    cells = [(node, cell_of(node.state, node.released)) for node in chosen]
    if all(cell.answer is Answer.ALREADY for _, cell in cells):
        return Asked(answer=Answer.ALREADY)
    if verb not in (Verb.TERMINATE, Verb.UPDATE):
        # Before what is forbidden: until the transition is over nobody knows which verb would do. Where all
        # that was asked for is ending there is nothing to wait for, and it is forbidden.
        ending = all(node.state is State.TERMINATING or node.state.final for node in chosen)
        moving = next((node for node in workspace.nodes if node.state.moving), None)
        if not ending and (moving is not None or under_way):
            raise _under_way(verb, workspace, moving, under_way)
    for node, cell in cells:
        if cell.answer is Answer.FORBIDDEN:
            raise _forbidden(verb, workspace, node.state, node.index, cell)
    going = [(node, cell) for node, cell in cells if cell.answer is Answer.GO]
    return Asked(answer=Answer.GO, nodes=tuple(node.index for node, _ in going), to=going[0][1].to)


def _under_way(verb: Verb, workspace: Workspace, moving: Node | None, step: str) -> BrokerError:
    shown = moving.state.value if moving else step
    where = f"node {moving.index} is {shown}" if moving else f"a {step} is under way"
    return BrokerError(
        Reason.TRANSITION_UNDER_WAY,
        f"{verb.lower()} has to wait: {where}; ask again when that is over, or terminate",
        resource=workspace.name,
        metadata={"under_way": shown, "verb": verb.value} | ({"node": str(moving.index)} if moving else {}),
    )


def _forbidden(verb: Verb, workspace: Workspace, state: State, node: int | None, cell: VerbCell) -> BrokerError:
    if cell.instead is Verb.UPDATE:
        hint = "its lease is over: update it with a later end first"
    elif cell.instead is not None:
        first = "" if verb in GOING_ON else " first"  # those ask for the same in another state
        hint = f"{cell.instead.lower()} it{first}"
        if (verb, state) == (Verb.STOP, State.PAUSED):
            hint += ", or stop it with force"
    elif state in (State.PENDING, State.RESERVED):
        hint = "nothing of it runs yet; update changes it, terminate ends it"
    else:
        hint = "it is at its end; create another one"
    return BrokerError(
        Reason.STATE_FORBIDS,
        f"{verb.lower()} is not possible: {'it' if node is None else f'node {node}'} is {state}; {hint}",
        resource=workspace.name,
        metadata={"state": state.value, "verb": verb.value}
        | ({"node": str(node)} if node is not None else {})
        | ({"instead": cell.instead.value} if cell.instead else {}),
    )


# How active a state is, most active first; of several transitions TERMINATING is named last.
_TRANSITIONS = (
    State.STARTING,
    State.RESUMING,
    State.REBOOTING,
    State.PAUSING,
    State.SUSPENDING,
    State.STOPPING,
    State.SAVING,
    State.TERMINATING,
)
_RESTS = (State.RUNNING, State.PAUSED, State.SUSPENDED, State.STOPPED, State.RESERVED, State.PENDING)
_ACTIVITY = (*_TRANSITIONS, *_RESTS)


def workspace_state(nodes: Sequence[Node], *, started: bool, last_end: State | None = None) -> Summary:
    """The workspace's state when its nodes differ.

    `started`: its first start has succeeded before. `last_end`: the final state of the node that ended last,
    which is the reason of the whole end; not given, EXPIRED goes before TERMINATED before FAILED.
    """
    if nodes and all(node.state is nodes[0].state for node in nodes):
        return Summary(state=nodes[0].state)
    counts = Counter(node.state for node in nodes)
    live = [node.state for node in nodes if not node.state.final]
    lost = tuple(node.index for node in nodes if node.state is State.FAILED) if live else ()
    if not nodes:
        return Summary(state=State.PENDING)
    if not live:
        ends = (State.EXPIRED, State.TERMINATED, State.FAILED)
        state = last_end if last_end is not None else next(end for end in ends if counts[end])
    elif not started and _starting(live):
        state = State.STARTING
    else:
        state = next(one for one in _ACTIVITY if counts[one])
    return Summary(state=state, message=_message(nodes, counts, state), lost=lost)


def first_start_done(nodes: Sequence[Node]) -> bool:
    """Whether every node that is not final rests: each was seen where the first start was to lead it."""
    live = [node.state for node in nodes if not node.state.final]
    return bool(live) and all(state in RESTING for state in live)


def _starting(live: Sequence[State]) -> bool:
    """Whether a first start goes on: a node starts, or one that was dropped is not gone yet.

    With every node ending it is being undone.
    """
    ending = live.count(State.TERMINATING)
    return State.STARTING in live or 0 < ending < len(live)


def _message(nodes: Sequence[Node], counts: Counter[State], state: State) -> str:
    """Counts the nodes by state where they differ: "2 of 3 RUNNING, node 1 FAILED"."""
    if len(counts) < 2:
        return ""
    parts = [f"{counts[state]} of {len(nodes)} {state}"] if counts[state] else []
    for other in sorted(counts.keys() - {state}, key=list(State).index):
        indexes = [str(node.index) for node in nodes if node.state is other]
        few = f"node{'s' * (len(indexes) > 1)} {', '.join(indexes)}"
        parts.append(f"{few if len(indexes) <= 5 else len(indexes)} {other}")
    return ", ".join(parts)
