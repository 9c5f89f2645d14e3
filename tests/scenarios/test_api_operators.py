"""What operators see and do: hosts and their slots, cordons, drains, refreshes, strays, images and networks."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from workspacebroker.v1 import pool_service_pb2 as pool_api
from workspacebroker.v1 import resources_pb2 as pb
from workspacebroker.v1 import workspace_service_pb2 as api

from backends.base import HostState, Identity
from broker.core.clock import ManualClock
from tests.support.api import (
    at,
    checked,
    created,
    ended,
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
from tests.support.broker import LAB, Running, running, small

START = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)


def places(workspace: pb.Workspace) -> list[str]:
    return [node.host.rpartition("/")[2] for node in workspace.nodes]


async def cordon(broker: Running, host: str, cordoned: bool = True) -> pb.Host:
    answer = await broker.pools.UpdateHost(
        pool_api.UpdateHostRequest(
            host=pb.Host(name=f"pools/lab/hosts/{host}", cordoned=cordoned), update_mask={"paths": ["cordoned"]}
        )
    )
    return answer.host  # type: ignore[no-any-return]


async def drain_pool(broker: Running, draining: bool = True) -> pb.Pool:
    answer = await broker.pools.UpdatePool(
        pool_api.UpdatePoolRequest(
            pool=pb.Pool(name="pools/lab", draining=draining), update_mask={"paths": ["draining"]}
        )
    )
    return answer.pool  # type: ignore[no-any-return]


async def drain(broker: Running, host: str, **options: Any) -> pool_api.DrainHostResponse:
    request = pool_api.DrainHostRequest(name=f"pools/lab/hosts/{host}", **options)
    return await broker.pools.DrainHost(request)  # type: ignore[no-any-return]


async def refresh(broker: Running) -> pool_api.RefreshPoolResponse:
    return await broker.pools.RefreshPool(pool_api.RefreshPoolRequest(name="pools/lab"))  # type: ignore[no-any-return]


async def strays(broker: Running, **fields: Any) -> pool_api.ListStraysResponse:
    return await broker.pools.ListStrays(pool_api.ListStraysRequest(parent="pools/lab", **fields))  # type: ignore[no-any-return]


async def running_on(broker: Running, host: str, **options: Any) -> pb.Workspace:
    """A running workspace of one node; fails where it lies elsewhere."""
    workspace: pb.Workspace = await broker.until((await broker.create(**options)).name, "RUNNING")
    assert places(workspace) == [host]
    return workspace


# Pools and hosts


async def test_slots_and_free_amounts_of_hosts_add_up(tmp_path: Path) -> None:
    configuration = site(pool("lab", "memory_overhead = 24", hosts=2, memory=4096, more="disk = 900"))
    async with running(tmp_path, configuration, clock=ManualClock(START)) as broker:
        now = await broker.create(count=2, disk=100, placement="PLACEMENT_ONE_PER_HOST")
        later = small(memory=2000)
        later.terms.start_time.CopyFrom(at(START + timedelta(days=2)))
        later.terms.duration.CopyFrom(lasting(hours=1))
        reserved = await created(broker, later)
        await broker.until(now.name, "RUNNING")
        found = await hosts(broker)
        for host in found.values():
            current = next(slot for slot in host.slots if slot.workspace == now.name)
            assert dict(current.amounts.amounts) == {"cpu": 1000, "memory": 1048, "disk": 100}
            assert (current.start_time, current.end_time) == (now.prepare_time, now.end_time)
            assert dict(host.total.amounts) == {"cpu": 8000, "memory": 4096, "disk": 900}
            assert dict(host.free.amounts) == {"cpu": 7000, "memory": 3048, "disk": 800}
            assert host.state == pb.Host.STATE_ACTIVE
        slots = [slot for host in found.values() for slot in host.slots]
        assert sorted(slot.node_index for slot in slots if slot.workspace == now.name) == [0, 1]
        promised = [slot for slot in slots if slot.workspace == reserved.name]
        assert [(slot.start_time, slot.end_time) for slot in promised] == [
            (reserved.planned_start_time, reserved.end_time)
        ]
        shown = await pool_of(broker)
        assert dict(shown.total.amounts) == {"cpu": 16_000, "memory": 8192, "disk": 1800}
        assert dict(shown.allocated.amounts) == {"cpu": 2000, "memory": 2096, "disk": 200}
        assert dict(shown.reserved.amounts) == {"cpu": 1000, "memory": 2024}
        await ended(broker, now.name, reserved.name)
        assert await held(broker) == []
        assert all(host.free == host.total for host in (await hosts(broker)).values())


async def test_pools_and_hosts_come_in_pages_by_name(tmp_path: Path) -> None:
    async with running(tmp_path, site(pool("b"), pool("a"), pool("c"))) as broker:
        first = await broker.pools.ListPools(pool_api.ListPoolsRequest(page_size=2))
        rest = await broker.pools.ListPools(pool_api.ListPoolsRequest(page_token=first.next_page_token))
        assert [each.name for each in first.pools] == ["pools/a", "pools/b"]
        assert [each.name for each in rest.pools] == ["pools/c"]
        one = await broker.pools.ListHosts(pool_api.ListHostsRequest(parent="pools/a", page_size=3))
        two = await broker.pools.ListHosts(pool_api.ListHostsRequest(parent="pools/a", page_token=one.next_page_token))
        names = [each.name.rpartition("/")[2] for each in (*one.hosts, *two.hosts)]
        assert names == [f"a-host-{number}" for number in range(1, 5)]
        assert (one.pool_generation, two.next_page_token) == (two.pool_generation, "")
        other = pool_api.ListHostsRequest(parent="pools/b", page_token=one.next_page_token)
        assert (await refused(broker.pools.ListHosts(other))).violations == {"page_token": "BAD_CHARACTERS"}


async def test_host_names_that_need_escaping(tmp_path: Path) -> None:
    name = "Rack 1/höst%2F.example"
    lab = f'[pools.lab]\nbackend = "simulator"\n[[pools.lab.hosts]]\nname = "{name}"\ncpu = 8000\nmemory = 8192\n'
    async with running(tmp_path, site(lab)) as broker:
        (host,) = (await broker.pools.ListHosts(pool_api.ListHostsRequest(parent="pools/lab"))).hosts
        workspace = await broker.until((await broker.create()).name, "RUNNING")
        assert workspace.nodes[0].host == host.name
        answer = await broker.pools.UpdateHost(
            pool_api.UpdateHostRequest(host=pb.Host(name=host.name, cordoned=True), update_mask={"paths": ["cordoned"]})
        )
        assert (answer.host.name, answer.host.cordoned) == (host.name, True)
        assert (await refused(broker.create())).reason == "NO_CAPACITY"


async def test_a_pool_tells_what_it_can(tmp_path: Path) -> None:
    settings = (
        'capabilities = ["STOP", "PAUSE"]\ndefault_duration = "2h"\nmax_duration = "9h"\n'
        'images = [{ name = "debian-12", display_name = "Debian", size_mib = 2, '
        'attributes = { arch = "x86_64" } }, "raw"]\n'
        'networks = [{ name = "net", addresses = 3, subnet = "192.0.2.0/24" }]\n'
        'parameters = [{ key = "sim:speed", kind = "INT", description = "how fast", required = true }]'
    )
    async with running(tmp_path, site(pool("lab", settings))) as broker:
        shown = await pool_of(broker)
        assert shown.backend == "simulator"
        assert list(shown.capabilities) == [pb.CAPABILITY_PAUSE, pb.CAPABILITY_STOP]
        assert (shown.default_lease_duration.seconds, shown.max_lease_duration.seconds) == (7200, 32_400)
        _, spec = shown.parameter_specs  # the first is the broker's own
        assert (spec.key, spec.kind, spec.required) == ("sim:speed", pb.ParameterSpec.KIND_INT, True)
        assert shown.HasField("refresh_time")
        images = (await broker.pools.ListImages(pool_api.ListImagesRequest(parent="pools/lab"))).images
        assert [(each.name, each.size_bytes, each.ready) for each in images] == [
            ("debian-12", 2 * 1024 * 1024, True),
            ("raw", 0, True),
        ]
        assert images[0].attributes["arch"].string_value == "x86_64"
        (network,) = (await broker.pools.ListNetworks(pool_api.ListNetworksRequest(parent="pools/lab"))).networks
        assert (network.name, network.free_addresses, network.total_addresses) == ("net", 3, 3)
        refusal = await refused(broker.create(pool="lab"))
        assert refusal.violations == {'workspace.parameters["sim:speed"]': "REQUIRED"}


# Cordon and drain


async def test_cordons_and_drains_survive_a_restart(tmp_path: Path) -> None:
    async with running(tmp_path) as broker:
        assert (await cordon(broker, "lab-host-2")).cordoned
        assert (await drain_pool(broker)).draining
    async with running(tmp_path) as broker:
        assert {name: host.cordoned for name, host in (await hosts(broker)).items()} == {
            "lab-host-1": False,
            "lab-host-2": True,
            "lab-host-3": False,
            "lab-host-4": False,
        }
        assert (await pool_of(broker)).draining
        assert not (await drain_pool(broker, False)).draining
        assert not (await cordon(broker, "lab-host-2", False)).cordoned
        await broker.create(count=4, placement="PLACEMENT_ONE_PER_HOST")


async def test_a_draining_pool_keeps_what_it_promised(tmp_path: Path) -> None:
    async with running(tmp_path, clock=ManualClock(START)) as broker:
        current = await broker.until((await broker.create()).name, "RUNNING")
        wish = small()
        wish.terms.start_time.CopyFrom(at(START + timedelta(hours=1)))
        reserved = await created(broker, wish)
        await drain_pool(broker)
        assert (await refused(broker.create())).reason == "POOL_DRAINING"
        await broker.verb("Suspend", current.name, release_capacity=True)
        await broker.until(current.name, "SUSPENDED")
        await broker.until(reserved.name, "RUNNING", step=120)
        assert outcome_of(await checked(broker, small())) == "NOT_NOW"
        await drain_pool(broker, False)
        await broker.verb("Resume", current.name)
        await broker.until(current.name, "RUNNING")


async def test_a_drain_moves_what_runs_without_a_break(tmp_path: Path) -> None:
    async with running(tmp_path) as broker:
        workspace = await running_on(broker, "lab-host-1")
        identity = broker.backend().vms[0].backend_id
        answer = await drain(broker, "lab-host-1")
        assert answer.host.cordoned
        assert list(answer.staying) == []
        moved = await broker.eventually(
            lambda: broker.get(workspace.name),
            lambda ws: places(ws) == ["lab-host-2"] and not ws.nodes[0].HasField("activity"),
        )
        assert state_of(moved) == "RUNNING"
        assert await held(broker) == [(workspace.name, 0, "lab-host-2")]
        assert [(vm.backend_id, vm.host) for vm in broker.backend().vms] == [(identity, "lab-host-2")]
        assert (moved.end_time, moved.uid) == (workspace.end_time, workspace.uid)
        again = await drain(broker, "lab-host-1")  # there is nothing left to move
        assert list(again.staying) == []


async def test_a_drain_without_live_migration_suspends_on_the_way(tmp_path: Path) -> None:
    capabilities = 'capabilities = ["MIGRATE", "SUSPEND", "STOP"]'
    async with running(tmp_path, site(pool("lab", capabilities))) as broker:
        workspace = await running_on(broker, "lab-host-1")
        assert list((await drain(broker, "lab-host-1")).staying) == []
        moved = await broker.eventually(
            lambda: broker.get(workspace.name), lambda ws: places(ws) == ["lab-host-2"] and state_of(ws) == "RUNNING"
        )
        assert pb.Workspace.Cause.Name(moved.nodes[0].cause) == "CAUSE_OPERATOR"
        assert await held(broker) == [(workspace.name, 0, "lab-host-2")]


async def test_a_drain_names_what_cannot_move(tmp_path: Path) -> None:
    """Paused in memory, no room elsewhere, or bound to what no other host has."""
    async with running(tmp_path, site(pool("lab", hosts=2, memory=4096))) as broker:
        paused = await running_on(broker, "lab-host-1", memory=512)
        moving = await running_on(broker, "lab-host-1", memory=1024)
        big = await running_on(broker, "lab-host-1", memory=2560)
        await running_on(broker, "lab-host-2", memory=2048)
        await broker.verb("Pause", paused.name)
        await broker.until(paused.name, "PAUSED")
        answer = await drain(broker, "lab-host-1")
        assert list(answer.staying) == sorted([paused.name, big.name])
        await broker.eventually(lambda: broker.get(moving.name), lambda ws: places(ws) == ["lab-host-2"])
        for each in (paused, big):
            assert places(await broker.get(each.name)) == ["lab-host-1"]
        assert state_of(await broker.get(big.name)) == "RUNNING"


async def test_a_drain_suspends_the_rest_where_told_to(tmp_path: Path) -> None:
    async with running(tmp_path, site(pool("lab", hosts=1, memory=4096))) as broker:
        runs = await running_on(broker, "lab-host-1", memory=1024)
        stopped = await running_on(broker, "lab-host-1", memory=1024)
        await broker.verb("Stop", stopped.name)
        await broker.until(stopped.name, "STOPPED")
        answer = await drain(broker, "lab-host-1", suspend_rest=True)
        assert list(answer.staying) == []
        for name, state in ((runs.name, "SUSPENDED"), (stopped.name, "STOPPED")):
            rested = await broker.eventually(
                lambda name=name: broker.get(name),  # type: ignore[misc]
                lambda ws, state=state: state_of(ws) == state and ws.nodes[0].capacity_released,  # type: ignore[misc]
            )
            assert pb.Workspace.Cause.Name(rested.cause) == "CAUSE_OPERATOR"
        assert await held(broker) == []
        assert (await refused(broker.verb("Resume", runs.name))).reason == "NO_CAPACITY"
        await cordon(broker, "lab-host-1", False)
        await broker.verb("Resume", runs.name)
        await broker.until(runs.name, "RUNNING")


async def test_a_drain_moves_a_reservation_at_once(tmp_path: Path) -> None:
    async with running(tmp_path, site(pool("lab", hosts=2)), clock=ManualClock(START)) as broker:
        wish = small()
        wish.terms.start_time.CopyFrom(at(START + timedelta(hours=1)))
        reserved = await created(broker, wish)
        assert places(reserved) == ["lab-host-1"]
        answer = await drain(broker, "lab-host-1")
        assert list(answer.staying) == []
        assert places(await broker.get(reserved.name)) == ["lab-host-2"]
        workspace = await broker.until(reserved.name, "RUNNING", step=120)
        assert places(workspace) == ["lab-host-2"]


async def test_a_drain_of_a_silent_pool_cordons_and_says_so(tmp_path: Path) -> None:
    quick = 'refresh_interval = "20ms"\nbreaker = { failures = 1, probe_interval = "20ms" }'
    async with running(tmp_path, site(pool("lab", quick))) as broker:
        await running_on(broker, "lab-host-1")
        broker.backend().by_hand.go_silent()
        await broker.eventually(lambda: pool_of(broker), lambda seen: seen.state == pb.Pool.STATE_UNREACHABLE)
        assert (await refused(drain(broker, "lab-host-1"))).reason == "BACKEND_UNREACHABLE"
        assert (await hosts(broker))["lab-host-1"].cordoned


# Refresh


async def test_a_refresh_sees_hosts_come_go_and_fall(tmp_path: Path) -> None:
    async with running(tmp_path) as broker:
        workspace = await running_on(broker, "lab-host-1")
        before = await pool_of(broker)
        hand = broker.backend().by_hand
        hand.set_host("lab-host-1", HostState.LOST)
        hand.set_foreign("lab-host-2", {"cpu": 500, "memory": 1000})
        answer = await refresh(broker)
        assert answer.pool.generation > before.generation
        assert answer.pool.refresh_time.ToDatetime() > before.refresh_time.ToDatetime()
        found = await hosts(broker)
        assert found["lab-host-1"].state == pb.Host.STATE_LOST
        assert found["lab-host-2"].free.amounts["memory"] == 16_384 - 1000
        assert state_of(await broker.get(workspace.name)) == "RUNNING"  # as last seen
        again = await refresh(broker)
        assert again.pool.generation == answer.pool.generation  # nothing moved on


async def test_a_refresh_says_how_many_nodes_changed(tmp_path: Path) -> None:
    async with running(tmp_path, LAB.replace("[[", 'refresh_interval = "1h"\n[[')) as broker:
        workspace = await broker.until((await broker.create(count=2)).name, "RUNNING")
        await refresh(broker)
        assert (await refresh(broker)).nodes_changed == 0
        broker.backend().by_hand.stop(workspace.nodes[0].backend_id)
        answer = await refresh(broker)
        seen = await broker.get(workspace.name)
        assert [state_of(node) for node in seen.nodes] == ["STOPPED", "RUNNING"]  # type: ignore[arg-type]
        assert answer.nodes_changed <= 1


async def test_a_refresh_of_a_silent_pool_is_refused(tmp_path: Path) -> None:
    async with running(tmp_path) as broker:
        broker.backend().by_hand.go_silent()
        refusal = await refused(refresh(broker))
        assert (refusal.code, refusal.reason) == ("UNAVAILABLE", "BACKEND_UNREACHABLE")
        broker.backend().by_hand.come_back()
        await refresh(broker)


# Strays


async def test_strays_are_listed_and_left_alone(tmp_path: Path) -> None:
    async with running(tmp_path, site(pool("lab", hosts=1, memory=4096))) as broker:
        workspace = await running_on(broker, "lab-host-1")
        us = broker.broker.book.settings["broker_id"]
        hand = broker.backend().by_hand
        unknown = hand.add_stray(
            Identity(broker_id=us, workspace_uid="no-such-uid", node_index=0),
            "lab-host-1",
            {"cpu": 1000, "memory": 1024},
        )
        hand.add_stray(
            Identity(broker_id="another-broker", workspace_uid=workspace.uid, node_index=0),
            "lab-host-1",
            {"cpu": 1000, "memory": 512},
        )
        answer = await refresh(broker)
        assert answer.strays == 1
        (stray,) = (await strays(broker)).strays
        assert (stray.backend_id, stray.name) == (unknown, f"pools/lab/strays/{unknown}")
        assert (stray.workspace_uid, stray.node_index, stray.workspace) == ("no-such-uid", 0, "")
        assert stray.host == "pools/lab/hosts/lab-host-1"
        assert stray.seen == pb.Workspace.STATE_RUNNING
        assert stray.amounts.amounts["memory"] == 1024
        assert stray.reason
        assert stray.HasField("found_time")
        assert (await hosts(broker))["lab-host-1"].foreign.amounts["memory"] >= 512  # the other broker's
        hand.remove(unknown)
        assert (await refresh(broker)).strays == 0
        assert list((await strays(broker)).strays) == []
        assert state_of(await broker.get(workspace.name)) == "RUNNING"


async def test_a_stray_of_a_workspace_that_has_ended_names_it(tmp_path: Path) -> None:
    async with running(tmp_path) as broker:
        workspace = await running_on(broker, "lab-host-1")
        await ended(broker, workspace.name)
        us = broker.broker.book.settings["broker_id"]
        broker.backend().by_hand.add_stray(
            Identity(broker_id=us, workspace_uid=workspace.uid, node_index=0), "lab-host-3", {"cpu": 1, "memory": 1}
        )
        await refresh(broker)
        (stray,) = (await strays(broker)).strays
        assert (stray.workspace, stray.workspace_uid) == (workspace.name, workspace.uid)
        assert "ended" in stray.reason
        assert state_of(await broker.get(workspace.name)) == "TERMINATED"


async def test_strays_come_in_pages(tmp_path: Path) -> None:
    async with running(tmp_path) as broker:
        us = broker.broker.book.settings["broker_id"]
        ids = {
            broker.backend().by_hand.add_stray(
                Identity(broker_id=us, workspace_uid=f"u{number}", node_index=0), "lab-host-1", {"cpu": 1, "memory": 1}
            )
            for number in range(12)
        }
        await refresh(broker)
        first = await strays(broker, page_size=7)
        rest = await strays(broker, page_size=7, page_token=first.next_page_token)
        assert (len(first.strays), len(rest.strays), rest.next_page_token) == (7, 5, "")
        assert {each.backend_id for each in (*first.strays, *rest.strays)} == ids


@pytest.mark.parametrize("paths", [["draining", "state"], ["name"], ["*"]])
async def test_only_what_may_be_changed_of_a_pool(tmp_path: Path, paths: list[str]) -> None:
    async with running(tmp_path) as broker:
        request = pool_api.UpdatePoolRequest(
            pool=pb.Pool(name="pools/lab", draining=True), update_mask={"paths": paths}
        )
        refusal = await refused(broker.pools.UpdatePool(request))
        assert refusal.violations == {f"update_mask.paths[{len(paths) - 1}]": "UNKNOWN_VALUE"}
        assert not (await pool_of(broker)).draining


async def test_saved_images(tmp_path: Path) -> None:
    """A node's disk becomes an image that the next workspace can start from."""
    async with running(tmp_path, site(pool("lab", 'images = ["debian-12"]'))) as broker:
        workspace = await running_on(broker, "lab-host-1", image="debian-12")
        assert (await refused(broker.create(image="mine"))).reason == "FIELD_INVALID"
        answer = await broker.workspaces.SaveNode(
            api.SaveNodeRequest(target=api.Target(name=workspace.name, node_indexes=[0]), image_name="mine")
        )
        assert (answer.image.name, answer.image.ready, state_of(answer.workspace)) == ("mine", False, "SAVING")
        await broker.until(workspace.name, "RUNNING")
        await refresh(broker)
        images = (await broker.pools.ListImages(pool_api.ListImagesRequest(parent="pools/lab"))).images
        assert [(each.name, each.ready) for each in images] == [("debian-12", True), ("mine", True)]
        await broker.create(image="mine")


