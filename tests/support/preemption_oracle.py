"""Who has to give way, by trying everything: every set of leases that can, every host for every node, every start.

Nothing here asks the modules under test.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from itertools import combinations
from typing import NamedTuple

from msgspec.structs import replace

from broker.core.model import Workspace
from broker.core.placement import Placement, SetRequest, Window
from tests.support.naive_room import FAR, Ledger, exists
from tests.support.preemption_cases import ADDRESS, CAN, INSTANT, MINUTE, NOW, OF_HOST, Case


def over(case: Case, records: Sequence[Workspace], since: datetime = NOW) -> list[str]:
    """Where more is promised than there is, at any instant from one on."""
    ledger = Ledger(records, NOW)
    return [
        f"{held} {resource} of {amount} on {pool}/{host}"
        for pool in case.inventories
        for host, total in case.totals(pool).items()
        for resource, amount in total.items()
        if (held := ledger.most(pool, host, resource, since, FAR)) > amount
    ]


class Answer(NamedTuple):
    """When it starts, who gives way for it in order, and whether another set would have done as well."""

    start: datetime
    victims: list[str]
    several: bool
    free: datetime
    window: Window


class Oracle:
    """Answers by trying everything."""

    def __init__(self, case: Case) -> None:
        self.case = case
        request = case.request
        named = [each.pool or request.pool for each in request.sets]
        where = {name for name in named if name} if all(named) else set(case.settings)
        if request.allowed_pools is not None:
            where &= request.allowed_pools
        self.where = {name for name in where if case.settings[name].preemption}
        self.candidates = [each for each in case.records if self.can_give_way(each)]

    def can_give_way(self, workspace: Workspace) -> bool:
        return (
            workspace.terms.preemptible
            and workspace.preemption is None
            and workspace.state.value in CAN
            and any(node.pool in self.where and not node.released for node in workspace.nodes)
        )

    def routes(self) -> Iterator[dict[str, list[SetRequest]]]:
        """Which sets go to which pool: those that name none go to one pool together."""
        request = self.case.request
        for pool in [request.pool] if request.pool else sorted(self.case.settings):
            route: dict[str, list[SetRequest]] = {}
            for each in request.sets:
                route.setdefault(each.pool or pool, []).append(each)
            if request.allowed_pools is None or route.keys() <= request.allowed_pools:
                yield route

    def starts(self, route: Mapping[str, object], window: Window, ledger: Ledger) -> list[datetime]:
        """Every start there is any reason to try: the first, and where something ends a preparation before it."""
        if window.immediate or window.latest_start is None:
            return [window.start]
        lead = max(self.case.lead(pool) for pool in route)
        ends = [*ledger.ends(), NOW + INSTANT]
        later = {end + lead for end in ends if window.start < end + lead <= window.latest_start}
        return sorted({window.start, *later}) if window.start <= window.latest_start else []

    def first_start(
        self, victims: frozenset[str], free: datetime, window: Window, *, prepared_from: datetime
    ) -> datetime | None:
        """The first start at which the least counts fit somewhere, once these have let go at `free`."""
        ledger = Ledger(self.case.records, NOW, victims, free)
        found = [
            start
            for route in self.routes()
            for start in self.starts(route, window, ledger)
            if self.prepare(route, start) >= prepared_from and self.room(route, start, window, ledger)
        ]
        return min(found, default=None)

    def prepare(self, route: Mapping[str, object], start: datetime) -> datetime:
        return max(NOW, start - max(self.case.lead(pool) for pool in route))

    def room(self, route: Mapping[str, Sequence[SetRequest]], start: datetime, window: Window, ledger: Ledger) -> bool:
        begin = self.prepare(route, start)
        end = FAR if window.open_ended else start + (window.duration or MINUTE)
        for pool, sets in route.items():
            totals = self.case.totals(pool)
            free = tuple(
                tuple(totals[host][name] - ledger.most(pool, host, name, begin, end) for name in OF_HOST)
                for host in totals
                if host
            )
            nodes = tuple(
                (
                    tuple(each.amounts[name] for name in OF_HOST),
                    number if each.placement is Placement.ONE_PER_HOST else -1,
                )
                for number, each in enumerate(sets)
                for _ in range(each.least)
            )
            addresses = sum(each.least * each.networks["lan"] for each in sets)
            free_addresses = totals[""][ADDRESS] - ledger.most(pool, "", ADDRESS, begin, end)
            if not exists(free, nodes) or (addresses and addresses > free_addresses):
                return False
        return True

    def in_order(self, candidates: Sequence[Workspace]) -> list[Workspace]:
        """Those who rather give way first: the youngest, or the smallest; of these the last to come."""
        smallest = self.case.settings[min(self.where)].victims == "smallest"
        arrived = {each.uid: place for place, each in enumerate(self.case.records)}

        def key(each: Workspace) -> tuple[float, ...]:
            assert each.start_time is not None
            first = len(each.nodes) if smallest else each.terms.priority
            return (first, (NOW - each.start_time).total_seconds(), -arrived[each.uid])

        return sorted(candidates, key=key)

    def attempts(self) -> Iterator[tuple[Window, datetime, list[Workspace]]]:
        """The window as it is or can be, when room must be free for it, and who can have let go by then.

        What is for now, or may begin later, can wait until those of a longer notice have let go.
        """
        if not self.where or not self.candidates:
            return
        window = self.case.window
        lead = max(self.case.lead(pool) for pool in self.where)
        soonest = max(NOW, window.start - lead)
        may_wait = window.immediate or window.latest_start is not None
        for free in sorted({max(soonest, NOW + self.case.needs(each)) for each in self.candidates}):
            by_then = [each for each in self.candidates if NOW + self.case.needs(each) <= free]
            if free == soonest:
                yield window, free, by_then
            elif may_wait:
                yield replace(window, start=free + lead, immediate=False), free, by_then

    def answer(self) -> Answer | None:
        """What must come out, if anything can."""
        for window, free, able in self.attempts():
            ordered = [each.uid for each in self.in_order(able)]
            if self.first_start(frozenset(ordered), free, window, prepared_from=free) is None:
                continue
            enough = {
                chosen: start
                for size in range(len(ordered) + 1)
                for chosen in map(frozenset, combinations(ordered, size))
                if (start := self.first_start(chosen, free, window, prepared_from=free)) is not None
            }
            if frozenset() in enough:
                return None  # nobody need give way for it
            least = [each for each in enough if not any(other < each for other in enough)]
            best = min(least, key=lambda each: sorted(map(ordered.index, each), reverse=True))
            return Answer(enough[best], [uid for uid in ordered if uid in best], len(least) > 1, free, window)
        return None
