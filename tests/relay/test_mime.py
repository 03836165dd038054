"""Conversion to 7 bits and from binary: decoded, every part is what it was. Read back by Python's own parser."""

from __future__ import annotations

import contextlib
import email
import email.errors
import email.message
import email.policy
import functools
import itertools
import pathlib
import random
import re
import time
import tracemalloc
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ptt.mime import (
    MAX_DEPTH,
    MAX_HEADER,
    MAX_PARTS,
    MAX_PASSES,
    SMALL,
    Unconvertible,
    eight_bit_body,
    international,
    to_seven_bit,
    to_transportable,
)

CORPORA = pathlib.Path(__file__).parents[2].parent / "shared" / "corpora"
TEXT = "Gr\u00fc\u00dfe aus K\u00f6ln, trailing \t\r\n\r\n.\r\nFrom here\r\n=41 \u20ac\r\n".encode()


def leaves(message: bytes) -> list[tuple[str, bytes]]:
    """(type, decoded body) of every part that has no parts, in order."""
    found = []
    for part in email.message_from_bytes(message, policy=email.policy.compat32).walk():
        if not part.is_multipart():
            payload = part.get_payload(decode=True)
            assert isinstance(payload, bytes)
            found.append((part.get_content_type(), payload))
    return found


def fields(message: bytes) -> list[bytes]:
    """The header without what may be changed or added."""
    header = message.partition(b"\r\n\r\n")[0] + b"\r\n"
    found = re.findall(rb"[^\r\n]+(?:\r\n[ \t][^\r\n]*)*\r\n", header)
    return [f for f in found if not re.match(rb"(?i)content-transfer-encoding:|mime-version:|content-type: text/pl", f)]


def check(message: bytes, convert: Callable[[bytes], bytes] = to_seven_bit) -> bytes:
    converted = convert(message)
    assert leaves(converted) == leaves(message)
    assert fields(converted) == fields(message)
    if convert is to_seven_bit:
        for line in converted.split(b"\r\n"):
            assert line.isascii() or line in message
    else:
        assert b"\x00" not in converted
        assert b"\r" not in converted.replace(b"\r\n", b"")
        assert b"\n" not in converted.replace(b"\r\n", b"")
        assert max(map(len, converted.split(b"\r\n"))) <= 998
        assert b"encoding: binary" not in converted.lower()
    assert convert(converted) == converted
    return converted


def entity(body: bytes, kind: str = "text/plain; charset=utf-8", encoding: str = "8bit", top: bool = True) -> bytes:
    head = "From: <me@example.net>\r\nMIME-Version: 1.0\r\n" if top else ""
    head += f"Content-Type: {kind}\r\n" if kind else ""
    head += f"Content-Transfer-Encoding: {encoding}\r\n" if encoding else ""
    return head.encode() + b"\r\n" + body


def multipart(*parts: bytes, kind: str = "mixed", boundary: str = "b", top: bool = True, end: bool = True) -> bytes:
    body = b"preamble\r\n" + b"".join(b"--%s\r\n%s\r\n" % (boundary.encode(), p) for p in parts)
    body += b"--%s--\r\nepilogue\r\n" % boundary.encode() if end else b""
    return entity(body, f'multipart/{kind}; boundary="{boundary}"', "8bit", top)


@pytest.mark.parametrize(
    "message",
    [
        entity(TEXT),
        entity(TEXT, encoding=""),
        entity(TEXT, encoding="binary"),
        entity(bytes(range(128, 256)) * 50, "application/octet-stream"),
        entity("\u044f".encode() * 300 + b"\r\n"),  # mostly 8-bit: base64
        entity(b"a=E4\xe4=\r\nb\r\n", encoding="quoted-printable"),
        entity(b"aGFs\xe4bG8=\r\n", encoding="base64"),
        multipart(entity(TEXT, top=False), entity(b"plain\r\n", top=False), entity(b"\xff", "image/png", top=False)),
        multipart(entity(TEXT, top=False), boundary="it's = (odd)"),
        multipart(entity(TEXT, top=False), end=False),
        multipart(b"\r\nno header \xe4\r\n", b"not a field \xe4\r\n"),
        multipart(multipart(entity(TEXT, top=False), boundary="b2", top=False), entity(TEXT, top=False)),
        multipart(entity(entity(TEXT), "message/rfc822", top=False), kind="digest"),
        multipart(entity(TEXT), kind="digest"),
        entity(multipart(entity(TEXT, top=False)), "message/rfc822"),
        multipart(entity(entity(TEXT), "message/global", top=False)),
    ],
)
def test_every_part_decodes_to_what_it_was(message: bytes) -> None:
    if b"message/global" in message or b"digest" in message:  # Python's parser does not decode or default these
        assert to_seven_bit(message).isascii()
        return
    assert check(message).isascii()


