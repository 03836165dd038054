"""ARC sets: made through the stage, verified by dkimpy, rspamd and Mail::DKIM; the validation suite through dkimpy."""

import json
import os
import pathlib
import re
import time
from collections.abc import Callable
from typing import Any

import dkim
import pytest
import yaml

from ptt.config import load
from ptt.dkim import arc
from ptt.dkim.canonical import body_start
from ptt.dkim.field import BadSignatureField, signature_tags
from ptt.dkim.rules import DEFAULT, Rules
from ptt.dns.resolver import NoSuchDomain, TemporaryFailure
from ptt.message import Envelope
from ptt.net.rpc import RpcUnavailable
from ptt.signer import chain, keystore, stage
from ptt.signer.client import Request
from ptt.signer.keystore import Keystore
from ptt.signer.stage import Signed, Signing, Wait
from ptt.signer.state import KeyState, KeyView, state_path, write_state

SUITE = pathlib.Path(__file__).parents[2].parent / "shared" / "corpora" / "arc_test_suite"
NOW = int(time.time())
MESSAGE = (
    b"Authentication-Results: mx.example.net; spf=pass smtp.mfrom=x@example.net;\r\n dkim=pass header.d=example.net\r\n"
    b"Authentication-Results: elsewhere.example; spf=fail smtp.mfrom=x@example.net\r\n"
    b"DKIM-Signature: v=1; d=example.net; s=old; b=abc\r\n"
    b"From: a@example.org\r\nTo: b@example.net\r\nSubject:  hello \r\n\r\na  body \t with   space \r\n\r\n"
)
RELAYED = Envelope("a@example.org", 0, "example.org")
AUTHENTICATED = Envelope("a@example.org", 0, "example.org", user="a@example.org")


class Bench:
    """The stage with two domains that seal, and all that it asks of a key process checked as that does."""

    def __init__(self, base: pathlib.Path) -> None:
        (base / "ptt.toml").write_text('hostname = "mx.example.net"\n')
        (base / "run").mkdir()
        config = load(base / "ptt.toml")
        self.rules: dict[str, Rules] = {}
        self.records: dict[str, str] = {}
        self.error: Exception | None = None
        self.asked: list[Request] = []
        self.store = Keystore(config.signer.keys, os.geteuid())
        states = []
        for domain in ("example.org", "second.example"):
            key = keystore.generate(config.signer.keys, config.signer.public, domain, "s1", "rsa2048", 1)
            states.append(KeyState(domain, "s1", "rsa2048", key.record, True))
            self.records[f"s1._domainkey.{domain}"] = key.record
            self.rules[domain] = Rules(arc="instead")
        write_state(state_path(config), states)
        self.signing = Signing(
            self,  # type: ignore[arg-type]
            KeyView(config),
            lambda: NOW,
            lambda domain: self.rules.get(domain, DEFAULT),
            config.hostname,
            self.lookup,
        )

    def lookup(self, name: str) -> list[bytes]:
        if self.error:
            raise self.error
        if name not in self.records:
            raise NoSuchDomain(name)
        return [self.records[name].encode()]

    def sign(self, *requests: Request) -> list[bytes]:
        self.asked += requests
        for request in requests:
            tags = signature_tags(request.data)
            assert (tags["d"], tags["s"], tags["a"]) == (request.domain, request.selector, "rsa-sha256")
        return [self.store.get(r.domain, r.selector).sign(r.data) for r in requests]

    def signed(self, message: bytes, envelope: Envelope = RELAYED) -> bytes:
        found = self.signing.sign(envelope, "id1", message)
        assert isinstance(found, Signed), found
        assert found.selectors == ["s1"]
        return found.prefix + message

    def verdict(self, message: bytes) -> Any:
        lookup = lambda name, timeout=5: self.records[name.decode().rstrip(".")].encode()  # noqa: E731
        return dkim.ARC(message).verify(lookup)[0]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("arc"))


@pytest.fixture
def bench(made: Bench) -> Bench:
    made.rules = dict.fromkeys(("example.org", "second.example"), Rules(arc="instead"))
    made.error = None
    made.asked = []
    return made


def second(envelope: Envelope) -> Envelope:
    return Envelope(envelope.sender, 0, "second.example", user=envelope.user)


