"""Calls between our own processes over Unix sockets: msgpack frames, requests with ids, many at once.

The framing is ``ptt.net.frames``, which plain processes use without gevent. ``RpcClient`` is the gevent
side: many greenlets call, one connection carries; what is sent within one turn of the loop goes out in one
write. ``serve`` is the gevent server.

A request is ``[id, method, argument]``, its answer ``[id, error or None, result]``.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import gevent
import gevent.event
import gevent.lock
import gevent.pool
from gevent import socket

from ptt.net.frames import MAX_FRAME, RECV_BYTES, Frames, frame, peer_uid

__all__ = [
    "MAX_FRAME",
    "Frames",
    "Handler",
    "RpcClient",
    "RpcError",
    "RpcUnavailable",
    "accept",
    "connect_unix",
    "frame",
    "peer_uid",
    "serve",
]

MAX_CALLS = 256  # requests of one connection that a server works on at once
ACCEPT_PAUSE_SECONDS = 0.5  # after an accept that failed: no descriptors, no memory; it may work again


class RpcError(Exception):
    """The other process answered with an error (its text). Raised to the caller of ``call``."""


class RpcUnavailable(RpcError):
    """The other process could not be reached, or did not answer in time. The call may or may not have happened."""


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


class RpcClient:
    """Calls to one server. Connects when first needed and again after a loss; safe for many greenlets.

    ``timeout`` is in seconds, for one call with its connect.
    """

    def __init__(self, path: str, timeout: float = 10.0) -> None:
        self.path = path
        self.timeout = timeout
        self._socket: socket.socket | None = None
        self._connecting = gevent.lock.RLock()
        self._waiting: dict[int, gevent.event.AsyncResult] = {}
        self._next = 0
        self._out: list[bytes] = []
        self._flushing = False

    def call(self, method: str, argument: object = None, timeout: float | None = None) -> Any:
        """Send a request and wait for its answer. Raises RpcError, RpcUnavailable."""
        limit = self.timeout if timeout is None else timeout
        answer = gevent.event.AsyncResult()
        self._next += 1
        number = self._next
        try:
            self._connected(limit)
            self._waiting[number] = answer
            self._out.append(frame([number, method, argument]))
            if not self._flushing:
                self._flushing = True
                gevent.spawn(self._flush)
            error, result = answer.get(timeout=limit)
        except gevent.Timeout as e:
            raise RpcUnavailable(f"{method}: no answer in {limit} s") from e
        except OSError as e:
            raise RpcUnavailable(f"{method}: {e.strerror or e}") from e
        finally:
            self._waiting.pop(number, None)
        if error is not None:
            raise RpcError(error)
        return result

    def close(self) -> None:
        if self._socket is not None:
            self._lost(self._socket, "closed")

    def _connected(self, timeout: float) -> None:
        if self._socket is None:
            with self._connecting:  # yields while another greenlet connects
                if self._socket is None:
                    self._socket = connect_unix(self.path, timeout)
                    self._socket.settimeout(None)
                    gevent.spawn(self._read, self._socket)

    def _flush(self) -> None:
        try:
            while self._out and (sock := self._socket) is not None:
                out, self._out = self._out, []
                try:
                    sock.sendall(b"".join(out))  # yields: what is called meanwhile goes out in the next round
                except OSError as e:
                    self._lost(sock, str(e))
        finally:
            self._flushing = False

    def _read(self, sock: socket.socket) -> None:
        frames = Frames()
        try:
            while data := sock.recv(RECV_BYTES):
                for number, error, result in frames.feed(data):
                    if waiting := self._waiting.get(number):
                        waiting.set((error, result))
            self._lost(sock, "connection closed")
        except (OSError, ValueError) as e:
            self._lost(sock, str(e))

    def _lost(self, sock: socket.socket, reason: str) -> None:
        if self._socket is sock:
            self._socket = None
            self._out = []
            waiting, self._waiting = self._waiting, {}
            for answer in waiting.values():
                answer.set_exception(RpcUnavailable(reason))
        sock.close()


Handler = Callable[[Any], Any]


def serve(
    listener: socket.socket,
    methods: dict[str, Handler],
    uids: frozenset[int],
    restricted: dict[str, frozenset[int]] | None = None,
) -> None:
    """Accept for ever (run it in a greenlet). Only peers with a uid in ``uids`` are heard; ``restricted``: methods that
    fewer may call, with their uids.

    A handler that raises RpcError sends its text; any other exception is answered with its class alone
    and raised again in the handler's greenlet, so that it is logged.
    """
    while True:
        sock = accept(listener)
        uid = peer_uid(sock)
        if uid not in uids:
            sock.close()
            continue
        allowed = {name: call for name, call in methods.items() if uid in (restricted or {}).get(name, uids)}
        gevent.spawn(_serve_one, sock, allowed)


def accept(listener: socket.socket) -> socket.socket:
    """The next connection, whatever goes wrong before it comes."""
    while True:
        try:
            sock, _ = listener.accept()
        except OSError:
            gevent.sleep(ACCEPT_PAUSE_SECONDS)
        else:
            return sock


def _serve_one(sock: socket.socket, methods: dict[str, Handler]) -> None:
    frames = Frames()
    calls = gevent.pool.Pool(MAX_CALLS)
    lock = gevent.lock.Semaphore()
    try:
        while data := sock.recv(RECV_BYTES):
            for request in frames.feed(data):
                # A closure: gevent prints the arguments of a greenlet that fails, and these may hold a password.
                calls.spawn(_answering(sock, lock, methods, *request))  # yields when the pool is full
    except (OSError, ValueError, TypeError):  # TypeError: a frame that is no request
        pass
    finally:
        calls.kill()
        sock.close()


def _answering(
    sock: socket.socket,
    lock: gevent.lock.Semaphore,
    methods: dict[str, Handler],
    number: int,
    method: str,
    argument: Any,
) -> Callable[[], None]:
    return lambda: _answer(sock, lock, methods, number, method, argument)


def _answer(
    sock: socket.socket,
    lock: gevent.lock.Semaphore,
    methods: dict[str, Handler],
    number: int,
    method: str,
    argument: Any,
) -> None:
    try:
        if method not in methods:
            raise RpcError(f"no method {method!r}")
        answer = [number, None, methods[method](argument)]
    except RpcError as e:
        answer = [number, str(e), None]
    except Exception as e:
        _send(sock, lock, frame([number, type(e).__name__, None]))
        raise
    _send(sock, lock, frame(answer))


def _send(sock: socket.socket, lock: gevent.lock.Semaphore, data: bytes) -> None:
    try:
        with lock:  # sendall yields: answers must not mix
            sock.sendall(data)
    except OSError:  # the caller went away: its connection is being closed by the reader
        pass