async def test_a_drain_does_not_ask_again_for_what_its_nodes_hold_of_the_pool(tmp_path: Path) -> None:
    """The last address of a network, and all of a shared disk, go with the node."""
    settings = 'shared_disk = 1000\nnetworks = [{ name = "net", addresses = 1 }]'
    async with running(tmp_path, site(pool("lab", settings))) as broker:
        workspace = await running_on(broker, "lab-host-1", disk=1000, nics=[pb.Nic(network="net")])
        assert list((await drain(broker, "lab-host-1")).staying) == []
        await broker.eventually(lambda: broker.get(workspace.name), lambda ws: places(ws) == ["lab-host-2"])


async def test_a_drain_in_a_draining_pool_moves_all_the_same(tmp_path: Path) -> None:
    async with running(tmp_path) as broker:
        workspace = await running_on(broker, "lab-host-1")
        await drain_pool(broker)
        assert list((await drain(broker, "lab-host-1")).staying) == []
        await broker.eventually(lambda: broker.get(workspace.name), lambda ws: places(ws) == ["lab-host-2"])


async def test_a_drain_keeps_nodes_apart_that_were_asked_for_so(tmp_path: Path) -> None:
    async with running(tmp_path, site(pool("lab", hosts=3))) as broker:
        workspace = await broker.create(count=2, placement="PLACEMENT_ONE_PER_HOST")
        await broker.until(workspace.name, "RUNNING")
        await drain(broker, "lab-host-1")
        moved = await broker.eventually(
            lambda: broker.get(workspace.name),
            lambda ws: "lab-host-1" not in places(ws) and not any(node.HasField("activity") for node in ws.nodes),
        )
        assert sorted(places(moved)) == ["lab-host-2", "lab-host-3"]
        assert list((await drain(broker, "lab-host-3")).staying) == [workspace.name]  # only beside the other


