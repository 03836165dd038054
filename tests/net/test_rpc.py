"""Calls between our processes: what a fault of a handler, or of accept, does and says."""

from __future__ import annotations

import pathlib
import socket as plain
from typing import Any

import gevent
import pytest
from gevent import socket

from ptt.net import rpc

PASSWORD = "correct-horse"


def fails(_argument: Any) -> None:
    raise KeyError("a fault of ours")


def listening(path: pathlib.Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    listener.listen()
    return listener


def uid() -> frozenset[int]:
    one, other = plain.socketpair()
    with one, other:
        return frozenset({rpc.peer_uid(one)})


def test_a_handler_that_fails_does_not_print_what_it_was_asked(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    listener = listening(tmp_path / "s")
    server = gevent.spawn(rpc.serve, listener, {"verify": fails}, uid())
    client = rpc.RpcClient(str(tmp_path / "s"), 5.0)
    try:
        with pytest.raises(rpc.RpcError, match="KeyError"):
            client.call("verify", ["anna@example.org", PASSWORD])
        gevent.sleep(0)
    finally:
        client.close()
        server.kill()
        listener.close()
    said = capsys.readouterr().err
    assert "a fault of ours" in said  # it is logged
    assert PASSWORD not in said


def test_an_accept_that_fails_is_not_the_end_of_the_server(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listener = listening(tmp_path / "s")
    failures = [OSError(24, "Too many open files"), ConnectionAbortedError()]

    class Listener:
        def accept(self) -> Any:
            if failures:
                raise failures.pop()
            return listener.accept()

    monkeypatch.setattr(rpc, "ACCEPT_PAUSE_SECONDS", 0.001)
    server = gevent.spawn(rpc.serve, Listener(), {"echo": lambda x: x}, uid())
    client = rpc.RpcClient(str(tmp_path / "s"), 5.0)
    try:
        assert client.call("echo", 1) == 1
    finally:
        client.close()
        server.kill()
        listener.close()
