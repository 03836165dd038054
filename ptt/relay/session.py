"""One SMTP connection to a peer: opened with the TLS that its use demands, and driven through one message at a time.

``open_connection`` and ``Connection.send`` are the loop between ``ClientSession`` (which knows SMTP) and ``Stream``
(which knows time-outs); which host, how often, and what a reply means is decided elsewhere.
"""

from __future__ import annotations

import contextlib
import datetime
import math
import ssl
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from ptt.config import Relay as Settings
from ptt.net.stream import MAX_READ, PeerClosed, ReadTimeout, Stream, StreamError, TlsFailed, TlsInfo, connect
from ptt.net.tls import peer_roles
from ptt.relay import dane
from ptt.relay.dane import Tlsas
from ptt.relay.outcome import Deferred, Outcome, of_error, of_reply
from ptt.smtp import (
    NEED_DATA,
    ClientEvent,
    Closed,
    FinalDot,
    MailParams,
    MessageDone,
    ProtocolError,
    RcptParams,
    Ready,
    Refused,
    Result,
    TlsReady,
)
from ptt.smtp.client import ClientSession

OPENING_WAITS = 2
"""All until a message can be sent may take so many times the time-out of a command: a peer that drips gains no more."""

ENVELOPE_WAITS = 3
"""As above for MAIL, up to 100 RCPT and DATA."""

SMALL_MESSAGE = 64 * 1024
"""Up to this size the content and its final dot leave in one write. The rest of a larger one leaves first."""

MIN_BYTES_PER_SECOND = 8192.0
"""At which a peer must take a large content, beyond one time-out: 75 minutes for 35 MiB. Block by block, each just in
time, it could hold our place and the message's memory for a day."""

LAST_WORDS_SECONDS = 0.5
"""When a write fails: how long to wait for the reply that explains it (a 552 before the end of the content)."""


class Target(NamedTuple):
    """A host to connect to."""

    host: str  # the name that TLS verifies
    ip: str
    port: int
    behind: tuple[str, ...] = ()  # further addresses of the host, to be tried while this one does not answer
    until: float = math.inf  # when a session must be open, in seconds of time.monotonic()

    @property
    def peer(self) -> str:
        """For logs, notes and bounces: "mx.example.org[192.0.2.1]:25"."""
        return f"{self.host}[{self.ip}]:{self.port}"


class TlsUse(NamedTuple):
    """What a connection demands. ``context`` None: TLS is not used. ``required``: no mail without it.

    ``mode``: why so, for the log (``ptt.relay.tlspolicy``).
    """

    context: ssl.SSLContext | None
    required: bool
    roles: frozenset[str] = frozenset()  # the peer's certificate must name one of them; empty: not looked at
    mode: str = ""
    tlsa: Tlsas | None = None  # the peer's certificate must be one that they name
    names: tuple[str, ...] = ()  # which it may bear, when they name an authority


class NoSession(Exception):
    """The peer could not be brought to take a message. The outcome, of all recipients, is in ``outcome``."""

    def __init__(self, outcome: Deferred, tls_failed: bool = False) -> None:
        super().__init__(outcome.text)
        self.outcome = outcome
        self.tls_failed = tls_failed  # in the handshake: without TLS it might work


class Message(NamedTuple):
    """What one transaction sends."""

    sender: str
    recipients: Sequence[str]
    content: Sequence[bytes]
    mail: MailParams
    rcpt: Sequence[RcptParams]
    size: int


class Sent(NamedTuple):
    """What became of a transaction. ``outcomes``: one per recipient, in their order."""

    outcomes: list[Outcome]
    untouched: bool  # the connection was gone before the peer did anything: another one may be tried at once


