"""The password verifiers of one commit: an LMDB file that only the control process can read."""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from typing import NamedTuple, TypeVar

import msgspec

from ptt.directory.files import ReadFile
from ptt.directory.passwords import PARAMETERS, SALT_BYTES, SCRAM_ITERATIONS
from ptt.directory.reader import USER, key
from ptt.directory.records import User


class Verifiers(msgspec.Struct, array_like=True, frozen=True):
    """What the control process knows of a user."""

    version: str  # the same as UserView.version
    disabled: bool
    password: str  # argon2id, PHC form; "": cannot log in by password
    scram: str  # RFC 5803; "": none


_T = TypeVar("_T")
_DECODER = msgspec.msgpack.Decoder(Verifiers)


def version_of(user: User) -> str:
    """A text that changes with the verifiers and ``disabled``, and tells nothing about the password.

    The hashes' salts (128 random bits) go into it and are not in the snapshots: nobody can try passwords against it.
    """
    text = "\0".join(("ptt user version", user.password, user.scram, str(user.disabled)))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def of(user: User) -> Verifiers:
    return Verifiers(version_of(user), user.disabled, user.password, user.scram)


class Parameters(NamedTuple):
    """The parameters that users' verifiers have, sorted, each with how many users have them."""

    argon2: tuple[tuple[str, int], ...]  # "$argon2id$v=19$m=19456,t=2,p=1"
    scram: tuple[tuple[tuple[int, int], int], ...]  # iterations, bytes of salt


USUAL = Parameters(((PARAMETERS, 1),), (((SCRAM_ITERATIONS, SALT_BYTES), 1),))  # of new ones
SAMPLE = 1_000  # users who are looked at; 1 ms
MAX_KINDS = 16  # the most common ones; a database has one, or two while its users change their passwords


class VerifierFile:
    """The verifiers of one commit, open for reading. Raises lmdb.Error from the constructor."""

    def __init__(self, path: str) -> None:
        self._file = ReadFile(path)
        self.close = self._file.close

    def get(self, user: str) -> Verifiers | None:
        """The verifiers of a user (folded name), disabled or not."""
        value = self._file.get(key(USER, user))
        return None if value is None else _DECODER.decode(value)

    def parameters(self) -> Parameters:
        """What the first SAMPLE users have; USUAL where none has any."""
        users = [_DECODER.decode(value) for _, value in self._file.items(USER, SAMPLE)]
        argon2 = Counter(user.password.rsplit("$", 2)[0] for user in users if user.password)
        scram = Counter(_scram_parameters(user.scram) for user in users if user.scram)
        return Parameters(_kinds(argon2) or USUAL.argon2, _kinds(scram) or USUAL.scram)


def _kinds(counted: Counter[_T]) -> tuple[tuple[_T, int], ...]:
    return tuple(sorted(counted.most_common(MAX_KINDS)))


def _scram_parameters(text: str) -> tuple[int, int]:
    iterations, salt = text.split("$")[1].split(":")
    return int(iterations), len(base64.b64decode(salt))
