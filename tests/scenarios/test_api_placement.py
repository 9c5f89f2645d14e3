"""Where a request goes, or why nowhere: what CheckPlacement says, and what CreateWorkspace then does."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from workspacebroker.v1 import pool_service_pb2 as pool_api
from workspacebroker.v1 import resources_pb2 as pb

from backends.base import HostState
from broker.core.clock import ManualClock
from tests.support.api import (
    at,
    by_host,
    by_pool,
    checked,
    codes_of,
    created,
    ended,
    footprint,
    held,
    hosts,
    lasting,
    outcome_of,
    pool,
    pool_of,
    refused,
    site,
    state_of,
)
from tests.support.broker import Running, running, small

START = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
SMALL_HOSTS = site(pool("lab", hosts=4, memory=3072))


def places(workspace: pb.Workspace) -> list[str]:
    """The host of each node, by its own name."""
    return [node.host.rpartition("/")[2] for node in workspace.nodes]


def pools_of(workspace: pb.Workspace) -> list[str]:
    return [node.pool for node in workspace.nodes]


def sets(*node_sets: pb.NodeSet, **fields: Any) -> pb.Workspace:
    return pb.Workspace(node_sets=node_sets, **fields)


def some(name: str, count: int = 1, *, cpu: int = 1000, memory: int = 1024, **fields: Any) -> pb.NodeSet:
    return pb.NodeSet(name=name, count=count, amounts=pb.Quantities(amounts={"cpu": cpu, "memory": memory}), **fields)


def later(workspace: pb.Workspace, start: datetime, **length: float) -> pb.Workspace:
    """The same, as a reservation."""
    workspace.terms.start_time.CopyFrom(at(start))
    workspace.terms.duration.CopyFrom(lasting(**length))
    return workspace


async def both(broker: Running, wish: pb.Workspace) -> tuple[str, str]:
    """What a check says, and what becomes of the same create, undone again."""
    said = outcome_of(await checked(broker, wish))
    try:
        workspace = await created(broker, wish)
    except grpc.aio.AioRpcError:
        refusal = await refused(created(broker, wish))
        return said, {"NO_CAPACITY": "NOT_NOW", "NEVER_FITS": "NEVER"}[refusal.reason]
    await ended(broker, workspace.name)
    return said, "FITS"


async def drain(broker: Running, name: str, draining: bool = True) -> None:
    await broker.pools.UpdatePool(
        pool_api.UpdatePoolRequest(
            pool=pb.Pool(name=f"pools/{name}", draining=draining), update_mask={"paths": ["draining"]}
        )
    )


async def cordon(broker: Running, name: str, cordoned: bool = True) -> None:
    await broker.pools.UpdateHost(
        pool_api.UpdateHostRequest(
            host=pb.Host(name=f"pools/lab/hosts/{name}", cordoned=cordoned), update_mask={"paths": ["cordoned"]}
        )
    )


# Check and create


async def test_a_check_holds_nothing_and_says_what_create_does(tmp_path: Path) -> None:
    async with running(tmp_path, SMALL_HOSTS) as broker:
        before = await footprint(broker)
        for wish, expected in (
            (small(memory=2048, count=4), "FITS"),
            (small(memory=2048, count=5), "NEVER"),  # 10 of 12 GiB, and no host takes two
            (small(memory=3072, count=4), "FITS"),
            (small(memory=3073), "NEVER"),
            (small(cpu=8001), "NEVER"),
            (small(memory=1024, count=12), "FITS"),
            (small(memory=1024, count=13), "NEVER"),
        ):
            assert outcome_of(await checked(broker, wish)) == expected
            assert await footprint(broker) == before
            assert await both(broker, wish) == (expected, expected)
            before = await footprint(broker)
        # The same, with a host taken.
        await broker.until((await broker.create(memory=3072)).name, "RUNNING")
        for wish, expected in (
            (small(memory=2048, count=3), "FITS"),
            (small(memory=2048, count=4), "NOT_NOW"),
            (small(memory=2048, count=5), "NEVER"),
            (small(memory=1024, count=10), "NOT_NOW"),
        ):
            assert await both(broker, wish) == (expected, expected)


async def test_five_on_four_is_never_though_the_sum_would_do(tmp_path: Path) -> None:
    async with running(tmp_path, SMALL_HOSTS) as broker:
        answer = await checked(broker, small(memory=2048, count=5))
        verdict = by_pool(answer.verdicts)["lab"]
        (reason,) = verdict.reasons
        assert (verdict.nodes_fit, reason.requested, reason.available) == (4, 5, 4)
        assert codes_of(verdict) == {"GROUP"}
        assert not reason.resolvable
        assert not verdict.HasField("earliest_start_time")
        total = (await pool_of(broker)).total.amounts
        assert total["memory"] == 4 * 3072 > 5 * 2048


async def test_not_now_names_the_instant_and_create_then_succeeds(tmp_path: Path) -> None:
    async with running(tmp_path, SMALL_HOSTS, clock=ManualClock(START)) as broker:
        ends = []
        for hours in (1, 2, 3, 4):
            wish = small(memory=3072)
            wish.terms.duration.CopyFrom(lasting(hours=hours))
            workspace = await broker.until((await created(broker, wish)).name, "RUNNING")
            ends.append(workspace.end_time)
        answer = await checked(broker, small(memory=2048, count=2))
        verdict = by_pool(answer.verdicts)["lab"]
        assert (outcome_of(answer), outcome_of(verdict)) == ("NOT_NOW", "NOT_NOW")
        assert verdict.earliest_start_time == ends[1]  # two hosts are free when the second lease ends
        wish = small(memory=2048, count=2)
        wish.terms.start_time.CopyFrom(verdict.earliest_start_time)
        assert state_of(await created(broker, wish)) == "RESERVED"


async def test_verdicts_of_hosts_say_what_each_lacks(tmp_path: Path) -> None:
    async with running(tmp_path, SMALL_HOSTS) as broker:
        await broker.until((await broker.create(memory=2048, cpu=7500)).name, "RUNNING")
        await cordon(broker, "lab-host-2")
        answer = await checked(broker, small(memory=2048, cpu=1000, count=4), include_hosts=True)
        verdict = by_pool(answer.verdicts)["lab"]
        assert (outcome_of(verdict), verdict.nodes_fit) == ("NOT_NOW", 2)
        assert codes_of(verdict) >= {"INSUFFICIENT_RESOURCE", "HOST_CORDONED"}
        found = by_host(answer.verdicts)
        assert {name: outcome_of(each) for name, each in found.items()} == {
            "lab-host-1": "NOT_NOW",
            "lab-host-2": "NOT_NOW",
            "lab-host-3": "FITS",
            "lab-host-4": "FITS",
        }
        lacks = {reason.resource: reason for reason in found["lab-host-1"].reasons}
        assert (lacks["memory"].requested, lacks["memory"].available) == (2048, 1024)
        assert (lacks["cpu"].requested, lacks["cpu"].available) == (1000, 500)
        assert lacks["memory"].resolvable
        assert codes_of(found["lab-host-2"]) == {"HOST_CORDONED"}


async def test_totals_speak_of_all_hosts_and_include_hosts_lists_them(tmp_path: Path) -> None:
    async with running(tmp_path, site(pool("lab", hosts=120, memory=1024))) as broker:
        few = await checked(broker, small(memory=2048))
        every = await checked(broker, small(memory=2048), include_hosts=True)
        for answer in (few, every):
            (reason,) = by_pool(answer.verdicts)["lab"].reasons
            assert (reason.resource, reason.available, reason.host_count) == ("memory", 1024, 120)
            assert reason.message
        assert len(by_host(few.verdicts)) == 50
        assert len(by_host(every.verdicts)) == 120


async def test_a_check_that_fits_names_the_pools_and_generations_it_judged(tmp_path: Path) -> None:
    async with running(tmp_path, site(pool("a"), pool("b", memory=1024))) as broker:
        answer = await checked(broker, small(memory=2048))
        assert {name: outcome_of(each) for name, each in by_pool(answer.verdicts).items()} == {
            "a": "FITS",
            "b": "NEVER",
        }
        assert dict(answer.pool_generations) == {name: (await pool_of(broker, name)).generation for name in ("a", "b")}


# Groups


async def test_all_sets_or_none(tmp_path: Path) -> None:
    async with running(tmp_path, SMALL_HOSTS) as broker:
        before = await footprint(broker)
        refusal = await refused(created(broker, sets(some("head", memory=3072), some("worker", 4, memory=2048))))
        assert refusal.reason == "NEVER_FITS"
        assert await footprint(broker) == before
        workspace = await created(broker, sets(some("head", memory=3072), some("worker", 3, memory=2048)))
        assert [(node.index, node.node_set) for node in workspace.nodes] == [
            (0, "head"),
            (1, "worker"),
            (2, "worker"),
            (3, "worker"),
        ]
        assert len(set(places(workspace))) == 4
        assert len(await held(broker)) == 4


async def test_a_large_set_does_not_take_the_only_place_of_a_small_one(tmp_path: Path) -> None:
    """Whatever the order in which sets are named."""
    lab = '[pools.lab]\nbackend = "simulator"\n' + "".join(
        f'[[pools.lab.hosts]]\nname = "h{number}"\ncpu = 8000\nmemory = {memory}\n'
        for number, memory in enumerate((4096, 2048, 2048))
    )
    async with running(tmp_path, site(lab)) as broker:
        for order in ((0, 1), (1, 0)):
            wish = (some("small", 2, memory=2048), some("big", memory=4096))
            workspace = await created(broker, sets(*(wish[place] for place in order)))
            big = next(node for node in workspace.nodes if node.node_set == "big")
            assert big.host.endswith("/h0")
            await ended(broker, workspace.name)


async def test_as_many_as_fit_down_to_min_count(tmp_path: Path) -> None:
    async with running(tmp_path, SMALL_HOSTS) as broker:
        workspace = await broker.create(memory=2048, count=9, min_count=2)
        assert len(workspace.nodes) == 4
        assert workspace.node_sets[0].count == 9  # as asked for
        await broker.until(workspace.name, "RUNNING")
        refusal = await refused(broker.create(memory=2048, count=9, min_count=1))
        assert refusal.reason == "NO_CAPACITY"
        assert (await refused(broker.create(memory=2048, count=9, min_count=5))).reason == "NEVER_FITS"
        await ended(broker, workspace.name)
        assert len((await broker.create(memory=2048, count=3, min_count=1)).nodes) == 3


@pytest.mark.parametrize(
    ("placement", "expected"),
    [
        ("PLACEMENT_PACK", [4]),
        ("PLACEMENT_SPREAD", [1, 1, 1, 1]),
        ("PLACEMENT_ONE_PER_HOST", [1, 1, 1, 1]),
        ("PLACEMENT_UNSPECIFIED", [4]),
    ],
)
async def test_how_nodes_lie(tmp_path: Path, placement: str, expected: list[int]) -> None:
    async with running(tmp_path) as broker:
        workspace = await broker.create(count=4, placement=placement)
        assert sorted(Counter(places(workspace)).values()) == expected


async def test_spread_may_share_a_host_and_one_per_host_may_not(tmp_path: Path) -> None:
    async with running(tmp_path) as broker:
        spread = await broker.create(count=6, placement="PLACEMENT_SPREAD")
        assert sorted(Counter(places(spread)).values()) == [1, 1, 2, 2]
        refusal = await refused(broker.create(count=5, placement="PLACEMENT_ONE_PER_HOST"))
        assert refusal.reason == "NEVER_FITS"
        assert by_pool(refusal.verdicts)["lab"].nodes_fit == 4


async def test_a_pools_own_placement_goes_where_none_is_asked(tmp_path: Path) -> None:
    async with running(tmp_path, site(pool("lab", 'placement = "spread"'))) as broker:
        assert len(set(places(await broker.create(count=4)))) == 4


async def test_selectors_take_any_of_the_values_and_all_of_the_keys(tmp_path: Path) -> None:
    lab = '[pools.lab]\nbackend = "simulator"\n' + "".join(
        f'[[pools.lab.hosts]]\nname = "{name}"\ncpu = 8000\nmemory = 8192\n'
        f'attributes = {{ hypervisor = "{hypervisor}", arch = "{arch}" }}\n'
        for name, hypervisor, arch in (("a", "xen", "x86_64"), ("b", "kvm", "x86_64"), ("c", "kvm", "arm64"))
    )

    def select(**wanted: list[str]) -> dict[str, pb.StringList]:
        return {key: pb.StringList(values=values) for key, values in wanted.items()}

    async with running(tmp_path, site(lab)) as broker:
        for wanted, expected in (
            (select(hypervisor=["xen"]), {"a"}),
            (select(hypervisor=["kvm"], arch=["x86_64"]), {"b"}),
            (select(arch=["arm64", "riscv"]), {"c"}),
        ):
            workspace = await broker.create(host_selector=wanted, count=2)
            assert set(places(workspace)) == expected
        both_kinds = await broker.create(
            host_selector=select(hypervisor=["xen", "kvm"]), count=3, placement="PLACEMENT_ONE_PER_HOST"
        )
        assert set(places(both_kinds)) == {"a", "b", "c"}
        refusal = await refused(broker.create(host_selector=select(hypervisor=["vmware"])))
        assert refusal.reason == "NEVER_FITS"
        assert codes_of(by_pool(refusal.verdicts)["lab"]) == {"SELECTOR"}
        assert by_pool(refusal.verdicts)["lab"].reasons[0].host_count == 3


# Sizes


async def test_instance_types_and_amounts_that_override_them(tmp_path: Path) -> None:
    types = '[instance_types."m1.small"]\ncpu = 1000\nmemory = 2048\ndisk = 100\n'
    async with running(tmp_path, site(pool("lab", more="disk = 500"), rest=types)) as broker:
        wish = pb.Workspace(node_sets=[pb.NodeSet(count=1, instance_type="m1.small")])
        await created(broker, wish)
        wish.node_sets[0].amounts.amounts["memory"] = 512
        workspace = await created(broker, wish)
        assert dict(workspace.node_sets[0].amounts.amounts) == {"memory": 512}  # as asked for
        slots = (await hosts(broker))["lab-host-1"].slots
        assert sorted(dict(slot.amounts.amounts)["memory"] for slot in slots) == [512, 2048]
        assert {(slot.amounts.amounts["cpu"], slot.amounts.amounts["disk"]) for slot in slots} == {(1000, 100)}
        assert [each.name for each in (await pool_of(broker)).instance_types] == ["m1.small"]


async def test_overhead_overcommit_and_reserve_are_each_pools_own(tmp_path: Path) -> None:
    configuration = site(
        pool("plain", hosts=1, cpu=4000, memory=4096),
        pool("heavy", "memory_overhead = 1024", hosts=1, cpu=4000, memory=4096),
        pool("dense", "enforce_capacity = false\novercommit = { cpu = 2.0 }", hosts=1, cpu=4000, memory=4096),
        pool("kept", "reserve = { memory = 1024, cpu = 1000 }", hosts=1, cpu=4000, memory=4096),
    )
    async with running(tmp_path, configuration) as broker:
        totals = {
            name: dict((await hosts(broker, name))[f"{name}-host-1"].total.amounts)
            for name in ("plain", "heavy", "dense", "kept")
        }
        assert (totals["dense"]["cpu"], totals["kept"]["memory"], totals["kept"]["cpu"]) == (8000, 3072, 3000)
        most = {}
        for name in totals:
            most[name] = (
                len((await broker.create(pool=name, cpu=1, memory=1024, count=9, min_count=1)).nodes),
                outcome_of(await checked(broker, small(pool=name, cpu=4001, memory=64))),
            )
        assert most == {"plain": (4, "NEVER"), "heavy": (2, "NEVER"), "dense": (4, "NOT_NOW"), "kept": (3, "NEVER")}
        slot = (await hosts(broker, "heavy"))["heavy-host-1"].slots[0]
        assert slot.amounts.amounts["memory"] == 2048  # overhead included
        reason = by_pool((await checked(broker, small(pool="heavy", memory=3073))).verdicts)["heavy"].reasons[0]
        assert (reason.resource, reason.requested) == ("memory", 4097)


async def test_extra_resources_and_disks_are_counted(tmp_path: Path) -> None:
    lab = pool("lab", hosts=2, more='disk = 1000\nextra = { "example.com/gpu" = 2 }')
    async with running(tmp_path, site(lab)) as broker:
        wish = small(count=2)
        wish.node_sets[0].amounts.amounts["example.com/gpu"] = 2
        workspace = await created(broker, wish)
        assert len(set(places(workspace))) == 2
        wish.node_sets[0].count = 1
        assert (await refused(created(broker, wish))).reason == "NO_CAPACITY"
        wish.node_sets[0].amounts.amounts["example.com/gpu"] = 3
        assert (await refused(created(broker, wish))).reason == "NEVER_FITS"
        wish.node_sets[0].amounts.amounts["example.com/fpga"] = 1
        refusal = await refused(created(broker, wish))
        lacks = {reason.resource for reason in by_pool(refusal.verdicts)["lab"].reasons}
        assert lacks == {"example.com/gpu", "example.com/fpga"}
        blank = small(disk=600)
        blank.node_sets[0].disks.add(size_mib=401)
        assert (await refused(created(broker, blank))).reason == "NEVER_FITS"
        blank.node_sets[0].disks[0].size_mib = 400
        await created(broker, blank)


async def test_a_shared_disk_and_the_addresses_of_a_network_belong_to_the_pool(tmp_path: Path) -> None:
    settings = 'shared_disk = 1000\nnetworks = [{ name = "net", addresses = 3 }, { name = "any" }]'
    async with running(tmp_path, site(pool("lab", settings))) as broker:
        wish = small(count=2)
        wish.node_sets[0].nics.add(network="net")
        workspace = await broker.until((await created(broker, wish)).name, "RUNNING")
        assert all(node.nics[0].addresses for node in workspace.nodes)

        async def networks() -> dict[str, tuple[int, int]]:
            answer = await broker.pools.ListNetworks(pool_api.ListNetworksRequest(parent="pools/lab"))
            return {each.name: (each.free_addresses, each.total_addresses) for each in answer.networks}

        assert (await networks())["net"] == (1, 3)
        refusal = await refused(created(broker, wish))
        assert refusal.reason == "NO_CAPACITY"
        reason = by_pool(refusal.verdicts)["lab"].reasons[0]
        assert (reason.resource, reason.requested, reason.available) == ("address:net", 2, 1)
        wish.node_sets[0].count = 4
        assert (await refused(created(broker, wish))).reason == "NEVER_FITS"
        free = small(count=4)
        free.node_sets[0].nics.add(network="any")
        await created(broker, free)
        await broker.verb("Suspend", workspace.name, release_capacity=True)
        await broker.until(workspace.name, "SUSPENDED")
        assert (await networks())["net"] == (1, 3)  # released, and its addresses are kept
        await broker.verb("Resume", workspace.name)
        await broker.until(workspace.name, "RUNNING")
        await ended(broker, workspace.name)
        assert (await networks())["net"] == (3, 3)
        assert outcome_of(await checked(broker, small(disk=251, count=4))) == "NEVER"
        assert outcome_of(await checked(broker, small(disk=250, count=4))) == "FITS"


# Routing


async def test_a_request_that_names_a_pool_goes_there_or_nowhere(tmp_path: Path) -> None:
    async with running(tmp_path, site(pool("a", hosts=1, memory=1024), pool("b", "preference = 9"))) as broker:
        assert pools_of(await broker.create(pool="a")) == ["a"]
        refusal = await refused(broker.create(pool="a"))
        assert refusal.reason == "NO_CAPACITY"
        assert set(by_pool(refusal.verdicts)) == {"a"}
        assert pools_of(await broker.create()) == ["b"]


async def test_the_full_count_beats_preference(tmp_path: Path) -> None:
    configuration = site(pool("a", "preference = 9", hosts=2, memory=1024), pool("b", hosts=3, memory=1024))
    async with running(tmp_path, configuration) as broker:
        assert pools_of(await broker.create(count=3, min_count=1)) == ["b"] * 3
        assert pools_of(await broker.create(count=2, min_count=1)) == ["a"] * 2


async def test_preference_beats_room(tmp_path: Path) -> None:
    async with running(tmp_path, site(pool("a"), pool("b", "preference = 1", hosts=1, memory=2048))) as broker:
        assert pools_of(await broker.create(memory=2000)) == ["b"]


async def test_room_on_the_tightest_resource_after_placement_beats_the_name(tmp_path: Path) -> None:
    """b has more memory, and c more cpu: what counts is what is scarcest once the node lies there."""
    configuration = site(
        pool("a", hosts=1, cpu=2000, memory=4096),
        pool("b", hosts=1, cpu=2000, memory=65_536),
        pool("c", hosts=1, cpu=8000, memory=8192),
    )
    async with running(tmp_path, configuration) as broker:
        assert pools_of(await broker.create(cpu=1500, memory=2048)) == ["c"]


async def test_the_name_decides_where_all_else_is_equal(tmp_path: Path) -> None:
    async with running(tmp_path, site(pool("b"), pool("a"))) as broker:
        assert pools_of(await broker.create()) == ["a"]


async def test_sets_that_name_no_pool_stay_together(tmp_path: Path) -> None:
    configuration = site(pool("a", hosts=1, memory=2048), pool("b", hosts=1, memory=2048))
    async with running(tmp_path, configuration) as broker:
        refusal = await refused(created(broker, sets(some("x", memory=2048), some("y", memory=2048))))
        assert refusal.reason == "NEVER_FITS"
        assert set(by_pool(refusal.verdicts)) == {"a", "b"}
        workspace = await created(broker, sets(some("x", memory=1024), some("y", memory=1024)))
        assert len(set(pools_of(workspace))) == 1


async def test_sets_in_different_pools_are_one_lease(tmp_path: Path) -> None:
    configuration = site(
        pool("xen", 'default_duration = "2h"', hosts=1, memory=2048),
        pool("one", 'default_duration = "3h"', hosts=2, memory=2048),
    )
    async with running(tmp_path, configuration) as broker:
        wish = sets(some("head", memory=2048, pool="xen"), some("worker", 2, memory=2048, pool="one"))
        workspace = await broker.until((await created(broker, wish)).name, "RUNNING")
        assert pools_of(workspace) == ["xen", "one", "one"]
        assert workspace.end_time.ToDatetime() - workspace.planned_start_time.ToDatetime() == timedelta(hours=2)
        assert len(broker.backend("xen").vms) == 1
        assert len(broker.backend("one").vms) == 2
        before = (await held(broker, "xen"), await held(broker, "one"))
        refusal = await refused(
            created(broker, sets(some("head", memory=64, pool="xen"), some("worker", memory=64, pool="one")))
        )
        assert refusal.reason == "NO_CAPACITY"
        assert (await held(broker, "xen"), await held(broker, "one")) == before
        await ended(broker, workspace.name)
        assert (await held(broker, "xen"), await held(broker, "one")) == ([], [])


async def test_a_set_with_a_pool_and_one_without(tmp_path: Path) -> None:
    """The one without goes to the workspace's pool, or to the best."""
    async with running(tmp_path, site(pool("a"), pool("b", "preference = 1"))) as broker:
        free = await created(broker, sets(some("x", pool="a"), some("y")))
        assert pools_of(free) == ["a", "b"]
        bound = await created(broker, sets(some("x", pool="b"), some("y"), pool="a"))
        assert pools_of(bound) == ["b", "a"]


