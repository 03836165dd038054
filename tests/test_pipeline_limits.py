"""What a worker takes on at once: tasks in flight and bodies in memory stay bounded, and nothing waits for itself."""

from __future__ import annotations

from collections import deque
from typing import Any

import gevent
import gevent.event
import msgspec
import pytest
from ptt_queue.types import Item, NewTask, PutResult, Settle, SettleResult, Task

from ptt import pipeline as module
from ptt.config import Config
from ptt.log import Log
from ptt.message import Envelope, Recipient, Stage, encode
from ptt.metrics import Counters
from ptt.pipeline import Pipeline
from ptt.relay.outcome import Delivered
from ptt.signer.stage import Signed

ENVELOPE = Envelope("me@example.org", 1, "example.org")


class World:
    """The queue, the signer and the relay in one: tasks wait in a list, deliveries wait for ``go``."""

    def __init__(self) -> None:
        self.ready: deque[Task] = deque()
        self.arrived = gevent.event.Event()
        self.go = gevent.event.Event()
        self.delivered: list[str] = []
        self.loaded: list[int] = []
        self.under_way = self.most_under_way = 0
        self.number = 0

    def task(self, stage: int, lane: str, items: list[Item], size: int = 4) -> Task:
        self.number += 1
        meta = encode(ENVELOPE)
        return Task(b"i" * 12, self.number, stage, lane, items, 0, 0, b"", False, False, meta, b"", size, 1, 0, 1)

    def give(self, task: Task) -> None:
        self.ready.append(task)
        self.arrived.set()

    def _granted(self, tasks: list[NewTask], lease: bool) -> list[Task]:
        made = [self.task(t.stage, t.lane, t.items) for t in tasks]
        if lease:
            return made
        for one in made:
            self.give(one)
        return []

    def put(self, message: Any, body: bytes, lease: bool = True) -> PutResult:
        gevent.sleep(0)  # the commit: others ask meanwhile
        return PutResult(None, self._granted(message.tasks, lease))

    def lease(self, most: int, stages: Any) -> list[Task]:
        while not self.ready:
            self.arrived.clear()
            self.arrived.wait()
        return [self.ready.popleft() for _ in range(min(most, len(self.ready)))]

    def settle(self, settle: Settle, bodies: Any = ()) -> SettleResult:
        gevent.sleep(0)
        return SettleResult(True, self._granted(settle.tasks, settle.lease))

    def body(self, task: Task) -> bytes:
        self.loaded.append(task.size)
        return b"text"

    def sign(self, envelope: Envelope, shown: str, body: bytes) -> Signed:
        return Signed(b"", "example.org", ["s"])

    def deliver(self, lane: str, envelope: Envelope, shown: str, recipients: Any, content: Any, dot: Any) -> Any:
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        self.go.wait()
        self.under_way -= 1
        self.delivered.append(lane)
        return {item: Delivered("250 ok") for item, _ in recipients}

    def site_of(self, lane: str) -> None:
        return None


@pytest.fixture
def world() -> World:
    return World()


def pipeline(world: World, in_flight: int) -> Pipeline:
    config = msgspec.convert({"hostname": "mail.example.org", "relay": {"in_flight": in_flight}}, Config)
    log = Log("test", "error")
    return Pipeline(config, world, world, world, log, Counters())  # type: ignore[arg-type]


def recipients(message: int) -> list[Recipient]:
    return [Recipient(f"x@m{message}-{n}.test") for n in range(3)]


def test_messages_to_many_domains_do_not_wait_for_each_other_s_slots(world: World) -> None:
    one = pipeline(world, 2)
    running = gevent.spawn(one.run)
    world.go.set()
    accepts = [gevent.spawn(one.accept, bytes([n]) * 12, ENVELOPE, recipients(n), b"text") for n in range(6)]
    try:
        assert len(gevent.joinall(accepts, timeout=2)) == 6
        with gevent.Timeout(2, AssertionError("the worker stands still")):
            while len(world.delivered) < 18:
                gevent.sleep(0)
    finally:
        running.kill()
        one.stop(0.1)
    assert sorted(world.delivered) == sorted(f"m{m}-{n}.test" for m in range(6) for n in range(3))


def test_a_250_does_not_wait_for_deliveries_and_no_more_are_under_way_than_allowed(world: World) -> None:
    one = pipeline(world, 3)
    running = gevent.spawn(one.run)
    accepts = [gevent.spawn(one.accept, bytes([n]) * 12, ENVELOPE, recipients(n), b"text") for n in range(8)]
    try:
        assert len(gevent.joinall(accepts, timeout=2)) == 8
        world.go.set()
        with gevent.Timeout(2, AssertionError("the worker stands still")):
            while len(world.delivered) < 24:
                gevent.sleep(0)
    finally:
        running.kill()
        one.stop(0.1)
    assert world.most_under_way <= 3


def test_large_bodies_wait_for_room_in_memory_and_small_ones_pass(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "HELD_BYTES", 100)
    monkeypatch.setattr(module, "SMALL_BODY", 10)
    one = pipeline(world, 10)
    running = gevent.spawn(one.run)
    sizes = [60, 60, 60, 5, 5, 150]
    for n, size in enumerate(sizes):
        world.give(world.task(Stage.DELIVER, f"d{n}.test", [Item(1, encode(Recipient(f"x@d{n}.test")))], size))
    try:
        with gevent.Timeout(2, AssertionError("small ones wait")):
            while world.under_way < 3:
                gevent.sleep(0)
        for _ in range(20):
            gevent.sleep(0)
        assert sorted(world.loaded) == [5, 5, 60]
        world.go.set()
        with gevent.Timeout(2, AssertionError("large ones wait for ever")):
            while len(world.delivered) < len(sizes):
                gevent.sleep(0)
    finally:
        running.kill()
        one.stop(0.1)
    assert sorted(world.loaded) == sorted(sizes)
    assert one.held_bytes == 0
