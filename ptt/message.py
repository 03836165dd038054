"""The nouns of mail as it travels through PTT: values, no I/O."""

from __future__ import annotations

import base64
import enum
import os

import msgspec


class Stage(enum.IntEnum):
    """The stages of the queue (``ptt_queue`` knows them as numbers)."""

    SIGN = 1  # lane: the signing domain
    DELIVER = 2  # lane: the recipients' domain, or the configured next hop


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


ENVELOPE = msgspec.msgpack.Decoder(Envelope)
RECIPIENT = msgspec.msgpack.Decoder(Recipient)
encode = msgspec.msgpack.Encoder().encode


def new_id(now_ms: int) -> bytes:
    """A fresh message id for the queue: 6 bytes of milliseconds and 6 random bytes, so ids sort by time."""
    return now_ms.to_bytes(6, "big") + os.urandom(6)


def show_id(message: bytes) -> str:
    """The id as users and logs see it: 20 characters of lower-case base32 (extended hex: sorts like the bytes)."""
    return base64.b32hexencode(message).decode("ascii").rstrip("=").lower()


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


class Note(msgspec.Struct, array_like=True, frozen=True):
    """The result of the last attempt of a task: the queue's ``note``."""

    when: int  # ms since the epoch
    replies: list[Reply]
    maybe: bool = False  # that an attempt may have delivered it was logged and counted


NOTE = msgspec.msgpack.Decoder(Note)


def decode_note(note: bytes) -> Note | None:
    """A task's note, or None when there is none or it is not ours."""
    try:
        return NOTE.decode(note) if note else None
    except msgspec.MsgspecError:
        return None