PECULIAR = site(
    pool("best", "preference = 9"),
    pool("second", "preference = 5"),
    pool("third"),
)


async def test_pools_that_drain_are_skipped_and_said_to(tmp_path: Path) -> None:
    async with running(tmp_path, PECULIAR) as broker:
        await drain(broker, "best")
        assert pools_of(await broker.create()) == ["second"]
        await drain(broker, "second")
        await drain(broker, "third")
        refusal = await refused(broker.create())
        assert refusal.reason == "NO_CAPACITY"
        verdicts = by_pool(refusal.verdicts)
        assert {name: codes_of(each) for name, each in verdicts.items()} == {
            name: {"POOL_DRAINING"} for name in ("best", "second", "third")
        }
        await drain(broker, "third", False)
        assert pools_of(await broker.create()) == ["third"]


async def test_pools_that_do_not_answer_are_skipped(tmp_path: Path) -> None:
    quick = 'refresh_interval = "20ms"\nbreaker = { failures = 1, probe_interval = "20ms" }'
    configuration = site(pool("best", f"preference = 9\n{quick}"), pool("second"))
    async with running(tmp_path, configuration) as broker:
        broker.backend("best").by_hand.go_silent()
        await broker.eventually(lambda: pool_of(broker, "best"), lambda seen: seen.state == pb.Pool.STATE_UNREACHABLE)
        assert pools_of(await broker.create()) == ["second"]
        answer = await checked(broker, small(memory=2**40))
        verdicts = by_pool(answer.verdicts)
        assert (outcome_of(answer), outcome_of(verdicts["second"])) == ("NOT_NOW", "NEVER")
        assert codes_of(verdicts["best"]) == {"POOL_UNREACHABLE"}
        assert (await refused(broker.create(memory=2**40))).reason == "NO_CAPACITY"
        broker.backend("best").by_hand.come_back()
        await broker.eventually(lambda: pool_of(broker, "best"), lambda seen: seen.state == pb.Pool.STATE_ACTIVE)
        assert pools_of(await broker.create()) == ["best"]


