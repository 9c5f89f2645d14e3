"""The life of one client: it leases a workspace, uses it, gives it back, and begins again.

Responsible for what a client does and for the count of how it ended; it knows the SDK only. What it wants to do is
decided by the seed, its own number and the cycle's. Invariant: a call that may be repeated is repeated with the same
request id, until it is answered or the client's patience ends.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Final, TypeVar

import grpc
from workspacebroker.v1 import workspace_service_pb2 as api
from workspacebroker.v1.resources_pb2 import NodeSet, Quantities, Workspace

from clients.errors import BrokerError, Conflict, NotNow, StateForbids, TransportError, Unavailable, from_status
from clients.names import FINAL, VERBS, State, state_word, tenant_name
from clients.sdk import Client, Outcome, new_request_id

PATIENCE: Final = 60.0
"""Seconds within which a call is answered and a state reached."""

_NEXT: Final = {
    Workspace.STATE_RUNNING: ("suspend", "stop", "reboot"),
    Workspace.STATE_SUSPENDED: ("resume",),
    Workspace.STATE_STOPPED: ("start",),
}

T = TypeVar("T")


class OutOfPatience(Exception):
    """Something did not come within PATIENCE."""


@dataclass(slots=True)
class Tally:
    """How life cycles went. One a client; summed up afterwards."""

    ended: Counter[str] = field(default_factory=Counter)
    """Life cycles by end: TERMINATED, FAILED, kept, or what went wrong."""
    failures: Counter[str] = field(default_factory=Counter)
    """Reasons in last_error of workspaces that ended FAILED, and of verbs that failed."""
    messages: list[str] = field(default_factory=list)
    verbs: Counter[str] = field(default_factory=Counter)
    repeated: Counter[str] = field(default_factory=Counter)
    """Calls sent again, by reason."""

    def add(self, other: Tally) -> None:
        self.ended.update(other.ended)
        self.failures.update(other.failures)
        self.messages += other.messages
        self.verbs.update(other.verbs)
        self.repeated.update(other.repeated)

    @property
    def cycles(self) -> int:
        return self.ended.total()


class Tenant:
    """One client; `run` in a thread of its own."""

    def __init__(self, server: str, seed: int, number: int, stop: threading.Event) -> None:
        self._client = Client(server)
        self._seed = seed
        self._number = number
        self._stop = stop
        self.tally = Tally()

    def close(self) -> None:
        self._client.close()

    def cycle(self, number: int, *, keep: bool = False) -> None:
        """One life cycle; with `keep` the workspace is left as it is at the end."""
        random = Random(f"{self._seed}/{self._number}/{number}")
        try:
            self.tally.ended[self._live(f"c{self._number:02d}-{number:04d}", random, keep)] += 1
        except OutOfPatience as error:
            self.tally.ended["out of patience"] += 1
            self.tally.messages.append(str(error))
        except BrokerError as error:
            self.tally.ended[f"refused {error.reason or error.code}"] += 1
            self.tally.messages.append(f"c{self._number:02d}-{number:04d}: {error.reason}: {error}")

    def _live(self, name: str, random: Random, keep: bool) -> str:
        workspace = self._create(name, random)
        if not keep and random.random() < 0.1:
            return self._terminate(workspace.name)  # while it starts
        workspace = self._settled(workspace.name, Workspace.STATE_RUNNING)
        for _ in range(random.randrange(4)):
            if workspace.state not in _NEXT:
                break
            verb, release = random.choice(_NEXT[workspace.state]), random.random() < 0.3
            workspace = self._act(verb, workspace, release=release)
        if workspace.state in FINAL:
            return self._failed(workspace)
        return "kept" if keep else self._terminate(workspace.name)

    def _create(self, name: str, random: Random) -> Workspace:
        amounts = {"cpu": random.choice((500, 1000)), "memory": random.choice((256, 512))}
        nodes = NodeSet(name="all", count=random.randint(1, 3), amounts=Quantities(amounts=amounts))
        request = api.CreateWorkspaceRequest(
            parent=tenant_name("default"),
            workspace_id=name,
            workspace=Workspace(node_sets=[nodes]),
            request_id=new_request_id(),
        )
        return self._insist("create", lambda: self._client.create(request))

    def _act(self, verb: str, workspace: Workspace, *, release: bool) -> Workspace:
        request_id = new_request_id()

        def send() -> Workspace:
            if release and verb in ("suspend", "stop"):
                return self._client.act(verb, workspace.name, request_id=request_id, release_capacity=True)
            return self._client.act(verb, workspace.name, request_id=request_id)

        try:
            self._insist(verb, send, waits_for_room=False)
        except NotNow:
            self.tally.verbs[f"{verb}: no room"] += 1
            return workspace
        except StateForbids:  # it failed meanwhile
            self.tally.verbs[f"{verb}: forbidden"] += 1
            return self._client.workspace(workspace.name)
        wanted = VERBS[verb].leads_to
        settled = self._settled(workspace.name, wanted)
        self.tally.verbs[verb if settled.state == wanted else f"{verb}: {state_word(settled.state)}"] += 1
        return settled

    def _terminate(self, name: str) -> str:
        request_id = new_request_id()
        self._insist("terminate", lambda: self._client.act("terminate", name, request_id=request_id))
        ended = self._settled(name, Workspace.STATE_TERMINATED)
        return "TERMINATED" if ended.state == Workspace.STATE_TERMINATED else self._failed(ended)

    def _failed(self, workspace: Workspace) -> str:
        if not workspace.last_error.code:
            self.tally.messages.append(f"{workspace.name} is {state_word(workspace.state)} and does not say why")
            return f"{state_word(workspace.state)} without a reason"
        return state_word(workspace.state)

    def _settled(self, name: str, wanted: State) -> Workspace:
        """Where a workspace comes to rest."""
        result = self._client.wait(name, [wanted], timeout=PATIENCE, or_settled=True)
        workspace = result.workspace
        if result.outcome is Outcome.TIMED_OUT:
            raise OutOfPatience(f"{name} did not get to {state_word(wanted)}: {workspace}")
        if result.outcome is Outcome.ELSEWHERE:
            for status in [workspace.last_error, *(node.last_error for node in workspace.nodes)]:
                if status.code:
                    error = from_status(status)
                    self.tally.failures[error.reason] += 1
                    self.tally.messages.append(f"{name}: {error.reason}: {error}")
                    break
        return workspace

    def _insist(self, what: str, call: Callable[[], T], *, waits_for_room: bool = True) -> T:
        """Repeats a call as its errors say."""
        until = time.monotonic() + PATIENCE
        while True:
            try:
                return call()
            except Unavailable as error:
                refusal: BrokerError = error
            except TransportError as error:
                if error.code not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                    raise
                refusal = error
            except Conflict as error:
                if error.reason != "TRANSITION_UNDER_WAY":
                    raise
                refusal = error
            except NotNow as error:
                if not waits_for_room:
                    raise
                refusal = error
            if time.monotonic() > until or self._stop.is_set():
                raise OutOfPatience(f"{what} was refused until the end: {refusal.reason}: {refusal}")
            self.tally.repeated[f"{what}: {refusal.reason or refusal.code.name}"] += 1
            self._stop.wait(min(refusal.retry_after or 0.1, 1.0))
