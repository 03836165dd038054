"""The resolver of the relay: MX, addresses and TXT from the configured recursive servers, cached.

Called by greenlets, many at once. A question that is being asked is not asked again: later callers wait for the same
answer (single flight). Answers live in one bounded cache for their TTL, negative ones too (RFC 2308). Several servers
are tried in turn; one that does not answer goes to the end of the line for a while.

Answers are an outcome, not an accident: ``NoSuchDomain`` and ``NoData`` are what DNS says, ``TemporaryFailure`` means
that it said nothing and the caller tries later.
"""

from __future__ import annotations

import pathlib
import re
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar, cast

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.rrset
import gevent
import gevent.event
import gevent.pool
from dns.rdatatype import AAAA, CNAME, MX, NS, TLSA, TXT, A, RdataType

from ptt.dns.cache import TtlCache
from ptt.dns.exchange import BadAnswer, NoAnswer, Server, ask, question
from ptt.metrics import Counters

MAX_TTL = 86_400  # an answer is asked again after a day, whatever its TTL says
MAX_NEGATIVE_TTL = 3600  # RFC 2308 5: one to three hours work well
MAX_CACHED_BYTES = 4096  # larger answers are not cached: with 50,000 entries they would fill the memory
MAX_RECORDS = 100  # of one answer; nobody needs more hosts, and each would cost a look-up
MAX_ALIASES = 8  # CNAMEs that a server left for us to follow; BIND follows 16 in one answer
MAX_QUESTIONS = 1000  # in flight; a worker delivers a few hundred messages at once
ROUNDS = 2  # how often each server is asked before the failure is temporary
DOWN_SECONDS = 30.0  # a server that did not answer is asked last for so long
RESOLUTION_DELAY = 0.05  # seconds, RFC 8305 8
RESOLV_CONF = "/etc/resolv.conf"

Record = TypeVar("Record")


class DnsError(Exception):
    """No answer with records. The text names the domain and the reason, for logs and bounces."""


class NoSuchDomain(DnsError):
    """NXDOMAIN, or the name cannot be a domain's. Final."""


class NoData(DnsError):
    """The name exists but has no records of this type. Final."""


class TemporaryFailure(DnsError):
    """SERVFAIL, REFUSED, nonsense, time-out or no server reachable. Try later."""


class Answer(NamedTuple):
    """Records, and whether the configured server says that DNSSEC vouches for them and for the aliases before them."""

    records: list[Any]
    secure: bool


class _Outcome(NamedTuple):
    """An answer as it is cached: records, or the error to raise (anew for each caller)."""

    records: tuple[Any, ...]
    error: type[DnsError] | None = None
    text: str = ""
    secure: bool = False  # the server says that it has verified the answer (AD, RFC 4035 3.2.3)


class _Reply(NamedTuple):
    outcome: _Outcome
    ttl: float


class _Alias(NamedTuple):
    """An answer that ends with an alias which the server did not follow."""

    target: dns.name.Name
    ttl: float
    secure: bool


_Key = tuple[str, RdataType]
_NAME = re.compile(r"[!-~]{1,253}\Z")  # visible ASCII: an international domain comes as A-labels (RFC 5890)
_METRIC: dict[type[DnsError] | None, str] = {
    None: "found",
    NoSuchDomain: "nxdomain",
    NoData: "nodata",
    TemporaryFailure: "failed",
}


