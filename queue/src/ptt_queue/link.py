"""The client's side of the protocol, sans-IO: what is asked, what is held, what a new connection says.

A driver (``client``, or a gevent one) sends the pieces that ``send`` and ``greeting`` return in that order, and feeds
what arrives to ``receive``. After a loss it connects again and sends ``greeting``: hello with the leases that are
held, the lanes' groups, and every unanswered request once more. The queue executes each put and settle once.
"""

from __future__ import annotations

import os
from collections import Counter, OrderedDict
from collections.abc import Iterator, Sequence

import msgspec

from ptt_queue import protocol
from ptt_queue.calls import PAYLOADS, REQUESTS, Call, Held
from ptt_queue.errors import ProtocolError, RequestFailed
from ptt_queue.protocol import CHUNK_BYTES, PART_BYTES, Claim, Granted, SettleAnswer
from ptt_queue.types import (
    Act,
    Filter,
    GroupLimit,
    NewMessage,
    NewTask,
    PutResult,
    Settle,
    SettleResult,
    SlotLimit,
    Suspension,
    Task,
    Trouble,
)

STAGE_BYTES = 32 * CHUNK_BYTES  # of a large body in one frame: small ones share its commit, so it is kept short
MAX_ASSIGNED = 50_000  # lanes whose group is told again after a reconnect
Pieces = list[bytes | memoryview]
"""One frame; to be sent one behind the other."""


