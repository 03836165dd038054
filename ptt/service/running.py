"""A process of the service as the supervisor sees it; and one that was started before an upgrade in place."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time

from ptt.log import DELIVERIES_FD
from ptt.service.logfiles import send
from ptt.service.privileges import Kind
from ptt.service.processes import Spec


class Running:
    """One process and its history."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.process: subprocess.Popen[bytes] | None = None
        self.ready_fd = -1
        self.files: socket.socket | None = None  # over which it is sent log files
        self.ready = False
        self.restarts = 0
        self.started_ms = 0
        self.started = 0.0
        self.delay = 0.0
        self.due: float | None = 0.0  # monotonic time of the next start; None while it runs

    def start(self, parent: int, env: dict[str, str], inherited: int, deliveries: bool) -> int:
        """Execute it, with the delivery log if there is one.

        Returns the descriptor on which it says that it is ready. Raises OSError."""
        self.ready_fd, theirs = os.pipe()
        self._close_files()
        self.files, files = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        log = [DELIVERIES_FD] if deliveries else []
        command = [sys.executable, *self.spec.arguments]
        try:
            self.process = subprocess.Popen(
                [*command, "--ready-fd", str(theirs), "--parent", str(parent), "--files-fd", str(files.fileno())],
                pass_fds=(*self.spec.fds, theirs, inherited, files.fileno(), *log),
                stdin=subprocess.DEVNULL,
                stdout=2,  # nothing but "ptt: ready" goes to our standard output
                env=env,
                cwd="/",
                process_group=0,  # Ctrl-C reaches the supervisor alone, which stops the others in order
            )
        except BaseException:
            self.closed()
            raise
        finally:
            os.close(theirs)
            files.close()
        os.set_blocking(self.ready_fd, False)
        self.started, self.started_ms, self.due, self.ready = time.monotonic(), int(time.time() * 1000), None, False
        return self.ready_fd

    def closed(self) -> None:
        if self.ready_fd >= 0:
            os.close(self.ready_fd)
            self.ready_fd = -1

    def reload(self, files: list[int]) -> None:
        """Hand it log files that were opened again, and tell it to reload."""
        if self.files is not None and files:
            send(self.files, files)
        if self.ready:  # before, SIGHUP might meet a process that does not know it yet
            self.signal(signal.SIGHUP)

    def _close_files(self) -> None:
        if self.files is not None:
            self.files.close()
            self.files = None

    def signal(self, number: int) -> None:
        if self.process is not None:
            self.process.send_signal(number)  # does nothing when the process was reaped


class Adopted:
    """A process that was started before an upgrade in place: still our child, under the same process id."""

    def __init__(self, name: str, kind: Kind, pid: int) -> None:
        self.name = name
        self.kind = kind
        self.pid = pid
        self.deadline = 0.0  # monotonic; then it is killed

    def stop(self, seconds: float) -> None:
        """Ask it to end within so many seconds."""
        self.deadline = time.monotonic() + seconds
        self._signal(signal.SIGTERM)

    def ended(self) -> bool:
        """Has it ended? Kills it after its time."""
        try:
            if os.waitpid(self.pid, os.WNOHANG)[0]:
                return True
        except ChildProcessError:
            return True
        if self.deadline and time.monotonic() > self.deadline:
            self._signal(signal.SIGKILL)
        return False

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)
