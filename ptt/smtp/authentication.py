"""AUTH (RFC 4954) within a session: what each side says next. Sessions keep the states, mechanisms are in ``sasl``."""

from __future__ import annotations

import base64
import binascii

from ptt.smtp import sasl
from ptt.smtp.capabilities import Capabilities
from ptt.smtp.errors import ProtocolError
from ptt.smtp.events import AuthAttempt, AuthStep
from ptt.smtp.replies import AUTH_FAILED
from ptt.smtp.reply import Reply
from ptt.smtp.sasl import CLIENT_MECHANISMS, DRIVEN, Account, ClientMechanism, ServerExchange

ServerNext = bytes | Reply | AuthAttempt | AuthStep
"""bytes: send them, the next line is a response. Reply: send it, the exchange has failed. An event: ask the driver."""


class ServerAuth:
    """The server's side: one exchange at a time, and how many have failed."""

    __slots__ = ("_exchange", "_first", "_mechanism", "failures")

    def __init__(self) -> None:
        self.failures = 0
        self._mechanism = ""
        self._first = False  # no response has come yet
        self._exchange: ServerExchange | None = None  # of a mechanism that is not the driver's

    def start(self, mechanism: str, initial: bytes | None) -> ServerNext:
        """AUTH with a mechanism that is offered, and perhaps the first response as it was on the line."""
        self._mechanism = mechanism
        self._first = True
        exchange = self._exchange = None if mechanism in DRIVEN else ServerExchange(mechanism)
        if initial is not None:
            return self.respond(initial)
        return sasl.challenge_line(b"") if exchange is None else exchange.challenge()

    def respond(self, line: bytes) -> ServerNext:
        """A response as it was on the line."""
        try:
            if self._exchange is None:
                first, self._first = self._first, False
                return AuthStep(self._mechanism, sasl.response_in(line), first)
            who = self._exchange.respond(line)
        except ProtocolError as error:
            return error.reply or AUTH_FAILED
        if who is None:
            return self._exchange.challenge()
        return AuthAttempt(self._mechanism, who.authcid, who.authzid, who.password)


class ClientAuth:
    """The client's side of one AUTH. Holds the password until it has been answered."""

    __slots__ = ("_first", "_mechanism")

    def __init__(self) -> None:
        self._mechanism: ClientMechanism | None = None
        self._first: bytes | None = None  # the first response, where it is to be asked for

    def start(self, offered: Capabilities, account: Account, mechanism: str | None) -> bytes:
        """The command, with the best mechanism that the server offers. Raises ProtocolError: it offers none of ours."""
        usable = [m for m in CLIENT_MECHANISMS if m in offered.auth and mechanism in (None, m)]
        if not account.binding:
            usable = [m for m in usable if m != sasl.SCRAM_PLUS]
        if not usable:
            raise ProtocolError("the server offers no AUTH mechanism that we speak")
        make, at_once = CLIENT_MECHANISMS[usable[0]]
        self._mechanism = make(account, sasl.SCRAM_PLUS in offered.auth)
        self._first = next(self._mechanism)
        line = b"AUTH " + usable[0].encode()
        if at_once:
            line += b" " + base64.b64encode(self._first)
            self._first = None
        return line + b"\r\n"

    def respond(self, reply: Reply) -> bytes | None:
        """The next line, or None: that was the answer. Raises ProtocolError."""
        mechanism = self._mechanism
        if reply.kind != 3:
            self._mechanism = None  # forget the password
            if reply.ok:
                _finished(mechanism)
            return None
        response, self._first = self._first, None
        if response is None:
            try:
                response = mechanism.send(_challenge(reply)) if mechanism is not None else None
            except StopIteration:
                response = None
        if response is None:
            raise ProtocolError("the server asks for more than AUTH has to say")
        return base64.b64encode(response) + b"\r\n"


def _challenge(reply: Reply) -> bytes:
    try:
        return base64.b64decode(reply.lines[0].strip(), validate=True)
    except (binascii.Error, ValueError):
        return b""  # LOGIN's challenges are said in many ways, and not looked at; SCRAM cannot go on from here


def _finished(mechanism: ClientMechanism | None) -> None:
    """Raises ProtocolError if the server says yes before it has shown what the mechanism asks of it (RFC 5802 5)."""
    try:
        if mechanism is not None:
            mechanism.send(b"")
    except StopIteration:
        return
    raise ProtocolError("the server ends AUTH before its time")
