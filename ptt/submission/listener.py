"""Listening sockets: accept connections, bound their number, run a session for each in a greenlet of its own."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import ssl
import time
import weakref
from collections.abc import Callable, Sequence

import gevent
import gevent.pool
from gevent import socket

from ptt.config import Config, Listen
from ptt.log import Log
from ptt.metrics import Counters
from ptt.net.handshakes import Handshakes
from ptt.net.proxy import ProxyError
from ptt.net.stream import GeventStream, show_address
from ptt.net.tls import end_point, server_context
from ptt.relay.hop import KEYWORD
from ptt.smtp.config import FutureRelease, ServerConfig
from ptt.smtp.replies import SHUTTING_DOWN
from ptt.smtp.reply import Reply
from ptt.submission import policy
from ptt.submission.accept import Accept
from ptt.submission.admission import Admission, Seat, refusal
from ptt.submission.arrival import Visitor, announced, talks_early
from ptt.submission.census import Census
from ptt.submission.limits import Budget, Seldom
from ptt.submission.login import MECHANISMS, Verifies
from ptt.submission.session import Service, Session

ACCEPT_BATCH = 16  # connections accepted at once, before who is connected already has a turn
ACCEPT_PAUSE = 0.2  # seconds without accepting when there is no descriptor for a connection
MAX_HOLD_SECONDS = 30 * 86400  # for which a user may have a message held (RFC 4865): it lies in the queue
MAX_UNREAD = 4096  # octets of a client that is turned away, which are read so that it sees our reply

NO_PLACE = SHUTTING_DOWN._replace(text="too many connections, try again later")
NOT_A_PROXY = Reply(554, "5.7.1", "only our proxies connect here")
EARLY_TALKER = Reply(554, "5.5.1", "you spoke before the greeting")


def server_configs(config: Config, listen: Listen) -> tuple[ServerConfig, ServerConfig]:
    """What the listener offers to everybody, and to the other roles under mutual TLS."""
    submission = listen.service == "submission"
    common = {
        "hostname": config.hostname,
        "greeting": "ESMTP PTT",
        "max_message_bytes": config.smtp.max_message_bytes,
        "max_recipients": config.smtp.max_recipients,
        "starttls": listen.tls == "starttls",
        "smtputf8": True,
        "dsn": True,
        "chunking": True,
        "binarymime": True,
        "limits": True,
    }
    plain = ServerConfig(
        **common,  # type: ignore[arg-type]
        auth=MECHANISMS if submission else (),
        require_tls=submission,
        require_auth=submission,
        future_release=FutureRelease(MAX_HOLD_SECONDS, time.time) if submission else None,
        mt_priority=submission,
    )
    hop = ServerConfig(**common, extra_ehlo=(KEYWORD,), mail_parameters=frozenset({KEYWORD}))  # type: ignore[arg-type]
    return plain, hop


class Contexts:
    """TLS contexts of the listeners, made once and again on ``reload`` (SIGHUP)."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.public: ssl.SSLContext | None = None
        self.internal: ssl.SSLContext | None = None
        self._bindings: weakref.WeakKeyDictionary[ssl.SSLContext, bytes] = weakref.WeakKeyDictionary()
        self.reload()

    def reload(self) -> None:
        """Read certificates and keys. Raises OSError, and leaves what was in force."""
        tls = self.config.tls
        services = {x.service for x in self.config.listen if x.tls != "none"}
        public = None
        if "submission" in services:  # users may show a certificate (AUTH EXTERNAL)
            users = tls.submission_client_ca or None
            public = server_context(tls.public_certificate, tls.public_key, client_ca=users, client_required=False)
            self._bindings[public] = end_point(tls.public_certificate)
        internal = None
        if "relay" in services:  # trusted networks come without a certificate
            internal = server_context(
                tls.internal_certificate, tls.internal_key, client_ca=tls.internal_ca, client_required=False
            )
        self.public, self.internal = public, internal

    def binding(self, context: ssl.SSLContext) -> bytes:
        """The tls-server-end-point data of connections made with ``context``; b"": none."""
        return self._bindings.get(context, b"")

    def of(self, listen: Listen) -> Callable[[], ssl.SSLContext]:
        def current() -> ssl.SSLContext:
            context = self.public if listen.service == "submission" else self.internal
            if context is None:
                raise RuntimeError("a listener without TLS was asked for its context")
            return context

        return current


