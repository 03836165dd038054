"""Contexts: who is let in, and what a certificate says."""

from __future__ import annotations

import datetime
import hashlib
import pathlib
import ssl

import gevent
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from ptt.net.memory import memory_pair
from ptt.net.stream import Stream, StreamError, TlsFailed
from ptt.net.tls import (
    end_point,
    internal_client_context,
    opportunistic_context,
    peer_roles,
    server_context,
    verifying_context,
)

Files = dict[str, pathlib.Path]
LONG = 5.0


def listener(files: Files, name: str, *, required: bool = True) -> ssl.SSLContext:
    return server_context(
        str(files[name]), str(files[f"{name}.key"]), client_ca=str(files["ca"]), client_required=required
    )


def role(files: Files, name: str) -> ssl.SSLContext:
    return internal_client_context(str(files[name]), str(files[f"{name}.key"]), str(files["ca"]))


def meet(server: ssl.SSLContext, client: ssl.SSLContext, name: str = "mx.example.org") -> tuple[Stream, Stream]:
    """Both ends after a handshake and a byte each way. Raises what the client's or server's side raised."""
    ends = memory_pair()

    def serve() -> Stream | StreamError:
        try:
            stream = ends[1].start_tls(server, LONG, server_side=True)
            stream.write(b"x", LONG)
        except StreamError as e:
            return e
        return stream

    serving = gevent.spawn(serve)
    mine = ends[0].start_tls(client, LONG, server_side=False, server_hostname=name)
    mine.read(1, LONG)  # in TLS 1.3 the server judges the client's certificate after the client's handshake
    other = serving.get(timeout=LONG)
    if isinstance(other, StreamError):
        raise other
    return mine, other


def test_roles_meet(certificates: Files) -> None:
    client, server = meet(listener(certificates, "relay"), role(certificates, "submission"))
    mine, theirs = client.tls(), server.tls()
    assert mine is not None
    assert theirs is not None
    assert peer_roles(mine.certificate or b"") == {"relay"}
    assert peer_roles(theirs.certificate or b"") == {"submission"}


@pytest.mark.parametrize("name", ["127.0.0.1", "mx.example.org"])
def test_addresses_and_names_are_verified(certificates: Files, name: str) -> None:
    meet(listener(certificates, "relay"), role(certificates, "submission"), name)


def test_a_next_hop_of_another_ca_is_refused(certificates: Files) -> None:
    with pytest.raises(TlsFailed, match="not accepted"):
        meet(listener(certificates, "stranger"), role(certificates, "submission"))


def test_a_next_hop_with_another_name_is_refused(certificates: Files) -> None:
    with pytest.raises(TlsFailed, match="Hostname mismatch"):
        meet(listener(certificates, "relay"), role(certificates, "submission"), "else.example.org")


@pytest.mark.parametrize("required", [True, False])
def test_a_client_of_another_ca_is_refused(certificates: Files, required: bool) -> None:
    with pytest.raises(TlsFailed):
        meet(listener(certificates, "relay", required=required), role(certificates, "stranger"))


def test_a_client_without_certificate(certificates: Files) -> None:
    client = verifying_context(str(certificates["ca"]))
    with pytest.raises(TlsFailed):
        meet(listener(certificates, "relay"), client)
    _, server = meet(listener(certificates, "relay", required=False), client)
    info = server.tls()
    assert info is not None
    assert info.certificate is None


def test_the_system_does_not_trust_our_ca(certificates: Files) -> None:
    server = server_context(str(certificates["mx"]), str(certificates["mx.key"]))
    meet(server, opportunistic_context(), "any.example.net")
    meet(server, verifying_context(str(certificates["ca"])))
    with pytest.raises(TlsFailed):
        meet(server, verifying_context())


def test_old_versions_are_refused(certificates: Files) -> None:
    server = server_context(str(certificates["mx"]), str(certificates["mx.key"]))
    old = opportunistic_context()
    old.set_ciphers("DEFAULT:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        old.minimum_version = ssl.TLSVersion.TLSv1_1
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        old.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises(TlsFailed):
        meet(server, old)
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    client, _ = meet(server, old)
    info = client.tls()
    assert info is not None
    assert info.version == "TLSv1.2"


def test_flags_do_not_depend_on_the_version_of_python(certificates: Files) -> None:
    assert role(certificates, "relay").verify_flags == ssl.VERIFY_X509_TRUSTED_FIRST | ssl.VERIFY_X509_STRICT
    assert verifying_context().verify_flags == ssl.VERIFY_X509_TRUSTED_FIRST
    assert listener(certificates, "relay").verify_mode == ssl.CERT_REQUIRED


def der(file: pathlib.Path) -> bytes:
    return x509.load_pem_x509_certificate(file.read_bytes()).public_bytes(serialization.Encoding.DER)


def test_roles_of_certificates(certificates: Files) -> None:
    assert peer_roles(der(certificates["relay"])) == {"relay"}
    assert peer_roles(der(certificates["mx"])) == frozenset()
    assert peer_roles(der(certificates["ca"])) == frozenset()
    assert peer_roles(b"") == frozenset()
    assert peer_roles(b"\x30\x82nonsense") == frozenset()


def test_unusable_files(certificates: Files, tmp_path: pathlib.Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        server_context(str(tmp_path / "none"), str(tmp_path / "none"))
    with pytest.raises(ssl.SSLError):
        server_context(str(certificates["mx"]), str(certificates["relay.key"]))


@pytest.mark.parametrize(
    ("algorithm", "used"),
    [(hashes.SHA256(), "sha256"), (hashes.SHA384(), "sha384"), (hashes.SHA512(), "sha512"), (None, "")],
)
def test_channel_binding_of_a_certificate(tmp_path: pathlib.Path, algorithm: hashes.HashAlgorithm, used: str) -> None:
    """RFC 5929 4.1: the hash of the certificate's signature; Ed25519 (None) has none, and then there is no binding."""
    key = ec.generate_private_key(ec.SECP256R1()) if used else ed25519.Ed25519PrivateKey.generate()
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "mx.example.org")])
    now = datetime.datetime(2026, 1, 1)
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now, now)
    made = builder.sign(key, algorithm)  # type: ignore[arg-type]
    other = builder.sign(key, algorithm)  # type: ignore[arg-type]
    pem = serialization.Encoding.PEM
    file = tmp_path / "chain.pem"
    file.write_bytes(made.public_bytes(pem) + other.public_bytes(pem))
    der = made.public_bytes(serialization.Encoding.DER)
    assert end_point(str(file)) == (hashlib.new(used, der).digest() if used else b"")
    file.write_bytes(b"nonsense")
    assert end_point(str(file)) == b""
