"""Back-off against those who try passwords: what counts, when an answer waits, when nothing is checked. Pure.

Failures are counted per user and per network (/24, of IPv6 /64), and leak away. A network from which a user has logged
in lately is *known* for that user: there failures count for the pair alone, so that neither an attack on the user from
elsewhere nor a neighbour's forgotten device keeps the user out. Nothing here knows who exists: names that do not are
counted like those that do. Refused attempts do not count, so a lock ends by itself.
"""

from __future__ import annotations

import ipaddress
from collections import OrderedDict
from collections.abc import Callable
from typing import Final, NamedTuple

LEAK_SECONDS: Final = 60.0  # one failure is forgotten in so long; at a full count, so often one more may be tried
MAX_OF_LOGIN: Final = 20  # failures of a user from a known network; a device with an old password reaches it
MAX_OF_USER: Final = 30  # of a user from all other networks: at most 1,440 guesses a day, wherever they come from
MAX_OF_NETWORK: Final = 50  # of a network, for users to whom it is not known: many people may share one address
FREE: Final = 3  # failures whose answer does not wait: people mistype
FIRST_DELAY_SECONDS: Final = 0.5  # of the next one; doubled at each further one
LONGEST_DELAY_SECONDS: Final = 8.0  # clients wait for some minutes (RFC 5321 4.5.3.2), drains for half of one
KNOWN_SECONDS: Final = 30 * 86_400.0  # a network is known for so long after a good login
MAX_COUNTS: Final = 20_000  # users, networks, pairs, each: some 200 bytes an entry; the oldest go first
MAX_KNOWN: Final = 50_000
MAX_KEY: Final = 320  # characters of a name that are looked at: the longest address


class Failure(NamedTuple):
    """What follows from a failure."""

    delay: float  # seconds that the answer is to wait
    locked: str  # "login", "user" or "network" if this one filled its count, else ""


def network_of(client: str) -> str:
    """The network of an address, "192.0.2.0/24" or "2001:db8::/64"; "" for what is no address."""
    try:
        address = ipaddress.ip_address(client.partition("%")[0])
    except ValueError:
        return ""
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    bits = 24 if address.version == 4 else 64
    return str(ipaddress.ip_network((address, bits), strict=False))


class _Counts:
    """Leaking counts of at most MAX_COUNTS names."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._counts: OrderedDict[str, tuple[float, float]] = OrderedDict()  # name -> count, when; oldest first

    def now(self, name: str, now: float) -> float:
        count, when = self._counts.get(name, (0.0, now))
        return max(0.0, count - (now - when) / LEAK_SECONDS)

    def add(self, name: str, now: float) -> float:
        count = min(self.now(name, now) + 1, float(self.most))
        self._counts[name] = count, now
        self._counts.move_to_end(name)
        if len(self._counts) > MAX_COUNTS:
            self._counts.popitem(last=False)
        return count

    def full(self, name: str, now: float) -> bool:
        return self.now(name, now) > self.most - 1

    def forget(self, name: str) -> None:
        self._counts.pop(name, None)

    def __len__(self) -> int:
        return len(self._counts)


class Throttle:
    """See the module. ``clock``: monotonic seconds. ``user``: folded name; ``network``: of ``network_of``."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._logins = _Counts(MAX_OF_LOGIN)
        self._users = _Counts(MAX_OF_USER)
        self._networks = _Counts(MAX_OF_NETWORK)
        self._known: OrderedDict[str, float] = OrderedDict()  # pair -> its end; oldest first

    def known(self, user: str, network: str) -> bool:
        """Has the user logged in from there lately?"""
        return self._known.get(_pair(user, network), 0.0) > self._clock()

    def refuses(self, user: str, network: str) -> bool:
        """Is this attempt to be refused without a look at its password?"""
        return any(counts.full(name, self._clock()) for _, counts, name in self._counted(user, network))

    def failed(self, user: str, network: str) -> Failure:
        """Count a wrong password."""
        now = self._clock()
        highest, locked = 0.0, ""
        for kind, counts, name in self._counted(user, network):
            before = counts.full(name, now)
            highest = max(highest, counts.add(name, now))
            if not before and counts.full(name, now):
                locked = kind
        if highest <= FREE:
            return Failure(0.0, locked)
        return Failure(min(FIRST_DELAY_SECONDS * 2.0 ** (highest - FREE - 1), LONGEST_DELAY_SECONDS), locked)

    def succeeded(self, user: str, network: str) -> None:
        """The network is known for this user from now on. Its own count stays: an attacker may have an account too."""
        pair = _pair(user, network)
        self._logins.forget(pair)
        self._known[pair] = self._clock() + KNOWN_SECONDS
        self._known.move_to_end(pair)
        if len(self._known) > MAX_KNOWN:
            self._known.popitem(last=False)

    def _counted(self, user: str, network: str) -> list[tuple[str, _Counts, str]]:
        if self.known(user, network):
            return [("login", self._logins, _pair(user, network))]
        return [("user", self._users, user[:MAX_KEY]), ("network", self._networks, network)]


def _pair(user: str, network: str) -> str:
    return f"{network} {user[:MAX_KEY]}"