class Listener:
    """One listening socket of one worker."""

    def __init__(self, sock: socket.socket, service: Service) -> None:
        self.sock = sock
        self.service = service
        self.sessions: set[Session] = set()
        self.arriving: set[GeventStream] = set()  # accepted, and without a session yet
        self.pool = gevent.pool.Pool(service.config.smtp.max_connections)
        self.proxies = tuple(ipaddress.ip_network(n) for n in service.listen.proxies)
        self._accepting: gevent.Greenlet | None = None

    def start(self) -> None:
        self._accepting = gevent.spawn(self._accept_for_ever)

    def _accept_for_ever(self) -> None:
        """After each ``ACCEPT_BATCH`` connections those that are here already have their turn."""
        taken = 0
        while True:
            try:
                sock, address = self.sock.accept()
            except OSError as e:
                if e.errno != errno.ECONNABORTED:  # no descriptors, no memory: who waits in the backlog stays there
                    self.service.seldom.warning("cannot accept", "accept", reason=os.strerror(e.errno or 0))
                    gevent.sleep(ACCEPT_PAUSE)
                continue
            if self.pool.full():
                self._turn_away(sock, address[0], "connections", NO_PLACE)
                sock.close()
            else:
                self.pool.spawn(self._connected, sock, address)
            taken += 1
            if taken % ACCEPT_BATCH == 0:
                gevent.sleep(0)

    def _connected(self, sock: socket.socket, address: tuple[str, int]) -> None:
        """Runs in a greenlet of its own, which ``drain`` waits for through the pool."""
        stream = GeventStream(sock, show_address(address[0], address[1]))
        self.arriving.add(stream)
        seat = None
        try:
            visitor = self._visitor(sock, address[0], address[1])
            seat = self._seat(sock, visitor) if visitor else None
            if visitor is None or seat is None or self._talks_early(sock, visitor):
                return
            self.arriving.discard(stream)
            stream.peer = show_address(visitor.address, visitor.port)
            self._serve(Session(self.service, stream, visitor.address, seat, known=visitor.known))
        except Exception as e:
            self.service.counters.count("ptt_errors_total", "session")
            self.service.log.exception("session failed unexpectedly", e, client=address[0])
        finally:
            self.arriving.discard(stream)
            if seat is not None:
                seat.release()
            stream.close()

    def _serve(self, session: Session) -> None:
        self.sessions.add(session)
        self.service.counters.gauge("ptt_sessions_open", self.service.listen.service, value=len(self.sessions))
        try:
            session.serve()
        finally:
            self.sessions.discard(session)
            self.service.counters.gauge("ptt_sessions_open", self.service.listen.service, value=len(self.sessions))

    # -- before the session ----------------------------------------------------------------------------------------

    def _visitor(self, sock: socket.socket, address: str, port: int) -> Visitor | None:
        """Whom the connection comes from; None: it was turned away."""
        if not self.proxies:
            return Visitor(address, port)
        if not policy.trusted(address, self.proxies):
            self._turn_away(sock, address, "proxy", NOT_A_PROXY)
            return None
        try:
            return announced(sock, address, port)
        except ProxyError as e:
            self._turn_away(sock, address, "proxy header", None, detail=str(e))
            return None

    def _seat(self, sock: socket.socket, visitor: Visitor) -> Seat | None:
        """Its place among the connections; None: it was turned away."""
        admission, networks = self.service.admission, self.service.networks
        if visitor.local or any(policy.trusted(visitor.address, n) for n in (admission.exempt, networks)):
            return admission.free()
        roles = self.service.listen.service == "relay" and self.service.listen.tls != "none"
        found = admission.enter(visitor.address, roles=roles)
        if isinstance(found, Seat):
            return found
        self._turn_away(sock, visitor.address, found, refusal(found))
        return None

    def _talks_early(self, sock: socket.socket, visitor: Visitor) -> bool:
        delay = self.service.listen.greeting_delay
        if not delay or visitor.local or not talks_early(sock, delay):
            return False
        self._turn_away(sock, visitor.address, "early talker", EARLY_TALKER)
        return True

    def _turn_away(self, sock: socket.socket, client: str, reason: str, reply: Reply | None, detail: str = "") -> None:
        """Say why, without waiting. Behind implicit TLS nobody could read it."""
        self.service.counters.count("ptt_refused_total", str(reply.code) if reply else "closed", reason)
        more = {"detail": detail} if detail else {}
        self.service.seldom.warning("connection refused", reason, client=client, reason=reason, **more)
        if reply is not None and self.service.listen.tls != "implicit":
            with contextlib.suppress(OSError):
                sock.settimeout(0.0)
                sock.send(reply.encode())
                sock.shutdown(socket.SHUT_WR)
                sock.recv(MAX_UNREAD)  # closed with octets unread, a connection is reset

    def drain(self, timeout: float) -> None:
        """Accept no more; let transactions that are under way end, at most ``timeout`` seconds."""
        if self._accepting is not None:
            self._accepting.kill()
        for stream in list(self.arriving):
            stream.close()
        for session in list(self.sessions):
            gevent.spawn(session.drain)
        self.pool.join(timeout)


def listeners(
    config: Config,
    sockets: Sequence[tuple[int, socket.socket]],
    contexts: Contexts,
    logins: Verifies,
    directory: policy.Directory,
    accept: Accept,
    log: Log,
    counters: Counters,
    census: Census,
    pressure: policy.Pressure = policy.NO_PRESSURE,
) -> list[Listener]:
    """A listener for each socket; ``sockets`` gives with each its index in ``config.listen``."""
    made = []
    budget, handshakes, seldom = Budget(), Handshakes(), Seldom(log)
    admission = Admission(config.connections, census, time.monotonic)
    for index, sock in sockets:
        listen = config.listen[index]
        plain, hop = server_configs(config, listen)
        service = Service(
            config,
            listen,
            plain,
            hop,
            contexts.of(listen),
            logins,
            directory,
            accept,
            log,
            counters,
            networks=tuple(ipaddress.ip_network(n) for n in listen.trusted),
            budget=budget,
            admission=admission,
            handshakes=handshakes,
            seldom=seldom,
            pressure=pressure,
            binding=contexts.binding,
        )
        made.append(Listener(sock, service))
    return made
