"""The web hook: who may call it, what it starts, what it does not take."""

import hashlib
import hmac
import pathlib
from collections.abc import Callable, Iterator
from http import HTTPStatus
from typing import Any

import gevent
import msgspec
import pytest
from gevent import socket

from ptt.log import Log
from ptt.metrics import Counters
from ptt.service.admin import Admin, health
from ptt.service.githook import FAILURES, KNOWN_ADDRESSES, MAX_BODY, GitHook, read_secret

SECRET = b"correct horse battery staple"
Until = Callable[[Callable[[], object]], float]


def signature(body: bytes, secret: bytes = SECRET) -> str:
    return "sha256=" + hmac.new(secret, body, hashlib.sha256).hexdigest()


@pytest.fixture
def secret(tmp_path: pathlib.Path) -> pathlib.Path:
    file = tmp_path / "secret"
    file.write_bytes(SECRET + b"\n")
    file.chmod(0o600)
    return file


class Hook:
    def __init__(self, file: pathlib.Path) -> None:
        self.now = 0.0
        self.fetches = 0
        self.counters = Counters()
        self.read = 0
        self.hook = GitHook(str(file), self.fetch, Log("test", fd=-1), self.counters, lambda: self.now)

    def fetch(self) -> None:
        self.fetches += 1

    def __call__(self, fields: dict[str, str], body: bytes = b"{}", client: str = "192.0.2.1") -> int:
        def pieces(length: int) -> Iterator[bytes]:
            self.read += length
            yield from (body[n : n + 7] for n in range(0, length, 7))

        return int(self.hook.answer(client, {"content-length": str(len(body)), **fields}, pieces))


@pytest.fixture
def hook(secret: pathlib.Path) -> Hook:
    return Hook(secret)


def test_the_forges(hook: Hook) -> None:
    body = b'{"ref": "refs/heads/main"}'
    assert hook({"x-hub-signature-256": signature(body)}, body) == HTTPStatus.ACCEPTED  # GitHub, Gitea, Forgejo
    assert hook({"x-gitlab-token": SECRET.decode()}, body) == HTTPStatus.ACCEPTED
    assert hook.fetches == 2
    assert hook.counters.counters["ptt_git_hooks_total", ("accepted",)] == 2


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"x-hub-signature-256": signature(b"other")},
        {"x-hub-signature-256": signature(b"{}", b"another secret entirely")},
        {"x-hub-signature-256": signature(b"{}")[:-1]},
        {"x-hub-signature-256": ""},
        {"x-hub-signature-256": "sha256=\udcff"},
        {"x-hub-signature": "sha1=" + hmac.new(SECRET, b"{}", hashlib.sha1).hexdigest()},
        {"x-gitlab-token": "wrong"},
        {"x-gitlab-token": ""},
        {"x-hub-signature-256": "sha256=0", "x-gitlab-token": SECRET.decode()},
    ],
)
def test_who_does_not_know_the_secret(hook: Hook, fields: dict[str, str]) -> None:
    assert hook(fields) == HTTPStatus.FORBIDDEN
    assert hook.fetches == 0


def test_bodies_are_bounded(hook: Hook) -> None:
    for length, status in ((str(MAX_BODY + 1), 413), ("9" * 5000, 413), ("-1", 411), ("", 411), ("\u0661", 411)):
        assert hook({"content-length": length, "x-gitlab-token": SECRET.decode()}) == status
    assert hook({"transfer-encoding": "chunked", "x-gitlab-token": SECRET.decode()}) == 411
    assert hook.read == 0
    assert hook.fetches == 0


def test_failures_of_an_address_are_bounded(hook: Hook) -> None:
    good = {"x-hub-signature-256": signature(b"{}")}
    for _ in range(FAILURES):
        assert hook({}) == HTTPStatus.FORBIDDEN
    assert hook(good) == HTTPStatus.TOO_MANY_REQUESTS
    assert hook(good, client="192.0.2.2") == HTTPStatus.ACCEPTED
    hook.now += 61
    assert hook(good) == HTTPStatus.ACCEPTED
    for n in range(2 * KNOWN_ADDRESSES):
        hook({}, client=f"10.0.{n // 256}.{n % 256}")
    assert len(hook.hook._failures) <= KNOWN_ADDRESSES + 1


