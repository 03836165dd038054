"""Keys from a passphrase: the same from the same, fit for use, and hard to have by mistake."""

from __future__ import annotations

import hashlib
import itertools
import math
import os
import pathlib
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
from click.testing import CliRunner, Result
from cryptography.hazmat.primitives.asymmetric import rsa

from ptt.cli.main import main
from ptt.signer import derive
from ptt.signer.keystore import PrivateKey
from ptt.signer.state import public_keys

WORDS = "tram oboe quartz lemon sill argon"
ED25519 = "v=DKIM1; k=ed25519; p=e1GZEzwtF5EOTYS65xqf3oXS0hM6yRHruMpKbmQUHrk="
RSA2048 = "c8281b74b5740efffb3ef0f786b053da5416bea42ad27683750dbee08bc43c18"  # the SHA-256 of the record


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(derive, "_MEMORY_KIB", 64)


def record(passphrase: str, domain: str = "example.org", selector: str = "s1", algorithm: Any = "ed25519") -> str:
    return PrivateKey(derive.private_key(passphrase, domain, selector, algorithm, 2048)).record


@pytest.mark.slow
def test_the_same_key_for_ever() -> None:
    """These values hold keys that are in use: they may never change."""
    ed25519 = record(WORDS)
    rsa2048 = record(WORDS, algorithm="rsa2048")
    assert ed25519 == ED25519
    assert hashlib.sha256(rsa2048.encode()).hexdigest() == RSA2048


@pytest.mark.usefixtures("fast")
def test_every_word_of_the_name_counts() -> None:
    of = [
        record(WORDS),
        record(f"{WORDS}s"),
        record(WORDS, domain="example.net"),
        record(WORDS, selector="s2"),
        record(WORDS, domain="example.or", selector="gs1"),
    ]
    assert len(set(of)) == len(of)
    assert record("\u00e9" * 20) == record("e\u0301" * 20)  # as two keyboards write it


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize("passphrase", ["", "x" * (derive.MIN_PASSPHRASE - 1), "x" * (derive.MAX_PASSPHRASE + 1)])
def test_length(passphrase: str) -> None:
    with pytest.raises(ValueError, match=f"has {len(passphrase)} characters"):
        record(passphrase)


@pytest.mark.slow
@pytest.mark.usefixtures("fast")
def test_rsa() -> None:
    key = derive.private_key(WORDS, "example.org", "s1", "rsa2048", 2048)
    assert isinstance(key, rsa.RSAPrivateKey)
    numbers = key.private_numbers()
    assert (key.key_size, numbers.public_numbers.e) == (2048, 65537)
    for prime in (numbers.p, numbers.q):
        assert prime.bit_length() == 1024
        assert all(pow(a, prime - 1, prime) == 1 for a in (2, 3, 5, 7, 11))
        assert math.gcd(prime - 1, 65537) == 1


def test_a_number_that_only_looks_prime_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A composite that passed our test would not pass OpenSSL's."""
    half = rsa.generate_private_key(65537, 1024).private_numbers()
    other = rsa.generate_private_key(65537, 2048).private_numbers()
    primes = itertools.cycle((half.p * half.q, other.q))
    monkeypatch.setattr(derive, "_prime", lambda *_: next(primes))
    with pytest.raises(ValueError, match="Invalid private key"):
        derive._rsa(b"seed", 2048)


def test_candidates_fill_the_modulus() -> None:
    drawn: Iterator[int] = derive._candidates(b"seed", b"p", 1024)
    first = list(itertools.islice(drawn, 100))
    assert len(set(first)) == 100
    assert all(n.bit_length() == 1024 and n >> 1022 == 3 and n % 2 for n in first)


def keygen(file: pathlib.Path, *words: str) -> Result:
    return CliRunner().invoke(main, ["dkim", "keygen", "--domain", "example.org", "--config", str(file), *words])


@pytest.mark.slow
def test_the_command(tmp_path: pathlib.Path, service: Any, capfd: pytest.CaptureFixture[str]) -> None:
    """From a file; what the file says is nowhere else."""
    words = tmp_path / "words"
    words.write_text(f"{WORDS}\nnot this line\n")
    options = ("--derive", "--selector", "s1", "--algorithm", "ed25519", "--passphrase-file", str(words))
    words.chmod(0o640)
    refused = keygen(service.file, *options)
    assert refused.exit_code == 1
    assert "others may read it" in refused.output
    words.chmod(0o600)
    assert keygen(service.file, *options[1:]).exit_code == 2
    made = keygen(service.file, *options)
    assert made.exit_code == 0, made.output
    (key,) = public_keys(service.config.signer.public, "example.org")
    assert key.record == ED25519
    assert WORDS not in made.output + capfd.readouterr().err
    words.write_text("too short\n")
    assert keygen(service.file, *options[:2], "s2", *options[3:]).exit_code == 1
    assert "the passphrase has 9 characters" in capfd.readouterr().err
    assert len(public_keys(service.config.signer.public, "example.org")) == 1


@pytest.mark.slow
def test_a_terminal_is_asked_twice(service: Any) -> None:
    """What is typed is not shown, and is the key only when it was typed twice."""
    for second, code in ((f"{WORDS}!", 1), (WORDS, 0)):
        ours, theirs = os.openpty()
        command = service.command("--generate", "example.org", "s1", "--algorithm", "ed25519", "--derive")
        child = subprocess.Popen(
            ["setsid", "--ctty", "--wait", *command], stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        os.close(theirs)
        shown = b""
        for question, answer in ((b"Passphrase: ", WORDS), (b"The same again: ", second)):
            while question not in shown:
                shown += os.read(ours, 1000)
            os.write(ours, f"{answer}\n".encode())
        out, err = child.communicate(timeout=20)
        os.close(ours)
        assert child.returncode == code, err
        assert WORDS.encode() not in shown + out + err
        assert (out.decode() == f"{ED25519}\n") is (code == 0)
