"""The audit of a store against the ledger of its clients, with the product's own code.

``look`` opens a store as the next queue process would, and returns what is there; ``compare`` says what is wrong with
it. Before that ``rows`` reads the store alone: is it sound, and which rows of the state table are in it?
"""

import collections
import time
from collections.abc import Collection, Iterable

import msgspec
from acts import VICTIM, forget, marks, row_of, victims
from ptt_queue import keys
from ptt_queue.client import QueueClient
from ptt_queue.in_process import InProcess
from ptt_queue.protocol import CHUNK_BYTES
from ptt_queue.queue import Settings
from ptt_queue.store import BODIES, MESSAGES, Store, Transaction
from ptt_queue.types import Filter, Settle, State, Task
from views import Call, TaskView, View, Views, digest

AHEAD_SECONDS = 48 * 3600  # all that waits is due by then
MAX_TURNS = 1000


class Wrong(Exception):
    """The store is not as it must be."""


def must(good: object, what: str) -> None:
    if not good:
        raise Wrong(what)


def rows(store: Store, damaged: Collection[bytes] = ()) -> collections.Counter[str]:
    """Check that the store is sound; count what is in which state. ``damaged``: ids whose task was made unreadable."""
    found: collections.Counter[str] = collections.Counter()
    txn = store.begin(write=False)
    try:
        now = int(time.time() * 1000)
        counts: collections.Counter[tuple[int, int]] = collections.Counter()
        indexed = set()
        for raw, value in txn.txn.cursor(db=txn.index):
            key = keys.split_index_key(raw)
            record_key = raw[-keys.TASK_BYTES :]
            counts[key.stage, key.state] += 1
            indexed.add(record_key)
            if key.message in damaged:
                continue
            task, message = txn.task(record_key), txn.message(key.message)
            must(task is not None and message is not None, "a key of the index without its records")
            must(
                (task.stage, task.state, task.lane, task.due) == (key.stage, key.state, key.lane, key.due),
                "a key of the index that is not its task's",
            )
            later = "S2 due later" if key.due > now else "S3 ready"
            found[
                "S4 leased"
                if value and key.state is State.WAITING
                else {State.WAITING: later, State.HELD: "S6 held", State.FAILED: "S7 failed"}[key.state]
            ] += 1
        messages = {}
        for raw, _ in txn.txn.cursor(db=txn.records):
            id, number = keys.split_record_key(raw[: keys.TASK_BYTES])
            if number == 0 and len(raw) == keys.TASK_BYTES:
                messages[id] = txn.message(id).size
                must(txn.has_tasks(id), "a message without tasks")
            elif number and len(raw) == keys.TASK_BYTES:
                must(raw in indexed or id in damaged, "a task that is not in the index")
                must(txn.has_message(id), "a task without its message")
        counts[MESSAGES] = len(messages)
        counts[BODIES] = sum(messages.values())
        must({k: n for k, n in store.counts.items() if n} == {k: n for k, n in counts.items() if n}, "wrong counts")
        found.update(f"orphan {id.hex()}" for id in _bodies(txn, messages))
        found["S10 damaged"] = txn.damaged()
        return +found
    except (msgspec.MsgspecError, AttributeError, ValueError) as e:
        raise Wrong(f"unreadable: {e}") from e
    finally:
        txn.abort()


