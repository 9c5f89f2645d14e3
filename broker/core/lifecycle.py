"""The life cycle as tables: what each verb does in each state, and what each observation of a node means.

The text tables below are the rule; they are parsed once at import, and `docs/lifecycle.md` is generated from
them. Everything here is pure: nothing is stored, called or timed; whoever asks acts on the answer.
All of it is about one node; whole.py makes a workspace's answer and state of it. It does not say how much a
node holds (slots.py), nor how a step is retried (engine/retry.py).
"""

from __future__ import annotations

from enum import StrEnum

from msgspec import Struct
from msgspec.structs import replace

from broker.core.errors import Reason
from broker.core.model import Cause, State


class Verb(StrEnum):
    """What a caller may ask of a workspace."""

    START = "START"
    PAUSE = "PAUSE"
    UNPAUSE = "UNPAUSE"
    SUSPEND = "SUSPEND"
    RESUME = "RESUME"
    STOP = "STOP"
    REBOOT = "REBOOT"
    SAVE = "SAVE"
    UPDATE = "UPDATE"
    TERMINATE = "TERMINATE"


class Answer(StrEnum):
    """How a verb is answered; the values are the document's signs."""

    GO = "→"  # accepted
    ALREADY = "="  # already so, or on its way there: no error, nothing changes
    UNDER_WAY = "U"  # ABORTED, TRANSITION_UNDER_WAY
    FORBIDDEN = "F"  # FAILED_PRECONDITION, STATE_FORBIDS


class Seen(StrEnum):
    """How backends speak of a node: the words of backends.base.Observation, which the core may not know."""

    RUNNING = "RUNNING"
    PAUSED = "PAUSED"
    SUSPENDED = "SUSPENDED"
    OFF = "OFF"
    BUSY = "BUSY"
    BROKEN = "BROKEN"
    ABSENT = "ABSENT"
    SILENT = "SILENT"


# A verb that is accepted (→) leads to one state, whatever it was asked in; UPDATE leaves the state (ok).
LEADS_TO = {
    Verb.START: State.STARTING,
    Verb.PAUSE: State.PAUSING,
    Verb.UNPAUSE: State.RESUMING,
    Verb.SUSPEND: State.SUSPENDING,
    Verb.RESUME: State.RESUMING,
    Verb.STOP: State.STOPPING,
    Verb.REBOOT: State.REBOOTING,
    Verb.SAVE: State.SAVING,
    Verb.TERMINATE: State.TERMINATING,
}

# → accepted   = already so   U another transition is under way   F forbidden   ok accepted, the state stays
# "F force →": accepted with force.   "= release →": accepted with release, unless it is released already.
VERBS = """
state      | START| PAUSE| UNPAUSE| SUSPEND    | RESUME| STOP       | REBOOT| SAVE| UPDATE| TERMINATE
PENDING    | F    | F    | F      | F          | F     | F          | F     | F   | ok    | → TERMINATED
RESERVED   | F    | F    | F      | F          | F     | F          | F     | F   | ok    | → TERMINATED
STARTING   | =    | U    | =      | U          | =     | U          | U     | U   | ok    | →
RUNNING    | =    | →    | =      | →          | =     | →          | →     | →   | ok    | →
PAUSING    | U    | =    | U      | U          | U     | U          | U     | U   | ok    | →
PAUSED     | F    | =    | →      | F          | F     | F force →  | F     | F   | ok    | →
SUSPENDING | U    | U    | U      | =          | U     | U          | U     | U   | ok    | →
SUSPENDED  | F    | F    | F      | = release →| →     | F          | F     | F   | ok    | →
STOPPING   | U    | U    | U      | U          | U     | =          | U     | U   | ok    | →
STOPPED    | →    | F    | F      | F          | F     | = release →| F     | →   | ok    | →
RESUMING   | =    | U    | =      | U          | =     | U          | U     | U   | ok    | →
REBOOTING  | =    | U    | =      | U          | =     | U          | =     | U   | ok    | →
SAVING     | U    | U    | U      | U          | U     | U          | U     | U   | ok    | →
TERMINATING| F    | F    | F      | F          | F     | F          | F     | F   | F     | = force →
TERMINATED | F    | F    | F      | F          | F     | F          | F     | F   | F     | =
EXPIRED    | F    | F    | F      | F          | F     | F          | F     | F   | F     | =
FAILED     | F    | F    | F      | F          | F     | F          | F     | F   | F     | =
"""

