"""The operator's verbs of the engine: act on single tasks, amend, repair what was set aside, compact."""

import os

import pytest
from ptt_queue import files, keys, offline
from ptt_queue.errors import StoreBusy, StoreError
from ptt_queue.in_process import InProcess
from ptt_queue.store import Store
from ptt_queue.testing import new_message, now_ms
from ptt_queue.types import Act, Amended, Filter, Item, NewTask, Refusal, Settle, State

MAP = 1 << 30


def rest(task, **changes):
    fields = {"items": task.items[1:], "due": task.due, "state": task.state, **changes}
    return NewTask(task.stage, task.lane, **fields)


def two_lanes(body=b"body"):
    message = new_message("a", body)
    message.tasks.append(NewTask(2, "b", [Item(3, b"three")], now_ms()))
    return message


def test_acts_reach_single_tasks(in_process):
    message = two_lanes()
    with in_process.client() as client:
        client.put(message, b"body", lease=False)
        assert client.act(Act.HOLD, [], [(message.id, 2), (message.id, 9), (b"x" * 12, 1), (b"x", 1)]).changed == 1
        assert [(e.number, e.state) for e in client.show(message.id)] == [(1, State.WAITING), (2, State.HELD)]
        assert client.act(Act.DELETE, [], [(message.id, 2)]).changed == 1
        assert [e.number for e in client.show(message.id)] == [1]
        assert client.act(Act.DELETE, [message.id], [(message.id, 1)]).changed == 1  # named twice, done once
        assert client.stats().messages == 0


def test_an_amendment_replaces_a_task_in_any_state_and_stores_what_comes_of_it(in_process):
    message, word = two_lanes(), new_message("c", b"word")
    with in_process.client() as client:
        client.put(message, b"body", lease=False)
        client.hold([message.id])
        [one, _] = client.show(message.id)
        settle = Settle(message.id, 1, [rest(one)], puts=[word])
        assert client.amend(settle, [b"word"]) is Amended.DONE
        assert client.amend(settle, [b"word"]) is Amended.DONE  # repeated: nothing more happens
        assert [(e.number, [i.id for i in e.items], e.state) for e in client.show(message.id)] == [
            (2, [3], State.HELD),
            (3, [2], State.HELD),
        ]
        [task] = client.lease(10, [2])
        assert (task.message, client.body(task)) == (word.id, b"word")
        assert client.stats().messages == 2
        assert client.amend(Settle(message.id, 2)) is client.amend(Settle(message.id, 3)) is Amended.DONE
        assert client.amend(Settle(message.id, 3)) is Amended.GONE
        assert client.stats().messages == 1
    in_process.restart()
    with in_process.client() as client:
        assert [e.message for e in client.list(Filter()).entries] == [word.id]


def test_what_is_amended_to_wait_is_leased_when_due(in_process):
    message = new_message("a", due=now_ms() + 3_600_000)
    with in_process.client() as client:
        client.put(message, b"body", lease=False)
        [entry] = client.show(message.id)
        assert client.amend(Settle(message.id, 1, [rest(entry, due=now_ms())])) is Amended.DONE
        [task] = client.lease(1, [2])
        assert [i.id for i in task.items] == [2]


def test_what_a_worker_is_at_is_not_amended(in_process):
    message = new_message()
    with in_process.client() as worker, in_process.client() as client:
        assert worker.put(message, b"body").leased
        assert client.amend(Settle(message.id, 1)) is Amended.LEASED
        assert client.act(Act.DELETE, [], [(message.id, 1)]).leased == 1
        worker.close()
        assert client.amend(Settle(message.id, 1)) is Amended.DONE


