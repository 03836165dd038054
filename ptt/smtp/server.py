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
            stream = flush_and_start_tls(stream)
            session.tls_started()
        elif isinstance(event, AuthAttempt):
            session.accept() if verify(event.authcid, event.password) else session.refuse(replies.AUTH_FAILED)
        elif isinstance(event, AuthStep):                     # where the configuration offers such a mechanism
            session.challenge(challenge_to(event.response)) # or accept, or refuse
        elif isinstance(event, RcptTo):
            session.accept() if welcome(event.address) else session.refuse(Reply(550, "5.1.1", "No such user"))
        elif isinstance(event, MessageComplete):
            session.accept(Reply(250, "2.0.0", f"queued as {put(envelope, event.chunks)}"))
        else:                                                 # Hello, MailFrom, MessageStart
            session.accept()

What a session refuses without asking is counted in ``session.conduct``. A new ``MailFrom`` replaces whatever the driver
had gathered before; RSET and EHLO need no event of their own. To ask for the next event while a decision is open, or to
answer without one, is a mistake of the driver: RuntimeError.
"""

from __future__ import annotations

from typing import Final

from ptt.smtp import replies, sasl, states
from ptt.smtp.authentication import ServerAuth, ServerNext
from ptt.smtp.chunking import parse_bdat
from ptt.smtp.commands import parse_auth
from ptt.smtp.conduct import FOREIGN, Conduct
from ptt.smtp.config import ServerConfig
from ptt.smtp.content import Content
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
from ptt.smtp.handlers import ACCEPTED, HANDLERS, following_state
from ptt.smtp.intake import Intake, Taken
from ptt.smtp.lines import LineReader
from ptt.smtp.reply import Reply
from ptt.smtp.states import VERBS, State, Verb

MAX_PARAMETER_LINE: Final = 2046  # of MAIL, RCPT and AUTH, to which extensions add (RFC 1870, 3461, 4954, 6531)
MAX_AUTH_LINE: Final = 12_286  # of a SASL response: RFC 4954 4
_BDAT, _AUTH, _MORE = Verb.BDAT, Verb.AUTH, Taken.MORE  # plain names: see states


class ServerSession:
    """One connection's worth of SMTP, server side. See the module's docstring for its use."""

    def __init__(self, config: ServerConfig, *, tls: bool = False, authenticated: bool = False) -> None:
        """``tls``: the handshake is done (implicit TLS). ``authenticated``: by other means, such as a certificate."""
        self.config = config
        self.tls = tls
        self.authenticated = authenticated
        self.state = states.START
        self.recipients = 0  # accepted in this transaction
        self.smtputf8 = False  # MAIL had SMTPUTF8
        self.binary = False  # MAIL had BODY=BINARYMIME
        self._in = LineReader()
        self._out = [config.greeting_wire]
        self._pending: ServerEvent | None = None  # the decision that the driver owes
        self._following = states.START  # the state if it is accepted
        self.conduct = Conduct(config.max_errors)
        self._intake = Intake()
        self._chunk_refused = False  # those behind it were sent before that was seen
        self._auth_exchange = ServerAuth()
        self._eof = False
        self._reason = ""

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
    def receiving(self) -> bool:
        """Is a content on its way, or part of it in memory?"""
        return self._intake.active

    @property
    def unread(self) -> bool:
        """Have bytes been fed that are not taken yet?"""
        return not self._in.empty

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
            if state is states.DATA or state is states.CHUNK:
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
        if isinstance(event, MessageStart):
            content = Content(self.config.max_message_bytes, self.config.max_text_line, binary=self.binary)
            if event.chunked:
                self._intake.by_chunk(content)
                return
            self._intake.by_data(content)
        elif kind is RcptTo:
            self.recipients += 1
        elif isinstance(event, MailFrom):
            self.recipients = 0
            self.smtputf8 = event.params.smtputf8
            self.binary = event.params.body == "BINARYMIME"
            self._chunk_refused = False
        elif kind is MessageComplete:
            self.conduct.message()
        elif kind is AuthAttempt or kind is AuthStep:
            self.authenticated = True
        if reply is not None:
            self._out.append(reply.encode())
        elif isinstance(event, Hello):
            self._intake.drop()
            hello = self.config.hello(tls=self.tls, authenticated=self.authenticated)
            self._out.append(hello if event.ehlo else self.config.helo_wire)
            self._count_idle()
        else:
            self._out.append(ACCEPTED[kind])

    def refuse(self, reply: Reply) -> None:
        """Say no to the last event. With code 421 the session ends (RFC 5321 3.8)."""
        event = self._answered()
        if reply.code == 421:
            self._close(reply, "refused")
            return
        if isinstance(event, MessageStart) and event.chunked:
            self._skip_chunk(reply, states.READY)
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
        verb = VERBS.get(name.upper())
        if verb is None:
            raise self._unknown(name.upper())
        if verb is _BDAT:
            return self._bdat(rest, len(line))
        following = following_state(self, verb, len(line))
        try:
            argument = rest.strip(b" ").decode("utf-8")
        except UnicodeDecodeError:
            raise ProtocolError.of(replies.NOT_UTF8) from None
        if verb is _AUTH:
            return self._auth(argument, following)
        outcome = HANDLERS[verb](self, argument)
        if isinstance(outcome, bytes):
            self._answer(verb, outcome, following)
            return None
        if isinstance(outcome, StartTls):
            self._out.append(replies.GO_AHEAD_TLS)
            self.state = following
            return outcome
        return self._ask(outcome, following)

    def _unknown(self, name: bytes) -> ProtocolError:
        if name in FOREIGN:
            self.conduct.foreign()
        return ProtocolError.of(replies.BAD_CHUNK if name.startswith(b"BDAT") else replies.UNKNOWN_COMMAND)

    def _answer(self, verb: Verb, wire: bytes, following: State) -> None:
        """A command that needs no decision."""
        self._out.append(wire)
        if verb is Verb.QUIT:
            self._close(None, "QUIT")
            return
        self.state = following
        if verb is Verb.RSET:
            self._intake.drop()
        self._count_idle()

    def _count_idle(self, when: bool = True) -> None:
        """A command that brings nothing on was answered."""
        if when and (why := self.conduct.idle()):
            self._out.pop()
            self._close(replies.TOO_MANY_ERRORS, why)

    def _take_content(self) -> ServerEvent | NeedData | None:
        taken = self._intake.take(self._in)
        if taken is _MORE:
            return NEED_DATA
        if isinstance(taken, Content):
            return self._complete(taken)
        if isinstance(taken, Reply):
            self.state = self._following
            self._chunk_refusal(taken)
        else:
            self.state = states.CHUNKED
            self._out.append(replies.OK)
            self._count_idle(when=not self._intake.chunk.octets)
        return None

    def _complete(self, content: Content) -> ServerEvent | None:
        """All of a content is here."""
        if content.fault is not None:
            self.state = states.READY
            self._chunk_refused = True
            self._refuse(replies.FAULTS[content.fault], content.fault.value)
            return None
        self.state = states.COMPLETE
        return self._ask(MessageComplete(content.chunks, content.size, content.binary), states.READY)

    # --- BDAT (RFC 3030): whatever becomes of a chunk, its octets are never read as commands ------------------

    def _bdat(self, argument: bytes, length: int) -> ServerEvent | None:
        chunk = parse_bdat(argument)
        if chunk is None:
            raise ProtocolError.of(replies.BAD_CHUNK)
        self._intake.chunk = chunk
        try:
            if not self.config.chunking:
                raise ProtocolError.of(replies.NOT_OFFERED)
            following_state(self, Verb.BDAT, length)
        except ProtocolError as error:
            after = states.READY if self.state is states.CHUNKED else self.state  # what was taken is given up
            self._skip_chunk(error.reply or replies.UNKNOWN_COMMAND, after)
            return None
        if not self._intake.further_chunk():
            return self._ask(MessageStart(chunked=True), states.CHUNK)
        self.state = states.CHUNK
        return None

    def _skip_chunk(self, refusal: Reply, following: State) -> None:
        """Read the octets of the chunk that was announced, throw them away, and only then refuse it."""
        self._intake.skip_chunk(refusal)
        self._following = following
        self.state = states.CHUNK

    def _chunk_refusal(self, reply: Reply) -> None:
        """Only the first one of a transaction is a mistake: the next were sent before it was seen (RFC 3030 2)."""
        if self._chunk_refused:
            self._refuse(reply)
            self._count_idle(when=not self._intake.chunk.octets)
        else:
            self._chunk_refused = True
            self._error(reply)

    # --- AUTH -----------------------------------------------------------------------------------------------

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
        """Answer a mistake of the client; it may be the last one."""
        reply, why = self.conduct.mistake(reply)
        if why:
            self._close(reply, why)
        else:
            self._out.append(reply.encode())

    def _refuse(self, reply: Reply, reason: str = "") -> None:
        """Say no without asking the driver."""
        self.conduct.refused(reply, reason)
        self._out.append(reply.encode())

    def _close(self, reply: Reply | None, reason: str) -> None:
        if reply is not None:
            self._out.append(reply.encode())
        self._in.clear()
        self._intake.drop()
        self._reason = reason
        self.state = states.CLOSED
