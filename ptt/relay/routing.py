"""Where a lane leads: another role of ours, a route of the git database, the smarthost, or the MX hosts of the domain;
and what TLS, which login and which own address that demands.
"""

from __future__ import annotations

import functools
import ipaddress
import random
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from typing import NamedTuple, Protocol

from gevent import socket

from ptt.config import Config, split_address
from ptt.dns.resolver import DnsError, TemporaryFailure
from ptt.relay import eyeballs, hop, mx
from ptt.relay.outcome import Deferred, Failed
from ptt.relay.session import Target
from ptt.relay.tlspolicy import INTERNAL, Policy

MAX_RACED = 4
"""Further addresses of a host that are tried while its first one has not answered: an attempt makes 5 connections."""


class Source(NamedTuple):
    """The own addresses of a name of ``[[relay.sources]]``, "" for a family that it has none of, and what EHLO says."""

    name: str
    ehlo: str
    four: str
    six: str

    def towards(self, ip: str) -> str:
        """The address to connect from to ``ip``; "": this source cannot."""
        return self.six if ":" in ip else self.four


class Route(NamedTuple):
    """The way of one lane. ``configured``: the operator named the host, DNS did not."""

    lane: str
    hosts: tuple[str, ...]  # in the order to try them; for LMTP also one "unix:/PATH"
    site: str
    port: int
    policy: Policy  # of TLS: what the operator says, to be completed by what the destination says
    configured: bool
    tls_name: str = ""  # what the certificate must name, where that is not the host
    preferences: tuple[int, ...] = ()  # of the MX hosts; none: they are all the same
    via: str = "smtp"  # or "lmtp", "discard"
    credentials: str = ""  # name of the file with the login, for a smarthost that wants one
    source: Source | None = None  # None: the operating system chooses
    fallback: str = ""  # HOST:PORT for what could not be handed to any host


class Override(Protocol):
    """The operator's route for a destination, from the git database."""

    @property
    def via(self) -> str: ...  # "smarthost", "mx", "lmtp" or "discard"
    @property
    def host(self) -> str: ...  # HOST:PORT of the smarthost or LMTP server, or unix:/PATH
    @property
    def tls(self) -> str: ...  # as [relay] tls, for this destination; "": that
    @property
    def credentials(self) -> str: ...
    @property
    def fallback(self) -> str: ...
    @property
    def source(self) -> str: ...


Overrides = Callable[[str], Override | None]