async def test_pools_that_lack_something_are_skipped_with_a_verdict_each(tmp_path: Path) -> None:
    configuration = site(
        pool("bare", 'preference = 9\ncapabilities = ["STOP"]\nimages = ["alpine"]\nnetworks = [{ name = "inner" }]'),
        pool(
            "full",
            'images = ["alpine", "debian"]\nnetworks = [{ name = "inner" }, { name = "outer" }]\n'
            'parameters = [{ key = "sim:speed", kind = "INT", description = "for tests" }]',
        ),
    )
    speed = {"sim:speed": pb.ParameterValue(int_value=1)}
    outer = [pb.Nic(network="outer")]
    soon = pb.LeaseTerms(start_time=at(datetime.now(UTC) + timedelta(hours=1)))
    async with running(tmp_path, configuration) as broker:
        assert pools_of(await broker.create(image="alpine")) == ["bare"]
        for wish, code in (
            (small(image="debian"), "IMAGE_MISSING"),
            (small(nics=outer), "NETWORK_MISSING"),
            (small(parameters=speed), "PARAMETER"),
            (small(user_data=b"#!/bin/sh"), "CAPABILITY"),
            (small(ssh_public_keys=["ssh-ed25519 AAAA"]), "CAPABILITY"),
            (small(initial_state=pb.Workspace.STATE_PAUSED), "CAPABILITY"),
            (small(terms=soon), "CAPABILITY"),
            (small(nics=[pb.Nic(network="inner", addresses=["10.0.0.9"])]), "CAPABILITY"),
        ):
            assert pools_of(await created(broker, wish)) == ["full"], code
            too_many = pb.Workspace()
            too_many.CopyFrom(wish)
            too_many.node_sets[0].amounts.amounts["memory"] = 2**40
            refusal = await refused(created(broker, too_many))
            verdicts = by_pool(refusal.verdicts)
            assert set(verdicts) == {"bare", "full"}
            assert codes_of(verdicts["bare"]) == {code}
            assert outcome_of(verdicts["bare"]) == "NEVER"
            assert codes_of(verdicts["full"]) == {"INSUFFICIENT_RESOURCE"}
        # An optional parameter does not keep a pool out, and the answer says that it was not heeded.
        free = await created(broker, small(parameters=speed, optional_parameters=["sim:speed"]))
        assert (pools_of(free), list(free.ignored_parameters)) == (["bare"], ["sim:speed"])
        heeded = await created(broker, small(parameters=speed))
        assert list(heeded.ignored_parameters) == []


