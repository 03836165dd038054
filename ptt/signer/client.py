"""A worker's calls to the key processes: what its greenlets ask for within one turn of the loop goes out together.

One connection for each key process, used in turn. A batch whose key process dies is sent again on the next
connection: to sign twice harms nobody. So the death of one of several delays nothing.
"""

from __future__ import annotations

import contextlib
import time
from typing import NamedTuple

import gevent
import gevent.event

from ptt.net.rpc import RpcClient, RpcError, RpcUnavailable

MAX_BATCH = 16  # signatures in one request: 13 ms of work, so several key processes share the load evenly
MAX_BATCH_BYTES = 1024 * 1024  # far below what a frame may hold
TIMEOUT_SECONDS = 10.0  # of one request: hundreds of batches may wait before it
RENEW_SECONDS = 30.0  # idle connections are made anew, so that they spread again after a key process was restarted


class Request(NamedTuple):
    """One thing to sign. ``message``: the shown id, for the log of the key process."""

    message: str
    domain: str
    selector: str
    data: bytes


class SignatureRefused(RpcError):
    """The key process will not sign this; the text says why."""


class _Connection:
    """A connection with what ``RENEW_SECONDS`` needs to know of it."""

    def __init__(self, path: str, timeout: float) -> None:
        self.rpc = RpcClient(path, timeout)
        self.busy = 0
        self.since = 0.0

    def sign(self, batch: list[Request]) -> list[tuple[bytes | None, str | None]]:
        now = time.monotonic()
        if not self.busy and now - self.since > RENEW_SECONDS:
            self.rpc.close()
            self.since = now
        self.busy += 1
        try:
            found: list[tuple[bytes | None, str | None]] = self.rpc.call("sign", batch)
        finally:
            self.busy -= 1
        if len(found) != len(batch):
            raise RpcUnavailable(f"sign: {len(found)} answers to {len(batch)} requests")
        return found


class SignerClient:
    """Signatures from the key processes that listen at ``path``; ``processes``: how many there are."""

    def __init__(self, path: str, processes: int = 1, timeout: float = TIMEOUT_SECONDS) -> None:
        self._connections = [_Connection(path, timeout) for _ in range(processes)]
        self._timeout = timeout
        self._next = 0
        self._pending: list[tuple[Request, gevent.event.AsyncResult]] = []
        self._sending = False

    def sign(self, *requests: Request) -> list[bytes]:
        """The signatures, in order. Raises SignatureRefused, or RpcUnavailable when no key process answers."""
        answers = []
        for request in requests:
            answer = gevent.event.AsyncResult()
            self._pending.append((request, answer))
            answers.append(answer)
        if not self._sending:
            self._sending = True
            gevent.spawn(self._send)
        return [answer.get() for answer in answers]

    def close(self) -> None:
        for connection in self._connections:
            connection.rpc.close()

    def _send(self) -> None:
        """Runs after the greenlets of this turn: cut what they asked for into batches, one greenlet for each."""
        self._sending = False
        pending, self._pending = self._pending, []
        share = -(-len(pending) // len(self._connections))
        most = max(1, min(MAX_BATCH, share))
        batch: list[tuple[Request, gevent.event.AsyncResult]] = []
        size = 0
        for item in pending:
            size += len(item[0].data)
            if batch and (len(batch) >= most or size > MAX_BATCH_BYTES):
                gevent.spawn(self._call, batch)
                batch, size = [], len(item[0].data)
            batch.append(item)
        if batch:
            self._call(batch)

    def _call(self, batch: list[tuple[Request, gevent.event.AsyncResult]]) -> None:
        """Send one batch and hand its answers out; every waiting greenlet gets one, whatever happens."""
        try:
            found = self._try_each([request for request, _ in batch])
        except Exception as e:  # to those who wait
            for _, answer in batch:
                answer.set_exception(e)
            return
        for (_, answer), (signature, error) in zip(batch, found, strict=True):
            if signature is None:
                answer.set_exception(SignatureRefused(error or "no signature"))
            else:
                answer.set(signature)

    def _try_each(self, requests: list[Request]) -> list[tuple[bytes | None, str | None]]:
        """On each connection in turn, and the first once more: all may have been lost before. Raises RpcError."""
        end = time.monotonic() + self._timeout
        for _ in self._connections:
            with contextlib.suppress(RpcUnavailable):
                return self._turn().sign(requests)
            if time.monotonic() >= end:
                break
        return self._turn().sign(requests)

    def _turn(self) -> _Connection:
        self._next = (self._next + 1) % len(self._connections)
        return self._connections[self._next]
