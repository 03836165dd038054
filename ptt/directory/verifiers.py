"""The password verifiers of one commit: an LMDB file that only the control process can read."""

from __future__ import annotations

import hashlib

import msgspec

from ptt.directory.files import ReadFile
from ptt.directory.reader import USER, key
from ptt.directory.records import User


class Verifiers(msgspec.Struct, array_like=True, frozen=True):
    """What the control process knows of a user."""

    version: str  # the same as UserView.version
    disabled: bool
    password: str  # argon2id, PHC form; "": cannot log in by password
    scram: str  # RFC 5803; "": none


_DECODER = msgspec.msgpack.Decoder(Verifiers)


def version_of(user: User) -> str:
    """A text that changes with the verifiers and ``disabled``, and tells nothing about the password.

    The hashes' salts (128 random bits) go into it and are not in the snapshots: nobody can try passwords against it.
    """
    text = "\0".join(("ptt user version", user.password, user.scram, str(user.disabled)))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def of(user: User) -> Verifiers:
    return Verifiers(version_of(user), user.disabled, user.password, user.scram)


class VerifierFile:
    """The verifiers of one commit, open for reading. Raises lmdb.Error from the constructor."""

    def __init__(self, path: str) -> None:
        self._file = ReadFile(path)
        self.close = self._file.close

    def get(self, user: str) -> Verifiers | None:
        """The verifiers of a user (folded name), disabled or not."""
        value = self._file.get(key(USER, user))
        return None if value is None else _DECODER.decode(value)
