"""Who signed a commit with an SSH key: OpenSSH's signature format and git's list of allowed signers. Pure.

Sources: PROTOCOL.sshsig and ssh-keygen(1) ALLOWED SIGNERS of OpenSSH; RFC 8709 (Ed25519), RFC 5656 (ECDSA), RFC 8332
(RSA with SHA-2). Certificates and keys on security tokens (sk-...) are not supported: a line with one is refused.
"""

from __future__ import annotations

import base64
import binascii
import calendar
import fnmatch
import hashlib
import re
import time
from typing import NamedTuple

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256, SHA512
from cryptography.hazmat.primitives.serialization import load_ssh_public_key

NAMESPACE = "git"
KINDS = ("ssh-ed25519", "ecdsa-sha2-nistp256", "ssh-rsa")
MIN_RSA_BITS = 2048  # NIST SP 800-131A: shorter keys sign no more
MAX_SIGNATURE = 16_384  # characters of an armoured one; that of a 4096-bit RSA key has 1,600
MAX_SIGNERS = 10_000

_MAGIC = b"SSHSIG"
_BEGIN, _END = "-----BEGIN SSH SIGNATURE-----", "-----END SSH SIGNATURE-----"
_HASHES = {b"sha256": hashlib.sha256, b"sha512": hashlib.sha512}
_WORD = re.compile(r'(?:[^\s"]|"[^"]*")+')
_OPTION = re.compile(r'(?:[^,"]|"[^"]*")+')
_TIME = re.compile(r"(\d{8})(\d{4}(?:\d{2})?)?Z?")


class BadSignature(Exception):
    """The signature does not hold; the text says why. The only exception of ``verify``."""


class BadSigners(Exception):
    """A line of the list of signers cannot be used; the text says which and why."""


class Signer(NamedTuple):
    """One allowed key."""

    principals: str  # whom the list names, for the log
    key: bytes  # in SSH's wire form
    namespaces: tuple[str, ...]  # patterns; empty: all
    after: float  # valid from, Unix seconds
    before: float  # valid until


def parse_signers(text: str) -> list[Signer]:
    """The keys of an allowed-signers file. Raises BadSigners."""
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        try:
            found.append(_signer(line))
        except (ValueError, UnsupportedAlgorithm) as e:
            raise BadSigners(f"line {number}: {e}") from e
        if len(found) > MAX_SIGNERS:
            raise BadSigners(f"line {number}: more than {MAX_SIGNERS} keys")
    return found


def _signer(line: str) -> Signer:
    words = _WORD.findall(line)
    kind = next((n for n, word in enumerate(words) if n and word in KINDS), 0)
    if not 1 <= kind <= 2 or len(words) < kind + 2:
        raise ValueError(f"is not PRINCIPALS [OPTIONS] KEY with a key of a kind that is known here: {', '.join(KINDS)}")
    namespaces: tuple[str, ...] = ()
    after, before = 0.0, float("inf")
    for option in _OPTION.findall(words[1]) if kind == 2 else ():
        name, _, quoted = option.partition("=")
        value = quoted.strip('"')
        if name.lower() == "namespaces":
            namespaces = tuple(value.split(","))
        elif name.lower() == "valid-after":
            after = _seconds(value)
        elif name.lower() == "valid-before":
            before = _seconds(value)
        else:
            raise ValueError(f"the option {name[:64]!r} is not supported")
    key = base64.b64decode(words[kind + 1], validate=True)
    _load(key)
    return Signer(words[0].strip('"'), key, namespaces, after, before)


def _seconds(text: str) -> float:
    """YYYYMMDD[HHMM[SS]][Z] -> Unix seconds; without Z, in the time zone of this host, as OpenSSH has it."""
    found = _TIME.fullmatch(text)
    if not found:
        raise ValueError(f"{text[:32]!r} is no time of the form YYYYMMDD[HHMM[SS]][Z]")
    parsed = time.strptime(found[1] + (found[2] or "0000").ljust(6, "0"), "%Y%m%d%H%M%S")
    return float(calendar.timegm(parsed)) if text.endswith("Z") else time.mktime(parsed)


