"""What each command comes to: pure functions of its argument and of what the session knows.

A handler gives an event that the driver decides, or the bytes of the answer; or it raises ProtocolError, whose reply
is the answer. The session changes its state, nobody here does. AUTH and BDAT are the session's own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

from ptt.smtp import replies, states
from ptt.smtp.commands import no_argument, parse_hello, parse_mail, parse_rcpt, parse_vrfy
from ptt.smtp.config import ServerConfig
from ptt.smtp.errors import ProtocolError
from ptt.smtp.events import (
    AuthAttempt,
    AuthStep,
    Hello,
    MailFrom,
    MessageComplete,
    MessageStart,
    RcptTo,
    ServerEvent,
    StartTls,
)
from ptt.smtp.reply import Reply
from ptt.smtp.states import State, Verb

MAX_LINE: Final = 510  # octets without CRLF of a command: RFC 5321 4.5.3.1.4


ACCEPTED: Final[dict[type, bytes]] = {
    AuthAttempt: replies.AUTHENTICATED,
    AuthStep: replies.AUTHENTICATED,
    MailFrom: replies.SENDER_OK,
    RcptTo: replies.RECIPIENT_OK,
    MessageStart: replies.START_MAIL,
    MessageComplete: replies.MESSAGE_OK,
}
"""The usual positive answer once the driver has accepted an event."""


class Facts(Protocol):
    """What a handler may know of a session."""

    config: ServerConfig
    state: State
    tls: bool
    authenticated: bool
    recipients: int  # accepted in this transaction
    smtputf8: bool  # MAIL had it
    binary: bool  # MAIL had BODY=BINARYMIME

    @property
    def unread(self) -> bool: ...


def following_state(facts: Facts, verb: Verb, length: int) -> State:
    """The state behind a command whose line has so many octets. Raises ProtocolError: it is not allowed now."""
    if length > MAX_LINE and verb not in states.TAKES_PARAMETERS:
        raise ProtocolError.of(replies.LINE_TOO_LONG)
    if facts.config.require_tls and not facts.tls and verb in states.ONLY_UNDER_TLS:
        raise ProtocolError.of(replies.TLS_FIRST)
    following = states.TRANSITIONS.get((facts.state, verb))
    if following is None:
        raise ProtocolError.of(Reply(503, "5.5.1", states.out_of_sequence(facts.state, verb)))
    return following


Handler = Callable[[Facts, str], ServerEvent | bytes]


def _ehlo(_facts: Facts, argument: str) -> Hello:
    return parse_hello(argument, ehlo=True)


def _helo(_facts: Facts, argument: str) -> Hello:
    return parse_hello(argument, ehlo=False)


def _mail(facts: Facts, argument: str) -> MailFrom:
    if facts.config.require_auth and not facts.authenticated:
        raise ProtocolError.of(replies.AUTH_FIRST)
    mail = parse_mail(argument, facts.config)
    if mail.params.size is not None and mail.params.size > facts.config.max_message_bytes:
        raise ProtocolError.of(replies.TOO_LARGE)
    return mail


def _rcpt(facts: Facts, argument: str) -> RcptTo:
    recipient = parse_rcpt(argument, facts.config, smtputf8=facts.smtputf8)
    if facts.recipients >= facts.config.max_recipients:
        raise ProtocolError.of(replies.TOO_MANY_RECIPIENTS)  # RFC 5321 4.5.3.1.10
    return recipient


def _data(facts: Facts, argument: str) -> MessageStart:
    no_argument(argument)
    if facts.binary:
        raise ProtocolError.of(replies.BINARY_BY_DATA)
    return MessageStart()


def _rset(_facts: Facts, argument: str) -> bytes:
    no_argument(argument)
    return replies.OK


def _noop(_facts: Facts, _argument: str) -> bytes:
    return replies.OK


def _vrfy(facts: Facts, argument: str) -> bytes:
    parse_vrfy(argument, facts.config)
    return replies.CANNOT_VERIFY


def _help(_facts: Facts, _argument: str) -> bytes:
    return replies.HELP


def _expn(_facts: Facts, _argument: str) -> bytes:
    raise ProtocolError.of(replies.NOT_OFFERED)


def _quit(_facts: Facts, argument: str) -> bytes:
    no_argument(argument)
    return replies.BYE


def _starttls(facts: Facts, argument: str) -> StartTls:
    """RFC 3207. What is in the buffer behind it came in clear: it is never executed, the session ends."""
    no_argument(argument)
    if facts.tls:
        raise ProtocolError.of(replies.TLS_ACTIVE)
    if not facts.config.starttls:
        raise ProtocolError.of(replies.NOT_OFFERED)
    if facts.unread:
        raise ProtocolError.of(replies.BEHIND_STARTTLS)
    return StartTls()


HANDLERS: Final[dict[Verb, Handler]] = {
    Verb.EHLO: _ehlo,
    Verb.HELO: _helo,
    Verb.STARTTLS: _starttls,
    Verb.MAIL: _mail,
    Verb.RCPT: _rcpt,
    Verb.DATA: _data,
    Verb.RSET: _rset,
    Verb.NOOP: _noop,
    Verb.VRFY: _vrfy,
    Verb.EXPN: _expn,
    Verb.HELP: _help,
    Verb.QUIT: _quit,
}
