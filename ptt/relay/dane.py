"""DANE for SMTP (RFC 7672): which TLSA records a host has, and whether a certificate is one that they name.

DNSSEC is the resolver's business: what counts here is what it says to have verified. An answer that DNSSEC proves wrong
arrives as TemporaryFailure, and so the host is not used now.
"""

from __future__ import annotations

import datetime
import hashlib
import ipaddress
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

import dns.rdatatype
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.verification import Criticality, ExtensionPolicy, Policy, PolicyBuilder, Store, VerificationError

from ptt.dns.resolver import MAX_ALIASES, Answer, NoData, NoSuchDomain

TA, EE = 2, 3  # certificate usages; 0 and 1 demand public authorities and are not usable in SMTP (RFC 7672 3.1.3)
FULL, SHA256, SHA512 = 0, 1, 2  # matching types
LENGTHS = {SHA256: 32, SHA512: 64}

MAX_CHAIN = 10  # certificates of a peer that are looked at: parsing each costs, and chains in use have two to four


class Lookup(Protocol):
    """What this needs of ``ptt.dns.resolver.Resolver``."""

    def answer(self, name: str, rdtype: dns.rdatatype.RdataType) -> Answer: ...


class Tlsa(NamedTuple):
    """One record (RFC 6698 2.1)."""

    usage: int
    selector: int
    matching: int
    data: bytes


class Tlsas(NamedTuple):
    """What a host has. ``base``: the name they were found under, which the host is asked for in SNI (RFC 7672 8.1)."""

    base: str
    records: tuple[Tlsa, ...]  # those that are usable; none: there are some, and TLS is demanded all the same


def find(host: str, port: int, lookup: Lookup) -> Tlsas | None:
    """The TLSA records of a host whose name is to be trusted; None: it has none that DNSSEC vouches for.

    Raises TemporaryFailure: nobody knows, so the host must not be used now (RFC 7672 2.1.2).
    """
    for base in _bases(host, lookup):
        found = _secure(lookup, f"_{port}._tcp.{base}", dns.rdatatype.TLSA)
        if found:
            return Tlsas(base, usable(Tlsa(*record) for record in found))
    return None


def usable(records: Iterable[Tlsa]) -> tuple[Tlsa, ...]:
    """Those that can be used; of several digests for one kind the strongest (RFC 7671 9)."""
    known = [r for r in records if r.usage in (TA, EE) and r.selector in (0, 1) and _well_formed(r)]
    strong = {(r.usage, r.selector) for r in known if r.matching == SHA512}
    return tuple(r for r in known if r.matching != SHA256 or (r.usage, r.selector) not in strong)


def matches_end(records: Sequence[Tlsa], certificate: bytes) -> bool:
    """Is the host's own certificate (DER) one that a DANE-EE record names? Dates and names do not matter."""
    return any(r.usage == EE and _matches(r, certificate) for r in records)


def names_authority(records: Sequence[Tlsa]) -> bool:
    """Is there a DANE-TA record, for which the chain is needed?"""
    return any(r.usage == TA for r in records)


def verify_chain(records: Sequence[Tlsa], chain: Sequence[bytes], names: Sequence[str], now: datetime.datetime) -> str:
    """Why the chain (DER, the host's own certificate first) is not one under a DANE-TA record; "" when it is.

    The path to the authority that a record names must verify, and the certificate must bear one of ``names``
    (RFC 7672 3.1.2).
    """
    try:
        known = [x509.load_der_x509_certificate(der) for der in chain[:MAX_CHAIN]]
    except ValueError:
        return "its chain cannot be read"
    anchors = _anchors(records, chain[:MAX_CHAIN], known)
    if not anchors or not known:
        return "no certificate in its chain matches a TLSA record"
    why = ""
    for name in dict.fromkeys(names):
        try:
            builder = PolicyBuilder().store(Store(anchors)).time(now)
            builder = builder.extension_policies(ca_policy=_AUTHORITY, ee_policy=_END)
            builder.build_server_verifier(x509.DNSName(name)).verify(known[0], known[1:])
        except (VerificationError, UnsupportedAlgorithm, ValueError) as e:
            why = why or str(e).partition(" (encountered")[0]
        else:
            return ""
    return why