def test_what_fits_is_left_alone() -> None:
    plain = b"Subject: x\r\nContent-Transfer-Encoding: 8bit\r\n\r\nascii\r\n"
    assert to_seven_bit(plain) is plain
    header = "Subject: gr\u00fc\u00df\r\n\r\nascii\r\n".encode()
    assert to_seven_bit(header) == header
    assert not eight_bit_body(header)
    part = entity(b"kept \r\n", "text/x; a=b", "", top=False)
    assert part in to_seven_bit(multipart(part, entity(TEXT, top=False)))


def test_a_message_that_was_not_mime_becomes_so() -> None:
    converted = to_seven_bit(b"Subject: x\r\n\r\ngr\xfc\xdf dich, mein guter alter Freund\r\n")
    assert converted == (
        b"Subject: x\r\nMIME-Version: 1.0\r\nContent-Type: text/plain; charset=unknown-8bit\r\n"
        b"Content-Transfer-Encoding: quoted-printable\r\n\r\ngr=FC=DF dich, mein guter alter Freund\r\n"
    )


def test_preamble_and_epilogue_lose_their_eight_bits() -> None:
    converted = to_seven_bit(
        multipart(entity(TEXT, top=False)).replace(b"preamble", b"pr\xe4").replace(b"epi", b"\xe4")
    )
    assert converted.isascii()
    assert b"\r\npr?\r\n" in converted


NESTED = entity(TEXT, top=False)
for depth in range(MAX_DEPTH + 1):
    NESTED = multipart(NESTED, boundary=f"n{depth}", top=False)


@pytest.mark.parametrize(
    ("message", "why"),
    [
        (multipart(entity(TEXT, top=False), kind="signed"), "signature"),
        (entity(TEXT, 'multipart/mixed; boundary="x"'), "without its boundary"),
        (entity(TEXT, "multipart/mixed"), "without its boundary"),
        (entity(TEXT, "message/partial"), "must not be encoded"),
        (entity(TEXT, "message/delivery-status"), "must not be encoded"),
        (entity(TEXT, encoding="x-uuencode"), "unknown encoding"),
        (entity(b"\xe4a", encoding="base64"), "base64"),
        (entity(TEXT, "message/rfc822", "base64"), "message/rfc822 in base64"),
        (entity(TEXT, "text/plain; x=" + "y" * 3000), "too long"),
        (NESTED, "too many parts"),
        (multipart(*[entity(b"\xe4", top=False)] * (MAX_PARTS + 1)), "too many parts"),
    ],
)
def test_what_cannot_be_converted(message: bytes, why: str) -> None:
    with pytest.raises(Unconvertible, match=why):
        to_seven_bit(message)


BINARY = b"\x00\r\r\n\n" + bytes(range(256)) * 9


@pytest.mark.parametrize(
    "message",
    [
        entity(BINARY, "application/octet-stream", "binary"),
        entity(BINARY, "image/png", ""),
        entity(TEXT, encoding="binary"),
        entity(b"ascii\r\n", encoding="binary"),
        entity(b"long" * 300, "text/plain", "binary"),
        multipart(entity(TEXT, top=False), entity(BINARY, "image/png", "binary", top=False)),
        multipart(entity(b"a\r\n", top=False)).replace(b"8bit", b"binary"),
        multipart(multipart(entity(BINARY, "image/png", "binary", top=False), boundary="b2", top=False)),
        entity(entity(b"a\nb", encoding="binary"), "message/rfc822", "binary"),
    ],
)
def test_binary_becomes_lines(message: bytes) -> None:
    check(message, to_transportable)
    assert to_seven_bit(to_transportable(message)).isascii()


@pytest.mark.parametrize(
    "message",
    [
        b"Subject: a\x00b\r\n\r\nx\r\n",
        b"Subject: " + b"x" * 2000 + b"\r\n\r\nx\r\n",
        multipart(entity(BINARY, "image/png", "binary", top=False), kind="signed"),
        entity(BINARY, "message/partial", "binary"),
    ],
)
def test_binary_that_stays_out(message: bytes) -> None:
    with pytest.raises(Unconvertible):
        to_transportable(message)


def test_international_fields() -> None:
    assert international("Subject: \u00fc\r\n\r\nx".encode())
    assert not international("Subject: x\r\n\r\n\u00fc".encode())
    part = "Content-Disposition: attachment;\r\n filename=\u00fc\r\n\r\nx".encode()
    assert international(multipart(part))
    assert not international(multipart(entity(TEXT, top=False)))


def corpus() -> list[pathlib.Path]:
    folders = ("cpython_email", "mail_parser", "ruby_mail", "sisimai")
    return [p for f in folders for p in sorted((CORPORA / f).rglob("*")) if p.is_file() and p.suffix != ".json"]


@pytest.mark.slow
def test_messages_of_others() -> None:
    """Each as it is, and with 8-bit octets put into its body."""
    if not CORPORA.is_dir():
        pytest.skip("../shared/corpora is not here")
    converted = refused = 0
    for path in corpus():
        content = path.read_bytes().replace(b"\r\n", b"\n").replace(b"\r", b"\n").replace(b"\n", b"\r\n")
        content = content.replace(b"\x00", b"")
        if content.startswith(b"From ") or content[:1] in b" \t:":
            content = content.partition(b"\r\n")[2]
        for message in (content, content.replace(b" the ", " th\u00e9 ".encode())):
            try:
                to_seven_bit(message)
            except Unconvertible:
                refused += 1
                continue
            if eight_bit_body(message) and not unclear(message):
                converted += 1
                assert leaves(to_seven_bit(message)) == leaves(message), path
    assert converted > 450
    assert refused < converted / 5, (refused, converted)


