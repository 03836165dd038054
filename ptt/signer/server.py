"""The key process's loop: one thread, epoll, Unix connections, frames in and out. Plain Python, no gevent.

Each turn reads what is ready on every connection, answers it, and writes. Several key processes accept on one
listener. So that a worker's connections come to lie on different ones, a process that has some waits a moment for each
before it takes another: one that has fewer is faster.
"""

from __future__ import annotations

import contextlib
import select
import signal
import socket
import time
from collections.abc import Callable, Sequence
from typing import Any

from ptt.net.frames import RECV_BYTES, Frames, frame, peer_uid

MAX_CONNECTIONS = 1024  # a worker opens one for each key process; more is a fault
ACCEPT_DELAY = 0.001  # seconds for each connection that this process has already
ACCEPT_DELAY_MAX = 0.02
FLUSH_SECONDS = 1.0  # at the end, for answers that a peer has not taken yet


class _Connection:
    """One peer: what came in part, and what it has not taken yet. While there is that, nothing more is read from it."""

    def __init__(self, sock: socket.socket, uid: int) -> None:
        self.sock = sock
        self.uid = uid
        self.frames = Frames()
        self.out = bytearray()
        self.blocked = False  # watched for its taking more, instead of for requests


class Server:
    """Serves until ``stop``. ``answer``: decoded request and its user's id -> answer; ValueError from it ends that
    connection.
    """

    def __init__(
        self, listeners: Sequence[socket.socket], answer: Callable[[Any, int], Any], uids: frozenset[int]
    ) -> None:
        self._answer = answer
        self._uids = uids
        self._listeners = {listener.fileno(): listener for listener in listeners}
        self._connections: dict[int, _Connection] = {}
        self._accept_at: float | None = None
        self._stopping = False
        self._epoll = select.epoll()
        self._woken, self._wake = socket.socketpair()
        for sock in (*listeners, self._woken, self._wake):
            sock.setblocking(False)
        for fd in (*self._listeners, self._woken.fileno()):
            self._epoll.register(fd, select.EPOLLIN)

    def stop_on(self, *signals: signal.Signals) -> None:
        """These signals end ``run`` after what is being answered. From the main thread only."""
        signal.set_wakeup_fd(self._wake.fileno())
        for number in signals:
            signal.signal(number, lambda *_: self.stop())

    def stop(self) -> None:
        self._stopping = True
        with contextlib.suppress(OSError):
            self._wake.send(b"s")

    def run(self) -> None:
        """Serve. Returns when stopped: what had arrived is answered, and written if the peers take it in time."""
        while not self._stopping:
            self._turn(None)
        self._accept_at = None
        for fd in self._listeners:
            self._epoll.unregister(fd)
        self._turn(0)
        end = time.monotonic() + FLUSH_SECONDS
        while any(c.out for c in self._connections.values()) and (left := end - time.monotonic()) > 0:
            self._turn(left)
        for connection in list(self._connections.values()):
            self._drop(connection)
        self._epoll.close()

    def _turn(self, timeout: float | None) -> None:
        if self._accept_at is not None:
            wait = max(0.0, self._accept_at - time.monotonic())
            timeout = wait if timeout is None else min(wait, timeout)
        for fd, events in self._epoll.poll(timeout):
            if fd in self._listeners:
                self._may_accept()
            elif fd == self._woken.fileno():
                with contextlib.suppress(OSError):
                    self._woken.recv(4096)
            else:
                self._serve(self._connections[fd], events)
        if self._accept_at is not None and time.monotonic() >= self._accept_at:
            self._accept()

    # -- connections ---------------------------------------------------------------------------------------

    def _may_accept(self) -> None:
        """Somebody wants to connect: now, or after the moment that gives a less busy process its turn."""
        if self._accept_at is not None:
            return
        delay = min(ACCEPT_DELAY * len(self._connections), ACCEPT_DELAY_MAX)
        if not delay:
            self._accept()
            return
        self._accept_at = time.monotonic() + delay
        self._listen(0)

    def _listen(self, events: int) -> None:
        for fd in self._listeners:
            self._epoll.modify(fd, events)

    def _accept(self) -> None:
        """Take one connection from each listener, if another process has not."""
        if self._accept_at is not None:
            self._accept_at = None
            self._listen(select.EPOLLIN)
        for listener in self._listeners.values():
            try:
                sock, _ = listener.accept()
            except OSError:  # taken by another process, or gone again
                continue
            uid = peer_uid(sock)
            if uid not in self._uids or len(self._connections) >= MAX_CONNECTIONS:
                sock.close()
                continue
            sock.setblocking(False)
            self._connections[sock.fileno()] = _Connection(sock, uid)
            self._epoll.register(sock.fileno(), select.EPOLLIN)

    def _serve(self, connection: _Connection, events: int) -> None:
        try:
            if connection.out:
                self._write(connection)
            elif events & select.EPOLLIN and not self._read(connection):
                self._drop(connection)
                return
            if events & (select.EPOLLHUP | select.EPOLLERR):
                self._drop(connection)
        except (OSError, ValueError):
            self._drop(connection)

    def _read(self, connection: _Connection) -> bool:
        """Answer what is there. False at the end of the stream. Raises OSError, ValueError."""
        try:
            data = connection.sock.recv(RECV_BYTES)
        except BlockingIOError:
            return True
        for request in connection.frames.feed(data):
            connection.out += frame(self._answer(request, connection.uid))
            self._write(connection)
        return bool(data)

    def _write(self, connection: _Connection) -> None:
        """Write what the peer takes now; watch for its taking the rest instead of for requests. Raises OSError."""
        with contextlib.suppress(BlockingIOError):
            del connection.out[: connection.sock.send(connection.out)]
        blocked = bool(connection.out)
        if blocked != connection.blocked:
            connection.blocked = blocked
            self._epoll.modify(connection.sock.fileno(), select.EPOLLOUT if blocked else select.EPOLLIN)

    def _drop(self, connection: _Connection) -> None:
        fd = connection.sock.fileno()
        if self._connections.pop(fd, None) is not None:
            self._epoll.unregister(fd)
            connection.sock.close()
