"""Programs that people send mail with, each through our submission to a Postfix that is the MX of everybody.

What reaches the MX is looked at there: the message, the address in UTF-8, and the notification that it makes when DSN
parameters have come through. docs/smtp.md says which client shows which extension.
"""

from __future__ import annotations

import email.message
import email.policy
import json
import pathlib
import smtplib
import subprocess
from collections.abc import Callable
from typing import Any

import pytest

pytestmark = [pytest.mark.peer, pytest.mark.slow]

RECIPIENT = "someone@other.test"
UTF8_RECIPIENT = "rené@other.test"
NODEMAILER = "/usr/share/nodejs/nodemailer"


def mail(token: str, sender: str = "first@example.test", to: str = RECIPIENT, body: str = "hello\r\n") -> bytes:
    return f"From: <{sender}>\r\nTo: <{to}>\r\nSubject: {token}\r\nX-Token: {token}\r\n\r\n{body}".encode()


@pytest.fixture
def service(shared_service: Any) -> Any:
    return shared_service


@pytest.fixture
def run(program: Callable[[str], str], tmp: pathlib.Path) -> Callable[..., str]:
    """A function (name, *arguments, stdin=b"", **environment): runs a program that must succeed; its output."""

    def start(name: str, *arguments: str, stdin: bytes = b"", **environment: str) -> str:
        command = [program(name), *arguments]
        done = subprocess.run(
            command,
            input=stdin,
            capture_output=True,
            timeout=60,
            env={"HOME": str(tmp), "LC_ALL": "C.UTF-8"} | environment,
        )
        output = (done.stdout + done.stderr).decode(errors="replace")
        assert done.returncode == 0, output
        return output

    return start


def notified(postfix_mx: Any, token: str, envid: str = "") -> None:
    """The MX has told the sender of a delivery: NOTIFY, and ENVID if given, went through us."""
    [report] = [m for m in postfix_mx.wait(b"multipart/report", 1) if token.encode() in m]
    assert b"Action: delivered" in report
    assert not envid or f"Original-Envelope-Id: {envid}".encode() in report


def test_smtplib(service: Any, postfix_mx: Any) -> None:
    client = service.starttls_client()
    for n in range(3):  # several messages on one connection
        client.sendmail(service.user, [RECIPIENT], mail(f"smtplib-{n}"))
    client.quit()
    for n in range(3):
        assert postfix_mx.wait(f"X-Token: smtplib-{n}".encode())


def test_smtplib_with_dsn(service: Any, postfix_mx: Any) -> None:
    client = service.client()
    options = ["RET=HDRS", "ENVID=smtplib-dsn-1"]
    client.sendmail(service.user, [RECIPIENT], mail("smtplib-dsn"), options, ["NOTIFY=SUCCESS"])
    client.quit()
    assert postfix_mx.wait(b"X-Token: smtplib-dsn")
    postfix_mx.wait(b"Original-Envelope-Id")
    notified(postfix_mx, "smtplib-dsn", "smtplib-dsn-1")


def test_smtplib_with_smtputf8(service: Any, postfix_mx: Any) -> None:
    message = email.message.EmailMessage(policy=email.policy.SMTPUTF8)
    message["From"], message["To"], message["Subject"] = service.user, UTF8_RECIPIENT, "déjà vu"
    message["X-Token"] = "smtplib-utf8"
    message.set_content("œuvre\n")
    client = service.client()
    client.send_message(message)
    client.quit()
    [arrived] = postfix_mx.wait(b"X-Token: smtplib-utf8")
    assert f"Delivered-To: {UTF8_RECIPIENT}".encode() in arrived
    assert "Subject: déjà vu".encode() in arrived
    assert b"with UTF8SMTPS" in arrived  # RFC 6531 3.7.3: in the field of the MX


def test_swaks(service: Any, postfix_mx: Any, run: Callable[..., str]) -> None:
    host, port = service.address("submission", "starttls")
    who = ["--auth-user", service.user, "--auth-password", service.password, "--from", service.user]
    for mechanism in ("PLAIN", "LOGIN"):
        run(
            "swaks", "--server", host, "--port", str(port), "--tls", "--auth", mechanism, *who,
            "--to", RECIPIENT, "--header", f"X-Token: swaks-{mechanism}",
        )  # fmt: skip
        assert postfix_mx.wait(f"X-Token: swaks-{mechanism}".encode())


def test_curl(service: Any, postfix_mx: Any, tmp: pathlib.Path, run: Callable[..., str]) -> None:
    host, port = service.address("submission", "implicit")
    file = tmp / "message"
    for token, recipient in (("curl", RECIPIENT), ("curl-utf8", UTF8_RECIPIENT)):
        file.write_bytes(mail(token, to=recipient))
        run(
            "curl", "-sS", "--url", f"smtps://{host}:{port}", "--cacert", service.config.tls.internal_ca,
            "--user", f"{service.user}:{service.password}", "--mail-from", service.user,
            "--mail-rcpt", recipient, "-T", str(file),
        )  # fmt: skip
        [arrived] = postfix_mx.wait(f"X-Token: {token}\r\n".encode())
        assert f"Delivered-To: {recipient}".encode() in arrived


