"""Our two ends joined in memory: a ClientSession talks to a ServerSession."""

import base64
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptt.smtp import (
    NEED_DATA,
    AuthAttempt,
    AuthDone,
    ClientSession,
    Closed,
    FinalDot,
    MailParams,
    MessageComplete,
    MessageDone,
    MessageStart,
    RcptParams,
    RcptTo,
    Ready,
    Reply,
    Secret,
    ServerConfig,
    ServerSession,
    StartTls,
    TlsReady,
)

CONFIG = ServerConfig("mx.example.org", starttls=True, auth=("PLAIN", "LOGIN"), dsn=True, smtputf8=True)


class Pair:
    """A client and a server with a wire between them. ``server_says`` decides about events of the server by type."""

    def __init__(self, config: ServerConfig = CONFIG, size: int = 1 << 20, **says: Reply) -> None:
        self.server = ServerSession(config)
        self.client = ClientSession("relay.example.net")
        self.says = says
        self.size = size
        self.server_events: list[Any] = []
        self.announced: list[Any] = []  # what the client said before MessageDone

    def _serve(self) -> None:
        while (event := self.server.next_event()) is not NEED_DATA and not isinstance(event, Closed):
            self.server_events.append(event)
            if isinstance(event, StartTls):
                return
            reply = self.says.get(type(event).__name__)
            if isinstance(event, RcptTo) and not event.address.startswith("bad"):
                reply = None
            if reply is not None:
                self.server.refuse(reply)
            else:
                self.server.accept()

    def event(self) -> Any:
        """The client's next event, after as many bytes both ways as it takes."""
        for _ in range(100_000):
            event = self.client.next_event()
            if event is not NEED_DATA:
                return event
            sent = self.client.data_to_send()
            for i in range(0, len(sent), self.size):
                self.server.receive_data(sent[i : i + self.size])
                self._serve()
            self._serve()
            answer = self.server.data_to_send()
            assert answer, "both sides wait"
            for i in range(0, len(answer), self.size):
                self.client.receive_data(answer[i : i + self.size])
        raise AssertionError("no end")

    def message(
        self, recipients: list[str], content: list[bytes], body: str = "8BITMIME", **how: Any
    ) -> list[tuple[int, str]]:
        self.client.send_message("a@example.net", recipients, content, MailParams(body=body), **how)
        self.announced = []
        while not isinstance(event := self.event(), MessageDone):
            self.announced.append(event)
        return [(r.reply.code, r.phase) for r in event.results]

    def received(self) -> list[bytes]:
        return [b"".join(e.chunks) for e in self.server_events if isinstance(e, MessageComplete)]


def pair(size: int, pipelining: bool, **says: Reply) -> Pair:
    joined = Pair(
        ServerConfig("mx.example.org", pipelining=pipelining, dsn=True, chunking=True, binarymime=True), size, **says
    )
    assert isinstance(joined.event(), Ready)
    return joined


@pytest.mark.parametrize("size", [1, 5, 1 << 20])
@pytest.mark.parametrize("pipelining", [True, False])
class TestBothWays:
    def test_messages_on_one_connection(self, size: int, pipelining: bool) -> None:
        joined = pair(size, pipelining)
        bodies = [[b"A: b\r\n\r\n", b".\r\n..\r\nx\r\n"], [b""], [b".\r", b"\n.\r\n", b".x"]]
        for body in bodies:
            assert joined.message(["b@example.org", "c@example.org"], body) == [(250, "end of DATA")] * 2
        assert joined.received() == [b"A: b\r\n\r\n.\r\n..\r\nx\r\n", b"", b".\r\n.\r\n.x\r\n"]
        joined.client.quit()
        assert joined.event().reply.code == 221

    def test_some_recipients_refused(self, size: int, pipelining: bool) -> None:
        joined = pair(size, pipelining, RcptTo=Reply(550, "5.1.1", "no"))
        assert joined.message(["bad@x.org", "b@x.org"], [b"x\r\n"]) == [(550, "RCPT"), (250, "end of DATA")]
        assert joined.message(["bad@x.org"], [b"x\r\n"]) == [(550, "RCPT")]
        assert joined.message(["b@x.org"], [b"y\r\n"]) == [(250, "end of DATA")]
        assert joined.received() == [b"x\r\n", b"y\r\n"]

    @pytest.mark.parametrize(
        ("event", "phase"), [("MailFrom", "MAIL"), ("MessageStart", "DATA"), ("MessageComplete", "end of DATA")]
    )
    def test_refused_as_a_whole(self, size: int, pipelining: bool, event: str, phase: str) -> None:
        joined = pair(size, pipelining, **{event: Reply(451, "4.3.0", "later")})
        for _ in range(2):
            assert joined.message(["b@x.org", "c@x.org"], [b"x\r\n"]) == [(451, phase)] * 2

    def test_bare_line_ends_are_refused(self, size: int, pipelining: bool) -> None:
        joined = pair(size, pipelining)
        assert joined.message(["b@x.org"], [b"x\n.\r\ny\r\n"]) == [(550, "end of DATA")]
        assert joined.message(["b@x.org"], [b"x\r\n"]) == [(250, "end of DATA")]