class Router:
    """``lookup``: the resolver. ``rng``: for the order among equal MX hosts. ``overrides``: the route of a destination.
    ``dead``: is this address one that does not answer?
    """

    def __init__(
        self,
        config: Config,
        lookup: mx.Lookup,
        rng: random.Random,
        overrides: Overrides = lambda _: None,
        dead: Callable[[str], bool] = lambda _: False,
    ) -> None:
        self.config = config
        self.overrides = overrides
        self.dead = dead
        self.lookup = lookup
        self.rng = rng
        self.own_names = frozenset({config.hostname.lower(), config.ehlo.lower()})
        self.own_sockets = OwnSockets(config)
        self.sources = sources_of(config)

    def route(self, lane: str) -> Route | Deferred | Failed:
        """The route, or why there is none. May wait for DNS."""
        relay = self.config.relay
        if lane.startswith(hop.LANE) or relay.next_hop:
            where = lane.removeprefix(hop.LANE) if lane.startswith(hop.LANE) else relay.next_hop
            host, port = split_address(where)
            name = relay.next_hop_name if where == relay.next_hop else ""
            return Route(lane, (host,), hop.LANE + where, port, Policy(INTERNAL), True, name)
        override = self.overrides(lane)
        if override is None:
            return self._smarthost(lane, relay.smarthost, relay.tls) if relay.smarthost else self._mx(lane, relay.tls)
        if override.source and override.source not in self.sources:
            text = f"the route of {lane} names the source {override.source}, which this host has not"
            return Deferred(text, "route", "", "4.3.5")
        found = self._overridden(lane, override)
        source = self.sources.get(override.source)
        if isinstance(found, Deferred) and override.fallback:  # DNS does not answer
            return self._smarthost(lane, override.fallback, relay.tls)._replace(source=source)
        if not isinstance(found, Route):
            return found
        return found._replace(credentials=override.credentials, fallback=override.fallback, source=source)

    def _overridden(self, lane: str, override: Override) -> Route | Deferred | Failed:
        level = override.tls or self.config.relay.tls
        if override.via == "mx":
            return self._mx(lane, level)
        if override.via == "discard":
            return Route(lane, (), "discard", 0, Policy("none"), True, via="discard")
        if override.via == "lmtp":
            unix = override.host.startswith(UNIX)
            host, port = (override.host, 0) if unix else split_address(override.host)
            return Route(lane, (host,), f"lmtp:{override.host}", port, Policy("none"), True, via="lmtp")
        if override.credentials and level != "verify":
            level = "encrypt"  # a password is not sent in clear, whatever the policy says of mail
        return self._smarthost(lane, override.host, level)

    def _mx(self, lane: str, level: str) -> Route | Deferred | Failed:
        if self.config.relay.mta_sts and level != "none" and lane.isascii() and not lane.startswith("["):
            self.lookup.ask_txt(f"_mta-sts.{lane}")  # at the same time as the MX records: no wait of its own
        found = mx.route(lane, self.lookup, self.own_names, self.rng)
        if not isinstance(found, mx.Route):
            return found
        port = self.config.relay.mx_port
        return Route(lane, found.hosts, found.site, port, Policy(level), False, preferences=found.preferences)

    def fallback(self, route: Route) -> Route:
        """The route to the fall-back relay of a route."""
        return self._smarthost(route.lane, route.fallback, self.config.relay.tls)._replace(source=route.source)

    def _smarthost(self, lane: str, where: str, level: str) -> Route:
        host, port = split_address(where)
        site = f"smarthost:{where}" + (f" ({level})" if level != self.config.relay.tls else "")
        return Route(lane, (host,), site, port, Policy(level), True)

    def targets(self, route: Route) -> Iterator[Target | Deferred | Failed]:
        """The addresses to try, in order; in place of one that is not to be tried, the reason. Looks up as needed.

        Those that did not answer of late come last. Where an address of a host is our own, it and all hosts of equal
        or worse preference are cut (RFC 5321 5.1).
        """
        late: list[Target] = []
        for hosts in self._ranks(route):
            if not route.configured and self._leads_here(hosts, route.port):
                yield Failed(f"mail for {route.lane} loops back to this host", "DNS", hosts[0], "5.4.6")
                break
            for host in hosts:
                yield from self._of_host(route, host, late)
        yield from late

    def _ranks(self, route: Route) -> Iterable[list[str]]:
        """The hosts that are looked at together: one by one, but where we might be one of them, by preference."""
        if len(route.preferences) != len(route.hosts) or not self.own_sockets.on(route.port):
            return [[host] for host in route.hosts]
        pairs = zip(route.preferences, route.hosts, strict=True)
        return [[host for _, host in group] for _, group in groupby(pairs, key=lambda pair: pair[0])]

    def _leads_here(self, hosts: list[str], port: int) -> bool:
        if not self.own_sockets.on(port):
            return False
        for host in hosts:
            try:
                addresses = mx.host_addresses(host, self.lookup, early=True)
            except DnsError:
                continue
            if any(self.own_sockets.listen(ip, port) for ip in addresses):
                return True
        return False

    def _of_host(self, route: Route, host: str, late: list[Target]) -> Iterator[Target | Deferred | Failed]:
        """The addresses of a host: those that DNS gives soon, then those for which it took longer."""
        if host.startswith(UNIX):
            yield Target("localhost", host, 0)
            return
        known: list[str] = []
        for early in (True, False):
            try:
                found = mx.host_addresses(host, self.lookup, early)
            except DnsError as e:
                if not known:
                    yield _no_address(route, host, e)
                return
            ips = [ip for ip in eyeballs.interleaved(found) if ip not in known]
            known += ips
            yield from self._usable(route, host, ips, late)

    def _usable(
        self, route: Route, host: str, ips: list[str], late: list[Target]
    ) -> Iterator[Target | Deferred | Failed]:
        anywhere = route.configured or self.config.relay.allow_private
        name = route.tls_name or host
        good: list[str] = []
        for ip in ips:
            if not (anywhere or mx.is_public(ip)):
                yield Failed(f"{host} has the private or special address {ip}: refused", "DNS", host, "5.4.4")
            elif route.source is not None and not route.source.towards(ip):
                yield Deferred(f"the source {route.source.name} has no address to reach {ip}", "route", host, "4.4.4")
            elif self.dead(ip):
                late.append(Target(name, ip, route.port))
            else:
                good.append(ip)
        for n, ip in enumerate(good, 1):
            yield Target(name, ip, route.port, tuple(good[n : n + MAX_RACED]))


UNIX = "unix:"


class OwnSockets:
    """Where this host itself takes mail from strangers, by address: its listeners of service relay."""

    def __init__(self, config: Config) -> None:
        self._at: dict[int, set[str]] = {}
        for listener in config.listen:
            if listener.service == "relay":
                host, port = split_address(listener.address)
                self._at.setdefault(port, set()).add(host)

    def on(self, port: int) -> bool:
        return port in self._at

    def listen(self, ip: str, port: int) -> bool:
        """Would a connection to this address reach us? One on all addresses is reached on those of all interfaces."""
        hosts = self._at.get(port, set())
        every = "::" in hosts or ("0.0.0.0" in hosts and ":" not in ip)  # noqa: S104  (compared, not bound)
        return ip in hosts or (every and _is_of_an_interface(ip))


@functools.lru_cache(maxsize=1024)
def _is_of_an_interface(ip: str) -> bool:
    """An address of this host is one that a socket may be bound to."""
    family = socket.AF_INET6 if ipaddress.ip_address(ip).version == 6 else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((ip, 0))
    except OSError:
        return False
    return True


def sources_of(config: Config) -> dict[str, Source]:
    """The sources by name; one name may have an address of each family."""
    found: dict[str, Source] = {}
    for given in config.relay.sources:
        before = found.get(given.name, Source(given.name, config.ehlo, "", ""))
        address = {"six": given.address} if ":" in given.address else {"four": given.address}
        found[given.name] = before._replace(ehlo=given.ehlo or before.ehlo, **address)
    return found


def _no_address(route: Route, host: str, error: DnsError) -> Deferred | Failed:
    """A name that has no address is final for an MX; a hop or smarthost that the operator named may appear yet."""
    if isinstance(error, TemporaryFailure) or route.configured:
        return Deferred(str(error), "DNS", host, "4.4.3")
    return Failed(str(error), "DNS", host, "5.1.2" if host == route.lane else "5.4.4")


def no_target(lane: str, reasons: list[Deferred | Failed]) -> Deferred | Failed:
    """The outcome when no address could even be tried: temporary if one of the reasons is."""
    temporary = [r for r in reasons if isinstance(r, Deferred)]
    return (temporary or reasons or [Deferred(f"no host for {lane}", "DNS", "", "4.4.4")])[0]
