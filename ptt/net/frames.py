"""The framing of the calls between our own processes, without I/O: msgpack behind a length of four bytes.

Serves plain processes (the key process, which never imports gevent) as well as gevent ones (``ptt.net.rpc``).
A request is ``[id, method, argument]``, its answer ``[id, error or None, result]``.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from typing import Any, Protocol

import msgspec

MAX_FRAME = 16 * 1024 * 1024  # a frame is a batch of requests of a few KiB; more is a fault of the peer
RECV_BYTES = 256 * 1024

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder().decode
_LENGTH = struct.Struct("!I")


def frame(message: object) -> bytes:
    """One message, framed."""
    payload = _encode(message)
    return _LENGTH.pack(len(payload)) + payload


class Frames:
    """Bytes in, messages out. ``feed`` raises ValueError for a frame that is too long or is not msgpack."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Any]:
        buffer = self._buffer
        buffer += data
        start = 0
        try:
            while len(buffer) - start >= 4:
                (length,) = _LENGTH.unpack_from(buffer, start)
                if length > MAX_FRAME:
                    raise ValueError(f"frame of {length} bytes")
                if len(buffer) - start - 4 < length:
                    break
                payload = bytes(buffer[start + 4 : start + 4 + length])
                start += 4 + length
                try:
                    yield _decode(payload)
                except msgspec.MsgspecError as e:
                    raise ValueError(f"not msgpack: {e}") from e
        finally:
            del buffer[:start]


class _HasOptions(Protocol):
    def getsockopt(self, level: int, name: int, length: int, /) -> bytes: ...


def peer_uid(sock: _HasOptions) -> int:
    """The user id of the process at the other end of a Unix socket, plain or gevent's."""
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    uid: int = struct.unpack("3i", credentials)[1]
    return uid
