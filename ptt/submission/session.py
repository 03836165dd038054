"""One connection of a client: drives a ``ServerSession`` over a stream and answers its questions.

The protocol is in ``ptt.smtp``, the decisions are in ``policy`` and ``accept``; here they meet. A session never
lets an exception of ours end it: the client gets a temporary failure and the log gets the detail.
"""

from __future__ import annotations

import functools
import ipaddress
import ssl
import time
from collections.abc import Callable

import msgspec

from ptt.config import Config, Listen
from ptt.log import Log
from ptt.message import Envelope, Recipient
from ptt.metrics import Counters
from ptt.net.handshakes import Handshakes
from ptt.net.stream import MAX_READ, ReadTimeout, Stream, StreamError
from ptt.net.tls import peer_roles
from ptt.smtp.config import ServerConfig
from ptt.smtp.events import (
    NEED_DATA,
    AuthAttempt,
    AuthStep,
    Closed,
    Hello,
    MailFrom,
    MessageComplete,
    MessageStart,
    RcptTo,
    ServerEvent,
    StartTls,
)
from ptt.smtp.replies import LOCAL_ERROR, SHUTTING_DOWN, TIMED_OUT
from ptt.smtp.reply import Reply
from ptt.smtp.server import ServerSession
from ptt.submission import policy, quotas, recipients, transaction
from ptt.submission.accept import Accept, Offer
from ptt.submission.admission import Admission, Seat
from ptt.submission.admission import refusal as too_many
from ptt.submission.limits import (
    LOGIN_SECONDS,
    MAX_COMMAND_READ,
    MAX_REFUSED_SENDERS,
    MAX_REPLIES,
    REPLY_SECONDS,
    ROLE_SECONDS,
    Budget,
    Pace,
    Seldom,
)
from ptt.submission.login import SessionLogin, Verifies

_VERBS: dict[type[object], str] = {
    Hello: "HELO",  # or EHLO
    AuthAttempt: "AUTH",
    MailFrom: "MAIL",
    RcptTo: "RCPT",
    MessageStart: "DATA",  # or BDAT
}

MAX_LOGGED_USER = 320  # the longest address; longer is noise
HANDSHAKE_SECONDS = 60.0  # a TLS handshake is a few round trips

NO_ROOM = Reply(421, "4.3.1", "too much mail is coming in at once, try again later")
TOO_MANY_SENDERS = Reply(421, "4.7.0", "too many refused senders, closing connection")


class Service(msgspec.Struct):
    """What all sessions of one listener share."""

    config: Config
    listen: Listen
    plain: ServerConfig
    hop: ServerConfig  # for peers that have shown the certificate of another role
    tls: Callable[[], ssl.SSLContext]
    logins: Verifies
    directory: policy.Directory
    accept: Accept
    log: Log
    counters: Counters
    networks: tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]
    budget: Budget  # this and the next three: of all listeners of the worker
    admission: Admission
    handshakes: Handshakes
    seldom: Seldom
    clock: Callable[[], float] = time.monotonic
    pressure: policy.Pressure = policy.NO_PRESSURE  # of the queue
    binding: Callable[[ssl.SSLContext], bytes] = lambda _context: b""  # a context's tls-server-end-point data


