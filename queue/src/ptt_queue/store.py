"""The LMDB engine: transactions over records, bodies and the index. It decides nothing.

A ``Store`` has one owner (see ``files.take``) that writes, and any number of readers (``Reader``) in other
processes. All of a group's changes are made in one ``Transaction``; ``commit`` is the commit point: when it returns,
they are on stable storage (LMDB syncs the data, then writes and syncs the page that makes it visible).

No value is larger than CHUNK_BYTES: bodies are chunks, and a record that is larger is cut into parts whose keys
are the record's with two bytes behind.
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Iterator, Sequence
from typing import Any

import lmdb
import msgspec

from ptt_queue import files, keys
from ptt_queue.errors import StoreError
from ptt_queue.protocol import CHUNK_BYTES, PART_CHUNKS
from ptt_queue.types import NewTask, State

SCHEMA = 1
MAX_READERS = 126
LEASED = struct.Struct("!I8s")  # value in the index: epoch of the last lease, and the client's tag
_PART = struct.Struct("!H")
_DATABASES = ("records", "bodies", "index", "state", "damaged", "meters")

_encode = msgspec.msgpack.Encoder().encode
_decode_task = msgspec.msgpack.Decoder(NewTask).decode


class MessageRecord(msgspec.Struct, array_like=True):
    """What is stored of a message beside its tasks. ``next``: the number of its next task."""

    meta: bytes
    prefix: bytes
    size: int
    created: int
    expires: int
    priority: int
    next: int


_decode_message = msgspec.msgpack.Decoder(MessageRecord).decode
_Counts = dict[tuple[int, int], int]
MESSAGES = (0, -1)  # the key under which messages are counted; (stage, state) for tasks
BODIES = (0, -2)  # and the bytes of their bodies
_decode_counts = msgspec.msgpack.Decoder(list[tuple[int, int, int]]).decode


class Store:
    """The environment. ``epoch`` numbers the lives of the owner: leases of an earlier epoch had no known end."""

    def __init__(self, path: str, map_bytes: int, *, readonly: bool = False) -> None:
        """Open, or create. Raises StoreError."""
        files.check_file_system(path)
        fresh = not os.path.exists(os.path.join(path, "data.mdb"))
        if fresh and readonly:
            raise StoreError(f"{path}: there is no queue here")
        try:
            if fresh:
                files.create(path, lambda beside: lmdb.open(beside, map_size=map_bytes, mode=0o600).close())
            self.env = lmdb.open(
                path,
                map_size=map_bytes,
                max_dbs=len(_DATABASES),
                max_readers=MAX_READERS,
                readonly=readonly,
                meminit=False,  # pages that are written are never read by others before
                mode=0o600,
            )
            self.dbs: dict[str, Any] = {n: self.env.open_db(n.encode(), create=not readonly) for n in _DATABASES}
        except lmdb.NotFoundError as e:
            raise StoreError(f"{path}: made by an earlier version: start the service once") from e
        except (lmdb.Error, OSError) as e:
            raise StoreError(f"{path}: {e}") from e
        if not readonly:
            files.sync_created(path)  # each time: who created it may have been killed before
        self.path = path
        self.page_bytes: int = self.env.stat()["psize"]
        self.counts: _Counts = {}
        self.epoch = 0
        self._check_schema(readonly)

    def _check_schema(self, readonly: bool) -> None:
        with self.env.begin(db=self.dbs["state"]) as txn:
            found = txn.get(b"schema")
            epoch = txn.get(b"epoch")
            counts = txn.get(b"counts")
        if found is not None and int.from_bytes(found, "big") != SCHEMA:
            raise StoreError(f"{self.path}: schema {int.from_bytes(found, 'big')}, this program knows {SCHEMA}")
        self.epoch = int.from_bytes(epoch, "big") if epoch else 0
        if counts:
            self.counts = {(stage, state): n for stage, state, n in _decode_counts(counts)}
        if found is None and not readonly:
            with self.env.begin(write=True, db=self.dbs["state"]) as txn:
                txn.put(b"schema", SCHEMA.to_bytes(4, "big"))
        if self.message_count() and BODIES not in self.counts:  # an earlier version did not count them
            self.counts[BODIES] = sum_of_bodies(self)

    def next_epoch(self) -> None:
        """A new life of the owner begins."""
        self.epoch += 1
        with self.env.begin(write=True, db=self.dbs["state"]) as txn:
            txn.put(b"epoch", self.epoch.to_bytes(4, "big"))

    def task_counts(self) -> list[tuple[int, State, int]]:
        """(stage, state, how many tasks), as of the last commit."""
        return [(stage, State(state), n) for (stage, state), n in sorted(self.counts.items()) if state >= 0 and n]

    def message_count(self) -> int:
        return self.counts.get(MESSAGES, 0)

    def body_bytes(self) -> int:
        """Of all messages."""
        return self.counts.get(BODIES, 0)

    def begin(self, write: bool = True) -> Transaction:
        return Transaction(self, write)

    def used_bytes(self, transaction: Transaction) -> int:
        """Bytes of the pages that hold something."""
        return transaction.pages() * self.page_bytes

    def close(self) -> None:
        self.env.close()


class Transaction:
    """One transaction. After ``commit`` or ``abort`` it is of no more use. Every method may raise lmdb.Error."""

    def __init__(self, store: Store, write: bool) -> None:
        self._store = store
        self.txn = store.env.begin(write=write)
        self.records = store.dbs["records"]
        self.bodies = store.dbs["bodies"]
        self.index = store.dbs["index"]
        self.state = store.dbs["state"]
        self.meters = store.dbs["meters"]
        self._delta: _Counts = {}

    def commit(self) -> None:
        """The commit point."""
        changed = [(key, by) for key, by in self._delta.items() if by]
        if changed:
            counts = dict(self._store.counts)
            for key, by in changed:
                counts[key] = counts.get(key, 0) + by
            self.txn.put(b"counts", _encode([(*k, n) for k, n in counts.items() if n]), db=self.state)
        self.txn.commit()
        if changed:
            self._store.counts = counts

    def abort(self) -> None:
        self.txn.abort()

    def pages(self) -> int:
        found = 0
        for db in self._store.dbs.values():
            stat = self.txn.stat(db)
            found += stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"]
        return found

    def _count(self, key: tuple[int, int], by: int) -> None:
        self._delta[key] = self._delta.get(key, 0) + by

    # -- records of any size -----------------------------------------------------------------------------------

    def _put(self, db: Any, key: bytes, data: bytes) -> None:
        """Store ``data``, in parts if it is large. A byte in front of each part says whether another follows."""
        room = CHUNK_BYTES - 1
        if len(data) <= room:
            self.txn.put(key, b"\0" + data, db=db)
            return
        parts = -(-len(data) // room)
        for n in range(parts):
            more = b"\1" if n + 1 < parts else b"\0"
            self.txn.put(key + _PART.pack(n) if n else key, more + data[n * room : (n + 1) * room], db=db)

    def replace_record(self, db: Any, key: bytes, data: bytes) -> None:
        """As ``_put``, over a record that may be there."""
        if len(data) < CHUNK_BYTES:
            old = self.txn.replace(key, b"\0" + data, db=db)
            self._delete_parts(db, key, old)
        else:
            self.delete_record(db, key)
            self._put(db, key, data)

    def get_record(self, db: Any, key: bytes) -> bytes | None:
        value: bytes | None = self.txn.get(key, db=db)
        if value is None or value[0] == 0:
            return value and value[1:]
        parts = [value[1:]]
        while value is not None and value[0]:
            value = self.txn.get(key + _PART.pack(len(parts)), db=db)
            parts.append(value[1:] if value else b"")
        return b"".join(parts)

    def delete_record(self, db: Any, key: bytes) -> None:
        self._delete_parts(db, key, self.txn.pop(key, db=db))

    def _delete_parts(self, db: Any, key: bytes, value: bytes | None) -> None:
        n = 0
        while value and value[0]:
            n += 1
            value = self.txn.pop(key + _PART.pack(n), db=db)

    # -- messages and tasks ------------------------------------------------------------------------------------

    def has_message(self, id: bytes) -> bool:
        return self.txn.get(keys.record_key(id, 0), db=self.records) is not None

    def message(self, id: bytes) -> MessageRecord | None:
        """Raises msgspec.MsgspecError when the record is damaged."""
        raw = self.get_record(self.records, keys.record_key(id, 0))
        return None if raw is None else _decode_message(raw)

    def add_message(self, id: bytes, record: MessageRecord) -> None:
        self._put(self.records, keys.record_key(id, 0), _encode(record))
        self._count(MESSAGES, 1)
        self._count(BODIES, record.size)

    def rewrite_message(self, id: bytes, record: MessageRecord) -> None:
        self.replace_record(self.records, keys.record_key(id, 0), _encode(record))

    def delete_message(self, id: bytes, size: int) -> None:
        """Its record alone; see ``delete_body``. ``size``: of its body."""
        self.delete_record(self.records, keys.record_key(id, 0))
        self._count(MESSAGES, -1)
        self._count(BODIES, -size)

    def task(self, key: bytes) -> NewTask | None:
        """``key``: of ``keys.record_key``. Raises msgspec.MsgspecError when the record is damaged."""
        raw = self.get_record(self.records, key)
        return None if raw is None else _decode_task(raw)

    def add_task(self, key: bytes, index_key: bytes, task: NewTask, value: bytes = b"") -> None:
        self._put(self.records, key, _encode(task))
        self.txn.put(index_key, value, db=self.index)
        self._count((task.stage, task.state), 1)

    def rewrite_task(self, key: bytes, task: NewTask) -> None:
        """What the index holds of it stays."""
        self.replace_record(self.records, key, _encode(task))

    def delete_task(self, key: bytes, index_key: bytes) -> None:
        self.delete_record(self.records, key)
        self.txn.delete(index_key, db=self.index)
        self._count((index_key[0], index_key[1]), -1)

    def tasks_of(self, id: bytes, first: int = 1) -> Iterator[bytes]:
        """The keys of a message's tasks from this number on."""
        cursor = self.txn.cursor(db=self.records)
        found = cursor.set_range(keys.record_key(id, first))
        while found:
            key: bytes = cursor.key()
            if not key.startswith(id):
                return
            if len(key) == keys.TASK_BYTES:
                yield key
            found = cursor.next()

    def has_tasks(self, id: bytes) -> bool:
        cursor = self.txn.cursor(db=self.records)
        return bool(cursor.set_range(keys.record_key(id, 1)) and cursor.key().startswith(id))

    # -- bodies ------------------------------------------------------------------------------------------------

    def put_chunks(self, id: bytes, first: int, blob: bytes) -> int:
        """Store a part of a body, from chunk ``first`` on. Returns the number of the next chunk."""
        number = first
        view = memoryview(blob)
        for at in range(0, len(blob), CHUNK_BYTES):
            self.txn.put(keys.record_key(id, number), view[at : at + CHUNK_BYTES], db=self.bodies)
            number += 1
        return number

    def chunks(self, id: bytes, first: int) -> list[bytes]:
        """At most PART_CHUNKS chunks of a body from ``first`` on."""
        found = []
        for number in range(first, first + PART_CHUNKS):
            chunk = self.txn.get(keys.record_key(id, number), db=self.bodies)
            if chunk is None:
                break
            found.append(chunk)
        return found

    def delete_chunks(self, id: bytes, count: int) -> None:
        """The whole body of a message, when it has so many chunks."""
        for number in range(count):
            self.txn.delete(keys.record_key(id, number), db=self.bodies)

    def delete_body(self, id: bytes, most: int) -> bool:
        """Delete at most ``most`` chunks, the last ones last. True when there are none left."""
        cursor = self.txn.cursor(db=self.bodies)
        found = cursor.set_range(keys.record_key(id, 0))
        for _ in range(most):
            if not found or not cursor.key().startswith(id):
                return True
            found = cursor.delete()
        return not found or not cursor.key().startswith(id)

    def set_orphan(self, id: bytes) -> None:
        """The chunks under this id belong to no message: collected later, and at the next start."""
        self.txn.put(b"o" + id, b"", db=self.state)

    def clear_orphan(self, id: bytes) -> None:
        self.txn.delete(b"o" + id, db=self.state)

    def orphans(self) -> list[bytes]:
        return [key[1:] for key, _ in self.entries(b"o")]

    # -- the index ---------------------------------------------------------------------------------------------

    def lease_value(self, index_key: bytes) -> tuple[int, bytes] | None:
        """(epoch, client's tag) of the last lease; None: no lease without a known end, or no such key."""
        value = self.txn.get(index_key, db=self.index)
        return LEASED.unpack(value) if value else None

    def raw_value(self, index_key: bytes) -> bytes:
        """The value in the index as it is; b"" also when there is no such key."""
        return self.txn.get(index_key, db=self.index) or b""

    def set_lease(self, index_key: bytes, value: bytes) -> None:
        self.txn.put(index_key, value, db=self.index)

    def walk(self, start: bytes) -> Any:
        """A cursor of the index at the first key from ``start`` on; its ``key()`` is b"" at the end."""
        cursor = self.txn.cursor(db=self.index)
        cursor.set_range(start)
        return cursor

    def lanes(self, start: bytes) -> Iterator[list[bytes]]:
        """Of each lane with waiting tasks, from ``start`` on: the first key of each of its classes.

        Skips all else by seeking. The next key is looked at before it seeks: where there are many lanes, most have
        one task.
        """
        cursor = self.txn.cursor(db=self.index)
        more = cursor.set_range(start)
        while more:
            key: bytes = cursor.key()
            if key[1] != State.WAITING:
                if key[0] >= keys.MAX_STAGE:
                    return
                more = cursor.set_range(bytes((key[0] + 1,)))
                continue
            prefix = keys.lane_of_key(key)
            end = len(prefix)
            found = [key]
            more = cursor.next()
            while more and (key := cursor.key()).startswith(prefix):
                if key[end] == found[-1][end]:
                    more = cursor.set_range(prefix + bytes((key[end] + 1,)))
                else:
                    found.append(key)
                    more = cursor.next()
            yield found

    # -- what is in state, and what cannot be read --------------------------------------------------------------

    def entries(self, prefix: bytes) -> Sequence[tuple[bytes, bytes]]:
        """What ``state`` has under keys that begin so."""
        cursor = self.txn.cursor(db=self.state)
        found = []
        more = cursor.set_range(prefix)
        while more and cursor.key().startswith(prefix):
            found.append(cursor.item())
            more = cursor.next()
        return found

    def oldest(self) -> int:
        """When the oldest message was made (ms since the epoch), by its id; 0: there is none."""
        cursor = self.txn.cursor(db=self.records)
        return int.from_bytes(cursor.key()[:6], "big") if cursor.first() else 0

    def damaged(self) -> int:
        return int(self.txn.stat(self._store.dbs["damaged"])["entries"])


def sum_of_bodies(store: Store) -> int:
    """Bytes of the bodies of all messages whose records can be read."""
    found = 0
    txn = store.begin(write=False)
    for raw, value in txn.txn.cursor(db=txn.records):
        if len(raw) == keys.TASK_BYTES and raw.endswith(b"\0\0\0\0") and value:
            with contextlib.suppress(msgspec.MsgspecError):
                record = txn.message(raw[:-4])
                found += record.size if record else 0
    txn.abort()
    return found
