"""A peer that takes a large content block by block, each just before its time-out."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ptt.config import Relay as Settings
from ptt.net.stream import TlsInfo, WriteTimeout
from ptt.relay import session as module
from ptt.relay.outcome import Deferred
from ptt.relay.session import Connection, Message, Target
from ptt.smtp import NEED_DATA
from ptt.smtp.client import ClientSession
from ptt.smtp.params import NO_MAIL_PARAMS

SECONDS = 170.0  # for each block; the time-out is 180


class Peer:
    """A stream whose reader needs ``seconds`` for each write; it answers every command in advance."""

    peer = "192.0.2.1:25"

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.now = 0.0
        self.replies = [b"250 ok\r\n", b"250 ok\r\n", b"354 go\r\n"]

    def monotonic(self) -> float:
        return self.now

    def read(self, most: int, timeout: float) -> bytes:
        if not self.replies:
            raise module.ReadTimeout("nothing")
        return self.replies.pop(0)

    def write(self, data: bytes, timeout: float) -> None:
        taken = self.seconds if len(data) > 1000 else 0.0
        if taken > timeout:
            self.now += timeout
            raise WriteTimeout("too slow")
        self.now += taken

    def tls(self) -> TlsInfo | None:
        return None

    def close(self) -> None: ...


@pytest.fixture
def connection(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], tuple[Peer, Connection]]:
    def make(seconds: float) -> tuple[Peer, Connection]:
        peer = Peer(seconds)
        monkeypatch.setattr(module.time, "monotonic", peer.monotonic)
        client = ClientSession("me.example.org")
        client.receive_data(b"220 peer\r\n250 peer\r\n")
        while client.next_event() is NEED_DATA:
            client.data_to_send()
        client.data_to_send()
        target = Target("mx.example.org", "192.0.2.1", 25)
        return peer, Connection(target, peer, client, Settings())  # type: ignore[arg-type]

    return make


def message() -> Message:
    content = [b"x" * 78 + b"\r\n"] * 50_000  # 4 MB: 61 blocks
    return Message("a@b.test", ["c@d.test"], content, NO_MAIL_PARAMS, [], 4_000_000)


def test_a_content_is_not_taken_for_hours(connection: Callable[[float], tuple[Peer, Connection]]) -> None:
    peer, one = connection(SECONDS)
    (outcome,) = one.send(message(), lambda: None).outcomes
    assert isinstance(outcome, Deferred)
    assert not outcome.maybe
    assert peer.now < 1000.0


def test_a_slow_line_is_waited_for(connection: Callable[[float], tuple[Peer, Connection]]) -> None:
    peer, one = connection(7.0)  # 9 KiB/s
    marks: list[int] = []
    one.send(message(), lambda: marks.append(1))
    assert marks
    assert peer.now > 400.0