class Session:
    """``serve`` runs it to its end; ``drain`` asks it, from another greenlet, to end when no message is under way."""

    def __init__(
        self, service: Service, stream: Stream, client: str, seat: Seat | None = None, *, known: bool = True
    ) -> None:
        """``known`` False: ``client`` is a proxy that does not say whom it forwards."""
        self.service = service
        self.stream = stream
        self.client = client
        self.seat = seat or service.admission.free()
        self.known = known
        self.smtp = ServerSession(service.plain)
        self._login = SessionLogin(service.logins, client)
        self.helo = ""
        self.ehlo = False
        self.user = ""
        self.roles: frozenset[str] = frozenset()
        self.envelope: Envelope | None = None
        self.recipients: list[Recipient] = []
        self.draining = False
        self._reading = False
        login = ROLE_SECONDS if self.seat.over else LOGIN_SECONDS if service.listen.service == "submission" else 0.0
        self._pace = Pace(service.clock(), login)
        self._receiving = False  # a content is coming
        self._held = 0  # octets of it that count in the budget
        self._refused_senders = 0  # in a row
        self._lookup_seconds = 0.0  # that the recipients of this message may still wait for DNS

    def serve(self) -> None:
        """Returns when the connection is closed. Raises nothing."""
        service = self.service.listen.service
        self.service.counters.count("ptt_sessions_total", service)
        try:
            if self.service.listen.tls == "implicit":
                self._handshake()
                self.smtp = ServerSession(self.smtp.config, tls=True)
            if service == "relay" and (refusal := policy.pressed(self.service.pressure, arriving=True)):
                self.service.counters.count("ptt_refused_total", "421", "full")
                self.stream.write(refusal.encode(), REPLY_SECONDS)
                return
            self._run()
        except StreamError as e:
            self.service.log.debug("session ended", client=self.client, reason=str(e))
        except Exception as e:
            self.service.counters.count("ptt_errors_total", "session")
            self.service.log.exception("session failed unexpectedly", e, client=self.client)
        finally:
            self._content_gone()
            self.stream.close()

    def drain(self) -> None:
        """Close now if the session waits for a new command outside a transaction, else when it gets there."""
        self.draining = True
        if self._reading and self.envelope is None:
            self._say_goodbye(SHUTTING_DOWN)
            self.stream.close()

    def _run(self) -> None:
        smtp = self.smtp
        while True:
            event = smtp.next_event()
            if event is NEED_DATA:
                if not self._read():
                    return
            elif isinstance(event, Closed):
                self._flush()
                if event.reason.startswith("too many"):
                    self.service.log.warning("session closed", client=self.client, user=self.user, reason=event.reason)
                return
            elif isinstance(event, StartTls):
                self._flush()
                self._handshake()
                smtp.config = self._server_config()
                smtp.tls_started()
            else:
                self._answer(event)
                if smtp.unsent >= MAX_REPLIES:
                    self._flush()

    def _read(self) -> bool:
        """Write what is to be said and read on. False: the session is over."""
        self._flush()
        if self.draining and self.envelope is None:
            self._say_goodbye(SHUTTING_DOWN)
            return False
        left = self._pace.left(self.service.clock())
        self._reading = True
        try:
            if left <= 0:
                raise ReadTimeout("too slow")
            data = self.stream.read(MAX_READ if self._receiving else MAX_COMMAND_READ, left)
        except ReadTimeout:
            self._say_goodbye(TIMED_OUT)
            return False
        finally:
            self._reading = False
        if self._receiving and not self._hold(len(data)):
            self.service.counters.count("ptt_refused_total", "421", "memory")
            self.service.log.warning("content refused", client=self.client, user=self.user, reply=str(NO_ROOM))
            self._say_goodbye(NO_ROOM)
            return False
        if self.user and not self._receiving and data.count(b"\n") > 1:
            self.service.accept.recipients.ahead(data)
        self.smtp.receive_data(data)
        return True

    def _hold(self, octets: int) -> bool:
        """More of a content is here. False: there is no room for it."""
        if not self.smtp.receiving:  # it was refused at its end
            self._content_gone()
            return True
        self._pace.content(octets, self.service.clock())
        held = min(self._held + octets, self.service.config.smtp.max_message_bytes)  # no more of it is kept
        fits = self.service.budget.change(self._held, held)
        self._held = held if fits else self._held
        return fits

    def _content_gone(self) -> None:
        self.service.budget.change(self._held, 0)
        self._held = 0
        if self._receiving:
            self._receiving = False
            self._pace.message(self.service.clock())

    def _flush(self) -> None:
        if out := self.smtp.data_to_send():
            self.stream.write(out, REPLY_SECONDS)
            self._pace.progress(self.service.clock())
        if self.smtp.conduct.has_refused:
            self._tell_refused()

    def _tell_refused(self) -> None:
        """Count and log what the protocol refused, without a decision of ours."""
        for refusal, times in self.smtp.conduct.take_refused().items():
            self.service.counters.count("ptt_refused_total", str(refusal.code), refusal.reason, by=times)
            who = {"client": self.client, "user": self.user}
            level = "warning" if refusal.code in (550, 552) else "debug"  # a message
            self.service.log.event("refused", level, **who, code=refusal.code, reason=refusal.reason, times=times)

    def _say_goodbye(self, reply: Reply) -> None:
        self.smtp.shutdown(reply)
        self._flush()

    def _handshake(self) -> None:
        with self.service.handshakes.turn(self.stream, HANDSHAKE_SECONDS):
            context = self.service.tls()
            self.stream = self.stream.start_tls(context, HANDSHAKE_SECONDS, server_side=True)
        info = self.stream.tls()
        certificate = info.certificate if info else None
        self.roles = peer_roles(certificate) if certificate else frozenset()
        self.service.counters.count("ptt_handshakes_total", self.service.listen.service, info.version if info else "")
        self._login = SessionLogin(self.service.logins, self.client, self.service.binding(context), certificate)
        self.smtp.config = self._server_config()
        if self.from_role:  # no limit is meant for those
            self.seat.release()
            self._pace.logged_in()

    def _server_config(self) -> ServerConfig:
        return self.service.hop if self.from_role else self._login.offer(self.service.plain)

    @functools.cached_property
    def _is_trusted(self) -> bool:
        return self.known and policy.trusted(self.client, self.service.networks)

    @property
    def from_role(self) -> bool:
        """Is the peer a role whose mail we take?"""
        return self.service.listen.service == "relay" and bool(
            self.roles & policy.ROLES_SERVED[self.service.config.role]
        )

    # -- decisions -------------------------------------------------------------------------------------------------

    def _answer(self, event: ServerEvent) -> None:
        if verb := _VERBS.get(type(event)):
            self.service.counters.count("ptt_commands_total", verb)
        try:
            refusal = self._decide(event)
        except Exception as e:
            self.service.counters.count("ptt_errors_total", "session")
            self.service.log.exception("command failed unexpectedly", e, client=self.client)
            refusal = LOCAL_ERROR
        if refusal is None:
            self.smtp.accept()
        elif isinstance(refusal, bytes):
            self.smtp.challenge(refusal)
        elif refusal.ok:
            self.smtp.accept(refusal)
        else:
            self.smtp.refuse(refusal)

    def _decide(self, event: ServerEvent) -> Reply | bytes | None:
        """The reply, or None for the usual positive one, or the next challenge of AUTH."""
        if isinstance(event, MailFrom):
            return self._mail(event)
        if isinstance(event, RcptTo):
            return self._rcpt(event)
        if isinstance(event, MessageComplete):
            return self._complete(event)
        if isinstance(event, Hello):
            self.helo, self.ehlo = event.name, event.ehlo
            self.envelope = None
        elif isinstance(event, MessageStart):
            self._receiving = True
        elif isinstance(event, AuthAttempt | AuthStep):
            return self._auth(event)
        return None

    def _auth(self, event: AuthAttempt | AuthStep) -> Reply | bytes | None:
        said = self._login.answer(event)
        if isinstance(said, bytes):
            return said
        service = self.service
        if said.result == "ok" and (reason := self._one_too_many(said.user)):
            service.counters.count("ptt_refused_total", "421", reason)
            service.seldom.warning("connection refused", reason, client=self.client, reason=reason, user=said.user)
            return too_many(reason)
        service.counters.count("ptt_auth_total", said.mechanism, said.result)
        if said.result == "ok":
            self.user = said.user
            self._pace.logged_in()
        else:
            service.log.warning(
                "authentication refused",
                client=self.client,
                user=said.user[:MAX_LOGGED_USER],
                result=said.result,
                mechanism=said.mechanism,
            )
        return said.reply

    def _one_too_many(self, user: str) -> str:
        """Why this connection is one more than the user may have, or ""."""
        limits = self.service.directory.limits(user)
        return self.seat.login(user, limits[0].connections if limits and limits[0] else None)

    def _mail(self, event: MailFrom) -> Reply | None:
        self.envelope = None
        self.recipients = []
        self._lookup_seconds = recipients.LOOKUP_SECONDS
        envelope = transaction.envelope(event, self.user, self.client, self.helo, time.time())
        if self.service.listen.service == "submission":
            refusal = policy.sender(self.service.directory, self.user, event.address)
            if refusal is None and event.params.size and (limits := self.service.directory.limits(self.user)):
                refusal = quotas.fits(limits, 0, event.params.size)
        elif self.from_role:
            envelope, refusal = transaction.from_role(envelope, event, self.service.config)
        else:
            refusal = None if self._is_trusted else policy.NO_RELAY
        if (refusal := refusal or policy.pressed(self.service.pressure)) is None:
            self.envelope = envelope
            self._refused_senders = 0
            return None
        self.service.counters.count("ptt_refused_total", str(refusal.code), "sender")
        self.service.log.warning(
            "sender refused", client=self.client, user=self.user, sender=event.address, reply=str(refusal)
        )
        self._refused_senders += 1
        return refusal if self._refused_senders < MAX_REFUSED_SENDERS else TOO_MANY_SENDERS

    def _rcpt(self, event: RcptTo) -> Reply | None:
        if refusal := self._recipient_refusal(event.address):
            self.service.counters.count("ptt_refused_total", str(refusal.code), "recipient")
            self.service.log.warning(
                "recipient refused", client=self.client, user=self.user, to=event.address, reply=str(refusal)
            )
            return refusal
        self.recipients.append(Recipient(event.address, event.params.notify, event.params.orcpt))
        return None

    def _recipient_refusal(self, address: str) -> Reply | None:
        notification = bool(self.user and self.recipients and self.envelope and not self.envelope.sender)
        if (refusal := policy.recipient(address, notification)) or not self.user:
            return refusal
        began = self.service.clock()
        try:
            number, left = len(self.recipients) + 1, max(0.0, self._lookup_seconds)
            return self.service.accept.recipients.refusal(self.user, address, number, left)
        finally:
            self._lookup_seconds -= self.service.clock() - began

    def _complete(self, event: MessageComplete) -> Reply:
        envelope, self.envelope = self.envelope, None
        if envelope is None:
            raise RuntimeError("a message without an envelope")
        info = self.stream.tls()
        tls = f"{info.version} {info.cipher}" if info else ""
        spoken = "UTF8SMTP" if envelope.smtputf8 else "ESMTP" if self.ehlo else "SMTP"  # RFC 6531 4.3
        protocol = spoken + ("S" if tls else "") + ("A" if self.user else "")
        offer = Offer(envelope, self.recipients, event.chunks, self.service.listen.service, protocol, tls)
        self.recipients = []
        try:
            return self.service.accept.offer(offer)
        finally:
            self._content_gone()
