"""Waiting for a workspace in front of a person: a live line on a terminal, a line a change elsewhere.

Says how it ended by exit code; the workspace as it was then is the answer on stdout.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Sequence
from datetime import timedelta
from typing import Self

import click
from rich.console import RenderableType
from rich.status import Status
from rich.text import Text
from workspacebroker.v1.resources_pb2 import Workspace

from clients.amounts import format_duration
from clients.cli.failures import Exit
from clients.cli.render import clean
from clients.cli.session import Session, console_for
from clients.cli.views import headline, last_error_view, progress_text
from clients.errors import BrokerError
from clients.names import state_word
from clients.sdk import Outcome, WaitResult

POLL_SECONDS = 1.0  # steps come and go; the end of a wait is told at once


class ProgressLine:
    """What goes on, on stderr."""

    def __init__(self, session: Session, name: str) -> None:
        self._session = session
        self._name = name
        self._console = console_for(sys.stderr)
        self._status: Status | None = None
        self._said = ""

    @property
    def live(self) -> bool:
        """Whether there is a terminal to redraw a line on."""
        return self._console.is_terminal and not self._session.json

    def __enter__(self) -> Self:
        if self.live:
            self._status = self._console.status(Text(clean(f"waiting for {self._name}")))
            self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._status:
            self._status.stop()

    def __call__(self, workspace: Workspace | None, error: BrokerError | None) -> None:
        """Shows the workspace on its way, or that the broker does not answer."""
        text = progress_text(workspace, self._session.tenant, live=self.live) if workspace else ""
        if error:
            text = f"{text}; the broker does not answer, trying again".removeprefix("; ")
        if self._status:
            self._status.update(Text(text, no_wrap=True, overflow="ellipsis"))
        elif text != self._said:
            self._session.say(text)
        self._said = text


def follow(
    session: Session,
    name: str,
    wanted: Collection[Workspace.State],
    *,
    timeout: timedelta | None,
    or_settled: bool = True,
    nodes: Sequence[int] = (),
) -> None:
    """Waits, shows the workspace, and leaves the command with 0, 9 or 10."""
    typed = session.typed(name)
    session.follow_up = f"{typed} goes on without this command. Follow it: workspace wait {typed}"
    with ProgressLine(session, typed) as progress:
        result = session.client.wait(
            name,
            wanted,
            timeout=timeout.total_seconds() if timeout is not None else None,
            or_settled=or_settled,
            poll=POLL_SECONDS,
            on_progress=progress,
        )
    workspace = result.workspace
    session.show(workspace, headline(workspace, session.tenant), *_addresses(workspace))
    outcome = Outcome.REACHED if _nodes_reached(result, wanted, nodes) else result.outcome
    state = state_word(workspace.state)
    if outcome is Outcome.TIMED_OUT:
        limit = format_duration(timeout or timedelta(0))
        session.say(f"Still {state} after {limit}; it goes on: workspace wait {typed}")
        raise click.exceptions.Exit(Exit.TIMED_OUT)
    if outcome is Outcome.ELSEWHERE:
        hoped = " or ".join(state_word(state) for state in sorted(wanted)) or "a state at rest"
        session.say(f"It is {state}, not {hoped}.", *_why(workspace), f"See more: workspace show {typed}")
        raise click.exceptions.Exit(Exit.ELSEWHERE)


def _nodes_reached(result: WaitResult, wanted: Collection[Workspace.State], nodes: Sequence[int]) -> bool:
    """A verb on some nodes is done when those are there; the others decide the workspace's state, too."""
    states = {node.index: node.state for node in result.workspace.nodes}
    return bool(nodes) and all(states.get(index) in wanted for index in nodes)


def _why(workspace: Workspace) -> list[RenderableType]:
    if workspace.HasField("last_error"):
        return last_error_view(workspace)
    return [clean(workspace.state_message)] if workspace.state_message else []


def _addresses(workspace: Workspace) -> list[RenderableType]:
    return [
        clean(f"  node {node.index}  {', '.join(a for nic in node.nics for a in nic.addresses)}")
        for node in workspace.nodes
        if any(nic.addresses for nic in node.nics)
    ]
