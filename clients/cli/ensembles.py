"""The commands on ensembles: workspaces that are placed together, all or none. One noun, `workspace ensemble VERB`."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

import click
from rich.console import RenderableType
from rich.table import Table as Grid
from rich.text import Text
from workspacebroker.v1.resources_pb2 import Ensemble

from clients.cli.render import clean, enum_word, instant
from clients.cli.request import INSTANT
from clients.cli.session import Command, Session, common_options, pass_session
from clients.cli.views import workspace_table
from clients.cli.workspaces import REQUEST_ID, asking
from clients.names import ensemble_name, short_name


class Noun(click.Group):
    """A noun with verbs of its own, each with a whole sentence; the options of every command may follow it."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names, unsorted."""
        return list(self.commands)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The verbs."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, each.get_short_help_str(200)) for name, each in self.commands.items()])

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """How it goes from the first command to the last."""
        with formatter.section("Example"):
            for line in (
                "workspace ensemble create pair",
                "workspace create --ensemble pair --pool xen --type small --id head",
                "workspace create --ensemble pair --pool one --type large --count 4 --id workers",
                "workspace ensemble seal pair",
            ):
                formatter.write(f"  {line}\n")


@click.group("ensemble", cls=Noun, params=common_options(environment=False))
def ensemble() -> None:
    """Place several workspaces together, all or none.

    Workspaces created with --ensemble wait, and hold nothing, until the ensemble is sealed. A seal that is refused
    leaves it open: seal it again when there is room. E is its id, or tenants/T/ensembles/E.
    """


def _name(session: Session, text: str) -> str:
    return ensemble_name(text, session.tenant)


def _facts(found: Ensemble, tenant: str) -> Iterator[tuple[str, str]]:
    cause = enum_word(found, "cause")
    yield "Ensemble", short_name(found.name, tenant)
    yield "State", enum_word(found, "state") + (f" ({cause.lower()})" if cause else "")
    yield "Created", instant(found, "create_time")
    yield "Expires", instant(found, "expire_time") if found.state == Ensemble.STATE_OPEN else ""


def _headline(found: Ensemble, tenant: str) -> Text:
    count = len(found.workspaces)
    parts = [f"{count} workspace{'s' * (count != 1)}"]
    if found.state == Ensemble.STATE_OPEN:
        parts.append(f"until {instant(found, 'expire_time')}")
    return Text(clean(f"{short_name(found.name, tenant)}  {enum_word(found, 'state')}  {', '.join(parts)}"))


@ensemble.command("create", cls=Command, example="workspace ensemble create pair --expire +2h")
@click.argument("name", metavar="[E]", default="")
@click.option("--expire", type=INSTANT, help="Cancelled if it is not sealed by then: +2h. Default: in an hour.")
@REQUEST_ID
@pass_session
def create(session: Session, name: str, expire: datetime | None, request_id: str) -> None:
    """Open an ensemble; without E the broker picks an id."""
    found = session.client.create_ensemble(
        session.parent, name, expire_time=expire, request_id=asking(session, request_id, "workspace ensemble show E")
    )
    session.show(found, _headline(found, session.tenant))
    if not session.json:
        session.say(f"Add to it: workspace create --ensemble {session.typed(found.name)} ...")


@ensemble.command("show", cls=Command, example="workspace ensemble show pair")
@click.argument("name", metavar="E")
@pass_session
def show(session: Session, name: str) -> None:
    """Show an ensemble and its workspaces."""
    found = session.client.ensemble(_name(session, name))
    facts = Grid.grid(padding=(0, 2))
    facts.add_column(style="bold", no_wrap=True)
    facts.add_column(overflow="fold")
    for label, value in _facts(found, session.tenant):
        if value:
            facts.add_row(label, clean(value))
    view: list[RenderableType] = [facts]
    if found.workspaces and not session.json:
        members = [session.client.workspace(each) for each in found.workspaces]
        view += ["", workspace_table(members, session.tenant)]
    session.show(found, *view)


@ensemble.command("seal", cls=Command, example="workspace ensemble seal pair")
@click.argument("name", metavar="E")
@REQUEST_ID
@pass_session
def seal(session: Session, name: str, request_id: str) -> None:
    """Place all its workspaces, or none of them."""
    full = _name(session, name)
    look = f"workspace ensemble show {session.typed(full)}"
    answer = session.client.seal_ensemble(full, request_id=asking(session, request_id, look))
    session.show(answer, workspace_table(answer.workspaces, session.tenant))
    if not session.json:
        session.say(f"Follow them: workspace watch {' '.join(map(session.typed, answer.ensemble.workspaces))}")


@ensemble.command("cancel", cls=Command, example="workspace ensemble cancel pair")
@click.argument("name", metavar="E")
@REQUEST_ID
@pass_session
def cancel(session: Session, name: str, request_id: str) -> None:
    """Give up an ensemble that is not sealed; its workspaces end with it."""
    full = _name(session, name)
    look = f"workspace ensemble show {session.typed(full)}"
    found = session.client.cancel_ensemble(full, request_id=asking(session, request_id, look))
    session.show(found, _headline(found, session.tenant))


SECTIONS: dict[str, list[click.Command]] = {"Several together": [ensemble]}
