"""What a session tells its driver. Values only.

Server events marked *decision* stop the session until the driver has called ``accept`` or ``refuse``.
"""

from __future__ import annotations

import enum
from typing import Final, NamedTuple

from ptt.smtp.params import MailParams, RcptParams
from ptt.smtp.reply import Reply
from ptt.smtp.sasl import Secret


class NeedData(enum.Enum):
    """The type of NEED_DATA, so that a type checker can tell it from an event."""

    NEED_DATA = "need data"


NEED_DATA: Final = NeedData.NEED_DATA  # write what data_to_send() gives, then read and feed receive_data()


# --- server -------------------------------------------------------------------------------------------------


class Hello(NamedTuple):
    """EHLO or HELO. *Decision.* It ends any transaction."""

    name: str
    ehlo: bool


class AuthAttempt(NamedTuple):
    """Credentials were given. *Decision*: accept() -> 235; refuse() -> 535, or 454 and the like."""

    mechanism: str
    authcid: str
    authzid: str
    password: Secret


class AuthStep(NamedTuple):
    """A response of a mechanism that the driver does itself (``sasl.DRIVEN``). *Decision*: also challenge() -> 334."""

    mechanism: str
    response: bytes  # decoded; b"" for an empty one
    first: bool  # of this AUTH command


class MailFrom(NamedTuple):
    """MAIL: a new transaction. *Decision.* ``address`` is "" for the null reverse-path."""

    address: str
    params: MailParams


class RcptTo(NamedTuple):
    """RCPT. *Decision.*"""

    address: str
    params: RcptParams


class MessageStart(NamedTuple):
    """DATA or the first BDAT, with at least one recipient. *Decision*: refuse() ends the transaction.

    accept() sends 354 to DATA, and nothing to BDAT, whose octets are on their way already.
    """

    chunked: bool = False  # it is BDAT


class MessageComplete(NamedTuple):
    """The content is here, unstuffed, without the final dot. *Decision*: accept(reply) only when it is committed.

    Text is lines in CRLF without NUL, the last one ended too; only what came with BODY=BINARYMIME is any octets.
    """

    chunks: list[bytes]  # joined they are the content
    size: int  # octets
    binary: bool = False  # BODY=BINARYMIME


class StartTls(NamedTuple):
    """Write what data_to_send() gives, do the handshake, then call tls_started()."""


class Closed(NamedTuple):
    """The session is over: write what data_to_send() gives, then close the connection. Comes again if asked again."""

    reason: str
    reply: Reply | None = None  # client: the 421, or the answer to QUIT


ServerEvent = Hello | AuthAttempt | AuthStep | MailFrom | RcptTo | MessageStart | MessageComplete | StartTls | Closed


# --- client -------------------------------------------------------------------------------------------------


class Ready(NamedTuple):
    """EHLO or HELO is done (also after TLS): start_tls, auth, send_message or quit may be called."""

    reply: Reply


class Refused(NamedTuple):
    """The peer does not want us: a negative greeting or a negative answer to EHLO and HELO. Close, try elsewhere."""

    phase: str
    reply: Reply


class TlsReady(NamedTuple):
    """The peer said yes to STARTTLS: do the handshake, then call tls_started(); Ready follows."""


class TlsRefused(NamedTuple):
    """The peer said no to STARTTLS; the session goes on in clear if the driver wants it."""

    reply: Reply


class AuthDone(NamedTuple):
    """The answer to AUTH; authenticated if ``reply.ok``."""

    reply: Reply


class FinalDot(NamedTuple):
    """The peer said 354 and the content may leave; the final dot leaves only after the *next* call of next_event().

    The moment for the mark "maybe delivered": from here on a lost connection leaves the outcome unknown for the
    recipients with the indices ``accepted``. data_to_send() now gives the content without its end.
    """

    accepted: tuple[int, ...]


class Result(NamedTuple):
    """What was said of one recipient, and in which phase ("MAIL", "RCPT", "DATA", "end of DATA")."""

    reply: Reply
    phase: str

    @property
    def ok(self) -> bool:
        return self.reply.ok


class MessageDone(NamedTuple):
    """A message is settled: one result per recipient, in the order of send_message."""

    results: list[Result]


class ResetDone(NamedTuple):
    """The answer to RSET asked for with reset()."""

    reply: Reply


ClientEvent = Ready | Refused | TlsReady | TlsRefused | AuthDone | FinalDot | MessageDone | ResetDone | Closed
