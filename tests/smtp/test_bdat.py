"""CHUNKING and BINARYMIME (RFC 3030) as the server's session answers them: nothing of a chunk is ever a command."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from ptt.smtp import NEED_DATA, Closed, MailFrom, MessageComplete, MessageStart, Reply, ServerConfig, ServerSession
from ptt.smtp.conduct import Refusal
from ptt.smtp.states import State

CONFIG = ServerConfig("mx.example.org", chunking=True, binarymime=True, max_message_bytes=100)
ENVELOPE = b"EHLO c\r\nMAIL FROM:<a@b.org>\r\nRCPT TO:<c@d.org>\r\n"
BINARY = b"EHLO c\r\nMAIL FROM:<a@b.org> BODY=BINARYMIME\r\nRCPT TO:<c@d.org>\r\n"
COMMAND = b"MAIL FROM:<evil@b.org>\r\n"  # 24 octets: as content never executed


def codes(served: Any, skip: int) -> list[str]:
    """The codes behind those of the greeting, EHLO and ``skip`` further replies."""
    lines = [x for x in served.output.decode().split("\r\n")[:-1] if x[3] == " "]
    return [" ".join(line.split()[:2]) if line[4].isdigit() else line[:3] for line in lines[2 + skip :]]


def contents(served: Any) -> list[bytes]:
    return [e for e in served.events if isinstance(e, bytes)]


OK, DONE = "250 2.0.0", "250 2.0.0"


@pytest.mark.parametrize(
    ("wire", "answers", "got"),
    [
        (b"BDAT 5 LAST\r\nabc\r\n", [DONE], [b"abc\r\n"]),
        (b"BDAT 3\r\nabcBDAT 2 LAST\r\n\r\n", [OK, DONE], [b"abc\r\n"]),
        (b"BDAT 5\r\nabc\r\nBDAT 0 LAST\r\n", [OK, DONE], [b"abc\r\n"]),
        (b"BDAT 0\r\nBDAT 0\r\nBDAT 5 LAST\r\nabc\r\n", [OK, OK, DONE], [b"abc\r\n"]),
        (b"BDAT 0 LAST\r\n", [DONE], [b""]),
        (b"bdat 4 last\r\nabc\rBDAT 0\r\n", ["550 5.6.0", "503 5.5.1"], []),  # LF missing at the end
        (b"BDAT 4\r\nabc\rBDAT 1 LAST\r\n\n", [OK, DONE], [b"abc\r\n"]),  # CRLF across the border
        (b"BDAT 3 LAST\r\nabc", [DONE], [b"abc\r\n"]),  # the last line gets its end
        (b"BDAT 8 LAST\r\n.\r\n..\r\n.", [DONE], [b".\r\n..\r\n.\r\n"]),  # not stuffed, not unstuffed
        (b"BDAT 24\r\n" + COMMAND + b"NOOP\r\nBDAT 24 LAST\r\n" + COMMAND, [OK, OK, DONE], [COMMAND * 2]),
        (b"BDAT 3\r\nabcRSET\r\nBDAT 3 LAST\r\nabc", [OK, OK, "503 5.5.1"], []),
        (b"BDAT 3\r\nabcDATA\r\nRCPT TO:<x@y.org>\r\nMAIL FROM:<x@y.org>\r\n", [OK] + ["503 5.5.1"] * 3, []),
        (b"BDAT 3\r\nabcDATA\r\nBDAT 2 LAST\r\n\r\n", [OK, "503 5.5.1", DONE], [b"abc\r\n"]),
        (b"BDAT 3\r\nabcEHLO d\r\nBDAT 3 LAST\r\nabc", [OK, "250", "503 5.5.1"], []),
        (b"BDAT 5 LAST\r\nabc\r\nBDAT 24 LAST\r\n" + COMMAND, [DONE, "503 5.5.1"], [b"abc\r\n"]),
        (b"DATA\r\nBDAT 5 LAST\r\n.\r\n", ["354", DONE], [b"BDAT 5 LAST\r\n"]),
        (b"BDAT 101 LAST\r\n" + b"x" * 77 + COMMAND + b"NOOP\r\n", ["552 5.3.4", OK], []),
        (
            b"BDAT 50\r\n" + b"x" * 50 + b"BDAT 51\r\n" + b"y" * 51 + b"BDAT 0 LAST\r\n",
            [OK, "552 5.3.4", "503 5.5.1"],
            [],
        ),
        (b"BDAT 4 LAST\r\na\nb\nNOOP\r\n", ["550 5.6.0", OK], []),
        (b"BDAT 4 LAST\r\na\0b\nNOOP\r\n", ["550 5.6.0", OK], []),
        (
            b"BDAT 4\r\na\nb\nBDAT 24\r\n" + COMMAND + b"BDAT 24 LAST\r\n" + COMMAND,
            ["550 5.6.0"] + ["503 5.5.1"] * 2,
            [],
        ),
    ],
    ids=repr,
)
def test_chunks_of_text(wire: bytes, answers: list[str], got: list[bytes], feed_all_ways: Callable[..., Any]) -> None:
    served = feed_all_ways(ENVELOPE + wire, CONFIG)
    assert codes(served, 2) == answers
    assert contents(served) == got
    assert [e.address for e in served.events if isinstance(e, MailFrom)] == ["a@b.org"]


@pytest.mark.parametrize(
    ("before", "answer"),
    [
        (b"", "503 5.5.1"),
        (b"EHLO c\r\n", "503 5.5.1"),
        (b"EHLO c\r\nMAIL FROM:<a@b.org>\r\n", "503 5.5.1"),
        (b"EHLO c\r\nMAIL FROM:<a@b.org>\r\nRCPT TO:<unknown@b.org>\r\n", "503 5.5.1"),
    ],
)
def test_a_chunk_out_of_sequence(before: bytes, answer: str, feed_all_ways: Callable[..., Any]) -> None:
    served = feed_all_ways(before + b"BDAT 24\r\n" + COMMAND + b"BDAT 24 LAST\r\n" + COMMAND + b"NOOP\r\n", CONFIG)
    assert codes(served, -2)[-3:] == [answer, answer, OK]
    assert not [e for e in served.events if isinstance(e, MailFrom) and e.address.startswith("evil")]


@pytest.mark.parametrize("change", [{"chunking": False, "binarymime": False}, {"require_tls": True}])
def test_a_chunk_where_it_is_not_taken(change: dict[str, bool], feed_all_ways: Callable[..., Any]) -> None:
    config = dataclasses.replace(CONFIG, **change)
    served = feed_all_ways(b"EHLO c\r\nBDAT 24 LAST\r\n" + COMMAND + b"NOOP\r\n", config)
    assert codes(served, 0) == ["530 5.7.0" if "require_tls" in change else "502 5.5.1", OK]


@pytest.mark.parametrize(
    "line",
    [
        b"BDAT",
        b"BDAT x",
        b"BDAT -1",
        b"BDAT 1 FIRST",
        b"BDAT\t5 LAST",
        b"BDAT 5\n LAST",
        b"BDAT 5\r LAST",
        b"bdat \0005",
    ],
    ids=repr,
)
def test_without_a_count_the_session_ends(line: bytes, serve: Callable[..., Any]) -> None:
    """What follows may be content: none of it is taken for a command, however it comes."""
    wire = ENVELOPE + line + b"\r\n" + COMMAND
    for pieces in ([wire], [wire[i : i + 1] for i in range(len(wire))]):
        served = serve(pieces, CONFIG)
        assert codes(served, 2) == ["501 5.5.4"]
        assert isinstance(served.events[-1], Closed)
        assert len([e for e in served.events if isinstance(e, MailFrom)]) == 1


def test_a_long_line_of_bdat_gives_up_the_transaction(feed_all_ways: Callable[..., Any]) -> None:
    long = b"BDAT " + b" " * 600 + b"24 LAST\r\n" + COMMAND
    served = feed_all_ways(ENVELOPE + b"BDAT 3\r\nabc" + long + b"BDAT 24 LAST\r\n" + COMMAND, CONFIG)
    assert codes(served, 2) == [OK, "500 5.5.2", "503 5.5.1"]
    assert not contents(served)


@pytest.mark.parametrize("content", [b"A: b\r\n\r\n\r\n.\n.\r\n\0" + b"x" * 50, b"A: b\r\n\r\n" + bytes(range(60))])
def test_binary_octet_for_octet(content: bytes, feed_all_ways: Callable[..., Any]) -> None:
    half = len(content) // 2
    wire = b"BDAT %d\r\n%bBDAT %d LAST\r\n%b" % (half, content[:half], len(content) - half, content[half:])
    served = feed_all_ways(BINARY + wire, CONFIG)
    assert contents(served) == [content]


def test_binary_needs_bdat(feed_all_ways: Callable[..., Any]) -> None:
    served = feed_all_ways(BINARY + b"DATA\r\nBDAT 9 LAST\r\nA: b\r\n\r\n\n", CONFIG)
    assert codes(served, 2) == ["503 5.5.1", DONE]


def test_the_event_says_whether_it_is_binary() -> None:
    for wire, binary in ((ENVELOPE, False), (BINARY, True)):
        session = ServerSession(CONFIG)
        session.receive_data(wire + b"BDAT 10 LAST\r\nA: b\r\n\r\nxx")
        complete = [e for e in events(session) if isinstance(e, MessageComplete)]
        assert [e.binary for e in complete] == [binary]


def events(session: ServerSession, refuse: type | None = None, reply: Reply | None = None) -> list[Any]:
    found = []
    while (event := session.next_event()) is not NEED_DATA and not isinstance(event, Closed):
        found.append(event)
        if refuse is not None and isinstance(event, refuse) and reply is not None:
            session.refuse(reply)
        else:
            session.accept()
    return found


@pytest.mark.parametrize("refuse", [MessageStart, MessageComplete])
def test_the_driver_refuses(refuse: type) -> None:
    session = ServerSession(CONFIG)
    session.receive_data(ENVELOPE + b"BDAT 24 LAST\r\n" + COMMAND[:20])
    events(session, refuse, Reply(452, "4.3.1", "full"))
    assert b"452" not in session.data_to_send()  # the octets are not read yet
    session.receive_data(COMMAND[20:] + b"NOOP\r\n")
    events(session, refuse, Reply(452, "4.3.1", "full"))
    assert session.data_to_send().startswith(b"452 4.3.1 full\r\n250 ")
    assert session.state is State.READY
    assert not session.receiving


def test_chunks_sent_ahead_of_a_refusal_are_no_mistakes(serve: Callable[..., Any]) -> None:
    ahead = (b"BDAT 24\r\n" + COMMAND) * 300 + b"BDAT 0 LAST\r\n"
    served = serve([ENVELOPE + b"BDAT 1\r\n\n" + ahead + b"NOOP\r\n"], CONFIG)
    assert codes(served, 2) == ["550 5.6.0"] + ["503 5.5.1"] * 301 + [OK]
    assert served.session.conduct.take_refused() == {Refusal(550, "bare_line_end"): 1, Refusal(503, "sequence"): 301}
    assert not served.session.conduct.has_refused


@pytest.mark.parametrize("before", [b"", ENVELOPE])
def test_empty_chunks_without_end(before: bytes, serve: Callable[..., Any]) -> None:
    served = serve([before + b"BDAT 0\r\n" * 200], CONFIG)
    assert served.output.endswith(b"421 4.7.0 Too many errors, closing connection\r\n")
    assert served.output.count(b"\r\n") < 120


def test_memory_while_a_huge_chunk_is_thrown_away() -> None:
    session = ServerSession(CONFIG)
    session.receive_data(ENVELOPE + b"BDAT 99999999999999999999 LAST\r\n")
    for _ in range(200):
        events(session)
        session.receive_data(b"x" * 65_536)
        assert session._intake.held == 0
        assert len(session._in.buffer) <= 65_536


def test_a_configuration_that_makes_no_sense() -> None:
    with pytest.raises(ValueError, match="CHUNKING"):
        ServerConfig("mx.example.org", binarymime=True)
    with pytest.raises(ValueError, match="8BITMIME"):
        ServerConfig("mx.example.org", smtputf8=True, eightbitmime=False)
