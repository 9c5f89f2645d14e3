"""Scenario files: what may stand in tests/scenarios/*.yaml, read and checked; timed.py plays them.

    start: 09:00                      when the first step is; 12:00 if left out
    pools:                            as in the configuration; `hosts` by name, with their cpu alone or their tables
      lab: {backfill: none, hosts: {a: 4000, b: {cpu: 8000, memory: 4096}}}
    tenants, queue:                   as in the configuration
    steps:                            each one thing that is done, or only a look
      - at: 10:00                     moves the clock there first (or `after: 5m`)
        create: web                   one of ACTIONS, with the keys that belong to it
        duration: 1h
        expect: {state: STARTING}     of the answer: `refused: REASON`, or SHOWN of the workspace
        see: {web: RUNNING}           a moment later: SHOWN of any workspace, or its state alone
        queue: [big, small]           who waits, in their order
        free: {a: 0}                  cpu of hosts
        ensembles: {pair: SEALED}     their states

An instant is HH:MM or HH:MM:SS, with "day N" before it from the second day on; "~HH:MM" is within a second of it.
Amounts are in milli-cores and MiB. Every unknown or misspelt key is an error that names the file, the line and the key.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import yaml
from workspacebroker.v1 import resources_pb2 as pb

from tests.support.timed_values import (
    DAY,
    Instant,
    Located,
    Reader,
    exactly,
    flag,
    instant,
    keyed,
    kind,
    length,
    many,
    named,
    one_of,
    parse,
    perhaps,
    read_keys,
    text,
    whole,
)

HOST_MEMORY: Final = 65_536
WORLD: Final = "WORLD OF "
"""What stands in a configuration before a pool's name for the name of its simulated world."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step. `action` "" is a look alone."""

    number: int
    line: int
    at: datetime | None = None
    after: timedelta | None = None
    action: str = ""
    target: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    expect: Mapping[str, Any] = field(default_factory=dict)
    see: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    queue: tuple[str, ...] | None = None
    free: Mapping[str, int] = field(default_factory=dict)
    ensembles: Mapping[str, str] = field(default_factory=dict)

    @property
    def looks(self) -> bool:
        """Whether anything is looked at after the action."""
        return bool(self.see or self.free or self.ensembles) or self.queue is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One file; `configuration` is the broker's, but for the worlds' names."""

    path: Path
    start: datetime
    pools: Mapping[str, Mapping[str, Any]]
    configuration: str
    steps: tuple[Step, ...]


class ScenarioError(Exception):
    """A file that is no scenario, with everything that is wrong in it."""

    def __init__(self, path: Path, problems: list[str]) -> None:
        super().__init__("\n".join(f"{path.name}, {problem}" for problem in problems))


# Vocabulary

_state = one_of("STATE_", pb.Workspace.State.keys())
_notice = one_of("KIND_", pb.Workspace.Notice.Kind.keys())


def _notices(value: object) -> dict[str, Instant | None]:
    """Kinds, or kinds with when they are due."""
    if isinstance(value, list):
        return {_notice(each): None for each in value}
    return {_notice(each): due for each, due in named(instant)(value).items()}


NODES: Final[Mapping[str, Reader]] = {
    "nodes": whole,
    "at_least": whole,
    "cpu": whole,
    "memory": whole,
    "disk": whole,
    "placement": one_of("PLACEMENT_", pb.NodeSet.Placement.keys()),
}
TERMS: Final[Mapping[str, Reader]] = {
    "start_time": exactly,
    "earliest_start_time": exactly,
    "deadline": exactly,
    "duration": length,
    "open_ended": flag,
    "queue_until": exactly,
    "preemptible": flag,
    "priority": whole,
    "end_action": one_of("END_ACTION_", pb.LeaseTerms.EndAction.keys()),
}
WISH: Final[Mapping[str, Reader]] = {
    **NODES,
    **TERMS,
    "tenant": text,
    "pool": text,
    "ensemble": text,
    "preemption_notice": length,  # core:preemption_notice
    "sets": many(keyed({**NODES, "name": text, "pool": text})),
}
CHANGED: Final = ("duration", "open_ended", "queue_until", "end_action", "priority")
_some: Final[Mapping[str, Reader]] = {"nodes": many(whole)}
_none: Final[Mapping[str, Reader]] = {}

ACTIONS: Final[Mapping[str, Mapping[str, Reader]]] = {
    "create": WISH,
    "check": WISH,
    "update": {key: TERMS[key] for key in CHANGED},
    **dict.fromkeys(("start", "pause", "unpause", "resume", "terminate"), _some),
    **{verb: {**_some, "release": flag} for verb in ("suspend", "stop")},
    **dict.fromkeys(("fail", "disable", "return", "cordon", "uncordon"), _none),  # of a host
    "strangers": {"cpu": whole, "memory": whole},  # take that much of a host
    **dict.fromkeys(("silence", "hear"), _none),  # a pool no longer answers, or does again
    **dict.fromkeys(("drain", "undrain"), _none),  # a pool
    "restart": {"down": length},  # the broker, on its file; after having been down
    "open": {"tenant": text, "expire_time": exactly},  # an ensemble
    **dict.fromkeys(("seal", "cancel"), _none),
}
"""What a step may do: to a workspace, a host, a pool, the broker or an ensemble; and the keys that go with it."""

SHOWN: Final[Mapping[str, Reader]] = {
    "state": _state,
    "cause": one_of("CAUSE_", pb.Workspace.Cause.keys()),
    "host": text,  # of the only node
    "hosts": many(text),  # node by node
    "nodes": many(_state),
    "pool": text,
    "planned": perhaps,  # when it is to start
    "prepare": perhaps,
    "started": perhaps,  # when all nodes were first seen running, by the second
    "end": perhaps,
    "position": whole,  # in the queue
    "notices": _notices,
    "released": flag,  # whether all its nodes have let go of their room
    "error": text,  # the reason in last_error; "" for none
    "history": many(_state),  # every state it has been in
    "gone": flag,  # whether its record is
}
"""What may be expected of a workspace."""

REFUSED: Final[Mapping[str, Reader]] = {
    "refused": text,
    "field": text,  # that is named as wrong
    "earliest": perhaps,  # when it would fit
}
OFFER: Final[Mapping[str, Reader]] = {
    "changed": many(text),
    "start": perhaps,
    "pool": text,
    "nodes": whole,
    "preemptible": flag,
}
CHECKED: Final[Mapping[str, Reader]] = {
    **REFUSED,
    "outcome": one_of("OUTCOME_", pb.PlacementVerdict.Outcome.keys()),
    "offers": many(keyed(OFFER)),
}
"""What may be expected of a check of placement."""


def _seen(value: object) -> dict[str, Any]:
    return {"state": _state(value)} if isinstance(value, str) else keyed(SHOWN)(value)


_EVERY: Final[Mapping[str, Reader]] = {
    "at": exactly,
    "after": length,
    "see": named(_seen),
    "queue": many(text),
    "free": named(whole),
    "ensembles": named(one_of("STATE_", pb.Ensemble.State.keys())),
}
_EXPECTED: Final = {"check": keyed(CHECKED)}
_EXPECTED_ELSE: Final = keyed({**SHOWN, **REFUSED})


# Reading


def load(path: Path) -> Scenario:
    """Reads a file. Raises ScenarioError with every problem in it."""
    content = path.read_text(encoding="utf-8")
    problems: list[str] = []
    if not re.match(r"# Cases:\n(# - .+\n(#   .+\n)*)+(?!#)", content):
        problems.append('line 1: the file begins with its cases: "# Cases:", then "# - ..." for each')
    try:
        document = parse(content)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark is not None else 0
        raise ScenarioError(path, [*problems, f"line {line}: {error.problem}"]) from error
    if not isinstance(document, Located):
        raise ScenarioError(path, [*problems, "is no mapping"])
    table = kind(dict, "a mapping")
    keys: dict[str, Reader] = {
        "start": exactly,
        "pools": table,
        "tenants": table,
        "queue": table,
        "steps": kind(list, "a list"),
    }
    values, wrong = read_keys(document, keys)
    problems += [f"line {document.line}: {problem}" for problem in wrong]
    problems += [f"line {document.line}: {key} is missing" for key in ("pools", "steps") if key not in document]
    found = [_step(number, given, problems) for number, given in enumerate(values.get("steps", ()), 1)]
    steps = tuple(step for step in found if step is not None)
    for before, step in pairwise(steps):
        if before.looks and step.action and step.at is None and step.after is None:
            problems.append(f"line {step.line}, step {step.number}: acts after a look without a time of its own")
    if problems:
        raise ScenarioError(path, problems)
    pools = {name: _pool(name, pool) for name, pool in values["pools"].items()}
    return Scenario(
        path=path,
        start=values.get("start", DAY + timedelta(hours=12)),
        pools=pools,
        configuration=_configuration(pools, {key: values.get(key, {}) for key in ("tenants", "queue")}),
        steps=steps,
    )


def _step(number: int, given: object, problems: list[str]) -> Step | None:
    if not isinstance(given, Located):
        problems.append(f"step {number}: {given!r} is no mapping")
        return None
    where = f"line {given.line}, step {number}"
    found = [key for key in given if key in ACTIONS]
    if len(found) > 1:
        problems.append(f"{where}: does {' and '.join(found)}; one thing a step")
        return None
    action = found[0] if found else ""
    own = ACTIONS[action] if action else _none
    expected = {action: text, "expect": _EXPECTED.get(action, _EXPECTED_ELSE)} if action else {}
    values, wrong = read_keys(given, {**_EVERY, **own, **expected})
    problems += [f"{where}: {problem}" for problem in wrong]
    if "at" in values and "after" in values:
        problems.append(f"{where}: at and after exclude each other")
    step = Step(
        number=number,
        line=given.line,
        action=action,
        target=values.get(action, ""),
        options={key: value for key, value in values.items() if key in own},
        **{key: values[key] for key in (*_EVERY, "expect") if key in values},
    )
    if not action and not step.looks and not wrong:
        problems.append(f"{where}: does nothing and looks at nothing")
    return step


# Configuration


def _pool(name: str, pool: Mapping[str, Any]) -> dict[str, Any]:
    """A pool as the configuration has it. Nothing but the broker keeps its hosts from being overfilled."""
    hosts = [
        {"name": host, "memory": HOST_MEMORY, **(given if isinstance(given, dict) else {"cpu": given})}
        for host, given in pool.get("hosts", {}).items()
    ]
    return {
        "backend": "simulator",
        "world": f"{WORLD}{name}",
        "refresh_interval": "1m",
        "enforce_capacity": False,
        **pool,
        "hosts": hosts,
    }


def _configuration(pools: Mapping[str, Mapping[str, Any]], rest: Mapping[str, Mapping[str, Any]]) -> str:
    lines = ["[server]", 'listen = "127.0.0.1:0"']
    for name, pool in pools.items():
        lines += [f"[pools.{name}]", *(f"{key} = {_toml(value)}" for key, value in pool.items())]
    for section, table in rest.items():
        if table:
            lines += [f"[{section}]", *(f"{key} = {_toml(value)}" for key, value in table.items())]
    return "\n".join(lines) + "\n"


def _toml(value: object) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{json.dumps(str(key))} = {_toml(each)}" for key, each in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value)
