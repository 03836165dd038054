"""Whose turn it is to have a password checked: round robin over networks, so that a flood from one delays only itself.

Logins from networks that are known for their user wait in a line of their own, which is served every other time: an
attack from everywhere cannot fill it.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import Final

import gevent.event

MAX_WAITING: Final = 100  # in each line; with two checks of 30 ms at once the last one waits for 3 s, a call for 10
MAX_OF_NETWORK: Final = 8  # of one network; more are told to come again (454)


class Line:
    """Those who wait, by network: each network's first in turn. Pure."""

    def __init__(self) -> None:
        self._waiting: OrderedDict[str, deque[gevent.event.Event]] = OrderedDict()
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def join(self, network: str, ticket: gevent.event.Event) -> bool:
        """False: there is no room."""
        if self._length >= MAX_WAITING or len(self._waiting.get(network, ())) >= MAX_OF_NETWORK:
            return False
        self._waiting.setdefault(network, deque()).append(ticket)
        self._length += 1
        return True

    def next(self) -> gevent.event.Event:
        """Take the first of the network whose turn it is. The line is not empty."""
        network, waiting = self._waiting.popitem(last=False)
        ticket = waiting.popleft()
        if waiting:
            self._waiting[network] = waiting  # behind the other networks
        self._length -= 1
        return ticket

    def give_up(self, network: str, ticket: gevent.event.Event) -> bool:
        """Leave without a turn. False: the turn had come already."""
        waiting = self._waiting.get(network)
        if waiting is None or ticket not in waiting:
            return False
        waiting.remove(ticket)
        self._length -= 1
        if not waiting:
            del self._waiting[network]
        return True


class Turns:
    """``at_once`` places. ``enter`` waits for one; every True is followed by one ``leave``."""

    def __init__(self, at_once: int) -> None:
        self._free = at_once
        self._strangers = Line()
        self._known = Line()
        self._known_next = True

    def enter(self, network: str, known: bool) -> bool:
        """False at once: too many are waiting."""
        if self._free:
            self._free -= 1
            return True
        line = self._known if known else self._strangers
        ticket = gevent.event.Event()
        if not line.join(network, ticket):
            return False
        try:
            ticket.wait()
        except BaseException:  # the caller's connection is gone
            if not line.give_up(network, ticket):
                self.leave()
            raise
        return True

    def leave(self) -> None:
        """Give the place to whose turn it is."""
        first, second = (self._known, self._strangers) if self._known_next else (self._strangers, self._known)
        line = first or second
        self._known_next = line is self._strangers
        if line:
            line.next().set()
        else:
            self._free += 1
