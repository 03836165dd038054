"""Messages in a file: what export writes and import reads. Streams in, streams out; nothing is known of what they hold.

The file is ``MAGIC`` and then, for each message, a frame: u32 length of the head, the head (msgpack of ``Head``), the
body; after the last a frame of length 0, so that a file that was cut off is noticed.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import BinaryIO

import msgspec

from ptt_queue.errors import QueueError
from ptt_queue.protocol import MAX_CONTROL
from ptt_queue.types import NewMessage

MAGIC = b"PTTQUEUE1\n"
MAX_BODY = 1 << 30  # of one message in a file; far above what is ever accepted
_LENGTH = struct.Struct("!I")
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(NewMessage).decode


class BadArchive(QueueError):
    """The file is none of ours, damaged or cut off; what came before that is good."""


def begin(file: BinaryIO) -> None:
    file.write(MAGIC)


def add(file: BinaryIO, message: NewMessage, body: bytes) -> None:
    """Write one message. Raises OSError; ValueError when the body is not as long as the message says."""
    if message.size != len(body):
        raise ValueError("the body is not as long as the message says")
    head = _encode(message)
    file.write(_LENGTH.pack(len(head)))
    file.write(head)
    file.write(body)


def end(file: BinaryIO) -> None:
    file.write(_LENGTH.pack(0))


def read(file: BinaryIO) -> Iterator[tuple[NewMessage, bytes]]:
    """All messages of a file. Raises BadArchive, OSError."""
    if file.read(len(MAGIC)) != MAGIC:
        raise BadArchive("not an export of a queue")
    while True:
        (length,) = _LENGTH.unpack(_exactly(file, _LENGTH.size))
        if not length:
            return
        if length > MAX_CONTROL:
            raise BadArchive(f"a head of {length} bytes")
        try:
            message = _decode(_exactly(file, length))
        except (msgspec.MsgspecError, UnicodeDecodeError) as e:
            raise BadArchive(f"a head that cannot be read: {e}") from e
        if not 0 <= message.size <= MAX_BODY:
            raise BadArchive(f"a body of {message.size} bytes")
        yield message, _exactly(file, message.size)


def _exactly(file: BinaryIO, count: int) -> bytes:
    data = file.read(count)
    if len(data) != count:
        raise BadArchive("cut off")
    return data
