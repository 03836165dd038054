# ruff: noqa: S101  (a test suite, though it is shipped)
"""The conformance suite of the queue's interface: what every queue does. ``conformance`` runs it.

Stage 2 of a subject is limited to LIMIT tasks in flight for each lane; it waits for no clients after a start.
"""

from __future__ import annotations

import os
import time
from typing import Protocol

import msgspec

from ptt_queue.client import QueueClient
from ptt_queue.in_process import LIMIT
from ptt_queue.types import (
    Act,
    Amended,
    Filter,
    GroupLimit,
    Item,
    NewMessage,
    NewTask,
    Refusal,
    Settle,
    State,
    Task,
)

HOUR = 3_600_000


class Subject(Protocol):
    """A queue under test."""

    def client(self) -> QueueClient:
        """A fresh client."""

    def restart(self) -> None:
        """The queue process dies without a word, and a new one begins."""


# -- what a queue does ---------------------------------------------------------------------------------------------


def now_ms() -> int:
    return int(time.time() * 1000)


def new_message(
    lane: str = "example.net", body: bytes = b"body", stage: int = 2, due: int = 0, priority: int = 1, then: str = ""
) -> NewMessage:
    """A message with one task and two items."""
    now = now_ms()
    id = now.to_bytes(6, "big") + os.urandom(6)
    task = NewTask(stage, lane, [Item(1, b"one"), Item(2, b"two")], due or now, then)
    return NewMessage(id, b"meta", [task], len(body), now, now + HOUR, priority)


def check_put_lease_settle(subject: Subject) -> None:
    with subject.client() as client:
        message = new_message()
        result = client.put(message, b"body")
        assert result.refused is None
        task = result.leased[0]
        assert (task.message, task.lane, task.items, task.meta) == (
            message.id,
            "example.net",
            message.tasks[0].items,
            b"meta",
        )
        assert client.body(task) == b"body"
        assert client.extend([task]) == [True]
        assert client.lease(10, [1, 2]) == []
        assert client.settle(Settle(task.message, task.number)).stored
        assert client.show(message.id) == []
        assert client.stats().messages == 0


def check_waiting_task_is_leased_whole(subject: Subject) -> None:
    with subject.client() as client:
        message = new_message(stage=1, body=b"x" * 10_000)
        assert client.put(message, b"x" * 10_000, lease=False).leased == []
        (task,) = client.lease(10, [1, 2])
        new = message.tasks[0]
        assert (task.items, task.due, task.size, task.expires) == (new.items, new.due, 10_000, message.expires)
        assert not task.maybe
        assert client.body(task) == b"x" * 10_000


def check_id_is_taken_once(subject: Subject) -> None:
    with subject.client() as client:
        message = new_message()
        assert client.put(message, b"body").refused is None
        assert client.put(message, b"body").refused is Refusal.DUPLICATE
        assert client.stats().messages == 1


def check_invalid_is_refused(subject: Subject) -> None:
    good = new_message()
    replace = msgspec.structs.replace
    bad = [
        replace(good, tasks=[]),
        replace(good, id=b"short"),
        replace(good, size=5),
        replace(good, priority=3),
        *(replace(good, tasks=[replace(good.tasks[0], lane=lane)]) for lane in ("a\0b", "x" * 401)),
        *(replace(good, tasks=[replace(good.tasks[0], stage=stage)]) for stage in (255, 256, -1)),
        *(replace(good, tasks=[replace(good.tasks[0], due=due)]) for due in (-1, 1 << 48)),
    ]
    with subject.client() as client:
        assert [r.refused for r in client.put_all([(m, b"body") for m in bad])] == [Refusal.INVALID] * len(bad)
        assert client.put(good, b"body").refused is None


def check_retry_later(subject: Subject) -> None:
    with subject.client() as client:
        (task,) = client.put(new_message(), b"body").leased
        due = now_ms() + HOUR
        again = NewTask(2, "other.example", task.items[1:], due, attempts=1, note=b"451", maybe=True)
        assert client.settle(Settle(task.message, task.number, [again])).stored
        assert client.lease(10, [1, 2]) == []
        (entry,) = client.show(task.message)
        assert (entry.lane, entry.items, entry.due, entry.attempts) == ("other.example", task.items[1:], due, 1)
        assert entry.note == b"451"
        assert entry.number != task.number
        assert client.retry([task.message]).changed == 1
        (task,) = client.lease(10, [1, 2])
        assert task.maybe
        assert client.body(task) == b"body"


def check_next_stage(subject: Subject) -> None:
    with subject.client() as client:
        (task,) = client.put(new_message("signing.example", stage=1), b"body").leased
        new = [NewTask(2, lane, [item], now_ms()) for lane, item in zip(("a", "b"), task.items, strict=True)]
        result = client.settle(Settle(task.message, task.number, new, prefix=b"Signature", lease=True))
        assert [(t.lane, t.prefix, t.items) for t in result.leased] == [
            ("a", b"Signature", new[0].items),
            ("b", b"Signature", new[1].items),
        ]
        numbers = {t.number for t in result.leased}
        assert len(numbers | {task.number}) == 3
        for leased in result.leased:
            assert client.body(leased) == b"body"
            assert client.settle(Settle(leased.message, leased.number)).stored
        assert client.stats().messages == 0


