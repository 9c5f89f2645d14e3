"""Why a request fits or does not, pool by pool and host by host, as a table people can act on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from rich.console import RenderableType
from rich.table import Table
from workspacebroker.v1.resources_pb2 import PlacementVerdict
from workspacebroker.v1.workspace_service_pb2 import CheckPlacementResponse

from clients.amounts import format_amount
from clients.cli.render import clean, enum_word, instant, table
from clients.names import short_name

Reason = PlacementVerdict.Reason

_WORDS = {
    Reason.CODE_INSUFFICIENT_RESOURCE: "not enough {resource}",
    Reason.CODE_GROUP: "room for single nodes, not for so many at once",
    Reason.CODE_SELECTOR: "has other attributes than --select asks",
    Reason.CODE_PLACEMENT_RULE: "would break the placement rule",
    Reason.CODE_IMAGE_MISSING: "does not have the image",
    Reason.CODE_IMAGE_MISMATCH: "cannot run the image: other architecture or hypervisor",
    Reason.CODE_NETWORK_MISSING: "does not have the network",
    Reason.CODE_CAPABILITY: "its backend cannot do this",
    Reason.CODE_PARAMETER: "does not understand a parameter",
    Reason.CODE_HOST_CORDONED: "cordoned by an operator",
    Reason.CODE_HOST_DISABLED: "disabled at its backend",
    Reason.CODE_HOST_LOST: "does not answer",
    Reason.CODE_POOL_DRAINING: "takes no new workspaces",
    Reason.CODE_POOL_UNREACHABLE: "its backend does not answer",
    Reason.CODE_POOL_FORBIDDEN: "not open to this tenant",
    Reason.CODE_QUOTA: "quota used up: {resource}",
    Reason.CODE_LEASE_TOO_LONG: "longer than the pool leases",
    Reason.CODE_WINDOW: "cannot start and end inside the window",
    Reason.CODE_DISK_ELSEWHERE: "the node's disk lies on another host",
    Reason.CODE_SEARCH_LIMIT: "not decided in the time allowed; ask for less, or again",
}
# Numbers of these count nodes, whatever resource they name.
_OF_NODES = {Reason.CODE_GROUP, Reason.CODE_PLACEMENT_RULE, Reason.CODE_SEARCH_LIMIT}


def verdict_table(verdicts: Iterable[PlacementVerdict]) -> Table:
    """One row a reason: pools first, then hosts."""
    shown = table("WHERE", "OUTCOME", "WHY", "ASKED", "THERE", "WAITING HELPS", "EARLIEST")
    for verdict in sorted(verdicts, key=lambda v: "/hosts/" in v.resource_name):
        for row in _rows(verdict):
            shown.add_row(*map(clean, row))
    return shown


def _rows(verdict: PlacementVerdict) -> Iterator[Sequence[str]]:
    where, outcome = short_name(verdict.resource_name), enum_word(verdict, "outcome")
    is_pool = "/hosts/" not in verdict.resource_name
    earliest = instant(verdict, "earliest_start_time")
    if verdict.outcome == PlacementVerdict.OUTCOME_NOT_NOW and is_pool:
        earliest = earliest or "not known"
    if not verdict.reasons:
        takes = verdict.nodes_fit
        yield where, outcome, f"takes {takes} node{'s' * (takes != 1)}" if takes else "", "", "", "", earliest
    for index, reason in enumerate(verdict.reasons):
        head = (where, outcome) if index == 0 else ("", "")
        yield *head, _why(reason), *_numbers(reason), _helps(reason), earliest if index == 0 else ""


def _why(reason: Reason) -> str:
    known = _WORDS.get(reason.code, enum_word(reason, "code")).format(resource=reason.resource or "room")
    if reason.node_set:
        known = f"{reason.node_set}: {known}"
    if reason.host_count:
        known += f", on {reason.host_count} host{'s' * (reason.host_count != 1)}"
    return f"{known} ({reason.message})" if reason.message else known


def _numbers(reason: Reason) -> tuple[str, str]:
    if not (reason.requested or reason.available):
        return "", ""
    unit = "nodes" if reason.code in _OF_NODES else reason.resource
    asked, there = (format_amount(unit, n) for n in (reason.requested, reason.available))
    return (f"{asked} nodes", f"{there} nodes") if unit == "nodes" else (asked, there)


def _helps(reason: Reason) -> str:
    return "yes" if reason.resolvable else "no"


def check_view(answer: CheckPlacementResponse) -> list[RenderableType]:
    """A whole check: the outcome, the verdicts, and what would be accepted instead."""
    starts = [instant(v, "earliest_start_time") for v in answer.verdicts if v.HasField("earliest_start_time")]
    head = {
        PlacementVerdict.OUTCOME_FITS: "It fits now.",
        PlacementVerdict.OUTCOME_NOT_NOW: f"Not now; as things stand from {min(starts)}."
        if starts
        else "Not now; no lease that ends gives room.",
        PlacementVerdict.OUTCOME_NEVER: "Never: it would not fit if everything were empty.",
    }.get(answer.outcome, enum_word(answer, "outcome"))
    view: list[RenderableType] = [head, verdict_table(answer.verdicts)]
    if answer.offers:
        shown = table("OFFER", "STARTS", "DIFFERS IN", "WHAT IT TAKES")
        for number, offer in enumerate(answer.offers, start=1):
            begins = instant(offer, "start_time") or "now"
            differs = clean(", ".join(offer.changed.paths))
            shown.add_row(str(number), begins, differs, clean(offer.message))
        view += [
            "",
            "These would be accepted (workspace check ... --offer N | workspace create --file -):",
            shown,
        ]
    return view
