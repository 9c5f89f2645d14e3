"""Every cell of the life cycle against the design's own tables, and the rules for a workspace whose nodes differ."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
from msgspec.structs import replace

from backends.base import Capability, Observation
from broker.core import lifecycle, lifecycle_docs
from broker.core.errors import BrokerError, Reason
from broker.core.lifecycle import Answer, Do, Effect, Seen, Verb, VerbCell, ask, holds, observe
from broker.core.model import Cause, Node, State, Terms, Workspace
from broker.core.whole import Asked, ask_workspace, first_start_done, workspace_state

# Copied from the design document, not made from the code: so that these tests can fail.
DESIGN_VERBS = """
| state | Start | Pause | Unpause | Suspend | Resume | Stop | Reboot | SaveNode | Update | Terminate |
|---|---|---|---|---|---|---|---|---|---|---|
| PENDING | F | F | F | F | F | F | F | F | ok, planned anew, keeps its place | → TERMINATED |
| RESERVED | F | F | F | F | F | F | F | F | ok, if the slots allow | → TERMINATED |
| STARTING | = | U | = | U | = | U | U | U | ok | → TERMINATING |
| RUNNING | = | → PAUSING | = | → SUSPENDING | = | → STOPPING | → REBOOTING | → SAVING | ok | → TERMINATING |
| PAUSING | U | = | U | U | U | U | U | U | ok | → TERMINATING |
| PAUSED | F | = | → RESUMING | F | F | F; force → STOPPING | F | F | ok | → TERMINATING |
| SUSPENDING | U | U | U | = | U | U | U | U | ok | → TERMINATING |
| SUSPENDED | F | F | F | = ; release → SUSPENDING | → RESUMING, or waits (5) | F | F | F | ok | → TERMINATING |
| STOPPING | U | U | U | U | U | = | U | U | ok | → TERMINATING |
| STOPPED | → STARTING, or waits (5) | F | F | F | F | = ; release → STOPPING | F | → SAVING | ok | → TERMINATING |
| RESUMING | = | U | = | U | = | U | U | U | ok | → TERMINATING |
| REBOOTING | = | U | = | U | = | U | = | U | ok | → TERMINATING |
| SAVING | U | U | U | U | U | U | U | U | ok | → TERMINATING |
| TERMINATING | F | F | F | F | F | F | F | F | F | = ; force: without asking the guest |
| TERMINATED, EXPIRED, FAILED | F | F | F | F | F | F | F | F | F | = |
"""

DESIGN_OBSERVATIONS = """
| node is | RUNNING | PAUSED | SUSPENDED | OFF | BUSY | BROKEN | ABSENT | SILENT |
|---|---|---|---|---|---|---|---|---|
| PENDING, RESERVED | stray | stray | stray | stray | stray | stray | keep | keep |
| STARTING, first time | → RUNNING | → PAUSED if that is wanted, else unpause | keep | start step again | keep | next host, else undo | search by identity, then this step again | keep |
| STARTING from STOPPED | → RUNNING | keep | keep | keep; at the deadline ! | keep | STOPPED ! | FAILED | keep |
| RUNNING | keep | PAUSED * | SUSPENDED * | STOPPED * | keep | STOPPED ! | FAILED | keep |
| PAUSING | ! | → PAUSED | SUSPENDED * | STOPPED * | keep | STOPPED ! | FAILED | keep |
| PAUSED | RUNNING * | keep | SUSPENDED * | STOPPED * | keep | STOPPED ! | FAILED | keep |
| SUSPENDING | ! | ! | → SUSPENDED | STOPPED * | keep | STOPPED ! | FAILED | keep |
| SUSPENDED | RUNNING * | PAUSED * | keep | STOPPED * | keep | keep ! | FAILED | keep |
| STOPPING | keep; at the deadline ! | ! | SUSPENDED * | → STOPPED | keep | STOPPED ! | FAILED | keep |
| STOPPED | RUNNING * | PAUSED * | SUSPENDED * | keep | keep | keep ! | FAILED | keep |
| RESUMING | → RUNNING | ! | ! | STOPPED * | keep | SUSPENDED ! | FAILED | keep |
| REBOOTING | → RUNNING | PAUSED * | SUSPENDED * | keep; at the deadline STOPPED ! | keep | STOPPED ! | FAILED | keep |
| SAVING | keep | keep | keep | keep | keep | back, ! | FAILED | keep |
| TERMINATING | end it again | end it again | end it again | end it again | the backend's harder way: at once if it was starting, else after 60 s | remove it | → final | keep trying |
| final | stray | stray | stray | stray | stray | stray | keep | keep |
"""  # noqa: E501

Table = dict[str, dict[str, str]]


def read(table: str) -> Table:
    """A Markdown table by row and column."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.strip().splitlines()]
    header, _, *rows = lines
    return {row[0]: dict(zip(header[1:], row[1:], strict=True)) for row in rows}


