"""A broker's folder with so many running workspaces, written straight to its files: creating them would take minutes.

Records, request ids and VMs are those that as many CreateWorkspace calls leave behind once everything runs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Final

from backends.base import Identity, Observation
from backends.simulator.addresses import AddressBook
from backends.simulator.journal import Journal
from backends.simulator.world import Machine, World
from broker.assembly import BROKER_ID_KEY
from broker.core.model import Node, NodeSet, RequestRecord, State, Terms, Workspace
from broker.store.base import Row, Table
from broker.store.sqlite import SqliteStore

BROKER_ID: Final = "benchmark"
TENANT: Final = "default"
AMOUNTS: Final = {"cpu": 100, "memory": 64}
"""What each workspace's one VM takes: milli-cores and MiB."""

ROOM: Final = 100_000
"""VMs that still fit on each host."""

CONFIGURATION: Final = """
[server]
listen = "127.0.0.1:0"
state = "broker.db"
[pools.lab]
backend = "simulator"
state_file = "vms.jsonl"
refresh_interval = "1h"
[[pools.lab.hosts]]
count = {hosts}
name = "host"
cpu = {cpu}
memory = {memory}
"""


def write_population(folder: Path, workspaces: int, hosts: int) -> Path:
    """Writes configuration, state file and simulated VMs into an empty folder; returns the configuration's path.

    The leases are spread evenly over the hosts and end one after another from a day to a week from now.
    """
    each = -(-workspaces // hosts) + ROOM
    configuration = folder / "broker.toml"
    configuration.write_text(
        CONFIGURATION.format(hosts=hosts, cpu=AMOUNTS["cpu"] * each, memory=AMOUNTS["memory"] * each)
    )
    now = datetime.now(UTC)
    population = [_workspace(number, workspaces, hosts, now) for number in range(1, workspaces + 1)]
    asyncio.run(_store(folder / "broker.db", population))
    journal = Journal(folder / "vms.jsonl", world := World(addresses=AddressBook(None)))
    journal.open()
    for workspace in population:
        world.put(_machine(workspace))
    journal.close()
    return configuration


def workspace_name(number: int) -> str:
    """The full name of one of the population, from 1."""
    return f"tenants/{TENANT}/workspaces/ws-{number:08d}"


def _workspace(number: int, workspaces: int, hosts: int, now: datetime) -> Workspace:
    host = number % hosts + 1
    return Workspace(
        uid=f"{number:032x}",
        tenant=TENANT,
        id=f"ws-{number:08d}",
        create_time=now,
        node_sets=(NodeSet(own_amounts=AMOUNTS, amounts=AMOUNTS),),
        terms=Terms(),
        state=State.RUNNING,
        nodes=(
            Node(
                index=0,
                set_index=0,
                pool="lab",
                host=f"host-{host:0{len(str(hosts))}}",
                held=AMOUNTS,
                pool_held={},
                state=State.RUNNING,
                backend_id=str(number),
                observe_time=now,
            ),
        ),
        labels={"bench": "1"},
        pool="lab",
        start_time=now,
        prepare_time=now,
        actual_start_time=now,
        end_time=now + timedelta(days=1) + timedelta(days=6) * number / workspaces,
        revision=number,
    )


def _rows(population: list[Workspace]) -> Iterator[Row]:
    yield Row(Table.SETTINGS, BROKER_ID_KEY, BROKER_ID)
    for workspace in population:
        request = RequestRecord(
            tenant=TENANT,
            method="CreateWorkspace",
            request_id=workspace.uid,
            digest=f"v1:{sha256(workspace.uid.encode()).hexdigest()}",
            uid=workspace.uid,
            time=workspace.create_time,
        )
        yield Row(Table.WORKSPACES, workspace.uid, workspace)
        yield Row(Table.REQUESTS, request.key, request)


async def _store(path: Path, population: list[Workspace]) -> None:
    store = SqliteStore(path)
    try:
        await store.submit(list(_rows(population)), alone=True)
    finally:
        store.close()


def _machine(workspace: Workspace) -> Machine:
    node = workspace.nodes[0]
    return Machine(
        backend_id=node.backend_id,
        identity=Identity(broker_id=BROKER_ID, workspace_uid=workspace.uid, node_index=0),
        name=f"{workspace.id}-0",
        amounts=node.held,
        observation=Observation.RUNNING,
        booted=True,
        host=node.host,
        placed=True,
    )
