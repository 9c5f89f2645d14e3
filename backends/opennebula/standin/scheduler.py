"""The front-end's own scheduler: it runs by itself when VMs wait.

Responsible for placing PENDING VMs and for SCHED_MESSAGE. Invariant: it places only on MONITORED hosts
and never above their capacity; a VM it cannot place stays PENDING with the reason. Requirements are
comparisons of host attributes joined by `&`, `|` and `!`; anything else is an error in them.
"""

from __future__ import annotations

import re
from typing import Final

from backends.opennebula.standin.lifecycle import Lifecycle
from backends.opennebula.standin.machine import DEPLOY, PENDING, HostState
from backends.opennebula.standin.state import Host, Vm, World

_TOKEN: Final = re.compile(r'\s*(?:(\w+)|"([^"]*)"|(=|!=|>|<|&|\||!|\(|\)))')
_REQUESTS_THAT_HURRY: Final = 7


class RequirementError(ValueError):
    """SCHED_REQUIREMENTS that cannot be read."""


class Scheduler:
    def __init__(self, world: World, lifecycle: Lifecycle) -> None:
        self.world = world
        self.lifecycle = lifecycle
        self._due = False
        self._requests = 0
        lifecycle.on_pending = self.wake

    def wake(self) -> None:
        """A VM waits: run after the window, or at once when enough have come."""
        if not self.world.config.scheduler:
            return
        self._requests += 1
        if self._requests == _REQUESTS_THAT_HURRY:
            self.world.agenda.after(0.0, self.run)
        elif not self._due:
            self._due = True
            self.world.agenda.after(self.world.config.scheduler_window, self._wake_up, background=True)

    def _wake_up(self) -> None:
        self._due = False
        self.run()
        if any(vm.place == PENDING for vm in self.world.vms.values()):
            self._due = True
            self.world.agenda.after(self.world.config.scheduler_interval, self._wake_up, background=True)

    def run(self) -> None:
        """One round over everything that waits, the oldest first."""
        self._requests = 0
        for vm_id in sorted(self.world.vms):
            vm = self.world.vms[vm_id]
            if vm.place == PENDING:
                self._place(vm)

    def _place(self, vm: Vm) -> None:
        hosts = [host for host in self.world.hosts.values() if host.state is HostState.MONITORED]
        if not hosts:
            return self._explain(vm, "Cannot dispatch VM: No hosts enabled to run VMs")
        wanted = vm.user_template.get("SCHED_REQUIREMENTS")
        try:
            hosts = [host for host in hosts if not wanted or _Requirement(wanted, host).holds()]
        except (RequirementError, RecursionError):
            own = vm.template.get("AUTOMATIC_REQUIREMENTS")
            return self._explain(
                vm,
                f"Cannot dispatch VM: Error in SCHED_REQUIREMENTS: '{own} & ( {wanted} )',"
                " error:... see more details in VM log",
            )
        if not hosts:
            return self._explain(vm, "Cannot dispatch VM: No host meets SCHED_REQUIREMENTS")
        fitting = [host for host in hosts if not self.world.shortage(host, vm.cpu, vm.memory)]
        if not fitting:
            names = ",".join(str(host.id) for host in sorted(hosts, key=lambda host: host.id))
            memory = any("memory" in self.world.shortage(host, vm.cpu, vm.memory) for host in hosts)
            return self._explain(vm, f"[HOST] Not enough {'MEMORY' if memory else 'CPU'} on hosts: {names}")
        fitting = [host for host in fitting if self.world.system_datastores(host.cluster_id)]
        if not fitting:
            return self._explain(vm, "[DS] Unavailable datastores: 0[DS] No datastores matched the VM requirements")
        # Spread: the fewest VMs first, the newest host among equals.
        host = min(fitting, key=lambda host: (len(host.vms), -host.id))
        vm.user_template.pop("SCHED_MESSAGE")
        datastore_id = self.world.system_datastores(host.cluster_id)[0]
        self.lifecycle.start(vm, DEPLOY[vm.kept], target=host, datastore_id=datastore_id)
        vm.history[-1].plan = (-1, 0)

    def _explain(self, vm: Vm, why: str) -> None:
        vm.user_template.set("SCHED_MESSAGE", self.world.dated(f": {why}"))


class _Requirement:
    """A requirement evaluated on one host, by recursive descent."""

    def __init__(self, text: str, host: Host) -> None:
        self._tokens = _tokens(text)
        self._at = 0
        self._facts = {"NAME": host.name, "ID": str(host.id), "CLUSTER_ID": str(host.cluster_id)}
        self._host = host

    def holds(self) -> bool:
        result = self._any()
        if self._at != len(self._tokens):
            raise RequirementError
        return result

    def _next(self) -> str:
        if self._at == len(self._tokens):
            raise RequirementError
        self._at += 1
        return self._tokens[self._at - 1]

    def _peek(self) -> str:
        return self._tokens[self._at] if self._at < len(self._tokens) else ""

    def _any(self) -> bool:
        result = self._all()
        while self._peek() == "|":
            self._next()
            result = self._all() or result
        return result

    def _all(self) -> bool:
        result = self._one()
        while self._peek() == "&":
            self._next()
            result = self._one() and result
        return result

    def _one(self) -> bool:
        token = self._next()
        if token == "!":
            return not self._one()
        if token == "(":
            result = self._any()
            if self._next() != ")":
                raise RequirementError
            return result
        operator, value = self._next(), self._next()
        if not token.isidentifier() or operator not in ("=", "!=", ">", "<"):
            raise RequirementError
        return self._compare(self._facts.get(token, self._host.template.get(token)), operator, value.strip('"'))

    @staticmethod
    def _compare(have: str, operator: str, want: str) -> bool:
        if operator in ("=", "!="):
            return (have == want) == (operator == "=")
        try:
            return float(have) > float(want) if operator == ">" else float(have) < float(want)
        except ValueError:
            return False


def _tokens(text: str) -> list[str]:
    tokens: list[str] = []
    at = 0
    text = text.rstrip()
    while at < len(text):
        found = _TOKEN.match(text, at)
        if found is None:
            raise RequirementError
        tokens.append(found.group().strip())
        at = found.end()
    return tokens
