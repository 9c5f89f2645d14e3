"""The slot table against a naive model that looks at every instant one by one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from msgspec import structs

from broker.core.placement import (
    HostInventory,
    HostRecord,
    Placement,
    PlacementRequest,
    Plan,
    PoolSnapshot,
    SetRequest,
    Window,
    held_amounts,
    plan,
)
from broker.core.slots import POOL_ROW, Slot, SlotKey, SlotTable

EPOCH = datetime(2026, 5, 4, tzinfo=UTC)
HOSTS = ("a", "b", "c")
CAPACITY = {"cpu": 4, "memory": 6}
ADDRESSES = 5
MICROSECOND = timedelta(microseconds=1)


def at(instant: int) -> datetime:
    """The model's time is whole microseconds from its beginning."""
    return EPOCH + instant * MICROSECOND


@dataclass(frozen=True)
class Held:
    host: str
    amounts: Mapping[str, int]
    start: int
    end: int | None


class Model:
    """Every slot in a dict; every sum counted afresh."""

    def __init__(self) -> None:
        self.slots: dict[SlotKey, Held] = {}

    def held(self, host: str, resource: str, instant: int, now: int) -> int:
        """What counts at one instant: not released and ended counts up to and including now."""
        return sum(
            slot.amounts.get(resource, 0)
            for slot in self.slots.values()
            if slot.host == host
            and slot.start <= instant
            and (slot.end is None or instant < slot.end or instant <= now)
        )

    def peak(self, host: str, resource: str, start: int, end: int | None, now: int) -> int:
        """The largest sum over the interval: beyond the last change nothing moves any more."""
        changes = [slot.start for slot in self.slots.values()]
        changes += [slot.end for slot in self.slots.values() if slot.end is not None]
        stop = max([*changes, start, now]) + 2 if end is None else end
        return max(self.held(host, resource, instant, now) for instant in range(start, stop))


