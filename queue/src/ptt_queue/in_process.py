"""A queue in the caller's own process, for tests: clients talk to it through memory."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from ptt_queue.client import QueueClient
from ptt_queue.protocol import Frames, parse_request
from ptt_queue.queue import Arrived, Queue, Settings
from ptt_queue.session import Session
from ptt_queue.store import Store
from ptt_queue.types import GroupLimit

LIMIT = 3
SETTINGS = Settings(limited=(2,), limit=GroupLimit(LIMIT))


class InProcess:
    """A queue without a process: clients talk to it through memory. ``clock``: seconds."""

    def __init__(self, path: str, settings: Settings = SETTINGS, clock: Callable[[], float] = time.time) -> None:
        self.path = path
        self.settings = settings
        self.clock = clock
        self.failures: list[str] = []
        self.map_bytes = 1 << 30
        self._connections: dict[Session, _Local] = {}
        self._open()

    def _open(self) -> None:
        self.store = Store(self.path, self.map_bytes)
        self.queue = Queue(self.store, self.settings, self.now(), self.failures.append)

    def now(self) -> int:
        return int(self.clock() * 1000)

    def client(self) -> QueueClient:
        return QueueClient(self.connect, timeout=20, leases=True)

    def connect(self) -> _Local:
        session = self.queue.connect()
        connection = self._connections[session] = _Local(self, session)
        return connection

    def restart(self) -> None:
        self.close()
        self._open()

    def close(self) -> None:
        for connection in self._connections.values():
            connection.dead = True
        self._connections.clear()
        self.store.close()

    def execute(self, arrived: list[Arrived]) -> None:
        for session, pieces in self.queue.execute(arrived, self.now()):
            if session in self._connections:
                self._connections[session].buffer += b"".join(pieces)

    def gone(self, session: Session) -> None:
        if self._connections.pop(session, None):
            self.queue.disconnect(session, self.now())


class _Local:
    """One connection, as a socket would be."""

    def __init__(self, subject: InProcess, session: Session) -> None:
        self.subject = subject
        self.session = session
        self.frames = Frames()
        self.buffer = b""
        self.dead = False

    def settimeout(self, seconds: float | None) -> None:
        pass

    def sendall(self, data: bytes | memoryview) -> None:
        if self.dead:
            raise BrokenPipeError("the queue is gone")
        arrived = [(self.session, parse_request(c), b) for c, b in self.frames.feed(bytes(data))]
        if arrived:
            self.subject.execute(list(arrived))

    def recv(self, most: int) -> bytes:
        if not self.buffer and not self.dead:
            self.subject.execute([])
        if self.session.broken:
            self.close()
        if not self.buffer and not self.dead:
            time.sleep(0.001)
            raise TimeoutError
        data, self.buffer = self.buffer[:most], self.buffer[most:]
        return data

    def close(self) -> None:
        self.dead = True
        self.subject.gone(self.session)


@contextlib.contextmanager
def in_process(path: str) -> Iterator[InProcess]:
    """A queue in this process, under ``path``."""
    subject = InProcess(path)
    try:
        yield subject
    finally:
        subject.close()
