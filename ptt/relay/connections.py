"""Connections kept open for the next message: which one to take, which ones to close. A pure plan, no I/O.

The pool only moves objects between its lists and its answers; the caller does the sending and closing. A connection
that is in use is not in the pool, so two greenlets never share one.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, NamedTuple, TypeVar

MAX_IDLE = 200
"""Of one worker: each is a socket here and a process or slot at the peer."""

MAX_IDLE_PER_SITE = 20
"""Of one worker: Postfix and Exim admit 50 and 20 connections of one client; several workers share that."""

C = TypeVar("C")


class Key(NamedTuple):
    """Connections with the same key are interchangeable: same hosts, demands on TLS, own address and login."""

    site: str
    tls: str
    source: str = ""
    login: str = ""


class _Idle(NamedTuple, Generic[C]):
    key: Key
    connection: C
    since: float


class IdleConnections(Generic[C]):
    """``idle_seconds``: how long a connection is kept. All methods take ``now`` in seconds of one monotonic clock."""

    def __init__(self, idle_seconds: float, most: int = MAX_IDLE, most_per_site: int = MAX_IDLE_PER_SITE) -> None:
        self.idle_seconds = idle_seconds
        self.most = most
        self.most_per_site = most_per_site
        self._sites: dict[Key, list[_Idle[C]]] = {}
        self._oldest: OrderedDict[int, _Idle[C]] = OrderedDict()  # id of the connection -> entry, oldest first

    def __len__(self) -> int:
        return len(self._oldest)

    def take(self, key: Key, now: float) -> C | None:
        """The connection that was used last (it is the least likely to be stale), or None. It leaves the pool."""
        entries = self._sites.get(key)
        if not entries or now - entries[-1].since > self.idle_seconds:
            return None  # those that are too old are closed by the next ``expired``
        entry = entries[-1]
        self._drop(entry)
        return entry.connection

    def give(self, key: Key, connection: C, now: float) -> list[C]:
        """Keep a connection. Returns those that must be closed instead, the oldest of the site or of all."""
        entry = _Idle(key, connection, now)
        entries = self._sites.setdefault(key, [])
        surplus: list[_Idle[C]] = []
        if len(entries) >= self.most_per_site:
            surplus.append(entries[0])
        elif len(self._oldest) >= self.most:
            surplus.append(next(iter(self._oldest.values())))
        for old in surplus:
            self._drop(old)
        self._sites.setdefault(key, []).append(entry)
        self._oldest[id(connection)] = entry
        return [old.connection for old in surplus]

    def expired(self, now: float) -> list[C]:
        """Take out what has been idle for too long, to be closed."""
        found = []
        while self._oldest:
            entry = next(iter(self._oldest.values()))
            if now - entry.since < self.idle_seconds:
                break
            self._drop(entry)
            found.append(entry.connection)
        return found

    def next_expiry(self) -> float | None:
        """When ``expired`` will next have something, or None while the pool is empty."""
        entry = next(iter(self._oldest.values()), None)
        return None if entry is None else entry.since + self.idle_seconds

    def drop(self, unwanted: Callable[[Key], bool]) -> list[C]:
        """Take out those with such a key, to be closed."""
        found = [entry for entry in self._oldest.values() if unwanted(entry.key)]
        for entry in found:
            self._drop(entry)
        return [entry.connection for entry in found]

    def clear(self) -> list[C]:
        """Take out all, to be closed."""
        found = [entry.connection for entry in self._oldest.values()]
        self._oldest.clear()
        self._sites.clear()
        return found

    def _drop(self, entry: _Idle[C]) -> None:
        del self._oldest[id(entry.connection)]
        entries = self._sites[entry.key]
        entries.remove(entry)
        if not entries:
            del self._sites[entry.key]
