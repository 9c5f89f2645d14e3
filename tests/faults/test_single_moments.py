"""Moments that a run of many clients meets by chance, each by itself."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from pathlib import Path

from workspacebroker.v1 import workspace_service_pb2 as api
from workspacebroker.v1.resources_pb2 import NodeSet, Quantities, Workspace

from backends.opennebula.standin import HostConfig, Standin
from clients.names import pool_name, tenant_name
from clients.sdk import Client, Outcome
from tests.faults.run import CALL_SECONDS, STANDIN, configuration, in_parallel
from tests.faults.sums import POOL, FrontEnd, Observer, differences, shown
from tests.support.process import broker_process, until
from tests.support.proxy import Decision, Judge, Kind, Proxy

LARGE = replace(STANDIN, hosts=tuple(HostConfig(name=f"large-{n}", cores=64, memory_mb=65536) for n in range(4)))
FLOW = 60


class LateAllocate(Judge):
    """Holds the first allocate on its way there until its caller has given up; all else goes through."""

    def decide(self, method: str, subject: str) -> Decision:
        decision = super().decide(method, subject)
        if method == "one.vm.allocate" and decision.attempt == 1:
            return replace(decision, kind=Kind.DELAYED, early=True, seconds=3 * CALL_SECONDS)
        return decision


class Cutting(Judge):
    """Cuts every answer about one VM; the documents of all VMs go through."""

    def decide(self, method: str, subject: str) -> Decision:
        decision = super().decide(method, subject)
        return replace(decision, kind=Kind.DROPPED_ANSWER) if method == "one.vm.info" and self.share else decision


def create(client: Client) -> Workspace:
    nodes = NodeSet(count=1, amounts=Quantities(amounts={"cpu": 100, "memory": 64}))
    wish = Workspace(node_sets=[nodes])
    return client.create(api.CreateWorkspaceRequest(parent=tenant_name("default"), workspace=wish))


def reached(client: Client, workspace: Workspace, state: Workspace.State) -> None:
    result = client.wait(workspace.name, [state], timeout=30)
    assert result.outcome is Outcome.REACHED, result.workspace


def test_an_allocate_that_arrives_after_its_caller_gave_up_is_shown_as_a_stray(tmp_path: Path) -> None:
    """Nobody can keep such a call from being done. The node is made again, and what comes late is no node's."""
    with (
        Standin(STANDIN) as one,
        Proxy(one.endpoint, LateAllocate(0, share=0.0)) as proxy,
        broker_process(tmp_path, configuration(proxy.endpoint, one.session)) as broker,
        Client(broker.address) as client,
    ):
        client.refresh(pool_name(POOL))
        workspace = create(client)
        reached(client, workspace, Workspace.STATE_RUNNING)
        until(lambda: len(one.vms()) == 2, "the late VM")
        client.refresh(pool_name(POOL))
        (stray,) = client.strays(pool_name(POOL))
        (node,) = client.workspace(workspace.name).nodes
        assert {stray.backend_id, node.backend_id} == {"0", "1"}
        assert any("has 2 VMs" in line for line in differences(look(one), shown(client)))
        client.act("terminate", workspace.name)
        reached(client, workspace, Workspace.STATE_TERMINATED)
        client.refresh(pool_name(POOL))
        assert [left.backend_id for left in client.strays(pool_name(POOL))] == [stray.backend_id]
        assert one.place(int(stray.backend_id)) == "HOLD"  # left alone until an operator decides


def test_an_unanswered_question_about_one_vm_keeps_no_other_from_being_seen(tmp_path: Path) -> None:
    judge = Cutting(0, share=0.0)
    with (
        Standin(STANDIN) as one,
        Proxy(one.endpoint, judge) as proxy,
        broker_process(tmp_path, configuration(proxy.endpoint, one.session)) as broker,
        Client(broker.address) as client,
    ):
        client.refresh(pool_name(POOL))
        lost = create(client)
        reached(client, lost, Workspace.STATE_RUNNING)
        judge.share = 1e-9  # from now on
        one.call("one.vm.recover", 0, 3)
        other = create(client)
        reached(client, other, Workspace.STATE_RUNNING)
        assert client.workspace(lost.name).state == Workspace.STATE_RUNNING  # silence changes nothing
        judge.share = 0.0
        client.refresh(pool_name(POOL))
        assert client.workspace(lost.name).state == Workspace.STATE_FAILED


def test_a_steady_flow_of_ends_is_seen_while_it_flows(tmp_path: Path) -> None:
    """Many VMs missing at once are doubted where nobody asked for their end; these were."""
    with (
        Standin(LARGE) as one,
        broker_process(tmp_path, configuration(one.endpoint, one.session)) as broker,
        Client(broker.address) as client,
    ):
        client.refresh(pool_name(POOL))
        workspaces = [create(client) for _ in range(FLOW)]
        in_parallel([partial(reached, client, each, Workspace.STATE_RUNNING) for each in workspaces])
        ended_by: list[int] = []
        for number, workspace in enumerate(workspaces):
            client.act("terminate", workspace.name)
            # Each is gone at the front-end before the next is asked for: a flow, not a burst.
            until(lambda upto=number: gone(one) > upto, "the end of a VM")  # type: ignore[misc]
            time.sleep(0.04)  # the flow's pace; nothing is waited for
            ended_by.append(sum(1 for _ in client.workspaces(tenant_name("-"), states=[Workspace.STATE_TERMINATED])))
        assert ended_by[-1] > FLOW // 2, ended_by
        in_parallel([partial(reached, client, each, Workspace.STATE_TERMINATED) for each in workspaces])
        assert differences(look(one), shown(client)) == []


def gone(one: Standin) -> int:
    return sum(one.place(vm.id) == "DONE" for vm in one.vms())


def look(one: Standin) -> FrontEnd:
    return Observer(one.endpoint, one.session).look()
