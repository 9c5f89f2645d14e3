"""What a scenario sees, in the words of its file, and where that is not what it expects."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import grpc.aio
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import error_details_pb2
from workspacebroker.v1 import resources_pb2 as pb
from workspacebroker.v1 import workspace_service_pb2 as api

from tests.support.api import Refusal, state_of, taken_apart
from tests.support.timed_values import DAY, Instant

SECOND: Final = timedelta(seconds=1)
NONE: Final = "none"


def told(at: datetime | None) -> str:
    """An instant as a scenario writes it."""
    if at is None:
        return NONE
    days = (at - DAY).days
    clock = f"{at:%H:%M:%S}" + (f".{at.microsecond:06}" if at.microsecond else "")
    return f"day {days + 1} {clock}" if days else clock


def _instant(stamp: Timestamp | None) -> datetime | None:
    return None if stamp is None else stamp.ToDatetime(UTC)


def _of(message: Any, name: str) -> datetime | None:
    return _instant(getattr(message, name)) if message.HasField(name) else None


def _host(node: pb.Node) -> str:
    return node.host.rpartition("/")[2]


def _reason(workspace: pb.Workspace) -> str:
    for packed in workspace.last_error.details:
        info = error_details_pb2.ErrorInfo()
        if packed.Unpack(info):
            return str(info.reason)
    return ""


def _released(workspace: pb.Workspace) -> bool:
    live = [node for node in workspace.nodes if node.state < pb.Workspace.STATE_TERMINATED]
    return bool(live) and all(node.capacity_released for node in live)


def _node_states(workspace: pb.Workspace) -> list[str]:
    return [pb.Workspace.State.Name(node.state).removeprefix("STATE_") for node in workspace.nodes]


_SHOWN: Final[Mapping[str, Callable[[pb.Workspace], Any]]] = {
    "state": state_of,
    "cause": lambda seen: pb.Workspace.Cause.Name(seen.cause).removeprefix("CAUSE_"),
    "host": lambda seen: ",".join(map(_host, seen.nodes)),
    "hosts": lambda seen: list(map(_host, seen.nodes)),
    "nodes": _node_states,
    "pool": lambda seen: seen.pool,
    "planned": lambda seen: _of(seen, "planned_start_time"),
    "prepare": lambda seen: _of(seen, "prepare_time"),
    "started": lambda seen: _of(seen, "actual_start_time"),
    "end": lambda seen: _of(seen, "end_time"),
    "position": lambda seen: seen.queue_position,
    "notices": lambda seen: {
        pb.Workspace.Notice.Kind.Name(notice.kind).removeprefix("KIND_"): _of(notice, "due_time")
        for notice in seen.notices
    },
    "released": _released,
    "error": _reason,
    "gone": lambda seen: False,
}


def differences(what: str, seen: pb.Workspace | None, expected: Mapping[str, Any], history: Sequence[str]) -> list[str]:
    """Where a workspace is not as expected; None: there is no record of it."""
    if seen is None:
        return [] if expected.get("gone") else [f"{what}: there is no such workspace any more"]
    found = []
    for key, wanted in expected.items():
        value: Any = list(history) if key == "history" else _SHOWN[key](seen)
        if key == "started" and value is not None:
            value = value.replace(microsecond=0)
        found += compared(f"{what}: {key}", value, wanted)
    return found


def compared(what: str, value: Any, wanted: Any) -> list[str]:
    """Where one thing is not as expected."""
    return [] if _agrees(value, wanted) else [f"{what} is {_words(value)}, expected {_words(wanted)}"]


def _agrees(value: Any, wanted: Any) -> bool:
    if isinstance(wanted, Instant):
        return isinstance(value, datetime) and (
            abs(value - wanted.time) < SECOND if wanted.roughly else value == wanted.time
        )
    if isinstance(wanted, dict):  # notices, with when they are due or without
        return value.keys() == wanted.keys() and all(
            due is None or _agrees(value[kind], due) for kind, due in wanted.items()
        )
    if isinstance(wanted, tuple):
        return list(value) == list(wanted)
    return bool(value == wanted)


def _words(value: Any) -> str:
    if value is None or isinstance(value, datetime):
        return told(value)
    if isinstance(value, Instant):
        return ("~" if value.roughly else "") + told(value.time)
    if isinstance(value, dict):
        return "{" + ", ".join(kind if due is None else f"{kind}: {_words(due)}" for kind, due in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_words, value)) + "]"
    return str(value)


def refusal_differences(what: str, error: grpc.aio.AioRpcError, expected: Mapping[str, Any]) -> list[str]:
    """Where a refusal is not the one expected."""
    refused = taken_apart(error)
    if "refused" not in expected:
        return [f"{what}: refused with {refused.reason}: {refused.message} {_violations(refused)}".rstrip()]
    found = []
    if refused.reason != expected["refused"]:
        found.append(
            f"{what}: refused with {refused.reason}, expected {expected['refused']}: {refused.message} "
            f"{_violations(refused)}".rstrip()
        )
    elif "field" in expected and [*_violations(refused)] != [expected["field"]]:
        found.append(f"{what}: names {_violations(refused)}, expected {expected['field']} alone")
    if "earliest" in expected:
        earliest = refused.metadata.get("earliest_start_time")
        value = None if earliest is None else datetime.fromisoformat(earliest)
        found += compared(f"{what}: earliest", value, expected["earliest"])
    return found


def _violations(refused: Refusal) -> Any:
    return refused.violations if "BadRequest" in refused.details else ""


def check_differences(what: str, answer: api.CheckPlacementResponse, expected: Mapping[str, Any]) -> list[str]:
    """Where an answer of CheckPlacement is not the one expected."""
    earliest = [_of(each, "earliest_start_time") for each in answer.verdicts if "/hosts/" not in each.resource_name]
    seen = {
        "outcome": pb.PlacementVerdict.Outcome.Name(answer.outcome).removeprefix("OUTCOME_"),
        "earliest": min((at for at in earliest if at is not None), default=None),
    }
    found = []
    for key, value in seen.items():
        found += compared(f"{what}: {key}", value, expected[key]) if key in expected else []
    if "refused" in expected:
        found.append(f"{what}: answered {seen['outcome']}, expected to be refused with {expected['refused']}")
    if "offers" in expected:
        offers = [_offer(each) for each in answer.offers]
        wanted = expected["offers"]
        same = len(offers) == len(wanted) and all(
            all(_agrees(offer[key], value) for key, value in want.items())
            for offer, want in zip(offers, wanted, strict=True)
        )
        if not same:
            found.append(f"{what}: offers are {_listed(offers)}, expected {_listed(wanted)}")
    return found


def _offer(offer: api.Offer) -> dict[str, Any]:
    return {
        "changed": list(offer.changed.paths),
        "start": _of(offer, "start_time"),
        "pool": offer.workspace.pool,
        "nodes": sum(each.count for each in offer.workspace.node_sets),
        "preemptible": offer.workspace.terms.preemptible,
    }


def _listed(offers: Sequence[Mapping[str, Any]]) -> str:
    return "; ".join(", ".join(f"{key} {_words(value)}" for key, value in offer.items()) for offer in offers) or NONE


def brief(workspace: pb.Workspace) -> str:
    """A workspace in a line."""
    parts = [workspace.name.rpartition("/")[2], state_of(workspace)]
    hosts = ",".join(_host(node) for node in workspace.nodes if node.host)
    parts += [f"on {hosts}"] if hosts else []
    for word, field in (("planned", "planned_start_time"), ("end", "end_time")):
        at = _of(workspace, field)
        parts += [f"{word} {told(at)}"] if at is not None else []
    parts += [f"waits as {workspace.queue_position}"] if workspace.queue_position else []
    parts += [pb.Workspace.Notice.Kind.Name(notice.kind).removeprefix("KIND_") for notice in workspace.notices]
    return " ".join(parts)


# Capacity


def over_capacity(name: str, host: pb.Host, running: Sequence[Mapping[str, int]], now: datetime) -> list[str]:
    """Where more of a host is promised, from now on, than it has, and where more runs on it."""
    slots = [(max(slot.start_time.ToDatetime(UTC), now), _of(slot, "end_time"), slot) for slot in host.slots]
    found = []
    for resource, most in host.total.amounts.items():
        for instant in sorted({start for start, _, _ in slots}):
            there = [slot for start, end, slot in slots if start <= instant and (end is None or instant < end)]
            taken = sum(dict(slot.amounts.amounts).get(resource, 0) for slot in there)
            if taken > most:
                held = ", ".join(f"{slot.workspace.rpartition('/')[2]}/{slot.node_index}" for slot in there)
                found.append(f"host {name}: {taken} {resource} of {most} from {told(instant)} on, held by {held}")
        runs = sum(amounts.get(resource, 0) for amounts in running)
        if runs > most and resource != "disk":
            found.append(f"host {name}: what runs on it takes {runs} {resource} of {most}")
    return found
