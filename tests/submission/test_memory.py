"""What one session keeps in memory, whatever its client sends: the bounds of docs/smtp.md, looked at while it runs."""

from __future__ import annotations

import base64
import ipaddress
import pathlib
import ssl
import time
from collections.abc import Iterator
from typing import Any

import gevent
import msgspec
import pytest

from ptt.config import Config
from ptt.log import Log
from ptt.metrics import Counters
from ptt.net.handshakes import Handshakes
from ptt.net.memory import memory_pair
from ptt.net.stream import MAX_READ, PeerClosed, StreamError, TlsStream
from ptt.net.tls import opportunistic_context, server_context
from ptt.smtp.reply import Reply
from ptt.smtp.server import MAX_AUTH_LINE
from ptt.submission import census
from ptt.submission.admission import Admission
from ptt.submission.census import Census
from ptt.submission.limits import MAX_COMMAND_READ, MAX_REPLIES, SMALL_CONTENT, Budget, Seldom
from ptt.submission.listener import server_configs
from ptt.submission.session import Service, Session

MAX_INPUT = MAX_COMMAND_READ + MAX_AUTH_LINE + 2  # a line that is not complete, and what was read last
MAX_OUTPUT = 32 * 1024  # of replies
MAX_OUTPUT_BEHIND = 192 * 1024  # of replies to commands that came with the end of a content
MAX_MESSAGE = 100_000
HELLO = b"EHLO me.example\r\n"
START = HELLO + b"MAIL FROM:<a@b.test>\r\nRCPT TO:<c@d.test>\r\n"


class Greedy:
    """A stream whose client always has all that is asked for, and whose end is looked at before each read."""

    peer = "192.0.2.1:4242"

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self.pieces = pieces
        self.rest = b""
        self.session: Session
        self.most: dict[str, int] = {}
        self.said = b""
        self.reads = 0

    def look(self) -> None:
        smtp: Any = self.session.smtp
        now = {
            "input": len(smtp._in.buffer) - smtp._in.pos,
            "replies": sum(map(len, smtp._out)),
            "counted": self.session._held,
            "content": smtp._intake.held,
        }
        self.most.update({key: max(size, self.most.get(key, 0)) for key, size in now.items()})

    def read(self, most: int, timeout: float) -> bytes:
        self.look()
        self.reads += 1
        while len(self.rest) < most:
            piece = next(self.pieces, b"")
            if not piece:
                break
            self.rest += piece
        data, self.rest = self.rest[:most], self.rest[most:]
        return data

    def write(self, data: bytes, timeout: float) -> None:
        self.look()
        self.most["write"] = max(len(data), self.most.get("write", 0))
        self.said = (self.said + data)[-1000:]

    def tls(self) -> None:
        return None

    def start_tls(self, *_: Any, **__: Any) -> Any:
        raise PeerClosed("it says nothing")

    def close(self) -> None: ...


class Accept:
    recipients: Any = None

    def offer(self, _offer: Any) -> Reply:
        return Reply(250, "2.0.0", "queued")


class Logins:
    def verify(self, _user: str, _password: str) -> str:
        return "bad"


def run(pieces: Iterator[bytes], **listen: Any) -> Greedy:
    given = {"address": "127.0.0.1:1", "service": "relay", "tls": "none", "trusted": ["192.0.2.0/24"], **listen}
    smtp = {"max_message_bytes": MAX_MESSAGE}
    config = msgspec.convert({"hostname": "mail.example.org", "listen": [given], "smtp": smtp}, Config)
    plain, hop = server_configs(config, config.listen[0])
    log = Log("test", "error")
    shared: dict[str, Any] = {
        "budget": Budget(0),
        "admission": Admission(config.connections, Census(census.make(1), 0), time.monotonic),
        "handshakes": Handshakes(),
        "seldom": Seldom(log),
    }
    nothing: Any = None
    networks = Admission(config.connections, Census(census.make(1), 0), time.monotonic).exempt
    values: tuple[Any, ...] = (
        config,
        config.listen[0],
        plain,
        hop,
        nothing,
        Logins(),
        nothing,
        Accept(),
        log,
        Counters(),
    )
    service = Service(*values, networks=(*networks, ipaddress.ip_network("192.0.2.0/24")), **shared)
    stream = Greedy(pieces)
    stream.session = Session(service, stream, "192.0.2.1")
    stream.session.serve()
    stream.look()
    return stream


