"""Which tasks a message becomes, and what replaces a task after an attempt: pure decisions, no I/O.

A message that is signed has one task in stage SIGN whose lane is the signing domain; its deliver tasks, one
for each lane, are made when it is signed. Other messages go to stage DELIVER at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec
from ptt_queue.types import Item, Meter, NewMessage, NewTask, Over, Settle, State, Task

from ptt.config import Config
from ptt.message import (
    AT_ONCE,
    NOTE_REPLIES,
    NOTE_REPLY_CHARS,
    RECIPIENT,
    Envelope,
    Note,
    Recipient,
    Reply,
    Schedule,
    Stage,
    attempts_of,
    decode_note,
    domain_of,
    encode,
    history_of,
    show_id,
)
from ptt.relay.hop import LANE
from ptt.relay.outcome import Deferred, Outcome


class Conditions(msgspec.Struct, frozen=True):
    """What a new message must meet to be stored: the queue decides, in the transaction that stores it."""

    once: bytes = b""  # the submitter's key: a second message with it is not stored until ``once_until`` (ms)
    once_until: int = 0
    meters: list[Meter] = []
    over: Over = Over.REFUSE


UNCONDITIONAL = Conditions()

MAYBE_DELIVERED = "maybe delivered"
"""The policy that a note names when a task is held for it."""

SIGN_RETRY_CEILING_MS = 60_000  # a key that is back or served again is used within a minute


def lane_of(address: str, config: Config, back: bool = False) -> str:
    """The lane that an address waits in: its domain, the smarthost, or the next role.

    ``back``: mail that this role has made, which a relay has the signer sign first.
    """
    if back and config.relay.bounce_hop:
        return LANE + config.relay.bounce_hop
    if config.relay.next_hop:
        return LANE + config.relay.next_hop
    return domain_of(address)


def items_of(recipients: Sequence[Recipient]) -> list[Item]:
    return [Item(n, encode(r)) for n, r in enumerate(recipients, 1)]


def recipients_of(items: Sequence[Item]) -> list[tuple[int, Recipient]]:
    return [(item.id, RECIPIENT.decode(item.data)) for item in items]


def deliver_tasks(
    items: Sequence[Item], config: Config, due: int, back: bool = False, maybe: bool = False, note: bytes = b""
) -> list[NewTask]:
    """One task for each lane, recipients in the order given. ``note``: of the former stage, kept as history."""
    lanes: dict[str, list[Item]] = {}
    for item in items:
        lanes.setdefault(lane_of(RECIPIENT.decode(item.data).address, config, back), []).append(item)
    told = _carried(note)
    return [NewTask(Stage.DELIVER, lane, some, due, note=told, maybe=maybe) for lane, some in lanes.items()]


def _carried(note: bytes) -> bytes:
    """The attempts of a note without the recipients that each reply was about."""
    before = decode_note(note)
    if before is None:
        return b""
    return encode(msgspec.structs.replace(before, replies=[], history=history_of(before)))


def then_of(items: Sequence[Item], config: Config) -> str:
    """The lane that a task in stage SIGN moves on to, when there is only one; else ""."""
    tasks = deliver_tasks(items, config, 0)
    return tasks[0].lane if len(tasks) == 1 else ""


def first_tasks(
    envelope: Envelope, items: Sequence[Item], config: Config, due: int, back: bool = False
) -> list[NewTask]:
    """The tasks of a new message. ``back``: this role has made it."""
    if config.signs and envelope.signing_domain:
        then = then_of(items, config)
        return [NewTask(Stage.SIGN, envelope.signing_domain, list(items), due, then)]
    return deliver_tasks(items, config, due, back)


def new_message(
    id: bytes,
    envelope: Envelope,
    recipients: Sequence[Recipient],
    size: int,
    config: Config,
    now: int,
    schedule: Schedule = AT_ONCE,
    back: bool = False,
) -> NewMessage:
    """The queue's record of a new message, due at once or as its schedule says, or that of the role before us.

    ``back``: this role has made it: a report, or a conversion.
    """
    schedule = envelope.schedule if schedule == AT_ONCE else schedule
    due = max(now, schedule.not_before)
    expires = schedule.expires or due + int(config.queue.max_age_seconds * 1000)
    tasks = first_tasks(envelope, items_of(recipients), config, due, back)
    if schedule.hold:
        tasks = [msgspec.structs.replace(task, state=State.HELD) for task in tasks]
    return NewMessage(id, encode(envelope), tasks, size, now, expires, schedule.priority)


def sign_retry_ms(attempts: int) -> int:
    """How long a message waits for its signature: 1 s, doubling to a minute."""
    return min(1000 << min(attempts, 10), SIGN_RETRY_CEILING_MS)


def is_told(task: Task) -> bool:
    """Was it logged and counted already that an attempt of this task may have succeeded?"""
    note = decode_note(task.note)
    return note is not None and note.maybe


def must_hold(task: Task, config: Config) -> bool:
    """Is this task to be left to the operator, as it may have been delivered?"""
    return task.maybe and config.relay.on_maybe == "hold"


def held(task: Task, now: int) -> Settle:
    """What replaces such a task. Released, it is tried: the mark is in the note now, a new one is a new question."""
    before = decode_note(task.note) or Note(now, [])
    note = encode(msgspec.structs.replace(before, maybe=True, held=MAYBE_DELIVERED))
    again = NewTask(
        task.stage, task.lane, task.items, task.due, state=State.HELD, attempts=task.attempts, note=note, maybe=False
    )
    return Settle(task.message, task.number, [again])


def note_of(
    outcomes: Mapping[int, Outcome], now: int, maybe: bool = False, before: bytes = b"", warned: bool = False
) -> bytes:
    """The note of an attempt: its distinct replies, each with the recipients that it concerns.

    ``before``: the note of the attempt before it. ``warned``: the sender is told of the delay now.
    """
    former = decode_note(before)
    replies: dict[tuple[str, str, str, str], list[int]] = {}
    for item, outcome in outcomes.items():
        key = (outcome.text[:NOTE_REPLY_CHARS], outcome.phase, outcome.peer, outcome.tls)
        if key in replies or len(replies) < NOTE_REPLIES:
            replies.setdefault(key, []).append(item)
    said = [Reply(text, phase, peer, items, tls) for (text, phase, peer, tls), items in replies.items()]
    warned = warned or (former is not None and former.warned)
    return encode(Note(now, said, maybe, history_of(former), warned=warned))


def warning_at(task: Task, config: Config, now: int) -> int:
    """When the sender of a task that was deferred now is to be told that it waits; 0: never, or it was already.

    Counted from the first attempt: mail that was held or postponed until then was not late.
    """
    before = decode_note(task.note)
    if not config.relay.delay_warning_seconds or (before is not None and before.warned):
        return 0
    attempts = attempts_of(before)
    return (attempts[0].times[0] if attempts else now) + int(config.relay.delay_warning_seconds * 1000)


def settlement(
    task: Task,
    outcomes: Mapping[int, Outcome],
    lane: str,
    prefix: bytes | None,
    due: int,
    now: int,
    warned: bool = False,
) -> Settle:
    """What replaces a task after a delivery attempt in ``lane``: a task with the deferred recipients, or nothing.

    ``due``: when the deferred ones are tried again; 0 when the message has expired and they have failed too.
    ``prefix``: the signature field, when the task comes straight from stage SIGN and is not stored with it.
    ``warned``: the sender is told of the delay.
    """
    left = [item for item in task.items if isinstance(outcomes[item.id], Deferred)] if due else []
    if not left:
        return Settle(task.message, task.number)
    deferred = {item.id: outcomes[item.id] for item in left}
    maybe = task.maybe or any(isinstance(o, Deferred) and o.maybe for o in deferred.values())
    again = NewTask(
        Stage.DELIVER,
        lane,
        left,
        due,
        attempts=task.attempts + 1 if task.stage == Stage.DELIVER else 1,
        note=note_of(deferred, now, maybe, task.note, warned),
        maybe=maybe,
    )
    return Settle(task.message, task.number, [again], prefix)


def converted(
    id: bytes, task: Task, envelope: Envelope, items: Sequence[Item], size: int, config: Config, now: int
) -> NewMessage:
    """The message that those of a task become for whom it was converted to 7 bits: it is signed again."""
    envelope = msgspec.structs.replace(envelope, eightbit=False, sevenbit=True, schedule=AT_ONCE)
    schedule = Schedule(expires=task.expires, priority=task.priority)
    recipients = [recipient for _, recipient in recipients_of(items)]
    message = new_message(id, envelope, recipients, size, config, now, schedule, back=True)
    tasks = [msgspec.structs.replace(new, note=_carried(task.note)) for new in message.tasks]
    return msgspec.structs.replace(message, tasks=tasks)


def crossing(envelope: Envelope, task: Task, lane: str) -> Envelope:
    """The envelope as the relay is to have it. To another role goes what is left of the schedule: "not before" and
    "hold" are behind us when a message leaves.
    """
    if not lane.startswith(LANE):
        return envelope
    return msgspec.structs.replace(envelope, schedule=Schedule(expires=task.expires, priority=task.priority))


def describe(task: Task) -> dict[str, object]:
    """The fields of a task that every log line about it bears."""
    return {"id": show_id(task.message), "lane": task.lane, "attempt": task.attempts + 1}


def accounts(task: Task, envelope: Envelope, outcomes: dict[int, Outcome], expired: bool) -> Iterator[dict[str, Any]]:
    """The lines of the delivery log about an attempt, one for each recipient: events ``delivered``, ``deferred``,
    ``failed``, and ``expired`` for one that is given up after its last attempt. All but ``deferred`` are final.
    """
    for item, recipient in recipients_of(task.items):
        outcome = outcomes[item]
        event = "expired" if expired and isinstance(outcome, Deferred) else type(outcome).__name__.lower()
        yield {
            "event": event,
            **describe(task),
            "sender": envelope.sender,
            "user": envelope.user,
            "to": recipient.address,
            "size": task.size,
            "accepted": task.created,
            "peer": outcome.peer,
            "tls": outcome.tls,
            "phase": outcome.phase,
            "reply": outcome.text,
        }
