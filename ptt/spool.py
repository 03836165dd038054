"""The adapter between mail and ``ptt_queue``: one connection of a worker to the queue process, shared by its greenlets.

All requests of one turn of the loop leave in one write. While the queue process is away requests wait, and are
repeated when it is back; what is leased here is claimed again then (``ptt_queue.link`` has the rules, this module
only the greenlets and the socket).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import gevent
import gevent.event
import gevent.lock
from gevent import socket
from ptt_queue.calls import Call
from ptt_queue.errors import ProtocolError, QueueError
from ptt_queue.link import Link, Pieces
from ptt_queue.protocol import MAX_UNANSWERED, PART_CHUNKS
from ptt_queue.types import GroupLimit, NewMessage, PutResult, Settle, SettleResult, SlotLimit, Task, Trouble

from ptt.log import Log
from ptt.metrics import Counters
from ptt.net.rpc import connect_unix

TIMEOUT_SECONDS = 30.0  # for a put or a part of a body, with reconnects; then the caller answers 451
SETTLE_SECONDS = 120.0  # a settle has nobody who waits for it at the other end
LEASE_WAIT_SECONDS = 20.0  # of a long poll
CONNECT_SECONDS = 5.0
PAUSE_SECONDS = 0.05  # between attempts to connect
WATCH_SECONDS = 0.25  # how often time-outs are looked at
OUT_BYTES = 128 * 1024  # of parts of large bodies, waiting to be written: what is small waits behind them
RECV_BYTES = 256 * 1024
RETRY_SECONDS = 1.0  # before a settle that could not be written is asked for again

AWAY, GREETING, READY = range(3)


class SpoolUnavailable(Exception):
    """The queue process was away, or did not answer in time. Submission answers 451; a lease is kept or returns."""


class Spool:
    """The queue as a worker sees it. Safe for many greenlets. ``path``: of the queue process's socket."""

    def __init__(
        self,
        path: str,
        log: Log,
        counters: Counters,
        timeout: float = TIMEOUT_SECONDS,
        settle_timeout: float = SETTLE_SECONDS,
    ) -> None:
        self.path = path
        self.log = log
        self.counters = counters
        self.timeout = timeout
        self.settle_timeout = settle_timeout
        self.link = Link()
        self.on_wanted: Callable[[Sequence[str]], None] = lambda _: None  # others want slots of these names
        self._state = AWAY
        self._refusing_since = 0.0  # monotonic; 0: it does not
        self._generation = 0  # of the connection
        self._socket: socket.socket | None = None
        self._sender: socket.socket | None = None
        self._out: list[Pieces] = []
        self._out_bytes = 0
        self._flushing = False  # a flush is scheduled, or a greenlet writes
        self._draining = False  # a greenlet writes: the socket was full
        self._room = gevent.event.Event()
        self._slots = gevent.lock.Semaphore(MAX_UNANSWERED)
        self._greenlets = [gevent.spawn(self._keep_connected), gevent.spawn(self._watch)]

    @property
    def connected(self) -> bool:
        return self._state == READY

    @property
    def refusing(self) -> str:
        """Why the queue takes no messages for now (one of ``ptt_queue.pressure.MARKS``), or "".

        The queue process tells when that changes, so asking costs nothing: no message need be read to be refused.
        """
        return self.link.refusing

    @property
    def refusing_seconds(self) -> float:
        """For how long it has refused; 0.0 when it does not."""
        return time.monotonic() - self._refusing_since if self._refusing_since else 0.0

    def close(self) -> None:
        """What is leased returns to the queue; who waits gets SpoolUnavailable."""
        gevent.killall(self._greenlets)
        self._lost()
        for call in list(self.link.calls.values()):
            self._fail(call, "closed")

    # -- the verbs -------------------------------------------------------------------------------------------------

    def put(self, message: NewMessage, body: bytes, lease: bool = True) -> PutResult:
        """Store a message. Returns when it is on stable storage, or refused. Raises SpoolUnavailable."""
        result: PutResult = self._ask(self.link.put(message, body, lease), self.timeout)
        return result

    def lease(self, most: int, stages: Sequence[int], wait: float = LEASE_WAIT_SECONDS) -> list[Task]:
        """At most ``most`` tasks that are ready in these stages. Waits ``wait`` seconds for the first; then [].

        Raises SpoolUnavailable.
        """
        call = self.link.lease(most, stages, int(wait * 1000))
        tasks: list[Task] = self._ask(call, wait + self.timeout)
        return tasks

    def body(self, task: Task) -> bytes:
        """The whole body. Raises SpoolUnavailable; ValueError when it is not there whole."""
        parts: list[bytes] = []
        left = task.size
        while left > 0:
            part: bytes = self._ask(self.link.body(task.message, len(parts) * PART_CHUNKS), self.timeout)
            if not part:
                raise ValueError(f"{left} of {task.size} bytes of a body are missing")
            parts.append(part)
            left -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def settle(self, settle: Settle, bodies: Sequence[bytes] = ()) -> SettleResult:
        """End a lease, and store ``settle.puts`` with their ``bodies`` in the same transaction.

        Raises SpoolUnavailable; the settlement may be executed all the same if the queue process comes back.
        """
        deadline = time.monotonic() + self.settle_timeout
        while True:
            call = self.link.settle(settle, bodies)
            try:
                result: SettleResult = self._ask(call, deadline - time.monotonic())
                return result
            except QueueError as e:  # it could not be written: the disk is full, or worse
                self.log.error("not settled", reason=str(e))
                if time.monotonic() + RETRY_SECONDS > deadline:
                    if call.task is not None:
                        self._write(self.link.give_back([call.task.task]))
                    raise SpoolUnavailable(str(e)) from e
            gevent.sleep(RETRY_SECONDS)

    def mark(self, task: Task) -> None:
        """One way, no waiting for an answer: the final dot is about to leave.

        The mark is in the kernel's hands when this returns, so it outlives this process. (It waits only while the
        queue process takes nothing; while that is away it is said with the greeting of the next connection.)
        """
        self._write(self.link.mark(task))
        deadline = time.monotonic() + self.timeout
        while self._draining and self._state == READY and time.monotonic() < deadline:
            self._room.clear()
            self._room.wait(WATCH_SECONDS)
        if self._state == READY:
            self._flush(self._generation)

    def assign(self, lane: str, group: str, limit: tuple[int, float, int]) -> None:
        """One way, no waiting: the lane belongs to this group. ``limit``: as in ``GroupLimit``."""
        self._write(self.link.assign(lane, group, GroupLimit(*limit)))

    def give_back(self, tasks: Sequence[Task]) -> None:
        """One way, no waiting: these leases end without an attempt."""
        self._write(self.link.give_back(tasks))

    def report(self, task: Task, trouble: str, pause: float) -> None:
        """One way, before the settle: the task's group has met with trouble, and rests for ``pause`` seconds."""
        self._write(self.link.report(task, Trouble(trouble), int(pause * 1000)))

    def open_slots(self, slots: Sequence[tuple[str, int, float]], wait: float) -> bool:
        """Is there one slot of each of these (as in ``SlotLimit``) within ``wait`` s? Ours until ``close_slots``."""
        call = self.link.open_slots([SlotLimit(*slot) for slot in slots], int(wait * 1000))
        with contextlib.suppress(SpoolUnavailable):
            return bool(self._ask(call, wait + self.timeout))
        return False

    def close_slots(self, names: Sequence[str]) -> None:
        """One way, no waiting: one slot less of each."""
        self._write(self.link.close_slots(names))

    # -- calls -----------------------------------------------------------------------------------------------------

    def _ask(self, call: Call, timeout: float) -> Any:
        changing = call.kind in ("put", "settle")
        if changing and not self._slots.acquire(timeout=timeout):
            raise SpoolUnavailable("too many requests wait for the queue process")
        answer = gevent.event.AsyncResult()
        call.driver = (answer, time.monotonic() + timeout)
        try:
            if call.bodies:
                self._send_parts(call)
            pieces = self.link.send(call)
            if self._state != AWAY:
                self._write(pieces, call)
        except BaseException:
            if changing:
                self._slots.release()
            raise
        try:
            return answer.get()
        except BaseException:  # who asked is killed, or has a time-out of its own
            self._abandon(call)
            raise

    def _send_parts(self, call: Call) -> None:
        """A large body, part by part between the others' requests. It is begun again when the connection is lost."""
        deadline = call.driver[1]
        while self._state != AWAY:
            generation = self._generation
            for pieces in self.link.parts(call):
                self._write(pieces)
                while self._out_bytes > OUT_BYTES and generation == self._generation:
                    self._room.clear()
                    if not self._room.wait(deadline - time.monotonic()):
                        raise SpoolUnavailable("the queue process takes nothing")
                if generation != self._generation:
                    break
            if generation == self._generation:
                return

    def _answered(self, call: Call) -> None:
        if call.kind in ("put", "settle"):
            self._slots.release()
        if call.driver is None:  # the hello of this connection
            return
        if call.abandoned:
            self._clean_up(call)
        elif call.error is not None:
            call.driver[0].set_exception(call.error)
        else:
            call.driver[0].set(call.result)

    def _clean_up(self, call: Call) -> None:
        """Nobody took this answer: what it leased returns; a message that nobody was told of goes again."""
        if call.error is not None:
            return
        if call.kind == "lease":
            self.give_back(call.result)
        elif call.kind == "put":
            if len(call.result.leased) == len(call.what[0].tasks):
                for task in call.result.leased:
                    gevent.spawn(self._forget, task)
            else:
                self.give_back(call.result.leased)
        elif call.kind == "settle":
            self.give_back(call.result.leased)
        elif call.kind == "open" and call.result:
            self.close_slots([slot.name for slot in call.what[0]])

    def _forget(self, task: Task) -> None:
        with contextlib.suppress(SpoolUnavailable):
            self.settle(Settle(task.message, task.number))

    def _abandon(self, call: Call) -> None:
        if not (call.done or call.abandoned) and self.link.abandon(call) and call.kind in ("put", "settle"):
            self._slots.release()

    def _fail(self, call: Call, why: str) -> None:
        if call.driver is not None and not call.abandoned:
            self._abandon(call)
            call.driver[0].set_exception(SpoolUnavailable(f"{call.kind}: {why}"))

    def _watch(self) -> None:
        """Time-outs: one look at all calls costs less than a timer for each."""
        while True:
            gevent.sleep(WATCH_SECONDS)
            now = time.monotonic()
            for call in list(self.link.calls.values()):
                if call.driver is not None and call.driver[1] < now:
                    self._fail(call, "no answer from the queue process in time")

    # -- the wire --------------------------------------------------------------------------------------------------

    def _write(self, pieces: Pieces, call: Call | None = None) -> None:
        """Send with all else of this turn of the loop. What is written while the queue process is away is dropped:
        the link knows what to say again."""
        if self._state == AWAY:
            return
        if call is not None:
            call.sent = True
        self._out.append(pieces)
        self._out_bytes += sum(map(len, pieces))
        if self._state == READY and not self._flushing:
            self._flushing = True
            gevent.get_hub().loop.run_callback(self._flush, self._generation)

    def _flush(self, generation: int) -> None:
        """Runs in the hub: sends what the socket takes, leaves the rest to a greenlet."""
        if generation != self._generation:
            return
        if not self._out or self._draining:  # a mark took all that there was
            self._flushing = self._draining
            return
        data = self._collect()
        sent = 0
        try:
            if self._sender is not None:
                sent = self._sender.send(data)
        except BlockingIOError:
            pass
        except OSError:  # the reader sees it, too
            sent = len(data)
        if sent < len(data) or self._out:
            self._flushing = self._draining = True
            gevent.spawn(self._drain, memoryview(data)[sent:], generation)
        else:
            self._flushing = False
            self._room.set()

    def _collect(self) -> bytes:
        """What is to be written next, at most some OUT_BYTES in one piece."""
        pieces: list[bytes | memoryview] = []
        size = taken = 0
        for some in self._out:
            pieces += some
            size += sum(map(len, some))
            taken += 1
            if size > OUT_BYTES:
                break
        del self._out[:taken]
        self._out_bytes -= size
        return b"".join(pieces)

    def _drain(self, data: bytes | memoryview, generation: int) -> None:
        try:
            while self._socket is not None and generation == self._generation:
                self._socket.sendall(data)
                self._room.set()
                if not self._out or generation != self._generation:
                    break
                data = self._collect()
        except OSError as e:
            if generation == self._generation:
                self._lost(str(e))
        finally:
            if generation == self._generation:
                self._flushing = self._draining = False
                self._room.set()

    def _keep_connected(self) -> None:
        told = False
        while True:
            try:
                sock = connect_unix(self.path, CONNECT_SECONDS)
            except OSError as e:
                if not told:
                    self.log.warning("queue process away", reason=e.strerror or str(e))
                told = True
                gevent.sleep(PAUSE_SECONDS)
                continue
            try:
                self._serve(sock)
            except (OSError, ProtocolError) as e:
                self.log.warning("queue connection lost", reason=str(e))
            self._lost()
            told = False
            gevent.sleep(PAUSE_SECONDS)

    def _serve(self, sock: socket.socket) -> None:
        """One connection, from its greeting to its end."""
        self._socket = sock
        self._sender = sock.dup()
        self._sender.settimeout(0.0)
        sock.settimeout(self.timeout)
        self._state = GREETING
        greeting = self.link.greeting()
        first = next(greeting)  # what is asked from here on is sent behind the greeting
        for pieces in (first, *greeting):
            sock.sendall(b"".join(pieces))
        sock.settimeout(None)
        self._state = READY
        if self._out:
            self._flushing = True
            gevent.get_hub().loop.run_callback(self._flush, self._generation)
        while data := sock.recv(RECV_BYTES):
            for call in self.link.receive(data):
                self._answered(call)
            if self.link.wanted:
                names = [self.link.wanted.popitem()[0] for _ in range(len(self.link.wanted))]
                self.on_wanted(names)
            if bool(self._refusing_since) != bool(self.link.refusing):
                self._refusing_since = time.monotonic() if self.link.refusing else 0.0
        raise ConnectionError("closed by the queue process")

    def _lost(self, _reason: str = "") -> None:
        self._state = AWAY
        self._generation += 1
        self._out.clear()
        self._out_bytes = 0
        self._flushing = self._draining = False
        self._room.set()
        for sock in (self._socket, self._sender):
            if sock is not None:
                sock.close()
        self._socket = self._sender = None
