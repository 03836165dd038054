"""``ptt queue list|show|retry|hold|release|delete``: the mail that waits, for the operator.

What acts on a message acts on all of its tasks that no worker is at.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, ParamSpec, TypeVar

import click
import msgspec
from ptt_queue.types import Act, Entry, Filter, State

from ptt.cli.queue_access import Queue, now_ms, opened
from ptt.message import ENVELOPE, RECIPIENT, Envelope, Recipient, Stage, decode_note, parse_id, show_id

PAGE = 500  # tasks a page: no snapshot of the store is held while they are printed
BATCH = 500  # messages acted on at once

P = ParamSpec("P")
R = TypeVar("R")


# -- what a task looks like ---------------------------------------------------------------------------------------


class Row(msgspec.Struct):
    """One task, for ``--json``. Times are ISO 8601 in UTC."""

    id: str
    task: int
    sender: str
    recipients: list[str]
    stage: str
    lane: str
    state: str  # ready, delayed, working, held or failed
    due: str
    attempts: int
    size: int
    received: str
    expires: str
    user: str
    maybe_delivered: bool
    last_attempt: str
    replies: list[dict[str, Any]]


def row_of(entry: Entry, now: int) -> Row:
    """A task as the operator sees it; what is not ours in it is shown as empty."""
    envelope = _decoded(ENVELOPE, entry.meta, Envelope("", entry.created))
    recipients = {i.id: _decoded(RECIPIENT, i.data, Recipient("?")).address for i in entry.items}
    note = decode_note(entry.note)
    replies: list[dict[str, Any]] = []
    for reply in note.replies if note else []:
        concerned = [recipients.get(item, "?") for item in reply.items]
        replies.append({"text": reply.text, "phase": reply.phase, "peer": reply.peer, "recipients": concerned})
    return Row(
        show_id(entry.message),
        entry.number,
        envelope.sender,
        list(recipients.values()),
        _stage(entry.stage),
        entry.lane,
        state_of(entry, now),
        iso(entry.due),
        entry.attempts,
        entry.size,
        iso(entry.created),
        iso(entry.expires),
        envelope.user,
        entry.maybe,
        iso(note.when) if note else "",
        replies,
    )


def state_of(entry: Entry, now: int) -> str:
    """One word for where a task is."""
    if entry.leased:
        return "working"
    if entry.state is State.WAITING:
        return "ready" if entry.due <= now else "delayed"
    return entry.state.name.lower()


def iso(ms: int) -> str:
    """ "2026-01-31T12:00:00Z"; "" for 0."""
    if not ms:
        return ""
    try:
        return f"{datetime.fromtimestamp(ms / 1000, UTC):%Y-%m-%dT%H:%M:%SZ}"
    except (ValueError, OverflowError, OSError):  # a due time beyond the calendar
        return "?"


def _decoded(decoder: msgspec.msgpack.Decoder[R], data: bytes, otherwise: R) -> R:
    try:
        return decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return otherwise


def _stage(number: int) -> str:
    try:
        return Stage(number).name.lower()
    except ValueError:
        return str(number)


def clean(text: str) -> str:
    """Text that came from outside, safe for a terminal: one line, no control characters."""
    return "".join(c if c.isprintable() else "?" for c in " ".join(text.splitlines()))


def line(row: Row) -> str:
    """One task for people: two lines if it has been tried."""
    to = ", ".join(row.recipients[:2]) + (f" (+{len(row.recipients) - 2})" if len(row.recipients) > 2 else "")
    maybe = "  maybe delivered" if row.maybe_delivered else ""
    text = (
        f"{row.id}  {row.state:<7}  {row.stage:<7}  {row.due}  {row.attempts:>3} tries  {row.size:>9} bytes  "
        f"<{clean(row.sender)}> -> {clean(to)}  [{clean(row.lane)}]{maybe}"
    )
    for reply in row.replies[:1]:
        text += f"\n{'':20}  {clean(reply['peer'] or reply['phase'])}: {clean(reply['text'])}"
    return text


# -- commands -----------------------------------------------------------------------------------------------------


@click.group()
def queue() -> None:
    """Look at the mail that waits, try it now, hold it, delete it."""


def selection(command: Callable[P, R]) -> Callable[P, R]:
    """The options that select tasks."""
    for option in (
        click.option("--sender", metavar="ADDRESS", help="only mail of this sender"),
        click.option("--lane", metavar="DOMAIN", help="only what waits for this domain"),
        click.option("--state", type=click.Choice([s.name.lower() for s in State]), help="only tasks in this state"),
        click.option("--stage", type=click.Choice([s.name.lower() for s in Stage]), help="only tasks in this stage"),
    ):
        command = option(command)
    return command


def chosen(stage: str | None, state: str | None, lane: str | None) -> Filter:
    return Filter(Stage[stage.upper()] if stage else None, State[state.upper()] if state else None, lane, b"", PAGE)


def entries(found: Queue, wanted: Filter, sender: str | None) -> Iterator[Entry]:
    """All tasks that match, page by page."""
    while True:
        page = found.list(wanted)
        for entry in page.entries:
            envelope = _decoded(ENVELOPE, entry.meta, Envelope("", entry.created))
            if sender is None or envelope.sender.lower() == sender.lower():
                yield entry
        if not page.after:
            return
        wanted = msgspec.structs.replace(wanted, after=page.after)


@queue.command("list")
@selection
@click.option("--limit", default=0, type=click.IntRange(0), help="at most so many tasks [all]")
@click.option("--json", "as_json", is_flag=True, help="one JSON object a line")
@click.pass_obj
def list_(
    obj: Any,
    stage: str | None,
    state: str | None,
    lane: str | None,
    sender: str | None,
    limit: int,
    as_json: bool,
) -> None:
    """The tasks in the queue, by stage, state and domain."""
    count = 0
    with opened(obj.config) as found:
        for entry in entries(found, chosen(stage, state, lane), sender):
            row = row_of(entry, now_ms())
            click.echo(msgspec.json.encode(row).decode() if as_json else line(row))
            count += 1
            if count == limit:
                break
    if not as_json:
        click.echo(f"{count} task{'s' if count != 1 else ''}" if count else "the queue is empty")


@queue.command()
@click.argument("ids", nargs=-1, required=True, metavar="ID...")
@click.option("--json", "as_json", is_flag=True, help="one JSON object a line")
@click.pass_obj
def show(obj: Any, ids: tuple[str, ...], as_json: bool) -> None:
    """Everything that is known of these messages."""
    missing = 0
    with opened(obj.config) as found:
        for text, id in zip(ids, parsed(ids), strict=True):
            rows = [row_of(entry, now_ms()) for entry in found.show(id)]
            if not rows:
                missing += 1
                click.echo(f"{text}: not in the queue", err=True)
            for row in rows:
                click.echo(msgspec.json.encode(row).decode() if as_json else details(row))
    sys.exit(1 if missing else 0)


def details(row: Row) -> str:
    """One task, field by field."""
    fields = msgspec.to_builtins(row)
    replies = fields.pop("replies")
    text = [f"{name:<16} {clean(', '.join(v) if isinstance(v, list) else str(v))}" for name, v in fields.items()]
    for reply in replies:
        concerned = clean(", ".join(reply["recipients"]))
        text.append(
            f"{'reply':<16} {clean(reply['peer'] or 'here')} ({reply['phase']}): {clean(reply['text'])} [{concerned}]"
        )
    return "\n".join(text) + "\n"


def parsed(ids: Sequence[str]) -> list[bytes]:
    """Message ids from the command line; what is none is wrong usage."""
    try:
        return [parse_id(text) for text in ids]
    except ValueError as e:
        raise click.BadParameter(f"{e}: an id has 20 characters, as the 250 and the log show it") from e


def _command(verb: Act, text: str) -> None:
    @queue.command(verb.value, help=text)
    @click.argument("ids", nargs=-1, metavar="[ID...]")
    @selection
    @click.option("--all", "everything", is_flag=True, help="the whole queue")
    @click.option("--yes", is_flag=True, help="do not ask")
    @click.option("--json", "as_json", is_flag=True, help="print the counts as JSON")
    @click.pass_obj
    def command(
        obj: Any,
        ids: tuple[str, ...],
        stage: str | None,
        state: str | None,
        lane: str | None,
        sender: str | None,
        everything: bool,
        yes: bool,
        as_json: bool,
    ) -> None:
        filtered = any(x is not None for x in (stage, state, lane, sender))
        if bool(ids) + filtered + everything != 1:
            raise click.UsageError("name messages by their ids, or by options, or all of them by --all")
        wanted = parsed(ids)
        if verb is Act.DELETE and not ids and not yes:
            click.confirm("Delete all that match? Nobody will be told.", abort=True)
        with opened(obj.config) as found:
            if not ids:
                wanted = list({e.message: None for e in entries(found, chosen(stage, state, lane), sender)})
            missing = [show_id(id) for id in wanted if ids and not found.show(id)]
            parts = [found.act(verb, wanted[at : at + BATCH]) for at in range(0, len(wanted), BATCH)]
        changed, leased = sum(p.changed for p in parts), sum(p.leased for p in parts)
        _report(verb, changed, leased, missing, as_json)


def _report(verb: Act, changed: int, leased: int, missing: list[str], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"changed": changed, "working": leased, "missing": missing}))
    else:
        for id in missing:
            click.echo(f"{id}: not in the queue", err=True)
        click.echo(f"{verb.value}: {changed} task{'s' if changed != 1 else ''}")
        if leased:
            click.echo(f"{leased} left alone: a worker is at them", err=True)
    sys.exit(1 if missing or leased else 0)


_command(Act.RETRY, "Try these messages now.")
_command(Act.HOLD, "Stop these messages until they are released.")
_command(Act.RELEASE, "Let held messages go on.")
_command(Act.DELETE, "Remove these messages; no bounce is sent.")