async def test_a_named_pool_that_lacks_an_image_makes_the_image_a_bad_field(tmp_path: Path) -> None:
    configuration = site(pool("a", 'images = ["x"]'), pool("b", 'images = ["x", "y"]'))
    async with running(tmp_path, configuration) as broker:
        assert pools_of(await broker.create(image="y")) == ["b"]
        refusal = await refused(broker.create(image="y", pool="a"))
        assert refusal.violations == {"workspace.node_sets[0].image": "UNKNOWN_IMAGE"}


async def test_a_lease_too_long_for_a_pool_goes_to_another(tmp_path: Path) -> None:
    configuration = site(pool("short", 'preference = 9\nmax_duration = "1h"'), pool("long", 'max_duration = "none"'))
    async with running(tmp_path, configuration) as broker:
        wish = small()
        wish.terms.duration.CopyFrom(lasting(hours=2))
        assert pools_of(await created(broker, wish)) == ["long"]
        wish.terms.ClearField("duration")
        wish.terms.open_ended = True
        workspace = await created(broker, wish)
        assert pools_of(workspace) == ["long"]
        assert not workspace.HasField("end_time")
        wish.pool = "short"
        refusal = await refused(created(broker, wish))
        assert refusal.reason == "NEVER_FITS"
        assert codes_of(by_pool(refusal.verdicts)["short"]) == {"LEASE_TOO_LONG"}


