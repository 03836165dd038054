"""The real queue process: killed under load, fed garbage, stopped, spoken to by strangers."""

import contextlib
import os
import signal
import socket
import struct
import subprocess
import sys
import threading

import pytest
from ptt_queue import protocol
from ptt_queue.client import QueueClient
from ptt_queue.protocol import Frames
from ptt_queue.server import Server
from ptt_queue.testing import new_message, now_ms
from ptt_queue.types import NewTask, Settle

HELLO = protocol.frame_request(protocol.Hello(1, b"c" * 16, False, []))


def answers(sock, count):
    frames, found = Frames(), []
    while len(found) < count:
        data = sock.recv(65536)
        assert data, "the connection was closed"
        found += [(protocol.parse_answer(c), b) for c, b in frames.feed(data)]
    return found


@pytest.mark.slow
def test_byte_by_byte(raw_connection):
    message = new_message()
    wire = HELLO + protocol.frame_request(protocol.Put(2, 1, message, True), 4) + b"body"
    for n in range(len(wire)):
        raw_connection.sendall(wire[n : n + 1])
    assert [a.number for a, _ in answers(raw_connection, 2)] == [1, 2]


@pytest.mark.slow
@pytest.mark.parametrize(
    "wire",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        os.urandom(64) + b"\xff" * 64,
        struct.pack("!II", 0xFFFFFFFF, 4) + b"x" * 100,
        struct.pack("!II", 8, 4) + b"\xc1\xc1\xc1\xc1",
        protocol.frame_request(protocol.GetStats(1)),  # no hello
        HELLO + HELLO,
        protocol.frame_request(protocol.Hello(1, b"short", False, [])),
        HELLO + protocol.frame_request(protocol.Stage(b"i" * 12, 7), 3) + b"abc",
        HELLO + protocol.frame_request(protocol.Stage(b"i", 0), 3) + b"abc",
        HELLO + protocol.frame_request(protocol.Body(2, b"i" * 12, -5)),
        HELLO + protocol.frame_request(protocol.Mark(b"i", 1 << 40)) + HELLO,
    ],
    ids=range(11),
)
def test_garbage_ends_the_connection_and_nothing_else(process, raw_connection, wire):
    raw_connection.sendall(wire)
    while raw_connection.recv(65536):
        pass
    with process.client() as client:
        assert client.put(new_message(), b"body").refused is None


@pytest.mark.slow
def test_a_client_that_reads_nothing_holds_up_nobody(process, raw_connection, wait_until):
    body = os.urandom(protocol.PART_BYTES)
    with process.client() as client:
        message = new_message(body=body)
        client.put(message, body)
        raw_connection.sendall(HELLO)
        raw_connection.settimeout(0.2)
        sent = 0
        with contextlib.suppress(TimeoutError):
            while sent < 100_000:
                raw_connection.sendall(protocol.frame_request(protocol.Body(2, message.id, 0)) * 10)
                sent += 10
        assert sent < 100_000
        assert client.put(new_message(), b"body").refused is None
        with open(f"/proc/{process.process.pid}/statm", encoding="ascii") as f:
            assert int(f.read().split()[1]) * 4096 < 150 << 20


@pytest.mark.slow
def test_sigterm_answers_what_has_arrived_and_ends_with_0(process):
    with process.client() as client:
        leased = client.put(new_message("leased"), b"body").leased
        client.put(new_message("waits"), b"body", lease=False)
        assert process.stop() == 0
        process.start()
        assert client.settle(Settle(leased[0].message, leased[0].number)).stored
        (task,) = client.lease(10, [2])
        assert (task.lane, task.maybe) == ("waits", False)


def test_strangers_are_not_heard(in_process, tmp_path):
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        server = Server(in_process.queue, listener, frozenset({os.getuid() + 1}))
        thread = threading.Thread(target=server.run, kwargs={"signals": ()})
        thread.start()
        try:
            with socket.socket(socket.AF_UNIX) as sock:
                sock.settimeout(10)
                sock.connect(path)
                assert sock.recv(1) == b""
        finally:
            server.stop()
            thread.join(10)


