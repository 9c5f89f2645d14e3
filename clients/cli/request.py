"""From the flags of `create` and `check`, and a file, to one CreateWorkspaceRequest.

The file is the base, flags override it. Flags describe one set of nodes; a request with several comes from a
file. What is wrong in itself is refused here with the flag's name, what the broker must judge is left to it.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, BinaryIO, TextIO, TypeVar

import click
from google.protobuf.json_format import ParseDict, ParseError
from workspacebroker.v1.resources_pb2 import LeaseTerms, Nic, NodeSet, Workspace
from workspacebroker.v1.workspace_service_pb2 import CreateWorkspaceRequest

from clients.amounts import parse_count, parse_cpu, parse_duration, parse_instant, parse_mib
from clients.cli.complete import POOL
from clients.cli.parameters import typed_parameters
from clients.cli.session import PAIR, Parsed, Session, pair

_Function = TypeVar("_Function", bound=Callable[..., Any])
UNLIMITED = "unlimited"


def _enum(prefix: str, enum: Any) -> click.Choice[str]:
    words = [key.removeprefix(prefix).lower().replace("_", "-") for key in enum.keys()[1:]]
    return click.Choice(words, case_sensitive=False)


def _value(prefix: str, enum: Any, word: str) -> Any:
    return enum.Value(prefix + word.upper().replace("-", "_"))


def lease_duration(text: str) -> timedelta | str:
    """A duration, or `unlimited`."""
    return UNLIMITED if text.strip().lower() == UNLIMITED else parse_duration(text)


def _quantity(text: str) -> tuple[str, int]:
    key, amount = pair(text)
    return key, parse_count(amount)


DURATION = Parsed("DURATION", parse_duration)
LEASE = Parsed("DURATION", lease_duration)
INSTANT = Parsed("TIME", parse_instant)
END_ACTION = _enum("END_ACTION_", LeaseTerms.EndAction)
INITIAL_STATE = click.Choice(["running", "paused"], case_sensitive=False)

_NODE_FLAGS = (
    click.option("--image", help="Image to boot from."),
    click.option("--type", "instance_type", metavar="NAME", help="A size the site has named: workspace types POOL."),
    click.option("--cpu", type=Parsed("CORES", parse_cpu), help="Cores a node: 2, 0.5 or 500m."),
    click.option("--memory", type=Parsed("SIZE", parse_mib), help="Memory a node: 4GiB, 512MiB; MiB without a unit."),
    click.option("--disk", type=Parsed("SIZE", parse_mib), help="Disk a node: 20GiB; 20GB is rounded up to MiB."),
    click.option(
        "--amount",
        multiple=True,
        type=Parsed("KEY=NUMBER", _quantity),
        help="Anything else a pool counts: example.com/gpu=1.",
    ),
    click.option("--count", type=click.IntRange(min=1), help="How many equal nodes; default 1."),
    click.option("--min-count", type=click.IntRange(min=1), help="Be content with fewer nodes, but at least these."),
    click.option("--network", multiple=True, metavar="NAME", help="Attach each node to it; may be repeated."),
    click.option("--ssh-key", multiple=True, type=click.File("r"), help="Public key file to let in; may be repeated."),
    click.option("--user-data", type=click.File("rb"), help="File handed to each node when it boots."),
    click.option(
        "--select",
        multiple=True,
        type=PAIR,
        help="Only hosts with this attribute; repeat a key to allow any of its values.",
    ),
    click.option(
        "--placement",
        type=_enum("PLACEMENT_", NodeSet.Placement),
        help="How the nodes lie over the hosts.",
    ),
)
_LEASE_FLAGS = (
    click.option("--pool", type=POOL, help="Only this pool; otherwise any that fits."),
    click.option("--start", type=INSTANT, help="Start exactly then: 2026-05-01T14:00 (local), +2h, now."),
    click.option("--duration", type=LEASE, help="Length of the lease: 90m, 2h, .5h, 1d12h, or unlimited."),
    click.option("--earliest", type=INSTANT, help="Do not start before; with --deadline a window."),
    click.option("--deadline", type=INSTANT, help="Any start that lets it end by then."),
    click.option("--queue-until", type=INSTANT, help="Wait until then for room, in the queue; otherwise now or not."),
    click.option("--preemptible", is_flag=True, help="It may be made to give way, and goes on later by itself."),
    click.option("--priority", type=int, help="Place in the queue: higher first."),
    click.option("--end-action", type=END_ACTION, help="What becomes of the nodes when the lease ends."),
    click.option("--initial-state", type=INITIAL_STATE, help="Where the first start leads; default running."),
    click.option(
        "--param",
        multiple=True,
        metavar="NS:NAME=VALUE",
        type=PAIR,
        help="A parameter the pool understands: workspace parameters POOL.",
    ),
    click.option("--label", multiple=True, type=PAIR, help="A label of yours; may be repeated."),
    click.option(
        "--file",
        "file",
        type=click.File("r"),
        help="JSON of a CreateWorkspaceRequest or a Workspace (- reads stdin); flags override it.",
    ),
)
_NODE_NAMES = (
    "image",
    "instance_type",
    "cpu",
    "memory",
    "disk",
    "amount",
    "count",
    "min_count",
    "network",
    "ssh_key",
    "user_data",
    "select",
    "placement",
)
SECTIONS_OF_A_REQUEST: Mapping[str, Sequence[str]] = {
    "The nodes": _NODE_NAMES,
    "The lease": (
        "pool",
        "start",
        "duration",
        "earliest",
        "deadline",
        "queue_until",
        "preemptible",
        "priority",
        "end_action",
        "initial_state",
        "param",
        "label",
    ),
}
# Options of `create` that `check` has not, and whether they take a value.
CREATE_ONLY = {"--id": 1, "--name": 1, "--ensemble": 1, "--request-id": 1, "--timeout": 1, "--wait": 0}


def request_flags(function: _Function) -> _Function:
    """The flags that `create` and `check` share."""
    for flag in reversed(_LEASE_FLAGS + _NODE_FLAGS):
        function = flag(function)
    return function


def check_line(arguments: Sequence[str]) -> str:
    """The `check` with the same flags as a `create`."""
    kept: list[str] = []
    skip = 0
    for argument in arguments:
        option, equals, _ = argument.partition("=")
        if skip:
            skip -= 1
        elif option in CREATE_ONLY:
            skip = 0 if equals else CREATE_ONLY[option]
        else:
            kept.append(argument)
    return shlex.join(["workspace", "check", *kept])


def build(session: Session, flags: Mapping[str, Any]) -> CreateWorkspaceRequest:
    """The request that the flags and the file describe."""
    request = _from_file(flags["file"]) if flags["file"] else CreateWorkspaceRequest()
    if session.tenant_given or not request.parent:
        request.parent = session.parent
    workspace = request.workspace
    _apply_nodes(workspace, flags)
    apply_terms(workspace.terms, flags)
    session.one_set = len(workspace.node_sets) == 1
    workspace.pool = flags["pool"] or workspace.pool
    workspace.labels.update(flags["label"])
    if flags["initial_state"]:
        workspace.initial_state = _value("STATE_", Workspace.State, flags["initial_state"])
    for key, value in typed_parameters(session, flags["param"], workspace.pool).items():
        workspace.parameters[key].CopyFrom(value)
    return request


def _from_file(file: TextIO) -> CreateWorkspaceRequest:
    request = CreateWorkspaceRequest()
    try:
        document = json.load(file)
        if not isinstance(document, dict):
            raise ValueError("a JSON object is needed")
        fields = CreateWorkspaceRequest.DESCRIPTOR.fields
        if set(document) <= {name for field in fields for name in (field.name, field.json_name)}:
            ParseDict(document, request)
        else:
            ParseDict(document, request.workspace)
    except (ParseError, ValueError) as error:
        raise click.BadParameter(
            f"{file.name} is no CreateWorkspaceRequest and no Workspace: {error}", param_hint="--file"
        ) from None
    return request


def _apply_nodes(workspace: Workspace, flags: Mapping[str, Any]) -> None:
    given = [name for name in _NODE_NAMES if flags[name] not in (None, ())]
    if not workspace.node_sets:
        if not given:
            raise click.UsageError("Say what to lease: --image with --type or --cpu and --memory, or --file.")
        workspace.node_sets.add(count=1)
    if given and len(workspace.node_sets) > 1:
        option = given[0].replace("_", "-").removeprefix("instance-")
        sets = len(workspace.node_sets)
        raise click.UsageError(f"--{option} describes one set of nodes, the file has {sets}.")
    if given:
        _apply_node_set(workspace.node_sets[0], flags)


def _apply_node_set(node_set: NodeSet, flags: Mapping[str, Any]) -> None:
    for name in ("image", "instance_type", "count", "min_count"):
        if flags[name] is not None:
            setattr(node_set, name, flags[name])
    amounts = {key: flags[key] for key in ("cpu", "memory", "disk") if flags[key] is not None}
    node_set.amounts.amounts.update({**amounts, **dict(flags["amount"])})
    if flags["network"]:
        del node_set.nics[:]
        node_set.nics.extend(Nic(network=network) for network in flags["network"])
    if flags["ssh_key"]:
        node_set.ssh_public_keys[:] = [key for file in flags["ssh_key"] for key in _keys(file)]
    if flags["user_data"]:
        user_data: BinaryIO = flags["user_data"]
        node_set.user_data = user_data.read()
    for key in {key for key, _ in flags["select"]}:
        node_set.host_selector[key].values[:] = [value for k, value in flags["select"] if k == key]
    if flags["placement"]:
        node_set.placement = _value("PLACEMENT_", NodeSet.Placement, flags["placement"])


def _keys(file: TextIO) -> list[str]:
    return [line.strip() for line in file if line.strip() and not line.startswith("#")]


def apply_terms(terms: LeaseTerms, flags: Mapping[str, Any]) -> list[str]:
    """Sets what was given; returns the paths set, for an update."""
    paths: list[str] = []
    length = flags.get("duration")
    if length is not None:
        terms.ClearField("duration")
        terms.open_ended = length == UNLIMITED
        if isinstance(length, timedelta):
            terms.duration.FromTimedelta(length)
        paths += ["duration", "open_ended"]
    moments = {
        "start": "start_time",
        "earliest": "earliest_start_time",
        "deadline": "deadline",
        "queue_until": "queue_until",
    }
    for flag, field in moments.items():
        moment: datetime | None = flags.get(flag)
        if moment is not None:
            getattr(terms, field).FromDatetime(moment)
            paths.append(field)
    if flags.get("preemptible"):
        terms.preemptible = True
        paths.append("preemptible")
    if flags.get("priority") is not None:
        terms.priority = flags["priority"]
        paths.append("priority")
    if flags.get("end_action"):
        terms.end_action = _value("END_ACTION_", LeaseTerms.EndAction, flags["end_action"])
        paths.append("end_action")
    return [f"terms.{path}" for path in paths]
