"""What a task looks like to the operator: a row of a listing, all its fields, its timeline."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, TypeVar

import msgspec
from ptt_queue.types import Entry, Place, State

from ptt.message import (
    ENVELOPE,
    RECIPIENT,
    Attempt,
    Envelope,
    Note,
    Recipient,
    Stage,
    attempts_of,
    decode_note,
    show_id,
)
from ptt.relay.classify import class_of_note

R = TypeVar("R")
PRIORITIES = ("urgent", "normal", "bulk")


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
    priority: str  # urgent, normal or bulk
    user: str
    client: str
    commit: str
    maybe_delivered: bool
    held_by: str  # the policy that holds it, "operator", or ""
    last_attempt: str
    replies: list[dict[str, Any]]


def row_of(entry: Entry, now: int) -> Row:
    """A task as the operator sees it; what is not ours in it is shown as empty."""
    envelope = envelope_of(entry)
    recipients = {id: recipient.address for id, recipient in recipients_of(entry).items()}
    note = decode_note(entry.note)
    replies: list[dict[str, Any]] = []
    for reply in note.replies if note else []:
        concerned = [recipients.get(item, "?") for item in reply.items]
        about = class_of_note(reply.text, reply.phase)
        said = {"text": reply.text, "phase": reply.phase, "peer": reply.peer, "tls": reply.tls, "class": about}
        replies.append({**said, "recipients": concerned})
    return Row(
        show_id(entry.message),
        entry.number,
        envelope.sender,
        list(recipients.values()),
        stage_name(entry.stage),
        entry.lane,
        state_of(entry, now),
        iso(entry.due),
        entry.attempts,
        entry.size,
        iso(entry.created),
        iso(entry.expires),
        PRIORITIES[entry.priority] if entry.priority < len(PRIORITIES) else str(entry.priority),
        envelope.user,
        envelope.client,
        envelope.commit,
        is_maybe(entry, note),
        ((note.held if note else "") or "operator") if entry.state is State.HELD else "",
        iso(note.when) if note else "",
        replies,
    )


def envelope_of(entry: Entry) -> Envelope:
    return _decoded(ENVELOPE, entry.meta, Envelope("", entry.created))


def recipients_of(entry: Entry) -> dict[int, Recipient]:
    """By their ids."""
    return {i.id: _decoded(RECIPIENT, i.data, Recipient("?")) for i in entry.items}


def is_maybe(entry: Entry, note: Note | None) -> bool:
    """May an attempt have delivered it without our knowing?"""
    return entry.maybe or bool(note and (note.maybe or any(a.maybe for a in note.history)))


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


def stage_name(number: int) -> str:
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
    urgency = f"  {row.priority}" if row.priority != "normal" else ""
    tries = f"{row.attempts:>3} {'try  ' if row.attempts == 1 else 'tries'}"
    text = (
        f"{row.id}  {row.state:<7}  {row.stage:<7}  {row.due}  {tries}  {row.size:>9} bytes  "
        f"<{clean(row.sender)}> -> {clean(to)}  [{clean(row.lane)}]{urgency}{maybe}"
    )
    for reply in row.replies[:1]:
        text += f"\n{'':20}  {clean(reply['peer'] or reply['phase'])}: {clean(reply['text'])}"
    return text


def details(row: Row) -> str:
    """One task, field by field."""
    fields = msgspec.to_builtins(row)
    replies = fields.pop("replies")
    text = [f"{name:<16} {clean(', '.join(v) if isinstance(v, list) else str(v))}" for name, v in fields.items()]
    for reply in replies:
        where = clean(", ".join(x for x in (reply["phase"], reply["tls"], reply["class"]) if x))
        concerned = clean(", ".join(reply["recipients"]))
        text.append(f"{'reply':<16} {clean(reply['peer'] or 'here')} ({where}): {clean(reply['text'])} [{concerned}]")
    return "\n".join(text) + "\n"


# -- the timeline --------------------------------------------------------------------------------------------------


class Event(msgspec.Struct):
    """One thing that happened to a task, or will. ``times``: of attempts that ended alike, oldest first."""

    what: str  # accepted, attempt, now, next, expires
    times: list[str]
    text: str
    phase: str = ""
    peer: str = ""
    tls: str = ""
    recipients: int = 0
    maybe_delivered: bool = False
    about: str = ""  # the class of the reply: rate, mailbox, ...


def timeline(entry: Entry, now: int, place: Place | None, suspended: str = "") -> list[Event]:
    """What happened to a task, what it waits for, what comes next. ``place``: None when that is not known.

    ``suspended``: the suspension of its destination, in words.
    """
    envelope, note = envelope_of(entry), decode_note(entry.note)
    events = [Event("accepted", [iso(entry.created)], _accepted(envelope, entry))]
    events += [_attempt(attempt) for attempt in attempts_of(note)]
    if entry.maybe and not any(e.maybe_delivered for e in events):
        text = "an attempt was cut off by the death of a process: it may have been delivered"
        events.append(Event("attempt", [], text, maybe_delivered=True))
    waits = waits_for(entry, note, now, place)
    if suspended and entry.state is State.WAITING and not entry.leased:
        waits = f"its destination is suspended: {suspended}" + (f"; {waits}" if entry.due > now else "")
    events.append(Event("now", [iso(now)], waits))
    if entry.state is State.WAITING and not entry.leased and entry.due > now:
        events.append(Event("next", [iso(entry.due)], f"attempt {entry.attempts + 1}"))
    if entry.expires:
        late = "has expired: its next attempt is its last" if entry.expires <= now else "expires, and bounces"
        events.append(Event("expires", [iso(entry.expires)], late))
    return events


def _accepted(envelope: Envelope, entry: Entry) -> str:
    if envelope.bounce:
        return "made here: a notification"
    by = f"from user {envelope.user}" if envelope.user else "from a trusted client"
    at = f" at {envelope.client}" if envelope.client else ""
    helo = f" ({envelope.helo})" if envelope.helo else ""
    commit = f", under commit {envelope.commit[:12]}" if envelope.commit else ""
    return f"{by}{at}{helo}, {entry.size} bytes{commit}"


def _attempt(attempt: Attempt) -> Event:
    return Event(
        "attempt",
        [iso(time) for time in attempt.times],
        attempt.text,
        attempt.phase,
        attempt.peer,
        attempt.tls,
        attempt.recipients,
        attempt.maybe,
        class_of_note(attempt.text, attempt.phase),
    )


def waits_for(entry: Entry, note: Note | None, now: int, place: Place | None) -> str:
    """In words, what keeps a task from being done."""
    match state_of(entry, now):
        case "working":
            return "a worker is at it"
        case "held":
            return f"held by policy: {note.held}" if note and note.held else "held: release it"
        case "failed":
            return "given up, kept for you: retry, bounce or delete it"
        case "delayed":
            first = "scheduled: not before" if not entry.attempts else "waits for its next attempt at"
            return f"{first} {iso(entry.due)}"
    return _limit(place, now)


def _limit(place: Place | None, now: int) -> str:
    """Why a task that is due is not leased."""
    if place is None:
        return "due; the service is stopped"
    site = f"site {place.group}" if place.group else "its lane"
    limit = place.limit
    most = place.most or limit.in_flight
    if 0 < most <= place.in_flight:
        others = f", {place.lanes} lanes share it" if place.lanes > 1 else ""
        less = (
            f" (at most {limit.in_flight}; fewer as long as its answers are no better)"
            if most < limit.in_flight
            else ""
        )
        return f"due; waits for the limit of {site}: {place.in_flight} of {most} in flight{less}{others}"
    if place.next_at > now and not limit.per_second:
        return f"due; {site} has a pause until {iso(place.next_at)}, as it answered last"
    if place.next_at > now:
        return f"due; waits for the rate of {site}: {limit.per_second:g} a second, the next at {iso(place.next_at)}"
    if place.place == "parked":
        return f"due; {site} is free again, its turn comes"
    if not place.place:
        return "due; its lane is not in memory yet, it is found in turn"
    return "due; waits for a free worker"


def told_timeline(events: list[Event]) -> str:
    """A timeline for people."""
    lines = []
    for event in events:
        times = event.times or [""]
        count = f" {len(times)} times until {times[-1]}" if len(times) > 1 else ""
        where = ", ".join(x for x in (event.phase, event.peer, event.tls) if x)
        to = f" ({event.recipients} recipient{'s' if event.recipients != 1 else ''})" if event.recipients else ""
        about = f" [{event.about}]" if event.about else ""
        maybe = "  maybe delivered" if event.maybe_delivered else ""
        said = f"{where}: {event.text}" if where else event.text
        lines.append(f"  {times[0]:<20}  {event.what:<8}{count}  {clean(said)}{about}{to}{maybe}")
    return "\n".join(lines)
