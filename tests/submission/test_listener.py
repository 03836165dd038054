"""The listening side, over real sockets: who is let in, who is turned away, and in which order."""

from __future__ import annotations

import contextlib
import errno
import pathlib
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import msgspec
import pytest
from gevent import socket

from ptt.config import Config
from ptt.directory.records import Limits
from ptt.log import Log
from ptt.metrics import Counters
from ptt.net import handshakes
from ptt.net.handshakes import Handshakes
from ptt.net.memory import memory_pair
from ptt.net.proxy import SIGNATURE
from ptt.net.stream import ReadTimeout, Stream, StreamError, connect, show_address
from ptt.net.tls import internal_client_context, opportunistic_context, server_context
from ptt.smtp.reply import Reply, ReplyReader
from ptt.submission import arrival, census, listener, recipients, session
from ptt.submission.census import Census
from ptt.submission.limits import ROLE_SECONDS
from ptt.submission.listener import Listener, listeners

LONG = 5.0
Start = Callable[..., "Place"]


class Accept:
    """Takes every message and keeps whom it came from."""

    def __init__(self) -> None:
        self.clients: list[str] = []
        self.recipients = self
        self.waited: list[float] = []  # seconds that each recipient was allowed for DNS, which never answers

    def ahead(self, data: bytes) -> None:
        pass

    def refusal(self, user: str, address: str, number: int, seconds: float) -> None:
        self.waited.append(seconds)
        gevent.sleep(seconds)

    def offer(self, offer: Any) -> Reply:
        self.clients.append(offer.envelope.client)
        return Reply(250, "2.0.0", "queued")


class Logins:
    def verify(self, user: str, password: str, client: str) -> str:
        return "ok" if password == "right" else "bad"


class Place:
    """A listener on a port of its own."""

    def __init__(
        self, context: ssl.SSLContext, connections: dict[str, Any], smtp: dict[str, Any], **listen: Any
    ) -> None:
        given = {"address": "127.0.0.1:0", "service": "relay", "tls": "none", "trusted": ["192.0.2.0/24"], **listen}
        settings = {"hostname": "mail.example.org", "listen": [given], "connections": connections, "smtp": smtp}
        config = msgspec.convert(settings, Config)
        sock = socket.socket()
        sock.bind(("127.0.0.1", 0))
        sock.listen(100)
        self.accept, self.counters, self.sock = Accept(), Counters(), sock
        self.clients: list[Any] = []
        contexts: Any = type(
            "Contexts", (), {"of": lambda _self, _listen: lambda: context, "binding": lambda _self, _context: b""}
        )()
        self.limits: Limits | None = None  # of every user
        directory: Any = type(
            "Directory", (), {"limits": lambda _self, _user: (self.limits, None), "may_send_as": lambda *_: True}
        )()
        log, counts = Log("test"), Census(census.make(1), 0)
        self.listener: Listener = listeners(
            config,
            [(0, sock)],
            contexts,
            Logins(),  # type: ignore[arg-type]
            directory,
            self.accept,
            log,
            self.counters,
            counts,  # type: ignore[arg-type]
        )[0]
        self.port = sock.getsockname()[1]
        self.listener.start()

    def connect(self) -> socket.socket:
        made = socket.create_connection(("127.0.0.1", self.port), timeout=LONG)
        made.settimeout(LONG)
        self.clients.append(made)
        return made

    def connect_tls(self, first: bytes = b"", context: ssl.SSLContext | None = None) -> Stream:
        below = connect("127.0.0.1", self.port, LONG)
        self.clients.append(below)
        below.write(first, LONG)
        return below.start_tls(
            context or opportunistic_context(), LONG, server_side=False, server_hostname="mx.example.org"
        )

    def refused(self) -> dict[str, float]:
        """How many, by reason."""
        return {labels[1]: n for (name, labels), n in self.counters.counters.items() if name == "ptt_refused_total"}

    def stop(self) -> None:
        self.listener.drain(0.1)
        self.listener.pool.kill(timeout=1)
        for one in [self.sock, *self.clients]:
            one.close()


