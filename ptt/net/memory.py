"""A pair of streams in memory: what one end writes the other reads. For tests and for joining two of our sessions.

Passes the same conformance suite as TCP: bounded buffers, time-outs, end of stream, TLS on top.
"""

from __future__ import annotations

import ssl

import gevent
from gevent.event import Event

from ptt.net.stream import PeerClosed, ReadTimeout, Stream, TlsInfo, TlsStream, WriteTimeout

BUFFER_BYTES = 256 * 1024
"""What a writer may be ahead of the reader: of the order of a socket's buffers."""


class _Pipe:
    """One direction."""

    def __init__(self) -> None:
        self.buffer = bytearray()
        self.write_end_closed = False
        self.read_end_closed = False
        self.changed = Event()

    def notify(self) -> None:
        """Wake who waits; each then looks for itself. An event is set once: one that is cleared wakes nobody."""
        changed, self.changed = self.changed, Event()
        changed.set()

    def wait(self, timer: gevent.Timeout) -> bool:
        """Wait for a change after the caller has looked. False when the timer ran out."""
        try:
            self.changed.wait()
        except gevent.Timeout as e:
            if e is not timer:
                raise
            return False
        return True


class MemoryStream:
    """One end. Make two with ``memory_pair``."""

    def __init__(self, incoming: _Pipe, outgoing: _Pipe, peer: str) -> None:
        self.peer = peer
        self._in = incoming
        self._out = outgoing

    def read(self, most: int, timeout: float) -> bytes:
        pipe = self._in
        with gevent.Timeout(max(timeout, 0)) as timer:
            while not pipe.buffer and not pipe.write_end_closed and not pipe.read_end_closed:
                if timeout <= 0 or not pipe.wait(timer):
                    raise ReadTimeout(f"{self.peer} sent nothing for {timeout:g} s")
        if pipe.read_end_closed:
            raise PeerClosed("the stream was closed on this side")
        data = bytes(pipe.buffer[:most])
        del pipe.buffer[:most]
        pipe.notify()
        return data

    def write(self, data: bytes, timeout: float) -> None:
        pipe = self._out
        rest = memoryview(data)
        with gevent.Timeout(max(timeout, 0)) as timer:
            while True:
                if pipe.read_end_closed or pipe.write_end_closed:
                    raise PeerClosed(f"{self.peer} closed the connection")
                room = BUFFER_BYTES - len(pipe.buffer)
                pipe.buffer += rest[:room]
                rest = rest[room:]
                pipe.notify()
                if not rest:
                    return
                if timeout <= 0 or not pipe.wait(timer):
                    raise WriteTimeout(f"{self.peer} took nothing for {timeout:g} s")

    def start_tls(
        self,
        context: ssl.SSLContext,
        timeout: float,
        *,
        server_side: bool,
        server_hostname: str | None = None,
    ) -> Stream:
        return TlsStream(self, context, timeout, server_side, server_hostname)

    def tls(self) -> TlsInfo | None:
        return None

    def close(self) -> None:
        self._in.read_end_closed = True
        self._out.write_end_closed = True
        self._in.notify()
        self._out.notify()


def memory_pair(names: tuple[str, str] = ("192.0.2.1:1", "192.0.2.2:2")) -> tuple[MemoryStream, MemoryStream]:
    """Two connected ends; ``names``: the address of each, which the other shows as ``peer``."""
    there, back = _Pipe(), _Pipe()
    return MemoryStream(back, there, names[1]), MemoryStream(there, back, names[0])
