"""The queue process's loop: one thread over epoll. Drain all sockets, execute all that arrived as one group, answer.

While a group is written and synced the next one gathers in the sockets: that is the group commit.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import struct
import time
from collections import deque
from collections.abc import Callable, Iterable

from ptt_queue.errors import ProtocolError
from ptt_queue.protocol import Body, Frames, GetList, GetShow, Request, parse_request
from ptt_queue.queue import Arrived, Queue
from ptt_queue.session import Sent, Session

RECV_BYTES = 256 * 1024
MAX_GROUP_BYTES = 8 * 1024 * 1024  # read for one group: what is left waits in the sockets
MAX_OUT_BYTES = 8 * 1024 * 1024  # answers that a client has not read; above, nothing more is read from it
MAX_LARGE = 4  # requests of one client in one group whose answer may have a MiB
SOCKET_BYTES = 1024 * 1024  # buffer of each connection, as far as the kernel allows
MAX_CONNECTIONS = 1024
MAX_POLL_SECONDS = 1.0
GATHER_MS = 2
"""After a group of several requests the next one gathers for so long before it is looked at. A commit costs the same
for one request as for ten: under load this takes a quarter of this process's CPU off a message. A lone request never
waits."""
LARGE_GROUP = 16  # requests; after such a group the next one gathers for LARGE_GATHER_MS
LARGE_GATHER_MS = 1
FULL_GROUP = 64  # requests; after such a group nothing waits: the next one has gathered while this was written
STEP_MS = 1000  # the wall clock moved against the steady one by more: it was set
GOODBYE_SECONDS = 2.0  # for the last answers at the end


class Peer:
    """One connection."""

    __slots__ = ("events", "frames", "out", "out_bytes", "session", "sock", "todo")

    def __init__(self, sock: socket.socket, session: Session) -> None:
        self.sock = sock
        self.session = session
        self.frames = Frames()
        self.todo: deque[tuple[Request, bytes]] = deque()  # read; usually gone within the same turn
        self.out: deque[bytes | memoryview] = deque()
        self.out_bytes = 0
        self.events = select.EPOLLIN


def peer_uid(sock: socket.socket) -> int:
    """The user id of the process at the other end of a Unix socket."""
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    uid: int = struct.unpack("3i", credentials)[1]
    return uid


def gather_ms(last_group: int) -> int:
    """How long the next group gathers, in ms, after one of ``last_group`` requests: were several at work, others will
    follow in a moment."""
    if 1 < last_group < FULL_GROUP:
        return GATHER_MS if last_group < LARGE_GROUP else LARGE_GATHER_MS
    return 0


class Server:
    """Serves ``queue`` on ``listener`` to peers whose user is in ``uids``, until ``stop`` or SIGTERM.

    ``log`` is called with a text for what an operator should know. ``clock``: seconds since the epoch.
    """

    def __init__(
        self,
        queue: Queue,
        listener: socket.socket,
        uids: frozenset[int],
        log: Callable[[str], None] = lambda _: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.queue = queue
        self.listener = listener
        self.uids = uids
        self.log = log
        self.clock = clock
        self.stopping = False
        self._last_group = 0  # requests
        self._pause = select.poll()  # not time.sleep, which fails while the clock is being set
        self._peers: dict[int, Peer] = {}
        self._of: dict[Session, Peer] = {}
        self._behind: dict[Peer, None] = {}  # those with something to do: nothing is read from them meanwhile
        self._epoll = select.epoll()
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._offset = self._clock_offset()
        self._buffer = memoryview(bytearray(RECV_BYTES))  # one for all: a fresh one for each read costs 20 µs

    def stop(self) -> None:
        """May be called from a signal handler or another thread."""
        self.stopping = True
        with contextlib.suppress(OSError):
            os.write(self._wake_write, b"\0")

    def run(self, signals: Iterable[int] = (signal.SIGTERM, signal.SIGINT)) -> None:
        """Serve. Raises StoreBroken when the store can be used no longer."""
        for number in signals:
            signal.signal(number, lambda *_: self.stop())
        self.listener.setblocking(False)
        self._epoll.register(self.listener.fileno(), select.EPOLLIN)
        self._epoll.register(self._wake_read, select.EPOLLIN)
        self._pause.register(self._wake_read, select.POLLIN)
        try:
            while not self.stopping:
                self._turn()
            self._last_turn()
        finally:
            for peer in list(self._peers.values()):
                self._close(peer)
            self._epoll.close()
            os.close(self._wake_read)
            os.close(self._wake_write)

    def _now(self) -> int:
        """Milliseconds of wall clock; tells the queue when that was set."""
        offset = self._clock_offset()
        if abs(offset - self._offset) > STEP_MS:
            self.log(f"the clock was set by {offset - self._offset} ms")
            self.queue.clock_set(offset - self._offset)
        self._offset = offset
        return int(self.clock() * 1000)

    def _clock_offset(self) -> int:
        return int((self.clock() - time.monotonic()) * 1000)

    def _turn(self) -> None:
        arrived: list[Arrived] = []
        gone: list[Peer] = []
        read = 0
        if gather := gather_ms(self._last_group):
            self._pause.poll(gather)
        events = self._epoll.poll(0) or self._epoll.poll(self._wait())  # under load there is no need to know how long
        for peer in list(self._behind):
            self._take(peer, arrived)
        for fd, event in events:
            peer_or_none = self._peers.get(fd)
            if peer_or_none is None:
                self._other(fd)
                continue
            peer = peer_or_none
            if event & select.EPOLLOUT or peer.out:
                self._flush(peer)
            if event & ~select.EPOLLOUT and not peer.todo and read < MAX_GROUP_BYTES:
                size = self._read(peer, arrived)
                read += size
                if not size:
                    gone.append(peer)
        now = self._now()
        self._last_group = len(arrived)
        if arrived or self.queue.next_wake(now) <= now:
            self._send(self.queue.execute(arrived, now))
        for peer in gone:
            self._close(peer)
        if any(s.broken for s in self._of):
            for peer in [p for s, p in self._of.items() if s.broken]:
                self.log(f"connection closed: {peer.session.broken}")
                self._close(peer)

    def _wait(self) -> float:
        """How long to wait for something to arrive, in seconds."""
        if any(peer.out_bytes <= MAX_OUT_BYTES for peer in self._behind):
            return 0
        now = self._now()
        return min(MAX_POLL_SECONDS, (self.queue.next_wake(now) - now) / 1000)

    def _take(self, peer: Peer, arrived: list[Arrived]) -> None:
        """What of a client's requests goes into this group: its answers are bounded."""
        todo, large = peer.todo, 0
        while todo and peer.out_bytes <= MAX_OUT_BYTES:
            large += isinstance(todo[0][0], Body | GetList | GetShow)
            if large > MAX_LARGE:
                break
            arrived.append((peer.session, *todo.popleft()))
        if todo:
            self._behind[peer] = None
            self._watch(peer)
        elif peer in self._behind:
            del self._behind[peer]
            self._watch(peer)

    def _last_turn(self) -> None:
        """What has arrived is executed and answered; leases of those who are gone are written."""
        for peer in self._peers.values():
            peer.sock.setblocking(True)
            peer.sock.settimeout(GOODBYE_SECONDS / max(1, len(self._peers)))
            with contextlib.suppress(OSError):
                while peer.out:
                    peer.sock.sendall(peer.out.popleft())
        self.queue.execute([], self._now())

    def _other(self, fd: int) -> None:
        if fd == self._wake_read:
            with contextlib.suppress(OSError):
                os.read(fd, 64)
            return
        with contextlib.suppress(OSError):  # the one that was to be accepted went away
            sock, _ = self.listener.accept()
            if len(self._peers) >= MAX_CONNECTIONS or peer_uid(sock) not in self.uids:
                self.log("connection refused: not a user of this queue, or too many")
                sock.close()
                return
            sock.setblocking(False)
            for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
                sock.setsockopt(socket.SOL_SOCKET, option, SOCKET_BYTES)
            peer = Peer(sock, self.queue.connect())
            self._peers[sock.fileno()] = self._of[peer.session] = peer
            self._epoll.register(sock.fileno(), peer.events)

    def _read(self, peer: Peer, arrived: list[Arrived]) -> int:
        """Bytes read; 0 when the connection is to be closed."""
        try:
            size = peer.sock.recv_into(self._buffer)
        except BlockingIOError:
            return 1
        except OSError:
            return 0
        try:
            for control, blob in peer.frames.feed(bytes(self._buffer[:size])):
                peer.todo.append((parse_request(control), blob))
        except ProtocolError as e:
            self.log(f"connection closed: {e}")
            return 0
        self._take(peer, arrived)
        return size

    def _send(self, sent: Iterable[Sent]) -> None:
        peers: dict[Peer, None] = {}
        for session, pieces in sent:
            peer = self._of.get(session)
            if peer is not None:
                peer.out.extend(pieces)
                peer.out_bytes += sum(map(len, pieces))
                peers[peer] = None
        for peer in peers:
            self._flush(peer)

    def _flush(self, peer: Peer) -> None:
        """Send what the socket takes; watch it for the rest."""
        out = peer.out
        try:
            while out:
                if len(out) > 1:
                    data = memoryview(b"".join(out))
                    out.clear()
                else:
                    data = memoryview(out.popleft())
                try:
                    sent = peer.sock.send(data)
                except BlockingIOError:
                    sent = 0
                peer.out_bytes -= sent
                if sent < len(data):
                    out.appendleft(data[sent:])
                    break
        except OSError:  # it is closed when its end is read
            out.clear()
            peer.out_bytes = 0
        self._watch(peer)

    def _watch(self, peer: Peer) -> None:
        """What of its socket matters now."""
        events = 0 if peer.todo or peer.out_bytes > MAX_OUT_BYTES else select.EPOLLIN
        if peer.out:
            events |= select.EPOLLOUT
        if events != peer.events:
            peer.events = events
            self._epoll.modify(peer.sock.fileno(), events)

    def _close(self, peer: Peer) -> None:
        if self._peers.pop(peer.sock.fileno(), None) is None:
            return
        del self._of[peer.session]
        self._behind.pop(peer, None)
        with contextlib.suppress(OSError):
            self._epoll.unregister(peer.sock.fileno())
        peer.sock.close()
        self.queue.disconnect(peer.session, self._now())
