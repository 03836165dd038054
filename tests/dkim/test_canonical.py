"""Canonical forms against RFC 6376 and, bit for bit, against dkimpy: on generated mail and on mail of others."""

import hashlib
import re

import dkim
import pytest
from dkim.canonicalization import Relaxed, Simple
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ptt.dkim import canonical
from ptt.dkim.canonical import Body, Canon, body_hash, body_start, canonical_body, header_fields

REFERENCE = {"relaxed": Relaxed, "simple": Simple}
FORMS: list[Canon] = ["relaxed", "simple"]

# Bytes that matter, often; and any other but bare CR and LF, which never reach the signer.
PIECES = st.sampled_from(
    [b" ", b"\t", b"\r\n", b"a", b":", b"\xe4", b"\x0c", b"  ", b" \t ", b"\r\n\r\n", b"b=", b"\0"]
)
BODIES = st.lists(PIECES | st.binary(max_size=4).map(lambda b: re.sub(rb"[\r\n]", b"-", b)), max_size=40).map(b"".join)


def ended(body: bytes) -> bytes:
    """As SMTP sends it: the last line is ended."""
    return body if not body or body.endswith(b"\r\n") else body + b"\r\n"


@pytest.mark.parametrize(
    ("canon", "body", "expected"),
    [
        # RFC 6376, 3.4.5
        ("relaxed", b" C \r\nD \t E\r\n\r\n\r\n", b" C\r\nD E\r\n"),
        ("simple", b" C \r\nD \t E\r\n\r\n\r\n", b" C \r\nD \t E\r\n"),
        ("relaxed", b"", b""),
        ("relaxed", b"\r\n", b""),
        ("relaxed", b" \t\r\n \r\n", b""),
        ("relaxed", b" \t", b""),
        ("simple", b"", b"\r\n"),
        ("simple", b"\r\n\r\n", b"\r\n"),
        ("simple", b" \r\n", b" \r\n"),
        ("relaxed", b"a", b"a\r\n"),
        ("relaxed", b"a \t", b"a\r\n"),
        ("simple", b"a \t", b"a \t\r\n"),
        ("relaxed", b"\r\n\r\na\r\n \r\nb", b"\r\n\r\na\r\n\r\nb\r\n"),
        ("relaxed", b"\xa0 \xc3\xa4\x0b \r\n", b"\xa0 \xc3\xa4\x0b\r\n"),
    ],
)
def test_body_examples(canon: Canon, body: bytes, expected: bytes) -> None:
    assert canonical_body(body, canon) == expected


@pytest.mark.slow
@pytest.mark.parametrize("canon", FORMS)
@given(body=BODIES)
@example(body=b"a\r\n" * 5 + b"\r\n" * 5000)
@settings(max_examples=300, deadline=None)
def test_body_is_dkimpys(canon: Canon, body: bytes) -> None:
    assert canonical_body(body, canon) == REFERENCE[canon].canonicalize_body(ended(body))


@pytest.mark.slow
@pytest.mark.parametrize("canon", FORMS)
@given(body=BODIES, data=st.data())
@settings(max_examples=200, deadline=None)
def test_body_may_be_cut_anywhere(canon: Canon, body: bytes, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(body)), max_size=8)))
    out: list[bytes] = []
    stream = Body(canon, out.append)
    for start, end in zip([0, *cuts], [*cuts, len(body)], strict=True):
        stream.update(body[start:end])
    stream.finish()
    assert b"".join(out) == canonical_body(body, canon)


