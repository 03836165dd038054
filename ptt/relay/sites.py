"""The limits of a site: what its provider asks for, what the operator says, what the configuration has for all. Pure.

A site is a set of MX hosts (``ptt.relay.mx.site_name``): all domains that one provider hosts on the same hosts. How
many connections there are is decided by the queue process, for all workers together (``ptt_queue.slots``).
"""

from __future__ import annotations

import fnmatch
import functools
from collections.abc import Sequence
from importlib import resources
from typing import NamedTuple

import msgspec

from ptt.config import Config, SiteLimit

PRESETS = "presets.toml"
START = 5
"""Messages at once to a site before any was delivered, as Postfix has it (initial_destination_concurrency): twice as
many with each round that goes well."""


class Preset(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One entry of the file. See its head."""

    name: str
    match: tuple[str, ...]
    source: str
    connections: int = 0
    connections_per_source: int = 0
    connections_per_second: float = 0.0
    messages_per_second: float = 0.0
    messages_per_connection: int = 0
    recipients: int = 0


class Group(NamedTuple):
    """What the dispatcher of the queue process is told of a site: messages in flight, per second, at first."""

    in_flight: int
    per_second: float
    start: int


class Slots(NamedTuple):
    """What one connection takes: one of so many of this name, and so many new ones a second (0: no limit)."""

    name: str
    most: int
    per_second: float = 0.0


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    preset: tuple[Preset, ...]


class Limits(NamedTuple):
    """Of one site. 0 in ``*_per_second`` and ``connections_per_source``: no limit."""

    connections: int
    connections_per_source: int
    connections_per_second: float
    messages_per_second: float
    messages_per_connection: int
    recipients: int


@functools.cache
def presets() -> tuple[Preset, ...]:
    """The presets of the package. Raises msgspec's errors."""
    return msgspec.toml.decode(resources.files("ptt.relay").joinpath(PRESETS).read_bytes(), type=_File).preset


def hosts_of(site: str) -> list[str]:
    """The hosts in a site's name: all, or the first one of a name that had to be shortened."""
    return [site.rpartition("+")[0]] if "+" in site else site.split(",")


def _fits(patterns: Sequence[str], hosts: Sequence[str]) -> bool:
    return all(any(fnmatch.fnmatchcase(host, pattern) for pattern in patterns) for host in hosts)


class Sites:
    """The limits of all sites, as configured. ``recipients``: of a transaction, where nothing says otherwise."""

    def __init__(self, config: Config, recipients: int) -> None:
        relay = config.relay
        self._default = Limits(relay.site_in_flight, 0, 0.0, 0.0, relay.messages_per_connection, recipients)
        self._given = relay.limits
        self._sources = max(1, len({source.name for source in relay.sources}))
        self.limits = functools.lru_cache(maxsize=10_000)(self._limits)  # by name of the site

    def _limits(self, site: str) -> Limits:
        hosts = hosts_of(site)
        found = self._default
        entries: list[Preset | SiteLimit] = []
        entries += [p for p in presets() if _fits(p.match, hosts)][:1]
        entries += [g for g in self._given if _fits(g.match, hosts)][:1]
        for entry in entries:
            found = Limits(*(getattr(entry, name) or value for name, value in found._asdict().items()))
        return found

    def group(self, site: str) -> Group:
        """What the queue process is told: messages in flight, each of which has one connection at most."""
        limits = self.limits(site)
        most = limits.connections
        if limits.connections_per_source:
            most = min(most, limits.connections_per_source * self._sources)
        return Group(most, limits.messages_per_second, min(START, most))

    def slots(self, site: str, source: str) -> list[Slots]:
        """What is wanted for one connection. ``source``: the name of our address, "" for what the system chooses."""
        limits = self.limits(site)
        found = [Slots(site, limits.connections, limits.connections_per_second)]
        if limits.connections_per_source:
            found.append(Slots(f"{source}@{site}", limits.connections_per_source))
        return found
