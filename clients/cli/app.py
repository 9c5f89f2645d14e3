"""The command `workspace`: its nouns and verbs in order, and the place where failures become exit codes."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from importlib import metadata
from typing import NoReturn

import click

from clients.cli import ensembles, pools, workspaces
from clients.cli.complete import completion
from clients.cli.failures import EXIT_CODES, Exit, as_json, exit_code, explain
from clients.cli.session import Session, common_options
from clients.errors import BrokerError

WORKER = "command"
PATIENCE_SECONDS = 2.0  # for a command to end after Ctrl-C


class Sections(click.Group):
    """Lists its commands by section, what people ask first coming first."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names, unsorted."""
        return list(self.commands)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Each section with its commands, each with a whole sentence."""
        width = max(map(len, self.commands))
        for head, commands in SECTIONS.items():
            with formatter.section(head):
                formatter.write_dl([(f"{each.name:<{width}}", each.get_short_help_str(200)) for each in commands])

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The exit codes, and where to begin."""
        with formatter.section("Exit codes"):
            formatter.write_dl([(f"{code:d}", words) for code, words in EXIT_CODES.items()])
        with formatter.section("Example"):
            formatter.write("  workspace create --image debian-12 --cpu 2 --memory 4GiB --duration 2h --wait\n")


def _version() -> str:
    try:
        return metadata.version("workspace-broker")
    except metadata.PackageNotFoundError:  # a bare checkout
        return "unknown"


SECTIONS: dict[str, list[click.Command]] = {
    **workspaces.SECTIONS,
    **ensembles.SECTIONS,
    **pools.SECTIONS,
    "The shell": [completion],
}


@click.group("workspace", cls=Sections, params=common_options(environment=True))
@click.version_option(_version(), message="%(prog)s %(version)s")
def cli() -> None:
    """Lease groups of virtual machines from a workspace broker.

    A workspace is a lease of one or more VMs, all or nothing. W is its id, or
    tenants/T/workspaces/W; HOST is POOL/HOST. Sizes are typed as 4GiB or 512MiB, cores as 2 or
    500m, durations as 90m, 2h or 1d12h, times as 2026-05-01T14:00 (local), +2h or now.

    workspace COMMAND --help tells more of each.
    """


for command in (each for section in SECTIONS.values() for each in section):
    cli.add_command(command)


def run(arguments: Sequence[str]) -> int:
    """Runs one command line; returns its exit code, INTERRUPTED after Ctrl-C.

    The command runs in a thread of its own while this one, which gets the signals, does nothing but wait. Python
    would raise KeyboardInterrupt wherever the main thread happens to be: inside gRPC that tears its bookkeeping
    apart, or is lost in a callback whose exceptions are only printed.
    """
    session = Session()
    if threading.current_thread() is not threading.main_thread() or _ignored(signal.SIGINT):
        return _run(session, arguments)
    ended: list[int | BaseException] = []
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.setblocking(False)
        worker = threading.Thread(target=_work, args=(session, arguments, ended, theirs), name=WORKER, daemon=True)
        # A signal wakes a read however it falls; a wait for a lock sleeps on if it falls just before.
        fd = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
        before = signal.signal(signal.SIGINT, lambda *_: None)
        try:
            worker.start()
            if _woken(ours) == signal.SIGINT and session.interrupt():
                ours.settimeout(PATIENCE_SECONDS)  # or Ctrl-C again: then at once
                with suppress(TimeoutError):
                    _woken(ours)
        finally:
            signal.signal(signal.SIGINT, before)
            signal.set_wakeup_fd(fd)
    if not ended:
        return _interrupted(session)
    worker.join()
    if isinstance(ended[0], BaseException):
        raise ended[0]
    return ended[0]


def _ignored(number: signal.Signals) -> bool:
    return signal.getsignal(number) in (signal.SIG_IGN, None)


def _woken(wakes: socket.socket) -> int:
    """Waits for SIGINT, or 0: the command has ended. Others who handle signals here are not for us."""
    while (number := wakes.recv(1)[0]) not in (0, signal.SIGINT):
        pass
    return number


def _work(session: Session, arguments: Sequence[str], ended: list[int | BaseException], wakes: socket.socket) -> None:
    try:
        ended.append(_run(session, arguments))
    except BaseException as error:  # raised again where the thread is waited for
        ended.append(error)
    with suppress(OSError):  # nobody waits any more
        wakes.send(b"\0")


def _run(session: Session, arguments: Sequence[str]) -> int:
    try:
        return cli.main(list(arguments), prog_name="workspace", standalone_mode=False, obj=session) or 0
    except click.ClickException as error:
        error.show()
        return Exit.INVALID
    except BrokerError as error:
        if session.interrupted:
            return _interrupted(session)
        if session.json:
            sys.stderr.write(as_json(error) + "\n")
        else:
            check = session.check_line or "workspace check ..."
            session.say(*explain(error, server=session.server, check_line=check, one_set=session.one_set))
        return exit_code(error)
    except (click.Abort, KeyboardInterrupt):
        return _interrupted(session)
    except BrokenPipeError:  # whoever read the answer has seen enough: `workspace list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.OTHER
    finally:
        session.close()


def _interrupted(session: Session) -> int:
    if session.follow_up:
        session.say(session.follow_up)
    return Exit.INTERRUPTED


def main() -> NoReturn:
    """The entry point."""
    code = run(sys.argv[1:])
    if any(thread.name == WORKER for thread in threading.enumerate()):  # still reads or writes: no reason to stay
        os._exit(code)
    sys.exit(code)
