"""Dot-stuffing on whole buffers, in both directions, whatever the cuts."""

import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptt.smtp.content import GATHER, SMALL, Content, Fault
from ptt.smtp.dotstuff import Unstuffer, gather, stuff

# Content made of what matters: dots, line ends, and something else.
LINES = st.lists(st.text(alphabet=".ab\x80", max_size=4), max_size=12).map(
    lambda lines: "".join(line + "\r\n" for line in lines).encode("latin-1")
)
RAW = st.text(alphabet=".\r\na", max_size=14).map(str.encode)


def cut(data: bytes, places: list[int]) -> list[bytes]:
    bounds = [0, *sorted(p % (len(data) + 1) for p in places), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(bounds)]


CUTS = st.lists(st.integers(min_value=0, max_value=200), max_size=6)


def slow_stuff(content: bytes) -> bytes:
    """RFC 5321 4.5.2 line by line."""
    if content and not content.endswith(b"\r\n"):
        content += b"\r\n"
    return b"".join(b"." + line if line.startswith(b".") else line for line in re.findall(rb"(?s).*?\r\n", content))


@given(LINES, CUTS, CUTS)
def test_round_trip_under_any_chunking(content: bytes, cuts: list[int], wire_cuts: list[int]) -> None:
    wire = b"".join(stuff(cut(content, cuts)))
    assert wire == slow_stuff(content)
    unstuffer = Unstuffer(Content(10_000))
    pieces = cut(wire + b".\r\nQUIT\r\n", wire_cuts)
    for i, piece in enumerate(pieces):
        end = unstuffer.feed(piece)
        if end >= 0:
            assert piece[end:] + b"".join(pieces[i + 1 :]) == b"QUIT\r\n"
            break
    assert b"".join(unstuffer.content.chunks) == content
    assert unstuffer.content.size == len(content)
    assert unstuffer.content.fault is None


@given(RAW, CUTS)
def test_strange_content_is_judged_alike_under_any_chunking(data: bytes, cuts: list[int]) -> None:
    wire = data + b"\r\n.\r\n"
    first = (b"\r\n" + wire).index(b"\r\n.\r\n")  # where a strict reader sees the end
    expected = (b"\r\n" + wire)[2 : first + 2]
    bare = re.search(rb"\r(?!\n)|(?<!\r)\n", expected) is not None
    unstuffer = Unstuffer(Content(10_000))
    taken = 0
    for piece in cut(wire, cuts):
        end = unstuffer.feed(piece)
        if end >= 0:
            taken += end
            break
        taken += len(piece)
    assert taken == max(first - 2, -2) + 5
    assert (unstuffer.content.fault is Fault.BARE) == bare
    if not bare:
        assert b"".join(unstuffer.content.chunks) == re.sub(rb"(?m)(?:\A|(?<=\r\n))\.", b"", expected)


@pytest.mark.parametrize("size", [1, 3, 100, 1000, 100_000])
@pytest.mark.parametrize(("longest", "fault"), [(998, None), (999, Fault.LONG_LINE)])
def test_line_length_at_the_limit(size: int, longest: int, fault: Fault | None) -> None:
    content = b"short\r\n" + b"x" * 997 + b"\r\n" + b"y" * longest + b"\r\n" + b"z\r\n" * 500
    wire = content + b".\r\n"
    unstuffer = Unstuffer(Content(10_000))
    for i in range(0, len(wire), size):
        unstuffer.feed(wire[i : i + size])
    assert unstuffer.content.fault is fault
    assert b"".join(unstuffer.content.chunks) == (b"" if fault else content)


def test_the_doubled_dot_does_not_count_for_the_length() -> None:
    unstuffer = Unstuffer(Content(10_000))
    assert unstuffer.feed(b"." * 999 + b"\r\n.\r\n") == 1004
    assert unstuffer.content.fault is None


@pytest.mark.parametrize(("size", "fault"), [(1000, None), (1001, Fault.TOO_LARGE)])
def test_size_at_the_limit(size: int, fault: Fault | None) -> None:
    unstuffer = Unstuffer(Content(1000))
    content = b"\r\n".join([b"x" * 98] * 10) + b"\r\n" + b"y" * (size - 1000)
    assert unstuffer.feed(content + b"\r\n.\r\n" if size > 1000 else content + b".\r\n") > 0
    assert unstuffer.content.fault is fault


def test_memory_is_bounded_once_too_large() -> None:
    unstuffer = Unstuffer(Content(10_000))
    for _ in range(1000):
        assert unstuffer.feed(b"x" * 98 + b"\r\n" + b"y" * 500 + b"\r\n") == -1
        assert unstuffer.content.held <= 10_000
    assert unstuffer.content.fault is Fault.TOO_LARGE
    assert not unstuffer.content.chunks
    assert unstuffer.feed(b".\r\n") == 3


@pytest.mark.slow
def test_a_message_sent_byte_by_byte_is_kept_in_few_chunks() -> None:
    unstuffer = Unstuffer(Content(10**6))
    for byte in b"0123456789abcd\r\n" * 10_000 + b".\r\n":
        unstuffer.feed(bytes([byte]))
    assert len(unstuffer.content.chunks) == -(-160_000 // GATHER)
    assert b"".join(unstuffer.content.chunks) == b"0123456789abcd\r\n" * 10_000


def test_large_chunks_are_not_copied() -> None:
    large = b"x" * SMALL + b"\r\n"
    assert stuff([large])[0] is large
    huge = b"x" * GATHER
    assert gather([b"a", b"b", huge, b"c"]) == [b"ab", huge, b"c"]
    assert gather([b"a", huge])[1] is huge
    assert gather([]) == []


def test_an_empty_content_stays_empty() -> None:
    assert stuff([]) == []
    assert stuff([b"", b""]) == []
    unstuffer = Unstuffer(Content(10))
    assert unstuffer.feed(b".\r\nQUIT") == 3
    assert unstuffer.content.chunks == []
