"""The Sender Rewriting Scheme: forwarded mail leaves with a sender of ours, from which the first one can be had again.

    anna@example.org                             -> SRS0=HASH=TT=example.org=anna@ours.example
    SRS0=hash=tt=example.org=anna@first.example  -> SRS1=HASH=first.example==hash=tt=example.org=anna@ours.example
    SRS1=hash=first.example==...@second.example  -> SRS1=HASH=first.example==...@ours.example

(Meng Weng Wong, "Mail forwarding", 2003; the format is that of Mail::SRS and postsrsd.) The receiver checks SPF against
our domain; a bounce comes to us and is sent on, by ``reverse``, to whom it is for. HASH is a keyed one, so that nobody
else can make us send mail to an address of his choice; TT is the day, VALID_DAYS after which the address is void.

Pure but for ``from_file``: the secrets and the clock come in.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import re
from collections.abc import Callable, Sequence

from ptt.smtp.grammar import MAX_DOMAIN, MAX_LOCAL

HASH_CHARS = 8  # of base32: 40 bits, far more than can be tried against a server in VALID_DAYS
VALID_DAYS = 21  # a bounce comes within the 5 days of a queue; Mail::SRS has 21 as well
MIN_SECRET = 16  # octets
MAX_FILE_BYTES = 8192  # a hundred secrets; one is in use

_DAYS = 1024  # two characters of base32
_DIGITS = "abcdefghijklmnopqrstuvwxyz234567"
_SEPARATORS = "=+-"  # the first may be any of them, we write "="
_SRS0 = re.compile(rf"srs0[{_SEPARATORS}]([^=]+)=([^=]{{2}})=([^=]+)=(.+)", re.I | re.S)
_SRS1 = re.compile(rf"srs1[{_SEPARATORS}]([^=]+)=([^=]+)=([{_SEPARATORS}].+)", re.I | re.S)
_DOMAIN = re.compile(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?", re.I)


class Srs:
    """``secrets``: the first one makes addresses, all of them check them. ``clock``: seconds since the epoch."""

    def __init__(self, secrets: Sequence[bytes], clock: Callable[[], float]) -> None:
        if not secrets or min(map(len, secrets)) < MIN_SECRET:
            raise ValueError(f"a secret has {MIN_SECRET} octets at least")
        self._secrets = tuple(secrets)
        self._clock = clock

    def forward(self, sender: str, domain: str) -> str:
        """The sender that mail of ``sender`` has when it is sent on, at ``domain``, one of ours.

        "" when there is none: the null sender, a quoted local part, an address literal, or one that would be longer
        than a local part may be (RFC 5321 4.5.3.1.1).
        """
        local, at, host = sender.rpartition("@")
        if not at or local.startswith('"') or not _DOMAIN.fullmatch(host):
            return ""
        if found := _SRS1.fullmatch(local):
            first, rest = found[2], found[3]
            made = f"SRS1={self._hash(self._secrets[0], first, rest)}={first}={rest}"
        elif _SRS0.fullmatch(local):
            rest = local[4:]
            made = f"SRS1={self._hash(self._secrets[0], host, rest)}={host}={rest}"
        else:
            day = self._day()
            made = f"SRS0={self._hash(self._secrets[0], day, host, local)}={day}={host}={local}"
        return f"{made}@{domain}" if len(made.encode()) <= MAX_LOCAL else ""

    def reverse(self, address: str) -> str | None:
        """To whom a bounce for an address that we made is to go; None if we did not make it, or too long ago."""
        local = address.rpartition("@")[0]
        if found := _SRS1.fullmatch(local):
            digest, host, rest = found.groups()
            if len(host) <= MAX_DOMAIN and _DOMAIN.fullmatch(host) and self._made(digest, host, rest):
                return f"SRS0{rest}@{host}"
        elif found := _SRS0.fullmatch(local):
            digest, day, host, first = found.groups()
            good = _DOMAIN.fullmatch(host) and self._made(digest, day, host, first)
            if good and self._age(day) <= VALID_DAYS:
                return f"{first}@{host}"
        return None

    def _made(self, digest: str, *parts: str) -> bool:
        given = digest.lower().encode()
        return any(hmac.compare_digest(given, self._hash(secret, *parts).encode()) for secret in self._secrets)

    @staticmethod
    def _hash(secret: bytes, *parts: str) -> str:
        """In lower case throughout: mail systems on the way may change the case of what they do not know."""
        text = "=".join(parts).lower().encode("utf-8", "surrogatepass")
        return base64.b32encode(hmac.digest(secret, text, hashlib.sha256)).decode("ascii").lower()[:HASH_CHARS]

    def _today(self) -> int:
        return int(self._clock() // 86_400) % _DAYS

    def _day(self) -> str:
        today = self._today()
        return _DIGITS[today >> 5] + _DIGITS[today & 31]

    def _age(self, day: str) -> int:
        """Days since; a very large number for what is no day."""
        high, low = (_DIGITS.find(c) for c in day.lower())
        return _DAYS if min(high, low) < 0 else (self._today() - (high << 5) - low) % _DAYS


def is_srs(address: str) -> bool:
    """Does it look like an address that somebody rewrote?"""
    return address[:4].upper() in ("SRS0", "SRS1") and address[4:5] in tuple(_SEPARATORS)


def from_file(path: str, clock: Callable[[], float]) -> Srs | None:
    """None for no path. Blocks on the disk. Raises OSError, ValueError: also for a file that others may read."""
    if not path:
        return None
    with open(path, encoding="utf-8") as file:
        if os.fstat(file.fileno()).st_mode & 0o077:
            raise ValueError(f"{path}: others may read or write the file, its mode must be 0600")
        try:
            return Srs(read_secrets(file.read(MAX_FILE_BYTES)), clock)
        except ValueError as e:
            raise ValueError(f"{path}: {e}") from None


def read_secrets(text: str) -> list[bytes]:
    """The lines of a secret file: the first is in use, those below it are still believed. Raises ValueError."""
    found = [line.strip().encode() for line in text.splitlines() if line.strip()]
    if not found or min(map(len, found)) < MIN_SECRET:
        raise ValueError(f"needs lines of {MIN_SECRET} characters or more")
    return found
