"""A submitter's key: the second message with it is not stored, inside the window, whatever happens between."""

import msgspec
import pytest
from ptt_queue import once
from ptt_queue.in_process import SETTINGS, InProcess
from ptt_queue.testing import new_message
from ptt_queue.types import Settle

SECOND = 1000


@pytest.fixture
def subject(tmp_path):
    time = [1_800_000_000.0]
    subject = InProcess(str(tmp_path / "queue"), msgspec.structs.replace(SETTINGS, limited=()), lambda: time[0])
    subject.time = time
    yield subject
    subject.close()


def _message(subject, key=b"order 17", window=60 * SECOND, body=b"body"):
    return msgspec.structs.replace(new_message(body=body), once=key, once_until=subject.now() + window)


def _keys(subject):
    with subject.store.env.begin() as txn, txn.cursor(db=subject.store.dbs["state"]) as cursor:
        return sum(key[:1] in b"kx" for key in cursor.iternext(values=False))


def test_second_gets_the_first_id_and_stores_nothing(subject):
    with subject.client() as client, subject.client() as other:
        first, second = _message(subject), _message(subject)
        result = client.put(first, b"body")
        assert (result.refused, result.first, len(result.leased)) == (None, b"", 1)
        result = other.put(second, b"body")
        assert (result.refused, result.first, result.leased) == (None, first.id, [])
        assert other.put(_message(subject, b"order 18"), b"body").first == b""
        assert client.stats().messages == 2
        assert client.show(second.id) == []


def test_both_in_one_group(subject):
    with subject.client() as client:
        messages = [_message(subject) for _ in range(3)]
        assert [r.first for r in client.put_all([(m, b"body") for m in messages])] == [b"", *[messages[0].id] * 2]


def test_known_after_the_first_is_gone_and_after_a_restart(subject):
    with subject.client() as client:
        first = _message(subject)
        (task,) = client.put(first, b"body").leased
        assert client.settle(Settle(task.message, task.number)).stored
        subject.restart()
        assert client.put(_message(subject), b"body").first == first.id
        assert client.stats().messages == 0


def test_large_body_of_the_second_leaves_nothing(subject):
    body = b"x" * 3_000_000
    with subject.client() as client:
        first = _message(subject)
        client.put(first, b"body")
        assert client.put(_message(subject, body=body), body).first == first.id
        for _ in range(20):
            subject.queue.execute([], subject.now())
        with subject.store.env.begin() as txn:
            assert txn.stat(subject.store.dbs["bodies"])["entries"] == 1


def test_window_ends(subject):
    with subject.client() as client:
        client.put(_message(subject), b"body")
        subject.time[0] += 61
        again = _message(subject)
        assert client.put(again, b"body").first == b""
        assert client.put(_message(subject), b"body").first == again.id


def test_refused_message_does_not_take_the_key(subject):
    with subject.client() as client:
        bad = msgspec.structs.replace(_message(subject), tasks=[])
        assert client.put(bad, b"body").refused is not None
        assert client.put(_message(subject), b"body").first == b""


def test_repeated_request_gets_the_same_answer(subject):
    """The queue process dies between the commit and the answer: the client asks once more."""
    with subject.client() as client:
        first = _message(subject)
        client.put(first, b"body")
        call = client.link.put(_message(subject), b"body", True)
        client._connection.sendall(b"".join(client.link.send(call)))
        subject.restart()
        client.stats()  # the greeting repeats the put
        assert call.result.first == first.id
        again = _message(subject, b"mine")
        call = client.link.put(again, b"body", True)
        client._connection.sendall(b"".join(client.link.send(call)))
        subject.restart()
        client.stats()
        assert (call.result.first, len(call.result.leased)) == (b"", 1)


def test_expired_keys_are_removed(subject):
    with subject.client() as client:
        for n in range(40):
            client.put(_message(subject, b"%d" % n), b"body")
        assert _keys(subject) == 80
        subject.time[0] += 61
        for n in range(20):
            client.put(_message(subject, b"new%d" % n), b"body")
        assert _keys(subject) == 40
        subject.time[0] += 3600
        subject.queue.execute([], subject.now())
        assert _keys(subject) == 0


def test_window_is_bounded(subject):
    with subject.client() as client:
        client.put(_message(subject, window=1000 * once.MAX_WINDOW_MS), b"body")
        subject.time[0] += once.MAX_WINDOW_MS / 1000 + 1
        assert client.put(_message(subject), b"body").first == b""
