"""pyone, unchanged, against the stand-in: a VM's life and one refusal.

pyone binds every answer to classes made from OpenNebula's schemas, so an element it does not expect or
one it misses is an error here.
"""

from __future__ import annotations

from collections.abc import Iterator

import pyone
import pytest

from backends.opennebula.standin import HostConfig, ImageConfig, NetworkConfig, Standin, StandinConfig
from tests.support.standin_wire import until

RUNNING = (3, 3)


@pytest.fixture
def one() -> Iterator[Standin]:
    config = StandinConfig(
        hosts=(HostConfig(name="big"), HostConfig(name="little", cores=1, memory_mb=512)),
        images=(ImageConfig(name="base"),),
        networks=(NetworkConfig(name="lan"),),
        scheduler=False,
        default_dwell=0.001,
    )
    with Standin(config) as standin:
        yield standin


def test_a_life(one: Standin) -> None:
    client = pyone.OneServer(one.endpoint, session=one.session)
    assert client.system.version() == one.config.version

    text = 'NAME="mine"\nCPU="0.5"\nMEMORY="256"\nDISK=[IMAGE="base"]\nNIC=[NETWORK="lan"]'
    vm_id = client.vm.allocate(text, True)
    assert [(vm.ID, vm.NAME, vm.STATE) for vm in client.vmpool.info(-2, -1, -1, -1).VM] == [(vm_id, "mine", 2)]

    def state() -> tuple[int, int]:
        vm = client.vm.info(vm_id)
        return vm.STATE, vm.LCM_STATE

    assert client.vm.deploy(vm_id, 0, True) == vm_id
    until(lambda: state() == RUNNING, what="RUNNING")
    vm = client.vm.info(vm_id)
    assert vm.HISTORY_RECORDS.HISTORY[-1].HOSTNAME == "big"
    assert vm.TEMPLATE["NIC"]["IP"] == "10.0.0.10"
    shares = {host.NAME: host.HOST_SHARE for host in client.hostpool.info().HOST}
    assert (shares["big"].CPU_USAGE, shares["big"].MEM_USAGE) == (50, 256 * 1024)

    client.vm.action("suspend", vm_id)
    until(lambda: state() == (5, 0), what="SUSPENDED")
    client.vm.action("resume", vm_id)
    until(lambda: state() == RUNNING, what="RUNNING again")
    client.vm.action("terminate", vm_id)
    until(lambda: state() == (6, 0), what="DONE")
    assert not client.vmpool.info(-2, -1, -1, -1).VM


def test_refusals(one: Standin) -> None:
    client = pyone.OneServer(one.endpoint, session=one.session)
    vm_id = client.vm.allocate('CPU="4"\nMEMORY="4096"', True)
    with pytest.raises(pyone.OneActionException, match="does not fit in host"):
        client.vm.deploy(vm_id, 1, True)
    with pytest.raises(pyone.OneNoExistsException):
        client.vm.info(4711)
    with pytest.raises(pyone.OneAuthenticationException):
        pyone.OneServer(one.endpoint, session="oneadmin:wrong").vm.info(vm_id)


def test_every_pool_binds(one: Standin) -> None:
    client = pyone.OneServer(one.endpoint, session=one.session)
    client.vm.allocate('CPU="1"\nMEMORY="64"\nDISK=[IMAGE="base"]', True)
    assert len(client.vmpool.infoextended(-2, -1, -1, -1).VM) == 1
    assert [image.NAME for image in client.imagepool.info(-2, -1, -1).IMAGE] == ["base"]
    assert [network.NAME for network in client.vnpool.info(-2, -1, -1).VNET] == ["lan"]
    assert {store.NAME for store in client.datastorepool.info().DATASTORE} == {"system", "default", "files"}
    assert [cluster.NAME for cluster in client.clusterpool.info().CLUSTER] == ["default"]
    assert [client.image.info(0).NAME, client.vn.info(0).NAME, client.host.info(1).NAME] == [
        "base",
        "lan",
        "little",
    ]
    assert client.user.info(-1).NAME == "oneadmin"
    assert {user.NAME for user in client.userpool.info().USER} == {"oneadmin", "serveradmin"}
