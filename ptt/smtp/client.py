"""``ClientSession``: the client's side of SMTP (RFC 5321) as a state machine. Bytes in, events out, commands as bytes.

MAIL, RCPT and DATA go out together when the server offers PIPELINING (RFC 2920), else one by one; the driver sees
no difference. Replies are judged by their first digit only; 421 anywhere means that the server closes. The driver::

    client = ClientSession("relay.example.org")
    while True:
        event = client.next_event()
        if event is NEED_DATA:
            stream.write(client.data_to_send(), timeout)
            client.receive_data(stream.read(65536, timeout))      # b"" at the end of the stream
        elif isinstance(event, Ready):                            # after EHLO, and again after TLS
            if client.capabilities.starttls and not client.tls: client.start_tls()
            else: client.send_message(sender, recipients, [prefix, body], MailParams(body="8BITMIME"))
        elif isinstance(event, TlsReady):
            stream = stream.start_tls(context, timeout, server_side=False, server_hostname=host)
            client.tls_started()
        elif isinstance(event, FinalDot):
            mark_maybe_delivered()                # the end of the content leaves with the next write
        elif isinstance(event, MessageDone):
            settle(event.results)                 # one Result(reply, phase) per recipient
            client.send_message(...) if more and client.reusable else client.quit()
        elif isinstance(event, Refused | TlsRefused | Closed):
            break

``next_event`` raises ProtocolError, and nothing else, when the server breaks the protocol. After that, and after any
other end in the middle of a message (``Closed``, a time-out), ``interrupted()`` tells what is known per recipient,
``phase`` names the command that was not answered, and ``final_dot`` whether the message may have arrived.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from ptt.smtp.authentication import ClientAuth
from ptt.smtp.capabilities import NOTHING_OFFERED, capabilities_of
from ptt.smtp.dotstuff import stuff
from ptt.smtp.errors import ProtocolError
from ptt.smtp.events import (
    NEED_DATA,
    AuthDone,
    ClientEvent,
    Closed,
    FinalDot,
    MessageDone,
    NeedData,
    Ready,
    Refused,
    ResetDone,
    Result,
    TlsReady,
    TlsRefused,
)
from ptt.smtp.outbox import Outbox
from ptt.smtp.params import NO_MAIL_PARAMS, MailParams, RcptParams
from ptt.smtp.reply import Reply, ReplyReader
from ptt.smtp.sasl import Account, Secret
from ptt.smtp.scram import Derive, derive
from ptt.smtp.transaction import Command, Phase, Transaction, chunk_commands, transaction_commands


class ClientSession:
    """One connection's worth of SMTP, client side. See the module's docstring for its use."""

    def __init__(self, hostname: str, *, tls: bool = False) -> None:
        """``hostname``: what EHLO says. ``tls``: the handshake is done (implicit TLS)."""
        self.hostname = hostname
        self.tls = tls
        self.capabilities = NOTHING_OFFERED
        self.final_dot = False  # the end of the content was handed out: the message may have arrived
        self._in = ReplyReader()
        self._outbox = Outbox()
        self._outbox.flight.append(Command(b"", Phase.GREETING))
        self._message: Transaction | None = None
        self._announce: FinalDot | None = None
        self._dirty = False  # the server may hold a half transaction: RSET before the next
        self._handshake = False
        self._auth = ClientAuth()
        self._closed: Closed | None = None
        self._eof = False

    # --- what the driver calls ------------------------------------------------------------------------------

    def receive_data(self, data: bytes) -> None:
        """Bytes of the server, as they come; b"" at the end of the stream. Only stores them."""
        if data:
            self._in.feed(data)
        else:
            self._eof = True

    def data_to_send(self) -> bytes:
        """What is to be written, joined; b"" when there is nothing."""
        return self._outbox.data()

    def pieces_to_send(self) -> list[bytes]:
        """As ``data_to_send``, without joining what is large: for messages of many MiB."""
        return self._outbox.pieces()

    def next_event(self) -> ClientEvent | NeedData:
        """The next thing that concerns the driver, or NEED_DATA. Raises ProtocolError."""
        while True:
            if self._closed is not None:
                return self._closed
            if self._announce is not None:
                announced, self._announce = self._announce, None
                return announced
            if self._in.empty and self._outbox.may_end(self.capabilities.pipelining):
                self.final_dot = True  # from here on it may be delivered without our hearing of it
                self._outbox.send_end()
            reply = self._in.next()
            if reply is not None:
                event = self._take(reply)
                if event is not None:
                    return event
            elif self._eof:
                self._closed = Closed("server closed the connection")
            else:
                return NEED_DATA

    @property
    def phase(self) -> str:
        """The command that is not answered yet, for the text of an error: "RCPT", "end of DATA", "idle"."""
        flight = self._outbox.flight
        return flight[0].phase if flight else Phase.CONTENT if self._outbox.end else "idle"

    @property
    def reusable(self) -> bool:
        """True when another message may be sent on this connection."""
        return not (self._closed or self._eof or self._message or self._outbox.flight or self._handshake)

    def interrupted(self) -> list[Result | None]:
        """After a broken connection: the results that are known, None for recipients whose fate is not."""
        return list(self._message.results) if self._message is not None else []

    def start_tls(self) -> None:
        """Ask for TLS (RFC 3207). TlsReady or TlsRefused follows."""
        self._send(Command(b"STARTTLS\r\n", Phase.STARTTLS))

    def tls_started(self) -> None:
        """The handshake is done: what was learned in clear is forgotten, EHLO is said again. Ready follows.

        Raises ProtocolError when bytes had come in clear behind the reply to STARTTLS.
        """
        if not self._handshake:
            raise RuntimeError("tls_started() without TlsReady")
        if not self._in.empty:
            raise ProtocolError("bytes in clear behind the reply to STARTTLS")
        self._handshake = False
        self.tls = True
        self._hello()

    def auth(
        self,
        user: str,
        password: Secret,
        mechanism: str | None = None,
        *,
        binding: bytes = b"",
        derive: Derive = derive,
    ) -> None:
        """Authenticate (RFC 4954) with the best mechanism that the server offers. AuthDone follows.

        Raises ProtocolError when it offers none of ours, ValueError when the password has what RFC 4013 prohibits.
        Whether TLS is active is the driver's concern. ``binding``: the tls-server-end-point data of the server's
        certificate, b"" when there is none. ``derive``: who computes SCRAM's rounds, some 10 ms or more.
        """
        line = self._auth.start(self.capabilities, Account(user, password, binding, derive), mechanism)
        self._send(Command(line, Phase.AUTH))

    def send_message(
        self,
        sender: str,
        recipients: Sequence[str],
        content: Sequence[bytes],
        mail: MailParams = NO_MAIL_PARAMS,
        rcpt: Sequence[RcptParams] = (),
        *,
        chunk: int = 0,
        at_once: bool = False,
    ) -> None:
        """Send a message: FinalDot (if the content is wanted) and MessageDone follow.

        ``content``: chunks with CRLF line ends, not stuffed; never joined. ``rcpt``: one per recipient, or none at
        all. SIZE is added here; parameters that the server does not offer are left out (look at ``capabilities``
        first, where that matters). Raises UnsendableAddress.

        ``chunk``: send it by BDAT (RFC 3030), at most so many octets at a time; the peer must offer CHUNKING, and
        BINARYMIME if that is the body. ``at_once``: do not wait for the answers to RCPT; FinalDot comes first and
        names every recipient. Else it comes before the first chunk when a recipient was accepted.
        """
        if not self.reusable or not recipients:
            raise RuntimeError("send_message() needs an idle connection and a recipient")
        binary = mail.body == "BINARYMIME"
        if (chunk and not self.capabilities.chunking) or (binary and not (chunk and self.capabilities.binarymime)):
            raise RuntimeError("send_message() by BDAT to a peer that does not offer it")
        if mail.size is None:
            mail = mail._replace(size=sum(map(len, content)))
        commands = transaction_commands(sender, recipients, mail, rcpt, self.capabilities)
        self.final_dot = False
        chunks = chunk_commands(content, chunk, binary) if chunk else []
        message = self._message = Transaction(len(recipients), content, chunks)
        if self._dirty:
            self._outbox.todo.append(Command(b"RSET\r\n", Phase.RSET))
        self._dirty = True
        self._outbox.todo.extend(commands)
        if not chunk:
            self._outbox.todo.append(Command(b"DATA\r\n", Phase.DATA))
        elif at_once:
            self._announce = self._send_chunks(message, chunks[-1], range(len(recipients)))
        self._pump()

    def reset(self) -> None:
        """Say RSET, to see whether a connection that was idle still lives. ResetDone follows."""
        self._send(Command(b"RSET\r\n", Phase.PROBE))

    def quit(self) -> None:
        """Say good-bye. Closed follows; there is no need to wait for it."""
        self._send(Command(b"QUIT\r\n", Phase.QUIT))

    # --- commands out ---------------------------------------------------------------------------------------

    def _send(self, command: Command) -> None:
        if not self.reusable:
            raise RuntimeError(f"{command.phase} in the middle of {self.phase}")
        self._outbox.todo.append(command)
        self._pump()

    def _hello(self) -> None:
        self.capabilities = NOTHING_OFFERED
        self._outbox.todo.append(Command(f"EHLO {self.hostname}\r\n".encode(), Phase.EHLO))
        self._pump()

    def _pump(self) -> None:
        self._outbox.pump(self.capabilities.pipelining)

    def _send_chunks(self, message: Transaction, last: Command, accepted: Sequence[int]) -> FinalDot:
        """All BDAT but the last may go now."""
        self._outbox.todo.extend(message.chunks)
        self._outbox.end = last
        return FinalDot(tuple(accepted))

    # --- replies in -----------------------------------------------------------------------------------------

    def _take(self, reply: Reply) -> ClientEvent | None:
        flight = self._outbox.flight
        if not flight and self._outbox.end is not None:
            return self._early(reply)
        if not flight:
            if reply.code != 421:
                raise ProtocolError("reply to no command")
            self._closed = Closed("server closes", reply)
            return None
        command = flight[0]
        if reply.kind == 3 and command.phase not in (Phase.DATA, Phase.AUTH):
            raise ProtocolError(f"reply {reply.code} to {command.phase}")
        event = _ANSWERS[command.phase](self, command, reply)
        flight.popleft()
        if reply.code == 421:
            self._closing(command.phase, reply)
        if event is None and self._message is not None:
            event = self._message_event(self._message)
        self._pump()
        return event

    def _current(self) -> Transaction:
        if self._message is None:
            raise ProtocolError("reply to no command")
        return self._message

    def _answer_mail(self, _command: Command, reply: Reply) -> ClientEvent | None:
        if not reply.ok:
            self._current().refuse_all(reply, Phase.MAIL)
            self._outbox.give_up()
        return None

    def _answer_rcpt(self, command: Command, reply: Reply) -> ClientEvent | None:
        self._current().answer_rcpt(command.recipient, reply)
        return None

    def _answer_data(self, _command: Command, reply: Reply) -> ClientEvent | None:
        message = self._current()
        if reply.ok:
            raise ProtocolError(f"reply {reply.code} to DATA")
        if reply.kind != 3:
            message.refuse_all(reply, Phase.DATA)
            return None
        if not message.accepted:  # RFC 2920 3.1: the server wants content although nobody is to get it
            self._outbox.send(Command(b".\r\n", Phase.LONE_DOT))
            return None
        self._outbox.write(stuff(message.content))
        self._outbox.end = Command(b".\r\n", Phase.CONTENT)
        return FinalDot(tuple(message.accepted))

    def _answer_chunk(self, _command: Command, reply: Reply) -> ClientEvent | None:
        if not reply.ok:  # RFC 3030 2: the transaction has failed, no further chunk is sent
            self._current().refuse_all(reply, Phase.CHUNK)
            self._outbox.give_up()
        return None

    def _answer_content(self, command: Command, reply: Reply) -> ClientEvent | None:
        self._dirty = self._current().last is not None and not reply.ok  # a refused BDAT may leave it open
        if command.phase is Phase.CONTENT:
            self._current().refuse_all(reply, Phase.CONTENT)  # whatever it says, it holds for all that were accepted
        return None

    def _answer_rset(self, command: Command, reply: Reply) -> ClientEvent | None:
        self._dirty = self._dirty and not reply.ok
        if command.phase is Phase.PROBE:
            return ResetDone(reply)
        self._dirty = True  # MAIL is on its way
        if not reply.ok:
            self._current().refuse_all(reply, Phase.RSET)
            self._outbox.give_up()
        return None

    def _message_event(self, message: Transaction) -> MessageDone | FinalDot | None:
        """Is all said that will be said of this message, or of its envelope?"""
        todo = self._outbox.todo
        if self._outbox.flight:
            return None
        if not message.accepted and (not todo or todo[0].phase in (Phase.DATA, Phase.CHUNK)):
            self._outbox.give_up()  # nobody is left to get it; without PIPELINING DATA is not sent at all
        if todo or self._outbox.end is not None:
            return None
        if message.last is not None and not self.final_dot and None in message.results:
            return self._send_chunks(message, message.last, message.accepted)
        self._message = None
        return MessageDone([result for result in message.results if result is not None])

    def _early(self, reply: Reply) -> ClientEvent:
        """A reply that came before the end of the content was sent. A refusal is believed; success would be a lie."""
        message = self._message
        if message is None or reply.kind in (2, 3):
            raise ProtocolError(f"reply {reply.code} before the end of the content")
        message.refuse_all(reply, Phase.CONTENT)
        self._message = None
        self._outbox.discard()
        self._closed = Closed("server refused the content before its end", reply)
        return MessageDone([result for result in message.results if result is not None])

    def _closing(self, phase: str, reply: Reply) -> None:
        """421: the server closes (RFC 5321 3.8). What it had not settled gets this reply."""
        self._closed = self._closed or Closed("server closes", reply)
        self._outbox.flight.clear()
        self._outbox.give_up()
        if self._message is not None:
            self._message.refuse_all(reply, phase)

    def _answer_hello(self, command: Command, reply: Reply) -> ClientEvent | None:
        if command.phase is Phase.EHLO and reply.permanent:
            self._outbox.todo.append(Command(f"HELO {self.hostname}\r\n".encode(), Phase.HELO))  # RFC 5321 3.2
            return None
        if not reply.ok:
            return Refused(command.phase, reply)
        if command.phase is Phase.GREETING:
            self._outbox.todo.append(Command(f"EHLO {self.hostname}\r\n".encode(), Phase.EHLO))
            return None
        self.capabilities = capabilities_of(reply) if command.phase is Phase.EHLO else NOTHING_OFFERED
        return Ready(reply)

    def _answer_starttls(self, _command: Command, reply: Reply) -> ClientEvent:
        """RFC 3207. Bytes behind the reply came in clear; taken for replies under TLS they would be injected ones."""
        if not reply.ok:
            return TlsRefused(reply)
        if not self._in.empty:
            raise ProtocolError("bytes in clear behind the reply to STARTTLS")
        self._handshake = True
        return TlsReady()

    def _answer_auth(self, _command: Command, reply: Reply) -> ClientEvent | None:
        response = self._auth.respond(reply)
        if response is None:
            return AuthDone(reply)
        self._outbox.todo.append(Command(response, Phase.AUTH))
        return None

    def _answer_quit(self, _command: Command, reply: Reply) -> ClientEvent:
        self._closed = Closed("QUIT", reply)
        return self._closed


_ANSWERS: Final[dict[str, Callable[[ClientSession, Command, Reply], ClientEvent | None]]] = {
    Phase.GREETING: ClientSession._answer_hello,
    Phase.EHLO: ClientSession._answer_hello,
    Phase.HELO: ClientSession._answer_hello,
    Phase.STARTTLS: ClientSession._answer_starttls,
    Phase.AUTH: ClientSession._answer_auth,
    Phase.MAIL: ClientSession._answer_mail,
    Phase.RCPT: ClientSession._answer_rcpt,
    Phase.DATA: ClientSession._answer_data,
    Phase.CHUNK: ClientSession._answer_chunk,
    Phase.CONTENT: ClientSession._answer_content,
    Phase.LONE_DOT: ClientSession._answer_content,
    Phase.RSET: ClientSession._answer_rset,
    Phase.PROBE: ClientSession._answer_rset,
    Phase.QUIT: ClientSession._answer_quit,
}