@pytest.fixture
def start(certificates: dict[str, pathlib.Path]) -> Iterator[Start]:
    context = server_context(str(certificates["mx"]), str(certificates["mx.key"]))
    made: list[Place] = []

    def make(connections: dict[str, Any] | None = None, smtp: dict[str, Any] | None = None, **listen: Any) -> Place:
        chosen = listen.pop("context", context)
        made.append(Place(chosen, {"exempt": [], **(connections or {})}, smtp or {}, **listen))
        return made[-1]

    yield make
    for place in made:
        place.stop()


def said(sock: socket.socket) -> bytes:
    with contextlib.suppress(ConnectionResetError):
        return sock.recv(4096)
    return b""


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        gevent.sleep(0.005)


def own_address(stream: Any) -> str:
    return show_address(*stream._below._socket.getsockname()[:2])


def send_mail(sock: socket.socket) -> bytes:
    for line in (b"HELO me", b"MAIL FROM:<a@b.test>", b"RCPT TO:<c@d.test>", b"DATA", b"Subject: x\r\n\r\nx\r\n."):
        sock.sendall(line + b"\r\n")
        reply = said(sock)
    return reply


# -- proxies -------------------------------------------------------------------------------------------------------

PROXIES = ["127.0.0.0/8"]
V1 = b"PROXY TCP4 192.0.2.7 198.51.100.1 4242 25\r\n"
V2 = SIGNATURE + b"\x21\x11\0\x0c\xc0\0\2\x07\xc6\x33\x64\1\x10\x92\0\x19"


@pytest.mark.parametrize("header", [V1, V2])
def test_the_client_behind_a_proxy_is_the_client(start: Start, header: bytes) -> None:
    place = start(proxies=PROXIES)
    for size in (len(header), 1):
        with place.connect() as client:
            for at in range(0, len(header), size):
                client.sendall(header[at : at + size])
                gevent.sleep(0)
            assert said(client).startswith(b"220 ")
            assert send_mail(client).startswith(b"250 ")
    assert place.accept.clients == ["192.0.2.7"] * 2


def test_what_comes_behind_the_header_is_the_clients(start: Start) -> None:
    place = start(proxies=PROXIES)
    with place.connect() as client:
        client.sendall(V1 + b"HELO me\r\nQUIT\r\n")
        got = b""
        while part := said(client):
            got += part
        assert [line[:3] for line in got.splitlines()] == [b"220", b"250", b"221"]


def test_implicit_tls_behind_a_proxy(start: Start) -> None:
    place = start(proxies=PROXIES, tls="implicit")
    assert place.connect_tls(V2).read(4096, LONG).startswith(b"220 ")


@pytest.mark.parametrize("start_of_it", [b"EHLO me\r\n", b"PROXY TCP4 x\r\n", SIGNATURE + b"\x99\0\0\0"])
def test_a_proxy_without_its_header_is_not_served(start: Start, start_of_it: bytes) -> None:
    place = start(proxies=PROXIES)
    with place.connect() as client:
        client.sendall(start_of_it)
        assert said(client) == b""
    assert place.refused() == {"proxy header": 1}


def test_a_proxy_that_says_nothing_is_not_waited_for(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrival, "PROXY_SECONDS", 0.05)
    place = start(proxies=PROXIES)
    with place.connect() as client:
        client.sendall(V1[:-1])
        assert said(client) == b""
    assert place.refused() == {"proxy header": 1}


def test_only_proxies_may_connect(start: Start) -> None:
    place = start(proxies=["192.0.2.0/24"])
    with place.connect() as client:
        assert said(client).startswith(b"554 5.7.1 ")
    assert place.refused() == {"proxy": 1}


def test_a_health_check_is_the_proxys(start: Start) -> None:
    place = start({"per_address": 1}, proxies=PROXIES, greeting_delay=30)
    for _ in range(3):
        client = place.connect()
        client.sendall(SIGNATURE + b"\x20\0\0\0")
        assert said(client).startswith(b"220 ")