async def test_a_tenant_goes_only_where_it_may(tmp_path: Path) -> None:
    rest = '[tenants.default]\nallowed_pools = ["b"]\n[tenants.other]'
    async with running(tmp_path, site(pool("a", "preference = 9"), pool("b"), rest=rest)) as broker:
        assert pools_of(await broker.create()) == ["b"]
        assert pools_of(await created(broker, small(), parent="tenants/other")) == ["a"]
        refusal = await refused(broker.create(pool="a"))
        assert refusal.reason == "NEVER_FITS"
        assert codes_of(by_pool(refusal.verdicts)["a"]) == {"POOL_FORBIDDEN"}


# Reservations


async def test_a_reservation_is_kept_and_starts_on_time(tmp_path: Path) -> None:
    clock = ManualClock(START)
    async with running(tmp_path, site(pool("lab", hosts=1, memory=4096)), clock=clock) as broker:
        start = START + timedelta(hours=2)
        reserved = await created(broker, later(small(memory=4096), start, hours=1))
        assert state_of(reserved) == "RESERVED"
        assert reserved.planned_start_time.ToDatetime(UTC) == start
        assert reserved.end_time.ToDatetime(UTC) == start + timedelta(hours=1)
        assert broker.backend().vms == []
        shown = await pool_of(broker)
        assert (dict(shown.allocated.amounts), shown.reserved.amounts["memory"]) == ({}, 4096)
        host = (await hosts(broker))["lab-host-1"]
        assert host.free.amounts["memory"] == 4096  # now
        assert host.slots[0].start_time.ToDatetime(UTC) == start
        # What ends as it begins is no clash, nor what begins as it ends; a microsecond more is one.
        for more, expected in ((0, "FITS"), (1, "NOT_NOW"), (-1, "FITS")):
            wish = small(memory=4096)
            wish.terms.duration.FromTimedelta(start - clock.now() + timedelta(microseconds=more))
            assert await both(broker, wish) == (expected, expected)
        end = start + timedelta(hours=1)
        assert outcome_of(await checked(broker, later(small(memory=4096), end, hours=1))) == "FITS"
        early = later(small(memory=4096), end - timedelta(microseconds=1), hours=1)
        assert outcome_of(await checked(broker, early)) == "NOT_NOW"
        await broker.until(reserved.name, "RUNNING", step=300)
        assert clock.now() >= start
        await broker.until(reserved.name, "EXPIRED", step=300)
        assert broker.backend().vms == []


