"""A network that spoils a fifth of all calls costs no VM, makes none twice and leaves nothing held.

The same code as `python -m tests.faults.run`, with fewer life cycles; FAULTS_SEED chooses another seed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from workspacebroker.v1 import workspace_service_pb2 as api
from workspacebroker.v1.resources_pb2 import NodeSet, Quantities, Workspace

from backends.opennebula.standin import Standin
from clients.errors import from_status
from clients.names import pool_name, tenant_name
from clients.sdk import Client, Outcome
from tests.faults.run import SHARE, Site, run, site
from tests.faults.sums import POOL, Observer, differences, shown
from tests.support.process import until
from tests.support.proxy import FAULTS

SEED = int(os.environ.get("FAULTS_SEED", "1"))


@pytest.mark.timeout(300)  # seconds; 25 on a machine of its own
def test_the_sums_hold_after_life_cycles_on_a_bad_network(tmp_path: Path) -> None:
    result = run(tmp_path, seed=SEED, cycles=150, clients=16)
    print(result.report())
    assert result.complaints() == []
    assert result.tally.cycles == 150
    assert result.kept > 0
    assert result.samples > 10
    total = result.calls.total()
    assert total > 1500
    assert sum(result.calls[kind] for kind in FAULTS) / total == pytest.approx(SHARE, abs=0.05)
    for method in ("one.vm.allocate", "one.vm.deploy", "one.vm.action", "one.vm.info", "one.vmpool.infoextended"):
        assert 0.08 < result.spoiled_by_method[method] / result.calls_by_method[method] < 0.4, method


Settled = tuple[Site, Client, list[Workspace]]


@pytest.fixture(scope="module")
def settled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settled]:
    """A site without faults, and three workspaces at rest: of two nodes, suspended, stopped and released."""
    with site(tmp_path_factory.mktemp("site"), SEED, share=0.0) as where, Client(where.broker.address) as client:
        client.refresh(pool_name(POOL))
        workspaces = [created(client, count) for count in (2, 1, 1)]
        client.act("suspend", workspaces[1].name)
        client.act("stop", workspaces[2].name, release_capacity=True)
        for workspace, state in (
            (workspaces[1], Workspace.STATE_SUSPENDED),
            (workspaces[2], Workspace.STATE_STOPPED),
        ):
            assert client.wait(workspace.name, [state], timeout=20).outcome is Outcome.REACHED
        yield where, client, [client.workspace(workspace.name) for workspace in workspaces]


def created(client: Client, count: int) -> Workspace:
    nodes = NodeSet(count=count, amounts=Quantities(amounts={"cpu": 1000, "memory": 512}))
    asked = api.CreateWorkspaceRequest(parent=tenant_name("default"), workspace=Workspace(node_sets=[nodes]))
    result = client.wait(client.create(asked).name, [Workspace.STATE_RUNNING], timeout=20)
    assert result.outcome is Outcome.REACHED
    return result.workspace


def found(where: Site, client: Client) -> list[str]:
    """What the check says."""
    client.refresh(pool_name(POOL))
    return differences(Observer(where.one.endpoint, where.one.session).look(), shown(client))


def plant(one: Standin, tag: str) -> Callable[[], object]:
    """A VM that no broker asked for, running on the first host; returns what takes it away again."""
    answer = one.call("one.vm.allocate", f'NAME="planted"\nCPU="1"\nMEMORY="256"\n{tag}', True)
    assert isinstance(answer, list)
    vm_id = answer[1]
    one.call("one.vm.deploy", vm_id, 0, True, -1)
    until(lambda: one.place(vm_id) == "RUNNING", "the planted VM")

    def gone() -> None:
        one.call("one.vm.recover", vm_id, 3)
        until(lambda: one.place(vm_id) == "DONE", "the end of the planted VM")

    return gone


@pytest.mark.parametrize(
    ("which", "words"),
    [
        (
            "doubled",
            ["has 2 VMs", "bears its tag", "shown as a stray", "5 VMs at the front-end, 4 nodes", "foreign"],
        ),
        ("stray", ["belongs to no live node", "is shown as a stray", "5 VMs at the front-end, 4 nodes", "foreign"]),
        ("foreign", ["of node None", "5 VMs at the front-end, 4 nodes at the broker", "foreign"]),
    ],
)
def test_a_planted_vm_makes_the_sums_differ(settled: Settled, which: str, words: list[str]) -> None:
    where, client, workspaces = settled
    assert found(where, client) == []
    broker = next(vm.broker for vm in Observer(where.one.endpoint, where.one.session).look().vms)
    tag = {
        "doubled": f'WORKSPACE_BROKER=[BROKER="{broker}", WORKSPACE="{workspaces[0].uid}", NODE="1"]',
        "stray": f'WORKSPACE_BROKER=[BROKER="{broker}", WORKSPACE="nobody", NODE="0"]',
        "foreign": "",
    }[which]
    gone = plant(where.one, tag)
    try:
        told = "\n".join(found(where, client))
        assert [word for word in words if word not in told] == [], told
    finally:
        gone()
    assert found(where, client) == []


def test_a_lost_vm_makes_the_sums_differ_until_the_broker_has_seen_it(settled: Settled) -> None:
    where, client, _ = settled
    workspace = created(client, 1)
    where.one.call("one.vm.recover", int(workspace.nodes[0].backend_id), 3)
    observer = Observer(where.one.endpoint, where.one.session)
    told = "\n".join(differences(observer.look(), shown(client)))
    assert "is lost" in told
    assert "4 VMs at the front-end, 5 nodes" in told
    assert "slots hold" in told
    assert found(where, client) == []
    assert client.workspace(workspace.name).state == Workspace.STATE_FAILED
    assert from_status(client.workspace(workspace.name).nodes[0].last_error).reason == "NODE_GONE"


def test_a_vm_that_someone_stopped_makes_the_sums_differ_until_the_broker_has_seen_it(settled: Settled) -> None:
    where, client, _ = settled
    workspace = created(client, 1)
    where.one.power_off_by_hand(int(workspace.nodes[0].backend_id))
    observer = Observer(where.one.endpoint, where.one.session)
    assert "is RUNNING at the broker, and VM" in "\n".join(differences(observer.look(), shown(client)))
    assert found(where, client) == []
    assert client.workspace(workspace.name).state == Workspace.STATE_STOPPED
