"""How workspaces are placed together: in which orders they are tried one after another, and all as one request.

One after another, each seeing what those before it took, finds most of what can be found, but not all: which host one
takes may keep another out. As one request the search is exact, where they can be put so. Nothing is placed here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import permutations
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from broker.core.model import Workspace
from broker.core.placement import Placement, PlacementRequest, Plan, PoolSnapshot, SetAssignment, SetRequest, Window

MOST_ORDERS: Final = 24
"""Orders that are tried at most: all there are of four workspaces."""

MOST_WORK: Final = 256
"""Bounds the orders after the first two: a workspace of one set counts 1 in each, one of several, which have to be
searched for, the square of their number."""


class Member(Struct, frozen=True, kw_only=True):
    """One of the workspaces, with what placement is asked for it."""

    workspace: Workspace
    request: PlacementRequest
    window: Window


def one_by_one(members: Sequence[Member], attempt: Callable[[Sequence[Member]], int | None]) -> bool:
    """Tries orders until one succeeds, and returns whether one did.

    `attempt` places members in the order given and returns the position of the first that does not fit, with nothing
    placed, or None. As they were added, then the largest first, then whoever did not fit goes first.
    """
    places = range(len(members))
    kinds = [next(at for at in places if _alike(members[at], member)) for member in members]
    pending = [tuple(places), _largest_first(members)]
    others = permutations(places)
    tried: set[tuple[int, ...]] = set()
    most = max(2, min(MOST_ORDERS, MOST_WORK // sum(len(member.request.sets) ** 2 for member in members)))
    for _ in range(MOST_ORDERS * most):  # of equal members most orders are one
        order = pending.pop(0) if pending else next(others, None)
        if order is None or len(tried) == most:
            break
        kind = tuple(kinds[place] for place in order)
        if kind in tried:
            continue
        tried.add(kind)
        at = attempt([members[place] for place in order])
        if at is None:
            return True
        if at == 0:  # where it does not fit by itself, no order helps
            return False
        pending.append((order[at], *order[:at], *order[at + 1 :]))
    return False


def _alike(one: Member, other: Member) -> bool:
    """Whether two ask for the very same, so that they can change places."""
    return one.request == other.request and one.window == other.window


def _largest_first(members: Sequence[Member]) -> tuple[int, ...]:
    """The members' places: that of the largest node first, then that of the most nodes of such a size."""
    most: dict[str, int] = {}
    for member in members:
        for each in member.request.sets:
            for name, amount in each.amounts.items():
                most[name] = max(most.get(name, 1), amount)

    def size(place: int) -> tuple[float, float]:
        sets = members[place].request.sets
        nodes = [max((amount / most[name] for name, amount in each.amounts.items()), default=0.0) for each in sets]
        return (-max(nodes), -sum(node * each.count for node, each in zip(nodes, sets, strict=True)))

    return tuple(sorted(range(len(members)), key=size))


class Share(Struct, frozen=True, kw_only=True):
    """Which nodes of one set of a common request are whose: those of a member's own set, in order of the shares."""

    member: int
    set_index: int
    count: int  # 0: all there are


class Common(Struct, frozen=True, kw_only=True):
    """All members as one request; `shares`: of each of its sets."""

    request: PlacementRequest
    window: Window
    shares: tuple[tuple[Share, ...], ...]

    def parted(self, answer: Plan) -> list[Plan]:
        """The plan of each member, from the plan of all."""
        own: dict[int, list[SetAssignment]] = {}
        for assignment in answer.assignments:
            begin = 0
            for share in self.shares[assignment.set_index]:
                end = begin + share.count if share.count else len(assignment.hosts)
                mine = SetAssignment(set_index=share.set_index, pool=assignment.pool, hosts=assignment.hosts[begin:end])
                own.setdefault(share.member, []).append(mine)
                begin = end
        return [
            replace(
                answer,
                assignments=tuple(sorted(own[member], key=lambda each: each.set_index)),
                generations={each.pool: answer.generations[each.pool] for each in own[member]},
            )
            for member in sorted(own)
        ]


def as_one(members: Sequence[Member], seen: Mapping[str, PoolSnapshot]) -> Common | None:
    """All members as one request that asks for the very same; None where there is none.

    That takes one window with one start, and a pool for every set. Where they go to several pools, what they ask of a
    pool has to be the same too, and how long they last must not depend on which pool it is.
    """
    first = members[0]
    window, request = first.window, first.request
    if window.latest_start is not None or any(member.window != window for member in members):
        return None
    allowed = seen.keys() if request.allowed_pools is None else request.allowed_pools & seen.keys()
    only = next(iter(allowed)) if len(allowed) == 1 else None
    wanted = [
        (place, index, replace(each, name="", pool=each.pool or member.request.pool or only))
        for place, member in enumerate(members)
        for index, each in enumerate(member.request.sets)
    ]
    pools = {each.pool for _, _, each in wanted}
    if None in pools:
        return None
    if len(pools) > 1 and (
        (
            window.duration is None
            and not window.open_ended
            and len({seen[pool].default_duration for pool in pools if pool}) > 1
        )
        or any(_asks_of_pools(member.request) != _asks_of_pools(request) for member in members)
    ):
        return None
    sets, shares = _merged(wanted, seen)
    return Common(
        request=PlacementRequest(
            sets=sets,
            capabilities=frozenset().union(*(member.request.capabilities for member in members)),
            parameters=frozenset().union(*(member.request.parameters for member in members)),
            optional_parameters=frozenset().union(*(member.request.optional_parameters for member in members)),
            allowed_pools=request.allowed_pools,
        ),
        window=window,
        shares=shares,
    )


def _asks_of_pools(request: PlacementRequest) -> tuple[frozenset[str], ...]:
    return (request.capabilities, request.parameters, request.optional_parameters)


def _merged(
    wanted: Sequence[tuple[int, int, SetRequest]], seen: Mapping[str, PoolSnapshot]
) -> tuple[tuple[SetRequest, ...], tuple[tuple[Share, ...], ...]]:
    """Equal sets of several members as one larger set, which is less to search; not those with rules among their own
    nodes, or of which fewer would do."""
    sets: list[SetRequest] = []
    shares: list[list[Share]] = []
    kinds: list[SetRequest | None] = []
    for member, index, each in wanted:
        policy = each.placement or (seen[each.pool].policy if each.pool is not None else None)
        whole = each.min_count in (0, each.count) and policy is not Placement.ONE_PER_HOST
        kind = replace(each, count=1, min_count=0) if whole else None
        if kind is not None and kind in kinds:
            at = kinds.index(kind)
            sets[at] = replace(sets[at], count=sets[at].count + each.count)
        else:
            at = len(sets)
            sets.append(replace(each, min_count=0) if whole else each)
            shares.append([])
            kinds.append(kind)
        shares[at].append(Share(member=member, set_index=index, count=each.count if whole else 0))
    return tuple(sets), tuple(map(tuple, shares))
