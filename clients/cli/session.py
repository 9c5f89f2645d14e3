"""What every command shares: the options, the connection, and where output goes.

stdout carries the answer (tables, or one JSON document), stderr everything said about it. Without a terminal
there is no colour, no live line and no cutting to a width.
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TextIO

import click
from google.protobuf.message import Message
from rich.console import Console, RenderableType

from clients.cli.render import plain
from clients.cli.tables import Table
from clients.names import short_name, tenant_name, workspace_name
from clients.sdk import Client
from clients.transport import DEFAULT_SERVER

_UNBOUNDED = 100_000  # columns, where nobody looks at a screen


@dataclass
class Session:
    """One run of the command. Options may stand before or after the noun; the later one wins."""

    server: str = DEFAULT_SERVER
    tenant: str = "default"
    tenant_given: bool = False
    json: bool = False
    # What to tell someone who presses Ctrl-C: what was asked goes on, and this is how to follow it.
    follow_up: str = ""
    # The verdicts of a refusal lead to a check with the same flags.
    check_line: str = ""
    # Whether the flags of one set of nodes describe the request.
    one_set: bool = True
    interrupted: bool = False
    _client: Client | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def client(self) -> Client:
        """The connection, made when first needed."""
        with self._lock:
            if self.interrupted:
                raise KeyboardInterrupt
            self._client = self._client or Client(self.server)
            return self._client

    def interrupt(self) -> bool:
        """Ends what is under way, from another thread; whether anything was."""
        with self._lock:
            self.interrupted = True
        return self.close()

    def close(self) -> bool:
        """Closes the connection; whether there was one."""
        if self._client is not None:
            self._client.close()
        return self._client is not None

    @property
    def parent(self) -> str:
        """`tenants/{tenant}`."""
        return tenant_name(self.tenant)

    def workspace(self, text: str) -> str:
        """The full name of a W."""
        return workspace_name(text, self.tenant)

    def typed(self, name: str) -> str:
        """A workspace as it can be typed in another shell, where --tenant is not set."""
        return short_name(name, "default")

    def show(self, document: Message | Mapping[str, Any], *renderables: RenderableType) -> None:
        """Prints the document with --json, else the renderables."""
        if self.json:
            sys.stdout.write(json.dumps(_document(document), indent=2, ensure_ascii=False) + "\n")
            return
        _print(sys.stdout, renderables)

    def show_line(self, document: Message, line: RenderableType) -> None:
        """Prints one line of many, at once: a JSON document or the renderable."""
        if self.json:
            sys.stdout.write(json.dumps(_document(document), ensure_ascii=False) + "\n")
        else:
            _print(sys.stdout, [line])
        sys.stdout.flush()

    def show_all(self, key: str, items: Sequence[Message], table: Table, none: str) -> None:
        """Prints a list: {key: [...]} with --json, else the table, or says that there is none."""
        if self.json or table:
            self.show({key: [plain(item) for item in items]}, table)
        else:
            self.say(none)

    def say(self, *renderables: RenderableType) -> None:
        """Tells a person something that is not the answer."""
        _print(sys.stderr, renderables)


def _document(document: Message | Mapping[str, Any]) -> Any:
    return plain(document) if isinstance(document, Message) else document


def _print(stream: TextIO, renderables: Sequence[RenderableType]) -> None:
    console = console_for(stream)
    with console.capture() as captured:
        for renderable in renderables:
            console.print(renderable)
    # Tables are padded to their width, which only a terminal has a use for.
    lines = captured.get().splitlines()
    stream.writelines(f"{line if console.is_terminal else line.rstrip()}\n" for line in lines)


def console_for(stream: TextIO) -> Console:
    """Plain text exactly as given (names may hold brackets and colons); full width unless on a terminal."""
    width = None if stream.isatty() else _UNBOUNDED
    return Console(file=stream, width=width, markup=False, emoji=False, highlight=False, soft_wrap=False)


pass_session = click.make_pass_decorator(Session, ensure=True)


def _setting(name: str) -> Callable[[click.Context, click.Parameter, Any], None]:
    def store(context: click.Context, parameter: click.Parameter, value: Any) -> None:
        session = context.find_root().ensure_object(Session)
        if value:
            setattr(session, name, value)
            session.tenant_given = session.tenant_given or name == "tenant"

    return store


def common_options(*, environment: bool) -> list[click.Parameter]:
    """--server, --tenant and --json; the environment counts once, on the outermost command."""

    def option(name: str, **more: Any) -> click.Option:
        return click.Option([f"--{name}"], expose_value=False, is_eager=True, callback=_setting(name), **more)

    return [
        option(
            "server",
            metavar="HOST:PORT",
            envvar="WORKSPACE_SERVER" if environment else None,
            help=f"Where the broker listens. [WORKSPACE_SERVER; default {DEFAULT_SERVER}]",
        ),
        option(
            "tenant",
            metavar="NAME",
            envvar="WORKSPACE_TENANT" if environment else None,
            help="Whose workspaces; - lists every tenant you may see. [WORKSPACE_TENANT; default 'default']",
        ),
        option(
            "json",
            is_flag=True,
            help="Print JSON for programs: exact amounts, times in UTC, and fields that are 0, false or empty.",
        ),
    ]


COMMON = ("server", "tenant", "json", "help")


class Command(click.Command):
    """A command with the common options, its options in sections, and an example in its help."""

    def __init__(
        self, *arguments: Any, example: str = "", sections: Mapping[str, Sequence[str]] | None = None, **more: Any
    ) -> None:
        super().__init__(*arguments, **more)
        self.params.extend(common_options(environment=False))
        self.example = example
        self.sections = sections or {}

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Keeps the words as typed, for advice that repeats them."""
        ctx.meta["arguments"] = list(args)
        return super().parse_args(ctx, args)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The command's own options by section, then those of every command."""
        records = [
            (p.name or "", record) for p in self.get_params(ctx) if (record := p.get_help_record(ctx)) and record[1]
        ]
        named = {name: head for head, names in self.sections.items() for name in names}
        named |= dict.fromkeys(COMMON, "Options of every command")
        heads = ["Options", *self.sections, "Options of every command"]
        for head in heads:
            if rows := [record for name, record in records if named.get(name, "Options") == head]:
                with formatter.section(head):
                    formatter.write_dl(rows)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Prints the example as it would be typed."""
        if self.example:
            with formatter.section("Example"):
                formatter.write(f"{'':>{formatter.current_indent}}{self.example}\n")


class Parsed(click.ParamType):  # type: ignore[type-arg]  # generic only from click 8.4 on
    """A parameter read by a parser that raises ValueError with what would do."""

    def __init__(self, name: str, parse: Callable[[str], Any]) -> None:
        self.name = name
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Parses text; leaves what is parsed already."""
        if not isinstance(value, str):
            return value
        try:
            return self._parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


def pair(text: str) -> tuple[str, str]:
    """KEY=VALUE."""
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise ValueError(f"{text!r} is no KEY=VALUE")
    return key, value


PAIR = Parsed("KEY=VALUE", pair)
