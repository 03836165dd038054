"""``ptt queue suspend|resume|suspended``: destinations whose mail waits, what is there and what comes.

One record in the store for each: no message is touched.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

import click
import msgspec
from ptt_queue.suspended import MAX_REASON
from ptt_queue.types import Entry, Place, Suspension

from ptt.cli.queue.group import duration, plural, queue
from ptt.cli.queue.rows import clean, iso
from ptt.cli.queue_access import now_ms, opened
from ptt.message import Stage
from ptt.relay.hop import LANE


class Suspended(msgspec.Struct):
    """A destination, for ``--json``. ``until``: "" when it waits to be resumed."""

    destination: str
    site: bool
    since: str
    until: str
    reason: str


def shown(what: Suspension) -> Suspended:
    return Suspended(what.name, what.site, iso(what.since), iso(what.until), what.reason)


def told(what: Suspension) -> str:
    """A suspension for people."""
    kind = "site " if what.site else ""
    end = f"until {iso(what.until)}" if what.until else "until it is resumed"
    return f"{kind}{clean(what.name)}  since {iso(what.since)}, {end}" + (
        f": {clean(what.reason)}" if what.reason else ""
    )


def of_task(found: Sequence[Suspension], entry: Entry, place: Place | None) -> Suspension | None:
    """The suspension that keeps a task: its lane's, or its site's where that is known."""
    if entry.stage != Stage.DELIVER:
        return None
    site = place.group if place else ""
    return next((s for s in found if s.name == (site if s.site else entry.lane)), None)


def named(destination: str, site: bool) -> str:
    """A lane as the queue has it: a domain in lower case, or hop:HOST:PORT; a site as ``why`` shows it."""
    return destination if site or destination.startswith(LANE) else destination.lower().rstrip(".")


@queue.command()
@click.argument("destination")
@click.option("--site", is_flag=True, help="DESTINATION is a site, as ptt queue why names it")
@click.option("--for", "span", callback=duration, metavar="TIME", help="so long: 90, 15m, 2h, 3d [until it is resumed]")
@click.option("--reason", default="", metavar="TEXT", help="shown wherever the suspension is")
@click.pass_obj
def suspend(obj: Any, destination: str, site: bool, span: int | None, reason: str) -> None:
    """Deliver nothing to a domain (or hop:HOST:PORT) for now: mail that is there and mail that comes waits.

    What is being delivered goes on. Repeated, it sets end and reason anew.
    """
    if span == 0:
        raise click.BadParameter("--for 0 is over at once")
    now = now_ms()
    what = Suspension(named(destination, site), site, now, now + span if span else 0, reason)
    if len(reason) > MAX_REASON:
        raise click.BadParameter(f"--reason has at most {MAX_REASON} characters")
    with opened(obj.config, changing=True) as opening:
        kept = opening.changes.suspend(what)
    if not kept:
        raise click.ClickException("not suspended: no name of a destination, or too many are suspended already")
    click.echo(told(what))


@queue.command()
@click.argument("destination")
@click.option("--site", is_flag=True, help="DESTINATION is a site")
@click.pass_obj
def resume(obj: Any, destination: str, site: bool) -> None:
    """Deliver to this destination again."""
    name = named(destination, site)
    with opened(obj.config, changing=True) as opening:
        was = opening.changes.resume(name, site)
    click.echo(f"{clean(name)}: {'resumed' if was else 'was not suspended'}", err=not was)
    sys.exit(0 if was else 1)


@queue.command()
@click.option("--json", "as_json", is_flag=True, help="one JSON object a line")
@click.pass_obj
def suspended(obj: Any, as_json: bool) -> None:
    """The destinations that are suspended now."""
    with opened(obj.config) as opening:
        found = opening.reader.suspended(now_ms())
    for what in found:
        click.echo(json.dumps(msgspec.to_builtins(shown(what))) if as_json else told(what))
    if not as_json:
        click.echo(plural(len(found), "destination") if found else "nothing is suspended")
