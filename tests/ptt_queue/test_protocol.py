"""The codec: whole, byte by byte, with garbage."""

import itertools
import random
import struct

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ptt_queue import protocol
from ptt_queue.errors import ProtocolError
from ptt_queue.protocol import MAX_BLOB, MAX_CONTROL, Frames
from ptt_queue.types import Act, Filter, GroupLimit, Item, NewMessage, NewTask, Settle, SlotLimit, Trouble

TASK = NewTask(2, "example.net", [Item(1, b"one")], 123)
MESSAGE = NewMessage(b"i" * 12, b"meta", [TASK], 4, 1, 2)
REQUESTS = [
    (protocol.Hello(1, b"c" * 16, True, [protocol.Claim(b"i" * 12, 1, False)]), b""),
    (protocol.Put(2, 0, MESSAGE, True), b"body"),
    (protocol.Stage(b"i" * 12, 0), b"x" * 5000),
    (protocol.Lease(3, 10, [1, 2], 1000), b""),
    (protocol.Body(4, b"i" * 12, 0), b""),
    (protocol.SettleTask(5, 4, Settle(b"i" * 12, 1, [TASK], b"prefix", [MESSAGE], True)), b"body"),
    (protocol.Extend(6, [(b"i" * 12, 1)]), b""),
    (protocol.Release([(b"i" * 12, 1)]), b""),
    (protocol.Mark(b"i" * 12, 1), b""),
    (protocol.Assign("a", "site", GroupLimit(5, 1.5)), b""),
    (protocol.Report(b"m" * 12, 3, Trouble.DEAD, 1000), b""),
    (protocol.Open(4, [SlotLimit("site", 5, 1.5)], 1000), b""),
    (protocol.Close(["site"]), b""),
    (protocol.Opened({"site": 2}), b""),
    (protocol.GetStats(7), b""),
    (protocol.GetList(8, Filter(lane="a")), b""),
    (protocol.GetShow(9, b"i" * 12), b""),
    (protocol.DoAct(10, Act.RETRY, [b"i" * 12]), b""),
]
WIRE = b"".join(protocol.frame_request(r, len(b)) + b for r, b in REQUESTS)


def parse(frames: Frames, data: bytes):
    return [(protocol.parse_request(control), blob) for control, blob in frames.feed(data)]


def test_whole():
    assert parse(Frames(), WIRE) == REQUESTS


def test_byte_by_byte():
    frames = Frames()
    assert [found for n in range(len(WIRE)) for found in parse(frames, WIRE[n : n + 1])] == REQUESTS


@given(st.lists(st.integers(0, len(WIRE)), max_size=10))
def test_cut_anywhere(cuts):
    at = [0, *sorted(cuts), len(WIRE)]
    frames = Frames()
    assert [f for a, b in itertools.pairwise(at) for f in parse(frames, WIRE[a:b])] == REQUESTS


def test_large_frame_in_parts():
    blob = random.Random(1).randbytes(MAX_BLOB)
    wire = protocol.frame_request(protocol.Stage(b"i" * 12, 0), len(blob)) + blob
    frames = Frames()
    found = [f for n in range(0, len(wire), 100_000) for f in parse(frames, wire[n : n + 100_000])]
    assert found == [(protocol.Stage(b"i" * 12, 0), blob)]


@pytest.mark.parametrize(
    "lengths",
    [
        (0, 0),  # shorter than its own length of control
        (3, 0),
        (4 + 10, 11),  # control longer than the frame
        (4 + MAX_CONTROL + 1, MAX_CONTROL + 1),
        (4 + MAX_BLOB + 1, 0),
        (0xFFFFFFFF, 0xFFFFFFFF),
        (0xFFFFFFFF, 1),
    ],
)
def test_lengths_that_no_frame_has(lengths):
    with pytest.raises(ProtocolError):
        parse(Frames(), struct.pack("!II", *lengths) + b"x" * 100)


def test_lengths_at_the_limit():
    assert list(Frames().feed(struct.pack("!II", 4 + MAX_BLOB, 0))) == []
    assert list(Frames().feed(struct.pack("!II", 4 + MAX_CONTROL + MAX_BLOB, MAX_CONTROL))) == []


@given(st.binary(max_size=200))
def test_garbage_is_an_error_and_nothing_else(data):
    wire = struct.pack("!II", 4 + len(data), len(data)) + data
    for control, _ in Frames().feed(wire):
        with pytest.raises(ProtocolError):
            raise ProtocolError(str(protocol.parse_request(control)))


def test_requests_too_large_are_not_sent():
    with pytest.raises(ProtocolError):
        protocol.frame_request(protocol.Stage(b"i" * 12, 0), MAX_BLOB + 1)
    with pytest.raises(ProtocolError):
        protocol.frame_request(protocol.Stage(b"i" * (MAX_CONTROL + 1), 0))


def test_answer():
    wire = protocol.frame_answer(5, protocol.SettleAnswer(True, []), blob_bytes=3) + b"abc"
    ((control, blob),) = Frames().feed(wire)
    answer = protocol.parse_answer(control)
    assert (answer.number, answer.error, blob) == (5, None, b"abc")
    assert msgspec.msgpack.decode(answer.payload, type=protocol.SettleAnswer).stored
    with pytest.raises(ProtocolError):
        protocol.parse_answer(b"\x93\x01")
