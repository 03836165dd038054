"""What one client, and all of them together, may cost a worker: time and memory. Pure; the clock comes in."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from ptt.log import Log

COMMAND_SECONDS = 300.0  # for a command, however it drips in: RFC 5321 4.5.3.2.7
LOGIN_SECONDS = 300.0  # from the connection to the end of AUTH: who is nobody yet does not hold a place for ever
ROLE_SECONDS = 30.0  # for one of our roles to show its certificate where everybody else is one too many
REPLY_SECONDS = 60.0  # for replies to be taken, which are MAX_REPLIES at most: some 100 octets a second
MESSAGE_SECONDS = 3600.0  # from one message to the next, however many commands drip in; contents have more time
MIN_BYTES_PER_SECOND = 500.0  # of a content, after COMMAND_SECONDS of grace: Postfix (smtpd_min_data_rate) has 500 too
MAX_REFUSED_SENDERS = 20  # in a row in one session: each is a line in the log
MAX_COMMAND_READ = 8 * 1024  # octets taken at once while no content is coming: bounds the replies to what is in them
MAX_REPLIES = 64  # that wait to be written while a client's commands are executed: at most 32 KiB

LOG_SECONDS = 10.0  # between two lines of the same kind about refused connections

MAX_RECEIVING_BYTES = 256 * 1024 * 1024  # of contents that a worker has in memory and not in the queue yet
SMALL_CONTENT = 64 * 1024  # of a session, always allowed: 125 MiB for 2,000 sessions


class Budget:
    """The octets of the contents that all sessions of a worker hold. At most ``most``, but for small contents."""

    def __init__(self, most: int = MAX_RECEIVING_BYTES) -> None:
        self.most = most
        self.held = 0

    def change(self, before: int, after: int) -> bool:
        """A session that held ``before`` octets wants to hold ``after``. False, and nothing changes: too much."""
        if after > before and after > SMALL_CONTENT and self.held + after - before > self.most:
            return False
        self.held += after - before
        return True


class Pace:
    """When the next octets of a client must have come. Times are seconds of one monotonic clock."""

    __slots__ = ("_due", "_login_due", "_message_due")

    def __init__(self, now: float, login_seconds: float = 0.0) -> None:
        """``login_seconds``: within which the client must say who it is; 0: it need not."""
        self._due = now + COMMAND_SECONDS
        self._login_due = now + login_seconds if login_seconds else None
        self._message_due = now + MESSAGE_SECONDS

    def progress(self, now: float) -> None:
        """Something was complete and is answered."""
        self._due = now + COMMAND_SECONDS

    def content(self, octets: int, now: float) -> None:
        """Octets of a content have come: each earns time, up to what a command has."""
        earned = octets / MIN_BYTES_PER_SECOND
        self._due = min(self._due + earned, now + COMMAND_SECONDS)
        self._message_due += earned

    def message(self, now: float) -> None:
        """A content has ended."""
        self._message_due = now + MESSAGE_SECONDS

    def logged_in(self) -> None:
        self._login_due = None

    def left(self, now: float) -> float:
        """Seconds to wait for the next octets; 0.0 or less: none."""
        due = min(self._due, self._message_due)
        return (due if self._login_due is None else min(due, self._login_due)) - now


class Seldom:
    """Lines of the log that anybody could cause without end: one of a kind in ``LOG_SECONDS``, then how many more."""

    def __init__(self, log: Log, clock: Callable[[], float] = time.monotonic) -> None:
        self._log = log
        self._clock = clock
        self._kinds: dict[str, tuple[float, int]] = {}  # when one was written last; how many were not since

    def warning(self, event: str, kind: str, **fields: Any) -> None:
        """``kind``: one of few, never what a client says."""
        written, left_out = self._kinds.get(kind, (-LOG_SECONDS, 0))
        now = self._clock()
        if now - written < LOG_SECONDS:
            self._kinds[kind] = (written, left_out + 1)
            return
        self._kinds[kind] = (now, 0)
        self._log.warning(event, **fields, left_out=left_out)
