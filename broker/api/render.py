"""Workspaces out: what the broker keeps, as the API shows it.

Invariants: user data never leaves; what a caller set comes back as it was set, so that an answer can be
sent again; instants are exact to the microsecond. A workspace is rendered for every answer and every
watcher, so each message is built in one call, from tables instead of reflection. Nothing is decided or
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
from broker.api.times import optional_duration, optional_timestamp, timestamp
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
    observe_times: Mapping[int, datetime] = NO_TIMES,
) -> pb.Workspace:
    """A workspace. `state`: other than its own; `tasks` and `observe_times`: by node index."""
    return pb.Workspace(
        name=ws.name,
        display_name=ws.display_name,
        labels=ws.labels,
        pool=ws.pool,
        node_sets=[node_set(each) for each in ws.node_sets],
        terms=terms(ws.terms),
        parameters={key: render_value(value) for key, value in ws.parameters.items()},
        initial_state=STATES[ws.initial_state],
        optional_parameters=ws.optional_parameters,
        state=STATES[ws.state if state is None else state],
        state_message=state_message,
        last_error=optional_failure(ws.last_error),
        nodes=[
            node(ws, each, task=tasks.get(each.index), observe_time=observe_times.get(each.index)) for each in ws.nodes
        ],
        create_time=timestamp(ws.create_time),
        planned_start_time=optional_timestamp(ws.start_time),
        actual_start_time=optional_timestamp(ws.actual_start_time),
        end_time=optional_timestamp(ws.end_time),
        queue_position=queue_position,
        revision=ws.revision,
        etag=ws.etag,
        uid=ws.uid,
        cause=CAUSES[ws.cause],
        prepare_time=optional_timestamp(ws.prepare_time),
        notices=[_notice(each) for each in ws.notices],
        ignored_parameters=ws.ignored_parameters,
    )


def node(ws: Workspace, each: Node, *, task: Task | None = None, observe_time: datetime | None = None) -> pb.Node:
    """One node, with what is under way on it; `observe_time`: later than the one it bears."""
    return pb.Node(
        index=each.index,
        node_set=ws.node_sets[each.set_index].name,
        backend_id=each.backend_id,
        host=names.host_name(each.pool, each.host) if each.host else "",
        state=STATES[each.state],
        nics=[_seen_nic(nic) for nic in each.nics],
        last_error=optional_failure(each.last_error),
        observe_time=optional_timestamp(observe_time or each.observe_time),
        pool=each.pool,
        cause=CAUSES[each.cause],
        capacity_released=each.released,
        activity=None if task is None else _activity(task),
    )


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


def terms(asked: Terms) -> pb.LeaseTerms:
    """Terms as they were asked for; what came of them stands in the workspace's own times."""
    return pb.LeaseTerms(
        start_time=optional_timestamp(asked.start_time),
        duration=optional_duration(asked.duration),
        deadline=optional_timestamp(asked.deadline),
        end_action=END_ACTIONS[asked.end_action],
        earliest_start_time=optional_timestamp(asked.earliest_start_time),
        open_ended=asked.open_ended,
    )


def quantities(amounts: Mapping[str, int]) -> pb.Quantities:
    """Amounts by resource."""
    return pb.Quantities(amounts=amounts)


def optional_failure(failure: Failure | None) -> status_pb2.Status | None:
    """A kept error, where there is one."""
    return None if failure is None else failure_status(failure)


def _activity(task: Task) -> pb.Node.Activity:
    """The step to try next; when all are accepted, the last one, whose effect is waited for."""
    step = task.step or (task.steps[-1] if task.steps else "")
    return pb.Node.Activity(
        step=step,
        attempt=max(1, task.attempt),
        next_attempt_time=optional_timestamp(task.next_attempt_time),
        last_error=optional_failure(task.last_error),
    )


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
