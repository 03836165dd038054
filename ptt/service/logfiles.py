"""The files of the log: opened by the supervisor, which may be root, and handed to the others after each rotation.

A process's log is its standard error, its delivery log the descriptor ``DELIVERIES_FD`` (``ptt.log``). At SIGHUP the
supervisor opens the files again, and sends the descriptors over a socket of each process, which puts them in place.
"""

from __future__ import annotations

import contextlib
import os
import socket

from ptt.config import Config
from ptt.log import DELIVERIES_FD

STANDARD_ERROR = 2
MODE = 0o640


def log_files(config: Config) -> list[int]:
    """Open what is configured, in place of what was open before. Returns the descriptors. Raises OSError."""
    wanted = {STANDARD_ERROR: config.log.file, DELIVERIES_FD: config.log.deliveries}
    opened = {fd: os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, MODE) for fd, path in wanted.items() if path}
    for fd, new in opened.items():
        os.dup2(new, fd)
        os.close(new)
    return list(opened)


def send(sock: socket.socket, fds: list[int]) -> None:
    """Hand the descriptors to a process; one that does not take them keeps what it has."""
    with contextlib.suppress(OSError):
        socket.send_fds(sock, [",".join(map(str, fds)).encode()], fds, socket.MSG_DONTWAIT)


def receive(sock: socket.socket) -> None:
    """Put what was sent in place of what is open under the same number. Nothing when nothing was sent."""
    with contextlib.suppress(OSError):
        sock.setblocking(False)  # also where it is gevent's, which waits otherwise
        numbers, fds, _, _ = socket.recv_fds(sock, 64, 4)
        for number, fd in zip(numbers.split(b","), fds, strict=False):
            os.dup2(fd, int(number))
            os.close(fd)