@pytest.mark.parametrize("size", [1, 5, 1 << 20])
@pytest.mark.parametrize("pipelining", [True, False])
@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize("chunk", [1, 4, 1 << 20])
class TestByBdat:
    def test_messages_on_one_connection(self, size: int, pipelining: bool, at_once: bool, chunk: int) -> None:
        joined = pair(size, pipelining)
        how = {"chunk": chunk, "at_once": at_once}
        recipients = ["b@example.org", "c@example.org"]
        done = [(250, "end of DATA")] * 2
        assert joined.message(recipients, [b"A: b\r\n\r\n", b".\r\n..\r\nx"], **how) == done
        assert joined.message(recipients, [b""], **how) == done
        assert joined.message(recipients, [b"x\r", b"\n.\r\n"], **how) == done
        assert joined.announced == [FinalDot((0, 1))]
        assert joined.message(recipients, [b".y\r\n"]) == done  # by DATA
        assert joined.message(recipients, [b"A: b\r\n\r\n\0\n.\r"], body="BINARYMIME", **how) == done
        assert joined.received() == [
            b"A: b\r\n\r\n.\r\n..\r\nx\r\n",
            b"",
            b"x\r\n.\r\n",
            b".y\r\n",
            b"A: b\r\n\r\n\0\n.\r",
        ]

    def test_refusals(self, size: int, pipelining: bool, at_once: bool, chunk: int) -> None:
        how = {"chunk": chunk, "at_once": at_once}
        joined = pair(size, pipelining, RcptTo=Reply(550, "5.1.1", "no"))
        assert joined.message(["bad@x.org", "b@x.org"], [b"x\r\n"], **how) == [(550, "RCPT"), (250, "end of DATA")]
        assert joined.announced == [FinalDot((0, 1) if at_once else (1,))]
        assert joined.message(["bad@x.org"], [b"x" * 20 + b"\r\n"], **how) == [(550, "RCPT")]
        assert joined.announced == ([FinalDot((0,))] if at_once else [])
        assert joined.message(["b@x.org"], [b"a\nb" + b"c" * 9], **how)[0][0] == 550
        assert joined.message(["b@x.org"], [b"y\r\n"], **how) == [(250, "end of DATA")]
        assert joined.received() == [b"x\r\n", b"y\r\n"]

    @pytest.mark.parametrize("event", ["MailFrom", "MessageStart", "MessageComplete"])
    def test_refused_as_a_whole(self, size: int, pipelining: bool, at_once: bool, chunk: int, event: str) -> None:
        joined = pair(size, pipelining, **{event: Reply(451, "4.3.0", "later")})
        for _ in range(2):
            results = joined.message(["b@x.org", "c@x.org"], [b"12345\r\n"], chunk=chunk, at_once=at_once)
            assert [code for code, _ in results] == [451, 451]
        assert not joined.client.final_dot or at_once or event != "MailFrom"


def test_more_chunks_than_go_at_once() -> None:
    joined = pair(1 << 20, True)
    assert joined.message(["b@x.org"], [b"x" * 350 + b"\r\n"], chunk=1) == [(250, "end of DATA")]
    assert joined.received() == [b"x" * 350 + b"\r\n"]


