"""SMTP smuggling: nothing but CRLF.CRLF ends a message, and what follows a false end is never taken for commands."""

from collections.abc import Callable
from typing import Any

import pytest

from ptt.smtp import MailFrom

BEFORE = b"EHLO c\r\nMAIL FROM:<a@example.org>\r\nRCPT TO:<b@example.net>\r\nDATA\r\nSubject: carrier\r\n\r\ntext"
SMUGGLED = b"MAIL FROM:<evil@example.org>\r\nRCPT TO:<b@example.net>\r\nDATA\r\nSubject: smuggled\r\n"
AFTER = b"\r\n.\r\nNOOP\r\nQUIT\r\n"

BARE = [
    b"\n.\n",
    b"\n.\r\n",
    b"\r\n.\n",
    b"\r.\r",
    b"\r.\r\n",
    b"\r\n.\r",
    b"\n.\r",
    b"\r.\n",
    b"\r\r\n.\r\n\n",
    b"\n\n.\r\n",
    b"\r\n.\r\r\n",
    b"\r\n\x00.\n",
    b"\n\r\n.\n\r",
    b"\r\n.\n\r\n",
    b"\r\n.\0\r\n",
    b"\r\n\0.\r\n",
    b"\0",
]


@pytest.mark.parametrize("end", BARE, ids=repr)
def test_a_false_end_refuses_the_message(end: bytes, feed_all_ways: Callable[..., Any]) -> None:
    served = feed_all_ways(BEFORE + end + SMUGGLED + AFTER)
    mails = [e.address for e in served.events if isinstance(e, MailFrom)]
    replies = served.output.split(b"\r\n")
    assert not [e for e in served.events if isinstance(e, bytes)], "a message was taken"
    assert [r for r in replies if r.startswith(b"550 5.6.0")], replies
    if b"\r\n.\r\n" not in end:  # else the end was a true one, behind a bare CR: what follows are commands
        assert mails == ["a@example.org"]
        assert replies[-4].startswith(b"550 5.6.0")
        assert replies[-3].startswith(b"250 2.0.0")
    assert replies[-2].startswith(b"221")


@pytest.mark.parametrize("end", [b"\r\n..\r\n", b"\r\n. \r\n", b"\r\n.\t\r\n", b"\r\n.\x01\r\n"], ids=repr)
def test_what_only_looks_like_an_end_is_content(end: bytes, feed_all_ways: Callable[..., Any]) -> None:
    served = feed_all_ways(BEFORE + end + SMUGGLED + AFTER)
    messages = [e for e in served.events if isinstance(e, bytes)]
    assert len(messages) == 1
    assert b"evil@example.org" in messages[0]
    assert [e.address for e in served.events if isinstance(e, MailFrom)] == ["a@example.org"]


@pytest.mark.parametrize(
    "line",
    [
        b"NOOP\nMAIL FROM:<x@y.org>",
        b"NOOP\rMAIL FROM:<x@y.org>",
        b"NOOP\n\nRSET",
        b"\n",
        b"\rNOOP",
        b"NO\x00OP",
        b"NOOP\r",
    ],
    ids=repr,
)
def test_bare_line_ends_in_commands(line: bytes, feed_all_ways: Callable[..., Any]) -> None:
    served = feed_all_ways(b"EHLO c\r\n" + line + b"\r\nQUIT\r\n")
    replies = served.output.split(b"\r\n")
    assert replies[-3].startswith(b"500 5.5.2")
    assert replies[-2].startswith(b"221")
    assert not [e for e in served.events if isinstance(e, MailFrom)]


def test_a_bare_lf_is_answered_at_once(serve: Callable[..., Any]) -> None:
    """A client that ends its lines in LF is told so; it would wait for ever otherwise."""
    served = serve([b"EHLO c\n"])
    assert served.output.split(b"\r\n")[1].startswith(b"500 5.5.2")


def test_pipelined_behind_starttls(serve: Callable[..., Any]) -> None:
    served = serve([b"EHLO c\r\n", b"STARTTLS\r\nEHLO injected\r\n", b"NOOP\r\n"])
    assert served.output.endswith(b"\r\n554 5.5.1 Bytes behind STARTTLS, closing connection\r\n")
    assert served.events[-1].reason == "bytes behind STARTTLS"
    assert len(served.events) == 2  # Hello and Closed: "injected" was not executed


def test_bytes_in_clear_after_220(config: Any) -> None:
    from ptt.smtp import Closed, ServerSession

    session = ServerSession(config)
    session.receive_data(b"EHLO c\r\nSTARTTLS\r\n")
    session.next_event()
    session.accept()
    session.next_event()
    session.receive_data(b"NOOP\r\n")
    session.tls_started()
    assert isinstance(session.next_event(), Closed)
