"""The worker's calls: what goes out together, what is asked again, what is told to those who wait."""

import contextlib
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import gevent
import pytest
from gevent import socket

from ptt.net.rpc import RpcError, RpcUnavailable, serve
from ptt.signer import client
from ptt.signer.client import MAX_BATCH, Request, SignatureRefused, SignerClient


class KeyProcess:
    """A server that signs with the data turned round, and remembers the batches."""

    def __init__(self, path: str) -> None:
        self.batches: list[int] = []
        self.fail = 0  # so many connections are cut instead of answered
        self.path = path
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(path)
        self.listener.listen(16)
        self.greenlet = gevent.spawn(serve, self.listener, {"sign": self.sign}, frozenset({os.getuid()}))

    def sign(self, batch: Any) -> Any:
        if self.fail:
            self.fail -= 1
            return []  # as wrong as an answer can be
        self.batches.append(len(batch))
        gevent.sleep(0)
        return [[None, "no"] if data == b"refuse" else [data[::-1], None] for _, _, _, data in batch]

    def close(self) -> None:
        self.greenlet.kill()
        self.listener.close()


@pytest.fixture
def server(tmp: pathlib.Path) -> Iterator[KeyProcess]:
    with contextlib.closing(KeyProcess(str(tmp / "signer.sock"))) as made:
        yield made


def request(data: bytes) -> Request:
    return Request("id", "example.org", "s1", data)


@pytest.fixture
def made(server: KeyProcess) -> Iterator[SignerClient]:
    with contextlib.closing(SignerClient(server.path, 2)) as found:
        yield found


def test_one(made: SignerClient) -> None:
    assert made.sign(request(b"abc")) == [b"cba"]
    assert made.sign(request(b"abc"), request(b"de")) == [b"cba", b"ed"]


@pytest.mark.parametrize(("callers", "batches"), [(1, 1), (2, 2), (10, 2), (100, 7)])
def test_callers_of_one_turn_share_requests(made: SignerClient, server: KeyProcess, callers: int, batches: int) -> None:
    tasks = [gevent.spawn(made.sign, request(b"%d." % n)) for n in range(callers)]
    assert [task.get(timeout=10) for task in tasks] == [[(b"%d." % n)[::-1]] for n in range(callers)]
    assert sum(server.batches) == callers
    assert len(server.batches) == batches
    assert max(server.batches) <= MAX_BATCH


def test_batches_are_bounded_in_bytes(made: SignerClient, server: KeyProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "MAX_BATCH_BYTES", 1000)
    gevent.joinall([gevent.spawn(made.sign, request(bytes(600))) for _ in range(8)], raise_error=True)
    assert server.batches == [1] * 8


def test_a_refusal_is_told_to_its_own_caller(made: SignerClient) -> None:
    good, bad = gevent.spawn(made.sign, request(b"abc")), gevent.spawn(made.sign, request(b"refuse"))
    assert good.get(timeout=10) == [b"cba"]
    with pytest.raises(SignatureRefused, match="no"):
        bad.get(timeout=10)


def test_asked_again_on_the_next_connection(made: SignerClient, server: KeyProcess) -> None:
    server.fail = 1
    assert made.sign(request(b"abc")) == [b"cba"]
    server.fail = 2
    assert made.sign(request(b"abc")) == [b"cba"]
    server.fail = 3
    with pytest.raises(RpcUnavailable):
        made.sign(request(b"abc"))
    assert made.sign(request(b"abc")) == [b"cba"]


def test_nobody_there(tmp: pathlib.Path) -> None:
    made = SignerClient(str(tmp / "signer.sock"))
    for _ in range(2):
        with pytest.raises(RpcUnavailable):
            made.sign(request(b"abc"))


def test_nobody_answers(tmp: pathlib.Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp / "signer.sock"))
        listener.listen(16)
        made = SignerClient(str(tmp / "signer.sock"), timeout=0.02)
        with pytest.raises(RpcUnavailable, match="no answer"):
            made.sign(request(b"abc"))


def test_other_errors_reach_those_who_wait(server: KeyProcess) -> None:
    server.greenlet.kill()
    server.greenlet = gevent.spawn(serve, server.listener, {}, frozenset({os.getuid()}))
    with contextlib.closing(SignerClient(server.path)) as made:
        tasks = [gevent.spawn(made.sign, request(b"abc")) for _ in range(3)]
        for task in tasks:
            with pytest.raises(RpcError, match="no method"):
                task.get(timeout=10)


def test_idle_connections_are_renewed(made: SignerClient, monkeypatch: pytest.MonkeyPatch) -> None:
    made.sign(request(b"abc"))
    made.sign(request(b"abc"))
    before = [connection.rpc._socket for connection in made._connections]
    monkeypatch.setattr(client, "RENEW_SECONDS", 0.0)
    for _ in range(2):
        assert made.sign(request(b"abc")) == [b"cba"]
    assert all(a is not b for a, b in zip(before, [c.rpc._socket for c in made._connections], strict=True))
