"""Slots: what a client may have so many of at once, over all clients, beyond its leases (a mail system's connections).

In memory; no I/O; the clock is an argument (ms). A slot belongs to the session that opened it and is gone with it. Who
asks for one that is not free waits, and those who have some of that name are asked to give back what they do not need.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from functools import partial

from ptt_queue.protocol import Close, Open, Opened
from ptt_queue.session import Batch, Session
from ptt_queue.types import SlotLimit

MAX_WAITING = 10_000  # of all clients; beyond it the answer is no, at once
MAX_WAIT_MS = 60_000
MAX_NAMES = 8  # of one slot
ASK_EVERY_MS = 500  # those who have slots of a name that is wanted are asked so often

News = tuple[Session, int, bool | list[str]]
"""What a session is to be told: the answer to a request, or (number 0) the names that it is asked for."""


class _Name:
    """All slots of one name. ``next_at``: when the rate allows the next. ``asked_at``: when its holders were asked."""

    __slots__ = ("asked_at", "held", "next_at", "total", "waiting")

    def __init__(self) -> None:
        self.held: dict[Session, int] = {}
        self.total = 0
        self.next_at = 0.0
        self.asked_at = 0
        self.waiting: deque[_Wait] = deque()


class _Wait:
    __slots__ = ("done", "number", "session", "slots", "until")

    def __init__(self, session: Session, number: int, slots: Sequence[SlotLimit], until: int) -> None:
        self.session = session
        self.number = number
        self.slots = slots
        self.until = until
        self.done = False


class Slots:
    """All slots of the queue process. What is to be told is collected until ``news`` takes it.

    ``closed``: nothing is given until ``start``: clients of before are still to tell what they have.
    """

    def __init__(self, closed: bool = False) -> None:
        self._closed = closed
        self._early: list[_Wait] = []  # who asked before all had told what they have
        self._names: dict[str, _Name] = {}
        self._timers: list[tuple[float, int, _Wait]] = []  # what waits: until the rate allows it, or its time is over
        self._sequence = 0
        self._waiting = 0
        self._news: list[News] = []

    def open(self, session: Session, number: int, slots: Sequence[SlotLimit], wait_ms: int, now: int) -> None:
        """Ask for one of each; answered now or later."""
        wait = _Wait(session, number, slots[:MAX_NAMES], now + min(max(wait_ms, 0), MAX_WAIT_MS))
        if self._waiting >= MAX_WAITING:
            self._answer(wait, False)
        elif not self._try(wait, now):
            self._waiting += 1
            self._timer(wait.until, wait)

    def start(self, now: int) -> None:
        """Everybody has told what it has, or has had the time."""
        if self._closed:
            self._closed = False
            early, self._early = self._early, []
            for wait in early:
                if not wait.done and self._try(wait, now):
                    self._end(wait)

    def close(self, session: Session, names: Sequence[str], now: int) -> None:
        """Give back one of each."""
        for name in names:
            known = self._names.get(name)
            if known is not None and known.held.get(session, 0) > 0:
                known.held[session] -= 1
                known.total -= 1
                if not known.held[session]:
                    del known.held[session]
                self._next(name, known, now)

    def opened(self, session: Session, slots: Mapping[str, int]) -> None:
        """The session has these already, whatever the limits."""
        for name, count in slots.items():
            known = self._name(name)
            known.total += max(0, count) - known.held.get(session, 0)
            known.held[session] = max(0, count)

    def leave(self, session: Session, now: int) -> None:
        """The session is gone, and what it had."""
        for name, known in list(self._names.items()):
            for wait in known.waiting:
                if wait.session is session:
                    self._end(wait)
            known.total -= known.held.pop(session, 0)
            self._next(name, known, now)

    def wake(self, now: int) -> None:
        """Look at those whose time has come."""
        while self._timers and (self._timers[0][0] <= now or self._timers[0][2].done):
            wait = heapq.heappop(self._timers)[2]
            if wait.done:
                continue
            if wait.until <= now:
                self._end(wait)
                self._answer(wait, False)
            elif self._try(wait, now):
                self._end(wait)

    def next_wake(self, now: int) -> float | None:
        """When there is something to do, or to tell."""
        if self._news:
            return now
        return self._timers[0][0] if self._timers else None

    def news(self) -> list[News]:
        """What is to be told now."""
        found, self._news = self._news, []
        return found

    # -- requests: done when their group is committed, as all that is in memory ----------------------------------------

    def on_open(self, batch: Batch, session: Session, request: Open, _blob: bytes) -> None:
        what = (session, request.number, request.slots, request.wait_ms, batch.now)
        batch.committed.append(partial(self.open, *what))

    def on_close(self, batch: Batch, session: Session, request: Close, _blob: bytes) -> None:
        batch.committed.append(partial(self.close, session, request.names, batch.now))

    def on_opened(self, batch: Batch, session: Session, request: Opened, _blob: bytes) -> None:
        batch.committed.append(partial(self.opened, session, request.slots))

    # -- inside ----------------------------------------------------------------------------------------------------

    def _name(self, name: str) -> _Name:
        known = self._names.get(name)
        if known is None:
            known = self._names[name] = _Name()
        return known

    def _try(self, wait: _Wait, now: int) -> bool:
        """Give it what it wants, or let it wait for the first thing that it cannot have yet."""
        if self._closed:
            self._early.append(wait)
            return False
        for slot in wait.slots:
            known = self._name(slot.name)
            if 0 < slot.most <= known.total:
                known.waiting.append(wait)
                self._ask(slot.name, known, now)
                return False
            if slot.per_second > 0 and known.next_at > now:
                self._timer(known.next_at, wait)
                return False
        for slot in wait.slots:
            known = self._name(slot.name)
            known.held[wait.session] = known.held.get(wait.session, 0) + 1
            known.total += 1
            if slot.per_second > 0:
                known.next_at = max(known.next_at, now) + 1000.0 / slot.per_second
        self._answer(wait, True)
        return True

    def _ask(self, name: str, known: _Name, now: int) -> None:
        if 0 <= now - known.asked_at < ASK_EVERY_MS:
            return
        known.asked_at = now
        self._news += [(session, 0, [name]) for session in known.held]

    def _next(self, name: str, known: _Name, now: int) -> None:
        """A slot has become free: for who waits longest."""
        for wait in self._live(known):
            if self._try(wait, now):
                self._end(wait)
            elif known.waiting and known.waiting[-1] is wait:  # for the same again, and so would the others
                known.waiting.rotate(1)
                break
        if not (known.total or known.waiting or known.next_at > now):
            self._names.pop(name, None)

    @staticmethod
    def _live(known: _Name) -> Iterator[_Wait]:
        while known.waiting:
            wait = known.waiting.popleft()
            if not wait.done:
                yield wait

    def _end(self, wait: _Wait) -> None:
        if not wait.done:
            wait.done = True
            self._waiting -= 1

    def _answer(self, wait: _Wait, granted: bool) -> None:
        self._news.append((wait.session, wait.number, granted))

    def _timer(self, at: float, wait: _Wait) -> None:
        self._sequence += 1
        heapq.heappush(self._timers, (at, self._sequence, wait))
