"""What an operator may ask of the queue process: list, show, act, amend, repair. Each in the group's transaction."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from ptt_queue import admin, amend, damaged, keys, suspended
from ptt_queue.errors import ProtocolError
from ptt_queue.group import ACTIVE, ASLEEP, PARKED, Lane
from ptt_queue.leasing import Leasing
from ptt_queue.protocol import Amend, DoAct, GetList, GetPlace, GetShow, Repair, Resume, Suspend, frame_answer
from ptt_queue.session import Batch, Session
from ptt_queue.types import MESSAGE_ID_BYTES, Acted, GroupLimit, Place, State, Suspension

_PLACES = {ACTIVE: "active", PARKED: "parked", ASLEEP: "asleep"}
MAX_ACT = 10_000  # messages, and tasks, in one request of an operator


Told = Callable[[str, int, list[bytes]], None]
"""What was done, to how many tasks, and the messages that were named: for the log, after the commit."""

ToldSuspension = Callable[[str, Suspension], None]
"""``suspended``, ``resumed`` or ``lapsed``, and what; after the commit."""


class Operator:
    """``garbage``: ids of chunks of no message, for the house-keeping. ``told...``: set them to log what was done."""

    def __init__(self, leasing: Leasing, garbage: dict[bytes, None]) -> None:
        self.leasing = leasing
        self.garbage = garbage
        self.told: Told = lambda _act, _tasks, _messages: None
        self.told_suspension: ToldSuspension = lambda _what, _suspension: None

    def listing(self, batch: Batch, session: Session, request: GetList, _blob: bytes) -> None:
        try:
            page = admin.listing(batch.txn, request.filter, self.leasing.leases)
        except ValueError as e:
            raise ProtocolError(str(e)) from e
        batch.answers.append((session, (frame_answer(request.number, page),)))

    def show(self, batch: Batch, session: Session, request: GetShow, _blob: bytes) -> None:
        known = len(request.message) == MESSAGE_ID_BYTES
        found = admin.show(batch.txn, request.message, self.leasing.leases) if known else []
        batch.answers.append((session, (frame_answer(request.number, found),)))

    def act(self, batch: Batch, session: Session, request: DoAct, _blob: bytes) -> None:
        ids = [id for id in request.messages[:MAX_ACT] if len(id) == MESSAGE_ID_BYTES]
        tasks = [ref for ref in request.tasks[:MAX_ACT] if amend.is_ref(ref)]
        leasing = self.leasing
        done = admin.act(batch.txn, request.act, ids, batch.now, leasing.leases, leasing.returned, tasks)
        self._changed(batch, done, request.act.value, [*ids, *(id for id, _ in tasks)])
        batch.answers.append((session, (frame_answer(request.number, Acted(done.changed, done.leased)),)))

    def amend(self, batch: Batch, session: Session, request: Amend, blob: bytes) -> None:
        leasing = self.leasing
        outcome, changes = amend.amend(batch.txn, request.settle, blob, leasing.leases, leasing.returned)
        self._changed(batch, changes, "amend", [request.settle.message])
        batch.answers.append((session, (frame_answer(request.number, outcome),)))

    def repair(self, batch: Batch, session: Session, request: Repair, _blob: bytes) -> None:
        tasks = [ref for ref in request.tasks[:MAX_ACT] if amend.is_ref(ref)]
        changes = damaged.repair(batch.txn, tasks, request.delete)
        name = "delete damaged" if request.delete else "restore damaged"
        self._changed(batch, changes, name, [id for id, _ in tasks])
        batch.answers.append((session, (frame_answer(request.number, changes.changed),)))

    def place(self, batch: Batch, session: Session, request: GetPlace, _blob: bytes) -> None:
        try:
            prefix = keys.lane_prefix(request.stage, State.WAITING, request.lane)
        except ValueError as e:
            raise ProtocolError(str(e)) from e
        found = _place(self.leasing.dispatcher.lanes.get(prefix), batch.now)
        batch.answers.append((session, (frame_answer(request.number, found),)))

    def suspend(self, batch: Batch, session: Session, request: Suspend, _blob: bytes) -> None:
        what = request.what
        kept = not suspended.lapsed(what, batch.now) and suspended.keep(batch.txn, what)
        if kept:
            batch.committed.append(partial(self.leasing.dispatcher.suspend, what.name, what.site, what.until))
            batch.committed.append(partial(self.told_suspension, "suspended", what))
        batch.answers.append((session, (frame_answer(request.number, kept),)))

    def resume(self, batch: Batch, session: Session, request: Resume, _blob: bytes) -> None:
        found = suspended.remove(batch.txn, request.name, request.site)
        if found:
            self._resumed(batch, "resumed", found)
        batch.answers.append((session, (frame_answer(request.number, found is not None),)))

    def lapse(self, batch: Batch) -> None:
        """Forget the suspensions that have lapsed."""
        for what in suspended.all_of(batch.txn):
            if suspended.lapsed(what, batch.now):
                suspended.remove(batch.txn, what.name, what.site)
                self._resumed(batch, "lapsed", what)
        batch.committed.append(partial(setattr, self.leasing.dispatcher, "lapsed", False))

    def _resumed(self, batch: Batch, how: str, what: Suspension) -> None:
        batch.committed.append(partial(self.leasing.dispatcher.resume, what.name, what.site, batch.now))
        batch.committed.append(partial(self.told_suspension, how, what))

    def _changed(self, batch: Batch, changes: admin.Changes, name: str, ids: list[bytes]) -> None:
        if changes.changed:
            batch.committed.append(partial(self.told, name, changes.changed, list(dict.fromkeys(ids))))
        batch.noted += changes.noted
        batch.committed.append(partial(self.garbage.update, dict.fromkeys(changes.orphans)))


def _place(lane: Lane | None, now: int) -> Place:
    if lane is None:
        return Place("", "", 0, 0, GroupLimit(0), 0)
    group = lane.group
    if group is None:
        return Place(_PLACES.get(lane.place, ""), "", 0, 0, GroupLimit(0), 0)
    next_at = int(group.next_at) if group.next_at > now else 0
    name = group.name if group.name[0] not in "\0\1" else ""  # not those of single lanes
    return Place(
        _PLACES.get(lane.place, ""), name, group.lanes, group.in_flight, group.limit, next_at, group.width.most
    )
