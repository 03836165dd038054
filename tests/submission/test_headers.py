"""What submission adds to a header, and what it reads of it."""

import pytest

from ptt.submission import headers

HEADER = b"From: A <a@Example.ORG>,\r\n\tb@example.net\r\nSubject: =?x?=\r\n folded\r\nDATE: now\r\n"


@pytest.mark.parametrize(
    ("body", "header"),
    [
        (b"A: b\r\n\r\ntext\r\n", b"A: b\r\n"),
        (b"A: b\r\nC: d\r\n\r\n\r\n", b"A: b\r\nC: d\r\n"),
        (b"\r\ntext\r\n", b""),
        (b"A: b\r\n", b"A: b\r\n"),
        (b"", b""),
    ],
)
def test_header_of(body: bytes, header: bytes) -> None:
    assert headers.header_of(body) == header


def test_fields_are_found_whatever_their_case_and_unfolded() -> None:
    header = headers.of(HEADER)
    assert header.names == [b"from", b"subject", b"date"]
    assert headers.field(header, b"subject") == b"=?x?= folded"
    assert headers.field(header, b"date") == b"now"
    assert headers.field(header, b"ubject") is None
    assert headers.field(headers.of(b"X-Date: 1\r\n"), b"date") is None
    assert headers.fields(headers.of(b"a: 1\r\nB: x\r\nA : 2\r\n\t3\r\n"), b"a") == [b"1", b"2\t3"]


def test_from_addresses() -> None:
    assert headers.addresses(headers.field(headers.of(HEADER), b"from")) == ["a@example.org", "b@example.net"]
    assert headers.addresses(None) == []
    assert headers.addresses(b"x" * 20_000 + b"@example.org") == []


def test_completion_adds_only_what_is_missing() -> None:
    added = headers.completion(headers.of(b"Subject: x\r\n"), "u@a.example", "mail.example", "id1", 0.0)
    assert added == (
        b"Message-ID: <id1@mail.example>\r\nDate: Thu, 01 Jan 1970 00:00:00 -0000\r\nFrom: <u@a.example>\r\n"
    )
    whole = headers.of(b"date: x\r\nmessage-id: <y>\r\nFROM: z\r\n")
    assert headers.completion(whole, "u@a.example", "mail.example", "id1", 0.0) == b""


def test_hops() -> None:
    assert headers.hops(headers.of(b"Received: a\r\n" * 3 + b"X-Received: b\r\nreceived : c\r\n")) == 4


@pytest.mark.parametrize("helo", ["evil\r\nBcc: x", "a b", "<>", "ü.example", "x" * 1000])
def test_the_trace_field_is_one_field_whatever_the_client_calls_itself(helo: str) -> None:
    field = headers.received(
        helo=helo,
        client="127.0.0.1",
        hostname="mail.example",
        protocol="ESMTPSA",
        tls="TLSv1.3 X",
        shown_id="id1",
        recipient="r@example.net",
        now=0.0,
    )
    lines = field.split(b"\r\n")
    assert lines[-1] == b""
    assert lines[0].startswith(b"Received: from ")
    assert all(line.startswith(b"\t") for line in lines[1:-1])
    assert b" id id1" in field
    assert b"for <r@example.net>" in field


def test_a_hidden_client_is_nowhere_in_the_trace_field() -> None:
    field = headers.received(
        helo="pc.home",
        client="",
        hostname="mail.example",
        protocol="ESMTPSA",
        tls="",
        shown_id="id1",
        recipient="",
        now=0.0,
    )
    assert b"pc.home" not in field
    assert b"for <" not in field


@pytest.mark.parametrize("nested", [b"(" * 9_000, b"a:" * 4_000])
def test_a_from_field_that_nests_by_the_thousand_has_no_address(nested: bytes) -> None:
    assert headers.addresses(nested + b" a@example.org") == []


@pytest.mark.parametrize(
    ("value", "addresses"),
    [
        (b"a@B.org", ["a@b.org"]),
        (b"<a@b.org>", ["a@b.org"]),
        (b"A B <a.b+c@b.org>", ["a.b+c@b.org"]),
        (b'"q, <x@y.org>" <a@b.org>, c@d.org', ["a@b.org", "c@d.org"]),
        (b"A (not <x@y.org>) <a@b.org>", ["a@b.org"]),
        (b"=?utf-8?q?x?= <a@b.org>", ["a@b.org"]),
        (b"x", []),
    ],
)
def test_simple_and_other_froms(value: bytes, addresses: list[str]) -> None:
    assert headers.addresses(value) == addresses


@pytest.mark.parametrize(
    ("content", "has"),
    [(b"A: b\r\n\r\nx", True), (b"\r\nx", True), (b"", True), (b"just text\r\n", False), (b" folded: x\r\n", False)],
)
def test_content_without_a_header_is_recognised(content: bytes, has: bool) -> None:
    assert headers.has_header(content) is has
