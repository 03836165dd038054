"""The client protocol, sans-IO: bytes in, requests and answers out. Both ends use it.

A frame is ``u32 length of the rest, u32 length of control, control, blob``, numbers big-endian. Control is
msgpack; the blob is raw bytes (bodies), so they are never encoded and are copied once. A client's frames hold one
request each, the server's one answer: ``[number, error or None, payload]``.

``number`` joins an answer to its request. Requests that change the store (``Put``, ``Settle``) are executed once
for each client id and number, in rising order, however often they are sent; ``done`` says up to which number the
client has all their answers. One-way requests (``Stage``, ``Mark``, ``Assign``, ``Release``) have no answer.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import msgspec

from ptt_queue.errors import ProtocolError
from ptt_queue.types import Act, Filter, GroupLimit, NewMessage, Refusal, Settle, SlotLimit, Suspension, Trouble

VERSION = 1
CLIENT_ID_BYTES = 16
CHUNK_BYTES = 4080  # LMDB's page less its header: larger values need contiguous free pages
PART_CHUNKS = 256
PART_BYTES = PART_CHUNKS * CHUNK_BYTES  # just under 1 MiB: the most of a body in one frame and one transaction
MAX_CONTROL = 8 * 1024 * 1024  # 1,000 recipients with notes are some 2 MB
MAX_BLOB = PART_BYTES
MAX_UNANSWERED = 1024  # puts and settles of one client: what the store remembers of it stays small
MAX_LEASE = 1024  # tasks in one answer
MAX_WAIT_MS = 60_000  # of a long poll

Ref = tuple[bytes, int]
"""A task: message id and number."""


class _Request(msgspec.Struct, array_like=True, frozen=True):
    pass


class Claim(_Request, frozen=True):
    """A lease that the client still holds; ``marked``: its final dot may have left."""

    message: bytes
    number: int
    marked: bool
    then: str = ""  # the lane whose token came with it


class Hello(_Request, frozen=True, tag="hello"):
    """First on each connection. ``leases``: this client will lease, so the queue waits for it after a start."""

    number: int
    client: bytes
    leases: bool
    held: list[Claim]


class Put(_Request, frozen=True, tag="put"):
    number: int
    done: int
    message: NewMessage
    lease: bool


class Stage(_Request, frozen=True, tag="stage"):
    """A part of a body that will be put: the blob is its chunks from number ``first`` on."""

    id: bytes
    first: int


class Lease(_Request, frozen=True, tag="lease"):
    number: int
    most: int
    stages: list[int]
    wait_ms: int


class Body(_Request, frozen=True, tag="body"):
    """At most PART_CHUNKS chunks of a body from number ``first`` on, as the answer's blob."""

    number: int
    message: bytes
    first: int


class SettleTask(_Request, frozen=True, tag="settle"):
    """The blob is the bodies of those of ``settle.puts`` that are not staged, one behind the other."""

    number: int
    done: int
    settle: Settle


class Extend(_Request, frozen=True, tag="extend"):
    number: int
    tasks: list[Ref]


class Release(_Request, frozen=True, tag="release"):
    """The leases end without an attempt: the tasks are ready again."""

    tasks: list[Ref]


class Mark(_Request, frozen=True, tag="mark"):
    message: bytes
    task: int


class Assign(_Request, frozen=True, tag="assign"):
    lane: str
    group: str
    limit: GroupLimit


class Report(_Request, frozen=True, tag="report"):
    """Before the settle of a lease: its group is in trouble, and is to rest for so long."""

    message: bytes
    task: int
    trouble: Trouble
    pause_ms: int


class Open(_Request, frozen=True, tag="open"):
    """Ask for a slot of each of these names. Answered by whether there is one, within ``wait_ms``.

    Who keeps slots that it does not need is asked for them: their names come as a list in an answer with number 0.
    """

    number: int
    slots: list[SlotLimit]
    wait_ms: int


class Close(_Request, frozen=True, tag="close"):
    """Give back a slot of each of these names."""

    names: list[str]


class Opened(_Request, frozen=True, tag="opened"):
    """After a reconnect: the slots that the client has, and how many of each."""

    slots: dict[str, int]


class GetStats(_Request, frozen=True, tag="stats"):
    number: int


class GetList(_Request, frozen=True, tag="list"):
    number: int
    filter: Filter


class GetShow(_Request, frozen=True, tag="show"):
    number: int
    message: bytes


class DoAct(_Request, frozen=True, tag="act"):
    number: int
    act: Act
    messages: list[bytes]  # all their tasks
    tasks: list[Ref] = []  # and these alone


class Amend(_Request, frozen=True, tag="amend"):
    """An operator's settle of a task that nobody is at. The blob is the bodies of ``settle.puts``.

    Not numbered as puts and settles are: repeated, it finds the task gone and its messages there, and is done.
    """

    number: int
    settle: Settle


class GetPlace(_Request, frozen=True, tag="place"):
    number: int
    stage: int
    lane: str


class Suspend(_Request, frozen=True, tag="suspend"):
    """In place of a former one of the same name. Answered by whether it was kept."""

    number: int
    what: Suspension


