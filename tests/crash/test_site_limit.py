"""The connections of a site, counted where they arrive: never more than the limit, whichever worker dies."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import selectors
import signal
import smtplib
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from ptt.cli.sandbox import MX_HOST, Sandbox

LIMIT = 3
MESSAGES = 100
KILLS = 4


class CountingSink:
    """An SMTP server that answers what it must, and knows how many connections it has had at once.

    What has been closed is looked at before what is new, so a connection that ended first is never counted with one
    that began later.
    """

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=100)
        self.port: int = self.listener.getsockname()[1]
        self.most = self.connections = 0
        self.tokens: set[str] = set()
        self._rest: dict[socket.socket, bytes] = {}
        self._stop = False
        self._selector = selectors.DefaultSelector()
        self._selector.register(self.listener, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stop = True
        self._thread.join(5)
        for sock in [self.listener, *self._rest]:
            sock.close()
        self._selector.close()

    def _run(self) -> None:
        while not self._stop:
            ready = [key.fileobj for key, _ in self._selector.select(0.1)]
            if self.listener in ready:
                ready = [key.fileobj for key, _ in self._selector.select(0)]
            for sock in ready:
                if sock is not self.listener:
                    self._read(sock)  # type: ignore[arg-type]
            if self.listener in ready:
                sock, _ = self.listener.accept()
                self._rest[sock] = b""
                self._selector.register(sock, selectors.EVENT_READ)
                self.connections += 1
                self.most = max(self.most, len(self._rest))
                self._say(sock, b"220 sink\r\n")

    def _read(self, sock: socket.socket) -> None:
        data = b""
        with contextlib.suppress(OSError):
            data = sock.recv(65536)
        if not data:
            self._selector.unregister(sock)
            sock.close()
            del self._rest[sock]
            return
        *lines, self._rest[sock] = (self._rest[sock] + data).split(b"\r\n")
        for line in lines:
            word = line[:4].upper()
            if line.startswith(b"Subject: "):
                self.tokens.add(line[9:].decode())
            elif word == b"DATA":
                self._say(sock, b"354 go on\r\n")
            elif word in (b"EHLO", b"MAIL", b"RCPT", b"RSET") or line == b".":
                self._say(sock, b"250 ok\r\n")

    @staticmethod
    def _say(sock: socket.socket, text: bytes) -> None:
        with contextlib.suppress(OSError):
            sock.send(text)


class Limited(Sandbox):
    """All domains are of one site, whose connections are limited."""

    sink_port = 0

    def adapt(self, document: Any) -> None:
        super().adapt(document)
        for listen in document["listen"]:
            if listen["service"] == "relay":
                listen["tls"] = "none"
                listen["trusted"] = ["127.0.0.0/8"]
        limits = [{"match": [MX_HOST], "connections": LIMIT, "messages_per_connection": 5}]
        document["relay"].update({"mx_port": self.sink_port, "tls": "none", "limits": limits})

    def spawn_sink(self, *options: str) -> None:
        """The counting one is there."""

    def workers(self) -> list[int]:
        state = json.loads((pathlib.Path(self.config.run) / "supervisor.json").read_text())
        return [p["pid"] for p in state["processes"] if p["kind"] == "worker"]


@pytest.fixture
def world() -> Iterator[tuple[Limited, CountingSink]]:
    sink = CountingSink()
    with tempfile.TemporaryDirectory(prefix="ptt-") as directory:
        path = pathlib.Path(directory)
        path.chmod(0o755)
        service = Limited(path / "ptt", pool=4, retry_seconds=0.5)
        service.sink_port = sink.port
        service.prepare()
        try:
            service.spawn_stand_ins(store=False)
            service.start_service()
            yield service, sink
        finally:
            service.stop()
            sink.stop()


def submit(service: Limited, count: int) -> None:
    """Each message to a domain of its own, over again when a worker dies with the connection."""
    host, port = service.address("relay", "none")
    left = [f"token-{n}" for n in range(count)]
    deadline = time.monotonic() + 60
    while left and time.monotonic() < deadline:
        with contextlib.suppress(OSError, smtplib.SMTPException), smtplib.SMTP(host, port, timeout=10) as client:
            while left:
                to = f"someone@{left[-1]}.example"
                client.sendmail("a@sender.example", [to], f"Subject: {left[-1]}\r\n\r\nhello\r\n")
                left.pop()
    assert not left


@pytest.mark.slow
def test_never_more_connections_than_the_limit(world: tuple[Limited, CountingSink]) -> None:
    service, sink = world
    sender = threading.Thread(target=submit, args=(service, MESSAGES))
    sender.start()
    for n in range(KILLS):
        goal = (n + 1) * MESSAGES // (KILLS + 2)
        wait_until(lambda goal=goal: len(sink.tokens) >= goal)  # type: ignore[misc]
        os.kill(service.workers()[n % 4], signal.SIGKILL)
    sender.join(60)
    wait_until(lambda: len(sink.tokens) == MESSAGES)
    print(sink.connections, "connections")
    assert sink.most == LIMIT


def wait_until(condition: Any) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
