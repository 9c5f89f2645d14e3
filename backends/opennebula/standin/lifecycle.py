"""Walking VMs along the routes of the machine, and hosts through their reports.

Responsible for when a VM changes place and for what that changes: its history, its host, its devices.
Invariant: a VM is in some host's `vms` exactly while it holds capacity there; a step put down for an
earlier walk never moves a VM that has started another. Does not check who may ask, nor whether it fits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from backends.opennebula.standin import devices
from backends.opennebula.standin.machine import (
    BOOT_FAILURE,
    DONE,
    DRIVERS,
    FOUND_OFF,
    MIGRATE_OFF,
    OFF_HOST,
    PENDING,
    RUNNING,
    UNKNOWN,
    HistoryAction,
    HostState,
    Lcm,
    Place,
    Route,
    State,
)
from backends.opennebula.standin.state import HistoryRecord, Host, Vm, World
from backends.opennebula.standin.template import Template

_PROLOGS = frozenset(
    {
        Lcm.PROLOG,
        Lcm.PROLOG_RESUME,
        Lcm.PROLOG_UNDEPLOY,
        Lcm.PROLOG_MIGRATE,
        Lcm.PROLOG_MIGRATE_POWEROFF,
    }
)
# A record on the target host is opened here.
_OPENS = frozenset({Lcm.LCM_INIT, Lcm.MIGRATE, Lcm.PROLOG_MIGRATE, Lcm.PROLOG_MIGRATE_POWEROFF})
_EPILOGS = frozenset({Lcm.EPILOG, Lcm.EPILOG_STOP, Lcm.EPILOG_UNDEPLOY})
_BOOTS = frozenset({Lcm.BOOT, Lcm.BOOT_STOPPED, Lcm.BOOT_UNDEPLOY, Lcm.BOOT_MIGRATE})
# A VM that boots in one of these was on its host all along: the run before is closed, another opened.
_REBOOTS = frozenset({Lcm.BOOT_SUSPENDED, Lcm.BOOT_POWEROFF})
_NAMED_AT_BOOT = frozenset({Lcm.BOOT, Lcm.BOOT_POWEROFF, Lcm.BOOT_UNDEPLOY, Lcm.BOOT_UNKNOWN})
_RUN_ENDS = frozenset(
    {
        Lcm.SAVE_SUSPEND,
        Lcm.SAVE_STOP,
        Lcm.SAVE_MIGRATE,
        Lcm.SHUTDOWN,
        Lcm.SHUTDOWN_POWEROFF,
        Lcm.SHUTDOWN_UNDEPLOY,
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asker:
    """Who asked, for the history."""

    uid: int = -1
    gid: int = -1
    request_id: int = -1


NOBODY = Asker()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Walk:
    """A VM on a route; it counts as long as the VM's token is this one."""

    vm: Vm
    route: Route
    token: int
    target: Host | None
    ds: int
    finish: Callable[[], None] | None