def repeat(piece: bytes, octets: int, first: bytes = b"") -> Iterator[bytes]:
    yield first
    for _ in range(octets // len(piece)):
        yield piece


MIB = 1024 * 1024
WORST = {
    "a line without an end": (b"x" * 4096, b""),
    "NULs": (b"\0" * 4096, b""),
    "bare line ends": (b"\n" * 4096, b""),
    "empty lines": (b"\r\n", b""),
    "lines that are too long": (b"x" * 60_000 + b"\r\n", b""),
    "NOOP": (b"NOOP\r\n", b""),
    "HELP": (b"HELP\r\n", HELLO),
    "RSET": (b"RSET\r\n", b""),
    "EHLO": (b"EHLO x\r\n", b""),
    "EHLO with a long name": (b"EHLO " + b"x" * 250 + b"\r\n", b""),
    "MAIL and RSET": (b"MAIL FROM:<a@b.test>\r\nRSET\r\n", HELLO),
    "recipients": (b"RCPT TO:<c@d.test>\r\n", START),
    "long recipients": (b"RCPT TO:<c@d.test> ORCPT=rfc822;" + b"x" * 1900 + b"\r\n", START),
    "refused recipients": (b"RCPT TO:<c>\r\n", START),
    "AUTH without an end": (b"QUJD" * 1000, HELLO + b"AUTH LOGIN\r\n"),
    "a content without an end": (b"x" * 900 + b"\r\n", START + b"DATA\r\n"),
    "a content of dots": (b".\r", START + b"DATA\r\n"),
    "a content of short lines": (b"x\r\n", START + b"DATA\r\n"),
    "a content of bare line ends": (b"x\n", START + b"DATA\r\n"),
    "a content without lines": (b"x" * 997, START + b"DATA\r\n"),
    "messages": (b"MAIL FROM:<a@b.test>\r\nRCPT TO:<c@d.test>\r\nDATA\r\nx\r\n.\r\n", HELLO),
    "chunks": (b"BDAT 1000\r\n" + b"y" * 1000, START),
    "chunks without octets": (b"BDAT 0\r\n", START),
    "a chunk without an end": (b"y" * 1000, START + b"BDAT 99999999\r\n"),
    "chunks that are out of place": (b"BDAT 3\r\nabc", b""),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", WORST)
def test_the_worst_clients(name: str) -> None:
    piece, first = WORST[name]
    stream = run(repeat(piece, MIB // 2, first))
    assert stream.said
    assert stream.most["input"] <= (MAX_READ if name == "messages" else MAX_INPUT)
    assert max(stream.most["replies"], stream.most["write"]) <= MAX_OUTPUT
    assert stream.most["content"] <= SMALL_CONTENT + MAX_READ  # the budget of the worker is used up
    assert stream.most["counted"] <= SMALL_CONTENT
    assert len(stream.session.recipients) <= stream.session.service.config.smtp.max_recipients


def test_commands_behind_a_content() -> None:
    """They came with its octets, so there may be more of them: the most replies that a group can have."""
    many = b"RCPT TO:<c@d>\r\n" * 4200
    stream = run(iter([START + b"DATA\r\n" + b"x\r\n" * 3000 + b".\r\nMAIL FROM:<a@b>\r\n" + many]))
    assert MAX_OUTPUT < stream.most["write"] <= MAX_OUTPUT_BEHIND


def test_replies_to_many_commands_are_written_in_between() -> None:
    """A group of a thousand recipients: the replies do not pile up until all of them were looked at."""
    stream = run(repeat(b"RCPT TO:<c@d.test>\r\n", 20 * 1000, START))
    assert stream.most["write"] < 100 * (MAX_REPLIES + 10)


def test_tls_keeps_a_record_and_what_was_read(certificates: dict[str, pathlib.Path]) -> None:
    context = server_context(str(certificates["mx"]), str(certificates["mx.key"]))
    ours, theirs = memory_pair()
    making = gevent.spawn(theirs.start_tls, context, 5.0, server_side=True)
    client = ours.start_tls(opportunistic_context(), 5.0, server_side=False)
    server = making.get(timeout=5)
    assert isinstance(server, TlsStream)
    sender = gevent.spawn(client.write, b"x" * (2 * MIB), 5.0)
    most = taken = 0
    while taken < 2 * MIB:
        taken += len(server.read(100, 5.0))
        most = max(most, server._received.pending + server._object.pending())
        assert server._to_send.pending == 0
    sender.get(timeout=5)
    assert MAX_READ / 2 < most <= MAX_READ + 2 * 17 * 1024


def test_a_handshake_of_garbage_keeps_nothing(certificates: dict[str, pathlib.Path]) -> None:
    context: ssl.SSLContext = server_context(str(certificates["mx"]), str(certificates["mx.key"]))
    hello = b"\x16\x03\x01\x40\x00" + b"\x01\xff\xff\xff" + b"x" * (0x4000 - 4)  # a message of 16 MiB, it says
    ours, theirs = memory_pair()
    sender = gevent.spawn(ours.write, hello + (b"\x16\x03\x01\x40\x00" + b"x" * 0x4000) * 200, 5.0)
    with pytest.raises(StreamError):
        theirs.start_tls(context, 5.0, server_side=True)
    with pytest.raises(StreamError):
        sender.get(timeout=5)


def test_a_login_is_no_larger_than_its_line() -> None:
    line = base64.b64encode(b"\0user\0" + b"p" * 9000) + b"\r\n"
    stream = run(repeat(b"AUTH PLAIN\r\n" + line, MIB, HELLO), service="submission", tls="starttls", trusted=[])
    assert stream.most["input"] <= MAX_INPUT