class SlotsAgainstModel(RuleBasedStateMachine):
    """Any order of holding, moving, releasing, planning and time going on or back."""

    def __init__(self) -> None:
        super().__init__()
        self.table = SlotTable(["cpu"])  # "memory" arrives later, as a new column
        self.model = Model()
        self.now = 0
        self.serial = 0
        inventory = HostInventory.build(HostRecord(name=name, total=CAPACITY) for name in HOSTS)
        self.pool = PoolSnapshot(
            name="p",
            hosts=inventory,
            slots=self.table,
            now=at(0),
            pool_totals={"address:lan": ADDRESSES},
            policy=Placement.SPREAD,
            capabilities=frozenset({"ADVANCE_RESERVATION"}),
        )

    def _new_key(self) -> SlotKey:
        self.serial += 1
        return (f"w{self.serial % 3}", self.serial, "node")

    @rule(
        host=st.sampled_from([*HOSTS, POOL_ROW, "gone from the inventory"]),
        cpu=st.integers(0, 3),
        memory=st.integers(0, 3),
        start=st.integers(-4, 12),
        length=st.one_of(st.none(), st.integers(1, 10)),
    )
    def hold_past_all_planning(self, host: str, cpu: int, memory: int, start: int, length: int | None) -> None:
        """The table itself refuses nothing for want of room; only hosts planned on are kept within
        capacity.
        """
        if host in HOSTS:
            host = "gone from the inventory"
        start += self.now
        held = Held(host, {"cpu": cpu, "memory": memory}, start, None if length is None else start + length)
        key = self._new_key()
        self.model.slots[key] = held
        self.table.hold(key, host, held.amounts, at(start), None if held.end is None else at(held.end))

    @rule(
        count=st.integers(1, 4),
        cpu=st.integers(0, 3),
        memory=st.integers(0, 3),
        addresses=st.integers(0, 2),
        ahead=st.integers(0, 9),
        length=st.one_of(st.none(), st.integers(1, 9)),
        slack=st.integers(0, 6),
    )
    def plan_and_hold(
        self, count: int, cpu: int, memory: int, addresses: int, ahead: int, length: int | None, slack: int
    ) -> None:
        """What a plan says is held, all of it: on its hosts and of the pool."""
        wanted = SetRequest(count=count, amounts={"cpu": cpu, "memory": memory}, networks={"lan": addresses})
        window = Window(
            start=at(self.now + ahead),
            duration=None if length is None else length * MICROSECOND,
            open_ended=length is None,
            latest_start=at(self.now + ahead + slack),
        )
        pool = structs.replace(self.pool, now=at(self.now))
        answer = plan(PlacementRequest(sets=(wanted,)), {"p": pool}, window)
        if not isinstance(answer, Plan):
            return
        start = (answer.start - EPOCH) // MICROSECOND
        end = None if answer.end is None else (answer.end - EPOCH) // MICROSECOND
        assert self.now + ahead <= start <= self.now + ahead + slack
        on_host, of_pool = held_amounts(pool, wanted)
        slots: list[Slot] = []
        for host in answer.assignments[0].hosts:
            for where, amounts in ((host, on_host), (POOL_ROW, of_pool)):
                key = self._new_key()
                slots.append(Slot(key=key, host=where, amounts=amounts, start=answer.start, end=answer.end))
                self.model.slots[key] = Held(where, amounts, start, end)
        self.table.hold_all(slots)
        # A host may be overdrawn at this instant by one that is overdue; then it takes nothing that asks for the same.
        for host in set(answer.assignments[0].hosts):
            for resource in on_host:
                assert self.model.peak(host, resource, start, end, self.now) <= CAPACITY[resource]
        for resource in of_pool:
            assert self.model.peak(POOL_ROW, resource, start, end, self.now) <= ADDRESSES

    @precondition(lambda self: bool(self.model.slots))
    @rule(data=st.data())
    def release_restores_exactly(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.model.slots)))
        held = self.model.slots[key]
        before = self.table.peak(at(self.now), None, at(self.now)).copy()
        slot = self.table.get(key)
        assert slot is not None
        self.table.release(key)
        self.table.hold(key, held.host, held.amounts, slot.start, slot.end)
        assert (self.table.peak(at(self.now), None, at(self.now)) == before).all()
        self.table.release(key)
        del self.model.slots[key]

    @precondition(lambda self: bool(self.model.slots))
    @rule(data=st.data(), later=st.integers(1, 8))
    def replace_with_another_end(self, data: st.DataObject, later: int) -> None:
        """A lease is shortened or runs longer on a host that is not planned on."""
        key = data.draw(st.sampled_from(sorted(self.model.slots)))
        held = self.model.slots[key]
        if held.host in HOSTS or held.host == POOL_ROW:
            return
        held = replace(held, end=held.start + later, amounts={**held.amounts, "gpu": 1})
        self.model.slots[key] = held
        assert held.end is not None
        self.table.replace(Slot(key=key, host=held.host, amounts=held.amounts, start=at(held.start), end=at(held.end)))

    @rule(data=st.data())
    def a_batch_with_a_taken_key_changes_nothing(self, data: st.DataObject) -> None:
        if not self.model.slots:
            return
        taken = data.draw(st.sampled_from(sorted(self.model.slots)))
        before = len(self.table)
        batch = [
            Slot(key=key, host="a", amounts={"cpu": 1}, start=at(0), end=None) for key in (("new", 0, "node"), taken)
        ]
        try:
            self.table.hold_all(batch)
        except ValueError:
            assert len(self.table) == before
            assert ("new", 0, "node") not in self.table
        else:
            raise AssertionError("a taken key was held twice")

    @rule(step=st.integers(-3, 6))
    def time_goes_on_or_is_set_back(self, step: int) -> None:
        self.now = max(0, self.now + step)

    @rule(ahead=st.integers(0, 12), length=st.one_of(st.none(), st.integers(1, 12)))
    def peaks_agree(self, ahead: int, length: int | None) -> None:
        start = self.now + ahead
        end = None if length is None else start + length
        peak = self.table.peak(at(start), None if end is None else at(end), at(self.now))
        for row, host in enumerate(self.table.hosts):
            for column, resource in enumerate(self.table.resources):
                assert peak[column, row] == self.model.peak(host, resource, start, end, self.now), (
                    host,
                    resource,
                )

    @rule(ahead=st.lists(st.integers(1, 12), min_size=1, max_size=4))
    def what_has_begun_agrees_later_on(self, ahead: list[int]) -> None:
        now_us = (at(self.now) - datetime(1970, 1, 1, tzinfo=UTC)) // MICROSECOND
        begun = self.table.begun(now_us)
        alone = Model()
        alone.slots = {key: slot for key, slot in self.model.slots.items() if slot.start <= self.now}
        for step in ahead:
            held = begun.held(now_us + step)
            expected = [
                [alone.held(host, resource, self.now + step, self.now) for host in self.table.hosts]
                for resource in self.table.resources
            ]
            assert np.array_equal(held, np.array(expected).reshape(held.shape))

    @invariant()
    def the_same_slots(self) -> None:
        assert len(self.table) == len(self.model.slots)
        listed = {slot.key for host in self.table.hosts for slot in self.table.slots(host)}
        assert listed == set(self.model.slots)
        ends = {slot.end for slot in self.model.slots.values() if slot.end is not None and slot.end > self.now}
        assert self.table.ends(at(self.now)) == [at(end) for end in sorted(ends)]


TestSlotsAgainstModel = SlotsAgainstModel.TestCase
TestSlotsAgainstModel.settings = settings(max_examples=120, stateful_step_count=30, deadline=None)
