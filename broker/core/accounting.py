"""Who holds what: the table of section 5 of the life cycle, turned into slots and quota.

The invariant: what a workspace holds is a function of its record alone. Slots, free capacity and quota use are derived
from records and never kept beside them, so they cannot drift.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Final

from msgspec import Struct

from broker.core.feasibility import ADDRESS_PREFIX
from broker.core.lifecycle import holds
from broker.core.model import FINAL, Node, State, Workspace
from broker.core.slots import POOL_ROW, SlotKey

DISK = "disk"

BEGUN: Final = datetime(1970, 1, 1, tzinfo=UTC)
"""From when on a node that is not ahead any more holds its slot: a wall clock that steps back must not free it."""


AFTER: Final = "/after"
"""Ends the kind of a slot that holds what a node keeps once it has given way."""


class Holding(Struct, frozen=True, kw_only=True):
    """Amounts held on one host (or on the pool itself, POOL_ROW) over [start, end)."""

    pool: str
    key: SlotKey
    host: str
    amounts: dict[str, int]
    start: datetime
    end: datetime | None


def _kept(node: Node, amounts: dict[str, int]) -> dict[str, int]:
    """What of its amounts a node holds, by the life cycle's table: a released one its disk and addresses alone."""
    held = holds(node.state, node.released)
    if held.host:
        return amounts
    if held.disk and held.addresses:
        return let_go(amounts)
    return {
        name: amount
        for name, amount in amounts.items()
        if (name == DISK and held.disk) or (name.startswith(ADDRESS_PREFIX) and held.addresses)
    }


def same_terms(one: Workspace, other: Workspace) -> bool:
    """Whether two records of a workspace hold the same where their nodes are the same."""
    return (
        (one.state is State.PENDING) == (other.state is State.PENDING)
        and (one.state in FINAL) == (other.state in FINAL)
        and one.prepare_time == other.prepare_time
        and one.start_time == other.start_time
        and one.held_until == other.held_until
        and len(one.nodes) == len(other.nodes)
    )


def same_holding(one: Node, other: Node) -> bool:
    """Whether two records of a node hold the same under the same terms, as a start that has succeeded does."""
    return (
        holds(one.state, one.released) == holds(other.state, other.released)
        and (one.state is State.RESERVED) == (other.state is State.RESERVED)
        and one.state.final == other.state.final
        and (one.pool, one.host, one.target_host) == (other.pool, other.host, other.target_host)
        and one.held == other.held
        and one.pool_held == other.pool_held
    )


def holdings(workspace: Workspace, nodes: Iterable[Node]) -> dict[SlotKey, Holding]:
    """Every slot that some of a workspace's nodes hold, as its record stands, by key."""
    found: dict[SlotKey, Holding] = {}
    if workspace.state is State.PENDING:
        return found
    due = workspace.prepare_time or workspace.start_time or workspace.create_time
    until = workspace.held_until
    for node in nodes:
        start = due if node.state is State.RESERVED else BEGUN
        places = [("host", node.host, node.held), ("pool", POOL_ROW, node.pool_held)]
        if node.target_host:
            places.append(("target", node.target_host, node.held))
        for kind, host, amounts in places:
            if not amounts or not (host or kind == "pool"):
                continue
            held = _kept(node, amounts)
            if not held:
                continue
            key = (workspace.uid, node.index, kind)
            found[key] = Holding(pool=node.pool, key=key, host=host, amounts=held, start=start, end=until)
            kept = let_go(amounts) if until is not None and until != workspace.end_time else {}
            if kept:  # who has to give way goes on to hold its disk and its addresses
                key = (workspace.uid, node.index, kind + AFTER)
                found[key] = Holding(
                    pool=node.pool, key=key, host=host, amounts=kept, start=until or start, end=workspace.end_time
                )
    return found


def let_go(amounts: Mapping[str, int]) -> dict[str, int]:
    """What is still held of amounts once capacity is released: disk and addresses."""
    return {name: amount for name, amount in amounts.items() if name == DISK or name.startswith(ADDRESS_PREFIX)}


def quota_use(workspace: Workspace) -> Iterator[tuple[str, str, int]]:
    """What a workspace takes of its tenant's limits: (pool, resource, amount); pool "" counts only once overall."""
    if workspace.state in FINAL:
        return
    yield "", "workspaces", 1
    if workspace.nodes:
        yield from node_quota_use(workspace.nodes)
        return
    for each in workspace.node_sets:  # nothing is placed yet
        yield each.pool or workspace.requested_pool, "nodes", each.count


def node_quota_use(nodes: Iterable[Node]) -> Iterator[tuple[str, str, int]]:
    """What nodes take of their tenant's limits: (pool, resource, amount)."""
    for node in nodes:
        if not holds(node.state, node.released).quota:
            continue
        yield node.pool, "nodes", 1
        for amounts in (node.held, node.pool_held):
            if amounts:
                for name, amount in _kept(node, amounts).items():
                    yield node.pool, name, amount
