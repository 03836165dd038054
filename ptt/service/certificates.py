"""The internal certificate authority, and the certificates that it issues (RFC 5280). ECDSA P-256, pure: no I/O.

Every certificate bears what a strict verifier demands (Python 3.13's default): key usage, subject and authority
key identifiers. An internal certificate names the roles of its host as URIs, ``ptt:role:signer``.
"""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Sequence
from typing import NamedTuple

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ptt.net.tls import ROLE_PREFIX

CA_DAYS = 3650
INTERNAL_DAYS = 3650  # known to our own hosts alone; one that is lost is revoked
PUBLIC_DAYS = 825  # the most that mail clients accept
SKEW = datetime.timedelta(hours=1)  # clocks of other hosts may be behind ours

_COMMON_NAME_MAX = 64  # RFC 5280, appendix A: ub-common-name


class Pair(NamedTuple):
    """A certificate and its private key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    def certificate_pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def key_pem(self) -> bytes:
        """PKCS #8, not encrypted: the file's mode protects it."""
        return self.key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )


def load_pair(certificate: bytes, key: bytes) -> Pair:
    """Both from PEM. Raises ValueError when they are not ours to use."""
    loaded = serialization.load_pem_private_key(key, None)
    if not isinstance(loaded, ec.EllipticCurvePrivateKey):
        raise ValueError("the key is not an ECDSA key")
    return Pair(x509.load_pem_x509_certificate(certificate), loaded)


def make_ca(name: str, now: datetime.datetime) -> Pair:
    """A new authority that may issue end certificates only."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = _name(name)
    usage = _usage(key_cert_sign=True, crl_sign=True)
    builder = _builder(subject, subject, key, now, CA_DAYS)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(usage, critical=True)
    builder = builder.add_extension(_authority(key.public_key()), critical=False)
    return Pair(builder.sign(key, hashes.SHA256()), key)


def issue(
    ca: Pair,
    hosts: Sequence[str],
    roles: Sequence[str],
    now: datetime.datetime,
    days: int,
    key: ec.EllipticCurvePrivateKey | None = None,
) -> Pair:
    """A certificate for ``hosts`` (names and addresses, the main name first) in the given roles ([]: for users).

    ``key``: of a certificate that is renewed; else a new one. It is valid no longer than the authority's.
    """
    key = key or ec.generate_private_key(ec.SECP256R1())
    builder = _builder(_name(hosts[0]), ca.certificate.subject, key, now, days, ca.certificate.not_valid_after_utc)
    for extension, critical in (
        (x509.BasicConstraints(ca=False, path_length=None), True),
        (_usage(digital_signature=True), True),
        (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]), False),
        (x509.SubjectAlternativeName([*map(_alternative, hosts), *map(_role, roles)]), False),
        (_authority(ca.key.public_key()), False),
    ):
        builder = builder.add_extension(extension, critical)
    return Pair(builder.sign(ca.key, hashes.SHA256()), key)


def renew(ca: Pair, old: Pair, now: datetime.datetime, *, new_key: bool = False) -> Pair:
    """``old`` for as many days again, with its names, roles and key. Raises ValueError: it is not the authority's."""
    try:
        old.certificate.verify_directly_issued_by(ca.certificate)
    except (ValueError, TypeError, InvalidSignature) as e:
        raise ValueError("it was not issued by this authority") from e
    hosts, roles = names_of(old.certificate)
    life = old.certificate.not_valid_after_utc - old.certificate.not_valid_before_utc - SKEW
    return issue(ca, hosts, roles, now, max(1, life.days), None if new_key else old.key)


def is_due(certificate: x509.Certificate, ca: x509.Certificate, now: datetime.datetime) -> bool:
    """Has it lived two thirds of its life, and could the authority still issue one that is valid for longer?"""
    start, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    longer = ca.not_valid_after_utc - end > datetime.timedelta(days=1)
    return longer and now >= start + (end - start) * 2 / 3


def names_of(certificate: x509.Certificate) -> tuple[list[str], list[str]]:
    """The hosts that a certificate is for, the main one first, and its roles."""
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    hosts = names.get_values_for_type(x509.DNSName)
    hosts += [str(address) for address in names.get_values_for_type(x509.IPAddress)]
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    return hosts, [uri.removeprefix(ROLE_PREFIX) for uri in uris if uri.startswith(ROLE_PREFIX)]


def revoke(
    ca: Pair, before: x509.CertificateRevocationList | None, serials: Sequence[int], now: datetime.datetime
) -> x509.CertificateRevocationList:
    """The authority's list (RFC 5280, 5) with ``serials`` added. It does not age before the authority does: a host that
    gets no newer one keeps working.
    """
    number = 1
    builder = x509.CertificateRevocationListBuilder().issuer_name(ca.certificate.subject)
    builder = builder.last_update(now - SKEW).next_update(ca.certificate.not_valid_after_utc)
    known: set[int] = set()
    for entry in before or ():
        known.add(entry.serial_number)
        builder = builder.add_revoked_certificate(entry)
    if before is not None:
        number += before.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
    for serial in serials:
        if serial not in known:
            made = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now)
            builder = builder.add_revoked_certificate(made.build())
    builder = builder.add_extension(x509.CRLNumber(number), critical=False)
    builder = builder.add_extension(_authority(ca.key.public_key()), critical=False)
    return builder.sign(ca.key, hashes.SHA256())


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    now: datetime.datetime,
    days: int,
    last: datetime.datetime | None = None,
) -> x509.CertificateBuilder:
    end = now + datetime.timedelta(days=days)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - SKEW)
        .not_valid_after(min(end, last) if last else end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common[:_COMMON_NAME_MAX])])


def _authority(key: ec.EllipticCurvePublicKey) -> x509.AuthorityKeyIdentifier:
    return x509.AuthorityKeyIdentifier.from_issuer_public_key(key)


def _alternative(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _role(role: str) -> x509.GeneralName:
    return x509.UniformResourceIdentifier(f"{ROLE_PREFIX}{role}")


def _usage(*, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        encipher_only=False,
        decipher_only=False,
    )
