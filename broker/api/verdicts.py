"""Verdicts of placement as messages: whole for CheckPlacement, and as far as they fit for a refusal's status.

A status travels in a trailer, so a `PlacementFailure` has a bound in bytes: the pools' verdicts come first,
then the hosts nearest to fitting, all as codes and numbers without prose; CheckPlacement gives the rest.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from workspacebroker.v1 import errors_pb2
from workspacebroker.v1 import resources_pb2 as pb
from workspacebroker.v1 import workspace_service_pb2 as calls_pb

from broker.api import names
from broker.api.enums import CODES, OUTCOMES
from broker.api.times import fill, optional_timestamp, timestamp
from broker.core.answers import Outcome, Reason, Verdict
from broker.offers import Offer

PLACEMENT_FAILURE_BYTES: Final = 4 * 1024
REASONS_SHOWN: Final = 8
_FRAME: Final = 4  # bytes of a message's tag and length inside another, at these sizes

_NEARNESS: Final = {Outcome.FITS: 0, Outcome.NOT_NOW: 1, Outcome.NEVER: 2}


def verdict(judged: Verdict, *, prose: bool = True) -> pb.PlacementVerdict:
    """One verdict; without prose it has codes and numbers only, and not every reason."""
    pool, host = judged.pool, judged.host
    reasons: Sequence[Reason] = judged.reasons if prose else judged.reasons[:REASONS_SHOWN]
    return pb.PlacementVerdict(
        resource_name=names.pool_name(pool) if host is None else names.host_name(pool, host),
        outcome=OUTCOMES[judged.outcome],
        earliest_start_time=optional_timestamp(judged.earliest),
        score=judged.score,
        reasons=[_reason(each, prose) for each in reasons],
        nodes_fit=judged.nodes_fit,
        host_total=judged.host_total,
    )


def offer(wish: pb.Workspace, offered: Offer) -> calls_pb.Offer:
    """An offer: the wish as it was sent, with what differs put in its place."""
    wanted = offered.wanted
    shown = calls_pb.Offer(workspace=wish, start_time=timestamp(offered.start), message=offered.message)
    shown.changed.paths.extend(offered.paths)
    workspace = shown.workspace
    for path in offered.paths:
        if path == "pool":
            workspace.pool = wanted.pool
        elif path == "terms.start_time" and wanted.terms.start_time is not None:
            fill(workspace.terms.start_time, wanted.terms.start_time)
        elif path == "terms.earliest_start_time":
            workspace.terms.ClearField("earliest_start_time")
        elif path == "terms.preemptible":
            workspace.terms.preemptible = wanted.terms.preemptible
        elif path == "node_sets":
            for message, each in zip(workspace.node_sets, wanted.node_sets, strict=True):
                message.count, message.min_count, message.pool = each.count, each.min_count, each.pool
    return shown


def _reason(reason: Reason, prose: bool) -> pb.PlacementVerdict.Reason:
    return pb.PlacementVerdict.Reason(
        code=CODES[reason.code],
        resource=reason.resource,
        requested=reason.requested,
        available=reason.available,
        message=reason.message if prose else "",
        resolvable=reason.resolvable,
        node_set=reason.node_set,
        host_count=reason.host_count,
    )


def placement_failure(verdicts: Iterable[Verdict]) -> errors_pb2.PlacementFailure:
    """As many verdicts as the bound takes, pools before hosts and near before far."""
    failure = errors_pb2.PlacementFailure()
    room = PLACEMENT_FAILURE_BYTES
    for judged in sorted(verdicts, key=_order):
        message = verdict(judged, prose=False)
        room -= message.ByteSize() + _FRAME
        if room < 0:
            break
        failure.verdicts.append(message)
    return failure


def _order(judged: Verdict) -> tuple[bool, int, int, float]:
    return (judged.host is not None, _NEARNESS[judged.outcome], len(judged.reasons), -judged.score)
