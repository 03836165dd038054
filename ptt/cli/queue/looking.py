"""``ptt queue list|show|why``: read beside the service, which notices nothing of it."""

from __future__ import annotations

import sys
from typing import Any

import click
import msgspec

from ptt.cli.queue.group import parsed, plural, queue
from ptt.cli.queue.rows import details, line, row_of, timeline, told_timeline
from ptt.cli.queue.selection import Criteria, found, selecting
from ptt.cli.queue.suspending import of_task, told
from ptt.cli.queue_access import now_ms, opened


@queue.command("list")
@selecting
@click.option("--limit", default=0, type=click.IntRange(0), help="at most so many tasks [all]")
@click.option("--json", "as_json", is_flag=True, help="one JSON object a line")
@click.pass_obj
def list_(obj: Any, wanted: Criteria, limit: int, as_json: bool) -> None:
    """The tasks in the queue, by stage, state and domain."""
    count = 0
    with opened(obj.config) as opening:
        for match in found(opening.reader, wanted, now_ms()):
            row = row_of(match.entry, now_ms())
            click.echo(msgspec.json.encode(row).decode() if as_json else line(row))
            count += 1
            if count == limit:
                break
    if not as_json:
        click.echo(plural(count, "task") if count else "nothing matches" if wanted.given() else "the queue is empty")


@queue.command()
@click.argument("ids", nargs=-1, required=True, metavar="ID...")
@click.option("--json", "as_json", is_flag=True, help="one JSON object a line")
@click.pass_obj
def show(obj: Any, ids: tuple[str, ...], as_json: bool) -> None:
    """Everything that is known of these messages."""
    missing = 0
    with opened(obj.config) as opening:
        for text, id in zip(ids, parsed(ids), strict=True):
            rows = [row_of(entry, now_ms()) for entry in opening.reader.show(id)]
            if not rows:
                missing += 1
                click.echo(f"{text}: not in the queue", err=True)
            for row in rows:
                click.echo(msgspec.json.encode(row).decode() if as_json else details(row))
    sys.exit(1 if missing else 0)


@queue.command()
@click.argument("ids", nargs=-1, required=True, metavar="ID...")
@click.option("--json", "as_json", is_flag=True, help="one JSON object for each task")
@click.pass_obj
def why(obj: Any, ids: tuple[str, ...], as_json: bool) -> None:
    """Why are these messages still here: what happened to them, and what they wait for."""
    missing = 0
    with opened(obj.config) as opening:
        suspensions = opening.reader.suspended(now_ms())
        for text, id in zip(ids, parsed(ids), strict=True):
            entries = opening.reader.show(id)
            if not entries:
                missing += 1
                click.echo(f"{text}: not in the queue: delivered, bounced, or never here (the log knows)", err=True)
            for entry in entries:
                row = row_of(entry, now_ms())
                place = opening.place(entry.stage, entry.lane)
                suspension = of_task(suspensions, entry, place)
                events = timeline(entry, now_ms(), place, told(suspension) if suspension else "")
                if as_json:
                    click.echo(msgspec.json.encode({"task": row, "timeline": events}).decode())
                else:
                    click.echo(f"{line(row).splitlines()[0]}\n{told_timeline(events)}\n")
    sys.exit(1 if missing else 0)