def test_a_message_at_once_is_one_write() -> None:
    joined = pair(1 << 20, True)
    joined.client.send_message("a@x.org", ["b@x.org"], [b"A: b\r\n\r\n", b"."], MailParams(), chunk=1000, at_once=True)
    assert joined.client.next_event() == FinalDot((0,))
    assert not joined.client.final_dot
    assert joined.client.next_event() is NEED_DATA
    assert joined.client.final_dot
    assert joined.client.data_to_send().endswith(b"RCPT TO:<b@x.org>\r\nBDAT 11 LAST\r\nA: b\r\n\r\n.\r\n")


@pytest.mark.parametrize(("body", "chunk"), [("8BITMIME", 10), ("BINARYMIME", 10), ("BINARYMIME", 0)])
def test_bdat_needs_a_peer_that_offers_it(body: str, chunk: int) -> None:
    joined = Pair()
    joined.event()
    with pytest.raises(RuntimeError, match="BDAT"):
        joined.client.send_message("a@x.org", ["b@x.org"], [b""], MailParams(body=body), chunk=chunk)
    assert joined.client.reusable


def test_tls_and_authentication() -> None:
    joined = Pair()
    assert isinstance(joined.event(), Ready)
    assert joined.client.capabilities.starttls
    assert not joined.client.capabilities.auth
    joined.client.start_tls()
    assert isinstance(joined.event(), TlsReady)
    joined.client.tls_started()
    joined.server.tls_started()
    assert isinstance(joined.event(), Ready)
    assert joined.client.capabilities.auth == {"PLAIN", "LOGIN"}
    joined.client.auth("user", Secret("pässword"), "LOGIN")
    assert joined.event() == AuthDone(Reply(235, "2.7.0", "Authentication successful"))
    attempt = next(e for e in joined.server_events if isinstance(e, AuthAttempt))
    assert (attempt.authcid, attempt.password.reveal()) == ("user", "pässword")
    assert joined.message(["b@x.org"], [b"x\r\n"]) == [(250, "end of DATA")]


def test_more_recipients_than_the_server_takes() -> None:
    joined = Pair(ServerConfig("mx.example.org", max_recipients=150))
    joined.event()
    results = joined.message([f"r{i}@x.org" for i in range(300)], [b"x\r\n"])
    assert results == [(250, "end of DATA")] * 150 + [(452, "RCPT")] * 150


def test_too_large_is_said_at_mail() -> None:
    joined = Pair(ServerConfig("mx.example.org", max_message_bytes=1000))
    joined.event()
    assert joined.client.capabilities.size == 1000
    assert joined.message(["b@x.org"], [b"x" * 998 + b"\r\n"]) == [(250, "end of DATA")]
    assert joined.message(["b@x.org"], [b"x" * 997 + b"\r\nyy"]) == [(552, "MAIL")]


def test_dsn_parameters_arrive() -> None:
    joined = Pair()
    joined.event()
    params = [RcptParams("NEVER"), RcptParams("SUCCESS,DELAY", "rfc822;b b@x.org")]
    mail = MailParams(smtputf8=True, ret="HDRS", envid="x=1 2")
    joined.client.send_message("ä@example.net", ["b@x.org", "ü@x.org"], [b"x\r\n"], mail, params)
    while not isinstance(joined.event(), MessageDone):
        pass
    got = [e for e in joined.server_events if not isinstance(e, MessageStart | MessageComplete)][1:]
    assert got[0].address == "ä@example.net"
    assert got[0].params == mail._replace(size=3)
    assert [(e.address, e.params) for e in got[1:]] == list(zip(["b@x.org", "ü@x.org"], params, strict=True))


@given(st.binary(max_size=200), st.integers(1, 50))
def test_any_content_arrives_or_is_refused(raw: bytes, size: int) -> None:
    """What has only CRLF arrives octet for octet; anything else is refused, and the connection stays in step."""
    joined = pair(size, True)
    for content in (
        raw,
        base64.encodebytes(raw).replace(b"\n", b"\r\n"),
        raw.replace(b"\r", b".").replace(b"\n", b"\r\n"),
    ):
        clean = content.count(b"\r") == content.count(b"\n") == content.count(b"\r\n") and b"\0" not in content
        before = len(joined.received())
        results = joined.message(["b@x.org"], [content])
        assert results == [(250 if clean else 550, "end of DATA")]
        if clean:
            end = b"" if content.endswith(b"\r\n") or not content else b"\r\n"
            assert joined.received()[before:] == [content + end]
