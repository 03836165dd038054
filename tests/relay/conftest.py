"""Scripted peers, a DNS of dictionaries, certificates: what the tests of the relay stand on."""

from __future__ import annotations

import enum
import json
import os
import pathlib
import random
import ssl
import struct
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import gevent
import gevent.pool
import pytest
from dns.rdatatype import RdataType
from gevent import socket

from ptt.config import Config, Tls
from ptt.config import Relay as Settings
from ptt.dns.resolver import Answer, DnsError, NoSuchDomain
from ptt.log import Log
from ptt.message import Envelope, Recipient
from ptt.metrics import Counters
from ptt.net.stream import GeventStream, Stream, StreamError
from ptt.relay.delivery import Relay
from ptt.relay.outcome import Outcome


class Action(enum.Enum):
    """What a peer does in place of an answer."""

    HANG = "hang"
    CUT = "cut"
    RESET = "reset"
    DRIP = "drip"  # lines of a reply without end, each in time


class Peer:
    """An SMTP server on a raw socket that does at each step what it is told.

    ``plans``: for each connection in turn, step -> bytes or Action; the last one stays. Steps: greeting, EHLO, HELO,
    STARTTLS, tls, MAIL, RCPT, DATA, dot, RSET, QUIT, idle (after a message), and "RCPT <address>".
    """

    NORMAL: ClassVar[dict[str, Any]] = {
        "greeting": b"220 peer\r\n",
        "EHLO": b"250-peer\r\n250-PIPELINING\r\n250-SIZE 10000000\r\n250-8BITMIME\r\n250 ENHANCEDSTATUSCODES\r\n",
        "HELO": b"250 peer\r\n",
        "STARTTLS": b"220 go\r\n",
        "MAIL": b"250 2.1.0 ok\r\n",
        "RCPT": b"250 2.1.5 ok\r\n",
        "DATA": b"354 go\r\n",
        "dot": b"250 2.0.0 queued as 42\r\n",
        "RSET": b"250 2.0.0 ok\r\n",
        "QUIT": b"221 2.0.0 bye\r\n",
    }
    Plan = dict[str, Any]  # bytes, an Action, or a list of them for the first time, the second, ...

    def __init__(self, ip: str, port: int, *plans: Plan, tls: ssl.SSLContext | None = None) -> None:
        self.plans = list(plans) or [{}]
        self.context = tls
        self.connections = 0
        self.commands: list[str] = []
        self.contents: list[bytes] = []
        self.clients: list[str] = []
        unix = ip.startswith("/")
        self._listener = socket.socket(socket.AF_UNIX if unix else socket.AF_INET)
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.bind(ip if unix else (ip, port))
        self._listener.listen(128)
        self.port = 0 if unix else self._listener.getsockname()[1]
        self._greenlets = gevent.pool.Group()
        self._greenlets.spawn(self._accept)

    def close(self) -> None:
        self._greenlets.kill()
        self._listener.close()

    def _accept(self) -> None:
        while True:
            sock, address = self._listener.accept()
            plan = self.plans[min(self.connections, len(self.plans) - 1)]
            self.connections += 1
            self.clients.append(address[0] if address else "")
            self._greenlets.spawn(self._serve, GeventStream(sock, str(address)), sock, {**self.NORMAL, **plan})

    def _serve(self, stream: Stream, sock: socket.socket, plan: Plan) -> None:
        try:
            self._dialog(stream, sock, plan)
        except (StreamError, EOFError):
            pass
        finally:
            sock.close()

    def _dialog(self, stream: Stream, sock: socket.socket, plan: Plan) -> None:
        self._do(stream, sock, plan["greeting"])
        data = b""
        while True:
            data, line = self._until(stream, data, b"\r\n")
            command = line.decode()
            self.commands.append(command)
            verb = command[:4].upper() if command.upper() != "STARTTLS" else "STARTTLS"
            key = "RCPT " + command.partition("<")[2].partition(">")[0]
            answer = self._answer(plan, key if key in plan else verb)
            self._do(stream, sock, answer)
            if answer == b"220 go\r\n":
                self._do(stream, sock, plan.get("tls", b""))
                stream = stream.start_tls(self.context, 5, server_side=True)  # type: ignore[arg-type]
            if answer == b"354 go\r\n":
                data, content = self._until(stream, b"\r\n" + data, b"\r\n.\r\n")
                self.contents.append(content[2:] + b"\r\n")
                self._do(stream, sock, self._answer(plan, "dot"))
                self._do(stream, sock, plan.get("idle", b""))
            if verb == "QUIT":
                return

    def _answer(self, plan: Plan, key: str) -> bytes | Action:
        answer: Any = plan.get(key, b"500 what?\r\n")
        if isinstance(answer, list):
            answer, plan[key] = answer[0], answer[1:] or answer
        return answer  # type: ignore[no-any-return]

    def _do(self, stream: Stream, sock: socket.socket, what: bytes | Action) -> None:
        if what is Action.HANG:
            gevent.sleep(60)
        elif what is Action.DRIP:
            while True:
                stream.write(b"250-wait\r\n", 5)
                gevent.sleep(0.02)
        elif what is Action.RESET:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if isinstance(what, Action):
            raise EOFError
        if what:
            stream.write(what, 5)

    def _until(self, stream: Stream, data: bytes, end: bytes) -> tuple[bytes, bytes]:
        while end not in data:
            more = stream.read(65536, 60)
            if not more:
                raise EOFError
            data += more
        line, _, rest = data.partition(end)
        return rest, line


