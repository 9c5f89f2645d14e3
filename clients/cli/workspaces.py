"""The commands on workspaces: asking, leasing, reading, following, changing. The verbs are one table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import click
from workspacebroker.v1.resources_pb2 import Workspace
from workspacebroker.v1.workspace_service_pb2 import CheckPlacementRequest, WatchWorkspacesResponse

from clients.cli.complete import POOL, STATE, WORKSPACE
from clients.cli.failures import BY_OUTCOME, Exit
from clients.cli.follow import follow
from clients.cli.request import (
    DURATION,
    END_ACTION,
    INSTANT,
    LEASE,
    SECTIONS_OF_A_REQUEST,
    apply_terms,
    build,
    check_line,
    request_flags,
)
from clients.cli.session import PAIR, Command, Session, pass_session
from clients.cli.verdicts import check_view
from clients.cli.views import change_line, headline, workspace_table, workspace_view
from clients.names import RESTING, VERBS, State, ensemble_name
from clients.sdk import new_request_id

VERB_HELP = {
    "start": ("Start a stopped workspace.", "workspace start web --wait"),
    "pause": ("Freeze a running workspace; its memory stays on the host.", "workspace pause web"),
    "unpause": ("Let a paused workspace run on.", "workspace unpause web --wait"),
    "suspend": ("Put a running workspace to disk, memory and all.", "workspace suspend web --release --wait"),
    "resume": ("Bring a suspended workspace back.", "workspace resume web --wait"),
    "stop": ("Shut a workspace down and keep its disks.", "workspace stop web --release --wait"),
    "reboot": ("Boot a running workspace anew.", "workspace reboot web --node 1 --force"),
    "terminate": (
        "End a workspace for good, disks and all; twice is fine.",
        "workspace terminate web --wait",
    ),
}
_VERB_OPTIONS = {
    "force": click.option("--force", is_flag=True, help="Do not ask the guests, just do it."),
    "release_capacity": click.option(
        "--release",
        "release_capacity",
        is_flag=True,
        help="Give cpu and memory back; going on then needs room again.",
    ),
}

_NODES = click.option("--node", "nodes", multiple=True, type=int, help="Only this node; may be repeated. Default: all.")
REQUEST_ID = click.option(
    "--request-id", default="", help="Repeat a call that may have got through: same id, same answer."
)
_WAIT = click.option("--wait", is_flag=True, help="Show what goes on until it is done.")
_TIMEOUT = click.option("--timeout", type=DURATION, help="Wait at most so long (10m), then exit 10; implies --wait.")


def _answer(
    session: Session,
    workspace: Workspace,
    wanted: Sequence[Workspace.State],
    *,
    wait: bool,
    timeout: timedelta | None,
    nodes: Sequence[int] = (),
) -> None:
    """What every mutation ends with: the workspace as accepted, or waiting for what was asked."""
    if wait or timeout is not None:
        follow(session, workspace.name, wanted, timeout=timeout, nodes=nodes)
        return
    session.show(workspace, headline(workspace, session.tenant))
    if workspace.ensemble and workspace.state == Workspace.STATE_PENDING and not session.json:
        session.say(f"It waits for the seal: workspace ensemble seal {session.typed(workspace.ensemble)}")
    elif workspace.state not in RESTING and not session.json:
        session.say(f"Follow it: workspace wait {session.typed(workspace.name)}")


def asking(session: Session, request_id: str, look: str = "workspace list") -> str:
    """An id for a mutation, known before it is sent so that an interrupted call can be repeated safely."""
    request_id = request_id or new_request_id()
    session.follow_up = (
        f"The request may have got through: {look}\nTo repeat it without doing it twice add: --request-id {request_id}"
    )
    return request_id


@click.command(
    "check",
    cls=Command,
    sections=SECTIONS_OF_A_REQUEST,
    example="workspace check --image debian-12 --cpu 2 --memory 4GiB --count 3",
)
@request_flags
@pass_session
def check(session: Session, /, **flags: Any) -> None:
    """Ask where a workspace would fit, or why not, host by host.

    Holds nothing: what fits now may be gone a moment later. What does not fit is followed by what would be accepted
    instead: another pool, a later start, fewer nodes. The exit code says whether it fits now (0), not now (3)
    or never (4).
    """
    request = build(session, flags)
    answer = session.client.check(
        CheckPlacementRequest(
            parent=request.parent, workspace=request.workspace, include_hosts=True, include_offers=True
        )
    )
    session.show(answer, *check_view(answer))
    raise click.exceptions.Exit(BY_OUTCOME.get(answer.outcome, Exit.OTHER))


@click.command(
    "create",
    cls=Command,
    sections=SECTIONS_OF_A_REQUEST,
    example="workspace create --id web --image debian-12 --cpu 2 --memory 4GiB --duration 2h --wait",
)
@request_flags
@click.option("--id", "workspace_id", default="", help="Its id; otherwise the broker picks one.")
@click.option("--name", "display_name", help="A name for people.")
@click.option("--ensemble", metavar="E", help="Place it with the others of an ensemble, once that is sealed.")
@REQUEST_ID
@_WAIT
@_TIMEOUT
@pass_session
def create(
    session: Session,
    /,
    workspace_id: str,
    display_name: str | None,
    ensemble: str | None,
    request_id: str,
    wait: bool,
    timeout: timedelta | None,
    **flags: Any,
) -> None:
    """Lease a workspace: all its nodes or none.

    Answers as soon as the broker has accepted or refused it; --wait until it runs.
    """
    session.check_line = check_line(click.get_current_context().meta["arguments"])
    request = build(session, flags)
    request.workspace_id = workspace_id or request.workspace_id
    request.workspace.display_name = display_name or request.workspace.display_name
    if ensemble:
        request.workspace.ensemble = ensemble_name(ensemble, request.parent)
    request.request_id = asking(session, request_id or request.request_id)
    workspace = session.client.create(request)
    wanted = request.workspace.initial_state or Workspace.STATE_RUNNING
    _answer(session, workspace, [wanted], wait=wait, timeout=timeout)


@click.command("list", cls=Command, example="workspace list --state running --label team=web")
@click.option(
    "--state",
    "states",
    multiple=True,
    type=STATE,
    metavar="STATE",
    help="Only in this state, such as running; may be repeated.",
)
@click.option("--label", "labels", multiple=True, type=PAIR, help="Only with this label; may be repeated.")
@click.option("--pool", default="", type=POOL, help="Only in this pool.")
@click.option("--all", "everything", is_flag=True, help="Also those that have ended.")
@pass_session
def list_(
    session: Session, states: Sequence[str], labels: Sequence[tuple[str, str]], pool: str, everything: bool
) -> None:
    """List your workspaces."""
    wanted = [*states] or ([key.removeprefix("STATE_") for key in State.keys()[1:]] if everything else [])
    found = list(session.client.workspaces(session.parent, states=_states(wanted), labels=dict(labels), pool=pool))
    none = "No workspaces." if everything or states else "No workspaces; those that have ended: workspace list --all"
    session.show_all("workspaces", found, workspace_table(found, session.tenant), none)


def _states(words: Sequence[str]) -> list[Any]:
    return [State.Value(f"STATE_{word.upper()}") for word in words]


@click.command("show", cls=Command, example="workspace show web")
@click.argument("workspace", metavar="W", type=WORKSPACE)
@pass_session
def show(session: Session, workspace: str) -> None:
    """Show all of one workspace: nodes, hosts, addresses, errors."""
    found = session.client.workspace(session.workspace(workspace))
    session.show(found, *workspace_view(found, session.tenant))


@click.command("wait", cls=Command, example="workspace wait web --for running --timeout 10m")
@click.argument("workspace", metavar="W", type=WORKSPACE)
@click.option(
    "--for",
    "states",
    multiple=True,
    type=STATE,
    metavar="STATE",
    help="The state to wait for, such as running; may be repeated. Default: any that does not move on by itself.",
)
@click.option("--timeout", type=DURATION, help="Wait at most so long (10m), then exit 10.")
@pass_session
def wait(session: Session, workspace: str, states: Sequence[str], timeout: timedelta | None) -> None:
    """Wait until a workspace is in a state."""
    follow(session, session.workspace(workspace), _states(states), timeout=timeout, or_settled=False)


@click.command("watch", cls=Command, example="workspace watch --label team=web")
@click.argument("workspaces", metavar="[W]...", nargs=-1, type=WORKSPACE)
@click.option("--label", "labels", multiple=True, type=PAIR, help="Only with this label; may be repeated.")
@click.option("--after", type=click.IntRange(min=0), default=0, help="Only changes after this revision.")
@pass_session
def watch(session: Session, workspaces: Sequence[str], labels: Sequence[tuple[str, str]], after: int) -> None:
    """Print a line for every change, until Ctrl-C.

    Begins with the workspaces as they are, unless --after says where to go on.
    """
    only = {session.workspace(workspace) for workspace in workspaces}
    for change in session.client.watch(session.parent, labels=dict(labels), after_revision=after):
        if only and change.workspace.name not in only:
            continue
        session.show_line(
            WatchWorkspacesResponse(
                revision=change.revision,
                workspace=change.workspace,
                previous_state=change.previous_state,
                time=change.time,
            ),
            change_line(change, session.tenant),
        )


@click.command("update", cls=Command, example="workspace update web --duration 4h")
@click.argument("workspace", metavar="W", type=WORKSPACE)
@click.option("--duration", type=LEASE, help="New length of the lease, from its start: 4h, or unlimited.")
@click.option("--end-action", type=END_ACTION, help="What becomes of the nodes when the lease ends.")
@click.option("--queue-until", type=INSTANT, help="Wait until then for room, in the queue.")
@click.option("--priority", type=int, help="Place in the queue: higher first.")
@click.option("--name", "display_name", help="A name for people.")
@click.option("--label", "labels", multiple=True, type=PAIR, help="Set a label; may be repeated.")
@click.option("--remove-label", "gone", multiple=True, metavar="KEY", help="Remove a label; may be repeated.")
@REQUEST_ID
@pass_session
def update(
    session: Session,
    /,
    workspace: str,
    display_name: str | None,
    labels: Sequence[tuple[str, str]],
    gone: Sequence[str],
    request_id: str,
    **terms: Any,
) -> None:
    """Change a workspace's lease, name or labels."""
    wish = Workspace(name=session.workspace(workspace))
    paths = apply_terms(wish.terms, terms)
    if display_name is not None:
        wish.display_name = display_name
        paths.append("display_name")
    if labels or gone:
        # The API replaces labels as a whole: read them, and insist that nobody changed them meanwhile.
        current = session.client.workspace(wish.name)
        wish.etag = current.etag
        kept = {key: value for key, value in current.labels.items() if key not in gone}
        wish.labels.update({**kept, **dict(labels)})
        paths.append("labels")
    if not paths:
        raise click.UsageError("Say what to change: --duration, --name, --label, --end-action, ...")
    changed = session.client.update(wish, paths, request_id=asking(session, request_id))
    session.show(changed, headline(changed, session.tenant))


