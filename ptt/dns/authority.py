"""Zone truth: what every authoritative server of a zone, and the configured resolver, say at a name.

Called for each DKIM key by ``ptt.dns.keycheck`` and by ``ptt dns check``. A record counts when all of them serve it: a
verifier may be given the answer of any. The servers are the zone's NS set as the resolver knows it; each address
is asked directly, over TCP, and must answer as an authority (AA). Names that are aliases are followed, at each step at
all servers of that step's zone.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import gevent
import gevent.pool

from ptt.config import Dns
from ptt.dns.resolver import MAX_ALIASES, DnsError, NoData, NoSuchDomain, Resolver, TemporaryFailure
from ptt.dns.update import Look, NotReached, UpdateError, look
from ptt.metrics import Counters

MAX_SERVERS = 32  # addresses of one zone that are asked; the root has 26
MAX_QUESTIONS = 100  # asked at once, for all keys
CACHED_NAMES = 20_000  # NS sets and addresses in the resolver's cache
_NO_WAY = (errno.ENETUNREACH, errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL, errno.EHOSTUNREACH)

What = Literal["gone", "changed", "silent"]
Judge = Callable[[Sequence[bytes]], str]  # the TXT records of a name -> why they are not as they must be, or ""


class Fault(NamedTuple):
    """A server that does not serve what it must. ``silent``: it said nothing that could be believed."""

    server: str
    what: What
    why: str

    def __str__(self) -> str:
        return f"{self.server}: {self.why}"


class Host(NamedTuple):
    """One address of a name server."""

    name: str
    address: str

    def __str__(self) -> str:
        return f"{self.name} ({self.address})"


class Authorities:
    """Asks everybody. ``resolver`` is made from the configuration when it is first needed."""

    def __init__(self, config: Dns, counters: Counters) -> None:
        self._config = config
        self._counters = counters
        self._resolver: Resolver | None = None
        self._pool = gevent.pool.Pool(MAX_QUESTIONS)

    @property
    def resolver(self) -> Resolver:
        """Raises ValueError for a resolver in the configuration that is no address."""
        if self._resolver is None:
            timeout = self._config.timeout_seconds
            self._resolver = Resolver(self._config.resolvers, timeout, CACHED_NAMES, self._counters)
        return self._resolver

    def faults(self, name: str, judge: Judge) -> list[Fault]:
        """What is wrong with the TXT records at ``name``; []: every server and the resolver serve what ``judge`` wants.

        Raises TemporaryFailure when the servers cannot be found out, DnsError when there are none, ValueError.
        """
        found: list[Fault] = []
        step = name
        for _ in range(MAX_ALIASES):
            looks, silent = self._ask_all(step)
            found += silent
            aliases = {said.alias for _, said in looks if said.alias}
            if not aliases:
                return [*found, *_judged(looks, judge), *self._resolved(name, judge)]
            alias = sorted(aliases)[0]
            found += [
                Fault(str(host), "changed", f"not an alias of {alias}") for host, said in looks if said.alias != alias
            ]
            step = alias
        raise TemporaryFailure(f"{name}: too many aliases")

    def servers(self, name: str) -> tuple[str, list[Host]]:
        """The zone that ``name`` lies in, and the addresses of its servers. Raises DnsError's kinds, ValueError."""
        labels = name.split(".")
        for n in range(len(labels)):
            zone = ".".join(labels[n:])
            try:
                names = self.resolver.name_servers(zone)
            except (NoData, NoSuchDomain):
                continue
            hosts: list[Host] = []
            for server in sorted(set(names)):
                try:
                    hosts += [Host(server, address) for address in self.resolver.addresses(server)]
                except (NoData, NoSuchDomain):
                    hosts.append(Host(server, ""))
            return zone, hosts[:MAX_SERVERS]
        raise NoData(f"{name}: no name servers found")

    def _ask_all(self, name: str) -> tuple[list[tuple[Host, Look]], list[Fault]]:
        _, hosts = self.servers(name)
        looks: list[tuple[Host, Look]] = []
        silent: list[Fault] = []
        no_way: list[Host] = []
        for host, said in zip(hosts, self._pool.map(lambda host: self._ask(host, name), hosts), strict=True):
            if isinstance(said, Look):
                looks.append((host, said))
            elif said is None:
                no_way.append(host)
            else:
                silent.append(Fault(str(host), "silent", said))
        answered = {host.name for host, _ in looks} | {fault.server.partition(" ")[0] for fault in silent}
        # An IPv6 address where this host has IPv4 only says nothing about a server that has both.
        silent += [
            Fault(str(host), "silent", "cannot be reached from here") for host in no_way if host.name not in answered
        ]
        return looks, silent

    def _ask(self, host: Host, name: str) -> Look | str | None:
        """What it says; or why it says nothing; or None: this host has no way there."""
        if not host.address:
            return "this name server has no address"
        where = f"[{host.address}]" if ":" in host.address else host.address
        try:
            return look(f"{where}:{self._config.authority_port}", name, self._config.timeout_seconds)
        except NotReached as e:
            cause = e.__cause__.__cause__ if e.__cause__ is not None else None
            return None if isinstance(cause, OSError) and cause.errno in _NO_WAY else str(e)
        except UpdateError as e:
            return str(e)

    def _resolved(self, name: str, judge: Judge) -> list[Fault]:
        """The faults of the configured resolver: it may still remember what was, or refuse a broken signature."""
        self.resolver.forget(name)
        who = "the resolver"
        try:
            texts = self.resolver.txt(name)
        except TemporaryFailure as e:
            return [Fault(who, "silent", str(e))]
        except DnsError:
            texts = []
        return [Fault(who, "changed" if texts else "gone", why)] if (why := judge(texts)) else []


def _judged(looks: Sequence[tuple[Host, Look]], judge: Judge) -> list[Fault]:
    judged = [(host, said, judge(said.texts)) for host, said in looks]
    return [Fault(str(host), "changed" if said.records else "gone", why) for host, said, why in judged if why]