async def test_a_reservation_given_up_gives_its_room_back(tmp_path: Path) -> None:
    async with running(tmp_path, site(pool("lab", hosts=1, memory=4096)), clock=ManualClock(START)) as broker:
        start = START + timedelta(hours=2)
        reserved = await created(broker, later(small(memory=4096), start, hours=1))
        assert (await refused(created(broker, later(small(memory=4096), start, hours=1)))).reason == "NO_CAPACITY"
        assert state_of(await broker.verb("Terminate", reserved.name)) == "TERMINATED"  # nothing was begun
        assert await held(broker) == []
        await created(broker, later(small(memory=4096), start, hours=1))


async def test_a_window_takes_the_first_start_that_keeps_the_deadline(tmp_path: Path) -> None:
    async with running(tmp_path, site(pool("lab", hosts=1, memory=4096)), clock=ManualClock(START)) as broker:
        taken = await created(broker, later(small(memory=4096), START + timedelta(hours=1), hours=2))
        assert state_of(taken) == "RESERVED"
        wish = small(memory=4096)
        wish.terms.duration.CopyFrom(lasting(hours=2))
        wish.terms.deadline.CopyFrom(at(START + timedelta(hours=6)))
        workspace = await created(broker, wish)
        assert (state_of(workspace), workspace.planned_start_time) == ("RESERVED", taken.end_time)
        refusal = await refused(created(broker, wish))  # a third has no room by then
        assert refusal.reason == "NO_CAPACITY"
        assert "WINDOW" in codes_of(by_pool(refusal.verdicts)["lab"])


