"""Policies of MTA-STS from a real HTTPS server on loopback that does what it is told."""

from __future__ import annotations

import datetime
import os
import pathlib
import ssl
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import gevent.pool
import pytest
from gevent import socket

from ptt.dns.resolver import TemporaryFailure
from ptt.log import Log
from ptt.metrics import Counters
from ptt.net.stream import GeventStream, Stream, StreamError
from ptt.net.tls import server_context, verifying_context
from ptt.relay import mtasts
from ptt.relay.mtasts import Policies
from ptt.service.certificates import issue, make_ca

DOMAIN, HOST = "example.org", "mta-sts.example.org"
POLICY = b"version: STSv1\nmode: enforce\nmx: *.example.org\nmax_age: 86400\n"


def response(body: bytes = POLICY, status: str = "200 OK", kind: str = "text/plain; charset=utf-8") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


class Web:
    """Answers each connection with ``answer``: bytes, or what is called with the stream."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self.answer: bytes | Callable[[Stream], None] = response()
        self.context = context
        self.requests: list[bytes] = []
        self.connections = 0
        self._listener = socket.socket()
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen(64)
        self.port = self._listener.getsockname()[1]
        self._greenlets = gevent.pool.Group()
        self._greenlets.spawn(self._accept)

    def close(self) -> None:
        self._greenlets.kill()
        self._listener.close()

    def _accept(self) -> None:
        while True:
            sock, _ = self._listener.accept()
            self.connections += 1
            self._greenlets.spawn(self._serve, GeventStream(sock, "client"))

    def _serve(self, stream: Stream) -> None:
        try:
            stream = stream.start_tls(self.context, 5, server_side=True)
            request = b""
            while b"\r\n\r\n" not in request:
                request += stream.read(4096, 5)
            self.requests.append(request)
            if isinstance(self.answer, bytes):
                stream.write(self.answer, 5)
            else:
                self.answer(stream)
        except StreamError:
            pass
        finally:
            stream.close()


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, pathlib.Path]:
    directory = tmp_path_factory.mktemp("web")
    now = datetime.datetime.now(datetime.UTC)
    ca, nobody = make_ca("Public CA", now - datetime.timedelta(days=90)), make_ca("Nobody", now)
    made = {
        "good": issue(ca, [HOST], [], now, 30),
        "other name": issue(ca, ["example.org", "www.example.org"], [], now, 30),
        "unknown": issue(nobody, [HOST], [], now, 30),
        "expired": issue(ca, [HOST], [], now - datetime.timedelta(days=60), 30),
    }
    for name, pair in made.items():
        (directory / name).write_bytes(pair.key_pem() + pair.certificate_pem())
    (directory / "ca").write_bytes(ca.certificate_pem())
    return {name: directory / name for name in (*made, "ca")}


def context_of(files: dict[str, pathlib.Path], name: str) -> ssl.SSLContext:
    return server_context(str(files[name]), str(files[name]))


@pytest.fixture
def web(files: dict[str, pathlib.Path]) -> Iterator[Web]:
    made = Web(context_of(files, "good"))
    yield made
    made.close()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def policies(
    dns: Any, web: Web, files: dict[str, pathlib.Path], clock: Clock, tmp_path: pathlib.Path
) -> Iterator[Policies]:
    dns.texts[f"_mta-sts.{DOMAIN}"] = [b"v=STSv1; id=1;"]
    dns.hosts[HOST] = ["127.0.0.1"]
    context = verifying_context(str(files["ca"]))
    log = os.open(tmp_path / "log", os.O_RDWR | os.O_CREAT | os.O_APPEND)
    yield Policies(dns, Log("test", "debug", log), Counters(), lambda: context, web.port, True, clock)
    os.close(log)


def announce(dns: Any, id: str) -> None:
    dns.texts[f"_mta-sts.{DOMAIN}"] = [f"v=STSv1; id={id};".encode()]


def until(condition: Callable[[], bool]) -> None:
    with gevent.Timeout(5):
        while not condition():
            gevent.sleep(0.001)


def test_a_policy_is_fetched_once_and_kept(policies: Policies, web: Web) -> None:
    found = policies.policy(DOMAIN)
    assert found is not None
    assert (found.mode, found.mx, found.id) == ("enforce", ("*.example.org",), "1")
    assert policies.policy(DOMAIN) == found
    (request,) = web.requests
    assert request.startswith(b"GET /.well-known/mta-sts.txt HTTP/1.1\r\nHost: mta-sts.example.org\r\n")


def test_domains_without_a_record_are_not_asked(policies: Policies, web: Web, dns: Any) -> None:
    assert policies.policy("other.example") is None
    dns.texts["_mta-sts.other.example"] = [b"v=spf1 -all"]
    assert policies.policy("other.example") is None
    assert web.connections == 0


def test_many_who_ask_at_once_are_one_fetch(policies: Policies, web: Web) -> None:
    found = [gevent.spawn(policies.policy, DOMAIN) for _ in range(20)]
    assert all(one.get(timeout=10) is not None for one in found)
    assert web.connections == 1


def chunked(stream: Stream) -> None:
    stream.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n", 5)
    for part in (POLICY[:20], POLICY[20:]):
        stream.write(f"{len(part):x}\r\n".encode() + part + b"\r\n", 5)
    stream.write(b"0\r\n\r\n", 5)


def test_chunked(policies: Policies, web: Web) -> None:
    web.answer = chunked
    assert policies.policy(DOMAIN) is not None


def endless(stream: Stream) -> None:
    stream.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n", 5)
    while True:
        stream.write(b"2000\r\n" + b"x" * 0x2000 + b"\r\n", 5)


def header_without_end(stream: Stream) -> None:
    stream.write(b"HTTP/1.1 200 OK\r\n", 5)
    while True:
        stream.write(b"X-Y: " + b"z" * 4000 + b"\r\n", 5)


def drip(stream: Stream) -> None:
    for byte in response() * 100:
        stream.write(bytes([byte]), 5)
        gevent.sleep(0.02)


BAD_ANSWERS: list[Any] = [
    response(status="404 Not Found"),
    response(status="500 Oops"),
    b"HTTP/1.1 301 Moved\r\nLocation: https://mta-sts.example.org/other\r\nContent-Length: 0\r\n\r\n",
    response(kind="text/html"),
    response(kind="application/octet-stream"),
    response().replace(b"Content-Type", b"X-Type"),
    response(b"garbage"),
    response(POLICY + b"x" * mtasts.MAX_POLICY_BYTES),
    response().replace(b"Content-Length: ", b"Content-Length: 9"),  # cut off
    response().replace(b"Content-Length", b"X-Length"),  # nobody could tell whether it was cut off
    b"HTTP/1.1 200 OK\r\n",
    b"SSH-2.0-x\r\n\r\n",
    b"",
    endless,
    header_without_end,
    drip,
    lambda _stream: gevent.sleep(5),
]


@pytest.mark.parametrize("answer", BAD_ANSWERS)
def test_answers_that_are_no_policy(
    answer: Any, policies: Policies, web: Web, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    if callable(answer):
        monkeypatch.setattr(mtasts, "FETCH_SECONDS", 0.2)
    web.answer = answer
    assert policies.policy(DOMAIN) is None
    until(lambda: "no MTA-STS policy" in (tmp_path / "log").read_text())
    assert policies.policy(DOMAIN) is None
    assert web.connections == 1  # not again for five minutes


@pytest.mark.parametrize("name", ["other name", "unknown", "expired"])
def test_certificates_that_are_not_right(
    name: str, policies: Policies, web: Web, files: dict[str, pathlib.Path], tmp_path: pathlib.Path
) -> None:
    web.context = context_of(files, name)
    assert policies.policy(DOMAIN) is None
    assert web.requests == []
    assert "certificate not accepted" in (tmp_path / "log").read_text()


def test_hosts_that_are_not_there(policies: Policies, web: Web, dns: Any, clock: Clock) -> None:
    dns.hosts[HOST] = TemporaryFailure
    assert policies.policy(DOMAIN) is None
    dns.hosts[HOST] = ["127.0.0.9", "127.0.0.1"]  # nobody listens at the first
    assert policies.policy(DOMAIN) is None
    clock.now += mtasts.RETRY_SECONDS
    assert policies.policy(DOMAIN) is not None


def test_private_addresses_are_not_asked(policies: Policies, web: Web) -> None:
    policies._anywhere = False
    assert policies.policy(DOMAIN) is None
    assert web.connections == 0


def test_another_id_is_another_policy(policies: Policies, web: Web, dns: Any) -> None:
    policies.policy(DOMAIN)
    announce(dns, "2")
    web.answer = response(POLICY.replace(b"enforce", b"none"))
    assert policies.policy(DOMAIN) is None
    assert web.connections == 2
    assert policies.policy(DOMAIN) is None
    assert web.connections == 2


def test_what_is_known_stays_when_the_fetch_fails(policies: Policies, web: Web, dns: Any, clock: Clock) -> None:
    known = policies.policy(DOMAIN)
    announce(dns, "2")
    web.answer = response(status="503 Later")
    assert policies.policy(DOMAIN) == known
    assert policies.policy(DOMAIN) == known
    assert web.connections == 2
    clock.now += mtasts.RETRY_SECONDS + 1
    web.answer = response(POLICY.replace(b"*", b"mail"))
    found = policies.policy(DOMAIN)
    assert found is not None
    assert found.mx == ("mail.example.org",)


def test_what_is_known_stays_without_its_record(policies: Policies, web: Web, dns: Any, clock: Clock) -> None:
    """Who can keep DNS from answering gains nothing (RFC 8461 3.3) before the policy is too old."""
    known = policies.policy(DOMAIN)
    del dns.texts[f"_mta-sts.{DOMAIN}"]
    assert policies.policy(DOMAIN) == known
    clock.now += 86_401
    assert policies.policy(DOMAIN) is None
    assert web.connections == 1


def test_a_policy_is_refreshed_in_the_background(policies: Policies, web: Web, clock: Clock) -> None:
    web.answer = response(POLICY.replace(b"86400", b"864000"))
    known = policies.policy(DOMAIN)
    clock.now += mtasts.REFRESH_SECONDS + 1
    web.answer = response(POLICY.replace(b"*", b"mail"))
    assert policies.policy(DOMAIN) == known  # at once
    until(lambda: policies.policy(DOMAIN) != known)
    assert web.connections == 2


def test_fetches_at_once_are_bounded(policies: Policies, web: Web, dns: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    web.answer = lambda _stream: gevent.sleep(5)
    monkeypatch.setattr(mtasts, "FETCH_SECONDS", 0.3)
    domains = [f"d{n}.example" for n in range(mtasts.MAX_FETCHES + 20)]
    for domain in domains:
        dns.texts[f"_mta-sts.{domain}"] = [b"v=STSv1; id=1;"]
        dns.hosts[f"mta-sts.{domain}"] = ["127.0.0.1"]
    waiting = [gevent.spawn(policies.policy, domain) for domain in domains]
    until(lambda: web.connections == mtasts.MAX_FETCHES)
    gevent.joinall(waiting, timeout=5)
    assert all(one.successful() for one in waiting)
    assert web.connections <= mtasts.MAX_FETCHES * 2
