"""Tasks that could not be read and were set aside (``set_aside``): seen, put back, or deleted for good.

Their message and body stay while they are here. Functions of the engine, over its transactions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from ptt_queue import keys
from ptt_queue.admin import Changes, drop_message
from ptt_queue.protocol import Ref
from ptt_queue.store import Transaction
from ptt_queue.types import MESSAGE_ID_BYTES, State

_encode = msgspec.msgpack.Encoder().encode


class _Aside(msgspec.Struct, array_like=True, frozen=True):
    """What is kept of a task. ``leased``: its last lease had no known end."""

    index_key: bytes
    record: bytes | None
    leased: bool = False


_decode = msgspec.msgpack.Decoder(_Aside).decode


class Damaged(msgspec.Struct, frozen=True):
    """A task that could not be read. ``raw``: its record, b"" when there is none."""

    message: bytes
    number: int
    stage: int
    state: State
    lane: str
    due: int
    raw: bytes
    readable: bool  # it can be read now, and its message too


def listing(txn: Transaction, after: bytes, most: int) -> tuple[list[Damaged], bytes]:
    """A page of them, in the order of their messages, and where the next begins; b"" when there is none."""
    found: list[Damaged] = []
    for key, index_key, raw in _all(txn, after):
        if len(found) == most:
            return found, key
        parts = keys.split_index_key(index_key)
        found.append(
            Damaged(
                parts.message,
                parts.number,
                parts.stage,
                parts.state,
                parts.lane,
                parts.due,
                raw or b"",
                _readable(txn, key),
            )
        )
    return found, b""


def _all(txn: Transaction, after: bytes) -> Iterator[tuple[bytes, bytes, bytes | None]]:
    cursor = txn.txn.cursor(db=txn._store.dbs["damaged"])
    found = cursor.set_range(after)
    while found:
        key: bytes = cursor.key()
        if len(key) == keys.TASK_BYTES and (entry := _entry(txn, key)):
            yield key, entry.index_key, entry.record
        found = cursor.next()


def _entry(txn: Transaction, key: bytes) -> _Aside | None:
    """None: there is no such entry, or it is damaged itself."""
    raw = txn.get_record(txn._store.dbs["damaged"], key)
    try:
        return None if raw is None else _decode(raw)
    except msgspec.MsgspecError:
        return None


def _readable(txn: Transaction, key: bytes) -> bool:
    try:
        return txn.message(key[:MESSAGE_ID_BYTES]) is not None and txn.task(key) is not None
    except msgspec.MsgspecError:
        return False


def set_aside(txn: Transaction, index_key: bytes) -> None:
    """A task whose records are damaged: out of the index, its bytes kept for the operator."""
    key = index_key[-keys.TASK_BYTES :]
    kept = _Aside(index_key, txn.get_record(txn.records, key), bool(txn.raw_value(index_key)))
    txn.replace_record(txn._store.dbs["damaged"], key, _encode(kept))
    txn.txn.delete(index_key, db=txn.index)
    txn._count((index_key[0], index_key[1]), -1)


def repair(txn: Transaction, tasks: Sequence[Ref], delete: bool) -> Changes:
    """Put these back into the index if they can be read now; or delete them, with a message that has no other task."""
    changes = Changes()
    for id, number in tasks:
        key = keys.record_key(id, number)
        entry = _entry(txn, key)
        if entry is None or not (delete or _readable(txn, key)):
            continue
        txn.delete_record(txn._store.dbs["damaged"], key)
        changes.changed += 1
        if not delete:
            _put_back(txn, key, entry, changes)
            continue
        txn.delete_record(txn.records, key)
        if txn.has_message(id) and not txn.has_tasks(id):
            _drop(txn, id, changes)
    return changes


def _put_back(txn: Transaction, key: bytes, entry: _Aside, changes: Changes) -> None:
    index_key, task = entry.index_key, txn.task(key)
    if entry.leased and task is not None:  # what the index said of its lease is gone: an attempt may have succeeded
        txn.rewrite_task(key, msgspec.structs.replace(task, maybe=True))
    txn.txn.put(index_key, b"", db=txn.index)
    txn._count((index_key[0], index_key[1]), 1)
    if index_key[1] == State.WAITING:
        changes.noted.append(index_key)


def _drop(txn: Transaction, id: bytes, changes: Changes) -> None:
    try:
        message = txn.message(id)
    except msgspec.MsgspecError:
        message = None
    if message is not None:
        if drop_message(txn, id, message.size):
            changes.orphans.append(id)
        return
    txn.delete_message(id, _body_size(txn, id))  # its record does not tell; the chunks are collected as an orphan's
    txn.set_orphan(id)
    changes.orphans.append(id)


def _body_size(txn: Transaction, id: bytes) -> int:
    size = 0
    number = 0
    while chunks := txn.chunks(id, number):
        size += sum(map(len, chunks))
        number += len(chunks)
    return size
