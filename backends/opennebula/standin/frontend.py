"""One front-end: its world, its lifecycle and scheduler, and the way a call takes through them.

Responsible for the order of checks: the password first, then count and types, then the handler's own.
Invariant: whatever the parameters, `call` returns an answer or raises a `Fault`. Speaks no HTTP.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import NamedTuple

from backends.opennebula.standin import permissions
from backends.opennebula.standin.config import StandinConfig
from backends.opennebula.standin.envelope import Value, accepted, fault_struct, refused
from backends.opennebula.standin.errors import Fault, Refusal
from backends.opennebula.standin.lifecycle import Asker, Lifecycle
from backends.opennebula.standin.registry import METHODS, Deferred, Reply
from backends.opennebula.standin.scheduler import Scheduler
from backends.opennebula.standin.state import KINDS, Owned, Pool, T, User, Vm, World

_log = logging.getLogger(__name__)


class _Capabilities(NamedTuple):
    facility: str = "xmlrpc-c"
    version_major: int = 1
    version_minor: int = 33
    version_point: int = 14
    protocol_version: int = 2


class FrontEnd:
    def __init__(self, config: StandinConfig) -> None:
        self.config = config
        self.world = World(config)
        self.lifecycle = Lifecycle(self.world)
        self.scheduler = Scheduler(self.world, self.lifecycle)
        self._request_ids = count(1)

    def user_of(self, session: Value) -> User | None:
        if not isinstance(session, str):
            return None
        name, colon, password = session.partition(":")
        user = self.world.users.named(name)
        if not colon or user is None or user.driver != "core" or user.password != password:
            return None
        return user

    def call(self, name: str, params: Sequence[Value], *, refuse_session: bool = False) -> Reply:
        """Answer one call; holds the world's lock while it does."""
        with self.world.lock:
            self.world.advance()
            if name.startswith("system."):
                return self._system(name, params)
            return self._one(name, params, refuse_session)

    def finish(self, name: str, deferred: Deferred) -> Value:
        """The rest of a call whose latency has passed."""
        with self.world.lock:
            self.world.advance()
            try:
                return accepted(deferred.apply())
            except Refusal as refusal:
                return refused(name, refusal)

    def _one(self, name: str, params: Sequence[Value], refuse_session: bool) -> Reply:
        method = METHODS.get(name)
        if method is None:
            raise Fault(Fault.NO_SUCH_METHOD, f"Method '{name}' not defined")
        if not params:
            raise Fault(
                Fault.INTERNAL,
                "Unexpected error executing code for particular method, detected by Xmlrpc-c method registry"
                " code.  Method did not fail; rather, it did not complete at all."
                "  Subscript of xmlrpc_c::paramList out of bounds",
            )
        user = None if refuse_session else self.user_of(params[0])
        if user is None:
            refusal = Refusal(Refusal.AUTHENTICATION, "User couldn't be authenticated, aborting call.")
            return refused(name, refusal)
        arguments = method.arguments(params[1:])
        request = Request(front=self, user=user, request_id=next(self._request_ids))
        try:
            reply = method.handler(request, *arguments)
        except Refusal as refusal:
            return refused(name, refusal)
        except Exception as error:  # a mistake of ours must not cost the caller the connection
            _log.exception("%s%r", name, params[1:])
            raise Fault(Fault.INTERNAL, f"Unexpected error executing {name}") from error
        return reply if isinstance(reply, Deferred) else accepted(reply)

    # The library's own methods; they ask for no session.

    def _system(self, name: str, params: Sequence[Value]) -> Value:
        subject = params[0] if params else None
        match name:
            case "system.listMethods":
                return [*SYSTEM_METHODS, *METHODS]
            case "system.methodExist" if isinstance(subject, str):
                return subject in METHODS or subject in SYSTEM_METHODS
            case "system.methodSignature" if isinstance(subject, str) and subject in METHODS:
                return [METHODS[subject].signature()]
            case "system.methodHelp" if isinstance(subject, str) and subject in METHODS:
                return (METHODS[subject].handler.__doc__ or "").strip()
            case "system.capabilities" | "system.getCapabilities":
                return _Capabilities()._asdict()
            case "system.multicall" if isinstance(subject, list):
                return [self._multicall_entry(entry) for entry in subject]
        if name in SYSTEM_METHODS:
            raise Fault(Fault.TYPE, "Not enough parameters")
        raise Fault(Fault.NO_SUCH_METHOD, f"Method '{name}' not defined")

    def _multicall_entry(self, entry: Value) -> Value:
        try:
            if not isinstance(entry, Mapping):
                raise Fault(Fault.TYPE, "Value that is supposed to be struct is not")
            name, params = entry.get("methodName"), entry.get("params")
            if not isinstance(name, str) or not isinstance(params, list) or name == "system.multicall":
                raise Fault(Fault.TYPE, "Parameter that is supposed to be a call is not")
            reply = self.call(name, params)
            return [self.finish(name, reply) if isinstance(reply, Deferred) else reply]
        except Fault as fault:
            return fault_struct(fault)


SYSTEM_METHODS = (
    "system.listMethods",
    "system.methodExist",
    "system.methodHelp",
    "system.methodSignature",
    "system.multicall",
    "system.capabilities",
    "system.getCapabilities",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """Who calls, and what a handler may reach."""

    front: FrontEnd
    user: User
    request_id: int

    @property
    def world(self) -> World:
        return self.front.world

    @property
    def lifecycle(self) -> Lifecycle:
        return self.front.lifecycle

    @property
    def asker(self) -> Asker:
        return Asker(uid=self.user.id, gid=self.user.gid, request_id=self.request_id)

    @property
    def is_admin(self) -> bool:
        return permissions.is_admin(self.user)

    def find(self, pool: Pool[T], object_id: int) -> T:
        item = pool.get(object_id)
        if item is None:
            which = "Pool" if object_id == -1 else f"[{object_id}]"
            raise Refusal(Refusal.NO_EXISTS, f"Error getting {KINDS[pool.kind]} {which}.", object_id)
        return item

    def owned(self, pool: Pool[permissions.OwnedT], object_id: int, right: permissions.Right) -> permissions.OwnedT:
        """The object, if it is there and the caller has this right on it."""
        item = self.find(pool, object_id)
        self.authorize(item, pool.kind, right)
        return item

    def authorize(self, item: Owned, kind: str, right: permissions.Right) -> None:
        if not permissions.allowed(self.user, item, kind, right):
            label = permissions.LABELS[kind]
            raise Refusal(
                Refusal.AUTHORIZATION,
                f"User [{self.user.id}] : Not authorized to perform {right.name} {label} [{item.id}].",
            )

    def admin_only(self, what: str) -> None:
        if not self.is_admin:
            raise Refusal(Refusal.AUTHORIZATION, f"User [{self.user.id}] : Not authorized to perform {what}.")

    def vm(self, vm_id: int, right: permissions.Right) -> Vm:
        """A VM to act on; a locked one is nobody's, not even oneadmin's."""
        vm = self.owned(self.world.vms, vm_id, right)
        if vm.lock is not None and right is not permissions.Right.USE:
            what = (
                f"VM is locked. [{vm_id}]" if self.is_admin else f"Not authorized to perform {right.name} VM [{vm_id}]"
            )
            raise Refusal(Refusal.AUTHORIZATION, f"User [{self.user.id}] : {what}.")
        return vm
