"""Leases: who gets a task, what the store says of it meanwhile, and what becomes of it when its holder goes.

While a task is leased, the value in the index bears the epoch (the life of the queue process) and the client of the
lease. So after the death of the queue process, a task whose value bears an earlier epoch had an attempt of unknown
outcome: it is handed out with ``maybe``, unless its client came back and did not claim it (then the answer that
leased it was lost, and nobody began). A lease that ends without being settled clears the value, and is ``maybe``
only if its final dot may have left (``marked``) or it was so before.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import islice

import msgspec

from ptt_queue import damaged, keys
from ptt_queue.dispatcher import Dispatcher
from ptt_queue.group import Group, Lane
from ptt_queue.protocol import Claim, Granted
from ptt_queue.session import Batch, Lease, Session
from ptt_queue.store import LEASED, MessageRecord
from ptt_queue.types import NewTask, State, Task, Trouble

TAG_BYTES = 8  # of a client's id
MAX_CAME_BACK = 100_000  # beyond that the answer is the careful one
TOGETHER_LOOK = 32  # tasks of a message that are looked at, to lease those of one group together
LOOK_MOST = 1000  # lanes looked at for one answer: some may have nothing ready after all
FLUSH_MOST = 500  # ended leases written in one transaction
SWEEP_LANES = 2000  # lanes found by skipping in one turn: some 3 to 10 ms
SWEEP_PAUSE_MS = 1000  # between two sweeps at least
SWEEP_SHARE = 20  # and at least so many times the duration of the last
FULL_PAUSE_MS = 200  # a sweep that finds no room goes on after that


class Leasing:
    """All leases of the queue process. ``epoch``: its own; ``now`` is in ms."""

    def __init__(self, dispatcher: Dispatcher, epoch: int, now: int) -> None:
        self.dispatcher = dispatcher
        self.epoch = epoch
        self.leases: dict[bytes, Lease] = {}
        self.returned: dict[bytes, tuple[bytes, bool]] = {}  # key -> (index key, maybe): to be written
        self.came_back: set[bytes] = set()  # tags of clients that said hello in this epoch, with their claims
        self._turn = 0
        self._sweep: bytes | None = b""  # where the sweep goes on; None: done
        self._sweep_at = now
        self._sweep_began = now

    # -- hand out ------------------------------------------------------------------------------------------------

    def take(self, batch: Batch, session: Session, most: int, stages: Sequence[int]) -> list[Task]:
        """Lease at most ``most`` ready tasks, lane by lane in turn."""
        found: list[Task] = []
        self._turn += 1
        shift = self._turn % len(stages) if stages else 0
        order = [*stages[shift:], *stages[:shift]]
        looked = 0
        while looked < LOOK_MOST and len(found) < most:
            before = looked
            for stage in order:
                if len(found) < most and (lane := self.dispatcher.next_lane(stage, batch.now)):
                    looked += 1
                    self._serve(batch, session, lane, most, found)
            if looked == before:
                break
        return found

    def _serve(self, batch: Batch, session: Session, lane: Lane, most: int, found: list[Task]) -> None:
        now, group = batch.now, lane.group
        for _ in range(self.dispatcher.quantum(lane)):
            if len(found) >= most or (group and group.free_at(now) != now):
                break
            key, wake = self._next(batch, lane)
            if key is None:
                self.dispatcher.rest(lane, wake, now)
                return
            if task := self._lease_waiting(batch, session, key, group):
                found.append(task)
                if group and self.dispatcher.shares(task.lane, group):
                    self._together(batch, session, task, group, most, found)
        self.dispatcher.again(lane)

    def _together(
        self, batch: Batch, session: Session, first: Task, group: Group, most: int, found: list[Task]
    ) -> None:
        """Lease the ready tasks of the same message whose lanes are in the same group: one connection does for all."""
        txn, now = batch.txn, batch.now
        begin = max(1, first.number - TOGETHER_LOOK // 2)
        for key in list(islice(txn.tasks_of(first.message, begin), TOGETHER_LOOK)):
            if len(found) >= most or group.free_at(now) != now:
                return
            try:
                task = None if key in self.leases else txn.task(key)
            except msgspec.MsgspecError:  # it is set aside when its turn comes
                continue
            if task is None or task.stage != first.stage or task.state is not State.WAITING or task.due > now:
                continue
            if self.dispatcher.shares(task.lane, group):
                number = keys.split_record_key(key)[1]
                index_key = keys.index_key(
                    task.stage, task.state, task.lane, first.priority, task.due, first.message, number
                )
                if leased := self._lease_waiting(batch, session, index_key, group):
                    found.append(leased)

    def _next(self, batch: Batch, lane: Lane) -> tuple[bytes | None, int | None]:
        """The lane's next ready task, or when the first of its others falls due."""
        wake = None
        for priority in lane.classes():
            prefix = lane.prefix + bytes((priority,))
            start = lane.cursors[priority]
            assert start is not None  # noqa: S101  (see Lane.classes)
            cursor = batch.txn.walk(start)
            lane.cursors[priority] = None
            while (key := cursor.key()).startswith(prefix):
                due = keys.due_of_key(key)
                if due > batch.now:
                    wake = due if wake is None else min(due, wake)
                    lane.cursors[priority] = key
                    break
                if key[-keys.TASK_BYTES :] not in self.leases:
                    if cursor.next() and (following := cursor.key()).startswith(prefix):
                        lane.cursors[priority] = following
                    return key, None
                if not cursor.next():
                    break
        return None, wake

    def _lease_waiting(self, batch: Batch, session: Session, index_key: bytes, group: Group | None) -> Task | None:
        key = index_key[-keys.TASK_BYTES :]
        id, number = keys.split_record_key(key)
        txn = batch.txn
        try:
            message, task = txn.message(id), txn.task(key)
        except msgspec.MsgspecError:
            message = task = None
        if message is None or task is None:
            damaged.set_aside(txn, index_key)
            return None
        maybe = self._maybe(batch, key, index_key, task)
        lease = Lease(session, key, index_key, message.size, maybe)
        if group:
            self.dispatcher.acquire(group, batch.now)
            lease.token = group
        self._hold(batch, lease, task.then)
        return as_task(id, number, task, message, maybe, lease.then is not None)

    def welcome(self, batch: Batch, session: Session) -> None:
        """A client's hello, before its claims."""
        tag = session.client[:TAG_BYTES]
        session.lease_value = LEASED.pack(self.epoch, tag)
        if session.wants_leases and len(self.came_back) < MAX_CAME_BACK:
            self.came_back.add(tag)  # at once: what it repeats may be in this group
            batch.aborted.append(partial(self.came_back.discard, tag))

    def _maybe(self, batch: Batch, key: bytes, index_key: bytes, task: NewTask) -> bool:
        """May an attempt before this lease have succeeded? Stored, if so: this lease overwrites what tells."""
        if task.maybe:
            return True
        if key in self.returned:
            maybe = self.returned[key][1]
        else:
            value = batch.txn.lease_value(index_key)
            maybe = value is not None and value[0] != self.epoch and value[1] not in self.came_back
        if maybe:
            batch.txn.rewrite_task(key, msgspec.structs.replace(task, maybe=True))
        return maybe

    def _hold(self, batch: Batch, lease: Lease, then: str) -> None:
        if then:
            group = self.dispatcher.group_of(then)
            if self.dispatcher.acquire(group, batch.now, fresh=True):
                lease.then = group
        self.leases[lease.key] = lease.session.leases[lease.key] = lease
        batch.granted.append(lease)
        batch.txn.set_lease(lease.index_key, lease.session.lease_value)

    def birth(
        self, batch: Batch, session: Session, key: bytes, index_key: bytes, task: NewTask, size: int
    ) -> Lease | None:
        """Lease a task that is being stored, if it is due and there is a token. The caller stores its value."""
        if task.state is not State.WAITING or task.due > batch.now:
            return None
        lease = Lease(session, key, index_key, size, task.maybe)
        if task.stage in self.dispatcher.limited:
            group = self.dispatcher.group_of(task.lane)
            if not self.dispatcher.acquire(group, batch.now, fresh=True):
                return None
            lease.token = group
        if task.then:
            group = self.dispatcher.group_of(task.then)
            if self.dispatcher.acquire(group, batch.now, fresh=True):
                lease.then = group
        lease.waited = False
        self.leases[key] = session.leases[key] = lease
        batch.granted.append(lease)
        return lease

    def rebirth(self, batch: Batch, session: Session, id: bytes, wanted: Sequence[NewTask]) -> list[Granted]:
        """The leases of a request that is repeated: its answer was lost, so nobody began on what it leased."""
        granted: list[Granted] = []
        message = batch.txn.message(id)
        known = {(t.stage, t.lane, tuple(i.id for i in t.items)): n for n, t in enumerate(wanted)}
        for key in list(batch.txn.tasks_of(id)) if message else []:
            task = batch.txn.task(key)
            if message is None or task is None or key in self.leases:
                continue
            index = known.get((task.stage, task.lane, tuple(i.id for i in task.items)))
            if index is None or task.state is not State.WAITING or task.due > batch.now:
                continue
            number = keys.split_record_key(key)[1]
            index_key = keys.index_key(task.stage, task.state, task.lane, message.priority, task.due, id, number)
            maybe = self._maybe(batch, key, index_key, task)
            lease = self.birth(batch, session, key, index_key, task, message.size)
            if lease is None:
                continue
            lease.waited, lease.maybe = True, maybe
            batch.txn.set_lease(index_key, session.lease_value)
            granted.append(Granted(index, number, lease.then is not None, maybe))
        return granted

    def claim(self, batch: Batch, session: Session, claim: Claim) -> bool:
        """A client that came back says what it holds: it is its own again, unless it has gone to another."""
        key = keys.record_key(claim.message, claim.number)
        message = batch.txn.message(claim.message)
        task = batch.txn.task(key) if message else None
        if message is None or task is None or task.state is not State.WAITING or key in self.leases:
            return False
        index_key = keys.index_key(
            task.stage, task.state, task.lane, message.priority, task.due, claim.message, claim.number
        )
        lease = Lease(session, key, index_key, message.size, task.maybe)
        lease.marked = claim.marked
        if task.stage in self.dispatcher.limited:
            lease.token = self.dispatcher.group_of(task.lane)
            self.dispatcher.take(lease.token)
        if claim.then:
            lease.then = self.dispatcher.group_of(claim.then)
            self.dispatcher.take(lease.then)
        self._hold(batch, lease, "")
        return True

    # -- ends ----------------------------------------------------------------------------------------------------

    def committed(self, batch: Batch) -> None:
        """The group is on stable storage."""
        for lease in batch.ended:
            self._drop(lease, batch.now, lease.well)
        for lease in batch.granted:
            self.returned.pop(lease.key, None)
        for key in batch.noted:
            self.dispatcher.note(key, keys.due_of_key(key), batch.now)

    def aborted(self, batch: Batch) -> None:
        """Nothing of the group happened."""
        for lease in batch.ended:
            lease.settling = False
        for lease in batch.granted:
            self._drop(lease, batch.now)
            if lease.waited:
                self.dispatcher.note(lease.index_key, 0, batch.now)

    def give_back(self, lease: Lease, now: int) -> None:
        """The lease ends without being settled: the task is ready again. The store hears of it by ``flush``."""
        self._drop(lease, now)
        self.returned[lease.key] = (lease.index_key, lease.maybe or lease.marked)
        self.dispatcher.note(lease.index_key, 0, now)

    def report(self, lease: Lease, trouble: Trouble, pause: int, now: int) -> None:
        """Its client has met with trouble in the group of the lane that it was at."""
        lease.well = False
        if (group := lease.then or lease.token) is not None:
            self.dispatcher.report(group, trouble, pause, now)

    def _drop(self, lease: Lease, now: int, well: bool = False) -> None:
        self.leases.pop(lease.key, None)
        lease.session.leases.pop(lease.key, None)
        for group in (lease.token, lease.then):
            if group is not None:
                self.dispatcher.free(group, now, well=well)

    def flush(self, batch: Batch) -> None:
        """Write what the store does not know yet of leases that ended."""
        some = [x for _, x in zip(range(FLUSH_MOST), self.returned.items(), strict=False)]
        for key, (index_key, maybe) in some:
            if key not in self.leases and batch.txn.lease_value(index_key) is not None:
                batch.txn.set_lease(index_key, b"")
                task = batch.txn.task(key) if maybe else None
                if task is not None and not task.maybe:
                    batch.txn.rewrite_task(key, msgspec.structs.replace(task, maybe=True))
        if some:
            batch.committed.append(lambda: [self.returned.pop(key, None) for key, _ in some])

    # -- lanes that are not in memory ------------------------------------------------------------------------------

    def sweep(self, batch: Batch) -> None:
        """Go on to find lanes by skipping from one to the next: after a start, and when not all fit in memory."""
        now, dispatcher = batch.now, self.dispatcher
        if self._sweep is None and dispatcher.overflow:
            self._sweep = b""
            self._sweep_at = now + max(SWEEP_PAUSE_MS, SWEEP_SHARE * (now - self._sweep_began))
        if self._sweep is None or now < self._sweep_at:
            return
        if self._sweep == b"":
            self._sweep_began = now
            dispatcher.overflow = False
        if dispatcher.full():
            self._sweep_at = now + FULL_PAUSE_MS
            return
        for n, found in enumerate(batch.txn.lanes(self._sweep)):
            if n == SWEEP_LANES:
                self._sweep = found[0]
                return
            for key in found:
                due = keys.due_of_key(key)
                if due > now and len(dispatcher.lanes) >= dispatcher.max_lanes:
                    dispatcher.overflow = True  # no room, and nothing to do yet: it is found again
                else:
                    dispatcher.note(key, due, now)
        self._sweep = None

    def clock_set(self, by: int) -> None:
        self._sweep_at += by
        self._sweep_began += by

    def next_sweep(self) -> int | None:
        """When ``sweep`` has something to do."""
        if self._sweep is None and self.dispatcher.overflow:
            return 0
        return None if self._sweep is None else self._sweep_at


def as_task(id: bytes, number: int, task: NewTask, message: MessageRecord, maybe: bool, then: bool) -> Task:
    """The task as its holder gets it."""
    return Task(
        id,
        number,
        task.stage,
        task.lane,
        task.items,
        task.due,
        task.attempts,
        task.note,
        maybe,
        then,
        message.meta,
        message.prefix,
        message.size,
        message.created,
        message.expires,
        message.priority,
    )
