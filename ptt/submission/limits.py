"""What one client, and all of them together, may cost a worker: time and memory. Pure; the clock comes in."""

from __future__ import annotations

COMMAND_SECONDS = 300.0  # for a command, however it drips in: RFC 5321 4.5.3.2.7
LOGIN_SECONDS = 300.0  # from the connection to the end of AUTH: who is nobody yet does not hold a place for ever
MIN_BYTES_PER_SECOND = 500.0  # of a content, after COMMAND_SECONDS of grace: Postfix (smtpd_min_data_rate) has 500 too
MAX_REFUSED_SENDERS = 20  # in a row in one session: each is a line in the log

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

    def __init__(self, now: float, must_login: bool) -> None:
        self._due = now + COMMAND_SECONDS
        self._login_due = now + LOGIN_SECONDS if must_login else None

    def progress(self, now: float) -> None:
        """Something was complete and is answered."""
        self._due = now + COMMAND_SECONDS

    def content(self, octets: int, now: float) -> None:
        """Octets of a content have come: each earns time, up to what a command has."""
        self._due = min(self._due + octets / MIN_BYTES_PER_SECOND, now + COMMAND_SECONDS)

    def logged_in(self) -> None:
        self._login_due = None

    def left(self, now: float) -> float:
        """Seconds to wait for the next octets; 0.0 or less: none."""
        due = self._due if self._login_due is None else min(self._due, self._login_due)
        return due - now
