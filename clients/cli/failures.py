"""What a refusal means on a command line: an exit code for programs, and for people what to do about it.

0 done, 1 other, 2 usage or invalid, 3 not now, 4 never, 5 not found, 6 conflict or state, 7 unavailable,
8 denied or quota, 9 ended in another state, 10 wait timed out, 130 interrupted.
"""

from __future__ import annotations

import json
from datetime import timedelta
from enum import IntEnum

import grpc
from google.protobuf.json_format import MessageToDict
from google.rpc import status_pb2
from rich.console import RenderableType
from workspacebroker.v1.resources_pb2 import PlacementVerdict

from clients import errors
from clients.amounts import format_duration
from clients.cli.render import clean
from clients.cli.verdicts import verdict_table
from clients.errors import BrokerError
from clients.names import short_name


class Exit(IntEnum):
    """The exit codes."""

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

# {w} is the workspace the error is about, {check} a check with the flags just used.
_ADVICE = {
    "UNAUTHENTICATED": "The broker does not know who you are; ask its operator how to identify yourself.",
    "PERMISSION_DENIED": "Ask the broker's operator, or choose another --tenant.",
    "NOT_FOUND": "See what there is: workspace list --all, workspace pools",
    "NODE_GONE": "Its backend no longer has it: workspace show {w}",
    "NAME_TAKEN": "Choose another --id, or leave it out and the broker picks one.",
    "REQUEST_ID_REUSED": "That --request-id belongs to another request; leave it out for a new one.",
    "TRANSITION_UNDER_WAY": "Wait for it, then try again: workspace wait {w} (terminate need not wait)",
    "ETAG_MISMATCH": "It has changed meanwhile; look again: workspace show {w}",
    "GENERATION_MISMATCH": "The pool has changed since it was checked; use: {check}",
    "STATE_FORBIDS": "See its state: workspace show {w}",
    "POOL_DRAINING": "Choose another pool: workspace pools",
    "HOST_IN_USE": "Drain it first: workspace drain POOL/HOST",
    "NO_CAPACITY": "To see every host use: {check}\nTo wait for room add: --queue-until +2h",
    "NEVER_FITS": "To see every host use: {check}",
    "QUOTA_EXCEEDED": "See limits and use: workspace usage",
    "CAPABILITY_MISSING": "What a pool can do: workspace pools --json",
    "BACKEND_UNREACHABLE": "The pool's backend does not answer the broker: workspace pools",
    "STORE_UNAVAILABLE": "The broker cannot write its store; tell its operator.",
    "INTERNAL": "A fault of the broker; its log tells more.",
}


def exit_code(error: BrokerError) -> Exit:
    """The exit code of a refusal."""
    if isinstance(error, errors.TransportError):
        return _TRANSPORT.get(error.code, Exit.OTHER)
    return _BY_FAMILY[type(error)]


def explain(error: BrokerError, *, server: str, check_line: str = "workspace check ...") -> list[RenderableType]:
    """What happened, with every detail, and what to do."""
    lines: list[RenderableType] = [clean(f"Error: {_what(error, server)}", keep="\n")]
    lines += [clean(f"  {v.subject}: {v.message or v.reason}") for v in error.violations]
    if error.verdicts:
        lines.append(verdict_table(error.verdicts))
    workspace = short_name(error.resource) if "/workspaces/" in error.resource else ""
    if advice := _ADVICE.get(error.reason):
        lines.append(clean(advice.format(w=workspace or "W", check=check_line), keep="\n"))
    if error.retry_after:
        lines.append(f"Try again in {format_duration(timedelta(seconds=error.retry_after))}.")
    if error.request_id and exit_code(error) == Exit.UNAVAILABLE:
        # It may have been accepted although the answer got lost; the id makes repeating it safe.
        lines.append(f"To repeat it without doing it twice add: --request-id {error.request_id}")
    return lines


def _what(error: BrokerError, server: str) -> str:
    if isinstance(error, errors.TransportError):
        if error.code == grpc.StatusCode.UNAVAILABLE:
            return (
                f"no broker answers at {server} ({error.message}).\n"
                "Set its address with --server HOST:PORT or WORKSPACE_SERVER."
            )
        if error.code == grpc.StatusCode.DEADLINE_EXCEEDED:
            return f"the broker at {server} did not answer in time."
        if error.code == grpc.StatusCode.UNIMPLEMENTED:
            return f"the broker at {server} is older than this client and knows no such call."
    return error.message or error.reason or error.code.name


def as_json(error: BrokerError) -> str:
    """The google.rpc.Status as JSON on one line; a detail of a type unknown here is left out."""
    known = status_pb2.Status(code=error.status.code, message=error.status.message)
    for detail in error.status.details:
        try:
            MessageToDict(detail)
        except TypeError:
            continue
        known.details.add().CopyFrom(detail)
    return json.dumps(MessageToDict(known), ensure_ascii=False)
