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


class Common(NamedTuple):
    """The parameters that most users' verifiers have: users who do not exist are given the same."""

    argon2: str = PARAMETERS  # "$argon2id$v=19$m=19456,t=2,p=1"
    iterations: int = SCRAM_ITERATIONS
    salt_bytes: int = SALT_BYTES


SAMPLE = 1_000  # users who are looked at for what is common; 1 ms


class VerifierFile:
    """The verifiers of one commit, open for reading. Raises lmdb.Error from the constructor."""

    def __init__(self, path: str) -> None:
        self._file = ReadFile(path)
        self.close = self._file.close

    def get(self, user: str) -> Verifiers | None:
        """The verifiers of a user (folded name), disabled or not."""
        value = self._file.get(key(USER, user))
        return None if value is None else _DECODER.decode(value)

    def common(self) -> Common:
        """What is most common among the first SAMPLE users."""
        users = [_DECODER.decode(value) for _, value in self._file.items(USER, SAMPLE)]
        argon2 = Counter(user.password.rsplit("$", 2)[0] for user in users if user.password)
        scram = Counter(_scram_parameters(user.scram) for user in users if user.scram)
        usual = Common()
        iterations, salt_bytes = _first(scram) or (usual.iterations, usual.salt_bytes)
        return Common(_first(argon2) or usual.argon2, iterations, salt_bytes)


def _first(counted: Counter[_T]) -> _T | None:
    return counted.most_common(1)[0][0] if counted else None


def _scram_parameters(text: str) -> tuple[int, int]:
    iterations, salt = text.split("$")[1].split(":")
    return int(iterations), len(base64.b64decode(salt))
