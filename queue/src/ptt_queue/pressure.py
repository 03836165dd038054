"""When the queue takes no more for now, and when again: high and low marks. Pure; the clock is an argument (ms)."""

from __future__ import annotations

import msgspec

WINDOW_MS = 5000  # commits are judged by their mean over that time: one slow sync refuses nobody


MARKS = ("bytes", "bodies", "messages", "disk", "commit")  # as they are told, in the order in which they are judged


class Marks(msgspec.Struct, frozen=True):
    """High marks; 0: none. What was refused is taken again below ``resume_percent`` of them (above the inverse of
    it, for ``min_free_bytes``), so that the queue does not waver around a mark."""

    max_bytes: int = 0  # in use in the store
    max_messages: int = 0
    min_free_bytes: int = 0  # of the file system
    max_commit_seconds: float = 0.0  # mean of WINDOW_MS
    resume_percent: int = 90
    max_body_bytes: int = 0  # of all messages


class Pressure:
    """``full`` names the mark that is reached, "" when there is none."""

    def __init__(self, marks: Marks) -> None:
        self.marks = marks
        self.full = ""
        self._commits = 0
        self._seconds = 0.0
        self._mean = 0.0  # of the last window
        self._until = 0  # end of this window

    def committed(self, seconds: float) -> None:
        """A commit took so long."""
        self._commits += 1
        self._seconds += seconds

    def look(self, used: int, messages: int, free: int, now: int, bodies: int = 0) -> str:
        """Judge; returns ``full``. To be called often, whether there are commits or not."""
        if not now < self._until <= now + WINDOW_MS:
            self._mean = self._seconds / self._commits if self._commits else 0.0
            self._commits, self._seconds, self._until = 0, 0.0, now + WINDOW_MS
        share = self.marks.resume_percent / 100 if self.full else 1.0
        self.full = self._above(used, messages, free, bodies, share)
        return self.full

    def _above(self, used: int, messages: int, free: int, bodies: int, share: float) -> str:
        marks = self.marks
        if marks.max_bytes and used > marks.max_bytes * share:
            return "bytes"
        if marks.max_body_bytes and bodies > marks.max_body_bytes * share:
            return "bodies"
        if marks.max_messages and messages >= marks.max_messages * share:
            return "messages"
        if free * share < marks.min_free_bytes:
            return "disk"
        if marks.max_commit_seconds and self._mean > marks.max_commit_seconds * share:
            return "commit"
        return ""
