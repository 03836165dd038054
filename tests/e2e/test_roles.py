"""One role per host: submission -> signer -> relay over SMTP with mutual TLS, each with its own queue."""

from __future__ import annotations

import json
import os
import pathlib
import re
import shutil
import smtplib
import ssl
from collections.abc import Callable, Iterator
from typing import Any

import dkim
import dns.message
import dns.query
import pytest
import tomlkit
from peer_programs import wait_until

from ptt.cli.sandbox import Sandbox, SandboxError, free_port
from ptt.config import load

pytestmark = [pytest.mark.peer, pytest.mark.slow]

DOMAIN = "example.test"


class Host(Sandbox):
    """One host with one role."""

    def __init__(
        self, directory: pathlib.Path, role: str, change: Callable[[Any], None], ca: str, next_hop: str
    ) -> None:
        super().__init__(directory, pool=1, retry_seconds=0.5, domain=DOMAIN)
        self.role, self._change, self._ca, self._next_hop = role, change, ca, next_hop

    def make(self) -> None:
        words = ["init", str(self.directory), "--domain", DOMAIN, "--hostname", f"{self.role}.{DOMAIN}"]
        words += ["--role", self.role, "--free-ports"]
        words += ["--next-hop", self._next_hop] if self._next_hop else []
        words += ["--ca", self._ca] if self._ca else []
        self.ptt(*words, config=False)
        self._write_configuration()
        self.config = load(self.file)
        if self.role == "submission":
            self.password = "a-password-of-the-test"
            self.ptt("user", "add", self.user, "--password-stdin", stdin=self.password + "\n")

    def adapt(self, document: Any) -> None:
        for listen in document["listen"]:
            listen["address"] = f"127.0.0.1:{free_port()}"
        document["admin"]["listen"] = f"127.0.0.1:{free_port()}"
        document["relay"]["retry"] = {"first_seconds": 0.5, "ceiling_seconds": 1.0}
        document["relay"]["allow_private"] = True
        self._change(document)

    @property
    def hop(self) -> str:
        return self.config.listen[0].address


class Hosts:
    def __init__(self, directory: pathlib.Path, named: Any, resolver: str, mx_port: int) -> None:
        self.directory, self.named, self.resolver, self.mx_port = directory, named, resolver, mx_port
        self.relay = self._host("relay", self._relay, "", "")
        ca = str(self.relay.directory)
        self.signer = self._host("signer", self._signer, ca, self.relay.hop)
        self.submission = self._host("submission", lambda d: None, ca, self.signer.hop)

    def _host(self, role: str, change: Callable[[Any], None], ca: str, next_hop: str) -> Host:
        host = Host(self.directory / role, role, change, ca, next_hop)
        host.make()
        return host

    def _relay(self, document: Any) -> None:
        document["dns"]["resolvers"] = [self.resolver]
        document["relay"]["mx_port"] = self.mx_port

    def _signer(self, document: Any) -> None:
        key = self.directory / "signer" / "primary.key"
        shutil.copyfile(self.named.key_file, key)
        key.chmod(0o600)
        if os.geteuid() == 0 and "users" in document:
            os.chown(key, int(document["users"]["control"]), int(document["users"]["control"]))
        zone = {"name": DOMAIN, "primary": self.named.address, "key_file": "primary.key"}
        document["dns"] = {
            "resolvers": [self.resolver],
            "authority_port": self.named.port,
            "retry_seconds": 0.3,
            "zones": [zone],
        }

    def start(self) -> None:
        for host in (self.relay, self.signer, self.submission):
            host.start_service()

    def stop(self) -> None:
        for host in (self.submission, self.signer, self.relay):
            host.stop()


@pytest.fixture
def named(make_named: Callable[[], Any]) -> Any:
    """One of this test's own: in the one that others use is the key of another host, which is not ours to replace."""
    return make_named()


@pytest.fixture
def hosts(directory: pathlib.Path, named: Any, postfix_mx: Any) -> Iterator[Hosts]:
    made = Hosts(directory, named, named.address, postfix_mx.port)
    yield made
    made.stop()


def submit(host: Host, token: str, recipient: str = "someone@other.test") -> None:
    client = host.client()
    text = f"From: <{host.user}>\r\nTo: <{recipient}>\r\nSubject: {token}\r\nX-Token: {token}\r\n\r\nhello\r\n"
    client.sendmail(host.user, [recipient], text.encode())
    client.quit()


def test_three_hosts(hosts: Hosts, named: Any, postfix_mx: Any) -> None:
    hosts.start()
    submit(hosts.submission, "three-hosts")
    [arrived] = postfix_mx.wait(b"X-Token: three-hosts", seconds=40.0)

    def txt(name: bytes, timeout: float = 5) -> bytes | None:
        answer = dns.query.tcp(dns.message.make_query(name.decode(), "TXT"), "127.0.0.1", timeout, named.port)
        return b"".join(answer.answer[0][0].strings) if answer.answer else None

    assert dkim.verify(arrived[arrived.index(b"Received: from signer.") :], dnsfunc=txt) or dkim.verify(
        arrived[arrived.index(b"DKIM-Signature:") :], dnsfunc=txt
    )
    for role in ("submission", "signer", "relay"):
        assert f"by {role}.{DOMAIN} (PTT) with ESMTPS".encode() in arrived
    for host in (hosts.submission, hosts.signer):
        assert not [line for line in host.log_lines() if line.get("event") == "waits"]
    assert [line for line in hosts.signer.log_lines() if line["event"] == "signed"]
    assert not [line for line in hosts.submission.log_lines() if line["event"] == "signed"]


