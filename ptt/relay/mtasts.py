"""MTA-STS (RFC 8461): a domain says over HTTPS which hosts take its mail and that they have good certificates.

The policy of a domain is fetched when DNS says that it has one, kept for the time that it names, and fetched anew when
DNS shows another id or a day has passed. A fetch that fails changes nothing: what is known stays in force.
"""

from __future__ import annotations

import re
import ssl
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import gevent
import gevent.event
from gevent.lock import BoundedSemaphore

from ptt.dns.cache import TtlCache
from ptt.dns.resolver import DnsError
from ptt.log import Log
from ptt.metrics import Counters
from ptt.net import https
from ptt.relay import mx

MAX_POLICY_BYTES = 64 * 1024  # RFC 8461 3.2 suggests this bound
MAX_AGE = 31_557_600  # RFC 8461 3.2: a year
MAX_PATTERNS = 100  # of one policy; more hosts than a domain may have are of no use
POLICIES = 10_000  # domains whose policy is kept, some 5 MB; above, the one that was not used for longest is forgotten
REFRESH_SECONDS = 86_400.0  # RFC 8461 10.2 suggests a day
RETRY_SECONDS = 300.0  # after a fetch that failed: RFC 8461 3.3 suggests five minutes
FETCH_SECONDS = 30.0  # in all; RFC 8461 3.3 suggests a minute, mail waits for it
MAX_FETCHES = 50  # at once; more wait for their turn
PATH = "/.well-known/mta-sts.txt"

_RECORD = re.compile(rb"v[ \t]*=[ \t]*STSv1[ \t]*(;.*)?", re.DOTALL)
_ID = re.compile(rb"[ \t]*id[ \t]*=[ \t]*([A-Za-z0-9]{1,32})[ \t]*")
_PATTERN = re.compile(r"(\*\.)?[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*")
_AGE = re.compile(r"[0-9]{1,10}")


class Sts(NamedTuple):
    """A policy. ``id``: of the record that announced it."""

    id: str
    mode: str  # "enforce", "testing" or "none"
    mx: tuple[str, ...]
    max_age: int  # seconds

    def names(self, host: str) -> bool:
        """Is this one of the hosts? ``*.`` stands for one label (RFC 8461 4.1)."""
        rest = "*." + host.partition(".")[2]
        return any(pattern in (host, rest) for pattern in self.mx)


def record_id(texts: Sequence[bytes]) -> str:
    """The id in the TXT records at ``_mta-sts.DOMAIN``; "": the domain announces no policy (RFC 8461 3.1)."""
    records = [text for text in texts if _RECORD.fullmatch(text)]
    if len(records) != 1:
        return ""
    ids = [found[1] for field in records[0].split(b";")[1:] if (found := _ID.fullmatch(field))]
    return ids[0].decode("ascii") if len(ids) == 1 else ""


def parse(content: bytes, id: str) -> Sts:
    """The policy in a file (RFC 8461 3.2). Raises ValueError with what is wrong."""
    try:
        lines = content.decode("utf-8").splitlines()
    except UnicodeDecodeError as e:
        raise ValueError("it is not UTF-8") from e
    fields: dict[str, str] = {}
    patterns: list[str] = []
    for line in filter(str.strip, lines):
        key, colon, value = line.partition(":")
        key, value = key.strip(), value.strip()
        if not colon or not key:
            raise ValueError(f"a line is not KEY: VALUE: {line[:60]!r}")
        if key == "mx":
            patterns.append(value.lower().removesuffix("."))
        else:
            fields.setdefault(key, value)  # of those that come twice the first counts
    if fields.get("version") != "STSv1":
        raise ValueError("its version is not STSv1")
    mode, age = fields.get("mode", ""), fields.get("max_age", "")
    if mode not in ("enforce", "testing", "none"):
        raise ValueError(f"mode {mode[:20]!r} is not enforce, testing or none")
    if not _AGE.fullmatch(age) or int(age) > MAX_AGE:
        raise ValueError(f"max_age {age[:20]!r} is not a number up to {MAX_AGE}")
    if mode != "none" and not patterns:
        raise ValueError("it names no mx")
    if len(patterns) > MAX_PATTERNS or not all(_PATTERN.fullmatch(pattern) for pattern in patterns):
        raise ValueError(f"mx: not host names, or more than {MAX_PATTERNS}")
    return Sts(id, mode, tuple(dict.fromkeys(patterns)), int(age))


