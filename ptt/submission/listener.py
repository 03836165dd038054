"""Listening sockets: accept connections, bound their number, run a session for each in a greenlet of its own."""

from __future__ import annotations

import contextlib
import ipaddress
import ssl
from collections.abc import Callable, Sequence

import gevent
import gevent.pool
from gevent import socket
from gevent.server import StreamServer

from ptt.config import Config, Listen
from ptt.log import Log
from ptt.metrics import Counters
from ptt.net.stream import GeventStream, StreamError, show_address
from ptt.net.tls import server_context
from ptt.relay.hop import KEYWORD
from ptt.smtp.config import ServerConfig
from ptt.smtp.replies import SHUTTING_DOWN
from ptt.submission import policy
from ptt.submission.accept import Accept
from ptt.submission.limits import Budget
from ptt.submission.session import Service, Session, Verifies

POLITE_SECONDS = 2.0  # to tell a client that there is no room


def server_configs(config: Config, listen: Listen) -> tuple[ServerConfig, ServerConfig]:
    """What the listener offers to everybody, and to the other roles under mutual TLS."""
    submission = listen.service == "submission"
    common = {
        "hostname": config.hostname,
        "greeting": "ESMTP PTT",
        "max_message_bytes": config.smtp.max_message_bytes,
        "max_recipients": config.smtp.max_recipients,
        "starttls": listen.tls == "starttls",
    }
    plain = ServerConfig(
        **common,  # type: ignore[arg-type]
        auth=("PLAIN", "LOGIN") if submission else (),
        require_tls=submission,
        require_auth=submission,
    )
    hop = ServerConfig(**common, extra_ehlo=(KEYWORD,), mail_parameters=frozenset({KEYWORD}))  # type: ignore[arg-type]
    return plain, hop


class Contexts:
    """TLS contexts of the listeners, made once and again on ``reload`` (SIGHUP)."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.public: ssl.SSLContext | None = None
        self.internal: ssl.SSLContext | None = None
        self.reload()

    def reload(self) -> None:
        """Read certificates and keys. Raises OSError, and leaves what was in force."""
        tls = self.config.tls
        services = {x.service for x in self.config.listen if x.tls != "none"}
        public = server_context(tls.public_certificate, tls.public_key) if "submission" in services else None
        internal = None
        if "relay" in services:  # trusted networks come without a certificate
            internal = server_context(
                tls.internal_certificate, tls.internal_key, client_ca=tls.internal_ca, client_required=False
            )
        self.public, self.internal = public, internal

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
        self.service = service
        self.sessions: set[Session] = set()
        self.pool = gevent.pool.Pool(service.config.smtp.max_connections)
        self.server = StreamServer(sock, self._connected)

    def start(self) -> None:
        self.server.start()

    def _connected(self, sock: socket.socket, address: tuple[str, int]) -> None:
        """Runs in a greenlet of its own, which ``drain`` waits for through the pool."""
        client, port = address[0], address[1]
        stream = GeventStream(sock, show_address(client, port))
        if self.pool.full():
            self.service.counters.count("ptt_refused_total", "421", "connections")
            with contextlib.suppress(StreamError):
                stream.write(
                    SHUTTING_DOWN._replace(text="too many connections, try again later").encode(), POLITE_SECONDS
                )
            stream.close()
            return
        self.pool.add(gevent.getcurrent())
        session = Session(self.service, stream, client)
        self.sessions.add(session)
        self.service.counters.gauge("ptt_sessions_open", self.service.listen.service, value=len(self.sessions))
        try:
            session.serve()
        finally:
            self.sessions.discard(session)
            self.service.counters.gauge("ptt_sessions_open", self.service.listen.service, value=len(self.sessions))

    def drain(self, timeout: float) -> None:
        """Accept no more; let transactions that are under way end, at most ``timeout`` seconds."""
        self.server.stop_accepting()
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
) -> list[Listener]:
    """A listener for each socket; ``sockets`` gives with each its index in ``config.listen``."""
    made = []
    budget = Budget()
    for index, sock in sockets:
        listen = config.listen[index]
        plain, hop = server_configs(config, listen)
        networks = tuple(ipaddress.ip_network(n) for n in listen.trusted)
        service = Service(
            config, listen, plain, hop, contexts.of(listen), logins, directory, accept, log, counters, networks, budget
        )
        made.append(Listener(sock, service))
    return made
