"""Every file of tests/dialogs, run against a listener of ours: sockets, TLS, the sessions of the service."""

import base64
import dataclasses
import fnmatch
import pathlib
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from gevent import socket

from ptt.config import Config
from ptt.log import Log
from ptt.message import Envelope
from ptt.metrics import Counters
from ptt.net.stream import MAX_READ, ReadTimeout, Stream, StreamError, connect
from ptt.net.tls import opportunistic_context
from ptt.smtp.dialog import Dialog, parse
from ptt.smtp.reply import Reply, ReplyReader
from ptt.submission import census
from ptt.submission.census import Census
from ptt.submission.listener import Contexts, Listener, listeners

DIALOGS = sorted((pathlib.Path(__file__).parent.parent / "dialogs").glob("*.smtp"))
SECONDS = 5.0


def b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


VARIABLES = {
    "sender": "alice@example.org",
    "recipient": "bob@example.net",
    "auth": b64("\0alice@example.org\0secret"),
    "wrong": b64("\0alice@example.org\0wrong"),
    "user": b64("alice@example.org"),
    "password": b64("secret"),
}


class Anybody:
    """Logins, directory, recipients and the queue in one: everybody is welcome who knows the password."""

    commit = ""

    def __init__(self) -> None:
        self.recipients = self
        self.envelopes: list[Envelope] = []
        self.contents: list[bytes] = []

    def verify(self, _user: str, password: str, _client: str) -> str:
        return "ok" if password == "secret" else "bad"

    def may_send_as(self, _user: str, _address: str) -> bool:
        return True

    def limits(self, _user: str) -> None:
        return None

    def ahead(self, _data: bytes) -> None:
        return None

    def refusal(self, *_args: Any) -> None:
        return None

    def offer(self, offer: Any) -> Reply:
        self.envelopes.append(offer.envelope)
        self.contents.append(b"".join(offer.chunks))
        return Reply(250, "2.0.0", "queued")


class Served:
    """A listener for one dialog."""

    def __init__(self, dialog: Dialog, certificates: dict[str, pathlib.Path]) -> None:
        listen = {"address": "127.0.0.1:0", "service": "submission", "tls": "implicit" if dialog.tls else "starttls"}
        given: dict[str, Any] = {
            "hostname": "mx.example.org",
            "listen": [listen],
            "connections": {"exempt": ["127.0.0.0/8"]},
        }
        given["tls"] = {"public_certificate": str(certificates["mx"]), "public_key": str(certificates["mx.key"])}
        config = msgspec.convert(given, Config)
        self.sock = socket.socket()
        self.sock.bind(("127.0.0.1", 0))
        self.sock.listen(5)
        self.anybody: Any = Anybody()
        self.counters = Counters()
        self.listener: Listener = listeners(
            config,
            [(0, self.sock)],
            Contexts(config),
            self.anybody,
            self.anybody,
            self.anybody,
            Log("test", "error"),
            self.counters,
            Census(census.make(1), 0),
        )[0]
        service = self.listener.service
        service.plain = dataclasses.replace(service.plain, **dialog.settings)  # type: ignore[arg-type]
        self.listener.start()

    def stop(self) -> None:
        self.listener.drain(0.1)
        self.listener.pool.kill(timeout=1)
        self.sock.close()


class Speaker:
    """The client's end."""

    def __init__(self, port: int, tls: bool) -> None:
        self.stream: Stream = connect("127.0.0.1", port, SECONDS)
        self.reader = ReplyReader()
        if tls:
            self.start_tls()

    def start_tls(self) -> None:
        self.stream = self.stream.start_tls(
            opportunistic_context(), SECONDS, server_side=False, server_hostname="mx.example.org"
        )

    def reply(self) -> Reply | None:
        """The next reply, or None when the server has closed."""
        while (reply := self.reader.next()) is None:
            try:
                data = self.stream.read(MAX_READ, SECONDS)
            except ReadTimeout:
                pytest.fail("no reply")
            except StreamError:
                return None
            if not data:
                return None
            self.reader.feed(data)
        return reply


@pytest.fixture
def served(request: pytest.FixtureRequest, certificates: dict[str, pathlib.Path]) -> Iterator[tuple[Dialog, Served]]:
    dialog = parse(request.param.read_text(encoding="utf-8"), VARIABLES)
    place = Served(dialog, certificates)
    yield dialog, place
    place.stop()


@pytest.mark.parametrize("served", DIALOGS, ids=lambda path: path.stem, indirect=True)
def test_dialog(served: tuple[Dialog, Served], request: pytest.FixtureRequest) -> None:
    dialog, place = served
    speaker = Speaker(place.sock.getsockname()[1], dialog.tls)
    name = request.node.callspec.id
    refused = 0
    for step in dialog.steps:
        where = f"{name}:{step.line}"
        if step.kind == "S":
            reply = speaker.reply()
            assert reply is not None, f"{where}: closed"
            assert fnmatch.fnmatchcase(str(reply), step.pattern), f"{where}: {reply}"
            refused += reply.code >= 400
        elif step.kind == "TLS":
            speaker.start_tls()
        elif step.kind == "CLOSED":
            assert speaker.reply() is None, where
        else:
            speaker.stream.write(step.data, SECONDS)
    speaker.stream.close()
    place.stop()
    counted = sum(n for (metric, _), n in place.counters.counters.items() if metric == "ptt_refused_total")
    assert name.startswith("auth") or counted == refused  # failed logins have a metric of their own
    assert "ptt_errors_total" not in {name for name, _ in place.counters.counters}
