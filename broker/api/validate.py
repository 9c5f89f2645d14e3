"""A wished-for workspace, protobuf in, plain values out, with every violation named at once.

Invariants: what passes here has no empty, negative, overflowing or unprintable value in it, and nothing a
caller set is ignored (offered.py names what this release has not). The exceptions are output-only fields,
which AIP-203 wants ignored, so that an answer can be sent again as a request. Whether pools, images,
networks and parameters exist is asked later (`WorkspaceRequest.references`).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from datetime import datetime
from typing import Final

from workspacebroker.v1 import resources_pb2 as pb
from workspacebroker.v1 import workspace_service_pb2 as calls_pb

from broker.api import names
from broker.api.enums import PLACEMENTS_IN
from broker.api.fields import Problems, keyed, nearest, shown
from broker.api.limits import LIMITS, Limits
from broker.api.offered import refuse_not_offered
from broker.api.parameters import read_optional, read_parameters
from broker.api.terms import read_terms
from broker.core.errors import FieldReason
from broker.core.model import Disk, EndAction, Nic, NodeSet, State, Terms
from broker.core.requests import WorkspaceRequest

INITIAL_STATES: Final[Mapping[int, State]] = {
    pb.Workspace.STATE_UNSPECIFIED: State.RUNNING,
    pb.Workspace.STATE_RUNNING: State.RUNNING,
    pb.Workspace.STATE_PAUSED: State.PAUSED,
    pb.Workspace.STATE_STOPPED: State.STOPPED,  # see offered.py
}

REQUIRED_AMOUNTS: Final = ("cpu", "memory")

KNOWN_SETS: Final = 4_096
KNOWN_SET_BYTES: Final = 2_048


class KnownSets:
    """Node sets that were read before and found good, by their bytes: most requests ask for a shape seen before.

    The same bytes give the same value, the very same object: what is worked out for it later is found by identity.
    """

    def __init__(self, instance_types: Mapping[str, Mapping[str, int]]) -> None:
        self.instance_types = instance_types
        self._known: dict[bytes, NodeSet] = {}

    def get(self, wire: bytes) -> NodeSet | None:
        """A set of these bytes that was good."""
        return self._known.get(wire)

    def add(self, wire: bytes, good: NodeSet) -> None:
        """Keeps a set that was read without a problem, unless it is long or bears user data, one user's own."""
        if len(wire) <= KNOWN_SET_BYTES and not good.user_data:
            if len(self._known) >= KNOWN_SETS:
                self._known.clear()
            self._known[wire] = good


def workspace_request(
    message: pb.Workspace,
    *,
    instance_types: Mapping[str, Mapping[str, int]],
    now: datetime,
    limits: Limits = LIMITS,
    path: str = "workspace",
) -> WorkspaceRequest:
    """The request a Workspace message makes. Raises FieldsInvalid with every violation."""
    problems = Problems(limits)
    request = WorkspaceReader(problems, KnownSets(instance_types), now=now).workspace(message, path)
    problems.check()
    return request