@click.command("save", cls=Command, example="workspace save web --node 0 --image-name web-golden --wait")
@click.argument("workspace", metavar="W", type=WORKSPACE)
@click.option("--node", type=int, default=0, show_default=True, help="The node whose disk to save.")
@click.option("--image-name", required=True, help="Name of the image to make.")
@click.option("--device", default="", help="The disk to save; default: the one it boots from.")
@click.option("--terminate-after", is_flag=True, help="End the node once it is saved.")
@REQUEST_ID
@_WAIT
@_TIMEOUT
@pass_session
def save(
    session: Session,
    workspace: str,
    node: int,
    image_name: str,
    device: str,
    terminate_after: bool,
    request_id: str,
    wait: bool,
    timeout: timedelta | None,
) -> None:
    """Save a node's disk as an image."""
    answer = session.client.save_node(
        session.workspace(workspace),
        node,
        image_name,
        device=device,
        terminate_after=terminate_after,
        request_id=asking(session, request_id),
    )
    wanted = [state for state in RESTING if state != Workspace.STATE_FAILED]
    _answer(session, answer.workspace, wanted, wait=wait, timeout=timeout)


def _verb(verb: str) -> click.Command:
    """The command of one verb; which options it takes stands in its request message."""
    summary, example = VERB_HELP[verb]
    fields = VERBS[verb].request.DESCRIPTOR.fields_by_name

    @pass_session
    def act(
        session: Session,
        /,
        workspace: str,
        nodes: Sequence[int],
        request_id: str,
        wait: bool,
        timeout: timedelta | None,
        **own: Any,
    ) -> None:
        asked = session.client.act(
            verb,
            session.workspace(workspace),
            nodes=nodes,
            request_id=asking(session, request_id),
            **own,
        )
        _answer(session, asked, [VERBS[verb].leads_to], wait=wait, timeout=timeout, nodes=nodes)

    function: Callable[..., Any] = act
    own_options = [option for field, option in _VERB_OPTIONS.items() if field in fields]
    for option in (_TIMEOUT, _WAIT, REQUEST_ID, *reversed(own_options), _NODES):
        function = option(function)
    function = click.argument("workspace", metavar="W", type=WORKSPACE)(function)
    return click.command(verb, cls=Command, help=summary, example=example)(function)


_VERB_COMMANDS = {verb: _verb(verb) for verb in VERBS}
SECTIONS: dict[str, list[click.Command]] = {
    "Asking and leasing": [check, create, update, _VERB_COMMANDS["terminate"]],
    "Looking": [list_, show, wait, watch],
    "What a workspace does": [*(c for verb, c in _VERB_COMMANDS.items() if verb != "terminate"), save],
}