class Link:
    """One client of the queue, over any number of connections. ``leases``: it will lease tasks."""

    def __init__(self, leases: bool = True) -> None:
        self.client = os.urandom(protocol.CLIENT_ID_BYTES)
        self.leases = leases
        self.held: dict[tuple[bytes, int], Held] = {}
        self.calls: dict[int, Call] = {}  # unanswered, by number
        self._changing: dict[int, None] = {}  # those of them that are puts and settles
        self._assigned: OrderedDict[str, tuple[str, GroupLimit]] = OrderedDict()
        self.slots: Counter[str] = Counter()  # that are ours
        self.wanted: dict[str, None] = {}  # names of which others want slots; the driver takes them out
        self.refusing = ""  # the mark above which the queue takes no messages for now, as it told last
        self._number = 0
        self._frames = protocol.Frames()

    # -- requests ------------------------------------------------------------------------------------------------

    def put(self, message: NewMessage, body: bytes, lease: bool) -> Call:
        call = Call("put", (message, lease))
        if len(body) > PART_BYTES:
            call.what = (msgspec.structs.replace(message, staged=True), lease)
            call.bodies = [(message.id, body)]
        elif body:
            call.blob = (body,)
        return call

    def settle(self, settle: Settle, bodies: Sequence[bytes] = ()) -> Call:
        """``bodies``: of ``settle.puts``, in their order. Raises ValueError when they are not as many."""
        call = Call("settle", settle)
        if settle.puts:
            puts, blob, room = [], [], PART_BYTES
            for put, body in zip(settle.puts, bodies, strict=True):
                staged = len(body) > room
                puts.append(msgspec.structs.replace(put, staged=True) if staged else put)
                if staged:
                    call.bodies.append((put.id, body))
                else:
                    blob.append(body)
                    room -= len(body)
            call.what = msgspec.structs.replace(settle, puts=puts)
            call.blob = tuple(blob)
        return call

    def lease(self, most: int, stages: Sequence[int], wait_ms: int) -> Call:
        return Call("lease", (most, list(stages), wait_ms))

    def body(self, message: bytes, first: int) -> Call:
        """At most PART_CHUNKS chunks of a body from number ``first`` on; the result is bytes."""
        return Call("body", (message, first))

    def extend(self, tasks: Sequence[Task]) -> Call:
        return Call("extend", ([(t.message, t.number) for t in tasks],))

    def stats(self) -> Call:
        return Call("stats", ())

    def listing(self, filter: Filter) -> Call:
        return Call("list", (filter,))

    def show(self, message: bytes) -> Call:
        return Call("show", (message,))

    def act(self, act: Act, messages: Sequence[bytes], tasks: Sequence[protocol.Ref] = ()) -> Call:
        return Call("act", (act, list(messages), list(tasks)))

    def amend(self, settle: Settle, bodies: Sequence[bytes]) -> Call:
        """The bodies must fit into one frame."""
        call = Call("amend", (settle,))
        call.blob = tuple(bodies)
        return call

    def place(self, stage: int, lane: str) -> Call:
        return Call("place", (stage, lane))

    def repair(self, tasks: Sequence[protocol.Ref], delete: bool) -> Call:
        return Call("repair", (list(tasks), delete))

    def suspend(self, what: Suspension) -> Call:
        return Call("suspend", (what,))

    def resume(self, name: str, site: bool) -> Call:
        return Call("resume", (name, site))

    def open_slots(self, slots: Sequence[SlotLimit], wait_ms: int) -> Call:
        """One slot of each of these names; the result is whether they are ours now."""
        return Call("open", (list(slots), wait_ms))

    def parts(self, call: Call) -> Iterator[Pieces]:
        """The frames that go before ``send(call)``, on the same connection."""
        for id, body in call.bodies:
            view = memoryview(body)
            for at in range(0, len(body), STAGE_BYTES):
                part = view[at : at + STAGE_BYTES]
                yield [protocol.frame_request(protocol.Stage(id, at // CHUNK_BYTES), len(part)), part]

    def send(self, call: Call) -> Pieces:
        """Give the call its number, and its frame. Frames are sent in the order of these calls."""
        self._number += 1
        call.number = self._number
        self.calls[call.number] = call
        if call.kind in ("put", "settle"):
            self._changing[call.number] = None
        if call.kind == "settle":
            call.task = self.held.get((call.what.message, call.what.number))
        return self._frame(call)

    def _frame(self, call: Call) -> Pieces:
        request = self._request(call)
        return [protocol.frame_request(request, sum(map(len, call.blob))), *call.blob]

    def _request(self, call: Call) -> protocol.Request:
        number, what = call.number, call.what
        match call.kind:
            case "put":
                return protocol.Put(number, self._done(), *what)
            case "settle":
                return protocol.SettleTask(number, self._done(), what)
            case kind:
                return REQUESTS[kind](number, *what)

    def _done(self) -> int:
        """All puts and settles up to this number have been answered."""
        return next(iter(self._changing)) - 1

    @property
    def unanswered(self) -> int:
        """Puts and settles on their way; at most protocol.MAX_UNANSWERED are allowed."""
        return len(self._changing)

    # -- one way -------------------------------------------------------------------------------------------------

    def mark(self, task: Task) -> Pieces:
        """The attempt may succeed from now on. Told again after a reconnect."""
        if held := self.held.get((task.message, task.number)):
            held.marked = True
        return [protocol.frame_request(protocol.Mark(task.message, task.number))]

    def give_back(self, tasks: Sequence[Task]) -> Pieces:
        for task in tasks:
            self.held.pop((task.message, task.number), None)
        return [protocol.frame_request(protocol.Release([(t.message, t.number) for t in tasks]))]

    def assign(self, lane: str, group: str, limit: GroupLimit) -> Pieces:
        self._assigned[lane] = (group, limit)
        self._assigned.move_to_end(lane)
        if len(self._assigned) > MAX_ASSIGNED:
            self._assigned.popitem(last=False)
        return [protocol.frame_request(protocol.Assign(lane, group, limit))]

    def report(self, task: Task, trouble: Trouble, pause_ms: int) -> Pieces:
        return [protocol.frame_request(protocol.Report(task.message, task.number, trouble, pause_ms))]

    def close_slots(self, names: Sequence[str]) -> Pieces:
        self.slots.subtract(names)
        for name in names:
            if self.slots[name] <= 0:
                del self.slots[name]
        return [protocol.frame_request(protocol.Close(list(names)))]

    # -- connections ---------------------------------------------------------------------------------------------

    def greeting(self) -> Iterator[Pieces]:
        """What a new connection begins with: to be sent whole before anything else."""
        self._frames = protocol.Frames()
        for call in [
            c for c in self.calls.values() if c.kind == "hello" or (c.abandoned and c.kind in ("lease", "open"))
        ]:
            del self.calls[call.number]
        held = [Claim(m, n, h.marked, h.then) for (m, n), h in self.held.items()]
        hello = Call("hello", held)
        self._number += 1
        hello.number = self._number
        again = list(self.calls.values())
        self.calls[hello.number] = hello
        yield [protocol.frame_request(protocol.Hello(hello.number, self.client, self.leases, held))]
        for lane, (group, limit) in list(self._assigned.items()):
            yield [protocol.frame_request(protocol.Assign(lane, group, limit))]
        if self.slots:
            yield [protocol.frame_request(protocol.Opened(dict(self.slots)))]
        for call in again:
            if call.number in self.calls:
                call.sent = True
                yield from self.parts(call)
                yield self._frame(call)

    def abandon(self, call: Call) -> bool:
        """Nobody waits for it any more. True when it is certain that it was not and will not be executed.

        A put or settle that may have been executed stays, so that its outcome gets known (see ``receive``).
        """
        call.abandoned = True
        if not call.sent or call.kind not in ("put", "settle", "lease", "open"):
            self._forget(call)
        return not call.sent

    def _forget(self, call: Call) -> None:
        self.calls.pop(call.number, None)
        self._changing.pop(call.number, None)

    def receive(self, data: bytes) -> list[Call]:
        """The calls that are answered by this. Raises ProtocolError: the connection is to be closed.

        An abandoned one comes too: what it leased is to be released by the driver.
        """
        answered = []
        for control, blob in self._frames.feed(data):
            answer = protocol.parse_answer(control)
            if answer.number == 0:
                self._hear(protocol.parse_news(answer.payload))
                continue
            call = self.calls.get(answer.number)
            if call is None:  # of a call that was abandoned
                continue
            if answer.error is not None and call.kind == "hello":
                raise ProtocolError(f"not welcome: {answer.error}")
            self._forget(call)
            if answer.error is not None:
                call.error = RequestFailed(answer.error)
            else:
                self._finish(call, answer.payload, blob)
            call.done = True
            answered.append(call)
        return answered

    def _hear(self, news: str | list[str]) -> None:
        if isinstance(news, str):
            self.refusing = news
        else:
            self.wanted.update(dict.fromkeys(news))

    def _finish(self, call: Call, payload: msgspec.Raw, blob: bytes) -> None:
        if call.kind == "body":
            call.result = blob
            return
        try:
            result = PAYLOADS[call.kind](payload)
        except msgspec.MsgspecError as e:
            raise ProtocolError(f"answer to {call.kind}: {e}") from e
        match call.kind:
            case "put":
                message = call.what[0]
                granted = self._granted(result.granted, message.tasks, message, b"")
                call.result = PutResult(result.refused, granted, result.first, result.meter, result.until)
            case "settle":
                call.result = self._settled(call, result)
            case "lease":
                self.held.update(((task.message, task.number), Held(task, "")) for task in result)
                call.result = result
            case "hello":
                for claim, granted in zip(call.what, result.granted, strict=True):
                    if not granted:
                        self.held.pop((claim.message, claim.number), None)
                self.refusing = result.refusing
                call.result = result
            case "open":
                call.result = result
                if result:
                    self.slots.update(slot.name for slot in call.what[0])
            case _:
                call.result = result

    def _settled(self, call: Call, answer: SettleAnswer) -> SettleResult:
        settle, old = call.what, call.task
        self.held.pop((settle.message, settle.number), None)
        if old is None:
            return SettleResult(answer.stored, [])
        task = old.task
        prefix = task.prefix if settle.prefix is None else settle.prefix
        message = NewMessage(
            task.message, task.meta, settle.tasks, task.size, task.created, task.expires, task.priority
        )
        return SettleResult(answer.stored, self._granted(answer.granted, settle.tasks, message, prefix))

    def _granted(
        self, granted: Sequence[Granted], tasks: Sequence[NewTask], message: NewMessage, prefix: bytes
    ) -> list[Task]:
        """The leases that came with an answer: all but their numbers is known here."""
        found = []
        for one in granted:
            new = tasks[one.index]
            task = Task(
                message.id,
                one.number,
                new.stage,
                new.lane,
                new.items,
                new.due,
                new.attempts,
                new.note,
                one.maybe,
                one.then,
                message.meta,
                prefix,
                message.size,
                message.created,
                message.expires,
                message.priority,
            )
            self.held[task.message, task.number] = Held(task, new.then if one.then else "")
            found.append(task)
        return found
