"""Checks of DNS: does the resolver answer, does the world know this host, are the DKIM keys served."""

from __future__ import annotations

from collections.abc import Iterator

import dns.exception
import dns.name
import dns.rdatatype
import dns.resolver
import dns.reversename

from ptt.cli.findings import Finding, fail, ok, warn
from ptt.config import Config, split_address
from ptt.dkim.keys import record_name
from ptt.dns.keycheck import difference
from ptt.dns.resolver import system_servers
from ptt.signer.state import all_public_keys

MAX_KEYS = 50  # looked up here; the service looks at all of them


def check(config: Config) -> Iterator[Finding]:
    """Everything about DNS."""
    yield from host(config)
    resolver = _resolver(config)
    if config.signs and resolver is not None and _answers(config, resolver):
        yield from _published(config, resolver)


def host(config: Config) -> Iterator[Finding]:
    """Does the resolver answer, and does the world know this host by its name and its addresses?"""
    resolver = _resolver(config)
    if resolver is None:
        yield fail("resolver", "none is configured, and /etc/resolv.conf names none", "set dns.resolvers")
        return
    where = ", ".join(config.dns.resolvers) or "/etc/resolv.conf"
    try:
        addresses = _addresses(resolver, config.hostname)
    except dns.exception.DNSException as e:
        advice = "mail waits until it does; check dns.resolvers and the network"
        yield fail("resolver", f"{where} does not answer: {_text(e)}", advice)
        return
    yield ok("resolver", f"{where} answers")
    if not addresses:
        advice = "many hosts refuse mail from a host whose name has no address: add A or AAAA records"
        yield warn("address", f"{config.hostname} has no address in DNS", advice)
    for address in addresses:
        yield from _reverse(resolver, config.hostname, address)


def _answers(config: Config, resolver: dns.resolver.Resolver) -> bool:
    try:
        _addresses(resolver, config.hostname)
    except dns.exception.DNSException:
        return False
    return True


def _resolver(config: Config) -> dns.resolver.Resolver | None:
    """One of dnspython's: what is asked here is asked once, and of all types."""
    servers = [split_address(server, 53) for server in config.dns.resolvers or system_servers()]
    if not servers:
        return None
    found = dns.resolver.Resolver(configure=False)
    found.nameservers = [dns.nameserver.Do53Nameserver(host, port) for host, port in servers]
    found.lifetime = config.dns.timeout_seconds * 2
    found.timeout = config.dns.timeout_seconds
    return found


def _addresses(resolver: dns.resolver.Resolver, host: str) -> list[str]:
    """The addresses of a host; [] when DNS says that there are none. Raises DNSException when it says nothing."""
    found: list[str] = []
    for kind in (dns.rdatatype.A, dns.rdatatype.AAAA):
        try:
            found += [str(record) for record in resolver.resolve(dns.name.from_text(host), kind)]
        except (dns.resolver.NXDOMAIN, dns.resolver.NoAnswer):
            continue
    return found


def _reverse(resolver: dns.resolver.Resolver, host: str, address: str) -> Iterator[Finding]:
    """Does the address lead back to the name (PTR), as receivers of mail expect?"""
    try:
        answer = resolver.resolve(dns.reversename.from_address(address), dns.rdatatype.PTR)
        names = [str(record.target).rstrip(".").lower() for record in answer]
    except (dns.resolver.NXDOMAIN, dns.resolver.NoAnswer):
        names = []
    except dns.exception.DNSException as e:
        yield warn("PTR", f"of {address}: {_text(e)}", "ask again later")
        return
    if host.lower() in names:
        yield ok("PTR", f"{address} is {host}")
    else:
        text = f"{address} leads to {', '.join(names) or 'no name'}, not to {host}"
        yield warn("PTR", text, "many hosts refuse or mark such mail; who gave you the address can set its PTR")


def _published(config: Config, resolver: dns.resolver.Resolver) -> Iterator[Finding]:
    found = all_public_keys(config.signer.public)
    for key in found[:MAX_KEYS]:
        what, name = f"DKIM {key.domain}", record_name(key.domain, key.selector)
        try:
            answer = resolver.resolve(dns.name.from_text(name), dns.rdatatype.TXT)
            why = difference(key.record, [b"".join(record.strings) for record in answer])
        except (dns.resolver.NXDOMAIN, dns.resolver.NoAnswer):
            why = "no record there"
        except dns.exception.DNSException as e:
            why = _text(e)
        if why:
            advice = "mail of this domain waits unsent; `ptt dkim publish`, or put it into DNS: `ptt dkim status`"
            yield fail(what, f"{name} is not served as it is here: {why}", advice)
        else:
            yield ok(what, f"selector {key.selector} is served as it is here")
    if len(found) > MAX_KEYS:
        yield ok("DKIM", f"{len(found) - MAX_KEYS} more keys were not looked up here: `ptt dkim status`")


def _text(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
