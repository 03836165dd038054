"""Writing TXT records in the zones of ``dns.zones``, with the marker that says whose they are (``ptt.dns.ownership``).

Called by ``ptt.dns.keycheck`` for DKIM keys and by ``ptt.dns.records`` for the rest. What is read at the primary is the
prerequisite of what is written, so nothing that somebody changed meanwhile is ever overwritten.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from ptt.config import Config, Zone
from ptt.dns.authority import Authorities
from ptt.dns.ownership import marker_name, marker_text
from ptt.dns.resolver import MAX_ALIASES, TemporaryFailure
from ptt.dns.update import Change, Look, TsigKey, look, text_of, txt, update_txt


class Place(NamedTuple):
    """Where the record of a name lies after all aliases. ``zone`` None: in no zone of ours, nothing else is known."""

    name: str
    zone: Zone | None
    there: Look = Look(())
    marker: Look = Look(())


def _every(_text: bytes) -> bool:
    return True


class OwnZones:
    """Looks and writes at the primaries. ``authorities`` lends its resolver, for names that others serve."""

    def __init__(self, config: Config, authorities: Authorities) -> None:
        self._host = config.hostname
        self._config = config.dns
        self._authorities = authorities

    def find(self, name: str) -> Place:
        """Follow the aliases from ``name``. Raises NotReached, UpdateError, TemporaryFailure, ValueError."""
        timeout = self._config.timeout_seconds
        for _ in range(MAX_ALIASES):
            zone = zone_of(name, self._config.zones)
            if zone is None:
                alias = self._authorities.resolver.alias(name)
                if not alias:
                    return Place(name, None)
            else:
                there = look(zone.primary, name, timeout)
                if not there.alias:
                    return Place(name, zone, there, look(zone.primary, marker_name(name), timeout))
                alias = there.alias
            name = alias
        raise TemporaryFailure(f"{name}: too many aliases")

    def write(self, place: Place, value: bytes | None, part: Callable[[bytes], bool] = _every) -> None:
        """Make ``value`` the only record of its ``part`` of the set at ``place`` in a zone of ours; None: remove those.

        Raises ChangedMeanwhile, UpdateError, NotReached, TsigKeyError, ValueError.
        """
        if place.zone is None:
            raise ValueError(f"{place.name} is in no zone of ours")
        others = [record for record in place.there.records if not part(text_of(record))]
        after = [*others, txt(value)] if value is not None else others
        marker = [txt(marker_text(self._host, value))] if value is not None else []
        changes = [
            Change(place.name, place.there.records, after),
            Change(marker_name(place.name), place.marker.records, marker),
        ]
        zone = place.zone
        tsig = TsigKey.load(zone.key_file)
        update_txt(zone.primary, zone.name, tsig, changes, zone.ttl, self._config.timeout_seconds)


def zone_of(name: str, zones: Iterable[Zone]) -> Zone | None:
    """The longest zone that ``name`` lies in."""
    fitting = [z for z in zones if f".{name}".endswith(f".{_bare(z)}")]
    return max(fitting, key=lambda zone: len(_bare(zone)), default=None)


def _bare(zone: Zone) -> str:
    return zone.name.lower().removesuffix(".")
