"""Where a lane leads: another role of ours, the smarthost, or the MX hosts of the domain; and what TLS that demands."""

from __future__ import annotations

import random
import ssl
from collections.abc import Iterator
from typing import NamedTuple

from ptt.config import Config, split_address
from ptt.dns.resolver import DnsError, TemporaryFailure
from ptt.net import tls
from ptt.relay import hop, mx
from ptt.relay.outcome import Deferred, Failed
from ptt.relay.session import Target, TlsUse


class Route(NamedTuple):
    """The way of one lane. ``configured``: the operator named the host, DNS did not."""

    lane: str
    hosts: tuple[str, ...]  # in the order to try them
    site: str
    port: int
    use: TlsUse
    configured: bool
    tls_name: str = ""  # what the certificate must name, where that is not the host


class Router:
    """``lookup``: the resolver. ``rng``: for the order among equal MX hosts. Raises OSError as ``reload`` does."""

    def __init__(self, config: Config, lookup: mx.Lookup, rng: random.Random) -> None:
        self.config = config
        self.lookup = lookup
        self.rng = rng
        self.own_names = frozenset({config.hostname.lower(), config.ehlo.lower()})
        self.reload()

    def reload(self) -> None:
        """Read certificates and keys again. Raises OSError, and leaves what was in force."""
        relay, files = self.config.relay, self.config.tls
        internal: ssl.SSLContext | None = None
        if relay.next_hop or relay.bounce_hop:
            internal = tls.internal_client_context(files.internal_certificate, files.internal_key, files.internal_ca)
        public: ssl.SSLContext | None = None
        if relay.tls != "none":
            public = tls.verifying_context() if relay.tls == "verify" else tls.opportunistic_context()
        self.role_use = TlsUse(internal, required=True, roles=hop.NEXT_ROLES[self.config.role])
        self.public_use = TlsUse(public, required=relay.tls == "verify")

    def route(self, lane: str) -> Route | Deferred | Failed:
        """The route, or why there is none. May wait for DNS."""
        relay = self.config.relay
        if lane.startswith(hop.LANE) or relay.next_hop:
            where = lane.removeprefix(hop.LANE) if lane.startswith(hop.LANE) else relay.next_hop
            host, port = split_address(where)
            name = relay.next_hop_name if where == relay.next_hop else ""
            return Route(lane, (host,), hop.LANE + where, port, self.role_use, True, name)
        if relay.smarthost:
            host, port = split_address(relay.smarthost)
            return Route(lane, (host,), f"smarthost:{relay.smarthost}", port, self.public_use, True)
        found = mx.route(lane, self.lookup, self.own_names, self.rng)
        if isinstance(found, mx.Route):
            return Route(lane, found.hosts, found.site, relay.mx_port, self.public_use, False)
        return found

    def targets(self, route: Route) -> Iterator[Target | Deferred | Failed]:
        """The addresses to try, in order; in place of one that is not to be tried, the reason. Looks up as needed."""
        anywhere = route.configured or self.config.relay.allow_private
        for host in route.hosts:
            try:
                addresses = mx.host_addresses(host, self.lookup)
            except DnsError as e:
                yield _no_address(route, host, e)
                continue
            for ip in addresses:
                if anywhere or mx.is_public(ip):
                    yield Target(route.tls_name or host, ip, route.port)
                else:
                    yield Failed(f"{host} has the private or special address {ip}: refused", "DNS", host, "5.4.4")


def _no_address(route: Route, host: str, error: DnsError) -> Deferred | Failed:
    """A name that has no address is final for an MX; a hop or smarthost that the operator named may appear yet."""
    if isinstance(error, TemporaryFailure) or route.configured:
        return Deferred(str(error), "DNS", host, "4.4.3")
    return Failed(str(error), "DNS", host, "5.1.2" if host == route.lane else "5.4.4")


def no_target(lane: str, reasons: list[Deferred | Failed]) -> Deferred | Failed:
    """The outcome when no address could even be tried: temporary if one of the reasons is."""
    temporary = [r for r in reasons if isinstance(r, Deferred)]
    return (temporary or reasons or [Deferred(f"no host for {lane}", "DNS", "", "4.4.4")])[0]
