"""The commands on pools and their hosts, and on what a tenant uses."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import click
from workspacebroker.v1.resources_pb2 import LeaseTerms

from clients.cli.complete import HOST, POOL
from clients.cli.render import clean
from clients.cli.request import END_ACTION, LEASE, apply_terms
from clients.cli.session import Command, Session, pass_session
from clients.cli.tables import Table
from clients.cli.views import (
    host_table,
    image_table,
    network_table,
    parameter_table,
    pool_table,
    stray_table,
    type_table,
    usage_table,
    workspace_table,
)
from clients.names import host_name, pool_name, short_name, stray_name
from clients.sdk import Client

# What a pool holds: noun -> (help, its table, how to read it).
_CONTENTS: dict[str, tuple[str, Callable[[Iterable[Any]], Table], Callable[[Client, str], Iterator[Any]]]] = {
    "hosts": ("List a pool's hosts with what is free on them.", host_table, Client.hosts),
    "images": ("List the images a pool can boot.", image_table, Client.images),
    "networks": ("List a pool's networks.", network_table, Client.networks),
    "types": (
        "List the sizes the site has named.",
        type_table,
        lambda client, pool: iter(client.pool(pool).instance_types),
    ),
    "parameters": (
        "List the parameters a pool understands.",
        parameter_table,
        lambda client, pool: iter(client.pool(pool).parameter_specs),
    ),
    "strays": ("List VMs the broker made that belong to no workspace.", stray_table, Client.strays),
}


@click.command("pools", cls=Command, example="workspace pools")
@pass_session
def pools(session: Session) -> None:
    """List the pools with what is used of them."""
    found = list(session.client.pools())
    session.show_all("pools", found, pool_table(found), "No pools.")


def _contents(noun: str) -> click.Command:
    summary, table, read = _CONTENTS[noun]

    @pass_session
    def show(session: Session, pool: str) -> None:
        found = list(read(session.client, pool_name(pool)))
        session.show_all(noun, found, table(found), f"No {noun} in {short_name(pool_name(pool))}.")

    argument = click.Argument(["pool"], metavar="POOL", type=POOL)
    return Command(noun, callback=show, help=summary, example=f"workspace {noun} lab", params=[argument])


@click.command("refresh", cls=Command, example="workspace refresh lab")
@click.argument("pool", metavar="POOL", type=POOL)
@pass_session
def refresh(session: Session, pool: str) -> None:
    """Have the broker look at a pool's backend now."""
    answer = session.client.refresh(pool_name(pool))
    found = f"{answer.nodes_changed} nodes changed, {answer.strays} strays."
    session.show(answer, pool_table([answer.pool]), found)


def _host(text: str) -> str:
    try:
        return host_name(text)
    except ValueError as error:
        raise click.UsageError(str(error)) from None


def _closing(name: str, closed: bool, summary: str) -> click.Command:
    """cordon and uncordon, of a host or, where only a POOL is named, of a whole pool."""

    @pass_session
    def change(session: Session, host: str) -> None:
        if "/" in host.removeprefix("pools/"):
            changed = session.client.set_cordoned(_host(host), closed)
            session.show(changed, host_table([changed]))
        else:
            pool = session.client.set_draining(pool_name(host), closed)
            session.show(pool, pool_table([pool]))

    argument = click.Argument(["host"], metavar="HOST|POOL", type=HOST)
    example = f"workspace {name} lab/node-7"
    return Command(name, callback=change, help=summary, example=example, params=[argument])


@click.command("drain", cls=Command, example="workspace drain lab/node-7 --suspend-rest")
@click.argument("host", metavar="HOST", type=HOST)
@click.option("--suspend-rest", is_flag=True, help="Suspend what cannot be moved, and take its capacity.")
@pass_session
def drain(session: Session, host: str, suspend_rest: bool) -> None:
    """Move everything off a host and let nothing new onto it."""
    answer = session.client.drain(_host(host), suspend_rest=suspend_rest)
    session.show(answer, host_table([answer.host]))
    if answer.staying and not session.json:
        names = ", ".join(short_name(name, session.tenant) for name in answer.staying)
        session.say(clean(f"Cannot be moved and stay: {names}"))


def _stray(text: str) -> str:
    try:
        return stray_name(text)
    except ValueError as error:
        raise click.UsageError(str(error)) from None


@click.command("end-stray", cls=Command, example="workspace end-stray lab/1042")
@click.argument("stray", metavar="POOL/ID")
@pass_session
def end_stray(session: Session, stray: str) -> None:
    """Remove a stray VM for good, disks and all."""
    session.client.end_stray(_stray(stray))
    if not session.json:
        session.say(f"{clean(stray)} is being removed; `workspace strays` lists it until it is gone.")


@click.command("adopt-stray", cls=Command, example="workspace adopt-stray lab/1042 --duration 2d")
@click.argument("stray", metavar="POOL/ID")
@click.option("--duration", type=LEASE, help="Length of its lease, from now: 90m, 2h, or unlimited.")
@click.option("--end-action", type=END_ACTION, help="What becomes of it when the lease ends.")
@pass_session
def adopt_stray(session: Session, /, stray: str, **flags: Any) -> None:
    """Make a stray VM a workspace of the tenant."""
    terms = LeaseTerms()
    apply_terms(terms, flags)
    adopted = session.client.adopt_stray(_stray(stray), session.parent, terms)
    session.show(adopted, workspace_table([adopted], session.tenant))


@click.command("usage", cls=Command, example="workspace usage --tenant physics")
@pass_session
def usage(session: Session) -> None:
    """Show what the tenant uses, and its limits."""
    tenant = session.client.tenant(session.parent)
    session.show(tenant, usage_table(tenant))


_CONTENT_COMMANDS = {noun: _contents(noun) for noun in _CONTENTS}
SECTIONS: dict[str, list[click.Command]] = {
    "Pools": [pools, *(command for noun, command in _CONTENT_COMMANDS.items() if noun != "strays"), usage],
    "Operating a pool": [
        refresh,
        _closing("cordon", True, "Let nothing new onto a host, or into a whole POOL."),
        _closing("uncordon", False, "Open a host or a whole POOL again."),
        drain,
        _CONTENT_COMMANDS["strays"],
        adopt_stray,
        end_stray,
    ],
}
