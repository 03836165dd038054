"""What one listener offers and allows: a frozen value that all its sessions share."""

from __future__ import annotations

import dataclasses
import datetime
import functools
from collections.abc import Callable

from ptt.smtp.content import MAX_TEXT_LINE
from ptt.smtp.reply import Reply
from ptt.smtp.sasl import KNOWN_TO_SERVER


@dataclasses.dataclass(frozen=True)
class FutureRelease:
    """RFC 4865: how long a message may be held back. ``clock``: seconds since the epoch."""

    max_seconds: int
    clock: Callable[[], float]

    def keyword(self) -> str:
        """The line of the EHLO reply: the longest interval, and the latest moment as it is now."""
        latest = datetime.datetime.fromtimestamp(self.latest(), datetime.UTC)
        return f"FUTURERELEASE {self.max_seconds} {latest:%Y-%m-%dT%H:%M:%SZ}"

    def latest(self) -> int:
        """The latest moment to which a message may be held, in seconds since the epoch."""
        return int(self.clock()) + self.max_seconds


@dataclasses.dataclass(frozen=True, eq=False)
class ServerConfig:
    """Settings of a ``ServerSession``. Only what is offered here is announced, and only that is understood.

    Enhanced status codes are in our replies whether announced or not: without RFC 2034 they are text.
    """

    hostname: str
    greeting: str = "ESMTP"  # what follows the host name in the 220
    max_message_bytes: int = 50 * 1024 * 1024
    max_recipients: int = 1000  # RFC 5321 4.5.3.1.8 demands at least 100
    max_text_line: int = MAX_TEXT_LINE
    max_errors: int = 10  # syntax, sequence and unknown commands of a session; Postfix closes at 20
    max_auth_failures: int = 8
    starttls: bool = False
    auth: tuple[str, ...] = ()  # of KNOWN_TO_SERVER; only ever under TLS
    pipelining: bool = True
    size: bool = True
    eightbitmime: bool = True
    enhancedstatuscodes: bool = True
    smtputf8: bool = False
    dsn: bool = False
    chunking: bool = False
    binarymime: bool = False
    limits: bool = False  # announce RCPTMAX (RFC 9422); the other two are not limited
    future_release: FutureRelease | None = None
    mt_priority: bool = False
    require_tls: bool = False  # 530 to everything but EHLO, STARTTLS, NOOP, RSET, QUIT before TLS (RFC 3207 4)
    require_auth: bool = False  # 530 to MAIL before AUTH (RFC 4954 6)
    extra_ehlo: tuple[str, ...] = ()  # further lines of the EHLO reply
    mail_parameters: frozenset[str] = frozenset()  # further parameters of MAIL, upper case -> MailParams.extra
    rcpt_parameters: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if unknown := [m for m in self.auth if m not in KNOWN_TO_SERVER]:
            raise ValueError(f"SASL mechanisms {unknown} are not known")
        if self.binarymime and not self.chunking:
            raise ValueError("BINARYMIME needs CHUNKING")  # RFC 3030 3
        if self.smtputf8 and not self.eightbitmime:
            raise ValueError("SMTPUTF8 needs 8BITMIME")  # RFC 6531 3.1

    def ehlo_lines(self, *, tls: bool, authenticated: bool) -> list[str]:
        """The lines of the reply to EHLO, the host name first (RFC 5321 4.1.1.1)."""
        lines = [self.hostname]
        if self.pipelining:
            lines.append("PIPELINING")
        if self.size:
            lines.append(f"SIZE {self.max_message_bytes}")
        if self.eightbitmime:
            lines.append("8BITMIME")
        if self.smtputf8:
            lines.append("SMTPUTF8")
        if self.dsn:
            lines.append("DSN")
        if self.chunking:
            lines.append("CHUNKING")
        if self.binarymime:
            lines.append("BINARYMIME")
        if self.limits:
            lines.append(f"LIMITS RCPTMAX={self.max_recipients}")
        if self.mt_priority:
            lines.append("MT-PRIORITY")
        if self.enhancedstatuscodes:
            lines.append("ENHANCEDSTATUSCODES")
        if self.starttls and not tls:
            lines.append("STARTTLS")
        if self.auth and tls and not authenticated:
            lines.append("AUTH " + " ".join(self.auth))
        return [*lines, *self.extra_ehlo]

    @functools.cached_property
    def greeting_wire(self) -> bytes:
        return Reply(220, "", f"{self.hostname} {self.greeting}").encode()

    @functools.cached_property
    def helo_wire(self) -> bytes:
        return Reply(250, "", self.hostname).encode()

    @functools.cached_property
    def ehlo_wire(self) -> dict[tuple[bool, bool], bytes]:
        """(tls, authenticated) -> the reply to EHLO. Written once, for it is the same for every session."""
        both = (False, True)
        return {
            (tls, auth): Reply(250, "", "\n".join(self.ehlo_lines(tls=tls, authenticated=auth))).encode()
            for tls in both
            for auth in both
        }

    def hello(self, *, tls: bool, authenticated: bool) -> bytes:
        """The reply to EHLO as bytes."""
        if self.future_release is None:
            return self.ehlo_wire[tls, authenticated]
        first, *others = self.ehlo_lines(tls=tls, authenticated=authenticated)
        lines = [first, self.future_release.keyword(), *others]
        return Reply(250, "", "\n".join(lines)).encode()

    @functools.cached_property
    def mail_keywords(self) -> frozenset[str]:
        """The parameters of MAIL that are allowed."""
        offered = {
            "SIZE": self.size,
            "BODY": self.eightbitmime,
            "SMTPUTF8": self.smtputf8,
            "RET": self.dsn,
            "ENVID": self.dsn,
            "HOLDFOR": self.future_release is not None,
            "HOLDUNTIL": self.future_release is not None,
            "MT-PRIORITY": self.mt_priority,
            "AUTH": bool(self.auth),
        }
        return frozenset(k for k, on in offered.items() if on) | self.mail_parameters

    @functools.cached_property
    def rcpt_keywords(self) -> frozenset[str]:
        """The parameters of RCPT that are allowed."""
        return (frozenset({"NOTIFY", "ORCPT"}) if self.dsn else frozenset()) | self.rcpt_parameters