class WorkspaceReader:
    """Reads a workspace part by part, noting problems; what it answers counts only if there are none."""

    def __init__(self, problems: Problems, known: KnownSets, *, now: datetime) -> None:
        self.problems = problems
        self.limits = problems.limits
        self.known = known
        self.instance_types = known.instance_types
        self.now = now

    def enveloped(self, message: calls_pb.CreateWorkspaceRequest | calls_pb.CheckPlacementRequest) -> WorkspaceRequest:
        """The workspace in a request that must have one."""
        if message.HasField("workspace"):
            return self.workspace(message.workspace, "workspace")
        self.problems.required("workspace", "is missing")
        return WorkspaceRequest(node_sets=())

    def workspace(self, message: pb.Workspace, path: str) -> WorkspaceRequest:
        """All of it."""
        problems = self.problems
        refuse_not_offered(problems, "", message, path)
        terms = read_terms(problems, message.terms, f"{path}.terms", self.now) if message.HasField("terms") else Terms()
        return WorkspaceRequest(
            display_name=problems.text(f"{path}.display_name", message.display_name, self.limits.display_name),
            labels=problems.labels(f"{path}.labels", message.labels),
            pool=problems.identifier(f"{path}.pool", message.pool),
            node_sets=self.node_sets(message, path, terms.end_action),
            terms=terms,
            parameters=read_parameters(problems, message.parameters, f"{path}.parameters", self.now)
            if message.parameters
            else {},
            optional_parameters=read_optional(
                problems, message.optional_parameters, message.parameters, f"{path}.optional_parameters"
            ),
            initial_state=problems.choice(
                f"{path}.initial_state", message.initial_state, INITIAL_STATES, State.RUNNING
            ),
            ensemble=self.ensemble(message, path) if message.ensemble else None,
            path=path,
        )

    def ensemble(self, message: pb.Workspace, path: str) -> tuple[str, str] | None:
        """The ensemble it is placed with."""
        at = f"{path}.ensemble"
        if message.terms.HasField("queue_until"):
            self.problems.add(at, FieldReason.CONFLICT, "excludes terms.queue_until: it waits for the ensemble's seal")
        tenant, ensemble = self.problems.attempt(names.ensemble, message.ensemble, at, ("", ""))
        return (tenant, ensemble) if ensemble else None

    def node_sets(self, message: pb.Workspace, path: str, end_action: EndAction) -> tuple[NodeSet, ...]:
        """The sets, their names and how many nodes they make."""
        problems, limits = self.problems, self.limits
        at = f"{path}.node_sets"
        if not message.node_sets:
            problems.required(at, "is empty; a workspace has one node set at least")
        names: dict[str, str] = {}
        images: dict[str, str] = {}
        sets = []
        for index, each in enumerate(problems.few(at, message.node_sets, limits.node_sets, "node sets")):
            own = f"{at}[{index}]"
            if each.name:
                problems.distinct(f"{own}.name", each.name, names)
            elif len(message.node_sets) > 1:
                problems.required(f"{own}.name", "is missing; only an only set needs no name")
            sets.append(self.known_set(each, own))
            self.saves(each, own, end_action, images)
        total = sum(each.count for each in sets)
        if total > limits.nodes:
            problems.add(at, FieldReason.OUT_OF_RANGE, f"make {total} nodes; at most {limits.nodes}")
        if end_action is EndAction.SAVE and sets and not images:
            problems.add(
                f"{path}.terms.end_action",
                FieldReason.CONFLICT,
                "END_ACTION_SAVE saves nothing unless a node set or a disk has save_as",
            )
        return tuple(sets)

    def known_set(self, message: pb.NodeSet, path: str) -> NodeSet:
        """One set, which need not be read again if it was read before."""
        wire = message.SerializeToString(deterministic=True)
        known = self.known.get(wire)
        if known is None:
            before = len(self.problems.found)
            known = self.node_set(message, path)
            if len(self.problems.found) == before:
                self.known.add(wire, known)
        return known

    def node_set(self, message: pb.NodeSet, path: str) -> NodeSet:
        """One set."""
        problems, limits = self.problems, self.limits
        refuse_not_offered(problems, "node_sets[]", message, path)
        count = problems.whole(f"{path}.count", message.count, 1, limits.nodes, needed=True)
        problems.whole(f"{path}.min_count", message.min_count, 0, count)
        if len(message.user_data) > limits.user_data:
            problems.add(
                f"{path}.user_data",
                FieldReason.TOO_LONG,
                f"has {len(message.user_data)} bytes; at most {limits.user_data}",
            )
        own = self.own_amounts(message, f"{path}.amounts")
        return NodeSet(
            name=problems.identifier(f"{path}.name", message.name),
            count=count,
            min_count=message.min_count,
            image=problems.name(f"{path}.image", message.image),
            instance_type=message.instance_type,
            own_amounts=own,
            amounts=self.amounts(message, own, path),
            user_data=message.user_data,
            ssh_public_keys=self.ssh_public_keys(message, f"{path}.ssh_public_keys"),
            nics=self.nics(message, f"{path}.nics"),
            disks=self.disks(message, f"{path}.disks"),
            host_selector=self.host_selector(message, f"{path}.host_selector"),
            placement=problems.choice(f"{path}.placement", message.placement, PLACEMENTS_IN, None),
            pool=problems.identifier(f"{path}.pool", message.pool),
            save_as=problems.name(f"{path}.save_as", message.save_as),
        )

    def own_amounts(self, message: pb.NodeSet, path: str) -> dict[str, int]:
        """The amounts a set spells out."""
        problems, limits = self.problems, self.limits
        given = message.amounts.amounts
        own = {}
        for key in problems.few_keys(f"{path}.amounts", given, limits.amounts, "resources"):
            at = keyed(f"{path}.amounts", key)
            problems.name(at, key, needed=True)
            own[key] = problems.whole(at, given[key], 1, limits.amount)
        return own

    def amounts(self, message: pb.NodeSet, own: dict[str, int], path: str) -> dict[str, int]:
        """What a node gets: the instance type's amounts with the set's own on top."""
        problems = self.problems
        kind = message.instance_type
        known = self.instance_types.get(kind) if kind else {}
        if known is None:
            if problems.name(f"{path}.instance_type", kind):
                problems.add(
                    f"{path}.instance_type",
                    FieldReason.UNKNOWN_VALUE,
                    f"there is no instance type {shown(kind)}{nearest(kind, self.instance_types)}",
                )
            return own
        merged = {**known, **own}
        for key in REQUIRED_AMOUNTS:
            if key not in merged and key not in message.amounts.amounts:
                problems.required(
                    keyed(f"{path}.amounts.amounts", key),
                    "is missing" + (f", and not said by instance type {shown(kind)}" if kind else ""),
                )
        return merged

    def ssh_public_keys(self, message: pb.NodeSet, path: str) -> tuple[str, ...]:
        """Keys, one line each; their kind is the guest's affair."""
        problems, limits = self.problems, self.limits
        keys = problems.few(path, message.ssh_public_keys, limits.ssh_public_keys, "keys")
        return tuple(
            problems.text(f"{path}[{at}]", key, limits.ssh_public_key, needed=True) for at, key in enumerate(keys)
        )

    def nics(self, message: pb.NodeSet, path: str) -> tuple[Nic, ...]:
        """Interfaces; the mac of an answer is ignored."""
        problems, limits = self.problems, self.limits
        names: dict[str, str] = {}
        found = []
        for index, nic in enumerate(problems.few(path, message.nics, limits.nics, "interfaces")):
            at = f"{path}[{index}]"
            if nic.name:
                problems.distinct(f"{at}.name", nic.name, names)
            wanted = problems.few(f"{at}.addresses", nic.addresses, limits.addresses, "addresses")
            for place, address in enumerate(wanted):
                self.address(f"{at}.addresses[{place}]", address, message.count)
            found.append(
                Nic(
                    network=problems.name(f"{at}.network", nic.network, needed=True),
                    name=problems.text(f"{at}.name", nic.name, limits.device),
                    addresses=tuple(wanted),
                )
            )
        return tuple(found)

    def address(self, path: str, text: str, count: int) -> None:
        """A wanted address, which only one node can have."""
        try:
            ipaddress.ip_address(text)
        except ValueError:
            self.problems.add(path, FieldReason.BAD_CHARACTERS, f"{shown(text)} is no IPv4 or IPv6 address")
        else:
            if count > 1:
                self.problems.add(path, FieldReason.CONFLICT, f"{text} can be one node's only, and count is {count}")

    def disks(self, message: pb.NodeSet, path: str) -> tuple[Disk, ...]:
        """Extra disks, each either from an image or blank."""
        problems, limits = self.problems, self.limits
        devices: dict[str, str] = {}
        found = []
        for index, disk in enumerate(problems.few(path, message.disks, limits.disks, "disks")):
            at = f"{path}[{index}]"
            if disk.device:
                problems.distinct(f"{at}.device", disk.device, devices)
            if not disk.image:
                problems.whole(f"{at}.size_mib", disk.size_mib, 1, limits.amount, needed=True)
            elif disk.size_mib:
                problems.add(f"{at}.size_mib", FieldReason.CONFLICT, "a disk from an image has the size of its image")
            found.append(
                Disk(
                    image=problems.name(f"{at}.image", disk.image),
                    size_mib=disk.size_mib,
                    device=problems.text(f"{at}.device", disk.device, limits.device),
                    read_only=disk.read_only,
                    save_as=problems.name(f"{at}.save_as", disk.save_as),
                )
            )
        return tuple(found)

    def saves(self, message: pb.NodeSet, path: str, end_action: EndAction, images: dict[str, str]) -> None:
        """The images a set is to leave behind: only under END_ACTION_SAVE, each of its own name."""
        named = [(f"{path}.save_as", message.save_as)]
        disks = message.disks[: self.limits.disks]
        named += [(f"{path}.disks[{at}].save_as", disk.save_as) for at, disk in enumerate(disks)]
        for at, image in named:
            if image:
                self.problems.distinct(at, image, images)
                if end_action is not EndAction.SAVE:
                    self.problems.add(at, FieldReason.CONFLICT, "needs terms.end_action END_ACTION_SAVE")

    def host_selector(self, message: pb.NodeSet, path: str) -> dict[str, tuple[str, ...]]:
        """Host attributes, each with the values that will do."""
        problems, limits = self.problems, self.limits
        given = message.host_selector
        selector = {}
        for key in problems.few_keys(path, given, limits.selector_keys, "attributes"):
            at = keyed(path, key)
            problems.name(at, key, needed=True)
            values = problems.few(f"{at}.values", given[key].values, limits.selector_values, "values")
            if not values:
                problems.required(f"{at}.values", "is empty; one value at least")
            selector[key] = tuple(
                problems.name(f"{at}.values[{place}]", value, needed=True) for place, value in enumerate(values)
            )
        return selector