# What a cell says beyond its sign.
NOTES = {
    (State.PENDING, Verb.UPDATE): "planned anew, keeps its place",
    (State.RESERVED, Verb.UPDATE): "if the slots allow",
    (State.SUSPENDED, Verb.RESUME): "or waits",
    (State.STOPPED, Verb.START): "or waits",
    (State.TERMINATING, Verb.TERMINATE): "without asking the guest",
}

# keep   nothing changes but observe_time          → X      done: the action has led where it should
# X *    as seen, cause BACKEND, an event           X !      the verb failed: X, cause ERROR, BACKEND_REJECTED
# *, !   the same, X being the state that was seen  late !   keep; the same at the deadline
# "PENDING, RESERVED" and the final states are one row each; STARTING has two.
OBSERVATIONS = """
node is        | RUNNING   | PAUSED       | SUSPENDED   | OFF       | BUSY   | BROKEN      | ABSENT  | SILENT
PENDING        | stray     | stray        | stray       | stray     | stray  | stray       | keep    | keep
STARTING first | → RUNNING | → or unpause | keep        | again     | keep   | next host   | search  | keep
STARTING       | → RUNNING | keep         | keep        | late !    | keep   | STOPPED !   | FAILED  | keep
RUNNING        | keep      | *            | *           | *         | keep   | STOPPED !   | FAILED  | keep
PAUSING        | !         | → PAUSED     | *           | *         | keep   | STOPPED !   | FAILED  | keep
PAUSED         | *         | keep         | *           | *         | keep   | STOPPED !   | FAILED  | keep
SUSPENDING     | !         | !            | → SUSPENDED | *         | keep   | STOPPED !   | FAILED  | keep
SUSPENDED      | *         | *            | keep        | *         | keep   | keep !      | FAILED  | keep
STOPPING       | late !    | !            | *           | → STOPPED | keep   | STOPPED !   | FAILED  | keep
STOPPED        | *         | *            | *           | keep      | keep   | keep !      | FAILED  | keep
RESUMING       | → RUNNING | !            | !           | *         | keep   | SUSPENDED ! | FAILED  | keep
REBOOTING      | → RUNNING | *            | *           | late !    | keep   | STOPPED !   | FAILED  | keep
SAVING         | keep      | keep         | keep        | keep      | keep   | back !      | FAILED  | keep
TERMINATING    | end       | end          | end         | end       | harder | remove      | → final | trying
final          | stray     | stray        | stray       | stray     | stray  | stray       | keep    | keep
"""

# Who holds what. "kept" is every state from STARTING to SAVING; "released" a node that was seen to have let go.
# What is held is given back when the node is seen gone, never when that is asked for.
HOLDINGS = """
state       | host | disk | addresses | quota
PENDING     | -    | -    | -         | yes
RESERVED    | yes  | yes  | yes       | yes
kept        | yes  | yes  | yes       | yes
released    | -    | yes  | yes       | yes
TERMINATING | yes  | yes  | yes       | yes
final       | -    | -    | -         | -
"""

# In which verb a caller finds what was forbidden.
INSTEAD = {State.PAUSED: Verb.UNPAUSE, State.SUSPENDED: Verb.RESUME, State.STOPPED: Verb.START}

# Where a node goes on with what it had: planned anew if its capacity was released, and not after its lease.
ONWARD = frozenset({(State.SUSPENDED, Verb.RESUME), (State.STOPPED, Verb.START)})

# While a pool does not answer these are accepted, and done when it does; all else is BACKEND_UNREACHABLE.
ACCEPTED_UNREACHABLE = frozenset({Verb.UPDATE, Verb.TERMINATE})

