"""SASL mechanisms PLAIN (RFC 4616) and LOGIN (draft-murchison-sasl-login), both ends, without I/O.

A server mechanism is a generator: it yields challenges, is sent the responses, and returns ``Credentials``. It raises
``ProtocolError`` for a response that it cannot read. ``ServerExchange`` drives one and does the base64.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Generator, Iterator
from typing import NamedTuple

from ptt.smtp.errors import ProtocolError
from ptt.smtp.reply import Reply

MAX_CREDENTIAL = 1024  # characters of a name or password; RFC 4616 2 demands at least 255 octets

BAD_RESPONSE = Reply(501, "5.5.2", "Cannot decode the response")
CANCELLED = Reply(501, "5.7.0", "Authentication cancelled")


class Secret:
    """A password on its way to the verifier. It is shown nowhere by accident: not by repr, str, format or pickle."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        return self._value

    def __repr__(self) -> str:
        return "Secret(***)"

    def __reduce__(self) -> str:
        raise TypeError("a Secret is not serialised")


class Credentials(NamedTuple):
    """Who wants to be authenticated (authcid), as whom to act (authzid, "" for the same), and the proof."""

    authcid: str
    authzid: str
    password: Secret


Mechanism = Generator[bytes, bytes, Credentials]


def _text(data: bytes) -> str:
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        raise ProtocolError("credentials are not UTF-8", BAD_RESPONSE) from None
    if len(text) > MAX_CREDENTIAL or "\0" in text:
        raise ProtocolError("credentials too long or with NUL", BAD_RESPONSE)
    return text


def plain_server() -> Mechanism:
    """RFC 4616: one response, authzid NUL authcid NUL password."""
    response = yield b""
    parts = response.split(b"\0")
    if len(parts) != 3 or not parts[1] or not parts[2]:
        raise ProtocolError("not a PLAIN response", BAD_RESPONSE)
    return Credentials(_text(parts[1]), _text(parts[0]), Secret(_text(parts[2])))


def login_server() -> Mechanism:
    """Two challenges; the texts are what all known clients expect. A client may send the name at once."""
    name = yield b"Username:"
    password = yield b"Password:"
    if not name or not password:
        raise ProtocolError("empty name or password", BAD_RESPONSE)
    return Credentials(_text(name), "", Secret(_text(password)))


SERVER_MECHANISMS: dict[str, Callable[[], Mechanism]] = {"PLAIN": plain_server, "LOGIN": login_server}


class ServerExchange:
    """One AUTH command, server side (RFC 4954 4)."""

    __slots__ = ("_challenge", "_mechanism", "name")

    def __init__(self, name: str) -> None:
        """``name``: a key of SERVER_MECHANISMS."""
        self.name = name
        self._mechanism = SERVER_MECHANISMS[name]()
        self._challenge = next(self._mechanism)

    def challenge(self) -> bytes:
        """The line of reply 334 that asks for the next response."""
        return b"334 " + base64.b64encode(self._challenge) + b"\r\n"

    def respond(self, line: bytes) -> Credentials | None:
        """Take a response as it was on the line. None: send the next challenge. Raises ProtocolError with its reply."""
        if line == b"*":
            raise ProtocolError.of(CANCELLED)
        try:
            self._challenge = self._mechanism.send(_decode(line))
        except StopIteration as stop:
            credentials: Credentials = stop.value
            return credentials
        return None


def _decode(line: bytes) -> bytes:
    try:
        return base64.b64decode(line, validate=True)
    except (binascii.Error, ValueError):
        raise ProtocolError("not base64", BAD_RESPONSE) from None


def plain_client(user: str, password: Secret) -> Iterator[bytes]:
    yield f"\0{user}\0{password.reveal()}".encode()


def login_client(user: str, password: Secret) -> Iterator[bytes]:
    yield user.encode()
    yield password.reveal().encode()


# In the order of our preference. The flag: may the first response go with the command (RFC 4954 4)?
CLIENT_MECHANISMS: dict[str, tuple[Callable[[str, Secret], Iterator[bytes]], bool]] = {
    "PLAIN": (plain_client, True),
    "LOGIN": (login_client, False),
}
