"""The engine: records of any size, its directory, its owner; and the operator's verbs with the service stopped."""

import os
import pathlib

import lmdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ptt_queue import files, keys, offline
from ptt_queue.errors import StoreBusy, StoreError
from ptt_queue.in_process import InProcess
from ptt_queue.protocol import CHUNK_BYTES
from ptt_queue.store import SCHEMA, MessageRecord, Store
from ptt_queue.testing import new_message
from ptt_queue.types import Act, Filter, Item, NewTask, State

ID = b"i" * 12
MAP = 1 << 30


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    store = Store(str(tmp_path_factory.mktemp("store") / "queue"), MAP)
    yield store
    store.close()


SIZES = [0, 1, CHUNK_BYTES - 2, CHUNK_BYTES - 1, CHUNK_BYTES, 2 * CHUNK_BYTES - 2, 2 * CHUNK_BYTES - 1, 100_000]


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(SIZES) | st.integers(0, 20_000), st.sampled_from(SIZES))
def test_records_of_any_size_replace_each_other_whole(store, first, second):
    txn = store.begin()
    try:
        for size in (first, second):
            record = MessageRecord(os.urandom(size), b"", 0, 0, 0, 0, 1)
            txn.rewrite_message(ID, record)
            assert txn.message(ID) == record
        cursor = txn.txn.cursor(db=txn.records)
        assert all(len(value) <= CHUNK_BYTES for _, value in cursor)
        txn.delete_message(ID, 0)
        assert txn.txn.stat(txn.records)["entries"] == 0
    finally:
        txn.abort()


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES, CHUNK_BYTES + 1, 300 * CHUNK_BYTES])
def test_bodies_are_chunks(store, size):
    body = os.urandom(size)
    txn = store.begin()
    try:
        next_chunk = txn.put_chunks(ID, 0, body)
        assert next_chunk == -(-size // CHUNK_BYTES)
        assert all(len(value) <= CHUNK_BYTES for _, value in txn.txn.cursor(db=txn.bodies))
        found, first = b"", 0
        while part := txn.chunks(ID, first):
            found += b"".join(part)
            first += len(part)
        assert found == body
        assert not txn.delete_body(ID, 10) or size <= 10 * CHUNK_BYTES
        while not txn.delete_body(ID, 100):
            pass
        assert txn.txn.stat(txn.bodies)["entries"] == 0
    finally:
        txn.abort()


def test_counts_follow_commits_only(tmp_path):
    store = Store(str(tmp_path / "queue"), MAP)
    task = NewTask(2, "a", [Item(1, b"")], 5)
    key, index_key = keys.record_key(ID, 1), keys.index_key(2, 0, "a", 1, 5, ID, 1)
    for commit in (False, True):
        txn = store.begin()
        txn.add_message(ID, MessageRecord(b"", b"", 0, 0, 0, 1, 2))
        txn.add_task(key, index_key, task)
        txn.commit() if commit else txn.abort()
        assert store.task_counts() == ([(2, State.WAITING, 1)] if commit else [])
    store.close()
    store = Store(str(tmp_path / "queue"), MAP)
    assert (store.message_count(), store.task_counts()) == (1, [(2, State.WAITING, 1)])
    txn = store.begin()
    txn.delete_task(key, index_key)
    txn.delete_message(ID, 0)
    txn.commit()
    assert (store.message_count(), store.task_counts()) == (0, [])
    store.close()


def test_creation_is_synced(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.readlink(f"/proc/self/fd/{fd}")))
    home = tmp_path / "queue"
    names = [str(home / "data.mdb"), str(home), str(tmp_path)]
    Store(str(home), MAP).close()
    assert synced[:4] == [str(home / "new" / "data.mdb"), *names]
    synced.clear()
    Store(str(home), MAP).close()  # the process that created it may have been killed before it synced
    assert synced[:3] == names


def test_a_creation_that_was_cut_off_is_done_again(tmp_path):
    beside = tmp_path / "queue" / "new"
    beside.mkdir(parents=True)
    (beside / "data.mdb").write_bytes(b"\0" * 4096)  # half of what LMDB writes first
    Store(str(tmp_path / "queue"), MAP).close()
    assert not beside.exists()


@pytest.mark.parametrize(("magic", "name"), [(0x6969, "NFS"), (0x794C7630, "overlayfs")])
def test_file_systems_that_will_not_do(tmp_path, monkeypatch, magic, name):
    monkeypatch.setattr(files, "_file_system", lambda _: magic)
    with pytest.raises(StoreError, match=name):
        Store(str(tmp_path / "queue"), MAP)


def test_file_system_is_read_from_the_kernel():
    assert files._file_system("/proc/self") == 0x9FA0
    assert files._file_system("/proc/not/there") == 0x9FA0


def test_newer_schema_is_refused(tmp_path):
    store = Store(str(tmp_path / "queue"), MAP)
    with store.env.begin(write=True, db=store.dbs["state"]) as txn:
        txn.put(b"schema", (SCHEMA + 1).to_bytes(4, "big"))
    store.close()
    with pytest.raises(StoreError, match=f"schema {SCHEMA + 1}"):
        Store(str(tmp_path / "queue"), MAP)


def test_what_is_no_store_is_refused(tmp_path):
    (tmp_path / "queue").mkdir()
    (tmp_path / "queue" / "data.mdb").write_bytes(b"x" * 8192)
    with pytest.raises(StoreError):
        Store(str(tmp_path / "queue"), MAP)


def test_one_owner(tmp_path):
    lock = files.take(str(tmp_path / "queue"))
    with pytest.raises(StoreBusy):
        files.take(str(tmp_path / "queue"))
    os.close(lock)
    os.close(files.take(str(tmp_path / "queue")))


def test_the_stopped_service(tmp_path):
    path = str(tmp_path / "queue")
    subject = InProcess(path)
    messages = [new_message(f"lane{n}") for n in range(4)]
    with subject.client() as client:
        client.put_all([(m, b"body") for m in messages], lease=False)
    subject.close()
    with offline.read(path, MAP) as reader:
        assert [e.message for e in reader.list(Filter()).entries] == [m.id for m in messages]
        assert reader.show(messages[1].id)[0].lane == "lane1"
        assert reader.counts() == [(2, State.WAITING, 4)]
    with offline.own(path, MAP) as owner:
        assert owner.act(Act.HOLD, [messages[0].id]).changed == 1
        assert owner.act(Act.DELETE, [messages[1].id, b"x" * 12]).changed == 1
        assert [e.state for e in owner.list(Filter(lane="lane0")).entries] == [State.HELD]
        with pytest.raises(StoreBusy), offline.own(path, MAP):
            pass
    subject = InProcess(path)
    with subject.client() as client:
        assert {t.lane for t in client.lease(10, [2])} == {"lane2", "lane3"}
    subject.close()


def test_reading_what_is_not_there(tmp_path):
    with pytest.raises(StoreError, match="no queue"), offline.read(str(tmp_path / "queue"), MAP):
        pass
    assert not list(pathlib.Path(tmp_path).iterdir())


def test_a_store_of_an_earlier_version_is_opened_by_its_owner_first(tmp_path):
    path = str(tmp_path / "queue")
    os.mkdir(path)
    with lmdb.open(path, map_size=MAP, max_dbs=5) as env:
        for name in ("records", "bodies", "index", "state", "damaged"):
            env.open_db(name.encode())
    with pytest.raises(StoreError, match="start the service once"):
        Store(path, MAP, readonly=True)
    Store(path, MAP).close()
    Store(path, MAP, readonly=True).close()
