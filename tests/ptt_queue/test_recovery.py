"""Requests that are repeated, groups that fail, what is left behind by those who died."""

import os

import lmdb
import msgspec
import pytest
from ptt_queue import keys, protocol
from ptt_queue.in_process import SETTINGS, InProcess
from ptt_queue.pressure import Marks
from ptt_queue.protocol import PART_BYTES, PART_CHUNKS, Frames
from ptt_queue.queue import Settings
from ptt_queue.session import Session
from ptt_queue.testing import HOUR, new_message, now_ms
from ptt_queue.types import Filter, GroupLimit, Item, NewTask, PutResult, Refusal, Settle, SettleResult, State, Task

CLIENT = b"c" * 16


class Raw:
    """A client that sends what it is told, with the numbers that it is told."""

    def __init__(self, subject: InProcess, client: bytes = CLIENT, held=()) -> None:
        self.subject = subject
        self.session: Session = subject.queue.connect()
        self.welcome = self.ask(protocol.Hello(1, client, True, list(held)), protocol.Welcome)

    def ask(self, request, kind, blob=b""):
        ((session, pieces),) = self.subject.queue.execute([(self.session, request, blob)], self.subject.now())
        assert session is self.session
        ((control, _),) = Frames().feed(b"".join(pieces))
        answer = protocol.parse_answer(control)
        assert answer.error is None, answer.error
        return msgspec.msgpack.decode(answer.payload, type=kind)

    def put(self, number, message, blob=b"body", lease=True):
        return self.ask(protocol.Put(number, 0, message, lease), protocol.PutAnswer, blob)

    def settle(self, number, settle):
        return self.ask(protocol.SettleTask(number, 0, settle), protocol.SettleAnswer)

    def stage(self, id, first, blob):
        assert self.subject.queue.execute([(self.session, protocol.Stage(id, first), blob)], self.subject.now()) == []

    def die(self):
        self.subject.queue.disconnect(self.session, self.subject.now())


def settle_everything(subject):
    with subject.client() as client:
        done = []
        while tasks := client.lease(100, [1, 2]):
            for task in tasks:
                assert client.settle(Settle(task.message, task.number)).stored
                done.append(task)
        return done


@pytest.mark.parametrize("restart", [False, True])
def test_put_again_is_stored_once_and_leased(in_process, restart):
    message = new_message()
    raw = Raw(in_process)
    assert raw.put(5, message).refused is None
    in_process.restart() if restart else raw.die()
    raw = Raw(in_process)
    assert raw.welcome.last == 5
    answer = raw.put(5, message)
    assert answer.refused is None
    assert [(g.index, g.number, g.maybe) for g in answer.granted] == [(0, 1, False)]
    assert in_process.queue.stats().messages == 1
    assert raw.settle(6, Settle(message.id, 1)).stored
    assert in_process.queue.stats().messages == 0


def test_put_again_in_one_group_with_the_hello(in_process):
    message = new_message()
    Raw(in_process).put(5, message)
    in_process.restart()
    session = in_process.queue.connect()
    arrived = [
        (session, protocol.Hello(6, CLIENT, True, []), b""),
        (session, protocol.Put(5, 0, message, True), b"body"),
    ]
    answer = in_process.queue.execute(arrived, in_process.now())[1]
    ((control, _),) = Frames().feed(b"".join(answer[1]))
    put = msgspec.msgpack.decode(protocol.parse_answer(control).payload, type=protocol.PutAnswer)
    assert [(g.number, g.maybe) for g in put.granted] == [(1, False)]


@pytest.mark.parametrize("restart", [False, True])
def test_put_again_after_another_worker_settled_it(in_process, restart):
    message = new_message()
    raw = Raw(in_process)
    raw.put(5, message)
    raw.die()
    assert len(settle_everything(in_process)) == 1
    if restart:
        in_process.restart()
    answer = Raw(in_process).put(5, message)
    assert (answer.refused, answer.granted) == (None, [])
    assert in_process.queue.stats().messages == 0


def test_put_again_while_another_worker_is_at_it(in_process):
    message = new_message()
    raw = Raw(in_process)
    raw.put(5, message)
    raw.die()
    with in_process.client() as other:
        (task,) = other.lease(1, [2])
        assert Raw(in_process).put(5, message).granted == []
        assert other.settle(Settle(task.message, task.number)).stored


