"""The records that a sending service wants in DNS: DKIM keys, and SPF (RFC 7208) and DMARC (RFC 7489) of its domains.

Used by ``ptt dns``. A plan says of each record what is there and what would be done. Only names in our zones whose kind
is in ``manage``, and only records that are ours or not there at all, are ever written.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import msgspec

from ptt.config import Config
from ptt.dkim.keys import record_name
from ptt.dns.authority import Authorities
from ptt.dns.keycheck import difference
from ptt.dns.ownership import standing
from ptt.dns.ownzones import OwnZones, Place
from ptt.dns.resolver import DnsError
from ptt.dns.update import TsigKeyError, UpdateError
from ptt.metrics import Counters
from ptt.signer.rotation import book_path, read_book, roles
from ptt.signer.state import all_public_keys

Kind = Literal["dkim", "spf", "dmarc"]
Action = Literal["none", "add", "replace", "foreign", "not ours", "unknown"]
DMARC = "v=DMARC1; p=none"  # the first step: who gets reports, and a stricter policy, is for people to decide


class Wanted(msgspec.Struct, frozen=True):
    """One record as it must be. ``judge``: the texts at its name that are of its kind -> what is wrong, or ""."""

    kind: Kind
    name: str
    value: str
    judge: Callable[[Sequence[bytes]], str]


class Row(msgspec.Struct, frozen=True):
    """One record in a plan. ``there``: the records of its kind at the primary (or the resolver, for names elsewhere).

    ``action``: none: it is right. add, replace: will be written. foreign: somebody else's, left. not ours: in no zone
    of ours, or of a kind that is not in ``manage``: a proposal. unknown: the servers did not say.
    """

    kind: Kind
    name: str
    there: list[str]
    value: str
    action: Action
    why: str = ""
    zone: str = ""


def wanted(config: Config) -> Iterator[Wanted]:
    """All records, by domain. Raises OSError, ValueError when the state of rotations cannot be read."""
    withdrawn = roles(read_book(book_path(config))).withdrawn
    domains: list[str] = []
    for key in all_public_keys(config.signer.public):
        if (key.domain, key.selector) not in withdrawn:
            judge = functools.partial(difference, key.record)
            yield Wanted("dkim", record_name(key.domain, key.selector), key.record, judge)
        if key.domain not in domains:
            domains.append(key.domain)
    host = config.ehlo.lower()
    for domain in domains:
        yield Wanted("spf", domain, f"v=spf1 a:{host} ~all", lambda texts: spf_mistake(texts, host))
        yield Wanted("dmarc", f"_dmarc.{domain}", DMARC, dmarc_mistake)


def spf_mistake(texts: Sequence[bytes], host: str) -> str:
    """What is wrong with a domain's SPF records, as far as their text shows: does it name ``host``?"""
    if len(texts) != 1:
        return "no SPF record" if not texts else f"{len(texts)} SPF records, must be one (RFC 7208, 4.5)"
    terms = [term.lstrip("+").lower() for term in texts[0].decode("utf-8", "replace").split()]
    if f"a:{host}" in terms:
        return ""
    return f"it does not say a:{host}; see to it that it allows the addresses of {host}"


def dmarc_mistake(texts: Sequence[bytes]) -> str:
    """What is wrong with a domain's DMARC records; any policy is right."""
    if len(texts) != 1:
        return "no DMARC record" if not texts else f"{len(texts)} DMARC records, must be one (RFC 7489, 6.6.3)"
    parts = (part.partition("=") for part in texts[0].decode("utf-8", "replace").split(";"))
    tags = {name.strip(): value.strip() for name, _, value in parts}
    return "" if tags.get("p") in ("none", "quarantine", "reject") else "it has no policy (p=)"


def part_of(kind: Kind) -> Callable[[bytes], bool]:
    """Which TXT records of a name are of this kind. Those of a DKIM name all are."""
    if kind == "dkim":
        return lambda _text: True
    sign = b"v=spf1" if kind == "spf" else b"v=dmarc1"
    return lambda text: text.lower().split(b" ")[0].split(b";")[0] == sign


class Records:
    """Plans, applies and checks what ``wanted`` says."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._authorities = Authorities(config.dns, Counters())
        self._zones = OwnZones(config, self._authorities)

    def plan(self) -> list[Row]:
        """What is there, and what ``apply`` would do. Raises OSError, ValueError."""
        return [self._row(want)[0] for want in wanted(self._config)]

    def apply(self) -> list[Row]:
        """Do it; the rows as they were, and ``why`` where it failed (``action`` is then "unknown")."""
        return [self._apply(want) for want in wanted(self._config)]

    def check(self) -> list[tuple[Wanted, list[str]]]:
        """Each record, and what is wrong with it at any authoritative server or the resolver."""
        return [(want, self._faults(want)) for want in wanted(self._config)]

    def _row(self, want: Wanted) -> tuple[Row, Place | None]:
        part = part_of(want.kind)
        try:
            place = self._zones.find(want.name)
            texts = [text for text in self._texts(place, want.name) if part(text)]
        except (UpdateError, DnsError, ValueError) as e:
            return Row(want.kind, want.name, [], want.value, "unknown", str(e)), None
        why = want.judge(texts)
        zone = place.zone.name if place.zone else ""
        there = [text.decode("utf-8", "backslashreplace") for text in texts]
        row = Row(want.kind, want.name, there, want.value, self._action(want, place, texts, why), why, zone)
        return row, place

    def _texts(self, place: Place, name: str) -> list[bytes]:
        if place.zone is not None:
            return place.there.texts
        try:
            return self._authorities.resolver.txt(name)
        except DnsError:
            return []

    def _action(self, want: Wanted, place: Place, texts: list[bytes], why: str) -> Action:
        if not why:
            return "none"
        if place.zone is None or want.kind not in place.zone.manage:
            return "not ours"
        whose = standing(texts, False, place.marker.texts, self._config.hostname)
        if whose == "free":
            return "add"
        # A key that somebody changed can only break mail; a policy that somebody changed is meant so.
        return "replace" if whose == "ours" or (whose == "edited" and want.kind == "dkim") else "foreign"

    def _apply(self, want: Wanted) -> Row:
        row, place = self._row(want)
        if place is None or row.action not in ("add", "replace"):
            return row
        try:
            self._zones.write(place, want.value.encode("ascii"), part_of(want.kind))
        except (UpdateError, TsigKeyError, ValueError) as e:
            return msgspec.structs.replace(row, action="unknown", why=str(e))
        return row

    def _faults(self, want: Wanted) -> list[str]:
        part = part_of(want.kind)
        try:
            faults = self._authorities.faults(want.name, lambda texts: want.judge([t for t in texts if part(t)]))
        except (DnsError, ValueError) as e:
            return [str(e)]
        return [str(fault) for fault in faults]