def unclear(message: bytes) -> bool:
    """Is it a matter of opinion where a header ends?"""
    parsed = email.message_from_bytes(message)
    return any(isinstance(d, email.errors.MissingHeaderBodySeparatorDefect) for p in parsed.walk() for d in p.defects)


parts = st.one_of(
    st.binary(max_size=300).map(lambda b: entity(b, "application/x", "binary", top=False)),
    st.text(max_size=200).map(lambda t: entity(t.encode(), encoding="binary", top=False)),
)


@given(st.lists(parts, max_size=4), st.booleans())
@settings(max_examples=200)
def test_any_binary_message(some: list[bytes], nested: bool) -> None:
    message = multipart(*some, boundary="=_a:0b")
    if nested:
        message = multipart(message, boundary="=_outer", kind="alternative")
    lines = to_transportable(message)
    assert leaves(lines) == leaves(message)
    assert leaves(to_seven_bit(lines)) == leaves(message)


@given(st.binary(max_size=400))
def test_garbage_raises_nothing_else(garbage: bytes) -> None:
    for message in (garbage, b"Content-Type: multipart/mixed; boundary=a\r\n\r\n--a\r\n" + garbage + b"\r\n--a--"):
        for convert in (to_seven_bit, to_transportable):
            with contextlib.suppress(Unconvertible):
                convert(message)


def tick(moments: list[float]) -> None:
    moments.append(time.perf_counter())


@pytest.mark.slow
def test_large_bodies_are_converted_in_pieces() -> None:
    noise = random.Random(1).randbytes(10 * 1024 * 1024).replace(b"\r", b"").replace(b"\n", b"").replace(b"\0", b"")
    lines = b"\r\n".join(noise[n : n + 900] for n in range(0, len(noise), 900)) + b"\r\n"
    text = "Gr\u00fc\u00dfe aus K\u00f6ln, wo es viel zu sagen gibt\r\n".encode() * 200_000
    for body, kind in ((lines, "image/png"), (text, "text/plain")):
        moments: list[float] = []
        converted = to_seven_bit(entity(body, kind), functools.partial(tick, moments))
        assert converted.isascii()
        assert len(moments) > len(body) // 100_000
        steps = sorted(b - a for a, b in itertools.pairwise(moments))
        assert steps[len(steps) // 2] < 0.01
    assert leaves(converted)[0][1] == text


def within_each_other(depth: int, octets: int) -> bytes:
    """A binary part of so many octets in so many multiparts."""
    message = entity(b"\0 and a bare\n" * (octets // 13), "application/octet-stream", "binary", top=False)
    for n in range(depth):
        message = multipart(message, boundary=f"b{n}", top=False)
    return b"From: <me@example.net>\r\n" + message


@pytest.mark.slow
def test_depth_costs_no_memory() -> None:
    """An innermost part of a large message was once copied twice for each level."""
    message = within_each_other(MAX_PASSES - 2, 4 * SMALL)
    tracemalloc.start()
    try:
        converted = to_transportable(message)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert b"\0" not in converted
    assert peak < 4 * len(message)


@pytest.mark.parametrize("convert", [to_transportable, to_seven_bit])
def test_depth_costs_time_within_bounds(convert: Callable[[bytes], bytes]) -> None:
    small, large = (within_each_other(MAX_PASSES + 1, n).replace(b"bare", b"b\xe4re") for n in (SMALL // 2, 2 * SMALL))
    assert convert(small)
    with pytest.raises(Unconvertible, match="within each other"):
        convert(large)


def test_much_that_is_no_part() -> None:
    """Each of these makes a loop in Python for every few octets, if nothing bounds it."""
    like_delimiters = multipart(b"\r\n\0" + b"--b" * (2 * MAX_PARTS), entity(TEXT, top=False))
    with pytest.raises(Unconvertible, match="too many parts"):
        to_transportable(like_delimiters)
    fields = multipart(b"a:\r\n" * (MAX_HEADER // 4 + 1) + b"\r\n\0\n")
    with pytest.raises(Unconvertible, match="header"):
        to_transportable(fields)


@pytest.mark.slow
def test_lines_lie_across_stretches() -> None:
    """What is looked at piece by piece is as what is looked at at once."""
    lines = entity((b"x" * 76 + b"\r\n") * (3 * SMALL // 78), "text/plain", "8bit")
    assert to_transportable(lines) == lines
    for odd in (b"\0", b"\n", b"\r", b"y" * 999):
        for place in (SMALL - 3, SMALL, 2 * SMALL + 1):
            assert to_transportable(lines[:place] + odd + lines[place:]) != lines[:place] + odd + lines[place:]
