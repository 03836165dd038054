"""``ptt queue bounce``: give recipients up and tell the sender (RFC 3464), in one transaction.

The bounce is composed here, of what was read beside the service; the queue replaces the task by what stays of it
and stores the bounce, together. A repeated or interrupted command bounces nothing twice.
"""

from __future__ import annotations

from typing import Any

import click
import msgspec
from ptt_queue.errors import StoreError
from ptt_queue.offline import Reader
from ptt_queue.protocol import PART_BYTES
from ptt_queue.types import Entry, NewMessage, Settle

from ptt.cli.queue.acting import Done, check_choice, choosing, chosen, count, remaining, report
from ptt.cli.queue.group import queue
from ptt.cli.queue.rows import envelope_of, recipients_of
from ptt.cli.queue.selection import Criteria, Match
from ptt.cli.queue_access import Opened, now_ms, opened
from ptt.config import Config
from ptt.directory.reader import Snapshot
from ptt.message import Note, Recipient, decode_note, new_id, show_id
from ptt.plan import new_message
from ptt.relay.bounce import bounce as compose
from ptt.relay.outcome import Failed

GIVEN_UP = "the administrator gave this message up"


class Bounced(Done):
    """``bounces``: notifications stored; ``untold``: tasks whose sender is not to be told."""

    bounces: int = 0
    untold: int = 0


@queue.command(help="Give these messages up, and tell their senders.")
@choosing
@click.option("--text", default=GIVEN_UP, help="what the sender is told", show_default=True)
@click.option("--yes", is_flag=True, help="do not ask")
@click.pass_obj
def bounce(
    obj: Any, ids: tuple[str, ...], wanted: Criteria, everything: bool, text: str, yes: bool, as_json: bool
) -> None:
    named = check_choice(ids, wanted, everything)
    if not ids and not yes:
        click.confirm("Bounce all that match?", abort=True)
    config: Config = obj.config
    domain = signing_domain(config)
    done = Bounced()
    with opened(config, changing=True) as opening:
        for match in chosen(opening.reader, named, wanted, done):
            _bounce(opening, match, config, domain, text, done)
    if done.untold and not as_json:
        click.echo(f"{done.untold} without a word: a bounce itself, or its sender asked not to be told", err=True)
    report("bounce", done, as_json)


def signing_domain(config: Config) -> str:
    """Who signs our bounces; before we change our user, for then the snapshot may be out of reach."""
    snapshot = Snapshot(config.directory.snapshots)
    try:
        return snapshot.signing_domain(config.hostname)
    finally:
        snapshot.close()


def _bounce(opening: Opened, match: Match, config: Config, domain: str, text: str, done: Bounced) -> None:
    entry = match.entry
    puts, bodies = [], []
    if made := _composed(opening.reader, match, config, domain, text):
        puts, bodies = [made[0]], [made[1]]
    if sum(map(len, bodies)) > PART_BYTES:
        raise click.ClickException(f"{show_id(entry.message)}: too many recipients for one bounce; select fewer")
    before = done.changed
    count(opening.changes.amend(Settle(entry.message, entry.number, remaining(match), puts=puts), bodies), done)
    if done.changed > before:
        done.bounces += len(puts)
        done.untold += not puts


def _composed(reader: Reader, match: Match, config: Config, domain: str, text: str) -> tuple[NewMessage, bytes] | None:
    """The bounce as a new message with its body; None when nobody is to be told."""
    entry, now = match.entry, now_ms()
    note = decode_note(entry.note)
    given_up: list[tuple[Recipient, Failed]] = [
        (recipient, failure(id, note, text)) for id, recipient in recipients_of(entry).items() if id in match.items
    ]
    try:
        content = _content(reader, entry)
    except StoreError:  # it was settled while we looked: the queue will say so
        content = b""
    made = compose(envelope_of(entry), show_id(entry.message), given_up, content, config.hostname, now)
    if made is None:
        return None
    about, recipient, body = made
    about = msgspec.structs.replace(about, signing_domain=domain)
    return new_message(new_id(now), about, [recipient], len(body), config, now, back=True), body


def failure(item: int, note: Note | None, text: str) -> Failed:
    """Why a recipient is given up: our word, and the last one of its peer if there was one."""
    for reply in note.replies if note else []:
        if item in reply.items:
            return Failed(f"{text}; last: {reply.text}", reply.phase, reply.peer)
    return Failed(text, "operator")


def _content(reader: Reader, entry: Entry) -> bytes:
    stored = reader.stored(entry.message)
    prefix = stored.record.prefix if stored else b""
    return prefix + reader.body(entry.message, entry.size)
