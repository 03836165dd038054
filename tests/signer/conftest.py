"""Key processes as the supervisor starts them, over a configuration in a temporary directory."""

import contextlib
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ptt.config import Config, load
from ptt.net.frames import RECV_BYTES, Frames, frame
from ptt.signer import keystore
from ptt.signer.state import KeyAlgorithm, KeyState, PublicKey, all_public_keys, state_path, write_state

READY_SECONDS = 20.0


class Service:
    """A configuration, a listening socket, and the key processes that share it."""

    def __init__(self, base: pathlib.Path) -> None:
        self.base = base
        self.file = base / "ptt.toml"
        (base / "run").mkdir()
        self.write()
        self.path = os.path.join(self.config.run, "signer.sock")
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(self.path)
        self.listener.listen(64)
        self.children: list[subprocess.Popen[bytes]] = []
        self.log = base / "log"

    def write(self, text: str = "", signer: str = "") -> None:
        self.file.write_text(f'hostname = "mail.example.org"\n{text}\n[signer]\nprocesses = 2\n{signer}\n')
        self.config: Config = load(self.file)

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "ptt.signer.keyprocess", "--config", str(self.file), *arguments]

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Start one key process; returns when it is ready."""
        ready, told = os.pipe()
        fds = (self.listener.fileno(), told)
        command = self.command("--listen-fd", str(fds[0]), "--ready-fd", str(told), *arguments)
        with self.log.open("ab") as log:
            child = subprocess.Popen(command, pass_fds=fds, stderr=log)
        os.close(told)
        self.children.append(child)
        with open(ready, "rb") as file:
            assert file.read() == b"1", self.log.read_text()
        return child

    def kill(self, child: subprocess.Popen[bytes], number: int = signal.SIGKILL) -> int:
        child.send_signal(number)
        self.children.remove(child)
        return child.wait(READY_SECONDS)

    def key(self, domain: str = "example.org", selector: str = "s1", algorithm: KeyAlgorithm = "ed25519") -> PublicKey:
        signer = self.config.signer
        return keystore.generate(signer.keys, signer.public, domain, selector, algorithm, time.time_ns() // 1_000_000)

    def publish(self, served: bool = True) -> None:
        """As the control process says it: all keys there are."""
        keys = all_public_keys(self.config.signer.public)
        states = [KeyState(k.domain, k.selector, k.algorithm, k.record, served) for k in keys]
        write_state(state_path(self.config), states)

    def connect(self) -> "Connection":
        return Connection(self.path)

    def close(self) -> None:
        for child in list(self.children):
            self.kill(child)
        self.listener.close()


class Connection:
    """A plain blocking connection to a key process."""

    def __init__(self, path: str) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(READY_SECONDS)
        self.sock.connect(path)
        self._frames = Frames()

    def call(self, method: str, argument: Any = None) -> Any:
        """The result. Raises RuntimeError with the error, ConnectionError at the end of the stream."""
        self.sock.sendall(frame([7, method, argument]))
        while data := self.sock.recv(RECV_BYTES):
            for number, error, result in self._frames.feed(data):
                assert number == 7
                if error is not None:
                    raise RuntimeError(error)
                return result
        raise ConnectionError("closed")

    def __enter__(self) -> "Connection":
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()


@pytest.fixture
def service(tmp: pathlib.Path) -> Iterator[Service]:
    made = Service(tmp)
    with contextlib.closing(made):
        yield made


@pytest.fixture
def until() -> Callable[[Callable[[], object]], None]:
    """A function: polls a condition until it holds."""

    def wait(condition: Callable[[], object]) -> None:
        end = time.monotonic() + READY_SECONDS
        while not condition():
            assert time.monotonic() < end, "not within the time"
            time.sleep(0.005)

    return wait