def check_lost_lease_changes_nothing(subject: Subject) -> None:
    with subject.client() as client, subject.client() as other:
        (task,) = client.put(new_message(), b"body").leased
        assert not other.settle(Settle(task.message, task.number)).stored
        assert other.extend([task]) == [False]
        assert client.settle(Settle(task.message, task.number)).stored
        assert not client.settle(Settle(task.message, task.number)).stored


def check_bounce_comes_with_the_settle(subject: Subject) -> None:
    with subject.client() as client:
        (task,) = client.put(new_message(), b"body").leased
        bounces = [new_message("a", b"first"), new_message("b", b"")]
        assert client.settle(Settle(task.message, task.number, puts=bounces), [b"first", b""]).stored
        leased = {t.lane: t for t in client.lease(10, [2])}
        assert client.body(leased["a"]) == b"first"
        assert client.body(leased["b"]) == b""
        assert client.stats().messages == 2


def check_held_is_never_leased(subject: Subject) -> None:
    with subject.client() as client:
        message = new_message()
        client.put(message, b"body", lease=False)
        assert client.hold([message.id]).changed == 1
        assert client.lease(10, [2]) == []
        (entry,) = client.list(Filter(state=State.HELD)).entries
        assert entry.message == message.id
        assert client.release([message.id]).changed == 1
        (task,) = client.lease(10, [2])
        assert (client.hold([message.id]).leased, client.delete([message.id]).leased) == (1, 1)
        failed = NewTask(2, task.lane, task.items, task.due, state=State.FAILED)
        client.settle(Settle(task.message, task.number, [failed]))
        assert client.lease(10, [2]) == []
        assert client.delete([message.id]).changed == 1
        assert client.stats().messages == 0


def check_listing_in_pages(subject: Subject) -> None:
    with subject.client() as client:
        messages = [new_message(f"lane{n % 3}", due=now_ms() + HOUR + n) for n in range(20)]
        client.put_all([(m, b"body") for m in messages], lease=False)
        found, after = [], b""
        while True:
            page = client.list(Filter(lane="lane1", after=after, most=2))
            found += page.entries
            after = page.after
            if not after:
                break
        assert [e.message for e in found] == [m.id for m in messages if m.tasks[0].lane == "lane1"]
        assert client.list(Filter(stage=1)).entries == []
        assert client.list(Filter(state=State.HELD)).entries == []
        assert len(client.list(Filter(state=State.WAITING)).entries) == 20
        assert client.stats().tasks == [(2, State.WAITING, 20)]


def check_tokens_are_never_exceeded(subject: Subject) -> None:
    with subject.client() as client, subject.client() as other:
        born = [client.put(new_message("busy"), b"body").leased for _ in range(LIMIT + 2)]
        assert [len(b) for b in born] == [1] * LIMIT + [0, 0]
        assert other.lease(10, [2]) == []
        assert len(other.put(new_message("quiet"), b"body").leased) == 1
        client.settle(Settle(born[0][0].message, born[0][0].number))
        assert len(other.lease(10, [2])) == 1
        assert other.lease(10, [2]) == []
        client.close()  # its tokens die with it
        assert len(other.lease(10, [2], wait=5)) == LIMIT - 1


def check_groups_share_a_limit(subject: Subject) -> None:
    with subject.client() as client:
        first = client.put(new_message("a"), b"body").leased
        for lane in ("a", "b", "c"):
            client.assign(lane, "site", GroupLimit(2))
        assert len(client.put(new_message("b"), b"body").leased) == 1
        assert client.put(new_message("c"), b"body").leased == []
        assert client.lease(10, [2]) == []
        client.settle(Settle(first[0].message, first[0].number))
        assert [t.lane for t in client.lease(10, [2])] == ["c"]


def check_token_of_the_lane_behind(subject: Subject) -> None:
    with subject.client() as client:
        first = [client.put(new_message("signing", stage=1, then="busy"), b"body").leased[0] for _ in range(LIMIT + 1)]
        assert [t.then for t in first] == [True] * LIMIT + [False]
        assert client.put(new_message("busy"), b"body").leased == []
        client.settle(Settle(first[0].message, first[0].number))
        assert [t.lane for t in client.lease(10, [2])] == ["busy"]


def check_dead_worker(subject: Subject) -> None:
    with subject.client() as client, subject.client() as other:
        tasks = [client.put(new_message(f"lane{n}"), b"body").leased[0] for n in range(2)]
        client.mark(tasks[0])
        client.stats()  # the mark has arrived
        client.close()
        again: list[Task] = []
        while len(again) < 2:
            again += other.lease(10, [2], wait=5)
        assert {t.message: t.maybe for t in again} == {tasks[0].message: True, tasks[1].message: False}


