"""Messages that we did not write, through submission and a relay: what comes out is what went in, but for the fields
that we add and take out; or it is refused with a reason.
"""

from __future__ import annotations

import collections
import ipaddress
import pathlib
import re
import time
from collections.abc import Sequence
from typing import Any

import gevent
import msgspec
import pytest
from ptt_queue.types import PutResult

from ptt.config import Config
from ptt.log import Log
from ptt.message import Envelope, Recipient
from ptt.metrics import Counters
from ptt.net.handshakes import Handshakes
from ptt.net.memory import memory_pair
from ptt.net.stream import Stream
from ptt.plan import UNCONDITIONAL, Conditions
from ptt.smtp import NEED_DATA, ClientSession, MailParams, MessageDone, Ready
from ptt.submission import census
from ptt.submission.accept import Accept
from ptt.submission.admission import Admission
from ptt.submission.census import Census
from ptt.submission.limits import Budget, Seldom
from ptt.submission.listener import server_configs
from ptt.submission.session import Service, Session

USER = "anna@ours.test"
MESSAGES = ("flanker/bounce", "cpython_email", "mail_parser", "ruby_mail")
NO_MESSAGE = ("SOURCE.txt", "MIT-LICENSE", "COPYING")
ADDED = re.compile(rb"(?:(?:Received|Message-ID|Date|From): [^\r\n]*\r\n(?:[ \t][^\r\n]*\r\n)*)+")
TAKEN_OUT = (b"bcc", b"resent-bcc", b"return-path", b"ptt-submission-key")


class Everything:
    """The git database: everybody may be everything."""

    commit = "c" * 40

    def may_send_as(self, user: str, address: str) -> bool:
        return True

    def expand(self, address: str) -> None:
        return None

    our_domain = route = limits = expand

    def may_post(self, user: str, address: str) -> bool:
        return True

    def signing_domain(self, address_domain: str) -> str:
        return ""


class Host:
    """One host of ours without TLS: its sessions, and the bodies that its queue got."""

    def __init__(self, service: str) -> None:
        listen = {"address": "127.0.0.1:1", "service": service, "tls": "starttls"}
        listen |= {"tls": "none", "trusted": ["192.0.2.0/24"]} if service == "relay" else {}
        config = msgspec.convert({"hostname": f"{service}.ours.test", "listen": [listen]}, Config)
        self.stored: list[tuple[Envelope, bytes]] = []
        log, counters, directory = Log("test", "error"), Counters(), Everything()
        admission = Admission(config.connections, Census(census.make(1), 0), time.monotonic)
        plain, hop = server_configs(config, config.listen[0])
        plain = plain.__class__(**{**vars(plain), "require_tls": False, "require_auth": False, "auth": ()})
        nothing: Any = None
        self.service = Service(
            config,
            config.listen[0],
            plain,
            hop,
            nothing,
            nothing,
            directory,
            Accept(config, self, directory, log, counters),
            log,
            counters,
            tuple(ipaddress.ip_network(n) for n in config.listen[0].trusted),
            Budget(),
            admission,
            Handshakes(),
            Seldom(log),
        )

    def accept(
        self,
        id: bytes,
        envelope: Envelope,
        recipients: Sequence[Recipient],
        body: bytes,
        *,
        conditions: Conditions = UNCONDITIONAL,
    ) -> PutResult:
        self.stored.append((envelope, body))
        return PutResult(None, [])

    def connect(self) -> tuple[Stream, gevent.Greenlet]:
        ours, theirs = memory_pair(("192.0.2.1:1", "192.0.2.2:25"))
        session = Session(self.service, theirs, "192.0.2.1")
        session.user = USER if self.service.listen.service == "submission" else ""
        return ours, gevent.spawn(session.serve)

    def submit(self, content: bytes) -> bytes:
        """As a client that is not ours does it. The last reply."""
        stream, serving = self.connect()
        commands = [b"EHLO pc.test", f"MAIL FROM:<{USER}> BODY=8BITMIME".encode(), b"RCPT TO:<bob@else.test>", b"DATA"]
        stuffed = re.sub(rb"(?m)^\.", b"..", content)
        reply = stream.read(65536, 5.0)
        for data in [*(c + b"\r\n" for c in commands), stuffed + b".\r\n"]:
            assert reply[:1] in b"23", reply
            for n in range(0, len(data), 100_000):
                stream.write(data[n : n + 100_000], 5.0)
            reply = stream.read(65536, 5.0)
        stream.close()
        serving.join(5)
        return reply

    def relay(self, envelope: Envelope, body: bytes) -> None:
        """As our relay does it."""
        stream, serving = self.connect()
        client = ClientSession("submission.ours.test")
        while not isinstance(event := client.next_event(), MessageDone):
            if isinstance(event, Ready):
                client.send_message(envelope.sender, ["bob@else.test"], [body], MailParams(body="8BITMIME"))
            elif event is NEED_DATA:
                if data := client.data_to_send():
                    stream.write(data, 5.0)
                client.receive_data(stream.read(65536, 5.0))
        assert [result.reply.code for result in event.results] == [250]
        stream.close()
        serving.join(5)


def expected(content: bytes) -> bytes:
    """The end of what must come out: field by field, in another way than the code does it."""
    header, blank, text = content.partition(b"\r\n\r\n")
    if content.startswith(b"\r\n"):
        return content
    fields = re.split(rb"\r\n(?![ \t])", header.removesuffix(b"\r\n"))
    if not re.match(rb"[!-9;-~]+[ \t]*:", fields[0]):
        return b"\r\n" + content
    kept = [f for f in fields if f.partition(b":")[0].rstrip().lower() not in TAKEN_OUT]
    return b"".join(f + b"\r\n" for f in kept) + (b"\r\n" + text if blank else b"")


def messages(directory: pathlib.Path) -> list[pathlib.Path]:
    found = [p for p in sorted(directory.rglob("*")) if p.is_file() and p.suffix != ".json"]
    return [p for p in found if p.name not in NO_MESSAGE]


@pytest.mark.parametrize("name", MESSAGES)
def test_what_goes_in_comes_out(name: str, corpora: pathlib.Path, record_property: Any) -> None:
    first, last = Host("submission"), Host("relay")
    refused: collections.Counter[str] = collections.Counter()
    for path in messages(corpora / name):
        content = re.sub(rb"\r\n|\r|\n", b"\r\n", path.read_bytes())
        content += b"" if content.endswith(b"\r\n") else b"\r\n"
        reply = first.submit(content)
        if reply[:3] != b"250":
            assert reply[:10] in (b"550 5.6.0 ", b"554 5.4.6 "), (path, reply)
            assert len(reply) > 30, "a person must know what to do"
            refused[re.sub(r"\d+|'.*'", "N", reply.decode().strip())] += 1
            continue
        last.relay(*first.stored[-1])
        arrived, wanted = last.stored[-1][1], expected(content)
        assert arrived.endswith(wanted), path
        assert ADDED.fullmatch(arrived.removesuffix(wanted)), (path, arrived[:500])
    assert len(first.stored) == len(last.stored)
    assert sum(refused.values()) + len(last.stored) == len(messages(corpora / name)) > 5
    assert len(last.stored) > len(messages(corpora / name)) / 2, refused
    record_property("carried", len(last.stored))
    record_property("refused", dict(refused))
    print(f"{name}: {len(last.stored)} carried, {sum(refused.values())} refused: {dict(refused)}")
