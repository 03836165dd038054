"""``ptt queue compact|quarantine``: the disk that the store takes, and the records in it that cannot be read."""

from __future__ import annotations

import json
import sys
from typing import Any

import click
import msgspec
from ptt_queue import offline
from ptt_queue.damaged import Damaged
from ptt_queue.errors import QueueError

from ptt.cli.queue.group import parsed, plural, queue
from ptt.cli.queue.rows import clean, iso, stage_name
from ptt.cli.queue_access import become_owner, is_live, opened
from ptt.message import show_id


@queue.command()
@click.option("--json", "as_json", is_flag=True, help="print the sizes as JSON")
@click.pass_obj
def compact(obj: Any, as_json: bool) -> None:
    """Give the disk that is free in the store back. The service must be stopped.

    While it runs, what is free in the store is used again for new mail, and the file does not grow.
    """
    config = obj.config
    if is_live(config):
        with opened(config) as opening:
            space = opening.reader.space()
        won = max(0, space.file - space.used)
        raise click.ClickException(f"the service runs: stop it first; {won} of {space.file} bytes are to be won")
    become_owner(config)
    try:
        before, after = offline.compact(config.queue.path, config.queue.map_bytes)
    except QueueError as e:
        raise click.ClickException(f"queue: {e}") from e
    click.echo(json.dumps({"before": before, "after": after}) if as_json else f"{before} bytes before, {after} now")


class Aside(msgspec.Struct):
    """A task set aside, for ``--json``."""

    id: str
    task: int
    stage: str
    state: str
    lane: str
    due: str
    readable: bool
    raw: str  # its record in hexadecimal


def aside(found: Damaged) -> Aside:
    return Aside(
        show_id(found.message),
        found.number,
        stage_name(found.stage),
        found.state.name.lower(),
        found.lane,
        iso(found.due),
        found.readable,
        found.raw.hex(),
    )


@queue.command()
@click.argument("ids", nargs=-1, metavar="[ID...]")
@click.option("--restore", is_flag=True, help="put back those that can be read now")
@click.option("--delete", is_flag=True, help="delete them for good, with messages that have nothing else")
@click.option("--yes", is_flag=True, help="do not ask")
@click.option("--json", "as_json", is_flag=True, help="one JSON object a line")
@click.pass_obj
def quarantine(obj: Any, ids: tuple[str, ...], restore: bool, delete: bool, yes: bool, as_json: bool) -> None:
    """Tasks whose records could not be read: they were set aside, all else goes on."""
    if restore and delete:
        raise click.UsageError("--restore or --delete, not both")
    named = set(parsed(ids))
    if delete and not yes:
        click.confirm("Delete what was set aside? It cannot be got back.", abort=True)
    with opened(obj.config, changing=restore or delete) as opening:
        found = [d for d in opening.reader.damaged() if not named or d.message in named]
        if restore or delete:
            tasks = [(d.message, d.number) for d in found]
            changed = sum(opening.changes.repair(tasks[at : at + 500], delete) for at in range(0, len(tasks), 500))
    if not (restore or delete):
        for one in map(aside, found):
            text = f"{one.id}  {one.stage:<7}  {one.state:<7}  {one.due}  [{clean(one.lane)}]"
            good = "  can be read now" if one.readable else ""
            click.echo(msgspec.json.encode(one).decode() if as_json else text + good)
        if not as_json:
            click.echo(plural(len(found), "task") if found else "nothing was set aside")
        return
    name = "delete" if delete else "restore"
    left = len(found) - changed
    click.echo(json.dumps({"changed": changed, "left": left}) if as_json else f"{name}: {plural(changed, 'task')}")
    sys.exit(1 if left else 0)
