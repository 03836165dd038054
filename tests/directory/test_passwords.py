"""Verifiers against the RFCs' own examples; checks that tell nobody which users exist."""

import base64
import hashlib
import hmac
import threading
from collections.abc import Callable

import argon2
import gevent
import pytest

from ptt.directory import passwords, turns
from ptt.directory.passwords import Found, Verifier
from ptt.directory.values import argon2_mistake, scram_mistake


@pytest.mark.parametrize(
    ("text", "prepared"),
    [("I\u00adX", "IX"), ("user", "user"), ("USER", "USER"), ("\u00aa", "a"), ("\u2168", "IX"), ("a\u00a0b", "a b")],
)
def test_preparation_as_in_rfc_4013(text: str, prepared: str) -> None:
    assert passwords.prepare(text) == prepared


@pytest.mark.parametrize("text", ["\u0007", "\u06271", "", "\u00ad", "x" * 1025, "a\x00b", "\udc80", "\ue000"])
def test_passwords_that_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"password") as caught:
        passwords.prepare(text)
    assert text == "" or text not in str(caught.value)


def test_hashes_are_argon2id_and_salted() -> None:
    first, second = passwords.hash_password("secret"), passwords.hash_password("secret")
    assert first != second
    assert first.startswith("$argon2id$v=19$m=19456,t=2,p=1$")
    assert argon2_mistake(first) == ""
    assert passwords.check(first, "secret")
    assert not passwords.check(first, "Secret")


def test_hashes_of_other_parameters_are_checked() -> None:
    for parameters in ((1, 64, 1), (3, 1024, 4)):
        verifier = argon2.PasswordHasher(*parameters).hash("secret")
        assert passwords.check(verifier, "secret")
        assert not passwords.check(verifier, "x")
    assert not passwords.check("$argon2id$v=19$m=8,t=1,p=1$AAAAAAAAAAA$A", "secret")


def test_scram_as_in_rfc_7677() -> None:
    """The exchange of RFC 7677 3 can be checked and answered with our verifier."""
    verifier = passwords.scram_verifier("pencil", base64.b64decode("W22ZaJ0SNY7soEsUEjb6gQ=="), 4096)
    assert verifier.startswith("SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$")
    assert scram_mistake(verifier) == ""
    stored, server = (base64.b64decode(x) for x in verifier.rpartition("$")[2].split(":"))
    nonce = "rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0"
    message = f"n=user,r=rOprNGfwEbeRWgbNEkqO,r={nonce},s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096,c=biws,r={nonce}".encode()
    proof = base64.b64decode("dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=")
    signature = hmac.digest(stored, message, "sha256")
    assert hashlib.sha256(bytes(a ^ b for a, b in zip(proof, signature, strict=True))).digest() == stored
    answer = base64.b64encode(hmac.digest(server, message, "sha256"))
    assert answer == b"6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="


def test_scram_salts_are_fresh() -> None:
    assert passwords.scram_verifier("x", iterations=4096) != passwords.scram_verifier("x", iterations=4096)


def test_generated_passwords() -> None:
    made = {passwords.generate_password() for _ in range(100)}
    assert len(made) == 100
    assert all(passwords.prepare(p) == p and len(p) >= 30 for p in made)


DUMMY = "$argon2id$v=19$m=8,t=1,p=1$" + "A" * 22 + "$" + "A" * 43


class Users:
    """One user; counts what is computed for whom."""

    def __init__(self, password_hash: str) -> None:
        self.hash = password_hash
        self.computed: list[str] = []

    def lookup(self, user: str) -> Found:
        return Found(self.hash if user == "anna@a.example" else "", DUMMY)

    def check(self, verifier: str, password: str) -> bool:
        self.computed.append(verifier)
        return passwords.check(verifier, password)


@pytest.mark.parametrize(
    ("user", "password", "result"),
    [
        ("anna@a.example", "secret", "ok"),
        ("anna@a.example", "wrong", "bad"),
        ("nobody@a.example", "secret", "bad"),
        ("", "", "bad"),
        ("anna@a.example", "", "bad"),
        ("anna@a.example", "\x00", "bad"),
        ("anna@a.example", "x" * 5000, "bad"),
    ],
)
def test_whoever_asks_one_hash_is_computed(user: str, password: str, result: str, fast_hash: str) -> None:
    users = Users(fast_hash)
    verifier = Verifier(users.lookup, users.check)
    assert verifier.verify(user, password) == result
    assert len(users.computed) == 1
    verifier.close()


def test_new_hashes_have_the_usual_parameters() -> None:
    assert passwords.hash_password("x").startswith(passwords.PARAMETERS + "$")


def test_the_password_of_the_dummy_does_not_open_anything() -> None:
    verifier = Verifier(lambda _user: Found("", DUMMY), lambda _verifier, _password: True)
    assert verifier.verify("nobody@a.example", "x") == "bad"
    verifier.close()


def test_two_at_once_and_a_bounded_queue(
    monkeypatch: pytest.MonkeyPatch, until: Callable[[Callable[[], object]], float]
) -> None:
    monkeypatch.setattr(turns, "MAX_WAITING", 3)
    lock, go = threading.Lock(), threading.Event()
    inside = 0
    most = 0

    def slow(_verifier: str, _password: str) -> bool:
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
        go.wait(10)
        with lock:
            inside -= 1
        return True

    verifier = Verifier(lambda _user: Found("hash", DUMMY), slow)
    asking = [gevent.spawn(verifier.verify, "u", "x") for _ in range(8)]
    until(lambda: inside == passwords.AT_ONCE and sum(g.ready() for g in asking) == 3)
    assert [g.value for g in asking if g.ready()] == ["busy"] * 3
    go.set()
    gevent.joinall(asking, timeout=10, raise_error=True)
    assert sorted(g.value for g in asking) == ["busy"] * 3 + ["ok"] * 5
    assert most == passwords.AT_ONCE
    assert verifier.verify("u", "x") == "ok"
    verifier.close()


def test_a_check_that_fails_gives_its_place_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "MAX_WAITING", 0)
    monkeypatch.setattr(passwords, "AT_ONCE", 1)
    verifier = Verifier(lambda _user: Found("not a hash", DUMMY), passwords.check)
    assert [verifier.verify("u", "x") for _ in range(3)] == ["bad"] * 3
    verifier.close()