# The capability a pool must have for a verb, by name; with release, RELEASE as well.
CAPABILITIES = {
    Verb.START: "STOP",
    Verb.PAUSE: "PAUSE",
    Verb.UNPAUSE: "PAUSE",
    Verb.SUSPEND: "SUSPEND",
    Verb.RESUME: "SUSPEND",
    Verb.STOP: "STOP",
    Verb.REBOOT: "REBOOT",
    Verb.SAVE: "SAVE_IMAGE",
}

HARDER_AFTER_SECONDS = 60.0  # how long a node may be BUSY while it ends, unless it was starting

AS_STATE = {
    Seen.RUNNING: State.RUNNING,
    Seen.PAUSED: State.PAUSED,
    Seen.SUSPENDED: State.SUSPENDED,
    Seen.OFF: State.STOPPED,
}


class Do(StrEnum):
    """What the engine does about an observation."""

    KEEP = "keep"
    DONE = "done"  # to `to`; last_error is cleared
    AS_SEEN = "as seen"  # to `to`, cause BACKEND, an event; slots stay
    VERB_FAILED = "verb failed"  # to `to`, cause ERROR, last_error `reason`; the task ends
    STUCK = "stuck"  # past its deadline and nothing seen to fall back on: last_error `reason`, wait on
    UNDO = "undo"  # a first start past its deadline
    STEP_AGAIN = "step again"
    UNPAUSE = "unpause"
    NEXT_HOST = "next host"  # a first start that broke: another host, else undo
    SEARCH = "search"  # by identity, then this step again
    GONE = "gone"  # to FAILED, NODE_GONE; slots are free at once
    END_AGAIN = "end again"
    END_HARDER = "end harder"  # at once if it was starting, else after HARDER_AFTER_SECONDS
    REMOVE = "remove"  # the broken VM
    KEEP_TRYING = "keep trying"
    FINAL = "final"  # to the task's final state
    STRAY = "stray"


class VerbCell(Struct, frozen=True, kw_only=True):
    """One cell of VERBS, for one way of asking. `instead`: the verb that would do, if one would."""

    answer: Answer
    to: State | None = None  # None with GO: the state stays
    note: str = ""
    instead: Verb | None = None


class Effect(Struct, frozen=True, kw_only=True):
    """One cell of the table of observations. `cause` None: as it was."""

    do: Do
    to: State | None = None
    cause: Cause | None = None
    reason: Reason | None = None


class Holding(Struct, frozen=True, kw_only=True):
    """What a node takes: of its host (cpu, memory, extras), disk, addresses, and the quotas of nodes."""

    host: bool
    disk: bool
    addresses: bool
    quota: bool


def parse(table: str) -> dict[str, dict[str, str]]:
    """Reads a text table into its cells by row and column."""
    header, *rows = ([cell.strip() for cell in line.split("|")] for line in table.strip().splitlines())
    return {row[0]: dict(zip(header[1:], row[1:], strict=True)) for row in rows}


_VERBS = {(Verb(verb), State(state)): cell for state, row in parse(VERBS).items() for verb, cell in row.items()}


def ask(
    verb: Verb,
    state: State,
    *,
    force: bool = False,
    release: bool = False,
    released: bool = False,
    lease_over: bool = False,
) -> VerbCell:
    """What a verb does to one node (or to a workspace without nodes) in a state.

    `released`: its capacity was given back. `lease_over`: it is kept after its end (end action SUSPEND) and
    goes on only after an Update.
    """
    sign, _, rest = _VERBS[verb, state].partition(" ")
    note = NOTES.get((state, verb), "")
    if (rest == "force →" and force) or (rest == "release →" and release and not released):
        return VerbCell(answer=Answer.GO, to=LEADS_TO[verb], note=note)
    if sign == "ok":
        return VerbCell(answer=Answer.GO, note=note)
    if sign == "→" and lease_over and (state, verb) in ONWARD:
        return VerbCell(answer=Answer.FORBIDDEN, instead=Verb.UPDATE)
    if sign == "→":
        return VerbCell(answer=Answer.GO, to=State(rest) if rest else LEADS_TO[verb], note=note)
    answer = Answer(sign)
    return VerbCell(answer=answer, instead=INSTEAD.get(state) if answer is Answer.FORBIDDEN else None)


