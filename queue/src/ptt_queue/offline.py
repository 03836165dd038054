"""The store without its owner: read at any time, by any process that may open its files; changed while none runs.

``read`` takes no lock and asks nothing of the owner: what an operator looks at costs the service nothing. Each page
has a snapshot of its own, so that a long listing keeps no pages of the store from being used again. ``own`` becomes
the owner, so it fails while the service runs. A process opens a store once.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import time
from collections.abc import Iterator, Sequence

import lmdb
import msgspec

from ptt_queue import admin, amend, damaged, files, keys, meters, suspended
from ptt_queue.errors import StoreBusy, StoreError
from ptt_queue.protocol import CHUNK_BYTES, Ref
from ptt_queue.store import LEASED, MessageRecord, Store, Transaction
from ptt_queue.types import (
    Act,
    Acted,
    Amended,
    Entry,
    Filter,
    Metered,
    NewMessage,
    NewTask,
    Page,
    Refusal,
    Settle,
    State,
    Suspension,
)

KEYS_PAGE = 10_000  # keys of the index read with one snapshot


class Stored(msgspec.Struct, frozen=True):
    """A message as it is stored, without its body. ``tasks``: with their numbers."""

    id: bytes
    record: MessageRecord
    tasks: list[tuple[int, NewTask]]


class Space(msgspec.Struct, frozen=True):
    """The store on its disk, in bytes: ``file`` as long as it is, ``disk`` what it takes, ``used`` what holds data."""

    messages: int
    used: int
    file: int
    disk: int
    free: int  # of the file system
    damaged: int  # tasks set aside


class Reader:
    """Lists and shows. ``live``: the service runs, so a lease that the store tells of is one of now."""

    def __init__(self, store: Store, live: bool = False) -> None:
        self._store = store
        self._live = live

    @contextlib.contextmanager
    def _snapshot(self) -> Iterator[Transaction]:
        txn = self._store.begin(write=False)
        try:
            yield txn
        finally:
            txn.abort()

    def list(self, filter: Filter) -> Page:
        """One page; each page has its own snapshot."""
        with self._snapshot() as txn:
            page = admin.listing(txn, filter, ())
            return Page([self._now(txn, entry) for entry in page.entries], page.after)

    def show(self, message: bytes) -> Sequence[Entry]:
        with self._snapshot() as txn:
            return [self._now(txn, entry) for entry in admin.show(txn, message, ())]

    def _now(self, txn: Transaction, entry: Entry) -> Entry:
        """With what the index knows of its lease; an unknown end of a former one is ``maybe``, as the owner has it."""
        index_key = keys.index_key(
            entry.stage, entry.state, entry.lane, entry.priority, entry.due, entry.message, entry.number
        )
        lease = txn.lease_value(index_key)
        if lease is None:
            return entry
        if self._live and lease[0] == _epoch(txn):
            return msgspec.structs.replace(entry, leased=True)
        return msgspec.structs.replace(entry, maybe=True)

    def stored(self, message: bytes) -> Stored | None:
        """A message with its tasks. Raises msgspec.MsgspecError when its record is damaged."""
        with self._snapshot() as txn:
            record = txn.message(message)
            if record is None:
                return None
            found = [(keys.split_record_key(key)[1], txn.task(key)) for key in list(txn.tasks_of(message))]
            return Stored(message, record, [(number, task) for number, task in found if task is not None])

    def body(self, message: bytes, size: int) -> bytes:
        """The whole body of a message of so many bytes, without its prefix. Raises StoreError when it is not whole."""
        parts: list[bytes] = []
        with self._snapshot() as txn:
            while len(parts) * CHUNK_BYTES < size and (more := txn.chunks(message, len(parts))):
                parts += more
        found = b"".join(parts)
        if len(found) != size:
            raise StoreError("the body is gone or not whole")
        return found

    def walk(self, after: bytes = b"") -> Iterator[tuple[keys.IndexKey, bool]]:
        """All tasks by their keys alone, in the order of the index, and whether a worker is at each."""
        while True:
            found: list[tuple[bytes, bytes]] = []
            with self._snapshot() as txn:
                epoch = _epoch(txn)
                cursor = txn.walk(after)
                while cursor.key() and len(found) < KEYS_PAGE:
                    found.append(cursor.item())
                    if not cursor.next():
                        break
            for key, value in found:
                leased = self._live and len(value) == LEASED.size and LEASED.unpack(value)[0] == epoch
                yield keys.split_index_key(key), leased
            if len(found) < KEYS_PAGE:
                return
            after = found[-1][0] + b"\0"

    def counts(self) -> Sequence[tuple[int, State, int]]:
        """(stage, state, how many tasks), as they were when the store was opened."""
        return self._store.task_counts()

    def space(self) -> Space:
        """What the store takes on its disk."""
        with self._snapshot() as txn:
            used = self._store.used_bytes(txn)
            aside = txn.damaged()
        file = os.path.join(self._store.path, "data.mdb")
        return Space(
            self._store.message_count(),
            used,
            os.stat(file).st_size,
            os.stat(file).st_blocks * 512,
            files.free_bytes(self._store.path),
            aside,
        )

    def meters(self, prefix: str = "") -> Iterator[Metered]:
        """The counters whose keys begin so, by the end of their windows. Those that have ended may be among them."""
        after = b""
        while True:
            with self._snapshot() as txn:
                found, after = meters.listing(txn, prefix, after, KEYS_PAGE)
            yield from found
            if not after:
                return

    def suspended(self, now: int) -> Sequence[Suspension]:
        """What is suspended now (ms)."""
        with self._snapshot() as txn:
            return [what for what in suspended.all_of(txn) if not suspended.lapsed(what, now)]

    def damaged(self) -> Iterator[damaged.Damaged]:
        """What was set aside."""
        after = b""
        while True:
            with self._snapshot() as txn:
                found, after = damaged.listing(txn, after, admin.MAX_PAGE)
            yield from found
            if not after:
                return


def _epoch(txn: Transaction) -> int:
    """The life of the owner that has written last."""
    value = txn.txn.get(b"epoch", db=txn.state)
    return int.from_bytes(value, "big") if value else 0


class Owner(Reader):
    """Also changes; each in one transaction, on stable storage on return."""

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[Transaction]:
        txn = self._store.begin()
        try:
            yield txn
            txn.commit()
        except BaseException:
            txn.abort()
            raise

    def act(self, verb: Act, messages: Sequence[bytes], tasks: Sequence[Ref] = ()) -> Acted:
        with self._transaction() as txn:
            done = admin.act(txn, verb, messages, int(time.time() * 1000), (), {}, tasks)
        return Acted(done.changed, done.leased)

    def amend(self, settle: Settle, bodies: Sequence[bytes] = ()) -> Amended:
        with self._transaction() as txn:
            return amend.amend(txn, settle, b"".join(bodies), (), {})[0]

    def repair(self, tasks: Sequence[Ref], delete: bool) -> int:
        with self._transaction() as txn:
            return damaged.repair(txn, tasks, delete).changed

    def suspend(self, what: Suspension) -> bool:
        with self._transaction() as txn:
            return suspended.keep(txn, what)

    def resume(self, name: str, site: bool = False) -> bool:
        with self._transaction() as txn:
            return suspended.remove(txn, name, site) is not None

    def put(self, message: NewMessage, body: bytes) -> Refusal | None:
        """Store a message; why not, if it is refused."""
        with self._transaction() as txn:
            if txn.has_message(message.id):
                return Refusal.DUPLICATE
            if not amend.storable(txn, message) or len(body) != message.size:
                return Refusal.INVALID
            amend.store(txn, message, body, admin.Changes())
        return None


@contextlib.contextmanager
def read(path: str, map_bytes: int, live: bool = False) -> Iterator[Reader]:
    """Raises StoreError, also when there is no queue."""
    store = Store(path, map_bytes, readonly=True)
    try:
        yield Reader(store, live)
    finally:
        store.close()


@contextlib.contextmanager
def own(path: str, map_bytes: int) -> Iterator[Owner]:
    """Raises StoreBusy while the service runs, StoreError."""
    lock = files.take(path)
    try:
        store = Store(path, map_bytes)
        try:
            yield Owner(store)
        finally:
            store.close()
    finally:
        os.close(lock)


def compact(path: str, map_bytes: int) -> tuple[int, int]:
    """Write the store anew without the space that is free in it; its size before and after, in bytes.

    Needs as much free disk as the store uses. A crash leaves the old or the new one, whole. Raises StoreBusy while
    somebody uses the store, StoreError.
    """
    lock = files.take(path)
    try:
        return _compact(path, map_bytes)
    except (lmdb.Error, OSError) as e:
        raise StoreError(f"{path}: {e}") from e
    finally:
        os.close(lock)


def _compact(path: str, map_bytes: int) -> tuple[int, int]:
    data, new = os.path.join(path, "data.mdb"), os.path.join(path, "compact")
    before = os.stat(data).st_size
    shutil.rmtree(new, ignore_errors=True)  # of a compaction that was cut off
    os.mkdir(new, 0o700)
    try:
        store = Store(path, map_bytes)
        try:
            needed = Reader(store).space().used
            if files.free_bytes(path) < needed:
                raise StoreError(f"{path}: {needed} bytes of free disk are needed")
            store.env.copy(new, compact=True)
        finally:
            store.close()
        os.chmod(os.path.join(new, "data.mdb"), 0o600)
        files.sync(os.path.join(new, "data.mdb"))
        _swap(path, os.path.join(new, "data.mdb"))
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return before, os.stat(data).st_size


def _swap(path: str, new: str) -> None:
    """Put ``new`` in the place of the data while nobody has the store open.

    LMDB keeps in ``lock.mdb`` which of its roots is the last; only who opens the store alone looks that up again.
    """
    lock = os.path.join(path, "lock.mdb")
    fd = os.open(lock, os.O_RDWR)
    try:
        try:
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1)
        except OSError as e:
            raise StoreBusy(f"{path}: somebody is reading the queue") from e
        os.rename(new, os.path.join(path, "data.mdb"))
        os.unlink(lock)
        files.sync(path)
    finally:
        os.close(fd)