def _anchors(
    records: Sequence[Tlsa], chain: Sequence[bytes], known: Sequence[x509.Certificate]
) -> list[x509.Certificate]:
    """The authorities that the records name: from the chain, or whole in a record (2 0 0)."""
    authorities = [r for r in records if r.usage == TA]
    found = [c for der, c in zip(chain, known, strict=True) if any(_matches(r, der) for r in authorities)]
    for record in authorities:
        if record.selector == 0 and record.matching == FULL:
            found.append(x509.load_der_x509_certificate(record.data))  # ``usable`` has seen that it can be read
    return found


def _bases(host: str, lookup: Lookup) -> list[str]:
    """The names under which TLSA records are looked for, best first (RFC 7672 2.2.2): none, where the host's addresses
    come without DNSSEC; so most hosts cost no look-up, and a broken server of an unsigned zone delays nothing.
    """
    if not _is_name(host):
        return []
    names = [host]
    while (target := _secure(lookup, names[-1], dns.rdatatype.CNAME)) and len(names) <= MAX_ALIASES:
        names.append(target[0])
    if _secure(lookup, host, dns.rdatatype.A) or _secure(lookup, host, dns.rdatatype.AAAA):
        return list(dict.fromkeys((names[-1], host)))
    return [host] if len(names) > 1 else []  # an alias of a signed zone, into one that is not


def _secure(lookup: Lookup, name: str, rdtype: dns.rdatatype.RdataType) -> list:  # type: ignore[type-arg]
    """The records, if there are any and DNSSEC vouches for them. Raises TemporaryFailure."""
    try:
        answer = lookup.answer(name, rdtype)
    except (NoData, NoSuchDomain):
        return []
    return answer.records if answer.secure else []


def _is_name(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return True
    return False


def _well_formed(record: Tlsa) -> bool:
    if record.matching != FULL:
        return len(record.data) == LENGTHS.get(record.matching)
    if record.selector == 1:
        return bool(record.data)
    try:
        x509.load_der_x509_certificate(record.data)
    except ValueError:
        return False
    return True


def _matches(record: Tlsa, certificate: bytes) -> bool:
    content = certificate if record.selector == 0 else _public_key(certificate)
    if record.matching == SHA256:
        content = hashlib.sha256(content).digest()
    elif record.matching == SHA512:
        content = hashlib.sha512(content).digest()
    return bool(content) and content == record.data


def _public_key(certificate: bytes) -> bytes:
    """The SubjectPublicKeyInfo (DER); b"" when it cannot be read."""
    try:
        key = x509.load_der_x509_certificate(certificate).public_key()
        return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    except (ValueError, UnsupportedAlgorithm):
        return b""


def _is_authority(_: Policy, __: x509.Certificate, constraints: x509.BasicConstraints | None) -> None:
    if constraints is None or not constraints.ca:
        raise ValueError("a certificate in the chain is no authority's")


def _may_sign(_: Policy, __: x509.Certificate, usage: x509.KeyUsage | None) -> None:
    if usage is not None and not usage.key_cert_sign:
        raise ValueError("a certificate in the chain may not sign others")


# A private authority need not keep to the rules of the public ones; that it is one, it must say.
_AUTHORITY = (
    ExtensionPolicy.permit_all()
    .require_present(x509.BasicConstraints, Criticality.AGNOSTIC, _is_authority)
    .may_be_present(x509.KeyUsage, Criticality.AGNOSTIC, _may_sign)
)
_END = ExtensionPolicy.permit_all().require_present(x509.SubjectAlternativeName, Criticality.AGNOSTIC, None)
