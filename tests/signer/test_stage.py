"""Stage ``sign``: which keys sign, when mail waits, what comes out; and the state file behind it."""

import os
import pathlib
import time
from typing import Any

import dkim
import gevent
import pytest

from ptt.config import Config, load
from ptt.dkim import canonical
from ptt.dkim.rules import DEFAULT
from ptt.message import Envelope
from ptt.net.rpc import RpcUnavailable
from ptt.signer import keystore, stage, state
from ptt.signer.client import Request, SignatureRefused
from ptt.signer.keystore import Keystore
from ptt.signer.stage import Signed, Signing, Wait
from ptt.signer.state import KeyState, KeyView, PublicKey, Revoked, public_keys, read_state, state_path, write_state

MESSAGE = b"From: a@example.org\r\nSubject: hello\r\n\r\nbody\r\n"
ENVELOPE = Envelope("a@example.org", 0, "example.org")


class Bench:
    """The stage with keys of its own, a clock that is set, and a client that signs in this process."""

    def __init__(self, base: pathlib.Path) -> None:
        (base / "ptt.toml").write_text('hostname = "mail.example.org"\n')
        (base / "run").mkdir()
        self.config: Config = load(base / "ptt.toml")
        self.now = 100.0
        self.error: Exception | None = None
        self.asked: list[Request] = []
        self.store = Keystore(self.config.signer.keys, os.geteuid())
        self.view = KeyView(self.config, lambda: self.now)
        self.signing = Signing(self, self.view, lambda: 1_700_000_000.9)  # type: ignore[arg-type]

    def sign(self, *requests: Request) -> list[bytes]:
        if self.error:
            raise self.error
        self.asked += requests
        return [self.store.get(r.domain, r.selector).sign(r.data) for r in requests]

    def key(
        self, selector: str, algorithm: Any = "ed25519", created: int = 1, domain: str = "example.org"
    ) -> PublicKey:
        signer = self.config.signer
        return keystore.generate(signer.keys, signer.public, domain, selector, algorithm, created)

    def serve(self, *keys: PublicKey, served: bool = True) -> None:
        states = [KeyState(k.domain, k.selector, k.algorithm, k.record, served) for k in keys]
        write_state(state_path(self.config), states)
        self.now += 1

    def result(self, envelope: Envelope = ENVELOPE, message: bytes = MESSAGE) -> Signed | Wait:
        return self.signing.sign(envelope, "id1", message)


@pytest.fixture
def bench(tmp_path: pathlib.Path) -> Bench:
    return Bench(tmp_path)


def test_the_way_of_a_key(bench: Bench) -> None:
    assert bench.result() == Wait("no key for domain", "example.org")
    key = bench.key("s1")
    assert bench.result() == Wait("no key for domain", "example.org")  # asked again after 250 ms, not before
    bench.now += state.RECHECK_SECONDS
    assert bench.result() == Wait("key not in DNS", "example.org")
    bench.serve(key, served=False)
    assert bench.result() == Wait("key not in DNS", "example.org")
    bench.serve(key)
    signed = bench.result()
    assert isinstance(signed, Signed)
    assert (signed.domain, signed.selectors) == ("example.org", ["s1"])
    assert signed.prefix.startswith(b"DKIM-Signature: v=1; a=ed25519-sha256; c=relaxed/relaxed; t=1700000000;\r\n")
    bench.serve()
    assert bench.result() == Wait("key not in DNS", "example.org")


def test_another_record_under_the_name_is_not_this_key(bench: Bench) -> None:
    key, other = bench.key("s1"), bench.key("s2")
    write_state(state_path(bench.config), [KeyState("example.org", "s1", "ed25519", other.record, True)])
    assert bench.result() == Wait("key not in DNS", "example.org")
    spaced = key.record.replace("; p=", ";p= ")
    write_state(state_path(bench.config), [KeyState("example.org", "s1", "ed25519", spaced, True)])
    bench.now += 1
    assert isinstance(bench.result(), Signed)


def test_other_domains_go_on(bench: Bench) -> None:
    key = bench.key("s1", domain="good.example")
    bench.key("s1")
    bench.serve(key)
    assert isinstance(bench.result(Envelope("", 0, "good.example")), Signed)
    assert isinstance(bench.result(), Wait)


@pytest.mark.slow
def test_one_key_of_each_kind_the_newest(bench: Bench) -> None:
    keys = [
        bench.key("old", "rsa2048", 1),
        bench.key("new", "rsa2048", 2),
        bench.key("newest", "rsa2048", 3),
        bench.key("ed"),
    ]
    bench.serve(keys[0], keys[1], keys[3])
    signed = bench.result()
    assert isinstance(signed, Signed)
    assert signed.selectors == ["new", "ed"]
    assert signed.prefix.count(b"DKIM-Signature:") == 2
    records = {f"{key.selector}._domainkey.example.org.".encode(): key.record.encode() for key in keys}
    assert dkim.verify(signed.prefix + MESSAGE, dnsfunc=lambda name, timeout=5: records[name])
    assert not dkim.verify(signed.prefix + MESSAGE + b"x\r\n", dnsfunc=lambda name, timeout=5: records[name])