def test_a_next_hop_with_a_foreign_certificate_gets_nothing(
    hosts: Hosts, directory: pathlib.Path, postfix_mx: Any
) -> None:
    """The signer's certificate is replaced by one of another authority: mail waits, and goes on when it is right."""
    stranger = directory / "stranger"
    hosts.signer.ptt(
        "init", str(stranger), "--domain", DOMAIN, "--hostname", f"signer.{DOMAIN}", "--free-ports", config=False
    )
    tls = hosts.signer.directory / "tls"
    kept = {name: (tls / name).read_bytes() for name in ("internal.pem", "internal.key")}
    for name in kept:
        (tls / name).write_bytes((stranger / "tls" / name).read_bytes())
    hosts.start()
    submit(hosts.submission, "foreign-certificate")
    wait_until(
        lambda: any(
            line["event"] == "attempt" and line["outcome"] == "deferred" and "certificate" in line["reply"]
            for line in hosts.submission.log_lines()
        ),
        "a deferred attempt",
        30.0,
    )
    assert not [m for m in postfix_mx.messages() if b"foreign-certificate" in m]
    for name, content in kept.items():
        (tls / name).write_bytes(content)
    os.kill(hosts.signer.pid_of("service"), 1)  # SIGHUP: read certificates again
    assert postfix_mx.wait(b"X-Token: foreign-certificate", seconds=40.0)


def test_relay_takes_nothing_without_a_certificate_of_ours(hosts: Hosts) -> None:
    hosts.relay.start_service()
    host, port = hosts.relay.address("relay", "starttls")
    context = ssl.create_default_context(cafile=hosts.relay.config.tls.internal_ca)
    context.check_hostname = False
    client = smtplib.SMTP(host, port, timeout=20)
    client.starttls(context=context)
    client.ehlo("stranger.example")
    assert "xptt" not in client.esmtp_features
    code, _ = client.mail("a@example.test")
    assert code == 550
    client.quit()


def test_mail_that_waits_at_the_relay_is_signed_again_on_request(hosts: Hosts, named: Any, postfix_mx: Any) -> None:
    """Its signature is a compromised key's; the relay has no keys, so an operator sends the mail back to the signer."""
    document = tomlkit.parse(hosts.relay.file.read_text())
    document["relay"]["bounce_hop"] = hosts.signer.hop
    hosts.relay.file.write_text(tomlkit.dumps(document))
    hosts.start()
    submit(hosts.submission, "sent-back", "someone@dead.test")  # whose name server says SERVFAIL

    def lines(host: Host, event: str) -> list[dict[str, Any]]:
        return [line for line in host.log_lines() if line["event"] == event]

    def waiting() -> list[dict[str, Any]]:
        return [line for line in lines(hosts.relay, "attempt") if line["outcome"] == "deferred"]

    wait_until(waiting, "the message at the relay", 30.0)
    begun = json.loads(hosts.signer.ptt("dkim", "rotate", "--domain", DOMAIN, "--now", "--json"))
    new = begun["new"][0]["selector"]
    wait_until(lambda: lines(hosts.signer, "DKIM rotation done"), "the rotation", 30.0)
    wait_until(lambda: requeued(hosts.relay, f"hop:{hosts.signer.hop}"), "the way back", 30.0)
    wait_until(lambda: [s for s in lines(hosts.signer, "signed") if s["selectors"] == [new]], "the new signature", 30.0)
    wait_until(lambda: len({line["id"] for line in waiting()}) == 2, "the message at the relay again", 30.0)
    wait_until(lambda: requeued(hosts.relay, "other.test"), "another way", 30.0)
    [arrived] = postfix_mx.wait(b"X-Token: sent-back", seconds=40.0)
    selectors = re.findall(rb"\bs=([^;\s]+)", arrived)
    assert (selectors[0], len(selectors)) == (new.encode(), 2)
    assert dkim.DKIM(arrived).verify(0, dnsfunc=lambda name, timeout=5: _txt(named, name))


def requeued(host: Host, lane: str) -> bool:
    """Is all that waits on its way there? What a worker is at is left alone by the command."""
    try:
        host.ptt("queue", "requeue", "--sender", f"*@{DOMAIN}", "--to", lane)
    except SandboxError:
        return False
    return True


def _txt(named: Any, name: bytes) -> bytes | None:
    answer = dns.query.tcp(dns.message.make_query(name.decode(), "TXT"), "127.0.0.1", 5, named.port)
    return b"".join(answer.answer[0][0].strings) if answer.answer else None
