"""Which tasks a command means: by the ids of their messages, or by what is asked of them.

The queue knows opaque bytes; what is asked of sender, recipients and replies is evaluated here, on what was read
beside the service.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, ParamSpec, TypeVar

import click
import msgspec
from ptt_queue.keys import lane_bytes
from ptt_queue.offline import Reader
from ptt_queue.types import Entry, Filter, State

from ptt.cli.queue.group import duration
from ptt.cli.queue.rows import envelope_of, is_maybe, recipients_of, state_of
from ptt.message import Stage, decode_note, domain_of
from ptt.relay.classify import class_of_note

PAGE = 500  # tasks a page: no snapshot of the store is held while they are looked at or printed
STATES = {
    "ready": State.WAITING,
    "delayed": State.WAITING,
    "working": State.WAITING,
    "waiting": State.WAITING,
    "held": State.HELD,
    "failed": State.FAILED,
}

P = ParamSpec("P")
R = TypeVar("R")


class Criteria(msgspec.Struct, frozen=True):
    """What is asked of a task; all that is given must hold. Texts in any case; addresses may have ``*`` and ``?``."""

    sender: str | None = None
    recipient: str | None = None
    domain: str | None = None
    lane: str | None = None
    stage: str | None = None
    state: str | None = None
    older: int | None = None
    newer: int | None = None
    reason: str | None = None
    reply: str | None = None
    maybe: bool = False

    def given(self) -> bool:
        return self != Criteria()

    def selects_recipients(self) -> bool:
        return self.recipient is not None or self.domain is not None

    def filter(self) -> Filter:
        """What the queue itself can skip by. Raises click.BadParameter."""
        try:
            lane_bytes(self.lane or "")
        except ValueError as e:
            raise click.BadParameter(str(e)) from e
        stage = Stage[self.stage.upper()] if self.stage else None
        return Filter(stage, STATES[self.state] if self.state else None, self.lane, b"", PAGE)


class Match(NamedTuple):
    """A task that was asked for. ``items``: ids of its recipients that were, all when none were named."""

    entry: Entry
    items: frozenset[int]

    @property
    def whole(self) -> bool:
        return len(self.items) == len(self.entry.items)


def matches(entry: Entry, wanted: Criteria, now: int) -> frozenset[int] | None:
    """The recipients of a task that are asked for; None when the task is not."""
    age = now - entry.created
    if wanted.state not in (None, "waiting") and state_of(entry, now) != wanted.state:
        return None
    if (wanted.older is not None and age < wanted.older) or (wanted.newer is not None and age > wanted.newer):
        return None
    if wanted.sender is not None and not _like(envelope_of(entry).sender, wanted.sender):
        return None
    note = decode_note(entry.note)
    if wanted.maybe and not is_maybe(entry, note):
        return None
    if not _said(entry, wanted):
        return None
    if not wanted.selects_recipients():
        return frozenset(item.id for item in entry.items)
    found = {
        id
        for id, recipient in recipients_of(entry).items()
        if (wanted.recipient is None or _like(recipient.address, wanted.recipient))
        and (wanted.domain is None or _like(domain_of(recipient.address), wanted.domain))
    }
    return frozenset(found) if found else None


def _said(entry: Entry, wanted: Criteria) -> bool:
    """Did the last attempt end for this reason, with this text?"""
    if wanted.reason is None and wanted.reply is None:
        return True
    note = decode_note(entry.note)
    said = [(name, r.text) for r in note.replies for name in (r.phase, class_of_note(r.text, r.phase))] if note else []
    if note and note.held:
        said.append((note.held, ""))
    reason, reply = (wanted.reason or "*").lower(), (wanted.reply or "").lower()
    return any(fnmatch.fnmatchcase(phase.lower(), reason) and reply in text.lower() for phase, text in said)


def _like(text: str, pattern: str) -> bool:
    return fnmatch.fnmatchcase(text.lower(), pattern.strip("<>").lower().replace("[", "[[]"))


def found(reader: Reader, wanted: Criteria, now: int) -> Iterator[Match]:
    """All tasks that match, page by page."""
    filter = wanted.filter()
    while True:
        page = reader.list(filter)
        for entry in page.entries:
            items = matches(entry, wanted, now)
            if items is not None:
                yield Match(entry, items)
        if not page.after:
            return
        filter = msgspec.structs.replace(filter, after=page.after)


def selecting(command: Callable[..., R]) -> Callable[..., R]:
    """The options that select tasks; the command gets them as ``wanted``."""

    def called(*args: Any, **options: Any) -> R:
        wanted = Criteria(**{name: options.pop(name) for name in Criteria.__struct_fields__})
        return command(*args, wanted=wanted, **options)

    called.__name__, called.__doc__ = command.__name__, command.__doc__
    called.__click_params__ = getattr(command, "__click_params__", [])  # type: ignore[attr-defined]
    for option in reversed(_OPTIONS):
        called = option(called)
    return called


_OPTIONS: tuple[Callable[[Callable[..., Any]], Callable[..., Any]], ...] = (
    click.option("--sender", metavar="ADDRESS", help="only mail of this sender; '' for bounces; * and ? match"),
    click.option("--recipient", metavar="ADDRESS", help="only for this recipient; * and ? match"),
    click.option("--domain", metavar="DOMAIN", help="only for recipients in this domain; * and ? match"),
    click.option("--lane", metavar="LANE", help="only what waits in this lane: a domain, or hop:HOST:PORT"),
    click.option("--stage", type=click.Choice([s.name.lower() for s in Stage]), help="only tasks in this stage"),
    click.option("--state", type=click.Choice(sorted(STATES)), help="only tasks in this state"),
    click.option("--older", callback=duration, metavar="AGE", help="only mail accepted before: 90, 15m, 2h, 3d"),
    click.option("--newer", callback=duration, metavar="AGE", help="only mail accepted since"),
    click.option(
        "--reason",
        metavar="PHASE|CLASS",
        help="only if the last attempt ended there (DNS, connect, TLS, RCPT, ...) or for this (rate, mailbox, ...)",
    ),
    click.option("--reply", metavar="TEXT", help="only if the last attempt's reply has this text"),
    click.option("--maybe", is_flag=True, help="only what may have been delivered"),
)