async def test_released_nodes_come_back_apart_where_asked_for_so(tmp_path: Path) -> None:
    async with running(tmp_path, site(pool("lab", hosts=2, memory=4096))) as broker:
        workspace = await broker.create(count=2, placement="PLACEMENT_ONE_PER_HOST")
        await broker.until(workspace.name, "RUNNING")
        chosen: tuple[tuple[int, ...], ...] = ((0, 1), (0,), (1,))
        for nodes in chosen:
            await broker.verb("Suspend", workspace.name, nodes=nodes, release_capacity=True)
            rests = pb.Workspace.STATE_SUSPENDED
            await broker.eventually(
                lambda: broker.get(workspace.name),
                lambda ws, nodes=nodes, rests=rests: all(ws.nodes[index].state == rests for index in nodes),  # type: ignore[misc]
            )
            await broker.verb("Resume", workspace.name, nodes=nodes)
            back = await broker.eventually(
                lambda: broker.get(workspace.name),
                lambda ws: all(node.state == pb.Workspace.STATE_RUNNING for node in ws.nodes),
            )
            assert sorted(places(back)) == ["lab-host-1", "lab-host-2"]


async def test_a_reservation_whose_hosts_are_cordoned_is_placed_anew_without_sharing_room(tmp_path: Path) -> None:
    configuration = site(pool("lab", "enforce_capacity = false", hosts=4, memory=4096))
    async with running(tmp_path, configuration, clock=ManualClock(START)) as broker:
        wish = small(memory=4096, count=2)
        wish.terms.start_time.CopyFrom(at(START + timedelta(hours=1)))
        reserved = await created(broker, wish)
        for host in set(places(reserved)):
            await cordon(broker, host)
        workspace = await broker.until(reserved.name, "RUNNING", step=120)
        assert sorted(places(workspace)) == ["lab-host-3", "lab-host-4"]


async def test_a_pool_that_needs_a_parameter_takes_nothing_without_it(tmp_path: Path) -> None:
    needs = 'preference = 9\nparameters = [{ key = "sim:speed", kind = "INT", required = true }]'
    async with running(tmp_path, site(pool("lab", needs), pool("other"))) as broker:
        assert (await broker.create()).pool == "other"
        speed = {"sim:speed": pb.ParameterValue(int_value=1)}
        assert (await broker.create(parameters=speed)).pool == "lab"


async def test_strays_take_the_room_that_they_hold(tmp_path: Path) -> None:
    async with running(tmp_path, site(pool("lab", hosts=1, memory=4096))) as broker:
        us = broker.broker.book.settings["broker_id"]
        identity = Identity(broker_id=us, workspace_uid="no-such-uid", node_index=0)
        broker.backend().by_hand.add_stray(identity, "lab-host-1", {"cpu": 1000, "memory": 1024})
        await refresh(broker)
        assert (await hosts(broker))["lab-host-1"].foreign.amounts["memory"] == 1024
        assert (await refused(broker.create(memory=3073))).reason == "NO_CAPACITY"
        await broker.create(memory=3072)
