"""How many tasks of a group may be in flight now: fewer than its limit at first, and while it is in trouble. Pure.

Additive increase, multiplicative decrease, with a slow start as TCP has it (RFC 5681): below ``threshold`` each task
that ends well allows one more, above it a whole width of them does.
"""

from __future__ import annotations

SHRINK = 0.5
"""Share that is left after trouble: a peer that takes half of what we send is found in one step."""

MAX_DOUBLED = 4
"""Times that the pause between attempts to find somebody is doubled: 16 times the first one."""

SHRINK_EVERY_MS = 1000
"""What was in flight together fails together: that is one sign of trouble, not as many as there were tasks."""


class Width:
    """``start``: where it begins; 0: at the limit. ``limit`` 0: none, and no width either."""

    __slots__ = ("_shrunk_at", "_value", "closes", "most", "threshold", "troubled")

    def __init__(self, limit: int, start: int = 0) -> None:
        self._value = float(min(start, limit) or limit)
        self.threshold = float(limit)
        self._shrunk_at = 0
        self.most = int(self._value)  # tasks in flight; 0: any number
        self.closes = 0  # in a row
        self.troubled = False  # it has shrunk, and has not grown back

    def cap(self, limit: int, before: int) -> None:
        """The limit is another now. What has not been found out yet follows it."""
        if before <= 0 or limit <= 0:
            self._value = float(limit)
        if not self.troubled:
            self.threshold = float(limit)
        self._set(min(self._value, float(limit)), limit)

    def grow(self, limit: int) -> None:
        """A task has ended well."""
        self.closes = 0
        if self.most < limit:
            self._set(min(self._value + (1.0 if self._value < self.threshold else 1.0 / self._value), limit), limit)

    def shrink(self, now: int) -> None:
        """A task has met with trouble. ``now`` in ms."""
        if self.most > 0 and not 0 <= now - self._shrunk_at < SHRINK_EVERY_MS:
            self._shrunk_at = now
            self._trouble(max(1.0, self._value * SHRINK))

    def close(self) -> int:
        """Nobody is there: one task at a time finds out when that changes. By how much longer is the pause?"""
        if self.most > 0:
            self._trouble(1.0)
        self.closes += 1
        return int(2 ** min(self.closes - 1, MAX_DOUBLED))

    def _trouble(self, value: float) -> None:
        self.threshold = max(1.0, self._value * SHRINK) if self._value > 1 else self.threshold
        self._value = value
        self.most = int(value)
        self.troubled = True

    def _set(self, value: float, limit: int) -> None:
        self._value = value
        self.most = int(value)
        if self.most >= limit:
            self.troubled = False