class Resolver:
    """``servers``: ``"HOST"`` or ``"HOST:PORT"``, none: those of /etc/resolv.conf. ``timeout``: seconds for a question
    in all. ``trust_ad``: believe servers that are not on this host that DNSSEC vouches for an answer. Raises ValueError
    for a server that is no address.
    """

    def __init__(
        self,
        servers: Sequence[str],
        timeout: float,
        cache_entries: int,
        counters: Counters,
        clock: Callable[[], float] = time.monotonic,
        trust_ad: bool = False,
    ) -> None:
        self._servers = [Server.at(s) for s in servers or system_servers()]
        self._trusted = frozenset(s for s in self._servers if trust_ad or s.is_here)
        self._timeout = timeout
        self._counters = counters
        self._clock = clock
        self._cache: TtlCache[_Key, _Outcome] = TtlCache(cache_entries, clock)
        self._flights: dict[_Key, gevent.event.AsyncResult] = {}
        self._pool = gevent.pool.Pool(MAX_QUESTIONS)
        self._down: dict[Server, float] = {}  # until when the server is asked last

    def mx(self, name: str) -> list[tuple[int, str]]:
        """(preference, host) in order of preference; the null MX (RFC 7505) is ``(0, ".")``. Raises DnsError's kinds.

        Hosts are lower case without final dot. No records: NoData; the implicit MX (RFC 5321 5.1) is the caller's.
        """
        return self._records(self._start(name, MX))

    def mx_soon(self, name: str, seconds: float) -> list[tuple[int, str]]:
        """As ``mx``, for who has little time: raises TemporaryFailure after ``seconds``, or at once when too many
        questions are open. A question that was asked goes on, and its answer is cached.
        """
        waiting = self._ahead(name)
        if isinstance(waiting, gevent.event.AsyncResult):
            waiting.wait(seconds)
            if not waiting.ready():
                raise TemporaryFailure(f"{name}: no answer within {seconds:g} s")
        if waiting is None:
            raise TemporaryFailure(f"{name}: too many questions are open")
        return self._records(waiting)

    def ask_mx(self, name: str) -> None:
        """Ask for what ``mx`` gives, without waiting for the answer. Nothing when too many questions are open."""
        self._ahead(name)

    def ask_txt(self, name: str) -> None:
        """As ``ask_mx``, for ``txt``."""
        self._ahead(name, TXT)

    def addresses(self, host: str) -> list[str]:
        """Addresses of ``host``, IPv4 before IPv6, both looked up at once. Raises DnsError's kinds.

        When one kind fails and the other is found, what was found is the answer.
        """
        return self._addresses(host, None)

    def addresses_early(self, host: str) -> list[str]:
        """As ``addresses``, but when those of one kind are known it waits 50 ms at most for the other (RFC 8305 3).

        The other question goes on: ``addresses`` will give its answer.
        """
        return self._addresses(host, RESOLUTION_DELAY)

    def _addresses(self, host: str, delay: float | None) -> list[str]:
        asked = [self._start(host, A), self._start(host, AAAA)]
        outcomes = _early(asked, delay) if delay is not None else [self._wait(w) for w in asked]
        found = [record for outcome in outcomes for record in outcome.records]
        if not found:
            for kind in (NoSuchDomain, TemporaryFailure, NoData):
                for outcome in outcomes:
                    if outcome.error is kind:
                        raise kind(outcome.text)
        return found

    def txt(self, name: str) -> list[bytes]:
        """Each TXT record with its strings joined. Raises DnsError's kinds."""
        return self._records(self._start(name, TXT))

    def answer(self, name: str, rdtype: RdataType) -> Answer:
        """The records of a type (MX, A, AAAA, TXT, NS, CNAME, TLSA) with the word of the server on DNSSEC.

        MX as ``mx`` has them, TLSA as (usage, selector, matching type, data). Raises DnsError's kinds: an answer that
        DNSSEC proves wrong is SERVFAIL, so TemporaryFailure.
        """
        outcome = self._wait(self._start(name, rdtype))
        if outcome.error is not None:
            raise outcome.error(outcome.text)
        return Answer(list(outcome.records), outcome.secure)

    def name_servers(self, zone: str) -> list[str]:
        """The NS records of a zone. Raises DnsError's kinds; NoData: ``zone`` is no zone's top."""
        return self._records(self._start(zone, NS))

    def alias(self, name: str) -> str:
        """The target of the CNAME record at ``name``, asked anew; "" when there is none. Raises TemporaryFailure."""
        self.forget(name, CNAME)
        try:
            return str(self._records(self._start(name, CNAME))[0])
        except (NoData, NoSuchDomain):
            return ""

    def forget(self, name: str, rdtype: RdataType = TXT) -> None:
        """Drop a cached answer, so that the next question is asked."""
        self._cache.put((_canonical(name), rdtype), _Outcome(()), 0)

    def _records(self, waiting: _Outcome | gevent.event.AsyncResult) -> list[Any]:
        outcome = self._wait(waiting)
        if outcome.error is not None:
            raise outcome.error(outcome.text)
        return list(outcome.records)

    def _wait(self, waiting: _Outcome | gevent.event.AsyncResult) -> _Outcome:
        return waiting if isinstance(waiting, _Outcome) else cast(_Outcome, waiting.get())

    def _ahead(self, name: str, rdtype: RdataType = MX) -> _Outcome | gevent.event.AsyncResult | None:
        """As ``_start``, but never waits for a place among the questions."""
        key = (_canonical(name), rdtype)
        return self._start(name, rdtype) if not self._pool.full() or key in self._flights else self._cache.get(key)

    def _start(self, name: str, rdtype: RdataType) -> _Outcome | gevent.event.AsyncResult:
        """The cached outcome, or the flight that will bring it: asks if nobody does."""
        key = (_canonical(name), rdtype)
        outcome = self._cache.get(key)
        if outcome is not None:
            self._counters.count("ptt_dns_queries_total", "cached")
            return outcome
        flight = self._flights.get(key)
        if flight is None:
            # The flight is a greenlet of its own: the death of a caller leaves no other caller waiting.
            flight = self._flights[key] = gevent.event.AsyncResult()
            self._pool.spawn(self._fly, key, flight)
        return flight

    def _fly(self, key: _Key, flight: gevent.event.AsyncResult) -> None:
        name = key[0]
        began = time.monotonic()
        reply = _Reply(_Outcome((), TemporaryFailure, f"{name}: look-up interrupted"), 0)
        try:
            reply = self._question(name, key[1])
        except Exception as e:  # a fault of our own must not leave the callers waiting
            self._counters.count("ptt_errors_total", "dns")
            reply = _Reply(_Outcome((), TemporaryFailure, f"{name}: look-up failed ({type(e).__name__})"), 0)
        finally:
            self._cache.put(key, reply.outcome, reply.ttl)
            del self._flights[key]
            self._counters.count("ptt_dns_queries_total", _METRIC[reply.outcome.error])
            self._counters.observe("ptt_dns_seconds", time.monotonic() - began)
            flight.set(reply.outcome)

    def _question(self, name: str, rdtype: RdataType) -> _Reply:
        """Ask, following the aliases that the servers did not follow themselves."""
        try:
            valid = _NAME.match(name) and "\\" not in name and name != "."
            qname = dns.name.from_text(name) if valid else None
        except (dns.exception.DNSException, ValueError):
            qname = None
        if qname is None:
            return _Reply(_Outcome((), NoSuchDomain, f"{name[:80]!r}: not a domain name"), 0)
        deadline = time.monotonic() + self._timeout
        ttl = float(MAX_TTL)
        secure = True
        for _ in range(MAX_ALIASES):
            reply = self._one(name, qname, rdtype, deadline)
            if isinstance(reply, _Reply):
                outcome = reply.outcome
                return _Reply(outcome._replace(secure=outcome.secure and secure), min(reply.ttl, ttl))
            secure &= reply.secure
            qname = reply.target
            ttl = min(ttl, reply.ttl)
        return _Reply(_Outcome((), TemporaryFailure, f"{name}: too many aliases"), 0)

    def _one(self, name: str, qname: dns.name.Name, rdtype: RdataType, deadline: float) -> _Reply | _Alias:
        """What the first server that answers says: the reply, or the alias to ask for next."""
        why = "no server"
        servers = sorted(self._servers, key=lambda s: self._down.get(s, 0.0) > self._clock()) * ROUNDS
        for n, server in enumerate(servers):
            left = deadline - time.monotonic()
            if left <= 0:
                break
            try:
                answer = ask(question(qname, rdtype), server, left / (len(servers) - n))
                self._down.pop(server, None)
                if server not in self._trusted:  # anybody on the way may have set it
                    answer.flags &= ~dns.flags.AD
                if answer.rcode() in (dns.rcode.NOERROR, dns.rcode.NXDOMAIN):
                    return read_answer(name, cast(dns.message.QueryMessage, answer), rdtype)
                why = f"{server.text} answers {dns.rcode.to_text(answer.rcode())}"
            except NoAnswer as e:
                self._down[server] = self._clock() + DOWN_SECONDS
                why = str(e)
            except (BadAnswer, dns.exception.DNSException) as e:
                why = str(e) or type(e).__name__
        return _Reply(_Outcome((), TemporaryFailure, f"{name}: DNS look-up failed: {why}"), 0)


