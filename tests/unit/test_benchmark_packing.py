"""What the packing benchmark compares with: optima of pools small enough to see them, and refusals that are wrong."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

import pytest

from broker.core.placement import Outcome, Placement, PlacementRequest, SetRequest


@pytest.fixture
def packing() -> ModuleType:
    pytest.importorskip("ortools", reason="OR-Tools is not installed")
    return import_module("benchmarks.packing")


def nodes(memory: int, count: int = 1, placement: Placement | None = None) -> PlacementRequest:
    amounts = {"cpu": 1, "memory": memory, "disk": 1}
    return PlacementRequest(sets=(SetRequest(count=count, placement=placement, amounts=amounts),))


def hosts(*memory: int) -> tuple[tuple[int, ...], ...]:
    return tuple((100, amount, 100) for amount in memory)


def test_a_group_that_adds_up_but_fits_no_hosts_is_proved_not_to_fit(packing: ModuleType) -> None:
    assert packing.fits(hosts(3, 3, 3, 3), [nodes(2, count=4)]).left == tuple((99, 1, 99) for _ in range(4))
    assert packing.fits(hosts(3, 3, 3, 3), [nodes(2, count=5)]) == packing.Fit(None, proved=True)


def test_one_per_host_holds_within_a_set_only(packing: ModuleType) -> None:
    apart = nodes(1, count=2, placement=Placement.ONE_PER_HOST)
    assert packing.fits(hosts(9), [apart]) == packing.Fit(None, proved=True)
    assert packing.fits(hosts(9, 9), [apart, apart]).left == tuple((98, 7, 98) for _ in range(2))


@pytest.mark.parametrize(
    "later",
    [(nodes(5), nodes(7)), (nodes(6, count=2, placement=Placement.ONE_PER_HOST),)],
    ids=["the sixes together", "the sixes apart"],
)
def test_first_come_moves_what_stands(packing: ModuleType, later: tuple[PlacementRequest, ...]) -> None:
    """Wherever the first two were put, one of the two sequels wants them moved; then there is room for nothing."""
    instance = packing.Instance(hosts(12, 12), (nodes(6), nodes(6), *later, nodes(1)))
    taken = (True, True, *(True for _ in later), False)
    assert packing.first_come(instance) == packing.Optimum(taken, proved=True)


def test_hindsight_passes_over_what_is_in_the_way(packing: ModuleType) -> None:
    instance = packing.Instance(hosts(10), (nodes(7), nodes(4), nodes(5)))
    assert packing.first_come(instance).taken == (True, False, False)
    known = (True, False, False)
    assert packing.hindsight(instance, [1, 1, 1], known) == packing.Optimum((False, True, True), proved=True)
    assert packing.hindsight(instance, [100, 1, 1], known) == packing.Optimum(known, proved=True)


def test_a_refusal_is_right_only_if_it_is_proved(packing: ModuleType) -> None:
    empty, free = hosts(8, 8), hosts(3, 2)
    for request, right in (
        (nodes(2), Outcome.FITS),
        (nodes(2, count=2), Outcome.FITS),
        (nodes(3, count=2), Outcome.NOT_NOW),
        (nodes(5, count=2), Outcome.NOT_NOW),
        (nodes(5, count=3), Outcome.NEVER),
    ):
        for said in (Outcome.NOT_NOW, Outcome.NEVER):
            assert packing.is_right(said, empty, free, request) == (said is right)


def test_what_is_undecided_is_not_right(packing: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing.Model, "solve", lambda model: packing.cp_model.UNKNOWN)
    for said in (Outcome.NOT_NOW, Outcome.NEVER):
        assert not packing.is_right(said, hosts(1), hosts(1), nodes(2))


def test_amount_is_the_share_of_the_dominant_resource(packing: ModuleType) -> None:
    assert packing.amount(hosts(10, 30), nodes(4, count=2)) == pytest.approx(0.2)
    assert packing.amount(hosts(1000), nodes(4, count=2)) == pytest.approx(0.02)  # cpu, and disk


def test_we_answer_in_turn_beside_what_stands(packing: ModuleType) -> None:
    instance = packing.Instance(hosts(4, 4), (nodes(3, count=2), nodes(9), nodes(2), nodes(1, count=2)))
    answers = packing.answer_all(instance)
    assert [answer.outcome for answer in answers] == [Outcome.FITS, Outcome.NEVER, Outcome.NOT_NOW, Outcome.FITS]
    assert [answer.free for answer in answers[:2]] == [hosts(4, 4), ((99, 1, 99), (99, 1, 99))]


def test_instances_are_drawn_alike_and_ask_for_what_they_say(packing: ModuleType) -> None:
    loads = []
    for seed in range(30):
        instance = packing.draw(seed)
        assert instance == packing.draw(seed)
        assert 3 <= len(instance.hosts) <= 12
        assert 10 <= len(instance.requests) <= 40
        counts = [sum(wanted.count for wanted in request.sets) for request in instance.requests]
        assert set(counts) <= {1, 2, 3, 4}
        asked = [
            sum(wanted.count * wanted.amounts[name] for request in instance.requests for wanted in request.sets)
            for name in packing.RESOURCES
        ]
        have = [sum(amounts) for amounts in zip(*instance.hosts, strict=True)]
        loads.append(max(most / total for most, total in zip(asked, have, strict=True)))
    assert 0.75 < min(loads) < 1.0  # amounts are rounded
    assert 1.4 < max(loads) < 1.7
