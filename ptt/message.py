"""The nouns of mail as it travels through PTT: values, no I/O."""

from __future__ import annotations

import base64
import enum
import functools
import os

import msgspec


class Stage(enum.IntEnum):
    """The stages of the queue (``ptt_queue`` knows them as numbers)."""

    SIGN = 1  # lane: the signing domain
    DELIVER = 2  # lane: the recipients' domain, or the configured next hop


class Schedule(msgspec.Struct, array_like=True, frozen=True):
    """When a new message is sent, beside at once: what its submitter may ask for. Times in ms since the epoch."""

    not_before: int = 0  # 0: at once
    expires: int = 0  # 0: the configured age after it may first be sent
    priority: int = 1  # 0 urgent, 1 normal, 2 bulk
    hold: bool = False  # not before an operator releases it


AT_ONCE = Schedule()


class Recipient(msgspec.Struct, array_like=True, frozen=True):
    """One forward-path (RFC 5321 4.1.1.3), without brackets, with its DSN parameters (RFC 3461)."""

    address: str
    notify: str = ""  # "", "NEVER" or a list of SUCCESS,FAILURE,DELAY
    orcpt: str = ""  # "rfc822;user@example.org", xtext decoded


class Envelope(msgspec.Struct, array_like=True, frozen=True):
    """What is known of a message beside its content and recipients: the queue's ``meta``."""

    sender: str  # reverse-path without brackets; "" for bounces
    received: int  # when it was accepted, ms since the epoch
    signing_domain: str = ""  # "": not signed by us
    user: str = ""  # who authenticated
    client: str = ""  # the client's address
    helo: str = ""
    eightbit: bool = False  # BODY=8BITMIME was given
    smtputf8: bool = False
    ret: str = ""  # RFC 3461: "", "FULL" or "HDRS"
    envid: str = ""
    commit: str = ""  # commit of the git database under which it was accepted
    bounce: bool = False  # we made it: no bounce of a bounce
    binary: bool = False  # BODY=BINARYMIME was given (RFC 3030): lines of any length, bare CR and LF, NUL
    sevenbit: bool = False  # converted to 7 bits: what is left of others, in header fields, goes as it is
    schedule: Schedule = AT_ONCE  # as the role before us had it: its expiry and priority
    return_path: str = ""  # what strangers are told in place of ``sender``: forwarded mail (SRS); "": the sender
    verp: bool = False  # each recipient gets a copy of his own, whose sender names him


ENVELOPE = msgspec.msgpack.Decoder(Envelope)
RECIPIENT = msgspec.msgpack.Decoder(Recipient)
encode = msgspec.msgpack.Encoder().encode


def new_id(now_ms: int) -> bytes:
    """A fresh message id for the queue: 6 bytes of milliseconds and 6 random bytes, so ids sort by time."""
    return now_ms.to_bytes(6, "big") + os.urandom(6)


_DIGITS = "0123456789abcdefghijklmnopqrstuv"
_PAIRS = [a + b for a in _DIGITS for b in _DIGITS]
_SHIFTS = range(90, -1, -10)  # 96 bits and 4 of padding, in tens: it is on every line of the log


@functools.lru_cache(maxsize=4096)
def show_id(message: bytes) -> str:
    """The id as users and logs see it: 20 characters of lower-case base32 (extended hex: sorts like the bytes)."""
    n = int.from_bytes(message, "big") << 4
    return "".join([_PAIRS[n >> shift & 1023] for shift in _SHIFTS])


def parse_id(text: str) -> bytes:
    """The inverse of ``show_id``. Raises ValueError."""
    raw = base64.b32hexdecode(text.strip().upper() + "=" * (-len(text.strip()) % 8))
    if len(raw) != 12:
        raise ValueError(f"{text!r} is not a message id")
    return raw


def domain_of(address: str) -> str:
    """The domain of an address in lower case ("" if there is none). Literals keep their brackets."""
    return address.rpartition("@")[2].lower() if "@" in address else ""


NOTE_REPLIES = 20  # distinct replies kept of one attempt: enough to tell why, bounded for 1,000 recipients
NOTE_REPLY_CHARS = 500


class Reply(msgspec.Struct, array_like=True, frozen=True):
    """What was said of some recipients: the text, the phase in which it came, and the peer that said it."""

    text: str
    phase: str
    peer: str
    items: list[int]  # ids of the recipients
    tls: str = ""  # "TLSv1.3 TLS_AES_256_GCM_SHA384", "" in clear


HISTORY_ATTEMPTS = 20  # kept of a task; those that ended alike in a row are one: five days of retries fit
HISTORY_TIMES = 50  # of attempts that ended alike
HISTORY_CHARS = 200  # of a text


class Attempt(msgspec.Struct, array_like=True, frozen=True):
    """A former attempt, or several in a row that ended alike: what was said to most of its recipients."""

    times: list[int]  # ms since the epoch
    text: str
    phase: str
    peer: str
    tls: str
    recipients: int  # for whom it did not succeed
    maybe: bool = False  # it may have delivered


class Note(msgspec.Struct, array_like=True, frozen=True):
    """The result of the last attempt of a task, and those before it in short: the queue's ``note``."""

    when: int  # ms since the epoch
    replies: list[Reply]
    maybe: bool = False  # that an attempt may have delivered it was logged and counted
    history: list[Attempt] = []  # oldest first, without the last
    held: str = ""  # the policy that stopped it, "" when an operator did
    warned: bool = False  # the sender was told of the delay


NOTE = msgspec.msgpack.Decoder(Note)


def decode_note(note: bytes) -> Note | None:
    """A task's note, or None when there is none or it is not ours."""
    try:
        return NOTE.decode(note) if note else None
    except msgspec.MsgspecError:
        return None


def attempts_of(note: Note | None) -> list[Attempt]:
    """All attempts that a note tells of, oldest first."""
    if note is None:
        return []
    if not note.replies:
        return note.history
    most = max(note.replies, key=lambda reply: len(reply.items))
    recipients = sum(len(reply.items) for reply in note.replies)
    text = most.text[:HISTORY_CHARS]
    last = Attempt([note.when], text, most.phase, most.peer, most.tls, recipients, note.maybe)
    before = note.history[-1:]
    if before and msgspec.structs.replace(before[0], times=last.times) == last:
        times = [*before[0].times, note.when]
        kept = times if len(times) <= HISTORY_TIMES else [times[0], *times[1 - HISTORY_TIMES :]]
        return [*note.history[:-1], msgspec.structs.replace(last, times=kept)]
    return [*note.history, last]


def history_of(note: Note | None) -> list[Attempt]:
    """The same, as the next note keeps it: beyond HISTORY_ATTEMPTS the first and the latest."""
    found = attempts_of(note)
    return found if len(found) <= HISTORY_ATTEMPTS else [found[0], *found[1 - HISTORY_ATTEMPTS :]]
