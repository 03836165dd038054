"""TLS contexts and what a certificate says. Make each context once and keep it: making one costs milliseconds.

All: TLS 1.2 at least, OpenSSL's default ciphers, no compression, and verify flags set here, so that the version of
Python does not change who is trusted.

*Internal* contexts serve the hops between our own roles: both sides show a certificate of the internal CA, and
nothing else is accepted. The role stands in it as a URI SAN, ``ptt:role:relay``.
"""

from __future__ import annotations

import functools
import os
import ssl
from typing import Any, cast

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes

ROLE_PREFIX = "ptt:role:"

_CERTIFICATES = 256
"""Certificates whose roles are remembered: the peers of one host are few; parsing one costs 100 us."""


def server_context(
    certificate: str, key: str, *, client_ca: str | None = None, client_required: bool = True
) -> ssl.SSLContext:
    """For listeners. ``certificate``, ``key``, ``client_ca``: PEM files; clients must show a certificate of that CA.

    ``client_required`` False: clients may also come without one (``tls().certificate`` is then None).
    Raises OSError (ssl.SSLError is one) when a file cannot be used.
    """
    context = _context(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    context.num_tickets = 0  # tickets would be good only at the same worker, and resumption measured no gain
    if client_ca is not None:
        _trust_internal(context, client_ca)
        context.verify_mode = ssl.CERT_REQUIRED if client_required else ssl.CERT_OPTIONAL
    return context


def internal_client_context(certificate: str, key: str, ca: str) -> ssl.SSLContext:
    """For connections to another role: shows our certificate, verifies the peer's and its name. Raises OSError."""
    context = _context(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = True
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(certificate, key)
    _trust_internal(context, ca)
    return context


def opportunistic_context() -> ssl.SSLContext:
    """For MXs of which no certificate is expected (RFC 7435): encryption against the passive listener only."""
    context = _context(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def verifying_context(ca: str | None = None) -> ssl.SSLContext:
    """For MXs whose certificate and name must be right. ``ca``: PEM file instead of the system's. Raises OSError."""
    context = _context(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = True
    context.verify_mode = ssl.CERT_REQUIRED
    # Not VERIFY_X509_STRICT: public CAs' old intermediates lack extensions that it demands.
    context.verify_flags = ssl.VERIFY_X509_TRUSTED_FIRST
    if ca is None:
        context.load_default_certs(ssl.Purpose.SERVER_AUTH)
    else:
        context.load_verify_locations(ca)
    return context


@functools.lru_cache(maxsize=_CERTIFICATES)
def peer_roles(certificate: bytes) -> frozenset[str]:
    """The roles that a verified peer's certificate (DER) names: ``{"relay"}``. Empty for any other certificate."""
    try:
        names = x509.load_der_x509_certificate(certificate).extensions.get_extension_for_class(
            x509.SubjectAlternativeName
        )
        uris = names.value.get_values_for_type(x509.UniformResourceIdentifier)
    except (ValueError, x509.ExtensionNotFound, x509.DuplicateExtension, x509.UnsupportedGeneralNameType):
        return frozenset()
    return frozenset(uri.removeprefix(ROLE_PREFIX) for uri in uris if uri.startswith(ROLE_PREFIX))


@functools.lru_cache(maxsize=_CERTIFICATES)
def peer_mailboxes(certificate: bytes) -> tuple[str, ...]:
    """The mail addresses (rfc822Name) that a verified peer's certificate (DER) names."""
    try:
        names = x509.load_der_x509_certificate(certificate).extensions.get_extension_for_class(
            x509.SubjectAlternativeName
        )
        return tuple(names.value.get_values_for_type(x509.RFC822Name))
    except (ValueError, x509.ExtensionNotFound, x509.DuplicateExtension, x509.UnsupportedGeneralNameType):
        return ()


def end_point(certificate: str) -> bytes:
    """The channel binding tls-server-end-point (RFC 5929 4.1) of a server whose certificate is the first of a PEM file.

    b"" for one whose signature names no hash (Ed25519): there the binding is not defined. Raises OSError.
    """
    with open(certificate, "rb") as f:
        data = f.read()
    try:
        found = x509.load_pem_x509_certificates(data)[0]
        used = found.signature_hash_algorithm
    except (ValueError, UnsupportedAlgorithm):
        return b""
    if used is None:
        return b""
    weak = isinstance(used, hashes.MD5 | hashes.SHA1)
    return found.fingerprint(hashes.SHA256() if weak else used)


def _context(protocol: int) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    return context


def _trust_internal(context: ssl.SSLContext, ca: str) -> None:
    context.load_verify_locations(ca)
    context.verify_flags = ssl.VERIFY_X509_TRUSTED_FIRST | ssl.VERIFY_X509_STRICT
    if revocations(ca) is not None:
        context.load_verify_locations(crl_path(ca))
        context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF


def crl_path(ca: str) -> str:
    """Where the list of revoked certificates of an authority lies: beside it."""
    return os.path.join(os.path.dirname(ca), "crl.pem")


def revocations(ca: str) -> x509.CertificateRevocationList | None:
    """The list beside the authority's PEM file, if there is one and it is that authority's.

    Raises OSError: it cannot be used, so nobody may be trusted.
    """
    try:
        with open(crl_path(ca), "rb") as file, open(ca, "rb") as authority:
            crl = x509.load_pem_x509_crl(file.read())
            issuer = x509.load_pem_x509_certificate(authority.read())
    except FileNotFoundError:
        return None
    except ValueError as e:
        raise OSError(f"{crl_path(ca)}: is no list of revoked certificates: {e}") from e
    if crl.issuer != issuer.subject:
        return None
    if not crl.is_signature_valid(cast(Any, issuer.public_key())):  # a key that signs certificates: it is an authority
        raise OSError(f"{crl_path(ca)}: its signature is not that of {ca}")
    return crl
