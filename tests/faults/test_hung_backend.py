"""A front-end that accepts every call and answers none takes its own pool down, and no other."""

from __future__ import annotations

import threading
import time
from functools import partial
from pathlib import Path

import pytest
from workspacebroker.v1 import workspace_service_pb2 as api
from workspacebroker.v1.resources_pb2 import NodeSet, Pool, Quantities, Workspace

from backends.opennebula.standin import Standin
from clients.errors import Unavailable
from clients.names import pool_name, tenant_name
from clients.sdk import Client, Outcome
from tests.faults.run import STANDIN, configuration, in_parallel
from tests.faults.sums import Observer, differences, shown
from tests.support.process import broker_process, until

OTHER = "two"
AT_ONCE = 4
EACH = 12


def other_pool(one: Standin) -> str:
    return f"""
[pools.{OTHER}]
backend = "opennebula"
endpoint = "{one.endpoint}"
session = "{one.session}"
"""


def create(client: Client, pool: str) -> Workspace:
    nodes = NodeSet(count=1, amounts=Quantities(amounts={"cpu": 500, "memory": 256}))
    wish = Workspace(pool=pool, node_sets=[nodes])
    return client.create(api.CreateWorkspaceRequest(parent=tenant_name("default"), workspace=wish))


def lives(address: str) -> tuple[float, float]:
    """Of workspaces of the other pool, the worst of the seconds until a create was answered and until it ran."""
    answered: list[float] = []
    ran: list[float] = []

    def some() -> None:
        with Client(address) as client:
            for _ in range(EACH):
                began = time.monotonic()
                workspace = create(client, OTHER)
                answered.append(time.monotonic() - began)
                result = client.wait(workspace.name, [Workspace.STATE_RUNNING], timeout=20)
                ran.append(time.monotonic() - began)
                assert result.outcome is Outcome.REACHED
                client.act("terminate", workspace.name)
                assert client.wait(workspace.name, timeout=20).outcome is Outcome.REACHED

    in_parallel([some] * AT_ONCE)
    assert len(ran) == AT_ONCE * EACH
    return max(answered), max(ran)


def test_a_hung_backend_takes_its_own_pool_down_and_no_other(tmp_path: Path) -> None:
    with (
        Standin(STANDIN) as hung,
        Standin(STANDIN) as well,
        broker_process(tmp_path, configuration(hung.endpoint, hung.session, other_pool(well))) as broker,
        Client(broker.address) as client,
    ):
        client.refresh(pool_name("one"))
        client.refresh(pool_name(OTHER))
        before = lives(broker.address)

        hung.faults.add("hang")
        # Accepted before anything could be known; every one of their calls hangs.
        waiting = [create(client, "one") for _ in range(20)]
        meanwhile: list[tuple[float, float]] = []
        measuring = threading.Thread(target=lambda: meanwhile.append(lives(broker.address)))
        measuring.start()
        until(lambda: client.pool(pool_name("one")).state == Pool.STATE_UNREACHABLE, "UNREACHABLE")
        assert client.pool(pool_name(OTHER)).state == Pool.STATE_ACTIVE
        with pytest.raises(Unavailable) as refused:
            create(client, "one")
        assert refused.value.reason == "BACKEND_UNREACHABLE"
        assert refused.value.retry_after
        for workspace in waiting[::2]:
            client.act("terminate", workspace.name)  # remembered, and done when it answers
        assert hung.vms() == []
        measuring.join()
        print("worst of the creates, answered and running, in seconds:", before, meanwhile)
        assert [now < 3 * then + 0.5 for then, now in zip(before, meanwhile[0], strict=True)] == [True, True]
        assert client.pool(pool_name("one")).state == Pool.STATE_UNREACHABLE
        assert {client.workspace(workspace.name).state for workspace in waiting} == {
            Workspace.STATE_STARTING,
            Workspace.STATE_TERMINATING,
        }

        hung.faults.clear()
        ends = (Workspace.STATE_TERMINATED, Workspace.STATE_RUNNING)
        in_parallel([partial(ended, broker.address, each, ends[n % 2]) for n, each in enumerate(waiting)])
        assert client.pool(pool_name("one")).state == Pool.STATE_ACTIVE
        assert differences(Observer(hung.endpoint, hung.session).look(), shown(client)) == []
        assert len(hung.vms()) == 10


def ended(address: str, workspace: Workspace, state: Workspace.State) -> None:
    with Client(address) as client:
        result = client.wait(workspace.name, [state], timeout=30)
        assert result.outcome is Outcome.REACHED, result.workspace
