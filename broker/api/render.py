"""Workspaces out: what the broker keeps, as the API shows it.

Invariants: user data never leaves; what a caller set comes back as it was set, so that an answer can be
sent again; instants are exact to the microsecond. A workspace is rendered for every answer and every
watcher, so messages are filled in place (one given to a constructor is copied through the wire format), and
from tables instead of reflection. Nothing is decided or
looked up: what does not stand in the arguments is not shown. Pools, hosts and the rest: render_pools.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from types import MappingProxyType
from typing import Final

from google.rpc import status_pb2
from workspacebroker.v1 import resources_pb2 as pb

from broker.api import names
from broker.api.enums import CAUSES, END_ACTIONS, NOTICE_KINDS, PLACEMENTS, STATES
from broker.api.parameters import render_value
from broker.api.status import failure_status
from broker.api.times import duration, fill, optional_timestamp, timestamp
from broker.core.errors import Failure
from broker.core.memo import Memo
from broker.core.model import Disk, Nic, Node, NodeSet, Notice, SeenNic, State, Task, Terms, Workspace

NO_TASKS: Final[Mapping[int, Task]] = MappingProxyType({})
NO_TIMES: Final[Mapping[int, datetime]] = MappingProxyType({})


def workspace(
    ws: Workspace,
    *,
    state: State | None = None,
    state_message: str = "",
    tasks: Mapping[int, Task] = NO_TASKS,
    queue_position: int = 0,
    planned_start: datetime | None = None,
    observe_times: Mapping[int, datetime] = NO_TIMES,
) -> pb.Workspace:
    """A workspace. `state`: other than its own; `planned_start`: of one that waits and has no promised one; `tasks` and
    `observe_times`: by node index."""
    shown = pb.Workspace(
        name=ws.name,
        display_name=ws.display_name,
        pool=ws.pool,
        initial_state=STATES[ws.initial_state],
        state=STATES[ws.state if state is None else state],
        state_message=state_message,
        queue_position=queue_position,
        revision=ws.revision,
        etag=ws.etag,
        uid=ws.uid,
        cause=CAUSES[ws.cause],
    )
    if ws.labels:
        shown.labels.update(ws.labels)
    if ws.ensemble:
        shown.ensemble = names.ensemble_name(ws.tenant, ws.ensemble)
    for each in ws.node_sets:
        shown.node_sets.append(node_set(each))
    _fill_terms(shown.terms, ws.terms)
    for node in ws.nodes:
        index = node.index
        _fill_node(shown.nodes.add(), ws, node, tasks.get(index), observe_times.get(index))
    fill(shown.create_time, ws.create_time)
    for field, at in (
        ("planned_start_time", ws.start_time or planned_start),
        ("prepare_time", ws.prepare_time),
        ("actual_start_time", ws.actual_start_time),
        ("end_time", ws.end_time),
    ):
        if at is not None:
            fill(getattr(shown, field), at)
    if ws.last_error is not None:
        shown.last_error.CopyFrom(failure_status(ws.last_error))
    for key, value in ws.parameters.items():
        shown.parameters[key].CopyFrom(render_value(value))
    shown.optional_parameters.extend(ws.optional_parameters)
    shown.ignored_parameters.extend(ws.ignored_parameters)
    shown.notices.extend(map(_notice, ws.notices))
    return shown


def _fill_node(shown: pb.Node, ws: Workspace, each: Node, task: Task | None, observe_time: datetime | None) -> None:
    """One node, with what is under way on it; `observe_time`: later than the one it bears."""
    shown.index = each.index
    shown.node_set = ws.node_sets[each.set_index].name
    shown.backend_id = each.backend_id
    if each.host:
        shown.host = names.host_name(each.pool, each.host)
    shown.state = STATES[each.state]
    shown.pool = each.pool
    shown.cause = CAUSES[each.cause]
    shown.capacity_released = each.released
    shown.nics.extend(map(_seen_nic, each.nics))
    if each.last_error is not None:
        shown.last_error.CopyFrom(failure_status(each.last_error))
    at = observe_time or each.observe_time
    if at is not None:
        fill(shown.observe_time, at)
    if task is not None:
        _fill_activity(shown.activity, task)


def _node_set(each: NodeSet) -> pb.NodeSet:
    return pb.NodeSet(
        name=each.name,
        count=each.count,
        min_count=each.min_count,
        image=each.image,
        instance_type=each.instance_type,
        amounts=quantities(each.own_amounts) if each.own_amounts else None,
        nics=[_nic(nic) for nic in each.nics],
        ssh_public_keys=each.ssh_public_keys,
        disks=[_disk(disk) for disk in each.disks],
        host_selector={key: pb.StringList(values=values) for key, values in each.host_selector.items()},
        placement=PLACEMENTS[each.placement],
        pool=each.pool,
        save_as=each.save_as,
    )


node_set = Memo(_node_set)
"""A set as it was asked for, without its user data. The message is shared: to be copied from, not to be changed."""


def _fill_terms(shown: pb.LeaseTerms, asked: Terms) -> None:
    """Terms as they were asked for; what came of them stands in the workspace's own times."""
    shown.end_action = END_ACTIONS[asked.end_action]
    shown.open_ended = asked.open_ended
    shown.preemptible = asked.preemptible
    shown.priority = asked.priority
    if asked.duration is not None:
        shown.duration.CopyFrom(duration(asked.duration))
    for field, at in (
        ("start_time", asked.start_time),
        ("earliest_start_time", asked.earliest_start_time),
        ("deadline", asked.deadline),
        ("queue_until", asked.queue_until),
    ):
        if at is not None:
            fill(getattr(shown, field), at)


def quantities(amounts: Mapping[str, int]) -> pb.Quantities:
    """Amounts by resource."""
    return pb.Quantities(amounts=amounts)


def optional_failure(failure: Failure | None) -> status_pb2.Status | None:
    """A kept error, where there is one."""
    return None if failure is None else failure_status(failure)


def _fill_activity(shown: pb.Node.Activity, task: Task) -> None:
    """The step to try next; when all are accepted, the last one, whose effect is waited for."""
    shown.step = task.step or (task.steps[-1] if task.steps else "")
    shown.attempt = max(1, task.attempt)
    if task.next_attempt_time is not None:
        fill(shown.next_attempt_time, task.next_attempt_time)
    if task.last_error is not None:
        shown.last_error.CopyFrom(failure_status(task.last_error))


def _notice(notice: Notice) -> pb.Workspace.Notice:
    return pb.Workspace.Notice(
        kind=NOTICE_KINDS[notice.kind],
        time=timestamp(notice.time),
        due_time=optional_timestamp(notice.due_time),
        message=notice.message,
    )


def _nic(nic: Nic) -> pb.Nic:
    return pb.Nic(network=nic.network, name=nic.name, addresses=nic.addresses)


def _seen_nic(nic: SeenNic) -> pb.Nic:
    return pb.Nic(network=nic.network, name=nic.name, addresses=nic.addresses, mac=nic.mac)


def _disk(disk: Disk) -> pb.Disk:
    return pb.Disk(
        image=disk.image,
        size_mib=disk.size_mib,
        device=disk.device,
        read_only=disk.read_only,
        save_as=disk.save_as,
    )