@pytest.mark.parametrize("mechanism", ["plain", "login", "scram-sha-256"])  # Debian 12's knows no -plus
def test_msmtp(service: Any, postfix_mx: Any, run: Callable[..., str], mechanism: str) -> None:
    host, port = service.address("submission", "starttls")
    token = f"msmtp-{mechanism}"
    run(
        "msmtp", f"--host={host}", f"--port={port}", "--tls=on", f"--tls-trust-file={service.config.tls.internal_ca}",
        f"--auth={mechanism}", f"--user={service.user}", "--passwordeval=printenv PASSWORD",
        f"--from={service.user}", "--dsn-notify=success", "--dsn-return=headers", RECIPIENT,
        stdin=mail(token).replace(b"\r\n", b"\n"), PASSWORD=service.password,
    )  # fmt: skip
    assert postfix_mx.wait(f"X-Token: {token}".encode())
    postfix_mx.wait(token.encode(), 2)
    notified(postfix_mx, token)


def test_s_nail(service: Any, postfix_mx: Any, run: Callable[..., str]) -> None:
    _, port = service.address("submission", "implicit")
    user = service.user.replace("@", "%40")
    run(
        "s-nail", "-:/", "-Sv15-compat", f"-Smta=smtps://{user}:{service.password}@localhost:{port}",
        "-Ssmtp-auth=plain", f"-Stls-ca-file={service.config.tls.internal_ca}", "-Stls-verify=strict",
        f"-Sfrom={service.user}",
        "-Ssendwait", "-Ssendcharsets=utf-8", "-s", "s-nail-subject", RECIPIENT,
        stdin="Grüße\n".encode(), DEAD="/dev/null",
    )  # fmt: skip
    assert postfix_mx.wait(b"Subject: s-nail-subject")


def test_nodemailer(service: Any, postfix_mx: Any, run: Callable[..., str], absent: Callable[[str], None]) -> None:
    """Several messages over its pool, one of them with DSN and one with an address in UTF-8."""
    if not pathlib.Path(NODEMAILER).exists():
        absent("nodemailer is not installed (as root: sh tests/install-peers.sh)")
    host, port = service.address("submission", "implicit")
    ca = pathlib.Path(service.config.tls.internal_ca).read_text()
    transport = {
        "host": host, "port": port, "secure": True, "pool": True, "maxConnections": 1,
        "auth": {"user": service.user, "pass": service.password}, "tls": {"ca": ca},
    }  # fmt: skip
    dsn = {"id": "nodemailer-1", "return": "headers", "notify": ["success"], "recipient": service.user}
    mails = [
        {"from": service.user, "to": RECIPIENT, "subject": "one", "text": "1", "headers": {"X-Token": "node-1"}},
        {"from": service.user, "to": UTF8_RECIPIENT, "subject": "é", "text": "2", "headers": {"X-Token": "node-2"}},
        {"from": service.user, "to": RECIPIENT, "text": "3", "dsn": dsn, "headers": {"X-Token": "node-3"}},
    ]
    script = """
        const { transport, mails } = JSON.parse(require("fs").readFileSync(0, "utf-8"));
        const sender = require(process.argv[1]).createTransport(transport);
        (async () => { for (const m of mails) console.log((await sender.sendMail(m)).response); sender.close(); })()
            .catch((e) => { console.error(e); process.exit(1); });
    """
    given = json.dumps({"transport": transport, "mails": mails}).encode()
    assert run("node", "-e", script, NODEMAILER, stdin=given).count("250 2.0.0") == len(mails)
    assert postfix_mx.wait(b"X-Token: node-1")
    [arrived] = postfix_mx.wait(b"X-Token: node-2")
    assert f"Delivered-To: {UTF8_RECIPIENT}".encode() in arrived
    postfix_mx.wait(b"Original-Envelope-Id: nodemailer-1")
    notified(postfix_mx, "node-3", "nodemailer-1")


def send_through(port: int, sender: str, name: str) -> None:
    """Three messages for an MTA that sends on through us: plain, with DSN, with SMTPUTF8."""
    with smtplib.SMTP("127.0.0.1", port, timeout=30) as s:
        s.sendmail(sender, [RECIPIENT], mail(f"{name}-plain"))
        s.sendmail(sender, [RECIPIENT], mail(f"{name}-dsn"), [f"ENVID={name}-1"], ["NOTIFY=SUCCESS"])
        s.sendmail(sender, [UTF8_RECIPIENT], mail(f"{name}-utf8", to=UTF8_RECIPIENT), ["SMTPUTF8", "BODY=8BITMIME"])


def arrived_from(postfix_mx: Any, name: str) -> None:
    assert postfix_mx.wait(f"X-Token: {name}-plain".encode())
    assert postfix_mx.wait(f"X-Token: {name}-dsn".encode())
    [arrived] = postfix_mx.wait(f"X-Token: {name}-utf8".encode())
    assert f"Delivered-To: {UTF8_RECIPIENT}".encode() in arrived
    postfix_mx.wait(f"Original-Envelope-Id: {name}-1".encode())
    notified(postfix_mx, f"{name}-dsn", f"{name}-1")


def test_postfix(service: Any, postfix_client: Callable[..., Any], postfix_mx: Any) -> None:
    _, port = service.address("submission", "starttls")
    client = postfix_client(port, service.user, service.password)
    send_through(client.port, service.user, "postfix")
    arrived_from(postfix_mx, "postfix")


def test_exim_with_chunking(service: Any, exim_client: Callable[..., Any], postfix_mx: Any) -> None:
    _, port = service.address("submission", "starttls")
    client = exim_client(port, service.user, service.password, service.config.tls.internal_ca)
    send_through(client.port, service.user, "exim")
    arrived_from(postfix_mx, "exim")
    assert " K " in client.main_log, client.main_log  # BDAT was used
