"""What happened on the recorded daemons between the recorded calls.

Responsible for the front-end each daemon was and for the steps that were not recorded but follow from
what was. Invariant: ids, names and amounts are written as recorded and translated here. A step runs
before the row it stands at.
"""

from __future__ import annotations

import re
import xmlrpc.client
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from backends.opennebula.standin import HostConfig, HostProfile, Standin, StandinConfig, UserConfig
from tests.support.standin_corpus import DAEMONS, daemon_rows
from tests.support.standin_translation import Translation
from tests.support.standin_wire import until

_KINDS_WITH_IDS = ("vm", "host", "image", "network", "template", "cluster", "datastore", "user", "group")
_FIRST = {"cluster": 100, "datastore": 100, "group": 100, "user": 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """A stand-in and the translation it is spoken to in."""

    one: Standin
    translation: Translation

    def call(self, method: str, *params: Any, session: str = "") -> Any:
        translated = self.translation.params(method, ("", *params))[1:]
        answer = self.one.call(method, *translated, session=session or None)
        assert isinstance(answer, list), answer
        assert answer[0] is True, (method, params, answer)
        self.settle()
        return answer[1]

    def settle(self) -> None:
        until(lambda: self.one.settled, what="rest")

    def allocate(self, name: str, cpu: str = "1", memory: int = 512, *, hold: bool = True, extra: str = "") -> None:
        self.call("one.vm.allocate", f'NAME="{name}"\nCPU="{cpu}"\nMEMORY="{memory}"\n{extra}', hold)

    def deploy(self, host: int, *vms: int) -> None:
        for vm in vms:
            self.call("one.vm.deploy", vm, host)

    def act(self, action: str, *vms: int) -> None:
        for vm in vms:
            self.call("one.vm.action", action, vm)

    def vm(self, number: int) -> int:
        return self.translation.id("vm", number)

    def fail_next(self, driver: str, vm: int) -> None:
        self.one.fail_next(driver, self.vm(vm))

    def hold(self, *labels: str) -> None:
        for label in labels:
            self.one.hold(label)

    def release(self, label: str | None = None) -> None:
        self.one.release(label)
        self.settle()

    def schedule(self) -> None:
        self.one.run_scheduler()
        self.settle()


Step = Callable[[Scene], None]


def _first_failures(scene: Scene) -> None:
    for number in range(1, 5):
        scene.allocate(f"fail{number}", extra='VCPU="1"')
    scene.allocate("forgotten")
    scene.fail_next("DEPLOY", 9)


def _host_in_error(scene: Scene) -> None:
    scene.call("one.host.allocate", "fail001", "dummy", "dummy", -1)


def _capacity(scene: Scene) -> None:
    scene.act("terminate", 12, *range(14, 20))
    for name, cpu, memory in (
        ("mem", "1", 4096),
        ("cpu", "4", 512),
        ("exact", "2", 2048),
        ("more", "0.5", 128),
        ("dis", "0.1", 64),
        ("off", "0.1", 64),
        ("err", "0.1", 64),
    ):
        scene.allocate(name, cpu, memory)
    _host_in_error(scene)


def _to_resize(scene: Scene) -> None:
    scene.act("terminate-hard", 21, 22, 23, 24, 25, 26)
    scene.call("one.host.status", 1, 0)
    scene.allocate("rs")
    scene.deploy(2, 28)


def _fill_hosts(scene: Scene) -> None:
    for number in range(8):
        scene.allocate(f"fill{number}", "1", 900, hold=False)
    scene.schedule()


def _many_hosts(count: int, start: int = 0) -> Step:
    def step(scene: Scene) -> None:
        for number in range(start, count):
            scene.call("one.host.allocate", f"node{number:03d}", "dummy", "dummy", -1)

    return step


@cache
def _recorded_names() -> Mapping[int, str]:
    """They were allocated in parallel, so their ids are in no order."""
    (row,) = daemon_rows(551, 551)
    text = xmlrpc.client.loads(row.response)[0][0]
    assert isinstance(text, list)
    return {int(number): name for number, name in re.findall(r"<VM><ID>(\d+)</ID>.*?<NAME>(.*?)</NAME>", text[1])}


def _many_vms(start: int, end: int) -> Step:
    def step(scene: Scene) -> None:
        for number in range(start, end):
            scene.allocate(_recorded_names()[number], "0.1", 64)

    return step


def _deploy_many(start: int, end: int) -> Step:
    def step(scene: Scene) -> None:
        for number in range(start, end):
            scene.deploy(number % 500, number)

    return step


def _race(scene: Scene) -> None:
    for number in range(12):
        scene.allocate(f"race{number}", "1", 256)
    scene.deploy(3, 1, 4, 9, 10, 11)


def _after_race(scene: Scene) -> None:
    scene.act("terminate-hard", 1, 4, 9, 10, 11)
    scene.deploy(1, 0)
    scene.act("suspend", 0)


def _undeployed(scene: Scene) -> None:
    scene.allocate("cap", "1", 1024)
    scene.deploy(2, 12)
    scene.act("undeploy", 12)


def _monitored(scene: Scene) -> None:
    scene.allocate("cap2", "1", 1024)
    scene.fail_next("DEPLOY", 13)
    scene.deploy(2, 13)
    scene.call("one.vm.recover", 13, 3)
    scene.act("terminate-hard", 12)
    scene.allocate("mon")
    scene.deploy(0, 14)
    figures = {"CPU": "42.5", "MEMORY": "262144", "NETRX": "200", "NETTX": "150"}
    figures |= {"DISKRDBYTES": "10", "DISKRDIOPS": "1", "DISKWRBYTES": "20", "DISKWRIOPS": "2"}
    scene.one.monitor_vm(scene.vm(14), **figures)


def _lost(scene: Scene) -> None:
    scene.one.power_off_by_hand(scene.vm(14))
    scene.settle()
    scene.act("resume", 14)
    scene.one.lose_vm(scene.vm(14))


def _host_on_fire(scene: Scene) -> None:
    scene.one.fail_host(scene.translation.name("node000"), "probe failed: disk on fire")


def _slow_boot(scene: Scene) -> None:
    scene.release()
    scene.allocate("slowboot")
    scene.hold("BOOT")
    scene.deploy(0, 2)


def _parallel(scene: Scene) -> None:
    scene.release()
    for number in range(6):
        scene.allocate(f"par{number}", "1", 64)
    scene.deploy(3, 3, 4, 5, 6, 7, 8)


def _ending(scene: Scene) -> None:
    scene.hold("EPILOG")
    scene.act("terminate-hard", 3, 4)
    scene.hold("SHUTDOWN")
    scene.act("terminate-hard", 5, 6)


def _powered_off(scene: Scene) -> None:
    scene.release()
    scene.one.power_off_by_hand(scene.vm(0))
    scene.settle()


def _island(scene: Scene) -> None:
    scene.call("one.cluster.allocate", "island")
    scene.call("one.cluster.addhost", 100, 2)
    scene.allocate("isl", "0.5", 64)


def _moved(scene: Scene) -> None:
    scene.allocate("islp", "0.5", 64, hold=False, extra='SCHED_REQUIREMENTS="NAME=\\"node002\\""')
    scene.allocate("mv", "0.5", 64)
    scene.deploy(1, 3)


def _blobs(scene: Scene) -> None:
    for number in range(3):
        scene.allocate(f"blob{number}", "1", 64, extra='BLOB="' + "z" * 900_000 + '"')


def _three_records(scene: Scene) -> None:
    scene.allocate("hist", extra='MYTAG="abc"')
    scene.deploy(0, 2)
    for action in ("suspend", "resume", "poweroff", "resume"):
        scene.act(action, 2)


def _error_with_room(scene: Scene) -> None:
    scene.allocate("errvm", "1", 64)
    scene.one.fail_host(scene.translation.name("node002"))


def _disable_all(scene: Scene) -> None:
    for host in range(3):
        scene.call("one.host.status", host, 1)


STEPS: Mapping[int, tuple[Step, ...]] = {
    45: (lambda scene: scene.hold("HOST_REPORT"),),
    47: (lambda scene: scene.release(),),
    76: (lambda scene: scene.hold("IMAGE_COPY"),),
    78: (lambda scene: scene.release(),),
    86: (lambda scene: scene.hold("NETWORK_SETUP"),),
    88: (lambda scene: scene.release(),),
    131: (lambda scene: scene.act("terminate", 0, 1),),
    177: (lambda scene: scene.schedule(),),  # nobody fits its requirement: SCHED_MESSAGE
    254: (lambda scene: scene.act("hold", 6),),
    255: (lambda scene: scene.hold("SHUTDOWN_POWEROFF"),),
    259: (lambda scene: scene.release(),),
    265: (lambda scene: scene.act("suspend", 2),),
    274: (_first_failures,),
    277: (lambda scene: scene.fail_next("DEPLOY", 9),),
    279: (lambda scene: scene.fail_next("DEPLOY", 10),),
    281: (lambda scene: scene.fail_next("DEPLOY", 11),),
    283: (lambda scene: scene.fail_next("DEPLOY", 12),),
    285: (lambda scene: scene.deploy(0, 13),),
    290: (lambda scene: scene.fail_next("SHUTDOWN", 9),),
    292: (lambda scene: scene.fail_next("SAVE", 9),),
    362: (_capacity,),
    373: (lambda scene: scene.call("one.host.status", 1, 1),),
    379: (lambda scene: scene.act("terminate-hard", 27),),
    380: (_to_resize,),
    525: (lambda scene: scene.schedule(),),
    537: (_fill_hosts,),
    541: (_disable_all,),
    542: (lambda scene: scene.schedule(),),
    544: (_many_hosts(500, 50),),
    547: (_many_vms(0, 300),),
    549: (_deploy_many(0, 300),),
    550: (_many_vms(300, 1000), _deploy_many(300, 1000)),
    558: (_race,),
    559: (_after_race,),
    560: (_undeployed,),
    561: (_monitored,),
    567: (_lost,),
    569: (_host_on_fire,),
    593: (lambda scene: scene.allocate("only"), lambda scene: scene.deploy(0, 0)),
    596: (lambda scene: scene.allocate("eager"), lambda scene: scene.hold("LCM_INIT")),
    598: (lambda scene: scene.hold("BOOT"), lambda scene: scene.release("LCM_INIT")),
    600: (_slow_boot,),
    605: (lambda scene: scene.release(), lambda scene: scene.hold("SAVE_SUSPEND")),
    607: (lambda scene: scene.release(),),
    608: (lambda scene: scene.hold("EPILOG"),),
    610: (_parallel,),
    611: (_ending,),
    613: (lambda scene: scene.release("EPILOG"),),
    616: (_powered_off,),
    633: (_island,),
    636: (_moved,),
    641: (_blobs,),
    642: (lambda scene: scene.schedule(),),
    646: (
        lambda scene: scene.allocate("first"),
        lambda scene: scene.allocate("pend", hold=False),
        lambda scene: scene.act("terminate", 0),
    ),
    648: (_three_records,),
    651: (_error_with_room,),
    656: (lambda scene: scene.deploy(0, 4),),
}
# Rows that show a moment between two states.
UNSETTLED = frozenset({256, 597, 611, 612})

_BIG, _SMALL = (8.0, 16384), (2.0, 2048)


def _hosts(translation: Translation, *sizes: tuple[str, tuple[float, int]]) -> tuple[HostConfig, ...]:
    factor = translation.factor
    return tuple(
        HostConfig(name=translation.name(name), cores=cores * factor, memory_mb=memory * factor)
        for name, (cores, memory) in sizes
    )


_THREE = (("node000", _BIG), ("node001", _BIG), ("node002", _BIG))
_HOSTS: Mapping[int, tuple[tuple[str, tuple[float, int]], ...]] = {
    518: (("node000", _SMALL), ("node001", _SMALL), ("node002", _SMALL)),
    543: tuple((f"node{number:03d}", _BIG) for number in range(50)),
    558: (*_THREE, ("small000", _SMALL)),
    593: (*_THREE, ("small000", _SMALL)),
    617: _THREE,
    643: _THREE,
}
_WITH_ALICE = frozenset({558, 617, 643})


def config(first_row: int, translation: Translation) -> StandinConfig:
    """The front-end a recorded daemon was at its first row."""
    factor = translation.factor
    assert any(first == first_row for first, _ in DAEMONS)
    return StandinConfig(
        hosts=_hosts(translation, *_HOSTS.get(first_row, ())),
        host_profiles=(
            HostProfile(pattern=translation.name("small*"), cores=_SMALL[0] * factor, memory_mb=_SMALL[1] * factor),
            HostProfile(pattern=translation.name("fail*"), fails=True),
            HostProfile(cores=_BIG[0] * factor, memory_mb=_BIG[1] * factor),
        ),
        host_drivers=("dummy",),
        users=(UserConfig(name="alice", password="alice-dummy"),) if first_row in _WITH_ALICE else (),
        first_ids={kind: _FIRST.get(kind, 0) + translation.shift.get(kind, 0) for kind in _KINDS_WITH_IDS},
        default_dwell=0.0005,
        call_latency={},
        report_delay=0.001,
        image_delay=0.001,
        scheduler=False,
        message_size=1 << 20 if first_row == 617 else 1 << 30,
    )
