"""The octets of BDAT (RFC 3030), whatever the cuts, and what a chunk may announce."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptt.smtp.chunking import Chunk, ChunkReader, parse_bdat
from ptt.smtp.content import Content, Fault
from ptt.smtp.replies import TLS_FIRST

CUTS = st.lists(st.integers(min_value=0, max_value=60), max_size=6)
RAW = st.text(alphabet=".\r\na\0", max_size=14).map(str.encode)


def cut(data: bytes, places: list[int]) -> list[bytes]:
    bounds = [0, *sorted(p % (len(data) + 1) for p in places), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(bounds)]


def read(reader: ChunkReader, chunks: list[bytes], wire_cuts: list[int]) -> None:
    """Every chunk in pieces; each is followed by something that is not its own."""
    for number, chunk in enumerate(chunks, 1):
        reader.start(Chunk(len(chunk), number == len(chunks)))
        for piece in cut(chunk, wire_cuts):
            assert reader.feed(b"<" + piece, 1) == len(piece) + 1
        assert reader.left == 0
        assert reader.feed(b"QUIT\r\n", 0) == 0


@given(RAW, CUTS, CUTS)
def test_text_is_judged_alike_under_any_chunking(data: bytes, cuts: list[int], wire_cuts: list[int]) -> None:
    content = Content(10_000)
    read(ChunkReader(content), cut(data, cuts), wire_cuts)
    ends = data.count(b"\r\n")
    if data.count(b"\r") != ends or data.count(b"\n") != ends:
        assert content.fault is Fault.BARE
        assert not content.held
    elif b"\0" in data:
        assert content.fault is Fault.NUL
    else:
        assert content.fault is None
        end = b"" if not data or data.endswith(b"\r\n") else b"\r\n"
        assert b"".join(content.chunks) == data + end
        assert content.size == len(data + end)


@given(st.binary(max_size=60), CUTS, CUTS)
def test_binary_arrives_octet_for_octet(data: bytes, cuts: list[int], wire_cuts: list[int]) -> None:
    content = Content(10_000, binary=True)
    data = b"A: b\r\n\r\n" + data
    read(ChunkReader(content), cut(data, cuts), wire_cuts)
    assert content.fault is None
    assert b"".join(content.chunks) == data
    assert content.size == len(data)


@pytest.mark.parametrize("size", [1, 2, 3, 5000, 20_000])
@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (b"A: b\r\n\r\n\r\n\n.\n\0", None),
        (b"A: b\r\n c\nd: e\r\n\r\nbody", Fault.BARE),
        (b"A: b\r\n\r\r\n\r\nbody", Fault.BARE),
        (b"A: \0\r\n\r\nbody", Fault.NUL),
        (b"\r\n\0", Fault.NUL),  # no empty line after a header: all of it is looked at
        (b"A: b\r\n" * 3000 + b"\r\n\0\r\n\r\n", None),
        (b"A: b\r\n" * 3000 + b"\n\r\n\0", Fault.BARE),
    ],
)
def test_the_header_of_binary_content_is_text(data: bytes, fault: Fault | None, size: int) -> None:
    content = Content(100_000, binary=True)
    read(ChunkReader(content), [data[i : i + size] for i in range(0, len(data), size)], [])
    assert content.fault is fault


@pytest.mark.parametrize("binary", [True, False])
def test_lines_at_the_limit(binary: bool) -> None:
    for length, fault in ((998, None), (999, None if binary else Fault.LONG_LINE)):
        content = Content(10_000, binary=binary)
        read(ChunkReader(content), [b"x" * 500, b"x" * (length - 500) + b"\r", b"\ny\r\n"], [3, 400])
        assert content.fault is fault


@pytest.mark.parametrize(("limit", "fault"), [(30, None), (29, Fault.TOO_LARGE)])
def test_size_at_the_limit(limit: int, fault: Fault | None) -> None:
    content = Content(limit, binary=True)
    read(ChunkReader(content), [b"x" * 10] * 3, [])
    assert content.fault is fault


def test_nothing_of_a_chunk_that_is_too_large_is_kept() -> None:
    content = Content(1000)
    reader = ChunkReader(content)
    reader.start(Chunk(600, False))
    reader.feed(b"x" * 600, 0)
    reader.start(Chunk(10**15, True))
    assert content.fault is Fault.TOO_LARGE
    for _ in range(100):
        reader.feed(b"y" * 100_000, 0)
        assert content.held == 0
    assert reader.left == 10**15 - 100 * 100_000


def test_nothing_of_a_refused_chunk_is_kept() -> None:
    content = Content(1000)
    reader = ChunkReader(content)
    reader.start(Chunk(10, True), TLS_FIRST)
    assert reader.feed(b"0123456789NOOP\r\n", 0) == 10
    assert not content.chunks
    assert content.held == 0


@pytest.mark.parametrize(
    ("argument", "chunk"),
    [
        (b"0", Chunk(0, False)),
        (b"0 LAST", Chunk(0, True)),
        (b"12 last", Chunk(12, True)),
        (b" 12  LaSt ", Chunk(12, True)),
        (b"00012", Chunk(12, False)),
        (b"9" * 20, Chunk(10**20 - 1, False)),
        (b"9" * 21, None),
        (b"", None),
        (b"LAST", None),
        (b"-1", None),
        (b"+1", None),
        (b"1_0", None),
        (b"0x10", None),
        (b"1 2", None),
        (b"1 LAST LAST", None),
        (b"1LAST", None),
        (b"1 FIRST", None),
        (b"\xc2\xb2", None),  # superscript two: a digit to some
        (b"1\t", None),
    ],
)
def test_what_a_chunk_announces(argument: bytes, chunk: Chunk | None) -> None:
    assert parse_bdat(argument) == chunk