def verify(signature: str, message: bytes, signers: list[Signer], now: float) -> Signer:
    """Who of ``signers`` made an armoured signature of a message. ``now``: Unix seconds. Raises BadSignature."""
    key, hash_name, signed = _parse(signature)
    found = [s for s in signers if s.key == key]
    if not found:
        raise BadSignature("the key is not among the allowed signers")
    lawful = [s for s in found if not s.namespaces or any(fnmatch.fnmatchcase(NAMESPACE, n) for n in s.namespaces)]
    if not lawful:
        raise BadSignature(f"{found[0].principals} may not sign commits: not in the namespaces of the key")
    valid = [s for s in lawful if s.after <= now < s.before]
    if not valid:
        raise BadSignature(f"the key of {found[0].principals} is not valid now")
    digest = _HASHES[hash_name](message).digest()
    data = _MAGIC + _string(NAMESPACE.encode()) + _string(b"") + _string(hash_name) + _string(digest)
    try:
        _check(key, signed, data)
    except (InvalidSignature, ValueError, UnsupportedAlgorithm) as e:
        raise BadSignature("the signature does not belong to the commit") from e
    return valid[0]


def _parse(armoured: str) -> tuple[bytes, bytes, bytes]:
    """(public key, name of the hash, signature) of an armoured signature for git. Raises BadSignature."""
    lines = armoured.strip().splitlines()
    if len(armoured) > MAX_SIGNATURE or len(lines) < 3 or (lines[0].strip(), lines[-1].strip()) != (_BEGIN, _END):
        raise BadSignature("it is not signed with an SSH key")
    try:
        data = base64.b64decode("".join(lines[1:-1]), validate=True)
    except (binascii.Error, ValueError) as e:
        raise BadSignature("the signature is not base64") from e
    if data[:10] != _MAGIC + b"\x00\x00\x00\x01":
        raise BadSignature("the signature is not of version 1")
    key, namespace, _reserved, hash_name, signed = _strings(data[10:], 5)
    if namespace != NAMESPACE.encode():
        raise BadSignature(f"the signature is for the namespace {namespace[:32]!r}, not git")
    if hash_name not in _HASHES:
        raise BadSignature(f"the hash {hash_name[:32]!r} is not known")
    return key, hash_name, signed


def _strings(data: bytes, count: int) -> list[bytes]:
    """Exactly so many strings (RFC 4251 5), and nothing after them. Raises BadSignature."""
    found = []
    for _ in range(count):
        length = int.from_bytes(data[:4], "big")
        if len(data) < 4 + length:
            raise BadSignature("the signature is cut short")
        found.append(data[4 : 4 + length])
        data = data[4 + length :]
    if data:
        raise BadSignature("the signature has more than it should")
    return found


def _string(data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + data


def _load(key: bytes) -> Ed25519PublicKey | EllipticCurvePublicKey | RSAPublicKey:
    """A public key from SSH's wire form. Raises ValueError."""
    kind = key[4 : 4 + int.from_bytes(key[:4], "big")]
    if kind.decode("ascii", "replace") not in KINDS:
        raise ValueError("a key of another kind than its line says")
    loaded = load_ssh_public_key(kind + b" " + base64.b64encode(key))
    if isinstance(loaded, RSAPublicKey) and loaded.key_size < MIN_RSA_BITS:
        raise ValueError(f"an RSA key of fewer than {MIN_RSA_BITS} bits")
    if not isinstance(loaded, Ed25519PublicKey | EllipticCurvePublicKey | RSAPublicKey):
        raise ValueError("a key of a kind that is not known here")
    return loaded


def _check(key: bytes, signed: bytes, data: bytes) -> None:
    """Raises InvalidSignature, BadSignature, ValueError."""
    loaded = _load(key)
    kind, value = _strings(signed, 2)
    if isinstance(loaded, Ed25519PublicKey) and kind == b"ssh-ed25519":
        loaded.verify(value, data)
    elif isinstance(loaded, EllipticCurvePublicKey) and kind == b"ecdsa-sha2-nistp256":
        r, s = (int.from_bytes(x, "big") for x in _strings(value, 2))
        loaded.verify(encode_dss_signature(r, s), data, ECDSA(SHA256()))
    elif isinstance(loaded, RSAPublicKey) and kind == b"rsa-sha2-512":
        loaded.verify(value, data, padding.PKCS1v15(), SHA512())
    elif isinstance(loaded, RSAPublicKey) and kind == b"rsa-sha2-256":
        loaded.verify(value, data, padding.PKCS1v15(), SHA256())
    else:
        raise BadSignature(f"a signature of the kind {kind[:32]!r} is not taken from this key")