# Hosts


async def test_a_cordoned_host_takes_nothing_new_and_keeps_what_it_has(tmp_path: Path) -> None:
    async with running(tmp_path, site(pool("lab", hosts=2, memory=2048))) as broker:
        first = await broker.until((await broker.create(memory=1024)).name, "RUNNING")
        assert places(first) == ["lab-host-1"]
        generation = (await pool_of(broker)).generation
        await cordon(broker, "lab-host-1")
        assert (await pool_of(broker)).generation > generation
        assert places(await broker.create(memory=1024)) == ["lab-host-2"]
        refusal = await refused(broker.create(memory=2048))
        assert refusal.reason == "NO_CAPACITY"  # an operator can open it again
        assert codes_of(by_pool(refusal.verdicts)["lab"]) >= {"HOST_CORDONED"}
        assert (await broker.get(first.name)).state == pb.Workspace.STATE_RUNNING
        await broker.verb("Stop", first.name)
        await broker.until(first.name, "STOPPED")
        await broker.verb("Start", first.name)  # its slot is kept
        assert places(await broker.until(first.name, "RUNNING")) == ["lab-host-1"]
        await cordon(broker, "lab-host-1", False)
        assert places(await broker.create(memory=1024)) == ["lab-host-1"]


async def test_hosts_that_are_lost_or_disabled_take_nothing(tmp_path: Path) -> None:
    async with running(tmp_path, site(pool("lab", hosts=3, memory=2048))) as broker:
        hand = broker.backend().by_hand
        hand.set_host("lab-host-1", HostState.LOST)
        hand.set_host("lab-host-2", HostState.DISABLED)
        await broker.pools.RefreshPool(pool_api.RefreshPoolRequest(name="pools/lab"))
        assert places(await broker.create(memory=2048)) == ["lab-host-3"]
        answer = await checked(broker, small(memory=2048), include_hosts=True)
        assert outcome_of(answer) == "NOT_NOW"
        found = by_host(answer.verdicts)
        assert codes_of(found["lab-host-1"]) == {"HOST_LOST"}
        assert codes_of(found["lab-host-2"]) == {"HOST_DISABLED"}


