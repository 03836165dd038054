"""SCRAM-SHA-256 and SCRAM-SHA-256-PLUS (RFC 5802, 7677): messages and keys of both ends, without I/O. Pure.

    server: parse_first -> server_first -> check_final        (in the control process, which has the verifiers)
    client: client_mechanism                                  (a generator of responses)

The package ``scramp`` is not used but in the tests, as the peer that we did not write: its server refuses every
authorization identity, even the user's own, and its client computes as many rounds as a server asks for, at once and on
the caller's thread, where ours is told by whom they are computed and has a lower bound on them.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
from collections.abc import Callable, Generator
from typing import Final, NamedTuple

from ptt.smtp.errors import ProtocolError

BINDING: Final = "tls-server-end-point"  # RFC 5929 4; the only type that we know
MAX_MESSAGE: Final = 4096  # octets; a binding has 64, a name 1,024
MAX_NAME: Final = 1024  # octets of a name
MIN_ITERATIONS: Final = 4096  # RFC 7677 4: a server that asks for less wants to try passwords
MAX_ITERATIONS: Final = 2_000_000  # about a second; a server that asks for more wants our time
NONCE_BYTES: Final = 18

Derive = Callable[[bytes, bytes, int], bytes]
"""(password, salt, iterations) -> SaltedPassword. The default computes it here; a driver may have a thread do it."""


class Verifier(NamedTuple):
    """What a server keeps of a password (RFC 5802 3)."""

    salt: bytes
    iterations: int
    stored_key: bytes
    server_key: bytes


class First(NamedTuple):
    """A client's first message."""

    flag: str  # "n": no binding; "y": would bind, but believes that we cannot; "p": binds
    binding: str  # the type, with "p"
    authzid: str
    user: str
    nonce: str
    header: bytes  # the gs2-header as it was sent
    bare: str  # client-first-message-bare


def _bad(text: str) -> ProtocolError:
    return ProtocolError(f"SCRAM: {text}")


def derive(password: bytes, salt: bytes, iterations: int) -> bytes:
    """SaltedPassword, by PBKDF2 (RFC 5802 2.2: Hi)."""
    return hashlib.pbkdf2_hmac("sha256", password, salt, iterations)


def parse_verifier(text: str) -> Verifier:
    """Read ``SCRAM-SHA-256$ITERATIONS:SALT$STOREDKEY:SERVERKEY`` (RFC 5803). Raises ValueError."""
    _, cost, keys = text.split("$")
    iterations, salt = cost.split(":")
    stored, server = keys.split(":")
    decode = base64.b64decode
    return Verifier(decode(salt), int(iterations), decode(stored), decode(server))


# --- messages -----------------------------------------------------------------------------------------------


def _text(message: bytes) -> str:
    if len(message) > MAX_MESSAGE:
        raise _bad("message too long")
    try:
        text = message.decode("utf-8")
    except UnicodeDecodeError:
        raise _bad("not UTF-8") from None
    if "\0" in text:
        raise _bad("NUL in a message")
    return text


def _fields(text: str, expected: str) -> list[str]:
    """The values of the attributes ``expected``, in this order, with nothing missing; extensions may follow them."""
    parts = text.split(",")
    if len(parts) < len(expected):
        raise _bad("attributes missing")
    for part in parts:
        if len(part) < 2 or part[1] != "=" or not (part[0].isascii() and part[0].isalpha()):
            raise _bad("malformed attribute")
    if [part[0] for part in parts[: len(expected)]] != list(expected):
        raise _bad("attributes in the wrong order, or an extension that is mandatory")  # RFC 5802 5.1: m
    return [part[2:] for part in parts[: len(expected)]]


def _name(text: str) -> str:
    """A saslname: "," is =2C and "=" is =3D (RFC 5802 5.1)."""
    name = text.replace("=2C", ",").replace("=3D", "=")
    if text.count("=") != text.count("=2C") + text.count("=3D") or len(name.encode()) > MAX_NAME:
        raise _bad("malformed name")
    return name


def _nonce(text: str) -> str:
    if not text or any(not "!" <= c <= "~" for c in text):
        raise _bad("malformed nonce")
    return text


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text.encode("ascii"), validate=True)
    except (binascii.Error, ValueError):
        raise _bad("not base64") from None


