"""DANE from a zone that BIND serves signed and Unbound validates, to Postfix with certificates good and bad."""

from __future__ import annotations

import datetime
import hashlib
import pathlib
import re
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from dns import flags, message, query, rcode
from peer_dns import answers
from peer_postfix import MX_CF, PostfixMx
from peer_programs import Program

from ptt.dns.resolver import Resolver
from ptt.metrics import Counters
from ptt.relay.outcome import Deferred, Delivered
from ptt.service.certificates import Pair, issue, make_ca

pytestmark = [pytest.mark.peer, pytest.mark.slow]

SIGNED, UNSIGNED = "signed.test", "unsigned.test"
HOSTS = ("mx", "mxta", "mxbad", "mxold", "mxbogus", "mxplain")  # in the certificate; mxname is not
NAMED = """
options {{
    directory "{directory}"; pid-file none; session-keyfile none; lock-file none; managed-keys-directory "{directory}";
    listen-on port {port} {{ 127.0.0.1; }}; listen-on-v6 {{ none; }};
    recursion no; dnssec-validation no; notify no;
}};
controls {{ }};
zone "signed.test" {{ type primary; file "{directory}/signed.zone.signed"; }};
zone "unsigned.test" {{ type primary; file "{directory}/unsigned.zone"; }};
"""
UNBOUND = """
server:
    interface: 127.0.0.1
    port: {port}
    do-ip6: no
    do-daemonize: no
    username: ""
    chroot: ""
    directory: "{directory}"
    pidfile: ""
    use-syslog: no
    module-config: "validator iterator"
    trust-anchor-file: "{directory}/anchor"
    do-not-query-localhost: no
    local-zone: "test." nodefault
    num-threads: 1
remote-control:
    control-enable: no
stub-zone:
    name: "signed.test"
    stub-addr: 127.0.0.1@{named}
stub-zone:
    name: "unsigned.test"
    stub-addr: 127.0.0.1@{named}
"""
HEAD = """$TTL 60
@ IN SOA ns hostmaster 1 3600 600 86400 5
@ IN NS ns
ns IN A 127.0.0.1
"""


class Authority:
    """Who signs the certificates of the MXs."""

    def __init__(self) -> None:
        now = datetime.datetime.now(datetime.UTC)
        self.ca = make_ca("Mail CA", now - datetime.timedelta(days=90))
        names = [f"{host}.{SIGNED}" for host in HOSTS]
        self.good = issue(self.ca, names, [], now, 30)
        self.expired = issue(self.ca, names, [], now - datetime.timedelta(days=60), 30)

    def chain(self, pair: Pair) -> bytes:
        return pair.key_pem() + pair.certificate_pem() + self.ca.certificate_pem()


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture(scope="module")
def make_mx(peer_dir: Any, free_port: Any, program: Any, authority: Authority) -> Iterator[Callable[[Pair], PostfixMx]]:
    made: list[PostfixMx] = []

    def make(pair: Pair) -> PostfixMx:
        program("postfix")
        directory = peer_dir("tls")
        (directory / "tls.pem").touch(0o600)
        (directory / "tls.pem").write_bytes(authority.chain(pair))
        made.append(PostfixMx(directory, free_port(), MX_CF.format(directory=directory)))
        made[-1].start()
        return made[-1]

    yield make
    for mx in made:
        mx.stop()


@pytest.fixture(scope="module")
def good_mx(make_mx: Callable[[Pair], PostfixMx], authority: Authority) -> PostfixMx:
    return make_mx(authority.good)


@pytest.fixture(scope="module")
def expired_mx(make_mx: Callable[[Pair], PostfixMx], authority: Authority) -> PostfixMx:
    return make_mx(authority.expired)


def tlsa(port: int, host: str, usage: int, selector: int, data: bytes) -> str:
    return f"_{port}._tcp.{host} IN TLSA {usage} {selector} 1 {data.hex()}\n"


def records(authority: Authority, port: int) -> str:
    """The signed zone: a domain for each case, each with an MX of its own, all of which are the one Postfix."""
    key = authority.good.key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    end = hashlib.sha256(key).digest()
    above = hashlib.sha256(authority.ca.certificate.public_bytes(Encoding.DER)).digest()
    lines = "@ IN MX 10 mx\nalias IN MX 10 mxalias\nmxalias IN CNAME mx\n"
    for domain in ("ta", "bad", "name", "plain", "bogus"):
        lines += f"{domain} IN MX 10 mx{domain}\n"
    for host in ("mx", "mxta", "mxbad", "mxname", "mxplain", "mxbogus"):
        lines += f"{host} IN A 127.0.0.1\n"
    lines += tlsa(port, "mx", 3, 1, end) + tlsa(port, "mxta", 2, 0, above) + tlsa(port, "mxname", 2, 0, above)
    return lines + tlsa(port, "mxbad", 3, 1, bytes(32)) + tlsa(port, "mxbogus", 3, 1, b"\xaa" * 32)


def sign(directory: pathlib.Path, program: Callable[[str], str]) -> None:
    """signed.zone -> signed.zone.signed, with one record changed after it was signed; ``anchor``: the key to trust."""
    keygen = [program("dnssec-keygen"), "-q", "-a", "ECDSAP256SHA256", "-K", str(directory)]
    name = ""
    for options in ([], ["-f", "KSK"]):
        done = subprocess.run([*keygen, *options, SIGNED], capture_output=True, text=True, check=True)
        name = done.stdout.strip()
    (directory / "anchor").write_text((directory / f"{name}.key").read_text())
    signer = [program("dnssec-signzone"), "-S", "-q", "-K", str(directory), "-o", SIGNED, "-O", "full"]
    subprocess.run([*signer, str(directory / "signed.zone")], capture_output=True, check=True, cwd=directory)
    signed = directory / "signed.zone.signed"
    text, changed = re.subn("(?i)a{16}", "b" * 16, signed.read_text(), count=1)
    assert changed
    signed.write_text(text)


