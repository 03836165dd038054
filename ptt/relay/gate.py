"""The limits of sites as the relay meets them: a connection is opened only with a slot of the queue process.

One request to the queue process for each new connection, none for a kept one. A slot is ours until the connection is
closed, kept connections included; when another worker wants one, those that we keep idle are given up.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Protocol

from ptt.relay import sites
from ptt.relay.sites import Sites

WAIT_SECONDS = 5.0
"""For a slot: long enough for one that is kept idle elsewhere, short for the place that the message holds here."""

WANTED_SECONDS = 2.0
"""For so long after a site's connections were wanted elsewhere, none is kept idle here: who waits asks again."""

KNOWN_SITES = 50_000  # lanes whose site was told to the queue process: a name each, some 10 MB
MAX_WANTED = 1000  # names; beyond that those that were wanted first are forgotten


class NoSlot(Exception):
    """The limits of the site allow no further connection now: nothing was tried."""


class Slots(Protocol):
    """What is needed of ``ptt.spool.Spool``."""

    def assign(self, lane: str, group: str, limit: sites.Group) -> None: ...

    def open_slots(self, slots: Sequence[sites.Slots], wait: float) -> bool: ...

    def close_slots(self, names: Sequence[str]) -> None: ...


class Slot:
    """The permission for one connection. ``release`` ends it; once is enough."""

    __slots__ = ("_names", "_spool")

    def __init__(self, spool: Slots | None, names: Sequence[str]) -> None:
        self._spool = spool
        self._names = names

    def release(self) -> None:
        if self._names and self._spool is not None:
            self._spool.close_slots(self._names)
        self._names = ()


class Gate:
    """``spool`` None: there is nobody to ask, and no limit over the pool (a relay that is used alone)."""

    def __init__(self, sites: Sites, spool: Slots | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.sites = sites
        self.spool = spool
        self.clock = clock
        self._told: OrderedDict[str, str] = OrderedDict()  # lane -> its site, as the queue process knows
        self._wanted: OrderedDict[str, float] = OrderedDict()  # names of slots -> until when

    def enter(self, lane: str, site: str) -> None:
        """The lane leads to this site: told to the queue process when that is new, before anything is connected."""
        if self.spool is None or self._told.get(lane) == site:
            return
        self._told[lane] = site
        if len(self._told) > KNOWN_SITES:
            self._told.popitem(last=False)
        self.spool.assign(lane, site, self.sites.group(site))

    def take(self, site: str, source: str) -> Slot:
        """A slot for a new connection. Waits for one; raises NoSlot."""
        if self.spool is None:
            return Slot(None, ())
        slots = self.sites.slots(site, source)
        if not self.spool.open_slots(slots, WAIT_SECONDS):
            raise NoSlot(f"no further connection to {site} within its limits")
        return Slot(self.spool, [slot.name for slot in slots])

    def want(self, names: Sequence[str]) -> None:
        """Others want slots of these names."""
        for name in names:
            self._wanted[name] = self.clock() + WANTED_SECONDS
            self._wanted.move_to_end(name)
            if len(self._wanted) > MAX_WANTED:
                self._wanted.popitem(last=False)

    def is_wanted(self, site: str, source: str) -> bool:
        """Are connections like this one wanted elsewhere, so that none is to be kept idle?"""
        if not self._wanted:
            return False
        until = max(self._wanted.get(site, 0.0), self._wanted.get(f"{source}@{site}", 0.0))
        if until and until <= self.clock():
            for name in (site, f"{source}@{site}"):
                self._wanted.pop(name, None)
        return until > self.clock()