class Connection:
    """An open session. Belongs to one greenlet at a time."""

    __slots__ = (
        "client",
        "messages",
        "most_messages",
        "released",
        "settings",
        "stream",
        "target",
        "tls_mode",
        "tls_name",
        "tls_why",
    )

    def __init__(self, target: Target, stream: Stream, client: ClientSession, settings: Settings) -> None:
        self.target = target
        self.stream = stream
        self.client = client
        self.settings = settings
        self.messages = 0  # sent before
        self.most_messages = settings.messages_per_connection
        self.released: Callable[[], None] | None = None  # called when it is closed
        info = stream.tls()
        self.tls_name = f"{info.version} {info.cipher}" if info else ""
        self.tls_mode = ""  # what was demanded of it and found
        self.tls_why = ""  # it is in clear, where TLS was tried

    @property
    def reusable(self) -> bool:
        """May another message be sent? Not more than our settings and the peer (RFC 9422, MAILMAX) allow."""
        most = self.most_messages
        if "LIMITS" in self.client.capabilities:
            most = min(most, self.client.capabilities.limits.mailmax or most)
        return self.client.reusable and self.messages < most

    @property
    def most_recipients(self) -> int:
        """That the peer takes in one transaction (RFC 9422, RCPTMAX); 0: it does not say."""
        offered = self.client.capabilities
        return (offered.limits.rcptmax or 0) if "LIMITS" in offered else 0

    def send(self, message: Message, before_final_dot: Callable[[], None], until: float = math.inf) -> Sent:
        """One transaction. ``until``: when the envelope must be through, in seconds of time.monotonic().

        Never raises StreamError or ProtocolError; UnsendableAddress.
        """
        client = self.client
        client.send_message(message.sender, message.recipients, message.content, message.mail, message.rcpt)
        error: StreamError | ProtocolError | None = None
        event: ClientEvent | None = None
        try:
            event = self._transaction(message.size, before_final_dot, until)
        except (StreamError, ProtocolError) as e:
            error = e
        reused = self.messages > 0
        self.messages += 1
        if isinstance(event, MessageDone):
            dsn = client.capabilities.dsn
            outcomes = [of_reply(r.reply, r.phase, self.target.peer, dsn) for r in event.results]
            return Sent(outcomes, reused and _said_goodbye(event.results))
        if error is None:
            error = PeerClosed(event.reason if isinstance(event, Closed) else f"unexpected {event}")
        known = client.interrupted()
        phase = client.phase
        outcomes = [
            of_reply(r.reply, r.phase, self.target.peer)
            if r is not None
            else of_error(error, phase, self.target.peer, client.final_dot)
            for r in known
        ]
        untouched = reused and not client.final_dot and not any(known) and not isinstance(error, ReadTimeout)
        return Sent(outcomes, untouched)

    def close(self) -> None:
        """Say QUIT if the session allows it, and close without waiting for the answer."""
        with contextlib.suppress(StreamError):
            if self.client.reusable:
                self.client.quit()
                self.stream.write(self.client.data_to_send(), 0.0)
        self.drop()

    def drop(self) -> None:
        """Close without a word."""
        self.stream.close()
        if self.released is not None:
            self.released()

    def _transaction(self, size: int, before_final_dot: Callable[[], None], until: float) -> ClientEvent:
        settings = self.settings
        limit = ENVELOPE_WAITS * settings.command_seconds
        if until != math.inf:
            limit = max(0.0, min(limit, until - time.monotonic()))
        event = self.next_event(settings.command_seconds, limit)
        if not isinstance(event, FinalDot):
            return event
        if size > SMALL_MESSAGE:
            try:
                self._write(settings.data_seconds)
            except StreamError:
                if (last := self._early_reply(LAST_WORDS_SECONDS)) is None:
                    raise
                return last
            if (last := self._early_reply(0.0)) is not None:
                return last
        before_final_dot()
        return self.next_event(settings.final_dot_seconds, settings.final_dot_seconds, settings.data_seconds)

    def next_event(self, timeout: float, limit: float, write_timeout: float | None = None) -> ClientEvent:
        """The session's next event. ``timeout``: seconds for each read; ``limit``: for all of them together.

        Raises StreamError, ProtocolError.
        """
        client, stream = self.client, self.stream
        deadline = 0.0
        while True:
            event = client.next_event()
            if event is not NEED_DATA:
                return event
            self._write(write_timeout or timeout)
            now = time.monotonic()
            if not deadline:
                deadline = now + limit
                client.receive_data(stream.read(MAX_READ, min(timeout, limit)))
            else:
                client.receive_data(stream.read(MAX_READ, min(timeout, max(deadline - now, 0.0))))

    def _write(self, timeout: float) -> None:
        """Write what is to be sent; a large content in blocks, each with the time-out (RFC 5321 4.5.3.2.5)."""
        end = time.monotonic() + timeout
        for piece in self.client.pieces_to_send():
            for start in range(0, len(piece), SMALL_MESSAGE):
                block = piece[start : start + SMALL_MESSAGE] if len(piece) > SMALL_MESSAGE else piece
                self.stream.write(block, max(0.0, min(timeout, end - time.monotonic())))
                end += len(block) / MIN_BYTES_PER_SECOND

    def _early_reply(self, timeout: float) -> MessageDone | None:
        """What the peer says before the final dot: a refusal of the content. Raises StreamError if it has closed."""
        try:
            data = self.stream.read(MAX_READ, timeout)
        except ReadTimeout:
            return None
        if not data:
            raise PeerClosed(f"{self.target.peer} closed the connection")
        self.client.receive_data(data)
        event = self.client.next_event()
        return event if isinstance(event, MessageDone) else None


def _said_goodbye(results: Sequence[Result]) -> bool:
    """Was the message met with 421 at once? The peer had closed the idle connection and says so only now."""
    return all(r.reply.code == 421 and r.phase in ("MAIL", "RSET") for r in results)


