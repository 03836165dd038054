"""The envelope between two roles of ours: the MAIL parameter ``XPTT``.

What SMTP has no word for (signing domain, user, commit of the git database, expiry, priority, ...) crosses
in one parameter, ``XPTT=<base64url of the msgpack of ptt.message.Envelope>``. A role offers the keyword XPTT in its
reply to EHLO only to a peer that has shown a role's certificate; the relay sends the parameter only to the
configured next hop whose certificate it has verified. Everybody else never sees it.
"""

from __future__ import annotations

import base64
import binascii

import msgspec

from ptt import message
from ptt.message import Envelope
from ptt.smtp.errors import ProtocolError
from ptt.smtp.reply import Reply

KEYWORD = "XPTT"

LANE = "hop:"
"""Prefix of the lanes that lead to another role, ``hop:HOST:PORT``; no domain contains a colon."""

NEXT_ROLES: dict[str, frozenset[str]] = {
    "submission": frozenset({"signer"}),
    "signer": frozenset({"relay"}),
    "relay": frozenset({"signer"}),  # its bounces
    "all": frozenset({"signer", "relay"}),
}
"""Own role -> the roles of which the certificate of a next hop must name one."""

MAX_CHARS = 1400
"""Of the encoded value: with a path of 256 octets and all other parameters the command stays below 2,048."""

_BAD = Reply(501, "5.5.4", f"Bad value of parameter {KEYWORD}")


def encode(envelope: Envelope) -> str:
    """The value of the parameter; "" when it would be too long: the message cannot cross then.

    What a client says of itself, at any length, stays here: the next role has its own word for who we are.
    """
    envelope = msgspec.structs.replace(envelope, helo="", client="")
    text = base64.urlsafe_b64encode(message.encode(envelope)).decode("ascii").rstrip("=")
    return text if len(text) <= MAX_CHARS else ""


def decode(text: str) -> Envelope:
    """The envelope that the role before us had. The caller takes the sender from the command instead.

    Raises ProtocolError (501 5.5.4) for anything that ``encode`` cannot have made.
    """
    if not text or len(text) > MAX_CHARS or not text.isascii():
        raise ProtocolError.of(_BAD)
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), b"-_", validate=True)
        envelope = message.ENVELOPE.decode(raw)
    except (binascii.Error, ValueError, msgspec.MsgspecError) as e:
        raise ProtocolError(f"{KEYWORD}: {e}", _BAD) from e
    fields = [v for v in msgspec.structs.astuple(envelope) if isinstance(v, str)]
    schedule = envelope.schedule
    if not all(field.isprintable() for field in fields) or envelope.received < 0:
        raise ProtocolError(f"{KEYWORD}: unprintable field", _BAD)
    if min(schedule.not_before, schedule.expires) < 0 or not 0 <= schedule.priority <= 2:
        raise ProtocolError(f"{KEYWORD}: bad schedule", _BAD)
    return envelope