def test_mail_of_nobody(bench: Bench) -> None:
    assert bench.result(Envelope("", 0)) == Signed(b"", "", [])


@pytest.mark.parametrize("domain", ["../example.org", "example.org/../example.org", "EXAMPLE.org", "a" * 300])
def test_a_domain_is_no_path(bench: Bench, domain: str) -> None:
    bench.serve(bench.key("s1"))
    assert bench.result(Envelope("", 0, domain)) == Wait("no key for domain", domain)


@pytest.mark.parametrize(
    ("error", "wait"),
    [
        (RpcUnavailable("sign: no answer"), Wait("key process unavailable", "sign: no answer")),
        (SignatureRefused("its file has mode 0644"), Wait("key refused", "its file has mode 0644")),
    ],
)
def test_unsigned_is_never_the_answer(bench: Bench, error: Exception, wait: Wait) -> None:
    bench.serve(bench.key("s1"))
    bench.error = error
    assert bench.result() == wait


def test_a_header_too_large_waits(bench: Bench) -> None:
    bench.serve(bench.key("s1"))
    for size in (1_100_000, stage.MAX_HEADER):
        found = bench.result(message=b"From: a@example.org\r\nSubject: " + b"x" * size + b"\r\n\r\n")
        assert isinstance(found, Wait)
        assert found.reason == "header too large to sign"


def test_a_large_message_leaves_the_loop_free(bench: Bench) -> None:
    """Another greenlet runs between the pieces of its body."""
    bench.serve(bench.key("s1"))
    message = MESSAGE + b"x y \r\n" * 200_000
    turns: list[int] = []

    def count() -> None:
        while True:
            turns.append(1)
            gevent.sleep(0)

    counting = gevent.spawn(count)
    found = bench.result(message=message)
    counting.kill()
    assert isinstance(found, Signed)
    assert len(turns) >= len(message) // canonical.CHUNK_BYTES
    (key,) = public_keys(bench.config.signer.public, "example.org")
    direct = stage.prepare([(key, DEFAULT)], message, 1_700_000_000)
    assert bench.asked[-1].data == direct[0].data


def test_state_file(bench: Bench, tmp_path: pathlib.Path) -> None:
    path = str(tmp_path / "dkim.json")
    assert read_state(path) == []
    states = [KeyState("example.org", "s1", "rsa2048", "v=DKIM1; p=AA", False, "not served by 192.0.2.1", 7)]
    write_state(path, states)
    assert read_state(path) == states
    assert [p.name for p in tmp_path.glob("dkim.json*")] == ["dkim.json"]
    pathlib.Path(path).write_text("{")
    assert read_state(path) == []
    with pytest.raises(OSError):
        write_state(str(tmp_path / "missing" / "dkim.json"), states)


def test_files_are_not_read_again_without_need(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.serve(bench.key("s1"))
    past = time.time_ns() - 10**9  # older than the tick within which a time stamp says nothing
    for path in (state_path(bench.config), os.path.join(bench.config.signer.public, "example.org")):
        os.utime(path, ns=(past, past))
    assert isinstance(bench.result(), Signed)
    monkeypatch.setattr(state, "public_keys", None)
    monkeypatch.setattr(state, "read_state", None)
    bench.now += 1
    assert isinstance(bench.result(), Signed)


def test_domains_remembered_are_bounded(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "MAX_DOMAINS", 10)
    for n in range(50):
        bench.view.active(f"d{n}.example")
    assert len(bench.view._seen) == 10


def test_ed25519_signs_beside_rsa_never_in_its_place(bench: Bench) -> None:
    rsa, ed = bench.key("r", "rsa2048"), bench.key("e")
    bench.serve(ed)
    assert bench.result() == Wait("key not in DNS", "example.org")
    bench.serve(rsa)
    assert [key.selector for key in bench.view.active("example.org").signing] == ["r"]
    bench.serve(rsa, ed)
    assert [key.selector for key in bench.view.active("example.org").signing] == ["r", "e"]


def test_a_retired_key_signs_no_more_and_a_revoked_one_makes_mail_wait(bench: Bench) -> None:
    old, new = bench.key("old", created=1), bench.key("new", created=2)
    signed = None
    for retired, revoked, signing in (
        ((), (), ["new"]),
        (("new",), (), ["old"]),
        (("new", "old"), (), []),
        ((), ("new",), ["old"]),
    ):
        states = [
            KeyState(k.domain, k.selector, k.algorithm, k.record, True, retired=k.selector in retired)
            for k in (old, new)
        ]
        write_state(state_path(bench.config), states, [Revoked("example.org", s, 1) for s in revoked])
        bench.now += 1
        assert [key.selector for key in bench.view.active("example.org").signing] == signing
        if signed is None:
            signed = bench.result()
        assert isinstance(signed, Signed)
        assert bench.signing.is_revoked(signed.prefix) == bool(revoked)
    assert not bench.signing.is_revoked(b"")
    assert not bench.signing.is_revoked(signed.prefix.replace(b"d=example.org", b"d=other.org"))