@pytest.mark.slow
def test_a_chain_of_three(bench: Bench) -> None:
    one = bench.signed(MESSAGE)
    assert one.count(b"DKIM-Signature:") == 1  # the one that it came with
    assert b"cv=none" in one
    assert bench.verdict(one) == dkim.CV_Pass
    two = bench.signed(one, second(RELAYED))
    three = bench.signed(two)
    for message in (two, three):
        assert bench.verdict(message) == dkim.CV_Pass
    assert b"ARC-Seal: i=3; a=rsa-sha256; cv=pass;" in three
    broken = three.replace(b"a  body", b"another")
    assert bench.verdict(broken) == dkim.CV_Fail
    four = bench.signed(broken)
    assert b"ARC-Seal: i=4; a=rsa-sha256; cv=fail;" in four
    assert bench.verdict(four) is None  # ended, and said so by a seal that is good
    after = bench.signing.sign(RELAYED, "id1", four)  # no set may follow: DKIM, never unsigned
    assert isinstance(after, Signed)
    assert after.prefix.startswith(b"DKIM-Signature:")


@pytest.mark.slow
@pytest.mark.parametrize(
    "body", [b"", b"x" * 100_000 + b"\r\n", b"\t \r\n x  y\t\r\n\r\n", b"\xe4\xf6\r\n", b"unended"]
)
def test_bodies(bench: Bench, body: bytes) -> None:
    message = b"From: \xc3\xa4@example.org\r\nSubject: 1\r\n\t folded \r\nSubject: 2\r\n\r\n" + body
    one = bench.signed(message)
    two = bench.signed(one, second(RELAYED))
    tail = b"" if not body or body.endswith(b"\r\n") else b"\r\n"  # as SMTP sends it
    assert bench.verdict(two + tail) == dkim.CV_Pass


@pytest.mark.peer
@pytest.mark.slow
def test_others_verify_it(bench: Bench, rspamd: Callable[..., Any], mail_dkim: Callable[..., Any]) -> None:
    one = bench.signed(MESSAGE)
    two = bench.signed(one, second(RELAYED))
    for verifier in (rspamd(bench.records), mail_dkim(bench.records)):
        assert verifier.arc(MESSAGE) == "none"
        assert verifier.arc(one) == "pass"
        assert verifier.arc(two) == "pass"
        assert verifier.arc(two + b"more\r\n") == "fail"


def results(message: bytes) -> bytes:
    found = re.search(rb"ARC-Authentication-Results: ((?:[^\r]|\r\n\t)*)", message)
    assert found
    return found[1].replace(b"\r\n\t", b" ")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("envelope", "server", "expected"),
    [
        (RELAYED, "", b"mx.example.net; spf=pass smtp.mfrom=x@example.net; dkim=pass header.d=example.net"),
        (AUTHENTICATED, "", b"mx.example.net; none"),
        (AUTHENTICATED, "Elsewhere.example", b"Elsewhere.example; spf=fail smtp.mfrom=x@example.net"),
        (RELAYED, "nobody.example", b"nobody.example; none"),
    ],
)
def test_whose_results_are_taken_over(bench: Bench, envelope: Envelope, server: str, expected: bytes) -> None:
    bench.rules["example.org"] = Rules(arc="instead", authserv_id=server)
    message = bench.signed(MESSAGE, envelope)
    assert results(message) == b"i=1; " + expected
    assert bench.verdict(message) == dkim.CV_Pass


@pytest.mark.slow
def test_beside_dkim(bench: Bench) -> None:
    bench.rules["example.org"] = Rules(arc="beside", also=("second.example",), expires_seconds=86400)
    bench.rules["second.example"] = DEFAULT
    message = bench.signed(MESSAGE)
    assert bench.verdict(message) == dkim.CV_Pass
    found = dkim.DKIM(message)
    lookup = lambda name, timeout=5: bench.records[name.decode().rstrip(".")].encode()  # noqa: E731
    assert found.verify(0, dnsfunc=lookup)
    assert found.verify(1, dnsfunc=lookup)


def test_a_revoked_key_is_seen_in_a_seal(bench: Bench) -> None:
    message = bench.signed(MESSAGE)
    prefix = message[: len(message) - len(MESSAGE)]
    bench.signing._keys.revoked = lambda: frozenset({("example.org", "s1")})  # type: ignore[method-assign]
    assert bench.signing.is_revoked(prefix)
    del bench.signing._keys.revoked  # type: ignore[method-assign]


def test_mail_waits_while_dns_is_silent(bench: Bench) -> None:
    one = bench.signed(MESSAGE)
    bench.error = TemporaryFailure("s1._domainkey.example.org: no answer")
    found = bench.signing.sign(RELAYED, "id1", one)
    assert found == Wait("ARC chain not verified", "s1._domainkey.example.org: no answer")
    bench.error = NoSuchDomain("gone")
    assert b"cv=fail" in bench.signed(one)


