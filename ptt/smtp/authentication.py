"""AUTH (RFC 4954) within a session: what each side says next. Sessions keep the states, mechanisms are in ``sasl``."""

from __future__ import annotations

import base64
from collections.abc import Iterator

from ptt.smtp.capabilities import Capabilities
from ptt.smtp.errors import ProtocolError
from ptt.smtp.events import AuthAttempt
from ptt.smtp.replies import AUTH_FAILED
from ptt.smtp.reply import Reply
from ptt.smtp.sasl import CLIENT_MECHANISMS, Secret, ServerExchange


class ServerAuth:
    """The server's side: one exchange at a time, and how many have failed. Each step gives what is to be done.

    bytes: send them, the next line is a response. Reply: send it, the exchange has failed. AuthAttempt: ask the driver.
    """

    __slots__ = ("_exchange", "failures")

    def __init__(self) -> None:
        self.failures = 0
        self._exchange: ServerExchange | None = None

    def start(self, mechanism: str, initial: bytes | None) -> bytes | Reply | AuthAttempt:
        """AUTH with a mechanism that is offered, and perhaps the first response as it was on the line."""
        exchange = self._exchange = ServerExchange(mechanism)
        return exchange.challenge() if initial is None else self.respond(initial)

    def respond(self, line: bytes) -> bytes | Reply | AuthAttempt:
        """A response as it was on the line."""
        exchange = self._exchange
        if exchange is None:
            raise RuntimeError("no AUTH is under way")
        try:
            who = exchange.respond(line)
        except ProtocolError as error:
            self._exchange = None
            return error.reply or AUTH_FAILED
        if who is None:
            return exchange.challenge()
        self._exchange = None
        return AuthAttempt(exchange.name, who.authcid, who.authzid, who.password)


class ClientAuth:
    """The client's side of one AUTH. Holds the password until it has been answered."""

    __slots__ = ("_responses",)

    def __init__(self) -> None:
        self._responses: Iterator[bytes] = iter(())

    def start(self, offered: Capabilities, user: str, password: Secret, mechanism: str | None) -> bytes:
        """The command, with the best mechanism that the server offers. Raises ProtocolError: it offers none of ours."""
        usable = [m for m in CLIENT_MECHANISMS if m in offered.auth and mechanism in (None, m)]
        if not usable:
            raise ProtocolError("the server offers no AUTH mechanism that we speak")
        make, at_once = CLIENT_MECHANISMS[usable[0]]
        self._responses = make(user, password)
        line = b"AUTH " + usable[0].encode()
        if at_once:
            line += b" " + base64.b64encode(next(self._responses))
        return line + b"\r\n"

    def respond(self, reply: Reply) -> bytes | None:
        """The next line, or None: that was the answer. Raises ProtocolError."""
        if reply.kind != 3:
            self._responses = iter(())  # forget the password
            return None
        response = next(self._responses, None)
        if response is None:
            raise ProtocolError("the server asks for more than AUTH has to say")
        return base64.b64encode(response) + b"\r\n"
