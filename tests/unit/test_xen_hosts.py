"""Hosts that fall silent, strangers on them, and what the broker is told of both; on libvirt's test driver."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from backends.base import (
    Action,
    Backend,
    BackendError,
    HostState,
    NodeSpec,
    Observation,
    ObservedHost,
    StepCall,
    TransientBackendError,
)

pytest.importorskip("libvirt", reason="libvirt-python is not installed")

from backends.xen import hosts as hosts_module
from backends.xen.adapter import LibvirtBackend
from tests.support.libvirt_pool import Machines, node, pool, settings

BY_HAND = "<domain type='test'><name>{}</name><memory>{}</memory><vcpu>{}</vcpu><os><type>hvm</type></os></domain>"


@pytest.fixture
def machines() -> Iterator[Machines]:
    made = Machines()
    yield made
    made.close()


@pytest.fixture
async def backend(machines: Machines, tmp_path: Path) -> AsyncIterator[LibvirtBackend]:
    async with pool(tmp_path, machines) as made:
        yield made


async def create(backend: Backend, spec: NodeSpec) -> None:
    for step in backend.steps(Action.CREATE):
        await backend.perform(StepCall(step=step, node=spec))


async def hosts(backend: Backend) -> dict[str, ObservedHost]:
    return {host.name: host for host in (await backend.inventory()).hosts}


async def observed(backend: Backend) -> dict[str, tuple[Observation, str]]:
    return {seen.identity.workspace_uid: (seen.observation, seen.host) for seen in await backend.observe()}


async def eventually(backend: Backend, name: str, state: HostState) -> ObservedHost:
    while True:
        seen = (await hosts(backend))[name]
        if seen.state is state:
            return seen
        await asyncio.sleep(0.01)


async def test_a_host_that_is_lost_and_comes_back(backend: LibvirtBackend, machines: Machines) -> None:
    here, there = node(0), node(1, "host-2")
    await create(backend, here)
    await create(backend, there)
    before = (await hosts(backend))["host-2"]
    machines.take_down(2)
    assert await observed(backend) == {"u0": (Observation.RUNNING, "host-1"), "u1": (Observation.SILENT, "host-2")}
    lost = (await hosts(backend))["host-2"]
    assert lost.state is HostState.LOST
    assert (lost.total, lost.foreign, lost.attributes) == (before.total, before.foreign, before.attributes)
    assert lost.message
    found = await backend.find(there.identity)
    assert (found.observation, found.host) == (Observation.SILENT, "host-2")
    assert (await backend.find(here.identity)).observation is Observation.RUNNING
    await create(backend, node(2))  # the other host goes on
    machines.put_up(2)
    await eventually(backend, "host-2", HostState.ACTIVE)
    assert (await observed(backend))["u1"] == (Observation.RUNNING, "host-2")


async def test_what_was_never_on_a_lost_host_is_absent(backend: LibvirtBackend, machines: Machines) -> None:
    await backend.inventory()
    machines.take_down(2)
    with pytest.raises(TransientBackendError):
        await create(backend, node(1, "host-2"))
    assert (await backend.find(node(1).identity)).observation is Observation.ABSENT


async def test_what_may_be_on_a_host_that_was_never_read_is_not_absent(machines: Machines, tmp_path: Path) -> None:
    machines.take_down(2)
    async with pool(tmp_path, machines) as backend:
        with pytest.raises(TransientBackendError, match="may be on host host-2, which does not answer") as unclear:
            await backend.find(node().identity)
        assert unclear.value.answered, "the pool is well"
        assert (await hosts(backend))["host-2"].state is HostState.LOST


async def test_a_create_that_was_cut_off_may_be_there(backend: LibvirtBackend, machines: Machines) -> None:
    await backend.inventory()
    spec = node(1, "host-2")
    machines.faults.lose_answer("defineXML")
    with pytest.raises(BackendError):
        await create(backend, spec)
    machines.take_down(2)
    with pytest.raises(TransientBackendError, match="may be on host host-2"):
        await backend.find(spec.identity)
    machines.put_up(2)
    await eventually(backend, "host-2", HostState.ACTIVE)
    assert (await backend.find(spec.identity)).observation is Observation.OFF


async def test_a_pool_of_which_no_host_answers_is_silent(backend: LibvirtBackend, machines: Machines) -> None:
    await backend.inventory()
    machines.take_down(1)
    machines.take_down(2)
    said, answered = "", True
    while "host-1: Connection refused" not in said or "host-2: Connection refused" not in said:
        with pytest.raises(TransientBackendError) as silent:
            await backend.inventory()
        said, answered = str(silent.value), silent.value.answered
        await asyncio.sleep(0.01)
    assert not answered, "so that the broker's breaker opens"


async def test_a_slow_host_does_not_keep_a_round_waiting(
    backend: LibvirtBackend, machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hosts_module, "PATIENCE", 0.1)
    await create(backend, node(0))
    await create(backend, node(1, "host-2"))
    await backend.inventory()
    thawed = threading.Event()

    def frozen(itself: Any) -> Any:
        thawed.wait()
        return itself()

    machines.faults.add("listAllDomains", frozen)  # whichever host is asked first
    seen = await observed(backend)
    assert sorted(observation for observation, _ in seen.values()) == [Observation.RUNNING, Observation.SILENT]
    states = await hosts(backend)
    assert sorted(bool(host.message) for host in states.values()) == [False, True]
    thawed.set()
    while set((await observed(backend)).values()) != {
        (Observation.RUNNING, "host-1"),
        (Observation.RUNNING, "host-2"),
    }:
        await asyncio.sleep(0.01)


async def test_domains_made_by_hand_are_foreign(backend: LibvirtBackend, machines: Machines) -> None:
    free = (await hosts(backend))["host-1"]
    assert free.total == {"cpu": 4000, "memory": 4096}
    assert free.foreign == {}
    machines.of(1).createXML(BY_HAND.format("by-hand", 300 * 1024, 3), 0)
    machines.of(1).defineXML(BY_HAND.format("off", 1024 * 1024, 1))  # holds nothing while it is off
    await create(backend, node())
    seen = (await hosts(backend))["host-1"]
    assert seen.foreign == {"cpu": 3000, "memory": 300}
    assert [each.identity.workspace_uid for each in await backend.observe()] == ["u0"]


async def test_what_an_operator_says_of_a_host(machines: Machines, tmp_path: Path) -> None:
    settings(tmp_path)  # writes the hosts' files
    table = [{"uri": f"test://{tmp_path}/host-1.xml", "reserve_memory": 1024, "cpus": 2, "name": "big"}]
    async with pool(tmp_path, machines, hosts=table) as backend:
        seen = (await hosts(backend))["big"]
        assert seen.total == {"cpu": 2000, "memory": 3072}
        assert seen.attributes["hypervisor"] == "test"
        assert seen.attributes["arch"] == "x86_64"
        assert seen.attributes["networks"] == ("lan",)


async def test_a_domain_that_vanishes_while_it_is_read_was_not_there(
    backend: LibvirtBackend, machines: Machines
) -> None:
    await create(backend, node())
    machines.faults.fail("state", 42, "Domain not found")
    assert await backend.observe() == ()
    assert len(await backend.observe()) == 1


async def test_a_domain_whose_tag_somebody_took_is_left_alone(backend: LibvirtBackend, machines: Machines) -> None:
    spec = node()
    await create(backend, spec)
    seen = await backend.find(spec.identity)
    domain = machines.of(1).lookupByUUIDString(seen.backend_id)
    domain.setMetadata(2, None, "broker", "urn:workspace-broker:node", 3)
    for ask in (
        backend.find(spec.identity),
        backend.perform(StepCall(step=backend.steps(Action.TERMINATE)[0], node=spec, backend_id=seen.backend_id)),
    ):
        with pytest.raises(TransientBackendError, match="does not bear this node's tag") as left_alone:
            await ask
        assert left_alone.value.answered
    assert domain.isActive()


async def test_one_machine_under_two_uris_is_a_warning(machines: Machines, tmp_path: Path) -> None:
    def seem(uuid: str, hostname: str, number: int) -> None:
        uri = f"test://{tmp_path}/host-{number}.xml"
        real, facts = machines.opened[uri]
        machines.opened[uri] = real, replace(facts, driver="xen", uuid=uuid, hostname=hostname)

    async def warnings() -> tuple[str, ...]:
        async with pool(tmp_path, machines) as backend:
            return (await backend.inventory()).warnings

    assert await warnings() == ()
    for one, other, same in [
        (("u", "a"), ("u", "b"), True),
        (("", "a"), ("", "a"), True),
        (("u", "a"), ("v", "a"), False),  # machines of one installation
        (("u", "a"), ("v", "b"), False),
    ]:
        seem(*one, 1)
        seem(*other, 2)
        said = await warnings()
        assert bool(said) == same
        assert not same or "hosts host-1 and host-2 seem to be one machine" in said[0]


async def test_some_memory_of_a_xen_host_is_promised_to_nobody(machines: Machines, tmp_path: Path) -> None:
    async with pool(tmp_path, machines) as backend:
        assert (await hosts(backend))["host-1"].total["memory"] == 4096
    uri = f"test://{tmp_path}/host-1.xml"
    machines.opened[uri] = machines.opened[uri][0], replace(machines.opened[uri][1], driver="xen")
    async with pool(tmp_path, machines) as backend:
        assert (await hosts(backend))["host-1"].total["memory"] == 4096 - 256
