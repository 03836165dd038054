"""A random life of a real queue process, and the ledger of what it acknowledged.

``Workload`` drives the process as its clients do. Each request becomes a ``Call`` with what it makes of the messages
it touches: one that was answered must be in the store, one that was not may be, but only whole (see ``audit``).
"""

import collections
import contextlib
import random
import socket
import time
from collections.abc import Callable, Sequence
from typing import Any

import acts
import msgspec
from ptt_queue.client import QueueClient, connect_unix
from ptt_queue.errors import RequestFailed, Unavailable
from ptt_queue.types import (
    MESSAGE_ID_BYTES,
    Act,
    Item,
    NewMessage,
    NewTask,
    Over,
    PutResult,
    Refusal,
    Settle,
    SettleResult,
    State,
    Stats,
    Task,
)
from views import Call, Gone, View, Views, digest, view_of, view_of_put, with_maybe

HOUR = 3_600_000  # ms
STAGES = (1, 2)
LARGE = 2_300_000  # bytes: sent in parts, and its chunks are deleted in two transactions after its last task


def now_ms() -> int:
    return int(time.time() * 1000)


class Workload:
    """Random requests; ``ledger`` holds those that were answered, ``open`` those on their way, in batches.

    A batch begins when the one before is answered. ``doubtful`` are those that the store could not write: what was
    refused because of an error may nevertheless be there after a restart, so nothing more is done to it.
    """

    def __init__(self, path: str, rng: random.Random, timeout: float = 20.0, large: bool = True) -> None:
        self.path, self.rng, self.timeout, self.large = path, rng, timeout, large
        self.ledger: list[list[Call]] = []
        self.open: list[Call] = []
        self.doubtful: list[Call] = []
        self.views: Views = {}
        self.leased: dict[bytes, list[Task]] = {}  # by us now
        self.done: collections.Counter[str] = collections.Counter()
        self.refused: collections.Counter[str] = collections.Counter()
        self.tag = rng.randbytes(4).hex()
        self.counted: dict[str, int] = {}  # meters
        self.once: dict[bytes, bytes] = {}  # submitter's key -> id
        self.suspended: dict[str, bool] = {}
        self.connections = 0
        self.stopped = False  # the process was ended, and comes no more
        self.client, self.connection = self.connect()

    def connect(self) -> tuple[QueueClient, int]:
        """A client, and its number."""
        self.connections += 1
        return QueueClient(self.dial, self.timeout, leases=True), self.connections - 1

    def dial(self) -> socket.socket:
        if self.stopped:
            raise Gone("the queue process was stopped")
        return connect_unix(self.path, self.timeout)

    def acknowledged(self) -> int:
        return sum(self.done.values())

    # -- the ledger ----------------------------------------------------------------------------------------------

    def do(
        self,
        kind: str,
        calls: Sequence[Any],
        unknown: Sequence[Views],
        after: Callable[[int, Any], Views | None] = lambda _n, _result: None,
        other: tuple[QueueClient, int] | None = None,
    ) -> list[Any]:
        """Send these at once, and book them. ``after``: what the n-th result says (None: ``unknown``).

        Raises Gone when there is no answer.
        """
        client, connection = other or (self.client, self.connection)
        self.open = [Call(kind, (connection, 0), u, u) for u in unknown]
        try:
            results = client._run(calls)
        except Unavailable as e:
            raise Gone(str(e)) from e
        except RequestFailed as e:
            self.refused[f"{kind}: {e}"[:60]] += 1
            self.doubtful += self.open
            self.open = []
            raise
        booked = []
        for n, (call, result) in enumerate(zip(calls, results, strict=True)):
            views = after(n, result)
            failed = isinstance(result, PutResult) and result.refused is Refusal.FAILED
            if failed:
                self.doubtful.append(self.open[n])
            booked.append(Call(kind, (connection, call.number), unknown[n] if views is None else views, unknown[n]))
            self.views.update(booked[-1].after)
            self.done[kind] += not (isinstance(result, PutResult) and result.refused)
        self.ledger.append(booked)
        self.open = []
        return results

    def known(self, state: State | None = None) -> list[bytes]:
        """Messages that are there and not leased by us, by the state of all their tasks."""
        avoid = {id for c in self.doubtful for id in c.unknown}
        return [
            id
            for id, view in self.views.items()
            if view
            and len(id) == MESSAGE_ID_BYTES  # see acts
            and id not in self.leased
            and id not in avoid
            and (state is None or all(t.state is state for t in view.tasks))
        ]

    def view(self, id: bytes) -> View:
        """Of a message that is there; of a doubtful one that turned out to be there, too."""
        found = self.views.get(id) or next((v for c in self.doubtful if (v := c.unknown.get(id))), None)
        assert found is not None, f"{id.hex()} was leased, but is nowhere in the ledger"
        return found

    # -- what clients do -----------------------------------------------------------------------------------------

    def message(self, size: int, stage: int = 2, due: int = 0, tasks: int = 1) -> tuple[NewMessage, bytes]:
        rng, now = self.rng, now_ms()
        items = [[Item(10 * n, b"a@%d.example" % n), Item(10 * n + 1, b"b")] for n in range(1, tasks + 1)]
        new = [NewTask(stage, f"lane{rng.randrange(6)}.example", i, due or now) for i in items]
        id = now.to_bytes(6, "big") + rng.randbytes(6)
        return NewMessage(id, b"meta", new, size, now, now + 100 * HOUR, rng.randrange(3)), rng.randbytes(size)

    def put(self, few: int, lease: bool, size: int = 0, **kind: int) -> None:
        both = [self.message(size or self.rng.choice((0, 900, 4080, 5000, 30_000)), **kind) for _ in range(few)]

        def after(n: int, result: PutResult) -> Views:
            message, body = both[n]
            if result.refused:
                assert result.refused in (Refusal.FULL, Refusal.FAILED), result.refused
                self.refused[f"put: {result.refused}"] += 1
                return {message.id: None}
            if result.leased:
                self.leased[message.id] = list(result.leased)
            return {message.id: with_maybe(view_of_put(message, body, False), True, result.leased)}

        calls = [self.client.link.put(m, b, lease) for m, b in both]
        unknown: list[Views] = [{m.id: view_of_put(m, b, None)} for m, b in both]
        self.do("put, large" if size >= LARGE else "put", calls, unknown, after)

    def lease(self, most: int) -> None:
        waiting: Views = {
            id: v._replace(tasks=tuple(t._replace(maybe=t.maybe or None) for t in v.tasks))
            for id, v in self.views.items()
            if v and id not in self.leased and len(id) == MESSAGE_ID_BYTES
        }

        def after(_n: int, tasks: list[Task]) -> Views:
            views: Views = {}
            for task in tasks:
                view = views.get(task.message) or self.view(task.message)
                (former,) = [t for t in view.tasks if t.items == tuple(task.items)]
                assert former.maybe in (None, task.maybe), f"{task.message.hex()}: maybe is {task.maybe}"
                views[task.message] = with_maybe(view, True, [task])
            return views

        (tasks,) = self.do("lease", [self.client.link.lease(most, STAGES, 0)], [waiting], after)
        for task in tasks:
            self.leased.setdefault(task.message, []).append(task)
        for task in tasks:
            try:
                assert digest(self.client.body(task)) == self.view(task.message).body
            except Unavailable as e:
                raise Gone(str(e)) from e

    def settle(self, how: str) -> None:
        if not self.leased:
            self.lease(3)
        avoid = {id for c in self.doubtful for id in c.unknown}
        ids = sorted(set(self.leased) - avoid)
        if not ids:
            return
        id = self.rng.choice(ids)
        task = self.leased[id][0]
        view = self.view(id)
        new, puts, prefix = self.outcome(how, task)
        left = tuple(t for t in view.tasks if t.items != tuple(task.items))

        def becomes(maybe: bool | None) -> Views:
            tasks = left + tuple(view_of(t, t.maybe or maybe) for t in new)
            there = view._replace(prefix=view.prefix if prefix is None else prefix, tasks=tasks)
            return {id: there if tasks else None} | {m.id: view_of_put(m, b, False) for m, b in puts}

        def after(_n: int, result: SettleResult) -> Views:
            assert result.stored
            rest = [t for t in self.leased.pop(id) if t is not task] + list(result.leased)
            if rest:
                self.leased[id] = rest
            return becomes(bool(result.leased))

        settle = Settle(task.message, task.number, new, prefix, [m for m, _ in puts], lease=how == "next stage")
        call = self.client.link.settle(settle, [b for _, b in puts])
        with contextlib.suppress(RequestFailed):
            self.do(f"settle, {how}", [call], [becomes(None if settle.lease else False)], after)

    def outcome(self, how: str, task: Task) -> tuple[list[NewTask], list[tuple[NewMessage, bytes]], bytes | None]:
        """What a settle stores in place of the task: new tasks, messages, prefix."""
        again = NewTask(task.stage, task.lane, task.items, now_ms(), attempts=task.attempts + 1, note=b"451 later")
        match how:
            case "done":
                return [], [], None
            case "retry":
                return [msgspec.structs.replace(again, due=now_ms() + HOUR, maybe=task.maybe)], [], None
            case "hold":
                return [msgspec.structs.replace(again, state=State.HELD)], [], None
            case "fail":
                return [msgspec.structs.replace(again, state=State.FAILED)], [], None
            case "next stage":
                return [msgspec.structs.replace(again, stage=2, lane="then.example")], [], b"Signature: x\r\n"
            case _:
                return [], [self.message(700, stage=1)], None

    def act(self, verb: Act, state: State | None) -> None:
        ids = self.known(state)
        if not ids:
            return
        id = self.rng.choice(ids)
        view = self.view(id)
        after = None
        if verb is not Act.DELETE:
            to = State.HELD if verb is Act.HOLD else State.WAITING
            changes = (verb is Act.RETRY, (Act.HOLD, State.WAITING), (Act.RELEASE, State.HELD))
            tasks = [t._replace(state=to) if changes[0] or (verb, t.state) in changes[1:] else t for t in view.tasks]
            after = view._replace(tasks=tuple(tasks))
        with contextlib.suppress(RequestFailed):
            self.do(str(verb.value), [self.client.link.act(verb, [id])], [{id: after}])

    def look(self, kind: str, id: bytes, view: View) -> Any:
        """A request that changes nothing, after which ``view`` is what may be seen."""
        return self.do(kind, [self.client.link.stats()], [{id: view}])[0]

    def give_back(self) -> None:
        if not self.leased:
            return
        id = self.rng.choice(sorted(self.leased))
        tasks = self.leased.pop(id)
        clear = view = self.view(id)
        for task in tasks:
            clear = with_maybe(clear, task.maybe, [task])
        either = with_maybe(view, None, tasks)
        commits = self.look("give back", id, either).commits
        self.client.give_back(tasks)
        self.look("give back", id, either)
        self.settled_down("give back", id, either, clear, commits)

    def settled_down(self, kind: str, id: bytes, either: View, then: View, commits: int) -> None:
        """What a one-way act left to the next group is ``then``, if that group could be written."""

        def after(_n: int, stats: Stats) -> Views:
            return {id: then if stats.commits > commits else either}

        self.do(kind, [self.client.link.stats()], [{id: either}], after)

    def lost_worker(self, mark: bool) -> None:
        """Another client stores and leases a message, perhaps says that its final dot leaves, and dies."""
        client, number = self.connect()
        message, body = self.message(2000)
        view = view_of_put(message, body, None)
        sure = view_of_put(message, body, True)

        def after(_n: int, result: PutResult) -> Views:
            there = sure if result.leased else view_of_put(message, body, False)
            return {message.id: None if result.refused else there}

        call = client.link.put(message, body, True)
        (result,) = self.do("put", [call], [{message.id: view}], after, (client, number))
        if result.refused:
            self.refused[f"put: {result.refused}"] += 1
        if not result.leased:
            client.close()
            return
        if mark:
            client.mark(result.leased[0])
            self.do("mark", [client.link.stats()], [{message.id: sure}], other=(client, number))
        either = view_of_put(message, body, True if mark else None)
        before = self.look("lost worker", message.id, either)
        client.close()
        deadline = time.monotonic() + self.timeout
        while self.look("lost worker", message.id, either).leased >= before.leased:
            if time.monotonic() > deadline:
                raise Gone("the queue did not notice that a client is gone")
        kind = "lost worker, marked" if mark else "lost worker"
        self.look(kind, message.id, either)
        self.settled_down(kind, message.id, either, view_of_put(message, body, mark), before.commits)

    # -- a life --------------------------------------------------------------------------------------------------

    def steps(self) -> list[Callable[[], None]]:
        """Each kind of act once, in an order in which each finds what it needs."""
        settles = ("done", "retry", "hold", "fail", "next stage", "bounce")
        return [
            lambda: self.put(3, True),
            lambda: self.put(4, False),
            lambda: self.put(1, False, due=now_ms() + HOUR),
            lambda: self.put(2, False, stage=1, tasks=3),
            lambda: self.lease(4),
            *(lambda how=how: self.settle(how) for how in settles),
            lambda: self.act(Act.HOLD, State.WAITING),
            lambda: self.act(Act.RELEASE, State.HELD),
            lambda: self.act(Act.HOLD, State.WAITING),
            lambda: self.act(Act.RETRY, State.FAILED),
            lambda: self.settle("fail"),
            self.give_back,
            lambda: self.lost_worker(True),
            lambda: self.lost_worker(False),
            *(lambda over=over: acts.put_metered(self, over) for over in (Over.REFUSE, Over.REFUSE, Over.HOLD)),
            lambda: acts.put_once(self),
            lambda: acts.put_once(self),
            lambda: acts.suspend(self),
            lambda: acts.amend(self),
            lambda: acts.amend(self),
            lambda: self.act(Act.DELETE, None),
        ]

    def large_bodies(self) -> None:
        """Bodies that come in parts, one settled and one deleted, collected in parts."""
        before = set(self.leased)
        self.put(1, True, LARGE)
        for id in set(self.leased) - before:
            kept, self.leased = self.leased, {id: self.leased[id]}
            try:
                self.settle("done")
            finally:
                self.leased = kept
                self.leased.pop(id, None)
        self.put(1, False, LARGE)

    def run(self, rounds: int, all_first: bool = True) -> None:
        """``rounds`` random steps, after one of each kind. Raises Gone when the process does not answer."""
        if all_first:
            for step in self.steps():
                step()
            if self.large:
                self.large_bodies()
        for step in self.rng.choices(self.steps(), k=rounds):
            with contextlib.suppress(RequestFailed):
                step()

    def state(self, answered: Callable[[Call], bool] = lambda _: True) -> tuple[Views, list[Call]]:
        """(what must be there, calls that may have been executed) when only these calls were answered."""
        views: Views = {}
        for batch in self.ledger:
            late = [c for c in batch if not answered(c)]
            for call in batch:
                if call not in late:
                    views.update(call.after)
            if late:
                return views, late + self.doubtful
        return views, self.open + self.doubtful