def open_connection(
    target: Target, use: TlsUse, ehlo: str, settings: Settings, source: str | None = None, dialled: Stream | None = None
) -> Connection:
    """Connect, greet, start TLS as ``use`` demands. ``source``: the own address. ``dialled``: it is connected already.

    Raises NoSession.
    """
    phase = "connect"
    target = target._replace(until=min(target.until, time.monotonic() + OPENING_WAITS * settings.command_seconds))
    client = ClientSession(ehlo)
    stream = dialled
    try:
        stream = stream or connect(target.ip, target.port, settings.connect_seconds, source)
        connection = Connection(target, stream, client, settings)
        _hello(connection)
        if use.context is not None and client.capabilities.starttls:
            phase = "STARTTLS"
            connection = _encrypt(connection, use.context, use.tlsa.base if use.tlsa else target.host)
            stream = connection.stream
        phase = "TLS"
        _judge(connection, use)
    except (StreamError, ProtocolError) as e:
        if stream is not None:
            stream.close()
        shown = phase if phase != "connect" or stream is None else client.phase
        raise NoSession(of_error(e, shown, target.peer), tls_failed=shown in ("STARTTLS", "TLS")) from e
    except BaseException:  # also NoSession from below, and the end of this greenlet
        if stream is not None:
            stream.close()
        raise
    return connection


def opening_left(connection: Connection) -> float:
    """Seconds that the opening of a connection may still take."""
    return max(0.0, connection.target.until - time.monotonic())


def _hello(connection: Connection) -> None:
    """Wait until the session is ready. Raises NoSession when the peer does not want us."""
    event = connection.next_event(connection.settings.command_seconds, opening_left(connection))
    if isinstance(event, Ready):
        return
    reply, phase = None, connection.client.phase
    if isinstance(event, Refused):
        reply, phase = event.reply, event.phase
    elif isinstance(event, Closed):
        reply = event.reply
    if reply is None:
        raise PeerClosed(event.reason if isinstance(event, Closed) else f"unexpected {event}")
    outcome = of_reply(reply, phase, connection.target.peer)
    raise NoSession(Deferred(outcome.text, phase, outcome.peer, "4.3.0" if reply.permanent else "4.3.2", reply=True))


def _encrypt(connection: Connection, context: ssl.SSLContext, name: str) -> Connection:
    """STARTTLS if the peer agrees, else the connection as it was. ``name``: of the peer, for SNI and verification.

    Raises StreamError, ProtocolError, NoSession.
    """
    client, settings = connection.client, connection.settings
    client.start_tls()
    event = connection.next_event(settings.command_seconds, opening_left(connection))
    if not isinstance(event, TlsReady):
        if isinstance(event, Closed):
            raise PeerClosed(event.reason)
        return connection  # TlsRefused: whether that will do is the caller's concern
    timeout = min(settings.command_seconds, opening_left(connection))
    stream = connection.stream.start_tls(context, timeout, server_side=False, server_hostname=name)
    try:
        client.tls_started()
        encrypted = Connection(connection.target, stream, client, settings)
        _hello(encrypted)
    except BaseException:
        stream.close()
        raise
    return encrypted


def _judge(connection: Connection, use: TlsUse) -> None:
    """Say what TLS the connection has. Raises TlsFailed unless it is what ``use`` demands."""
    info, peer = connection.stream.tls(), connection.target.peer
    connection.tls_mode = use.mode
    if info is None:
        offered = connection.client.capabilities.starttls
        why = "refuses STARTTLS" if offered else "does not offer STARTTLS"
        if use.required:
            because = "it had TLS within the last day" if use.mode == "opportunistic" else use.mode
            raise TlsFailed(f"{peer} {why}, and TLS is required ({because})")
        if use.context is not None:
            connection.tls_mode, connection.tls_why = "clear", f"in clear: the peer {why}"
        return
    if use.roles:
        roles = peer_roles(info.certificate) if info.certificate else frozenset()
        if not roles & use.roles:
            raise TlsFailed(f"the certificate of {peer} does not name the role that is expected")
    if use.tlsa is not None:
        connection.tls_mode = _authenticate(info, use.tlsa, use.names, peer)


def _authenticate(info: TlsInfo, tlsa: Tlsas, names: Sequence[str], peer: str) -> str:
    """DANE (RFC 7672 3.1): which kind of record the peer's certificate matches. Raises TlsFailed for none."""
    if info.certificate is None:
        raise TlsFailed(f"{peer} has no certificate for DANE")
    if dane.matches_end(tlsa.records, info.certificate):
        return "dane-ee"
    if not dane.names_authority(tlsa.records):
        raise TlsFailed(f"the certificate of {peer} matches no TLSA record of {tlsa.base}")
    chain = info.chain or (info.certificate,)
    wrong = dane.verify_chain(tlsa.records, chain, names, datetime.datetime.now(datetime.UTC))
    if wrong and not info.chain:
        wrong += "; this version of Python does not tell the rest of the chain"
    if wrong:
        raise TlsFailed(f"the certificate of {peer} is not under a TLSA record of {tlsa.base}: {wrong}")
    return "dane-ta"
