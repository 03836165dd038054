"""The worker's side of the queue: gevent, through the sockets of a real queue process that is killed now and then."""

import contextlib
import os
import pathlib
import signal
import subprocess
import sys

import gevent
import pytest
from ptt_queue.client import QueueClient
from ptt_queue.types import Item, NewMessage, NewTask, Refusal, Settle, State

from ptt.log import Log
from ptt.message import new_id
from ptt.metrics import Counters
from ptt.spool import Spool, SpoolUnavailable

LIMIT = 500


def now_ms():
    import time

    return int(time.time() * 1000)


def message(body=b"body", lane="example.net", due=0, stage=2):
    now = now_ms()
    return NewMessage(new_id(now), b"meta", [NewTask(stage, lane, [Item(1, b"one")], due or now)], len(body), now)


class World:
    def __init__(self, directory: pathlib.Path) -> None:
        self.directory = directory
        self.socket = str(directory / "queue.sock")
        self.arguments: list[str] = []
        self.process: subprocess.Popen[bytes] | None = None
        self.spools: list[Spool] = []
        self.lines, self.log_fd = os.pipe()

    def start(self) -> None:
        limits = ["--limited", "2", "--in-flight", str(LIMIT)]
        command = [
            sys.executable,
            "-m",
            "ptt_queue",
            str(self.directory / "queue"),
            self.socket,
            *limits,
            *self.arguments,
        ]
        self.process = subprocess.Popen(command)

    def kill(self, number=signal.SIGKILL) -> None:
        if self.process is not None:
            self.process.send_signal(number)
            self.process.wait(10)
            self.process = None

    def spool(self, **more) -> Spool:
        spool = Spool(self.socket, Log("test", fd=self.log_fd), Counters(), **more)
        self.spools.append(spool)
        return spool

    def admin(self) -> QueueClient:
        return QueueClient(self.socket)

    def close(self) -> None:
        for spool in self.spools:
            spool.close()
        self.kill()
        os.close(self.lines)
        os.close(self.log_fd)


@pytest.fixture
def world(tmp_path):
    world = World(tmp_path)
    world.start()
    yield world
    world.close()


def eventually(condition, seconds=10):
    with gevent.Timeout(seconds):
        while not condition():
            gevent.sleep(0.005)


@pytest.mark.slow
def test_put_lease_body_settle(world):
    spool = world.spool()
    first = spool.put(message(), b"body").leased[0]
    assert spool.body(first) == b"body"
    assert spool.settle(Settle(first.message, first.number)).stored
    assert not spool.settle(Settle(first.message, first.number)).stored
    spool.put(message(stage=1), b"body", lease=False)
    (task,) = spool.lease(10, [1, 2])
    moved = spool.settle(Settle(task.message, task.number, [NewTask(2, "a", task.items, now_ms())], b"sig", lease=True))
    assert [(t.lane, t.prefix) for t in moved.leased] == [("a", b"sig")]
    bounce = message(b"bounce", "b")
    assert spool.settle(Settle(task.message, moved.leased[0].number, puts=[bounce]), [b"bounce"]).stored
    (task,) = spool.lease(10, [1, 2])
    assert (task.message, spool.body(task)) == (bounce.id, b"bounce")
    assert spool.put(bounce, b"bounce").refused is Refusal.DUPLICATE


@pytest.mark.slow
def test_lease_waits_until_there_is_something(world):
    spool = world.spool()
    leased = gevent.spawn(spool.lease, 10, [2], 20)
    spool.put(message(), b"body", lease=False)
    assert len(leased.get(timeout=10)) == 1
    assert spool.lease(10, [2], wait=0) == []


@pytest.mark.slow
def test_concurrent_callers_share_writes_and_commits(world):
    spool = world.spool()
    spool.put(message(), b"body")
    with world.admin() as admin:
        before = admin.stats().commits
        puts = [gevent.spawn(spool.put, message(), b"body") for _ in range(400)]
        gevent.joinall(puts, raise_error=True, timeout=20)
        assert {p.value.refused for p in puts} == {None}
        assert admin.stats().commits - before < 100


