"""How a client behaves: its mistakes and its idle commands, each with a limit; and what was refused, to be counted."""

from __future__ import annotations

from typing import Final, NamedTuple

from ptt.smtp import replies
from ptt.smtp.reply import Reply

MAX_IDLE_COMMANDS: Final = 100  # NOOP, VRFY, HELP, RSET, EHLO, empty chunks since the last message; Postfix:
# smtpd_junk_command_limit
FOREIGN: Final = frozenset({b"GET", b"POST", b"PUT", b"HEAD", b"OPTIONS", b"CONNECT"})  # a browser or a proxy: close


class Refusal(NamedTuple):
    """A kind of refusal. There are few of them, whatever clients send: fit for a metric's labels."""

    code: int
    reason: str  # of REASONS, "other", or the value of a Fault


REASONS: Final = {
    421: "errors",
    452: "recipients",
    500: "syntax",
    501: "syntax",
    502: "not_offered",
    503: "sequence",
    504: "mechanism",
    530: "tls_or_auth_first",
    538: "tls_or_auth_first",
    552: "size",
    553: "not_ascii",
    554: "starttls",
    555: "parameter",
}


class Conduct:
    """Of one session. The counts of what it refused on its own are for the driver; without a fault there are none."""

    __slots__ = ("_errors", "_idle", "_max_errors", "_refused")

    def __init__(self, max_errors: int) -> None:
        self._max_errors = max_errors
        self._errors = 0
        self._idle = 0
        self._refused: dict[Refusal, int] = {}

    @property
    def has_refused(self) -> bool:
        return bool(self._refused)

    def take_refused(self) -> dict[Refusal, int]:
        """How often what was refused since the last call, without asking the driver."""
        taken, self._refused = self._refused, {}
        return taken

    def refused(self, reply: Reply, reason: str = "") -> None:
        """Count a refusal that is no mistake of the client."""
        refusal = Refusal(reply.code, reason or REASONS.get(reply.code, "other"))
        self._refused[refusal] = self._refused.get(refusal, 0) + 1

    def mistake(self, reply: Reply) -> tuple[Reply, str]:
        """The answer to a mistake that calls for ``reply``, and why the session ends ("": it does not).

        One too many ends it (RFC 5321 4.3.2 allows 421 at any time).
        """
        why = ""
        if reply not in replies.NO_MISTAKE:
            self._errors += 1
            why = replies.ENDS_SESSION.get(reply, "")
            if not why and self._errors >= self._max_errors:
                reply, why = replies.TOO_MANY_ERRORS, "too many errors"
        self.refused(reply)
        return reply, why

    def foreign(self) -> None:
        """It speaks another protocol: the mistake that follows is its last."""
        self._errors = self._max_errors

    def idle(self) -> str:
        """A command that brings nothing on. Why the session ends, or ""."""
        self._idle += 1
        if self._idle <= MAX_IDLE_COMMANDS:
            return ""
        self.refused(replies.TOO_MANY_ERRORS)
        return "too many idle commands"

    def message(self) -> None:
        """A message was accepted."""
        self._idle = 0