def test_settle_again_is_executed_once(in_process):
    message = new_message(stage=1)
    raw = Raw(in_process)
    raw.put(5, message)
    new = [NewTask(2, lane, [Item(n, b"")], now_ms()) for n, lane in enumerate("ab")]
    first = raw.settle(6, Settle(message.id, 1, new, lease=True))
    in_process.restart()
    raw = Raw(in_process)
    again = raw.settle(6, Settle(message.id, 1, new, lease=True))
    assert again == first
    assert [n for _, _, n in in_process.queue.stats().tasks] == [2]
    assert not raw.settle(7, Settle(message.id, 1)).stored


def test_settle_of_a_lost_lease_again(in_process):
    message = new_message()
    raw = Raw(in_process)
    raw.put(5, message, lease=False)
    assert not raw.settle(6, Settle(message.id, 1)).stored
    raw.put(7, new_message())
    in_process.restart()
    assert not Raw(in_process).settle(6, Settle(message.id, 1)).stored


def test_refused_stays_refused_when_repeated(in_process, monkeypatch):
    message = new_message()
    raw = Raw(in_process)
    monkeypatch.setattr(in_process.queue.pressure, "full", "bytes")
    in_process.queue._space_at = 1 << 60
    assert raw.put(5, message).refused is Refusal.FULL
    monkeypatch.undo()
    assert raw.put(6, new_message()).refused is None
    in_process.restart()
    raw = Raw(in_process)
    assert raw.welcome.last == 6
    assert raw.put(5, message).refused is Refusal.FULL
    assert raw.put(7, message).refused is None
    assert in_process.queue.stats().messages == 2


def test_done_requests_are_forgotten(in_process):
    raw = Raw(in_process)
    for number in range(5, 8):
        assert raw.put(number, new_message(), b"wrong").refused is Refusal.INVALID
    raw.ask(protocol.Put(8, 6, new_message(), True), protocol.PutAnswer, b"body")
    with in_process.store.env.begin() as txn:
        record = txn.get(b"c" + CLIENT, db=in_process.store.dbs["state"])
    last, unusual, _ = msgspec.msgpack.decode(record[1:], strict=False)
    assert (last, unusual) == (8, {7: "invalid"})


def test_claim_with_a_mark_survives_the_next_death(in_process):
    raw = Raw(in_process)
    message = new_message()
    raw.put(5, message)
    in_process.restart()
    raw = Raw(in_process, held=[protocol.Claim(message.id, 1, True), protocol.Claim(b"x" * 12, 1, False)])
    assert raw.welcome.granted == [True, False]
    raw.die()
    (task,) = settle_everything(in_process)
    assert task.maybe


def test_a_task_is_claimed_by_one(in_process):
    raw = Raw(in_process)
    message = new_message()
    raw.put(5, message)
    in_process.restart()
    claim = [protocol.Claim(message.id, 1, False)]
    other = Raw(in_process, b"o" * 16, claim)
    assert other.welcome.granted == [True]
    assert Raw(in_process, held=claim).welcome.granted == [False]


def test_lease_whose_answer_was_lost_is_not_maybe(in_process):
    raw = Raw(in_process)
    raw.put(5, new_message(), lease=False)
    in_process.queue.execute([(raw.session, protocol.Lease(6, 1, [2], 0), b"")], in_process.now())
    in_process.restart()
    raw = Raw(in_process)  # it is back, and claims nothing
    (task,) = raw.ask(protocol.Lease(7, 1, [2], 0), list[Task])
    assert not task.maybe
    in_process.restart()
    (task,) = Raw(in_process, b"o" * 16).ask(protocol.Lease(7, 1, [2], 0), list[Task])  # now its client is gone
    assert task.maybe


def test_the_same_client_twice_ends_the_old_connection(in_process):
    old = Raw(in_process)
    message = new_message()
    old.put(5, message)
    new = Raw(in_process, held=[protocol.Claim(message.id, 1, False)])
    assert new.welcome.granted == [True]
    assert old.session.broken
    old.die()
    assert new.settle(6, Settle(message.id, 1)).stored


# -- groups that fail ----------------------------------------------------------------------------------------------


def arrive(subject, requests):
    """Several requests of one client in one group -> (payloads or errors)."""
    raw = Raw(subject)
    sent = subject.queue.execute([(raw.session, r, b) for r, b in requests], subject.now())
    frames = Frames()
    answers = [protocol.parse_answer(c) for _, pieces in sent for c, _ in frames.feed(b"".join(pieces))]
    return raw, {a.number: a for a in answers}