class Dns:
    """DNS from a dictionary: domain -> MX records or an error, host -> addresses or an error. As ``Resolver``."""

    def __init__(self) -> None:
        self.records: dict[str, list[tuple[int, str]] | type[DnsError]] = {}
        self.hosts: dict[str, list[str] | type[DnsError]] = {}
        self.asked: list[str] = []
        self.ahead: list[str] = []
        self.texts: dict[str, list[bytes]] = {}
        self.answers: dict[tuple[str, str], Answer | type[DnsError]] = {}  # with what is said of DNSSEC

    def mx(self, name: str) -> list[tuple[int, str]]:
        self.asked.append(name)
        found = self.records.get(name, NoSuchDomain)
        if isinstance(found, type):
            raise found(f"{name}: {found.__name__}")
        return list(found)

    def addresses(self, host: str) -> list[str]:
        self.asked.append(host)
        found = self.hosts.get(host, NoSuchDomain)
        if isinstance(found, type):
            raise found(f"{host}: {found.__name__}")
        return list(found)

    addresses_early = addresses

    def txt(self, name: str) -> list[bytes]:
        found = self.texts.get(name)
        if found is None:
            raise NoSuchDomain(name)
        return found

    def ask_txt(self, name: str) -> None:
        self.ahead.append(name)

    def answer(self, name: str, rdtype: RdataType) -> Answer:
        found: Any = self.answers.get((name, rdtype.name))
        if isinstance(found, type):
            raise found(f"{name}: {found.__name__}")
        return found if found is not None else Answer([], False)


@pytest.fixture
def action() -> type[Action]:
    return Action


@pytest.fixture
def dns() -> Dns:
    """``example.org`` with one MX, mx.example.org, at 127.0.0.1."""
    made = Dns()
    made.records["example.org"] = [(10, "mx.example.org")]
    made.hosts["mx.example.org"] = ["127.0.0.1"]
    return made


@pytest.fixture
def peer() -> Iterator[Callable[..., Peer]]:
    """A function: ``peer(*plans, ip="127.0.0.1", port=0, tls=None)``. All are closed at the end."""
    made: list[Peer] = []

    def make(*plans: Peer.Plan, ip: str = "127.0.0.1", port: int = 0, tls: ssl.SSLContext | None = None) -> Peer:
        made.append(Peer(ip, port, *plans, tls=tls))
        return made[-1]

    yield make
    for one in made:
        one.close()


class Sender:
    """A relay and what it needs; ``send`` delivers a message to recipients of one lane."""

    def __init__(self, relay: Relay, lines: Callable[[], list[dict[str, Any]]]) -> None:
        self.relay = relay
        self.log = lines
        self.marks = 0

    def mark(self) -> None:
        self.marks += 1

    def send(
        self,
        *addresses: str,
        lane: str = "example.org",
        content: bytes = b"Subject: test\r\n\r\nhello\r\n.dot\r\n",
        envelope: Envelope | None = None,
    ) -> list[Outcome]:
        recipients = [(n, Recipient(a)) for n, a in enumerate(addresses or ["you@example.org"], 1)]
        about = envelope or Envelope("me@example.net", 1, eightbit=True)
        with gevent.Timeout(20):
            outcomes = self.relay.deliver(lane, about, "shown", recipients, [b"X: y\r\n", content], self.mark)
        assert sorted(outcomes) == [n for n, _ in recipients]
        return [outcomes[n] for n, _ in recipients]


@pytest.fixture
def sender(dns: Dns, tmp_path: pathlib.Path, rng: random.Random) -> Iterator[Callable[..., Sender]]:
    """A function: ``sender(port, **settings of [relay])`` makes a relay on ``dns``. ``waits``: all time-outs."""
    made: list[Relay] = []
    log = os.open(tmp_path / "log", os.O_RDWR | os.O_CREAT | os.O_APPEND)

    def lines() -> list[dict[str, Any]]:
        return [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]

    def make(
        port: int = 25,
        waits: float = 5.0,
        role: Any = "all",
        files: Tls | None = None,
        overrides: Any = lambda _: None,
        **settings: Any,
    ) -> Sender:
        times = dict.fromkeys(("connect_seconds", "command_seconds", "data_seconds", "final_dot_seconds"), waits)
        relay = Settings(**{"mx_port": port, "allow_private": True, **times, **settings})
        config = Config(hostname="us.example.net", role=role, relay=relay, tls=files or Tls())
        made.append(Relay(config, dns, Log("test", "debug", log), Counters(), rng, overrides=overrides))
        return Sender(made[-1], lines)

    yield make
    for relay in made:
        relay.close()
    os.close(log)
