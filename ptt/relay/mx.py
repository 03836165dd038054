"""From a domain to the hosts that take its mail: RFC 5321 5.1, null MX (RFC 7505), address literals.

``route`` asks the resolver that it is given; what it does with the answers is decided by the pure functions below it.
"""

from __future__ import annotations

import functools
import hashlib
import ipaddress
import random
import re
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import idna

from ptt.dns.resolver import DnsError, NoData, NoSuchDomain
from ptt.relay.outcome import Deferred, Failed

MAX_HOSTS = 10  # of one domain; the rest would be tried after five dead addresses at the earliest: never
MAX_SITE = 200  # characters of a site's name: it is a key in the queue process and in metrics of the operator


_HOST = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*")  # anything else would make the site's name ambiguous


class MxLookup(Protocol):
    """What finding the hosts needs of ``ptt.dns.resolver.Resolver``."""

    def mx(self, name: str) -> list[tuple[int, str]]: ...


class Lookup(MxLookup, Protocol):
    """What the relay needs of it: their addresses too."""

    def addresses(self, host: str) -> list[str]: ...

    def addresses_early(self, host: str) -> list[str]: ...

    def ask_txt(self, name: str) -> None: ...


class Route(NamedTuple):
    """Where a lane's mail goes: the hosts in the order to try them, and the name of the site that they are."""

    hosts: tuple[str, ...]  # names, or one IP address
    site: str
    preferences: tuple[int, ...] = ()  # of the hosts; none: they are all the same


def route(domain: str, lookup: MxLookup, own_names: frozenset[str], rng: random.Random) -> Route | Deferred | Failed:
    """The hosts for ``domain`` (or an address literal). ``own_names``: under which we ourselves may be an MX."""
    if domain.startswith("["):
        ip = literal(domain)
        return Route((ip,), domain.lower()) if ip else Failed(f"{domain}: bad address literal", "DNS", "", "5.1.3")
    try:
        name = a_label(domain)
        records = lookup.mx(name)
    except (NoSuchDomain, UnicodeError) as e:
        return Failed(f"{domain}: domain does not exist" if isinstance(e, UnicodeError) else str(e), "DNS", "", "5.1.2")
    except NoData:
        records = [(0, name)]  # the implicit MX
    except DnsError as e:
        return Deferred(str(e), "DNS", "", "4.4.3")
    return choose(name, records, own_names, rng)


def a_label(domain: str) -> str:
    """The domain as DNS has it (RFC 5890 2.3.2.1, mapped as by UTS 46). Raises UnicodeError."""
    return domain if domain.isascii() else idna.encode(domain, uts46=True).decode("ascii")


def ascii_address(address: str) -> str:
    """The address with its domain in A-labels. Not ASCII where the local part is not, or the domain is no name."""
    local, at, domain = address.rpartition("@")
    try:
        return local + at + a_label(domain)
    except UnicodeError:
        return address


def choose(
    domain: str, records: Sequence[tuple[int, str]], own_names: frozenset[str], rng: random.Random
) -> Route | Failed:
    """Order MX records: by preference, at random among equals; ourselves and what is not better than us is cut."""
    if len(records) == 1 and (host := records[0][1]) not in own_names and _HOST.fullmatch(host):
        return Route((host,), site_name((host,)))  # what most domains have, without the work for the others
    named = [(preference, host) for preference, host in records if host not in (".", "")]
    if not named:
        return Failed(f"{domain} accepts no mail (null MX)", "DNS", "", "5.1.10")
    usable = [(preference, host) for preference, host in named if _HOST.fullmatch(host)]
    if not usable:
        return Failed(f"{domain}: the MX records name no host", "DNS", "", "5.4.4")
    ours = min((preference for preference, host in usable if host in own_names), default=None)
    if ours is not None:
        usable = [(preference, host) for preference, host in usable if preference < ours]
        if not usable:
            return Failed(f"mail for {domain} loops back to this host", "DNS", "", "5.4.6")
    best: dict[str, int] = {}
    for preference, host in sorted(usable, key=lambda record: (record[0], rng.random())):
        best.setdefault(host, preference)
    return Route(tuple(best)[:MAX_HOSTS], site_name(tuple(best)), tuple(best.values())[:MAX_HOSTS])


def host_addresses(host: str, lookup: Lookup, early: bool = False) -> list[str]:
    """The addresses of a host, which may be given as an address. Raises DnsError.

    ``early``: those of one family, where DNS is slow with the other (RFC 8305 3).
    """
    if host == "localhost" or host.endswith(".localhost"):
        return ["127.0.0.1", "::1"]  # RFC 6761 6.3: never asked of DNS
    try:
        return [str(ipaddress.ip_address(host))]
    except ValueError:
        return lookup.addresses_early(host) if early else lookup.addresses(host)


def site_name(hosts: Sequence[str]) -> str:
    """One name for a set of MX hosts, whatever their order: domains with the same hosts are one site."""
    name = ",".join(sorted(hosts))
    if len(name) <= MAX_SITE:
        return name
    return f"{min(hosts)[:60]}+{hashlib.sha256(name.encode()).hexdigest()}"  # nobody can make another set fit


def literal(domain: str) -> str | None:
    """The IP address of an address literal (RFC 5321 4.1.3), ``[192.0.2.1]`` or ``[IPv6:...]``; None if it is none."""
    text = domain.removeprefix("[").removesuffix("]")
    if len(text) + 2 != len(domain) or "%" in text:
        return None
    try:
        if text[:5].lower() == "ipv6:":
            return str(ipaddress.IPv6Address(text[5:]))
        return str(ipaddress.IPv4Address(text))
    except ValueError:
        return None


@functools.lru_cache(maxsize=4096)
def is_public(ip: str) -> bool:
    """May strangers make us connect to this address? False for what the IANA registries of special-purpose addresses
    (RFC 6890) name, for multicast and reserved ones, and for IPv6 forms that lead to such an IPv4 address.

    The tables are ours, so that the version of Python does not change who may be reached.
    """
    try:
        address = ipaddress.ip_address(ip)
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv4Address):
        return not any(address in network for network in _SPECIAL_V4)
    inner = address.ipv4_mapped or address.sixtofour or _nat64(address)
    if inner is not None:
        return is_public(str(inner))
    return address in _GLOBAL_UNICAST and not any(address in network for network in _SPECIAL_V6)


def _nat64(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """The IPv4 address inside 64:ff9b::/96 (RFC 6052)."""
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return None


_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")

# IANA IPv4 Special-Purpose Address Registry, and multicast. Anycast addresses of protocols are no mail servers either.
_SPECIAL_V4 = [
    ipaddress.IPv4Network(network)
    for network in (
        *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12"),
        *("192.0.0.0/24", "192.0.2.0/24", "192.31.196.0/24", "192.52.193.0/24", "192.88.99.0/24", "192.168.0.0/16"),
        *("192.175.48.0/24", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4"),
    )
]

_GLOBAL_UNICAST = ipaddress.IPv6Network(
    "2000::/3"
)  # all that IANA has given out; ULA, link-local, 64:ff9b:1::/48 are not

# IANA IPv6 Special-Purpose Address Registry within that: protocol assignments (Teredo, ORCHID, benchmarks, AMT, AS112),
# documentation. 2002::/16 (6to4) is what the IPv4 address in it is.
_SPECIAL_V6 = [
    ipaddress.IPv6Network(network) for network in ("2001::/23", "2001:db8::/32", "2620:4f:8000::/48", "3fff::/20")
]
