"""Private keys made from a passphrase: the same words, domain, selector and algorithm give the same key, anywhere.

An option of ``ptt dkim keygen``. Whoever guesses the passphrase has the key, and the public key in DNS tells a guesser
when he is right; so the passphrase must be long, and each guess costs what ``_stretch`` costs.

    seed    = argon2id(passphrase, salt = SHA-256(LABEL, domain, selector, algorithm))          32 octets
    Ed25519 = the seed is the key (RFC 8032, 5.1.5)
    RSA     = p and q, each the first of the numbers SHAKE-256(seed, "p" or "q", 0, 1, 2, ...) that is fit; e = 65537

What is here is part of what a key is made of: it never changes, another way gets another LABEL.
"""

from __future__ import annotations

import hashlib
import math
import unicodedata
from collections.abc import Iterator

from argon2.low_level import Type, hash_secret_raw
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa

from ptt.signer.state import KeyAlgorithm

LABEL = b"ptt-dkim-key-1"
MIN_PASSPHRASE = 20  # characters: six words drawn by dice, 77 bits, have more
MAX_PASSPHRASE = 1024
_PASSES, _MEMORY_KIB = 4, 256 * 1024  # of argon2id, one lane: half a second, and more memory than a guesser's chip has
_E = 65537
_SIEVE = math.prod(n for n in range(3, 2000, 2) if all(n % d for d in range(3, math.isqrt(n) + 1, 2)))


def private_key(
    passphrase: str, domain: str, selector: str, algorithm: KeyAlgorithm, bits: int
) -> rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey:
    """The key. ``bits``: of RSA. Raises ValueError for a passphrase that is too short or too long; the text says so."""
    passphrase = unicodedata.normalize("NFC", passphrase)  # one keyboard writes letter and accent, another one both
    if not MIN_PASSPHRASE <= len(passphrase) <= MAX_PASSPHRASE:
        raise ValueError(
            f"the passphrase has {len(passphrase)} characters, must have {MIN_PASSPHRASE} to {MAX_PASSPHRASE}"
        )
    seed = _stretch(passphrase, domain, selector, algorithm)
    return ed25519.Ed25519PrivateKey.from_private_bytes(seed) if algorithm == "ed25519" else _rsa(seed, bits)


def _stretch(passphrase: str, domain: str, selector: str, algorithm: str) -> bytes:
    salt = hashlib.sha256(b"\0".join([LABEL, domain.encode(), selector.encode(), algorithm.encode()])).digest()
    return hash_secret_raw(passphrase.encode(), salt, _PASSES, _MEMORY_KIB, 1, 32, Type.ID)


def _rsa(seed: bytes, bits: int) -> rsa.RSAPrivateKey:
    """Both primes begin with two set bits, so the modulus has all its bits, and p and q exceed what FIPS 186-5, A.1.3
    asks for. OpenSSL tests p and q for being prime (BN_check_prime) when the key is put together.
    """
    p, q = _prime(seed, b"p", bits // 2), _prime(seed, b"q", bits // 2)
    if abs(p - q) >> (bits // 2 - 100) == 0:
        raise ValueError("the primes are too close")  # one passphrase of 2^100
    d = pow(_E, -1, math.lcm(p - 1, q - 1))
    public = rsa.RSAPublicNumbers(_E, p * q)
    return rsa.RSAPrivateNumbers(p, q, d, d % (p - 1), d % (q - 1), rsa.rsa_crt_iqmp(p, q), public).private_key()


def _prime(seed: bytes, which: bytes, bits: int) -> int:
    return next(
        n
        for n in _candidates(seed, which, bits)
        if math.gcd(n, _SIEVE) == 1 and math.gcd(n - 1, _E) == 1 and pow(2, n - 1, n) == 1
    )


def _candidates(seed: bytes, which: bytes, bits: int) -> Iterator[int]:
    number = 0
    while True:
        drawn = hashlib.shake_256(seed + which + number.to_bytes(8, "big")).digest(bits // 8)
        yield int.from_bytes(drawn, "big") | 3 << (bits - 2) | 1
        number += 1
