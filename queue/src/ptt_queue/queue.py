"""The queue: the store and the dispatcher joined. Executes groups of requests, each group as one transaction.

Called by the server with all that arrived since the last group (``execute``); clock as an argument (ms). No I/O but
the store's. When a group cannot be written, it is undone and its requests are executed one by one, so that one that
cannot be does not take others with it; only an environment that is broken for good (StoreBroken) ends the process.
"""

from __future__ import annotations

import bisect
import time
import typing
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import lmdb
import msgspec

from ptt_queue import files, keys, suspended
from ptt_queue.dispatcher import Dispatcher
from ptt_queue.errors import ProtocolError, StoreBroken
from ptt_queue.leasing import Leasing
from ptt_queue.operating import Operator
from ptt_queue.pressure import Marks, Pressure
from ptt_queue.protocol import (
    MAX_LEASE,
    MAX_WAIT_MS,
    Amend,
    Assign,
    Body,
    Close,
    DoAct,
    Extend,
    GetList,
    GetPlace,
    GetShow,
    GetStats,
    Hello,
    Lease,
    Mark,
    Open,
    Opened,
    Put,
    Release,
    Repair,
    Report,
    Request,
    Resume,
    SettleTask,
    Stage,
    Suspend,
    frame_answer,
)
from ptt_queue.requests import Requests
from ptt_queue.session import Batch, Sent, Session
from ptt_queue.slots import Slots
from ptt_queue.store import Store
from ptt_queue.types import GroupLimit, Stats

COMMIT_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
GRACE_MS = 2000  # after a start, workers have so long to claim what they hold before it is leased to others
SPACE_MS = 100  # how often used pages and free disk are looked at
MINUTE_MS = 60_000
COLLECT_CHUNKS = 512  # orphan chunks deleted in one transaction
RETRY_MS = 1000  # after a group that failed, what nobody waits for is tried again

Arrived = tuple[Session, Request, bytes]
_NAMES: dict[type, str] = {kind: str(kind.__struct_config__.tag) for kind in typing.get_args(Request)}


class Settings(msgspec.Struct, frozen=True):
    """``limited``: stages whose leases need a token. ``clients``: that will lease, waited for after a start."""

    limited: tuple[int, ...] = ()
    limit: GroupLimit = GroupLimit(0)
    marks: Marks = Marks()  # above which puts are refused
    clients: int = 0
    grace_ms: int = GRACE_MS
    commit_bounds: tuple[float, ...] = COMMIT_BOUNDS
    max_lanes: int = 100_000


class Waiter(msgspec.Struct):
    """A lease request that is not answered yet."""

    session: Session
    number: int
    most: int
    stages: list[int]
    until: int


