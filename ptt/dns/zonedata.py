"""The data of the demonstration DNS server: zones in memory, look-up and update as pure functions of messages.

Part of ``ptt.dns.server``, which has the sockets. Not for the Internet: no transfers, no DNSSEC, no delegation.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdata
import dns.rdataclass
import dns.rdataset
import dns.rdatatype
import dns.rrset
import dns.update
from dns.rdatatype import CNAME, MX, SOA, TXT, A, RdataType

MAX_ALIASES = 8
MAX_NAMES = 100_000  # in all zones; an update that would exceed it is refused
DEFAULT_TTL = 60
NEGATIVE_TTL = 1  # a demonstration does not wait for a name that has just come into being
UPDATABLE = b"_domainkey"  # the label that a name must have to be updated: what the TSIG key is for

Records = dict[RdataType, dns.rdataset.Rdataset]


class ZoneData:
    """Zones, their records, and the answers for all names outside them. ``wildcard_mx``: their mail host."""

    def __init__(self, zones: Iterable[str], records: Iterable[str] = (), wildcard_mx: str = "") -> None:
        """``records``: ``"NAME TTL TYPE VALUE"``, absolute names. Raises ValueError for what is none of that."""
        self._zones = [_name(z) for z in zones]
        self._names: dict[dns.name.Name, Records] = {}
        self._serial = 1
        self._mail_host = _name(wildcard_mx) if wildcard_mx else None
        for zone in self._zones:
            self._put(f"{zone} {DEFAULT_TTL} SOA ns.{zone} hostmaster.{zone} 1 3600 600 86400 {NEGATIVE_TTL}")
            self._put(f"{zone} {DEFAULT_TTL} NS ns.{zone}")
            self._put(f"ns.{zone} {DEFAULT_TTL} A 127.0.0.1")
        for record in records:
            self._put(record)
        if self._mail_host is not None and not any(A in r for n, r in self._names.items() if n == self._mail_host):
            self._put(f"{self._mail_host} {DEFAULT_TTL} A 127.0.0.1")

    def answer(self, query: dns.message.Message, response: dns.message.Message) -> None:
        """Fill ``response`` for a standard query with one question."""
        question = query.question[0]
        response.flags |= dns.flags.AA | dns.flags.RA  # stands in for the resolver, too
        name = question.name
        for _ in range(MAX_ALIASES):
            zone = self._zone_of(name)
            known = self._names.get(name, {})
            if zone is None and self._mail_host is not None and not known:
                known = {MX: dns.rdataset.from_text("IN", "MX", DEFAULT_TTL, f"10 {self._mail_host}")}
            elif zone is None and not known:
                response.set_rcode(dns.rcode.REFUSED)
                return
            found = known.get(question.rdtype) or known.get(CNAME)
            if found is None:
                if not known and not any(n.is_subdomain(name) for n in self._names):
                    response.set_rcode(dns.rcode.NXDOMAIN)
                self._add_soa(response, zone or name)
                return
            response.answer.append(dns.rrset.from_rdata_list(name, found.ttl, list(found)))
            if found.rdtype == question.rdtype:
                return
            name = cast(Any, found[0]).target

    def update(self, update: dns.update.UpdateMessage) -> dns.rcode.Rcode:
        """Carry out an update whose TSIG has been verified (RFC 2136 3), all of it or nothing; the rcode."""
        zone = update.zone[0].name if len(update.zone) == 1 else None
        if zone is None:
            return dns.rcode.FORMERR
        if zone not in self._zones:
            return dns.rcode.NOTAUTH
        if wrong := self._prerequisites(update.prerequisite, zone):
            return wrong
        for change in update.update:
            if self._zone_of(change.name) != zone:
                return dns.rcode.NOTZONE
            if UPDATABLE not in change.name.labels or change.rdtype != TXT:
                return dns.rcode.REFUSED
        if len(self._names) + len(update.update) > MAX_NAMES:
            return dns.rcode.REFUSED
        for change in update.update:
            self._change(change)
        self._serial += 1
        soa = cast(Any, self._names[zone][SOA][0]).replace(serial=self._serial)
        self._names[zone][SOA] = dns.rdataset.from_rdata(DEFAULT_TTL, soa)
        return dns.rcode.NOERROR

    def _prerequisites(self, wanted: Iterable[dns.rrset.RRset], zone: dns.name.Name) -> dns.rcode.Rcode:
        """NOERROR when all hold (RFC 2136 3.2). Record sets with values come in parts, one record each."""
        sets: dict[tuple[dns.name.Name, RdataType], set[Any]] = {}
        for one in wanted:
            if self._zone_of(one.name) != zone:
                return dns.rcode.NOTZONE
            known = self._names.get(one.name, {})
            there = bool(known) if one.rdtype == dns.rdatatype.ANY else one.rdtype in known
            name_only = one.rdtype == dns.rdatatype.ANY
            if one.deleting == dns.rdataclass.NONE and there:
                return dns.rcode.YXDOMAIN if name_only else dns.rcode.YXRRSET
            if one.deleting == dns.rdataclass.ANY and not there:
                return dns.rcode.NXDOMAIN if name_only else dns.rcode.NXRRSET
            if one.deleting is None:
                sets.setdefault((one.name, one.rdtype), set()).update(one)
        for (name, rdtype), records in sets.items():
            if set(self._names.get(name, {}).get(rdtype, ())) != records:
                return dns.rcode.NXRRSET
        return dns.rcode.NOERROR

    def _change(self, change: dns.rrset.RRset) -> None:
        """One record or record set of the update section (RFC 2136 2.5): add, delete it, or delete them all."""
        records = self._names.setdefault(change.name, {})
        if change.deleting is None:
            known = records.setdefault(change.rdtype, dns.rdataset.Rdataset(dns.rdataclass.IN, change.rdtype))
            known.update_ttl(change.ttl)
            known.add(change[0], change.ttl)
        elif change.deleting == dns.rdataclass.ANY:
            records.pop(change.rdtype, None)
        elif change.rdtype in records:
            left = [r for r in records.pop(change.rdtype) if r != change[0]]
            if left:
                records[change.rdtype] = dns.rdataset.from_rdata_list(change.ttl or DEFAULT_TTL, left)
        if not records:
            del self._names[change.name]

    def _put(self, record: str) -> None:
        try:
            name, ttl, rdtype, value = record.split(None, 3)
            kind = dns.rdatatype.from_text(rdtype)
            rdata = dns.rdata.from_text(dns.rdataclass.IN, kind, value, origin=dns.name.root, relativize=False)
            records = self._names.setdefault(_name(name), {})
            records.setdefault(kind, dns.rdataset.Rdataset(dns.rdataclass.IN, kind)).add(rdata, int(ttl))
        except (ValueError, dns.exception.DNSException) as e:
            raise ValueError(f"{record!r} is not a record (NAME TTL TYPE VALUE): {e}") from e

    def _zone_of(self, name: dns.name.Name) -> dns.name.Name | None:
        fitting = [zone for zone in self._zones if name.is_subdomain(zone)]
        return max(fitting, key=len, default=None)

    def _add_soa(self, response: dns.message.Message, zone: dns.name.Name) -> None:
        known = self._names.get(zone, {}).get(SOA)
        if known is None:  # a domain of the rest of the world
            text = f". . 1 3600 600 86400 {NEGATIVE_TTL}"
            known = dns.rdataset.from_text("IN", "SOA", NEGATIVE_TTL, text)
        response.authority.append(dns.rrset.from_rdata_list(zone, known.ttl, list(known)))


def _name(text: str) -> dns.name.Name:
    try:
        return dns.name.from_text(text).canonicalize()
    except dns.exception.DNSException as e:
        raise ValueError(f"{text!r} is not a domain name") from e
