"""Password verifiers: made (argon2id, SCRAM-SHA-256) and checked, at most two at once.

The parameters of a check are those in the hash, so hashes of older parameters stay valid; new ones are made with those
below: 19 MiB, two passes, one lane (about 30 ms of one core), which leaves the other cores to mail.

Passwords are prepared with SASLprep (RFC 4013), so one password entered in two ways of writing is one password, for
PLAIN as for SCRAM.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import secrets
from collections.abc import Callable
from typing import Literal, NamedTuple

import argon2
import gevent.threadpool

from ptt.directory.turns import Turns
from ptt.smtp.saslprep import prepare

Result = Literal["ok", "bad", "busy"]

ARGON2_TIME = 2
ARGON2_MEMORY_KIB = 19_456
ARGON2_LANES = 1
SCRAM_ITERATIONS = 30_000  # above the 4,096 of RFC 7677 4; clients compute it at each login
SALT_BYTES = 16

AT_ONCE = 2  # checks at once for the whole pool: 40 MiB, and never all cores of a small machine
PARAMETERS = f"$argon2id$v=19$m={ARGON2_MEMORY_KIB},t={ARGON2_TIME},p={ARGON2_LANES}"  # of new hashes

_hasher = argon2.PasswordHasher(ARGON2_TIME, ARGON2_MEMORY_KIB, ARGON2_LANES, hash_len=32, salt_len=SALT_BYTES)


def hash_password(password: str) -> str:
    """A fresh argon2id hash in PHC form. Raises ValueError."""
    return _hasher.hash(prepare(password))


def scram_verifier(password: str, salt: bytes = b"", iterations: int = SCRAM_ITERATIONS) -> str:
    """A SCRAM-SHA-256 verifier in the form of RFC 5803 (keys: RFC 5802 3). Raises ValueError.

    ``salt``: fresh if empty.
    """
    salt = salt or os.urandom(SALT_BYTES)
    salted = hashlib.pbkdf2_hmac("sha256", prepare(password).encode(), salt, iterations)
    client = hmac.digest(salted, b"Client Key", "sha256")
    stored = hashlib.sha256(client).digest()
    server = hmac.digest(salted, b"Server Key", "sha256")
    b64 = [base64.b64encode(x).decode("ascii") for x in (salt, stored, server)]
    return f"SCRAM-SHA-256${iterations}:{b64[0]}${b64[1]}:{b64[2]}"


def generate_password() -> str:
    """A random password of 148 bits in letters that are not mixed up when read aloud."""
    alphabet = "abcdefghjkmnpqrstuvwxyz23456789"  # 31 letters
    return "-".join("".join(secrets.choice(alphabet) for _ in range(5)) for _ in range(6))


def check(verifier: str, password: str) -> bool:
    """Does the password fit the argon2id hash? Takes the time that the hash's parameters ask for."""
    try:
        return _hasher.verify(verifier, prepare(password))
    except (argon2.exceptions.VerificationError, argon2.exceptions.InvalidHashError):
        return False


class Found(NamedTuple):
    """What there is to check a password against."""

    hash: str  # argon2id; "" for a user who is unknown, disabled, or has no password
    dummy: str  # what is computed where there is none, so that it takes as long


Lookup = Callable[[str], Found]


class Verifier:
    """Checks passwords in real threads. ``check`` is ``passwords.check`` except in tests that count its calls.

    Whoever the user is, exactly one hash is computed: unknown and disabled users cost what a wrong password costs.
    """

    def __init__(self, lookup: Lookup, check: Callable[[str, str], bool] = check) -> None:
        self._lookup = lookup
        self._check = check
        self._threads = gevent.threadpool.ThreadPool(AT_ONCE)
        self._turns = Turns(AT_ONCE)

    def verify(self, user: str, password: str, network: str = "", known: bool = False) -> Result:
        """Check a password; waits for its turn, without blocking other greenlets. "busy": too many are waiting.

        ``network``: where it comes from; ``known``: the user has logged in from there lately.
        """
        if not self._turns.enter(network, known):
            return "busy"
        try:
            found = self._lookup(user)
            try:
                verifier, prepared = found.hash, prepare(password)
            except ValueError:  # no such password was ever set; the time is spent all the same
                verifier, prepared = "", "x"
            fits = self._threads.apply(self._check, (verifier or found.dummy, prepared))
        finally:
            self._turns.leave()
        return "ok" if fits and verifier else "bad"

    def close(self) -> None:
        self._threads.kill()