def verb_cells() -> list[tuple[State, Verb, str]]:
    """Every state and verb with what the design says."""
    cells = []
    for names, row in read(DESIGN_VERBS).items():
        for name in names.split(", "):
            for verb, cell in row.items():
                cells.append((State(name), Verb("SAVE" if verb == "SaveNode" else verb.upper()), cell))
    return cells


def plain(cell: str) -> tuple[Answer, State | None]:
    """A cell's answer where neither force nor release is asked for."""
    cell = cell.split(";")[0].strip()
    if cell.startswith("ok"):
        return Answer.GO, None
    if cell.startswith("→"):
        return Answer.GO, State(cell.removeprefix("→ ").split(",")[0])
    return Answer(cell), None


def special(cell: str) -> tuple[str, State | None]:
    """The word after the semicolon ("force" or "release") and the state it leads to."""
    rest = cell.partition(";")[2].strip()
    if rest == "force: without asking the guest":
        return "force", State.TERMINATING
    word, _, state = rest.partition(" → ")
    return word, State(state) if state else None


def test_the_design_names_every_state_and_verb() -> None:
    assert {(state, verb) for state, verb, _ in verb_cells()} == {(s, v) for s in State for v in Verb}


@pytest.mark.parametrize(("state", "verb", "cell"), verb_cells())
def test_each_verb_in_each_state(state: State, verb: Verb, cell: str) -> None:
    got = ask(verb, state)
    assert (got.answer, got.to) == plain(cell)
    word, to = special(cell)
    for force, release in ((True, False), (False, True), (True, True)):
        expected = plain(cell)
        if (word == "force" and force) or (word == "release" and release):
            expected = (Answer.GO, to)
        got = ask(verb, state, force=force, release=release)
        assert (got.answer, got.to) == expected
    assert ask(verb, state, release=True, released=True).answer is plain(cell)[0]  # nothing left to give back


@pytest.mark.parametrize("state", [state for state in State if not state.final])
def test_a_verb_that_would_do_does(state: State) -> None:
    for verb in Verb:
        instead = ask(verb, state).instead
        if instead is not None:
            assert ask(instead, state).answer is Answer.GO


def test_after_the_lease_only_an_update_brings_it_back() -> None:
    forbidden = VerbCell(answer=Answer.FORBIDDEN, instead=Verb.UPDATE)
    assert ask(Verb.RESUME, State.SUSPENDED, lease_over=True) == forbidden
    assert ask(Verb.START, State.STOPPED, lease_over=True) == forbidden
    assert ask(Verb.UPDATE, State.STOPPED, lease_over=True).answer is Answer.GO
    assert ask(Verb.TERMINATE, State.STOPPED, lease_over=True).answer is Answer.GO


def seen_cells() -> list[tuple[State, bool, Seen, str]]:
    """Every state (and whether it is a first start) and observation with what the design says."""
    rows = {
        "PENDING, RESERVED": [(State.PENDING, True), (State.RESERVED, True)],
        "STARTING, first time": [(State.STARTING, True)],
        "STARTING from STOPPED": [(State.STARTING, False)],
        "final": [(State.TERMINATED, False), (State.EXPIRED, False), (State.FAILED, True)],
    }
    return [
        (state, first, Seen(seen), cell)
        for name, row in read(DESIGN_OBSERVATIONS).items()
        for state, first in rows.get(name) or [(State(name), False)]
        for seen, cell in row.items()
    ]