def test_what_stays_of_a_task_of_unknown_outcome_bears_the_mark(in_process):
    marked, lost = new_message("a"), new_message("b")
    with in_process.client() as client:
        worker = in_process.client()
        for message in (marked, lost):
            [task] = worker.put(message, b"body").leased
            if message is marked:
                worker.mark(task)
        worker.extend([])
        worker._connection.subject.gone(worker._connection.session)  # dead: the store does not know it yet
        for message in (marked, lost):
            [entry] = offline.Reader(in_process.store, live=True).show(message.id)
            assert client.amend(Settle(message.id, 1, [rest(entry)])) is Amended.DONE
        assert {e.lane: e.maybe for e in client.list(Filter()).entries} == {"a": True, "b": False}


def test_a_lease_of_a_service_that_died_may_have_delivered(tmp_path):
    path = str(tmp_path / "queue")
    subject = InProcess(path)
    message = new_message()
    subject.client().put(message, b"body")
    subject.close()  # with the lease in the store
    with offline.own(path, MAP) as owner:
        [entry] = owner.show(message.id)
        assert (entry.leased, entry.maybe) == (False, True)
        assert owner.amend(Settle(message.id, 1, [rest(entry, maybe=False)])) is Amended.DONE
        assert [e.maybe for e in owner.show(message.id)] == [True]


def test_an_amendment_that_cannot_be_stored_changes_nothing(in_process):
    message, word = new_message(), new_message("c", b"word")
    task = NewTask(2, "x" * 500, [], 0)
    with in_process.client() as client:
        client.put(message, b"body", lease=False)
        for settle, bodies in [
            (Settle(b"short", 1), []),
            (Settle(message.id, 1, [task]), []),
            (Settle(message.id, 1, puts=[word]), [b"wor"]),
            (Settle(message.id, 1, puts=[word, word]), [b"word", b"word"]),
            (Settle(message.id, 1, puts=[new_message("c" * 500, b"")]), [b""]),
        ]:
            assert client.amend(settle, bodies) is Amended.INVALID
        assert [e.number for e in client.show(message.id)] == [1]
        assert client.stats().messages == 1


@pytest.fixture
def damaged(in_process):
    """A task whose record is garbage, set aside, beside a sound one."""
    message, sound = new_message("a"), new_message("b")
    with in_process.client() as client:
        client.put_all([(message, b"body"), (sound, b"body")], lease=False)
        with in_process.store.env.begin(write=True, db=in_process.store.dbs["records"]) as txn:
            whole = txn.get(keys.record_key(message.id, 1))
            txn.put(keys.record_key(message.id, 1), b"\0garbage")
        assert [t.message for t in client.lease(10, [2])] == [sound.id]
    return message, whole


def test_what_was_set_aside_is_seen_put_back_or_deleted(in_process, damaged):
    message, whole = damaged
    reader = offline.Reader(in_process.store)
    [found] = reader.damaged()
    assert (found.message, found.number, found.lane, found.raw, found.readable) == (
        message.id,
        1,
        "a",
        b"garbage",
        False,
    )
    with in_process.client() as client:
        assert client.repair([(message.id, 1)], delete=False) == 0  # it still cannot be read
        with in_process.store.env.begin(write=True, db=in_process.store.dbs["records"]) as txn:
            txn.put(keys.record_key(message.id, 1), whole)
        assert [d.readable for d in reader.damaged()] == [True]
        assert client.repair([(message.id, 1)], delete=False) == 1
        assert list(reader.damaged()) == []
        assert {t.lane for t in client.lease(10, [2])} == {"a", "b"}


def test_what_was_set_aside_goes_with_its_message(in_process, damaged):
    message, _ = damaged
    with in_process.client() as client:
        assert client.repair([(message.id, 1), (message.id, 2)], delete=True) == 1
        assert client.stats().messages == 1
        assert list(offline.Reader(in_process.store).damaged()) == []
        txn = in_process.store.begin(write=False)
        assert not txn.has_message(message.id)
        assert txn.chunks(message.id, 0) == []
        txn.abort()


