"""Where a lane leads: another role of ours, the smarthost, or the MX hosts of the domain; and what TLS that demands."""

from __future__ import annotations

import random
import ssl
from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

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


class Override(Protocol):
    """The operator's route for a destination, from the git database."""

    @property
    def via(self) -> str: ...  # "smarthost" or "mx"
    @property
    def host(self) -> str: ...  # HOST:PORT of the smarthost
    @property
    def tls(self) -> str: ...  # as [relay] tls, for this smarthost


Overrides = Callable[[str], Override | None]


class Router:
    """``lookup``: the resolver. ``rng``: for the order among equal MX hosts. ``overrides``: the route of a destination.

    Raises OSError as ``reload`` does.
    """

    def __init__(
        self, config: Config, lookup: mx.Lookup, rng: random.Random, overrides: Overrides = lambda _: None
    ) -> None:
        self.config = config
        self.overrides = overrides
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
        public = _use(relay.tls)
        self.role_use = TlsUse(internal, required=True, roles=hop.NEXT_ROLES[self.config.role])
        self.public_use = public
        self._uses: dict[str, TlsUse] = {relay.tls: public}

    def route(self, lane: str) -> Route | Deferred | Failed:
        """The route, or why there is none. May wait for DNS."""
        relay = self.config.relay
        if lane.startswith(hop.LANE) or relay.next_hop:
            where = lane.removeprefix(hop.LANE) if lane.startswith(hop.LANE) else relay.next_hop
            host, port = split_address(where)
            name = relay.next_hop_name if where == relay.next_hop else ""
            return Route(lane, (host,), hop.LANE + where, port, self.role_use, True, name)
        override = self.overrides(lane)
        if override is not None and override.via == "smarthost":
            return self._smarthost(lane, override.host, override.tls)
        if relay.smarthost and override is None:
            return self._smarthost(lane, relay.smarthost, relay.tls)
        found = mx.route(lane, self.lookup, self.own_names, self.rng)
        if isinstance(found, mx.Route):
            return Route(lane, found.hosts, found.site, relay.mx_port, self.public_use, False)
        return found

    def _smarthost(self, lane: str, where: str, policy: str) -> Route:
        host, port = split_address(where)
        if policy not in self._uses:
            self._uses[policy] = _use(policy)  # at the first route that asks for it: most services need none
        # Connections are kept by site, and those of one TLS policy are not for another.
        site = f"smarthost:{where}" + (f" ({policy})" if policy != self.config.relay.tls else "")
        return Route(lane, (host,), site, port, self._uses[policy], True)

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


def _use(policy: str) -> TlsUse:
    """The TLS towards hosts that are not ours: "opportunistic", "verify" or "none"."""
    if policy == "none":
        return TlsUse(None, required=False)
    if policy == "verify":
        return TlsUse(tls.verifying_context(), required=True)
    return TlsUse(tls.opportunistic_context(), required=False)


def _no_address(route: Route, host: str, error: DnsError) -> Deferred | Failed:
    """A name that has no address is final for an MX; a hop or smarthost that the operator named may appear yet."""
    if isinstance(error, TemporaryFailure) or route.configured:
        return Deferred(str(error), "DNS", host, "4.4.3")
    return Failed(str(error), "DNS", host, "5.1.2" if host == route.lane else "5.4.4")


def no_target(lane: str, reasons: list[Deferred | Failed]) -> Deferred | Failed:
    """The outcome when no address could even be tried: temporary if one of the reasons is."""
    temporary = [r for r in reasons if isinstance(r, Deferred)]
    return (temporary or reasons or [Deferred(f"no host for {lane}", "DNS", "", "4.4.4")])[0]