@pytest.fixture(scope="module")
def validating(
    peer_dir: Any, free_port: Any, program: Callable[[str], str], authority: Authority, good_mx: PostfixMx
) -> Iterator[str]:
    """The address of an Unbound that validates what BIND serves."""
    directory, named_port, port = peer_dir("dnssec"), free_port(), free_port()
    (directory / "signed.zone").write_text(HEAD + records(authority, good_mx.port))
    unsigned = f"@ IN MX 10 mxbad.{SIGNED}.\nown IN MX 10 mx\nmx IN A 127.0.0.1\n"
    (directory / "unsigned.zone").write_text(HEAD + unsigned + tlsa(good_mx.port, "mx", 3, 1, bytes(32)))
    sign(directory, program)
    (directory / "named.conf").write_text(NAMED.format(directory=directory, port=named_port))
    (directory / "unbound.conf").write_text(UNBOUND.format(directory=directory, port=port, named=named_port))
    named = [program("named"), "-g", "-n", "1", "-c", str(directory / "named.conf")]
    unbound = [program("unbound"), "-d", "-c", str(directory / "unbound.conf")]
    both = [
        Program(named, directory / "named.log", lambda: answers(named_port, SIGNED)),
        Program(unbound, directory / "unbound.log", lambda: answers(port, SIGNED)),
    ]
    started: list[Program] = []
    try:
        for one in both:
            one.start()
            started.append(one)
        yield f"127.0.0.1:{port}"
    finally:
        for one in started:
            one.stop()


@pytest.fixture
def dns(validating: str) -> Resolver:
    """In place of the dictionaries: the relay's resolver, which asks Unbound."""
    return Resolver([validating], 5.0, 1000, Counters())


def test_the_peers(validating: str, good_mx: PostfixMx) -> None:
    """Unbound says what it has verified, and that what was changed is wrong."""
    port = int(validating.partition(":")[2])

    def asked(name: str, kind: str) -> tuple[rcode.Rcode, bool]:
        question = message.make_query(name, kind)
        question.flags |= flags.AD
        answer = query.udp(question, "127.0.0.1", 5, port)
        return answer.rcode(), bool(answer.flags & flags.AD)

    assert asked(SIGNED, "MX") == (rcode.NOERROR, True)
    assert asked(UNSIGNED, "MX") == (rcode.NOERROR, False)
    assert asked(f"_{good_mx.port}._tcp.mxbogus.{SIGNED}", "TLSA") == (rcode.SERVFAIL, False)


@pytest.mark.parametrize(
    ("domain", "mode"),
    [
        (SIGNED, "dane-ee"),
        (f"alias.{SIGNED}", "dane-ee"),
        (f"ta.{SIGNED}", "dane-ta"),
        (f"plain.{SIGNED}", "opportunistic"),
        (UNSIGNED, "opportunistic"),  # its MX has (wrong) records, but who says that this is its MX?
        (f"own.{UNSIGNED}", "opportunistic"),
        (f"bad.{SIGNED}", "matches no TLSA record"),
        (f"name.{SIGNED}", "no matching subjectAltName"),
        (f"bogus.{SIGNED}", "SERVFAIL"),
    ],
)
def test_dane(domain: str, mode: str, sender: Any, good_mx: PostfixMx) -> None:
    relay = sender(good_mx.port)
    (outcome,) = relay.send(f"someone@{domain}", lane=domain)
    if "-" in mode or mode == "opportunistic":
        assert isinstance(outcome, Delivered), outcome
        assert relay.log()[-1]["tls_mode"] == mode
    else:
        assert isinstance(outcome, Deferred)
        assert mode in outcome.text


def test_a_resolver_that_is_not_trusted_changes_nothing(
    validating: str, sender: Any, good_mx: PostfixMx, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The AD bit of a server elsewhere could be anybody's; with dns.trust_ad it counts."""
    monkeypatch.setattr("ptt.dns.exchange.Server.is_here", False)
    for trust, mode in ((False, "opportunistic"), (True, "dane-ee")):
        relay = sender(good_mx.port)
        relay.relay.encryption._lookup = Resolver([validating], 5.0, 1000, Counters(), trust_ad=trust)
        assert isinstance(relay.send(lane=SIGNED)[0], Delivered)
        assert relay.log()[-1]["tls_mode"] == mode


@pytest.mark.parametrize(("domain", "good"), [(f"own.{UNSIGNED}", False), (f"plain.{SIGNED}", True)])
def test_verified_by_its_authority(
    domain: str, good: bool, sender: Any, good_mx: PostfixMx, authority: Authority, monkeypatch: Any, tmp_path: Any
) -> None:
    (tmp_path / "ca").write_bytes(authority.ca.certificate_pem())
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca"))
    (outcome,) = sender(good_mx.port, tls="verify").send(lane=domain)
    assert isinstance(outcome, Delivered) == good, outcome


@pytest.mark.parametrize(("level", "good"), [("opportunistic", True), ("encrypt", True), ("verify", False)])
def test_an_expired_certificate(
    level: str, good: bool, sender: Any, expired_mx: PostfixMx, authority: Authority, monkeypatch: Any, tmp_path: Any
) -> None:
    (tmp_path / "ca").write_bytes(authority.ca.certificate_pem())
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca"))
    relay = sender(expired_mx.port, tls=level)
    (outcome,) = relay.send(lane=f"plain.{SIGNED}")
    assert isinstance(outcome, Delivered) == good
    if not good:
        assert "expired" in outcome.text
