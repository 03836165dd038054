"""Checks of the certificates: can they be used, by whom, for what, and how long."""

from __future__ import annotations

import datetime
import os
import stat
from collections.abc import Iterator

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import Encoding

from ptt.cli.findings import Finding, fail, ok, warn
from ptt.config import Config
from ptt.net.tls import peer_roles, revocations, server_context
from ptt.service.certificates import is_due
from ptt.service.privileges import account_of

SOON = datetime.timedelta(days=30)
ROLES = ("submission", "signer", "relay")
RENEW = (
    "`ptt tls renew`, where the authority's key is; or put a new certificate and key there and send ptt-worker a SIGHUP"
)


def certificates(config: Config) -> Iterator[Finding]:
    """The public pair, where users connect; the internal pair and its authority."""
    now = datetime.datetime.now(datetime.UTC)
    tls = config.tls
    if any(listen.service == "submission" for listen in config.listen):
        yield from _pair("public certificate", tls.public_certificate, tls.public_key, config, now)
    yield from _pair("internal certificate", tls.internal_certificate, tls.internal_key, config, now)
    yield from _internal(config, now)
    if tls.submission_client_ca:
        yield from _users(tls.submission_client_ca, now)


def _pair(what: str, certificate: str, key: str, config: Config, now: datetime.datetime) -> Iterator[Finding]:
    try:
        server_context(certificate, key)
        with open(certificate, "rb") as file:
            loaded = x509.load_pem_x509_certificate(file.read())
        status = os.stat(key)
    except (OSError, ValueError) as e:
        text = f"{certificate} and {key} cannot be used together: {e}"
        yield fail(what, text, "both must be PEM, and the key the certificate's")
        return
    yield from dates(what, loaded, now)
    worker = account_of("worker", config)
    if status.st_uid not in (worker.uid, 0):
        yield fail(what, f"{key} belongs to user {status.st_uid}", f"chown {worker.uid} {key}")
    elif status.st_uid != worker.uid and not _readable(status, worker.gid):
        yield fail(what, f"workers (user {worker.uid}) cannot read {key}", f"chown {worker.uid} {key}")
    if status.st_mode & stat.S_IROTH:
        yield fail(what, f"every user can read {key}", f"chmod 600 {key}")
    names = _names(loaded)
    if config.hostname not in names:
        text = f"it is for {', '.join(names) or 'no name'}, not for {config.hostname}"
        yield warn(what, text, "clients that connect by that name will refuse it")


def _users(file: str, now: datetime.datetime) -> Iterator[Finding]:
    """The authorities whose certificates let users log in."""
    what = "CA of users' certificates"
    try:
        with open(file, "rb") as f:
            found = x509.load_pem_x509_certificates(f.read())
    except (OSError, ValueError) as e:
        yield fail(what, f"{file} cannot be used: {e}", "it must be PEM; see tls.submission_client_ca")
        return
    for certificate in found:
        yield from dates(what, certificate, now)


def dates(what: str, certificate: x509.Certificate, now: datetime.datetime) -> Iterator[Finding]:
    """Is it valid now, and for a while yet?"""
    end, start = certificate.not_valid_after_utc, certificate.not_valid_before_utc
    if now > end:
        yield fail(what, f"expired on {end:%Y-%m-%d}", RENEW)
    elif now < start:
        yield fail(what, f"is not valid before {start:%Y-%m-%d %H:%M} UTC", "is this machine's clock right?")
    elif end - now < SOON:
        yield warn(what, f"expires on {end:%Y-%m-%d}", RENEW)
    else:
        yield ok(what, f"valid until {end:%Y-%m-%d}")


def _internal(config: Config, now: datetime.datetime) -> Iterator[Finding]:
    """Did our authority issue the internal certificate, for the roles of this host?"""
    what = "internal CA"
    try:
        with open(config.tls.internal_ca, "rb") as file:
            authority = x509.load_pem_x509_certificate(file.read())
        with open(config.tls.internal_certificate, "rb") as file:
            certificate = x509.load_pem_x509_certificate(file.read())
        certificate.verify_directly_issued_by(authority)
    except (OSError, ValueError, TypeError, InvalidSignature) as e:
        text = f"{config.tls.internal_ca} did not issue {config.tls.internal_certificate}: {e or type(e).__name__}"
        yield fail(what, text, "the other roles will refuse this host; `ptt init --ca DIR` issues certificates")
        return
    yield from dates(what, authority, now)
    yield from _revoked(config, certificate)
    if is_due(certificate, authority, now) and certificate.not_valid_after_utc - now >= SOON:
        text = f"expires on {certificate.not_valid_after_utc:%Y-%m-%d}, two thirds of its life are over"
        yield warn("internal certificate", text, RENEW)
    wanted = set(ROLES if config.role == "all" else (config.role,))
    roles = peer_roles(certificate.public_bytes(Encoding.DER))
    if missing := wanted - roles:
        text = f"it does not name the role {', '.join(sorted(missing))} of this host"
        yield fail("internal certificate", text, "the next role will refuse what this host sends")


def _revoked(config: Config, certificate: x509.Certificate) -> Iterator[Finding]:
    """Is ours on the authority's list, and can that be used?"""
    try:
        crl = revocations(config.tls.internal_ca)
    except OSError as e:
        yield fail(
            "revocations", str(e), "copy crl.pem from the host with the authority's key; it is made by `ptt tls revoke`"
        )
        return
    if crl is not None and crl.get_revoked_certificate_by_serial_number(certificate.serial_number) is not None:
        yield fail(
            "internal certificate",
            "it is revoked: the other roles refuse this host",
            "`ptt tls renew --new-key`, or `ptt tls issue`",
        )


def _names(certificate: x509.Certificate) -> list[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return []
    return names.get_values_for_type(x509.DNSName)


def _readable(status: os.stat_result, gid: int) -> bool:
    return bool(status.st_mode & stat.S_IROTH or (status.st_gid == gid and status.st_mode & stat.S_IRGRP))
