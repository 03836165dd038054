"""SASL mechanisms, both ends, without I/O: PLAIN (RFC 4616), LOGIN (draft-murchison-sasl-login), SCRAM, EXTERNAL.

Of the server's, PLAIN and LOGIN are generators: they yield challenges, are sent the responses, and return
``Credentials``; they raise ``ProtocolError`` for a response that they cannot read. The others are the driver's
(``DRIVEN``): SCRAM (``scram``) needs the users' verifiers, EXTERNAL (RFC 4422 A) the client's certificate. A client's
mechanism is a generator of responses that is sent the challenges.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Generator
from typing import Final, NamedTuple

from ptt.smtp.errors import ProtocolError
from ptt.smtp.reply import Reply
from ptt.smtp.saslprep import prepare
from ptt.smtp.scram import Derive, client_mechanism, derive

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
SCRAM: Final = "SCRAM-SHA-256"
SCRAM_PLUS: Final = "SCRAM-SHA-256-PLUS"
EXTERNAL: Final = "EXTERNAL"
DRIVEN: Final = frozenset({SCRAM, SCRAM_PLUS, EXTERNAL})  # done by the driver, which gets an AuthStep per response
KNOWN_TO_SERVER: Final = DRIVEN | SERVER_MECHANISMS.keys()


def challenge_line(challenge: bytes) -> bytes:
    """Reply 334 (RFC 4954 4)."""
    return b"334 " + base64.b64encode(challenge) + b"\r\n"


def response_in(line: bytes) -> bytes:
    """A response as it was on the line, decoded. Raises ProtocolError with its reply, also for one that cancels."""
    if line == b"*":
        raise ProtocolError.of(CANCELLED)
    try:
        return base64.b64decode(line, validate=True)
    except (binascii.Error, ValueError):
        raise ProtocolError("not base64", BAD_RESPONSE) from None


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
        return challenge_line(self._challenge)

    def respond(self, line: bytes) -> Credentials | None:
        """Take a response as it was on the line. None: send the next challenge. Raises ProtocolError with its reply."""
        try:
            self._challenge = self._mechanism.send(response_in(line))
        except StopIteration as stop:
            credentials: Credentials = stop.value
            return credentials
        return None


class Account(NamedTuple):
    """With what a client authenticates."""

    user: str
    password: Secret
    binding: bytes = b""  # the channel's tls-server-end-point data; b"": none is known
    derive: Derive = derive


ClientMechanism = Generator[bytes, bytes, None]


def plain_client(account: Account, _offered: bool) -> ClientMechanism:
    yield f"\0{account.user}\0{account.password.reveal()}".encode()


def login_client(account: Account, _offered: bool) -> ClientMechanism:
    yield account.user.encode()
    yield account.password.reveal().encode()


def _scram(account: Account, offered: bool, *, plus: bool) -> ClientMechanism:
    return client_mechanism(
        account.user,
        prepare(account.password.reveal()),
        plus=plus,
        binding=account.binding,
        offered=offered,
        derive=account.derive,
    )


def scram_client(account: Account, offered: bool) -> ClientMechanism:
    return _scram(account, offered, plus=False)


def scram_plus_client(account: Account, offered: bool) -> ClientMechanism:
    return _scram(account, offered, plus=True)


# In the order of our preference. Called with the account, and whether the server offers SCRAM_PLUS. The flag: may the
# first response go with the command (RFC 4954 4)?
CLIENT_MECHANISMS: dict[str, tuple[Callable[[Account, bool], ClientMechanism], bool]] = {
    SCRAM_PLUS: (scram_plus_client, True),
    SCRAM: (scram_client, True),
    "PLAIN": (plain_client, True),
    "LOGIN": (login_client, False),
}
