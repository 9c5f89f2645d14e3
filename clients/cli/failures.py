"""What a refusal means on a command line: an exit code for programs, and for people what to do about it."""

from __future__ import annotations

import json
import re
from datetime import timedelta
from enum import IntEnum

import grpc
from google.protobuf.json_format import MessageToDict
from google.rpc import status_pb2
from rich.console import RenderableType
from workspacebroker.v1.resources_pb2 import PlacementVerdict

from clients import errors
from clients.amounts import format_duration, rounded_up
from clients.cli.fields import sentences
from clients.cli.render import clean, plain
from clients.cli.verdicts import earliest_start, headline, left_out, shows_all_hosts, verdict_table
from clients.errors import BrokerError
from clients.names import short_name
from clients.transport import proxy_for


class Exit(IntEnum):
    """The exit codes; EXIT_CODES has them in words."""

    DONE = 0
    OTHER = 1
    INVALID = 2
    NOT_NOW = 3
    NEVER = 4
    NOT_FOUND = 5
    CONFLICT = 6
    UNAVAILABLE = 7
    DENIED = 8
    ELSEWHERE = 9
    TIMED_OUT = 10
    INTERRUPTED = 130


EXIT_CODES = {
    Exit.DONE: "done",
    Exit.OTHER: "another failure",
    Exit.INVALID: "wrong usage, or an invalid request",
    Exit.NOT_NOW: "no room now: waiting or asking for less helps",
    Exit.NEVER: "never: it fits nowhere, or the pool cannot do that",
    Exit.NOT_FOUND: "no such workspace, pool or host",
    Exit.CONFLICT: "conflict: name taken, changed meanwhile, or not in this state",
    Exit.UNAVAILABLE: "the broker or a pool does not answer now",
    Exit.DENIED: "denied, or over quota",
    Exit.ELSEWHERE: "waited: it ended in another state",
    Exit.TIMED_OUT: "waited: --timeout has passed, it goes on",
    Exit.INTERRUPTED: "Ctrl-C; what was accepted goes on",
}
_BY_FAMILY: dict[type[BrokerError], Exit] = {
    errors.InvalidRequest: Exit.INVALID,
    errors.Denied: Exit.DENIED,
    errors.QuotaExceeded: Exit.DENIED,
    errors.NotFound: Exit.NOT_FOUND,
    errors.Conflict: Exit.CONFLICT,
    errors.StateForbids: Exit.CONFLICT,
    errors.NotNow: Exit.NOT_NOW,
    errors.NeverFits: Exit.NEVER,
    errors.Unsupported: Exit.NEVER,
    errors.Unavailable: Exit.UNAVAILABLE,
    errors.RevisionCompacted: Exit.OTHER,
    errors.BrokerFault: Exit.OTHER,
}
_TRANSPORT = {
    grpc.StatusCode.UNAVAILABLE: Exit.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED: Exit.UNAVAILABLE,
}
BY_OUTCOME = {
    PlacementVerdict.OUTCOME_FITS: Exit.DONE,
    PlacementVerdict.OUTCOME_NOT_NOW: Exit.NOT_NOW,
    PlacementVerdict.OUTCOME_NEVER: Exit.NEVER,
}

# {w} is the workspace the error is about, {show} the command that shows it (or its ensemble), {check} a check with the
# flags just used.
_ADVICE = {
    "UNAUTHENTICATED": "The broker does not know who you are; ask its operator how to identify yourself.",
    "PERMISSION_DENIED": "Ask the broker's operator, or choose another --tenant.",
    "NOT_FOUND": "See what there is: workspace list --all, workspace pools",
    "NODE_GONE": "Its backend no longer has it: workspace show {w}",
    "NAME_TAKEN": "Choose another --id, or leave it out and the broker picks one.",
    "REQUEST_ID_REUSED": "That --request-id belongs to another request; leave it out for a new one.",
    "TRANSITION_UNDER_WAY": "Wait for it, then try again: workspace wait {w} (terminate need not wait)",
    "ETAG_MISMATCH": "It has changed meanwhile; look again: workspace {show}",
    "GENERATION_MISMATCH": "The pool has changed since it was checked; use: {check}",
    "STATE_FORBIDS": "See its state: workspace {show}",
    "POOL_DRAINING": "Choose another pool: workspace pools",
    "HOST_IN_USE": "Drain it first: workspace drain POOL/HOST",
    "QUOTA_EXCEEDED": "See limits and use: workspace usage",
    "CAPABILITY_MISSING": "What each pool can do: workspace pools --json",
    "BACKEND_UNREACHABLE": "The pool's backend does not answer the broker: workspace pools",
    "STORE_UNAVAILABLE": "The broker cannot write its store; tell its operator.",
    "INTERNAL": "A fault of the broker; its log tells more.",
}


