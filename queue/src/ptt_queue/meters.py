"""Meters: counters in fixed windows of time that a put must fit into. In the put's transaction, so they are exact for
all clients together, and survive what the message survives.

In ``meters``: end of the window (6) + its length (6) + the meter's key -> how much is counted (8), the limit that was
last told (8). Windows are aligned to their length from the epoch: one of an hour begins with each full hour, UTC.
Those that have ended come first, so they are found, and removed, without looking at others.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from ptt_queue.store import Transaction
from ptt_queue.types import Meter, Metered, NewMessage, Over, Refusal, State

MAX_COUNTERS = 500_000  # some 60 MiB; a put that needs one more is refused until some have ended
MAX_METERS = 32  # of one message
MAX_KEY_BYTES = 400  # LMDB's keys end at 511 bytes
MIN_WINDOW_MS = 1000
MAX_WINDOW_MS = 366 * 86_400_000
MAX_AMOUNT = (1 << 62) - 1
_HEAD = struct.Struct("!HIHI")  # end and length of the window, each in two halves
_VALUE = struct.Struct("!QQ")


class NoRoom(NamedTuple):
    """A meter that has no room, and when its window ends (ms)."""

    meter: Meter
    until: int


class Full(Exception):
    """There is no room for another counter."""


def judge(txn: Transaction, message: NewMessage, now: int) -> tuple[Refusal | None, NoRoom | None]:
    """Count a message's meters. Returns why it is refused, and the meter that has no room."""
    if not valid(message.meters):
        return Refusal.INVALID, None
    try:
        over = count(txn, message.meters, now)
    except Full:
        return Refusal.FULL, None
    return (Refusal.METER if over and message.over is Over.REFUSE else None), over


def valid(meters: Sequence[Meter]) -> bool:
    """Can these be counted?"""
    return len(meters) <= MAX_METERS and all(
        0 < len(m.key.encode()) <= MAX_KEY_BYTES
        and MIN_WINDOW_MS <= m.window <= MAX_WINDOW_MS
        and 0 <= m.amount <= MAX_AMOUNT
        and 0 <= m.limit <= MAX_AMOUNT
        for m in meters
    )


def count(txn: Transaction, meters: Sequence[Meter], now: int) -> NoRoom | None:
    """Count all of these meters if all have room; else none of them, and the one whose window ends last is returned.

    Removes two counters that have ended for each that is new, so they cannot pile up. Raises Full; nothing is counted.
    """
    found: dict[bytes, tuple[int, int]] = {}
    over: NoRoom | None = None
    fresh = 0
    for meter in meters:
        until = (now // meter.window + 1) * meter.window
        name = _name(until, meter)
        used = found[name][0] if name in found else _used(txn, name)
        fresh += used < 0
        used = max(used, 0) + meter.amount
        if used > meter.limit and (over is None or until > over.until):
            over = NoRoom(meter, until)
        found[name] = (used, meter.limit)
    if over is not None:
        return over
    if fresh:
        prune(txn, now, 2 * fresh)
        if txn.txn.stat(txn.meters)["entries"] + fresh > MAX_COUNTERS:
            raise Full
    for name, value in found.items():
        txn.txn.put(name, _VALUE.pack(*value), db=txn.meters)
    return None


def prune(txn: Transaction, now: int, most: int) -> None:
    """Remove at most ``most`` counters of windows that have ended."""
    cursor = txn.txn.cursor(db=txn.meters)
    more = cursor.first()
    for _ in range(most):
        if not more or _until(cursor.key()) > now:
            return
        more = cursor.delete()


def listing(txn: Transaction, prefix: str, after: bytes, most: int) -> tuple[list[Metered], bytes]:
    """Counters whose keys begin with ``prefix``, of ``most`` that are looked at; and where to go on, b"" at the end."""
    cursor = txn.txn.cursor(db=txn.meters)
    found: list[Metered] = []
    more = cursor.set_range(after)
    for _ in range(most):
        if not more:
            return found, b""
        name: bytes = cursor.key()
        key = name[_HEAD.size :].decode()
        if key.startswith(prefix):
            high, low, *window = _HEAD.unpack_from(name)
            used, limit = _VALUE.unpack(cursor.value())
            found.append(Metered(key, used, limit, window[0] << 32 | window[1], high << 32 | low))
        after = name + b"\0"
        more = cursor.next()
    return found, after if more else b""


def held(message: NewMessage, note: bytes) -> NewMessage:
    """The message as it is stored when a meter has no room and it is to be held."""
    tasks = [msgspec.structs.replace(task, state=State.HELD, note=note or task.note) for task in message.tasks]
    return msgspec.structs.replace(message, tasks=tasks)


def _name(until: int, meter: Meter) -> bytes:
    window = meter.window
    return _HEAD.pack(until >> 32, until & 0xFFFFFFFF, window >> 32, window & 0xFFFFFFFF) + meter.key.encode()


def _until(name: bytes) -> int:
    return int.from_bytes(name[:6], "big")


def _used(txn: Transaction, name: bytes) -> int:
    """What is counted; -1 when there is no such counter."""
    value: bytes | None = txn.txn.get(name, db=txn.meters)
    return -1 if value is None else int(_VALUE.unpack(value)[0])
