"""Logging in at the running service: each mechanism, by programs that others wrote where there are any."""

from __future__ import annotations

import base64
import datetime
import hashlib
import pathlib
import shutil
import smtplib
import ssl
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import scramp
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ptt.cli.sandbox import Sandbox
from ptt.service.certificates import Pair, make_ca
from ptt.smtp.sasl import SCRAM, SCRAM_PLUS

pytestmark = pytest.mark.slow

NOW = datetime.datetime.now(datetime.UTC)


class WithUserCertificates(Sandbox):
    def adapt(self, document: Any) -> None:
        super().adapt(document)
        document.setdefault("tls", {})["submission_client_ca"] = "users-ca.pem"


def user_certificate(ca: Pair, mailboxes: list[str]) -> tuple[bytes, bytes]:
    """A certificate as an organisation gives it to its people; certificate and key in PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "somebody")]))
        .issuer_name(ca.certificate.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW - datetime.timedelta(hours=1))
        .not_valid_after(NOW + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.RFC822Name(m) for m in mailboxes]), critical=False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(ca.key.public_key()),
            critical=False,
        )
    )
    pem = serialization.Encoding.PEM
    return (
        builder.sign(ca.key, hashes.SHA256()).public_bytes(pem),
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
    )


@pytest.fixture(scope="module")
def made() -> Iterator[tuple[WithUserCertificates, Pair]]:
    above = pathlib.Path(tempfile.mkdtemp(prefix="ptt-"))
    above.chmod(0o755)  # as root each process has its own user
    service = WithUserCertificates(above / "ptt", pool=1)
    service.prepare()
    ca = make_ca("users", NOW)
    file = service.directory / "users-ca.pem"
    file.write_bytes(ca.certificate_pem())
    file.chmod(0o644)
    with service:
        service.start()
        yield service, ca
    print("".join(service.log.read_text().splitlines(keepends=True)[-40:]))
    shutil.rmtree(above, ignore_errors=True)


@pytest.fixture
def service(made: tuple[WithUserCertificates, Pair]) -> WithUserCertificates:
    return made[0]


@pytest.fixture
def connect(
    made: tuple[WithUserCertificates, Pair], tmp_path: pathlib.Path
) -> Iterator[Callable[..., smtplib.SMTP_SSL]]:
    """connect(mailboxes=None): to the implicit-TLS listener, with a certificate for these mailboxes if any."""
    service, ca = made
    opened: list[smtplib.SMTP_SSL] = []

    def connect(mailboxes: list[str] | None = None, issuer: Pair = ca) -> smtplib.SMTP_SSL:
        context = ssl.create_default_context(cafile=service.config.tls.internal_ca)
        if mailboxes is not None:
            certificate, key = user_certificate(issuer, mailboxes)
            (tmp_path / "both.pem").write_bytes(certificate + key)
            context.load_cert_chain(tmp_path / "both.pem")
        host, port = service.address("submission", "implicit")
        client = smtplib.SMTP_SSL(host, port, timeout=20, context=context)
        opened.append(client)
        client.ehlo()
        return client

    yield connect
    for client in opened:
        client.close()


def b64(data: bytes | str) -> str:
    return base64.b64encode(data.encode() if isinstance(data, str) else data).decode()


def scram_login(client: smtplib.SMTP_SSL, user: str, password: str, *, plus: bool, wrong: bool = False) -> int:
    """The code of the last reply. The binding is SHA-256 of the certificate (its signature has that hash)."""
    binding = None
    if plus:
        assert isinstance(client.sock, ssl.SSLSocket)
        seen = hashlib.sha256(client.sock.getpeercert(binary_form=True) or b"").digest()
        binding = ("tls-server-end-point", seen[::-1] if wrong else seen)
    theirs = scramp.ScramClient([SCRAM_PLUS if plus else SCRAM], user, password, channel_binding=binding)
    code, text = client.docmd(f"AUTH {theirs.mechanism_name} {b64(theirs.get_client_first())}")
    assert code == 334, text
    theirs.set_server_first(base64.b64decode(text).decode())
    code, text = client.docmd(b64(theirs.get_client_final()))
    if code == 334:
        theirs.set_server_final(base64.b64decode(text).decode())
        code, _ = client.docmd("")
    return code


def test_the_offer(connect: Callable[..., smtplib.SMTP_SSL], service: WithUserCertificates) -> None:
    assert connect().esmtp_features["auth"].split() == [SCRAM_PLUS, SCRAM, "PLAIN", "LOGIN"]
    with_one = connect([service.user])
    assert with_one.esmtp_features["auth"].split() == ["EXTERNAL", SCRAM_PLUS, SCRAM, "PLAIN", "LOGIN"]


@pytest.mark.parametrize("plus", [False, True])
def test_scramp(connect: Callable[..., smtplib.SMTP_SSL], service: WithUserCertificates, plus: bool) -> None:
    assert scram_login(connect(), service.user, service.password, plus=plus) == 235
    client = connect()
    assert scram_login(client, service.user, service.password, plus=plus) == 235
    assert client.mail(service.user)[0] == 250
    assert scram_login(connect(), service.user, "wrong", plus=plus) == 535
    assert scram_login(connect(), "nobody@" + service.domain, service.password, plus=plus) == 535


def test_another_channel(connect: Callable[..., smtplib.SMTP_SSL], service: WithUserCertificates) -> None:
    assert scram_login(connect(), service.user, service.password, plus=True, wrong=True) == 535


def test_a_downgrade_is_noticed(connect: Callable[..., smtplib.SMTP_SSL], service: WithUserCertificates) -> None:
    assert connect().docmd(f"AUTH {SCRAM} {b64(f'y,,n={service.user},r=abc')}")[0] == 535


@pytest.mark.parametrize(
    ("mailboxes", "response", "code"),
    [
        (["USER"], "=", 235),
        (["USER"], "USER", 235),
        (["USER"], "other@demo.example", 535),
        (["USER", "other@demo.example"], "=", 535),  # which of them?
        (["USER", "other@demo.example"], "USER", 235),
        (["nobody@demo.example"], "=", 535),
    ],
)
def test_external(
    connect: Callable[..., smtplib.SMTP_SSL],
    service: WithUserCertificates,
    mailboxes: list[str],
    response: str,
    code: int,
) -> None:
    client = connect([m.replace("USER", service.user) for m in mailboxes])
    said = response if response == "=" else b64(response.replace("USER", service.user))
    assert client.docmd(f"AUTH EXTERNAL {said}")[0] == code
    if code == 235:
        assert client.mail(service.user)[0] == 250


def test_without_a_certificate_there_is_no_external(connect: Callable[..., smtplib.SMTP_SSL]) -> None:
    assert connect().docmd("AUTH EXTERNAL =")[0] == 504


def test_a_certificate_of_somebody_else_is_not_heard(
    connect: Callable[..., smtplib.SMTP_SSL], service: WithUserCertificates
) -> None:
    with pytest.raises((OSError, smtplib.SMTPException)):
        connect([service.user], make_ca("users", NOW))


@pytest.mark.peer
@pytest.mark.parametrize("mechanism", ["plain", "login", "scram-sha-256", "external"])
def test_msmtp(
    made: tuple[WithUserCertificates, Pair], program: Callable[[str], str], tmp_path: pathlib.Path, mechanism: str
) -> None:
    service, ca = made
    host, port = service.address("submission", "starttls")
    command = [
        program("msmtp"), f"--host={host}", f"--port={port}", "--tls=on", f"--auth={mechanism}",
        f"--tls-trust-file={service.config.tls.internal_ca}", f"--user={service.user}",
        "--passwordeval=printenv PASSWORD", f"--from={service.user}", "someone@other.example",
    ]  # fmt: skip
    if mechanism == "external":
        certificate, key = user_certificate(ca, [service.user])
        for name, data in (("cert", certificate), ("key", key)):
            (tmp_path / name).write_bytes(data)
            (tmp_path / name).chmod(0o600)
            command.insert(1, f"--tls-{name}-file={tmp_path / name}")
    message = f"From: <{service.user}>\nSubject: {mechanism}\n\nhello\n".encode()
    environment = {"PASSWORD": service.password, "HOME": str(tmp_path)}
    done = subprocess.run(command, input=message, capture_output=True, timeout=60, env=environment, check=False)
    assert done.returncode == 0, done.stderr.decode()
    environment["PASSWORD"] = "wrong"
    if mechanism != "external":
        done = subprocess.run(command, input=message, capture_output=True, timeout=60, env=environment, check=False)
        assert done.returncode == 77, done.stderr.decode()  # EX_NOPERM


@pytest.mark.peer
def test_swaks(service: WithUserCertificates, program: Callable[[str], str]) -> None:
    """PLAIN and LOGIN; CRAM-MD5, which would need the password itself, is not offered."""
    host, port = service.address("submission", "starttls")
    command = [program("swaks"), "--server", f"{host}:{port}", "--tls", "--from", service.user, "--quit-after", "AUTH"]
    for mechanism, code in (("PLAIN", 0), ("LOGIN", 0), ("CRAM-MD5", 28)):
        who = ["--auth", mechanism, "--auth-user", service.user, "--auth-password", service.password]
        done = subprocess.run([*command, *who], capture_output=True, timeout=60, check=False)
        assert done.returncode == code, done.stdout.decode()
