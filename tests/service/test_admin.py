"""The admin port: what it answers to whom."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http import HTTPStatus

import gevent
import pytest
from gevent import socket

from ptt.log import Log
from ptt.metrics import Counters
from ptt.service import admin
from ptt.service.admin import MAX_REQUEST, Admin, health, parse


@pytest.mark.parametrize(
    ("received", "answer"),
    [
        (b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n", ("GET", "/metrics")),
        (b"HEAD /healthz?x=1 HTTP/1.0\r\n\r\n", ("HEAD", "/healthz")),
        (b"POST /metrics HTTP/1.1\r\n\r\n", HTTPStatus.METHOD_NOT_ALLOWED),
        (b"GET /metrics\r\n\r\n", HTTPStatus.BAD_REQUEST),
        (b"GET /metrics SMTP/1.0\r\n\r\n", HTTPStatus.BAD_REQUEST),
        (b"\x16\x03\x01\x02\x00\r\n\r\n", HTTPStatus.BAD_REQUEST),
        (b"GET / HTTP/1.1\r\n", HTTPStatus.BAD_REQUEST),
        (b"GET /" + b"x" * MAX_REQUEST, HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE),
        (b"", HTTPStatus.BAD_REQUEST),
    ],
)
def test_parse(received: bytes, answer: object) -> None:
    assert parse(received) == answer


class Served:
    """An admin port with answers that a test can change."""

    def __init__(self) -> None:
        self.counters = Counters()
        self.failures: list[str] = []
        self.broken = False
        self.log_lines: list[str] = []
        self.listener = socket.socket()
        self.listener.bind(("127.0.0.1", 0))
        self.listener.listen()
        log = Log("test", fd=-1)
        self.greenlet = gevent.spawn(Admin(self._metrics, self._health, log, self.counters).serve, self.listener)

    def _metrics(self) -> bytes:
        if self.broken:
            raise RuntimeError("broken")
        return b"ptt_x 1\n"

    def _health(self) -> admin.Health:
        return health(self.failures, ["look"], "1", {"queue": "up"})

    def ask(self, request: bytes) -> tuple[int, bytes]:
        with socket.create_connection(self.listener.getsockname(), timeout=5) as sock:
            sock.sendall(request)
            received = b""
            while data := sock.recv(4096):
                received += data
        head, _, body = received.partition(b"\r\n\r\n")
        return int(head.split(b" ")[1]), body


@pytest.fixture
def served() -> Iterator[Served]:
    one = Served()
    yield one
    one.greenlet.kill()
    one.listener.close()


def test_metrics_and_health(served: Served) -> None:
    assert served.ask(b"GET /metrics HTTP/1.1\r\n\r\n") == (200, b"ptt_x 1\n")
    assert served.ask(b"HEAD /metrics HTTP/1.1\r\n\r\n") == (200, b"")
    status, body = served.ask(b"GET /healthz HTTP/1.1\r\n\r\n")
    assert (status, json.loads(body)["status"]) == (200, "degraded")
    served.failures = ["the queue process does not answer"]
    status, body = served.ask(b"GET /healthz HTTP/1.1\r\n\r\n")
    assert (status, json.loads(body)["status"]) == (503, "failed")
    assert json.loads(body)["reasons"] == ["the queue process does not answer", "look"]
    assert served.ask(b"GET /etc/passwd HTTP/1.1\r\n\r\n")[0] == 404


def test_a_fault_of_ours_is_counted_and_the_port_lives_on(served: Served) -> None:
    served.broken = True
    assert served.ask(b"GET /metrics HTTP/1.1\r\n\r\n")[0] == 500
    assert served.counters.counters["ptt_errors_total", ("admin",)] == 1
    served.broken = False
    assert served.ask(b"GET /metrics HTTP/1.1\r\n\r\n")[0] == 200


def test_a_slow_client_is_cut(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admin, "REQUEST_SECONDS", 0.05)
    with socket.create_connection(served.listener.getsockname(), timeout=5) as sock:
        sock.sendall(b"GET /metr")
        assert sock.recv(100) == b""


def test_many_idle_clients_do_not_exhaust_it(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admin, "REQUEST_SECONDS", 0.1)
    idle = [socket.create_connection(served.listener.getsockname()) for _ in range(admin.MAX_CONNECTIONS + 10)]
    try:
        assert served.ask(b"GET /metrics HTTP/1.1\r\n\r\n")[0] == 200
    finally:
        for sock in idle:
            sock.close()
