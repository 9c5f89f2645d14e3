"""Why a request fits or does not: each pool with its reasons, then its hosts, as a table people can act on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from datetime import UTC, datetime

from rich.console import RenderableType
from workspacebroker.v1.resources_pb2 import PlacementVerdict
from workspacebroker.v1.workspace_service_pb2 import CheckPlacementResponse

from clients.amounts import show_amount
from clients.cli.render import clean, enum_word, moment, natural, soon
from clients.cli.tables import Cell, Table
from clients.names import short_name

Reason = PlacementVerdict.Reason
MOST_HOSTS = 50  # of a pool that a check names

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
    Reason.CODE_QUEUED: "others wait there, and nobody may pass them; wait behind them with --queue-until",
}
# Numbers of these count nodes, whatever resource they name.
_OF_NODES = {Reason.CODE_GROUP, Reason.CODE_PLACEMENT_RULE, Reason.CODE_SEARCH_LIMIT}


def verdict_table(verdicts: Iterable[PlacementVerdict]) -> Table:
    """One row a reason. Best first: each pool, then its hosts by name within an outcome."""
    shown = Table("WHERE", "OUTCOME", "WHY", "ASKED", "THERE", "EARLIEST", prose=("WHY",))
    grouped: dict[str, list[PlacementVerdict]] = {}
    for verdict in verdicts:
        grouped.setdefault(_pool(verdict), []).append(verdict)
    for group in sorted(grouped.values(), key=lambda group: min(map(_order, group))):
        for verdict in sorted(group, key=_order):
            for row in _rows(verdict):
                shown.add_row(*row)
    return shown


def shows_all_hosts(verdicts: Collection[PlacementVerdict]) -> bool:
    """Whether a check would name no host more than these."""
    return all(shown >= min(total, MOST_HOSTS) for _, shown, total in _hosts_shown(verdicts))


def left_out(verdicts: Collection[PlacementVerdict]) -> list[RenderableType]:
    """A line for each pool of which some hosts are shown and others are not."""
    return [
        clean(f"{shown} of the {total} hosts of {short_name(pool)} are shown, those nearest to fitting.")
        for pool, shown, total in _hosts_shown(verdicts)
        if 0 < shown < total
    ]


def _hosts_shown(verdicts: Collection[PlacementVerdict]) -> Iterator[tuple[str, int, int]]:
    """Each pool, how many of its hosts are among the verdicts, and how many it has."""
    hosts = Counter(_pool(verdict) for verdict in verdicts if _is_host(verdict))
    for verdict in verdicts:
        if not _is_host(verdict):
            yield verdict.resource_name, hosts[verdict.resource_name], verdict.host_total


def earliest_start(verdicts: Iterable[PlacementVerdict]) -> datetime | None:
    """The first start that any of them allows, as things stand."""
    starts = [v.earliest_start_time.ToDatetime(tzinfo=UTC) for v in verdicts if v.HasField("earliest_start_time")]
    return min(starts, default=None)


def _is_host(verdict: PlacementVerdict) -> bool:
    return "/hosts/" in verdict.resource_name


def _pool(verdict: PlacementVerdict) -> str:
    return verdict.resource_name.partition("/hosts/")[0]


def _order(verdict: PlacementVerdict) -> tuple[bool, int, list[tuple[int, str]]]:
    return _is_host(verdict), verdict.outcome, natural(short_name(verdict.resource_name))


def _rows(verdict: PlacementVerdict) -> Iterator[tuple[Cell, ...]]:
    where, outcome = clean(short_name(verdict.resource_name)), enum_word(verdict, "outcome").replace("_", " ")
    earliest: Cell = moment(verdict, "earliest_start_time")
    if verdict.outcome == PlacementVerdict.OUTCOME_NOT_NOW and not _is_host(verdict):
        earliest = earliest or "not known"
    if not verdict.reasons:
        takes = verdict.nodes_fit
        yield where, outcome, f"takes {takes} node{'s' * (takes != 1)}" if takes else "", "", "", earliest
    for index, reason in enumerate(verdict.reasons):
        head = (where, outcome) if index == 0 else ("", "")
        yield *head, clean(_why(reason, verdict)), *_numbers(reason, verdict), earliest if index == 0 else ""


def _why(reason: Reason, verdict: PlacementVerdict) -> str:
    """In words, with what the other columns do not tell."""
    resource = clean(reason.resource) or "room"
    known = _WORDS.get(reason.code, enum_word(reason, "code")).format(resource=resource)
    if reason.message and not (reason.requested or reason.available):
        known = reason.message if reason.code not in _WORDS else f"{known} ({reason.message})"
    if reason.node_set:
        known = f"{reason.node_set}: {known}"
    if reason.host_count:
        known += f", on {reason.host_count} host{'s' * (reason.host_count != 1)}"
    helps = verdict.outcome == PlacementVerdict.OUTCOME_NOT_NOW
    if reason.resolvable is helps or verdict.outcome == PlacementVerdict.OUTCOME_FITS:
        return known
    return f"{known}; waiting {'may help' if reason.resolvable else 'does not help'}"


def _numbers(reason: Reason, verdict: PlacementVerdict) -> tuple[str, str]:
    if not (reason.requested or reason.available):
        return "", ""
    if reason.code in _OF_NODES:
        return f"{reason.requested} nodes", f"{reason.available} nodes"
    asked, there = (show_amount(reason.resource, n) for n in (reason.requested, reason.available))
    return asked, there if _is_host(verdict) or not reason.host_count else f"at most {there}"


HEADS: Mapping[int, str] = {
    PlacementVerdict.OUTCOME_FITS: "It fits now.",
    PlacementVerdict.OUTCOME_NOT_NOW: "Not now, and from when on is not known: no lease that ends would give the room.",
    PlacementVerdict.OUTCOME_NEVER: "Never: it would not fit even if every host were empty.",
}


def headline(outcome: int, verdicts: Iterable[PlacementVerdict]) -> str:
    """The outcome in a sentence."""
    start = earliest_start(verdicts)
    if outcome == PlacementVerdict.OUTCOME_NOT_NOW and start is not None:
        return f"Not now; as things stand it fits from {soon(start)} on."
    return HEADS.get(outcome, str(outcome))


def check_view(answer: CheckPlacementResponse) -> list[RenderableType]:
    """A whole check: the outcome, the verdicts, and what would be accepted instead."""
    return [
        headline(answer.outcome, answer.verdicts),
        verdict_table(answer.verdicts),
        *left_out(answer.verdicts),
        *(["What would be accepted instead, the nearest first:"] if answer.offers else []),
        *(f"  {number}. {clean(offer.message)}" for number, offer in enumerate(answer.offers, 1)),
    ]