async def test_what_strangers_hold_is_not_given_away_twice(tmp_path: Path) -> None:
    async with running(tmp_path, site(pool("lab", hosts=1, memory=4096))) as broker:
        broker.backend().by_hand.set_foreign("lab-host-1", {"memory": 3072})
        await broker.pools.RefreshPool(pool_api.RefreshPoolRequest(name="pools/lab"))
        host = (await hosts(broker))["lab-host-1"]
        assert (host.foreign.amounts["memory"], host.free.amounts["memory"]) == (3072, 1024)
        assert (await refused(broker.create(memory=2048))).reason == "NO_CAPACITY"
        await broker.create(memory=1024)


async def test_sixty_at_once_never_take_more_than_there_is(tmp_path: Path) -> None:

    async with running(tmp_path, site(pool("lab", hosts=5, memory=4096))) as broker:
        answers = await asyncio.gather(*(broker.create(memory=1024) for _ in range(60)), return_exceptions=True)
        assert sum(isinstance(each, pb.Workspace) for each in answers) == 20
        for host in (await hosts(broker)).values():
            assert sum(slot.amounts.amounts["memory"] for slot in host.slots) == 4096
        assert {each.code() for each in answers if isinstance(each, grpc.aio.AioRpcError)} == {
            grpc.StatusCode.RESOURCE_EXHAUSTED
        }