def _early(asked: Sequence[_Outcome | gevent.event.AsyncResult], delay: float) -> list[_Outcome]:
    """What is known ``delay`` seconds after the first outcome with records; all outcomes, when none has any."""
    known = [w for w in asked if isinstance(w, _Outcome)]
    flights = [w for w in asked if isinstance(w, gevent.event.AsyncResult)]
    if not flights:
        return known
    if not any(outcome.records for outcome in known):
        for flight in gevent.iwait(flights):
            if flight.value.records:
                break
    gevent.wait(flights, timeout=delay)
    return known + [flight.value for flight in flights if flight.ready()]


def read_answer(name: str, answer: dns.message.QueryMessage, rdtype: RdataType) -> _Reply | _Alias:
    """Pure: what an answer (NOERROR or NXDOMAIN) says about ``name``: a reply and for how long it may be cached,
    or the alias that it ends with. Raises dnspython's exceptions for a chain that contradicts itself.
    """
    chain = answer.resolve_chaining()
    secure = bool(answer.flags & dns.flags.AD)
    if chain.answer is not None:
        records = _convert(chain.answer, rdtype)
        cacheable = len(repr(records)) <= MAX_CACHED_BYTES
        return _Reply(_Outcome(records, secure=secure), float(min(chain.minimum_ttl, MAX_TTL)) if cacheable else 0.0)
    soa = any(rrset.rdtype == dns.rdatatype.SOA for rrset in answer.authority)
    if chain.cnames and not soa and answer.rcode() == dns.rcode.NOERROR:
        return _Alias(chain.canonical_name, float(chain.minimum_ttl), secure)
    ttl = float(min(chain.minimum_ttl, MAX_NEGATIVE_TTL)) if soa else 0.0  # RFC 2308 5: without SOA not cached
    if answer.rcode() == dns.rcode.NXDOMAIN:
        return _Reply(_Outcome((), NoSuchDomain, f"{name}: no such domain"), ttl)
    return _Reply(_Outcome((), NoData, f"{name}: no {dns.rdatatype.to_text(rdtype)} record"), ttl)


