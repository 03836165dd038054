"""The arguments of the commands, parsed: pure functions of a text and a configuration. All raise ProtocolError."""

from __future__ import annotations

from ptt.smtp import replies
from ptt.smtp.config import FutureRelease, ServerConfig
from ptt.smtp.errors import ProtocolError
from ptt.smtp.events import Hello, MailFrom, RcptTo
from ptt.smtp.grammar import MAX_DOMAIN, parse_forward_path, parse_reverse_path
from ptt.smtp.params import MailParams, parse_mail_params, parse_rcpt_params


def no_argument(argument: str) -> None:
    """RFC 5321 4.1.1.4, .5, .10: DATA, RSET and QUIT have none."""
    if argument:
        raise ProtocolError.of(replies.NO_ARGUMENT)


def parse_hello(argument: str, ehlo: bool) -> Hello:
    """RFC 5321 4.1.1.1. One printable word is taken as it is (4.1.4: no refusal because of what it says)."""
    if not argument or len(argument) > MAX_DOMAIN or not argument.isprintable() or " " in argument:
        raise ProtocolError.of(replies.BAD_HELO)
    return Hello(argument, ehlo)


def parse_mail(argument: str, config: ServerConfig) -> MailFrom:
    """RFC 5321 4.1.1.2: ``FROM:<path> parameters``."""
    path = parse_reverse_path(argument[5:]) if argument[:5].upper() == "FROM:" else None
    if path is None:
        raise ProtocolError.of(replies.BAD_SENDER)
    address, rest = path
    params = parse_mail_params(rest, config.mail_keywords)
    if not params.smtputf8 and not argument.isascii():
        raise ProtocolError.of(replies.NOT_INTERNATIONAL)
    if params.body == "BINARYMIME" and not config.binarymime:
        raise ProtocolError.of(replies.NO_BINARY)
    if config.future_release is not None:
        _check_hold(params, config.future_release)
    if not argument.isascii() and not _is_international(address):
        raise ProtocolError.of(replies.BAD_SENDER)
    return MailFrom(address, params)


def parse_rcpt(argument: str, config: ServerConfig, *, smtputf8: bool) -> RcptTo:
    """RFC 5321 4.1.1.3: ``TO:<path> parameters``. ``smtputf8``: the transaction was opened with SMTPUTF8."""
    path = parse_forward_path(argument[3:]) if argument[:3].upper() == "TO:" else None
    if path is None:
        raise ProtocolError.of(replies.BAD_RECIPIENT)
    address, rest = path
    params = parse_rcpt_params(rest, config.rcpt_keywords)
    if not smtputf8 and not argument.isascii():
        raise ProtocolError.of(replies.NOT_INTERNATIONAL)
    if not argument.isascii() and not _is_international(address):
        raise ProtocolError.of(replies.BAD_RECIPIENT)
    return RcptTo(address, params)


def _is_international(address: str) -> bool:
    """Is the domain of an address made of U-labels (RFC 6531 3.3)? Others could never be looked up."""
    domain = address.rpartition("@")[2]
    if domain.isascii():
        return True
    try:
        domain.encode("idna")
    except UnicodeError:
        return False
    return True


def _check_hold(params: MailParams, release: FutureRelease) -> None:
    """RFC 4865 4.3: what is longer than announced is refused. A moment that has passed means at once."""
    too_long = params.hold_for is not None and params.hold_for > release.max_seconds
    too_late = params.hold_until is not None and params.hold_until > release.latest()
    if too_long or too_late:
        raise ProtocolError.of(replies.HOLD_TOO_LONG)


def parse_vrfy(argument: str, config: ServerConfig) -> None:
    """RFC 5321 4.1.1.6, RFC 6531 3.7.4.2: ``VRFY string [SMTPUTF8]``. We tell nothing, but of its syntax."""
    if not argument:
        raise ProtocolError.of(replies.NEEDS_ARGUMENT)
    utf8 = argument.upper().endswith(" SMTPUTF8")
    if utf8 and not config.smtputf8:
        raise ProtocolError.of(replies.NO_SMTPUTF8)
    if not utf8 and not argument.isascii():
        raise ProtocolError.of(replies.NOT_INTERNATIONAL)


def parse_auth(argument: str, config: ServerConfig, *, tls: bool, authenticated: bool) -> tuple[str, bytes | None]:
    """RFC 4954 4: ``mechanism [initial-response]`` -> mechanism, response (None: not given; "=": empty)."""
    if not config.auth:
        raise ProtocolError.of(replies.NOT_OFFERED)
    if not tls:
        raise ProtocolError.of(replies.AUTH_NEEDS_TLS)
    if authenticated:
        raise ProtocolError.of(replies.AUTH_TWICE)
    if not argument:
        raise ProtocolError.of(replies.NEEDS_ARGUMENT)
    mechanism, _, initial = argument.partition(" ")
    if mechanism.upper() not in config.auth:
        raise ProtocolError.of(replies.UNKNOWN_MECHANISM)
    return mechanism.upper(), None if not initial else b"" if initial == "=" else initial.encode()
