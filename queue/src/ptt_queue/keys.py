"""The keys of the store: bytes whose order is the order in which things are looked for. Pure.

``records``  message id (12) + number (4): number 0 is the message, its tasks follow
``bodies``   message id (12) + number of the chunk (4)
``index``    stage (1) + state (1) + lane + NUL + class (1) + due (6) + message id (12) + task number (4)

All numbers are big-endian. A lane is UTF-8 without NUL, so NUL ends it and 0xff is above everything in it: the
next lane is found by one seek past ``lane NUL 0xff``.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

from ptt_queue.types import MESSAGE_ID_BYTES, NewTask, State

MAX_LANE_BYTES = 400  # LMDB's keys end at 511 bytes; a domain has at most 255
MAX_DUE = (1 << 48) - 1
MAX_NUMBER = (1 << 32) - 1
MAX_STAGE = 254  # 255 is kept to seek past the last stage
CLASSES = (0, 1, 2)
TASK_BYTES = MESSAGE_ID_BYTES + 4

_NUMBER = struct.Struct("!I")
_AFTER_LANE = struct.Struct("!BHI12sI")  # class, due in two halves, message id, number


class IndexKey(NamedTuple):
    """The parts of a key of the index."""

    stage: int
    state: State
    lane: str
    priority: int
    due: int
    message: bytes
    number: int


def record_key(message: bytes, number: int) -> bytes:
    """The key of a task's record, of a message's (number 0), or of a chunk of a body. Also names a task in memory."""
    return message + _NUMBER.pack(number)


def split_record_key(key: bytes) -> tuple[bytes, int]:
    return key[:MESSAGE_ID_BYTES], _NUMBER.unpack_from(key, MESSAGE_ID_BYTES)[0]


def lane_bytes(lane: str) -> bytes:
    """A lane as it stands in a key. Raises ValueError when it is too long or holds what a key cannot."""
    raw = lane.encode("utf-8")
    if len(raw) > MAX_LANE_BYTES or 0 in raw:
        raise ValueError(f"a lane has at most {MAX_LANE_BYTES} bytes and no NUL")
    return raw


def lane_prefix(stage: int, state: int, lane: str) -> bytes:
    """What all keys of a lane in one state begin with."""
    return bytes((stage, state)) + lane_bytes(lane) + b"\0"


def past_lane(prefix: bytes) -> bytes:
    """Where to seek for the first key after all those that begin with ``prefix`` (of ``lane_prefix``)."""
    return prefix + b"\xff"


def index_key(stage: int, state: int, lane: str, priority: int, due: int, message: bytes, number: int) -> bytes:
    """The key of a task in the index. Raises ValueError for a lane that does not fit, struct.error for numbers."""
    after = _AFTER_LANE.pack(priority, due >> 32, due & 0xFFFFFFFF, message, number)
    return b"%c%c%b\0%b" % (stage, state, lane_bytes(lane), after)


def of_tasks(id: bytes, tasks: Sequence[NewTask], priority: int, first: int) -> list[bytes]:
    """Where new tasks, numbered from ``first``, stand in the index; [] when one of them is not to be stored."""
    found = []
    try:
        for number, task in enumerate(tasks, first):
            found.append(index_key(task.stage, task.state, task.lane, priority, task.due, id, number))
            if task.stage > MAX_STAGE or (task.then and not lane_bytes(task.then)):
                return []
    except (ValueError, OverflowError, struct.error):
        return []
    return found


def lane_of_key(key: bytes) -> bytes:
    """The ``lane_prefix`` of a key of the index."""
    return key[: key.index(0, 2) + 1]


def due_of_key(key: bytes) -> int:
    return int.from_bytes(key[-22:-16], "big")


def split_index_key(key: bytes) -> IndexKey:
    """The inverse of ``index_key``."""
    end = len(key) - _AFTER_LANE.size
    priority, high, low, message, number = _AFTER_LANE.unpack_from(key, end)
    return IndexKey(
        key[0], State(key[1]), key[2 : end - 1].decode("utf-8"), priority, high << 32 | low, message, number
    )