def test_keys_alone_say_where_everything_is(in_process, monkeypatch):
    monkeypatch.setattr(offline, "KEYS_PAGE", 2)
    messages = [new_message(f"lane{n}") for n in range(5)]
    with in_process.client() as client:
        client.put_all([(m, b"") for m in [m.__class__(m.id, b"", m.tasks, 0, 0) for m in messages]], lease=False)
        [task] = client.lease(1, [2])
        found = list(offline.Reader(in_process.store, live=True).walk())
        assert [key.message for key, _ in found] == [m.id for m in messages]
        assert [key.message for key, leased in found if leased] == [task.message]
        assert not any(leased for _, leased in offline.Reader(in_process.store).walk())
        shown = [e.message for e in offline.Reader(in_process.store, live=True).list(Filter()).entries if e.leased]
        assert shown == [task.message]


def test_the_owner_stores_amends_and_repairs(tmp_path):
    path = str(tmp_path / "queue")
    InProcess(path).close()
    large = os.urandom(1_500_000)  # more than one part
    message, word = two_lanes(large), new_message("c", b"word")
    with offline.own(path, MAP) as owner:
        assert owner.put(message, large) is None
        assert owner.put(message, large) is Refusal.DUPLICATE
        assert owner.put(new_message(), b"another size") is Refusal.INVALID
        assert owner.body(message.id, len(large)) == large
        with pytest.raises(StoreError, match="not whole"):
            owner.body(message.id, len(large) + 1)
        stored = owner.stored(message.id)
        assert [number for number, _ in stored.tasks] == [1, 2]
        assert owner.stored(b"x" * 12) is None
        assert owner.act(Act.HOLD, [], [(message.id, 2)]).changed == 1
        assert owner.amend(Settle(message.id, 1, puts=[word]), [b"word"]) is Amended.DONE
        assert owner.repair([(message.id, 2)], delete=True) == 0
        assert owner.space().messages == 2


def test_compacting_gives_back_what_is_free_and_keeps_all_else(tmp_path):
    path = str(tmp_path / "queue")
    subject = InProcess(path)
    messages = [new_message(f"lane{n}", b"x" * 200_000) for n in range(20)]
    with subject.client() as client:
        client.put_all([(m, b"x" * 200_000) for m in messages], lease=False)
        client.delete([m.id for m in messages[1:]])
    subject.close()
    before, after = offline.compact(path, MAP)
    assert after < before / 4
    assert os.stat(os.path.join(path, "data.mdb")).st_mode & 0o777 == 0o600
    assert not os.path.exists(os.path.join(path, "compact"))
    subject = InProcess(path)
    with subject.client() as client:
        assert client.put(new_message("new"), b"body", lease=False).refused is None
        found = {t.message: client.body(t) for t in client.lease(10, [2])}
        assert found[messages[0].id] == b"x" * 200_000
        assert len(found) == 2
    subject.close()


def test_nothing_is_compacted_while_it_is_used(tmp_path):
    path = str(tmp_path / "queue")
    InProcess(path).close()
    lock = files.take(path)
    with pytest.raises(StoreBusy):
        offline.compact(path, MAP)
    os.close(lock)
    with pytest.raises(StoreError):
        offline.compact(str(tmp_path / "nothing"), MAP)


def test_nothing_is_compacted_while_another_process_reads(tmp_path):
    import subprocess
    import sys

    path = str(tmp_path / "queue")
    InProcess(path).close()
    code = (
        "import sys; from ptt_queue import offline\n"
        "with offline.read(sys.argv[1], 1 << 30): print(flush=True); sys.stdin.readline()"
    )
    with subprocess.Popen([sys.executable, "-c", code, path], stdin=-1, stdout=-1) as reader:
        reader.stdout.readline()
        with pytest.raises(StoreBusy, match="reading"):
            offline.compact(path, MAP)
        reader.communicate(b"\n")
    offline.compact(path, MAP)
    Store(path, MAP).close()
