"""Who is leased next, and what it costs: weights, one message's tasks together, many lanes, another pool size."""

import msgspec
import pytest
from ptt_queue.dispatcher import MAX_QUANTUM, QUANTUM, Dispatcher
from ptt_queue.in_process import SETTINGS, InProcess
from ptt_queue.keys import index_key
from ptt_queue.store import Transaction
from ptt_queue.testing import new_message
from ptt_queue.types import GroupLimit, Item, NewTask, Settle

NOW = 1_800_000_000_000


@pytest.fixture
def make(tmp_path):
    subjects = []

    def make(**settings):
        subject = InProcess(str(tmp_path / "queue"), msgspec.structs.replace(SETTINGS, **settings))
        subjects.append(subject)
        return subject

    yield make
    for subject in subjects:
        subject.close()


def spread(*lanes, stage=2):
    """One message with a task in each of these lanes."""
    message = new_message(stage=stage)
    due = message.tasks[0].due
    tasks = [NewTask(stage, lane, [Item(n, b"x")], due) for n, lane in enumerate(lanes)]
    return msgspec.structs.replace(message, tasks=tasks)


def test_tasks_of_one_message_in_one_group_are_leased_together(make):
    subject = make(limit=GroupLimit(0))
    with subject.client() as client:
        for lane in ("a", "b", "c"):
            client.assign(lane, "site", GroupLimit(10))
        client.put_all([(new_message("a"), b"body") for _ in range(3)], lease=False)
        both = spread("z", "a", "b", "c")
        client.put(both, b"body", lease=False)
        client.put_all([(new_message("b"), b"body") for _ in range(3)], lease=False)
        tasks = client.lease(100, [2])
        order = [t.lane for t in tasks if t.message == both.id and t.lane != "z"]
        places = [n for n, t in enumerate(tasks) if t.message == both.id and t.lane != "z"]
        assert sorted(order) == ["a", "b", "c"]
        assert places == list(range(places[0], places[0] + 3))
        assert len(tasks) == len({(t.message, t.number) for t in tasks}) == 10


def test_together_keeps_to_the_limits(make):
    subject = make()
    with subject.client() as client:
        for lane in ("a", "b", "c"):
            client.assign(lane, "site", GroupLimit(2))
        client.put(spread("a", "b", "c"), b"body", lease=False)
        assert len(client.lease(1, [2])) == 1
        (second,) = client.lease(100, [2])
        assert client.lease(100, [2]) == []
        client.settle(Settle(second.message, second.number))
        assert len(client.lease(100, [2])) == 1


def test_not_together_what_is_not_ready_or_elsewhere(make):
    subject = make()
    with subject.client() as client:
        for lane in ("a", "b", "c", "d"):
            client.assign(lane, "site", GroupLimit(9))
        message = spread("a", "b", "c", "other")
        later = msgspec.structs.replace(message.tasks[1], due=message.tasks[1].due + 60_000)
        held = msgspec.structs.replace(message.tasks[2], stage=1)
        tasks = [message.tasks[0], later, held, message.tasks[3]]
        client.put(msgspec.structs.replace(message, tasks=tasks), b"body", lease=False)
        assert {t.lane for t in client.lease(100, [2])} == {"a", "other"}


@pytest.mark.parametrize(
    ("in_flight", "lanes", "expected"),
    [(0, 1, QUANTUM), (1, 1, 1), (3, 1, 3), (100, 1, MAX_QUANTUM), (20, 4, 5), (20, 40, 1)],
)
def test_turns_are_weighted(in_flight, lanes, expected):
    dispatcher = Dispatcher([2], GroupLimit(0))
    for n in range(lanes):
        dispatcher.assign(f"lane{n}", "site", GroupLimit(in_flight), NOW)
        dispatcher.note(index_key(2, 0, f"lane{n}", 1, NOW, b"m" * 12, n), NOW, NOW)
    assert dispatcher.quantum(dispatcher.next_lane(2, NOW)) == expected


def _seeks(subject, monkeypatch, lanes, count):
    """Looks into the index for each message, to lease ``count`` of them."""
    seeks = [0]
    walk = Transaction.walk

    def counted(self, start):
        seeks[0] += 1
        return walk(self, start)

    with subject.client() as client:
        some = [(new_message(f"lane{n % lanes}", stage=1), b"body") for n in range(count)]
        client.put_all(some, lease=False)
        monkeypatch.setattr(Transaction, "walk", counted)
        assert len(client.lease(count, [1])) == count
        monkeypatch.undo()
    return seeks[0] / count


def test_many_lanes_cost_no_more_than_one(make, monkeypatch):
    subject = make()
    one = _seeks(subject, monkeypatch, 1, 800)
    many = _seeks(subject, monkeypatch, 800, 800)
    assert many <= 1.1
    assert many <= one * 1.1


def test_blocked_group_parks_without_transactions(make):
    """Nothing is written, and nothing looked at, for the lanes of a group that has no token."""
    subject = make()
    with subject.client() as client:
        for n in range(300):
            client.assign(f"lane{n}", "site", GroupLimit(1))
        client.put_all([(new_message(f"lane{n}"), b"body") for n in range(300)], lease=False)
        (task,) = client.lease(10, [2])
        assert client.lease(10, [2]) == []
        before = subject.store.env.info()["last_txnid"]
        assert client.lease(10, [2]) == []
        assert subject.store.env.info()["last_txnid"] == before
        assert subject.queue.next_wake(subject.now()) > subject.now()
        client.settle(Settle(task.message, task.number))
        assert len(client.lease(10, [2])) == 1


@pytest.mark.parametrize(("before", "after"), [(5, 1), (1, 5)])
def test_another_pool_size_strands_nothing(make, before, after):
    subject = make(clients=before, grace_ms=50)
    workers = [subject.client() for _ in range(before)]
    for n, worker in enumerate(workers):
        assert worker.put(new_message(f"lane{n}"), b"body").leased
        worker.put(new_message(f"lane{n}", stage=1), b"body", lease=False)
    for worker in workers:
        worker.link.client = b""  # gone for good
    subject.close()
    subject.settings = msgspec.structs.replace(subject.settings, clients=after)
    subject._open()
    found = []
    workers = [subject.client() for _ in range(after)]
    while len(found) < 2 * before:
        for worker in workers:
            found += worker.lease(10, [1, 2], wait=0.2)
    assert len({(t.message, t.number) for t in found}) == 2 * before
    for worker in workers:
        worker.close()
