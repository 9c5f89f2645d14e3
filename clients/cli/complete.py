"""Shell completion: click's scripts, and names asked of the broker.

A completion must never hang a shell or print an error: it gives up after a second and offers nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import click
from click.shell_completion import CompletionItem, get_completion_class

from clients.cli.session import Command, Session
from clients.names import State, short_name, state_word
from clients.sdk import Client

SECONDS = 1.0


class Name(click.ParamType):  # type: ignore[type-arg]  # generic only from click 8.4 on
    """A name that can be completed by asking the broker."""

    def __init__(self, name: str, ask: Callable[[Client, Session], Iterable[str]]) -> None:
        self.name = name
        self._ask = ask

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Names that begin as typed."""
        session = ctx.find_root().ensure_object(Session)
        try:
            with Client(session.server, timeout=SECONDS) as client:
                names = list(self._ask(client, session))
        except Exception:  # whatever it is, a prompt is no place for it
            return []
        return [CompletionItem(name) for name in names if name.startswith(incomplete)]


def _workspaces(client: Client, session: Session) -> Iterable[str]:
    return (short_name(w.name, session.tenant) for w in client.workspaces(session.parent))


def _pools(client: Client, session: Session) -> Iterable[str]:
    return (short_name(pool.name) for pool in client.pools())


def _hosts(client: Client, session: Session) -> Iterable[str]:
    return (short_name(host.name) for pool in client.pools() for host in client.hosts(pool.name))


WORKSPACE = Name("workspace", _workspaces)
POOL = Name("pool", _pools)
HOST = Name("pool/host", _hosts)
STATE = click.Choice([state_word(value) for value in State.values() if value], case_sensitive=False)


@click.command(
    "completion",
    cls=Command,
    example="workspace completion bash > ~/.local/share/bash-completion/completions/workspace",
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print a script that has your shell complete commands and names."""
    kind = get_completion_class(shell)
    assert kind is not None
    root = click.get_current_context().find_root().command
    click.echo(kind(root, {}, "workspace", "_WORKSPACE_COMPLETE").source())
