"""The places of a worker: how many tasks it has under way at once. Pure.

A task that is under way for long leaves its place to others, and is counted as slow: what is answered in time does not
wait for what is not. Slow ones are bounded, too.
"""

from __future__ import annotations

from collections.abc import Hashable

SLOW_SECONDS = 5.0
"""A delivery over the Internet mostly takes one or two."""

SLOW_SHARE = 3
"""So many times the places may be slow at once; those beyond take places. A greenlet, a socket and a body each."""


class Places:
    """``most``: tasks at once beside the slow ones. ``now`` is in seconds of one monotonic clock."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._quick: dict[Hashable, float] = {}  # oldest first, and since when
        self._slow: set[Hashable] = set()

    def take(self, task: Hashable, now: float) -> None:
        """The task is under way, whether there was a place or not."""
        self._quick[task] = now

    def leave(self, task: Hashable) -> None:
        """It has ended."""
        if self._quick.pop(task, None) is None:
            self._slow.discard(task)

    def free(self, now: float) -> int:
        """Places that are free; negative when more were taken."""
        while self._quick:
            oldest, since = next(iter(self._quick.items()))
            if now - since <= SLOW_SECONDS:
                break
            del self._quick[oldest]
            self._slow.add(oldest)
        return self.most - len(self._quick) - max(0, len(self._slow) - SLOW_SHARE * self.most)
