"""The operator's settle of a task that no worker is at, as functions over a transaction.

A settle by the operator replaces one task, in whatever state, by others (or none), and stores the messages that come
of it in the same transaction: so a message that is given up and the word of it to its sender change together.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence

import msgspec

from ptt_queue import keys
from ptt_queue.admin import Changes, Leased, drop_message, index_key_of
from ptt_queue.protocol import Ref
from ptt_queue.store import MessageRecord, Transaction
from ptt_queue.types import MESSAGE_ID_BYTES, Amended, NewMessage, NewTask, Settle, State


def is_ref(ref: Ref) -> bool:
    """Can this name a task?"""
    return len(ref[0]) == MESSAGE_ID_BYTES and 0 < ref[1] <= keys.MAX_NUMBER


def amend(
    txn: Transaction, settle: Settle, blob: bytes, leased: Leased, ended: Mapping[bytes, tuple[bytes, bool]]
) -> tuple[Amended, Changes]:
    """Replace a task. ``blob``: the bodies of ``settle.puts``, one behind the other. Repeating it does nothing more.

    ``ended``: the leases whose end the store does not know yet. What stays of a task whose last attempt may have
    succeeded bears that mark, whatever the caller knew.
    """
    id, changes = settle.message, Changes()
    if not is_ref((id, settle.number)):
        return Amended.INVALID, changes
    key = keys.record_key(id, settle.number)
    if key in leased:
        return Amended.LEASED, changes
    message = txn.message(id)
    task = txn.task(key) if message else None
    if message is None or task is None:
        there = bool(settle.puts) and all(txn.has_message(put.id) for put in settle.puts)
        return (Amended.DONE if there else Amended.GONE), changes
    index_keys = places(id, settle.tasks, message.priority, message.next)
    sizes = sum(put.size for put in settle.puts)
    if index_keys is None or sizes != len(blob) or not all(storable(txn, put) for put in settle.puts):
        return Amended.INVALID, changes
    if len({put.id for put in settle.puts}) < len(settle.puts):
        return Amended.INVALID, changes
    old = index_key_of(id, settle.number, task, message.priority)
    unknown = task.maybe or (ended[key][1] if key in ended else txn.lease_value(old) is not None)
    tasks = [msgspec.structs.replace(t, maybe=True) for t in settle.tasks] if unknown else settle.tasks
    txn.delete_task(key, old)
    message.next += len(settle.tasks)
    if settle.prefix is not None:
        message.prefix = settle.prefix
    if settle.tasks or settle.prefix is not None:
        txn.rewrite_message(id, message)
    _add(txn, index_keys, tasks, changes)
    at = 0
    for put in settle.puts:
        store(txn, put, blob[at : at + put.size], changes)
        at += put.size
    if not txn.has_tasks(id) and drop_message(txn, id, message.size):
        changes.orphans.append(id)
    changes.changed = 1
    return Amended.DONE, changes


def places(id: bytes, tasks: Sequence[NewTask], priority: int, first: int) -> list[bytes] | None:
    """The index keys of new tasks, numbered from ``first``; None when one of them cannot be stored."""
    try:
        found = [index_key_of(id, number, task, priority) for number, task in enumerate(tasks, first)]
    except (ValueError, OverflowError, struct.error):
        return None
    return found if all(task.stage <= keys.MAX_STAGE for task in tasks) else None


def storable(txn: Transaction, put: NewMessage) -> bool:
    """Can this message be stored? Its body is here in one piece."""
    if len(put.id) != MESSAGE_ID_BYTES or put.staged or put.size < 0 or put.priority not in keys.CLASSES:
        return False
    return bool(put.tasks) and places(put.id, put.tasks, put.priority, 1) is not None and not txn.has_message(put.id)


def store(txn: Transaction, put: NewMessage, body: bytes, changes: Changes) -> None:
    """Store a message that is ``storable``."""
    index_keys = places(put.id, put.tasks, put.priority, 1) or []
    txn.put_chunks(put.id, 0, body)
    record = MessageRecord(put.meta, b"", put.size, put.created, put.expires, put.priority, len(put.tasks) + 1)
    txn.add_message(put.id, record)
    _add(txn, index_keys, put.tasks, changes)


def _add(txn: Transaction, index_keys: Sequence[bytes], tasks: Sequence[NewTask], changes: Changes) -> None:
    for index_key, task in zip(index_keys, tasks, strict=True):
        txn.add_task(index_key[-keys.TASK_BYTES :], index_key, task)
        if task.state is State.WAITING:
            changes.noted.append(index_key)
