"""The whole path between real peers: BIND as primary, Unbound as resolver, Postfix as MX."""

from __future__ import annotations

import pathlib
import re
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Callable
from typing import Any

import dkim
import dns.message
import dns.query
import pytest

pytestmark = [pytest.mark.peer, pytest.mark.slow]

RECIPIENT = "someone@other.test"


def mail(token: str, sender: str = "first@example.test", body: str = "hello\r\n") -> bytes:
    return f"From: <{sender}>\r\nTo: <{RECIPIENT}>\r\nSubject: {token}\r\nX-Token: {token}\r\n\r\n{body}".encode()


def own_part(arrived: bytes) -> bytes:
    """What Postfix delivered without the fields that it put in front of our signature."""
    return arrived[arrived.index(b"DKIM-Signature:") :]


def txt_from(named: Any) -> Callable[..., bytes | None]:
    def txt(name: bytes, timeout: float = 5) -> bytes | None:
        answer = dns.query.tcp(dns.message.make_query(name.decode(), "TXT"), "127.0.0.1", timeout, named.port)
        return b"".join(answer.answer[0][0].strings) if answer.answer else None

    return txt


def need(program: str) -> str:
    found = shutil.which(program)
    assert found, f"{program} is missing: sh tests/install-peers.sh"
    return found


@pytest.fixture
def service(shared_service: Any) -> Any:
    return shared_service


def test_submit_sign_publish_deliver(service: Any, named: Any, postfix_mx: Any) -> None:
    shown = service.submit([RECIPIENT], mail("whole-path", body="line\r\n..dots\r\n.\r\nend  \r\n\r\n"))
    [arrived] = postfix_mx.wait(b"X-Token: whole-path")
    assert b"id " + shown.encode() in arrived
    assert arrived.endswith(b"line\r\n..dots\r\n.\r\nend  \r\n\r\n")
    assert dkim.verify(own_part(arrived), dnsfunc=txt_from(named))
    attempt = service.wait_for(
        lambda line: line.get("id") == shown and line["event"] == "attempt" and line["outcome"] == "delivered",
        "the attempt that delivers",  # the MX has an address of each family, Postfix listens on one
    )
    assert attempt["tls"]  # opportunistic STARTTLS


def test_opendkim_verifies_what_arrived(service: Any, named: Any, postfix_mx: Any, tmp: pathlib.Path) -> None:
    service.submit([RECIPIENT], mail("opendkim"))
    [arrived] = postfix_mx.wait(b"X-Token: opendkim")
    message = own_part(arrived)
    file = tmp / "message"
    file.write_bytes(message)
    selector = message.partition(b"s=")[2].partition(b";")[0].strip().decode()
    record = txt_from(named)(f"{selector}._domainkey.example.test".encode())
    assert record is not None
    keys = tmp / "keys"
    keys.write_bytes(f"{selector}._domainkey.example.test ".encode() + record + b"\n")
    conf = tmp / "opendkim.conf"
    conf.write_text(f"Mode v\nTestPublicKeys {keys}\nSyslog no\n")
    done = subprocess.run(
        [need("opendkim"), "-x", str(conf), "-t", str(file)], capture_output=True, text=True, timeout=60
    )
    assert "verification (s=" in done.stdout + done.stderr, done.stdout + done.stderr
    assert "succeeded" in done.stdout + done.stderr


def test_a_message_of_20_mib_passes(service: Any, named: Any, postfix_mx: Any) -> None:
    body = "".join(f"{n:07d} {'z' * 68}\r\n" for n in range(20 * 1024 * 1024 // 78 + 1))
    service.submit([RECIPIENT], mail("large", body=body))
    [arrived] = postfix_mx.wait(b"X-Token: large", seconds=60.0)
    assert arrived.endswith(body.encode())
    assert dkim.verify(own_part(arrived), dnsfunc=txt_from(named))


def test_null_mx_and_unknown_domain_are_told_at_once(service: Any, postfix_mx: Any) -> None:
    token = "refused-at-rcpt"
    client = service.client()
    refused = client.sendmail(service.user, ["a@null.example.test", "b@nowhere.example.test", RECIPIENT], mail(token))
    client.quit()
    assert {address: (code, text[:6].split()[0]) for address, (code, text) in refused.items()} == {
        "a@null.example.test": (556, b"5.1.10"),
        "b@nowhere.example.test": (550, b"5.1.2"),
    }
    assert postfix_mx.wait(f"X-Token: {token}".encode())


def test_null_mx_and_unknown_domain_bounce(
    make_service: Callable[..., Any], peers: Callable[[Any], None], postfix_mx: Any
) -> None:
    """Behind an alias the submitter cannot be told at RCPT."""
    token = "bounce-me"
    lost = ["a@null.example.test", "b@nowhere.example.test"]
    service = make_service(peers, start=False)
    service.ptt("alias", "add", "lost@example.test", *lost)
    service.start()
    service.submit(["lost@example.test", RECIPIENT], mail(token))
    assert postfix_mx.wait(f"X-Token: {token}".encode())
    bounces = [m for m in postfix_mx.wait(b"multipart/report", 2) if token.encode() in m]
    text = b"".join(bounces)
    assert b"a@null.example.test" in text
    assert b"b@nowhere.example.test" in text
    assert b"5.1.10" in text  # RFC 7505
    assert b"5.1.2" in text
    assert b"Final-Recipient: rfc822;a@null.example.test" in text
    assert RECIPIENT.encode() not in re.findall(rb"Final-Recipient: rfc822;(\S+)", text)


def test_metrics_and_health(make_service: Callable[..., Any], peers: Callable[[Any], None], postfix_mx: Any) -> None:
    service = make_service(peers)
    service.submit([RECIPIENT], mail("metrics"))
    assert postfix_mx.wait(b"X-Token: metrics")
    url = f"http://{service.config.admin.listen}"
    wanted = ['ptt_accepted_total{service="submission"} 1.0', 'ptt_attempts_total{outcome="delivered"} 1.0']
    deadline = time.monotonic() + 20
    text = ""
    while time.monotonic() < deadline and not all(w in text for w in wanted):
        text = urllib.request.urlopen(f"{url}/metrics", timeout=10).read().decode()
        time.sleep(0.1)
    assert [w for w in wanted if w not in text] == []
    assert urllib.request.urlopen(f"{url}/healthz", timeout=10).status == 200
