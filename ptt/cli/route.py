"""``ptt route``: where mail for a destination goes. A change is one commit, as with ``ptt user``."""

from __future__ import annotations

from typing import Any

import click
import msgspec

from ptt.cli.directory import Shared, commit_edit, json_option, list_records, place_named
from ptt.directory.edit import added, removed
from ptt.directory.records import Record, Route

_DESTINATION = "DESTINATION|default"


@click.group()
def route() -> None:
    """Where mail for a destination goes, if not to its MX hosts."""


@route.command("add")
@click.argument("destination", metavar=_DESTINATION)
@click.argument("via", type=click.Choice(["smarthost", "mx", "lmtp", "discard"]))
@click.argument("host", metavar="[HOST:PORT]", default="")
@click.option("--tls", type=click.Choice(["opportunistic", "verify", "none"]), help="[opportunistic]")
@click.option("--credentials", metavar="NAME", help="log in with what credentials/NAME.toml of the host says")
@click.option("--fallback", metavar="HOST:PORT", help="who gets what no host could be reached for")
@click.option("--source", metavar="NAME", help="the own address to connect from")
@click.option("--subdomains", is_flag=True, help="the destination's subdomains too")
@click.pass_obj
def route_add(shared: Shared, /, destination: str, via: str, host: str, **options: Any) -> None:
    """Add a route."""
    place = place_named("route", destination)
    given = {key: value for key, value in options.items() if value}
    record = msgspec.convert({"via": via, "host": host, **given}, Route)
    said = f"{place.name} goes by {via} {host}".rstrip()
    commit_edit(shared, lambda tree: added(tree, place, record), f"route: {said}", said)


@route.command("remove")
@click.argument("destination", metavar=_DESTINATION)
@click.pass_obj
def route_remove(shared: Shared, destination: str) -> None:
    """Remove a route: mail takes the usual way again."""
    place = place_named("route", destination)
    said = f"removed the route of {place.name}"
    commit_edit(shared, lambda tree: removed(tree, place), f"route: remove {place.name}", said)


@route.command("list")
@json_option
@click.pass_obj
def route_list(shared: Shared, as_json: bool) -> None:
    """List all routes."""

    def row(name: str, record: Record) -> dict[str, object]:
        assert isinstance(record, Route)  # noqa: S101
        return {"name": name, **msgspec.to_builtins(record)}

    list_records(shared, "route", row, as_json)
