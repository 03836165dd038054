import contextlib
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import pytest
from ptt_queue.client import QueueClient
from ptt_queue.in_process import LIMIT, InProcess


class Process:
    """A real queue process, and clients through its socket."""

    def __init__(self, directory: pathlib.Path, *arguments: str) -> None:
        self.path = str(directory / "queue")
        self.socket = str(directory / "queue.sock")
        self.arguments = arguments
        self.start()

    def start(self) -> None:
        command = [
            sys.executable,
            "-m",
            "ptt_queue",
            self.path,
            self.socket,
            "--limited",
            "2",
            "--in-flight",
            str(LIMIT),
        ]
        self.process = subprocess.Popen([*command, *self.arguments], stderr=subprocess.PIPE)

    def client(self, timeout: float = 20) -> QueueClient:
        client = QueueClient(self.socket, timeout=timeout, leases=True)
        client.stats()  # it is there
        return client

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.end()

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.end()

    def end(self) -> int:
        code = self.process.wait(10)
        self.process.stderr.close()
        return code

    def restart(self) -> None:
        self.kill()
        self.start()


@pytest.fixture
def process(tmp_path, request):
    subject = Process(tmp_path, *getattr(request, "param", ()))
    yield subject
    if subject.process.returncode is None:
        subject.kill()


@pytest.fixture
def in_process(tmp_path):
    subject = InProcess(str(tmp_path / "queue"))
    yield subject
    subject.close()


@pytest.fixture
def wait_until():
    def wait(condition, seconds=10.0):
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, "it did not happen in time"
            time.sleep(0.002)

    return wait


@pytest.fixture
def raw_connection(process):
    """A socket to the queue process on which anything can be sent."""
    process.client().close()
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as sock:
        sock.settimeout(10)
        directory = os.open(os.path.dirname(process.socket), os.O_PATH)
        try:
            sock.connect(f"/proc/self/fd/{directory}/queue.sock")
        finally:
            os.close(directory)
        yield sock
