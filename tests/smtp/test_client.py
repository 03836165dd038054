"""ClientSession against scripted servers: what is sent, and what each reply is taken for."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import pytest

from ptt.smtp import (
    NEED_DATA,
    AuthDone,
    ClientSession,
    Closed,
    FinalDot,
    MailParams,
    MessageDone,
    ProtocolError,
    RcptParams,
    Ready,
    Refused,
    Reply,
    ResetDone,
    Secret,
    TlsReady,
    TlsRefused,
)

GREETING = b"220 mx.example.net ESMTP\r\n"
EHLO = b"250-mx.example.net greets you\r\n250-PIPELINING\r\n250-SIZE 1000\r\n250 8BITMIME\r\n"
PLAIN_EHLO = b"250 mx.example.net\r\n"
BODY = [b"Subject: x\r\n\r\n", b".dot\r\nno end"]
STUFFED = b"Subject: x\r\n\r\n..dot\r\nno end\r\n"


def feed(client: ClientSession, data: bytes, bytewise: bool = False) -> tuple[list[Any], bytes]:
    """Feed, gather events until the client wants more, and what it sends."""
    events: list[Any] = []
    for piece in [data[i : i + 1] for i in range(len(data))] if bytewise else [data]:
        if piece:
            client.receive_data(piece)
        while (event := client.next_event()) is not NEED_DATA:
            events.append(event)
            if isinstance(event, Closed):
                return events, client.data_to_send()
    return events, client.data_to_send()


def ready(ehlo: bytes = EHLO, **flags: bool) -> ClientSession:
    """A client that has heard the greeting and the answer to EHLO."""
    client = ClientSession("relay.example.org", **flags)
    assert feed(client, GREETING) == ([], b"EHLO relay.example.org\r\n")
    events, sent = feed(client, ehlo)
    assert isinstance(events[0], Ready)
    assert not sent
    return client


def sending(recipients: Sequence[str] = ("b@example.net",), ehlo: bytes = EHLO) -> ClientSession:
    client = ready(ehlo)
    client.send_message("a@example.org", recipients, BODY, MailParams(body="8BITMIME"))
    return client


def outcome(event: MessageDone) -> list[tuple[int, str]]:
    return [(result.reply.code, result.phase) for result in event.results]


@pytest.mark.parametrize("bytewise", [False, True])
def test_a_pipelined_message(bytewise: bool) -> None:
    client = sending(["b@example.net", "c@example.net"])
    assert client.data_to_send() == (
        b"MAIL FROM:<a@example.org> SIZE=26 BODY=8BITMIME\r\n"
        b"RCPT TO:<b@example.net>\r\nRCPT TO:<c@example.net>\r\nDATA\r\n"
    )
    events, sent = feed(client, b"250 2.1.0 ok\r\n250 2.1.5 ok\r\n550 5.1.1 nobody\r\n354 go\r\n", bytewise)
    assert events == [FinalDot((0,))]
    assert sent == STUFFED + b".\r\n"
    events, sent = feed(client, b"250 2.0.0 queued as 1\r\n", bytewise)
    assert [outcome(e) for e in events] == [[(250, "end of DATA"), (550, "RCPT")]]
    assert events[0].results[1].reply == Reply(550, "5.1.1", "nobody")
    assert client.reusable
    client.quit()
    assert client.data_to_send() == b"QUIT\r\n"
    assert feed(client, b"221 bye\r\n")[0] == [Closed("QUIT", Reply(221, "", "bye"))]


def test_one_by_one_without_pipelining() -> None:
    client = sending(["b@example.net", "c@example.net"], PLAIN_EHLO)
    assert client.data_to_send() == b"MAIL FROM:<a@example.org>\r\n"
    assert feed(client, b"250 ok\r\n") == ([], b"RCPT TO:<b@example.net>\r\n")
    assert client.phase == "RCPT"
    assert feed(client, b"450 later\r\n") == ([], b"RCPT TO:<c@example.net>\r\n")
    assert feed(client, b"250 ok\r\n") == ([], b"DATA\r\n")
    assert feed(client, b"354 go\r\n") == ([FinalDot((1,))], STUFFED + b".\r\n")
    events, _ = feed(client, b"250 ok\r\n")
    assert outcome(events[0]) == [(450, "RCPT"), (250, "end of DATA")]


def test_the_final_dot_leaves_only_after_it_was_told() -> None:
    client = sending()
    client.data_to_send()
    client.receive_data(b"250 ok\r\n250 ok\r\n354 go\r\n")
    assert client.next_event() == FinalDot((0,))
    assert not client.final_dot
    assert client.data_to_send() == STUFFED
    assert client.next_event() is NEED_DATA
    assert client.final_dot
    assert client.data_to_send() == b".\r\n"
    assert client.phase == "end of DATA"
    assert client.interrupted() == [None]


def test_a_large_content_is_not_joined() -> None:
    client = ready()
    large = b"x" * 100_000 + b"\r\n"
    client.send_message("a@example.org", ["b@example.net"], [b"A: b\r\n\r\n", large])
    client.data_to_send()
    client.receive_data(b"250 ok\r\n250 ok\r\n354 go\r\n")
    client.next_event()
    client.next_event()
    pieces = client.pieces_to_send()
    assert pieces == [b"A: b\r\n\r\n", large, b".\r\n"]
    assert pieces[1] is large


# what the server says to a pipelined group of MAIL, RCPT, RCPT, DATA; what is sent then, what it says to that;
# the results
REFUSALS: list[tuple[bytes, bytes, bytes, list[tuple[int, str]]]] = [
    (b"550 no\r\n503 no\r\n503 no\r\n503 no\r\n", b"", b"", [(550, "MAIL")] * 2),
    (b"450 no\r\n250 ok\r\n250 ok\r\n503 no\r\n", b"", b"", [(450, "MAIL")] * 2),
    (b"250 ok\r\n550 a\r\n450 b\r\n554 none\r\n", b"", b"", [(550, "RCPT"), (450, "RCPT")]),
    (b"250 ok\r\n550 a\r\n450 b\r\n354 go\r\n", b".\r\n", b"554 no\r\n", [(550, "RCPT"), (450, "RCPT")]),
    (b"250 ok\r\n550 a\r\n450 b\r\n354 go\r\n", b".\r\n", b"250 what\r\n", [(550, "RCPT"), (450, "RCPT")]),
    (b"550 no\r\n250 ok\r\n250 ok\r\n354 go\r\n", b".\r\n", b"250 what\r\n", [(550, "MAIL")] * 2),
    (b"250 ok\r\n250 ok\r\n550 b\r\n451 later\r\n", b"", b"", [(451, "DATA"), (550, "RCPT")]),
    (b"250 ok\r\n250 ok\r\n250 ok\r\n354 go\r\n", STUFFED + b".\r\n", b"552 big\r\n", [(552, "end of DATA")] * 2),
]


@pytest.mark.parametrize("bytewise", [False, True])
@pytest.mark.parametrize(("group", "then", "last", "results"), REFUSALS)
def test_refusals(group: bytes, then: bytes, last: bytes, results: list[tuple[int, str]], bytewise: bool) -> None:
    client = sending(["b@example.net", "c@example.net"])
    client.data_to_send()
    events, sent = feed(client, group, bytewise)
    assert sent == then
    if last:
        events, _ = feed(client, last, bytewise)
    assert outcome(events[-1]) == results
    assert client.reusable


@pytest.mark.parametrize(
    ("replies", "results", "sent"),
    [
        ([b"550 no\r\n"], [(550, "MAIL")] * 2, []),
        ([b"250 ok\r\n", b"550 a\r\n", b"450 b\r\n"], [(550, "RCPT"), (450, "RCPT")], [b"RCPT", b"RCPT"]),
        (
            [b"250 ok\r\n", b"250 a\r\n", b"450 b\r\n", b"451 c\r\n"],
            [(451, "DATA"), (450, "RCPT")],
            [b"RCPT"] * 2 + [b"DATA"],
        ),
    ],
)
def test_refusals_one_by_one(replies: list[bytes], results: list[tuple[int, str]], sent: list[bytes]) -> None:
    client = sending(["b@example.net", "c@example.net"], PLAIN_EHLO)
    client.data_to_send()
    commands = []
    for reply in replies:
        events, out = feed(client, reply)
        commands.append(out[:4])
    assert [c for c in commands if c] == sent
    assert outcome(events[-1]) == results


@pytest.mark.parametrize("answered", range(5))
def test_421_settles_all_that_is_open(answered: int) -> None:
    """421 to the n-th reply of a pipelined message: the server closes, and nothing is left without a result."""
    client = sending(["b@example.net", "c@example.net"])
    client.data_to_send()
    normal = [b"250 ok\r\n", b"550 b\r\n", b"250 ok\r\n", b"354 go\r\n", b""]
    feed(client, b"".join(normal[:answered]))
    events, _ = feed(client, b"421 4.3.2 away\r\n")
    phase = ["MAIL", "RCPT", "RCPT", "DATA", "end of DATA"][answered]
    assert outcome(events[0]) == [(421, phase) if answered < 2 else (550, "RCPT"), (421, phase)]
    assert isinstance(events[1], Closed)
    assert events[1].reply == Reply(421, "4.3.2", "away")
    assert not client.reusable


def test_421_while_idle() -> None:
    client = ready()
    assert feed(client, b"421 4.4.2 idle\r\n")[0] == [Closed("server closes", Reply(421, "4.4.2", "idle"))]


@pytest.mark.parametrize(
    ("replies", "phase", "code"),
    [
        ([b"554 go away\r\n"], "greeting", 554),
        ([b"421 busy\r\n"], "greeting", 421),
        ([GREETING, b"450 later\r\n"], "EHLO", 450),
        ([GREETING, b"550 no\r\n", b"550 no\r\n"], "HELO", 550),
    ],
)
def test_refused_before_it_began(replies: list[bytes], phase: str, code: int) -> None:
    client = ClientSession("c")
    for reply in replies:
        events, _ = feed(client, reply)
    assert isinstance(events[0], Refused)
    assert (events[0].phase, events[0].reply.code) == (phase, code)


def test_helo_where_ehlo_is_unknown() -> None:
    client = ClientSession("c")
    feed(client, GREETING)
    assert feed(client, b"502 what\r\n") == ([], b"HELO c\r\n")
    events, _ = feed(client, b"250 hello\r\n250-SIZE 1\r\n"[:11])
    assert isinstance(events[0], Ready)
    assert not client.capabilities.keywords


def test_starttls() -> None:
    client = ready(b"250-mx\r\n250-PIPELINING\r\n250 STARTTLS\r\n")
    assert client.capabilities.starttls
    client.start_tls()
    assert client.data_to_send() == b"STARTTLS\r\n"
    assert feed(client, b"220 go\r\n") == ([TlsReady()], b"")
    client.tls_started()
    assert client.tls
    assert not client.capabilities.pipelining, "what was said in clear is forgotten"
    assert client.data_to_send() == b"EHLO relay.example.org\r\n"
    assert isinstance(feed(client, PLAIN_EHLO)[0][0], Ready)


def test_starttls_refused() -> None:
    client = ready()
    client.start_tls()
    assert feed(client, b"454 4.7.0 not now\r\n")[0] == [TlsRefused(Reply(454, "4.7.0", "not now"))]
    assert client.reusable


@pytest.mark.parametrize("late", [False, True])
def test_bytes_behind_the_reply_to_starttls(late: bool) -> None:
    client = ready()
    client.start_tls()
    client.receive_data(b"220 go\r\n" + (b"" if late else b"250 injected\r\n"))
    if late:
        assert isinstance(client.next_event(), TlsReady)
        client.receive_data(b"2")
        with pytest.raises(ProtocolError, match="in clear"):
            client.tls_started()
    else:
        with pytest.raises(ProtocolError, match="in clear"):
            client.next_event()


AUTH_EHLO = b"250-mx\r\n250-AUTH LOGIN PLAIN\r\n250 AUTH=LOGIN\r\n"


def test_auth_plain() -> None:
    client = ready(AUTH_EHLO)
    client.auth("user", Secret("pass"))
    assert client.data_to_send() == b"AUTH PLAIN " + base64.b64encode(b"\0user\0pass") + b"\r\n"
    assert feed(client, b"235 ok\r\n")[0] == [AuthDone(Reply(235, "", "ok"))]


def test_auth_login() -> None:
    client = ready(AUTH_EHLO)
    client.auth("user", Secret("pass"), "LOGIN")
    assert client.data_to_send() == b"AUTH LOGIN\r\n"
    assert feed(client, b"334 VXNlcm5hbWU6\r\n") == ([], base64.b64encode(b"user") + b"\r\n")
    assert feed(client, b"334 UGFzc3dvcmQ6\r\n") == ([], base64.b64encode(b"pass") + b"\r\n")
    events, _ = feed(client, b"535 5.7.8 no\r\n")
    assert not events[0].reply.ok


def test_auth_that_cannot_be() -> None:
    with pytest.raises(ProtocolError):
        ready().auth("user", Secret("pass"))
    client = ready(AUTH_EHLO)
    client.auth("user", Secret("pass"))
    client.receive_data(b"334 more\r\n")
    with pytest.raises(ProtocolError):
        client.next_event()


def test_reuse_and_reset() -> None:
    client = sending()
    client.data_to_send()
    feed(client, b"250 ok\r\n550 no\r\n554 no\r\n")
    client.send_message("a@example.org", ["c@example.net"], BODY)
    assert client.data_to_send().startswith(b"RSET\r\nMAIL FROM:"), "a half transaction is reset first"
    feed(client, b"250 ok\r\n250 ok\r\n250 ok\r\n354 go\r\n")
    events, _ = feed(client, b"250 ok\r\n")
    assert outcome(events[0]) == [(250, "end of DATA")]
    client.send_message("a@example.org", ["d@example.net"], BODY)
    assert client.data_to_send().startswith(b"MAIL FROM:"), "nothing to reset behind a delivered message"
    assert not client.final_dot
    feed(client, b"550 no\r\n503 no\r\n503 no\r\n")
    client.reset()
    assert client.data_to_send() == b"RSET\r\n"
    assert feed(client, b"250 ok\r\n")[0] == [ResetDone(Reply(250, "", "ok"))]


def test_a_refused_rset_settles_the_message() -> None:
    client = sending()
    client.data_to_send()
    feed(client, b"250 ok\r\n550 no\r\n554 no\r\n")
    client.send_message("a@example.org", ["c@example.net"], BODY)
    events, sent = feed(client, b"500 what\r\n503 no\r\n503 no\r\n503 no\r\n")
    assert outcome(events[0]) == [(500, "RSET")]
    assert b"RSET" in sent


def test_a_thousand_recipients_go_in_groups() -> None:
    client = ready()
    recipients = [f"r{i}@example.net" for i in range(1000)]
    client.send_message("a@example.org", recipients, BODY)
    groups = 0
    while True:
        sent = client.data_to_send()
        assert sent.count(b"\r\n") <= 100
        groups += 1
        answer = b"250 ok\r\n" * (sent.count(b"MAIL") + sent.count(b"RCPT")) + b"354 go\r\n" * sent.count(b"DATA")
        client.receive_data(answer)
        if (event := client.next_event()) is not NEED_DATA:
            break
    assert event == FinalDot(tuple(range(1000)))
    assert groups == 11


def test_parameters_go_where_they_are_understood() -> None:
    client = ready(b"250-mx\r\n250-PIPELINING\r\n250-DSN\r\n250-SMTPUTF8\r\n250 XPRIO\r\n")
    mail = MailParams(size=7, body="8BITMIME", smtputf8=True, ret="HDRS", envid="a+b=c", extra=(("XNO", "1"),))
    client.send_message("µ@example.org", ["b@example.net"], BODY, mail, [RcptParams("NEVER", "rfc822;x y@d")])
    assert client.data_to_send().decode().split("\r\n")[:2] == [
        "MAIL FROM:<µ@example.org> SMTPUTF8 RET=HDRS ENVID=a+2Bb+3Dc",
        "RCPT TO:<b@example.net> NOTIFY=NEVER ORCPT=rfc822;x+20y@d",
    ]


@pytest.mark.parametrize("address", ["a\r\nRSET@b.org", "a\n@b.org", "a\0@b.org", "µ@b.org"])
def test_an_address_that_cannot_be_sent(address: str) -> None:
    client = ready()
    for sender, recipient in ((address, "b@example.net"), ("a@example.org", address)):
        with pytest.raises(ValueError, match="cannot be sent"):
            client.send_message(sender, [recipient], BODY)
        assert client.data_to_send() == b""
        assert client.reusable


def test_an_early_refusal_is_believed() -> None:
    client = sending()
    client.data_to_send()
    client.receive_data(b"250 ok\r\n250 ok\r\n354 go\r\n552 5.3.4 enough\r\n")
    assert isinstance(client.next_event(), FinalDot)
    event = client.next_event()
    assert isinstance(event, MessageDone)
    assert outcome(event) == [(552, "end of DATA")]
    assert not client.final_dot
    assert isinstance(client.next_event(), Closed)
    assert client.data_to_send() == b""


@pytest.mark.parametrize(
    "wire",
    [
        b"250 2.0.0 early\r\n",  # success before the end of the content
        b"354 again\r\n",
    ],
)
def test_an_early_success_is_a_lie(wire: bytes) -> None:
    client = sending()
    client.data_to_send()
    client.receive_data(b"250 ok\r\n250 ok\r\n354 go\r\n" + wire)
    assert isinstance(client.next_event(), FinalDot)
    with pytest.raises(ProtocolError):
        client.next_event()
    assert client.interrupted() == [None]
    assert not client.final_dot


@pytest.mark.parametrize(
    "replies",
    [
        b"250 ok\r\n250 ok\r\n250 not 354\r\n",
        b"354 no\r\n",
        b"250 ok\r\n334 no\r\n",
        b"hello\r\n",
        b"150 soon\r\n",
        b"999 what\r\n",
        b"25\r\n",
        b"\r\n",
        b"250-a\r\n251 b\r\n",
        b"250 bare\nlf\r\n",
        b"250 bare\n",
        b"250 bare\rcr\r\n",
        b"250 " + b"x" * 2100,
        b"250 " + b"x" * 2100 + b"\r\n",
        b"250-x\r\n" * 5000,
        b"250-x\r\n" * 5000 + b"250 x\r\n",
        b"250\xc2\xa0ok\r\n",
    ],
    ids=lambda b: repr(b[:20]),
)
@pytest.mark.parametrize("bytewise", [False, True])
def test_a_server_that_breaks_the_protocol(replies: bytes, bytewise: bool) -> None:
    client = sending()
    client.data_to_send()
    with pytest.raises(ProtocolError):
        feed(client, replies, bytewise)


def test_a_reply_to_no_command() -> None:
    client = ready()
    with pytest.raises(ProtocolError, match="no command"):
        feed(client, b"250 surprise\r\n")


@pytest.mark.parametrize("bytewise", [False, True])
@pytest.mark.parametrize(
    ("wire", "reply"),
    [
        (b"550 5.1.1 no\r\n", Reply(550, "5.1.1", "no")),
        (b"550-5.1.1 no\r\n550 5.1.1 really\r\n", Reply(550, "5.1.1", "no\nreally")),
        (b"550-no\r\n550 5.1.1 really\r\n", Reply(550, "5.1.1", "no\nreally")),
        (b"550 4.1.1 odd class\r\n", Reply(550, "", "4.1.1 odd class")),
        (b"550 5.1.1\r\n", Reply(550, "5.1.1", "")),
        (b"550\r\n", Reply(550, "", "")),
        (b"550 5.1.1234 x\r\n", Reply(550, "", "5.1.1234 x")),
        ("550 5.1.1 schöne Grüße\r\n".encode(), Reply(550, "5.1.1", "schöne Grüße")),
        (b"550 5.1.1 \xff\xfe\r\n", Reply(550, "5.1.1", "\ufffd\ufffd")),
    ],
)
def test_replies(wire: bytes, reply: Reply, bytewise: bool) -> None:
    client = sending()
    client.data_to_send()
    events, _ = feed(client, wire + b"503 x\r\n" * 2, bytewise)
    assert events[0].results[0].reply == reply


@pytest.mark.parametrize("wire", [b"", b"250 ok\r\n", b"250 ok\r\n250 ok\r\n354 go\r\n", b"250 ok\r\n25"])
def test_the_server_cuts(wire: bytes) -> None:
    client = sending()
    client.data_to_send()
    feed(client, wire)
    client.receive_data(b"")
    event = client.next_event()
    assert isinstance(event, Closed)
    assert event.reply is None
    assert client.interrupted() == [None]
    assert client.final_dot == (b"354" in wire)


def test_what_is_known_when_it_breaks() -> None:
    client = sending(["b@example.net", "c@example.net", "d@example.net"])
    client.data_to_send()
    feed(client, b"250 ok\r\n550 5.1.1 nobody\r\n250 ok\r\n")
    assert [r and r.reply.code for r in client.interrupted()] == [550, None, None]
    assert client.phase == "RCPT"


def test_driver_mistakes_are_told() -> None:
    client = sending()
    with pytest.raises(RuntimeError):
        client.send_message("a@example.org", ["b@example.net"], BODY)
    with pytest.raises(RuntimeError):
        client.quit()
    with pytest.raises(RuntimeError):
        client.tls_started()
    with pytest.raises(RuntimeError):
        ready().send_message("a@example.org", [], BODY)


def test_capabilities() -> None:
    c = ready(
        b"250-mx\r\n250-size 10240000\r\n250-AUTH LOGIN\r\n250-AUTH=PLAIN\r\n250-DSN\r\n250 SMTPUTF8\r\n"
    ).capabilities
    assert c.size == 10_240_000
    assert c.auth == {"LOGIN", "PLAIN"}
    assert c.dsn
    assert c.smtputf8
    assert "SIZE" in c
    assert not c.eightbitmime
    for nonsense in (b"SIZE 0", b"SIZE", b"SIZE x", b"SIZE " + b"9" * 30, b"SIZE \xc2\xb2"):
        assert ready(b"250-mx\r\n250 " + nonsense + b"\r\n").capabilities.size is None