def test_the_secrets_file(hook: Hook, secret: pathlib.Path) -> None:
    secret.chmod(0o640)
    with pytest.raises(ValueError, match="chmod 600"):
        read_secret(str(secret))
    assert hook({"x-gitlab-token": SECRET.decode()}) == HTTPStatus.SERVICE_UNAVAILABLE
    secret.chmod(0o600)
    secret.write_bytes(b"short\n")
    assert hook({"x-gitlab-token": "short"}) == HTTPStatus.SERVICE_UNAVAILABLE
    secret.write_bytes(b"a new secret, long enough")
    assert hook({"x-gitlab-token": "a new secret, long enough"}) == HTTPStatus.ACCEPTED
    secret.unlink()
    assert hook({}) == HTTPStatus.SERVICE_UNAVAILABLE


class Port:
    """The admin port with a hook."""

    def __init__(self, file: pathlib.Path, fetch: Callable[[], None], hooked: bool = True) -> None:
        log, counters = Log("test", fd=-1), Counters()
        hook = GitHook(str(file), fetch, log, counters) if hooked else None
        admin = Admin(lambda: b"", lambda: health([], [], "1", {}), log, counters, hook)
        self.listener = socket.socket()
        self.listener.bind(("127.0.0.1", 0))
        self.listener.listen()
        self.greenlet = gevent.spawn(admin.serve, self.listener)

    def post(self, body: bytes, *fields: str, path: str = "/hook/git", length: int = -1) -> int:
        head = [f"POST {path} HTTP/1.1", "Host: x", f"Content-Length: {len(body) if length < 0 else length}", *fields]
        with socket.create_connection(self.listener.getsockname(), timeout=5) as sock:
            sock.sendall("\r\n".join([*head, "", ""]).encode() + body[:100])
            sock.sendall(body[100:])
            if length > len(body):
                sock.shutdown(socket.SHUT_WR)
            answer = b""
            while data := sock.recv(4096):
                answer += data
        return int(answer.split()[1])

    def close(self) -> None:
        self.greenlet.kill()
        self.listener.close()


@pytest.fixture
def port(secret: pathlib.Path) -> Iterator[Callable[..., Port]]:
    made: list[Port] = []

    def make(fetch: Callable[[], None], hooked: bool = True) -> Port:
        made.append(Port(secret, fetch, hooked))
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_over_http(port: Callable[..., Port]) -> None:
    fetches: list[int] = []
    there = port(lambda: fetches.append(1))
    body = b"x" * 300_000
    assert there.post(body, f"X-Hub-Signature-256: {signature(body)}") == 202
    assert there.post(b"{}", f"X-GitLab-Token: {SECRET.decode()}") == 202
    assert there.post(body, f"X-Hub-Signature-256: {signature(b'')}") == 403
    assert there.post(b"{}", "X-Gitlab-Token: no", f"X-Gitlab-Token: {SECRET.decode()}") == 403
    assert there.post(b"{}", length=10, path="/hook/git") == 403
    assert there.post(b"{}", f"X-Hub-Signature-256: {signature(b'{}')}", length=10) == 400  # cut short
    assert there.post(b"{}", path="/metrics") == 405
    assert there.post(b"{}", "X: " + "y" * 20_000) == 431
    assert len(fetches) == 2
    assert port(lambda: None, hooked=False).post(b"{}", f"X-Gitlab-Token: {SECRET.decode()}") == 405


@pytest.mark.slow
def test_a_pushed_commit_is_in_force_within_a_second_of_the_hook(
    base: Any, make_base: Any, port: Callable[..., Port], until: Until
) -> None:
    base.control()
    here = make_base("there", remote=f"file://{base.repository.path}")
    settings = msgspec.structs.replace(here.config.directory, interval_seconds=3600.0)
    here.config = msgspec.structs.replace(here.config, directory=settings)
    control = here.control()
    snapshot = here.snapshot()
    running = gevent.spawn(control.run)
    there = port(control.fetch_soon)
    for n in range(3):
        commit = base.commit({f"users/a.example/u{n}.toml": ""})
        body = b'{"ref": "refs/heads/main"}'
        assert there.post(body, f"X-Hub-Signature-256: {signature(body)}") == 202
        assert until(lambda commit=commit: snapshot.refresh() or snapshot.commit == commit) < 1
    control.stop()
    running.join(5)
    assert running.ready()