@pytest.mark.slow
def test_large_bodies_and_small_ones_together(world):
    spool = world.spool()
    large = [os.urandom(21 << 20), os.urandom(5 << 20)]
    puts = [gevent.spawn(spool.put, message(b), b) for b in large]
    puts += [gevent.spawn(spool.put, message(), b"body") for _ in range(50)]
    gevent.joinall(puts, raise_error=True, timeout=30)
    tasks = [p.value.leased[0] for p in puts]
    assert [spool.body(t) == b for t, b in zip(tasks, large, strict=False)] == [True, True]
    bounce = message(large[0], "bounce")
    assert spool.settle(Settle(tasks[0].message, 1, puts=[bounce]), [large[0]]).stored
    (task,) = spool.lease(1, [2])
    assert spool.body(task) == large[0]


@pytest.mark.slow
def test_requests_wait_while_the_queue_process_is_away(world):
    spool = world.spool()
    task = spool.put(message(), b"body").leased[0]
    spool.assign("x", "site", (1, 0.0, 0))
    world.kill()
    eventually(lambda: not spool.connected)
    put = gevent.spawn(spool.put, message(), b"body")
    large = os.urandom(3 << 20)
    big = gevent.spawn(spool.put, message(large), large)
    settle = gevent.spawn(spool.settle, Settle(task.message, task.number))
    lease = gevent.spawn(spool.lease, 10, [2])
    world.start()
    assert len(put.get(timeout=20).leased) == 1
    assert spool.body(big.get(timeout=20).leased[0]) == large
    assert settle.get(timeout=20).stored
    assert [len(spool.put(message(lane="x"), b"body").leased) for _ in range(2)] == [1, 0]  # the group was told again
    lease.kill()


@pytest.mark.slow
def test_unavailable_after_the_time_out(world):
    world.kill()
    spool = world.spool(timeout=0.3, settle_timeout=0.3)
    waiting = message()
    with pytest.raises(SpoolUnavailable):
        spool.put(waiting, b"body")
    with pytest.raises(SpoolUnavailable):
        spool.settle(Settle(b"x" * 12, 1))
    with pytest.raises(SpoolUnavailable):
        spool.lease(1, [2], wait=0)
    world.start()
    eventually(lambda: spool.connected)
    with world.admin() as admin:
        assert admin.show(waiting.id) == []  # it was refused, so it is not stored


@pytest.mark.slow
def test_put_whose_caller_gave_up_is_taken_back(world):
    spool = world.spool()
    eventually(lambda: spool.connected)
    world.process.send_signal(signal.SIGSTOP)
    late = message()
    put = gevent.spawn(spool.put, late, b"body")
    eventually(lambda: any(c.sent for c in spool.link.calls.values()))
    gevent.sleep(0.01)
    put.kill()
    lease = gevent.spawn(spool.lease, 1, [2], 0.1)
    gevent.sleep(0.01)
    lease.kill()
    world.process.send_signal(signal.SIGCONT)
    eventually(lambda: not spool.link.calls)
    with world.admin() as admin:
        eventually(lambda: admin.stats().messages == 0)
        assert admin.stats().requests["put"] == 1


@pytest.mark.slow
def test_lease_whose_caller_gave_up_returns(world):
    spool = world.spool()
    lease = gevent.spawn(spool.lease, 1, [2])
    eventually(lambda: any(c.sent for c in spool.link.calls.values()))
    lease.kill()
    spool.put(message(), b"body", lease=False)
    (task,) = spool.lease(1, [2])
    assert not task.maybe


