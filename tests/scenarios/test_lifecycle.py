"""The life cycle of workspaces on a simulated pool: verbs, what is seen, what fails, what is held meanwhile."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from workspacebroker.v1 import pool_service_pb2 as pools
from workspacebroker.v1 import resources_pb2 as pb
from workspacebroker.v1 import workspace_service_pb2 as api

from backends.base import Observation
from broker.core.clock import ManualClock
from tests.support.broker import LAB, Running, reason_of, running

START = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)


def state_of(workspace: pb.Workspace) -> str:
    return pb.Workspace.State.Name(workspace.state).removeprefix("STATE_")


def cause_of(workspace: pb.Workspace) -> str:
    return pb.Workspace.Cause.Name(workspace.cause).removeprefix("CAUSE_")


def with_lab(settings: str) -> str:
    """The usual pool with more settings; they come before its hosts."""
    return LAB.replace('backend = "simulator"\n', 'backend = "simulator"\n' + settings + "\n")


async def held(broker: Running, pool: str = "lab") -> dict[str, int]:
    """What slots hold on all hosts of a pool."""
    answer = await broker.pools.ListHosts(pools.ListHostsRequest(parent=f"pools/{pool}"))
    total: dict[str, int] = {}
    for host in answer.hosts:
        for slot in host.slots:
            for name, amount in slot.amounts.amounts.items():
                total[name] = total.get(name, 0) + amount
    return total


def has_come_to(state: str, revision: int, workspace: pb.Workspace) -> bool:
    return state_of(workspace) == state and workspace.revision > revision + 1


ALL_VERBS: list[tuple[str, str, dict[str, Any]]] = [
    ("Pause", "PAUSED", {}),
    ("Unpause", "RUNNING", {}),
    ("Suspend", "SUSPENDED", {}),
    ("Resume", "RUNNING", {}),
    ("Suspend", "SUSPENDED", {"release_capacity": True}),
    ("Resume", "RUNNING", {}),
    ("Stop", "STOPPED", {}),
    ("Start", "RUNNING", {}),
    ("Stop", "STOPPED", {"release_capacity": True}),
    ("Start", "RUNNING", {}),
    ("Reboot", "RUNNING", {}),
    ("Terminate", "TERMINATED", {}),
]


async def test_every_verb_leads_where_it_should_and_holds_what_it_should(tmp_path: Path) -> None:
    async with running(tmp_path) as broker:
        workspace = await broker.until((await broker.create(disk=100)).name, "RUNNING")
        for verb, state, options in ALL_VERBS:
            before = workspace.revision
            await broker.verb(verb, workspace.name, **options)
            # A reboot that is done at once comes back to the state it began in: it shows in the revision.
            workspace = await broker.eventually(
                partial(broker.get, workspace.name), partial(has_come_to, state, before)
            )
            assert cause_of(workspace) == "REQUESTED"
            released = options.get("release_capacity", False)
            expected: dict[str, int] = {"cpu": 1000, "memory": 1024, "disk": 100}
            if state == "TERMINATED":
                expected = {}
            elif released:
                expected = {"disk": 100}
            assert await held(broker) == expected, (verb, state)
            assert workspace.nodes[0].capacity_released is bool(released)
        assert broker.backend().vms == []


async def test_what_is_already_so_changes_nothing(tmp_path: Path) -> None:
    async with running(tmp_path) as broker:
        workspace = await broker.until((await broker.create()).name, "RUNNING")
        for verb in ("Start", "Resume", "Unpause"):
            assert (await broker.verb(verb, workspace.name)).revision == workspace.revision
        await broker.verb("Terminate", workspace.name)
        ended = await broker.until(workspace.name, "TERMINATED")
        assert (await broker.verb("Terminate", workspace.name)).revision == ended.revision


async def test_one_transition_at_a_time_and_terminate_cancels_it(tmp_path: Path) -> None:
    async with running(tmp_path, with_lab('delays = { suspend = "1h" }')) as broker:
        workspace = await broker.until((await broker.create()).name, "RUNNING")
        assert state_of(await broker.verb("Suspend", workspace.name)) == "SUSPENDING"
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await broker.verb("Stop", workspace.name)
        assert refused.value.code() is grpc.StatusCode.ABORTED
        assert reason_of(refused.value) == "TRANSITION_UNDER_WAY"
        assert state_of(await broker.verb("Terminate", workspace.name)) == "TERMINATING"
        await broker.until(workspace.name, "TERMINATED")
        assert await held(broker) == {}


async def test_a_terminate_stops_a_retry_that_sleeps(tmp_path: Path) -> None:
    settings = 'retry = { initial = "1h", maximum = "1h", budget = "10h" }'
    settings += '\nfaults = [{ step = "allocate", kind = "transient" }]'
    async with running(tmp_path, with_lab(settings)) as broker:
        workspace = await broker.create()
        retrying = await broker.eventually(
            lambda: broker.get(workspace.name), lambda ws: ws.nodes[0].activity.attempt == 2
        )
        assert retrying.nodes[0].activity.step == "allocate"
        assert retrying.nodes[0].activity.HasField("next_attempt_time")
        assert "configured fault" in retrying.nodes[0].activity.last_error.message
        await broker.verb("Terminate", workspace.name)
        await broker.until(workspace.name, "TERMINATED")
        assert await held(broker) == {}


async def test_a_lost_answer_to_allocate_makes_exactly_one_vm(tmp_path: Path) -> None:
    settings = 'retry = { initial = "10ms" }\nfaults = [{ step = "allocate", kind = "lost_answer", count = 1 }]'
    async with running(tmp_path, with_lab(settings)) as broker:
        workspace = await broker.until((await broker.create()).name, "RUNNING")
        assert [vm.backend_id for vm in broker.backend().vms] == [workspace.nodes[0].backend_id]


async def test_a_lost_call_to_allocate_is_made_again(tmp_path: Path) -> None:
    settings = 'retry = { initial = "10ms" }\nfaults = [{ step = "allocate", kind = "lost_call", count = 2 }]'
    async with running(tmp_path, with_lab(settings)) as broker:
        await broker.until((await broker.create()).name, "RUNNING")
        assert len(broker.backend().vms) == 1


async def test_terminate_after_a_lost_answer_finds_the_vm_and_ends_it(tmp_path: Path) -> None:
    settings = (
        'retry = { initial = "1h", maximum = "1h" }\nfaults = [{ step = "allocate", kind = "lost_answer", count = 1 }]'
    )
    async with running(tmp_path, with_lab(settings)) as broker:
        workspace = await broker.create()
        await broker.eventually(lambda: broker.backend().vms, bool)
        await broker.verb("Terminate", workspace.name)
        await broker.until(workspace.name, "TERMINATED")
        assert broker.backend().vms == []


async def test_the_same_number_of_retries_stands_in_log_counter_and_workspace(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    faults = '{ step = "deploy", kind = "transient", count = 3 }, { step = "deploy", kind = "hang" }'
    settings = f'retry = {{ initial = "10ms", maximum = "10ms" }}\nfaults = [{faults}]'
    async with running(tmp_path, with_lab(settings)) as broker:
        workspace = await broker.create()
        await broker.eventually(lambda: broker.backend().calls["deploy"], lambda calls: calls == 4)
        lines = [record for record in caplog.records if record.message.startswith("retry ")]
        assert len(lines) == 3
        assert broker.broker.metrics.value("backend_retries_total", pool="lab", call="deploy") == 3
        assert (await broker.get(workspace.name)).nodes[0].activity.attempt == 4  # three retries, and the first try


async def test_a_request_fault_undoes_the_whole_group(tmp_path: Path) -> None:
    settings = 'faults = [{ step = "deploy", kind = "rejected", count = 1 }]'
    async with running(tmp_path, with_lab(settings)) as broker:
        failed = await broker.until((await broker.create(count=3)).name, "FAILED")
        assert failed.last_error.code == grpc.StatusCode.FAILED_PRECONDITION.value[0]
        assert [pb.Workspace.State.Name(node.state) for node in failed.nodes] == ["STATE_FAILED"] * 3
        assert broker.backend().vms == []
        assert await held(broker) == {}


async def test_a_host_fault_moves_the_node_to_another_host(tmp_path: Path) -> None:
    settings = 'faults = [{ step = "deploy", kind = "host_rejected", host = "lab-host-1" }]'
    async with running(tmp_path, with_lab(settings)) as broker:
        workspace = await broker.until((await broker.create()).name, "RUNNING")
        assert workspace.nodes[0].host == "pools/lab/hosts/lab-host-2"
        assert len(broker.backend().vms) == 1
        assert await held(broker) == {"cpu": 1000, "memory": 1024}


async def test_a_vm_that_breaks_at_its_first_start_is_removed_and_made_elsewhere(tmp_path: Path) -> None:
    settings = 'faults = [{ step = "deploy", kind = "broken", host = "lab-host-1" }]'
    async with running(tmp_path, with_lab(settings)) as broker:
        workspace = await broker.until((await broker.create()).name, "RUNNING")
        assert workspace.nodes[0].host == "pools/lab/hosts/lab-host-2"
        assert [vm.host for vm in broker.backend().vms] == ["lab-host-2"]


async def test_three_bad_hosts_are_enough(tmp_path: Path) -> None:
    settings = 'faults = [{ step = "deploy", kind = "host_rejected" }]'
    async with running(tmp_path, with_lab(settings)) as broker:
        workspace = await broker.until((await broker.create()).name, "FAILED")
        assert broker.backend().calls["deploy"] == 3
        assert "failed" in workspace.last_error.message
        assert broker.backend().vms == []


async def test_a_node_that_starts_nowhere_is_dropped_while_min_count_is_kept(tmp_path: Path) -> None:
    bad = ", ".join(
        f'{{ step = "deploy", kind = "host_rejected", host = "lab-host-{number}" }}' for number in (1, 3, 4)
    )
    async with running(tmp_path, with_lab(f"faults = [{bad}]")) as broker:
        created = await broker.create(cpu=8000, count=2, min_count=1)  # one fills a host
        workspace = await broker.until(created.name, "RUNNING")
        states = sorted(pb.Workspace.State.Name(node.state) for node in workspace.nodes)
        assert states == ["STATE_FAILED", "STATE_RUNNING"]
        assert [notice.kind for notice in workspace.notices] == [pb.Workspace.Notice.KIND_DEGRADED]
        assert "1 of 2 RUNNING" in workspace.state_message


async def test_a_group_is_starting_until_every_node_runs(tmp_path: Path) -> None:
    async with running(tmp_path) as broker:
        broker.backend().by_hand.fail("stall", "deploy")
        workspace = await broker.create(count=2)
        mixed = await broker.eventually(
            lambda: broker.get(workspace.name),
            lambda ws: (
                sorted(pb.Workspace.State.Name(node.state) for node in ws.nodes) == ["STATE_RUNNING", "STATE_STARTING"]
            ),
        )
        assert state_of(mixed) == "STARTING"
        assert not mixed.HasField("actual_start_time")


async def test_a_start_that_takes_too_long_is_undone(tmp_path: Path) -> None:
    clock = ManualClock(START)
    async with running(tmp_path, with_lab('delays = { deploy = "2h" }'), clock=clock) as broker:
        workspace = await broker.create()
        failed = await broker.until(workspace.name, "FAILED", step=60.0)
        assert "in time" in failed.last_error.message
        assert await held(broker) == {}


async def test_what_someone_did_by_hand_shows_and_keeps_its_slots(tmp_path: Path) -> None:
    async with running(tmp_path, with_lab('refresh_interval = "50ms"')) as broker:
        workspace = await broker.until((await broker.create()).name, "RUNNING")
        hand = broker.backend().by_hand
        hand.stop(workspace.nodes[0].backend_id)
        stopped = await broker.until(workspace.name, "STOPPED")
        assert cause_of(stopped) == "BACKEND"
        assert await held(broker) == {"cpu": 1000, "memory": 1024}
        hand.start(workspace.nodes[0].backend_id, host="lab-host-3")
        moved = await broker.until(workspace.name, "RUNNING")
        assert moved.nodes[0].host == "pools/lab/hosts/lab-host-3"
        answer = await broker.pools.ListHosts(pools.ListHostsRequest(parent="pools/lab"))
        assert [len(host.slots) for host in answer.hosts] == [0, 0, 1, 0]


async def test_a_vm_that_is_gone_fails_its_node_and_frees_its_room(tmp_path: Path) -> None:
    async with running(tmp_path, with_lab('refresh_interval = "50ms"')) as broker:
        workspace = await broker.until((await broker.create(count=2)).name, "RUNNING")
        broker.backend().by_hand.remove(workspace.nodes[1].backend_id)
        lost = await broker.eventually(
            lambda: broker.get(workspace.name), lambda ws: ws.nodes[1].state == pb.Workspace.STATE_FAILED
        )
        assert state_of(lost) == "RUNNING"
        assert lost.state_message == "1 of 2 RUNNING, node 1 FAILED"
        assert [notice.kind for notice in lost.notices] == [pb.Workspace.Notice.KIND_DEGRADED]
        assert await held(broker) == {"cpu": 1000, "memory": 1024}
        broker.backend().by_hand.remove(workspace.nodes[0].backend_id)
        gone = await broker.until(workspace.name, "FAILED")
        assert "gone" in gone.last_error.message


async def test_silence_changes_no_state_and_heals_itself(tmp_path: Path) -> None:
    settings = 'refresh_interval = "50ms"\nbreaker = { failures = 2, probe_interval = "50ms" }'
    async with running(tmp_path, with_lab(settings)) as broker:
        workspace = await broker.until((await broker.create()).name, "RUNNING")
        hand = broker.backend().by_hand
        hand.go_silent()
        pool = broker.broker.pools["lab"]
        await broker.eventually(lambda: pool.reachable.is_set(), lambda reachable: not reachable)
        shown = (await broker.pools.GetPool(pools.GetPoolRequest(name="pools/lab"))).pool
        assert shown.state == pb.Pool.STATE_UNREACHABLE
        assert shown.last_error.message
        assert state_of(await broker.get(workspace.name)) == "RUNNING"
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await broker.verb("Suspend", workspace.name)
        assert reason_of(refused.value) == "BACKEND_UNREACHABLE"
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await broker.create(pool="lab")
        assert reason_of(refused.value) == "BACKEND_UNREACHABLE"
        # Terminate is remembered, and done when the backend answers.
        assert state_of(await broker.verb("Terminate", workspace.name)) == "TERMINATING"
        assert await held(broker) == {"cpu": 1000, "memory": 1024}
        hand.come_back()
        await broker.until(workspace.name, "TERMINATED")
        assert await held(broker) == {}


async def test_a_pool_document_without_vms_is_doubted(tmp_path: Path) -> None:
    """A user who lost its rights sees an empty pool: no VM is given up for that."""
    async with running(tmp_path, with_lab('refresh_interval = "50ms"')) as broker:
        workspace = await broker.until((await broker.create(count=20)).name, "RUNNING")
        broker.backend().by_hand.hidden = True
        rounds = broker.backend().calls["inventory"]
        await broker.eventually(lambda: broker.backend().calls["inventory"], lambda calls: calls > rounds + 3)
        assert state_of(await broker.get(workspace.name)) == "RUNNING"


async def test_a_hung_backend_takes_down_its_own_pool_only(tmp_path: Path) -> None:
    other = LAB + '[pools.bad]\nbackend = "simulator"\nhosts = [{ count = 1, cpu = 64000, memory = 64000 }]\n'
    async with running(tmp_path, other) as broker:
        broker.backend("bad").by_hand.fail("hang", "allocate", count=100)
        for _ in range(12):
            await broker.create(pool="bad")
        good = await broker.create(pool="lab")
        await broker.until(good.name, "RUNNING", timeout=5.0)


async def test_strays_are_listed_and_left_alone(tmp_path: Path) -> None:
    from backends.base import Identity

    async with running(tmp_path, with_lab('refresh_interval = "50ms"')) as broker:
        ours = broker.broker.book.settings["broker_id"]
        hand = broker.backend().by_hand
        hand.add_stray(
            Identity(broker_id=ours, workspace_uid="unknown", node_index=0), "lab-host-1", {"cpu": 500, "memory": 256}
        )
        answer = await broker.eventually(
            lambda: broker.pools.ListStrays(pools.ListStraysRequest(parent="pools/lab")), lambda got: got.strays
        )
        assert answer.strays[0].workspace_uid == "unknown"
        assert len(broker.backend().vms) == 1


async def test_save_makes_an_image_and_comes_back(tmp_path: Path) -> None:
    async with running(tmp_path, with_lab('images = ["debian-12"]')) as broker:
        workspace = await broker.until((await broker.create(image="debian-12")).name, "RUNNING")
        answer = await broker.workspaces.SaveNode(
            api.SaveNodeRequest(target=api.Target(name=workspace.name), image_name="mine")
        )
        assert state_of(answer.workspace) == "SAVING"
        await broker.until(workspace.name, "RUNNING")
        images = (await broker.pools.ListImages(pools.ListImagesRequest(parent="pools/lab"))).images
        assert [image.name for image in images] == ["debian-12", "mine"]


async def test_verbs_on_some_nodes_only(tmp_path: Path) -> None:
    async with running(tmp_path) as broker:
        workspace = await broker.until((await broker.create(count=3)).name, "RUNNING")
        await broker.verb("Suspend", workspace.name, nodes=(1,))
        mixed = await broker.eventually(
            lambda: broker.get(workspace.name), lambda ws: ws.nodes[1].state == pb.Workspace.STATE_SUSPENDED
        )
        assert state_of(mixed) == "RUNNING"
        await broker.verb("Terminate", workspace.name, nodes=(0, 1))
        rest = await broker.eventually(
            lambda: broker.get(workspace.name),
            lambda ws: [node.state for node in ws.nodes[:2]] == [pb.Workspace.STATE_TERMINATED] * 2,
        )
        assert state_of(rest) == "RUNNING"
        assert await held(broker) == {"cpu": 1000, "memory": 1024}


async def test_a_drained_host_is_left_by_its_nodes(tmp_path: Path) -> None:
    async with running(tmp_path) as broker:
        workspace = await broker.until((await broker.create(count=3)).name, "RUNNING")
        assert {node.host for node in workspace.nodes} == {"pools/lab/hosts/lab-host-1"}
        await broker.pools.DrainHost(pools.DrainHostRequest(name="pools/lab/hosts/lab-host-1"))
        await broker.eventually(
            lambda: broker.get(workspace.name),
            lambda ws: all(node.host != "pools/lab/hosts/lab-host-1" for node in ws.nodes),
        )
        answer = await broker.pools.ListHosts(pools.ListHostsRequest(parent="pools/lab"))
        assert not answer.hosts[0].slots
        assert answer.hosts[0].cordoned


async def test_start_paused(tmp_path: Path) -> None:
    async with running(tmp_path) as broker:
        workspace = await broker.create(initial_state=pb.Workspace.STATE_PAUSED)
        paused = await broker.until(workspace.name, "PAUSED")
        assert paused.HasField("actual_start_time")


@pytest.mark.parametrize("seen", [Observation.BROKEN, Observation.SUSPENDED, Observation.PAUSED])
async def test_a_running_vm_seen_otherwise(tmp_path: Path, seen: Observation) -> None:
    async with running(tmp_path, with_lab('refresh_interval = "50ms"')) as broker:
        workspace = await broker.until((await broker.create()).name, "RUNNING")
        broker.backend().by_hand.show(workspace.nodes[0].backend_id, seen, message="disk on fire")
        expected = {Observation.BROKEN: "STOPPED"}.get(seen, seen.value)
        changed = await broker.until(workspace.name, expected)
        if seen is Observation.BROKEN:
            assert "disk on fire" in changed.last_error.message
            assert cause_of(changed) == "ERROR"
        assert await held(broker) == {"cpu": 1000, "memory": 1024}
        await broker.verb("Terminate", workspace.name)
        await broker.until(workspace.name, "TERMINATED")


async def test_an_image_name_that_is_taken_is_refused_before_anything_is_saved(tmp_path: Path) -> None:
    async with running(tmp_path, with_lab('images = ["debian-12"]')) as broker:
        workspace = await broker.until((await broker.create(image="debian-12")).name, "RUNNING")
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await broker.workspaces.SaveNode(
                api.SaveNodeRequest(target=api.Target(name=workspace.name), image_name="debian-12")
            )
        assert reason_of(refused.value) == "NAME_TAKEN"
        assert state_of(await broker.get(workspace.name)) == "RUNNING"


async def test_an_end_action_that_the_pool_cannot_do_is_refused(tmp_path: Path) -> None:
    async with running(tmp_path, with_lab('capabilities = ["STOP", "SUSPEND"]')) as broker:
        saving = pb.LeaseTerms(end_action=pb.LeaseTerms.END_ACTION_SAVE)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await broker.create(pool="lab", save_as="kept", terms=saving)
        assert reason_of(refused.value) == "NEVER_FITS"
        workspace = await broker.create(terms=pb.LeaseTerms(end_action=pb.LeaseTerms.END_ACTION_SUSPEND))
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await broker.workspaces.UpdateWorkspace(
                api.UpdateWorkspaceRequest(
                    workspace=pb.Workspace(name=workspace.name, terms=saving),
                    update_mask={"paths": ["terms.end_action"]},
                )
            )
        assert reason_of(refused.value) == "FIELD_INVALID"


async def test_what_gave_its_room_back_comes_back_in_a_draining_pool(tmp_path: Path) -> None:
    async with running(tmp_path) as broker:
        workspace = await broker.until((await broker.create()).name, "RUNNING")
        await broker.verb("Suspend", workspace.name, release_capacity=True)
        await broker.until(workspace.name, "SUSPENDED")
        await broker.pools.UpdatePool(
            pools.UpdatePoolRequest(pool=pb.Pool(name="pools/lab", draining=True), update_mask={"paths": ["draining"]})
        )
        await broker.verb("Resume", workspace.name)
        await broker.until(workspace.name, "RUNNING")


async def test_a_step_that_never_gets_an_answer_is_given_up_at_its_deadline(tmp_path: Path) -> None:
    settings = (
        'start_timeout = "10m"\nbreaker = { failures = 1000 }\nfaults = [{ step = "deploy", kind = "lost_call" }]'
    )
    clock = ManualClock(START)
    async with running(tmp_path, with_lab(settings), clock=clock) as broker:
        created = await broker.create()
        failed = await broker.until(created.name, "FAILED", step=5.0)
        assert failed.last_error.code == grpc.StatusCode.DEADLINE_EXCEEDED.value[0]
        assert await held(broker) == {}
        assert broker.backend().vms == []