def _encoded(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def parse_first(message: bytes) -> First:
    """Read client-first-message. Raises ProtocolError."""
    text = _text(message)
    flag, comma, rest = text.partition(",")
    authzid, second, bare = rest.partition(",")
    kind, equals, binding = flag.partition("=")
    if not comma or not second or kind not in ("n", "y", "p") or (kind == "p") != bool(equals and binding):
        raise _bad("malformed header")
    if equals and kind != "p":
        raise _bad("malformed header")
    if authzid and not authzid.startswith("a="):
        raise _bad("malformed header")
    user, nonce = _fields(bare, "nr")
    if not user:
        raise _bad("no user name")
    header = text[: len(text) - len(bare)].encode()
    return First(kind, binding, _name(authzid[2:]), _name(user), _nonce(nonce), header, bare)


def binding_fits(first: First, *, plus: bool, offered: bool) -> bool:
    """RFC 5802 6: is what the client says of channel binding consistent with the mechanism and with our offer?

    ``plus``: the mechanism is -PLUS. ``offered``: we can bind on this connection. A "y" when we can is the trace of
    somebody who took -PLUS out of our offer.
    """
    if plus:
        return first.flag == "p" and first.binding == BINDING
    return first.flag == "n" or (first.flag == "y" and not offered)


def server_first(first: First, nonce: str, verifier: Verifier) -> bytes:
    """server-first-message. ``nonce``: the server's part."""
    return f"r={first.nonce}{nonce},s={_encoded(verifier.salt)},i={verifier.iterations}".encode()


def new_nonce() -> str:
    return secrets.token_urlsafe(NONCE_BYTES)


def check_final(
    first: First, challenge: bytes, message: bytes, binding: bytes, verifier: Verifier
) -> tuple[bool, bytes]:
    """Does client-final-message prove the password? And server-final-message, to be sent only if it does.

    ``challenge``: the server-first-message. ``binding``: the channel's binding data. Raises ProtocolError for a message
    that cannot be read; whatever is wrong with one that can, as much is computed.
    """
    text = _text(message)
    without_proof, comma, proof_text = text.rpartition(",p=")
    if not comma:
        raise _bad("no proof")
    bound, nonce = _fields(without_proof, "cr")
    proof = _decoded(proof_text)
    expected = first.header + (binding if first.flag == "p" else b"")
    same_channel = hmac.compare_digest(_decoded(bound), expected)
    ours = _fields(challenge.decode(), "rsi")[0]
    fresh = hmac.compare_digest(nonce.encode(), ours.encode())
    auth_message = f"{first.bare},{challenge.decode()},{without_proof}".encode()
    proved = hmac.compare_digest(_stored_key(proof, auth_message, verifier.stored_key), verifier.stored_key)
    signature = hmac.digest(verifier.server_key, auth_message, "sha256")
    return same_channel and fresh and proved, b"v=" + base64.b64encode(signature)


def _stored_key(proof: bytes, auth_message: bytes, stored_key: bytes) -> bytes:
    """The StoredKey that would make the proof right (RFC 5802 3)."""
    signature = hmac.digest(stored_key, auth_message, "sha256")
    key = bytes(a ^ b for a, b in zip(proof, signature, strict=False))
    return hashlib.sha256(key).digest() if len(proof) == len(signature) else b""


# --- the client ---------------------------------------------------------------------------------------------


def client_mechanism(
    user: str,
    password: str,
    *,
    plus: bool = False,
    binding: bytes = b"",
    offered: bool = False,
    derive: Derive = derive,
    nonce: str = "",
) -> Generator[bytes, bytes, None]:
    """The client's responses; it is sent the challenges. Raises ProtocolError if the server does not know the password.

    ``password``: after SASLprep. ``plus``: bind to the channel, whose data is ``binding``. ``offered``: the server
    offers -PLUS; a client that could bind and does not see the offer says so ("y"). ``nonce``: for tests.
    """
    header = f"p={BINDING},," if plus else "y,," if binding and not offered else "n,,"
    nonce = nonce or new_nonce()
    bare = f"n={user.replace('=', '=3D').replace(',', '=2C')},r={nonce}"
    challenge = _text((yield (header + bare).encode()))
    combined, salt, count = _fields(challenge, "rsi")
    if not _nonce(combined).startswith(nonce) or len(combined) == len(nonce):
        raise _bad("the server's nonce does not continue ours")
    if not (count.isascii() and count.isdecimal() and len(count) < 9):
        raise _bad("malformed iteration count")
    if not MIN_ITERATIONS <= int(count) <= MAX_ITERATIONS:
        raise _bad(f"the server asks for {count} iterations")
    bound = _encoded(header.encode() + (binding if plus else b""))
    without_proof = f"c={bound},r={combined}"
    auth_message = f"{bare},{challenge},{without_proof}".encode()
    salted = derive(password.encode(), _decoded(salt), int(count))
    key = hmac.digest(salted, b"Client Key", "sha256")
    signature = hmac.digest(hashlib.sha256(key).digest(), auth_message, "sha256")
    proof = bytes(a ^ b for a, b in zip(key, signature, strict=True))
    final = _text((yield f"{without_proof},p={_encoded(proof)}".encode()))
    server_key = hmac.digest(salted, b"Server Key", "sha256")
    expected = b"v=" + base64.b64encode(hmac.digest(server_key, auth_message, "sha256"))
    if not hmac.compare_digest(final.encode().partition(b",")[0], expected):
        raise _bad("the server does not know the password")
    yield b""  # RFC 4954 4: the server's last word came in a challenge