def test_whom_a_proxy_does_not_name_is_not_trusted(start: Start) -> None:
    place = start(proxies=PROXIES, trusted=PROXIES)
    for header, code in ((b"PROXY UNKNOWN\r\n", b"550"), (SIGNATURE + b"\x20\0\0\0", b"250")):
        with place.connect() as client:
            client.sendall(header)
            assert said(client).startswith(b"220 ")
            client.sendall(b"HELO me\r\n")
            said(client)
            client.sendall(b"MAIL FROM:<a@b.test>\r\n")
            assert said(client).startswith(code)


def test_limits_are_for_the_real_client(start: Start) -> None:
    place = start({"per_address": 1}, service="submission", tls="starttls", trusted=[], proxies=PROXIES)
    held = []
    for header, code in ((V1, b"220"), (V1, b"421 4.7.0"), (V1.replace(b".7", b".8"), b"220")):
        client = place.connect()
        client.sendall(header)
        assert said(client).startswith(code)
        held.append(client)
    assert place.refused() == {"address": 1}


HAPROXY = """
defaults
    mode tcp
    timeout connect 5s
    timeout client 30s
    timeout server 30s
frontend front
    bind 127.0.0.1:{port}
    default_backend ptt
backend ptt
    server ptt 127.0.0.1:{ours} {how} check inter 100ms
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["send-proxy", "send-proxy-v2", "send-proxy-v2 proxy-v2-options crc32c,unique-id"])
def test_behind_haproxy(
    start: Start, how: str, program: Callable[[str], str], free_port: Callable[[], int], tmp: pathlib.Path
) -> None:
    """What the client is called and whether it may relay is decided by its own address, 127.0.0.2."""
    haproxy = program("haproxy")
    place, port = start(proxies=["127.0.0.1/32"], trusted=["127.0.0.2/32"]), free_port()
    (tmp / "haproxy.cfg").write_text(HAPROXY.format(port=port, ours=place.port, how=how))
    check = subprocess.run([haproxy, "-c", "-f", str(tmp / "haproxy.cfg")], capture_output=True, text=True)
    assert check.returncode == 0, check.stderr
    with (tmp / "log").open("w") as log:
        proxy = subprocess.Popen([haproxy, "-db", "-f", str(tmp / "haproxy.cfg")], stdout=log, stderr=log)
    try:
        until(lambda: "ptt_sessions_total" in {name for name, _ in place.counters.counters})  # its health check
        for source, relays in (("127.0.0.2", True), ("127.0.0.3", False)):
            client = socket.create_connection(("127.0.0.1", port), LONG, (source, 0))
            with client:
                client.settimeout(LONG)
                assert said(client).startswith(b"220 ")
                assert send_mail(client).startswith(b"250 ") == relays
        assert place.accept.clients == ["127.0.0.2"]
        assert place.refused()["sender"] == 1
        assert not {"proxy", "proxy header"} & set(place.refused())
    finally:
        proxy.terminate()
        proxy.wait(10)


def test_roles_are_not_limited(start: Start, certificates: dict[str, pathlib.Path]) -> None:
    """Who is one too many on a relay listener may show the certificate of a role, and has little time for it."""
    files = [str(certificates[name]) for name in ("relay", "relay.key", "ca")]
    internal = server_context(*files[:2], client_ca=files[2], client_required=False)
    place = start({"per_address": 1}, tls="implicit", trusted=[], context=internal)
    role = internal_client_context(str(certificates["submission"]), str(certificates["submission.key"]), files[2])
    for n, context in enumerate((opportunistic_context(), role, role, opportunistic_context())):
        stream = place.connect_tls(context=context)
        assert stream.read(4096, LONG).startswith(b"220 ")
        stream.write(b"EHLO me\r\n", LONG)
        assert (b"PTT" in stream.read(4096, LONG).partition(b"\r\n")[2]) == (context is role)
        ours = next(s for s in place.listener.sessions if s.stream.peer == own_address(stream))
        in_time = ours._pace.left(time.monotonic())
        assert (in_time <= ROLE_SECONDS) == (n == 3)
    assert place.refused() == {}


# -- limits --------------------------------------------------------------------------------------------------------


def test_one_too_many_is_told_why(start: Start) -> None:
    place = start({"per_address": 2}, service="submission", tls="starttls", trusted=[])
    held = [place.connect(), place.connect()]
    assert all(said(one).startswith(b"220 ") for one in held)
    with place.connect() as client:
        assert said(client) == b"421 4.7.0 too many connections from your address, try again later\r\n"
        assert said(client) == b""
    held.pop().close()
    until(lambda: len(place.listener.sessions) == 1)
    assert said(place.connect()).startswith(b"220 ")


def test_trusted_networks_are_not_limited(start: Start) -> None:
    place = start({"per_address": 1, "address_per_minute": 1}, trusted=PROXIES)
    held = [place.connect() for _ in range(5)]
    assert all(said(one).startswith(b"220 ") for one in held)


@pytest.mark.parametrize(("of_all", "own"), [(1, None), (0, 1), (9, 1), (1, 9)])
def test_a_user_has_so_many_connections(start: Start, of_all: int, own: int | None) -> None:
    place = start({"per_user": of_all}, service="submission", tls="implicit", trusted=[])
    place.limits = Limits(connections=own)
    found = []
    for _ in range(2):
        stream = place.connect_tls()
        for line in (b"", b"EHLO me\r\n", b"AUTH PLAIN AG1lAHJpZ2h0\r\n"):
            if line:
                stream.write(line, LONG)
            reply = stream.read(4096, LONG)
        found.append((stream, reply))
    assert found[0][1].startswith(b"235 ")
    assert found[1][1].startswith(b"421 4.7.0 too many connections of this user")
    assert place.refused() == {"user": 1}


@pytest.mark.slow
def test_a_resolver_that_never_answers_delays_a_message_once(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """All recipients of a message have LOOKUP_SECONDS together; the next message has as many again."""
    monkeypatch.setattr(recipients, "LOOKUP_SECONDS", 0.2)
    place = start(service="submission", tls="implicit", trusted=[])
    stream = place.connect_tls()
    reader = ReplyReader()

    def said_to(lines: bytes, replies: int) -> set[int]:
        stream.write(lines, LONG)
        codes = set()
        for _ in range(replies):
            while (reply := reader.next()) is None:
                reader.feed(stream.read(4096, LONG))
            codes.add(reply.code)
        return codes

    assert said_to(b"EHLO me\r\nAUTH PLAIN AG1lAHJpZ2h0\r\n", 3) == {220, 250, 235}
    for message in (1, 2):
        began = time.monotonic()
        group = b"MAIL FROM:<me@a.test>\r\n" + b"RCPT TO:<x@slow.test>\r\n" * 50 + b"RSET\r\n"
        assert said_to(group, 52) == {250}
        assert 0.2 <= time.monotonic() - began < 2.5  # each on its own: 10 s
        assert len(place.accept.waited) == 50 * message
        assert place.accept.waited[-49:] == [0.0] * 49


def test_a_full_worker_says_so(start: Start) -> None:
    place = start(smtp={"max_connections": 2})
    held = [place.connect(), place.connect()]
    assert all(said(one).startswith(b"220 ") for one in held)
    assert said(place.connect()).startswith(b"421 4.3.2 too many connections")
    assert place.refused() == {"connections": 1}


def test_without_tls_nobody_can_be_a_role(start: Start) -> None:
    place = start({"per_network": 1})
    held = place.connect()
    assert said(held).startswith(b"220 ")
    assert said(place.connect()).startswith(b"421 4.7.0 too many connections from your network")


# -- slow clients --------------------------------------------------------------------------------------------------


def test_who_does_not_read_our_replies_is_closed(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "REPLY_SECONDS", 0.2)
    place = start(trusted=PROXIES)
    place.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # those that it accepts have the same
    client = place.connect()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    assert said(client).startswith(b"220 ")
    client.settimeout(0.1)
    with pytest.raises((TimeoutError, ConnectionError)):
        client.sendall(b"HELO me\r\nMAIL FROM:<a@b.test>\r\n" + b"RCPT TO:<c@d.test>\r\n" * 400_000)
    until(lambda: not place.listener.sessions)
    assert place.accept.clients == []


# -- the greeting --------------------------------------------------------------------------------------------------


def test_who_talks_before_the_greeting_is_sent_away(start: Start) -> None:
    place = start(greeting_delay=2)
    with place.connect() as client:
        client.sendall(b"EHLO me\r\n")
        assert said(client).startswith(b"554 5.5.1 ")
    assert place.refused() == {"early talker": 1}


def test_who_waits_for_the_greeting_gets_it(start: Start) -> None:
    place = start(greeting_delay=0.05, trusted=PROXIES)
    with place.connect() as client:
        began = time.monotonic()
        assert said(client).startswith(b"220 ")
        assert time.monotonic() - began >= 0.04
        assert send_mail(client).startswith(b"250 ")
    assert place.refused() == {}


def test_a_drain_does_not_wait_for_those_who_wait(start: Start) -> None:
    place = start(greeting_delay=30)
    with place.connect() as client:
        until(lambda: bool(place.listener.arriving))
        began = time.monotonic()
        place.listener.drain(5.0)
        assert time.monotonic() - began < 2
        assert said(client) == b""


# -- acceptance ----------------------------------------------------------------------------------------------------


def test_without_descriptors_the_listener_waits(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that cannot be accepted stays in the backlog; trying again costs next to nothing."""
    monkeypatch.setattr(listener, "ACCEPT_PAUSE", 0.02)
    place = start(trusted=PROXIES)
    tries = []

    class Exhausted:
        def accept(self) -> Any:
            tries.append(time.monotonic())
            raise OSError(errno.EMFILE, "Too many open files")

    real = place.listener.sock
    said(place.connect())  # the listener is at its next accept
    place.listener.sock = Exhausted()  # type: ignore[assignment]
    place.connect()
    until(lambda: bool(tries))
    gevent.sleep(0.2)
    assert 1 <= len(tries) <= 12
    place.listener.sock = real
    assert said(place.connect()).startswith(b"220 ")


