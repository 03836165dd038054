"""The TLS of outgoing connections: the look-ups and the memory that ``ptt.relay.tlspolicy`` decides on; the contexts.

One for each worker. What is kept, which hosts had TLS lately, is bounded and is forgotten with the process.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from typing import Protocol

import dns.rdatatype

from ptt.config import Config
from ptt.dns.cache import TtlCache
from ptt.dns.resolver import DnsError, NoData, TemporaryFailure
from ptt.log import Log
from ptt.metrics import Counters
from ptt.net import tls
from ptt.relay import dane, hop, mtasts, mx
from ptt.relay.outcome import Deferred
from ptt.relay.session import Target, TlsUse
from ptt.relay.tlspolicy import Demand, Policy, demands

HAD_TLS_SECONDS = 86_400.0
"""So long after TLS with a host no mail goes there in clear under ``opportunistic``: longer than an attack on it lasts
unnoticed, shorter than mail waits (five days), so that a host that gives TLS up for good loses none."""

HAD_TLS_HOSTS = 50_000  # that are remembered, 10 MB; above, the one that was used least recently is forgotten


class Lookup(mx.Lookup, mtasts.Lookup, dane.Lookup, Protocol):
    """What the relay needs of ``ptt.dns.resolver.Resolver``."""


class Encryption:
    """``clock``: monotonic seconds. Raises OSError as ``reload`` does."""

    def __init__(
        self, config: Config, lookup: Lookup, log: Log, counters: Counters, clock: Callable[[], float]
    ) -> None:
        self._config = config
        self._lookup = lookup
        self._log = log
        self._counters = counters
        self._clock = clock
        self._had_tls: TtlCache[str, bool] = TtlCache(HAD_TLS_HOSTS, clock)
        self._any = tls.opportunistic_context()
        self._authorities: ssl.SSLContext | None = None  # made when it is needed: it reads a hundred certificates
        self._internal: ssl.SSLContext | None = None
        self._sts: mtasts.Policies | None = None
        self.reload()

    def reload(self) -> None:
        """Read certificates and keys again. Raises OSError, and leaves what was in force."""
        relay, files = self._config.relay, self._config.tls
        if relay.next_hop or relay.bounce_hop:
            self._internal = tls.internal_client_context(
                files.internal_certificate, files.internal_key, files.internal_ca
            )
        self._authorities = None

    def completed(self, policy: Policy, domain: str, configured: bool) -> Policy:
        """A policy that has the operator's word, with what the destination demands. May wait for DNS and HTTPS.

        ``configured``: the operator named the host: as good as one that DNSSEC vouches for (RFC 7672 2.2.2).
        """
        if policy.internal or policy.level == "none" or domain.startswith("["):
            return policy
        if configured:
            return policy._replace(dane=True)
        try:
            name = mx.a_label(domain)
        except UnicodeError:
            return policy
        sts = self._policies().policy(name) if self._config.relay.mta_sts else None
        return policy._replace(domain=name, dane=self._vouched(name), sts=sts)

    def uses(self, policy: Policy, target: Target) -> tuple[TlsUse, ...] | Deferred:
        """What to try with this host, in order, a new connection each; or why it must not be used now."""
        tlsa = None
        if policy.dane:
            try:
                tlsa = dane.find(target.host, target.port, self._lookup)
            except TemporaryFailure as e:
                return Deferred(f"its TLSA records are not known: {e}", "TLSA", target.peer, "4.4.3")
        found = demands(policy, target.host, tlsa, self._had_tls.get(target.host) is not None)
        if isinstance(found, str):
            return Deferred(found, "TLS", target.peer, "4.7.5")
        return tuple(self._use(demand, policy, target.host) for demand in found)

    def opened(self, mode: str, target: Target, with_tls: bool) -> None:
        """Count and remember how a connection was opened."""
        self._counters.count("ptt_tls_total", mode)
        if with_tls:
            self._had_tls.put(target.host, True, HAD_TLS_SECONDS)

    def failed(self, of_tls: bool) -> None:
        """Count a host with which no session could be had, if that is for its TLS."""
        if of_tls:
            self._counters.count("ptt_tls_total", "failed")

    def _vouched(self, domain: str) -> bool:
        """Did the MX hosts come with DNSSEC? Without MX the domain is its own host, and its addresses decide."""
        try:
            return self._lookup.answer(domain, dns.rdatatype.MX).secure
        except NoData:
            return True
        except DnsError:
            return False

    def _use(self, demand: Demand, policy: Policy, host: str) -> TlsUse:
        if demand.trust == "off":
            return TlsUse(None, required=False, mode=demand.mode)
        if demand.trust == "roles":
            return TlsUse(self._internal, True, hop.NEXT_ROLES[self._config.role], demand.mode)
        if demand.trust == "authorities":
            return TlsUse(self._verifying(), True, mode=demand.mode)
        tlsa = demand.tlsa
        names = () if tlsa is None else tuple(filter(None, (tlsa.base, host, policy.domain)))
        return TlsUse(self._any, demand.required, mode=demand.mode, tlsa=tlsa, names=names)

    def _verifying(self) -> ssl.SSLContext:
        if self._authorities is None:
            self._authorities = tls.verifying_context()
        return self._authorities

    def _policies(self) -> mtasts.Policies:
        if self._sts is None:
            relay = self._config.relay
            self._sts = mtasts.Policies(
                self._lookup,
                self._log,
                self._counters,
                self._verifying,
                relay.mta_sts_port,
                relay.allow_private,
                self._clock,
            )
        return self._sts
