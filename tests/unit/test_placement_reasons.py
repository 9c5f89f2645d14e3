"""Why not: machine-readable reasons per host, bounded, with totals over all hosts and words for people."""

from __future__ import annotations

from broker.core.placement import HostState, Never, NotNow, Outcome, Placement, ReasonCode
from broker.core.slots import POOL_ROW
from tests.support.placement_cases import HOUR, NOW, ask, host, nodes, occupy, pool, reason, verdict


def test_a_host_too_small_and_a_host_too_full_read_differently() -> None:
    lab = pool(hosts=[host("one-node-1", memory=2048), host("one-node-2", memory=4096)])
    occupy(lab, "one-node-2", 3584, end=NOW + HOUR)
    answer = ask(nodes(memory=4096), at=lab)
    assert isinstance(answer, NotNow)
    small, full = verdict(answer, on="one-node-1"), verdict(answer, on="one-node-2")
    assert small.outcome is Outcome.NEVER
    why = reason(small, ReasonCode.INSUFFICIENT_RESOURCE)
    assert (why.resource, why.requested, why.available, why.resolvable) == ("memory", 4096, 2048, False)
    assert why.message == "memory: 4096 MiB asked, 2048 MiB on one-node-1, even when it is empty"
    assert full.outcome is Outcome.NOT_NOW
    why = reason(full, ReasonCode.INSUFFICIENT_RESOURCE)
    assert (why.requested, why.available, why.resolvable) == (4096, 512, True)
    assert why.message == "memory: 4096 MiB asked, 512 MiB free of 4096 MiB on one-node-2"
    total = reason(verdict(answer), ReasonCode.INSUFFICIENT_RESOURCE)
    assert (total.available, total.host_count, total.resolvable) == (2048, 2, True)


def test_overhead_is_named_where_it_makes_the_sum_odd() -> None:
    lab = pool(hosts=[host("a", memory=1024)], memory_overhead=64)
    why = reason(verdict(ask(nodes(memory=1024), at=lab), on="a"), ReasonCode.INSUFFICIENT_RESOURCE)
    assert why.message.startswith("memory: 1088 MiB asked (64 of it overhead a VM), 1024 MiB on a")


def test_only_the_nearest_hosts_are_listed_and_the_totals_cover_all() -> None:
    lab = pool(hosts=[host(f"h{number:03d}", memory=1000 + number % 100) for number in range(300)])
    answer = ask(nodes(memory=2000, name="worker"), at=lab)
    assert isinstance(answer, Never)
    listed = [v for v in answer.verdicts if v.host is not None]
    assert [v.host for v in listed[:5]] == ["h099", "h199", "h299", "h098", "h198"]
    assert len(listed) == 50
    total = reason(verdict(answer), ReasonCode.INSUFFICIENT_RESOURCE)
    assert (total.host_count, total.available, total.node_set) == (300, 1099, "worker")
    assert len([v for v in ask(nodes(memory=2000), at=lab, nearest_hosts=3).verdicts if v.host]) == 3


def test_hosts_out_of_order_and_rules_come_after_those_that_lack_room() -> None:
    lab = pool(
        hosts=[
            host("a", state=HostState.LOST),
            host("b", attributes={"arch": "arm64"}),
            host("c", memory=1000, attributes={"arch": "x86_64"}),
            host("d", state=HostState.CORDONED, attributes={"arch": "x86_64"}),
            host("e", state=HostState.DISABLED, attributes={"arch": "x86_64"}),
        ]
    )
    answer = ask(nodes(memory=2000, host_selector={"arch": ("x86_64",)}), at=lab)
    assert isinstance(answer, NotNow)
    assert answer.earliest is None
    assert [v.host for v in answer.verdicts] == [None, "c", "d", "e", "b", "a"]
    whole = verdict(answer)
    assert reason(whole, ReasonCode.SELECTOR).host_count == 2
    for code, name, resolvable in (
        (ReasonCode.HOST_CORDONED, "d", False),
        (ReasonCode.HOST_DISABLED, "e", True),
        (ReasonCode.HOST_LOST, "a", True),
    ):
        assert reason(whole, code).host_count == 1
        assert reason(verdict(answer, on=name), code).resolvable is resolvable
    assert verdict(answer, on="d").outcome is Outcome.NOT_NOW
    assert verdict(answer, on="a").outcome is Outcome.NEVER  # lost, and without the attribute
    assert reason(verdict(answer, on="b"), ReasonCode.SELECTOR).message == "arch x86_64 asked: not b"


def test_a_group_that_fits_in_part_says_how_many_and_where() -> None:
    lab = pool(hosts=[host("a"), host("b")])
    occupy(lab, "b", 3000, end=NOW + HOUR)
    answer = ask(nodes(3, memory=2048, name="worker"), at=lab)
    assert isinstance(answer, NotNow)
    group = reason(verdict(answer), ReasonCode.GROUP)
    assert (group.requested, group.available, group.resolvable, group.node_set) == (3, 2, True, "worker")
    assert verdict(answer).nodes_fit == 2
    assert (verdict(answer, on="a").outcome, verdict(answer, on="a").nodes_fit) == (Outcome.FITS, 2)
    assert verdict(answer, on="b").outcome is Outcome.NOT_NOW


def test_one_per_host_on_too_few_hosts_is_a_group_that_never_fits() -> None:
    answer = ask(nodes(3, placement=Placement.ONE_PER_HOST), at=pool())
    assert isinstance(answer, Never)
    assert reason(verdict(answer), ReasonCode.GROUP).available == 2


def test_reasons_name_the_set_they_are_about() -> None:
    lab = pool(hosts=[host("a", memory=4096, cpu=1000)])
    answer = ask(nodes(cpu=500, name="head"), nodes(cpu=2000, name="worker"), at=lab)
    assert isinstance(answer, Never)
    assert reason(verdict(answer), ReasonCode.INSUFFICIENT_RESOURCE).node_set == "worker"
    assert reason(verdict(answer), ReasonCode.INSUFFICIENT_RESOURCE).resource == "cpu"


def test_addresses_are_spoken_of_as_a_network() -> None:
    lab = pool(pool_totals={"address:lan": 4})
    lab.slots.hold(("other", 0, "pool"), POOL_ROW, {"address:lan": 3}, NOW, NOW + HOUR)
    answer = ask(nodes(2, networks={"lan": 1}), at=lab)
    assert isinstance(answer, NotNow)
    why = reason(verdict(answer), ReasonCode.INSUFFICIENT_RESOURCE)
    assert why.message == "network lan: 2 addresses asked, pool lab has 1 address free of 4"
    assert (why.host_count, why.resolvable) == (0, True)
