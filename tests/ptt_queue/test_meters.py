"""Meters: windows, what is collected, bounds, and what an operator sees. What each engine does is in the suite."""

import msgspec
import pytest
from ptt_queue import meters, offline, requests
from ptt_queue.in_process import SETTINGS, InProcess
from ptt_queue.store import Transaction
from ptt_queue.testing import new_message
from ptt_queue.types import Meter, Refusal, Settle

MINUTE = 60_000


@pytest.fixture
def subject(tmp_path):
    time = [1_800_000_000.0]  # a full hour
    subject = InProcess(str(tmp_path / "queue"), msgspec.structs.replace(SETTINGS, limited=()), lambda: time[0])
    subject.time = time
    yield subject
    subject.close()


def _put(client, *wanted, body=b"body"):
    return client.put(msgspec.structs.replace(new_message(body=body), meters=list(wanted)), body, lease=False)


def _counters(subject):
    with subject.store.env.begin() as txn:
        return txn.stat(subject.store.dbs["meters"])["entries"]


def test_windows_are_aligned_to_the_epoch(subject):
    meter = Meter("m", 1, 2, MINUTE)
    subject.time[0] += 59.9
    with subject.client() as client:
        assert [_put(client, meter).refused for _ in range(3)] == [None, None, Refusal.METER]
        assert _put(client, meter).until == 1_800_000_060_000
        subject.time[0] += 0.1
        assert [_put(client, meter).refused for _ in range(3)] == [None, None, Refusal.METER]
        assert _put(client, meter).until == 1_800_000_120_000


def test_the_window_that_ends_last_is_told(subject):
    with subject.client() as client:
        short, long = Meter("m", 1, 0, MINUTE), Meter("m", 1, 0, 60 * MINUTE)
        for both in ([short, long], [long, short]):
            assert _put(client, *both).until == 1_800_003_600_000
        assert _counters(subject) == 0


def test_one_counter_twice_in_a_message(subject):
    with subject.client() as client:
        assert _put(client, Meter("m", 2, 3, MINUTE), Meter("m", 2, 3, MINUTE)).refused is Refusal.METER
        assert _put(client, Meter("m", 2, 4, MINUTE), Meter("m", 2, 4, MINUTE)).refused is None
        assert _put(client, Meter("m", 1, 4, MINUTE)).refused is Refusal.METER


def test_a_lower_limit_counts_at_once(subject):
    with subject.client() as client:
        assert _put(client, Meter("m", 5, 10, MINUTE)).refused is None
        assert _put(client, Meter("m", 1, 5, MINUTE)).refused is Refusal.METER
        assert _put(client, Meter("m", 1, 6, MINUTE)).refused is None


def test_a_large_body_that_is_refused_leaves_nothing(subject):
    body = b"x" * 3_000_000
    with subject.client() as client:
        assert _put(client, Meter("m", 1, 0, MINUTE), body=body).refused is Refusal.METER
        for _ in range(20):
            subject.queue.execute([], subject.now())
        with subject.store.env.begin() as txn:
            assert txn.stat(subject.store.dbs["bodies"])["entries"] == 0


def test_what_settles_brings_is_not_counted(subject):
    with subject.client() as client:
        (task,) = client.put(new_message(), b"body").leased
        bounce = msgspec.structs.replace(new_message(), meters=[Meter("m", 1, 0, MINUTE)])
        assert client.settle(Settle(task.message, task.number, puts=[bounce]), [b"body"]).stored
        assert _counters(subject) == 0


def test_ended_windows_are_collected(subject, monkeypatch):
    monkeypatch.setattr(requests, "PRUNED_KEYS", 0)
    with subject.client() as client:
        for n in range(40):
            _put(client, Meter(f"{n}", 1, 1, MINUTE))
        assert _counters(subject) == 40
        subject.time[0] += 60
        for n in range(10):
            _put(client, Meter(f"{n}", 1, 1, 60 * MINUTE))
        assert _counters(subject) == 40 - 20 + 10
        monkeypatch.undo()
        subject.time[0] += 120
        subject.queue.execute([], subject.now())
        assert _counters(subject) == 10
        subject.time[0] += 3600
        subject.queue.execute([], subject.now())
        assert _counters(subject) == 0


def test_their_number_is_bounded(subject, monkeypatch):
    monkeypatch.setattr(meters, "MAX_COUNTERS", 5)
    with subject.client() as client:
        assert [_put(client, Meter(f"{n}", 1, 9, MINUTE)).refused for n in range(6)] == [None] * 5 + [Refusal.FULL]
        assert _put(client, Meter("4", 1, 9, MINUTE)).refused is None  # it is there already
        assert _put(client).refused is None
        subject.time[0] += 60
        assert _put(client, Meter("5", 1, 9, MINUTE)).refused is None


def test_a_group_that_fails_counts_nothing(subject, monkeypatch):
    def fail(_self):
        raise OSError("no")

    with subject.client() as client:
        client.stats()
        monkeypatch.setattr(Transaction, "commit", fail)
        assert _put(client, Meter("m", 1, 1, MINUTE)).refused is Refusal.FAILED
        monkeypatch.undo()
        assert _counters(subject) == 0
        subject.time[0] += 2
        assert _put(client, Meter("m", 1, 1, MINUTE)).refused is None


def test_what_the_operator_sees(subject):
    with subject.client() as client:
        _put(client, Meter("user:a:messages", 1, 5, MINUTE), Meter("user:a:messages", 1, 50, 60 * MINUTE))
        _put(client, Meter("user:b:messages", 3, 5, MINUTE))
    reader = offline.Reader(subject.store)
    found = [(m.key, m.used, m.limit, m.window, m.until) for m in reader.meters("user:a:")]
    assert found == [
        ("user:a:messages", 1, 5, MINUTE, 1_800_000_060_000),
        ("user:a:messages", 1, 50, 60 * MINUTE, 1_800_003_600_000),
    ]
    assert [m.key for m in reader.meters("")].count("user:b:messages") == 1
