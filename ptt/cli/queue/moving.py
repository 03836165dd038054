"""``ptt queue export|import``: mail to a file, and into another queue."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import click
import msgspec
from ptt_queue import archive
from ptt_queue.errors import StoreError
from ptt_queue.offline import Reader
from ptt_queue.types import Act, Entry, NewMessage, NewTask, Refusal, State

from ptt.cli.queue.acting import Done, check_choice, choosing, chosen, report
from ptt.cli.queue.group import plural, queue
from ptt.cli.queue.selection import Criteria
from ptt.cli.queue_access import Opened, opened
from ptt.message import show_id

BATCH = 500  # tasks deleted at once


@queue.command("export")
@click.argument("file", type=click.Path(dir_okay=False))
@choosing
@click.option("--move", is_flag=True, help="and delete them here, when the file is on stable storage")
@click.pass_obj
def export(
    obj: Any, file: str, ids: tuple[str, ...], wanted: Criteria, everything: bool, move: bool, as_json: bool
) -> None:
    """Write messages to FILE (a new one; - for standard output), whole: what a worker is at comes too, as maybe."""
    named = check_choice(ids, wanted, everything)
    if move and file == "-":
        raise click.UsageError("--move needs a file: what goes to a pipe may be lost")
    done = Done()
    with _target(file) as target, opened(obj.config, changing=move) as opening:
        archive.begin(target)
        taken = _write(target, opening.reader, named, wanted, move, done)
        archive.end(target)
        if move:
            target.flush()
            os.fsync(target.fileno())
            _remove(opening, taken, done)
    if file != "-":
        report("export", done, as_json)


@contextlib.contextmanager
def _target(file: str) -> Iterator[BinaryIO]:
    """A new file that only we can read, opened before our user may change. Raises click.ClickException."""
    if file == "-":
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    try:
        fd = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as e:
        raise click.ClickException(f"{file}: {e.strerror}") from e
    with os.fdopen(fd, "wb") as opened_file:
        try:
            yield opened_file
        except OSError as e:
            raise click.ClickException(f"{file}: {e.strerror}: incomplete") from e


def _write(
    target: BinaryIO, reader: Reader, ids: Sequence[bytes], wanted: Criteria, move: bool, done: Done
) -> list[tuple[bytes, int]]:
    """The messages that have a task that is meant, once; returns the tasks, those that a worker is at left out."""
    taken: list[tuple[bytes, int]] = []
    messages: dict[bytes, None] = {}
    for match in chosen(reader, ids, wanted, done):
        entry = match.entry
        if entry.leased and move:
            done.working += 1
            continue
        if entry.message in messages:
            continue
        messages[entry.message] = None
        entries = [e for e in reader.show(entry.message) if not (move and e.leased)]
        made = _message(reader, entry.message, entries)
        if made is None:
            done.gone += 1
            continue
        archive.add(target, *made)
        taken += [(e.message, e.number) for e in entries]
        done.changed += len(entries)
    return taken


def _message(reader: Reader, id: bytes, entries: Sequence[Entry]) -> tuple[NewMessage, bytes] | None:
    """A message as it can be stored elsewhere; what was in front of its body is part of it now."""
    stored = reader.stored(id)
    if stored is None or not entries:
        return None
    record = stored.record
    try:
        body = record.prefix + reader.body(id, record.size)
    except StoreError:  # it was settled while we looked
        return None
    tasks = [
        NewTask(
            e.stage,
            e.lane,
            e.items,
            e.due,
            state=e.state,
            attempts=e.attempts,
            note=e.note,
            maybe=e.leased or e.maybe,
        )
        for e in entries
    ]
    message = NewMessage(id, record.meta, tasks, len(body), record.created, record.expires, record.priority)
    return message, body


def _remove(opening: Opened, taken: Sequence[tuple[bytes, int]], done: Done) -> None:
    """What could not be deleted, as a worker took it meanwhile, is told: it is in both places."""
    for at in range(0, len(taken), BATCH):
        some = taken[at : at + BATCH]
        acted = opening.changes.act(Act.DELETE, [], some)
        done.working += acted.leased
        done.gone += len(some) - acted.changed - acted.leased


@queue.command("import")
@click.argument("file", type=click.Path(dir_okay=False))
@click.option("--hold", is_flag=True, help="hold them all until they are released")
@click.option("--json", "as_json", is_flag=True, help="print the counts as JSON")
@click.pass_obj
def import_(obj: Any, file: str, hold: bool, as_json: bool) -> None:
    """Store the messages of FILE (- for standard input). What is in this queue already is left as it is."""
    counts = {"stored": 0, "duplicate": 0, "refused": 0}
    try:
        source = sys.stdin.buffer if file == "-" else open(file, "rb")  # noqa: SIM115  (before our user may change)
    except OSError as e:
        raise click.ClickException(f"{file}: {e.strerror}") from e
    with source, opened(obj.config, changing=True) as opening:
        for message, body in archive.read(source):
            refused = opening.changes.put(_held(message) if hold else message, body)
            if refused is Refusal.FULL:
                raise click.ClickException(
                    f"the queue is full after {counts['stored']}: import again, none comes twice"
                )
            counts["stored" if refused is None else "duplicate" if refused is Refusal.DUPLICATE else "refused"] += 1
            if refused not in (None, Refusal.DUPLICATE):
                click.echo(f"{show_id(message.id)}: refused: {refused}", err=True)
    if as_json:
        click.echo(msgspec.json.encode(counts).decode())
    else:
        click.echo(f"import: {plural(counts['stored'], 'message')}, {counts['duplicate']} were here already")
    sys.exit(1 if counts["refused"] else 0)


def _held(message: NewMessage) -> NewMessage:
    tasks = [msgspec.structs.replace(task, state=State.HELD) for task in message.tasks]
    return msgspec.structs.replace(message, tasks=tasks)
