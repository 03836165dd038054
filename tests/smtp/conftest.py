"""What the tests of ``ptt.smtp`` share: a driver without I/O, and the three ways of feeding a sample."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import pytest

from ptt.smtp import (
    NEED_DATA,
    AuthAttempt,
    Closed,
    MessageComplete,
    RcptTo,
    Reply,
    ServerConfig,
    ServerSession,
    StartTls,
)
from ptt.smtp.replies import AUTH_FAILED

ROOT = pathlib.Path(__file__).parent.parent.parent
CONFIG = ServerConfig("mx.example.org", starttls=True, auth=("PLAIN", "LOGIN"))


class Served(NamedTuple):
    """What a session made of its input."""

    output: bytes
    events: list[Any]  # as plain values
    session: ServerSession


def decide(session: ServerSession, event: Any) -> None:
    """Everybody is welcome but a password and a recipient that say they are not."""
    if isinstance(event, StartTls):
        session.tls_started()
    elif isinstance(event, AuthAttempt) and event.password.reveal() == "wrong":
        session.refuse(AUTH_FAILED)
    elif isinstance(event, RcptTo) and event.address.startswith("unknown"):
        session.refuse(Reply(550, "5.1.1", "No such user"))
    else:
        session.accept()


def plain(event: Any) -> Any:
    """An event as a value that can be compared: chunks joined, secrets told."""
    if isinstance(event, MessageComplete):
        assert event.size == sum(map(len, event.chunks))
        return b"".join(event.chunks)
    if isinstance(event, AuthAttempt):
        return (event.mechanism, event.authcid, event.authzid, event.password.reveal())
    return event


def drive(session: ServerSession, pieces: Iterable[bytes]) -> Served:
    """Feed the pieces one after the other, deciding as ``decide`` does, until they are used up or it is over."""
    output, events = [], []
    source = iter(pieces)
    while True:
        event = session.next_event()
        if event is NEED_DATA:
            output.append(session.data_to_send())
            piece = next(source, None)
            if piece is None:
                break
            if piece:
                session.receive_data(piece)
            continue
        events.append(plain(event))
        if isinstance(event, Closed):
            output.append(session.data_to_send())
            break
        decide(session, event)
    return Served(b"".join(output), events, session)


@pytest.fixture
def config() -> ServerConfig:
    return CONFIG


@pytest.fixture
def serve() -> Callable[..., Served]:
    """serve(pieces, config=CONFIG, **flags of ServerSession) -> Served"""

    def run(pieces: Iterable[bytes], config: ServerConfig = CONFIG, **flags: bool) -> Served:
        return drive(ServerSession(config, **flags), pieces)

    return run


@pytest.fixture
def feed_all_ways(serve: Callable[..., Served]) -> Callable[..., Served]:
    """As ``serve`` with one piece, fed whole, byte by byte and with a tail: all three must come to the same."""

    def run(wire: bytes, config: ServerConfig = CONFIG, **flags: bool) -> Served:
        whole = serve([wire], config, **flags)
        for pieces in ([wire[i : i + 1] for i in range(len(wire))], [wire[:1], wire[1:] + b"NO"], [wire, b"NO"]):
            other = serve(pieces, config, **flags)
            assert other.output == whole.output
            assert other.events == whole.events
        return whole

    return run


@pytest.fixture
def corpora() -> pathlib.Path:
    """Data that others wrote, beside the project; skips where it is not."""
    found = ROOT.parent / "shared" / "corpora"
    if not found.is_dir():
        pytest.skip("../shared/corpora is not here")
    return found
