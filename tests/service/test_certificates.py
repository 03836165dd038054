"""The internal authority, judged by OpenSSL as strictly as Python 3.13 does by default."""

from __future__ import annotations

import datetime
import pathlib
import socket
import ssl
import threading

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from ptt.net.tls import peer_roles
from ptt.service.certificates import Pair, issue, load_pair, make_ca

NOW = datetime.datetime.now(datetime.UTC)


def files(directory: pathlib.Path, name: str, pair: Pair) -> tuple[str, str]:
    certificate, key = directory / f"{name}.pem", directory / f"{name}.key"
    certificate.write_bytes(pair.certificate_pem())
    key.write_bytes(pair.key_pem())
    return str(certificate), str(key)


def shake_hands(tmp_path: pathlib.Path, ca: Pair, server: Pair, client: Pair, name: str) -> None:
    """A TLS handshake with both sides authenticated. Raises ssl.SSLError."""
    authority, _ = files(tmp_path, "ca", ca)
    ours = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    theirs = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    for context, pair in ((ours, server), (theirs, client)):
        context.load_cert_chain(*files(tmp_path, "pair", pair))
        context.load_verify_locations(authority)
        context.verify_mode = ssl.CERT_REQUIRED
        context.verify_flags |= ssl.VERIFY_X509_STRICT
    near, far = socket.socketpair()
    errors: list[Exception] = []

    def serve() -> None:
        try:
            with ours.wrap_socket(far, server_side=True) as wrapped:
                wrapped.sendall(b"x")
        except (ssl.SSLError, OSError) as e:
            errors.append(e)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with theirs.wrap_socket(near, server_hostname=name) as wrapped:
            wrapped.recv(1)
    finally:
        near.close()
        thread.join()
        far.close()
    if errors:
        raise errors[0]


def test_both_sides_accept_each_other(tmp_path: pathlib.Path) -> None:
    ca = make_ca("test", NOW)
    pair = issue(ca, ["mail.example", "127.0.0.1"], ["relay", "signer"], NOW, 10)
    for name in ("mail.example", "127.0.0.1"):
        shake_hands(tmp_path, ca, pair, pair, name)
    assert peer_roles(pair.certificate.public_bytes(Encoding.DER)) == {"relay", "signer"}


def test_another_authority_is_refused(tmp_path: pathlib.Path) -> None:
    ca, other = make_ca("test", NOW), make_ca("test", NOW)  # the same name, another key
    good = issue(ca, ["mail.example"], ["relay"], NOW, 10)
    bad = issue(other, ["mail.example"], ["relay"], NOW, 10)
    with pytest.raises((ssl.SSLError, OSError)):
        shake_hands(tmp_path, ca, good, bad, "mail.example")
    with pytest.raises(ssl.SSLError):
        shake_hands(tmp_path, ca, bad, good, "mail.example")


def test_an_end_certificate_issues_nothing(tmp_path: pathlib.Path) -> None:
    ca = make_ca("test", NOW)
    leaf = issue(ca, ["mail.example"], ["relay"], NOW, 10)
    forged = issue(leaf, ["mail.example"], ["signer"], NOW, 10)
    with pytest.raises(ssl.SSLError):
        shake_hands(tmp_path, ca, forged, leaf, "mail.example")


def test_an_expired_one_is_refused(tmp_path: pathlib.Path) -> None:
    ca = make_ca("test", NOW)
    old = issue(ca, ["mail.example"], ["relay"], NOW - datetime.timedelta(days=20), 10)
    good = issue(ca, ["mail.example"], ["relay"], NOW, 10)
    with pytest.raises(ssl.SSLError):
        shake_hands(tmp_path, ca, old, good, "mail.example")


def test_load_pair(tmp_path: pathlib.Path) -> None:
    ca = make_ca("test", NOW)
    again = load_pair(ca.certificate_pem(), ca.key_pem())
    shake_hands(
        tmp_path, ca, issue(again, ["a.example"], [], NOW, 1), issue(ca, ["b.example"], [], NOW, 1), "a.example"
    )
    with pytest.raises(ValueError):
        load_pair(b"nothing", ca.key_pem())


def test_a_long_name_fits() -> None:
    name = "a" * 60 + ".example.org"
    assert issue(make_ca("test", NOW), [name], [], NOW, 1).certificate.subject
