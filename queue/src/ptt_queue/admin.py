"""The operator's verbs as functions over a transaction: list, show, act. Used live and with the service stopped."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence

import msgspec

from ptt_queue import keys
from ptt_queue.protocol import CHUNK_BYTES, Ref
from ptt_queue.store import MessageRecord, Transaction
from ptt_queue.types import Act, Entry, Filter, NewTask, Page, State

MAX_PAGE = 1000  # entries
MAX_PAGE_BYTES = 1024 * 1024
DELETE_CHUNKS = 256  # of one body at once; the rest of a larger one is collected later

Leased = Container[bytes]  # keys of tasks that a worker is at


class Changes(msgspec.Struct):
    """What ``act`` did: ``noted`` are index keys of tasks that wait now, ``orphans`` bodies still to be deleted."""

    changed: int = 0
    leased: int = 0
    noted: list[bytes] = []
    orphans: list[bytes] = []


def listing(txn: Transaction, wanted: Filter, leased: Leased) -> Page:
    """One page, in the order of the index: stage, state, lane, class, due."""
    entries: list[Entry] = []
    size = 0
    most = min(max(wanted.most, 1), MAX_PAGE)
    for key in _matching(txn, wanted):
        if entry := _entry(txn, key, leased):
            entries.append(entry)
            size += len(entry.meta) + len(entry.note) + sum(len(i.data) for i in entry.items)
        if len(entries) >= most or size >= MAX_PAGE_BYTES:
            return Page(entries, key + b"\0")
    return Page(entries, b"")


def _matching(txn: Transaction, wanted: Filter) -> Iterator[bytes]:
    """The keys that match, found by skipping what cannot."""
    key: bytes = txn.walk(wanted.after).key()
    while key:
        stage, state = key[0], key[1]
        if wanted.stage is not None and stage != wanted.stage:
            if stage > wanted.stage:
                return
            seek = bytes((wanted.stage,))
        elif wanted.state is not None and state != wanted.state:
            seek = bytes((stage, wanted.state)) if state < wanted.state else bytes((stage + 1,))
        elif wanted.lane is not None and keys.lane_of_key(key) != (lane := keys.lane_prefix(stage, state, wanted.lane)):
            seek = lane if key < lane else bytes((stage, state + 1))
        else:
            yield key
            seek = key + b"\0"
        key = txn.walk(seek).key()


def _entry(txn: Transaction, index_key: bytes, leased: Leased) -> Entry | None:
    """None when its records are damaged."""
    parts = keys.split_index_key(index_key)
    key = index_key[-keys.TASK_BYTES :]
    try:
        message, task = txn.message(parts.message), txn.task(key)
    except msgspec.MsgspecError:
        return None
    if message is None or task is None:
        return None
    return Entry(
        parts.message,
        parts.number,
        task.stage,
        task.state,
        task.lane,
        message.priority,
        task.due,
        task.attempts,
        task.maybe,
        key in leased,
        task.items,
        task.note,
        message.meta,
        message.size,
        message.created,
        message.expires,
    )


def index_key_of(message: bytes, number: int, task: NewTask, priority: int) -> bytes:
    """Where a stored task is in the index."""
    return keys.index_key(task.stage, task.state, task.lane, priority, task.due, message, number)


def show(txn: Transaction, id: bytes, leased: Leased) -> list[Entry]:
    """All tasks of a message; [] when there is no such message."""
    message = txn.message(id)
    found = []
    for key in list(txn.tasks_of(id)) if message else []:
        task = txn.task(key)
        if message is not None and task is not None:
            index_key = index_key_of(id, keys.split_record_key(key)[1], task, message.priority)
            entry = _entry(txn, index_key, leased)
            if entry is not None:
                found.append(entry)
    return found


def drop_message(txn: Transaction, id: bytes, size: int) -> bool:
    """Delete a message that has no tasks. True when chunks of its body are left, now marked as an orphan's."""
    txn.delete_message(id, size)
    if size > DELETE_CHUNKS * CHUNK_BYTES:
        txn.set_orphan(id)
        return True
    txn.delete_chunks(id, -(-size // CHUNK_BYTES))
    return False


def act(
    txn: Transaction,
    verb: Act,
    ids: Sequence[bytes],
    now: int,
    leased: Leased,
    maybe: Mapping[bytes, tuple[bytes, bool]],
    tasks: Sequence[Ref] = (),
) -> Changes:
    """Do ``verb`` to all tasks of these messages, and to these ``tasks``, that nobody is at.

    ``maybe``: what the store does not know yet.
    """
    changes = Changes()
    wanted: dict[bytes, list[bytes] | None] = {id: [] for id, _ in tasks}
    for id, number in tasks:
        wanted[id] = [*(wanted[id] or []), keys.record_key(id, number)]
    wanted.update(dict.fromkeys(ids))
    for id, some in wanted.items():
        message = txn.message(id)
        for key in (list(txn.tasks_of(id)) if some is None else some) if message else []:
            task = txn.task(key)
            if message is None or task is None:
                continue
            if key in leased:
                changes.leased += 1
                continue
            ended = key in maybe  # its last lease has an end that the store does not know yet
            if ended and maybe[key][1]:
                task = msgspec.structs.replace(task, maybe=True)
            _act_on(txn, verb, id, key, task, message, now, changes, ended)
        if message is not None and verb is Act.DELETE and not txn.has_tasks(id) and drop_message(txn, id, message.size):
            changes.orphans.append(id)
    return changes


def _act_on(
    txn: Transaction,
    verb: Act,
    id: bytes,
    key: bytes,
    task: NewTask,
    message: MessageRecord,
    now: int,
    changes: Changes,
    ended: bool,
) -> None:
    replaced = _after(verb, task, now)
    if replaced == task:
        return
    number = keys.split_record_key(key)[1]
    old = index_key_of(id, number, task, message.priority)
    value = b"" if ended else txn.raw_value(old)
    txn.delete_task(key, old)
    if replaced is not None:
        new = index_key_of(id, number, replaced, message.priority)
        txn.add_task(key, new, replaced, value)
        if replaced.state is State.WAITING:
            changes.noted.append(new)
    changes.changed += 1


def _after(verb: Act, task: NewTask, now: int) -> NewTask | None:
    """What becomes of a task; itself when the verb does not apply to it, None when it is deleted."""
    if verb is Act.DELETE:
        return None
    if verb is Act.RETRY and (task.state is not State.WAITING or task.due > now):
        return msgspec.structs.replace(task, state=State.WAITING, due=now)
    if verb is Act.HOLD and task.state is State.WAITING:
        return msgspec.structs.replace(task, state=State.HELD)
    if verb is Act.RELEASE and task.state is State.HELD:
        return msgspec.structs.replace(task, state=State.WAITING)
    return task
