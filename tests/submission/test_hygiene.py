"""What is refused in a header that a user submits, and that nothing else is."""

import re

import pytest

from ptt.message import Envelope
from ptt.submission import headers, hygiene

GOOD = b"From: a@b.test\r\nSubject: x\r\n"


def reason(header: bytes, smtputf8: bool = False, binary: bool = False) -> str:
    envelope = Envelope("a@b.test", 0, smtputf8=smtputf8, binary=binary)
    reply = hygiene.fault(headers.read(header + b"\r\ntext\r\n"), envelope)
    assert reply is None or (reply.code, reply.enhanced) == (550, "5.6.0")
    return reply.text if reply else ""


@pytest.mark.parametrize(
    "header",
    [
        b"",
        GOOD,
        GOOD + b"X: folded\r\n more\r\n\tmore\r\n",
        GOOD + b"X: folded over a line of blanks\r\n \r\n more\r\n",  # obs-FWS, RFC 5322 4.2
        GOOD + b"To : space before the colon\r\n",  # obs-optional, RFC 5322 4.5
        GOOD + b"Received: a\r\nReceived: b\r\nX: 1\r\nX: 2\r\nResent-To: a\r\nResent-To: b\r\n",
        GOOD + b"Bcc: a\r\nBcc: b\r\nReturn-Path: <>\r\nReturn-Path: <>\r\n",  # taken out
        GOOD + b"X: \x1b$B%F%9%H\x1b(B \xe9\r\n",  # raw ISO-2022-JP, raw Latin-1
        GOOD + b"X:\r\n",
    ],
)
def test_what_is_carried(header: bytes) -> None:
    assert reason(header) == ""


@pytest.mark.parametrize(
    ("header", "text"),
    [
        (GOOD + b"no field\r\n", r"line 3 .*: 'no field'"),
        (GOOD + b"two words: x\r\nX: y\r\n", r"line 3 .*: 'two words: x'"),
        (GOOD + b": x\r\n", r"line 3 "),
        (GOOD + b"\xc3\xa4: x\r\n", r"line 3 .*: '\?: x'"),
        (b"A: b\r\n c\r\n\xff\x80" + b"d" * 5000 + b"\r\n", r"line 3 .{,140}$"),
        (GOOD + b"X: a\0b\r\n", "line 3 .*0x00"),
        (GOOD + b"X: a\r\n \x7f\r\n", "line 4 .*0x7f"),
        (b"X\x0b: a\r\n", ""),  # no field: this is text
        *[(name + b": 1\r\n" + GOOD + name.upper() + b" :\r\n", "more than one") for name in hygiene.SINGLE],
    ],
)
def test_what_is_refused(header: bytes, text: str) -> None:
    found = reason(header)
    assert bool(found) == bool(text)
    assert re.search(text, found), found


def test_smtputf8_promises_utf8() -> None:
    latin = GOOD + b"X: y\r\n caf\xe9\r\n"
    assert reason(latin, smtputf8=True).startswith("line 4 ")
    assert reason(latin) == ""
    assert reason(GOOD + "X: café\r\n".encode(), smtputf8=True) == ""


@pytest.mark.parametrize("bare", [b"X: a\nBcc: b\r\n", b"X: a\rb\r\n", b"X: a\n\nb\r\n"])
def test_only_a_body_is_binary(bare: bytes) -> None:
    assert "bare" in reason(GOOD + bare, binary=True)
    assert reason(GOOD, binary=True) == ""


@pytest.mark.parametrize("line", [b"From a@b Thu Jan 1 00:00:00 1970\r\n", b">From a@b\r\n"])
def test_a_mailbox_file_is_no_message(line: bytes) -> None:
    refused = hygiene.separator(line + GOOD)
    assert refused is not None
    assert refused.code == 550
    assert hygiene.separator(GOOD + line) is None


def test_a_large_header_costs_milliseconds() -> None:
    """Each of these was quadratic or backtracked with a careless expression."""
    n = 250_000
    for header in (b"To:\r\n" * (n // 5), b"A: b\r\n" + b" \r\n" * (n // 3), b"a" * n + b": x\r\n", b"Bcc" + b" " * n):
        known = headers.of(header)
        hygiene.fault(known, Envelope("", 0, smtputf8=True))
        assert headers.of(hygiene.without(known).raw).names == hygiene.without(known).names