_WORDS = {
    "keep": Do.KEEP,
    "stray": Do.STRAY,
    "again": Do.STEP_AGAIN,
    "→ or unpause": Do.UNPAUSE,  # unless that is wanted
    "next host": Do.NEXT_HOST,
    "search": Do.SEARCH,
    "end": Do.END_AGAIN,
    "harder": Do.END_HARDER,
    "remove": Do.REMOVE,
    "→ final": Do.FINAL,
    "trying": Do.KEEP_TRYING,
}


def _effect(row: str, seen: Seen, cell: str) -> Effect:
    """The effect a cell of OBSERVATIONS stands for, before its deadline; VERB_FAILED to None is "back"."""
    if cell in _WORDS:
        return Effect(do=_WORDS[cell])
    if cell == "FAILED":
        return Effect(do=Do.GONE, to=State.FAILED, cause=Cause.ERROR, reason=Reason.NODE_GONE)
    if cell.startswith("→"):
        return Effect(do=Do.DONE, to=State(cell.removeprefix("→ ")))
    word, _, sign = cell.rpartition(" ")
    if word == "late":
        return Effect(do=Do.KEEP)
    if sign == "*":
        return Effect(do=Do.AS_SEEN, to=AS_STATE[seen], cause=Cause.BACKEND)
    if word == "back":
        to = None
    elif word == "keep":
        to = State(row)
    else:
        to = State(word) if word else AS_STATE[seen]
    return Effect(do=Do.VERB_FAILED, to=to, cause=Cause.ERROR, reason=Reason.BACKEND_REJECTED)


_EFFECTS = {
    (row, seen): _effect(row, Seen(seen), cell)
    for row, cells in parse(OBSERVATIONS).items()
    for seen, cell in cells.items()
}
_ROWS = {state: "final" if state.final else state.value for state in State} | {State.RESERVED: "PENDING"}


def observe(
    state: State,
    seen: Seen,
    *,
    first_start: bool = False,
    wanted: State = State.RUNNING,
    past_deadline: bool = False,
    back_to: State | None = None,
) -> Effect:
    """What an observation means for a node.

    `first_start`: it has never been seen running. `wanted`: the workspace's initial state, in which a first
    start ends. `past_deadline`: of the transition under way. `back_to`: the state SAVING came from.
    """
    first = first_start and state is State.STARTING
    effect = _EFFECTS["STARTING first" if first else _ROWS[state], seen]
    if first and wanted is not State.RUNNING and AS_STATE.get(seen) is wanted:
        return Effect(do=Do.DONE, to=wanted)
    if effect.do is Do.VERB_FAILED and effect.to is None:
        effect = replace(effect, to=back_to or State.STOPPED)
    if not past_deadline or not state.moving or state is State.TERMINATING:
        return effect
    if first and effect.do is not Do.DONE:
        return Effect(do=Do.UNDO, cause=Cause.ERROR, reason=Reason.TASK_TIMEOUT)
    if effect.do is not Do.KEEP:
        return effect
    to = AS_STATE.get(seen)
    return Effect(do=Do.VERB_FAILED if to else Do.STUCK, to=to, cause=Cause.ERROR, reason=Reason.TASK_TIMEOUT)


_HOLDINGS = {
    row: Holding(**{what: cell == "yes" for what, cell in cells.items()}) for row, cells in parse(HOLDINGS).items()
}


def holds(state: State, released: bool = False) -> Holding:
    """What a node holds; where it has let go already, its host's share stays free until it goes on."""
    if state.final:
        return _HOLDINGS["final"]
    if state in (State.PENDING, State.RESERVED):
        return _HOLDINGS[state.value]
    if released:
        return _HOLDINGS["released"]
    return _HOLDINGS["TERMINATING" if state is State.TERMINATING else "kept"]
