"""``ServerSession``: the server's side of SMTP (RFC 5321) as a state machine. Bytes in, events out, replies as bytes.

It knows no socket, no clock, no user and no queue. Syntax, sequence, limits and the error budget are its own; what
needs a decision (may this user log in, is this recipient welcome, is the message committed) is an event that the
driver answers with ``accept`` or ``refuse``. Nothing that a client sends makes it raise. The driver::

    session = ServerSession(config, tls=implicit)
    while True:
        event = session.next_event()
        if event is NEED_DATA:
            stream.write(session.data_to_send(), timeout)     # a pipelined group is answered in one write
            session.receive_data(stream.read(65536, timeout)) # b"" at the end of the stream
        elif isinstance(event, Closed):
            stream.write(session.data_to_send(), timeout)
            break
        elif isinstance(event, StartTls):
            stream.write(session.data_to_send(), timeout)
            stream = stream.start_tls(context, timeout, server_side=True)
            session.tls_started()
        elif isinstance(event, AuthAttempt):
            session.accept() if verify(event.authcid, event.password) else session.refuse(replies.AUTH_FAILED)
        elif isinstance(event, AuthStep):                     # where the configuration offers such a mechanism
            session.challenge(challenge_to(event.response)) # or accept, or refuse
        elif isinstance(event, MailFrom):
            envelope = new_envelope(event); session.accept()
        elif isinstance(event, RcptTo):
            session.accept() if welcome(event.address) else session.refuse(Reply(550, "5.1.1", "No such user"))
        elif isinstance(event, MessageComplete):
            session.accept(Reply(250, "2.0.0", f"queued as {put(envelope, event.chunks)}"))
        else:                                                 # Hello, MessageStart
            session.accept()

A new ``MailFrom`` replaces whatever the driver had gathered before; RSET and EHLO need no event of their own. To ask
for the next event while a decision is open, or to answer without one, is a mistake of the driver: RuntimeError.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from ptt.smtp import replies, sasl, states
from ptt.smtp.authentication import ServerAuth, ServerNext
from ptt.smtp.commands import no_argument, parse_auth, parse_hello, parse_mail, parse_rcpt
from ptt.smtp.config import ServerConfig
from ptt.smtp.dotstuff import Unstuffer
from ptt.smtp.errors import ProtocolError
from ptt.smtp.events import (
    NEED_DATA,
    AuthAttempt,
    AuthStep,
    Closed,
    Hello,
    MailFrom,
    MessageComplete,
    MessageStart,
    NeedData,
    RcptTo,
    ServerEvent,
    StartTls,
)
from ptt.smtp.lines import LineReader
from ptt.smtp.reply import Reply
from ptt.smtp.states import TRANSITIONS, State, Verb, out_of_sequence

MAX_LINE: Final = 510  # octets without CRLF of a command: RFC 5321 4.5.3.1.4
MAX_PARAMETER_LINE: Final = 2046  # of MAIL, RCPT and AUTH, to which extensions add (RFC 1870, 3461, 4954, 6531)
MAX_AUTH_LINE: Final = 12_286  # of a SASL response: RFC 4954 4
MAX_IDLE_COMMANDS: Final = 100  # NOOP, VRFY, HELP since the last message; Postfix: smtpd_junk_command_limit
_FOREIGN: Final = frozenset({b"GET", b"POST", b"PUT", b"HEAD", b"OPTIONS", b"CONNECT"})  # a browser or a proxy: close

_ACCEPTED: Final[dict[type, bytes]] = {
    AuthAttempt: replies.AUTHENTICATED,
    AuthStep: replies.AUTHENTICATED,
    MailFrom: replies.SENDER_OK,
    RcptTo: replies.RECIPIENT_OK,
    MessageStart: replies.START_MAIL,
    MessageComplete: replies.MESSAGE_OK,
}


class ServerSession:
    """One connection's worth of SMTP, server side. See the module's docstring for its use."""

    def __init__(self, config: ServerConfig, *, tls: bool = False, authenticated: bool = False) -> None:
        """``tls``: the handshake is done (implicit TLS). ``authenticated``: by other means, such as a certificate."""
        self.config = config
        self.tls = tls
        self.authenticated = authenticated
        self.state = states.START
        self.recipients = 0  # accepted in this transaction
        self._in = LineReader()
        self._out = [config.greeting_wire]
        self._pending: ServerEvent | None = None  # the decision that the driver owes
        self._following = states.START  # the state if it is accepted
        self._body: Unstuffer | None = None
        self._auth_exchange = ServerAuth()
        self._utf8 = False  # MAIL had SMTPUTF8
        self._eof = False
        self._reason = ""
        self._errors = 0
        self._idle = 0

    # --- what the driver calls ------------------------------------------------------------------------------

    def receive_data(self, data: bytes) -> None:
        """Bytes of the client, as they come; b"" at the end of the stream. Only stores them."""
        if not data:
            self._eof = True
        elif self.state is states.HANDSHAKE:
            self._close(None, "bytes in clear behind STARTTLS")
        elif self.state is not states.CLOSED:
            self._in.feed(data)

    def data_to_send(self) -> bytes:
        """The replies since the last call, in order; b"" when there are none."""
        out = self._out
        if not out:
            return b""
        data = out[0] if len(out) == 1 else b"".join(out)
        out.clear()
        return data

    @property
    def unsent(self) -> int:
        """How many replies wait for ``data_to_send``."""
        return len(self._out)

    def next_event(self) -> ServerEvent | NeedData:
        """The next thing that concerns the driver, or NEED_DATA."""
        if self._pending is not None:
            raise RuntimeError(f"{type(self._pending).__name__} was not answered")
        while True:
            state = self.state
            event: ServerEvent | NeedData | None
            if state is states.DATA:
                event = self._take_content()
            elif state is states.CLOSED:
                return Closed(self._reason)
            elif state is states.HANDSHAKE:
                event = NEED_DATA
            else:
                event = self._take_line()
            if event is NEED_DATA and self._eof:
                self._close(None, "client closed the connection")
            elif event is not None:
                return event

    def accept(self, reply: Reply | None = None) -> None:
        """Say yes to the last event, with ``reply`` in place of the usual one."""
        event = self._answered()
        kind = type(event)
        self.state = self._following
        if kind is MessageStart:
            self._body = Unstuffer(self.config.max_message_bytes, self.config.max_text_line)
        elif kind is RcptTo:
            self.recipients += 1
        elif isinstance(event, MailFrom):
            self.recipients = 0
            self._utf8 = event.params.smtputf8
        elif kind is MessageComplete:
            self._idle = 0
        elif kind is AuthAttempt or kind is AuthStep:
            self.authenticated = True
        if reply is not None:
            self._out.append(reply.encode())
        elif isinstance(event, Hello):
            wire = self.config.ehlo_wire[self.tls, self.authenticated] if event.ehlo else self.config.helo_wire
            self._out.append(wire)
        else:
            self._out.append(_ACCEPTED[kind])

    def refuse(self, reply: Reply) -> None:
        """Say no to the last event. With code 421 the session ends (RFC 5321 3.8)."""
        event = self._answered()
        if reply.code == 421:
            self._close(reply, "refused")
            return
        self._out.append(reply.encode())
        if isinstance(event, MessageStart | MessageComplete):
            self.state = states.READY  # the transaction is over, whatever its end: RFC 5321 4.1.1.4
        elif isinstance(event, AuthAttempt | AuthStep):
            self.state = states.READY
            self._auth_failed()

    def challenge(self, data: bytes) -> None:
        """Answer an AuthStep with the mechanism's next challenge; another AuthStep follows."""
        if not isinstance(self._answered(), AuthStep):
            raise RuntimeError("challenge() to something that is no AuthStep")
        self._out.append(sasl.challenge_line(data))

    def tls_started(self) -> None:
        """The handshake is done. All that was known of the client is forgotten (RFC 3207 4.2)."""
        if self.state is states.CLOSED:
            return
        if self.state is not states.HANDSHAKE:
            raise RuntimeError("tls_started() without STARTTLS")
        self.tls = True
        self.state = states.START

    def shutdown(self, reply: Reply, reason: str = "shut down") -> None:
        """End the session from outside: a time-out, a drain. Allowed at any moment."""
        if self.state is not states.CLOSED:
            self._pending = None
            self._close(reply, reason)

    # --- from bytes to events -------------------------------------------------------------------------------

    def _take_line(self) -> ServerEvent | NeedData | None:
        """Take a command or a SASL response. None: it was answered already, by itself or here."""
        try:
            if self.state is states.AUTH:
                line = self._in.take(MAX_AUTH_LINE)
                return NEED_DATA if line is None else self._auth_step(self._auth_exchange.respond(line))
            line = self._in.take(MAX_PARAMETER_LINE)
            return NEED_DATA if line is None else self._command(line)
        except ProtocolError as error:
            self._error(error.reply or replies.UNKNOWN_COMMAND)
            return None

    def _command(self, line: bytes) -> ServerEvent | None:
        name, _, rest = line.partition(b" ")
        known = _COMMANDS.get(name.upper())
        if known is None:
            if name.upper() in _FOREIGN:
                self._errors = self.config.max_errors
            raise ProtocolError.of(replies.UNKNOWN_COMMAND)
        verb, handler = known
        if len(line) > MAX_LINE and verb not in states.TAKES_PARAMETERS:
            raise ProtocolError.of(replies.LINE_TOO_LONG)
        if self.config.require_tls and not self.tls and verb in states.ONLY_UNDER_TLS:
            raise ProtocolError.of(replies.TLS_FIRST)
        following = TRANSITIONS.get((self.state, verb))
        if following is None:
            raise ProtocolError.of(Reply(503, "5.5.1", out_of_sequence(self.state, verb)))
        try:
            argument = rest.strip(b" ").decode("utf-8")
        except UnicodeDecodeError:
            raise ProtocolError.of(replies.NOT_UTF8) from None
        return handler(self, argument, following)

    def _take_content(self) -> ServerEvent | NeedData | None:
        body, source = self._body, self._in
        if body is None or source.empty:
            return NEED_DATA
        end = body.feed(source.buffer, source.pos)
        if end < 0:
            source.clear()
            return NEED_DATA
        source.pos = end
        self._body = None
        if body.fault is not None:
            self.state = states.READY
            self._out.append(replies.FAULTS[body.fault].encode())
            return None
        self.state = states.COMPLETE
        return self._ask(MessageComplete(body.chunks, body.size), states.READY)

    # --- commands: each answers, raises ProtocolError with the answer, or asks the driver -------------------

    def _ehlo(self, argument: str, following: State) -> ServerEvent | None:
        return self._ask(parse_hello(argument, ehlo=True), following)

    def _helo(self, argument: str, following: State) -> ServerEvent | None:
        return self._ask(parse_hello(argument, ehlo=False), following)

    def _mail(self, argument: str, following: State) -> ServerEvent | None:
        if self.config.require_auth and not self.authenticated:
            raise ProtocolError.of(replies.AUTH_FIRST)
        mail = parse_mail(argument, self.config)
        if mail.params.size is not None and mail.params.size > self.config.max_message_bytes:
            self._out.append(replies.TOO_LARGE.encode())
            return None
        return self._ask(mail, following)

    def _rcpt(self, argument: str, following: State) -> ServerEvent | None:
        recipient = parse_rcpt(argument, self.config, smtputf8=self._utf8)
        if self.recipients >= self.config.max_recipients:
            self._out.append(replies.TOO_MANY_RECIPIENTS.encode())  # RFC 5321 4.5.3.1.10
            return None
        return self._ask(recipient, following)

    def _data(self, argument: str, following: State) -> ServerEvent | None:
        no_argument(argument)
        return self._ask(MessageStart(), following)

    def _rset(self, argument: str, following: State) -> ServerEvent | None:
        no_argument(argument)
        self._out.append(replies.OK)
        self.state = following
        return None

    def _noop(self, _argument: str, _following: State) -> ServerEvent | None:
        return self._idle_command(replies.OK)

    def _vrfy(self, argument: str, _following: State) -> ServerEvent | None:
        if not argument:
            raise ProtocolError.of(replies.NEEDS_ARGUMENT)
        return self._idle_command(replies.CANNOT_VERIFY)

    def _help(self, _argument: str, _following: State) -> ServerEvent | None:
        return self._idle_command(replies.HELP)

    def _idle_command(self, wire: bytes) -> ServerEvent | None:
        self._idle += 1
        if self._idle > MAX_IDLE_COMMANDS:
            self._close(replies.TOO_MANY_ERRORS, "too many idle commands")
        else:
            self._out.append(wire)
        return None

    def _expn(self, _argument: str, _following: State) -> ServerEvent | None:
        raise ProtocolError.of(replies.NOT_OFFERED)

    def _quit(self, argument: str, _following: State) -> ServerEvent | None:
        no_argument(argument)
        self._out.append(replies.BYE)
        self._close(None, "QUIT")
        return None

    def _starttls(self, argument: str, following: State) -> ServerEvent | None:
        """RFC 3207. What is in the buffer behind it came in clear: it is never executed, the session ends."""
        no_argument(argument)
        if self.tls:
            raise ProtocolError.of(replies.TLS_ACTIVE)
        if not self.config.starttls:
            raise ProtocolError.of(replies.NOT_OFFERED)
        if not self._in.empty:
            self._close(replies.BEHIND_STARTTLS, "bytes behind STARTTLS")
            return None
        self._out.append(replies.GO_AHEAD_TLS)
        self.state = following
        return StartTls()

    def _auth(self, argument: str, following: State) -> ServerEvent | None:
        mechanism, initial = parse_auth(argument, self.config, tls=self.tls, authenticated=self.authenticated)
        self.state = following
        return self._auth_step(self._auth_exchange.start(mechanism, initial))

    def _auth_step(self, step: ServerNext) -> ServerEvent | None:
        if isinstance(step, AuthAttempt | AuthStep):
            return self._ask(step, states.READY)
        if isinstance(step, bytes):
            self._out.append(step)
        else:  # a response that is cancelled or cannot be read is a failed attempt
            self.state = states.READY
            self._out.append(step.encode())
            self._auth_failed()
        return None

    def _auth_failed(self) -> None:
        self._auth_exchange.failures += 1
        if self._auth_exchange.failures >= self.config.max_auth_failures:
            self._close(replies.TOO_MANY_AUTH, "too many failed authentications")

    # --- the ways on ----------------------------------------------------------------------------------------

    def _ask(self, event: ServerEvent, following: State) -> ServerEvent:
        self._pending = event
        self._following = following
        return event

    def _answered(self) -> ServerEvent:
        event, self._pending = self._pending, None
        if event is None:
            raise RuntimeError("no decision is open")
        return event

    def _error(self, reply: Reply) -> None:
        """Answer a mistake of the client; one too many ends the session (RFC 5321 4.3.2 allows 421 at any time)."""
        self._errors += 1
        if self._errors >= self.config.max_errors:
            self._close(replies.TOO_MANY_ERRORS, "too many errors")
        else:
            self._out.append(reply.encode())

    def _close(self, reply: Reply | None, reason: str) -> None:
        if reply is not None:
            self._out.append(reply.encode())
        self._in.clear()
        self._body = None
        self._reason = reason
        self.state = states.CLOSED


_COMMANDS: Final[dict[bytes, tuple[Verb, Callable[[ServerSession, str, State], ServerEvent | None]]]] = {
    b"EHLO": (Verb.EHLO, ServerSession._ehlo),
    b"HELO": (Verb.HELO, ServerSession._helo),
    b"STARTTLS": (Verb.STARTTLS, ServerSession._starttls),
    b"AUTH": (Verb.AUTH, ServerSession._auth),
    b"MAIL": (Verb.MAIL, ServerSession._mail),
    b"RCPT": (Verb.RCPT, ServerSession._rcpt),
    b"DATA": (Verb.DATA, ServerSession._data),
    b"RSET": (Verb.RSET, ServerSession._rset),
    b"NOOP": (Verb.NOOP, ServerSession._noop),
    b"VRFY": (Verb.VRFY, ServerSession._vrfy),
    b"EXPN": (Verb.EXPN, ServerSession._expn),
    b"HELP": (Verb.HELP, ServerSession._help),
    b"QUIT": (Verb.QUIT, ServerSession._quit),
}