class Lifecycle:
    def __init__(self, world: World) -> None:
        self.world = world
        self._dwell: dict[str, float] = {}
        self._failures: Counter[tuple[str, int | None]] = Counter()
        self.on_pending: Callable[[], None] = lambda: None
        for lcm, seconds in world.config.dwell.items():
            self.set_dwell(lcm, seconds)

    # What a test or a demo provokes

    def set_dwell(self, lcm: str, seconds: float) -> None:
        self._dwell[Lcm[lcm].name] = seconds

    def fail_next(self, driver: str, vm_id: int | None, times: int) -> None:
        if driver not in DRIVERS:
            raise ValueError(f"no driver operation {driver!r}; there are {', '.join(sorted(DRIVERS))}")
        self._failures[driver, vm_id] += times

    # Walking

    def start(
        self,
        vm: Vm,
        route: Route,
        asker: Asker = NOBODY,
        *,
        target: Host | None = None,
        datastore_id: int = 0,
        finish: Callable[[], None] | None = None,
    ) -> None:
        """Send the VM on its way; `finish` runs when it has got there."""
        vm.token += 1
        in_new_record = route is MIGRATE_OFF
        if route.action and vm.history and not in_new_record:
            self._sign(vm.history[-1], route.action, asker)
        self._step(_Walk(vm=vm, route=route, token=vm.token, target=target, ds=datastore_id, finish=finish), 0)
        if in_new_record:
            self._sign(vm.history[-1], route.action, asker)

    def _step(self, walk: _Walk, index: int) -> None:
        """Enter the next state of the route, and put down when to leave it."""
        vm, route = walk.vm, walk.route
        if index == len(route.through):
            self._arrive(vm, route)
            if walk.finish is not None:
                walk.finish()
            return
        lcm = route.through[index]
        self._enter(walk, lcm)

        def leave() -> None:
            if vm.token != walk.token:
                return
            if route.fails_to is not None and self._driver_step(route) == lcm and self._fails(vm, route):
                self._fail(vm, route, route.fails_to)
                return
            self._leave(vm, route, lcm)
            self._step(walk, index + 1)

        dwell = self._dwell.get(lcm.name, self.world.config.default_dwell)
        self.world.agenda.after(dwell, leave, label=lcm.name)

    @staticmethod
    def _driver_step(route: Route) -> Lcm:
        """The state in which the hypervisor works: the last one of a boot, the first one of the others."""
        return route.through[-1] if route.driver == "DEPLOY" else route.through[0]

    def _fails(self, vm: Vm, route: Route) -> bool:
        for key in ((route.driver, vm.id), (route.driver, None)):
            if self._failures[key] > 0:
                self._failures[key] -= 1
                return True
        return False

    def _fail(self, vm: Vm, route: Route, fails_to: Place) -> None:
        record = vm.history[-1]
        domain = f"{record.hostname}:{vm.name}:dummy"
        vm.user_template.set("ERROR", self.world.dated(f": {route.driver}: {domain}"))
        if fails_to == BOOT_FAILURE:
            record.retime = self.world.now()
        else:
            self._sign(record, HistoryAction.NONE, NOBODY)
            record.retime = 0
        self.settle(vm, fails_to)

    # Entering and leaving

    def _enter(self, walk: _Walk, lcm: Lcm) -> None:
        vm, now = walk.vm, self.world.now()
        if lcm in _OPENS:
            assert walk.target is not None
            self._open(vm, walk.target, walk.ds)
        if lcm in _REBOOTS:
            self._reopen(vm)
        self.settle(vm, Place(State.ACTIVE, lcm))
        record = vm.history[-1] if vm.history else None
        if record is None:
            return
        if lcm is Lcm.LCM_INIT or lcm in _PROLOGS:
            record.pstime = record.pstime or now
        elif lcm in _BOOTS:
            record.petime = record.petime or now
            record.rstime, record.retime = now, 0
        elif lcm in _EPILOGS:
            record.estime = now

    def _leave(self, vm: Vm, route: Route, lcm: Lcm) -> None:
        now = self.world.now()
        record = vm.history[-1] if vm.history else None
        if record is None:
            return
        if lcm in _PROLOGS:
            record.petime = now
        elif lcm in _EPILOGS:
            record.eetime = now
        elif lcm is Lcm.MIGRATE:
            record.rstime = now
        elif lcm in _RUN_ENDS:
            record.retime = now
        elif lcm in _NAMED_AT_BOOT:
            vm.deploy_id = f"{record.hostname}:{vm.name}:dummy"
        elif route.action and lcm.name.startswith(("HOTPLUG", "DISK_RESIZE")):
            self._reopen(vm)

    def _arrive(self, vm: Vm, route: Route) -> None:
        if route.to.state in (State.STOPPED, State.UNDEPLOYED):
            vm.kept = route.to.state
        elif route.to == PENDING and route.through:
            vm.kept, vm.deploy_id = None, ""  # recreated from nothing
        if vm.history and route.to in OFF_HOST:
            record = vm.history[-1]
            record.etime = record.etime or self.world.now()
        if route.to == RUNNING:
            vm.kept = None
            vm.history[-1].retime = 0
            vm.deploy_id = vm.deploy_id or f"{vm.history[-1].hostname}:{vm.name}:dummy"
        if route.to == DONE:
            vm.etime = self.world.now()
            devices.release(self.world, vm.template, vm.id)
        self.settle(vm, route.to)
        self._keep_only_current_host(vm)
        if route.to == PENDING:
            self.on_pending()

    def settle(self, vm: Vm, place: Place) -> None:
        """Put the VM in a place; the pool's digest is written anew with it."""
        vm.place = place
        vm.trail.append(place)
        vm.digest_monitoring = vm.monitoring.copy()

    def _keep_only_current_host(self, vm: Vm) -> None:
        current = vm.history[-1].host_id if vm.history and vm.place not in OFF_HOST else None
        for host in self.world.hosts.values():
            if host.id != current:
                host.vms.discard(vm.id)

    # History

    @staticmethod
    def _sign(record: HistoryRecord, action: HistoryAction, asker: Asker) -> None:
        record.action = action
        record.uid, record.gid, record.request_id = asker.uid, asker.gid, asker.request_id

    def _open(self, vm: Vm, host: Host, datastore_id: int) -> None:
        now = self.world.now()
        if vm.history:
            last = vm.history[-1]
            last.etime, last.retime = last.etime or now, last.retime or now
        devices.on_deploy(self.world, vm, datastore_id)
        vm.history.append(
            HistoryRecord(
                seq=len(vm.history),
                host_id=host.id,
                hostname=host.name,
                cluster_id=host.cluster_id,
                datastore_id=datastore_id,
                stime=now,
            )
        )
        host.vms.add(vm.id)

    def _reopen(self, vm: Vm) -> None:
        """Close the last record and open the next on the same host."""
        now = self.world.now()
        last = vm.history[-1]
        last.etime = now
        last.retime = last.retime or now
        vm.history.append(
            HistoryRecord(
                seq=last.seq + 1,
                host_id=last.host_id,
                hostname=last.hostname,
                cluster_id=last.cluster_id,
                datastore_id=last.datastore_id,
                stime=now,
                rstime=now,
            )
        )

    def record_resize_when_off(self, vm: Vm, asker: Asker) -> None:
        """A resize in POWEROFF closes a record too; the next one inherits its action."""
        before = vm.history[-1].action
        self._sign(vm.history[-1], HistoryAction.RESIZE, asker)
        self._reopen(vm)
        vm.history[-1].action = before
        vm.history[-1].retime = vm.history[-1].rstime

    def current_host(self, vm: Vm) -> Host | None:
        if not vm.history or vm.place in OFF_HOST:
            return None
        return self.world.hosts.get(vm.history[-1].host_id)

    # What the monitor says

    def power_off_by_hand(self, vm: Vm) -> None:
        self.start(vm, FOUND_OFF)

    def lose(self, vm: Vm) -> None:
        """The hypervisor no longer knows the VM."""
        vm.token += 1
        self.settle(vm, UNKNOWN)

    def monitor(self, vm: Vm, values: dict[str, str]) -> None:
        vm.monitoring = Template({name: [value] for name, value in values.items()})
        vm.monitoring.set("ID", str(vm.id))
        vm.monitoring.set("TIMESTAMP", str(self.world.now()))

    def expect_report(self, host: Host) -> None:
        """The host's driver answers after `report_delay`, unless nobody knows the driver."""
        host.token += 1
        token = host.token

        def report() -> None:
            if host.token != token or host.state in (HostState.OFFLINE, HostState.DISABLED):
                return
            if host.profile.fails:
                self.fail_host(host, "")
            else:
                self.report(host)

        if host.im_mad in self.world.config.host_drivers:
            self.world.agenda.after(self.world.config.report_delay, report, label="HOST_REPORT")

    def report(self, host: Host) -> None:
        """The host tells what it is and has."""
        host.reported = host.heard_of = True
        host.state = HostState.MONITORED
        host.monitored_at = self.world.now()
        facts = {
            "ARCH": "x86_64",
            "CPUSPEED": "2992",
            "HOSTNAME": host.name,
            "HYPERVISOR": host.vm_mad,
            "MODELNAME": "Dummy CPU",
            "VERSION": self.world.config.version,
            "TOTALCPU": str(host.total_cpu),
            "TOTALMEMORY": str(host.total_mem),
        }
        for name, value in facts.items():
            host.template.set(name, value)
        host.template.pop("ERROR")

    def fail_host(self, host: Host, reason: str) -> None:
        """A failed probe: the host is in ERROR, its running VMs at once UNKNOWN."""
        host.token += 1
        host.heard_of = True
        host.state = HostState.ERROR
        host.template.set("ERROR", self.world.dated(f" : Error monitoring Host {host.name} ({host.id}): {reason}"))
        for vm_id in host.vms:
            vm = self.world.vms[vm_id]
            if vm.place == RUNNING:
                self.lose(vm)