class Queue:
    """One owner of one store. ``failed``: called with the text of each error of the store; ``told``: with news."""

    def __init__(
        self,
        store: Store,
        settings: Settings,
        now: int,
        failed: Callable[[str], None] = lambda _: None,
        told: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.store = store
        self.settings = settings
        self.failed = failed
        self.told = told
        self.pressure = Pressure(settings.marks)
        self.used = self.free = self.damaged = self.oldest = 0
        self.sessions: set[Session] = set()
        self.waiters: list[Waiter] = []
        self.commits = 0
        self.commit_seconds = 0.0
        self.commit_counts = [0] * (len(settings.commit_bounds) + 1)
        self.counted: dict[str, int] = {}
        store.next_epoch()
        dispatcher = Dispatcher(settings.limited, settings.limit, settings.max_lanes)
        self.leasing = Leasing(dispatcher, store.epoch, now)
        txn = store.begin(write=False)
        self.requests = Requests(self.leasing, self.sessions, lambda: self.pressure.full, txn.orphans())
        for what in suspended.all_of(txn):
            dispatcher.suspend(what.name, what.site, what.until)
        txn.abort()
        self._claims_until = now + settings.grace_ms if settings.clients else now
        self._last_txn = 0
        self._space_at = self._minute_at = self._retry_at = 0
        self.slots = Slots(closed=settings.clients > 0)
        operator = self.operator = Operator(self.leasing, self.requests.garbage)
        self._serving: dict[type, Callable[[Batch, Session, Any, bytes], None]] = {
            Hello: self.requests.hello,
            Put: self.requests.put,
            SettleTask: self.requests.settle,
            Stage: self.requests.stage,
            Lease: self._lease,
            Body: self.requests.body,
            Extend: self._extend,
            Release: self._release,
            Mark: self._mark,
            Assign: self._assign,
            Report: self._report,
            Open: self.slots.on_open,
            Close: self.slots.on_close,
            Opened: self.slots.on_opened,
            GetStats: self._stats,
            GetList: operator.listing,
            GetShow: operator.show,
            DoAct: operator.act,
            Amend: operator.amend,
            Repair: operator.repair,
            GetPlace: operator.place,
            Suspend: operator.suspend,
            Resume: operator.resume,
        }

    # -- connections ---------------------------------------------------------------------------------------------

    def connect(self) -> Session:
        session = Session()
        self.sessions.add(session)
        return session

    def disconnect(self, session: Session, now: int) -> None:
        """The connection is closed. Not within ``execute``."""
        session.alive = False
        self.sessions.discard(session)
        self.waiters = [w for w in self.waiters if w.session is not session]
        self.requests.leave(session, now)
        self.slots.leave(session, now)
        self._minute_at = min(self._minute_at, now)  # a client that died may have left a slot of the reader table

    def clock_set(self, by: int) -> None:
        """The wall clock was moved: what is measured from now on in milliseconds moves with it."""
        self._claims_until += by
        self._last_txn = 0
        self._space_at = self._minute_at = self._retry_at = 0
        self.leasing.clock_set(by)
        for waiter in self.waiters:
            waiter.until += by

    # -- groups --------------------------------------------------------------------------------------------------

    def execute(self, arrived: Sequence[Arrived], now: int) -> list[Sent]:
        """Execute all of it as one group; returns what is to be sent, after the commit.

        Raises StoreBroken. A session that broke the protocol has ``broken`` set: its connection is to be closed.
        """
        self.leasing.dispatcher.wake(now)
        alone = len(arrived) == 1 and now < self._retry_at  # nothing else is in the group
        try:
            return self._group(arrived, now)
        except lmdb.PanicError as e:
            raise StoreBroken(str(e)) from e
        except Exception as e:  # the store's, or a fault of ours: no request may end the process
            self.failed(f"{type(e).__name__}: {e}")
            self._retry_at = now + RETRY_MS
            if not arrived:
                return []
            if alone:
                return self.requests.fail(*arrived[0][:2], str(e))
        sent: list[Sent] = []
        for one in arrived:
            sent += self.execute([one], now)
        return sent

    def _group(self, arrived: Sequence[Arrived], now: int) -> list[Sent]:
        batch = Batch(self.store.begin(), now)
        try:
            self._look_at_space(batch)
            for session, request, blob in arrived:
                self._one(batch, session, request, blob)
            self._house_keeping(batch)
            self._serve_waiters(batch)
            self.requests.save_clients(batch)
            began = time.perf_counter()
            batch.txn.commit()
        except BaseException:
            batch.txn.abort()
            self.requests.aborted(batch)
            self.leasing.aborted(batch)
            for undo in batch.aborted:
                undo()
            raise
        self._observe(time.perf_counter() - began)
        self.leasing.committed(batch)
        for done in batch.committed:
            done()
        return batch.answers + self._slot_news(now)

    def _slot_news(self, now: int) -> list[Sent]:
        """What those are told who asked for slots, or are asked for them."""
        self.slots.wake(now)
        if not self._claiming(now):
            self.slots.start(now)
        return [(session, (frame_answer(number, told),)) for session, number, told in self.slots.news()]

    def _one(self, batch: Batch, session: Session, request: Request, blob: bytes) -> None:
        kind = type(request)
        if session.broken:
            return
        name = _NAMES[kind]
        self.counted[name] = self.counted.get(name, 0) + 1
        try:
            if not session.client and kind is not Hello:
                raise ProtocolError("the first request of a connection is hello")
            self._serving[kind](batch, session, request, blob)
        except ProtocolError as e:
            session.broken = str(e)

    def _house_keeping(self, batch: Batch) -> None:
        if batch.now < self._retry_at:
            return
        if self.leasing.returned:
            self.leasing.flush(batch)
        if self.requests.garbage:
            self.requests.collect(batch, COLLECT_CHUNKS)
        self.leasing.sweep(batch)
        if self.leasing.dispatcher.lapsed:
            self.operator.lapse(batch)
        if batch.now >= self._minute_at:
            self._minute_at = batch.now + MINUTE_MS
            self.store.env.reader_check()
            self.requests.prune_clients(batch)

    def _look_at_space(self, batch: Batch) -> None:
        if batch.now < self._space_at:
            return
        self._space_at = batch.now + SPACE_MS
        self.used = self.store.used_bytes(batch.txn)
        self.free = files.free_bytes(self.store.path)
        self.damaged = batch.txn.damaged()
        self.oldest = batch.txn.oldest()
        before = self.pressure.full
        counts = (self.store.message_count(), self.free, batch.now, self.store.body_bytes())
        full = self.pressure.look(self.used, *counts)
        if full != before:
            self.told(f"takes no more for now: {full}" if full else "takes messages again")
        for session in self.sessions:
            if session.refusing != full and session.client:
                batch.answers.append((session, (frame_answer(0, full),)))
                batch.committed.append(partial(setattr, session, "refusing", full))

    def _observe(self, seconds: float) -> None:
        last: int = self.store.env.info()["last_txnid"]
        if last == self._last_txn:  # nothing was written, so nothing was synced
            return
        self._last_txn = last
        self.commits += 1
        self.commit_seconds += seconds
        self.pressure.committed(seconds)
        self.commit_counts[bisect.bisect_left(self.settings.commit_bounds, seconds)] += 1

    def next_wake(self, now: int) -> int:
        """When ``execute`` is to be called again though nothing arrives (ms)."""
        times: list[float] = [self._minute_at or now]
        if self.pressure.full:  # its clients may ask for nothing until they hear that it takes again
            times.append(self._space_at)
        if self.leasing.returned or self.requests.garbage:
            times.append(self._retry_at)
        if (sweep := self.leasing.next_sweep()) is not None:
            times.append(max(sweep, self._retry_at))
        if self.waiters:
            times.append(min(w.until for w in self.waiters))
            if any(self.leasing.dispatcher.ready(w.stages) for w in self.waiters):
                times.append(self._claims_until if self._claiming(now) else self._retry_at)
        for wake in (self.leasing.dispatcher.next_wake(), self.slots.next_wake(now)):
            if wake is not None:
                times.append(wake)
        return max(now, self._retry_at, int(min(times)))  # after a failure not at once again

    # -- leases --------------------------------------------------------------------------------------------------

    def _claiming(self, now: int) -> bool:
        """Is it too early to lease what workers may still hold?"""
        if now >= self._claims_until:
            return False
        return sum(s.wants_leases for s in self.sessions) < self.settings.clients

    def _lease(self, batch: Batch, session: Session, request: Lease, _blob: bytes) -> None:
        most = min(max(request.most, 1), MAX_LEASE)
        until = batch.now + min(max(request.wait_ms, 0), MAX_WAIT_MS)
        waiter = Waiter(session, request.number, most, request.stages[: keys.MAX_STAGE], until)
        self.waiters.append(waiter)
        batch.aborted.append(partial(self._unwait, waiter))

    def _unwait(self, waiter: Waiter) -> None:
        self.waiters = [w for w in self.waiters if w is not waiter]

    def _serve_waiters(self, batch: Batch) -> None:
        """Answer those for whom there is something, or whose time is over."""
        early = self._claiming(batch.now) or batch.now < self._retry_at
        left: list[Waiter] = []
        before = self.waiters
        for waiter in before:
            tasks = []
            if not early and not waiter.session.broken and self.leasing.dispatcher.ready(waiter.stages):
                tasks = self.leasing.take(batch, waiter.session, waiter.most, waiter.stages)
            if tasks or batch.now >= waiter.until:
                batch.answers.append((waiter.session, (frame_answer(waiter.number, tasks),)))
            else:
                left.append(waiter)
        if len(left) < len(before):
            self.waiters = left
            batch.aborted.insert(0, partial(setattr, self, "waiters", before))

    def _extend(self, batch: Batch, session: Session, request: Extend, _blob: bytes) -> None:
        """Which of these leases are still the client's. A lease lasts as long as its connection."""
        held = [len(m) == 12 and keys.record_key(m, n) in session.leases for m, n in request.tasks]
        batch.answers.append((session, (frame_answer(request.number, held),)))

    def _release(self, batch: Batch, session: Session, request: Release, _blob: bytes) -> None:
        for message, number in request.tasks:
            lease = session.leases.get(keys.record_key(message, number))
            if lease is not None and not lease.settling:
                batch.committed.append(partial(self.leasing.give_back, lease, batch.now))

    def _mark(self, _batch: Batch, session: Session, request: Mark, _blob: bytes) -> None:
        lease = session.leases.get(keys.record_key(request.message, request.task))
        if lease is not None:
            lease.marked = True

    def _assign(self, batch: Batch, _session: Session, request: Assign, _blob: bytes) -> None:
        try:
            self.leasing.dispatcher.assign(request.lane, request.group, request.limit, batch.now)
        except ValueError as e:
            raise ProtocolError(str(e)) from e

    def _report(self, batch: Batch, session: Session, request: Report, _blob: bytes) -> None:
        lease = session.leases.get(keys.record_key(request.message, request.task))
        if lease is not None:
            self.leasing.report(lease, request.trouble, request.pause_ms, batch.now)

    def _stats(self, batch: Batch, session: Session, request: GetStats, _blob: bytes) -> None:
        batch.answers.append((session, (frame_answer(request.number, self.stats()),)))

    def stats(self) -> Stats:
        """As of the last commit."""
        return Stats(
            tasks=self.store.task_counts(),
            messages=self.store.message_count(),
            used_bytes=self.used,
            max_bytes=self.settings.marks.max_bytes,
            free_bytes=self.free,
            leased=len(self.leasing.leases),
            clients=len(self.sessions),
            lanes=len(self.leasing.dispatcher.lanes),
            damaged=self.damaged,
            commits=self.commits,
            commit_bounds=list(self.settings.commit_bounds),
            commit_counts=self.commit_counts,
            commit_seconds=self.commit_seconds,
            requests=self.counted,
            epoch=self.store.epoch,
            refusing=self.pressure.full,
            body_bytes=self.store.body_bytes(),
            oldest=self.oldest,
        )