def _convert(rrset: dns.rrset.RRset, rdtype: RdataType) -> tuple[Any, ...]:
    records = cast(Sequence[Any], rrset)
    if rdtype == MX:
        hosts = [(int(r.preference), _canonical(r.exchange.to_text())) for r in records]
        return tuple(sorted(hosts, key=lambda pair: pair[0])[:MAX_RECORDS])
    if rdtype in (NS, CNAME):
        return tuple(_canonical(r.target.to_text()) for r in records)[:MAX_RECORDS]
    if rdtype == TLSA:
        return tuple((int(r.usage), int(r.selector), int(r.mtype), bytes(r.cert)) for r in records)[:MAX_RECORDS]
    if rdtype == TXT:
        return tuple(b"".join(r.strings) for r in records)[:MAX_RECORDS]
    return tuple(str(r.address) for r in records)[:MAX_RECORDS]


def _canonical(name: str) -> str:
    return name.lower().removesuffix(".") or "."


def system_servers(file: str = RESOLV_CONF) -> list[str]:
    """The name servers that the operating system uses (resolv.conf(5)); if it names none, this host's."""
    try:
        text = pathlib.Path(file).read_text(encoding="ascii", errors="replace")
    except OSError:
        text = ""
    lines = [line.split() for line in text.splitlines()]
    return [x[1] for x in lines if len(x) > 1 and x[0] == "nameserver"] or ["127.0.0.1"]