@pytest.mark.parametrize("canon", FORMS)
def test_large_bodies(canon: Canon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(canonical, "CHUNK_BYTES", 1000)
    for body in (
        b"x" * 10_000,
        b"\r\n" * 5000 + b"x \t \r\n" * 3000 + b"\r\n" * 5000,
        b" " * 9999 + b"\r\n" + b"\t" * 9999,
        b"a" + b" \r\n" * 4000,
    ):
        wanted = hashlib.sha256(REFERENCE[canon].canonicalize_body(ended(body))).digest()
        assert body_hash(b"H: v\r\n\r\n" + body, 8, canon) == wanted


def test_a_bare_line_end_is_neither_lost_nor_repaired() -> None:
    """They are refused before; here they are data like other bytes, wherever the message is cut."""
    for body in (b"a\n\r\n\n", b"a\r\r\n", b"\n\n\r\n", b"a\r", b"\r \n\r"):
        out: list[bytes] = []
        stream = Body("simple", out.append)
        for n in range(len(body)):
            stream.update(body[n : n + 1])
        stream.finish()
        text = b"".join(out)
        assert text == canonical_body(body, "simple")
        assert text.rstrip(b"\r\n") == body.rstrip(b"\r\n")
        assert text.replace(b"\r\n", b"").count(b"\r") == body.replace(b"\r\n", b"").count(b"\r")


# -- header ------------------------------------------------------------------------------------------------

NAMES = st.sampled_from([b"From", b"to", b"SUBJECT", b"X-Other", b"Date"])
VALUES = st.lists(
    st.sampled_from([b" ", b"\t", b"\r\n ", b"\r\n\t", b"a", b":", b"\xc3\xa4", b"  ", b"b", b";"]), max_size=12
).map(b"".join)
FIELDS = st.lists(st.tuples(NAMES, VALUES), max_size=8)
WANTED = (b"from", b"to", b"subject", b"date")


def dkimpys(message: bytes, canon: Canon) -> dict[bytes, list[bytes]]:
    """The wanted fields as dkimpy has them, without their last CRLF."""
    headers, _ = dkim.rfc822_parse(message)
    found: dict[bytes, list[bytes]] = {}
    for name, value in REFERENCE[canon].canonicalize_headers(headers):
        if name.lower() in WANTED:
            found.setdefault(name.lower(), []).append(name + b":" + value.removesuffix(b"\r\n"))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("canon", FORMS)
@given(fields=FIELDS)
@settings(max_examples=300, deadline=None)
def test_fields_are_dkimpys(canon: Canon, fields: list[tuple[bytes, bytes]]) -> None:
    message = b"".join(name + b":" + value + b"\r\n" for name, value in fields) + b"\r\nbody\r\n"
    head = message[: body_start(message)]
    assert header_fields(head, WANTED, canon) == dkimpys(message, canon)


def test_field_examples() -> None:
    """RFC 6376, 3.4.5, and what dkimpy refuses: white space before the colon, which goes away."""
    head = b"From: X\r\nTO : Y\t\r\n\tZ  \r\nno field\r\n :x\r\n\r\n"
    assert header_fields(head, WANTED) == {b"from": [b"from:X"], b"to": [b"to:Y Z"]}
    assert header_fields(head, WANTED, "simple") == {b"from": [b"From: X"], b"to": [b"TO : Y\t\r\n\tZ  "]}
    assert header_fields(b" From: folded into nothing\r\nTo:\r\n", WANTED) == {b"to": [b"to:"]}


@pytest.mark.parametrize(
    ("message", "start"),
    [
        (b"", 0),
        (b"\r\n", 2),
        (b"\r\nbody", 2),
        (b"A: b\r\n", 6),
        (b"A: b", 4),
        (b"A: b\r\n\r\n", 8),
        (b"A: b\r\n \r\n\r\nx", 11),
    ],
)
def test_body_start(message: bytes, start: int) -> None:
    assert body_start(message) == start


def test_other_peoples_mail(corpus: dict[str, bytes]) -> None:
    compared = 0
    for name, message in corpus.items():
        start = body_start(message)
        for canon in FORMS:
            wanted = REFERENCE[canon].canonicalize_body(ended(message[start:]))
            assert canonical_body(message[start:], canon) == wanted, name
            assert body_hash(message, start, canon) == hashlib.sha256(wanted).digest(), name
            try:
                expected = dkimpys(message, canon)
            except (dkim.MessageFormatError, IndexError):  # not a header to dkimpy; ours passes over what is none
                continue
            assert header_fields(message[:start], WANTED, canon) == expected, name
            compared += 1
    assert compared > 250