@pytest.mark.slow
def test_mark_outlives_the_worker_and_the_queue_process(world):
    spool = world.spool()
    marked, unmarked = (spool.put(message(lane=lane), b"body").leased[0] for lane in "ab")
    spool.mark(marked)
    spool.lease(1, [2], wait=0)
    world.kill()
    world.start()
    eventually(lambda: not spool.connected)
    eventually(lambda: spool.connected)
    spool.lease(1, [2], wait=0)  # the claims have arrived
    spool.close()
    other = world.spool()
    leased = []
    while len(leased) < 2:
        leased += other.lease(10, [2])
    assert {t.message: t.maybe for t in leased} == {marked.message: True, unmarked.message: False}


@pytest.mark.slow
def test_killed_again_and_again_nothing_is_lost_and_nothing_doubled(world):
    """Two workers put and deliver while the queue process is killed; what was delivered twice is marked so."""
    world.arguments = ["--clients", "2"]
    spools = [world.spool(), world.spool()]
    accepted: set[bytes] = set()
    delivered: dict[bytes, int] = {}
    stopping = []

    def deliver(spool, task):
        delivered[task.message] = delivered.get(task.message, 0) + 1
        assert not task.maybe
        assert delivered[task.message] == 1
        gevent.sleep(0)
        assert spool.settle(Settle(task.message, task.number)).stored

    def writer(spool, n):
        k = 0
        while not stopping:
            k += 1
            new = message(lane=f"lane{k % 7}")
            result = spool.put(new, b"body", lease=k % 3 > 0)
            assert result.refused is None
            accepted.add(new.id)
            for task in result.leased:
                deliver(spool, task)

    def leaser(spool):
        while not stopping or len(delivered) < len(accepted):
            for task in spool.lease(8, [2], wait=0.2):
                deliver(spool, task)

    greenlets = [gevent.spawn(writer, s, n) for s in spools for n in range(4)] + [
        gevent.spawn(leaser, s) for s in spools
    ]
    for _ in range(8):
        seen = len(delivered)
        eventually(lambda: len(delivered) > seen + 50)  # noqa: B023
        world.kill()
        world.start()
    stopping.append(True)
    gevent.joinall(greenlets, raise_error=True, timeout=30)
    assert all(g.dead for g in greenlets)
    assert set(delivered) == accepted
    with world.admin() as admin:
        assert admin.stats().messages == 0


@pytest.mark.slow
def test_the_worker_hears_that_the_queue_refuses(world):
    world.kill()
    world.arguments = ["--map-bytes", str(8 << 20)]
    world.start()
    filler, listener = world.spool(), world.spool()
    assert (listener.refusing, listener.refusing_seconds) == ("", 0.0)
    body, leased = b"x" * 100_000, []
    with gevent.Timeout(20):
        while not listener.refusing:
            result = filler.put(message(body), body)
            leased += result.leased
            gevent.sleep(0.01)  # others get their turn
        assert listener.refusing == "bytes"
        assert listener.refusing_seconds > 0
        for task in leased:
            filler.settle(Settle(task.message, task.number))
        while listener.refusing:
            gevent.sleep(0.01)
    assert listener.refusing_seconds == 0.0


def test_service_entry_point(tmp_path):
    """``python -m ptt.service.queue`` by hand: binds its own socket, serves, stops on SIGTERM with 0."""
    config = tmp_path / "ptt.toml"
    config.write_text('hostname = "test.example"\n[queue]\nmin_free_bytes = 1\n')
    command = [sys.executable, "-m", "ptt.service.queue", "--config", str(config)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    try:
        spool = Spool(str(tmp_path / "run" / "queue.sock"), Log("test", "error"), Counters())
        held = NewTask(2, "held", [Item(1, b"")], 0, state=State.HELD)
        one = message()
        result = spool.put(NewMessage(one.id, b"", [*one.tasks, held], 4, 1), b"body")
        assert [t.lane for t in result.leased] == ["example.net"]
        spool.close()
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        process.stderr.close()
        process.wait(10)