def test_unsigned_is_never_the_answer(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: Request) -> list[bytes]:
        raise RpcUnavailable("sign: no answer")

    monkeypatch.setattr(bench, "sign", away)
    assert bench.signing.sign(RELAYED, "id1", MESSAGE) == Wait("key process unavailable", "sign: no answer")


def test_no_fifty_first_set(bench: Bench) -> None:
    full = b"".join(b"ARC-Seal: i=%d; cv=pass; a=rsa-sha256; d=x.example; s=s; b=\r\n" % n for n in range(1, 51))
    assert bench.signed(full + MESSAGE).startswith(b"DKIM-Signature:")
    assert bench.signed(full.replace(b"i=50;", b"i=999;") + MESSAGE).startswith(b"DKIM-Signature:")


@pytest.mark.slow
def test_a_real_key_process_signs_it(service: Any) -> None:
    key = service.key(algorithm="rsa2048")
    service.publish()
    service.start()
    signing = stage.build(service.config, lambda _domain: Rules(arc="beside"), lambda _name: [key.record.encode()])
    message = MESSAGE
    for status in (b"cv=none", b"cv=pass"):
        found = signing.sign(RELAYED, "id1", message)
        assert isinstance(found, Signed)
        assert status in found.prefix
        message = found.prefix + message
    assert dkim.ARC(message).verify(lambda name, timeout=5: key.record.encode())[0] == dkim.CV_Pass


# -- what a key process signs ------------------------------------------------------------------------------


@pytest.mark.slow
def test_nothing_else_is_signed_as_a_seal(bench: Bench) -> None:
    bench.signed(bench.signed(MESSAGE), second(RELAYED))
    ams, seal = (request.data for request in bench.asked[-2:])
    assert signature_tags(ams)["i"] == signature_tags(seal)["i"] == "2"
    for good, old, new in (
        (seal, b"cv=pass", b"cv=good"),
        (seal, b"cv=pass", b"cv=none"),
        (seal, b"cv=pass", b"cv=fail"),  # covers one set, not two
        (seal, b"i=2; a=rsa-sha256; cv", b"i=3; a=rsa-sha256; cv"),
        (seal, b"i=2; a=rsa-sha256; cv", b"i=51; a=rsa-sha256; cv"),
        (seal, b"i=2; a=rsa-sha256; cv", b"i=02; a=rsa-sha256; cv"),
        (seal, b"i=2; a=rsa-sha256; cv", b"h=from; i=2; a=rsa-sha256; cv"),
        (seal, b"arc-message-signature:i=1", b"from:i=1"),
        (seal, b"arc-authentication-results:i=1", b"from:x\r\narc-authentication-results:i=1"),
        (ams, b"arc-message-signature:i=2", b"arc-message-signature:i=0"),
        (ams, b"arc-message-signature:i=2", b"arc-message-signature:v=1; i=2"),
        (ams, b"arc-message-signature:i=2", b"arc-message-signature:l=0; i=2"),
        (ams, b"h=from:from", b"h=to"),
        (ams, b"h=from:from", b"h=from:arc-seal"),
        (ams, b"arc-message-signature:i=2", b"arc-authentication-results:i=2"),
    ):
        data = good.replace(old, new)
        assert data != good
        with pytest.raises(BadSignatureField):
            signature_tags(data)


# -- the validation suite ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def suite() -> list[tuple[str, bytes, dict[str, str], str]]:
    """(name, message, records, cv) of each case."""
    if not SUITE.is_dir():
        pytest.skip("../shared/corpora is not here")
    found = []
    with (SUITE / "arc-draft-validation-tests.yml").open() as file:
        for scenario in yaml.safe_load_all(file):
            for name, case in scenario["tests"].items():
                message = case["message"].encode().replace(b"\n", b"\r\n")
                found.append((name, message, scenario["txt-records"] or {}, str(case["cv"]).lower()))
    return found


def status(message: bytes, records: dict[str, str]) -> str:
    """What the next seal would say of the chain; "" where none may follow."""

    def lookup(name: str) -> list[bytes]:
        if name not in records:
            raise NoSuchDomain(name)
        return [records[name].encode()]

    before = arc.chain(message[: body_start(message)])
    return "" if before.ended else chain.verify(before, message, lookup) or ""


@pytest.mark.slow
def test_the_validation_suite(suite: list[tuple[str, bytes, dict[str, str], str]]) -> None:
    known = json.loads((SUITE / "known_differences.json").read_text())["cases"]
    different = {}
    for name, message, records, expected in suite:
        wanted = known.get(name, {}).get("dkimpy", expected)
        found = status(message, records)
        if found != wanted:
            different[name] = found, wanted, expected
    assert different == {}
    assert len(suite) > 160