def test_a_crowd_of_new_clients_does_not_keep_an_old_one_waiting(start: Start) -> None:
    place = start(trusted=PROXIES)
    place.listener.drain(0.1)  # stops accepting; the crowd waits in the backlog
    crowd = [place.connect() for _ in range(64)]
    place.listener.start()
    most = 0

    def watch() -> None:
        nonlocal most
        before = 0
        while len(place.listener.pool) + len(place.listener.sessions) < 2 * len(crowd):
            gevent.sleep(0)
            now = len(place.listener.pool)
            most, before = max(most, now - before), now

    gevent.spawn(watch).get(timeout=LONG)
    assert 0 < most <= 2 * listener.ACCEPT_BATCH
    assert all(said(one).startswith(b"220 ") for one in crowd)


# -- handshakes ----------------------------------------------------------------------------------------------------


def test_so_many_handshakes_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handshakes, "PATIENCE_SECONDS", 0.1)
    turns = Handshakes(2)
    order: list[str] = []

    def shake(name: str, timeout: float = LONG) -> None:
        stream, _peer = memory_pair()
        try:
            with turns.turn(stream, timeout):
                order.append(name)
                stream.read(1, LONG)  # the client says nothing
        except StreamError as e:
            order.append(f"{name}: {type(e).__name__}")

    running = [gevent.spawn(shake, name) for name in ("a", "b", "c")]
    gevent.joinall(running[:1], timeout=LONG)
    until(lambda: "c" in order)
    assert order == ["a", "b", "a: PeerClosed", "c"]  # the oldest one had its patience
    gevent.killall(running)


def test_who_finds_no_room_is_sent_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handshakes, "PATIENCE_SECONDS", 0.03)
    turns, (stream, _) = Handshakes(0), memory_pair()
    with pytest.raises(ReadTimeout, match="no room"), turns.turn(stream, 0.05):
        pass