def check_given_back(subject: Subject) -> None:
    with subject.client() as client:
        (task,) = client.put(new_message(), b"body").leased
        client.give_back([task])
        (again,) = client.lease(10, [2], wait=5)
        assert (again.message, again.number, again.maybe) == (task.message, task.number, False)


def check_restart_claims(subject: Subject) -> None:
    with subject.client() as client:
        (task,) = client.put(new_message("held"), b"body").leased
        client.put(new_message("waits"), b"body", lease=False)
        subject.restart()
        result = client.settle(Settle(task.message, task.number))
        assert result.stored
        (other,) = client.lease(10, [2])
        assert (other.lane, other.maybe) == ("waits", False)
        assert client.stats().messages == 1


def check_restart_without_the_worker(subject: Subject) -> None:
    client = subject.client()
    assert client.put(new_message("leased at birth"), b"body").leased
    client.put(new_message("leased later"), b"body", lease=False)
    assert len(client.lease(10, [2])) == 1
    client.put(new_message("never leased"), b"body", lease=False)
    (back,) = client.put(new_message("given back"), b"body").leased
    client.give_back([back])
    client.stats()
    client.stats()  # behind the transaction that clears what was given back
    subject.restart()
    with subject.client() as other:
        tasks: dict[str, bool] = {}
        while len(tasks) < 4:
            tasks |= {t.lane: t.maybe for t in other.lease(10, [2], wait=5)}
        assert tasks == {"leased at birth": True, "leased later": True, "never leased": False, "given back": False}
    client.close()


def check_large_body(subject: Subject) -> None:
    body = os.urandom(1 << 20) * 20 + b"the end"
    with subject.client() as client:
        (task,) = client.put(new_message(body=body), body).leased
        assert client.body(task) == body
        bounce = new_message("bounce", body)
        assert client.settle(Settle(task.message, task.number, puts=[bounce]), [body]).stored
        (task,) = client.lease(10, [2])
        assert client.body(task) == body
        used = client.stats().used_bytes
        assert client.settle(Settle(task.message, task.number)).stored
        deadline = time.monotonic() + 10
        while client.stats().used_bytes > used - len(body):
            assert time.monotonic() < deadline, "the body was not collected"


def check_many_items(subject: Subject) -> None:
    items = [Item(n, b"%d@example.net" % n * 10) for n in range(1000)]
    message = new_message()
    message = msgspec.structs.replace(message, tasks=[NewTask(2, "a", items, 0)])
    with subject.client() as client:
        client.put(message, b"body", lease=False)
        (task,) = client.lease(1, [2])
        assert task.items == items
        short = [NewTask(2, "a", items[:1], now_ms(), attempts=1)]
        client.settle(Settle(task.message, task.number, short))
        (task,) = client.lease(1, [2])
        assert client.settle(Settle(task.message, task.number)).stored
        assert client.stats().messages == 0


def check_lanes_in_turn(subject: Subject) -> None:
    with subject.client() as client:
        client.put_all([(new_message("crowded", stage=1), b"body") for _ in range(50)], lease=False)
        client.put(new_message("lonely", stage=1), b"body", lease=False)
        assert "lonely" in [t.lane for t in client.lease(10, [1])]


def check_classes_without_starving(subject: Subject) -> None:
    with subject.client() as client:
        for priority in (2, 1, 0):
            some = [(new_message("a", stage=1, priority=priority), b"body") for _ in range(20)]
            client.put_all(some, lease=False)
        classes = [client.lease(1, [1])[0].priority for _ in range(14)]
        assert (classes.count(0), classes.count(1), classes.count(2)) == (8, 4, 2)


def check_lease_waits(subject: Subject) -> None:
    with subject.client() as client:
        client.put(new_message(due=now_ms() + 60), b"body", lease=False)
        assert client.lease(1, [2]) == []
        assert len(client.lease(1, [2], wait=10)) == 1


def check_amend(subject: Subject) -> None:
    """What stays of an idle task and the message that comes of it are stored together, and survive a death."""
    message, word = new_message(), new_message("word", b"given up")
    with subject.client() as client:
        client.put(message, b"body", lease=False)
        client.hold([message.id])
        [entry] = client.show(message.id)
        left = NewTask(entry.stage, entry.lane, entry.items[1:], entry.due, state=entry.state)
        settle = Settle(message.id, entry.number, [left], puts=[word])
        assert client.amend(settle, [b"given up"]) is Amended.DONE
    subject.restart()
    with subject.client() as client:
        assert client.amend(settle, [b"given up"]) is Amended.DONE  # repeated: nothing more happens
        assert [(e.items, e.state) for e in client.show(message.id)] == [(entry.items[1:], State.HELD)]
        (task,) = client.lease(10, [2], wait=5)
        assert (task.message, client.body(task)) == (word.id, b"given up")
        assert client.amend(Settle(word.id, task.number)) is Amended.LEASED
        assert client.act(Act.RELEASE, [], [(message.id, client.show(message.id)[0].number)]).changed == 1
        (again,) = client.lease(10, [2], wait=5)
        assert (again.message, [i.id for i in again.items]) == (message.id, [2])
