"""How the domain's file decides which keys sign, and in which words; verified by dkimpy."""

import os
import pathlib
import re
import time
from typing import Any

import dkim
import pytest

from ptt.config import load
from ptt.dkim.field import BadSignatureField, signature_tags
from ptt.dkim.rules import DEFAULT, Rules
from ptt.message import Envelope
from ptt.signer import keystore
from ptt.signer.client import Request
from ptt.signer.keystore import Keystore
from ptt.signer.stage import Signed, Signing, Wait
from ptt.signer.state import KeyState, KeyView, PublicKey, state_path, write_state

MESSAGE = (
    b"From: Anna <a@news.example.org>\r\nX-Campaign: 4711\r\nSubject:  hello \r\n\r\n"
    b"a  body \t with   white space \r\n\r\n\r\n"
)
NOW = int(time.time())
Keys = dict[str, list[PublicKey]]


class Bench:
    def __init__(self, base: pathlib.Path) -> None:
        (base / "ptt.toml").write_text('hostname = "mail.example.org"\n')
        (base / "run").mkdir()
        self.config = load(base / "ptt.toml")
        self.now = 100.0
        self.rules: dict[str, Rules] = {}
        self.records: dict[bytes, bytes] = {}
        self.states: list[KeyState] = []
        self.store = Keystore(self.config.signer.keys, os.geteuid())
        view = KeyView(self.config, lambda: self.now)
        self.signing = Signing(self, view, lambda: NOW, lambda d: self.rules.get(d, DEFAULT))  # type: ignore[arg-type]

    def sign(self, *requests: Request) -> list[bytes]:
        for request in requests:
            assert signature_tags(request.data)["d"] == request.domain
        return [self.store.get(r.domain, r.selector).sign(r.data) for r in requests]

    def key(self, domain: str, selector: str, algorithm: Any, served: bool = True) -> None:
        signer = self.config.signer
        key = keystore.generate(signer.keys, signer.public, domain, selector, algorithm, len(self.states))
        self.states.append(KeyState(domain, selector, key.algorithm, key.record, served))
        self.records[f"{selector}._domainkey.{domain}.".encode()] = key.record.encode()
        write_state(state_path(self.config), self.states)
        self.now += 1

    def result(self, message: bytes = MESSAGE) -> Signed | Wait:
        return self.signing.sign(Envelope("a@news.example.org", 0, "example.org"), "id1", message)

    def signed(self, message: bytes = MESSAGE) -> list[dict[str, str]]:
        """The tags of the signatures, all of which dkimpy has verified."""
        found = self.result(message)
        assert isinstance(found, Signed), found
        fields = re.split(rb"(?=DKIM-Signature:)", found.prefix)[1:]
        for number in range(len(fields)):
            checked = dkim.DKIM(found.prefix + message)
            if b"rsa-sha256" in fields[number]:  # Ed25519: PyNaCl is not here; other tests have peers that know it
                assert checked.verify(number, dnsfunc=lambda name, timeout=5: self.records[name])
        texts = [re.sub(rb"\s", b"", f.partition(b":")[2]).decode() for f in fields]
        return [dict(part.partition("=")[::2] for part in text.split(";")) for text in texts]


@pytest.fixture
def bench(tmp_path: pathlib.Path) -> Bench:
    bench = Bench(tmp_path)
    bench.key("example.org", "r1", "rsa2048")
    bench.key("example.org", "e1", "ed25519")
    return bench


def names(found: list[dict[str, str]]) -> list[tuple[str, str]]:
    return [(tags["d"], tags["s"]) for tags in found]


@pytest.mark.slow
def test_which_keys(bench: Bench) -> None:
    assert names(bench.signed()) == [("example.org", "r1"), ("example.org", "e1")]
    bench.rules["example.org"] = Rules(algorithms=("rsa",))
    assert names(bench.signed()) == [("example.org", "r1")]
    bench.rules["example.org"] = Rules(algorithms=("ed25519",))
    assert names(bench.signed()) == [("example.org", "e1")]
    bench.key("example.org", "r2", "rsa2048")
    assert names(bench.signed()) == [("example.org", "e1")]
    bench.rules["example.org"] = Rules(selectors=("e1", "r1", "gone"))
    assert names(bench.signed()) == [("example.org", "r1"), ("example.org", "e1")]
    bench.rules["example.org"] = Rules(selectors=("gone",))
    assert bench.result() == Wait("key not in DNS", "example.org")
    bench.key("example.org", "r3", "rsa2048", served=False)
    bench.rules["example.org"] = Rules(selectors=("r3", "e1"))
    assert bench.result() == Wait("key not in DNS", "example.org")  # Ed25519 does not stand in for RSA


@pytest.mark.slow
def test_several_domains_sign_or_none(bench: Bench) -> None:
    bench.rules["example.org"] = Rules(also=("esp.example",), expires_seconds=7200)
    assert bench.result() == Wait("no key for domain", "esp.example")
    bench.key("esp.example", "p1", "rsa2048")
    bench.rules["esp.example"] = Rules(also=("other.example",), canonicalization="simple/simple")
    found = bench.signed()
    assert names(found) == [("example.org", "r1"), ("example.org", "e1"), ("esp.example", "p1")]
    assert [tags["c"] for tags in found] == ["relaxed/relaxed", "relaxed/relaxed", "simple/simple"]
    assert [tags.get("x") for tags in found] == [str(NOW + 7200)] * 2 + [None]


@pytest.mark.slow
@pytest.mark.parametrize("canon", ["relaxed/relaxed", "relaxed/simple", "simple/relaxed", "simple/simple"])
def test_the_words(bench: Bench, canon: Any) -> None:
    bench.rules["example.org"] = Rules(canonicalization=canon, oversign=("x-campaign", "x-none"), identity="author")
    for tags in bench.signed():
        assert (tags["c"], tags["i"], tags["t"]) == (canon, "@news.example.org", str(NOW))
        assert "l" not in tags
        fields = tags["h"].split(":")
        assert (fields.count("x-campaign"), fields.count("x-none"), fields.count("from")) == (2, 1, 2)
    found = bench.result()
    assert isinstance(found, Signed)
    for changed in (MESSAGE.replace(b"4711", b"4712"), b"X-None: 1\r\n" + MESSAGE, b"X-Campaign: 1\r\n" + MESSAGE):
        assert not dkim.verify(found.prefix + changed, dnsfunc=lambda name, timeout=5: bench.records[name])


@pytest.mark.parametrize(
    ("author", "identity"),
    [
        (b"<a@news.example.org>", "@news.example.org"),
        (b'"x@sub.example.org" <a@NEWS.Example.ORG>', "@news.example.org"),
        (b"a@example.org", None),
        (b"a@other.org", None),
        (b"a@notexample.org", None),
        (b"nobody", None),
        (b"a@\xff.example.org", None),
    ],
)
def test_identity(bench: Bench, author: bytes, identity: str | None) -> None:
    bench.rules["example.org"] = Rules(identity="author", algorithms=("rsa",))
    (tags,) = bench.signed(b"From: " + author + b"\r\n\r\nx\r\n")
    assert tags.get("i") == identity


@pytest.mark.parametrize("identity", [b"@evil.example", b"@evilexample.org", b"example.org", b"@"])
def test_the_key_process_signs_no_other_identity(identity: bytes) -> None:
    good = b"from:a\r\ndkim-signature:v=1; a=rsa-sha256; d=example.org; s=s1; i=@x.example.org; h=from; bh=x; b="
    assert signature_tags(good)["i"] == "@x.example.org"
    with pytest.raises(BadSignatureField):
        signature_tags(good.replace(b"@x.example.org", identity))
