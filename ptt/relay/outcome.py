"""What became of a recipient in one attempt, and how a reply or a failure turns into that. Pure.

Two questions decide: may it succeed later, and is it known. What is unknown is temporary:

=====================================  ===================================================================
2xx to the end of DATA                 Delivered
5xx to MAIL, RCPT, DATA, end of DATA   Failed
5xx to the greeting, EHLO, STARTTLS    another host is tried; when none is left, Deferred
552 to RCPT about too many recipients  Deferred (RFC 5321 4.5.3.1.10)
any other reply                        Deferred
connection lost, time-out, nonsense    Deferred; after the final dot has left: Deferred with ``maybe``
no such domain, null MX, bad literal   Failed
no answer from DNS                     Deferred
=====================================  ===================================================================
"""

from __future__ import annotations

import msgspec

from ptt.net.stream import ConnectFailed, ReadTimeout, StreamError, TlsFailed, WriteTimeout
from ptt.smtp.errors import ProtocolError
from ptt.smtp.reply import Reply

MAX_TEXT = 500  # characters of a peer's text that are kept: in logs, the queue and bounces


class Delivered(msgspec.Struct, frozen=True):
    """The peer has taken the message for this recipient."""

    text: str  # its reply, on one line
    phase: str = "end of DATA"
    peer: str = ""  # "mx.example.org[192.0.2.1]:25"
    enhanced: str = ""  # RFC 3463, "2.0.0"
    tls: str = ""  # of the connection: "TLSv1.3 TLS_AES_256_GCM_SHA384", "" in clear
    dsn: bool = False  # the peer offers DSN (RFC 3461): to report the success is its task


class Deferred(msgspec.Struct, frozen=True):
    """Try later."""

    text: str  # the peer's reply on one line, or our words
    phase: str  # "DNS", "connect", "TLS", or the command: "greeting", "EHLO", "MAIL", "RCPT", ...
    peer: str = ""
    enhanced: str = "4.0.0"
    maybe: bool = False  # the peer may have delivered it without our knowing: trying again may duplicate it
    reply: bool = False  # ``text`` is what the peer said
    tls: str = ""
    seven_bit: bool = False  # the peer would take it, converted to 7 bits


class Failed(msgspec.Struct, frozen=True):
    """It will not be delivered."""

    text: str
    phase: str
    peer: str = ""
    enhanced: str = "5.0.0"
    reply: bool = False
    tls: str = ""


Outcome = Delivered | Deferred | Failed

# Replies in these phases are about the message or the recipient; in others about our being there at all.
_ABOUT_THE_MESSAGE = frozenset({"MAIL", "RCPT", "DATA", "end of DATA"})
_TOO_MANY = frozenset({"", "5.5.3", "5.0.0"})  # enhanced codes under which 552 to RCPT is not about the mailbox


def of_reply(reply: Reply, phase: str, peer: str, dsn: bool = False) -> Outcome:
    """The outcome of a recipient that ``reply`` in ``phase`` settled. Only the end of DATA can deliver.

    ``dsn``: the peer offers DSN.
    """
    text = str(reply)[:MAX_TEXT]
    if reply.ok and phase == "end of DATA":
        return Delivered(text, phase, peer, reply.enhanced, dsn=dsn)
    too_many = reply.code == 552 and phase == "RCPT" and reply.enhanced in _TOO_MANY
    if reply.permanent and phase in _ABOUT_THE_MESSAGE and not too_many:
        return Failed(text, phase, peer, reply.enhanced or "5.0.0", reply=True)
    enhanced = reply.enhanced if reply.transient else ""
    return Deferred(text, phase, peer, enhanced or "4.0.0", reply=True)


def of_error(error: StreamError | ProtocolError, phase: str, peer: str, maybe: bool = False) -> Deferred:
    """The outcome of the recipients that were not settled when ``error`` ended the session.

    ``maybe``: the final dot had left.
    """
    return Deferred(str(error)[:MAX_TEXT], phase, peer, _enhanced(error), maybe)


def _enhanced(error: StreamError | ProtocolError) -> str:
    """RFC 3463 3.5 and 3.8."""
    if isinstance(error, ProtocolError):
        return "4.5.0"
    if isinstance(error, TlsFailed):
        return "4.7.5"
    if isinstance(error, ConnectFailed | ReadTimeout | WriteTimeout):
        return "4.4.1"
    return "4.4.2"
