"""What a refused step amounts to, what an accepted one looks like for a moment, and sums over a reading."""

from __future__ import annotations

from dataclasses import replace

import pytest

from backends.base import HostState, Observation, Step
from backends.opennebula import inventory, names
from backends.opennebula.documents import Datastore, Disk, Host, Image, Network, Nic, Vm
from backends.opennebula.goals import GOALS, Look, Verdict, judge
from backends.opennebula.inventory import Accountant, Reading
from backends.opennebula.observing import SETTLE_SECONDS, Observer
from backends.opennebula.settings import Settings
from backends.opennebula.states import Lcm, State
from tests.support.opennebula_pool import BROKER, HandClock, identity


def vm(state: State, lcm: Lcm = Lcm.LCM_INIT, host: str = "a", **changes: object) -> Vm:
    made = Vm(
        vm_id=1,
        name="x",
        state=state,
        lcm=lcm,
        host=host,
        cpu=1000,
        memory=512,
        disks=(),
        nics=(),
        identity=identity(),
        message="",
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def active(lcm: Lcm, host: str = "a") -> Vm:
    return vm(State.ACTIVE, lcm, host)


D, T, V, H, N = Verdict.DONE, Verdict.RETRY, Verdict.RECOVER, Verdict.HOST, Verdict.NEVER

JUDGED = [
    (Step.DEPLOY, active(Lcm.PROLOG), D),
    (Step.DEPLOY, active(Lcm.BOOT_UNDEPLOY), D),
    (Step.DEPLOY, active(Lcm.RUNNING), D),
    (Step.DEPLOY, active(Lcm.RUNNING, "b"), N),
    (Step.DEPLOY, active(Lcm.BOOT, "b"), T),
    (Step.DEPLOY, vm(State.PENDING), H),
    (Step.DEPLOY, vm(State.HOLD), H),
    (Step.DEPLOY, vm(State.STOPPED), H),
    (Step.DEPLOY, vm(State.UNDEPLOYED), H),
    (Step.DEPLOY, vm(State.POWEROFF), N),
    (Step.DEPLOY, active(Lcm.EPILOG_UNDEPLOY), T),
    (Step.DEPLOY, active(Lcm.BOOT_FAILURE), V),
    (Step.DEPLOY, active(Lcm.BOOT_FAILURE, "b"), N),
    (Step.DEPLOY, vm(State.DONE), N),
    (Step.SUSPEND, vm(State.SUSPENDED), D),
    (Step.SUSPEND, vm(State.STOPPED), D),
    (Step.SUSPEND, active(Lcm.SAVE_SUSPEND), D),
    (Step.SUSPEND, active(Lcm.RUNNING), T),
    (Step.SUSPEND, active(Lcm.BOOT), T),
    (Step.SUSPEND, active(Lcm.UNKNOWN), T),
    (Step.SUSPEND, vm(State.POWEROFF), N),
    (Step.SUSPEND, active(Lcm.BOOT_FAILURE), N),
    (Step.SUSPEND_RELEASE, vm(State.STOPPED), D),
    (Step.SUSPEND_RELEASE, active(Lcm.EPILOG_STOP), D),
    (Step.SUSPEND_RELEASE, vm(State.SUSPENDED), T),
    (Step.SUSPEND_RELEASE, active(Lcm.SAVE_SUSPEND), T),
    (Step.SUSPEND_RELEASE, vm(State.UNDEPLOYED), N),
    (Step.STOP, vm(State.POWEROFF), D),
    (Step.STOP, vm(State.UNDEPLOYED), D),
    (Step.STOP, active(Lcm.SHUTDOWN_POWEROFF), D),
    (Step.STOP, vm(State.SUSPENDED), N),
    (Step.STOP_RELEASE, vm(State.UNDEPLOYED), D),
    (Step.STOP_RELEASE, active(Lcm.SHUTDOWN_UNDEPLOY), D),
    (Step.STOP_RELEASE, vm(State.POWEROFF), T),
    (Step.STOP_RELEASE, active(Lcm.SHUTDOWN_POWEROFF), T),
    (Step.STOP_RELEASE, vm(State.SUSPENDED), N),
    (Step.RESUME, active(Lcm.BOOT_SUSPENDED), D),
    (Step.RESUME, active(Lcm.RUNNING), D),
    (Step.RESUME, vm(State.SUSPENDED), T),
    (Step.RESUME, vm(State.STOPPED), N),
    (Step.RESUME, active(Lcm.BOOT_FAILURE), V),
    (Step.START, active(Lcm.BOOT_POWEROFF), D),
    (Step.START, vm(State.UNDEPLOYED), N),
    (Step.START, active(Lcm.SHUTDOWN_POWEROFF), T),
    (Step.REBOOT, active(Lcm.RUNNING), T),
    (Step.REBOOT, vm(State.POWEROFF), N),
    (Step.SAVE, active(Lcm.HOTPLUG_SAVEAS), D),
    (Step.SAVE, vm(State.POWEROFF), T),
    (Step.SAVE, vm(State.HOLD), T),
    (Step.SAVE, vm(State.DONE), N),
    (Step.MIGRATE, active(Lcm.RUNNING), D),
    (Step.MIGRATE, vm(State.POWEROFF), D),
    (Step.MIGRATE, active(Lcm.BOOT_MIGRATE), D),
    (Step.MIGRATE, active(Lcm.RUNNING, "b"), H),
    (Step.MIGRATE, vm(State.POWEROFF, host="b"), H),
    (Step.MIGRATE, active(Lcm.SAVE_MIGRATE, "b"), T),
    (Step.LIVE_MIGRATE, active(Lcm.MIGRATE), D),
    (Step.LIVE_MIGRATE, active(Lcm.RUNNING), D),
    (Step.LIVE_MIGRATE, active(Lcm.RUNNING, "b"), H),
    (Step.LIVE_MIGRATE, vm(State.POWEROFF), N),
]


@pytest.mark.parametrize(("step", "found", "verdict"), JUDGED)
def test_judge(step: Step, found: Vm, verdict: Verdict) -> None:
    host = "a" if GOALS[step].wants_host else ""
    assert judge(step, Look(vm=found, host=host)) is verdict


def observe(observer: Observer, found: Vm) -> Observation:
    return observer.node(found, identity(), lambda _, name: name).observation


NOT_BEGUN = [
    (Step.SUSPEND, active(Lcm.RUNNING), Observation.RUNNING),
    (Step.SUSPEND_RELEASE, active(Lcm.RUNNING), Observation.RUNNING),
    (Step.SUSPEND_RELEASE, vm(State.SUSPENDED), Observation.SUSPENDED),
    (Step.STOP, active(Lcm.RUNNING), Observation.RUNNING),
    (Step.STOP_RELEASE, vm(State.POWEROFF), Observation.OFF),
    (Step.RESUME, vm(State.SUSPENDED), Observation.SUSPENDED),
    (Step.START, vm(State.POWEROFF), Observation.OFF),
    (Step.DEPLOY, vm(State.STOPPED), Observation.SUSPENDED),
    (Step.DEPLOY, vm(State.UNDEPLOYED), Observation.OFF),
    (Step.SAVE, active(Lcm.RUNNING), Observation.RUNNING),
    (Step.LIVE_MIGRATE, active(Lcm.RUNNING, "a"), Observation.RUNNING),
    (Step.TERMINATE, active(Lcm.RUNNING), Observation.RUNNING),
    (Step.TERMINATE, active(Lcm.BOOT_FAILURE), Observation.BROKEN),
]


@pytest.mark.parametrize(("step", "before", "later"), NOT_BEGUN)
def test_accepted_is_not_done(step: Step, before: Vm, later: Observation) -> None:
    clock = HandClock()
    observer = Observer(clock)
    observer.accepted(1, step, "b")
    assert observe(observer, before) is Observation.BUSY
    clock.seconds += SETTLE_SECONDS
    assert observe(observer, before) is later  # it did not move: then that is what it is


BEGUN = [
    (Step.SUSPEND, active(Lcm.SAVE_SUSPEND), Observation.BUSY),
    (Step.SUSPEND, vm(State.SUSPENDED), Observation.SUSPENDED),
    (Step.SUSPEND_RELEASE, vm(State.STOPPED), Observation.SUSPENDED),
    (Step.STOP_RELEASE, vm(State.UNDEPLOYED), Observation.OFF),
    (Step.LIVE_MIGRATE, active(Lcm.RUNNING, "b"), Observation.RUNNING),
    (Step.REBOOT, active(Lcm.RUNNING), Observation.RUNNING),
    (Step.DEPLOY, active(Lcm.RUNNING), Observation.RUNNING),
    (Step.TERMINATE, vm(State.DONE), Observation.ABSENT),
]


@pytest.mark.parametrize(("step", "found", "seen"), BEGUN)
def test_what_has_begun_is_shown_as_it_is(step: Step, found: Vm, seen: Observation) -> None:
    observer = Observer(HandClock())
    observer.accepted(1, step, "b")
    assert observe(observer, found) is seen


def test_once_begun_a_way_back_is_believed() -> None:
    """A driver that fails brings the VM back to RUNNING, and that is the news."""
    observer = Observer(HandClock())
    observer.accepted(1, Step.SUSPEND)
    assert observe(observer, active(Lcm.SAVE_SUSPEND)) is Observation.BUSY
    assert observe(observer, active(Lcm.RUNNING)) is Observation.RUNNING


def test_a_vm_that_let_go_of_its_host_is_on_none() -> None:
    observer = Observer(HandClock())
    for found, host in ((vm(State.STOPPED), ""), (vm(State.UNDEPLOYED), ""), (vm(State.SUSPENDED), "a")):
        assert observer.node(found, identity(), lambda _, name: name).host == host


HOST = Host(
    host_id=0,
    name="a",
    state=2,
    cluster_id=0,
    cluster="default",
    cpu=4000,
    memory=4096,
    disk=0,
    drivers=("kvm", "qemu"),
    template={},
    error="",
)
STORE = Datastore(
    datastore_id=0,
    name="system",
    system=True,
    enabled=True,
    shared=True,
    clusters=frozenset({0}),
    total=10_000,
    used=700,
)
NET = Network(network_id=5, name="net", clusters=frozenset({0}), size=20, used=0)
IMAGE = Image(image_id=1, name="os", kind=0, state=1, size=9, datastore_id=0, arch="x86_64", hypervisor="")


def reading(**changes: object) -> Reading:
    made = Reading(
        hosts=(HOST,),
        vms=(),
        images=(),
        networks=(),
        datastores=(),
        clusters=frozenset({0}),
        saw_hosts=True,
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def disk(size: int) -> tuple[Disk, ...]:
    return (Disk(disk_id=0, target="sda", image_id="1", size=size),)


def nic(count: int) -> tuple[Nic, ...]:
    return tuple(Nic(network_id=5, network="net", name="", mac="", addresses=()) for _ in range(count))


def test_foreign_is_what_strangers_hold_on_the_host() -> None:
    strangers = (
        vm(State.ACTIVE, Lcm.RUNNING, identity=None),
        vm(State.ACTIVE, Lcm.BOOT, identity=identity(broker="other"), cpu=100),
        vm(State.SUSPENDED, identity=None, cpu=20),
        vm(State.POWEROFF, identity=None, cpu=3),
        vm(State.STOPPED, identity=None),
        vm(State.UNDEPLOYED, identity=None),
        vm(State.HOLD, identity=None, host=""),
        vm(State.ACTIVE, Lcm.RUNNING, identity=None, host="b"),
        vm(State.ACTIVE, Lcm.RUNNING),
    )
    (host,) = Accountant(Settings(), BROKER).hosts(reading(vms=strangers))
    assert host.foreign == {"cpu": 1123, "memory": 4 * 512}
    assert host.total == {"cpu": 4000, "memory": 4096}


def test_a_host_without_figures_keeps_its_last_and_takes_nothing() -> None:
    accountant = Accountant(Settings(), BROKER)
    empty = replace(HOST, cpu=0, memory=0)
    (host,) = accountant.hosts(reading(hosts=(empty,)))
    assert (host.state, host.total) == (HostState.DISABLED, {"cpu": 0, "memory": 0})
    accountant.hosts(reading())
    (host,) = accountant.hosts(reading(hosts=(empty,)))
    assert (host.state, host.total["cpu"]) == (HostState.DISABLED, 4000)
    assert "no capacity yet" in host.message
    (host,) = accountant.hosts(reading())
    assert (host.state, host.message) == (HostState.ACTIVE, "")


def test_host_attributes() -> None:
    template = {"ARCH": "x86_64", "RACK": "7", "ERROR": "no", "RESERVED_CPU": "", "VM_MAD": "kvm", "EMPTY": ""}
    (host,) = Accountant(Settings(), BROKER).hosts(reading(hosts=(replace(HOST, template=template),)))
    assert host.attributes == {
        "arch": "x86_64",
        "rack": "7",
        "hypervisor": "qemu",
        "cluster": "default",
        "cluster_id": 0,
        "host_id": 0,
    }
    named = replace(HOST, template={"HYPERVISOR": "kvm"}, drivers=("x", ""))
    (host,) = Accountant(Settings(), BROKER).hosts(reading(hosts=(named,)))
    assert host.attributes["hypervisor"] == "kvm"
    unnamed = replace(HOST, drivers=("lxc", ""))
    (host,) = Accountant(Settings(), BROKER).hosts(reading(hosts=(unnamed,)))
    assert host.attributes["hypervisor"] == "lxc"


@pytest.mark.parametrize(
    ("told", "shared", "host_disk", "pool", "by_host"),
    [
        (None, True, 0, {"disk": 10_000}, None),
        (None, True, 500, {"disk": 10_000}, None),
        (None, False, 500, {}, 500),
        (None, False, 0, {}, None),
        (True, False, 500, {"disk": 10_000}, None),
        (False, True, 500, {}, 500),
    ],
)
def test_whose_disk_it_is(
    told: bool | None, shared: bool, host_disk: int, pool: dict[str, int], by_host: int | None
) -> None:
    accountant = Accountant(Settings(shared_storage=told), BROKER)
    look = reading(hosts=(replace(HOST, disk=host_disk),), datastores=(replace(STORE, shared=shared),))
    assert accountant.pool_disk(look)[0] == pool
    assert accountant.hosts(look)[0].total.get("disk") == by_host


def test_foreign_disk_and_addresses_are_what_is_used_beyond_ours() -> None:
    accountant = Accountant(Settings(), BROKER)
    mine = vm(State.STOPPED, disks=disk(600), nics=nic(2))
    theirs = vm(State.STOPPED, disks=disk(50), nics=nic(1), identity=None)
    look = reading(vms=(mine, theirs), datastores=(STORE,), networks=(replace(NET, used=5),))
    assert accountant.pool_disk(look) == ({"disk": 10_000}, {"disk": 100})
    (network,) = accountant.networks(look, names.of_networks(look.networks, Settings()))
    assert (network.total_addresses, network.foreign_addresses) == (20, 3)  # one stranger's, two on hold
    thin = reading(vms=(mine, theirs), datastores=(replace(STORE, used=1),), networks=(NET,))
    assert accountant.pool_disk(thin)[1] == {"disk": 50}
    (network,) = accountant.networks(thin, names.of_networks(thin.networks, Settings()))
    assert network.foreign_addresses == 1


def test_only_the_chosen_system_datastore_counts() -> None:
    stores = (STORE, replace(STORE, datastore_id=9, total=5), replace(STORE, datastore_id=8, enabled=False))
    look = reading(datastores=stores)
    assert Accountant(Settings(), BROKER).pool_disk(look)[0] == {"disk": 10_005}
    assert Accountant(Settings(datastore=9), BROKER).pool_disk(look)[0] == {"disk": 5}
    assert Accountant(Settings(datastore=77), BROKER).pool_disk(look) == ({}, {})


def test_a_pool_of_one_cluster_sees_what_its_hosts_can_use() -> None:
    look = inventory.narrowed(
        reading(
            networks=(NET, replace(NET, clusters=frozenset({1}))),
            datastores=(STORE, replace(STORE, datastore_id=1, clusters=frozenset({1}))),
            images=(IMAGE, replace(IMAGE, datastore_id=1)),
        )
    )
    assert (len(look.networks), len(look.datastores), len(look.images)) == (1, 1, 1)
    hosts = (HOST, replace(HOST, cluster="compute", cluster_id=100))
    assert [host.cluster_id for host in inventory.in_cluster(hosts, "compute")] == [100]
    assert [host.cluster_id for host in inventory.in_cluster(hosts, "0")] == [0]
    assert len(inventory.in_cluster(hosts, "")) == 2


def test_names() -> None:
    things = [(1, "os", "first"), (2, "twin", "second"), (3, "twin", "third"), (4, "7", "fourth"), (7, "x", "last")]
    found = names.Names(things, {"debian": "os", "by-id": "3", "dead": "nothing"})
    assert found.shown == {"debian": "first", "by-id": "third", "7": "fourth", "x": "last", "2": "second"}
    assert found.ambiguous == ["twin"]
    assert found.missing == ['"dead" stands for "nothing", which is not there']
    assert found.find("twin") is None
    assert found.find("os") == "first"  # the front-end's own name still does
    assert found.find("2") == "second"
    assert found.find("7") == "fourth"  # a name goes before an id
    assert (found.name_of(1, "?"), found.name_of(99, "?")) == ("debian", "?")


def test_a_name_shown_stands_for_one_thing() -> None:
    things = [(1, "os", "first"), (2, "twin", "second"), (3, "twin", "third"), (4, "2", "fourth")]
    found = names.Names(things, {"os": "twin", "2": "3"})
    assert found.missing == ['"os" stands for "twin", which several things bear: use an id']
    assert found.shown == {"2": "third", "os": "first", "4": "fourth"}
    assert found.find("2") == "third"
    assert found.name_of(2, "?") == "?"  # its own id is somebody's name


def test_images_that_boot_or_hold_data() -> None:
    kinds = [replace(IMAGE, image_id=kind, name=str(kind), kind=kind) for kind in range(7)]
    assert list(names.of_images(kinds, Settings()).shown) == ["0", "1", "2"]
    states = [replace(IMAGE, image_id=state, name=f"s{state}", state=state) for state in range(11)]
    shown = inventory.observed_images(names.of_images(states, Settings()))
    assert [image.name for image in shown if image.ready] == ["s1", "s2"]
    assert shown[0].attributes == {"arch": "x86_64"}