@pytest.mark.slow
def test_second_owner_is_refused(process):
    process.client().close()
    command = [sys.executable, "-m", "ptt_queue", process.path, process.socket + "2"]
    found = subprocess.run(command, capture_output=True, text=True, timeout=10)
    assert found.returncode == 2
    assert "another process owns" in found.stderr


@pytest.mark.slow
def test_path_of_the_socket_may_be_long(process, tmp_path):
    process.client().close()
    long = tmp_path / ("x" * 120)
    long.mkdir()
    os.rename(process.socket, long / "s")
    with QueueClient(str(long / "s")) as client:
        assert client.stats().messages == 0


class Worker(threading.Thread):
    """Puts messages and delivers what it leases, until told to stop. Remembers both."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.client = QueueClient(path, timeout=30, leases=True)
        self.put: set[bytes] = set()
        self.delivered: list[tuple[bytes, bool]] = []
        self.lost: list[bytes] = []
        self.stopping = False

    def run(self) -> None:
        n = 0
        while not self.stopping:
            n += 1
            messages = [new_message(f"lane{n % 5}", stage=1 + n % 2) for _ in range(3)]
            results = self.client.put_all([(m, b"body") for m in messages], lease=n % 2 == 0)
            assert [r.refused for r in results] == [None] * 3
            self.put.update(m.id for m in messages)
            self.deliver([t for r in results for t in r.leased] + self.client.lease(3, [1, 2]))
        self.client.close()

    def deliver(self, tasks) -> None:
        for task in tasks:
            if task.stage == 1:  # moves on, by a settle that leases
                new = [NewTask(2, task.lane, task.items, now_ms())]
                result = self.client.settle(Settle(task.message, task.number, new, b"prefix", lease=True))
                assert result.stored
                self.deliver(result.leased)
                continue
            self.client.mark(task)
            self.delivered.append((task.message, task.maybe))
            if not self.client.settle(Settle(task.message, task.number)).stored:
                self.lost.append(task.message)


@pytest.mark.slow
@pytest.mark.parametrize("process", [("--clients", "3")], indirect=True)
def test_killed_under_load(process, wait_until):
    """Nothing is lost; what is delivered twice was handed out as maybe delivered. The workers live on."""
    workers = [Worker(process.socket) for _ in range(3)]
    for worker in workers:
        worker.start()
    try:
        for _ in range(6):
            seen = sum(len(w.delivered) for w in workers)
            wait_until(lambda: sum(len(w.delivered) for w in workers) > seen + 60)  # noqa: B023
            process.restart()
    finally:
        for worker in workers:
            worker.stopping = True
        for worker in workers:
            worker.join(30)
    with process.client() as client:
        rest = Worker(process.socket)
        rest.client = client
        while tasks := client.lease(100, [1, 2], wait=2.5):  # beyond the grace after the start
            rest.deliver(tasks)
        assert client.stats().messages == 0
    delivered = [d for w in (*workers, rest) for d in w.delivered]
    assert {m for m, _ in delivered} == set().union(*(w.put for w in workers))
    again = [m for m, maybe in delivered if not maybe]
    assert len(again) == len(set(again))
    assert not [m for w in workers for m in w.lost]


@pytest.mark.slow
def test_worker_killed(process, tmp_path):
    """kill -9 of a worker with one marked and one unmarked lease; exact, through real processes."""
    code = (
        "import sys; from ptt_queue.client import QueueClient; from ptt_queue.testing import new_message\n"
        "c = QueueClient(sys.argv[1], leases=True)\n"
        "a, b = (c.put(new_message(lane), b'body').leased[0] for lane in ('marked', 'unmarked'))\n"
        "c.mark(a); c.stats(); print('ready', flush=True); sys.stdin.read()"
    )
    process.client().close()
    worker = subprocess.Popen(
        [sys.executable, "-c", code, process.socket], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert worker.stdout.readline() == b"ready\n"
    with process.client() as client:
        assert client.lease(1, [2]) == []
        worker.send_signal(signal.SIGKILL)
        worker.communicate()
        found = {}
        while len(found) < 2:
            found |= {t.lane: t.maybe for t in client.lease(10, [2], wait=5)}
    assert found == {"marked": True, "unmarked": False}
