"""Delivery status notifications and conversions, from submission to a real MX that offers much or little."""

from __future__ import annotations

import email
import email.policy
import smtplib
import subprocess
from collections.abc import Callable
from email.message import EmailMessage
from typing import Any, cast

import dkim
import dns.message
import dns.query
import pytest
from peer_programs import need, wait_until

pytestmark = [pytest.mark.peer, pytest.mark.slow]

TEXT = "Viele Grüße aus Köln, und so weiter und so fort\r\n"


@pytest.fixture
def start(make_service: Callable[..., Any], peers: Callable[[Any], None], named: Any) -> Callable[[Any], Any]:
    """A function (mx): the service with this MX for everybody."""

    def make(mx: Any) -> Any:
        def change(document: Any) -> None:
            peers(document)
            document["relay"]["mx_port"] = mx.port
            document["dns"]["resolvers"] = [named.address]  # a cache would have the key of the test before

        return make_service(change)

    return make


@pytest.fixture
def narrow(start: Callable[[Any], Any], postfix_narrow: Any) -> Any:
    """The service with a Postfix as everybody's MX that offers neither DSN nor SMTPUTF8 nor 8BITMIME."""
    return start(postfix_narrow)


def mail(token: str, sender: str, body: str = TEXT) -> bytes:
    text = f"From: <{sender}>\r\nSubject: {token}\r\nX-Token: {token}\r\nMIME-Version: 1.0\r\n"
    text += "Content-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n\r\n"
    return (text + body).encode()


def send(client: smtplib.SMTP, sender: str, recipients: dict[str, str], message: bytes, options: str = "") -> None:
    """``recipients``: address -> parameters of RCPT."""
    assert client.docmd(f"MAIL FROM:<{sender}> {options}".strip())[0] == 250
    for address, parameters in recipients.items():
        code, text = client.docmd(f"RCPT TO:<{address}> {parameters}".strip())
        assert code == 250, (address, code, text)
    code, text = client.data(message)
    assert code == 250, (code, text)
    client.quit()


def reports(mx: Any, token: str, count: int) -> dict[str, tuple[EmailMessage, dict[str, Any], list[dict[str, Any]]]]:
    """Action -> (report, fields about the message, fields about each recipient)."""

    def arrived() -> list[bytes]:
        return [m for m in mx.messages() if b"multipart/report" in m and f"X-Token: {token}\r\n".encode() in m]

    wait_until(lambda: len(arrived()) >= count, f"{count} reports", 40.0)
    found = {}
    for raw in arrived():
        report = cast(EmailMessage, email.message_from_bytes(raw, policy=email.policy.SMTP))
        assert not report.defects
        _, status, _ = report.iter_parts()
        assert status.get_content_type() == "message/delivery-status"
        about, *groups = [dict(group.items()) for group in cast(Any, status).get_payload()]
        found[groups[0]["Action"]] = (report, about, groups)
    assert len(found) == count
    return found


def test_dsn_for_a_peer_without_it(narrow: Any, postfix_narrow: Any) -> None:
    sender = narrow.user
    recipients = {
        "asked@other.test": "NOTIFY=SUCCESS,FAILURE,DELAY ORCPT=rfc822;first+2Basked@other.test",
        "silent@other.test": "NOTIFY=NEVER",
        "default@other.test": "",
        "gone@other.test": "NOTIFY=FAILURE ORCPT=rfc822;gone@first.test",
        "gone-too@other.test": "NOTIFY=NEVER",
    }
    client = narrow.client()
    client.ehlo()
    assert client.has_extn("dsn")
    send(client, sender, recipients, mail("dsn", sender, "ascii\r\n"), "RET=HDRS ENVID=env+2B1")
    found = reports(postfix_narrow, "dsn", 2)
    report, about, [group] = found["relayed"]
    assert about["Original-Envelope-Id"] == "env+1"
    assert about["Reporting-MTA"] == f"dns; {narrow.config.hostname}"
    assert group["Original-Recipient"] == "rfc822;first+asked@other.test"
    assert group["Final-Recipient"] == "rfc822;asked@other.test"
    assert group["Remote-MTA"] == "dns; mx1.example.test"
    assert group["Diagnostic-Code"].startswith("smtp; 250 2.0.0 Ok")
    assert group["Status"] == "2.0.0"
    assert report["To"].addresses[0].addr_spec == sender
    assert report["Return-Path"] == "<>"
    text, _, original = report.iter_parts()
    assert "asked@other.test" in cast(EmailMessage, text).get_content()
    assert original.get_content_type() == "text/rfc822-headers"
    report, about, [group] = found["failed"]
    assert about["Original-Envelope-Id"] == "env+1"
    assert group["Final-Recipient"] == "rfc822;gone@other.test"
    assert group["Original-Recipient"] == "rfc822;gone@first.test"
    assert group["Status"] == "5.1.1"
    assert group["Diagnostic-Code"].startswith("smtp; 550 5.1.1 ")
    original = list(report.iter_parts())[2]
    assert original.get_content_type() == "text/rfc822-headers"  # RET=HDRS
    assert "ascii" not in cast(EmailMessage, original).get_content()