SEEN_STATES = {
    Seen.RUNNING: State.RUNNING,
    Seen.PAUSED: State.PAUSED,
    Seen.SUSPENDED: State.SUSPENDED,
    Seen.OFF: State.STOPPED,
}
WORDS = {
    "stray": Do.STRAY,
    "keep": Do.KEEP,
    "→ PAUSED if that is wanted, else unpause": Do.UNPAUSE,
    "start step again": Do.STEP_AGAIN,
    "next host, else undo": Do.NEXT_HOST,
    "search by identity, then this step again": Do.SEARCH,
    "keep; at the deadline !": Do.KEEP,
    "keep; at the deadline STOPPED !": Do.KEEP,
    "end it again": Do.END_AGAIN,
    "the backend's harder way: at once if it was starting, else after 60 s": Do.END_HARDER,
    "remove it": Do.REMOVE,
    "→ final": Do.FINAL,
    "keep trying": Do.KEEP_TRYING,
}


def meant(state: State, seen: Seen, cell: str, back_to: State) -> Effect:
    """What a cell of the design means before any deadline."""
    if cell in WORDS:
        return Effect(do=WORDS[cell])
    if cell == "FAILED":
        return Effect(do=Do.GONE, to=State.FAILED, cause=Cause.ERROR, reason=Reason.NODE_GONE)
    if cell.startswith("→ "):
        return Effect(do=Do.DONE, to=State(cell.removeprefix("→ ")))
    if cell.endswith("*"):
        return Effect(do=Do.AS_SEEN, to=State(cell.removesuffix(" *")), cause=Cause.BACKEND)
    assert cell.endswith("!")
    word = cell.removesuffix("!").strip(" ,")
    to = {"": SEEN_STATES.get(seen), "keep": state, "back": back_to}.get(word) or State(word)
    return Effect(do=Do.VERB_FAILED, to=to, cause=Cause.ERROR, reason=Reason.BACKEND_REJECTED)


def test_the_design_names_every_state_and_observation() -> None:
    assert {(state, seen) for state, _, seen, _ in seen_cells()} == {(st, se) for st in State for se in Seen}


@pytest.mark.parametrize(("state", "first", "seen", "cell"), seen_cells())
def test_each_observation_in_each_state(state: State, first: bool, seen: Seen, cell: str) -> None:
    back = State.RUNNING
    expected = meant(state, seen, cell, back)
    assert observe(state, seen, first_start=first, back_to=back) == expected
    late = observe(state, seen, first_start=first, back_to=back, past_deadline=True)
    if not state.moving or state is State.TERMINATING or expected.do is Do.DONE:
        assert late == expected  # nothing that rests or ends has a deadline
    elif state is State.STARTING and first:
        assert late.do is Do.UNDO
    elif expected.do is Do.KEEP and seen in SEEN_STATES:
        assert (late.do, late.to, late.reason) == (Do.VERB_FAILED, SEEN_STATES[seen], Reason.TASK_TIMEOUT)
    elif expected.do is Do.KEEP:
        assert (late.do, late.reason) == (Do.STUCK, Reason.TASK_TIMEOUT)
    else:
        assert late == expected


def test_a_first_start_ends_where_the_request_says() -> None:
    paused = observe(State.STARTING, Seen.PAUSED, first_start=True, wanted=State.PAUSED)
    assert paused == Effect(do=Do.DONE, to=State.PAUSED)
    staged = observe(State.STARTING, Seen.OFF, first_start=True, wanted=State.STOPPED, past_deadline=True)
    assert staged == Effect(do=Do.DONE, to=State.STOPPED)


def test_silence_changes_no_state() -> None:
    for state in State:
        assert observe(state, Seen.SILENT).do in (Do.KEEP, Do.KEEP_TRYING)


def test_the_words_are_those_of_backends_and_of_the_api() -> None:
    assert {seen.value for seen in Seen} == {seen.value for seen in Observation}
    assert set(lifecycle.CAPABILITIES.values()) <= {capability.value for capability in Capability}