def test_one_that_cannot_be_written_takes_no_other_with_it(in_process, monkeypatch):
    messages = [new_message(f"lane{n}") for n in range(5)]
    from ptt_queue.store import Transaction

    real = Transaction.put_chunks

    def put_chunks(self, id, first, blob):
        if id == messages[2].id:
            raise lmdb.MapFullError("no room")
        return real(self, id, first, blob)

    monkeypatch.setattr(Transaction, "put_chunks", put_chunks)
    raw, answers = arrive(in_process, [(protocol.Put(n + 5, 0, m, True), b"body") for n, m in enumerate(messages)])
    put = [msgspec.msgpack.decode(answers[n + 5].payload, type=protocol.PutAnswer).refused for n in range(5)]
    assert put == [None, None, Refusal.FAILED, None, None]
    assert in_process.queue.stats().messages == 4
    monkeypatch.undo()
    raw.die()
    raw = Raw(in_process)
    assert raw.put(7, messages[2]).refused is Refusal.FAILED  # it was told so, and stays so
    assert raw.put(20, messages[2]).refused is None
    raw.die()
    in_process.queue._retry_at = 0
    assert len(settle_everything(in_process)) == 5


@pytest.mark.slow
def test_commit_that_fails_undoes_all_in_memory(in_process, monkeypatch):
    from ptt_queue.store import Transaction

    with in_process.client() as client:
        (first,) = client.put(new_message("a"), b"body").leased
        waiting = new_message("b")
        client.put(waiting, b"body", lease=False)
        real, left = Transaction.commit, [2]

        def commit(self):
            if left[0]:
                left[0] -= 1
                raise lmdb.DiskError("EIO")
            real(self)

        monkeypatch.setattr(Transaction, "commit", commit)
        with pytest.raises(Exception, match="EIO"):  # the group, and then the request alone
            client.settle(Settle(first.message, first.number))
        assert client.extend([first]) == [True]
        assert client.settle(Settle(first.message, first.number)).stored
        left[0] = 1
        in_process.queue._retry_at = 0
        (task,) = client.lease(1, [2], wait=5)
        assert task.message == waiting.id
        assert client.settle(Settle(task.message, task.number)).stored
    assert in_process.queue.stats().messages == 0
    assert in_process.queue.stats().tasks == []


def test_full_map(tmp_path):
    subject = InProcess(str(tmp_path / "queue"))
    subject.close()
    subject.map_bytes = 1 << 20
    subject._open()
    body = os.urandom(20_000)
    with subject.client() as client:
        stored = []
        while (result := client.put(new_message(body=body), body, lease=False)).refused is None:
            stored.append(result)
        assert result.refused is Refusal.FAILED
        assert len(stored) > 20
        subject.queue._retry_at = 0
    done = settle_everything(subject)
    assert len(done) == len(stored)
    with subject.client() as client:
        assert client.put(new_message(body=body), body).refused is None
    subject.close()


def test_above_the_high_water_mark_settles_still_work(tmp_path):
    subject = InProcess(str(tmp_path / "queue"), msgspec.structs.replace(SETTINGS, marks=Marks(max_bytes=400_000)))
    body = os.urandom(20_000)
    with subject.client() as client:
        tasks = []
        while (result := client.put(new_message(f"{len(tasks)}", body), body)).refused is None:
            tasks += result.leased
            subject.queue._space_at = 0
        assert result.refused is Refusal.FULL
        for task in tasks:
            assert client.settle(Settle(task.message, task.number)).stored
        subject.queue._space_at = 0
        assert client.put(new_message(body=body), body).refused is None
    subject.close()


def test_too_little_free_disk(tmp_path):
    subject = InProcess(str(tmp_path / "queue"), msgspec.structs.replace(SETTINGS, marks=Marks(min_free_bytes=1 << 60)))
    with subject.client() as client:
        assert client.put(new_message(), b"body").refused is Refusal.FULL
    subject.close()


def test_our_own_fault_ends_no_process(in_process, monkeypatch):
    monkeypatch.setattr(in_process.queue.requests, "_store", lambda *_: 1 / 0)
    with in_process.client() as client:
        assert client.put(new_message(), b"body").refused is Refusal.FAILED
        monkeypatch.undo()
        assert client.put(new_message(), b"body").refused is None
    assert any("ZeroDivisionError" in f for f in in_process.failures)


