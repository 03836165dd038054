"""Connecting to a host that has several addresses: happy eyeballs (RFC 8305), and which addresses were dead.

``race`` asks the next address 250 ms after the one before it, or as soon as that one has failed; the first that is
connected wins, the others are closed. One that is dead costs a delivery a quarter of a second, not its time-out.
"""

from __future__ import annotations

import errno
import itertools
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import gevent
import gevent.queue

from ptt.net.stream import ConnectFailed, GeventStream, connect

STAGGER_SECONDS = 0.25
"""RFC 8305 8: Connection Attempt Delay."""

DEAD_SECONDS = 300.0
"""For so long an address that did not answer is tried last: about the first retry."""

MAX_DEAD = 10_000
"""Addresses that are remembered, 2 MB. Above, the oldest is forgotten, and costs a time-out again."""

_NO_ROUTE = frozenset({errno.ENETUNREACH, errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT})

Dial = Callable[[str, int, float, str | None], GeventStream]


class Raced(NamedTuple):
    """``stream`` to ``ip``, or None. ``failures``: the addresses that failed before, in the order in which they did."""

    ip: str
    stream: GeventStream | None
    failures: list[tuple[str, ConnectFailed]]


def interleaved(addresses: Iterable[str]) -> list[str]:
    """The addresses with the families in turn, IPv6 first (RFC 8305 4)."""
    known = list(dict.fromkeys(addresses))
    six = [ip for ip in known if ":" in ip]
    four = [ip for ip in known if ":" not in ip]
    if not six or not four:
        return known
    pairs = itertools.zip_longest(six, four)
    return [ip for pair in pairs for ip in pair if ip is not None]


def race(
    ips: Sequence[str],
    port: int,
    timeout: float,
    source: Callable[[str], str | None] = lambda _: None,
    dial: Dial | None = None,
) -> Raced:
    """Connect to the first of ``ips`` that answers; each has ``timeout`` seconds. ``source``: the own address to
    connect from, by the address to connect to.
    """
    dial = dial or connect
    if len(ips) == 1:  # what most have: without a greenlet
        try:
            return Raced(ips[0], dial(ips[0], port, timeout, source(ips[0])), [])
        except ConnectFailed as e:
            return Raced(ips[0], None, [(ips[0], e)])
    return _Race(port, timeout, source, dial).run(ips)


class _Race:
    def __init__(self, port: int, timeout: float, source: Callable[[str], str | None], dial: Dial) -> None:
        self.port = port
        self.timeout = timeout
        self.source = source
        self.dial = dial
        self.over = False
        self.results: gevent.queue.SimpleQueue = gevent.queue.SimpleQueue()

    def run(self, ips: Sequence[str]) -> Raced:
        waiting = list(reversed(ips))
        running: list[gevent.Greenlet] = []
        failures: list[tuple[str, ConnectFailed]] = []
        try:
            while len(failures) < len(ips):
                if waiting:
                    running.append(gevent.spawn(self._dial, waiting.pop()))
                ip, result = self._next(STAGGER_SECONDS if waiting else None)
                if isinstance(result, ConnectFailed):
                    failures.append((ip, result))
                elif result is not None:
                    return Raced(ip, result, failures)
        finally:
            self._end(running)
        return Raced(ips[-1], None, failures)

    def _dial(self, ip: str) -> None:
        result: GeventStream | Exception
        try:
            result = self.dial(ip, self.port, self.timeout, self.source(ip))
        except ConnectFailed as e:
            result = e
        except Exception as e:  # a fault of our own is the caller's to raise
            result = e
        if self.over:
            _close(result)
        else:
            self.results.put((ip, result))

    def _next(self, seconds: float | None) -> tuple[str, GeventStream | ConnectFailed | None]:
        """The next result; None: nothing came in time."""
        try:
            ip, result = self.results.get(timeout=seconds)
        except gevent.queue.Empty:
            return "", None
        if isinstance(result, Exception) and not isinstance(result, ConnectFailed):
            raise result
        return ip, result

    def _end(self, running: list[gevent.Greenlet]) -> None:
        """Close the losers, also the one whose connection comes at this very moment."""
        self.over = True
        gevent.killall(running, block=False)
        while not self.results.empty():
            _close(self.results.get()[1])


def _close(result: object) -> None:
    if isinstance(result, GeventStream):
        result.close()


class DeadAddresses:
    """Addresses that did not answer of late, and families that this host has no route for.

    All methods take ``now``, seconds of one monotonic clock.
    """

    def __init__(self, seconds: float = DEAD_SECONDS, most: int = MAX_DEAD) -> None:
        self.seconds = seconds
        self.most = most
        self._until: OrderedDict[str, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._until)

    def failed(self, ip: str, error: ConnectFailed, now: float) -> None:
        """Remember a time-out, or that there is no route for this family. A refusal costs nothing and is forgotten."""
        cause = error.__cause__
        if isinstance(cause, TimeoutError):
            self._put(ip, now)
        elif isinstance(cause, OSError) and cause.errno in _NO_ROUTE:
            self._put(_family(ip), now)

    def answered(self, ip: str) -> None:
        self._until.pop(ip, None)

    def is_dead(self, ip: str, now: float) -> bool:
        if not self._until:
            return False
        return self._until.get(ip, now) > now or self._until.get(_family(ip), now) > now

    def _put(self, key: str, now: float) -> None:
        self._until.pop(key, None)
        self._until[key] = now + self.seconds
        if len(self._until) > self.most:
            self._until.popitem(last=False)


def _family(ip: str) -> str:
    return "IPv6" if ":" in ip else "IPv4"