def test_the_documentation_is_up_to_date() -> None:
    path = Path(__file__).parents[2] / "docs" / "lifecycle.md"
    assert path.read_text(encoding="utf-8") == lifecycle_docs.render(), "run python -m broker.core.lifecycle_docs"


# --- several nodes ---


def workspace(*states: State, started: bool = True, state: State | None = None) -> Workspace:
    nodes = tuple(
        Node(index=i, set_index=0, pool="p", host="h", held={}, pool_held={}, state=one) for i, one in enumerate(states)
    )
    now = datetime(2026, 1, 1, tzinfo=UTC)
    return Workspace(
        uid="u",
        tenant="t",
        id="w",
        create_time=now,
        node_sets=(),
        terms=Terms(),
        nodes=nodes,
        state=state or workspace_state(nodes, started=started).state,
        actual_start_time=now if started else None,
    )


def refused(verb: Verb, target: Workspace, targets: set[int] | None = None) -> BrokerError:
    with pytest.raises(BrokerError) as caught:
        ask_workspace(verb, target, targets=targets)
    return caught.value


R, P, S, O = State.RUNNING, State.PAUSED, State.SUSPENDED, State.STOPPED  # noqa: E741


def test_nodes_already_there_are_skipped() -> None:
    asked = ask_workspace(Verb.SUSPEND, workspace(R, S, R, State.FAILED))
    assert asked == Asked(answer=Answer.GO, nodes=(0, 2), to=State.SUSPENDING)
    assert ask_workspace(Verb.SUSPEND, workspace(S, S)).answer is Answer.ALREADY


def test_one_node_that_forbids_refuses_the_verb_and_is_named() -> None:
    error = refused(Verb.SUSPEND, workspace(R, P))
    assert error.reason is Reason.STATE_FORBIDS
    assert error.metadata == {"state": "PAUSED", "verb": "SUSPEND", "node": "1", "instead": "UNPAUSE"}
    assert "node 1 is PAUSED; unpause it first" in error.message


def test_a_named_node_alone_is_asked() -> None:
    assert ask_workspace(Verb.SUSPEND, workspace(R, P), targets={0}).nodes == (0,)
    assert refused(Verb.PAUSE, workspace(R, State.FAILED), {1}).reason is Reason.STATE_FORBIDS
    assert refused(Verb.PAUSE, workspace(R), {7}).reason is Reason.NOT_FOUND


def test_one_transition_at_a_time_a_workspace() -> None:
    both = workspace(State.SUSPENDING, R)
    error = refused(Verb.SUSPEND, both)
    assert (error.reason, error.metadata["under_way"]) == (Reason.TRANSITION_UNDER_WAY, "SUSPENDING")
    assert refused(Verb.STOP, both, {1}).reason is Reason.TRANSITION_UNDER_WAY
    assert ask_workspace(Verb.SUSPEND, both, targets={0}).answer is Answer.ALREADY
    assert ask_workspace(Verb.TERMINATE, both) == Asked(answer=Answer.GO, nodes=(0, 1), to=State.TERMINATING)
    assert ask_workspace(Verb.UPDATE, both).answer is Answer.GO
    with pytest.raises(BrokerError, match="a migrate is under way"):
        ask_workspace(Verb.PAUSE, workspace(R), under_way="migrate")


def test_a_first_start_is_one_transition_although_nodes_run() -> None:
    half = workspace(R, State.STARTING, started=False)
    assert ask_workspace(Verb.START, half).answer is Answer.ALREADY
    assert refused(Verb.PAUSE, half, {0}).metadata["under_way"] == "STARTING"


def test_what_is_at_its_end_forbids_instead_of_asking_to_wait() -> None:
    assert refused(Verb.PAUSE, workspace(State.TERMINATING)).reason is Reason.STATE_FORBIDS
    assert refused(Verb.PAUSE, workspace(R, State.TERMINATING)).reason is Reason.TRANSITION_UNDER_WAY
    assert ask_workspace(Verb.UPDATE, workspace(R, State.TERMINATING)).answer is Answer.GO
    assert refused(Verb.UPDATE, workspace(State.TERMINATING)).reason is Reason.STATE_FORBIDS
    assert ask_workspace(Verb.TERMINATE, workspace(State.EXPIRED)).answer is Answer.ALREADY
    assert ask_workspace(Verb.TERMINATE, workspace(State.TERMINATING)).answer is Answer.ALREADY
    assert ask_workspace(Verb.TERMINATE, workspace(State.TERMINATING), force=True).nodes == (0,)