def test_a_peer_with_dsn_reports_itself(start: Callable[[Any], Any], postfix_mx: Any) -> None:
    service = start(postfix_mx)
    asked = {"asked@other.test": "NOTIFY=SUCCESS ORCPT=rfc822;first@other.test"}
    send(service.client(), service.user, asked, mail("dsn-there", service.user), "BODY=8BITMIME ENVID=e7")
    found = reports(postfix_mx, "dsn-there", 1)
    _, about, [group] = found["delivered"]
    assert about["Original-Envelope-Id"] == "e7"
    assert group["Original-Recipient"].replace(" ", "") == "rfc822;first@other.test"
    assert not [line for line in service.log_lines() if line["event"] == "reported"]


def test_8_bit_mail_is_converted_and_signed_again(narrow: Any, named: Any, postfix_narrow: Any) -> None:
    def txt(name: bytes, timeout: float = 5) -> bytes | None:
        answer = dns.query.tcp(dns.message.make_query(name.decode(), "TXT"), "127.0.0.1", timeout, named.port)
        return b"".join(answer.answer[0][0].strings) if answer.answer else None

    host, port = narrow.address("submission", "starttls")
    command = [need("swaks"), "--server", host, "--port", str(port), "--tls", "--auth", "PLAIN"]
    command += ["--auth-user", narrow.user, "--auth-password", narrow.password, "--from", narrow.user]
    command += ["--to", "you@other.test", "--data", mail("eight", narrow.user).decode().replace("\r\n", "\\n")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    [arrived] = postfix_narrow.wait(b"X-Token: eight", seconds=30.0)
    assert arrived.isascii()
    parsed = email.message_from_bytes(arrived)
    assert parsed["Content-Transfer-Encoding"] == "quoted-printable"
    payload = parsed.get_payload(decode=True)
    assert isinstance(payload, bytes)
    assert payload.decode().replace("\r\n", "\n").startswith(TEXT.replace("\r\n", "\n"))
    own = arrived[arrived.index(b"DKIM-Signature:") :]
    assert own.count(b"DKIM-Signature:") == 1
    assert dkim.verify(own, dnsfunc=txt)
    assert [line for line in narrow.log_lines() if line["event"] == "converted"]


def test_smtputf8_where_it_is_not_offered(narrow: Any, postfix_narrow: Any) -> None:
    """One recipient needs it and fails, the others do not and get it; the report is in UTF-8, and passes as base64."""
    client = narrow.client()
    client.ehlo()
    client.command_encoding = "utf-8"
    recipients = {"you@other.test": "", "jos\u00e9@other.test": "ORCPT=utf-8;jos\\x{E9}@other.test"}
    send(client, narrow.user, recipients, mail("utf8", narrow.user, "ascii\r\n"), "SMTPUTF8")
    got = postfix_narrow.wait(b"X-Token: utf8\r\n", 2, seconds=40.0)
    [report] = [m for m in got if b"multipart/report" in m]
    assert report.isascii()
    parsed = email.message_from_bytes(report)
    assert parsed.get_content_type() == "multipart/report"
    bodies = {p.get_content_type(): p for p in parsed.walk()}
    assert "message/global-delivery-status" in bodies
    [failed] = [line for line in narrow.log_lines() if line["event"] == "failed"]
    assert "international address" in failed["reply"]
