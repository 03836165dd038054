"""Back-pressure: what is judged, with which marks, and that freed space is used again."""

import os

import msgspec
import pytest
from ptt_queue import store
from ptt_queue.in_process import SETTINGS, InProcess
from ptt_queue.pressure import WINDOW_MS, Marks, Pressure
from ptt_queue.testing import new_message
from ptt_queue.types import Refusal, Settle


@pytest.mark.parametrize(
    ("marks", "below", "above", "between", "name"),
    [
        (Marks(max_bytes=1000), (800, 0, 0), (1001, 0, 0), (950, 0, 0), "bytes"),
        (Marks(max_messages=100), (0, 80, 0), (0, 100, 0), (0, 95, 0), "messages"),
        (Marks(max_body_bytes=1000), (0, 0, 0, 800), (0, 0, 0, 1001), (0, 0, 0, 950), "bodies"),
        (Marks(min_free_bytes=900), (0, 0, 1100), (0, 0, 899), (0, 0, 950), "disk"),
    ],
)
def test_marks_have_two_levels(marks, below, above, between, name):
    pressure = Pressure(marks)
    assert [pressure.look(*x[:3], 0, *x[3:]) for x in (below, between, above, between, below, between)] == [
        "",
        "",
        name,
        name,
        "",
        "",
    ]


def test_no_mark_refuses_nothing():
    pressure = Pressure(Marks())
    pressure.committed(60.0)
    assert [pressure.look(1 << 60, 1 << 60, 0, now) for now in (0, WINDOW_MS, 2 * WINDOW_MS)] == ["", "", ""]


def test_commits_are_judged_by_their_mean():
    pressure = Pressure(Marks(max_commit_seconds=1.0))
    now = 0

    def window(*commits):
        nonlocal now
        for seconds in commits:
            pressure.committed(seconds)
        now += WINDOW_MS
        return pressure.look(0, 0, 0, now)

    assert window(0.1) == ""
    assert window(0.01, 0.01, 0.01, 2.0) == ""  # one slow sync
    assert window(2.0, 0.5) == "commit"
    assert pressure.look(0, 0, 0, now + 1) == "commit"  # until the window is over
    assert window(0.95) == "commit"
    assert window(0.5) == ""
    assert window(2.0) == "commit"
    assert window() == ""  # nothing is known any more: try


def test_the_clock_may_step_back():
    pressure = Pressure(Marks(max_commit_seconds=1.0))
    pressure.committed(2.0)
    assert pressure.look(0, 0, 0, 10**9) == "commit"
    assert pressure.look(0, 0, 0, 5) == ""


@pytest.fixture
def make(tmp_path):
    subjects = []

    def make(**marks):
        time = [1_800_000_000.0]
        settings = msgspec.structs.replace(SETTINGS, limited=(), marks=Marks(**marks))
        subject = InProcess(str(tmp_path / "queue"), settings, lambda: time[0])
        subject.time = time
        subjects.append(subject)
        return subject

    yield make
    for subject in subjects:
        subject.close()


def _fill(subject, client, body):
    """Put until it is refused. Returns what is leased."""
    leased = []
    for _ in range(1000):
        subject.time[0] += 0.2  # space is looked at now and then
        result = client.put(new_message(body=body), body)
        if result.refused:
            assert result.refused is Refusal.FULL
            return leased
        leased += result.leased
    raise AssertionError("never full")


def test_count_is_limited_and_resumes_below(make):
    subject = make(max_messages=20)
    told = []
    subject.queue.told = told.append
    with subject.client() as client:
        leased = _fill(subject, client, b"body")
        assert len(leased) == 20
        assert client.stats().refusing == "messages"
        for task in leased[:2]:
            client.settle(Settle(task.message, task.number))
        subject.time[0] += 1
        assert client.put(new_message(), b"body").refused is Refusal.FULL  # 18 are not below 90 percent
        client.settle(Settle(leased[2].message, leased[2].number))
        subject.time[0] += 1
        assert client.put(new_message(), b"body").refused is None
        assert client.stats().refusing == ""
    assert told == ["takes no more for now: messages", "takes messages again"]


def test_freed_space_is_used_again(make):
    subject = make(max_bytes=2_000_000)
    file = os.path.join(subject.path, "data.mdb")
    sizes = []
    with subject.client() as client:
        for _ in range(8):
            leased = _fill(subject, client, b"x" * 20_000)
            assert len(leased) > 50
            for task in leased:
                client.settle(Settle(task.message, task.number))
            subject.time[0] += 1
            sizes.append(os.path.getsize(file))
    assert sizes[-1] <= sizes[0] * 1.3  # eight times as much came and went


def test_bytes_of_bodies_are_limited(make):
    subject = make(max_body_bytes=50_000)
    with subject.client() as client:
        leased = _fill(subject, client, b"x" * 10_000)
        assert len(leased) == 6  # the last one went above
        stats = client.stats()
        assert (stats.refusing, stats.body_bytes) == ("bodies", 60_000)
        for task in leased[:2]:
            client.settle(Settle(task.message, task.number))
        subject.time[0] += 1
        assert client.put(new_message(), b"body").refused is None


def test_clients_are_told_unasked(make):
    subject = make(max_messages=2)
    with subject.client() as client, subject.client() as other:
        other.stats()
        leased = _fill(subject, client, b"body")
        assert client.link.refusing == "messages"
        connection = other._connection
        other.link.receive(connection.recv(1 << 16))
        assert other.link.refusing == "messages"
        with subject.client() as third:
            third.stats()
            assert third.link.refusing == "messages"  # with its welcome
        client.settle_all([(Settle(t.message, t.number), ()) for t in leased])
        wake = subject.queue.next_wake(subject.now())
        assert wake <= subject.now() + 100  # it looks though nobody asks
        subject.time[0] += 0.2
        subject.execute([])
        other.link.receive(connection.recv(1 << 16))
        assert other.link.refusing == ""


def test_a_store_that_did_not_count_bodies(make):
    subject = make()
    with subject.client() as client:
        client.put_all([(new_message(body=b"x" * 5000), b"x" * 5000) for _ in range(3)])
    counts = {k: n for k, n in subject.store.counts.items() if k != store.BODIES}
    with subject.store.env.begin(write=True) as txn:
        raw = msgspec.msgpack.encode([(*k, n) for k, n in counts.items()])
        txn.put(b"counts", raw, db=subject.store.dbs["state"])
    subject.restart()
    assert subject.store.body_bytes() == 15_000