def test_a_queued_workspace_without_nodes() -> None:
    queued = workspace(state=State.PENDING)
    assert ask_workspace(Verb.TERMINATE, queued) == Asked(answer=Answer.GO, to=State.TERMINATED)
    assert refused(Verb.STOP, queued).metadata == {"state": "PENDING", "verb": "STOP"}


@pytest.mark.parametrize(
    ("states", "started", "state", "message"),
    [
        ((R, R), True, R, ""),
        ((R, State.FAILED, R), True, R, "2 of 3 RUNNING, node 1 FAILED"),
        ((S, P), True, P, "1 of 2 PAUSED, node 0 SUSPENDED"),
        ((O, S), True, S, "1 of 2 SUSPENDED, node 0 STOPPED"),
        ((R, State.PAUSING), True, State.PAUSING, "1 of 2 PAUSING, node 0 RUNNING"),
        ((R, State.STARTING), False, State.STARTING, "1 of 2 STARTING, node 0 RUNNING"),
        ((R, State.TERMINATING), False, State.STARTING, "node 0 RUNNING, node 1 TERMINATING"),
        ((State.TERMINATING, State.FAILED), False, State.TERMINATING, "1 of 2 TERMINATING, node 1 FAILED"),
        ((R, P), False, R, "1 of 2 RUNNING, node 1 PAUSED"),
        ((State.TERMINATED, State.EXPIRED), True, State.EXPIRED, "1 of 2 EXPIRED, node 0 TERMINATED"),
        ((State.TERMINATED, State.FAILED), True, State.TERMINATED, "1 of 2 TERMINATED, node 1 FAILED"),
        ((State.FAILED, State.FAILED), True, State.FAILED, ""),
        ((State.PENDING, State.PENDING), False, State.PENDING, ""),
        ((State.RESERVED,), False, State.RESERVED, ""),
        ((*[R] * 3, *[O] * 6), True, R, "3 of 9 RUNNING, 6 STOPPED"),
        ((), False, State.PENDING, ""),
    ],
)
def test_the_state_of_the_whole(states: tuple[State, ...], started: bool, state: State, message: str) -> None:
    summary = workspace_state(workspace(*states, state=R).nodes, started=started)
    assert (summary.state, summary.message) == (state, message)


def test_a_lost_node_degrades_while_others_live() -> None:
    assert workspace_state(workspace(R, State.FAILED).nodes, started=True).lost == (1,)
    assert workspace_state(workspace(State.FAILED, State.FAILED).nodes, started=True).lost == ()


def test_the_last_end_names_the_whole_end() -> None:
    nodes = workspace(State.TERMINATED, State.FAILED).nodes
    assert workspace_state(nodes, started=True, last_end=State.FAILED).state is State.FAILED


def test_a_first_start_is_done_when_all_that_live_rest() -> None:
    assert first_start_done(workspace(R, P, State.FAILED).nodes)
    for other in (State.STARTING, State.TERMINATING, State.RESERVED):
        assert not first_start_done(workspace(R, other, started=False).nodes)
    assert not first_start_done(workspace(State.FAILED).nodes)


def test_who_holds_what() -> None:
    everything = holds(R)
    assert (everything.host, everything.disk, everything.addresses, everything.quota) == (True,) * 4
    for state in (State.STARTING, P, S, O, State.SAVING, State.TERMINATING, State.RESERVED):
        assert holds(state) == everything
    for state in (S, O, State.TERMINATING):
        assert holds(state, released=True) == replace(everything, host=False)
    assert holds(State.PENDING) == replace(everything, host=False, disk=False, addresses=False)
    for state in (State.TERMINATED, State.EXPIRED, State.FAILED):
        assert not any((holds(state).host, holds(state).disk, holds(state).addresses, holds(state).quota))
