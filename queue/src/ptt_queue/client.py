"""A blocking client: for commands and tests. One thread, one connection; connects again and repeats after a loss."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Any, Protocol

from ptt_queue.calls import Call
from ptt_queue.errors import ProtocolError, Unavailable
from ptt_queue.link import Link, Pieces
from ptt_queue.protocol import PART_CHUNKS, Ref
from ptt_queue.types import (
    Act,
    Acted,
    Amended,
    Entry,
    Filter,
    GroupLimit,
    NewMessage,
    Page,
    Place,
    PutResult,
    Settle,
    SettleResult,
    Stats,
    Suspension,
    Task,
)

RECV_BYTES = 256 * 1024
PAUSE_SECONDS = 0.05  # between attempts to connect
MAX_CALLS = 256  # sent before their answers are read
LEASE_SLACK_SECONDS = 5.0  # how much longer than its wait a lease may take

Tasks = list[Task]
Entries = list[Entry]
PutResults = list[PutResult]
SettleResults = list[SettleResult]
Flags = list[bool]
Parts = list[bytes]
Results = list[Any]  # (names, because ``list`` is a verb of the client)


class Connection(Protocol):
    """The part of a socket that the client needs. Raises OSError; ``recv`` TimeoutError."""

    def settimeout(self, seconds: float | None, /) -> None: ...
    def sendall(self, data: bytes | memoryview, /) -> None: ...
    def recv(self, most: int, /) -> bytes: ...
    def close(self) -> None: ...


def connect_unix(path: str, timeout: float) -> socket.socket:
    """Connect to a Unix socket whatever the length of its path (the kernel's limit is 108 bytes). Raises OSError."""
    directory = os.open(os.path.dirname(path) or ".", os.O_PATH | os.O_DIRECTORY)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.settimeout(timeout)
        sock.connect(f"/proc/self/fd/{directory}/{os.path.basename(path)}")
    except BaseException:
        sock.close()
        raise
    finally:
        os.close(directory)
    return sock


class QueueClient:
    """``where``: the path of the queue's socket, or what connects. ``timeout``: seconds for one call, with reconnects.

    All verbs raise Unavailable when the queue does not answer in time, RequestFailed when it could not do it.
    """

    def __init__(self, where: str | Callable[[], Connection], timeout: float = 10.0, leases: bool = False) -> None:
        self._connect: Callable[[], Connection]
        self._connect = (lambda: connect_unix(where, timeout)) if isinstance(where, str) else where
        self.timeout = timeout
        self.link = Link(leases)
        self._connection: Connection | None = None

    def __enter__(self) -> QueueClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """What is leased returns to the queue."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    # -- the queue's verbs: lists in, lists out ------------------------------------------------------------------

    def put_all(self, messages: Sequence[tuple[NewMessage, bytes]], lease: bool = True) -> PutResults:
        """Store messages with their bodies. Returns when they are on stable storage, or refused."""
        return self._run([self.link.put(message, body, lease) for message, body in messages])

    def settle_all(self, settles: Sequence[tuple[Settle, Sequence[bytes]]]) -> SettleResults:
        """End leases, each with the bodies of its ``puts``."""
        return self._run([self.link.settle(settle, bodies) for settle, bodies in settles])

    def lease(self, most: int, stages: Sequence[int], wait: float = 0.0) -> Tasks:
        """Lease at most ``most`` tasks; waits at most ``wait`` seconds for the first."""
        call = self.link.lease(most, stages, int(wait * 1000))
        tasks: Tasks = self._run([call], self.timeout + wait + LEASE_SLACK_SECONDS)[0]
        return tasks

    def extend(self, tasks: Sequence[Task]) -> Flags:
        """Which of these leases are still ours. A lease lasts as long as its connection."""
        found: Flags = self._run([self.link.extend(tasks)])[0]
        return found

    def put(self, message: NewMessage, body: bytes, lease: bool = True) -> PutResult:
        return self.put_all([(message, body)], lease)[0]

    def settle(self, settle: Settle, bodies: Sequence[bytes] = ()) -> SettleResult:
        return self.settle_all([(settle, bodies)])[0]

    def body(self, task: Task | Entry) -> bytes:
        """The whole body of a task's message."""
        parts: Parts = []
        size = 0
        while size < task.size:
            parts += self._run([self.link.body(task.message, len(parts) * PART_CHUNKS)])
            if not parts[-1]:
                break
            size += len(parts[-1])
        return b"".join(parts)

    def mark(self, task: Task) -> None:
        """One way: the attempt may succeed from now on."""
        self._tell(self.link.mark(task))

    def give_back(self, tasks: Sequence[Task]) -> None:
        """One way: these leases end without an attempt."""
        self._tell(self.link.give_back(tasks))

    def assign(self, lane: str, group: str, limit: GroupLimit) -> None:
        """One way: the lane belongs to this group, whose limits are these."""
        self._tell(self.link.assign(lane, group, limit))

    # -- the operator's ------------------------------------------------------------------------------------------

    def stats(self) -> Stats:
        found: Stats = self._run([self.link.stats()])[0]
        return found

    def list(self, filter: Filter) -> Page:
        found: Page = self._run([self.link.listing(filter)])[0]
        return found

    def show(self, message: bytes) -> Entries:
        found: Entries = self._run([self.link.show(message)])[0]
        return found

    def act(self, act: Act, messages: Sequence[bytes], tasks: Sequence[Ref] = ()) -> Acted:
        """Do it to all tasks of these messages, and to these tasks (message id, number), that nobody is at."""
        found: Acted = self._run([self.link.act(act, messages, tasks)])[0]
        return found

    def amend(self, settle: Settle, bodies: Sequence[bytes] = ()) -> Amended:
        """Settle a task that nobody is at, whatever its state. ``bodies``: of its puts, at most PART_BYTES in all."""
        found: Amended = self._run([self.link.amend(settle, bodies)])[0]
        return found

    def place(self, stage: int, lane: str) -> Place:
        """Where the dispatcher has this lane."""
        found: Place = self._run([self.link.place(stage, lane)])[0]
        return found

    def repair(self, tasks: Sequence[Ref], delete: bool) -> int:
        """Put damaged tasks back, or delete them; how many."""
        found: int = self._run([self.link.repair(tasks, delete)])[0]
        return found

    def suspend(self, what: Suspension) -> bool:
        """Lease nothing of this lane or group. False: it cannot be kept."""
        kept: bool = self._run([self.link.suspend(what)])[0]
        return kept

    def resume(self, name: str, site: bool = False) -> bool:
        """Was it suspended?"""
        was: bool = self._run([self.link.resume(name, site)])[0]
        return was

    def retry(self, messages: Sequence[bytes]) -> Acted:
        return self.act(Act.RETRY, messages)

    def hold(self, messages: Sequence[bytes]) -> Acted:
        return self.act(Act.HOLD, messages)

    def release(self, messages: Sequence[bytes]) -> Acted:
        return self.act(Act.RELEASE, messages)

    def delete(self, messages: Sequence[bytes]) -> Acted:
        return self.act(Act.DELETE, messages)

    # -- the wire ------------------------------------------------------------------------------------------------

    def _run(self, calls: Sequence[Call], timeout: float | None = None) -> Results:
        deadline = time.monotonic() + (self.timeout if timeout is None else timeout)
        for at in range(0, len(calls), MAX_CALLS):
            self._run_some(calls[at : at + MAX_CALLS], deadline)
        for call in calls:
            if call.error is not None:
                raise call.error
        return [c.result for c in calls]

    def _run_some(self, calls: Sequence[Call], deadline: float) -> None:
        for call in calls:
            if self._connection is None:
                self.link.send(call)  # it has its number now: the next connection's greeting sends it
            else:
                call.sent = True
                self._try([*self.link.parts(call), self.link.send(call)])
        while not all(c.done for c in calls):
            if time.monotonic() >= deadline:
                for call in calls:
                    self.link.abandon(call)
                raise Unavailable(f"{calls[0].kind}: no answer from the queue in time")
            self._advance(deadline)

    def _advance(self, deadline: float) -> None:
        """Connect if need be, and read once."""
        if self._connection is None:
            try:
                self._connection = self._connect()
            except OSError:
                time.sleep(max(0.0, min(PAUSE_SECONDS, deadline - time.monotonic())))
                return
            self._try(self.link.greeting())
        if self._connection is None:
            return
        try:
            self._connection.settimeout(max(0.001, deadline - time.monotonic()))
            data = self._connection.recv(RECV_BYTES)
            if not data:
                raise ConnectionError("closed")
            self.link.receive(data)
        except TimeoutError:
            return
        except (OSError, ProtocolError):
            self.close()

    def _tell(self, pieces: Pieces) -> None:
        if self._connection is not None:
            self._try([pieces])

    def _try(self, frames: Iterable[Pieces]) -> None:
        if self._connection is None:
            return
        try:
            self._connection.settimeout(self.timeout)
            for pieces in frames:
                for piece in pieces:
                    self._connection.sendall(piece)
        except OSError:
            self.close()
