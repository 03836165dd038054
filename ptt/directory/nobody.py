"""What users who do not exist look like to those who try to log in: like somebody, and always the same.

The parameters of a verifier show in the salt and the iterations of SCRAM, and in the time that argon2id takes. So each
name that is nobody's is given parameters drawn from those that the users have, as often as they have them, and a salt;
both follow from the name and a secret of the host.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
from typing import TypeVar

from ptt.directory.passwords import SALT_BYTES
from ptt.directory.verifiers import USUAL, Parameters
from ptt.smtp.scram import Verifier

SECRET_BYTES = 32
DRAW_BYTES = 8
KEY_BYTES = 32  # of StoredKey, ServerKey and an argon2id hash

_T = TypeVar("_T")


def keep_secret(path: str) -> bytes:
    """The secret of the host; made once, so that nobody stays the same. Raises OSError."""
    with contextlib.suppress(FileExistsError), open(path, "xb", opener=lambda p, how: os.open(p, how, 0o600)) as f:
        f.write(os.urandom(SECRET_BYTES))
    with open(path, "rb") as f:
        secret = f.read(SECRET_BYTES)
    if len(secret) < SECRET_BYTES:  # a crash while it was written
        os.unlink(path)
        return keep_secret(path)
    return secret


class Nobody:
    """``like``: the parameters that users have. Names are folded."""

    def __init__(self, secret: bytes) -> None:
        self.like: Parameters = USUAL
        self._secret = secret

    def scram(self, user: str) -> Verifier:
        """A verifier that no proof fits."""
        octets = self._octets("scram", user)
        iterations, salt_bytes = _drawn(self.like.scram, octets[:DRAW_BYTES])
        stored, server = octets[DRAW_BYTES : DRAW_BYTES + KEY_BYTES], octets[-KEY_BYTES:]
        return Verifier(self._octets("salt", user, salt_bytes), iterations, stored, server)

    def argon2(self, user: str) -> str:
        """An argon2id hash that no password fits, to be computed as somebody's would be."""
        octets = self._octets("argon2", user)
        salt, digest = octets[DRAW_BYTES : DRAW_BYTES + SALT_BYTES], octets[-KEY_BYTES:]
        encoded = "$".join(base64.b64encode(part).decode().rstrip("=") for part in (salt, digest))
        return f"{_drawn(self.like.argon2, octets[:DRAW_BYTES])}${encoded}"

    def _octets(self, what: str, user: str, size: int = DRAW_BYTES + 2 * KEY_BYTES) -> bytes:
        text = f"{what}\0{user}".encode("utf-8", "surrogatepass")
        return hashlib.shake_256(self._secret + text).digest(size)


def _drawn(kinds: tuple[tuple[_T, int], ...], octets: bytes) -> _T:
    """One of the kinds, each as often as its count says."""
    at = int.from_bytes(octets, "big") * sum(count for _, count in kinds) >> 8 * len(octets)
    for kind, count in kinds:
        at -= count
        if at < 0:
            return kind
    raise AssertionError("the last kind ends at the sum of all")