class Lookup(Protocol):
    """What this needs of ``ptt.dns.resolver.Resolver``."""

    def txt(self, name: str) -> list[bytes]: ...

    def addresses(self, host: str) -> list[str]: ...


class _Kept(NamedTuple):
    sts: Sts
    fetched: float


class Policies:
    """The policies that one worker knows. ``context``, ``port``: of HTTPS. ``anywhere``: private addresses are asked.

    Called by greenlets; the first who asks for a domain waits for its fetch, and others with it.
    """

    def __init__(
        self,
        lookup: Lookup,
        log: Log,
        counters: Counters,
        context: Callable[[], ssl.SSLContext],
        port: int = 443,
        anywhere: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._lookup = lookup
        self._log = log
        self._context = context
        self._counters = counters
        self._port = port
        self._anywhere = anywhere
        self._clock = clock
        self._kept: TtlCache[str, _Kept] = TtlCache(POLICIES, clock)
        self._failed: TtlCache[tuple[str, str], bool] = TtlCache(POLICIES, clock)
        self._flights: dict[str, gevent.event.Event] = {}
        self._room = BoundedSemaphore(MAX_FETCHES)

    def policy(self, domain: str) -> Sts | None:
        """The policy in force for a domain (A-labels); None: none, or its mode is ``none``. May wait FETCH_SECONDS."""
        kept = self._kept.get(domain)
        try:
            id = record_id(self._lookup.txt(f"_mta-sts.{domain}"))
        except DnsError:
            id = ""
        if id and self._wanted(kept, domain, id):
            flight = self._start(domain, id)
            if kept is None or kept.sts.id != id:
                flight.wait(FETCH_SECONDS)
                kept = self._kept.get(domain)
        return kept.sts if kept is not None and kept.sts.mode != "none" else None

    def _wanted(self, kept: _Kept | None, domain: str, id: str) -> bool:
        if kept is not None and kept.sts.id == id and self._clock() - kept.fetched < REFRESH_SECONDS:
            return False
        return self._failed.get((domain, id)) is None

    def _start(self, domain: str, id: str) -> gevent.event.Event:
        flight = self._flights.get(domain)
        if flight is None:
            flight = self._flights[domain] = gevent.event.Event()
            gevent.spawn(self._fly, domain, id, flight)
        return flight

    def _fly(self, domain: str, id: str, flight: gevent.event.Event) -> None:
        result = "failed"
        try:
            sts = parse(self._fetch(domain), id)
            self._kept.put(domain, _Kept(sts, self._clock()), sts.max_age)
            result = sts.mode
        except (DnsError, https.HttpsError, ValueError) as e:
            self._log.warning("no MTA-STS policy", domain=domain, reason=str(e)[:200])
        except Exception:  # a fault of our own must not leave the callers waiting
            self._counters.count("ptt_errors_total", "mta-sts")
            raise
        finally:
            if result == "failed":
                self._failed.put((domain, id), True, RETRY_SECONDS)
            self._counters.count("ptt_mta_sts_fetches_total", result)
            del self._flights[domain]
            flight.set()

    def _fetch(self, domain: str) -> bytes:
        """Raises DnsError, HttpsError, ValueError."""
        host = f"mta-sts.{domain}"
        if not self._room.acquire(timeout=FETCH_SECONDS):
            raise ValueError(f"more than {MAX_FETCHES} policies are being fetched")
        try:
            return self._get(host)
        finally:
            self._room.release()

    def _get(self, host: str) -> bytes:
        ips = [ip for ip in self._lookup.addresses(host) if self._anywhere or mx.is_public(ip)]
        if not ips:
            raise ValueError(f"{host} has only private or special addresses")
        answer = https.get(host, ips, self._port, PATH, self._context(), FETCH_SECONDS, MAX_POLICY_BYTES)
        if answer.content_type != "text/plain":  # RFC 8461 3.3: who may put other files there must not make policy
            raise ValueError(f"it is {answer.content_type[:40]!r}, not text/plain")
        return answer.body
