"""``ptt queue hold|release|retry|delete``: by id, all tasks of the message; by option, the tasks that match.

What a worker is at is left alone. ``delete`` takes from a task only the recipients that match.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import click
import msgspec
from ptt_queue.offline import Reader
from ptt_queue.types import Act, Amended, NewTask, Settle

from ptt.cli.queue.group import parsed, plural, queue
from ptt.cli.queue.selection import Criteria, Match, found, selecting
from ptt.cli.queue_access import Opened, now_ms, opened
from ptt.message import show_id

BATCH = 500  # tasks acted on at once


class Done(msgspec.Struct):
    """What became of it. ``gone``: tasks that changed while we looked; ``missing``: ids that are not there."""

    changed: int = 0
    working: int = 0
    gone: int = 0
    missing: list[str] = []


def choosing(command: Callable[..., None]) -> Callable[..., None]:
    """Ids, options that select, or --all; and --json."""
    command = click.option("--json", "as_json", is_flag=True, help="print the counts as JSON")(command)
    command = click.option("--all", "everything", is_flag=True, help="the whole queue")(command)
    command = selecting(command)
    return click.argument("ids", nargs=-1, metavar="[ID...]")(command)


def check_choice(ids: Sequence[str], wanted: Criteria, everything: bool) -> list[bytes]:
    """The ids; raises click.UsageError unless there is exactly one kind of choice."""
    if bool(ids) + wanted.given() + everything != 1:
        raise click.UsageError("name messages by their ids, or by options, or all of them by --all")
    return parsed(ids)


def chosen(reader: Reader, ids: Sequence[bytes], wanted: Criteria, done: Done) -> Iterator[Match]:
    """The tasks that are meant. Ids that are not there are noted in ``done``."""
    if not ids:
        started = now_ms()
        for match in found(reader, wanted, started):
            if match.entry.created <= started:  # not what came since: our own bounces, for one
                yield match
        return
    for id in ids:
        entries = reader.show(id)
        if not entries:
            done.missing.append(show_id(id))
        for entry in entries:
            yield Match(entry, frozenset(item.id for item in entry.items))


def remaining(match: Match) -> list[NewTask]:
    """What stays of a task when the recipients that match are taken from it."""
    entry = match.entry
    items = [item for item in entry.items if item.id not in match.items]
    if not items:
        return []
    return [
        NewTask(
            entry.stage,
            entry.lane,
            items,
            entry.due,
            state=entry.state,
            attempts=entry.attempts,
            note=entry.note,
            maybe=entry.maybe,
        )
    ]


def count(outcome: Amended, done: Done) -> None:
    if outcome is Amended.DONE:
        done.changed += 1
    elif outcome is Amended.LEASED:
        done.working += 1
    elif outcome is Amended.GONE:
        done.gone += 1
    else:
        raise click.ClickException("the queue could not store what was to stay")


def run(verb: Act, opening: Opened, ids: Sequence[bytes], wanted: Criteria) -> Done:
    """Act on all that is meant, some at a time."""
    done = Done()
    some: list[tuple[bytes, int]] = []
    for match in chosen(opening.reader, ids, wanted, done):
        if verb is Act.DELETE and not match.whole:
            settle = Settle(match.entry.message, match.entry.number, remaining(match))
            count(opening.changes.amend(settle), done)
            continue
        some.append((match.entry.message, match.entry.number))
        if len(some) == BATCH:
            _act(verb, opening, some, done)
    _act(verb, opening, some, done)
    return done


def _act(verb: Act, opening: Opened, some: list[tuple[bytes, int]], done: Done) -> None:
    if some:
        acted = opening.changes.act(verb, [], some)
        done.changed += acted.changed
        done.working += acted.leased
        some.clear()


def report(name: str, done: Done, as_json: bool) -> None:
    """Say what was done, and end with 1 when that was not all of it."""
    if as_json:
        click.echo(json.dumps(msgspec.to_builtins(done)))
    else:
        for id in done.missing:
            click.echo(f"{id}: not in the queue", err=True)
        click.echo(f"{name}: {plural(done.changed, 'task')}")
        if done.working:
            click.echo(f"{done.working} left alone: a worker is at them", err=True)
        if done.gone:
            click.echo(f"{done.gone} changed meanwhile: look again", err=True)
    sys.exit(1 if done.missing or done.working or done.gone else 0)


def _command(verb: Act, text: str) -> None:
    def command(obj: Any, ids: tuple[str, ...], wanted: Criteria, everything: bool, yes: bool, as_json: bool) -> None:
        named = check_choice(ids, wanted, everything)
        if verb is Act.DELETE and not ids and not yes:
            click.confirm("Delete all that match? Nobody will be told.", abort=True)
        with opened(obj.config, changing=True) as opening:
            done = run(verb, opening, named, wanted)
        report(verb.value, done, as_json)

    passed = click.pass_obj(command)
    confirmed = click.option("--yes", is_flag=True, help="do not ask")(passed)
    queue.command(verb.value, help=text)(choosing(confirmed))


_command(Act.RETRY, "Try these messages now.")
_command(Act.HOLD, "Stop these messages until they are released.")
_command(Act.RELEASE, "Let held messages go on.")
_command(Act.DELETE, "Remove these messages; no bounce is sent.")