class Resume(_Request, frozen=True, tag="resume"):
    """Answered by whether it was suspended."""

    number: int
    name: str
    site: bool


class Repair(_Request, frozen=True, tag="repair"):
    """Put damaged tasks back to where they were, or delete them for good. Named as in ``damaged``."""

    number: int
    tasks: list[Ref]
    delete: bool


Request = (
    Hello
    | Put
    | Stage
    | Lease
    | Body
    | SettleTask
    | Extend
    | Release
    | Mark
    | Assign
    | Report
    | Open
    | Close
    | Opened
    | GetStats
    | GetList
    | GetShow
    | DoAct
    | Amend
    | Repair
    | GetPlace
    | Suspend
    | Resume
)


class Granted(msgspec.Struct, array_like=True, frozen=True):
    """A task that was leased as it was stored; the client knows the rest of it. ``index``: among the tasks sent."""

    index: int
    number: int
    then: bool
    maybe: bool


class Welcome(msgspec.Struct, array_like=True, frozen=True):
    """``granted``: for each claim, is the lease the client's. ``last``: its last executed put or settle.

    ``refusing``: the mark above which puts are refused now, or "". When that changes, the new one comes unasked, as
    the payload of an answer with number 0.
    """

    version: int
    granted: list[bool]
    last: int
    refusing: str = ""


class PutAnswer(msgspec.Struct, array_like=True, frozen=True):
    refused: Refusal | None
    granted: list[Granted]
    first: bytes = b""  # see PutResult
    meter: str = ""
    until: int = 0


class SettleAnswer(msgspec.Struct, array_like=True, frozen=True):
    stored: bool
    granted: list[Granted]


class Answer(msgspec.Struct, array_like=True, frozen=True):
    """``payload`` is decoded by who knows the request."""

    number: int
    error: str | None
    payload: msgspec.Raw


_LENGTHS = struct.Struct("!II")
_encode = msgspec.msgpack.Encoder().encode
_decode_request = msgspec.msgpack.Decoder(Request).decode
_decode_answer = msgspec.msgpack.Decoder(Answer).decode


def frame_request(request: Request, blob_bytes: int = 0) -> bytes:
    """A request, framed; ``blob_bytes`` of blob follow. Raises ProtocolError when it is larger than a frame may be."""
    control = _encode(request)
    if len(control) > MAX_CONTROL or blob_bytes > MAX_BLOB:
        raise ProtocolError(f"a request of {len(control)} and {blob_bytes} bytes is too large")
    return _LENGTHS.pack(4 + len(control) + blob_bytes, len(control)) + control


def frame_answer(number: int, payload: Any, error: str | None = None, blob_bytes: int = 0) -> bytes:
    """An answer, framed; ``blob_bytes`` of blob follow."""
    control = _encode((number, error, payload))
    return _LENGTHS.pack(4 + len(control) + blob_bytes, len(control)) + control


def parse_request(control: bytes) -> Request:
    """Raises ProtocolError."""
    try:
        request: Request = _decode_request(control)
        return request
    except (msgspec.MsgspecError, ValueError, RecursionError) as e:  # ValueError: a text that is no UTF-8
        raise ProtocolError(f"no request: {e}") from e


def parse_answer(control: bytes) -> Answer:
    """Raises ProtocolError."""
    try:
        return _decode_answer(control)
    except (msgspec.MsgspecError, ValueError, RecursionError) as e:  # ValueError: a text that is no UTF-8
        raise ProtocolError(f"no answer: {e}") from e


def parse_news(payload: msgspec.Raw) -> str | list[str]:
    """What an answer with number 0 says (see Welcome and Open). Raises ProtocolError."""
    try:
        return msgspec.msgpack.decode(payload, type=str | list[str])
    except (msgspec.MsgspecError, ValueError) as e:
        raise ProtocolError(f"news: {e}") from e


class Frames:
    """Bytes in, (control, blob) out. After ProtocolError the connection is of no more use.

    Holds at most one incomplete frame: MAX_CONTROL + MAX_BLOB and what came with it.
    """

    def __init__(self) -> None:
        self._rest = bytearray()
        self._need = _LENGTHS.size

    def feed(self, data: bytes) -> Iterator[tuple[bytes, bytes]]:
        """All frames that are complete now. Use it to the end before the next ``feed``."""
        source = data
        if self._rest:
            self._rest += data
            if len(self._rest) < self._need:  # a large frame arrives in many parts: parse its head once
                return
            source = bytes(self._rest)
            self._rest = bytearray()
        start, size = 0, len(source)
        self._need = _LENGTHS.size
        while size - start >= _LENGTHS.size:
            total, control = _LENGTHS.unpack_from(source, start)
            if control > MAX_CONTROL or not 4 + control <= total <= 4 + control + MAX_BLOB:
                raise ProtocolError(f"frame of {total} bytes with {control} of control")
            end = start + 4 + total
            if end > size:
                self._need = 4 + total
                break
            middle = start + _LENGTHS.size + control
            yield source[start + _LENGTHS.size : middle], source[middle:end]
            start = end
        if start < size:
            self._rest += source[start:] if start else source