def test_a_failure_does_not_make_the_process_spin(in_process, monkeypatch):
    """What nobody waits for is tried again after a pause, also what has long been due."""
    queue = in_process.queue
    monkeypatch.setattr("ptt_queue.files.free_bytes", lambda _: 1 / 0)
    with in_process.client() as client:
        client.stats()
        queue._minute_at = queue._space_at = 0
        queue.execute([], in_process.now())
        assert in_process.failures
        assert queue.next_wake(in_process.now()) > in_process.now() + 500
        queue.execute([], in_process.now())
        assert queue.next_wake(in_process.now()) > in_process.now() + 500
        monkeypatch.undo()
        assert client.put(new_message(), b"body").refused is None


# -- bodies in parts -----------------------------------------------------------------------------------------------


def chunks(subject):
    with subject.store.env.begin() as txn:
        return txn.stat(subject.store.dbs["bodies"])["entries"]


def collect(subject):
    for _ in range(20):
        subject.queue.execute([], subject.now())


@pytest.mark.parametrize("restart", [False, True])
def test_what_was_staged_by_the_dead_is_collected(in_process, restart):
    raw = Raw(in_process)
    raw.stage(b"i" * 12, 0, b"x" * PART_BYTES)
    raw.stage(b"i" * 12, PART_CHUNKS, b"x" * PART_BYTES)
    assert chunks(in_process) == 2 * PART_CHUNKS
    in_process.restart() if restart else raw.die()
    collect(in_process)
    assert chunks(in_process) == 0
    with in_process.store.env.begin() as txn:
        assert txn.get(b"o" + b"i" * 12, db=in_process.store.dbs["state"]) is None


def test_staged_again_after_a_death(in_process):
    size = PART_BYTES + 10
    message = msgspec.structs.replace(new_message(), size=size, staged=True)
    raw = Raw(in_process)
    raw.stage(message.id, 0, b"x" * PART_BYTES)
    raw.die()
    raw = Raw(in_process)
    raw.stage(message.id, 0, b"x" * PART_BYTES)
    raw.stage(message.id, PART_CHUNKS, b"y" * 10)
    assert raw.put(5, message, b"").refused is None
    collect(in_process)
    assert chunks(in_process) == PART_CHUNKS + 1
    raw.die()
    in_process.restart()
    collect(in_process)
    with in_process.client() as client:
        (task,) = client.lease(1, [2])
        assert client.body(task) == b"x" * PART_BYTES + b"y" * 10


def test_parts_sent_again_for_a_put_that_was_executed_and_settled(in_process):
    message = msgspec.structs.replace(new_message(), size=PART_BYTES, staged=True)
    raw = Raw(in_process)
    raw.stage(message.id, 0, b"x" * PART_BYTES)
    assert raw.put(5, message, b"").refused is None
    raw.die()
    assert len(settle_everything(in_process)) == 1
    raw = Raw(in_process)
    raw.stage(message.id, 0, b"x" * PART_BYTES)
    assert raw.put(5, message, b"").refused is None
    collect(in_process)
    assert (chunks(in_process), in_process.queue.stats().messages) == (0, 0)


def test_put_of_a_body_that_is_not_there_whole(in_process):
    raw = Raw(in_process)
    message = msgspec.structs.replace(new_message(), size=PART_BYTES + 1, staged=True)
    assert raw.put(5, message, b"").refused is Refusal.INVALID
    raw.stage(message.id, 0, b"x" * PART_BYTES)
    assert raw.put(6, message, b"").refused is Refusal.INVALID
    collect(in_process)
    assert chunks(in_process) == 0


def test_parts_do_not_touch_a_stored_body(in_process):
    raw = Raw(in_process)
    message = new_message()
    raw.put(5, message)
    other = Raw(in_process, b"o" * 16)
    other.stage(message.id, 0, b"evil" * 100)
    other.die()
    collect(in_process)
    with in_process.client() as client:
        raw.die()
        (task,) = client.lease(1, [2])
        assert client.body(task) == b"body"


# -- after a start -------------------------------------------------------------------------------------------------


def test_backlog_waits_for_the_workers_to_claim(tmp_path):
    time = [1_800_000_000.0]
    settings = msgspec.structs.replace(SETTINGS, clients=2)
    subject = InProcess(str(tmp_path / "queue"), settings, clock=lambda: time[0])
    raw = Raw(subject)
    other = Raw(subject, b"o" * 16)
    message = msgspec.structs.replace(new_message(), tasks=[NewTask(2, "a", [Item(1, b"")], 0)])
    assert len(raw.put(5, message).granted) == 1
    subject.restart()
    other = Raw(subject, b"o" * 16)
    lease = protocol.Lease(9, 10, [2], 0)
    assert other.ask(lease, list) == []
    raw = Raw(subject, held=[protocol.Claim(message.id, 1, False)])
    assert raw.welcome.granted == [True]
    assert other.ask(lease, list) == []
    raw.die()
    assert other.ask(lease, list) == []  # one is missing again
    time[0] += 3
    subject.queue.execute([], subject.now())
    assert len(other.ask(lease, list)) == 1
    subject.close()