def _bodies(txn: Transaction, messages: dict[bytes, int]) -> set[bytes]:
    """Whose chunks are there? Returns the ids of bodies that belong to no message."""
    orphans = set(txn.orphans())
    must(not orphans & set(messages), "a message whose body counts as an orphan's")
    sizes: collections.Counter[bytes] = collections.Counter()
    chunks: collections.Counter[bytes] = collections.Counter()
    for raw, chunk in txn.txn.cursor(db=txn.bodies):
        id, number = keys.split_record_key(raw)
        must(number == chunks[id] or id in orphans, "a body with a hole")
        chunks[id] += 1
        sizes[id] += len(chunk)
    for id, size in messages.items():
        must(sizes[id] == size and chunks[id] == -(-size // CHUNK_BYTES), "a body that is not whole")
    must(set(sizes) <= set(messages) | orphans, "chunks that belong to nothing")
    return orphans


def look(path: str, damaged: Collection[bytes] = ()) -> tuple[Views, collections.Counter[str]]:
    """What the next queue process finds there, and hands out. Ends with an empty store: all is settled.

    ``damaged``: messages whose task was made unreadable; those that were deleted since are not there.
    """
    subject = InProcess(path, Settings(), clock=lambda: time.time() + AHEAD_SECONDS)
    try:
        unreadable = victims(subject.store, damaged)
        damaged = {name.removeprefix(VICTIM) for name in unreadable}
        found, there = rows(subject.store, damaged), marks(subject.store)
        found.update(map(row_of, there))
        tasks: dict[bytes, list[TaskView]] = collections.defaultdict(list)
        about: dict[bytes, tuple[bytes, bytes]] = {}
        with subject.client() as client:
            leased: list[Task] = []
            waiting = found["S2 due later"] + found["S3 ready"] + found["S4 leased"]
            for _ in range(MAX_TURNS):
                leased += client.lease(1000, (1, 2))
                if len(leased) >= waiting and _damaged(subject.store) >= len(damaged):
                    break
            must(len(leased) == waiting, f"{len(leased)} of {waiting} tasks could be leased")
            for t in leased:
                state = State.WAITING
                tasks[t.message].append(TaskView(t.stage, state, t.lane, tuple(t.items), t.attempts, t.note, t.maybe))
                about[t.message] = (digest(client.body(t)), t.prefix)
            stopped = [e for s in (State.HELD, State.FAILED) for e in client.list(Filter(state=s, most=1000)).entries]
            for e in stopped:
                tasks[e.message].append(TaskView(e.stage, e.state, e.lane, tuple(e.items), e.attempts, e.note, e.maybe))
                txn = subject.store.begin(write=False)
                about.setdefault(e.message, (digest(client.body(e)), txn.message(e.message).prefix))
                txn.abort()
            must(_damaged(subject.store) == len(damaged), "damage was not moved aside")
            _empty(subject, client, leased, {e.message for e in stopped}, damaged)
    finally:
        subject.close()
    must(not subject.failures, f"the store failed: {subject.failures[:3]}")
    return {id: View(*about[id], tuple(tasks[id])) for id in tasks} | there | unreadable, found


def _damaged(store: Store) -> int:
    txn = store.begin(write=False)
    try:
        return txn.damaged()
    finally:
        txn.abort()


def _empty(
    subject: InProcess,
    client: QueueClient,
    leased: Iterable[Task],
    stopped: Collection[bytes],
    damaged: Collection[bytes],
) -> None:
    """It can be worked with: settle and delete all, and nothing is left but what is damaged."""
    for result in client.settle_all([(Settle(t.message, t.number), ()) for t in leased]):
        must(result.stored, "a lease was lost")
    client.delete(list(stopped))
    for _ in range(MAX_TURNS):
        if not subject.queue.requests.garbage:
            break
        subject.execute([])
    txn = subject.store.begin(write=False)
    chunks = [key for key, _ in txn.txn.cursor(db=txn.bodies) if key[:-4] not in damaged]
    tasks = txn.txn.stat(txn.index)["entries"]
    txn.abort()
    must(not chunks and not tasks, f"{len(chunks)} chunks and {tasks} tasks are left")
    must(subject.store.message_count() == len(damaged), "messages are left")
    forget(subject.store)
    must(not marks(subject.store), "counters, keys or suspensions are left")


def matches(seen: View | None, wanted: View | None, loose: bool = False) -> bool:
    """``loose``: a lease of it may have been executed, so ``maybe`` where it was not."""
    if seen is None or wanted is None:
        return seen is wanted
    if (seen.body, seen.prefix, len(seen.tasks)) != (wanted.body, wanted.prefix, len(wanted.tasks)):
        return False
    by_items = {t.items: t for t in wanted.tasks}
    for task in seen.tasks:
        other = by_items.get(task.items)
        if other is None or task._replace(maybe=None) != other._replace(maybe=None):
            return False
        if other.maybe not in (None, task.maybe) and not (loose and task.maybe):
            return False
    return True


def compare(seen: Views, sure: Views, possible: Iterable[Call]) -> None:
    """``sure`` must be there, ``possible`` may be, each as a whole. Raises Wrong."""
    leases = {id for call in possible if call.kind == "lease" for id in call.after}
    may: set[bytes] = set()
    for call in possible:
        if call.kind == "lease":
            continue
        may |= set(call.after)
        executed = all(matches(seen.get(id), view, id in leases) for id, view in call.after.items())
        ignored = all(matches(seen.get(id), sure.get(id), id in leases) for id in call.after)
        must(executed or ignored, f"{call.kind}: executed in part: {describe(seen, sure, call.after)}")
    for id in (set(sure) | set(seen)) - may:
        must(matches(seen.get(id), sure.get(id), id in leases), f"{id.hex()}: {seen.get(id)}, not {sure.get(id)}")


def describe(seen: Views, sure: Views, after: Views) -> str:
    return "; ".join(f"{id.hex()}: {seen.get(id)}, was {sure.get(id)}, would be {v}" for id, v in after.items())
