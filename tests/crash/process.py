"""A real queue process of the tests, perhaps run by another program."""

import contextlib
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence

from ptt_queue.client import QueueClient

MAP_BYTES = 1 << 28


class Process:
    """A real queue process. ``before``: a program that runs it (strace, faketime)."""

    def __init__(
        self,
        directory: pathlib.Path,
        before: Sequence[str] = (),
        map_bytes: int = MAP_BYTES,
        environment: dict[str, str] | None = None,
    ) -> None:
        self.store = directory / "queue"
        self.socket = str(directory.parent / f"{directory.name}.sock")
        self.before = list(before)
        self.map_bytes = map_bytes
        self.said = tempfile.TemporaryFile("w+")  # noqa: SIM115  (not a pipe: nobody reads while it runs)
        self.environment = os.environ | (environment or {})
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "ptt_queue", str(self.store), self.socket, "--map-bytes", str(self.map_bytes)]
        self.process = subprocess.Popen([*self.before, *command], stderr=self.said, env=self.environment)

    def pid(self) -> int:
        """Of the queue process itself."""
        pid = self.process.pid
        if self.before:
            children = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            pid = int(children[-1])
        return pid

    def end(self, how: int = signal.SIGKILL) -> str:
        """End it if it still runs; returns what it said."""
        if self.process.poll() is None:
            with contextlib.suppress(OSError, IndexError):
                os.kill(self.pid(), how)
        with contextlib.suppress(FileNotFoundError):
            pathlib.Path(self.socket).unlink()
        self.process.wait(30)
        self.said.seek(0)
        return self.said.read()

    def end_when_served(self) -> None:
        """Let it create its store, and end it."""
        with QueueClient(self.socket) as client:
            client.stats()
        self.end(signal.SIGTERM)