@pytest.mark.parametrize("step", [-7200, 7200])
def test_clock_that_is_set(tmp_path, step):
    time = [1_800_000_000.0]
    subject = InProcess(str(tmp_path / "queue"), msgspec.structs.replace(SETTINGS, clients=1), clock=lambda: time[0])
    raw = Raw(subject)
    raw.session.wants_leases = False
    request = protocol.Lease(9, 10, [2], 5000)
    assert subject.queue.execute([(raw.session, request, b"")], subject.now()) == []
    time[0] += step
    subject.queue.clock_set(step * 1000)
    assert subject.queue.execute([], subject.now()) == []
    time[0] += 6
    assert len(subject.queue.execute([], subject.now())) == 1
    assert not subject.queue._claiming(subject.now())
    subject.close()


@pytest.mark.slow
def test_many_lanes_in_little_memory(tmp_path):
    """Lanes that do not fit are found again by skipping, also after a start; held ones are not in the way."""
    time = [1_800_000_000.0]
    settings = Settings(limited=(2,), limit=GroupLimit(3), max_lanes=20)
    subject = InProcess(str(tmp_path / "queue"), settings, clock=lambda: time[0])
    with subject.client() as client:
        messages = [
            msgspec.structs.replace(
                new_message(), tasks=[NewTask(2, f"lane{n}", [], 0, state=State.HELD if n % 10 == 9 else State.WAITING)]
            )
            for n in range(120)
        ]
        client.put_all([(m, b"body") for m in messages], lease=False)
        assert len(subject.queue.leasing.dispatcher.lanes) == 20
        seen = set()
        for half in (50, 108):
            while len(seen) < half:
                for task in client.lease(10, [2]):
                    assert task.lane not in seen
                    seen.add(task.lane)
                    assert client.settle(Settle(task.message, task.number)).stored
                time[0] += 0.5
                assert len(subject.queue.leasing.dispatcher.lanes) <= 20
                assert time[0] < 1_800_000_000 + 3000
            if half == 50:
                subject.restart()
        assert client.lease(1, [2]) == []
        assert subject.queue.stats().messages == 12
    subject.close()


def test_damage_is_set_aside(in_process):
    messages = [new_message("damaged"), new_message("missing"), new_message("sound")]
    with in_process.client() as client:
        client.put_all([(m, b"body") for m in messages], lease=False)
        with in_process.store.env.begin(write=True, db=in_process.store.dbs["records"]) as txn:
            txn.put(keys.record_key(messages[0].id, 1), b"\0garbage")
            txn.delete(keys.record_key(messages[1].id, 0))
        leased = []
        while tasks := client.lease(10, [2]):
            leased += tasks
        assert [t.message for t in leased] == [messages[2].id]
        in_process.queue._space_at = 0
        assert client.stats().damaged == 2
        assert client.put(new_message(), b"body").refused is None


def test_clients_that_are_long_gone_are_forgotten(tmp_path):
    time = [1_800_000_000.0]
    subject = InProcess(str(tmp_path / "queue"), clock=lambda: time[0])
    raw = Raw(subject)
    raw.put(5, new_message())
    raw.die()
    time[0] += 3600
    subject.queue.execute([], subject.now())
    assert Raw(subject).welcome.last == 5
    Raw(subject, b"o" * 16).die()
    subject.restart()
    time[0] += 25 * 3600
    subject.queue.execute([], subject.now())
    assert Raw(subject).welcome.last == 0
    subject.close()


def test_results_are_the_shipped_types(in_process):
    with in_process.client() as client:
        result = client.put(new_message(due=now_ms() + HOUR), b"body")
        assert result == PutResult(None, [])
        assert client.settle(Settle(b"x" * 12, 1)) == SettleResult(False, [])


def test_only_what_was_written_counts_as_a_commit(in_process):
    with in_process.client() as client:
        client.put(new_message(), b"body", lease=False)
        before = client.stats()
        client.list(Filter())
        assert client.stats().commits == before.commits
        client.put(new_message(), b"body", lease=False)
        after = client.stats()
        assert (after.commits, sum(after.commit_counts)) == (before.commits + 1, before.commits + 1)
