"""The command `workspace`: its nouns and verbs in order, and the place where failures become exit codes."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import metadata
from typing import NoReturn

import click

from clients.cli import pools, workspaces
from clients.cli.complete import completion
from clients.cli.failures import Exit, as_json, exit_code, explain
from clients.cli.session import Session, common_options
from clients.errors import BrokerError


class InOrder(click.Group):
    """Lists its commands as they were added: what people ask first comes first."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names, unsorted."""
        return list(self.commands)


def _version() -> str:
    try:
        return metadata.version("workspace-broker")
    except metadata.PackageNotFoundError:  # a bare checkout
        return "unknown"


@click.group("workspace", cls=InOrder, params=common_options(environment=True))
@click.version_option(_version(), message="%(prog)s %(version)s")
def cli() -> None:
    """Lease groups of virtual machines from a workspace broker.

    A workspace is a lease of one or more VMs, all or nothing. W is its id, or tenants/T/workspaces/W; HOST is
    POOL/HOST.

    Exit codes: 0 done, 1 other, 2 usage or invalid, 3 not now, 4 never, 5 not found, 6 conflict or state,
    7 unavailable, 8 denied or quota, 9 ended in another state, 10 wait timed out.
    """


for command in (*workspaces.COMMANDS, *pools.COMMANDS, completion):
    cli.add_command(command)


def run(arguments: Sequence[str]) -> int:
    """Runs one command line; returns its exit code."""
    session = Session()
    interrupted = False
    try:
        return cli.main(list(arguments), prog_name="workspace", standalone_mode=False, obj=session) or 0
    except click.ClickException as error:
        error.show()
        return Exit.INVALID
    except BrokerError as error:
        if session.json:
            sys.stderr.write(as_json(error) + "\n")
        else:
            check = session.check_line or "workspace check ..."
            session.say(*explain(error, server=session.server, check_line=check))
        return exit_code(error)
    except (click.Abort, KeyboardInterrupt):
        interrupted = True
        if session.follow_up:
            session.say(session.follow_up)
        return Exit.INTERRUPTED
    except BrokenPipeError:  # whoever read the answer has seen enough: `workspace list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.OTHER
    finally:
        if "client" in vars(session) and not interrupted:  # see Client.__exit__
            session.client.close()


def main() -> NoReturn:
    """The entry point."""
    sys.exit(run(sys.argv[1:]))
