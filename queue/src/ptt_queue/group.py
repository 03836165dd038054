"""A group of lanes with common limits, and a lane: what the dispatcher decides about."""

from __future__ import annotations

from collections import OrderedDict

from ptt_queue import keys
from ptt_queue.types import GroupLimit
from ptt_queue.width import Width

CLASS_TURNS = (0, 1, 0, 0, 1, 0, 2)
"""Which class a lane serves first, turn by turn: 4 urgent, 2 normal, 1 bulk, so that none starves."""
MAX_PAUSE_MS = 3_600_000  # of a group, as its client asks for
RATE_SLACK_MS = 100  # tokens that fell due within this time may go at once: fewer timers
ACTIVE, PARKED, ASLEEP, GONE = range(4)


class Group:
    """A set of lanes with common limits. ``moved``: where its tokens went, when its one lane got another group."""

    __slots__ = ("in_flight", "lanes", "limit", "moved", "name", "next_at", "parked", "suspended", "timed", "width")

    def __init__(self, name: str, limit: GroupLimit) -> None:
        self.name = name
        self.limit = limit
        self.width = Width(limit.in_flight, limit.start)
        self.in_flight = 0
        self.lanes = 0
        self.next_at = 0.0  # when the rate allows the next token, ms
        self.parked: OrderedDict[bytes, Lane] = OrderedDict()
        self.timed = False  # a timer will unpark it
        self.moved: Group | None = None
        self.suspended = False

    def free_at(self, now: int) -> float | None:
        """When a token is to be had: ``now``, later (by the rate), or None (when one in flight is freed)."""
        if self.suspended or 0 < self.width.most <= self.in_flight:
            return None
        return now if self.next_at <= now + RATE_SLACK_MS else self.next_at - RATE_SLACK_MS

    def idle(self) -> bool:
        """Nothing is lost when it is made anew."""
        return not (self.in_flight or self.lanes or self.limit.per_second or self.width.troubled)

    def set_limit(self, limit: GroupLimit) -> None:
        if limit != self.limit:
            self.width.cap(limit.in_flight, self.limit.in_flight)
            self.limit = limit


class Lane:
    """The waiting tasks of one lane in one stage; ``prefix`` is what their keys begin with."""

    __slots__ = ("cursors", "group", "place", "prefix", "turn", "wake")

    def __init__(self, prefix: bytes, group: Group | None) -> None:
        self.prefix = prefix
        self.group = group
        self.cursors: list[bytes | None] = [None, None, None]
        self.place = GONE
        self.turn = 0
        self.wake = 0  # when asleep: when the first task falls due

    @property
    def name(self) -> str:
        return self.prefix[2:-1].decode("utf-8")

    def classes(self) -> list[int]:
        """The classes that may have something, in the order of this turn."""
        first = CLASS_TURNS[self.turn % len(CLASS_TURNS)]
        self.turn += 1
        return [c for c in (first, *(c for c in keys.CLASSES if c != first)) if self.cursors[c] is not None]
