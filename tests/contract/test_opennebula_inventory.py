"""What the adapter reads of a front-end, and in how many calls."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from backends.base import (
    Action,
    BackendRejected,
    DiskSpec,
    HostState,
    NicSpec,
    Observation,
    ObservedHost,
    Step,
)
from backends.opennebula.adapter import OpenNebulaBackend
from backends.opennebula.failures import NotYet
from backends.opennebula.standin import (
    DatastoreConfig,
    HostConfig,
    ImageConfig,
    NetworkConfig,
    Standin,
    StandinConfig,
    TemplateConfig,
    UserConfig,
    VmConfig,
)
from tests.support.opennebula_pool import BROKER, act, identity, node, pool, running, seen, step

OTHER_BROKER = 'WORKSPACE_BROKER=[BROKER="other",WORKSPACE="ws-1",NODE="0"]'


@pytest.fixture
def one() -> Iterator[Standin]:
    config = StandinConfig(
        hosts=(
            HostConfig(name="node000"),
            HostConfig(name="node001", reserved_cpu="100", reserved_mem="1048576"),
            HostConfig(name="off", state="offline"),
            HostConfig(name="out", state="disabled"),
            HostConfig(name="dead", state="error"),
            HostConfig(name="new", state="init"),
            HostConfig(name="far", cluster="compute"),
        ),
        clusters=("compute",),
        datastores=(DatastoreConfig(name="sys2", clusters=("compute",)),),
        images=(ImageConfig(name="os"), ImageConfig(name="data", size_mb=100, type="DATABLOCK")),
        networks=(
            NetworkConfig(name="net", size=10),
            NetworkConfig(name="lan", size=20, first_ip="10.1.0.10", clusters=("compute",)),
        ),
        templates=(TemplateConfig(name="base", text='CPU="1"\nMEMORY="64"\nNOTE="from-template"'),),
        users=(UserConfig(name="alice", password="alice-dummy"),),
        scheduler=False,
        vms=(
            VmConfig(name="stranger", cores=2, memory_mb=1024, host="node000"),
            VmConfig(name="resting", cores=0.5, memory_mb=100, host="node000", state="POWEROFF"),
            VmConfig(name="gone", cores=4, memory_mb=100, host="node000", state="UNDEPLOYED"),
            VmConfig(name="other", cores=1, memory_mb=10, host="node001", template=OTHER_BROKER),
        ),
    )
    with Standin(config) as standin:
        yield standin


async def hosts(backend: OpenNebulaBackend) -> dict[str, ObservedHost]:
    return {host.name: host for host in (await backend.inventory()).hosts}


async def test_hosts(one: Standin) -> None:
    async with pool(one) as backend:
        found = await hosts(backend)
    assert {name: host.state for name, host in found.items()} == {
        "node000": HostState.ACTIVE,
        "node001": HostState.ACTIVE,
        "off": HostState.DISABLED,
        "out": HostState.DISABLED,
        "dead": HostState.LOST,
        "new": HostState.DISABLED,
        "far": HostState.ACTIVE,
    }
    assert found["node000"].total == {"cpu": 8000, "memory": 16384}
    assert found["node001"].total == {"cpu": 7000, "memory": 15360}  # without what OpenNebula reserves
    assert found["node000"].foreign == {"cpu": 2500, "memory": 1124}
    assert found["node001"].foreign == {"cpu": 1000, "memory": 10}  # another broker's is a stranger's
    assert found["far"].attributes["cluster"] == "compute"
    assert found["node000"].attributes["hypervisor"] == "dummy"
    assert found["node000"].attributes["arch"] == "x86_64"
    assert "error" in found["dead"].message.lower()


async def test_ours_are_nodes_and_never_foreign(one: Standin) -> None:
    async with pool(one) as backend:
        spec = node(cpu=1500, nics=(NicSpec(network="net"),))
        vm = await running(backend, spec)
        look = await backend.inventory()
        (found,) = look.nodes
        assert (found.identity, found.backend_id, found.host) == (identity(), vm, "node000")
        assert found.nics[0].network == "net"
        assert found.nics[0].addresses
        foreign = next(host.foreign for host in look.hosts if host.name == "node000")
        assert foreign["cpu"] == 2500
        assert [entry.backend_id for entry in await backend.observe()] == [vm]


async def test_a_host_just_enabled_keeps_its_figures(one: Standin) -> None:
    async with pool(one) as backend:
        before = (await hosts(backend))["node001"]
        one.hold("HOST_REPORT")
        number = one.host("node001").id
        one.call("one.host.status", number, 2)
        one.call("one.host.status", number, 0)
        found = (await hosts(backend))["node001"]
        assert (found.state, found.total) == (HostState.DISABLED, before.total)
        assert found.message


async def test_images_networks_and_disk(one: Standin) -> None:
    async with pool(one, images={"debian": "os"}, networks={"private": "lan", "dead": "nowhere"}) as backend:
        look = await backend.inventory()
        assert {image.name: (image.display_name, image.size_mib) for image in look.images or ()} == {
            "debian": ("os", 1024),
            "data": ("data", 100),
        }
        assert {net.name: net.total_addresses for net in look.networks or ()} == {"net": 10, "private": 20}
        assert look.pool_totals["disk"] > 0
        assert any("dead" in warning for warning in look.warnings)
        spec = node(
            image="debian",
            nics=(NicSpec(network="net", addresses=("10.0.0.15",)),),
            disks=(DiskSpec(image="data"), DiskSpec(size_mib=64)),
        )
        vm = await running(backend, spec)
        found = await backend.find(identity(), vm)
        assert found.nics[0].addresses == ("10.0.0.15",)
        assert found.amounts["disk"] == 1024 + 100 + 64
        for text, bad in (("image", node(image="none")), ("network", node(nics=(NicSpec(network="none"),)))):
            with pytest.raises(BackendRejected, match=f'no {text} "none"'):
                await step(backend, Step.ALLOCATE, bad)


async def test_addresses_that_others_hold(one: Standin) -> None:
    one.call("one.vm.allocate", 'NAME="x"\nCPU="1"\nMEMORY="64"\nNIC=[NETWORK="net"]', True)
    async with pool(one) as backend:
        await running(backend, node(nics=(NicSpec(network="net"),)))
        networks = {net.name: net for net in (await backend.inventory()).networks or ()}
        assert (networks["net"].total_addresses, networks["net"].foreign_addresses) == (10, 1)


@pytest.mark.parametrize("cluster", ["compute", "100"])
async def test_one_cluster_only(one: Standin, cluster: str) -> None:
    async with pool(one, cluster=cluster) as backend:
        look = await backend.inventory()
        assert [host.name for host in look.hosts] == ["far"]
        assert [net.name for net in look.networks or ()] == ["lan"]


async def test_a_cluster_that_is_not_there(one: Standin) -> None:
    async with pool(one, cluster="nowhere") as backend:
        look = await backend.inventory()
        assert look.hosts == ()
        assert any('"nowhere"' in warning for warning in look.warnings)


async def test_a_session_without_rights_is_told_so(one: Standin) -> None:
    """A plain user gets an empty host pool and no error."""
    async with pool(one, session=one.session_of("alice")) as backend:
        look = await backend.inventory()
        assert look.hosts == ()
        assert any("administrator" in warning for warning in look.warnings)
        vm = await step(backend, Step.ALLOCATE, node())
        with pytest.raises(BackendRejected, match="may see"):
            await step(backend, Step.DEPLOY, node(), vm)


async def test_parameters_reach_the_template(one: Standin) -> None:
    given = {"opennebula:template": 0, "opennebula:budget": 42, "opennebula:datastore": 0}
    async with pool(one) as backend:
        vm = await running(backend, node(parameters=given))
        made = one.vm(int(vm))
        assert made.user_template.get("NOTE") == "from-template"
        assert made.user_template.get("BUDGET") == "42"
        assert made.name == "web"
        deploys = [call.args for call in one.calls if call.method == "one.vm.deploy"]
        assert deploys == [(int(vm), one.host("node000").id, True, 0)]
        with pytest.raises(BackendRejected, match="--select"):
            await step(backend, Step.ALLOCATE, node(parameters={"opennebula:sched_requirements": "x"}))
        bad = node(parameters={"opennebula:datastore": 1}, identity=identity("ws-2"))
        with pytest.raises(BackendRejected, match="not of type system datastore"):
            await act(backend, Action.CREATE, bad)


async def test_one_document_a_round_however_many_vms(one: Standin) -> None:
    async with pool(one) as backend:
        for number in range(20):
            await step(backend, Step.ALLOCATE, node(identity=identity("many", number)))
        before = len(one.calls)
        assert len(await backend.observe()) == 20
        assert [call.method for call in one.calls[before:]] == ["one.vmpool.infoextended"]
        before = len(one.calls)
        await backend.inventory()
        assert sorted(call.method for call in one.calls[before:]) == [
            "one.datastorepool.info",
            "one.hostpool.info",
            "one.imagepool.info",
            "one.vmpool.infoextended",
            "one.vnpool.info",
        ]


async def test_a_thousand_vms_in_pages(one: Standin) -> None:
    for number in range(1000):
        tag = f'WORKSPACE_BROKER=[BROKER="{BROKER}",WORKSPACE="w{number}",NODE="0"]'
        one.call("one.vm.allocate", f'NAME="n"\nCPU="0.1"\nMEMORY="16"\n{tag}', True)
    async with pool(one, page_size=300) as backend:
        found = await backend.observe()
        assert len({entry.identity for entry in found}) == len(found) == 1000
        pages = [call.args for call in one.calls if call.method == "one.vmpool.infoextended"]
        assert pages == [(-2, 0, -300, -1), (-2, 300, -300, -1), (-2, 600, -300, -1), (-2, 900, -300, -1)]
        images = (await backend.inventory()).images
        assert len(images or ()) == 2


async def test_find(one: Standin) -> None:
    async with pool(one) as backend:
        assert (await backend.find(identity())).observation is Observation.ABSENT
        first = await running(backend, node())
        second = await step(backend, Step.ALLOCATE, node())  # repeated by hand
        assert (await backend.find(identity())).backend_id == first
        assert (await backend.find(identity(), second)).backend_id == second
        assert (await backend.find(identity(), "4711")).observation is Observation.ABSENT
        other = await backend.find(identity("ws-2"), first)
        assert (other.observation, other.backend_id) == (Observation.ABSENT, first)
        assert "another one" in other.message
        with pytest.raises(BackendRejected, match="no id"):
            await backend.find(identity(), "uuid")
        await step(backend, Step.TERMINATE, node(), first)
        await seen(backend, first, Observation.ABSENT)
        assert (await backend.find(identity())).backend_id == second


async def test_a_tag_that_was_taken_off_is_an_operators_business(one: Standin) -> None:
    async with pool(one) as backend:
        vm = await running(backend, node())
        one.call("one.vm.update", int(vm), "", 0)
        with pytest.raises(NotYet, match="no tag any more"):
            await backend.find(identity(), vm)
        assert list(await backend.observe()) == []
