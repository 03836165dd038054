"""What a client may ask of the store: put, stage, settle, body. Each in the group's transaction.

A put or settle is executed once for each client and number: the client's record, written in the same transaction,
holds the last number executed and the few whose answer was not the usual one. A repeated request is answered from it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from functools import partial

from ptt_queue import admin, answers, clients, keys, meters, once
from ptt_queue.clients import ClientRecord
from ptt_queue.errors import ProtocolError
from ptt_queue.leasing import Leasing
from ptt_queue.protocol import (
    CHUNK_BYTES,
    CLIENT_ID_BYTES,
    MAX_UNANSWERED,
    PART_BYTES,
    VERSION,
    Body,
    Granted,
    Hello,
    Put,
    PutAnswer,
    Request,
    SettleAnswer,
    SettleTask,
    Stage,
    Welcome,
    frame_answer,
)
from ptt_queue.session import Batch, Lease, Sent, Session, Staged
from ptt_queue.store import MessageRecord
from ptt_queue.types import MESSAGE_ID_BYTES, NewMessage, NewTask, Refusal, Settle, State

MAX_STAGED = 256  # bodies that one client sends in parts at the same time
KEPT_MS = 24 * 3600 * 1000  # how long the record of a client that is away is kept
LOST = "lost"
PRUNED_KEYS = 2000  # of submitters, and meters, each minute, when no new ones come: each of those removes two


class Requests:
    """``sessions``: the open connections; ``full``: the mark above which puts are refused, or ""."""

    def __init__(self, leasing: Leasing, sessions: set[Session], full: Callable[[], str], orphans: list[bytes]) -> None:
        self.leasing = leasing
        self.sessions = sessions
        self.full = full
        self.clients: dict[bytes, ClientRecord] = {}
        self.garbage: dict[bytes, None] = dict.fromkeys(orphans)  # ids of chunks that belong to no message
        self.staging: dict[bytes, Session] = {}

    # -- clients -------------------------------------------------------------------------------------------------

    def hello(self, batch: Batch, session: Session, request: Hello, _blob: bytes) -> None:
        """Raises ProtocolError."""
        if len(request.client) != CLIENT_ID_BYTES or session.client:
            raise ProtocolError("hello comes once, with a client id of 16 bytes")
        for other in list(self.sessions):
            if other.client == request.client:  # its connection was lost, we have not seen it yet
                other.broken = "its client came back"
                self.leave(other, batch.now)
        record = self.clients.get(request.client) or clients.find(batch.txn, request.client)
        self.clients[request.client] = record = record or ClientRecord(0, {}, batch.now)
        session.client, session.wants_leases = request.client, request.leases
        self.leasing.welcome(batch, session)
        granted = [self.leasing.claim(batch, session, claim) for claim in request.held]
        batch.aborted.append(partial(setattr, session, "client", b""))
        session.refusing = self.full()
        welcome = Welcome(VERSION, granted, record.last, session.refusing)
        batch.answers.append((session, (frame_answer(request.number, welcome),)))

    def leave(self, session: Session, now: int) -> None:
        """A client is gone: its leases return, what it had staged is collected."""
        for lease in list(session.leases.values()):
            self.leasing.give_back(lease, now)
        for id in session.staged:
            self._discard(id)
        session.staged.clear()

    def _recall(self, batch: Batch, session: Session, done: int) -> ClientRecord:
        record = self.clients[session.client]
        batch.touch(session.client, record)
        if record.unusual:
            record.unusual = {n: x for n, x in record.unusual.items() if n > done}
            if len(record.unusual) > MAX_UNANSWERED:
                raise ProtocolError("too many requests without their answers")
        return record

    def save_clients(self, batch: Batch) -> None:
        """Last before the commit."""
        for client in batch.records:
            record = self.clients[client]
            record.seen = batch.now
            clients.keep(batch.txn, client, record)

    def aborted(self, batch: Batch) -> None:
        for client, (last, unusual) in batch.records.items():
            self.clients[client].last, self.clients[client].unusual = last, unusual

    def prune_clients(self, batch: Batch) -> None:
        """Forget those that have been away for long, submitters' keys that have expired, and meters that have ended."""
        once.prune(batch.txn, batch.now, PRUNED_KEYS)
        meters.prune(batch.txn, batch.now, PRUNED_KEYS)
        here = {s.client for s in self.sessions}
        for client, record in list(clients.all_of(batch.txn)):
            if client not in here and record.seen < batch.now - KEPT_MS:
                clients.forget(batch.txn, client)
                self.clients.pop(client, None)
        for client in [c for c, r in self.clients.items() if c not in here and not r.last]:
            del self.clients[client]

    def fail(self, session: Session, request: Request, why: str) -> list[Sent]:
        """The answer to a request that could not be written."""
        if isinstance(request, Stage):
            session.staged.setdefault(request.id, Staged()).failed = Refusal.FAILED.value
            return []
        number = getattr(request, "number", 0)
        if isinstance(request, Put | SettleTask) and session.client:
            record = self.clients[session.client]
            if number > record.last:
                record.last = number
                record.unusual[number] = Refusal.FAILED.value if isinstance(request, Put) else why[:200]
        if isinstance(request, Put):
            self._unstage(session, request.message.id)
            return [(session, (frame_answer(number, PutAnswer(Refusal.FAILED, [])),))]
        return [(session, (frame_answer(number, None, why),))] if number else []

    # -- put -----------------------------------------------------------------------------------------------------

    def put(self, batch: Batch, session: Session, request: Put, blob: bytes) -> None:
        record = self._recall(batch, session, request.done)
        message = request.message
        first = once.find(batch.txn, message, batch.now) if message.once else b""
        if request.number <= record.last:
            answer = answers.recalled(record.unusual.get(request.number), first)
            batch.committed.append(partial(self._unstage, session, message.id))
            if answer.refused is None and request.lease and not first:
                answer.granted.extend(self.leasing.rebirth(batch, session, message.id, message.tasks))
        else:
            record.last = request.number
            answer = self._put(batch, session, request, blob, first)
            if answer.refused is not None or answer.meter:
                record.unusual[request.number] = answers.remembered(answer)
            if answer.refused is not None or first:
                batch.committed.append(partial(self._unstage, session, message.id))
        batch.answers.append((session, (frame_answer(request.number, answer),)))

    def _put(self, batch: Batch, session: Session, request: Put, blob: bytes, first: bytes) -> PutAnswer:
        """A put that was not executed before. ``first``: the id of the one with the same key, which is kept."""
        message, over = request.message, None
        index_keys = keys.of_tasks(message.id, message.tasks, message.priority, 1)
        refused = Refusal.FULL if self.full() else self._fault(batch, session, message, index_keys, len(blob))
        if refused is None and message.meters and not first:
            refused, over = meters.judge(batch.txn, message, batch.now)
        told = (over.meter.key, over.until) if over else ("", 0)
        if refused is not None or first:
            return PutAnswer(refused, [], b"" if refused else first, *told)
        if over:
            message = meters.held(message, over.meter.held)
            index_keys = keys.of_tasks(message.id, message.tasks, message.priority, 1)
        granted = self._store(batch, session, message, index_keys, blob, request.lease)
        once.remember(batch.txn, message, batch.now)
        return PutAnswer(None, granted, b"", *told)

    def _fault(
        self, batch: Batch, session: Session, message: NewMessage, index_keys: list[bytes], blob_bytes: int
    ) -> Refusal | None:
        """Why this message cannot be stored."""
        if len(message.id) != MESSAGE_ID_BYTES or not index_keys or message.priority not in keys.CLASSES:
            return Refusal.INVALID
        staged = session.staged.get(message.id)
        if message.staged:
            if staged is None or staged.failed:
                return Refusal(staged.failed) if staged else Refusal.INVALID
            if staged.bytes != message.size:
                return Refusal.INVALID
        elif blob_bytes != message.size or staged is not None:
            return Refusal.INVALID
        elif message.id in self.garbage or message.id in self.staging:
            return Refusal.DUPLICATE
        return Refusal.DUPLICATE if batch.txn.has_message(message.id) else None

    def _store(
        self,
        batch: Batch,
        session: Session,
        message: NewMessage,
        index_keys: Sequence[bytes],
        blob: bytes,
        lease: bool,
    ) -> list[Granted]:
        txn, id = batch.txn, message.id
        if message.staged:
            txn.clear_orphan(id)
            batch.committed.append(partial(self._forget_staged, session, id))
        else:
            txn.put_chunks(id, 0, blob)
        record = MessageRecord(
            message.meta,
            b"",
            message.size,
            message.created,
            message.expires,
            message.priority,
            len(message.tasks) + 1,
        )
        txn.add_message(id, record)
        return self._add_tasks(batch, session, id, message.tasks, index_keys, record.size, lease)

    def _add_tasks(
        self,
        batch: Batch,
        session: Session,
        id: bytes,
        tasks: Sequence[NewTask],
        index_keys: Sequence[bytes],
        size: int,
        lease: bool,
    ) -> list[Granted]:
        txn = batch.txn
        granted = []
        for index, task in enumerate(tasks):
            index_key = index_keys[index]
            key = index_key[-keys.TASK_BYTES :]
            held = self.leasing.birth(batch, session, key, index_key, task, size) if lease else None
            if held is not None:
                txn.add_task(key, index_key, task, session.lease_value)
                granted.append(Granted(index, keys.split_record_key(key)[1], held.then is not None, held.maybe))
            else:
                txn.add_task(key, index_key, task)
                if task.state is State.WAITING:
                    batch.noted.append(index_key)
        return granted

    # -- bodies in parts -----------------------------------------------------------------------------------------

    def stage(self, batch: Batch, session: Session, request: Stage, blob: bytes) -> None:
        """Store a part; one way. What goes wrong is answered to the put. Raises ProtocolError."""
        id, first = request.id, request.first
        if len(id) != MESSAGE_ID_BYTES or not blob or len(blob) > PART_BYTES:
            raise ProtocolError("a part of a body is not as it should be")
        staged = session.staged.get(id)
        if first == 0:
            before, staged = staged, Staged()
            session.staged[id] = staged
            batch.aborted.append(partial(self._restore, session, id, before))
            staged.failed = self._staging_fault(batch, session, id)
            if not staged.failed:
                self.garbage.pop(id, None)
                self.staging[id] = session
                batch.txn.set_orphan(id)
        if staged is None or (not staged.failed and (first != staged.chunks or staged.bytes % CHUNK_BYTES)):
            raise ProtocolError("the parts of a body come in order, all but the last of whole chunks")
        if staged.failed:
            return
        if self.full():
            staged.failed = Refusal.FULL.value
            return
        batch.aborted += [partial(setattr, staged, "chunks", first), partial(setattr, staged, "bytes", staged.bytes)]
        staged.chunks = batch.txn.put_chunks(id, first, blob)
        staged.bytes += len(blob)

    def _staging_fault(self, batch: Batch, session: Session, id: bytes) -> str:
        if batch.txn.has_message(id) or self.staging.get(id, session) is not session:
            return Refusal.DUPLICATE.value
        return Refusal.FULL.value if len(session.staged) > MAX_STAGED else ""

    def _restore(self, session: Session, id: bytes, before: Staged | None) -> None:
        if before is None:
            session.staged.pop(id, None)
            if self.staging.get(id) is session:
                del self.staging[id]
        else:
            session.staged[id] = before

    def _forget_staged(self, session: Session, id: bytes) -> None:
        session.staged.pop(id, None)
        self.staging.pop(id, None)

    def _unstage(self, session: Session, id: bytes) -> None:
        """What was staged for a put that did not take it."""
        if session.staged.pop(id, None) is not None and self.staging.get(id) is session:
            self._discard(id)

    def _discard(self, id: bytes) -> None:
        if self.staging.pop(id, None) is not None:
            self.garbage[id] = None

    def collect(self, batch: Batch, most: int) -> None:
        """Delete some chunks that belong to no message."""
        id = next(iter(self.garbage))
        if batch.txn.delete_body(id, most):
            batch.txn.clear_orphan(id)
            batch.committed.append(partial(self.garbage.pop, id, None))

    def body(self, batch: Batch, session: Session, request: Body, _blob: bytes) -> None:
        if len(request.message) != MESSAGE_ID_BYTES or not 0 <= request.first <= keys.MAX_NUMBER - PART_BYTES:
            raise ProtocolError("no part of a body")
        chunks = batch.txn.chunks(request.message, request.first)
        size = sum(map(len, chunks))
        batch.answers.append((session, (frame_answer(request.number, None, blob_bytes=size), *chunks)))

    # -- settle --------------------------------------------------------------------------------------------------

    def settle(self, batch: Batch, session: Session, request: SettleTask, blob: bytes) -> None:
        record = self._recall(batch, session, request.done)
        settle = request.settle
        number = request.number
        granted: list[Granted] = []
        if number <= record.last:
            was = record.unusual.get(number)
            batch.committed += [partial(self._unstage, session, put.id) for put in settle.puts]
            if was is None and settle.lease:
                granted = self.leasing.rebirth(batch, session, settle.message, settle.tasks)
        else:
            record.last = number
            was, granted = self._settle(batch, session, settle, blob)
            if was is not None:
                record.unusual[number] = was
        if was is None or was == LOST:
            answer = frame_answer(number, SettleAnswer(was is None, granted))
        else:
            answer = frame_answer(number, None, was)
        batch.answers.append((session, (answer,)))

    def _settle(self, batch: Batch, session: Session, settle: Settle, blob: bytes) -> tuple[str | None, list[Granted]]:
        try:
            lease = session.leases.get(keys.record_key(settle.message, settle.number))
        except struct.error:
            lease = None
        if lease is None or lease.settling:
            return LOST, []
        if settle.tasks and not keys.of_tasks(settle.message, settle.tasks, 0, 1):
            return "invalid: a task", []
        at, puts = 0, []
        for put in settle.puts:
            size = 0 if put.staged else put.size
            body = blob[at : at + size]
            index_keys = keys.of_tasks(put.id, put.tasks, put.priority, 1)
            fault = self._fault(batch, session, put, index_keys, len(body))
            if fault:
                return f"{fault.value}: a message that goes with it", []
            puts.append((put, index_keys, body))
            at += size
        if puts and (at != len(blob) or len({p.id for p in settle.puts}) < len(puts)):
            return "invalid: the messages that go with it", []
        granted = self._replace(batch, session, settle, lease)
        for put, index_keys, body in puts:
            self._store(batch, session, put, index_keys, body, False)
        return None, granted

    def _replace(self, batch: Batch, session: Session, settle: Settle, lease: Lease) -> list[Granted]:
        txn, id = batch.txn, settle.message
        txn.delete_task(lease.key, lease.index_key)
        lease.settling = True
        batch.ended.append(lease)
        if not settle.tasks and not txn.has_tasks(id):
            if admin.drop_message(txn, id, lease.size):
                batch.committed.append(partial(self.garbage.setdefault, id))
            return []
        if not settle.tasks and settle.prefix is None:
            return []
        record = txn.message(id)
        if record is None:
            raise RuntimeError("a task without its message")
        index_keys = keys.of_tasks(id, settle.tasks, record.priority, record.next)
        record.next += len(settle.tasks)
        if settle.prefix is not None:
            record.prefix = settle.prefix
        txn.rewrite_message(id, record)
        return self._add_tasks(batch, session, id, settle.tasks, index_keys, record.size, settle.lease)
