"""Who may connect: limits of connections per address, network and user, over all workers. Pure; the clock comes in."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from typing import Final

from ptt.config import Connections
from ptt.smtp.reply import Reply
from ptt.submission.census import Census, Place

_WORDS: Final = {
    "address": "too many connections from your address",
    "network": "too many connections from your network",
    "user": "too many connections of this user",
    "address rate": "too many new connections from your address",
    "network rate": "too many new connections from your network",
}


def refusal(reason: str) -> Reply:
    """What a client is told; ``reason``: of ``Admission``."""
    return Reply(421, "4.7.0", f"{_WORDS[reason]}, try again later")


class Seat:
    """What one open connection counts as. ``release`` it once, whatever happens."""

    __slots__ = ("_admission", "_places", "_user", "over")

    def __init__(self, admission: Admission, places: tuple[Place, ...], over: str = "") -> None:
        self._admission = admission
        self._places = places
        self._user: Place | None = None
        self.over = over  # why it may stay only if it turns out to be one of our roles; "": it may stay
        for place in places:
            admission.census.add(place, 1)

    def login(self, user: str, allowed: int | None = None) -> str:
        """The connection is this user's now. Returns the reason why it is one too many, or "".

        ``allowed``: how many this user may have, beside what holds for all; None: no limit of the user's own.
        """
        self._leave_user()
        most = self._admission.limits.per_user
        place = self._admission.census.place(b"u" + user.encode())
        others = self._admission.census.open(place)
        if (most and others >= most) or (allowed is not None and others >= allowed):
            return "user"
        self._admission.census.add(place, 1)
        self._user = place
        return ""

    def release(self) -> None:
        """The connection is over."""
        for place in self._places:
            self._admission.census.add(place, -1)
        self._places = ()
        self._leave_user()

    def _leave_user(self) -> None:
        if self._user is not None:
            self._admission.census.add(self._user, -1)
            self._user = None


class Admission:
    """Decides for all listeners of a worker."""

    def __init__(self, limits: Connections, census: Census, clock: Callable[[], float]) -> None:
        self.limits = limits
        self.census = census
        self.clock = clock
        self.exempt = tuple(ipaddress.ip_network(network) for network in limits.exempt)

    def enter(self, address: str, *, roles: bool) -> Seat | str:
        """A seat for a connection from ``address``, or the reason why there is none.

        ``roles``: it may be one of our roles, whose certificate comes later; then it has a seat for the time being.
        """
        places = tuple(map(self.census.place, keys(address)))
        now = self.clock()
        over = self._over(places, now)
        if over and not roles:
            return over
        if not over:
            for place in places:
                self.census.arrive(place, now)
        return Seat(self, places, over)

    def free(self) -> Seat:
        """A seat for a connection that is not limited, but for its user."""
        return Seat(self, ())

    def _over(self, places: tuple[Place, ...], now: float) -> str:
        limits, census = self.limits, self.census
        address, network = places
        if limits.per_address and census.open(address) >= limits.per_address:
            return "address"
        if limits.per_network and census.open(network) >= limits.per_network:
            return "network"
        if limits.address_per_minute and census.arrivals(address, now) >= limits.address_per_minute:
            return "address rate"
        if limits.network_per_minute and census.arrivals(network, now) >= limits.network_per_minute:
            return "network rate"
        return ""


def keys(address: str) -> tuple[bytes, bytes]:
    """What an address counts under: itself, and its /24 or /64. Raises ValueError."""
    found = ipaddress.ip_address(address)
    if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped:
        found = found.ipv4_mapped
    return b"a" + found.packed, b"n" + found.packed[: 3 if found.version == 4 else 8]
