"""What the stand-in does that no recorded row shows: races, strangers, failures from outside, configuration.

The table "seen afterwards on the same daemon" is here, and what a demo relies on.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from backends.opennebula.standin import (
    HostConfig,
    ImageConfig,
    NetworkConfig,
    Standin,
    StandinConfig,
    UserConfig,
    VmConfig,
    load_config,
)
from tests.support.standin_wire import call, until

ROOT = Path(__file__).parent.parent.parent
NO_SUCH, WRONG_STATE, INTERNAL, TAKEN = 0x400, 0x800, 0x2000, 0x4000


@pytest.fixture
def one() -> Iterator[Standin]:
    config = StandinConfig(
        hosts=(HostConfig(name="big"), HostConfig(name="two", cores=2, memory_mb=2048)),
        images=(ImageConfig(name="base", size_mb=100),),
        networks=(NetworkConfig(name="lan", size=2),),
        scheduler=False,
        default_dwell=0.001,
    )
    with Standin(config) as standin:
        yield standin


def done(one: Standin, method: str, *params: Any) -> Any:
    answer = one.call(method, *params)
    assert isinstance(answer, list)
    assert answer[0] is True, answer
    return answer[1]


def refused(one: Standin, method: str, *params: Any) -> int:
    answer = one.call(method, *params)
    assert isinstance(answer, list)
    assert answer[0] is False, answer
    code = answer[2]
    assert isinstance(code, int)
    return code


def reach(one: Standin, vm_id: int, place: str) -> None:
    until(lambda: one.place(vm_id) == place, what=place)


def running(one: Standin, more: str = "", cpu: str = "1", host: int = 0) -> int:
    vm_id = done(one, "one.vm.allocate", f'CPU="{cpu}"\nMEMORY="256"\n{more}', True)
    assert isinstance(vm_id, int)
    done(one, "one.vm.deploy", vm_id, host)
    reach(one, vm_id, "RUNNING")
    return vm_id


def act(one: Standin, vm_id: int, action: str, place: str) -> None:
    done(one, "one.vm.action", action, vm_id)
    reach(one, vm_id, place)


# Seen afterwards on the same daemon


@pytest.mark.parametrize("place", ["RUNNING", "POWEROFF", "UNDEPLOYED"])
def test_a_disk_is_saved_as_a_new_image(one: Standin, place: str) -> None:
    vm_id = running(one, 'DISK=[IMAGE="base"]')
    if place != "RUNNING":
        act(one, vm_id, place.lower() if place == "POWEROFF" else "undeploy", place)
    before = len(one.vm(vm_id).trail)
    image_id = done(one, "one.vm.disksaveas", vm_id, 0, "saved", "", -1)
    assert image_id == 1
    until(lambda: "<STATE>1</STATE>" in done(one, "one.image.info", image_id), what="READY")
    reach(one, vm_id, place)
    through = [lcm.value for _, lcm in one.vm(vm_id).trail[before:]]
    assert through[:1] == {"RUNNING": [26], "POWEROFF": [27], "UNDEPLOYED": []}[place]
    assert refused(one, "one.vm.disksaveas", vm_id, 0, "saved", "", -1) == TAKEN
    assert refused(one, "one.vm.disksaveas", vm_id, 7, "other", "", -1) == INTERNAL


@pytest.mark.parametrize(
    ("first", "there", "action", "through", "then"),
    [
        ("stop", "STOPPED", "terminate", ["EPILOG"], "DONE"),
        ("undeploy", "UNDEPLOYED", "terminate", ["EPILOG"], "DONE"),
        ("suspend", "SUSPENDED", "stop", ["EPILOG_STOP"], "STOPPED"),
        ("poweroff", "POWEROFF", "undeploy", ["EPILOG_UNDEPLOY"], "UNDEPLOYED"),
    ],
)
def test_ways_seen_afterwards(one: Standin, first: str, there: str, action: str, through: list[str], then: str) -> None:
    vm_id = running(one)
    act(one, vm_id, first, there)
    before = len(one.vm(vm_id).trail)
    act(one, vm_id, action, then)
    assert [place.label for place in one.vm(vm_id).trail[before:]] == [*through, then]
    assert one.host_usage("big") == (0, 0)


@pytest.mark.parametrize(
    ("first", "there", "action"),
    [
        ("stop", "STOPPED", "undeploy"),
        ("suspend", "SUSPENDED", "undeploy"),
        ("suspend", "SUSPENDED", "poweroff"),
    ],
)
def test_ways_there_are_not(one: Standin, first: str, there: str, action: str) -> None:
    vm_id = running(one)
    act(one, vm_id, first, there)
    assert refused(one, "one.vm.action", action, vm_id) == WRONG_STATE


# Races


def _parallel_deploys(one: Standin, vms: list[int], host: int) -> list[bool]:
    with ThreadPoolExecutor(len(vms)) as pool:
        answers = pool.map(lambda vm_id: call(one.endpoint, "one.vm.deploy", one.session, vm_id, host, True), vms)
        return [answer[0] for answer in answers]


def test_enforced_deploys_one_after_another_fit_exactly(one: Standin) -> None:
    vms = [done(one, "one.vm.allocate", 'CPU="1"\nMEMORY="64"', True) for _ in range(3)]
    accepted = [call(one.endpoint, "one.vm.deploy", one.session, vm_id, 1, True)[0] for vm_id in vms]
    assert accepted == [True, True, False]


def test_enforced_deploys_in_parallel_overbook() -> None:
    config = StandinConfig(
        hosts=(HostConfig(name="two", cores=2),), scheduler=False, call_latency={"one.vm.deploy": 0.3}
    )
    with Standin(config) as one:
        vms = [done(one, "one.vm.allocate", 'CPU="1"\nMEMORY="64"', True) for _ in range(8)]
        assert sum(_parallel_deploys(one, vms, 0)) > 2
        assert one.host_usage("two")[0] > 200


def test_parallel_deploys_of_one_vm_have_one_winner(one: Standin) -> None:
    vm_id = done(one, "one.vm.allocate", 'CPU="1"\nMEMORY="64"', True)
    assert sum(_parallel_deploys(one, [vm_id] * 6, 0)) == 1


def test_simultaneous_suspends_are_all_accepted() -> None:
    config = StandinConfig(hosts=(HostConfig(name="big"),), scheduler=False, call_latency={"one.vm.action": 0.3})
    with Standin(config) as one:
        vm_id = running(one)
        before = len(one.vm(vm_id).trail)
        with ThreadPoolExecutor(4) as pool:
            session = one.session
            answers = pool.map(lambda _: call(one.endpoint, "one.vm.action", session, "suspend", vm_id), range(4))
            assert [answer[0] for answer in answers] == [True] * 4
        reach(one, vm_id, "SUSPENDED")
        assert [place.label for place in one.vm(vm_id).trail[before:]] == ["SAVE_SUSPEND", "SUSPENDED"]
        assert call(one.endpoint, "one.vm.action", session, "suspend", vm_id)[2] == WRONG_STATE


def test_true_means_accepted_not_done(one: Standin) -> None:
    vm_id = done(one, "one.vm.allocate", 'CPU="1"\nMEMORY="64"', True)
    one.hold("BOOT")
    done(one, "one.vm.deploy", vm_id, 0)
    reach(one, vm_id, "BOOT")
    for action in ("suspend", "poweroff", "terminate", "terminate-hard"):
        assert refused(one, "one.vm.action", action, vm_id) == WRONG_STATE
    done(one, "one.vm.recover", vm_id, 3)
    reach(one, vm_id, "DONE")


# From outside


def test_a_failing_host_loses_its_running_vms(one: Standin) -> None:
    lost, off = running(one), running(one)
    act(one, off, "poweroff", "POWEROFF")
    one.fail_host("big", "disk on fire")
    assert (one.place(lost), one.place(off)) == ("UNKNOWN", "POWEROFF")
    assert "disk on fire" in done(one, "one.host.info", 0)
    assert one.host_usage("big") == (200, 512 * 1024)  # still promised
    one.report_host("big")
    assert "<STATE>2</STATE>" in done(one, "one.host.info", 0)
    act(one, lost, "resume", "RUNNING")


def test_a_vm_powered_off_by_hand(one: Standin) -> None:
    vm_id = running(one)
    before = len(one.vm(vm_id).trail)
    one.power_off_by_hand(vm_id)
    reach(one, vm_id, "POWEROFF")
    assert [place.label for place in one.vm(vm_id).trail[before:]] == ["SHUTDOWN_POWEROFF", "POWEROFF"]


def test_drivers_fail_when_told_to(one: Standin) -> None:
    vm_id = done(one, "one.vm.allocate", 'CPU="1"\nMEMORY="64"', True)
    one.fail_next("DEPLOY", vm_id)
    done(one, "one.vm.deploy", vm_id, 0)
    reach(one, vm_id, "BOOT_FAILURE")
    assert "<ERROR>" in done(one, "one.vm.info", vm_id)
    done(one, "one.vm.recover", vm_id, 2)
    reach(one, vm_id, "RUNNING")
    one.fail_next("SAVE")
    before = len(one.vm(vm_id).trail)
    act(one, vm_id, "suspend", "RUNNING")
    until(lambda: len(one.vm(vm_id).trail) == before + 2, what="the way back")
    assert one.place(vm_id) == "RUNNING"


def test_an_exhausted_network(one: Standin) -> None:
    text = 'CPU="1"\nMEMORY="64"\nNIC=[NETWORK="lan"]'
    vms = [done(one, "one.vm.allocate", text, True) for _ in range(2)]
    assert refused(one, "one.vm.allocate", text, True) == INTERNAL
    template = done(one, "one.template.allocate", f'NAME="t"\n{text}')
    assert refused(one, "one.template.instantiate", template, "x") == TAKEN
    act(one, vms[0], "terminate", "DONE")
    assert done(one, "one.vm.allocate", text, True) == vms[-1] + 1  # a refusal takes no id


# The scheduler, strangers, configuration


def test_the_scheduler_places_and_explains() -> None:
    config = StandinConfig(
        hosts=(HostConfig(name="a", cores=2), HostConfig(name="b", cores=2)),
        scheduler_window=0.01,
        scheduler_interval=0.01,
        default_dwell=0.001,
    )
    with Standin(config) as one:
        vms = [done(one, "one.vm.allocate", 'CPU="1"\nMEMORY="64"', False) for _ in range(4)]
        too_big = done(one, "one.vm.allocate", 'CPU="3"\nMEMORY="64"', False)
        for vm_id in vms:
            reach(one, vm_id, "RUNNING")
        assert (one.host_usage("a")[0], one.host_usage("b")[0]) == (200, 200)
        until(lambda: "SCHED_MESSAGE" in done(one, "one.vm.info", too_big), what="the reason")
        assert one.place(too_big) == "PENDING"


def test_strangers_are_there_from_the_start() -> None:
    strangers = (
        VmConfig(name="web", host="n1", cores=2, owner="bob"),
        VmConfig(name="off", host="n2", state="POWEROFF", template='TAG="x"'),
        VmConfig(name="waits", state="HOLD"),
        VmConfig(name="gone", host="n1", state="UNDEPLOYED"),
    )
    config = StandinConfig(
        hosts=(HostConfig(name="n1"), HostConfig(name="n2", state="disabled")),
        users=(UserConfig(name="bob", password="bob-dummy"),),
        vms=strangers,
        scheduler=False,
    )
    with Standin(config) as one:
        assert [vm.place.label for vm in one.vms()] == ["RUNNING", "POWEROFF", "HOLD", "UNDEPLOYED"]
        assert (one.host_usage("n1")[0], one.host_usage("n2")[0]) == (200, 100)
        assert one.vm(0).uid == 2
        done(one, "one.vm.deploy", 3, 0)
        reach(one, 3, "RUNNING")
        assert one.calls == []


def test_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "one.toml").write_text(
        'oneadmin_password = "other"\nscheduler = false\nclusters = ["edge"]\n'
        "[dwell]\nBOOT = 0.0\n"
        '[[hosts]]\nname = "n1"\ncores = 4\nmemory_mb = 1024\ncluster = "edge"\n'
        '[[faults]]\nkind = "http_status"\nmethod = "one.hostpool.info"\ncount = 1\n'
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "backends.opennebula.standin", "--config", tmp_path / "one.toml"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    with process, process.stdout:
        try:
            endpoint = process.stdout.readline().strip()
            answer = call(endpoint, "one.host.info", "oneadmin:other", 0)
            assert "<TOTAL_MEM>1048576</TOTAL_MEM>" in answer[1]
            assert "<CLUSTER>edge</CLUSTER>" in answer[1]
        finally:
            process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0


def test_a_wrong_configuration_says_so(tmp_path: Path) -> None:
    (tmp_path / "one.toml").write_text('[[hosts]]\nname = "n1"\nmemory = 5\n')
    with pytest.raises(ValueError, match="unknown memory; known are"):
        load_config(tmp_path / "one.toml")
    with pytest.raises(ValueError, match="no cluster 'nowhere'"):
        Standin(StandinConfig(hosts=(HostConfig(name="n1", cluster="nowhere"),)))


def test_large_pools_are_quick() -> None:
    hosts = tuple(HostConfig(name=f"h{number}") for number in range(500))
    vms = tuple(VmConfig(name=f"v{number}", host=f"h{number // 2}", cores=0.1) for number in range(1000))
    with Standin(StandinConfig(hosts=hosts, vms=vms, scheduler=False)) as one:
        for method, params in (
            ("one.hostpool.info", ()),
            ("one.vmpool.info", (-2, -1, -1, -1)),
            ("one.vmpool.infoextended", (-2, -1, -1, -1)),
        ):
            best = min(_seconds(one, method, *params) for _ in range(3))
            assert best < 0.1, f"{method} took {best * 1000:.0f} ms"


def _seconds(one: Standin, method: str, *params: Any) -> float:
    start = time.perf_counter()
    done(one, method, *params)
    return time.perf_counter() - start