def exit_code(error: BrokerError) -> Exit:
    """The exit code of a refusal."""
    if isinstance(error, errors.TransportError):
        return _TRANSPORT.get(error.code, Exit.OTHER)
    return _BY_FAMILY[type(error)]


def explain(
    error: BrokerError, *, server: str, check_line: str = "workspace check ...", one_set: bool = True
) -> list[RenderableType]:
    """What happened, with every detail, and what to do. `one_set`: whether flags describe the request's nodes."""
    lines = _happened(error, server, one_set)
    about = error.resource or next((v.subject for v in error.violations if v.reason == "STATE"), "")
    workspace = short_name(about) if "/workspaces/" in about else "W"
    show = f"ensemble show {short_name(about)}" if "/ensembles/" in about else f"show {workspace}"
    if advice := _ADVICE.get(error.reason):
        lines.append(clean(advice.format(w=workspace, show=show, check=check_line), keep="\n"))
    if error.verdicts and not shows_all_hosts(error.verdicts):
        lines.append(clean(f"To see more hosts use: {check_line}"))
    start = earliest_start(error.verdicts)
    if isinstance(error, errors.NotNow) and start is not None and not _member(error):
        whole = (start.replace(microsecond=0) + timedelta(seconds=bool(start.microsecond))).astimezone()
        lines.append(f"To reserve it from then on add: --start {whole.isoformat()}")
    if error.retry_after:
        lines.append(f"Try again in {format_duration(rounded_up(timedelta(seconds=error.retry_after)))}.")
    if error.request_id and exit_code(error) == Exit.UNAVAILABLE:
        # It may have been accepted although the answer got lost; the id makes repeating it safe.
        lines.append(f"To repeat it without doing it twice add: --request-id {error.request_id}")
    return lines


def _happened(error: BrokerError, server: str, one_set: bool) -> list[RenderableType]:
    if error.verdicts:  # the message says the same as they do, in the broker's units and time
        outcome = min(verdict.outcome for verdict in error.verdicts if "/hosts/" not in verdict.resource_name)
        line = clean(f"Error: {_member(error)}{headline(outcome, error.verdicts)}")
        return [line, verdict_table(error.verdicts), *left_out(error.verdicts)]
    if error.reason == "FIELD_INVALID" and error.violations:
        bad = list(sentences(error.violations, one_set=one_set))
        if len(bad) == 1:
            return [clean(f"Error: {bad[0]}")]
        return [f"Error: {len(bad)} things are wrong with the request:", *(clean(f"  {each}") for each in bad)]
    head: list[RenderableType] = [clean(f"Error: {_what(error, server)}", keep="\n")]
    return head + [
        clean(f"  {v.subject}: {v.message or v.reason}")
        for v in error.violations
        if v.message not in error.message or not v.message
    ]


def _member(error: BrokerError) -> str:
    """The workspace of an ensemble that kept the others back, where it was one."""
    name = error.metadata.get("workspace", "")
    return f"workspace {name.rpartition('/')[2]}: " if name else ""


def _what(error: BrokerError, server: str) -> str:
    if isinstance(error, errors.TransportError):
        if error.code == grpc.StatusCode.UNAVAILABLE:
            proxy = proxy_for(server)
            through = (
                f"\ngRPC goes there through a proxy, {proxy}; to go straight there add the host to no_proxy."
                if proxy
                else ""
            )
            return (
                f"no broker answers at {server} ({_cause(error.message)}).{through}\n"
                "Set its address with --server HOST:PORT or WORKSPACE_SERVER."
            )
        if error.code == grpc.StatusCode.DEADLINE_EXCEEDED:
            return f"the broker at {server} did not answer in time."
        if error.code == grpc.StatusCode.UNIMPLEMENTED:
            return f"the broker at {server} is older than this client and knows no such call."
    return error.message or error.reason or error.code.name


def _cause(message: str) -> str:
    """What gRPC says, without what it says of itself."""
    return re.sub(r"^.*last error: (?:[A-Z_]+: )?", "", message)


def as_json(error: BrokerError) -> str:
    """The google.rpc.Status as JSON on one line; a detail of a type unknown here is left out."""
    known = status_pb2.Status(code=error.status.code, message=error.status.message)
    for detail in error.status.details:
        try:
            MessageToDict(detail)
        except TypeError:
            continue
        known.details.add().CopyFrom(detail)
    return json.dumps(plain(known), ensure_ascii=False)
