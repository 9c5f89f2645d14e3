"""What people see of workspaces, pools, hosts and tenants; --json shows everything instead."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta

from rich.console import RenderableType
from rich.table import Table as Grid
from rich.text import Text
from workspacebroker.v1.pool_service_pb2 import Stray
from workspacebroker.v1.resources_pb2 import (
    Host,
    Image,
    InstanceType,
    Network,
    Node,
    ParameterSpec,
    Pool,
    Quantities,
    Tenant,
    Workspace,
)

from clients.amounts import format_duration, format_instant, rounded_up, show_about, show_amount
from clients.cli.render import (
    KNOWN_AMOUNTS,
    amounts,
    clean,
    enum_word,
    instant,
    moment,
    natural,
    share,
    soon,
    span,
    value_text,
)
from clients.cli.tables import Cell, Table
from clients.cli.verdicts import verdict_table
from clients.errors import from_status
from clients.names import FINAL, RESTING, short_name, state_word
from clients.sdk import Change

_GOOD = {Workspace.STATE_RUNNING}
_BAD = {Workspace.STATE_FAILED}


def state_text(state: int) -> Text:
    """A state, coloured where there is colour: moving on by itself, running, failed."""
    style = "green" if state in _GOOD else "red" if state in _BAD else "" if state in RESTING else "yellow"
    return Text(state_word(state), style=style)


def workspace_table(workspaces: Iterable[Workspace], tenant: str) -> Table:
    """One row a workspace."""
    shown = Table("WORKSPACE", "STATE", "POOL", "NODES", "ADDRESS", "STARTS", "ENDS", "NOTE", prose=("NOTE",))
    for workspace in workspaces:
        shown.add_row(
            clean(short_name(workspace.name, tenant)),
            state_text(workspace.state),
            clean(_pool(workspace)),
            str(_node_count(workspace)),
            clean(next(_addresses(workspace), "")),
            _starts(workspace),
            _ends(workspace, "open"),
            clean(_note(workspace)),
        )
    return shown


def _node_count(workspace: Workspace) -> int:
    return len(workspace.nodes) or sum(node_set.count or 1 for node_set in workspace.node_sets)


def _addresses(workspace: Workspace) -> Iterator[str]:
    return (address for node in workspace.nodes for nic in node.nics for address in nic.addresses)


def _pool(workspace: Workspace) -> str:
    return ",".join(dict.fromkeys(node.pool for node in workspace.nodes if node.pool)) or workspace.pool


def _starts(workspace: Workspace) -> datetime | None:
    return moment(workspace, "actual_start_time") or moment(workspace, "planned_start_time")


def _ends(workspace: Workspace, open_ended: str) -> Cell:
    return moment(workspace, "end_time") or ("" if workspace.state in FINAL else open_ended)


def _note(workspace: Workspace) -> str:
    """The one thing most worth knowing."""
    if workspace.HasField("last_error"):
        return str(workspace.last_error.message)
    if workspace.notices:
        return workspace.notices[0].message or enum_word(workspace.notices[0], "kind")
    if workspace.queue_position:
        return f"place {workspace.queue_position} in the queue"
    return workspace.state_message


def headline(workspace: Workspace, tenant: str) -> Text:
    """A workspace on one line."""
    count = _node_count(workspace)
    parts = [f"{count} node{'s' * (count != 1)}"]
    if pool := _pool(workspace):
        parts[0] += f" in {pool}"
    if (start := moment(workspace, "planned_start_time")) and not workspace.HasField("actual_start_time"):
        parts += [f"from {soon(start)}"] if start > datetime.now(UTC) else []
    if (end := moment(workspace, "end_time")) and workspace.state not in FINAL:
        parts.append(f"until {soon(end)}")
    if workspace.queue_position:
        parts.append(f"place {workspace.queue_position} in the queue")
    name = clean(short_name(workspace.name, tenant))
    return Text(f"{name}  ") + state_text(workspace.state) + Text(clean("  " + ", ".join(parts)))


def progress_text(workspace: Workspace, tenant: str, *, live: bool = False) -> str:
    """A workspace on its way, on one line: its state and the step of every node that has one.

    `live`: waits are told as what is left of them, which is another text every second.
    """
    line = f"{short_name(workspace.name, tenant)} {state_word(workspace.state)}"
    if workspace.queue_position:
        line += f", place {workspace.queue_position} in the queue"
    active = [node for node in workspace.nodes if node.HasField("activity")]
    steps = [f"node {node.index}: {activity_text(node, live=live)}" for node in active]
    if not steps and workspace.state_message:
        steps = [workspace.state_message]
    more = f"; {len(steps) - 3} more" if len(steps) > 3 else ""
    return clean("  ".join(filter(None, [line, "; ".join(steps[:3]) + more])))


def activity_text(node: Node, *, live: bool = False) -> str:
    """The step under way, the try it is, and why the one before failed."""
    activity = node.activity
    text = activity.step
    if activity.percent:
        text += f" {activity.percent} %"
    if activity.attempt > 1:
        text += f", try {activity.attempt}"
    if again := moment(activity, "next_attempt_time"):
        left = max(rounded_up(again - datetime.now(UTC)), timedelta(0))
        text += f", next in {format_duration(left)}" if live else f", next at {soon(again)}"
    if activity.HasField("last_error"):
        text += f": {activity.last_error.message}"
    return text


def change_line(change: Change, tenant: str) -> Text:
    """One change on one line; without a time where only its outcome is known."""
    at = format_instant(change.time.ToDatetime(tzinfo=UTC)) if change.time else "earlier"
    before = state_word(change.previous_state) if change.previous_state else "-"
    line = Text(f"{at}  {clean(short_name(change.workspace.name, tenant))}  {before} -> ")
    note = clean(_note(change.workspace))
    return line + state_text(change.workspace.state) + Text(f"  {note}" if note else "")


def workspace_view(workspace: Workspace, tenant: str) -> list[RenderableType]:
    """Everything a person wants to know of one workspace."""
    facts = Grid(box=None, pad_edge=False, show_header=False)
    facts.add_column(style="bold", no_wrap=True)
    facts.add_column(overflow="fold")
    for label, value in _facts(workspace, tenant):
        if value:
            facts.add_row(label, value if isinstance(value, Text) else clean(value))
    view: list[RenderableType] = [facts]
    if workspace.node_sets:
        view += ["", _node_set_table(workspace)]
    if workspace.nodes:
        view += ["", _node_table(workspace)]
    for notice in workspace.notices:
        due = f" (due {instant(notice, 'due_time')})" if notice.HasField("due_time") else ""
        view.append(clean(f"Notice {enum_word(notice, 'kind')}: {notice.message}{due}"))
    if workspace.HasField("last_error"):
        view += last_error_view(workspace)
    return view


def last_error_view(workspace: Workspace) -> list[RenderableType]:
    """Why it failed, host by host where that is known."""
    error = from_status(workspace.last_error)
    reason = f" ({error.reason})" if error.reason else ""
    view: list[RenderableType] = [clean(f"Last error{reason}: {error.message}")]
    return [*view, verdict_table(error.verdicts)] if error.verdicts else view


def _facts(workspace: Workspace, tenant: str) -> Iterator[tuple[str, str | Text]]:
    cause = enum_word(workspace, "cause")
    yield "Workspace", short_name(workspace.name, tenant)
    yield "Name", workspace.display_name
    yield "State", state_text(workspace.state) + Text(f" ({cause.lower()})" if cause else "")
    yield "", workspace.state_message
    yield "Ensemble", short_name(workspace.ensemble, tenant)
    yield "Queue", f"place {workspace.queue_position}" if workspace.queue_position else ""
    yield "Pool", _pool(workspace)
    yield "Labels", ", ".join(f"{k}={v}" for k, v in sorted(workspace.labels.items()))
    yield "Created", instant(workspace, "create_time")
    if not workspace.HasField("actual_start_time"):
        yield "Prepares", instant(workspace, "prepare_time")
        yield "Starts", instant(workspace, "planned_start_time")
    yield "Started", instant(workspace, "actual_start_time")
    yield "Ends", instant(workspace, "end_time") or ("" if workspace.state in FINAL else "open-ended")
    yield "Duration", span(workspace.terms, "duration")
    yield "Waits until", instant(workspace.terms, "queue_until") if workspace.queue_position else ""
    yield "Priority", str(workspace.terms.priority) if workspace.terms.priority else ""
    yield "Preemptible", "yes" if workspace.terms.preemptible else ""
    yield "At its end", enum_word(workspace.terms, "end_action").lower()
    parameters = sorted(workspace.parameters.items())
    yield "Parameters", ", ".join(f"{key}={value_text(value)}" for key, value in parameters)
    yield "Ignored", ", ".join(workspace.ignored_parameters)


def _node_set_table(workspace: Workspace) -> Table:
    shown = Table("SET", "COUNT", "IMAGE", "TYPE", "AMOUNTS", "NETWORKS", prose=("AMOUNTS", "NETWORKS"))
    for node_set in workspace.node_sets:
        shown.add_row(
            clean(node_set.name),
            f"{node_set.min_count}-{node_set.count}" if node_set.min_count else str(node_set.count or 1),
            clean(node_set.image),
            clean(node_set.instance_type),
            amounts(node_set.amounts.amounts),
            clean(", ".join(nic.network for nic in node_set.nics)),
        )
    return shown


def _node_table(workspace: Workspace) -> Table:
    prose = ("ADDRESSES", "ACTIVITY", "LAST ERROR")
    shown = Table("NODE", "STATE", "HOST", "ADDRESSES", "ACTIVITY", "SEEN", "LAST ERROR", prose=prose)
    for node in workspace.nodes:
        released = ", released" if node.capacity_released else ""
        shown.add_row(
            clean(f"{node.index} {node.node_set}".strip()),
            state_text(node.state) + Text(released),
            clean(short_name(node.host)),
            clean(", ".join(address for nic in node.nics for address in nic.addresses)),
            clean(activity_text(node)) if node.HasField("activity") else "",
            moment(node, "observe_time"),
            clean(node.last_error.message),
        )
    return shown


def pool_table(pools: Iterable[Pool]) -> Table:
    """One row a pool: what is given out or promised, of how much."""
    heads = ("POOL", "BACKEND", "STATE", "CORES USED", "MEMORY USED", "DISK USED", "SEEN", "LAST ERROR")
    shown = Table(*heads, prose=("STATE", "LAST ERROR"))
    for pool in sorted(pools, key=lambda pool: natural(pool.name)):
        used = _sum(pool.allocated.amounts, pool.reserved.amounts)
        shown.add_row(
            clean(short_name(pool.name)),
            clean(pool.backend),
            enum_word(pool, "state") + (", draining" if pool.draining else ""),
            *(share(key, used, pool.total.amounts) for key in KNOWN_AMOUNTS),
            moment(pool, "refresh_time") or "never",
            clean(pool.last_error.message),
        )
    return shown


def _sum(one: Mapping[str, int], other: Mapping[str, int]) -> dict[str, int]:
    return {key: one.get(key, 0) + other.get(key, 0) for key in {*one, *other}}


def host_table(hosts: Iterable[Host]) -> Table:
    """One row a host: what is free, of how much."""
    heads = ("HOST", "STATE", "CORES FREE", "MEMORY FREE", "DISK FREE", "SLOTS", "NOT OURS", "LAST ERROR")
    shown = Table(*heads, prose=("STATE", "NOT OURS", "LAST ERROR"))
    for host in sorted(hosts, key=lambda host: natural(host.name)):
        shown.add_row(
            clean(short_name(host.name)),
            enum_word(host, "state") + (", cordoned" if host.cordoned else ""),
            *(share(key, host.free.amounts, host.total.amounts) for key in KNOWN_AMOUNTS),
            str(len(host.slots)),
            amounts({key: n for key, n in host.foreign.amounts.items() if n}),
            clean(host.last_error.message),
        )
    return shown


def image_table(images: Iterable[Image]) -> Table:
    """One row an image."""
    shown = Table("IMAGE", "NAME", "READY", "SIZE", "ATTRIBUTES", prose=("NAME", "ATTRIBUTES"))
    for image in images:
        attributes = sorted(image.attributes.items())
        shown.add_row(
            clean(image.name),
            clean(image.display_name),
            "yes" if image.ready else "no",
            show_about("disk", -(-image.size_bytes // 2**20)) if image.size_bytes else "",
            clean(", ".join(f"{key}={value_text(value)}" for key, value in attributes)),
        )
    return shown


def network_table(networks: Iterable[Network]) -> Table:
    """One row a network."""
    shown = Table("NETWORK", "NAME", "FREE ADDRESSES", prose=("NAME",))
    for network in networks:
        free = f"{network.free_addresses}/{network.total_addresses}"
        shown.add_row(clean(network.name), clean(network.display_name), free)
    return shown


def stray_table(strays: Iterable[Stray]) -> Table:
    """One row a VM that bears the broker's tag and belongs to no workspace."""
    heads = ("STRAY", "BACKEND ID", "HOST", "TAG SAYS", "STATE", "AMOUNTS", "FOUND", "WHY")
    shown = Table(*heads, prose=("AMOUNTS", "WHY"))
    for stray in strays:
        shown.add_row(
            clean(short_name(stray.name)),
            clean(stray.backend_id),
            clean(short_name(stray.host)),
            clean(short_name(stray.workspace)),
            enum_word(stray, "seen"),
            amounts(stray.amounts.amounts),
            moment(stray, "found_time"),
            clean(stray.reason),
        )
    return shown


