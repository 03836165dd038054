"""What a slow, greedy or stubborn client may cost."""

from __future__ import annotations

import ipaddress
import types
from typing import Any

import gevent
import msgspec
import pytest

from ptt.config import Config
from ptt.log import Log
from ptt.metrics import Counters
from ptt.net.handshakes import Handshakes
from ptt.net.memory import memory_pair
from ptt.net.stream import Stream, StreamError
from ptt.smtp.reply import Reply
from ptt.submission import census
from ptt.submission.admission import Admission
from ptt.submission.census import Census
from ptt.submission.limits import (
    COMMAND_SECONDS,
    LOG_SECONDS,
    LOGIN_SECONDS,
    MAX_REFUSED_SENDERS,
    MESSAGE_SECONDS,
    MIN_BYTES_PER_SECOND,
    SMALL_CONTENT,
    Budget,
    Pace,
    Seldom,
)
from ptt.submission.listener import server_configs
from ptt.submission.policy import FULL_SECONDS
from ptt.submission.session import Service, Session

MIB = 1024 * 1024
TRUSTED = ({"address": "127.0.0.1:1", "service": "relay", "tls": "none", "trusted": ["192.0.2.0/24"]},)


class Accept:
    """Takes every message, when it is told to; notes how much is held meanwhile."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def offer(self, offer: Any) -> Reply:
        self.sizes.append(sum(map(len, offer.chunks)))
        return Reply(250, "2.0.0", "queued")


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Place:
    """A listener without a socket."""

    def __init__(self, budget: int = 4 * MIB, **listen: Any) -> None:
        config = msgspec.convert({"hostname": "mail.example.org", "listen": [{**TRUSTED[0], **listen}]}, Config)
        plain, hop = server_configs(config, config.listen[0])
        networks = tuple(ipaddress.ip_network(n) for n in config.listen[0].trusted)
        self.accept, self.clock, self.budget = Accept(), Clock(), Budget(budget)
        nothing: Any = None
        log = Log("test", "error")
        self.admission = Admission(config.connections, Census(census.make(1), 0), self.clock)
        self.service = Service(
            config,
            config.listen[0],
            plain,
            hop,
            nothing,
            nothing,
            nothing,
            self.accept,  # type: ignore[arg-type]
            log,
            Counters(),
            networks,
            self.budget,
            self.admission,
            Handshakes(),
            Seldom(log),
            self.clock,
        )
        self.greenlets: list[gevent.Greenlet] = []

    def client(self, address: str = "192.0.2.1") -> Stream:
        ours, theirs = memory_pair((f"{address}:1", "192.0.2.2:25"))
        session = Session(self.service, theirs, address)
        self.greenlets.append(gevent.spawn(session.serve))
        assert read(ours).startswith(b"220 ")
        return ours


def read(stream: Stream) -> bytes:
    return stream.read(65536, 2.0)


def ask(stream: Stream, *lines: bytes) -> bytes:
    for line in lines:
        stream.write(line + b"\r\n", 2.0)
        reply = read(stream)
    return reply


def start(stream: Stream) -> None:
    assert ask(stream, b"HELO me", b"MAIL FROM:<a@b.test>", b"RCPT TO:<c@d.test>", b"DATA").startswith(b"354")


LINE = b"x" * 998 + b"\r\n"


def send(stream: Stream, octets: int) -> None:
    block = LINE * 64
    for _ in range(octets // len(block)):
        stream.write(block, 2.0)
        gevent.sleep(0)


def test_many_large_messages_at_once_do_not_fill_the_memory() -> None:
    place = Place(budget=4 * MIB)
    clients = [place.client() for _ in range(4)]
    for one in clients:
        start(one)
    refused = []
    for one in clients:
        try:
            send(one, 2 * MIB)
        except StreamError:
            refused.append(one)
    assert place.budget.held <= 4 * MIB
    assert refused
    assert read(refused[0]).startswith(b"421 4.3.1 ")
    small = place.client()
    start(small)
    assert ask(small, b"Subject: x\r\n\r\nhello\r\n.").startswith(b"250")  # small mail is never refused for that
    first = next(c for c in clients if c not in refused)
    assert ask(first, b".").startswith(b"250")
    for one in clients:
        one.close()
    gevent.joinall(place.greenlets[:4], timeout=2)
    assert place.budget.held == 0


def test_what_is_thrown_away_does_not_count() -> None:
    place = Place()
    client = place.client()
    start(client)
    assert ask(client, b"bare\nline" + b"x" * 500 + b"\r\n.").startswith(b"550")
    assert ask(client, b"NOOP").startswith(b"250")
    assert place.budget.held == 0
    client.close()


def test_a_client_that_drips_is_told_to_go() -> None:
    place = Place()
    client = place.client()
    client.write(b"HE", 2.0)
    gevent.sleep(0)
    place.clock.now += COMMAND_SECONDS - 1
    client.write(b"L", 2.0)
    gevent.sleep(0)
    place.clock.now += 2
    client.write(b"O", 2.0)
    assert read(client).startswith(b"421 4.4.2 ")


def test_a_content_that_drips_is_cut() -> None:
    pace = Pace(0.0)
    now = 0.0
    while pace.left(now) > 0:
        now += 60.0
        pace.content(1, now)
    assert now < 2 * COMMAND_SECONDS
    pace = Pace(0.0)
    for n in range(1000):  # 1,000 octets a second go on as long as they like
        pace.content(1000, float(n))
    assert pace.left(1000.0) > 200


def test_commands_that_drip_in_for_ever_are_cut() -> None:
    pace, now = Pace(0.0), 0.0
    while pace.left(now) > 0:
        now += COMMAND_SECONDS - 1
        pace.progress(now)
    assert now < MESSAGE_SECONDS + COMMAND_SECONDS
    pace, now = Pace(0.0), 0.0
    for _ in range(100):
        now += COMMAND_SECONDS - 1
        assert pace.left(now) > 0
        pace.progress(now)
        pace.message(now)
    for _ in range(2 * int(MESSAGE_SECONDS)):  # a content at the slowest rate that is allowed takes as long as it takes
        now += 1
        pace.content(int(MIN_BYTES_PER_SECOND), now)
    assert pace.left(now) > 0


def test_who_is_refused_often_does_not_fill_the_log(capfd: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    seldom = Seldom(Log("test"), clock)
    for kind in ("address", "address", "network", "address"):
        seldom.warning("connection refused", kind, client="192.0.2.1", reason=kind)
    clock.now += LOG_SECONDS
    seldom.warning("connection refused", "address", client="192.0.2.1", reason="address")
    lines = capfd.readouterr().err.splitlines()
    assert ['left_out":0' in line for line in lines] == [True, True, False]
    assert 'left_out":2' in lines[2]


def test_who_does_not_log_in_leaves() -> None:
    place = Place(service="submission", tls="starttls", trusted=[])
    client = place.client()
    for _ in range(3):
        place.clock.now += LOGIN_SECONDS / 4
        assert ask(client, b"NOOP").startswith(b"250")
    place.clock.now += LOGIN_SECONDS / 3
    client.write(b"NOOP\r\n", 2.0)
    assert b"421 4.4.2 " in read(client) + client.read(65536, 0.1)


def test_who_insists_on_a_refused_sender_is_told_to_go() -> None:
    place = Place()
    client = place.client("198.51.100.1")
    ask(client, b"HELO me")
    replies = [ask(client, b"MAIL FROM:<a@b.test>") for _ in range(MAX_REFUSED_SENDERS)]
    assert {r[:3] for r in replies[:-1]} == {b"550"}
    assert replies[-1].startswith(b"421 4.7.0 ")
    assert client.read(10, 2.0) == b""


@pytest.mark.parametrize("size", [1, SMALL_CONTENT])
def test_small_contents_always_fit(size: int) -> None:
    budget = Budget(0)
    assert budget.change(0, size)
    assert not budget.change(size, SMALL_CONTENT + 1)
    assert budget.held == size
    assert budget.change(size, 0)
    assert budget.held == 0


def test_a_full_queue_takes_no_mail() -> None:
    place = Place()
    pressure = place.service.pressure = types.SimpleNamespace(refusing="", refusing_seconds=0.0)
    client = place.client()
    ask(client, b"HELO me")
    pressure.refusing = "bytes"
    assert ask(client, b"MAIL FROM:<a@b.test>").startswith(b"452 4.3.1 ")
    ours, theirs = memory_pair(("192.0.2.1:1", "192.0.2.2:25"))
    place.greenlets.append(gevent.spawn(Session(place.service, theirs, "192.0.2.1").serve))
    assert read(ours).startswith(b"421 4.3.1 ")  # a role with mail for us comes again later
    assert ours.read(10, 2.0) == b""
    pressure.refusing = ""
    assert ask(client, b"MAIL FROM:<a@b.test>").startswith(b"250")
    ask(client, b"RSET")
    pressure.refusing, pressure.refusing_seconds = "bytes", FULL_SECONDS + 1
    assert ask(client, b"MAIL FROM:<a@b.test>").startswith(b"421 4.3.1 ")
    assert client.read(10, 2.0) == b""
