"""One message to many kinds of destinations at once: each ends as it should, and none delays another.

Postfix is everybody's MX but for the slow one and the one that greylists; BIND and Unbound are the DNS.
"""

from __future__ import annotations

import contextlib
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

pytestmark = [pytest.mark.peer, pytest.mark.slow]

ZONE = "example.test"
SLOW_SECONDS = 4.0
DEAD, SLOW, GREY = "127.0.7.1", "127.0.7.2", "127.0.7.3"
MX = {
    "normal": ["10 mx1.example.test."],
    "dead-first": ["10 dead.example.test.", "20 mx1.example.test."],
    "slow": ["10 slow.example.test."],
    "grey": ["10 grey.example.test."],
    "strict": ["10 mx1.example.test."],  # its route demands a certificate that is verified
    "null": ["0 ."],
}


class Line(socketserver.StreamRequestHandler):
    """An MX of a few lines."""

    def handle(self) -> None:
        self.say(b"220 mx\r\n")
        for line in self.rfile:
            verb = line[:4].upper()
            if verb == b"DATA":
                self.say(b"354 go\r\n")
                while self.rfile.readline() not in (b".\r\n", b""):
                    pass
            if verb == b"QUIT":
                return self.say(b"221 bye\r\n")
            self.say(self.answer(verb))
        return None

    def answer(self, verb: bytes) -> bytes:
        return b"250 2.0.0 ok\r\n"

    def say(self, reply: bytes) -> None:
        with contextlib.suppress(OSError):
            self.wfile.write(reply)


class Slow(Line):
    def say(self, reply: bytes) -> None:
        time.sleep(SLOW_SECONDS / 4)  # greeting, EHLO, MAIL, ...: a real server's delay, not a wait of the test
        super().say(reply)


class Grey(Line):
    def answer(self, verb: bytes) -> bytes:
        if verb == b"RCPT" and not self.server.seen.is_set():  # type: ignore[attr-defined]
            self.server.seen.set()  # type: ignore[attr-defined]
            return b"450 4.2.0 greylisted, come back\r\n"
        return super().answer(verb)


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, address: tuple[str, int], handler: type[Line]) -> None:
        super().__init__(address, handler)
        self.seen = threading.Event()


@pytest.fixture
def others(postfix_mx: Any) -> Iterator[None]:
    """The slow MX, the one that greylists, and one that answers no SYN: its queue of connections is full."""
    with contextlib.ExitStack() as stack:
        for ip, handler in ((SLOW, Slow), (GREY, Grey)):
            server = stack.enter_context(Server((ip, postfix_mx.port), handler))
            threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
            stack.callback(server.shutdown)
        dead = stack.enter_context(contextlib.closing(socket.socket()))
        dead.bind((DEAD, postfix_mx.port))
        dead.listen(0)
        for _ in range(4):
            filler = stack.enter_context(contextlib.closing(socket.socket()))
            filler.setblocking(False)
            filler.connect_ex((DEAD, postfix_mx.port))
        yield


@pytest.fixture
def service(make_service: Callable[..., Any], peers: Callable[[Any], None], named: Any, others: None) -> Iterator[Any]:
    for name, ip in (("dead", DEAD), ("slow", SLOW), ("grey", GREY)):
        named.put(ZONE, f"{name}.{ZONE}", 60, "A", ip)
    for name, records in MX.items():
        named.put(ZONE, f"{name}.{ZONE}", 60, "MX", *records)

    def change(document: Any) -> None:
        peers(document)
        document["relay"]["connect_seconds"] = 3.0

    made = make_service(change, start=False)
    made.ptt("route", "add", f"strict.{ZONE}", "mx", "--tls", "verify")
    made.start()
    yield made
    for name in MX:
        named.put(ZONE, f"{name}.{ZONE}", 60, "MX")


def test_each_ends_as_it_should_and_none_delays_another(service: Any, postfix_mx: Any) -> None:
    client = service.client()
    with pytest.raises(Exception, match=r"5\.1\.10"):
        client.sendmail(service.user, [f"a@null.{ZONE}"], b"Subject: x\r\n\r\nx\r\n")
    client.close()
    text = f"From: <{service.user}>\r\nSubject: all\r\nX-Token: destinations\r\n\r\nhello\r\n".encode()
    began = time.time()
    shown = service.submit([f"a@{name}.{ZONE}" for name in MX if name != "null"], text)

    def ended(name: str, outcome: str, *phases: str) -> Any:
        wanted = {"event": "attempt", "id": shown, "lane": f"{name}.{ZONE}", "outcome": outcome}
        return service.wait_for(
            lambda line: wanted.items() <= line.items() and (not phases or line["phase"] in phases),
            f"{name}: {outcome}",
        )

    normal = ended("normal", "delivered")
    assert normal["tls"]
    assert ended("dead-first", "deferred")["phase"] == "connect"
    assert ended("dead-first", "delivered")["peer"].startswith("mx1.")
    slow = ended("slow", "delivered")
    assert slow["seconds"] > SLOW_SECONDS
    assert "greylisted" in ended("grey", "deferred")["reply"]
    ended("grey", "delivered")
    assert "certificate not accepted" in ended("strict", "deferred", "STARTTLS", "TLS")["reply"]
    assert len(postfix_mx.wait(b"X-Token: destinations", 2)) == 2  # normal and dead-first
    order = [
        line["lane"].partition(".")[0] for line in service.log_lines() if line.get("id") == shown and "lane" in line
    ]
    assert order.index("normal") < order.index("slow")
    assert time.time() - began > SLOW_SECONDS