def type_table(types: Iterable[InstanceType]) -> Table:
    """One row a named size."""
    shown = Table("TYPE", "AMOUNTS", prose=("AMOUNTS",))
    for each in types:
        shown.add_row(clean(each.name), amounts(each.amounts.amounts))
    return shown


def parameter_table(specs: Iterable[ParameterSpec]) -> Table:
    """One row a parameter."""
    shown = Table("PARAMETER", "KIND", "DEFAULT", "REQUIRED", "MEANING", prose=("MEANING",))
    for spec in specs:
        default = value_text(spec.default_value) if spec.HasField("default_value") else ""
        kind = enum_word(spec, "kind").lower().replace("_", " ")
        shown.add_row(clean(spec.key), kind, default, "yes" if spec.required else "", clean(spec.description))
    return shown


def usage_table(tenant: Tenant) -> Table:
    """Use and limit of every resource, over all pools and in each."""
    shown = Table("POOL", "RESOURCE", "USED", "LIMIT")
    # Not by index: a protobuf map makes up what it is asked for.
    scopes = [("all", tenant.used, tenant.limits)] + [
        (pool, tenant.pool_used.get(pool, Quantities()), tenant.pool_limits.get(pool, Quantities()))
        for pool in sorted({*tenant.pool_used, *tenant.pool_limits})
    ]
    for pool, used, limits in scopes:
        always = ("cpu", "memory", "nodes", "workspaces") if pool == "all" else ()
        for key in sorted({*used.amounts, *limits.amounts, *always}):
            limit = show_amount(key, limits.amounts[key]) if key in limits.amounts else "none"
            shown.add_row(clean(pool), clean(key), show_amount(key, used.amounts.get(key, 0)), limit)
    return shown
